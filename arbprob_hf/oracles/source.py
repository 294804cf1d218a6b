"""What a source of sequences answers: the exact probability of any part of a sequence given any other part.

All is computed on the CPU in float64, whatever the device of the questions.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class Source(ABC):
    """A distribution over sequences of a fixed length all of whose conditional probabilities are computed exactly.

    Its parameters are drawn from a seed, so that equal seeds and sizes make equal sources.

    Attributes:
        name: as `load_source` knows it.
        vocabulary: number of tokens V; they are 0 .. V - 1.
        length: number of tokens N of every sequence.
    """

    name: ClassVar[str]
    # so many rows are worked on together: intermediate results of more do not fit a cache
    rows_at_once: ClassVar[int] = 1024
    vocabulary: int
    length: int

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Independent sequences, long (count, N), drawn with a generator of the CPU."""

    def evidence(self, x: Tensor, known: Tensor) -> Tensor:
        """The log probability of the known tokens, all others marginalised out.

        Args:
            x: long (B, N); where unknown, any token. known: bool (B, N).

        Returns:
            float64 (B,), 0 where nothing is known, -inf where what is known is impossible.
        """
        x, known = self._checked(x, known=known)
        return self._evidence_in_parts(x, known)

    def log_prob(self, x: Tensor, given: Tensor, target: Tensor) -> Tensor:
        """log P(x_target | x_given), everything else marginalised out.

        Args:
            x: long (B, N); where neither given nor target, any token. given, target: bool (B, N), disjoint.

        Returns:
            float64 (B,); 0 in a row without a target, -inf where given and target are impossible together, also when
            what is given is so by itself.
        """
        x, given, target = self._checked(x, given=given, target=target)
        both, alone = self._evidence_in_parts(x, given | target), self._evidence_in_parts(x, given)
        return _subtract(both, alone).masked_fill(~target.any(-1), 0.0)

    def chain_log_prob(self, x: Tensor, given: Tensor, target: Tensor, step: Tensor) -> Tensor:
        """log P(x_i | x_given and the targets of smaller step) of each target: the terms that `log_prob` is the sum of.

        Args:
            x, given, target: as for `log_prob`. step: long (B, N), different at different targets of a row.

        Returns:
            float64 (B, N), 0 where there is no target; -inf from the first impossible target of a row on.
        """
        x, given, target = self._checked(x, given=given, target=target)
        rank = _rank_targets(_check_integers("step", step, x.shape), target)
        chain = torch.zeros(x.shape, dtype=torch.float64)
        known, before = given, self._evidence_in_parts(x, given)
        for number in range(max(target.sum(-1).tolist(), default=0)):
            added = target & (rank == number)
            rows = added.any(-1)
            known, after = known | added, before.clone()
            after[rows] = self._evidence_in_parts(x[rows], known[rows])
            chain = torch.where(added, _subtract(after, before)[:, None], chain)
            before = after
        return chain

    def marginals(self, x: Tensor, given: Tensor) -> Tensor:
        """log P(x_i = v | x_given) of every single site and token.

        Args:
            x: long (B, N); where not given, any token. given: bool (B, N).

        Returns:
            float64 (B, N, V); at a given site 0 for its token and -inf for the others. -inf for every token of the
            other sites where what is given is impossible.
        """
        x, given = self._checked(x, given=given)
        parts = zip(x.split(self.rows_at_once), given.split(self.rows_at_once), strict=True)
        found = torch.cat([self._marginals(*part) for part in parts])
        certain = F.one_hot(x, self.vocabulary).double().log()
        return torch.where(given[..., None], certain, found.clamp(max=0.0))

    @abstractmethod
    def _evidence(self, x: Tensor, known: Tensor) -> Tensor:
        """`evidence` of a few rows of sound arguments."""

    @abstractmethod
    def _marginals(self, x: Tensor, given: Tensor) -> Tensor:
        """`marginals` of a few rows of sound arguments; what it says of given sites is not looked at."""

    def _evidence_in_parts(self, x: Tensor, known: Tensor) -> Tensor:
        parts = zip(x.split(self.rows_at_once), known.split(self.rows_at_once), strict=True)
        return torch.cat([self._evidence(*part) for part in parts])

    def _checked(self, x: Tensor, **masks: Tensor) -> list[Tensor]:
        # the arguments on the CPU, x first, or an error that names the one at fault
        if isinstance(x, Tensor) and (x.dim() != 2 or x.shape[1] != self.length):
            raise ValueError(f"x: expected shape (rows, {self.length}), got {tuple(x.shape)}")
        x = _check_integers("x", x, (x.shape[0], self.length) if isinstance(x, Tensor) else ())
        outside = x[(x < 0) | (x >= self.vocabulary)]
        if len(outside):
            raise ValueError(f"x: expected tokens 0 to {self.vocabulary - 1}, got {int(outside[0])}")
        checked = [_check_mask(name, mask, x.shape) for name, mask in masks.items()]
        if len(checked) == 2 and bool((checked[0] & checked[1]).any()):
            row, site = (checked[0] & checked[1]).nonzero()[0].tolist()
            raise ValueError(f"target: expected no site that is given too, got site {site} of row {row}")
        return [x, *checked]


