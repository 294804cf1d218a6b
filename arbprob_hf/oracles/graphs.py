"""Sources on graphs: a tree of variables, scored from its leaves up, and a grid of spins, by a transfer matrix."""

import numpy as np
import torch
from torch import Tensor

from ..errors import check_integer
from .chains import ChainSource
from .source import RowDraws, WeightedSource, check_positive, draw_rows, rescale, take_log

# a state of the transfer matrix holds so many spins
WIDEST = 8


class TreeSource(WeightedSource):
    """A Bayesian network in the form of a tree: each variable but the first is drawn by its one parent.

    Sizes: 24 variables of 4 values; each parent is drawn from the variables before, each row of each table from a
    Dirichlet distribution of concentration 0.5, and a permutation puts the variables to their sites. Exact by messages
    from the leaves to the root: Pearl, "Reverend Bayes on inference engines" (AAAI 1982).

    Attributes:
        parents: the parent of each variable, an earlier one; -1 of the first.
        tables: float64 (N, V, V), a variable's distribution in the row of its parent's value; in row 0 of the first's.
        sites: where each variable is in the sequence.
    """

    name = "tree"

    def __init__(self, seed: int = 0, *, length: int = 24, vocabulary: int = 4, concentration: float = 0.5) -> None:
        self.length, self.vocabulary = (
            check_integer("length", length, low=1),
            check_integer("vocabulary", vocabulary, low=2),
        )
        drawn = np.random.default_rng(check_integer("seed", seed, low=0))
        check_positive("concentration", concentration)
        self.parents = [-1, *(int(drawn.integers(variable)) for variable in range(1, length))]
        self.tables = draw_rows(drawn, concentration, (length, vocabulary, vocabulary))
        self._draws = RowDraws(self.tables.flatten(0, 1))  # of a variable and its parent's value
        self.sites: list[int] = drawn.permutation(length).tolist()

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        check_integer("count", count, low=1)
        x = torch.zeros(count, self.length, dtype=torch.long)
        for variable, parent in enumerate(self.parents):
            # the first variable is drawn by row 0, as its own site still says
            value = x[:, self.sites[max(parent, 0)]]
            x[:, self.sites[variable]] = self._draws.draw(variable * self.vocabulary + value, generator)
        return x

    def log_total(self, weights: Tensor) -> Tensor:
        beliefs = [weights[:, site] for site in self.sites]
        scale = torch.zeros(len(weights), dtype=torch.float64)
        for variable in range(self.length - 1, 0, -1):
            messages, size = rescale(beliefs[variable] @ self.tables[variable].T)  # (B, V) by the parent's value
            parent = self.parents[variable]
            beliefs[parent] = beliefs[parent] * messages
            scale = scale + size
        return take_log(beliefs[0] @ self.tables[0, 0]) + scale


class IsingSource(ChainSource):
    """An Ising model: spins on a grid that prefer to point as their neighbours do, tokens 1 up and 0 down, row by row.

    Sizes: 4 x 4 spins without periodic boundary, coupling 0.5 between neighbours, and at each spin a field drawn from
    a normal distribution of deviation 0.2; P(s) is proportional to exp(coupling * sum of s_i s_j over neighbours + sum
    of fields_i s_i), s = -1 or 1. Exact by the transfer matrix of Kramers and Wannier, "Statistics of the
    two-dimensional ferromagnet" (Phys. Rev. 60, 1941), spin by spin: a state is the last `width` spins, a move adds
    one. Normalised from the last spin back, the moves are a Markov chain; the rest is the forward algorithm.

    Attributes:
        fields: float64 (N,). coupling: as above. height, width: of the grid, N = height * width.
    """

    name = "ising"

    def __init__(
        self, seed: int = 0, *, height: int = 4, width: int = 4, coupling: float = 0.5, field: float = 0.2
    ) -> None:
        self.height, self.width = check_integer("height", height, low=1), check_integer("width", width, low=1)
        if width > WIDEST:
            raise ValueError(f"width: expected at most {WIDEST}, the shorter side of the grid, got {width}")
        drawn = np.random.default_rng(check_integer("seed", seed, low=0))
        self.coupling = check_positive("coupling", coupling)
        fields = drawn.normal(scale=check_positive("field", field), size=height * width)
        self.fields = torch.from_numpy(fields)
        initial, moves = _normalise([self._weigh_move(site) for site in range(height * width)])
        up = torch.arange(2**width) & 1
        super().__init__(initial, moves, torch.nn.functional.one_hot(up, 2).double())

    def _weigh_move(self, site: int) -> Tensor:
        # (S, S): how likely the last spins are followed by the last spins one site on; the newest is the lowest bit
        row, column = divmod(site, self.width)
        states = torch.arange(2**self.width)
        table = torch.zeros(len(states), len(states), dtype=torch.float64)
        above, left = 2.0 * (states >> (self.width - 1)) - 1, 2.0 * (states & 1) - 1
        neighbours = above.double() * (row > 0) + left.double() * (column > 0)
        for bit, spin in enumerate((-1.0, 1.0)):
            after = (2 * states + bit) % len(states)
            table[states, after] = (spin * (self.coupling * neighbours + self.fields[site])).exp()
        return table


def _normalise(tables: list[Tensor]) -> tuple[Tensor, Tensor]:
    # each move times the weight of all that can follow; before the first site all spins count as down
    follow = torch.ones(len(tables[0]), dtype=torch.float64)
    moves = []
    for table in reversed(tables):
        weighted = table * follow
        follow = weighted.sum(-1)
        moves.append(weighted / follow[:, None])
        follow = follow / follow.amax()
    first, *rest = reversed(moves)
    return first[0], torch.stack(rest) if rest else first.new_zeros(0, *first.shape)
