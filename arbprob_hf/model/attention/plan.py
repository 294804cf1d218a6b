"""How attention under one mask is computed: a plan is made once a forward and shared by the layers of that mask."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..masks.mask import Mask
from ..masks.patterns import Causal, Full
from ..masks.tiles import Sizes


class Plan(ABC):
    """A mask in the form that a kernel takes."""

    # what `attention_paths` of the network shows
    path: str

    @abstractmethod
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, dropout: float
    ) -> tuple[Tensor, Tensor | None]:
        """Attention under this plan's mask.

        Args:
            query: (B, H, T_q, D). key, value: (B, H, T_kv, D). dropout: probability, 0 outside training.

        Returns:
            (B, H, T_q, D), zero for a query that may see nothing, and the weights (B, H, T_q, T_kv) where the plan
            makes them.
        """


@dataclass(frozen=True)
class EagerPlan(Plan):
    """Attention written out in plain operations; the plan that returns its weights.

    Attributes:
        allowed: bool (B or 1, H or 1, T_q, T_kv), or None when every key is seen; a query that may see nothing is let
            see itself, see `has_keys`.
        bias: float, added to the scores, or None.
        has_keys: bool (B or 1, H or 1, T_q, 1), False where a query may see nothing; None when all see something.
    """

    allowed: Tensor | None = None
    bias: Tensor | None = None
    has_keys: Tensor | None = None
    path = "written"

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, dropout: float
    ) -> tuple[Tensor, Tensor]:
        scores = query @ key.transpose(-1, -2) * scaling  # (B, H, T_q, T_kv)
        if self.bias is not None:
            scores = scores + self.bias
        if self.allowed is not None:
            # filled, not added to: a forbidden score may be anything, inf and nan included
            scores = scores.masked_fill(~self.allowed, float("-inf"))
        accurate = torch.promote_types(scores.dtype, torch.float32)
        weights = torch.softmax(scores, dim=-1, dtype=accurate).to(value.dtype)
        if self.has_keys is not None:
            weights = torch.where(self.has_keys, weights, 0.0)
        weights = F.dropout(weights, p=dropout, training=dropout > 0)
        return zero_empty_rows(weights @ value, self.has_keys), weights


@dataclass(frozen=True)
class FusedPlan(Plan):
    """torch's fused kernel without a mask: every key is seen (`open`) or every earlier one (`causal`)."""

    causal: bool

    @property
    def path(self) -> str:  # type: ignore[override]
        return "causal" if self.causal else "open"

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, dropout: float
    ) -> tuple[Tensor, None]:
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=self.causal, scale=scaling)
        return out, None


@dataclass(frozen=True)
class AdditivePlan(Plan):
    """torch's fused kernel with one tensor of scores: 0 or the bias where allowed, -inf elsewhere.

    Attributes:
        scores: float, in the dtype of the queries (B or 1, H or 1, T_q, T_kv).
        has_keys: as in `EagerPlan`.
    """

    scores: Tensor
    has_keys: Tensor | None = None
    path = "additive"

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, dropout: float
    ) -> tuple[Tensor, None]:
        def kernel(query: Tensor, key: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=self.scores, dropout_p=dropout, scale=scaling
            )

        return zero_empty_rows(guard_overflow(kernel, query, key), self.has_keys), None


def eager_plan(mask: Mask, sizes: Sizes, bias: Tensor | None = None) -> EagerPlan:
    """The plan of plain operations for a resolved mask."""
    allowed, has_keys = _with_self(to_dense(mask, sizes), sizes)
    return EagerPlan(allowed, bias, has_keys)


def additive_plan(mask: Mask, sizes: Sizes, *, dtype: torch.dtype, bias: Tensor | None = None) -> AdditivePlan:
    """The plan of one fused kernel with scores in `dtype`, that of the queries."""
    allowed, has_keys = _with_self(to_dense(mask, sizes), sizes)
    kept = torch.zeros((), dtype=dtype, device=sizes.device) if bias is None else bias.to(dtype)
    return AdditivePlan(torch.where(allowed, kept, float("-inf")), has_keys)


