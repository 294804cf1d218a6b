"""Attention that skips keys nobody may see: queries go piece by piece, each with the runs of keys that it needs.

A piece is one call of torch's scaled_dot_product_attention. The backward is ours: autograd would make gradients of all
keys and values for every piece and add those up; here a piece adds to the runs that it saw, and to nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..masks.precision import compute_dtype

# keys that a piece sees on average, up to which half precision is left for float32 in the backward; measured on CPU
FEW_KEYS = 512


@dataclass(frozen=True)
class Piece:
    """Some queries and the keys they look at. Slices have a start, a stop and no step; `slice(None)` for all rows.

    Attributes:
        rows, heads, queries: whose attention this is.
        keys: one or more runs of keys, ascending and disjoint.
        scores: float, in the dtype of the queries, (1 or rows, 1 or heads, queries, keys of all runs), added to the
            scores: -inf where not allowed, somewhere finite for every query. It takes no gradient. None: every key of
            the runs is seen.
    """

    rows: slice
    heads: slice
    queries: slice
    keys: tuple[slice, ...]
    scores: Tensor | None = None


def tiled_attention(
    query: Tensor, key: Tensor, value: Tensor, pieces: Sequence[Piece], *, scaling: float, dropout: float = 0.0
) -> Tensor:
    """Attention of every piece's queries to its keys; a query in no piece outputs zero, with zero gradient.

    Args:
        query: float (B, H, T_q, D). key, value: (B, H, T_kv, D).
        pieces: no two share a query of one row and head.
        dropout: probability, 0 outside training.

    Returns:
        (B, H, T_q, D), in the autocast dtype where autocast is on, laid out as (B, T_q, H, D).

    Differentiable once, unless there is dropout; a second derivative raises RuntimeError.
    """
    device = query.device.type
    dtype = compute_dtype(query.dtype, device)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    # the casts are made; those of the calls inside would be a second, hidden policy
    with torch.autocast(device, enabled=False):
        if dropout > 0:
            return _plain(query, key, value, pieces, scaling=scaling, dropout=dropout)
        function = _Fused if _is_fused(query, key, value) else _Recomputed
        out: Tensor = function.apply(query, key, value, tuple(pieces), scaling)
    return out


class _Fused(torch.autograd.Function):
    """Pieces by the pair of kernels behind torch's attention on CPU; the first hands the second what it needs."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, pieces: tuple[Piece, ...], scaling: float
    ) -> Tensor:
        out = _zeros(query)
        forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        normalisers = []  # log of the softmax's denominators, (rows, heads, queries) each
        for piece in pieces:
            cut = _cut(piece, query, key, value)
            _own(out, piece)[:], normaliser = forward(*cut, attn_mask=piece.scores, scale=scaling)
            normalisers.append(normaliser)
        ctx.save_for_backward(query, key, value, out, *normalisers)
        ctx.pieces, ctx.scaling = pieces, scaling
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        _refuse_second_derivative()
        query, key, value, out, *normalisers = ctx.saved_tensors
        totals = _Totals(query, key, value, ctx.needs_input_grad)
        # over few keys the kernel is faster in float32 than in half precision, casts included
        dtype = totals.accurate if _mean_keys(ctx.pieces) <= FEW_KEYS else query.dtype
        query, key, value, out, upstream = (x.to(dtype) for x in (query, key, value, out, upstream))
        # the kernel takes the last stride to be 1; that of a sum's gradient is 0
        upstream = upstream if upstream.stride(-1) == 1 else upstream.contiguous()
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        for piece, normaliser in zip(ctx.pieces, normalisers, strict=True):
            states = (*_cut(piece, query, key, value), _own(out, piece), normaliser)
            scores = None if piece.scores is None else piece.scores.to(dtype)
            gradients = backward(_own(upstream, piece), *states, 0.0, False, attn_mask=scores, scale=ctx.scaling)
            totals.add(piece, *gradients)
        return *totals.gradients(), None, None


