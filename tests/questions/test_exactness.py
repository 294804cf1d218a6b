"""What a network answers is exact: GPT-2's numbers, a joint that sums to one, and the product of single steps."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from arbprob_hf import ArbProbForCausalLM, Conditional
from arbprob_hf.model.questions import mixin
from tests.questions.worlds import CHAINED, SEES, fillings, network, orders, questions, subset_pairs

LENGTH, VOCABULARY = 5, 3
EXACT = dict(atol=1e-10, rtol=0)


def tokens(batch: int, length: int = LENGTH, vocabulary: int = VOCABULARY, *, seed: int = 0) -> Tensor:
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT2LMHeadModel, str]:
    """transformers' GPT-2 with random weights, and the folder it is saved in, in float64."""
    torch.manual_seed(0)
    sizes = dict(n_layer=3, n_head=2, n_embd=16, n_positions=16, vocab_size=11, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.5)).double().eval()
    folder = str(tmp_path_factory.mktemp("gpt2"))
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("sees", SEES)
def test_from_the_start_left_to_right_the_answers_are_gpt2s(theirs: Any, sees: str, backend: str) -> None:
    model, folder = theirs
    ours = ArbProbForCausalLM.from_pretrained(folder, attn_implementation=backend, dtype=torch.float64)
    ids = tokens(3, 12, 11)
    nats = model(ids).logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    answers = ours.log_prob(ids, Conditional([0], given_sees=sees))
    torch.testing.assert_close(answers[:, 1:], nats, **EXACT)


def test_a_prompt_is_read_as_gpt2_reads_it_unless_the_configuration_says_otherwise(theirs: Any) -> None:
    model, folder = theirs
    ours = ArbProbForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids = tokens(2, 12, 11)
    nats = model(ids).logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    torch.testing.assert_close(ours.log_prob(ids, Conditional(range(7)))[:, 7:], nats[:, 6:], **EXACT)


def test_new_vectors_of_official_weights_are_zero_and_change_nothing(theirs: Any) -> None:
    model, folder = theirs
    added = dict(mask_token=True, layout="sigma", target_positions=True)
    ours = ArbProbForCausalLM.from_pretrained(folder, dtype=torch.float64, **added)
    assert not ours.transformer.wme.weight.any()
    assert not ours.transformer.wtpe.weight.any()
    ids = tokens(2, 12, 11)
    torch.testing.assert_close(ours(ids).logits.double(), model(ids).logits, **EXACT)


