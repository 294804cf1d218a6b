"""Attention under a mask, the same numbers on every backend: which plan each of them follows."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..masks.mask import Mask
from ..masks.tiles import Sizes
from .decode import step_plan
from .flex import flex_plan
from .plan import EagerPlan, Plan, eager_plan, is_open
from .sdpa import sdpa_plan


def prepare_attention(
    mask: Mask, sizes: Sizes, *, backend: str, dtype: torch.dtype, bias: Tensor | None = None
) -> Plan:
    """How `backend` computes attention under a resolved mask; made once a forward, shared by the layers.

    Args:
        dtype: of the queries, autocast included.
        bias: float (B or 1, H or 1, T_q, T_kv) added to the scores, or None.
    """
    if backend not in BACKENDS:
        # transformers knows backends that drop the mask
        raise ValueError(f"attn_implementation: expected {' or '.join(BACKENDS)}, got {backend!r:.60}")
    return BACKENDS[backend](mask, sizes, dtype=dtype, bias=bias)


def _sdpa_plan(mask: Mask, sizes: Sizes, *, dtype: torch.dtype, bias: Tensor | None) -> Plan:
    # a pass of one new token is short: what it sees is looked up rather than searched for
    step = step_plan(mask, sizes) if bias is None and not is_open(mask, sizes) else None
    return sdpa_plan(mask, sizes, dtype=dtype, bias=bias) if step is None else step


def _eager_plan(mask: Mask, sizes: Sizes, *, dtype: torch.dtype, bias: Tensor | None) -> Plan:
    if bias is None and is_open(mask, sizes):
        return EagerPlan()
    return eager_plan(mask, sizes, None if bias is None else bias.to(dtype))


# the backends that are known to obey every mask; a name not listed here is refused
BACKENDS: dict[str, Callable[..., Plan]] = {"eager": _eager_plan, "sdpa": _sdpa_plan, "flex_attention": flex_plan}