class _Recomputed(torch.autograd.Function):
    """Pieces by torch's attention, each computed again in the backward: for any device and dtype."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, pieces: tuple[Piece, ...], scaling: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.pieces, ctx.scaling = pieces, scaling
        return _plain(query, key, value, pieces, scaling=scaling)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        _refuse_second_derivative()
        query, key, value = ctx.saved_tensors
        totals = _Totals(query, key, value, ctx.needs_input_grad)
        for piece in ctx.pieces:
            q, k, v = (states.detach().requires_grad_() for states in _cut(piece, query, key, value))
            with torch.enable_grad(), torch.autocast(query.device.type, enabled=False):
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=piece.scores, scale=ctx.scaling)
            totals.add(piece, *torch.autograd.grad(out, (q, k, v), _own(upstream, piece)))
        return *totals.gradients(), None, None


class _Totals:
    """Gradients of queries, keys and values, to which pieces add; None for those that nobody asked for."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, needed: Sequence[bool]) -> None:
        self.dtype = query.dtype
        # keys belong to several pieces: a sum in half precision would be rounded at each of them
        self.accurate = torch.promote_types(query.dtype, torch.float32)
        self.query = _zeros(query) if needed[0] else None
        self.key = _zeros(key, self.accurate) if needed[1] else None
        self.value = _zeros(value, self.accurate) if needed[2] else None

    def add(self, piece: Piece, query: Tensor, key: Tensor, value: Tensor) -> None:
        if self.query is not None:
            _own(self.query, piece)[:] = query
        widths = [run.stop - run.start for run in piece.keys]
        for total, part in ((self.key, key), (self.value, value)):
            if total is not None:
                for run, share in zip(piece.keys, part.split(widths, dim=2), strict=True):
                    total[piece.rows, piece.heads, run] += share

    def gradients(self) -> tuple[Tensor | None, ...]:
        return tuple(None if total is None else total.to(self.dtype) for total in (self.query, self.key, self.value))


def _plain(
    query: Tensor, key: Tensor, value: Tensor, pieces: Sequence[Piece], *, scaling: float, dropout: float = 0.0
) -> Tensor:
    # autograd follows this as it stands, which is how dropout comes to its gradients
    out = _zeros(query)
    for piece in pieces:
        cut = _cut(piece, query, key, value)
        _own(out, piece)[:] = F.scaled_dot_product_attention(
            *cut, attn_mask=piece.scores, dropout_p=dropout, scale=scaling
        )
    return out


def _zeros(states: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    # laid out as the network's linear layers take and give it
    batch, heads, length, width = states.shape
    return states.new_zeros(batch, length, heads, width, dtype=dtype).transpose(1, 2)  # (B, H, T, D)


def _own(states: Tensor, piece: Piece) -> Tensor:
    return states[piece.rows, piece.heads, piece.queries]


def _cut(piece: Piece, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # one run of keys is a view
    keys = [key[piece.rows, piece.heads, run] for run in piece.keys]
    values = [value[piece.rows, piece.heads, run] for run in piece.keys]
    if len(keys) == 1:
        return _own(query, piece), keys[0], values[0]
    return _own(query, piece), torch.cat(keys, dim=2), torch.cat(values, dim=2)


def _mean_keys(pieces: Sequence[Piece]) -> float:
    return sum(run.stop - run.start for piece in pieces for run in piece.keys) / max(len(pieces), 1)


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            'attention that skips keys is differentiable once: for second derivatives pass attn_implementation="eager"'
        )


def _is_fused(*states: Tensor) -> bool:
    # the kernels take the last stride to be 1
    on_cpu = all(one.device.type == "cpu" and one.stride(-1) == 1 for one in states)
    return on_cpu and _has_fused_kernels(states[0].dtype)


@cache
def _has_fused_kernels(dtype: torch.dtype) -> bool:
    # private to torch: tried once, in the way they are used here
    probe = torch.ones(1, 1, 2, 8, dtype=dtype, device="cpu")
    scores = torch.zeros(1, 1, 2, 2, dtype=dtype, device="cpu")
    try:
        aten = torch.ops.aten
        forward = aten._scaled_dot_product_flash_attention_for_cpu
        out, normaliser = forward(probe, probe, probe, attn_mask=scores, scale=1.0)
        backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
        backward(probe, probe, probe, probe, out, normaliser, 0.0, False, attn_mask=scores, scale=1.0)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return out.equal(probe)
