"""Cross entropy of a linear head over a large vocabulary, without ever holding all the logits.

Only positions with a label are scored, a chunk of rows at a time, and the gradients are made in the forward pass, so
that no (tokens, vocabulary) tensor outlives its chunk. The idea is that of cut cross entropy (Wijmans et al. 2024,
arXiv:2411.09009) and Liger's fused linear cross entropy, here in plain torch for every device.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .attention.plan import can_read_values

IGNORED = -100
# vocabularies below this are scored in larger chunks
_FEW_TOKENS = 1024


class ShiftedLabels:
    """A network whose labels are its inputs: slot t is scored on the label of slot t + 1.

    transformers knows this of the class names in a table of its own. For others its Trainer smooths the label of
    slot t itself (`label_smoothing_factor`), and the network learns to repeat its input; `transformers serve` and
    lm-evaluation-harness look there too. So every such class is entered when it is defined: a downloaded one, one
    derived from it, and what FSDP2 makes of it. A derived class whose own loss does not shift says so.

    Attributes:
        shifts_labels: False where slot t is scored on the label of slot t itself, in classes derived from that one too.
    """

    shifts_labels = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if cls.shifts_labels and cls.__name__ not in known.values():
            known["arbprob" if "arbprob" not in known else cls.__name__] = cls.__name__


def causal_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor | None,
    *,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Mean negative log-likelihood of the labels, in nats, without the logits.

    Args:
        hidden: float (B, T, D), the output of the last layer norm.
        weight: float (V, D), the output head.
        labels: long (B, T); the label of slot t + 1 is predicted by slot t. -100 is not scored.
        shift_labels: long (B, T), labels shifted already: that of slot t is predicted by slot t. Replaces `labels`.
        num_items_in_batch: what the sum is divided by; the number of scored labels when None.

    Returns:
        float32 (float64 for float64 input) scalar; 0 with zero gradients where no label is scored.
    """
    targets = _targets(labels, shift_labels, hidden.device)
    scored = (targets != IGNORED).nonzero().squeeze(1)  # (N,)
    total = linear_cross_entropy(hidden.flatten(0, 1)[scored], weight, targets[scored])
    return total / _divisor(scored.numel() if num_items_in_batch is None else num_items_in_batch, total)


