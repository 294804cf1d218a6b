"""What the tests of masks compare with: GPT-2 written a second time, in float64, head by head, from a state dict."""

import math

import torch
from torch import Tensor

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM

VOCABULARY = 31


def micro(*, layers: int = 2, heads: int = 2, seed: int = 0, backend: str = "sdpa", **fields) -> ArbProbForCausalLM:
    """A network of a few thousand weights, large enough ones that every allowed key matters."""
    torch.manual_seed(seed)
    sizes = dict(vocab_size=VOCABULARY, n_positions=48, n_embd=8 * heads, n_layer=layers, n_head=heads)
    options = dict(initializer_range=0.3, bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0)
    config = ArbProbConfig(**{**sizes, **options, "attn_pdrop": 0.0, **fields})
    config._attn_implementation = backend
    return ArbProbForCausalLM(config).eval()


def random_ids(batch: int, length: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (batch, length))


def whole(mask: Tensor, batch: int, heads: int) -> Tensor:
    """A keep-mask (T, T), (B or 1, T, T) or (B or 1, H or 1, T, T) as bool (B, H, T, T)."""
    keep = mask.bool()
    keep = keep[None, None] if keep.dim() == 2 else keep[:, None] if keep.dim() == 3 else keep
    return keep.expand(batch, heads, -1, -1)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, keep: Tensor, bias: Tensor | None) -> Tensor:
    """One head of one row: (T, D) each, keep bool (T, T); a query that sees nothing outputs zero."""
    rows = []
    for t in range(query.shape[0]):
        seen = keep[t].nonzero().flatten()
        if len(seen) == 0:
            rows.append(torch.zeros_like(value[0]))
            continue
        scores = key[seen] @ query[t] / math.sqrt(query.shape[1])
        scores = scores if bias is None else scores + bias[t, seen]
        odds = (scores - scores.max()).exp()
        rows.append((odds / odds.sum()) @ value[seen])
    return torch.stack(rows)


def reference_hidden(
    model: ArbProbForCausalLM,
    embeds: Tensor,
    keep: Tensor | list[Tensor],
    *,
    positions: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The last layer norm's output, float64 (B, T, D), for a keep-mask bool (B, H, T, T) or one per layer.

    `embeds`: (B, T, D) without positions. `positions`: long (B, T), 0, 1, 2, ... when None.
    """
    weights = {name: value.detach().double() for name, value in model.transformer.state_dict().items()}
    batch, length, _ = embeds.shape
    heads, layers = model.config.n_head, model.config.n_layer
    keeps = keep if isinstance(keep, list) else [keep] * layers
    where = torch.arange(length).expand(batch, length) if positions is None else positions
    stream = embeds.double() + weights["wpe.weight"][where]
    for layer in range(layers):
        stream = stream + _attend(weights, f"h.{layer}.", stream, keeps[layer], bias, heads)
        inner = _norm(stream, weights, f"h.{layer}.ln_2")
        inner = inner @ weights[f"h.{layer}.mlp.c_fc.weight"] + weights[f"h.{layer}.mlp.c_fc.bias"]
        inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        stream = stream + inner @ weights[f"h.{layer}.mlp.c_proj.weight"] + weights[f"h.{layer}.mlp.c_proj.bias"]
    return _norm(stream, weights, "ln_f")


def reference_logits(model: ArbProbForCausalLM, ids: Tensor, keep: Tensor | list[Tensor], **options) -> Tensor:
    """float64 (B, T, V) for ids (B, T)."""
    table = model.transformer.wte.weight.detach().double()
    return reference_hidden(model, table[ids], keep, **options) @ table.T


def _attend(
    weights: dict[str, Tensor], layer: str, stream: Tensor, keep: Tensor, bias: Tensor | None, heads: int
) -> Tensor:
    split = _norm(stream, weights, f"{layer}ln_1") @ weights[f"{layer}attn.c_attn.weight"]
    width = stream.shape[-1]
    queries, keys, values = (split + weights[f"{layer}attn.c_attn.bias"]).split(width, dim=-1)
    rows = []
    for b in range(stream.shape[0]):
        columns = []
        for h in range(heads):
            own = slice(h * width // heads, (h + 1) * width // heads)
            extra = None if bias is None else bias.expand(keep.shape)[b, h].double()
            columns.append(masked_attention(queries[b, :, own], keys[b, :, own], values[b, :, own], keep[b, h], extra))
        rows.append(torch.cat(columns, dim=-1))
    return torch.stack(rows) @ weights[f"{layer}attn.c_proj.weight"] + weights[f"{layer}attn.c_proj.bias"]


def _norm(stream: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = stream - stream.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]
