"""A mask of its own for each attention head."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .classes_arbprob import kind_of
from .masks.foreign import adopted
from .masks.mask import Mask, Shifted, TensorMask
from .masks.patterns import registered
from .masks.tiles import Grid, Tiles, Tiling


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
        masks = adopted(masks)
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

    def written(self, grid: Grid) -> Tensor:
        # a grid of a few heads asks only the masks that these have
        shares = [(mask, own) for mask, own in _shares(self.masks) if any(head in grid.heads for head in own)]
        if len(shares) == 1:
            return shares[0][0].written(grid)
        return _united(grid.indices()[1], [(own, mask.written(grid)) for mask, own in shares])

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


# the name people write
heads = Heads


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
