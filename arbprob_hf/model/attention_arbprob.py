"""Attention under a mask, the same numbers on every backend; the one place where a mask becomes scores."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .masking_arbprob import Mask
from .resolving_arbprob import Sizes, is_causal, is_open, write_out


@dataclass(frozen=True)
class AttentionMask:
    """A mask as the kernels take it, made once per forward and shared by the layers.

    Neither `allowed` nor `scores`: every key is visible, or, with `causal`, every earlier one.

    Attributes:
        causal: the kernel's own causal path applies.
        allowed: bool (B or 1, H or 1, T_q, T_kv); a query that may see nothing is let see itself, see `seeing`.
        scores: float, in the dtype of the queries, added to the scores: the attention bias, and for sdpa, which takes
            nothing else, -inf where not allowed. Eager fills forbidden scores instead of adding to them.
        seeing: bool (B or 1, H or 1, T_q, 1), False where a query may see nothing; None when all see something.
    """

    causal: bool = False
    allowed: Tensor | None = None
    scores: Tensor | None = None
    seeing: Tensor | None = None


def prepare_mask(
    resolved: Mask, sizes: Sizes, *, backend: str, dtype: torch.dtype, bias: Tensor | None = None
) -> AttentionMask:
    """Bring a resolved mask into the form that `backend` takes.

    Args:
        dtype: of the queries, autocast included.
        bias: float (B or 1, H or 1, T_q, T_kv) added to the scores, or None.
    """
    if backend not in BACKENDS:
        # transformers knows backends that drop the mask
        raise ValueError(f"attn_implementation: expected {' or '.join(BACKENDS)}, got {backend!r:.60}")
    if bias is None and is_open(resolved, sizes):
        return AttentionMask()
    if bias is None and is_causal(resolved, sizes) and backend == "sdpa":
        return AttentionMask(causal=True)
    allowed, seeing = _with_self(write_out(resolved, sizes), sizes)
    scores = None if bias is None else bias.to(dtype)
    if backend == "sdpa":
        kept = torch.zeros((), dtype=dtype, device=sizes.device) if scores is None else scores
        scores = torch.where(allowed, kept, float("-inf"))
    return AttentionMask(allowed=allowed, scores=scores, seeing=seeing)


def eager_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, *, scaling: float, dropout: float
) -> tuple[Tensor, Tensor]:
    """Attention written out; the backend that returns its weights.

    Args:
        query: (B, H, T_q, D). key, value: (B, H, T_kv, D). dropout: probability, 0 outside training.

    Returns:
        (B, H, T_q, D) and the weights (B, H, T_q, T_kv), both zero for a query that may see nothing.
    """
    scores = query @ key.transpose(-1, -2) * scaling  # (B, H, T_q, T_kv)
    if mask.scores is not None:
        scores = scores + mask.scores
    if mask.allowed is not None:
        scores = scores.masked_fill(~mask.allowed, float("-inf"))
    accurate = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, dim=-1, dtype=accurate).to(value.dtype)
    if mask.seeing is not None:
        weights = torch.where(mask.seeing, weights, 0.0)
    weights = F.dropout(weights, p=dropout, training=dropout > 0)
    return _zero_unseeing(weights @ value, mask), weights


def sdpa_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, *, scaling: float, dropout: float
) -> tuple[Tensor, None]:
    """Attention by torch's fused kernel; shapes as in `eager_attention`, no weights."""
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask.scores, dropout_p=dropout, is_causal=mask.causal, scale=scaling
    )
    return _zero_unseeing(out, mask), None


# the backends that are known to obey every mask; a name not listed here is refused
BACKENDS: dict[str, Callable[..., tuple[Tensor, Tensor | None]]] = {
    "eager": eager_attention,
    "sdpa": sdpa_attention,
}


def _with_self(allowed: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor | None]:
    # a softmax over nothing is NaN on some kernels: such a query sees itself and its output is zeroed
    seeing = allowed.any(-1, keepdim=True)  # (B or 1, H or 1, T_q, 1)
    if not torch.compiler.is_compiling() and sizes.device.type == "cpu" and bool(seeing.all()):
        return allowed, None
    own = (torch.arange(sizes.q_len, device=sizes.device) + sizes.offset)[:, None]  # (T_q, 1)
    itself = torch.arange(sizes.kv_len, device=sizes.device)[None, :] == own  # (T_q, T_kv)
    return torch.where(seeing, allowed, itself), seeing


def _zero_unseeing(out: Tensor, mask: AttentionMask) -> Tensor:
    return out if mask.seeing is None else torch.where(mask.seeing, out, 0.0)
