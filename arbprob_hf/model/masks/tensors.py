"""The mask patterns that hold tensors: documents, padding, orders, trees; passed to calls, never written as text."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .keep import keep_mask
from .mask import TensorMask
from .patterns import registered
from .tiles import Tiles, Tiling

# a slot of this rank is seen by no other slot
HIDDEN = 2**31 - 1


@registered("documents")
@dataclass(frozen=True, eq=False, repr=False)
class Documents(TensorMask):
    """Query q sees key k when both belong to the same document: ids[q] == ids[k]. Packing (Krell et al. 2021).

    `ids`: integer (T,) or (B, T), one document number per token. Drawn for ids 0 0 0 1 1 1:

        q\\k 0 1 2 3 4 5
        0   # # # . . .
        1   # # # . . .
        2   # # # . . .
        3   . . . # # #
        4   . . . # # #
        5   . . . # # #
    """

    ids: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", _rows("documents", "ids", self.ids))

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return _at(self.ids, b, q) == _at(self.ids, b, k)

    def tiles(self, tiling: Tiling) -> Tiles:
        (q_low, q_high), (k_low, k_high) = tiling.over_queries(self.ids), tiling.over_keys(self.ids)
        every = (q_low == k_low) & (q_high == k_high) & (q_low == q_high)
        return Tiles((q_low <= k_high) & (k_low <= q_high), every)

    def count_rows(self) -> int:
        return self.ids.shape[0]

    def check_fits(self, *, batch: int, heads: int, q_len: int, kv_len: int, exact: bool = False) -> None:
        _check_rows("documents", "ids", self.ids, batch, max(q_len, kv_len), exact=exact)


@registered("padding")
@dataclass(frozen=True, eq=False, repr=False)
class Padding(TensorMask):
    """Query q sees key k when keep[k]: padded tokens are seen by nobody. transformers' 2-D mask (Wolf et al. 2020).

    `keep`: bool or 0-1, (T,) or (B, T), 1 for a real token. Drawn for keep 0 0 1 1 1 1 (left padding):

        q\\k 0 1 2 3 4 5
        0   . . # # # #
        1   . . # # # #
        2   . . # # # #
        3   . . # # # #
        4   . . # # # #
        5   . . # # # #
    """

    keep: Tensor

    def __post_init__(self) -> None:
        keep = keep_mask(self.keep, "padding(keep)", dims=(1, 2))
        object.__setattr__(self, "keep", keep[None] if keep.dim() == 1 else keep)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return _at(self.keep, b, k) & (q == q)

    def tiles(self, tiling: Tiling) -> Tiles:
        low, high = tiling.over_keys(self.keep.long())
        return Tiles(high > 0, low > 0)

    def count_rows(self) -> int:
        return self.keep.shape[0]

    def check_fits(self, *, batch: int, heads: int, q_len: int, kv_len: int, exact: bool = False) -> None:
        _check_rows("padding", "keep", self.keep, batch, kv_len, exact=exact)


@registered("order")
@dataclass(frozen=True, eq=False, repr=False)
class Order(TensorMask):
    """Query q sees key k when k == q or rank[k] <= limit[q]. Any order (Yang et al. 2019, XLNet, section 2.3).

    `rank`, `limit`: integer (T,) or (B, T); `limit` is `rank` when None. A key of rank HIDDEN is seen by no other
    slot. Drawn for rank 0 3 1 2 5 4:

        q\\k 0 1 2 3 4 5
        0   # . . . . .
        1   # # # # . .
        2   # . # . . .
        3   # . # # . .
        4   # # # # # #
        5   # # # # . #
    """

    rank: Tensor
    limit: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", _rows("order", "rank", self.rank))
        if self.limit is not None:
            object.__setattr__(self, "limit", _rows("order", "limit", self.limit))
            _check_alike(self.rank, self.limit)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        rank = _at(self.rank, b, k)
        limit = _at(self.rank if self.limit is None else self.limit, b, q)
        return (q == k) | ((rank <= limit) & (rank < HIDDEN))

    def tiles(self, tiling: Tiling) -> Tiles:
        rank_low, rank_high = tiling.over_keys(self.rank)
        limit_low, limit_high = tiling.over_queries(self.rank if self.limit is None else self.limit)
        slots = tiling.slots
        own = (slots.q_low <= slots.k_high) & (slots.k_low <= slots.q_high)
        some = own | ((rank_low <= limit_high) & (rank_low < HIDDEN))
        return Tiles(some, (rank_high <= limit_low) & (rank_high < HIDDEN))

    def count_rows(self) -> int:
        return self.rank.shape[0] if self.limit is None else max(self.rank.shape[0], self.limit.shape[0])

    def check_fits(self, *, batch: int, heads: int, q_len: int, kv_len: int, exact: bool = False) -> None:
        length = kv_len if self.limit is not None else max(q_len, kv_len)
        _check_rows("order", "rank", self.rank, batch, length, exact=exact)
        if self.limit is not None:
            _check_rows("order", "limit", self.limit, batch, q_len, exact=exact)


@registered("tree")
@dataclass(frozen=True, eq=False, repr=False, init=False)
class Tree(TensorMask):
    """Query q sees key k when k is q itself or one of its ancestors. Tree attention (Miao et al. 2023, SpecInfer).

    `parents`: integer (T,) or (B, T), the parent of each token, which comes before it; -1 for a root. Drawn for parents
    -1 0 0 1 1 2:

        q\\k 0 1 2 3 4 5
        0   # . . . . .
        1   # # . . . .
        2   # . # . . .
        3   # # . # . .
        4   # # . . # .
        5   # . # . . #

    Kept as two integers a token: the step at which a walk through the whole tree enters it, and the one at which the
    walk has left it. Ancestors are those that the walk is inside of.
    """

    enter: Tensor
    exit: Tensor

    def __init__(self, parents: Tensor) -> None:
        rows = _rows("tree", "parents", parents)
        walks = [_walk(row) for row in rows.tolist()]
        object.__setattr__(self, "enter", torch.tensor([walk[0] for walk in walks], device=rows.device))
        object.__setattr__(self, "exit", torch.tensor([walk[1] for walk in walks], device=rows.device))

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        now = _at(self.enter, b, q)
        return (_at(self.enter, b, k) <= now) & (now < _at(self.exit, b, k))

    def tiles(self, tiling: Tiling) -> Tiles:
        now_low, now_high = tiling.over_queries(self.enter)
        (enter_low, enter_high), (exit_low, exit_high) = tiling.over_keys(self.enter), tiling.over_keys(self.exit)
        slots = tiling.slots
        some = (enter_low <= now_high) & (now_low < exit_high) & (slots.k_low <= slots.q_high)
        return Tiles(some, (enter_high <= now_low) & (now_high < exit_low))

    def arguments(self) -> list[object]:
        return [self.enter]

    def count_rows(self) -> int:
        return self.enter.shape[0]

    def check_fits(self, *, batch: int, heads: int, q_len: int, kv_len: int, exact: bool = False) -> None:
        _check_rows("tree", "parents", self.enter, batch, max(q_len, kv_len), exact=exact)


# the names people write
documents, padding, order, tree = Documents, Padding, Order, Tree


def _walk(parents: list[int]) -> tuple[list[int], list[int]]:
    # depth first, children by number: a token is entered once its parent and its elder siblings' subtrees are
    for token, parent in enumerate(parents):
        if not -1 <= parent < token:
            raise ValueError(
                f"tree(parents): expected each token's parent before it, or -1 for a root, got {parent} for token "
                f"{token}"
            )
    sizes = [1] * len(parents)
    for token in range(len(parents) - 1, -1, -1):
        if parents[token] >= 0:
            sizes[parents[token]] += sizes[token]
    # free[token]: the next step inside its subtree; the last entry is that of the roots
    enter: list[int] = []
    free = [0] * (len(parents) + 1)
    for token, parent in enumerate(parents):
        enter.append(free[parent])
        free[parent] += sizes[token]
        free[token] = enter[token] + 1
    return enter, [first + size for first, size in zip(enter, sizes, strict=True)]


def _at(table: Tensor, b: Tensor, t: Tensor) -> Tensor:
    # one indexing expression: chained ones break compiled flex attention
    return table.to(t.device)[b * (table.shape[0] > 1), t]


def _rows(pattern: str, name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype.is_floating_point or value.is_complex():
        got = f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        advice = "" if isinstance(value, Tensor) else "; wrap it in torch.tensor(...)"
        raise TypeError(f"{pattern}({name}): expected an integer tensor (T,) or (B, T), got {got}{advice}")
    if value.dim() not in (1, 2) or value.numel() == 0:
        raise ValueError(f"{pattern}({name}): expected shape (T,) or (B, T), got {tuple(value.shape)}")
    return (value[None] if value.dim() == 1 else value).to(torch.long)  # (B or 1, T)


def _check_alike(rank: Tensor, limit: Tensor) -> None:
    if limit.shape[1] != rank.shape[1] or len({1, len(limit), len(rank)}) > 2:
        raise ValueError(f"order(limit): expected the shape of rank, {tuple(rank.shape)}, got {tuple(limit.shape)}")


def _check_rows(pattern: str, name: str, table: Tensor, batch: int, length: int, *, exact: bool) -> None:
    rows, own = table.shape
    if rows not in (1, batch) or own < length or (exact and own != length):
        raise ValueError(
            f"{pattern}({name}): expected {batch} rows (or 1) of {'' if exact else 'at least '}{length} tokens, "
            f"got shape {tuple(table.shape)}"
        )
