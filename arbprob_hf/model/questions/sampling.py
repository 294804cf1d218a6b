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

from ..masks.text import check_integer
from .cached_passes import CachedPasses, Chain
from .conditional import ResolvedConditional
from .draft_windows import FEW_ROWS, Acceptance, choose_window
from .guesses import Guesses
from .layouts import positions_by_step
from .log_probs import accurate

METHODS = ("sequential", "speculative", "fused", "auto")
_NOT_FINITE = (
    "logits: expected finite ones, -inf for some tokens at most, got nan or infinity; the network's weights are not "
    "finite, or the temperature is too small"
)


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

    def run(self, input_ids: Tensor, method: str, *, width: int) -> Sampled:
        """Fill the targets of `input_ids`, long (B, T); see `sample` of the network."""
        if method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r:.40}")
        check_integer("width", width, low=1)
        if method == "fused" and self.layout != "two_stream":
            raise ValueError(f"method: fused needs the layout two_stream, got {self.layout}; take speculative")
        if method == "speculative" and self.layout == "causal":
            raise ValueError("method: the layout causal drafts one target at a time; take sequential")
        self.device = input_ids.device
        # a token that is to be replaced may be any number
        self.tokens = input_ids.masked_fill(self._there(self.question.target), 0)
        dtype = torch.promote_types(self.model.dtype, torch.float32)
        self.log_probs = torch.zeros(input_ids.shape, dtype=dtype, device=self.device)
        self.positions = positions_by_step(self.question)  # (B, E + 1)
        self.count = self.question.step.amax(1)  # (B,)
        self.passes = CachedPasses(self.model, Chain.of(self.question, self.layout))
        if method == "auto" and self.layout != "two_stream":
            method = "sequential" if self.layout == "causal" else "speculative"
        if method == "sequential":
            self._one_by_one()
        else:
            self._in_rounds(method, width)
        return Sampled(self.tokens, self.log_probs, self.passes.count, self._there(self.question.step))

    # one target a pass

    def _one_by_one(self) -> None:
        for step in range(1, int(self.count.amax()) + 1):
            known = self.count.clamp(max=step - 1)
            # a row without further targets gets fillers: that costs less than to take it out
            ahead = (self.count >= step).long()
            table, at = self.passes.chain.between(known, ahead)
            states = self.passes.run(self.tokens, table, known)
            rows = ahead.nonzero().squeeze(1)
            logits = self._logits(states, rows, at[rows, 0])[:, None]  # (rows, 1, V)
            law = self._law(logits)
            # on a CPU, too: samples of a seed stay what they were
            self._decide(rows, known[rows], self._multinomial(law), logits, law, torch.ones_like(rows))

    # several targets a pass

    def _in_rounds(self, method: str, width: int) -> None:
        active = torch.arange(len(self.count))
        known = torch.zeros_like(self.count)
        guesses = Guesses.of(self.question, self.layout, self.positions)
        acceptance = Acceptance()
        drafts: _Drafts | None = None
        while len(active):
            left = int((guesses.count - known).amax())
            window = choose_window(acceptance, method, width=width, left=left)
            if window.is_fused or drafts is not None:
                # drafts that are there are verified, whatever the next round is
                ahead = window.width if window.is_fused else 0
                known, drafts = self._fused_round(active, guesses, known, drafts, ahead, acceptance)
            else:
                known = self._speculative_round(active, guesses, known, window.width, acceptance)
            still = (known < guesses.count).nonzero().squeeze(1)
            if len(still) < len(active):
                active, known, guesses = active[still], known[still], guesses.rows(still)
                self.passes.keep(still)
                drafts = None if drafts is None else drafts.rows(still)

    def _speculative_round(
        self, active: Tensor, guesses: Guesses, known: Tensor, width: int, acceptance: Acceptance
    ) -> Tensor:
        # the next target from the joint and guesses at those behind it; then these are verified
        one = torch.ones_like(known)
        table, at = self.passes.chain.between(known, one)
        more, guessed = guesses.after(known, torch.zeros_like(known), width - 1)
        states = self._run(active, torch.cat([table, more], dim=1), known)
        at = torch.cat([at, torch.where(guessed[:, 0] < 0, -1, guessed[:, 0] + table.shape[1])], dim=1)
        logits = self._spread(states, at)  # (B, width, V)
        first = logits[:, :1]
        law = self._law(first)
        self._decide(active, known, self._draw(law), first, law, one)
        known = known + 1
        left = guesses.count - known
        if width == 1:
            acceptance.add(0, 0)
            return known
        drafts = self._draft(active, known, logits[:, 1:], torch.minimum(left, torch.full_like(left, width - 1)))
        table, at = self.passes.chain.between(known, torch.minimum(drafts.count + 1, left))
        verified = self._spread(self._run(active, table, known), at)
        return self._verify(active, known, drafts, verified, acceptance)

    def _fused_round(
        self,
        active: Tensor,
        guesses: Guesses,
        known: Tensor,
        drafts: "_Drafts | None",
        width: int,
        acceptance: Acceptance,
    ) -> "tuple[Tensor, _Drafts | None]":
        drafted = torch.zeros_like(known) if drafts is None else drafts.count
        verifying, at = self.passes.chain.between(known, torch.minimum(drafted + 1, guesses.count - known))
        guessing, following = guesses.after(known, drafted, width)
        states = self._run(active, torch.cat([verifying, guessing], dim=1), known)
        following = torch.where(following < 0, -1, following + verifying.shape[1])
        # few rows cost the head what one costs: all of them at once, though most guesses will not be needed
        is_few = at.numel() + following.numel() <= FEW_ROWS
        logits = self._spread(states, torch.cat([at, following.flatten(1)], dim=1) if is_few else at)
        verified = logits[:, : at.shape[1]]
        if drafts is None:
            nothing = torch.zeros(len(active), 0, dtype=torch.long, device=self.device)
            drafts = _Drafts(nothing, torch.zeros_like(verified[:, :0]), drafted)
        after = self._verify(active, known, drafts.first(verified.shape[1] - 1), verified, acceptance)
        if width == 0:
            return after, None
        # the guesses behind the stop that was made; those behind the others are never drawn from
        rows, stop = torch.arange(len(active)), (after - known - 1).clamp(max=following.shape[1] - 1)
        if is_few:
            guessed = logits[:, at.shape[1] :].view(*following.shape, -1)[self._there(rows), self._there(stop)]
        else:
            guessed = self._spread(states, following[rows, stop])
        count = torch.minimum(torch.full_like(after, width), guesses.count - after)
        return after, self._draft(active, after, guessed, count)

    def _verify(
        self, active: Tensor, known: Tensor, drafts: "_Drafts", verified: Tensor, acceptance: Acceptance
    ) -> Tensor:
        after, kept = self._accept(active, known, drafts, verified)
        # and one more was judged in each row that did not keep all
        acceptance.add(int(kept.sum()), int(torch.minimum(kept + 1, drafts.count).sum()))
        return after

    def _draft(self, active: Tensor, known: Tensor, logits: Tensor, count: Tensor) -> "_Drafts":
        # a token for each of the first `count` targets after the known ones, each by itself; logits: (B, W, V)
        law = self._law(logits)
        tokens = self._draw(law)
        places, chosen = self._places(active, known, count, tokens.shape[1])
        self.tokens[places] = tokens[chosen]
        return _Drafts(tokens, law, count)

    def _accept(self, active: Tensor, known: Tensor, drafts: "_Drafts", logits: Tensor) -> tuple[Tensor, Tensor]:
        # keep the drafts that agree with the joint, whose logits these are, and draw the target after them from it;
        # -> how many targets are known now, and how many drafts were kept, long (B,) each. With a column more than
        # drafts, a target is drawn behind them where all are kept, unless none is left
        wanted = self._law(logits)
        agreeing = self._count_agreeing(drafts, wanted)
        more = wanted.shape[1] - drafts.tokens.shape[1]
        left = torch.minimum(drafts.count + more, self.count[active] - known)
        kept = torch.minimum(agreeing, left)
        tokens = pad(drafts.tokens, (0, more)).clone()
        stopping = (kept < left).nonzero().squeeze(1)
        rows, column = self._there(stopping), self._there(kept[stopping])
        excess = wanted[rows, column]
        # behind a row's last draft there is no law to subtract
        judged = (kept < drafts.count)[stopping].nonzero().squeeze(1)
        if len(judged):
            judged = self._there(judged)
            rest = (excess[judged] - drafts.law[rows[judged], column[judged]]).clamp_(min=0)
            # equal laws never reject; rounding may
            excess[judged] = torch.where(rest.sum(1, keepdim=True) > 0, rest, excess[judged])
        tokens[rows, column] = self._draw(excess)
        decided = torch.minimum(kept + 1, left)
        self._decide(active, known, tokens, logits, wanted, decided)
        return known + decided, kept

    def _count_agreeing(self, drafts: "_Drafts", wanted: Tensor) -> Tensor:
        # how many of the first drafts are kept, long (B,) on the CPU
        tokens = drafts.tokens[..., None]
        q = drafts.law.gather(2, tokens).squeeze(2)
        p = wanted[:, : tokens.shape[1]].gather(2, tokens).squeeze(2)
        luck = torch.rand(q.shape, generator=self.generator, device=self.device, dtype=q.dtype)
        is_kept = (luck * q < p) & self._there(torch.arange(tokens.shape[1]) < drafts.count[:, None])
        return is_kept.long().cumprod(1).sum(1).cpu()

    # the network, and what is drawn from it

    def _there(self, index: Tensor) -> Tensor:
        # on the network's device, where alone it is read: the host need not wait for it
        return index.to(self.device, non_blocking=True)

    def _run(self, active: Tensor, table: Tensor, known: Tensor) -> Tensor:
        tokens = self.tokens if len(active) == len(self.tokens) else self.tokens[self._there(active)]
        return self.passes.run(tokens, table, known)

    def _logits(self, states: Tensor, rows: Tensor, at: Tensor) -> Tensor:
        if not rows.numel():
            # which a quantised head may not take
            return accurate(states.new_zeros(*at.shape, self.model.config.vocab_size))
        return accurate(self.model.head_logits(states[self._there(rows), self._there(at)]))

    def _spread(self, states: Tensor, at: Tensor) -> Tensor:
        # logits at slots `at`, long (B, W), with zeros where it is -1: (B, W, V)
        is_there = at >= 0
        if bool(is_there.all()):
            return self._logits(states, torch.arange(at.shape[0])[:, None].expand(at.shape), at)
        rows, columns = is_there.nonzero(as_tuple=True)
        logits = self._logits(states, rows, at[rows, columns])
        spread = logits.new_zeros(*at.shape, logits.shape[-1])
        spread[self._there(rows), self._there(columns)] = logits
        return spread

    def _law(self, logits: Tensor) -> Tensor:
        # what is drawn from: probabilities (..., V), not finite where the logits have none
        if self.temperature == 0:
            token = logits.argmax(-1, keepdim=True)
            highest = logits.gather(-1, token)
            # 1, or nan where the highest is not finite
            return torch.zeros_like(logits).scatter(-1, token, highest - highest + 1)
        return (logits if self.temperature == 1 else logits / self.temperature).softmax(-1)

    def _draw(self, weights: Tensor) -> Tensor:
        # (..., V) -> (...)
        if not weights.numel():
            return torch.zeros(weights.shape[:-1], dtype=torch.long, device=self.device)
        if self.device.type != "cpu":
            return self._multinomial(weights)
        # one random number a draw where multinomial takes one for each token of the vocabulary
        summed = weights.cumsum(-1, dtype=torch.float64)
        if not bool(summed[..., -1].isfinite().all()):
            raise ValueError(_NOT_FINITE)
        luck = torch.rand(*weights.shape[:-1], 1, generator=self.generator, dtype=torch.float64)
        # a token is drawn where its sum is the first above: one of no weight never is
        found = torch.searchsorted(summed, luck * summed[..., -1:], right=True)
        return found.squeeze(-1).clamp(max=weights.shape[-1] - 1)

    def _multinomial(self, weights: Tensor) -> Tensor:
        # (..., V) -> (...); torch looks at the weights by itself
        try:
            flat = torch.multinomial(weights.flatten(0, -2), 1, generator=self.generator)
        except RuntimeError:
            if bool(weights.isfinite().all()):
                raise
            raise ValueError(_NOT_FINITE) from None
        return flat.view(weights.shape[:-1])

    def _decide(
        self, active: Tensor, known: Tensor, values: Tensor, logits: Tensor, law: Tensor, count: Tensor
    ) -> None:
        # the first `count` of `values` (B, W) are drawn for good; from `logits`, whose `law` this is
        places, chosen = self._places(active, known, count, values.shape[1])
        self.tokens[places] = values[chosen]
        drawn = values[..., None]
        if self.temperature == 1:
            # nothing of no weight is drawn
            nats = law.gather(2, drawn).squeeze(2).log()
        else:
            nats = (logits.gather(2, drawn) - logits.logsumexp(2, keepdim=True)).squeeze(2)
        self.log_probs[places] = nats[chosen]

    def _places(
        self, active: Tensor, known: Tensor, count: Tensor, width: int
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        # where in the texts the first `count` targets after the known ones stand, and where in a table (B, width)
        rows, columns = (torch.arange(width) < count[:, None]).nonzero(as_tuple=True)
        positions = self.positions[active[rows], known[rows] + 1 + columns]
        index = self._there(torch.stack([active[rows], positions, rows, columns]))
        return (index[0], index[1]), (index[2], index[3])


@dataclass(frozen=True)
class _Drafts:
    # tokens (B, W), the laws they were drawn from (B, W, V), how many of them there are (B,), on the CPU
    tokens: Tensor
    law: Tensor
    count: Tensor

    def rows(self, index: Tensor) -> "_Drafts":
        there = index.to(self.tokens.device, non_blocking=True)
        return _Drafts(self.tokens[there], self.law[there], self.count[index])

    def first(self, columns: int) -> "_Drafts":
        return _Drafts(self.tokens[:, :columns], self.law[:, :columns], self.count.clamp(max=columns))
