"""A source under hard constraints: the codewords of a sparse parity-check code, all equally likely."""

import math

import numpy as np
import torch
from torch import Tensor

from ..errors import check_integer
from .source import Source

# codewords are enumerated
MOST_FREE_BITS = 16
TRIES = 1000


class ParityCheckSource(Source):
    """A low-density parity-check code: words of bits whose sum over the members of each check is even, equally likely.

    Sizes: those of the example in Gallager, "Low-density parity-check codes" (IRE Trans. Inf. Theory 8, 1962): 20 bits,
    15 checks of 4 bits, each bit in 3. Columns are drawn so that the checks have nearly equal numbers of bits and none
    follows from the others, hence 32 words. Exact by counting the words that agree with what is known, among all.

    Attributes:
        checks: long (C, N), 1 where a check has a bit. generator: long (k, N), rows that sum to every codeword.
        codewords: long (2**k, N).
    """

    name = "ldpc"
    # by the number of codewords a row is compared with
    rows_at_once = 256
    vocabulary = 2

    def __init__(self, seed: int = 0, *, length: int = 20, checks: int = 15, weight: int = 3) -> None:
        self.length = check_integer("length", length, low=2)
        if check_integer("checks", checks, low=1) < check_integer("weight", weight, low=1):
            raise ValueError(f"weight: expected at most the number of checks, {checks}, got {weight}")
        # where each bit is in an even number of checks, the last check follows from the others
        rank = checks if weight % 2 else checks - 1
        if not 1 <= length - rank <= MOST_FREE_BITS:
            most = MOST_FREE_BITS
            raise ValueError(f"checks: expected to leave 1 to {most} of {length} bits free, got {length - rank} free")
        drawn = np.random.default_rng(check_integer("seed", seed, low=0))
        matrix = _draw_checks(drawn, (checks, length), weight, rank=rank)
        self.checks, self.generator = torch.from_numpy(matrix), torch.from_numpy(_solve(matrix))
        free = len(self.generator)
        messages = (torch.arange(2**free)[:, None] >> torch.arange(free)) & 1
        self.codewords = messages @ self.generator % 2
        # counts stay exact in float32 up to 2**24, and products are faster
        self._words = self.codewords.float()

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        check_integer("count", count, low=1)
        messages = torch.randint(2, (count, len(self.generator)), generator=generator)
        return messages @ self.generator % 2  # (count, N)

    def determined(self, x: Tensor, given: Tensor) -> Tensor:
        """Which bits follow from the given ones without being among them.

        Args:
            x: long (B, N), codewords where given. given: bool (B, N).

        Returns:
            bool (B, N); all False in a row whose given bits no codeword has.
        """
        return (self.marginals(x, given) == 0).any(-1) & ~given.cpu()

    def _evidence(self, x: Tensor, known: Tensor) -> Tensor:
        agreeing = self._agree(x, known).sum(-1)
        return agreeing.double().log() - len(self.generator) * math.log(2)

    def _marginals(self, x: Tensor, given: Tensor) -> Tensor:
        agreeing = self._agree(x, given).float()
        ones, total = (agreeing @ self._words).double(), agreeing.sum(-1, keepdim=True).double()
        counts = torch.stack([total - ones, ones], dim=-1)  # (B, N, 2)
        return (counts / total.clamp(min=1)[..., None]).log()

    def _agree(self, x: Tensor, known: Tensor) -> Tensor:
        # bool (B, codewords): those that have every known bit; differences counted as (1 - 2 x) word + x
        signs = torch.where(known, 1 - 2 * x, 0).float()
        ones = torch.where(known, x, 0).sum(-1, keepdim=True)
        return signs @ self._words.T == -ones


def _draw_checks(drawn: np.random.Generator, shape: tuple[int, int], weight: int, *, rank: int) -> np.ndarray:
    """A parity-check matrix of the rank, columns of the weight and distinct if there are so many."""
    checks, length = shape
    distinct = min(length, math.comb(checks, weight))
    for _ in range(TRIES):
        matrix = np.zeros(shape, dtype=np.int64)
        for bit in range(length):
            # those with the fewest bits so far, at random among equals
            order = np.lexsort((drawn.random(checks), matrix.sum(-1)))
            matrix[order[:weight], bit] = 1
        if len(_reduce(matrix)[1]) == rank and len(np.unique(matrix, axis=1).T) == distinct:
            return matrix
    raise ValueError(
        f"checks: expected sizes of which codes of rank {rank} are found, got length {length}, checks {checks}, "
        f"weight {weight}"
    )


def _reduce(matrix: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The reduced row echelon form over GF(2), without rows of zeros, and the columns of its pivots."""
    reduced = matrix.copy()
    pivots: list[int] = []
    for column in range(matrix.shape[1]):
        below = np.flatnonzero(reduced[len(pivots) :, column])
        if len(below):
            row = len(pivots)
            reduced[[row, row + below[0]]] = reduced[[row + below[0], row]]
            others = np.flatnonzero(reduced[:, column])
            others = others[others != row]
            reduced[others] ^= reduced[row]
            pivots.append(column)
    return reduced[: len(pivots)], pivots


def _solve(matrix: np.ndarray) -> np.ndarray:
    """A basis, in rows, of the words that satisfy every check."""
    reduced, pivots = _reduce(matrix)
    free = [column for column in range(matrix.shape[1]) if column not in pivots]
    basis = np.zeros((len(free), matrix.shape[1]), dtype=np.int64)
    for row, column in enumerate(free):
        basis[row, column] = 1
        basis[row, pivots] = reduced[:, column]
    return basis