class WeightedSource(Source):
    """A source defined by one function, the sum over sequences of their probability times a weight for each token.

    That function is the network polynomial of Darwiche, "A differential approach to inference in Bayesian networks"
    (J. ACM 50, 2003): evidence is its value at weights 0 and 1, marginals are its derivatives.
    """

    @abstractmethod
    def log_total(self, weights: Tensor) -> Tensor:
        """log of the sum over all sequences x of P(x) times the product over sites i of weights[i, x_i].

        Args:
            weights: float64 (B, N, V), not negative.

        Returns:
            float64 (B,), differentiable; -inf where the sum is 0.
        """

    def _evidence(self, x: Tensor, known: Tensor) -> Tensor:
        with torch.no_grad():
            return self.log_total(self._weigh(x, known))

    def _marginals(self, x: Tensor, given: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            weights = self._weigh(x, given).requires_grad_()
            (slopes,) = torch.autograd.grad(self.log_total(weights).sum(), weights)
        return slopes.log()

    def _weigh(self, x: Tensor, known: Tensor) -> Tensor:
        # 1 for what x may be, (B, N, V)
        return torch.where(known[..., None], F.one_hot(x, self.vocabulary).double(), 1.0)


class RowDraws:
    """Draws from rows of probabilities, by inversion: those of all rows in one search among their cumulative sums.

    Args:
        rows: float64 (R, S), not negative, in each row something positive; each is divided by its sum.
    """

    def __init__(self, rows: Tensor) -> None:
        sums = rows.cumsum(-1)
        offsets = torch.arange(len(rows), dtype=torch.float64)[:, None]
        self._levels, self._width = (sums / sums[:, -1:] + offsets).flatten(), rows.shape[1]

    def draw(self, row: Tensor, generator: torch.Generator) -> Tensor:
        """One draw from each of the rows named, long (M,) to long (M,)."""
        level = row + torch.rand(row.shape, dtype=torch.float64, generator=generator)
        # the sum must not round up to the next row; what has probability 0 is stepped over
        level = torch.minimum(level, torch.nextafter(row.double() + 1, torch.zeros((), dtype=torch.float64)))
        return torch.searchsorted(self._levels, level, right=True) - row * self._width


def rescale(messages: Tensor) -> tuple[Tensor, Tensor]:
    """Messages (..., S) divided by their largest entry, and its log (...), -inf where all entries are 0.

    The divisor is a constant to autograd: derivatives stay sums of positive terms, exact however small.
    """
    size = messages.detach().amax(-1)
    return messages / torch.where(size > 0, size, 1.0)[..., None], size.log()


def take_log(total: Tensor) -> Tensor:
    """The log, -inf with slope 0 where the total is 0."""
    possible = total > 0
    return torch.where(possible, total, 1.0).log().masked_fill(~possible, -torch.inf)


def draw_rows(generator: np.random.Generator, concentration: float, shape: tuple[int, ...]) -> Tensor:
    """Distributions along the last axis, float64, drawn from a symmetric Dirichlet distribution."""
    rows = generator.dirichlet(np.full(shape[-1], concentration), size=shape[:-1])
    return torch.from_numpy(rows / rows.sum(-1, keepdims=True))


def check_positive(name: str, value: float) -> float:
    """The value, or an error that names it."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a positive number, got {value!r}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: expected a positive number, got {value}")
    return float(value)


def _subtract(one: Tensor, other: Tensor) -> Tensor:
    # what is impossible stays so under impossible conditions; probabilities do not exceed 1 by rounding
    return torch.where(one == -torch.inf, one, one - other).clamp(max=0.0)


def _rank_targets(step: Tensor, target: Tensor) -> Tensor:
    # how many targets of the row come before, (B, N)
    others = target[:, None, :] & target[:, :, None] & ~torch.eye(step.shape[1], dtype=torch.bool)  # (B, N, N)
    equal = (others & (step[:, None, :] == step[:, :, None])).nonzero()
    if len(equal):
        row, site, twin = equal[0].tolist()
        raise ValueError(
            f"step: expected different steps at the targets of a row, got {int(step[row, site])} at sites {site} and "
            f"{twin} of row {row}"
        )
    return (others & (step[:, None, :] < step[:, :, None])).sum(-1)


def _check_integers(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a long tensor, got {type(value).__name__}")
    if value.dtype != torch.long:
        raise TypeError(f"{name}: expected dtype torch.int64, got {value.dtype}")
    return _check_shape(name, value, shape)


def _check_mask(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a bool tensor, got {type(value).__name__}")
    if value.dtype != torch.bool:
        raise TypeError(f"{name}: expected dtype torch.bool, got {value.dtype}")
    return _check_shape(name, value, shape)


def _check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, that of x, got {tuple(value.shape)}")
    return value.cpu()
