"""Every conditional of every source is what its definition says, summed out by brute force."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from arbprob_hf.oracles.chains import ChainSource, HiddenMarkovSource, MarkovSource
from arbprob_hf.oracles.codes import ParityCheckSource
from arbprob_hf.oracles.registry import SOURCES, Source, load_source
from arbprob_hf.oracles.source import RowDraws, WeightedSource
from tests.oracles.joints import condition, look_up, spell_out

SMALL: list[tuple[str, dict[str, Any]]] = [
    ("markov", dict(length=4, vocabulary=3)),
    ("hmm", dict(length=4, vocabulary=3, states=2)),
    ("tree", dict(length=5, vocabulary=2)),
    ("ising", dict(height=2, width=2)),
    ("ising", dict(height=1, width=4)),
    ("pcfg", dict(length=4, vocabulary=3, nonterminals=3)),
    ("pcfg", dict(length=5, vocabulary=2, nonterminals=5)),
    ("ldpc", dict(length=5, checks=3, weight=2)),
]
LARGER: list[tuple[str, dict[str, Any]]] = [
    ("markov", dict(length=7, vocabulary=4)),
    ("hmm", dict(length=5, vocabulary=3, states=3)),
    ("tree", dict(length=8, vocabulary=3)),
    ("ising", dict(height=2, width=5)),
    ("ising", dict(height=5, width=2)),
    ("ising", dict(height=9, width=1)),
    ("ising", dict()),
    ("pcfg", dict(length=6, vocabulary=2, nonterminals=6)),
    ("ldpc", dict(length=14, checks=7, weight=3)),
]
# what is left to rounding
EXACT = dict(rtol=1e-10, atol=1e-10)


def label(value: object) -> str:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ask(source: Source, rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Samples and, of each, a random part that is given and a random other part that is asked for."""
    generator = draw(seed)
    x = source.sample(rows, generator)
    # all from few to many sites
    share = torch.rand(rows, 2, generator=generator).sort(-1).values
    place = torch.rand(x.shape, generator=generator)
    return x, place < share[:, :1], (place >= share[:, :1]) & (place < share[:, 1:])


def order(x: Tensor, seed: int = 0) -> Tensor:
    return torch.rand(x.shape, generator=draw(seed)).argsort(-1)


@pytest.mark.parametrize(("name", "sizes"), SMALL, ids=label)
def test_every_question_is_answered_as_the_joint_does(name: str, sizes: dict[str, Any]) -> None:
    source = load_source(name, seed=1, **sizes)
    sequences = torch.tensor(list(itertools.product(range(source.vocabulary), repeat=source.length)))
    parts = torch.tensor(list(itertools.product(range(3), repeat=source.length)))
    x = sequences.repeat_interleave(len(parts), dim=0)
    part = parts.repeat(len(sequences), 1)
    given, target = part == 1, part == 2
    expected = condition(spell_out(source), x, given, target)
    torch.testing.assert_close(source.log_prob(x, given, target), expected, **EXACT)


@pytest.mark.parametrize(("name", "sizes"), LARGER, ids=label)
def test_random_questions_are_answered_as_the_joint_does(name: str, sizes: dict[str, Any]) -> None:
    source = load_source(name, seed=2, **sizes)
    joint = spell_out(source)
    x, given, target = ask(source, 60)
    strange = torch.randint(source.vocabulary, x.shape, generator=draw(3))
    for tokens in (x, torch.where(given, x, strange), strange):
        expected = condition(joint, tokens, given, target)
        torch.testing.assert_close(source.log_prob(tokens, given, target), expected, **EXACT)
        torch.testing.assert_close(source.evidence(tokens, given), look_up(joint, tokens, given), **EXACT)


