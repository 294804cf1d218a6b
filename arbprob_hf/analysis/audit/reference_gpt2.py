"""GPT-2 written a second time, in float64, one query at a time: what a masked network ought to answer.

Nothing is shared with the network it is compared with but the names of the weights. A mask that is too strict in one
head leaks nothing; only numbers show it.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Reference:
    """The weights of a GPT-2 shaped language model, and its forward pass under a mask per layer."""

    def __init__(self, model: nn.Module) -> None:
        config: Any = model.config
        self._weights = {name: value.detach().cpu().double() for name, value in model.state_dict().items()}
        self._layers, self._heads = int(config.n_layer), int(config.n_head)
        self._epsilon = float(config.layer_norm_epsilon)

    @staticmethod
    def knows(model: nn.Module) -> bool:
        """Whether a network is what this reference computes: GPT-2's names, activation and scaling."""
        config: Any = model.config
        names = set(model.state_dict())
        wanted = {"transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight", "lm_head.weight"}
        wanted |= {"transformer.h.0.attn.c_attn.weight", "transformer.h.0.mlp.c_fc.weight"}
        is_plain = not any(".crossattention." in name for name in names) and "lm_head.bias" not in names
        return (
            wanted <= names
            and is_plain
            and getattr(config, "activation_function", None) in ("gelu_new", "gelu_pytorch_tanh")
            and bool(getattr(config, "scale_attn_weights", True))
            and not getattr(config, "scale_attn_by_inverse_layer_idx", False)
        )

    def logits(self, ids: Tensor, keeps: Sequence[Tensor]) -> Tensor:
        """float64 (B, T, V) for ids (B, T) and keep-masks bool (B, H, T, T), one per layer."""
        weights = self._weights
        stream = weights["transformer.wte.weight"][ids.cpu()] + weights["transformer.wpe.weight"][: ids.shape[1]]
        for layer in range(self._layers):
            block = f"transformer.h.{layer}."
            stream = stream + self._attend(block, self._normed(stream, f"{block}ln_1"), keeps[layer].cpu())
            inner = self._projected(self._normed(stream, f"{block}ln_2"), f"{block}mlp.c_fc")
            curve = torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3))
            stream = stream + self._projected(0.5 * inner * (1 + curve), f"{block}mlp.c_proj")
        return self._normed(stream, "transformer.ln_f") @ weights["lm_head.weight"].T

    def _attend(self, block: str, stream: Tensor, keep: Tensor) -> Tensor:
        batch, length, width = stream.shape
        size = width // self._heads
        queries, keys, values = self._projected(stream, f"{block}attn.c_attn").split(width, dim=-1)
        out = torch.zeros_like(stream)
        for b in range(batch):
            for h in range(self._heads):
                own = slice(h * size, (h + 1) * size)
                for t in range(length):
                    seen = keep[b, h, t].nonzero().flatten()
                    if len(seen):
                        odds = (keys[b, seen, own] @ queries[b, t, own] / math.sqrt(size)).double()
                        odds = (odds - odds.max()).exp()
                        out[b, t, own] = (odds / odds.sum()) @ values[b, seen, own]
        return self._projected(out, f"{block}attn.c_proj")

    def _projected(self, stream: Tensor, name: str) -> Tensor:
        return stream @ self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]

    def _normed(self, stream: Tensor, name: str) -> Tensor:
        centred = stream - stream.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + self._epsilon).sqrt()
        return centred / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
