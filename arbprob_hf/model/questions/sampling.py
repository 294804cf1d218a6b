"""Exact samples of all targets of a question: one a pass with a cache, or several a pass from drafts that are verified.

The law of every method is the joint under the chain rule in the question's order, the one that `log_prob` scores. A
draft is kept with probability min(1, p / q); the first that is not is drawn again from the normalised (p - q)+ (Chen
et al. 2023, arXiv:2302.01318). Without that last step the law would be another.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache

from ..masks.tensors import HIDDEN
from ..masks.text import check_integer
from .conditional import ResolvedConditional
from .layouts import EMPTY, Slots, lay_out, look_ahead, positions_by_step
from .log_probs import accurate

METHODS = ("sequential", "speculative", "fused")


@dataclass(frozen=True)
class Sampled:
    """What `sample` returns.

    Attributes:
        sequences: long (B, T). log_probs: float (B, T), log P of each sampled token in nats, 0 elsewhere.
        forward_passes: how often the network ran, for all rows together.
        order: long (B, T), 1, 2, ... on the targets in the order they were asked, 0 elsewhere.
    """

    sequences: Tensor
    log_probs: Tensor
    forward_passes: int
    order: Tensor


class Sampler:
    """One question being sampled: the tokens so far, their log-probabilities, and the passes made."""

    def __init__(
        self,
        model: Any,
        question: ResolvedConditional,
        layout: str,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        if (
            isinstance(temperature, bool)
            or not isinstance(temperature, int | float)
            or not (temperature == 0 or 1e-6 <= temperature <= 1e6)
        ):
            raise ValueError(f"temperature: expected 0, or a number from 1e-6 to 1e6, got {temperature!r:.40}")
        self.model, self.question, self.layout = model, question, layout
        self.temperature, self.generator = temperature, generator
        self.passes = 0

    def run(self, input_ids: Tensor, method: str, *, width: int) -> Sampled:
        """Fill the targets of `input_ids`, long (B, T); see `sample` of the network."""
        if method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r:.40}")
        check_integer("width", width, low=1)
        if method == "fused" and self.layout != "two_stream":
            raise ValueError(f"method: fused needs the layout two_stream, got {self.layout}; take speculative")
        if method == "speculative" and self.layout == "causal":
            raise ValueError("method: the layout causal drafts one target at a time; take sequential")
        self.tokens = input_ids.clone()
        self.device = input_ids.device
        # a token that is to be replaced may be any number
        self.tokens[self.question.target.to(self.device)] = 0
        dtype = torch.promote_types(self.model.dtype, torch.float32)
        self.log_probs = torch.zeros(input_ids.shape, dtype=dtype, device=self.device)
        self.positions = positions_by_step(self.question)  # (B, E + 1)
        self.count = self.question.step.amax(1)  # (B,)
        if method == "sequential":
            self._one_by_one()
        else:
            # more drafts than targets would only cost memory
            self._in_rounds(min(width, int(self.count.amax())) if method == "fused" else None)
        return Sampled(self.tokens, self.log_probs, self.passes, self.question.step.to(self.device))

    # one target a pass

    def _one_by_one(self) -> None:
        slots = lay_out(self.question, self.layout)
        due = passes_due(slots, self.question)  # (B, S)
        readers = slots.slots_predicting(self.tokens.shape[1])
        cache = DynamicCache(config=self.model.config)
        ranks = limits = torch.zeros(len(due), 0, dtype=torch.long)
        for step in range(1, int(self.count.amax()) + 1):
            kept, kept_at = _chosen(slots, (due == step) & (slots.ranks < HIDDEN))
            query, query_at = _chosen(slots, (due == step) & (slots.ranks == HIDDEN))
            new = _side_by_side(kept, query)
            ranks, limits = torch.cat([ranks, new.ranks], 1), torch.cat([limits, new.limits], 1)
            inputs = new.fill(self.tokens, names_target=self.model.config.target_positions)
            inputs.update(ranks=ranks.to(self.device), limits=limits.to(self.device))
            states = self._states(**inputs, past_key_values=cache, use_cache=True)
            # queries are seen by nobody: they leave the cache
            width = query.positions.shape[1]
            if width:
                cache.crop(-width)
                ranks, limits = ranks[:, :-width], limits[:, :-width]
            rows = (self.count >= step).nonzero().squeeze(1)
            position = self.positions[rows, step]
            reader = readers[rows, position]
            at = torch.where(
                kept_at[rows, reader] < 0, query_at[rows, reader] + kept.positions.shape[1], kept_at[rows, reader]
            )
            logits = self._logits(states, rows, at)
            chosen = self._draw(self._law(logits))
            self._settle(rows, position, chosen, logits)

    # several targets a pass

    def _in_rounds(self, width: int | None) -> None:
        active = torch.arange(len(self.count))
        known = torch.zeros_like(self.count)
        drafts: _Drafts | None = None
        while len(active):
            question = self.question.rows(active)
            if width is None:
                known = self._speculative_round(active, question, known)
            else:
                known, drafts = self._fused_round(active, question, known, drafts, width)
            still = (known < self.count[active]).nonzero().squeeze(1)
            active, known = active[still], known[still]
            drafts = None if drafts is None else drafts.rows(still)

    def _speculative_round(self, active: Tensor, question: ResolvedConditional, known: Tensor) -> Tensor:
        left = self.count[active] - known
        slots = lay_out(question, self.layout, known)
        logits = self._logits_of_next(slots, active, known, left)  # (B, W, V)
        drafts = self._draft(active, known, logits, left)
        if logits.shape[1] == 1:
            # drawn from everything that is known: the joint itself
            self._score(active, known, drafts.tokens, logits, torch.ones_like(left))
            return known + 1
        slots = lay_out(question, self.layout)
        verified = self._logits_of_next(slots, active, known, left)
        # so was the first of several
        verified[:, 0] = logits[:, 0]
        return self._accept(active, known, drafts, verified)

    def _fused_round(
        self, active: Tensor, question: ResolvedConditional, known: Tensor, drafts: "_Drafts | None", width: int
    ) -> "tuple[Tensor, _Drafts]":
        drafted = torch.zeros_like(known) if drafts is None else drafts.count
        ahead = look_ahead(question, known, drafted, width)
        states = self._run(ahead.slots, active)
        verified = self._spread(states, ahead.verifying)  # (B, D + 1, V)
        if drafts is None:
            nothing = torch.zeros(len(active), 0, dtype=torch.long, device=self.device)
            drafts = _Drafts(nothing, torch.zeros_like(verified[:, :0]), drafted)
        after = self._accept(active, known, drafts.first(verified.shape[1] - 1), verified)
        # the drafts for the stop that was made; those for the others are never turned into logits
        following = self._spread(states, ahead.following[torch.arange(len(active)), after - known - 1])
        count = torch.minimum(torch.full_like(after, width), self.count[active] - after)
        return after, self._draft(active, after, following, count)

    def _draft(self, active: Tensor, known: Tensor, logits: Tensor, count: Tensor) -> "_Drafts":
        # a token for each of the first `count` targets after the known ones, each by itself; logits: (B, W, V)
        law = self._law(logits)
        tokens = self._draw(law.flatten(0, 1)).view(law.shape[:2])
        self._write(active, known, count, tokens)
        return _Drafts(tokens, law, count)

    def _accept(self, active: Tensor, known: Tensor, drafts: "_Drafts", logits: Tensor) -> Tensor:
        # keep the drafts that agree with the joint, whose logits these are, and draw the target after them from it;
        # -> how many targets are known now. With a column more than drafts, that target is drawn where all are kept
        wanted = self._law(logits)
        agreeing = self._count_agreeing(drafts, wanted)
        more = wanted.shape[1] - drafts.tokens.shape[1]
        left = torch.minimum(drafts.count + more, self.count[active] - known)
        kept = torch.minimum(agreeing, left)
        tokens, law = pad(drafts.tokens, (0, more)), pad(drafts.law, (0, 0, 0, more))
        # behind a row's last draft there is no law to subtract
        is_behind = torch.arange(tokens.shape[1]) == drafts.count[:, None]
        law = law.masked_fill(is_behind.to(self.device)[..., None], 0.0)
        stopping = (kept < left).nonzero().squeeze(1)
        rows, column = stopping.to(self.device), kept[stopping].to(self.device)
        excess = (wanted[rows, column] - law[rows, column]).clamp(min=0)
        # equal laws never reject; rounding may
        excess = torch.where(excess.sum(1, keepdim=True) > 0, excess, wanted[rows, column])
        tokens = tokens.clone()
        tokens[rows, column] = self._draw(excess)
        decided = torch.minimum(kept + 1, left)
        self._write(active, known, decided, tokens)
        self._score(active, known, tokens, logits, decided)
        return known + decided

    def _count_agreeing(self, drafts: "_Drafts", wanted: Tensor) -> Tensor:
        # how many of the first drafts are kept, long (B,) on the CPU
        tokens = drafts.tokens[..., None]
        q = drafts.law.gather(2, tokens).squeeze(2)
        p = wanted[:, : tokens.shape[1]].gather(2, tokens).squeeze(2)
        luck = torch.rand(q.shape, generator=self.generator, device=self.device, dtype=q.dtype)
        is_kept = (luck * q < p) & (torch.arange(tokens.shape[1]) < drafts.count[:, None]).to(self.device)
        return is_kept.long().cumprod(1).sum(1).cpu()

    # the network, and what is drawn from it

    def _states(self, **inputs: Any) -> Tensor:
        self.passes += 1
        return self.model.transformer(**inputs).last_hidden_state

    def _logits(self, states: Tensor, rows: Tensor, at: Tensor) -> Tensor:
        if not rows.numel():
            # which a quantised head may not take
            return accurate(states.new_zeros(0, self.model.config.vocab_size))
        return accurate(self.model.lm_head(states[rows.to(self.device), at.to(self.device)]))

    def _read(self, slots: Slots, active: Tensor, at: Tensor) -> Tensor:
        # logits at slots `at`, long (B, W) or (B, W, ...), with -1 for none: (*at.shape, V)
        return self._spread(self._run(slots, active), at)

    def _logits_of_next(self, slots: Slots, active: Tensor, known: Tensor, left: Tensor) -> Tensor:
        # of all `left` targets after the known ones, (B, W, V)
        at = _slots_of_next(slots, self.positions[active], known, left, self.tokens.shape[1])
        return self._read(slots, active, at)

    def _run(self, slots: Slots, active: Tensor) -> Tensor:
        inputs = slots.fill(self.tokens[active.to(self.device)], names_target=self.model.config.target_positions)
        return self._states(**inputs, use_cache=False)

    def _spread(self, states: Tensor, at: Tensor) -> Tensor:
        rows = torch.arange(at.shape[0]).view(-1, *[1] * (at.dim() - 1)).expand(at.shape)
        is_there = at >= 0
        logits = self._logits(states, rows[is_there], at[is_there])
        spread = logits.new_zeros(*at.shape, logits.shape[-1])
        spread[is_there.to(self.device)] = logits
        return spread

    def _law(self, logits: Tensor) -> Tensor:
        # what is drawn from: probabilities (..., V)
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
        return (logits / self.temperature).softmax(-1)

    def _draw(self, weights: Tensor) -> Tensor:
        # (N, V) -> (N,)
        if not len(weights):
            return torch.zeros(0, dtype=torch.long, device=self.device)
        return torch.multinomial(weights, 1, generator=self.generator).squeeze(1)

    def _write(self, active: Tensor, known: Tensor, count: Tensor, values: Tensor) -> None:
        # the first `count` of `values` (B, W) become the tokens of the targets after the `known` ones
        rows, columns = (torch.arange(values.shape[1]) < count[:, None]).nonzero(as_tuple=True)
        positions = self.positions[active[rows], known[rows] + 1 + columns]
        places = active[rows].to(self.device), positions.to(self.device)
        self.tokens[places] = values[rows.to(self.device), columns.to(self.device)]

    def _score(self, active: Tensor, known: Tensor, values: Tensor, logits: Tensor, count: Tensor) -> None:
        nats = (logits.gather(2, values[..., None]) - logits.logsumexp(2, keepdim=True)).squeeze(2)
        rows, columns = (torch.arange(values.shape[1]) < count[:, None]).nonzero(as_tuple=True)
        positions = self.positions[active[rows], known[rows] + 1 + columns]
        places = active[rows].to(self.device), positions.to(self.device)
        self.log_probs[places] = nats[rows.to(self.device), columns.to(self.device)]

    def _settle(self, rows: Tensor, position: Tensor, chosen: Tensor, logits: Tensor) -> None:
        places = rows.to(self.device), position.to(self.device)
        self.tokens[places] = chosen
        self.log_probs[places] = (logits.gather(1, chosen[:, None]) - logits.logsumexp(1, keepdim=True)).squeeze(1)


@dataclass(frozen=True)
class _Drafts:
    # tokens (B, W), the laws they were drawn from (B, W, V), how many of them there are (B,), on the CPU
    tokens: Tensor
    law: Tensor
    count: Tensor

    def rows(self, index: Tensor) -> "_Drafts":
        there = index.to(self.tokens.device)
        return _Drafts(self.tokens[there], self.law[there], self.count[index])

    def first(self, columns: int) -> "_Drafts":
        return _Drafts(self.tokens[:, :columns], self.law[:, :columns], self.count)


def passes_due(slots: Slots, question: ResolvedConditional) -> Tensor:
    """The pass in which each slot can be computed when one target becomes known a pass, from 1; 0 for fillers.

    A slot that sees the contents of n targets has to wait for all n.
    """
    contents = (slots.ranks < HIDDEN) & question.target.gather(1, slots.positions)
    ranks = torch.where(contents, slots.ranks, HIDDEN).sort(1).values
    seen = torch.searchsorted(ranks, slots.limits.contiguous(), right=True)
    is_filler = (slots.ranks == HIDDEN) & (slots.limits < 0)
    return torch.where(is_filler, 0, seen + 1)


def _chosen(slots: Slots, wanted: Tensor) -> tuple[Slots, Tensor]:
    # the wanted slots in as few columns as the fullest row needs; and which column each went to, or -1
    width = int(wanted.sum(1).amax())
    order = (~wanted).long().argsort(dim=1, stable=True)
    went = torch.where(wanted, order.argsort(dim=1), -1)
    order = order[:, :width]
    is_there = wanted.gather(1, order)
    parts = {name: torch.where(is_there, getattr(slots, name).gather(1, order), value) for name, value in EMPTY.items()}
    return Slots(**parts), went


def _side_by_side(first: Slots, second: Slots) -> Slots:
    return Slots(**{name: torch.cat([getattr(first, name), getattr(second, name)], dim=1) for name in EMPTY})


def _slots_of_next(slots: Slots, positions: Tensor, known: Tensor, left: Tensor, length: int) -> Tensor:
    # long (B, W): the slot that predicts each of the targets after the known ones; -1 beyond the `left` of a row
    columns = torch.arange(int(left.amax()))
    steps = (known[:, None] + 1 + columns).clamp(max=positions.shape[1] - 1)
    predicting = slots.slots_predicting(length).gather(1, positions.gather(1, steps))
    return torch.where(columns < left[:, None], predicting, -1)
