"""Sources along a line: Markov chains, seen or hidden, scored by the forward algorithm."""

import numpy as np
import torch
from torch import Tensor

from ..errors import check_integer
from .source import RowDraws, WeightedSource, check_positive, draw_rows, rescale, take_log


class ChainSource(WeightedSource):
    """A hidden state walks along the sites and each site shows a token drawn by the state there.

    The forward algorithm, with tokens summed over where they are missing: Baum, Petrie, Soules, Weiss, "A maximization
    technique occurring in the statistical analysis of probabilistic functions of Markov chains" (Ann. Math. Statist.
    41, 1970); with messages rescaled at each site: Rabiner, "A tutorial on hidden Markov models" (Proc. IEEE 77, 1989).

    Attributes:
        initial: float64 (S,), of the state at the first site.
        moves: float64 (N - 1, S, S), from the state at a site to that at the next; rows sum to 1.
        emission: float64 (S, V), of the token by the state; rows sum to 1.
    """

    def __init__(self, initial: Tensor, moves: Tensor, emission: Tensor) -> None:
        self.initial, self.moves, self.emission = initial, moves, emission
        self.length, self.vocabulary = len(moves) + 1, emission.shape[1]
        self._starts, self._shows = RowDraws(initial[None]), RowDraws(emission)
        self._steps = RowDraws(moves.flatten(0, 1))  # of a state at a site

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        check_integer("count", count, low=1)
        state = self._starts.draw(torch.zeros(count, dtype=torch.long), generator)
        states = [state]
        for site in range(self.length - 1):
            state = self._steps.draw(site * len(self.initial) + state, generator)
            states.append(state)
        path = torch.stack(states, dim=1).flatten()  # (count * N,)
        return self._shows.draw(path, generator).view(count, self.length)  # (count, N)

    def log_total(self, weights: Tensor) -> Tensor:
        seen = weights @ self.emission.T  # (B, N, S)
        messages, scale = self.initial * seen[:, 0], torch.zeros(len(weights), dtype=torch.float64)
        for site, move in enumerate(self.moves, start=1):
            messages, size = rescale(messages)
            messages, scale = (messages @ move) * seen[:, site], scale + size
        return take_log(messages.sum(-1)) + scale


class MarkovSource(ChainSource):
    """A Markov chain: each token is drawn by the one before it.

    Sizes: 8 tokens, length 16; the first token's distribution and the rows of the transition matrix are drawn from a
    Dirichlet distribution of concentration 0.3. Exact by the forward algorithm of `ChainSource`.

    Attributes:
        transition: float64 (V, V), from a token to the next.
    """

    name = "markov"

    def __init__(self, seed: int = 0, *, length: int = 16, vocabulary: int = 8, concentration: float = 0.3) -> None:
        check_integer("length", length, low=1)
        check_integer("vocabulary", vocabulary, low=2)
        drawn = np.random.default_rng(check_integer("seed", seed, low=0))
        check_positive("concentration", concentration)
        initial = draw_rows(drawn, concentration, (vocabulary,))
        self.transition = draw_rows(drawn, concentration, (vocabulary, vocabulary))
        moves = self.transition.expand(length - 1, -1, -1)
        super().__init__(initial, moves, torch.eye(vocabulary, dtype=torch.float64))


class HiddenMarkovSource(ChainSource):
    """A hidden Markov model: a state nobody sees walks as a Markov chain and each token is drawn by the state.

    Sizes: 8 states, 16 tokens, length 32; the first state's distribution and the rows of the transition and emission
    matrices are drawn from a Dirichlet distribution of concentration 0.1. Exact by the forward algorithm of
    `ChainSource`.

    Attributes:
        transition: float64 (S, S), from a state to the next.
    """

    name = "hmm"

    def __init__(
        self,
        seed: int = 0,
        *,
        length: int = 32,
        vocabulary: int = 16,
        states: int = 8,
        concentration: float = 0.1,
    ) -> None:
        check_integer("length", length, low=1)
        check_integer("vocabulary", vocabulary, low=2)
        check_integer("states", states, low=1)
        drawn = np.random.default_rng(check_integer("seed", seed, low=0))
        check_positive("concentration", concentration)
        initial = draw_rows(drawn, concentration, (states,))
        self.transition = draw_rows(drawn, concentration, (states, states))
        emission = draw_rows(drawn, concentration, (states, vocabulary))
        super().__init__(initial, self.transition.expand(length - 1, -1, -1), emission)
