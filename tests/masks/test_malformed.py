"""Malformed inputs: each is refused in one short line that names the argument (RELIABILITY board, row 11)."""

import pytest

from arbprob_hf import ArbProbForCausalLM
from tests.masks.malformed_cases import CASES
from tests.masks.oracles import micro, random_ids
from tests.masks.refusals import B, Case, T

AT_LEAST = 111


@pytest.fixture(scope="module")
def model() -> ArbProbForCausalLM:
    return micro()


def test_the_table_is_long_and_its_cases_differ() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= AT_LEAST


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_malformed_input_is_refused_in_one_line_that_names_it(case: Case, model: ArbProbForCausalLM) -> None:
    with pytest.raises((ValueError, TypeError), match=case.words) as caught:
        case.call(model, random_ids(B, T))
    message = str(caught.value)
    assert case.argument in message
    assert len(message) <= 300
    assert "\n" not in message


def test_the_model_works_on_after_all_refusals() -> None:
    model, ids = micro(), random_ids(B, T)
    before = model(ids).logits
    refused = 0
    for case in CASES:
        with pytest.raises((ValueError, TypeError)):
            case.call(model, ids)
        refused += 1
    assert refused == len(CASES)
    assert model(ids).logits.equal(before)
