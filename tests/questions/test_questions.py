"""Conditional: what it means, what it takes, and what it refuses."""

import numpy as np
import pytest
import torch

from arbprob_hf import Conditional
from arbprob_hf.model.questions.conditional import dense_steps


def settled(batch: int = 1, length: int = 5, **fields: object) -> tuple[list, list, list]:
    question = Conditional(**fields).resolve(batch, length)
    return question.given.int().tolist(), question.target.int().tolist(), question.step.tolist()


def test_everything_that_is_not_given_is_asked() -> None:
    assert settled(given=[0, 3]) == ([[1, 0, 0, 1, 0]], [[0, 1, 1, 0, 1]], [[0, 1, 2, 0, 3]])


def test_the_code_of_earlier_checkpoints_resolves_a_question_as_settle() -> None:
    old, new = Conditional(given=[0, 3]).settle(1, 5), Conditional(given=[0, 3]).resolve(1, 5)
    assert torch.equal(old.given, new.given)
    assert torch.equal(old.step, new.step)


def test_what_is_neither_given_nor_asked_is_unseen() -> None:
    assert settled(given=[0], target=[4]) == ([[1, 0, 0, 0, 0]], [[0, 0, 0, 0, 1]], [[0, 0, 0, 0, 1]])


def test_lists_of_positions_hold_for_every_row() -> None:
    assert settled(batch=2, given=[0], target=[2])[1] == [[0, 0, 1, 0, 0]] * 2


def test_each_row_may_have_its_own_list() -> None:
    assert settled(batch=2, given=[[0], [0, 1]], target=[[1, 2], [4]])[2] == [[0, 1, 2, 0, 0], [0, 0, 0, 0, 1]]


def test_bool_tensors_mean_what_lists_mean() -> None:
    given = torch.tensor([[1, 0, 0, 1, 0], [1, 1, 0, 0, 0]]).bool()
    assert settled(batch=2, given=given) == settled(batch=2, given=[[0, 3], [0, 1]])
    assert settled(batch=2, given=given[0]) == settled(batch=2, given=[0, 3])


def test_an_explicit_order_lists_positions_first_asked_first() -> None:
    assert settled(given=[0, 2], order=[4, 1, 3])[2] == [[0, 2, 0, 3, 1]]


def test_an_order_tensor_gives_the_smallest_number_to_the_first() -> None:
    assert settled(given=[0, 2], order=torch.tensor([9, 5, 9, 8, -3]))[2] == [[0, 2, 0, 3, 1]]


def test_each_row_may_have_its_own_order() -> None:
    asked = settled(batch=2, given=[0, 1], order=[[2, 3, 4], [4, 3, 2]])
    assert asked[2] == [[0, 0, 1, 2, 3], [0, 0, 3, 2, 1]]


def test_a_random_order_is_a_permutation_and_follows_the_global_seed() -> None:
    def draw() -> torch.Tensor:
        torch.manual_seed(4)
        return Conditional([0], order="random").resolve(50, 6).step

    steps = draw()
    assert torch.equal(steps, draw())
    assert torch.equal(steps.sort(1).values, torch.arange(6).expand(50, 6))
    assert len({tuple(row) for row in steps.tolist()}) > 20


def test_steps_are_counted_in_each_document() -> None:
    target = torch.tensor([[0, 1, 1, 0, 1, 1]]).bool()
    order = torch.tensor([[0, 9, 3, 0, 8, 7]])
    documents = torch.tensor([[0, 0, 0, 1, 1, 1]])
    assert dense_steps(target, order, documents).tolist() == [[0, 2, 1, 0, 2, 1]]
    assert dense_steps(target, order).tolist() == [[0, 4, 1, 0, 3, 2]]


def test_numbers_of_numpy_are_positions_too() -> None:
    assert settled(given=np.array([0, 3])) == settled(given=[0, 3])


REFUSED = {
    "no start": (dict(given=[1]), "given: position 0, the start of the text, must be given"),
    "overlap": (dict(given=[0, 2], target=[2, 3]), "given, target: expected disjoint positions; both hold position 2"),
    "no target": (dict(given=[0, 1, 2, 3, 4]), "target: expected at least one position that is asked"),
    "empty target": (dict(given=[0], target=[]), "target: expected at least one position that is asked"),
    "outside": (dict(given=[0], target=[5]), "target: expected positions 0 to 4, got 5"),
    "negative": (dict(given=[0, -1]), "given: expected positions 0 to 4, got -1"),
    "length": (
        dict(given=torch.ones(1, 4).bool()),
        r"given: expected shape \(batch, tokens\) = \(1, 5\), got \(1, 4\)",
    ),
    "rows": (dict(given=torch.ones(3, 5).bool()), r"given: expected shape .* = \(1, 5\), got \(3, 5\)"),
    "lists": (dict(given=[[0], [0]]), "given: expected a list of positions for each of 1 rows, got 2 lists"),
    "order misses": (dict(given=[0], order=[1, 2]), r"order: expected the target positions, \[1, 2, 3, 4\], each once"),
    "order ties": (dict(given=[0, 1, 2], order=torch.tensor([1, 2, 3, 7, 7])), "position 4 repeats one"),
    "order length": (dict(given=[0], order=torch.zeros(4).long()), "order: expected shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_question_that_cannot_be_is_refused_when_it_is_asked(name: str) -> None:
    fields, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        settled(**fields)


MALFORMED = {
    "given text": (dict(given="0"), TypeError, "given: expected a bool tensor"),
    "given number": (dict(given=0), TypeError, "given: expected a bool tensor"),
    "given long tensor": (dict(given=torch.tensor([0, 1])), TypeError, "given: expected a bool tensor .* torch.int64"),
    "given bools": (dict(given=[True, False]), TypeError, "given: expected positions, which are integers, got True"),
    "given float": (dict(given=[0.0]), TypeError, "given: expected positions, which are integers, got 0.0"),
    "given nothing": (dict(given=None), TypeError, "given: expected a bool tensor"),
    "given too deep": (dict(given=[[[0]]]), TypeError, "given: expected positions, which are integers"),
    "order number": (dict(given=[0], order=3), TypeError, "order: expected an integer tensor"),
    "given twice": (dict(given=[0, 1, 1]), ValueError, "given: expected each position once, got 1 twice"),
    "given a numpy number": (dict(given=np.array(0)), TypeError, "given: expected a bool tensor"),
    "order set": (
        dict(given=[0], order={11, 1, 2}),
        TypeError,
        "order: expected a list .*, got a set, which",
    ),
    "order row set": (dict(given=[0], order=[{11, 1}]), TypeError, "order: expected a list .*, got a set, which has"),
    "order word": (dict(given=[0], order="backwards"), ValueError, "order: expected temporal, random"),
    "order float": (dict(given=[0], order=torch.rand(5)), TypeError, "order: expected an integer tensor"),
    "given_sees": (dict(given=[0], given_sees="none"), ValueError, "given_sees: expected one of all, earlier"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_question_is_refused_when_it_is_built(name: str) -> None:
    fields, kind, message = MALFORMED[name]
    with pytest.raises(kind, match=message) as caught:
        Conditional(**fields)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300


def test_the_row_of_a_problem_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(row 1\)"):
        settled(batch=2, given=[[0], [1]])
