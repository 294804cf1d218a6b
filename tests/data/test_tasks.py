"""Tasks: what every draw obeys, what each task draws, how tasks are read and written, and what is refused."""

import builtins
import pickle
import re
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arbprob_hf.data.block_questions import question_rng
from arbprob_hf.data.task_parser import MAX_NUMBER, Range
from arbprob_hf.data.tasks import (
    TASKS,
    Mixture,
    SampledQuestion,
    Task,
    bernoulli,
    boundary,
    causal,
    fixed,
    prefix,
    spans,
    uniform,
)
from arbprob_hf.model.masks.text import MAX_TEXT

LENGTHS = [2, 3, 4, 5, 8, 33, 256]
TEXTS = [
    "causal",
    "causal(random=1)",
    "uniform",
    "uniform(given=0, asked=0)",
    "uniform(given=1)",
    "uniform(given=0..0.4, asked=0.3..0.6, random=0.5)",
    "bernoulli(0)",
    "bernoulli(1)",
    "bernoulli(0.15)",
    "bernoulli(0..1, random=1)",
    "spans(1, share=0..0.5)",
    "spans(3)",
    "spans(3, share=0)",
    "spans(3..10)",
    "spans(1..4, share=0.7, random=1)",
    "spans(2147483647, share=1)",
    "boundary",
    "boundary(start=0..0.5, end=0..0.5, random=1)",
    "boundary(start=1, end=0)",
    "boundary(start=0, end=1)",
    "prefix",
    "prefix(share=0)",
    "prefix(share=1, random=1)",
    "fixed",
    "fixed(target=[1])",
    "fixed(target=[-1], random=1)",
    "0.5 * uniform(given=0..0.4) + 0.3 * spans(3) + 0.2 * causal(random=1)",
]

each_task = pytest.mark.parametrize("text", TEXTS)


def draws(text: str, length: int, count: int = 20) -> Iterator[SampledQuestion]:
    task = Task.parse(text)
    for index in range(count):
        yield task.draw(length, question_rng(0, 0, index))


def draws_of_all_lengths(text: str) -> Iterator[SampledQuestion]:
    for length in LENGTHS:
        yield from draws(text, length)


def shown(drawn: SampledQuestion) -> str:
    """The question as the docstrings draw it."""
    return "".join("G" if g else "T" if t else "." for g, t in zip(drawn.given, drawn.target, strict=True))


def runs(drawn: SampledQuestion) -> list[int]:
    """The lengths of the uninterrupted stretches of targets."""
    return [len(run) for run in re.findall("T+", shown(drawn))]


def mean(numbers: Iterator[float]) -> float:
    return float(np.mean(list(numbers)))


@each_task
def test_no_position_is_given_and_asked(text: str) -> None:
    assert not any((drawn.given & drawn.target).any() for drawn in draws_of_all_lengths(text))


@each_task
def test_position_0_is_given(text: str) -> None:
    assert all(drawn.given[0] for drawn in draws_of_all_lengths(text))


@each_task
def test_something_is_asked(text: str) -> None:
    assert all(drawn.target.any() for drawn in draws_of_all_lengths(text))


@each_task
def test_steps_number_the_targets_and_nothing_else(text: str) -> None:
    for drawn in draws_of_all_lengths(text):
        assert sorted(drawn.step[drawn.target]) == list(range(1, drawn.target.sum() + 1))
        assert not drawn.step[~drawn.target].any()


@pytest.mark.parametrize("text", [text for text in TEXTS if Task.parse(text).is_temporal])
def test_temporal_steps_go_from_left_to_right(text: str) -> None:
    assert all((np.diff(drawn.step[drawn.target]) == 1).all() for drawn in draws_of_all_lengths(text))


@each_task
def test_draws_are_arrays_of_the_sequence_s_length(text: str) -> None:
    for drawn in draws(text, 9):
        assert [(one.shape, one.dtype) for one in (drawn.given, drawn.target, drawn.step)] == [
            ((9,), np.dtype(bool)),
            ((9,), np.dtype(bool)),
            ((9,), np.dtype(np.int64)),
        ]


@pytest.mark.parametrize(
    "text", [text for text in TEXTS if "asked" not in text and "fixed(" not in text and "+" not in text]
)
def test_only_uniform_and_fixed_leave_a_rest(text: str) -> None:
    assert all((drawn.given | drawn.target).all() for drawn in draws(text, 33))