@pytest.mark.parametrize("layout", CHAINED)
def test_probabilities_of_all_fillings_sum_to_one(layout: str) -> None:
    model = network(layout, vocabulary=VOCABULARY)
    ids = tokens(1)
    for ask in questions(layout, LENGTH):
        joint = model.log_prob(fillings(ids, ask.target, VOCABULARY), ask).sum(-1)
        torch.testing.assert_close(joint.logsumexp(0).exp(), torch.ones((), dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("layout", [*CHAINED, "masked"])
def test_unseen_tokens_change_nothing_not_even_a_bit(layout: str) -> None:
    model = network(layout, dtype=torch.float32, n_layer=3)
    for given, target in subset_pairs(LENGTH):
        if layout == "masked":
            target = target[:1]
        ids = tokens(1)
        other = (ids + 1) % VOCABULARY
        other[:, given + target] = ids[:, given + target]
        ask = Conditional(given, target)
        assert torch.equal(model.log_prob(ids, ask), model.log_prob(other, ask))
        assert torch.equal(model.marginals(ids, ask), model.marginals(other, ask))


@pytest.mark.parametrize("layout", [*CHAINED, "masked"])
def test_marginals_need_no_tokens_at_the_targets(layout: str) -> None:
    model, ask, ids = network(layout), Conditional([0, 3], [2, 4]), tokens(1)
    missing = ids.clone()
    missing[:, [2, 4]] = -1
    assert torch.equal(model.marginals(missing, ask), model.marginals(ids, ask))


@pytest.mark.parametrize("layers", [2, 3, 4])
@pytest.mark.parametrize("layout", CHAINED)
def test_targets_asked_later_change_nothing_not_even_a_bit(layout: str, layers: int) -> None:
    model = network(layout, dtype=torch.float32, n_layer=layers)
    for given, target in subset_pairs(LENGTH):
        for order in orders(layout, target):
            asked = target if order == "temporal" else order
            ask = Conditional(given, target, order)
            # row by row, the targets from the first, the second, ... on are others
            ids = tokens(1).repeat(len(asked), 1)
            changed = ids.clone()
            for number, position in enumerate(asked):
                changed[number, asked[number:]] = (changed[number, asked[number:]] + 1) % VOCABULARY
                # its own token decides which probability is read: all are looked at
                changed[number, position] = ids[number, position]
            before, after = model.log_prob(ids, ask), model.log_prob(changed, ask)
            for number in range(len(asked)):
                assert torch.equal(before[number, asked[: number + 1]], after[number, asked[: number + 1]])


def step_by_step(model: Any, ids: Tensor, ask: Conditional) -> Tensor:
    """The chain rule one target at a time, each in a pass of its own over dense masks, written from the design's words.

    Content slots of what is known: given tokens see one another (or the earlier ones), a target sees what was known
    before it. Target i is read from the slot of i - 1 if that sees all that is known, else from a query beside it.
    """
    question = ask.resolve(*ids.shape, given_sees="all")
    answers = torch.zeros(ids.shape, dtype=torch.float64)
    (row,) = ids.tolist()
    given = question.given[0].nonzero().squeeze(1).tolist()
    asked = sorted(question.target[0].nonzero().squeeze(1).tolist(), key=lambda i: int(question.step[0, i]))
    for number, position in enumerate(asked):
        known = given + asked[:number]
        sees = {}
        for i in known:
            if i in given:
                sees[i] = [k for k in given if question.given_sees == "all" or k <= i]
            else:
                sees[i] = given + asked[: asked.index(i) + 1]
        slots = [(i, row[i], [known.index(k) for k in sees[i]]) for i in known]
        before = position - 1
        if before in known and set(sees[before]) == set(known):
            reader = known.index(before)
        else:
            reader = len(slots)
            token = row[before] if before in known else None
            slots.append((before, token, [*range(len(known)), reader]))
        mask = torch.zeros(1, len(slots), len(slots), dtype=torch.bool)
        for q, (_, _, keys) in enumerate(slots):
            mask[0, q, keys] = True
        unknown = model.transformer.wme.weight[0]
        embeds = torch.stack([unknown if t is None else model.transformer.wte.weight[t] for _, t, _ in slots])[None]
        places = torch.tensor([[place for place, _, _ in slots]])
        logits = model(inputs_embeds=embeds, position_ids=places, attention_mask=mask).logits
        answers[0, position] = logits[0, reader].log_softmax(-1)[row[position]]
    return answers


def test_one_pass_of_two_stream_equals_one_pass_a_target() -> None:
    model = network("two_stream")
    ids = tokens(1)
    for ask in questions("two_stream", LENGTH):
        torch.testing.assert_close(model.log_prob(ids, ask), step_by_step(model, ids, ask), **EXACT)


@pytest.mark.parametrize("layout", CHAINED)
def test_the_first_target_has_its_marginal(layout: str) -> None:
    model, ids = network(layout), tokens(1)
    for ask in questions(layout, LENGTH):
        question = ask.resolve(1, LENGTH)
        first = int((question.step == 1).long().argmax())
        joint = model.log_prob(ids, ask)[0, first]
        torch.testing.assert_close(model.marginals(ids, ask)[0, first, ids[0, first]], joint, **EXACT)


@pytest.mark.parametrize("layout", [*CHAINED, "masked"])
def test_every_marginal_is_that_of_its_target_asked_alone(layout: str) -> None:
    model, ids = network(layout), tokens(1)
    for given, target in subset_pairs(LENGTH):
        together = model.marginals(ids, Conditional(given, target))
        for position in target:
            alone = model.marginals(ids, Conditional(given, [position]))
            torch.testing.assert_close(together[:, position], alone[:, position], **EXACT)


@pytest.mark.parametrize("layout", [*CHAINED, "masked"])
def test_marginals_are_distributions_at_the_targets_and_zero_elsewhere(layout: str) -> None:
    model, ids = network(layout), tokens(2)
    found = model.marginals(ids, Conditional([0, 3], [2, 4]))
    assert found.shape == (2, LENGTH, 4)
    torch.testing.assert_close(found[:, [2, 4]].logsumexp(-1), torch.zeros(2, 2, dtype=torch.float64), **EXACT)
    assert not found[:, [0, 1, 3]].any()


def chain_error(layout: str, given: list[int], first: list[int], second: list[int]) -> float:
    """How far log P(first) + log P(second | first) is from log P(first, then second), in nats."""
    model, ids = network(layout), tokens(2, 8)
    both = sorted(first + second) if layout == "prefix" else [*first, *second]
    one = model.log_prob(ids, Conditional(given, first, first, "earlier")).sum(-1)
    two = model.log_prob(ids, Conditional(given + first, second, second, "earlier")).sum(-1)
    joint = model.log_prob(ids, Conditional(given, both, both, "earlier")).sum(-1)
    return (one + two - joint).abs().max().item()


def test_two_stream_answers_chains_exactly_where_given_tokens_see_only_earlier_ones() -> None:
    assert chain_error("two_stream", [0], [1, 2, 4], [3, 6]) < 1e-10
    assert chain_error("two_stream", [0, 2], [3, 7], [6, 1]) < 1e-10


@pytest.mark.parametrize(
    ("layout", "given", "first"),
    [("two_stream", [0, 7], [5]), ("two_stream", [0], [5, 4]), ("prefix", [0], [1, 2]), ("sigma", [0], [1, 2])],
)
def test_chains_are_not_exact_where_the_documentation_says_so(layout: str, given: list[int], first: list[int]) -> None:
    """A before something given, A asked backwards, and the other layouts."""
    assert chain_error(layout, given, first, [6]) > 1e-3


@pytest.mark.parametrize("layout", CHAINED)
def test_rows_of_a_batch_are_answered_as_each_alone(layout: str) -> None:
    model, ids = network(layout), tokens(3)
    given, target = [[0], [0, 2], [0, 1, 4]], [[1, 2, 3, 4], [4], [2, 3]]
    together = model.log_prob(ids, Conditional(given, target))
    for row in range(3):
        alone = model.log_prob(ids[row : row + 1], Conditional(given[row], target[row]))
        torch.testing.assert_close(together[row : row + 1], alone, **EXACT)


@pytest.mark.parametrize("layout", CHAINED)
@pytest.mark.parametrize("sees", SEES)
def test_many_questions_in_one_pass_equal_one_pass_each(layout: str, sees: str) -> None:
    model, ids = network(layout), tokens(2, 7)
    asks = [
        Conditional([0, 1, 2], [4, 5], given_sees=sees),
        Conditional([0, 1, 2], [3, 4], given_sees=sees),
        Conditional([0, 1], [2, 6], given_sees=sees),
        Conditional([0, 1, 2, 5], [6], given_sees=sees),
        Conditional([[0, 1], [0, 6]], [[2, 3], [1]], given_sees=sees),
    ]
    together = model.log_prob(ids, asks)
    assert together.shape == (5, 2, 7)
    torch.testing.assert_close(together, torch.stack([model.log_prob(ids, ask) for ask in asks]), **EXACT)


def test_questions_that_see_differently_are_answered_together_too() -> None:
    model, ids = network("two_stream"), tokens(2, 7)
    asks = [Conditional([0, 1, 4], [5, 2], given_sees=SEES[number % 2]) for number in range(4)]
    asks[2:] = [Conditional([0], [number], given_sees=SEES[number % 2]) for number in (3, 6)]
    together = model.log_prob(ids, asks)
    torch.testing.assert_close(together, torch.stack([model.log_prob(ids, ask) for ask in asks]), **EXACT)


def test_many_questions_take_one_pass_of_the_head() -> None:
    model, ids, rows = network("two_stream"), tokens(2, 12), []
    hook = model.lm_head.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    model.log_prob(ids, [Conditional([0, 1], [i, 11]) for i in range(2, 10)])
    hook.remove()
    assert rows == [2 * 2 * 8]


def test_many_questions_take_one_pass_and_share_what_is_given() -> None:
    model, ids, seen = network("two_stream"), tokens(1, 12), []
    hook = model.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    given = list(range(8))
    model.log_prob(ids, [Conditional(given, [i]) for i in (8, 9, 10, 11)])
    hook.remove()
    # eight given tokens once, and a content slot for each target and a query for all but the first
    assert seen == [8 + 4 + 3]


def test_log_prob_is_differentiable() -> None:
    model, ids, ask = network("two_stream", vocabulary=VOCABULARY), tokens(2), Conditional([0, 3], [2])
    model.log_prob(ids, ask).sum().backward()
    weight = model.transformer.wme.weight
    assert float(weight.grad.abs().max()) > 0
    base, step = model.log_prob(ids, ask).sum().item(), 1e-6
    with torch.no_grad():
        weight[0, 2] += step
    moved = model.log_prob(ids, ask).sum().item()
    assert (moved - base) / step == pytest.approx(float(weight.grad[0, 2]), rel=1e-4)


def test_bfloat16_networks_answer_in_float32() -> None:
    ids, ask, model = tokens(4), Conditional([0, 3]), network("two_stream", dtype=torch.bfloat16)
    found = model.log_prob(ids, ask)
    assert found.dtype == torch.float32
    # a probability of bfloat16 logits, normalised in float32: they sum to one to seven digits, not to two
    rows = fillings(tokens(1), [2], 4)
    assert model.log_prob(rows, Conditional([0, 3], [2])).sum(-1).exp().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda m: m.log_prob(tokens(1), [0, 1]), TypeError, r"ask: expected a Conditional\(.*\), got int"),
        (lambda m: m.log_prob(tokens(1), []), ValueError, "ask: expected at least one question, got an empty list"),
        (lambda m: m.log_prob([0, 1], Conditional([0])), TypeError, "input_ids: expected a tensor of torch.int64"),
        (lambda m: m.log_prob(tokens(1).int(), Conditional([0])), TypeError, "input_ids: expected .* torch.int32"),
        (lambda m: m.log_prob(tokens(1).int(), Conditional([0])), TypeError, r"; convert with \.long\(\)$"),
        (lambda m: m.log_prob(tokens(1)[0], Conditional([0])), TypeError, r"; ids\[None\] is a batch of one text$"),
        (lambda m: m.log_prob([0, 1], Conditional([0])), TypeError, r"got list; torch\.tensor\(ids\)\[None\] makes"),
        (lambda m: m.log_prob(tokens(1, 17), Conditional([0])), ValueError, "at most n_positions=16 tokens, got 17"),
        (lambda m: m.log_prob(tokens(1) - 1, Conditional([0])), ValueError, "a token from 0 to 3 at position"),
        (lambda m: m.log_prob(tokens(1) + 9, Conditional([0])), ValueError, "input_ids: expected a token from 0 to 3"),
        (lambda m: m.sample(tokens(1), Conditional([0]), generator=3), TypeError, "generator: expected a torch"),
        (lambda m: m.log_prob(tokens(1), Conditional), TypeError, "ask: expected a Conditional"),
        (lambda m: m.log_prob(tokens(1), Conditional([0]), layout=["prefix"]), ValueError, "layout: expected one of"),
        (lambda m: m.marginals(tokens(1), m.ask([0], [1], "temporal", "earlier"), layout="masked"), ValueError, "giv"),
        (lambda m: m.log_prob(tokens(1), Conditional([0]), layout="sigma"), ValueError, "layout: sigma needs"),
        (lambda m: m.log_prob(tokens(1), Conditional([0]), layout="masked"), ValueError, "layout: masked has no joint"),
        (lambda m: m.log_prob(tokens(1), Conditional([0]), layout="gpt"), ValueError, "layout: expected one of"),
        (lambda m: m.sample(tokens(1), Conditional([0]), method="fast"), ValueError, "method: expected one of"),
        (lambda m: m.sample(tokens(1), Conditional([0]), layout="masked"), ValueError, "layout: masked has no joint"),
        (lambda m: m.sample(tokens(1), Conditional([0]), layout="prefix", method="fused"), ValueError, "fused needs"),
        (lambda m: m.sample(tokens(1), Conditional([0]), temperature=-1), ValueError, "temperature: expected 0, or"),
        (lambda m: m.sample(tokens(1), Conditional([0]), width=0), ValueError, "width: expected at least 1, got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_in_one_line(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        call(network("two_stream"))
    assert "\n" not in str(caught.value)


def test_answers_made_random_by_dropout_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(mixin.logger, "warning_once", said.append)
    model = network("two_stream")
    rates = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    model.config.update(dict.fromkeys(rates, 0.0))
    model.train().sample(tokens(1), Conditional([0]))
    model.config.resid_pdrop = 0.1
    model.eval().sample(tokens(1), Conditional([0]))
    assert said == []
    model.train().sample(tokens(1), Conditional([0]))
    assert said == ["in training mode dropout makes what the network answers random; call model.eval() first"]


def test_a_network_with_another_mask_refuses_questions() -> None:
    model = network("two_stream", mask="causal & window(2)")
    with pytest.raises(ValueError, match="config.mask: questions need a network whose mask is causal, this one's"):
        model.log_prob(tokens(1), Conditional([0]))


def test_questions_of_one_pass_may_differ_in_what_given_tokens_see() -> None:
    model, ids = network("two_stream"), tokens(2, 7)
    asks = [Conditional([0, 1, 4], [5], given_sees=sees) for sees in SEES]
    torch.testing.assert_close(
        model.log_prob(ids, asks), torch.stack([model.log_prob(ids, one) for one in asks]), **EXACT
    )


def test_a_random_order_follows_the_generator_and_is_told() -> None:
    model, ids = network("two_stream"), tokens(6, 8)
    ask = Conditional([0], order="random")
    one, two = (model.sample(ids, ask, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.order, two.order)
    assert torch.equal(one.sequences, two.sequences)
    scored = model.log_prob(one.sequences, Conditional([0], order=one.order))
    torch.testing.assert_close(scored, one.log_probs, **EXACT)