@pytest.mark.parametrize("name", SOURCES)
def test_the_joint_sums_to_one(name: str) -> None:
    source = load_source(name, **next(sizes for other, sizes in SMALL if other == name))
    sequences = torch.tensor(list(itertools.product(range(source.vocabulary), repeat=source.length)))
    nothing = torch.zeros_like(sequences, dtype=torch.bool)
    assert float(source.log_prob(sequences, nothing, ~nothing).exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", SOURCES)
def test_answers_over_all_values_of_two_targets_sum_to_one(name: str) -> None:
    source = load_source(name)
    x, given, _ = ask(source, 20)
    sites = order(x)[:, :2]
    values = torch.tensor(list(itertools.product(range(source.vocabulary), repeat=2)))
    target = torch.zeros_like(given).scatter(1, sites, True)
    given = given & ~target
    asked = torch.cat([x.scatter(1, sites, value.expand(20, 2)) for value in values])
    answers = source.log_prob(asked, given.repeat(len(values), 1), target.repeat(len(values), 1))
    total = answers.exp().view(len(values), 20).sum(0)  # (20,)
    torch.testing.assert_close(total, torch.ones(20, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("name", SOURCES)
def test_marginals_are_the_answers_about_single_sites(name: str) -> None:
    source = load_source(name)
    x, given, _ = ask(source, 12)
    marginals = source.marginals(x, given)
    assert (marginals.shape, marginals.dtype) == ((12, source.length, source.vocabulary), torch.float64)
    row, site = (~given).nonzero().unbind(-1)
    target = torch.zeros(len(row), source.length, dtype=torch.bool)
    target[torch.arange(len(row)), site] = True
    for value in range(source.vocabulary):
        asked = torch.where(target, value, x[row])
        answers = source.log_prob(asked, given[row], target)
        torch.testing.assert_close(marginals[row, site, value], answers, rtol=1e-9, atol=1e-9)
        certain = torch.where(x[given] == value, 0.0, -torch.inf).double()
        assert marginals[..., value][given].equal(certain)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_marginals_need_no_gradients_outside(mode: Any) -> None:
    source = load_source("tree", length=5)
    x, given, _ = ask(source, 4)
    with mode():
        inside = source.marginals(x, given)
    assert inside.equal(source.marginals(x, given))
    assert not source.marginals(x, given).requires_grad


@pytest.mark.parametrize(("name", "sizes"), SMALL, ids=label)
def test_samples_follow_the_joint(name: str, sizes: dict[str, Any]) -> None:
    source, batches, count = load_source(name, seed=4, **sizes), 20, 4000
    joint, generator, distance = spell_out(source), draw(0), 0.0
    for _ in range(batches):
        found = np.zeros_like(joint)
        np.add.at(found, tuple(source.sample(count, generator).T.numpy()), 1 / count)
        assert found[joint == 0].sum() == 0
        distance += np.abs(found - joint).sum() / 2 / batches
    # what the distance is on average for samples of the joint, from above; where a few sequences are most of it, the
    # distance of one batch says little
    floor = np.minimum(joint, np.sqrt(joint * (1 - joint) / (2 * math.pi * count))).sum()
    assert distance < 1.3 * floor


@pytest.mark.parametrize("name", SOURCES)
def test_pairs_of_tokens_are_sampled_as_often_as_they_should(name: str) -> None:
    source, count = load_source(name), 20_000
    x = source.sample(count, draw(0))
    assert (x.shape, x.dtype) == ((count, source.length), torch.long)
    values = torch.tensor(list(itertools.product(range(source.vocabulary), repeat=2)))
    for first, second in [(0, 1), (0, source.length - 1), (source.length // 2, source.length // 2 + 2)]:
        pairs = torch.zeros(len(values), source.length, dtype=torch.long)
        pairs[:, [first, second]] = values
        known = torch.zeros_like(pairs, dtype=torch.bool)
        known[:, [first, second]] = True
        expected = source.evidence(pairs, known).exp()
        seen = (x[:, [first, second]] == values[:, None]).all(-1).double().mean(-1)
        # six deviations, and a little for what is hardly ever seen
        assert ((seen - expected).abs() <= 6 * (expected / count).sqrt() + 6 / count).all()


@pytest.mark.parametrize("name", SOURCES)
def test_chains_are_the_answers_one_after_another(name: str) -> None:
    source = load_source(name)
    x, given, target = ask(source, 30)
    step = order(x)
    chain = source.chain_log_prob(x, given, target, step)
    torch.testing.assert_close(chain.sum(-1), source.log_prob(x, given, target), **EXACT)
    assert (chain[~target] == 0).all()
    for site in range(source.length):
        before = given | (target & (step < step[:, site, None]))
        alone = torch.zeros_like(target)
        alone[:, site] = target[:, site]
        answers = source.log_prob(x, before & ~alone, alone)
        torch.testing.assert_close(chain[:, site], answers, **EXACT)


def test_only_the_order_of_steps_counts() -> None:
    source = load_source("hmm")
    x, given, target = ask(source, 30)
    step = order(x)
    chain = source.chain_log_prob(x, given, target, step)
    # equal steps off the targets are as good as any
    other = torch.where(target, 10 * step - 77, 5)
    assert source.chain_log_prob(x, given, target, other).equal(chain)
    assert not source.chain_log_prob(x, given, target, -step).allclose(chain)


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_unknown_is_not_looked_at(name: str) -> None:
    source = load_source(name)
    x, given, target = ask(source, 30)
    noise = torch.randint(source.vocabulary, x.shape, generator=draw(5))
    other = torch.where(given | target, x, noise)
    assert not other.equal(x)
    assert source.log_prob(other, given, target).equal(source.log_prob(x, given, target))
    asked = source.marginals(torch.where(given, x, noise), given)
    assert asked.equal(source.marginals(x, given))


@pytest.mark.parametrize("name", SOURCES)
def test_the_other_rows_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = load_source(name)
    x, given, target = ask(source, 10)
    together, marginals = source.log_prob(x, given, target), source.marginals(x, given)
    monkeypatch.setattr(SOURCES[name], "rows_at_once", 3)
    torch.testing.assert_close(source.log_prob(x, given, target), together, **EXACT)
    torch.testing.assert_close(source.marginals(x, given), marginals, **EXACT)


def test_no_target_is_certain_and_no_row_no_answer() -> None:
    source = load_source("markov")
    x, given, target = ask(source, 5)
    nothing = torch.zeros_like(given)
    assert source.log_prob(x, given, nothing).tolist() == [0] * 5
    assert source.chain_log_prob(x, given, nothing, order(x)).equal(torch.zeros(5, 16, dtype=torch.float64))
    assert source.log_prob(x[:0], given[:0], target[:0]).shape == (0,)
    assert source.chain_log_prob(x[:0], given[:0], target[:0], order(x)[:0]).shape == (0, 16)
    assert source.marginals(x[:0], given[:0]).shape == (0, 16, 8)


def test_what_cannot_be_is_impossible_and_nothing_is_undefined() -> None:
    # tokens take turns, the first is 0
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    source = ChainSource(eye[0], swap.expand(3, 2, 2), eye)
    x, whole = torch.tensor([[0, 1, 0, 1], [0, 1, 1, 0]]), torch.ones(2, 4, dtype=torch.bool)
    assert source.sample(5, draw(0)).tolist() == [[0, 1, 0, 1]] * 5
    assert source.log_prob(x, ~whole, whole).tolist() == [0, -math.inf]
    step = torch.arange(4).expand(2, 4)
    assert source.chain_log_prob(x, ~whole, whole, step).tolist() == [[0] * 4, [0, 0, -math.inf, -math.inf]]
    third = torch.tensor([False, False, True, False]).expand(2, 4)
    marginals = source.marginals(x, third)
    assert marginals[0].argmax(-1).tolist() == [0, 1, 0, 1]
    assert marginals[0].amin(-1).tolist() == [-math.inf] * 4
    # the third cannot be 1, and then nothing else can be anything
    assert marginals[1].amax(-1).tolist() == [-math.inf, -math.inf, 0, -math.inf]
    last = torch.tensor([False, False, False, True]).expand(2, 4)
    assert source.log_prob(x, third, last).tolist() == [0, -math.inf]


@pytest.mark.parametrize("name", [name for name in SOURCES if issubclass(SOURCES[name], WeightedSource)])
def test_totals_are_sums_of_weighted_probabilities(name: str) -> None:
    source = load_source(name, **next(sizes for other, sizes in SMALL if other == name))
    assert isinstance(source, WeightedSource)
    weights = torch.rand(3, source.length, source.vocabulary, dtype=torch.float64, generator=draw(0))
    weights[1, :, 0], weights[2, 1] = 0, 0
    expected = [0.0, 0.0, 0.0]
    for tokens, probability in np.ndenumerate(spell_out(source)):
        for row in range(3):
            expected[row] += probability * math.prod(float(weights[row, i, v]) for i, v in enumerate(tokens))
    weights.requires_grad_()
    total = source.log_total(weights)
    torch.testing.assert_close(total.detach(), torch.tensor(expected, dtype=torch.float64).log(), **EXACT)
    (slopes,) = torch.autograd.grad(total.sum(), weights)
    assert slopes.isfinite().all()


def test_long_chains_do_not_run_out_of_numbers() -> None:
    chain = MarkovSource(length=3000)
    x = torch.randint(8, (1, 3000), generator=draw(0))
    whole = torch.ones(1, 3000, dtype=torch.bool)
    expected = chain.initial[x[0, 0]].log() + chain.transition[x[0, :-1], x[0, 1:]].log().sum()
    assert float(expected) < -3000
    torch.testing.assert_close(chain.evidence(x, whole)[0], expected, rtol=1e-12, atol=0)
    hidden = HiddenMarkovSource(length=300)
    forward = hidden.initial.log() + hidden.emission[:, x[0, 0]].log()
    for token in x[0, 1:300]:
        forward = (forward[:, None] + hidden.transition.log()).logsumexp(0) + hidden.emission[:, token].log()
    assert float(forward.logsumexp(0)) < -750
    torch.testing.assert_close(hidden.evidence(x[:, :300], whole[:, :300])[0], forward.logsumexp(0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", SOURCES)
def test_a_seed_makes_one_source(name: str) -> None:
    one, same, other = load_source(name, seed=3), load_source(name, seed=3), load_source(name, seed=4)
    x, given, target = ask(one, 50)
    assert one.log_prob(x, given, target).equal(same.log_prob(x, given, target))
    assert not one.log_prob(x, given, target).allclose(other.log_prob(x, given, target))
    assert one.sample(9, draw(1)).equal(same.sample(9, draw(1)))
    assert not one.sample(9, draw(1)).equal(one.sample(9, draw(2)))


@pytest.mark.parametrize("name", SOURCES)
def test_sites_tell_of_each_other(name: str) -> None:
    # a source whose sites are nearly independent measures nothing
    source = load_source(name)
    x, given, _ = ask(source, 500)
    nothing, site = torch.zeros_like(given), order(x)[:, 0]
    rest = torch.ones_like(given).scatter(1, site[:, None], False)
    alone = source.log_prob(x, nothing, ~rest).mean()
    informed = source.log_prob(x, rest, ~rest).mean()
    assert float(informed - alone) > 0.15


def rank(rows: list[list[int]]) -> int:
    """The rank over GF(2), by a basis of whole numbers."""
    basis: list[int] = []
    for row in rows:
        number = int("".join(map(str, row)), 2)
        for known in basis:
            number = min(number, number ^ known)
        basis += [number] if number else []
    return len(basis)


@pytest.mark.parametrize("sizes", [{}, dict(length=15, checks=10, weight=2), dict(length=24, checks=12)], ids=label)
def test_codewords_are_all_that_satisfy_the_checks(sizes: dict[str, int]) -> None:
    code = ParityCheckSource(seed=6, **sizes)
    assert (code.checks.sum(0) == sizes.get("weight", 3)).all()
    assert int(code.checks.sum(-1).max() - code.checks.sum(-1).min()) <= 1
    assert (code.codewords @ code.checks.T % 2 == 0).all()
    assert len(code.codewords.unique(dim=0)) == 2 ** (code.length - rank(code.checks.tolist())) == len(code.codewords)
    assert len(code.generator) <= 12


def test_determined_bits_are_those_that_checks_and_given_bits_span() -> None:
    code = ParityCheckSource()
    x, given, _ = ask(code, 40)
    expected = torch.zeros_like(given)
    for row in range(40):
        known = [[int(i == bit) for i in range(20)] for bit in given[row].nonzero().flatten().tolist()]
        rows = [*code.checks.tolist(), *known]
        for bit in (~given[row]).nonzero().flatten().tolist():
            expected[row, bit] = rank([*rows, [int(i == bit) for i in range(20)]]) == rank(rows)
    assert 50 < int(expected.sum()) < int((~given).sum()) - 50
    assert code.determined(x, given).equal(expected)
    marginals = code.marginals(x, given)[~given]
    assert set(marginals.flatten().tolist()) == {0.0, -math.inf, math.log(0.5)}


def test_given_bits_of_no_codeword_determine_nothing() -> None:
    code = ParityCheckSource()
    x, whole = code.sample(1, draw(0)), torch.ones(1, 20, dtype=torch.bool)
    x[0, 0] = 1 - x[0, 0]
    whole[0, 19] = False
    assert not code.determined(x, whole).any()
    assert code.log_prob(x, whole, ~whole).tolist() == [-math.inf]
    assert code.marginals(x, whole)[0, 19].tolist() == [-math.inf, -math.inf]


def test_draws_step_over_the_impossible_at_the_ends_of_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    draws, row = RowDraws(rows), torch.tensor([0, 1])
    for level, expected in [(0.0, [1, 2]), (0.5, [2, 2]), (1 - 2**-53, [2, 2])]:
        monkeypatch.setattr(torch, "rand", lambda shape, *, level=level, **_: torch.full(shape, level).double())
        assert draws.draw(row, draw(0)).tolist() == expected


X = torch.zeros(2, 16, dtype=torch.long)
NO = torch.zeros(2, 16, dtype=torch.bool)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (dict(x=X.int()), TypeError, r"^x: expected dtype torch.int64, got torch.int32$"),
        (dict(x=[[0] * 16]), TypeError, r"^x: expected a long tensor, got list$"),
        (dict(x=X[:, 1:]), ValueError, r"^x: expected shape \(rows, 16\), got \(2, 15\)$"),
        (dict(x=X[0]), ValueError, r"^x: expected shape \(rows, 16\), got \(16,\)$"),
        (dict(x=X + 8), ValueError, r"^x: expected tokens 0 to 7, got 8$"),
        (dict(x=X - 100), ValueError, r"^x: expected tokens 0 to 7, got -100$"),
        (dict(given=NO.long()), TypeError, r"^given: expected dtype torch.bool, got torch.int64$"),
        (dict(given=None), TypeError, r"^given: expected a bool tensor, got NoneType$"),
        (dict(given=NO[:1]), ValueError, r"^given: expected shape \(2, 16\), that of x, got \(1, 16\)$"),
        (dict(target=NO.float()), TypeError, r"^target: expected dtype torch.bool, got torch.float32$"),
        (dict(target=NO[0]), ValueError, r"^target: expected shape \(2, 16\), that of x, got \(16,\)$"),
        (dict(given=~NO), ValueError, r"^target: expected no site that is given too, got site 15 of row 1$"),
        (dict(step=NO), TypeError, r"^step: expected dtype torch.int64, got torch.bool$"),
        (dict(step=X[:, :3]), ValueError, r"^step: expected shape \(2, 16\), that of x, got \(2, 3\)$"),
        (dict(step=X), ValueError, r"^step: .* different steps .*, got 0 at sites 14 and 15 of row 1$"),
    ],
)
def test_wrong_questions_are_named(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    target = NO.clone()
    target[1, 14:] = True
    if changed.get("given") is not None and changed["given"].dtype == torch.bool:
        changed["given"] = changed["given"] & (torch.arange(16) != 14)
    sound = dict(x=X, given=NO, target=target, step=torch.arange(16).expand(2, 16))
    source = load_source("markov")
    source.chain_log_prob(**sound)
    with pytest.raises(error, match=message):
        source.chain_log_prob(**{**sound, **changed})
    if "step" not in changed:
        with pytest.raises(error, match=message):
            source.log_prob(**{key: value for key, value in {**sound, **changed}.items() if key != "step"})


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("lstm", {}, ValueError, r"^name: expected one of markov, hmm, tree, ising, pcfg, ldpc, got 'lstm'$"),
        (
            "markov",
            dict(states=3),
            TypeError,
            r"^sizes: expected some of length, vocabulary, concentration for 'markov'",
        ),
        ("markov", dict(seed=-1), ValueError, r"^seed: expected an integer of at least 0, got -1$"),
        ("tree", dict(seed="a"), TypeError, r"^seed: expected an integer of at least 0, got 'a'$"),
        ("hmm", dict(states=0), ValueError, r"^states: expected an integer of at least 1, got 0$"),
        ("hmm", dict(length=2.5), TypeError, r"^length: expected an integer of at least 1, got 2.5$"),
        ("tree", dict(vocabulary=1), ValueError, r"^vocabulary: expected an integer of at least 2, got 1$"),
        ("tree", dict(concentration=0), ValueError, r"^concentration: expected a positive number, got 0$"),
        ("tree", dict(concentration="1"), TypeError, r"^concentration: expected a positive number, got '1'$"),
        ("ising", dict(width=9), ValueError, r"^width: expected at most 8, the shorter side of the grid, got 9$"),
        (
            "pcfg",
            dict(nonterminals=2, splits=5),
            ValueError,
            r"^splits: expected at most nonterminals squared, 4, got 5$",
        ),
        ("ldpc", dict(checks=2), ValueError, r"^weight: expected at most the number of checks, 2, got 3$"),
        ("ldpc", dict(length=40), ValueError, r"^checks: expected to leave 1 to 16 of 40 bits free, got 25 free$"),
        ("ldpc", dict(length=4, checks=3), ValueError, r"^checks: expected sizes of which codes of rank 3 are found"),
    ],
)
def test_wrong_sources_are_named(name: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as refused:
        load_source(name, **arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", SOURCES)
def test_samples_are_counted(name: str) -> None:
    with pytest.raises(ValueError, match=r"^count: expected an integer of at least 1, got 0$"):
        load_source(name).sample(0, draw(0))
    assert load_source(name).sample(1, draw(0)).shape == (1, load_source(name).length)
