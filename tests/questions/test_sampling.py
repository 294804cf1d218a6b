"""Samples have the law that log_prob scores, however many targets a pass settles."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from arbprob_hf import ArbProbModel, Conditional
from arbprob_hf.model.questions.draft_windows import Acceptance, Window, choose_window
from arbprob_hf.model.questions.sampling import Sampler
from tests.questions.worlds import CHAINED, network, questions

METHODS = {"two_stream": ["sequential", "speculative", "fused", "auto"], "prefix": ["sequential", "speculative"]}
METHODS["sigma"] = METHODS["prefix"]
WAYS = [(layout, method) for layout in CHAINED for method in METHODS[layout]]
LENGTH = 5


def tokens(batch: int, length: int = LENGTH, vocabulary: int = 4) -> Tensor:
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("layout", "method"), WAYS)
def test_samples_have_the_log_probabilities_that_one_pass_scores(layout: str, method: str) -> None:
    model = network(layout)
    for number, ask in enumerate(questions(layout, LENGTH)):
        if number % 7 == 0:
            found = model.sample(tokens(4), ask, method=method)
            scored = model.log_prob(found.sequences, ask)
            torch.testing.assert_close(found.log_probs, scored, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("layout", "method"), WAYS)
def test_passes_never_exceed_targets_and_given_tokens_stay(layout: str, method: str) -> None:
    model = network(layout)
    for number, ask in enumerate(questions(layout, LENGTH)):
        if number % 7 == 1:
            ids = tokens(4)
            found = model.sample(ids, ask, method=method)
            assert found.forward_passes <= len(ask.target)
            kept = [i for i in range(LENGTH) if i not in ask.target]
            assert torch.equal(found.sequences[:, kept], ids[:, kept])


def joint(model: Any, ids: Tensor, ask: Conditional, vocabulary: int) -> Tensor:
    """The enumerated joint of the targets, (V,) * E flattened."""
    combinations = torch.tensor(list(itertools.product(range(vocabulary), repeat=len(ask.target))))
    rows = ids.repeat(len(combinations), 1)
    rows[:, sorted(ask.target)] = combinations
    return model.log_prob(rows, ask).sum(-1).exp()


def empirical(sequences: Tensor, target: list[int], vocabulary: int) -> Tensor:
    number = torch.zeros(len(sequences), dtype=torch.long)
    for position in sorted(target):
        number = number * vocabulary + sequences[:, position]
    return torch.bincount(number, minlength=vocabulary ** len(target)).double() / len(sequences)


def floor(law: Tensor, count: int) -> float:
    """Expected total variation between a law and `count` samples of it, each cell near normal."""
    return float((law * (1 - law) / count).sqrt().sum()) * math.sqrt(2 / math.pi) / 2


# the fewer cells the joint has, the fewer samples tell laws apart that are as far from each other
COUNT, PARTS, FEW = 64_000, 2, 3
ASK = dict(given=[0, 3], target=[1, 2, 4, 5], order=[4, 1, 5, 2])


def drawn(model: Any, method: str, ask: Conditional, *, width: int = 2) -> tuple[Tensor, Tensor]:
    ids = tokens(1, 6, FEW)
    generator = torch.Generator().manual_seed(7)
    rows = ids.expand(COUNT // PARTS, -1)
    sequences = [
        model.sample(rows, ask, method=method, width=width, generator=generator).sequences for _ in range(PARTS)
    ]
    with torch.no_grad():
        return empirical(torch.cat(sequences), ask.target, FEW), joint(model, ids, ask, FEW)


def law_model(layout: str) -> Any:
    return network(layout, vocabulary=FEW, n_layer=1, n_embd=8, initializer_range=0.3, dtype=torch.float32)


@pytest.mark.long
@pytest.mark.parametrize(("layout", "method"), WAYS)
def test_samples_have_the_law_of_the_enumerated_joint(layout: str, method: str) -> None:
    order = ASK["order"] if layout != "prefix" else "temporal"
    seen, law = drawn(law_model(layout), method, Conditional(**{**ASK, "order": order}))
    assert float((seen - law).abs().sum()) / 2 <= 1.3 * floor(law, COUNT)


def draw_from_what_was_wanted(self: Sampler, active: Any, known: Any, drafts: Any, logits: Any) -> Any:
    # the bug of samplers that forget what the rejected draft already said: p in place of (p - q)+
    agreeing = self._count_agreeing(drafts, self._law(logits))
    with mock.patch.object(Sampler, "_count_agreeing", return_value=agreeing):
        return ACCEPT(self, active, known, replace(drafts, law=torch.zeros_like(drafts.law)), logits)


ACCEPT = Sampler._accept


@pytest.mark.long
@pytest.mark.parametrize("method", ["speculative", "fused"])
def test_a_sampler_that_does_not_resample_the_residual_fails(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sampler, "_accept", draw_from_what_was_wanted)
    seen, law = drawn(law_model("two_stream"), method, Conditional(**ASK))
    assert float((seen - law).abs().sum()) / 2 > 1.3 * floor(law, COUNT)


@pytest.mark.parametrize("method", ["speculative", "fused"])
def test_rows_of_a_batch_accept_different_counts(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, accept = [], Sampler._count_agreeing
    monkeypatch.setattr(Sampler, "_count_agreeing", lambda self, *a: counts.append(accept(self, *a)) or counts[-1])
    network("two_stream").sample(tokens(50, 8), Conditional([0]), method=method)
    assert max(len(set(one.tolist())) for one in counts) > 1


@pytest.mark.parametrize("method", METHODS["two_stream"])
def test_rows_may_ask_for_different_numbers_of_targets(method: str) -> None:
    model, ids = network("two_stream"), tokens(3, 8)
    ask = Conditional([[0, 1, 2, 3, 4, 5], [0], [0, 7]], [[6], [1, 2, 3, 4, 5, 6, 7], [2, 4, 5]])
    found = model.sample(ids, ask, method=method)
    torch.testing.assert_close(found.log_probs, model.log_prob(found.sequences, ask), atol=1e-10, rtol=0)
    assert found.forward_passes <= 7


@pytest.mark.parametrize("method", METHODS["two_stream"])
def test_temperature_zero_takes_the_likeliest_token_each_time(method: str) -> None:
    model, ids = network("two_stream"), tokens(5, 7)
    ask = Conditional([0, 3], order=[6, 1, 2, 5, 4])
    found = model.sample(ids, ask, method=method, temperature=0).sequences
    greedy = ids.clone()
    for number, position in enumerate(ask.order):
        step = Conditional([0, 3], ask.order[: number + 1], ask.order[: number + 1])
        scores = []
        for token in range(4):
            greedy[:, position] = token
            scores.append(model.log_prob(greedy, step)[:, position])
        greedy[:, position] = torch.stack(scores).argmax(0)
    assert torch.equal(found, greedy)


def test_sequential_draws_as_multinomial_does_one_target_after_the_other() -> None:
    """So that samples of a seed stay what they were."""
    model, ids, ask = network("two_stream"), tokens(5, 7), Conditional([0, 3], order=[6, 1, 2, 5, 4])
    found = model.sample(ids, ask, generator=torch.Generator().manual_seed(9)).sequences
    drawn, generator = ids.clone(), torch.Generator().manual_seed(9)
    for number, position in enumerate(ask.order):
        step = Conditional([0, 3], ask.order[: number + 1], ask.order[: number + 1])
        scores = []
        for token in range(4):
            drawn[:, position] = token
            scores.append(model.log_prob(drawn, step)[:, position])
        drawn[:, position] = torch.multinomial(torch.stack(scores, 1).exp(), 1, generator=generator).squeeze(1)
    assert torch.equal(found, drawn)


@pytest.mark.parametrize("method", METHODS["two_stream"])
def test_whoever_hooks_the_network_sees_every_pass_and_changes_no_sample(method: str) -> None:
    model, ids, seen = network("two_stream"), tokens(3, 12), []
    ask = Conditional([0, 5], order="random")
    draw = lambda: model.sample(ids, ask, method=method, generator=torch.Generator().manual_seed(3))  # noqa: E731
    without = draw()
    hook = model.transformer.register_forward_hook(lambda *_: seen.append(1))
    found = draw()
    hook.remove()
    assert len(seen) == found.forward_passes == without.forward_passes
    assert torch.equal(found.sequences, without.sequences)
    torch.testing.assert_close(found.log_probs, without.log_probs, atol=1e-10, rtol=0)


def test_a_token_of_no_weight_is_never_drawn() -> None:
    sampler = Sampler(network(), Conditional([0]).resolve(1, 2), "two_stream")
    sampler.device = torch.device("cpu")
    weights = torch.tensor([0.0, 1e-30, 0.0, 2e-30, 0.0]).repeat(2000, 1)
    counts = torch.bincount(sampler._draw(weights), minlength=5).tolist()
    assert counts[0] == counts[2] == counts[4] == 0
    assert 560 < counts[1] < 775  # a third of 2000, five standard deviations either way


def with_logits(change: Callable[[Tensor], Tensor], **options: Any) -> Any:
    """A network whose head returns other logits, (rows, V)."""
    model = network(**options)
    model.lm_head.register_forward_hook(lambda module, args, logits: change(logits))
    return model


def first_token(value: float) -> Callable[[Tensor], Tensor]:
    return lambda logits: torch.cat([torch.full_like(logits[..., :1], value), logits[..., 1:]], -1)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0])
@pytest.mark.parametrize("method", METHODS["two_stream"])
def test_nothing_is_drawn_from_logits_that_are_not_finite(method: str, temperature: float) -> None:
    changes = [first_token(math.nan), first_token(math.inf), lambda logits: torch.full_like(logits, -math.inf)]
    for change in changes:
        with pytest.raises(ValueError, match="^logits: expected finite ones, -inf for some tokens at most, got nan or"):
            with_logits(change).sample(tokens(3), Conditional([0]), method=method, temperature=temperature)


@pytest.mark.parametrize("method", METHODS["two_stream"])
def test_nor_where_the_temperature_makes_them_infinite(method: str) -> None:
    model = with_logits(lambda logits: logits * 1e33, dtype=torch.float32)
    with pytest.raises(ValueError, match="or the temperature is too small"):
        model.sample(tokens(3), Conditional([0]), method=method, temperature=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0])
@pytest.mark.parametrize("method", METHODS["two_stream"])
def test_a_token_may_be_forbidden_by_its_logit(method: str, temperature: float) -> None:
    model, ids = with_logits(first_token(-math.inf)), tokens(50)
    found = model.sample(ids, Conditional([0]), method=method, temperature=temperature)
    assert (found.sequences[:, 1:] > 0).all()
    torch.testing.assert_close(found.log_probs, model.log_prob(found.sequences, Conditional([0])), atol=1e-10, rtol=0)


class Halved:
    """A plan whose attention counts half."""

    def __init__(self, plan: Any) -> None:
        self.plan, self.path = plan, plan.path

    def attend(self, *args: Any, **options: Any) -> tuple[Tensor, Any]:
        out, weights = self.plan.attend(*args, **options)
        return out / 2, weights


class Planning(ArbProbModel):
    def _layer_plans(self, *args: Any) -> Any:
        return [Halved(plan) for plan in super()._layer_plans(*args)]


class Cooling(ArbProbModel):
    def forward(self, *args: Any, **options: Any) -> Any:
        outputs = super().forward(*args, **options)
        outputs.last_hidden_state = outputs.last_hidden_state / 2
        return outputs

    # as that of a class of the same name has it
    forward.__qualname__ = ArbProbModel.forward.__qualname__


@pytest.mark.parametrize("kind", [Planning, Cooling])
@pytest.mark.parametrize("method", METHODS["two_stream"])
def test_a_derived_network_samples_what_it_scores(method: str, kind: type) -> None:
    model, ids = network("two_stream"), tokens(4)
    plain = model.log_prob(ids, Conditional([0]))
    model.transformer.__class__ = kind
    assert not torch.allclose(model.log_prob(ids, Conditional([0])), plain)
    found = model.sample(ids, Conditional([0]), method=method)
    torch.testing.assert_close(found.log_probs, model.log_prob(found.sequences, Conditional([0])), atol=1e-10, rtol=0)


class MasksOverStates(TorchDispatchMode):
    """Notes where a mask picks from floats, which lie on the device: it would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found = list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [one for one in args[1] if one is not None and one.dtype == torch.bool]
            self.found += [str(func)] * (args[0].is_floating_point() and len(masks))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", METHODS["two_stream"])
