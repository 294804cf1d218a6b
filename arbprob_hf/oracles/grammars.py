"""A source of sentences: a probabilistic context-free grammar given their length, scored by the inside algorithm."""

import numpy as np
import torch
from torch import Tensor

from ..errors import check_integer
from .source import RowDraws, WeightedSource, check_positive, draw_rows, rescale, take_log

# how likely a phrase splits; a kind of words becomes a word as likely
BRANCHING = 0.95
# how likely a word is any terminal, not one of its kind
STRAYING = 0.02


class GrammarSource(WeightedSource):
    """A probabilistic context-free grammar in Chomsky normal form, given that the sentence has N words.

    Sizes: 8 nonterminals, 8 terminals, length 16. Half of the nonterminals are phrases, which split in two with
    probability 0.95 and become a word otherwise; the others are kinds of words, for which it is the other way round.
    Each has 2 pairs to split into, drawn without replacement, with probabilities from a Dirichlet distribution of
    concentration 0.5. The terminals are dealt out to the kinds of words; a nonterminal becomes one of its kind's, with
    probabilities from a uniform Dirichlet distribution, or with probability 0.02 any terminal. Exact by the inside
    algorithm: Baker, "Trainable grammars for speech recognition" (J. Acoust. Soc. Am. 65, 1979), with words summed
    over where they are unknown; sentences of the length are drawn from the top down by the inside weights of unknown
    words.

    Attributes:
        binary: float64 (K, K, K), the probability that the first splits into second and third. lexical: float64
            (K, V), that a nonterminal becomes a word. The start symbol is nonterminal 0.
    """

    name = "pcfg"
    # a chart takes K times N squared numbers a row
    rows_at_once = 256

    def __init__(
        self,
        seed: int = 0,
        *,
        length: int = 16,
        vocabulary: int = 8,
        nonterminals: int = 8,
        splits: int = 2,
        concentration: float = 0.5,
    ) -> None:
        self.length, self.vocabulary = (
            check_integer("length", length, low=1),
            check_integer("vocabulary", vocabulary, low=2),
        )
        pairs = check_integer("nonterminals", nonterminals, low=1) ** 2
        if check_integer("splits", splits, low=1) > pairs:
            raise ValueError(f"splits: expected at most nonterminals squared, {pairs}, got {splits}")
        drawn = np.random.default_rng(check_integer("seed", seed, low=0))
        chances = draw_rows(drawn, check_positive("concentration", concentration), (nonterminals, splits))
        chosen = np.stack([drawn.choice(pairs, splits, replace=False) for _ in range(nonterminals)])
        rules = torch.zeros(nonterminals, pairs, dtype=torch.float64).scatter_(1, torch.from_numpy(chosen), chances)
        branching = torch.full((nonterminals,), 1 - BRANCHING, dtype=torch.float64)
        branching[: nonterminals // 2] = BRANCHING
        self.binary = (branching[:, None] * rules).unflatten(1, (nonterminals, nonterminals))  # (K, K, K)
        self.lexical = (1 - branching)[:, None] * _draw_words(drawn, nonterminals, vocabulary)
        # the pairs that something splits into, (P, 2), and how likely each nonterminal does, (P, K)
        self._pairs = (self.binary > 0).any(0).nonzero()
        self._rules = self.binary[:, self._pairs[:, 0], self._pairs[:, 1]].T.contiguous()
        self._cuts, self._words = self._weigh_cuts(), RowDraws(self.lexical)
        # what the weights of all sentences of the length sum to
        self._log_all = self._log_inside(torch.ones(1, length, vocabulary, dtype=torch.float64))

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        check_integer("count", count, low=1)
        # the parts of each sentence so far, kept where they start: their lengths (0 elsewhere) and nonterminals
        sizes = torch.zeros(count, self.length, dtype=torch.long)
        symbols = torch.zeros_like(sizes)
        sizes[:, 0] = self.length
        for size in range(self.length, 1, -1):
            row, start = (sizes == size).nonzero().unbind(-1)
            drawn = self._cuts[size].draw(symbols[row, start], generator)
            cut, pair = drawn // len(self._pairs) + 1, drawn % len(self._pairs)
            sizes[row, start], sizes[row, start + cut] = cut, size - cut
            symbols[row, start], symbols[row, start + cut] = self._pairs[pair].unbind(-1)
        return self._words.draw(symbols.flatten(), generator).view(count, self.length)  # (count, N)

    def log_total(self, weights: Tensor) -> Tensor:
        return self._log_inside(weights) - self._log_all

    def _log_inside(self, weights: Tensor) -> Tensor:
        chart, scale = rescale(weights @ self.lexical.T)
        spans = [_Spans(chart, scale, self._pairs)]
        for size in range(2, self.length + 1):
            pairs, top = _join(spans, self.length - size + 1)
            chart, scale = rescale(pairs @ self._rules)
            spans.append(_Spans(chart, scale + top, self._pairs))
        return take_log(chart[:, 0, 0]) + spans[-1].scale[:, 0]

    def _weigh_cuts(self) -> dict[int, RowDraws]:
        # by the number of words: where a part of so many is cut and into which pair, by the nonterminal it is; from the
        # weights of unknown words, which depend on their number alone
        spans, cuts = self.lexical.sum(-1)[None], {}  # (sizes, K)
        for size in range(2, self.length + 1):
            pairs = spans[:, self._pairs[:, 0]] * spans.flip(0)[:, self._pairs[:, 1]]  # (cuts, P)
            chances = self._rules.T[:, None] * pairs  # (K, cuts, P)
            cuts[size] = RowDraws(chances.flatten(1))
            spans = torch.cat([spans, chances.sum((1, 2))[None]])
        return cuts


class _Spans:
    """The inside weights, rescaled, of all parts of one number of words: as the left and as the right of each pair."""

    def __init__(self, chart: Tensor, scale: Tensor, pairs: Tensor) -> None:
        # (B, starts, P) twice, from (B, starts, K); the logs of the scales (B, starts)
        self.left, self.right = chart.index_select(-1, pairs[:, 0]), chart.index_select(-1, pairs[:, 1])
        self.scale = scale


def _join(spans: list[_Spans], starts: int) -> tuple[Tensor, Tensor]:
    # the weights of each pair over all cuts of parts of one word more, (B, starts, P), and the logs of their scales
    cuts = [(left, right, cut) for cut, (left, right) in enumerate(zip(spans, reversed(spans), strict=True), start=1)]
    sums = [left.scale[:, :starts] + right.scale[:, cut : cut + starts] for left, right, cut in cuts]
    # finite also where no cut is possible
    top = torch.stack(sums).amax(0).clamp(min=torch.finfo(torch.float64).min)
    pairs = torch.zeros_like(spans[0].left[:, :starts])
    for (left, right, cut), logs in zip(cuts, sums, strict=True):
        factor = (logs - top).exp()[..., None]
        pairs = torch.addcmul(pairs, left.left[:, :starts] * factor, right.right[:, cut : cut + starts])
    return pairs, top


def _draw_words(drawn: np.random.Generator, nonterminals: int, vocabulary: int) -> Tensor:
    # float64 (K, V): the word that each nonterminal becomes; as many kinds as there are nonterminals that are no phrase
    kinds, dealt = nonterminals - nonterminals // 2, drawn.permutation(vocabulary)
    words = torch.full((nonterminals, vocabulary), STRAYING / vocabulary, dtype=torch.float64)
    for symbol in range(nonterminals):
        # with fewer terminals than kinds, kinds share them
        own = torch.from_numpy(dealt[symbol % kinds % vocabulary :: kinds])
        words[symbol, own] += (1 - STRAYING) * draw_rows(drawn, 1.0, own.shape)
    return words
