"""Quality against the exact truth: a network trained from scratch on a source whose every conditional is known.

The figure is excess nats per target token: how much less probable than the truth says the network holds what happened,
which is the Kullback-Leibler divergence of its conditionals, estimated on pairs of the same questions.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.modeling_arbprob import ArbProbForCausalLM
from ..model.questions.conditional import Conditional
from .consistency import Gap, chain_gap, gap_of, marginalisation_gap, order_gap
from .registry import Source
from .train import Batch, draw

# of a bit that parity determines, at least this much must go to the right value
SURE = 0.99
# judged at once
ROWS = 1000


@dataclass(frozen=True)
class Verdict:
    """What `judge` found; every gap in nats per target token.

    Attributes:
        temporal, random: excess over the truth, asked from left to right and in random order (None where the layout
            cannot).
        order, chain, marginalisation: disagreement of the network with itself (see `consistency`).
        determined: share of the bits that parity determines whose right value gets at least SURE; None elsewhere.
    """

    temporal: Gap
    random: Gap | None
    order: Gap | None
    chain: Gap
    marginalisation: Gap
    determined: float | None


@torch.no_grad()
def judge(model: ArbProbForCausalLM, source: Source, *, questions: int = 8000, seed: int = 1) -> Verdict:
    """Compare a network with the truth on `questions` random questions, the same for every network."""
    generator = torch.Generator().manual_seed(seed)
    batch = draw(source, questions, generator, random=0.0)
    shuffled = torch.rand(batch.given.shape, generator=generator).argsort(1)
    takes_any_order = model.config.layout in ("two_stream", "sigma")
    few = slice(0, max(2, questions // 8))
    tokens, given, target = batch.tokens[few], batch.given[few], batch.target[few]
    halves = torch.rand(target.shape, generator=generator) < 0.5
    first, second = _split(target, halves)
    both = (first.any(1) & second.any(1)).nonzero().squeeze(1)
    if not takes_any_order:
        # from left to right the first half must come first
        first, second = _split(target, target.long().cumsum(1) <= target.sum(1, keepdim=True) // 2)
        both = (first.any(1) & second.any(1)).nonzero().squeeze(1)
    return Verdict(
        temporal=excess(model, source, batch),
        random=excess(model, source, Batch(batch.tokens, batch.given, batch.target, shuffled))
        if takes_any_order
        else None,
        order=order_gap(model, tokens, given, target) if takes_any_order else None,
        chain=chain_gap(model, tokens[both], given[both], first[both], second[both]),
        marginalisation=_marginalisation(model, source, Batch(tokens, given, target, batch.order[few])),
        determined=_determined(model, source, batch),
    )


@torch.no_grad()
def excess(model: ArbProbForCausalLM, source: Source, batch: Batch) -> Gap:
    """Excess nats per target token over the truth, with its standard error over questions."""
    scores = torch.cat([model.log_prob(part.tokens, part.ask()) for part in batch.split(ROWS)]).double()
    # the start of the text is the network's own, not the source's
    truth = source.log_prob(batch.tokens[:, 1:], batch.given[:, 1:], batch.target[:, 1:])
    return gap_of(truth - scores.sum(1), batch.target.sum(1))


def _split(target: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
    return target & is_first, target & ~is_first


def _marginalisation(model: ArbProbForCausalLM, source: Source, batch: Batch) -> Gap:
    takes_any_order = model.config.layout in ("two_stream", "sigma")
    given, target = batch.given, batch.target
    if not takes_any_order:
        # from left to right the unseen position must come before all targets
        free = ~(given | target)
        first = torch.where(free.any(1), free.long().argmax(1), given.shape[1])
        behind = torch.arange(given.shape[1]) > first[:, None]
        rows = (target & behind).any(1)
        return marginalisation_gap(
            model, batch.tokens[rows], given[rows], (target & behind)[rows], vocabulary=source.vocabulary
        )
    return marginalisation_gap(model, batch.tokens, given, target, vocabulary=source.vocabulary)


def _determined(model: ArbProbForCausalLM, source: Source, batch: Batch) -> float | None:
    find = getattr(source, "determined", None)
    if find is None:
        return None
    known = find(batch.tokens[:, 1:], batch.given[:, 1:])
    sure, total = 0, 0
    for part, fixed in zip(batch.split(ROWS), known.split(ROWS), strict=True):
        fixed = torch.nn.functional.pad(fixed, (1, 0)) & ~part.given
        rows = fixed.any(1)
        asked = Conditional(part.given[rows], fixed[rows])
        nats = model.marginals(part.tokens[rows], asked)
        right = nats.gather(2, part.tokens[rows][..., None]).squeeze(2)
        sure += int((right[fixed[rows]] >= math.log(SURE)).sum())
        total += int(fixed.sum())
    return sure / total if total else None