def test_no_mask_picks_from_logits(method: str) -> None:
    model, ids = network("two_stream"), tokens(3, 8)
    ask = Conditional([[0, 1, 2, 3, 4, 5], [0], [0, 7]], [[6], [1, 2, 3, 4, 5, 6, 7], [2, 4, 5]])
    with MasksOverStates() as masks:
        model.sample(ids, ask, method=method)
    assert masks.found == []


def test_few_kept_drafts_make_few_and_many_make_many() -> None:
    none, all_of_them = Acceptance(), Acceptance()
    for _ in range(20):
        none.add(0, 8)
        all_of_them.add(8, 8)
    options = dict(width=8, left=100)
    assert choose_window(none, "fused", **options) == Window(True, 0)
    assert choose_window(none, "speculative", **options) == Window(False, 1)
    assert choose_window(all_of_them, "fused", **options).width == 8
    assert choose_window(all_of_them, "speculative", **options).width > 16
    # what was learned fades: drafts are tried again
    for _ in range(40):
        none.add(0, 0)
    assert choose_window(none, "auto", **options).width > 0


def test_a_generator_makes_samples_repeatable() -> None:
    model, ids = network("two_stream"), tokens(20)
    one, two = (model.sample(ids, Conditional([0]), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.sequences, two.sequences)
    assert not torch.equal(one.sequences, model.sample(ids, Conditional([0])).sequences)


def test_what_stands_at_the_targets_has_no_influence() -> None:
    model, ids = network("two_stream"), tokens(20)
    blank = ids.clone()
    blank[:, 1:] = -1
    one, two = (
        model.sample(x, Conditional([0]), generator=torch.Generator().manual_seed(3)).sequences for x in (ids, blank)
    )
    assert torch.equal(one[:, 1:], two[:, 1:])


def indifferent() -> Any:
    """A network that ignores its context drafts from the joint itself: every draft is kept."""
    model = network("two_stream")
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_proj.weight.zero_()
            block.mlp.c_proj.weight.zero_()
        model.transformer.wte.weight.zero_()
        model.transformer.wme.weight.zero_()
    return model


@pytest.mark.parametrize(("method", "counts"), [("speculative", (7, 7)), ("fused", (6, 6))])
def test_no_draft_that_is_kept_counts_as_rejected(method: str, counts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the end of a row either; of eight targets one is drawn first, and fused draws the last one."""
    noted = list[tuple[int, int]]()
    monkeypatch.setattr(Acceptance, "add", lambda self, kept, judged: noted.append((kept, judged)))
    indifferent().sample(tokens(1, 9), Conditional([0]), method=method)
    assert [sum(counts) for counts in zip(*noted, strict=True)] == list(counts)
    noted.clear()
    # a row that ends beside one that goes on keeps as many
    indifferent().sample(tokens(2, 12), Conditional([0], [[*range(1, 9)], [*range(1, 12)]]), method=method)
    assert all(kept == judged for kept, judged in noted)


def test_drafts_that_agree_save_passes() -> None:
    model, ids = indifferent(), tokens(10, 16)
    assert model.sample(ids, Conditional([0]), method="speculative").forward_passes == 2
    assert model.sample(ids, Conditional([0]), method="fused", width=15).forward_passes == 2
    assert model.sample(ids, Conditional([0]), method="sequential").forward_passes == 15


def test_more_drafts_than_targets_cost_nothing() -> None:
    model, ids = network("two_stream"), tokens(2, 8)
    found = model.sample(ids, Conditional([0], [3, 4, 5]), method="fused", width=10**9)
    assert found.forward_passes <= 3
