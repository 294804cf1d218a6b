"""The flex_attention backend: torch's kernels that skip tiles, from a block mask that no dense mask was made for.

On an accelerator the kernel is compiled; on the CPU torch's unfused form is used, which has no backward.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ..masks.mask import Mask
from ..masks.tiles import Sizes, Tiles, Tiling
from .plan import Plan

BLOCK = 128
# kinds of masks that are compiled in one process
_KINDS = 512
# passed to torch's kernels, such as {"BACKEND": "FLASH"} where FlashAttention-4 is installed
KERNEL_OPTIONS: dict[str, Any] = {}


@dataclass(frozen=True)
class FlexPlan(Plan):
    """torch's flex_attention under a block mask, over the key columns that hold tokens."""

    block_mask: BlockMask
    score_mod: Callable[..., Tensor] | None
    columns: int
    path = "flex"

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, dropout: float
    ) -> tuple[Tensor, None]:
        _refuse(query, key, value, dropout)
        out = _kernel(query.device.type)(
            query,
            key[:, :, : self.columns],
            value[:, :, : self.columns],
            score_mod=self.score_mod,
            block_mask=self.block_mask,
            scale=scaling,
            kernel_options=KERNEL_OPTIONS or None,
        )
        return out, None


def flex_plan(mask: Mask, sizes: Sizes, *, dtype: torch.dtype, bias: Tensor | None = None) -> Plan:
    """The plan of torch's flex_attention for a resolved mask; `bias` is float (B or 1, H or 1, T_q, T_kv) or None."""
    return FlexPlan(block_mask(mask, sizes), None if bias is None else _added(bias.to(dtype)), sizes.filled)


def block_mask(mask: Mask, sizes: Sizes) -> BlockMask:
    """torch's block mask of a resolved mask, out of what the mask knows of its tiles.

    A tile that may hold allowed pairs is looked at by the rule itself, one that is full is not.
    """
    some, every = _tiles(mask, sizes)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~every),
        *_listed(some & every),
        BLOCK_SIZE=BLOCK,
        mask_mod=_rule(mask, sizes),
        seq_lengths=(sizes.q_len, sizes.filled),
    )


def _tiles(mask: Mask, sizes: Sizes) -> Tiles:
    counts = (-(-sizes.q_len // BLOCK), -(-sizes.filled // BLOCK))
    if isinstance(sizes.offset, int):
        tiling = Tiling(BLOCK, sizes.heads, sizes.q_len, sizes.filled, sizes.offset, sizes.device)
        some, every = torch.broadcast_tensors(*mask.tiles(tiling))
    else:
        # inside a compiled static cache nobody knows which queries these are
        some = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=sizes.device)
        every = ~some
    shape = (*some.shape[:2], *counts)
    return Tiles(some.expand(shape), every.expand(shape))


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    # bool (B, H, query tiles, key tiles) -> how many of each row, and their numbers, those first
    flags = tiles.int()
    return flags.sum(-1, dtype=torch.int32), flags.argsort(dim=-1, descending=True, stable=True).int()


def _rule(mask: Mask, sizes: Sizes) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    # a number would be compiled in, and make every step of a generation compile anew
    offset = torch.as_tensor(sizes.offset, device=sizes.device)
    is_bounded = not isinstance(sizes.offset, int)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        allowed = mask.allowed(b, h, q + offset, k)
        return allowed & (k < offset + sizes.q_len) if is_bounded else allowed

    return mask_mod


def _added(bias: Tensor) -> Callable[..., Tensor]:
    by_row, by_head, by_query, by_key = (int(extent > 1) for extent in bias.shape)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        # one indexing expression: chained ones break compiled flex attention
        return score + bias[b * by_row, h * by_head, q * by_query, k * by_key]

    return score_mod


def _refuse(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> None:
    if dropout > 0:
        raise ValueError(
            f"attn_pdrop: expected 0 under flex_attention, which has no dropout, got {dropout}; set it to 0 or use "
            "attn_implementation='sdpa'"
        )
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    if query.device.type == "cpu" and needs_gradient:
        raise ValueError(
            "attn_implementation: flex_attention has no backward on the CPU; use 'sdpa' there, or torch.no_grad()"
        )


def _kernel(device: str) -> Callable[..., Any]:
    if torch.compiler.is_compiling():
        return flex_attention
    return _unfused if device == "cpu" else fused


def _unfused(*states: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        # torch advises to compile; on the CPU that takes a C++ compiler and longer than it saves
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile", category=UserWarning)
        return flex_attention(*states, **options)


def fused(*states: Tensor, **options: Any) -> Any:
    """torch's flex_attention, compiled; each new kind of mask is compiled once."""
    # beyond the limit torch would go on unfused, and slow, without an error
    with torch._dynamo.config.patch(recompile_limit=_KINDS, accumulated_recompile_limit=8 * _KINDS):
        return _compiled()(*states, **options)


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)