PICTURES = [
    ("causal", {"GTTTTTTTT"}),
    ("boundary", {"GGGTTTTGG"}),
    ("boundary(start=0.25, end=0.5)", {"GGGTTGGGG"}),
    ("boundary(start=0.5, end=0.5)", {"GGGGGTGGG"}),
    ("prefix(share=0.25)", {"GGGTTTTTT"}),
    ("prefix(share=0.8..1)", {"GGGGGGGTT", "GGGGGGGGT"}),
    ("spans(9)", {"GTTTTTTTT"}),
    ("fixed", {"GTTTTTTTT"}),
    ("fixed(given=[1, -1])", {"GGTTTTTTG"}),
    ("fixed(given=[1, -1], target=[2, 3, 5])", {"GGTT.T..G"}),
    ("fixed(given=[0, 8, -1], target=[7, -2])", {"G......TG"}),
    ("fixed(target=[-2])", {"G......T."}),
]


@pytest.mark.parametrize(("text", "pictures"), PICTURES)
def test_questions_about_nine_positions_look_as_drawn(text: str, pictures: set[str]) -> None:
    assert {shown(drawn) for drawn in draws(text, 9, 50)} == pictures


SHARES = [
    ("uniform(given=0.2..0.4)", "G", 201, 401),
    ("uniform(given=0.4)", "G", 401, 401),
    ("uniform(given=0.2, asked=0.25)", "T", 200, 200),
    ("uniform(given=0.2, asked=0.25..0.5)", "T", 200, 400),
    ("uniform(given=0.2, asked=0.25)", ".", 600, 600),
    ("prefix(share=0.1..0.3)", "G", 101, 301),
    ("prefix", "T", 1, 1000),
    ("boundary(start=0..0.2, end=0.1)", "G", 101, 301),
    ("boundary(start=0.1, end=0..0.2)", "G", 101, 301),
]


@pytest.mark.parametrize(("text", "kind", "fewest", "most"), SHARES)
def test_shares_are_spread_over_their_range(text: str, kind: str, fewest: int, most: int) -> None:
    counts = [shown(drawn).count(kind) for drawn in draws(text, 1001, 150)]
    slack = (most - fewest) / 20
    assert fewest <= min(counts) <= fewest + slack
    assert most - slack <= max(counts) <= most


def test_uniform_asks_everything_else_by_default() -> None:
    assert all((drawn.given ^ drawn.target).all() for drawn in draws("uniform", 50))


def test_uniform_draws_every_subset_alike() -> None:
    seen = Counter(shown(drawn) for drawn in draws("uniform(given=0.5)", 5, 3000))
    assert len(seen) == 6
    assert all(count == pytest.approx(500, abs=100) for count in seen.values())


def test_uniform_draws_every_number_of_given_positions_alike() -> None:
    seen = Counter(int(drawn.given.sum()) for drawn in draws("uniform", 257, 2000))
    halves = sum(count for number, count in seen.items() if number <= 128)
    assert halves == pytest.approx(1000, abs=100)


def test_a_share_of_no_whole_number_is_met_on_average() -> None:
    numbers = [int(drawn.given[1:].sum()) for drawn in draws("prefix(share=0.3)", 6, 2000)]
    assert set(numbers) == {1, 2}
    assert np.mean(numbers) == pytest.approx(1.5, abs=0.05)


def test_bernoulli_asks_each_position_at_its_rate() -> None:
    targets = np.mean([drawn.target[1:] for drawn in draws("bernoulli(0.3)", 33, 2000)], axis=0)
    assert targets == pytest.approx(np.full(32, 0.3), abs=0.05)


def test_bernoulli_positions_are_independent() -> None:
    numbers = [int(drawn.target.sum()) for drawn in draws("bernoulli(0.3)", 101, 1000)]
    assert np.std(numbers) == pytest.approx((100 * 0.3 * 0.7) ** 0.5, rel=0.1)


def test_bernoulli_draws_one_rate_of_a_range_for_a_sequence() -> None:
    shares = [drawn.target[1:].mean() for drawn in draws("bernoulli(0.2..0.8)", 1001, 300)]
    # of uniform numbers over 0.6
    assert np.std(shares) == pytest.approx(0.6 / 12**0.5, rel=0.1)


