"""The mask patterns that are rules over indices: one small class each, registered under the name of its text form."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .foreign import from_foreign
from .mask import PATTERNS, Mask, Shifted, TensorMask
from .text import check_integer, kind_of
from .tiles import Grid, Tiles, Tiling

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
        check_integer("window(size)", self.size, low=1)

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
        check_integer("prefix(length)", self.length, low=0)

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
        check_integer("sinks(count)", self.count, low=0)

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
        check_integer("dilated(size)", self.size, low=1)
        check_integer("dilated(step)", self.step, low=1)

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
        check_integer("strided(step)", self.step, low=1)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q - k) % self.step == 0

    def tiles(self, tiling: Tiling) -> Tiles:
        low, high = _distances(tiling)
        return Tiles(_has_multiple(low, high, self.step), _all_multiples(low, high, self.step))


@registered("blocks")
@dataclass(frozen=True, eq=False, repr=False)
class Blocks(Mask):
    """Query q sees key k when both lie in the same block: q // size == k // size (Qiu et al. 2020, BlockBERT).

    `size` counts the tokens of a block; the last one may be shorter. Drawn for size 2:

        q\\k 0 1 2 3 4 5
        0   # # . . . .
        1   # # . . . .
        2   . . # # . .
        3   . . # # . .
        4   . . . . # #
        5   . . . . # #
    """

    size: int

    def __post_init__(self) -> None:
        check_integer("blocks(size)", self.size, low=1)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return q // self.size == k // self.size

    def tiles(self, tiling: Tiling) -> Tiles:
        q_low, q_high, k_low, k_high = (index // self.size for index in tiling.indices)
        every = (q_low == q_high) & (k_low == k_high) & (q_low == k_low)
        return Tiles((q_low <= k_high) & (k_low <= q_high), every)


@registered("block_diffusion")
@dataclass(frozen=True, eq=False, repr=False)
class BlockDiffusion(Mask):
    """Query q sees key k when k is noisy and of q's own noisy block, or clean and of a block that q may know.

    Slots 0 to length - 1 are a noisy copy of the sequence, slots length to 2 * length - 1 the clean one. A noisy query
    knows the clean blocks strictly before its own, a clean query those up to its own; clean sees no noisy slot. BD3-LM
    (Arriola et al. 2025, section 3.1). `length` counts the tokens of one copy, `size` those of a block. Drawn for
    length 3, size 1:

        q\\k 0 1 2 3 4 5
        0   # . . . . .
        1   . # . # . .
        2   . . # # # .
        3   . . . # . .
        4   . . . # # .
        5   . . . # # #
    """

    length: int
    size: int

    def __post_init__(self) -> None:
        check_integer("block_diffusion(length)", self.length, low=1)
        check_integer("block_diffusion(size)", self.size, low=1)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        noisy_q, noisy_k = q < self.length, k < self.length
        own, other = self._block(q), self._block(k)
        # a noisy query stops one block earlier than a clean one
        return (noisy_q & noisy_k & (own == other)) | (~noisy_k & (other + noisy_q.long() <= own))

    def tiles(self, tiling: Tiling) -> Tiles:
        q_low, q_high, k_low, k_high = tiling.indices
        (noisy_q, clean_q), (noisy_k, clean_k) = self._copies(q_low, q_high), self._copies(k_low, k_high)
        own = (noisy_q.low <= noisy_k.high) & (noisy_k.low <= noisy_q.high)
        some = (
            (noisy_q.any & noisy_k.any & own)
            | (noisy_q.any & clean_k.any & (clean_k.low < noisy_q.high))
            | (clean_q.any & clean_k.any & (clean_k.low <= clean_q.high))
        )
        same = (noisy_q.low == noisy_q.high) & (noisy_k.low == noisy_k.high) & (noisy_q.low == noisy_k.low)
        every = (
            (~(noisy_q.any & noisy_k.any) | same)
            & (~(noisy_q.any & clean_k.any) | (clean_k.high < noisy_q.low))
            & (~(clean_q.any & clean_k.any) | (clean_k.high <= clean_q.low))
            & ~(clean_q.any & noisy_k.any)
        )
        return Tiles(some, every)

    def check_fits(self, *, batch: int, heads: int, q_len: int, kv_len: int, exact: bool = False) -> None:
        # fewer are no mistake, not even where tensors must fit exactly: a sequence that is generated grows
        if max(q_len, kv_len) > 2 * self.length:
            raise ValueError(
                f"block_diffusion(length): expected at most {2 * self.length} slots, a noisy and a clean copy of "
                f"{self.length} tokens, got {max(q_len, kv_len)}"
            )

    def _block(self, slot: Tensor) -> Tensor:
        return (slot - self.length * (slot >= self.length)) // self.size

    def _copies(self, low: Tensor, high: Tensor) -> tuple["_Part", "_Part"]:
        # what of the slots low to high is noisy and what is clean, as blocks
        last = self.length - 1
        noisy = _Part(low <= last, low // self.size, high.clamp(max=last) // self.size)
        first = low.clamp(min=self.length) - self.length
        return noisy, _Part(high > last, first // self.size, (high - self.length) // self.size)


@registered("heads")
@dataclass(frozen=True, eq=False, repr=False, init=False)
class Heads(Mask):
    """Query q sees key k when the mask of its own head lets it: `heads(mask, mask, ...)`, one mask per head.

    Local and global heads side by side (Child et al. 2019, Sparse Transformer, section 4.3). Masks may repeat; each
    distinct one is evaluated once. The heads of `heads(causal, window(2))`, one after the other:

        q\\k 0 1 2 3 4 5      q\\k 0 1 2 3 4 5
        0   # . . . . .      0   # # . . . .
        1   # # . . . .      1   # # # . . .
        2   # # # . . .      2   . # # # . .
        3   # # # # . .      3   . . # # # .
        4   # # # # # .      4   . . . # # #
        5   # # # # # #      5   . . . . # #
    """

    masks: tuple[Mask, ...]

    def __init__(self, *masks: Mask) -> None:
        if len(masks) < 1:
            raise ValueError("heads: expected one mask per head, got none")
        masks = from_foreign(masks)
        for mask in masks:
            if not isinstance(mask, Mask):
                raise TypeError(f"heads: expected masks, got {kind_of(mask)}{_advice(mask)}")
        object.__setattr__(self, "masks", _merged(masks))

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return _united(h, [(own, mask.allowed(b, h, q, k)) for mask, own in _shares(self.masks)])

    def arguments(self) -> list[object]:
        return list(self.masks)

    def count_heads(self) -> int:
        return len(self.masks)

    def operands(self) -> tuple[Mask, ...]:
        return self.masks

    def evaluate(self, grid: Grid) -> Tensor:
        # a grid of a few heads asks only the masks that these have
        shares = [(mask, own) for mask, own in _shares(self.masks) if any(head in grid.heads for head in own)]
        if len(shares) == 1:
            return shares[0][0].evaluate(grid)
        return _united(grid.indices()[1], [(own, mask.evaluate(grid)) for mask, own in shares])

    def tiles(self, tiling: Tiling) -> Tiles:
        h = torch.arange(tiling.heads, device=tiling.device)[None, :, None, None]
        parts = [(own, mask.tiles(tiling)) for mask, own in _shares(self.masks)]
        some, every = ([(own, tiles[which]) for own, tiles in parts] for which in (0, 1))
        return Tiles(_united(h, some), _united(h, every))

    def shifted(self, starts: Tensor) -> Mask:
        moved = list(self.masks)
        for mask, numbers in _shares(self.masks):
            other = mask.shifted(starts)
            for number in numbers:
                moved[number] = other
        return Heads(*moved)

    def check_fits(self, *, batch: int, heads: int, q_len: int, kv_len: int, exact: bool = False) -> None:
        if heads != len(self.masks):
            raise ValueError(f"heads: expected one mask per head, {heads} in all, got {len(self.masks)}")
        super().check_fits(batch=batch, heads=heads, q_len=q_len, kv_len=kv_len, exact=exact)


# the names people write
causal, full, window, prefix, sinks, dilated, strided = Causal, Full, Window, Prefix, Sinks, Dilated, Strided
blocks, block_diffusion, heads = Blocks, BlockDiffusion, Heads


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


class _Part(NamedTuple):
    # whether a tile has slots of one copy, and their first and last block
    any: Tensor
    low: Tensor
    high: Tensor


def _advice(given: object) -> str:
    if isinstance(given, list | tuple):
        return "; write heads(*masks)"
    return '; write Mask.parse("...")' if isinstance(given, str) else ""


def _merged(masks: tuple[Mask, ...]) -> tuple[Mask, ...]:
    # equal masks become one object; those of tensors are left alone, as comparing would read them
    known: dict[Mask, Mask] = {}
    return tuple(mask if _holds_tensors(mask) else known.setdefault(mask, mask) for mask in masks)


def _holds_tensors(mask: Mask) -> bool:
    return isinstance(mask, TensorMask | Shifted) or any(_holds_tensors(operand) for operand in mask.operands())


def _shares(masks: tuple[Mask, ...]) -> list[tuple[Mask, list[int]]]:
    # each distinct mask with its heads
    found: list[tuple[Mask, list[int]]] = []
    for head, mask in enumerate(masks):
        own = next((numbers for known, numbers in found if known is mask), None)
        if own is None:
            found.append((mask, [head]))
        else:
            own.append(head)
    return found


def _united(h: Tensor, parts: list[tuple[list[int], Tensor]]) -> Tensor:
    # each part holds for the heads it is given with
    united = None
    for numbers, part in parts:
        own = h == numbers[0]
        for number in numbers[1:]:
            own = own | (h == number)
        united = own & part if united is None else united | (own & part)
    assert united is not None
    return united
