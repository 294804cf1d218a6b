"""The backends of attention: which function plans each of them; the numbers are the same."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..masks.mask import Mask
from ..masks.tiles import Sizes
from .flex import flex_plan
from .plan import EagerPlan, Plan, eager_plan, unmasked_plan
from .sdpa import sdpa_plan


def eager_attention_plan(mask: Mask, sizes: Sizes, *, dtype: torch.dtype, bias: Tensor | None) -> Plan:
    """Attention in plain operations, which returns its weights; arguments as in `BACKENDS`."""
    fused = unmasked_plan(mask, sizes) if bias is None else None
    if fused is not None and not fused.causal:
        return EagerPlan()
    return eager_plan(mask, sizes, None if bias is None else bias.to(dtype))


# from a resolved mask, the sizes of the pass, `dtype` (of the queries, autocast included) and `bias` (float (B or 1,
# H or 1, T_q, T_kv), added to the scores, or None) to a plan, made once a forward and shared by the layers of a mask.
# These obey every mask; transformers knows others that drop it
BACKENDS: dict[str, Callable[..., Plan]] = {
    "eager": eager_attention_plan,
    "sdpa": sdpa_plan,
    "flex_attention": flex_plan,
}
