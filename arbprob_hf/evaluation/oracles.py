"""Quality against the exact truth: a network trained from scratch on a source whose every conditional is known.

The figure is excess nats per target token: how much less probable than the truth says the network holds what happened,
which is the Kullback-Leibler divergence of its conditionals, estimated on pairs of the same questions.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.conditioning_arbprob import Conditional
from ..model.configuration_arbprob import ArbProbConfig
from ..model.layouts_arbprob import lay_out
from ..model.modeling_arbprob import ArbProbForCausalLM
from .consistency import Gap, chain_gap, gap_of, marginalisation_gap, order_gap
from .sources import Source

# of a bit that parity determines, at least this much must go to the right value
SURE = 0.99


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on a source.

    Attributes:
        layout: how questions are put; see the layouts of the model.
        minutes: wall time of training; the learning rate falls with it. steps: instead of that, a number of steps.
        random: probability that the targets of a row are asked in random order, otherwise from left to right.
        width, layers, heads: sizes of the network. rows: questions a step. learning_rate: its highest.
        average: decay of the average of the weights that is kept. initial: standard deviation of the initial weights;
            GPT-2's 0.02 is too small for so narrow a network to begin to attend.
    """

    layout: str = "two_stream"
    minutes: float = 3.0
    steps: int | None = None
    random: float = 0.0
    width: int = 64
    layers: int = 2
    heads: int = 4
    rows: int = 64
    learning_rate: float = 4e-3
    initial: float = 0.1
    average: float = 0.995
    seed: int = 0


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


@dataclass(frozen=True)
class _Batch:
    # tokens with the start in front, long (B, T); given and target bool (B, T); order long (B, T)
    tokens: Tensor
    given: Tensor
    target: Tensor
    order: Tensor

    def ask(self) -> Conditional:
        return Conditional(self.given, self.target, self.order)


def train_on(source: Source, recipe: Recipe, *, report: Callable[[str, int], None] | None = None) -> ArbProbForCausalLM:
    """Train a network on fresh sequences of `source` and random questions about them, for as long as `recipe` says.

    `report` is told every half minute, and at the end, how it goes, and the number of steps so far.
    """
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    model = _build(source, recipe)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    average = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    begun, step, told, share = time.monotonic(), 0, 0.0, 0.0
    while share < 1:
        rate = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate
        loss = _loss(model, draw(source, recipe.rows, generator, random=recipe.random), recipe)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        decay = min(recipe.average, step / (step + 10))
        torch._foreach_lerp_(average, [weight.detach() for weight in weights], 1 - decay)
        elapsed = (time.monotonic() - begun) / 60
        share = step / recipe.steps if recipe.steps else elapsed / recipe.minutes
        if report is not None and (elapsed - told > 0.5 or share >= 1):
            told = elapsed
            report(f"{elapsed:.1f} min, step {step}, {float(loss.detach()):.4f} nats per target", step)
    with torch.no_grad():
        for weight, kept in zip(weights, average, strict=True):
            weight.copy_(kept)
    return model.eval()


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
        random=excess(model, source, _Batch(batch.tokens, batch.given, batch.target, shuffled))
        if takes_any_order
        else None,
        order=order_gap(model, tokens, given, target) if takes_any_order else None,
        chain=chain_gap(model, tokens[both], given[both], first[both], second[both]),
        marginalisation=_marginalisation(model, source, _Batch(tokens, given, target, batch.order[few])),
        determined=_determined(model, source, batch),
    )


@torch.no_grad()
def excess(model: ArbProbForCausalLM, source: Source, batch: _Batch) -> Gap:
    """Excess nats per target token over the truth, with its standard error over questions."""
    scores = torch.cat([_scores(model, part) for part in _parts(batch)]).double()
    # the start of the text is the network's own, not the source's
    truth = source.log_prob(batch.tokens[:, 1:], batch.given[:, 1:], batch.target[:, 1:])
    return gap_of(truth - scores.sum(1), batch.target.sum(1))


def draw(source: Source, rows: int, generator: torch.Generator, *, random: float) -> _Batch:
    """Sequences of `source` behind a start, and a question about each.

    The share that is given is uniform; of the others all are asked in half of the rows, a uniform share in the rest.
    """
    x = source.sample(rows, generator)
    tokens = torch.cat([torch.full((rows, 1), source.vocabulary), x], dim=1)  # (B, 1 + N)
    length = source.length
    score = torch.rand(rows, length, generator=generator)
    place = score.argsort(1).argsort(1)
    count = torch.randint(0, length, (rows, 1), generator=generator)
    asked = (torch.rand(rows, 1, generator=generator) * (length - count)).long() + 1
    asked = torch.where(torch.rand(rows, 1, generator=generator) < 0.5, length - count, asked)
    given = torch.cat([torch.ones(rows, 1, dtype=torch.bool), place < count], dim=1)
    target = torch.cat([torch.zeros(rows, 1, dtype=torch.bool), (place >= count) & (place < count + asked)], dim=1)
    temporal = torch.arange(1 + length).expand(rows, -1)
    shuffled = torch.rand(rows, 1 + length, generator=generator).argsort(1)
    is_shuffled = torch.rand(rows, 1, generator=generator) < random
    return _Batch(tokens, given, target, torch.where(is_shuffled, shuffled, temporal))


def _build(source: Source, recipe: Recipe) -> ArbProbForCausalLM:
    config = ArbProbConfig(
        vocab_size=source.vocabulary + 1,
        n_positions=source.length + 1,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        initializer_range=recipe.initial,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=source.vocabulary,
        eos_token_id=source.vocabulary,
        layout=recipe.layout,
        given_sees="all",
        mask_token=True,
        target_positions=recipe.layout == "sigma",
    )
    return ArbProbForCausalLM(config)


def _loss(model: ArbProbForCausalLM, batch: _Batch, recipe: Recipe) -> Tensor:
    question = batch.ask().settle(*batch.tokens.shape, given_sees="all")
    slots = lay_out(question, recipe.layout)
    inputs = slots.fill(batch.tokens, names_target=model.config.target_positions)
    loss = model(**inputs, shift_labels=slots.labels(batch.tokens), use_cache=False).loss
    assert isinstance(loss, Tensor)
    return loss


def _scores(model: ArbProbForCausalLM, batch: _Batch) -> Tensor:
    return model.log_prob(batch.tokens, batch.ask())


def _parts(batch: _Batch, rows: int = 1000) -> list[_Batch]:
    tables = (batch.tokens, batch.given, batch.target, batch.order)
    return [_Batch(*parts) for parts in zip(*(table.split(rows) for table in tables), strict=True)]


def _split(target: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
    return target & is_first, target & ~is_first


def _marginalisation(model: ArbProbForCausalLM, source: Source, batch: _Batch) -> Gap:
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


def _determined(model: ArbProbForCausalLM, source: Source, batch: _Batch) -> float | None:
    find = getattr(source, "determined", None)
    if find is None:
        return None
    known = find(batch.tokens[:, 1:], batch.given[:, 1:])
    sure, total = 0, 0
    for part, fixed in zip(_parts(batch), known.split(1000), strict=True):
        fixed = torch.nn.functional.pad(fixed, (1, 0)) & ~part.given
        rows = fixed.any(1)
        asked = Conditional(part.given[rows], fixed[rows])
        nats = model.marginals(part.tokens[rows], asked)
        right = nats.gather(2, part.tokens[rows][..., None]).squeeze(2)
        sure += int((right[fixed[rows]] >= math.log(SURE)).sum())
        total += int(fixed.sum())
    return sure / total if total else None