def test_bernoulli_at_rate_0_asks_one_position_anywhere() -> None:
    seen = Counter(shown(drawn) for drawn in draws("bernoulli(0)", 4, 900))
    assert set(seen) == {"GTGG", "GGTG", "GGGT"}
    assert min(seen.values()) > 240


@pytest.mark.parametrize("length", [5, 33, 256])
def test_spans_are_of_the_length_asked(length: int) -> None:
    assert {run for drawn in draws("spans(3)", length) for run in runs(drawn)} == {3}


def test_spans_are_of_every_length_of_a_range() -> None:
    assert {run for drawn in draws("spans(3..7)", 256) for run in runs(drawn)} == {3, 4, 5, 6, 7}


@pytest.mark.parametrize("text", ["spans(3, share=0.3)", "spans(2..4, share=0.3)", "spans(50, share=0.3)"])
def test_spans_cover_their_share_on_average(text: str) -> None:
    assert mean(drawn.target[1:].mean() for drawn in draws(text, 301, 1000)) == pytest.approx(0.3, abs=0.01)


def test_spans_cover_shares_within_their_range() -> None:
    shares = [float(drawn.target[1:].mean()) for drawn in draws("spans(4)", 1001, 200)]
    assert 0.145 < min(shares) < 0.17
    assert 0.48 < max(shares) < 0.505


def test_spans_at_the_largest_share_alternate_with_given_positions() -> None:
    assert {shown(drawn) for drawn in draws("spans(1, share=0.5)", 9)} <= {
        "GTGTGTGTG",
        "GTGTGTGGT",
        "GTGTGGTGT",
        "GTGGTGTGT",
        "GGTGTGTGT",
    }


def test_all_places_of_spans_are_equally_likely() -> None:
    task = spans(2, share=0.5)
    seen = Counter(shown(task.draw(9, question_rng(0, 0, index))) for index in range(3000))
    # two spans of two and four given positions, at most one span in each of five gaps
    assert len(seen) == 10
    assert all(count == pytest.approx(300, abs=75) for count in seen.values())


def test_a_mixture_draws_its_tasks_as_often_as_their_weights_say() -> None:
    text = "0.5 * prefix(share=0) + 0.3 * prefix(share=0.5) + 0.2 * prefix(share=1)"
    seen = Counter(int(drawn.target.sum()) for drawn in draws(text, 9, 4000))
    assert {number: count / 4000 for number, count in seen.items()} == pytest.approx({8: 0.5, 4: 0.3, 1: 0.2}, abs=0.03)


def test_a_mixture_without_weights_draws_its_tasks_equally_often() -> None:
    text = "prefix(share=0) + prefix(share=0.5) + prefix(share=1)"
    seen = Counter(int(drawn.target.sum()) for drawn in draws(text, 9, 3000))
    assert seen == pytest.approx({8: 1000, 4: 1000, 1: 1000}, abs=100)


@pytest.mark.parametrize("rate", [0.2, 0.7])
def test_targets_are_asked_in_random_order_at_the_rate_given(rate: float) -> None:
    task = causal(random=rate)
    steps = [task.draw(30, question_rng(0, 0, index)).step for index in range(2000)]
    assert mean(bool((np.diff(step) < 0).any()) for step in steps) == pytest.approx(rate, abs=0.04)


def test_all_random_orders_are_equally_likely() -> None:
    seen = Counter(tuple(drawn.step.tolist()) for drawn in draws("causal(random=1)", 4, 3000))
    assert len(seen) == 6
    assert all(count == pytest.approx(500, abs=100) for count in seen.values())


def test_which_positions_are_asked_does_not_depend_on_the_order() -> None:
    both = zip(draws("uniform", 40), draws("uniform(random=1)", 40), strict=True)
    assert all((temporal.target == random.target).all() for temporal, random in both)


@pytest.mark.parametrize(
    ("text", "is_temporal"),
    [
        ("causal", True),
        ("uniform(random=0)", True),
        ("causal(random=0.001)", False),
        ("causal + uniform", True),
        ("causal + uniform(random=1)", False),
    ],
)
def test_a_task_knows_whether_its_order_is_temporal(text: str, is_temporal: bool) -> None:
    assert Task.parse(text).is_temporal is is_temporal


