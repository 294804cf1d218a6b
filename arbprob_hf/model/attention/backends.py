"""The backends of attention, the same numbers on each: which plan each of them follows."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..masks.mask import Mask
from ..masks.tiles import Sizes
from .decode import step_plan
from .flex import flex_plan
from .plan import EagerPlan, Plan, additive_plan, eager_plan, unmasked_plan
from .plan_cache import kept_plan
from .sdpa import SHORTEST, structured_plan

# shorter passes have nothing that flex_attention could skip, and it would be compiled for many shapes
FEWEST_FLEX_QUERIES = 16


def prepare_attention(
    mask: Mask, sizes: Sizes, *, backend: str, dtype: torch.dtype, bias: Tensor | None = None
) -> Plan:
    """How `backend` computes attention under a resolved mask; made once a forward, shared by the layers.

    Under a mask that a text says in full it is made once for a length, and shared by all forwards.

    Args:
        dtype: of the queries, autocast included.
        bias: float (B or 1, H or 1, T_q, T_kv) added to the scores, or None.
    """
    check_backend(backend)
    make = BACKENDS[backend]
    if bias is not None:
        return make(mask, sizes, dtype=dtype, bias=bias)
    return kept_plan(mask, sizes, (backend, dtype), lambda one: make(mask, one, dtype=dtype, bias=None))


def _sdpa_plan(mask: Mask, sizes: Sizes, *, dtype: torch.dtype, bias: Tensor | None) -> Plan:
    plan: Plan | None = None
    if bias is None:
        plan = unmasked_plan(mask, sizes)
        if plan is None and sizes.q_len == 1:
            # a pass of one new token is short: what it sees is looked up rather than searched for
            plan = step_plan(mask, sizes)
        elif plan is None and not torch.compiler.is_compiling():
            # under a compiler sizes are not compared: the network would be bound to one side
            plan = structured_plan(mask, sizes, dtype=dtype) if sizes.q_len >= SHORTEST else None
    return additive_plan(mask, sizes, dtype=dtype, bias=bias) if plan is None else plan


def _eager_plan(mask: Mask, sizes: Sizes, *, dtype: torch.dtype, bias: Tensor | None) -> Plan:
    fused = unmasked_plan(mask, sizes) if bias is None else None
    if fused is not None and not fused.causal:
        return EagerPlan()
    return eager_plan(mask, sizes, None if bias is None else bias.to(dtype))


def _flex_plan(mask: Mask, sizes: Sizes, *, dtype: torch.dtype, bias: Tensor | None) -> Plan:
    # torch 2.13's compiled kernel for the CPU gives wrong numbers, or NaN, on processors without AVX-512
    is_compiled_for_cpu = sizes.device.type == "cpu" and torch.compiler.is_compiling()
    if sizes.q_len < FEWEST_FLEX_QUERIES or is_compiled_for_cpu:
        return _sdpa_plan(mask, sizes, dtype=dtype, bias=bias)
    return flex_plan(mask, sizes, dtype=dtype, bias=bias)


# the backends that obey every mask; a name not listed here is refused
BACKENDS: dict[str, Callable[..., Plan]] = {"eager": _eager_plan, "sdpa": _sdpa_plan, "flex_attention": _flex_plan}


def check_backend(backend: object) -> None:
    """Raise ValueError unless `backend` obeys every mask; transformers knows backends that drop it."""
    if not isinstance(backend, str) or backend not in BACKENDS:
        # begins as transformers' own error does, which its callers look for
        raise ValueError(
            f'Specified `attn_implementation="{backend!s:.60}"` is not supported; expected {" or ".join(BACKENDS)}'
        )
