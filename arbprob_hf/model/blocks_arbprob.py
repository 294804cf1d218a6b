"""The mask patterns of sequences cut into blocks: blocks by themselves, and the two copies of block diffusion."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .masks.mask import Mask
from .masks.patterns import check_count, registered
from .masks.tiles import Tiles, Tiling


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
        check_count("blocks", "size", self.size, low=1)

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
        check_count("block_diffusion", "length", self.length, low=1)
        check_count("block_diffusion", "size", self.size, low=1)

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


class _Part(NamedTuple):
    # whether a tile has slots of one copy, and their first and last block
    any: Tensor
    low: Tensor
    high: Tensor


# the names people write
blocks, block_diffusion = Blocks, BlockDiffusion
