"""Layouts as the design draws them: which slots there are, who sees whom, and that nothing leaks."""

import pytest
import torch

from arbprob_hf import HIDDEN, Conditional, certify
from arbprob_hf.analysis.question_leakage import check_question, forbidden_pairs
from arbprob_hf.model.questions.layouts import Slots, lay_out
from tests.questions.worlds import ANY_ORDER, CHAINED, SEES, questions, subset_pairs

LENGTH = 5


def drawn(slots: Slots) -> list[str]:
    """The slots of row 0: the position or M@position, the rank (h is hidden), the limit, and what is predicted."""
    rows = zip(
        *(getattr(slots, n)[0].tolist() for n in ("positions", "masked", "ranks", "limits", "targets")), strict=True
    )
    return [
        f"{'M@' if masked else ''}{place} {'h' if rank == HIDDEN else rank}/{limit}{f' > {target}' * (target >= 0)}"
        for place, masked, rank, limit, target in rows
    ]


def laid(layout: str, **fields: object) -> list[str]:
    return drawn(lay_out(Conditional(**fields).resolve(1, 6), layout))


def test_two_stream_from_the_start_in_temporal_order_is_gpt2() -> None:
    assert laid("two_stream", given=[0]) == ["0 0/0 > 1", "1 1/1 > 2", "2 2/2 > 3", "3 3/3 > 4", "4 4/4 > 5", "5 5/5"]


def test_two_stream_infills_a_span_with_one_query() -> None:
    # the reader of the first target is its neighbour, which sees what is given; the last target's is the one before it
    slots = laid("two_stream", given=[0, 1, 4, 5])
    assert slots == ["0 0/0", "1 0/0 > 2", "4 0/0", "5 0/0", "2 1/1 > 3", "3 2/2"]


def test_two_stream_adds_a_query_where_the_neighbour_is_not_the_one_before() -> None:
    assert laid("two_stream", given=[0, 3], target=[2, 5]) == [
        "0 0/0", "3 0/0", "2 1/1", "5 2/2", "M@1 h/0 > 2", "M@4 h/1 > 5",
    ]  # fmt: skip


def test_a_query_holds_the_token_before_it_where_that_is_known() -> None:
    slots = laid("two_stream", given=[0], target=[1, 2, 3], order=[3, 1, 2])
    assert slots == ["0 0/0", "3 1/1", "1 2/2 > 2", "2 3/3", "M@2 h/0 > 3", "0 h/1 > 1"]


def test_given_tokens_that_see_only_earlier_ones_count_on() -> None:
    assert laid("two_stream", given=[0, 1], given_sees="earlier", target=[2, 3]) == [
        "0 0/0", "1 1/1 > 2", "2 2/2 > 3", "3 3/3",
    ]  # fmt: skip


def test_prefix_puts_copies_of_the_given_tokens_in_front() -> None:
    assert laid("prefix", given=[0, 2, 5], target=[1, 4]) == [
        "2 0/0", "5 0/0", "0 6/6 > 1", "1 7/7", "2 8/8", "M@3 9/9 > 4",
    ]  # fmt: skip


def test_sigma_follows_the_order() -> None:
    assert laid("sigma", given=[0, 3], target=[1, 2, 5], order=[5, 1, 2]) == [
        "0 0/0", "3 0/0 > 5", "5 1/1 > 1", "1 2/2 > 2", "2 3/3",
    ]  # fmt: skip


def test_masked_asks_every_target_at_its_own_place() -> None:
    assert laid("masked", given=[0, 3], target=[1, 5]) == [
        "0 0/0", "M@1 0/0 > 1", "M@2 0/0", "3 0/0", "M@4 0/0", "M@5 0/0 > 5",
    ]  # fmt: skip


def test_causal_continues() -> None:
    asked = dict(given=[0, 1], target=[2, 3], given_sees="earlier")
    assert laid("causal", **asked) == ["0 0/0", "1 1/1 > 2", "2 2/2 > 3", "3 3/3"]


@pytest.mark.parametrize("layout", [*CHAINED, "causal"])
def test_a_row_is_filled_up_with_slots_that_nobody_sees_and_that_see_nobody(layout: str) -> None:
    asked = dict(given_sees="earlier", target=[[1, 2, 3, 4], [1]])
    slots = lay_out(Conditional([0], **asked).resolve(2, 6), layout)
    assert drawn(Slots(*(getattr(slots, name)[1:] for name in slots.__dict__)))[-1] == "0 h/-1"


@pytest.mark.parametrize("layout", CHAINED)
def test_every_target_is_predicted_once(layout: str) -> None:
    for ask in questions(layout, LENGTH):
        question = ask.resolve(1, LENGTH)
        targets = lay_out(question, layout).targets
        assert sorted(targets[targets >= 0].tolist()) == question.target[0].nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("layout", CHAINED)