def bits(seed: int, epoch: int, index: int) -> list[int]:
    return question_rng(seed, epoch, index).integers(0, 2**62, 4).tolist()


def test_a_draw_depends_on_nothing_that_was_drawn_before() -> None:
    task = Task.parse(TEXTS[-1])
    first = task.draw(64, question_rng(1, 2, 3))
    for index in range(10):
        task.draw(64, question_rng(1, 2, index))
    np.random.random(7)
    again = Task.parse(TEXTS[-1]).draw(64, question_rng(1, 2, 3))
    assert shown(first) == shown(again)
    assert (first.step == again.step).all()


@pytest.mark.parametrize("other", [(2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (3, 2, 1), (1 + 2**32, 2, 3)])
def test_another_seed_epoch_or_index_is_another_stream(other: tuple[int, int, int]) -> None:
    assert bits(1, 2, 3) != bits(*other)


def test_the_largest_numbers_are_reported_apart() -> None:
    top = 2**64 - 1
    assert len({tuple(bits(*ends)) for ends in [(top, 0, 0), (0, top, 0), (0, 0, top), (top, top, top)]}) == 4


def test_streams_are_those_of_philox() -> None:
    theirs = np.random.Generator(np.random.Philox(key=1 + (2 << 64), counter=3 << 192))
    assert bits(1, 2, 3) == theirs.integers(0, 2**62, 4).tolist()


def test_streams_are_the_same_for_ever() -> None:
    raw = question_rng(1, 2, 3).bit_generator.random_raw(3)
    assert raw.tolist() == [1170280437898119671, 13051159143091778299, 5120089422708784769]


@pytest.mark.parametrize("text", TEXTS)
def test_tasks_travel_to_other_processes(text: str) -> None:
    assert pickle.loads(pickle.dumps(Task.parse(text))) == Task.parse(text)


READ = {
    "causal": causal(),
    " causal ( ) ": causal(),
    "uniform(0..0.4)": uniform((0, 0.4)),
    "uniform(given=0..0.4)": uniform(given=(0, 0.4)),
    "uniform(0.25, 0.5..1)": uniform(0.25, asked=(0.5, 1)),
    "uniform(asked=1, given=1..1)": uniform(given=1),
    "uniform(random=0.5)": uniform(random=0.5),
    "bernoulli(rate=1e-3)": bernoulli(0.001),
    "spans(3..10,share=0.2)": spans((3, 10), share=0.2),
    "fixed(given=[],target=[3,1,-1,3])": fixed(target=[1, 3, -1]),
    "boundary(end=0)": boundary(end=0),
    "causal\n  + prefix": Mixture((causal(), prefix())),
    "0.25*causal+0.75*prefix": Mixture((causal(), prefix()), (0.25, 0.75)),
    "0.5 * causal + 0.5 * prefix": Mixture([causal(), prefix()]),
    "0.333333 * causal + 0.333333 * prefix + 0.333333 * uniform": Mixture(
        (causal(), prefix(), uniform()), (0.333333,) * 3
    ),
}

PRINTED = {
    "causal": causal(),
    "causal(random=1)": causal(random=1),
    "uniform": uniform(given=(0.0, 1.0), asked=1),
    "uniform(given=0..0.4, asked=0.5, random=0.25)": uniform((0, 0.4), 0.5, random=0.25),
    "bernoulli(0.15)": bernoulli(0.15),
    "bernoulli(0)": bernoulli(-0.0),
    "bernoulli(1e-05..1)": bernoulli((0.00001, 1)),
    "spans(3)": spans(3),
    "spans(3..10, share=0.2)": spans((3, 10), share=(0.2, 0.2)),
    "boundary(start=0..0.5, end=0)": boundary((0, 0.5), 0),
    "prefix(share=0.5)": prefix(0.5),
    "fixed(given=[0, 2, -2, -1])": fixed(given={-1, 2, 0, -2}),
    "fixed(target=[1])": fixed(target=range(1, 2)),
    "causal + prefix": Mixture((causal(), prefix()), (0.5, 0.5)),
    "0.7 * causal + 0.3 * prefix(random=1)": Mixture((causal(), prefix(random=1)), (0.7, 0.3)),
}


@pytest.mark.parametrize("text", READ)
def test_text_is_read(text: str) -> None:
    assert Task.parse(text) == READ[text]


@pytest.mark.parametrize("text", PRINTED)
def test_tasks_print_as_they_are_written(text: str) -> None:
    assert str(PRINTED[text]) == text
    assert repr(PRINTED[text]) == text


def pairs(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[object]:
    ranges = st.tuples(numbers, numbers).map(lambda pair: (min(pair), max(pair)))
    return st.one_of(numbers, ranges)


rates = st.floats(0, 1)
shares = pairs(rates)
halves = pairs(st.floats(0, 0.5))
places = st.lists(st.integers(-50, 50).filter(bool), min_size=1, max_size=6)
leaves = st.one_of(
    st.builds(causal, random=rates),
    st.builds(uniform, shares, shares, random=rates),
    st.builds(bernoulli, shares, random=rates),
    st.builds(spans, pairs(st.integers(1, 2**31 - 1)), halves, random=rates),
    st.builds(boundary, halves, halves, random=rates),
    st.builds(prefix, shares, random=rates),
    st.builds(fixed, places, st.none() | places, random=rates),
)


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    tasks = draw(st.lists(leaves, min_size=2, max_size=5))
    numbers = draw(st.none() | st.lists(st.integers(1, 10**6), min_size=len(tasks), max_size=len(tasks)))
    return Mixture(tasks, None if numbers is None else [number / sum(numbers) for number in numbers])


@given(st.one_of(leaves, mixtures()))
def test_every_task_is_read_as_it_is_written(task: Task) -> None:
    assert Task.parse(str(task)) == task


@given(leaves, leaves)
def test_tasks_are_equal_when_their_texts_are(one: Task, other: Task) -> None:
    assert (one == other) == (str(one) == str(other))


@pytest.mark.parametrize("name", TASKS)
def test_each_task_draws_an_example_of_itself(name: str) -> None:
    (line,) = re.findall(r"^ +(G(?: [GT.])+)$", TASKS[name].__doc__ or "", flags=re.MULTILINE)
    assert "T" in line
    assert ("." in line) == (name in ("uniform", "fixed"))


# text -> part of the message
REFUSED = {
    "": "expected the name of a task.*got the end of the text",
    "unifrom": "unknown task 'unifrom'; did you mean uniform\\?",
    "Causal": "unknown task 'Causal'; did you mean causal\\?",
    "zzz": "unknown task 'zzz'; known: bernoulli, boundary, causal, fixed, prefix, spans, uniform",
    "uniform(gven=0.1)": "uniform has no argument 'gven'; did you mean given\\?",
    "uniform(q=0.1)": "no argument 'q'; expected uniform\\(given=0..1, asked=1, random=0\\)",
    "causal(order=random)": "no argument 'order'; temporal order is the default, random=1 asks in random order",
    "causal(random=yes)": "expected a number, a range as 0..0.4 or a list as \\[1, 2\\]; got 'yes' at character 15",
    "causal(random=0..1)": "causal\\(random\\): expected a number from 0 to 1, got 0..1",
    "causal(random=1.5)": "causal\\(random\\): expected a number from 0 to 1, got 1.5",
    "uniform(given=0.5..0.2)": "uniform\\(given\\): expected a range from low to high, got 0.5..0.2",
    "uniform(given=-0.1)": "uniform\\(given\\): expected a number from 0 to 1, got -0.1",
    "uniform(asked=2)": "uniform\\(asked\\): expected a number from 0 to 1, got 2",
    "uniform(given=1e999)": "uniform\\(given\\): expected a number from 0 to 1, got inf",
    "uniform(given=[0, 1])": "expected a share or a range of shares as 0..0.4, got \\[0, 1\\] \\(list\\)",
    "uniform(given=.5)": "unexpected '.' in 'uniform\\(given=.5\\)'; write 0.5 for .5",
    "uniform(given=0...5)": "unexpected '.'.*two dots between the ends of a range",
    "uniform(given=0..0.2..0.4)": "expected , or \\); got '..' at character 21",
    "uniform(0.1, 0.2, 0.3)": "expected uniform\\(given=0..1, asked=1, random=0\\)",
    "uniform(given=0.1, 0.2)": "expected name=value after a named argument; got '0.2'",
    "uniform(given=0.1, given=0.2)": "uniform has the argument given twice",
    "uniform(0.1, given=0.2)": "expected uniform\\(given",
    "uniform(given)": "expected = after given; got '\\)'",
    "uniform(given=causal)": "expected a number, a range.*got 'causal'",
    "uniform(given=-)": "expected a number; got '\\)'",
    "bernoulli": "expected bernoulli\\(rate, random=0\\)",
    "bernoulli(1.1)": "bernoulli\\(rate\\): expected a number from 0 to 1, got 1.1",
    "spans": "expected spans\\(length, share=0.15..0.5, random=0\\)",
    "spans(0)": "spans\\(length\\): expected 1 to 2147483647, got 0",
    "spans(0..3)": "spans\\(length\\): expected 1 to 2147483647, got 0..3",
    "spans(2147483648)": "spans\\(length\\): expected 1 to 2147483647, got 2147483648",
    "spans(2.5)": "spans\\(length\\): expected an integer or a range of integers as 3..10, got 2.5 \\(float\\)",
    "spans(1e3)": "expected an integer or a range of integers as 3..10, got 1000.0",
    "spans(5..3)": "spans\\(length\\): expected a range from low to high, got 5..3",
    "spans(3, share=0.9)": "spans\\(share\\): spans of 3 tokens with a given one between cover at most 0.75, got 0.9",
    "spans(1..2, share=0.5..0.7)": "spans of 1..2 tokens .* at most 0.6, got 0.5..0.7",
    "boundary(start=0.6, end=0.3..0.5)": "expected start and end of at most 1 together, got 0.6 \\+ 0.5",
    "prefix(share=2)": "prefix\\(share\\): expected a number from 0 to 1, got 2",
    "fixed(given=1..5)": "fixed\\(given\\): expected a list of positions as \\[1, -1\\], got 1..5",
    "fixed(given=3)": "fixed\\(given\\): expected a list of positions as \\[1, -1\\], got 3 \\(int\\)",
    "fixed(given=[1.5])": "fixed\\(given\\): expected integers, got \\[1.5\\]",
    "fixed(given=[9999999999])": "fixed\\(given\\): expected positions up to 2147483647, got \\[9999999999\\]",
    "fixed(target=[0, 2])": "fixed\\(target\\): expected positions other than 0, got \\[0, 2\\]; leave target out",
    "fixed(target=[])": "fixed\\(target\\): expected positions other than 0, got \\[\\]; leave target out",
    "fixed(given=[1 2])": "expected , or \\]; got '2'",
    "fixed(given=[1,,2])": "expected a number; got ','",
    "fixed(given=[1, 2": "expected , or \\]; got the end of the text",
    "fixed(given=[[1]])": "expected a number; got '\\['",
    "0.5 * causal": "a task alone takes no weight",
    "1 * causal": "a task alone takes no weight",
    "0.5 * causal + uniform": "give every task of a sum a weight, or none",
    "0.5 * causal + 0.4 * uniform": "mixture\\(weights\\): expected a sum of 1, got 0.9; make them sum to 1",
    "0.5 * causal + 0.500002 * uniform": "expected a sum of 1, got 1.000002",
    "0 * causal + 1 * uniform": "mixture\\(weights\\): expected weights above 0, got 0",
    "-1 * causal + 2 * uniform": "mixture\\(weights\\): expected a number from 0 to 1, got -1",
    "0.5 causal": "expected \\* after a weight; got 'causal' at character 5",
    "causal * 0.5": "a weight goes before its task; got '\\*'",
    "causal prefix": "expected \\+ or the end; got 'prefix' at character 8",
    "causal - prefix": "expected \\+ or the end; got '-'",
    "causal +": "expected the name of a task.*got the end of the text",
    "+ causal": "expected the name of a task.*got '\\+' at character 1",
    "(causal + uniform) + prefix": "brackets around tasks are not read, write one sum of weighted tasks",
    "mixture(causal)": "unknown task 'mixture'",
    "causal()()": "expected \\+ or the end; got '\\('",
    "causal(": "expected a number.*got the end of the text",
    "causal(3)": "expected causal\\(random=0\\)",
}


@pytest.mark.parametrize("text", REFUSED)
def test_text_that_describes_no_task_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[text]) as caught:
        Task.parse(text)
    assert len(str(caught.value)) <= 200
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", [3, None, b"causal", ["causal"], causal()], ids=lambda x: type(x).__name__)
def test_only_text_is_parsed(text: object) -> None:
    with pytest.raises(TypeError, match=f"task: expected the text of a task, got {type(text).__name__}"):
        Task.parse(text)


@pytest.mark.parametrize(
    ("positional", "message"),
    [
        ((causal(),), "mixture(tasks): expected a list of tasks, got causal (Causal)"),
        (([causal()],), "mixture(tasks): expected at least 2 tasks, got 1"),
        (([causal, prefix()],), "write causal() for causal"),
        (([Mixture((causal(), prefix())), causal()],), "got causal + prefix (Mixture); write one sum of all tasks"),
        (([causal(), "causal"],), "mixture(tasks): expected tasks without +, got 'causal' (str)"),
        (([causal(), prefix()], [1]), "mixture(weights): expected one for each of 2 tasks, got 1"),
        (([causal(), prefix()], 0.5), "mixture(weights): expected a list of numbers, got 0.5 (float)"),
        (([causal(), prefix()], ["a", 0.5]), "mixture(weights): expected a number from 0 to 1, got 'a' (str)"),
        (([causal(), prefix()], [np.nan, 0.5]), "mixture(weights): expected a number from 0 to 1, got nan"),
    ],
)
def test_what_is_no_mixture_is_refused(positional: tuple[object, ...], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        Mixture(*positional)


@pytest.mark.parametrize("value", [True, "0.5", None, (0, 0.5, 1), np.array([0.1])], ids=repr)
def test_what_is_no_share_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"prefix\(share\): expected a share or a range of shares as 0..0.4, got"):
        prefix(value)


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), 0.5])
def test_numbers_of_numpy_are_shares(number: float) -> None:
    assert prefix(number).share == Range(0.5, 0.5)