def guard_overflow(kernel: Callable[[Tensor, Tensor], Tensor], query: Tensor, key: Tensor) -> Tensor:
    """The output of a kernel that adds -inf to forbidden scores, also where such a score overflows to inf.

    inf - inf is nan. Queries and keys beyond what can overflow are drawn in, which changes no bit of the others; on the
    CPU only when the output shows the need, elsewhere and under a compiler, where looking costs more, always.
    """
    if can_read_values(query.device):
        out = kernel(query, key)
        # the sum is the cheapest test there is; where it overflows by itself, only time is lost
        if bool(out.detach().sum(dtype=torch.promote_types(out.dtype, torch.float32)).isfinite()):
            return out
    return kernel(_clamp_safe(query), _clamp_safe(key))


def can_read_values(device: torch.device) -> bool:
    """Whether to decide by values: not under a compiler, a function transform or fake tensors, nor off the CPU."""
    return device.type == "cpu" and not torch.compiler.is_compiling() and not is_transformed()


def is_transformed() -> bool:
    """Whether operations run under a function transform, such as vmap, or on fake tensors, which have no values."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def _clamp_safe(states: Tensor) -> Tensor:
    if states.dtype == torch.float16:
        # its range is so small that the bound would touch sound values
        return states
    bound = (torch.finfo(states.dtype).max / states.shape[-1]) ** 0.5 / 2
    # what is infinite already is a fault that must show
    return torch.where(states.isfinite(), states.clamp(-bound, bound), states)


def zero_empty_rows(out: Tensor, has_keys: Tensor | None) -> Tensor:
    """The output with zeros where a query may see nothing."""
    return out if has_keys is None else torch.where(has_keys, out, 0.0)


def _with_self(allowed: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor | None]:
    # a softmax over nothing is nan on some kernels: such a query sees itself and its output is zeroed
    if can_read_values(sizes.device):
        # the largest of bytes is found twenty times as fast as the any of bools
        has_keys = allowed.view(torch.uint8).amax(-1, keepdim=True) != 0  # (B or 1, H or 1, T_q, 1)
        if bool(has_keys.all()):
            return allowed, None
    else:
        has_keys = allowed.any(-1, keepdim=True)
    own = (torch.arange(sizes.q_len, device=sizes.device) + sizes.offset)[:, None]  # (T_q, 1)
    itself = torch.arange(sizes.kv_len, device=sizes.device)[None, :] == own  # (T_q, T_kv)
    # in words of logic: onnxruntime chooses between no bool tensors
    return allowed | (itself & ~has_keys), has_keys


def to_dense(mask: Mask, sizes: Sizes) -> Tensor:
    """A resolved mask as bool (B or 1, H or 1, T_q, T_kv); columns of a static cache not yet filled are False."""
    columns = sizes.filled
    allowed = mask.evaluate(sizes.grid())
    allowed = allowed.expand(*allowed.shape[:-2], sizes.q_len, columns)
    if not isinstance(sizes.offset, int):
        allowed = allowed & (torch.arange(columns, device=sizes.device) < sizes.offset + sizes.q_len)
    if columns == sizes.kv_len:
        return allowed
    return torch.nn.functional.pad(allowed, (0, sizes.kv_len - columns))  # (B or 1, H or 1, T_q, T_kv)


def unmasked_plan(mask: Mask, sizes: Sizes) -> FusedPlan | None:
    """torch's kernel without a mask, where every query of this pass sees every key, or every earlier one; else None."""
    if type(mask) not in (Full, Causal) or not isinstance(sizes.offset, int):
        return None
    if sizes.kv_len == sizes.filled and (type(mask) is Full or sizes.q_len == 1):
        return FusedPlan(causal=False)
    is_square = sizes.offset == 0 and sizes.kv_len == sizes.q_len
    return FusedPlan(causal=True) if type(mask) is Causal and is_square else None
