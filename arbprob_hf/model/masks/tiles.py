"""Where a mask is evaluated: a grid of queries and keys, or the tiles that such a grid falls into.

A tile is a run of queries times a run of keys. Of each tile a mask can tell, without looking at its pairs, that none
is allowed or that all are; kernels then skip the first kind and need no mask for the second.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor

Indices = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Ends:
    """The indices `start` to `stop - 1`, where these are symbols; it has no length that a number could tell."""

    start: int
    stop: int


def between(start: int, stop: int) -> range:
    """The indices `start` to `stop - 1`.

    torch.export and torch.compile follow sizes as symbols, and `range` would ask for the number that such a symbol has
    at the moment: a network compiled for varying lengths would be compiled for each of them.
    """
    # a compiler calls its symbols ints
    is_known = isinstance(start, int) and isinstance(stop, int) and not torch.compiler.is_compiling()
    return range(start, stop) if is_known else cast(range, Ends(start, stop))


@dataclass(frozen=True)
class Grid:
    """Batch rows, heads, queries and keys, by index; `offset`, where given, is added to the queries.

    `offset` is a tensor inside a compiled static cache, where the first query is not known without asking the device.
    """

    rows: range
    heads: range
    queries: range
    keys: range
    device: torch.device | str | None = None
    offset: Tensor | None = None

    def indices(self) -> Indices:
        """Index tensors b (B, 1, 1, 1), h (1, H, 1, 1), q (1, 1, T_q, 1) and k (1, 1, 1, T_kv)."""
        b, h, q, k = (
            torch.arange(one.start, one.stop, device=self.device)
            for one in (self.rows, self.heads, self.queries, self.keys)
        )
        q = q if self.offset is None else q + self.offset
        return b[:, None, None, None], h[None, :, None, None], q[None, None, :, None], k[None, None, None, :]


class Tiles(NamedTuple):
    """What is known of each tile, bool, broadcastable to (B, H, query tiles, key tiles).

    `any`: False where no pair is allowed, for certain. `all`: True where all pairs are, for certain.
    """

    any: Tensor
    all: Tensor


class Spans(NamedTuple):
    """The lowest and highest pattern index of each tile, inclusive.

    Queries: long (B or 1, 1, query tiles, 1); keys: long (B or 1, 1, 1, key tiles).
    """

    q_low: Tensor
    q_high: Tensor
    k_low: Tensor
    k_high: Tensor


@dataclass(frozen=True)
class Tiling:
    """Queries `offset` to `offset + q_len - 1` and keys 0 to `kv_len - 1`, cut into tiles of `size`.

    `spans` are the pattern indices of the tiles, where those are not the slots themselves.
    """

    size: int
    heads: int
    q_len: int
    kv_len: int
    offset: int = 0
    device: torch.device | str | None = None
    spans: Spans | None = None

    @property
    def slots(self) -> Spans:
        """The first and last slot of each tile."""
        q_low = torch.arange(self.offset, self.offset + self.q_len, self.size, device=self.device)
        k_low = torch.arange(0, self.kv_len, self.size, device=self.device)
        q_high = (q_low + self.size - 1).clamp(max=self.offset + self.q_len - 1)
        k_high = (k_low + self.size - 1).clamp(max=self.kv_len - 1)
        queries = (q_low[None, None, :, None], q_high[None, None, :, None])
        return Spans(*queries, k_low[None, None, None, :], k_high[None, None, None, :])

    @property
    def indices(self) -> Spans:
        """The pattern indices of each tile: its slots, unless the pattern is counted from elsewhere."""
        return self.slots if self.spans is None else self.spans

    def counted_from(self, starts: Tensor) -> "Tiling":
        """The same tiles for a pattern whose token of slot t is `t - starts[b, t]`; `starts` is long (B or 1, T)."""
        tokens = torch.arange(starts.shape[1], device=starts.device) - starts  # (B or 1, T)
        return replace(self, spans=Spans(*self.over_queries(tokens), *self.over_keys(tokens)))

    def over_queries(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest and highest value of `table` (B or 1, T) among each tile's queries: (B or 1, 1, query tiles, 1)."""
        low, high = self._extremes(table, self.offset, self.q_len)
        return low[:, None, :, None], high[:, None, :, None]

    def over_keys(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest and highest value of `table` (B or 1, T) among each tile's keys: (B or 1, 1, 1, key tiles)."""
        low, high = self._extremes(table, 0, self.kv_len)
        return low[:, None, None, :], high[:, None, None, :]

    def _extremes(self, table: Tensor, first: int, length: int) -> tuple[Tensor, Tensor]:
        # the last tile is filled up with its last slot
        count = -(-length // self.size) * self.size
        table = table.to(self.device) if self.device is not None else table
        slots = torch.arange(count, device=table.device).clamp(max=length - 1) + first
        return torch.aminmax(table[:, slots].unflatten(1, (-1, self.size)), dim=2)  # (B or 1, tiles)


@dataclass(frozen=True)
class Sizes:
    """The shape of one forward pass.

    `offset` tokens are cached already (a tensor inside a compiled static cache); `kv_len` counts key columns, unfilled
    ones of a static cache included; `filled` those that hold tokens after this pass, where that is known without asking
    the device.
    """

    batch: int
    heads: int
    q_len: int
    kv_len: int
    offset: int | Tensor
    device: torch.device
    filled: int = field(init=False)

    def __post_init__(self) -> None:
        filled = self.offset + self.q_len if isinstance(self.offset, int) else self.kv_len
        object.__setattr__(self, "filled", filled)

    def grid(self) -> Grid:
        """Every query of this pass against every key column that may hold a token."""
        rows, heads, keys = between(0, self.batch), range(self.heads), between(0, self.filled)
        if isinstance(self.offset, int):
            queries = between(self.offset, self.offset + self.q_len)
            return Grid(rows, heads, queries, keys, self.device)
        return Grid(rows, heads, between(0, self.q_len), keys, self.device, self.offset)