@pytest.mark.parametrize("text", ["causal", "spans(3)", "causal + uniform"])
@pytest.mark.parametrize("length", [1, 0, -3])
def test_a_sequence_too_short_for_a_question_is_refused(text: str, length: int) -> None:
    with pytest.raises(ValueError, match=rf"draw\(length\): expected an integer of at least 2, got {length}"):
        Task.parse(text).draw(length, question_rng(0, 0, 0))


@pytest.mark.parametrize("length", [2.0, True, "3"])
def test_a_length_that_is_no_integer_is_refused(length: object) -> None:
    with pytest.raises(TypeError, match=r"draw\(length\): expected an integer of at least 2, got"):
        causal().draw(length, question_rng(0, 0, 0))


@pytest.mark.parametrize("random", [0, np.random.RandomState(0), np.random, None], ids=lambda x: type(x).__name__)
def test_what_is_no_generator_is_refused(random: object) -> None:
    with pytest.raises(TypeError, match=r"draw\(random\): expected a numpy Generator, got .*; use question_rng"):
        causal().draw(4, random)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fixed(given=[1, 9])", "fixed(given): no position 9 among 9; use longer sequences or other positions"),
        ("fixed(target=[-10])", "fixed(target): no position -10 among 9; use longer sequences or other positions"),
        ("fixed(given=[8], target=[-1])", "fixed(target): position 8 of 9 is given too; name it once"),
        ("fixed(target=[-9])", "fixed(target): position 0 of 9 is given too; name it once"),
        ("fixed(given=[1, 2, 3, 4, 5, 6, 7, 8])", "fixed(given): all 9 positions are given, none is left to ask"),
    ],
)
def test_positions_that_do_not_fit_a_sequence_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Task.parse(text).draw(9, question_rng(0, 0, 0))


