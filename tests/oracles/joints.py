"""The joint distributions of small sources, spelled out from their definitions in plain Python."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arbprob_hf.oracles.chains import HiddenMarkovSource, MarkovSource
from arbprob_hf.oracles.codes import ParityCheckSource
from arbprob_hf.oracles.grammars import GrammarSource
from arbprob_hf.oracles.graphs import IsingSource, TreeSource
from arbprob_hf.oracles.registry import Source

Tokens = tuple[int, ...]
# the probability of a sequence, up to a factor
Weigh = Callable[[Tokens], float]


def spell_out(source: Source) -> np.ndarray:
    """The probability of every sequence, an array with one axis of V a site."""
    joint = np.zeros((source.vocabulary,) * source.length)
    if isinstance(source, GrammarSource):
        for words, probability in derive(source.binary.tolist(), source.lexical.tolist(), 0, source.length):
            joint[words] += probability
    else:
        weigh = WAYS[type(source)](source)
        for tokens in itertools.product(range(source.vocabulary), repeat=source.length):
            joint[tokens] = weigh(tokens)
    # of these the definition leaves the normaliser open
    return joint / joint.sum() if isinstance(source, IsingSource | GrammarSource | ParityCheckSource) else joint


def weigh_chain(source: MarkovSource) -> Weigh:
    initial, transition = source.initial.tolist(), source.transition.tolist()

    def weigh(tokens: Tokens) -> float:
        return initial[tokens[0]] * math.prod(transition[a][b] for a, b in itertools.pairwise(tokens))

    return weigh


def weigh_hidden_chain(source: HiddenMarkovSource) -> Weigh:
    initial, transition, emission = source.initial.tolist(), source.transition.tolist(), source.emission.tolist()
    paths = list(itertools.product(range(len(initial)), repeat=source.length))
    walks = [initial[path[0]] * math.prod(transition[a][b] for a, b in itertools.pairwise(path)) for path in paths]

    def weigh(tokens: Tokens) -> float:
        shown = [math.prod(emission[s][t] for s, t in zip(path, tokens, strict=True)) for path in paths]
        return sum(walk * show for walk, show in zip(walks, shown, strict=True))

    return weigh


def weigh_tree(source: TreeSource) -> Weigh:
    tables = source.tables.tolist()

    def weigh(tokens: Tokens) -> float:
        values = [tokens[site] for site in source.sites]
        rest = range(1, len(values))
        return tables[0][0][values[0]] * math.prod(tables[v][values[source.parents[v]]][values[v]] for v in rest)

    return weigh


def weigh_spins(source: IsingSource) -> Weigh:
    places = list(itertools.product(range(source.height), range(source.width)))
    pairs = itertools.combinations(range(len(places)), 2)
    neighbours = [(i, j) for i, j in pairs if math.dist(places[i], places[j]) == 1]
    fields = source.fields.tolist()

    def weigh(tokens: Tokens) -> float:
        spins = [2 * token - 1 for token in tokens]
        aligned = sum(spins[i] * spins[j] for i, j in neighbours)
        return math.exp(source.coupling * aligned + sum(f * s for f, s in zip(fields, spins, strict=True)))

    return weigh


def weigh_word(source: ParityCheckSource) -> Weigh:
    checks = source.checks.tolist()

    def weigh(tokens: Tokens) -> float:
        return float(all(sum(a * b for a, b in zip(check, tokens, strict=True)) % 2 == 0 for check in checks))

    return weigh


def derive(
    binary: list[list[list[float]]], lexical: list[list[float]], symbol: int, size: int
) -> Iterator[tuple[Tokens, float]]:
    """Every derivation of that many words from a nonterminal: the words and its probability."""
    if size == 1:
        yield from (((word,), chance) for word, chance in enumerate(lexical[symbol]))
    for cut in range(1, size):
        for left, right in itertools.product(range(len(lexical)), repeat=2):
            if binary[symbol][left][right] > 0:
                for first, one in derive(binary, lexical, left, cut):
                    for second, other in derive(binary, lexical, right, size - cut):
                        yield first + second, binary[symbol][left][right] * one * other


def look_up(joint: np.ndarray, x: Tensor, known: Tensor) -> Tensor:
    """log P(x_known) of each row, summed in the joint, float64 (B,)."""
    found = torch.zeros(len(x), dtype=torch.float64)
    for pattern in known.unique(dim=0):
        rows = (known == pattern).all(-1)
        table = joint.sum(axis=tuple(np.flatnonzero(~pattern.numpy())))
        found[rows] = torch.from_numpy(np.asarray(table))[tuple(x[rows][:, pattern].T)]
    return found.log()


def condition(joint: np.ndarray, x: Tensor, given: Tensor, target: Tensor) -> Tensor:
    """log P(x_target | x_given) of each row, -inf where both are impossible together, float64 (B,)."""
    both, alone = look_up(joint, x, given | target), look_up(joint, x, given)
    found = torch.where(both == -torch.inf, both, both - alone)
    return torch.where(target.any(-1), found, 0.0)


WAYS: dict[type[Source], Callable[[Any], Weigh]] = {
    MarkovSource: weigh_chain,
    HiddenMarkovSource: weigh_hidden_chain,
    TreeSource: weigh_tree,
    IsingSource: weigh_spins,
    ParityCheckSource: weigh_word,
}
