"""Attention by torch's scaled_dot_product_attention where the structure of a long mask saves work; equal numbers.

- sorted: an order mask, packed documents or not, whose slots, put in order, make one of the other plans.
- causal: a mask that is causal throughout, whatever it is made of, needs no tensor.
- tiled: queries go tile by tile, and skip the keys that none of them may see.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..masks.mask import And, Mask
from ..masks.runs import causal_runs, conjuncts
from ..masks.tensors import HIDDEN, Documents, Order
from ..masks.tiles import Grid, Sizes, Tiles, Tiling
from .plan import FusedPlan, Plan, can_read_values, guard_overflow, zero_empty_rows
from .tiled import Piece, tiled_attention

# shorter passes are over before their structure is known
SHORTEST = 256
TILE = 64
# below this, putting slots in order costs more than it spares
SHORTEST_SORTED = 640
# neighbouring tiles of queries go together where that adds no more than a tenth to the pairs: kernels like height
SLACK = 1.1
# of the queries of a long run that go together, in tiles
HIGHEST_STEP = 4
# tiles pay when they spare at least a quarter of the pairs
LARGEST_SHARE = 0.75


def structured_plan(mask: Mask, sizes: Sizes, *, dtype: torch.dtype) -> Plan | None:
    """The plan that the structure of a resolved mask allows: sorted, causal or tiled; None where it has too little.

    Args:
        sizes: of a pass of at least SHORTEST queries. dtype: of the queries.
    """
    # a static cache has columns that hold no tokens yet; an accelerator has flex attention
    is_filled = isinstance(sizes.offset, int) and sizes.kv_len == sizes.filled
    if not is_filled or not can_read_values(sizes.device):
        return None
    return _sorted(mask, sizes, dtype) or _structured(mask, sizes, dtype)


@dataclass(frozen=True)
class SortedPlan(Plan):
    """Another plan over slots put in order; `order` and its `inverse` are long (B, T)."""

    inner: Plan
    order: Tensor
    inverse: Tensor

    @property
    def path(self) -> str:  # type: ignore[override]
        return f"sorted {self.inner.path}"

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, dropout: float
    ) -> tuple[Tensor, None]:
        query, key, value = (_Reordered.apply(states, self.order, self.inverse) for states in (query, key, value))
        out, _ = self.inner.attend(query, key, value, scaling=scaling, dropout=dropout)
        return _Reordered.apply(out, self.inverse, self.order), None


@dataclass(frozen=True)
class TiledPlan(Plan):
    """Queries tile by tile, each with the runs of keys that some query of the tile may see.

    Attributes:
        has_keys: bool (B or 1, H or 1, T_q, 1), False where a query may see nothing; None when all see something.
    """

    pieces: tuple[Piece, ...]
    has_keys: Tensor | None = None
    path = "tiled"

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, dropout: float
    ) -> tuple[Tensor, None]:
        def kernel(query: Tensor, key: Tensor) -> Tensor:
            return tiled_attention(query, key, value, self.pieces, scaling=scaling, dropout=dropout)

        return zero_empty_rows(guard_overflow(kernel, query, key), self.has_keys), None


def _structured(mask: Mask, sizes: Sizes, dtype: torch.dtype) -> Plan | None:
    tiling = Tiling(TILE, sizes.heads, sizes.q_len, sizes.kv_len, int(sizes.offset), sizes.device)
    some, every = mask.tiles(tiling)
    counts = (-(-sizes.q_len // TILE), -(-sizes.kv_len // TILE))
    tiles = Tiles(some.expand(*some.shape[:2], *counts), every.expand(*every.shape[:2], *counts))
    if _is_causal_throughout(mask, tiles, sizes):
        return FusedPlan(causal=True)
    if float(tiles.any.float().mean()) > LARGEST_SHARE:
        return None
    return _tiled(mask, tiles, sizes, dtype)


def _is_causal_throughout(mask: Mask, tiles: Tiles, sizes: Sizes) -> bool:
    # tiles above the diagonal empty, tiles below it full: only those on it are left to look at
    if sizes.offset != 0 or sizes.q_len != sizes.kv_len:
        return False
    if bool(tiles.any.triu(1).any()) or not bool((tiles.all | ~torch.ones_like(tiles.all).tril(-1)).all()):
        return False
    for start in range(0, sizes.q_len, TILE):
        own = range(start, min(start + TILE, sizes.q_len))
        allowed = mask.evaluate(Grid(range(sizes.batch), range(sizes.heads), own, own, sizes.device))
        if not bool((allowed == torch.ones(len(own), len(own), dtype=torch.bool, device=sizes.device).tril()).all()):
            return False
    return True


def _packed(is_start: Tensor, sizes: Sizes, dtype: torch.dtype) -> TiledPlan:
    # runs that are causal in themselves go in steps, the short ones several at a time
    steps, shorts = [], []
    for row, flags in enumerate(is_start):
        rows = slice(None) if len(is_start) == 1 else slice(row, row + 1)
        bounds = [*flags.nonzero().flatten().tolist(), sizes.q_len]
        for first, last, is_one in _joined_runs(bounds):
            if is_one:
                steps += [(rows, first, *ends) for ends in _steps(first, last)]
            else:
                shorts.append((row, rows, first, last))
    return TiledPlan((*_stepped(steps, sizes, dtype), *_joined_pieces(shorts, is_start, sizes, dtype)))


def _joined_runs(bounds: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
    # neighbouring short runs together, up to a tile: first and last + 1, and whether it is a single run
    first = 0
    for number in range(1, len(bounds)):
        if number + 1 == len(bounds) or bounds[number + 1] - bounds[first] > TILE:
            yield bounds[first], bounds[number], number == first + 1
            first = number


def _steps(first: int, last: int) -> Iterator[tuple[int, int]]:
    # queries of a run of tokens: the more keys stand before them, the more go together
    start = first
    while start < last:
        height = max(1, min((start - first) * 2 // 5 // TILE, HIGHEST_STEP)) * TILE
        yield start, min(start + height, last)
        start += height


def _stepped(steps: Sequence[tuple[slice, int, int, int]], sizes: Sizes, dtype: torch.dtype) -> Iterator[Piece]:
    # keys `first` to `stop` for the queries `start` to `stop`: each piece takes its corner of the same scores
    keys = max((stop - first for _, first, _, stop in steps), default=0)
    queries = max((stop - start for _, _, start, stop in steps), default=0)
    scores = torch.full((queries, keys), float("-inf"), dtype=dtype, device=sizes.device).triu_(keys - queries + 1)
    for rows, first, start, stop in steps:
        own = scores[None, None, queries - (stop - start) :, keys - (stop - first) :]
        yield Piece(rows, slice(0, sizes.heads), slice(start, stop), (slice(first, stop),), own)


def _joined_pieces(
    shorts: Sequence[tuple[int, slice, int, int]], is_start: Tensor, sizes: Sizes, dtype: torch.dtype
) -> Iterator[Piece]:
    # whole runs, of which no query sees another's keys
    if not shorts:
        return
    width = max(last - first for *_, first, last in shorts)
    firsts = torch.tensor([first for *_, first, _ in shorts], device=sizes.device)[:, None]
    columns = (firsts + torch.arange(width, device=sizes.device)).clamp(max=sizes.q_len - 1)
    numbers = torch.tensor([row for row, *_ in shorts], device=sizes.device)[:, None]
    run = is_start.cumsum(1)[numbers, columns]  # (pieces, width)
    allowed = (run[:, :, None] == run[:, None, :]).tril()  # (pieces, width, width)
    scores = torch.zeros((), dtype=dtype, device=sizes.device).where(allowed, float("-inf"))
    for (_, rows, first, last), own in zip(shorts, scores, strict=True):
        span, size = slice(first, last), last - first
        yield Piece(rows, slice(0, sizes.heads), span, (span,), own[None, None, :size, :size])


def _tiled(mask: Mask, tiles: Tiles, sizes: Sizes, dtype: torch.dtype) -> TiledPlan:
    if sizes.offset == 0 and sizes.q_len == sizes.kv_len:
        is_start = causal_runs(mask, sizes.q_len)
        if is_start is not None:
            return _packed(is_start, sizes, dtype)
    has_keys = torch.ones(sizes.batch, sizes.heads, sizes.q_len, 1, dtype=torch.bool, device=sizes.device)
    pieces = []
    for region, is_full in _regions(tiles, sizes):
        if is_full:
            pieces.append(region)
            continue
        grids = [_grid(region, keys, sizes) for keys in region.keys]
        allowed = torch.cat([_filled(mask.evaluate(grid), grid) for grid in grids], dim=-1)
        sees = allowed.any(-1, keepdim=True)
        has_keys[region.rows, region.heads, region.queries] &= sees
        # a softmax over nothing is nan: such a query sees all, and its output is zeroed
        scores = torch.zeros((), dtype=dtype, device=sizes.device).where(allowed | ~sees, float("-inf"))
        pieces.append(replace(region, scores=scores))
    return TiledPlan(tuple(pieces), None if bool(has_keys.all()) else has_keys)


def _regions(tiles: Tiles, sizes: Sizes) -> Iterator[tuple[Piece, bool]]:
    # rows and heads, the queries of one tile, and the runs of keys they have to look at; whether they see all of those
    table = torch.stack(torch.broadcast_tensors(tiles.any, tiles.all), dim=-1).tolist()
    for row, by_head in enumerate(table):
        rows = slice(None) if len(table) == 1 else slice(row, row + 1)
        for first, last in _alike(by_head):
            heads = slice(0, sizes.heads) if len(by_head) == 1 else slice(first, last)
            for start, stop, keys in _joined(by_head[first]):
                queries = slice(start * TILE, min(stop * TILE, sizes.q_len))
                runs = tuple(_runs([some for some, _ in keys], sizes.kv_len))
                if runs:
                    yield Piece(rows, heads, queries, runs, None), all(every for some, every in keys if some)


def _joined(tiles: list[list[tuple[bool, bool]]]) -> list[tuple[int, int, list[tuple[bool, bool]]]]:
    # neighbouring tiles of queries: first and last + 1, and what all of them together make of the key tiles
    groups = [(0, 1, tiles[0])]
    apart = sum(some for some, _ in tiles[0])
    for tile, keys in enumerate(tiles[1:], start=1):
        start, _, joined = groups[-1]
        union = [(a or c, b and d) for (a, b), (c, d) in zip(joined, keys, strict=True)]
        pairs = sum(some for some, _ in keys)
        if (tile + 1 - start) * sum(some for some, _ in union) <= SLACK * (apart + pairs):
            groups[-1], apart = (start, tile + 1, union), apart + pairs
        else:
            groups, apart = [*groups, (tile, tile + 1, keys)], pairs
    return groups


def _alike(entries: Sequence[object]) -> Iterator[tuple[int, int]]:
    # consecutive equal entries: first and last + 1
    first = 0
    for index in range(1, len(entries) + 1):
        if index == len(entries) or entries[index] != entries[first]:
            yield first, index
            first = index


def _runs(flags: list[bool], length: int) -> Iterator[slice]:
    for first, last in _alike(flags):
        if flags[first]:
            yield slice(first * TILE, min(last * TILE, length))


def _grid(region: Piece, keys: slice, sizes: Sizes) -> Grid:
    rows = range(sizes.batch)[region.rows]
    heads, queries = (range(one.start, one.stop) for one in (region.heads, region.queries))
    absolute = range(queries.start + int(sizes.offset), queries.stop + int(sizes.offset))
    return Grid(rows, heads, absolute, range(keys.start, keys.stop), sizes.device)


def _filled(allowed: Tensor, grid: Grid) -> Tensor:
    # a rule that ignores queries or keys broadcasts over them
    return allowed.expand(*allowed.shape[:2], len(grid.queries), len(grid.keys))


def _sorted(mask: Mask, sizes: Sizes, dtype: torch.dtype) -> SortedPlan | None:
    is_whole = sizes.offset == 0 and sizes.q_len == sizes.kv_len
    parts = conjuncts(mask)
    orders = [part for part in parts if type(part) is Order]
    packed = [part for part in parts if type(part) is Documents]
    if len(orders) != 1 or len(packed) < len(parts) - 1 or not is_whole or sizes.q_len < SHORTEST_SORTED:
        return None
    rank = orders[0].rank
    limit = rank if orders[0].limit is None else orders[0].limit
    # by document, in it by limit, and where limits are equal the visible slots first; the last key sorts first
    keys = [2 * limit + (rank >= HIDDEN), *(one.ids for one in packed)]
    rank, limit, *keys = torch.broadcast_tensors(rank, limit, *keys)  # (B or 1, T)
    order = keys[0].argsort(dim=1, stable=True)
    for key in keys[1:]:
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    if bool((order.diff(dim=1) > 0).all()):
        return None
    inner: Mask = Order(rank.gather(1, order), limit.gather(1, order))
    for key in keys[1:]:
        inner = And(inner, Documents(key.gather(1, order)))
    plan = _structured(inner, sizes, dtype)
    return None if plan is None else SortedPlan(plan, order, order.argsort(dim=1))


class _Reordered(torch.autograd.Function):
    """Slots of queries, keys or values in another order, (B, H, T, D); rows are copied whole, backward too."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return _take(states, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Reordered.apply(gradients[0], inverse, order), None, None


def _take(states: Tensor, order: Tensor) -> Tensor:
    slots = states.transpose(1, 2)  # (B, T, H, D)
    if order.shape[0] == 1:
        return slots.index_select(1, order[0]).transpose(1, 2)
    batch, length, heads, width = slots.shape
    first = torch.arange(batch, device=order.device)[:, None] * length
    flat = slots.flatten(2).reshape(batch * length, heads * width)
    taken = flat.index_select(0, (order + first).flatten())
    return taken.view(batch, length, heads, width).transpose(1, 2)  # (B, H, T, D)