@pytest.mark.parametrize("name", ["seed", "epoch", "index"])
@pytest.mark.parametrize("value", [-1, 2**64])
def test_numbers_that_name_no_stream_are_refused(name: str, value: int) -> None:
    with pytest.raises(
        ValueError, match=rf"question_rng\({name}\): expected an integer from 0 to {2**64 - 1}, got {value}"
    ):
        question_rng(**{"seed": 0, "epoch": 0, "index": 0, name: value})


@pytest.mark.parametrize("name", ["seed", "epoch", "index"])
@pytest.mark.parametrize("value", [1.0, True, None])
def test_what_is_no_number_of_a_stream_is_refused(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"question_rng\({name}\): expected an integer from 0 to"):
        question_rng(**{"seed": 0, "epoch": 0, "index": 0, name: value})


HOSTILE = {
    "attribute": ("causal.__class__", "unexpected '.' in"),
    "import": ("__import__('os').system('touch pwned')", 'unexpected "\'"'),
    "call": ("exec(input())", "unknown task 'exec'"),
    "dunder": ("__builtins__", "unknown task '__builtins__'"),
    "class of the module": ("Mixture", "unknown task 'Mixture'"),
    "lambda": ("lambda: causal", "unexpected ':'"),
    "f-string": ("f'{causal}'", 'unexpected "\'"'),
    "power": ("spans(9**9**9)", "expected , or \\); got '\\*'"),
    "many brackets": ("(" * 100_000 + "causal" + ")" * 100_000, "expected at most 2000 characters, got 200006"),
    "nested brackets": ("(" * 990 + "causal" + ")" * 990, "brackets around tasks are not read"),
    "nested calls": ("uniform(" * 240, "has no argument 'uniform'"),
    "nested lists": ("fixed(given=" + "[" * 1_900, "expected a number; got '\\['"),
    "many signs": ("-" * 1_900, "expected a number; got '-'"),
    "long number": ("spans(" + "9" * 1_900 + ")", f"expected numbers of at most {MAX_NUMBER} characters"),
    "long fraction": ("bernoulli(0." + "9" * 1_900 + ")", f"expected numbers of at most {MAX_NUMBER} characters"),
    "long name": ("a" * 1_900, "unknown task 'aaa"),
    "long argument": (f"uniform({'a' * 1_900}=1)", "uniform has no argument 'aaa"),
    "long sum": ("+".join(["causal"] * 300), "expected at most 2000 characters, got 2099"),
    "sum that grows": ("+".join(["causal"] * 285), "expected a text form of at most 2000 characters, got 2562"),
    "list that grows": (f"fixed([{','.join(map(str, range(1, 520)))}])", "expected a text form of at most 2000"),
    "many positions": (f"fixed(target=[0{',1' * 900}])", "expected positions other than 0"),
    "no ascii": ("caus\u0430l", "expected ASCII text"),
    "wide digit": ("spans(\uff13)", "expected ASCII text"),
    "surrogate": ("\ud800", "expected ASCII text"),
    "null": ("causal\0", r"unexpected '\\x00'"),
    "escape": ("\x1b[31mcausal", r"unexpected '\\x1b'"),
    "underscores": ("spans(1_0)", "expected , or \\); got '_0'"),
    "hexadecimal": ("spans(0xF)", "expected , or \\); got 'xF'"),
    "comment": ("causal # + uniform", "unexpected '#'"),
    "yaml tag": ("!!python/object:os.system", "unexpected '!'"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_at_once_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the text of a task was evaluated")

    text, message = HOSTILE[name]
    with monkeypatch.context() as patched:
        for function in ("eval", "exec", "compile"):
            patched.setattr(builtins, function, never)
        start = time.perf_counter()
        with pytest.raises(ValueError, match=message) as caught:
            Task.parse(text)
        seconds = time.perf_counter() - start
    assert seconds < 1
    assert len(str(caught.value)) <= 300
    assert str(caught.value).isprintable()


WORDS = [
    *TASKS,
    *"+*(),=[]-",
    "..",
    ".",
    "0",
    "0.5",
    "1",
    "3",
    "given",
    "share",
    "random",
    "target",
    " ",
    "1e-3",
    "order",
]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join))
@example("0.5 * causal + 0.5 * spans ( 3 )")
def test_any_words_are_read_or_refused_in_one_line(text: str) -> None:
    message = ""
    try:
        task = Task.parse(text)
    except ValueError as error:
        message = str(error)
    else:
        assert Task.parse(str(task)) == task
    assert len(message) <= 300
    assert message.isprintable()


def test_the_longest_list_that_is_read_is_written_and_drawn() -> None:
    task = fixed(range(100, 100 + (MAX_TEXT - len("fixed(given=[])")) // 5))
    assert Task.parse(str(task)) == task
    assert task.draw(600, question_rng(0, 0, 0)).given.sum() == 1 + len(task.given)