def test_slots_are_at_most_as_many_as_the_design_says(layout: str) -> None:
    for ask in questions(layout, LENGTH):
        question = ask.resolve(1, LENGTH)
        given, target = int(question.given.sum()), int(question.target.sum())
        most = {"two_stream": given + 2 * target, "prefix": given - 1 + LENGTH, "sigma": given + target}[layout]
        assert lay_out(question, layout).positions.shape[1] <= most


@pytest.mark.parametrize("layout", CHAINED)
def test_every_question_is_certified(layout: str) -> None:
    for ask in questions(layout, LENGTH):
        slots = lay_out(ask.resolve(1, LENGTH), layout)
        assert certify(slots.ranks, slots.limits)


@pytest.mark.parametrize("layout", CHAINED)
def test_no_question_leaks_through_any_number_of_layers(layout: str) -> None:
    for ask in questions(layout, LENGTH):
        question = ask.resolve(1, LENGTH)
        assert not check_question(lay_out(question, layout), question)


@pytest.mark.parametrize("layout", ANY_ORDER)
def test_nothing_leaks_while_targets_are_asked_at_once(layout: str) -> None:
    for ask in questions(layout, LENGTH):
        question = ask.resolve(1, LENGTH)
        for count in range(int(question.step.max())):
            known = torch.tensor([count])
            slots = lay_out(question, layout, known)
            seen = (slots.ranks[:, None] <= slots.limits[:, :, None]) & (slots.ranks < HIDDEN)[:, None]
            # what a slot of a known target read when it was asked is told too: only open targets are looked at
            is_open = question.step.gather(1, slots.targets.clamp(min=0)) > count
            assert not bool((seen & forbidden_pairs(slots, question, known) & is_open[:, :, None]).any())


def test_the_layouts_that_go_left_to_right_refuse_other_orders() -> None:
    question = Conditional([0], order=[2, 1]).resolve(1, 3)
    for layout in ("prefix", "causal"):
        with pytest.raises(ValueError, match=f"order: the layout {layout} asks from left to right only"):
            lay_out(question, layout)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (dict(given=[0, 3], target=[1, 2]), "unseen tokens or later given ones"),
        (dict(given=[0], target=[2]), "unseen tokens or later given ones"),
        (dict(given=[0, 1], target=[2], given_sees="all"), "given_sees='all'"),
    ],
)
def test_causal_refuses_what_gpt2_cannot_answer(fields: dict, problem: str) -> None:
    question = Conditional(**{"given_sees": "earlier", **fields}).resolve(1, 4)
    with pytest.raises(ValueError, match=f"layout: causal only continues a text, and this question has {problem}"):
        lay_out(question, "causal")


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(
        ValueError, match="layout: expected one of two_stream, prefix, sigma, masked, causal, got 'xlnet'"
    ):
        lay_out(Conditional([0]).resolve(1, 2), "xlnet")


# the bugs that this package exists to prevent


def given_see_the_body(slots: Slots) -> Slots:
    limits = torch.where(slots.ranks == 0, slots.ranks[slots.ranks < HIDDEN].max(), slots.limits)
    return changed(slots, limits=limits)


def contents_see_everything(slots: Slots) -> Slots:
    visible = slots.ranks < HIDDEN
    return changed(slots, limits=torch.where(visible, slots.ranks[visible].max(), slots.limits))


def queries_see_their_own_target(slots: Slots) -> Slots:
    return changed(slots, limits=torch.where(slots.ranks == HIDDEN, slots.limits + 1, slots.limits))


def merged_readers_see_one_too_many(slots: Slots) -> Slots:
    reads = (slots.targets >= 0) & (slots.ranks < HIDDEN)
    return changed(slots, limits=torch.where(reads, slots.limits + 1, slots.limits))


def changed(slots: Slots, **parts: torch.Tensor) -> Slots:
    return Slots(**{**slots.__dict__, **parts})


@pytest.mark.parametrize("sees", SEES)
@pytest.mark.parametrize(
    "bug",
    [given_see_the_body, contents_see_everything, queries_see_their_own_target, merged_readers_see_one_too_many],
    ids=lambda bug: bug.__name__,
)
def test_seeded_bugs_are_caught_wherever_they_change_what_is_seen(bug, sees: str) -> None:
    found = 0
    for given, target in subset_pairs(LENGTH):
        for order in ("temporal", target[::-1]):
            question = Conditional(given, target, order, sees).resolve(1, LENGTH)
            right = lay_out(question, "two_stream")
            wrong = bug(right)
            if torch.equal(sight(right), sight(wrong)):
                continue
            found += 1
            is_caught = not certify(wrong.ranks, wrong.limits) or bool(check_question(wrong, question))
            assert is_caught, (given, target, order, drawn(wrong))
    assert found >= 20


def sight(slots: Slots) -> torch.Tensor:
    own = torch.eye(slots.ranks.shape[1], dtype=torch.bool)
    return own | (slots.ranks[:, None] <= slots.limits[:, :, None]) & (slots.ranks < HIDDEN)[:, None]
