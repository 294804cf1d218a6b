"""The mask patterns that are rules over indices: one small class each, registered under the name of its text form."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .mask import PATTERNS, Mask
from .text import MAX_INTEGER
from .tiles import Tiles, Tiling

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
        check_count("window", "size", self.size, low=1)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q - k < self.size) & (k - q < self.size)

    def tiles(self, tiling: Tiling) -> Tiles:
        low, high = _distances(tiling)
        return Tiles((low < self.size) & (-high < self.size), (high < self.size) & (-low < self.size))


@registered("prefix")
@dataclass(frozen=True, eq=False, repr=False)
class Prefix(Mask):
    """Query q sees key k when k < length. With causal, a prefix LM (Raffel et al. 2020, T5, section 3.2.1).

    `length` counts tokens from the start of the sequence. A token of the prefix sees all of it, later tokens too;
    `sinks` is the one that never looks forward. Drawn for length 2:

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
        check_count("prefix", "length", self.length, low=0)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k < self.length) & (q == q)

    def tiles(self, tiling: Tiling) -> Tiles:
        _, _, k_low, k_high = tiling.indices
        return Tiles(k_low < self.length, k_high < self.length)


@registered("sinks")
@dataclass(frozen=True, eq=False, repr=False)
class Sinks(Mask):
    """Query q sees key k when k < count and k <= q. Attention sinks (Xiao et al. 2023, StreamingLLM).

    `count` counts tokens from the start of the sequence. Unlike `prefix` it never looks forward, so
    `causal & window(8) | sinks(4)` stays causal. Drawn for count 2:

        q\\k 0 1 2 3 4 5
        0   # . . . . .
        1   # # . . . .
        2   # # . . . .
        3   # # . . . .
        4   # # . . . .
        5   # # . . . .
    """

    count: int

    def __post_init__(self) -> None:
        check_count("sinks", "count", self.count, low=0)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k < self.count) & (k <= q)

    def tiles(self, tiling: Tiling) -> Tiles:
        q_low, q_high, k_low, k_high = tiling.indices
        return Tiles((k_low < self.count) & (k_low <= q_high), (k_high < self.count) & (k_high <= q_low))


@registered("dilated")
@dataclass(frozen=True, eq=False, repr=False)
class Dilated(Mask):
    """Query q sees key k when |q - k| is a multiple of step and |q - k| / step < size.

    A sliding window with gaps (Beltagy et al. 2020, Longformer, section 3.1). `size` counts the query itself, so
    `causal & dilated(3, 2)` lets a query see three keys: itself and those two and four before it; `step` is the
    distance from one to the next. `dilated(size, 1)` is `window(size)`.
    Drawn for size 2, step 2:

        q\\k 0 1 2 3 4 5
        0   # . # . . .
        1   . # . # . .
        2   # . # . # .
        3   . # . # . #
        4   . . # . # .
        5   . . . # . #
    """

    size: int
    step: int

    def __post_init__(self) -> None:
        check_count("dilated", "size", self.size, low=1)
        check_count("dilated", "step", self.step, low=1)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return ((q - k) % self.step == 0) & ((q - k).abs() // self.step < self.size)

    def tiles(self, tiling: Tiling) -> Tiles:
        low, high = _distances(tiling)
        reach = (self.size - 1) * self.step
        some = _has_multiple(low.clamp(min=-reach), high.clamp(max=reach), self.step)
        return Tiles(some, _all_multiples(low, high, self.step) & (low >= -reach) & (high <= reach))


@registered("strided")
@dataclass(frozen=True, eq=False, repr=False)
class Strided(Mask):
    """Query q sees key k when q - k is a multiple of step (Child et al. 2019, Sparse Transformer, section 4.2).

    `step` is the distance between the keys, as far as the sequence goes. The paper's strided attention is
    `causal & (window(step) | strided(step))`. Drawn for step 3:

        q\\k 0 1 2 3 4 5
        0   # . . # . .
        1   . # . . # .
        2   . . # . . #
        3   # . . # . .
        4   . # . . # .
        5   . . # . . #
    """

    step: int

    def __post_init__(self) -> None:
        check_count("strided", "step", self.step, low=1)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q - k) % self.step == 0

    def tiles(self, tiling: Tiling) -> Tiles:
        low, high = _distances(tiling)
        return Tiles(_has_multiple(low, high, self.step), _all_multiples(low, high, self.step))


# the names people write
causal, full, window, prefix, sinks, dilated, strided = Causal, Full, Window, Prefix, Sinks, Dilated, Strided


def check_count(pattern: str, name: str, value: object, *, low: int) -> None:
    """Raise TypeError or ValueError unless `value`, the argument `name` of `pattern`, is an integer from `low`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{pattern}({name}): expected an integer, got {str(value)!r:.40} ({type(value).__name__})")
    if value < low:
        raise ValueError(f"{pattern}({name}): expected at least {low}, got {value}")
    if value > MAX_INTEGER:
        raise ValueError(f"{pattern}({name}): expected at most {MAX_INTEGER}, got {value!r:.40}")


def _distances(tiling: Tiling) -> tuple[Tensor, Tensor]:
    # lowest and highest q - k of each tile
    q_low, q_high, k_low, k_high = tiling.indices
    return q_low - k_high, q_high - k_low


def _has_multiple(low: Tensor, high: Tensor, step: int) -> Tensor:
    # whether a multiple of `step` lies between, both included
    return high // step * step >= low


def _all_multiples(low: Tensor, high: Tensor, step: int) -> Tensor:
    # neighbours are multiples of 1 alone, so a larger step needs a single distance
    return (low % step == 0) & ((low == high) | (step == 1))
