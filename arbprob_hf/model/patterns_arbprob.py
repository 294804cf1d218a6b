"""The mask patterns that are rules over indices: one small class each, registered under the name of its text form."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .masking_arbprob import PATTERNS, Mask
from .tiling_arbprob import Grid, Tiles, Tiling

Kind = TypeVar("Kind", bound=type[Mask])


def registered(name: str) -> Callable[[Kind], Kind]:
    """Enter a pattern class into the table that `Mask.parse` and `str` read."""

    def enter(kind: Kind) -> Kind:
        if name in PATTERNS:
            raise ValueError(f"pattern: the name {name!r} is taken by {PATTERNS[name].__name__}")
        PATTERNS[name] = kind
        return kind

    return enter


@registered("causal")
@dataclass(frozen=True, eq=False, repr=False)
class Causal(Mask):
    """Query q sees key k when k <= q. GPT-2's own mask (Radford et al. 2019).

    q\\k 0 1 2 3 4 5
    0   # . . . . .
    1   # # . . . .
    2   # # # . . .
    3   # # # # . .
    4   # # # # # .
    5   # # # # # #
    """

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k <= q

    def tiles(self, tiling: Tiling) -> Tiles:
        q_low, q_high, k_low, k_high = tiling.indices
        return Tiles(k_low <= q_high, k_high <= q_low)


@registered("full")
@dataclass(frozen=True, eq=False, repr=False)
class Full(Mask):
    """Query q sees every key k. BERT's mask (Devlin et al. 2018).

    q\\k 0 1 2 3 4 5
    0   # # # # # #
    1   # # # # # #
    2   # # # # # #
    3   # # # # # #
    4   # # # # # #
    5   # # # # # #
    """

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q == q) & (k == k)

    def tiles(self, tiling: Tiling) -> Tiles:
        yes = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tiling.device)
        return Tiles(yes, yes)


@registered("window")
@dataclass(frozen=True, eq=False, repr=False)
class Window(Mask):
    """Query q sees key k when |q - k| < size. Sliding window (Beltagy et al. 2020, Longformer).

    `size` counts the query itself: `causal & window(3)` lets a query see three keys, itself and the two before it. The
    window alone looks both ways, as drawn for size 2:

        q\\k 0 1 2 3 4 5
        0   # # . . . .
        1   # # # . . .
        2   . # # # . .
        3   . . # # # .
        4   . . . # # #
        5   . . . . # #
    """

    size: int

    def __post_init__(self) -> None:
        _check_count("window", "size", self.size, low=1)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q - k < self.size) & (k - q < self.size)

    def tiles(self, tiling: Tiling) -> Tiles:
        q_low, q_high, k_low, k_high = tiling.indices
        low, high = q_low - k_high, q_high - k_low
        return Tiles((low < self.size) & (-high < self.size), (high < self.size) & (-low < self.size))


@registered("prefix")
@dataclass(frozen=True, eq=False, repr=False)
class Prefix(Mask):
    """Query q sees key k when k < length. With causal, a prefix LM (Raffel et al. 2020, T5, section 3.2.1).

    `length` counts tokens from the start of the sequence. Drawn for length 2:

        q\\k 0 1 2 3 4 5
        0   # # . . . .
        1   # # . . . .
        2   # # . . . .
        3   # # . . . .
        4   # # . . . .
        5   # # . . . .
    """

    length: int

    def __post_init__(self) -> None:
        _check_count("prefix", "length", self.length, low=0)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k < self.length) & (q == q)

    def tiles(self, tiling: Tiling) -> Tiles:
        _, _, k_low, k_high = tiling.indices
        return Tiles(k_low < self.length, k_high < self.length)


@registered("heads")
@dataclass(frozen=True, eq=False, repr=False, init=False)
class Heads(Mask):
    """Query q sees key k when the mask of its own head lets it: `heads(mask, mask, ...)`, one mask per head.

    Drawn for query 5 under `heads(causal, causal, window(2), window(2), full, prefix(1))`, a head a row:

        h\\k 0 1 2 3 4 5
        0   # # # # # #
        1   # # # # # #
        2   . . . . # #
        3   . . . . # #
        4   # # # # # #
        5   # . . . . .
    """

    masks: tuple[Mask, ...]

    def __init__(self, *masks: Mask) -> None:
        if len(masks) < 1:
            raise ValueError("heads: expected one mask per head, got none")
        for mask in masks:
            if not isinstance(mask, Mask):
                raise TypeError(f"heads: expected masks, got {type(mask).__name__}")
        object.__setattr__(self, "masks", masks)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self._united(h, [mask.allowed(b, h, q, k) for mask in self._distinct()])

    def arguments(self) -> list[object]:
        return list(self.masks)

    def count_heads(self) -> int:
        return len(self.masks)

    def operands(self) -> tuple[Mask, ...]:
        return self.masks

    def written(self, grid: Grid) -> Tensor:
        return self._united(grid.indices()[1], [mask.written(grid) for mask in self._distinct()])

    def tiles(self, tiling: Tiling) -> Tiles:
        h = torch.arange(tiling.heads, device=tiling.device)[None, :, None, None]
        parts = [mask.tiles(tiling) for mask in self._distinct()]
        return Tiles(self._united(h, [part.some for part in parts]), self._united(h, [part.every for part in parts]))

    def shifted(self, starts: Tensor) -> Mask:
        return Heads(*(mask.shifted(starts) for mask in self.masks))

    def check_fits(self, *, batch: int, heads: int, q_len: int, kv_len: int, exact: bool = False) -> None:
        if heads != len(self.masks):
            raise ValueError(f"heads: expected one mask per head, {heads} in all, got {len(self.masks)}")
        super().check_fits(batch=batch, heads=heads, q_len=q_len, kv_len=kv_len, exact=exact)

    def _distinct(self) -> dict[Mask, list[int]]:
        # many heads share few masks: each mask is evaluated once
        found: dict[Mask, list[int]] = {}
        for head, mask in enumerate(self.masks):
            found.setdefault(mask, []).append(head)
        return found

    def _united(self, h: Tensor, parts: list[Tensor]) -> Tensor:
        united = None
        for numbers, part in zip(self._distinct().values(), parts, strict=True):
            own = h == numbers[0]
            for number in numbers[1:]:
                own = own | (h == number)
            united = own & part if united is None else united | (own & part)
        assert united is not None
        return united


# the names people write
causal, full, window, prefix, heads = Causal, Full, Window, Prefix, Heads


def _check_count(pattern: str, name: str, value: object, *, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{pattern}({name}): expected an integer, got {str(value)!r:.40} ({type(value).__name__})")
    if value < low:
        raise ValueError(f"{pattern}({name}): expected at least {low}, got {value}")