def logits_loss(
    logits: Tensor,
    labels: Tensor | None,
    *,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """The same loss from logits that are there anyway, float (B, T, V); differentiable as often as one likes."""
    targets = _targets(labels, shift_labels, logits.device)
    _check_targets(targets.masked_fill(targets == IGNORED, 0), logits.shape[-1])
    scores = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))  # (B * T, V)
    total = nn.functional.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="sum")
    return total / _divisor((targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch, total)


def _targets(labels: Tensor | None, shift_labels: Tensor | None, device: torch.device) -> Tensor:
    # what each slot predicts, long (B * T,)
    if shift_labels is None:
        assert labels is not None
        shift_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return shift_labels.flatten().long().to(device)


def _divisor(count: Tensor | int, total: Tensor) -> Tensor | int:
    return count.to(total.device).clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def _check_targets(targets: Tensor, vocabulary: int) -> None:
    """Raise for a label that is no token; on the CPU only, as an accelerator would have to be waited for."""
    if torch.compiler.is_compiling() or targets.device.type != "cpu" or not targets.numel():
        return
    low, high = (int(bound) for bound in torch.aminmax(targets))
    if low < 0 or high >= vocabulary:
        bad = low if low < 0 else high
        raise ValueError(f"labels: expected -100 or 0 to {vocabulary - 1}, got {bad}")


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log softmax(hidden @ weight.T)[target], in nats.

    Args:
        hidden: float (N, D). weight: float (V, D). targets: long (N,), each in [0, V).

    Matrix products run in the autocast dtype when autocast is on; softmax, sums and the weight's gradient are kept in
    float32 (float64 for float64 input). Differentiable once.
    """
    _check_targets(targets, weight.shape[0])
    device = hidden.device.type
    compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    wants_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _LinearCrossEntropy.apply(hidden, weight, targets, compute, wants_gradient)


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross entropies, with both gradients made while each chunk's probabilities are at hand."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, weight: Tensor, targets: Tensor, compute: torch.dtype, wants: bool
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            total, *gradients = _in_chunks(hidden.to(compute), weight.to(compute), targets, wants)
        if wants:
            ctx.save_for_backward(*gradients)
            ctx.dtypes = hidden.dtype, weight.dtype  # type: ignore[attr-defined]
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the chunked loss is differentiable once: for second derivatives leave return_logits=False out, and "
                "the loss is computed from the logits"
            )
        hidden_gradient, weight_gradient = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        return (
            (hidden_gradient * upstream).to(hidden_dtype),
            (weight_gradient * upstream).to(weight_dtype),
            None,
            None,
            None,
        )


def _in_chunks(hidden: Tensor, weight: Tensor, targets: Tensor, wants: bool) -> tuple[Tensor, ...]:
    # -> total, gradient (N, D), gradient (V, D); the gradients only when wanted
    accurate = torch.promote_types(hidden.dtype, torch.float32)
    total = torch.zeros((), dtype=accurate, device=hidden.device)
    hidden_gradient = torch.empty_like(hidden, dtype=accurate) if wants else None
    weight_gradient = torch.zeros_like(weight, dtype=accurate) if wants else None
    # a product in half precision is summed over the chunks in the accurate one
    product = torch.empty_like(weight) if wants and weight.dtype != accurate else None
    size = _chunk_rows(hidden.shape[1], weight.dtype, weight.shape[0])
    # one set of buffers serves all chunks: fresh ones would be returned to the system and faulted in again
    logits = hidden.new_empty(min(size, hidden.shape[0]), weight.shape[0])
    likelihoods = torch.empty_like(logits, dtype=accurate)
    for start in range(0, hidden.shape[0], size):
        rows, answers = hidden[start : start + size], targets[start : start + size]
        scores, probabilities = logits[: rows.shape[0]], likelihoods[: rows.shape[0]]  # (rows, V)
        torch.mm(rows, weight.t(), out=scores)
        torch.softmax(scores, dim=-1, dtype=accurate, out=probabilities)
        # -log p[answer] = (peak - answer) - log p[peak]: p[peak] never underflows, and the difference of two large
        # logits is taken before a small logarithm is added to it
        peak, answer = scores.amax(1), scores.gather(1, answers[:, None]).squeeze(1)
        total += (peak.to(accurate) - answer.to(accurate) - probabilities.amax(1).log()).sum()
        if hidden_gradient is not None and weight_gradient is not None:
            # before any rounding: for a token known almost surely, p - 1 is all there is
            probabilities[torch.arange(rows.shape[0], device=rows.device), answers] -= 1
            error = probabilities if probabilities.dtype == scores.dtype else scores.copy_(probabilities)
            hidden_gradient[start : start + size] = error @ weight
            if product is None:
                weight_gradient.addmm_(error.t(), rows)  # (V, rows) @ (rows, D)
            else:
                weight_gradient.add_(torch.mm(error.t(), rows, out=product))
    return (total,) if not wants else (total, hidden_gradient, weight_gradient)  # type: ignore[return-value]


def _chunk_rows(width: int, dtype: torch.dtype, vocabulary: int) -> int:
    # measured on CPU: more rows lose the cache for a thin head, fewer lose matrix efficiency for a wide one, most of
    # all in half precision, where the sum over chunks weighs more
    rows = 512
    if width <= 256:
        rows = 128
    elif dtype in (torch.float32, torch.float64):
        rows = 256
    # with few tokens a chunk of so many rows would be all overhead, and whole logits are small
    return rows * max(1, _FEW_TOKENS // vocabulary)


# what one or several sequences need at a step, not whole texts
_FEW_ROWS = 128
# below this the call itself takes longer than the product
_LARGE_TABLE = 2**20


def is_plain(head: nn.Module) -> bool:
    """Whether `head` is a linear layer without a bias whose weight is a tensor of torch's own, not a quantised one."""
    return type(head) is nn.Linear and head.bias is None and type(head.weight) is nn.Parameter


def head_logits(head: nn.Module, hidden: Tensor, logits_to_keep: int | Tensor = 0) -> Tensor:
    """What `head(hidden)` returns, float (B, T, V) for (B, T, D); faster for a few rows in float32 on a CPU.

    Args:
        logits_to_keep: the last so many slots, or a 1-D tensor of their indices; 0 for all.

    There torch multiplies by way of BLAS, which some processors run at a third of their memory's speed; oneDNN, which
    comes with torch, does not. Gradients, compilers, autocast, hooks, offloaded weights and other heads go the
    usual way.
    """
    if type(logits_to_keep) is not int or logits_to_keep != 0:
        hidden = hidden[:, _kept(logits_to_keep)]  # (B, slots kept, D)
    is_quick = type(head) is nn.Linear and _is_quick(head, hidden)
    logits: Tensor = _onednn(hidden, head) if is_quick else head(hidden)  # type: ignore[arg-type]
    return logits


def _kept(logits_to_keep: int | Tensor) -> slice | Tensor:
    if isinstance(logits_to_keep, Tensor) and logits_to_keep.dim() == 1:
        return logits_to_keep
    is_count = isinstance(logits_to_keep, int) and not isinstance(logits_to_keep, bool) and logits_to_keep >= 0
    if is_count:
        return slice(-logits_to_keep, None)
    got = tuple(logits_to_keep.shape) if isinstance(logits_to_keep, Tensor) else repr(logits_to_keep)[:40]
    raise ValueError(f"logits_to_keep: expected a count from 0 or a 1-D tensor of slot indices, got {got}")


def _onednn(hidden: Tensor, head: nn.Linear) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, head.weight, head.bias, "none", [], "")
    return product


def _is_quick(head: nn.Linear, hidden: Tensor) -> bool:
    # the cheapest questions first; nothing here may be asked of a compiler
    if torch.is_grad_enabled() or not can_read_values(hidden.device):
        return False
    weight, rows = head.weight, hidden.shape[:-1].numel()
    # a weight that lies elsewhere is brought by a forward that someone has put in place of the module's own
    if weight.device != hidden.device or type(weight) is not nn.Parameter or type(hidden) is not Tensor:
        return False
    is_float = hidden.dtype == torch.float32 == weight.dtype and not torch.is_autocast_enabled("cpu")
    is_few = 0 < rows <= _FEW_ROWS and weight.numel() >= _LARGE_TABLE
    is_hooked = head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head) or _watches_every_module()
    return is_float and is_few and weight.is_contiguous() and not is_hooked and _has_onednn()


def _watches_every_module() -> bool:
    of_all = torch.nn.modules.module
    return bool(of_all._global_forward_hooks or of_all._global_forward_pre_hooks)


@functools.cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
