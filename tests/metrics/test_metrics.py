"""Metrics for the library evaluate: numbers worked out by hand or by other code, from the class and from its file."""

import math
import sys
from pathlib import Path
from typing import Any

import evaluate
import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

import arbprob_hf.metrics
from arbprob_hf import ArbProbForCausalLM
from arbprob_hf.metrics import BitsPerByte, ConditionalPerplexity, InfillMatch, InfillOverlap
from tests.clients.micro import tokens

FOLDER = Path(arbprob_hf.metrics.__file__).parent
EXAMPLES: dict[type, tuple[list[Any], list[Any], dict[str, float]]] = {
    # (1/8 * 1/2) ** (-1/4)
    ConditionalPerplexity: (
        [math.log(1 / 8), math.log(1 / 2)],
        [3, 1],
        {"conditional_perplexity": 2.0, "nats_per_token": math.log(2)},
    ),
    # 4 + 5 bits over 2 + 4 bytes: an e with an accent has two
    BitsPerByte: ([math.log(1 / 16), math.log(1 / 32)], ["to", "th\u00e9"], {"bits_per_byte": 1.5}),
    InfillMatch: ([" sat", " mat"], [[" sat", " lay"], [" hat"]], {"infill_match": 0.5}),
    # n-grams in common: 5 of 6, 3 of 5, 2 of 4, 1 of 3, and equal lengths: no penalty for brevity
    InfillOverlap: (
        ["the cat sat on the mat"],
        ["the cat sat on a mat"],
        {
            "bleu": 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4),
            "rouge1": 5 / 6,
            "rouge2": 3 / 5,
            "rougeL": 5 / 6,
        },
    ),
}
CLASSES = list(EXAMPLES)


@pytest.mark.parametrize("kind", CLASSES)
def test_numbers_are_those_worked_out_by_hand(kind: Any) -> None:
    predictions, references, expected = EXAMPLES[kind]
    assert kind().compute(predictions=predictions, references=references) == pytest.approx(expected)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_metric_loads_from_the_path_of_its_file(kind: Any) -> None:
    loaded = evaluate.load(str(FOLDER / f"{kind.__module__.rpartition('.')[2]}.py"))
    assert type(loaded).__name__ == kind.__name__
    assert type(loaded).__module__.startswith("evaluate_modules.")
    predictions, references, expected = EXAMPLES[kind]
    for prediction, reference in zip(predictions, references, strict=True):
        loaded.add_batch(predictions=[prediction], references=[reference])
    assert loaded.compute() == pytest.approx(expected)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_a_file_needs_nothing_of_the_package(path: Path) -> None:
    assert "arbprob_hf" not in path.read_text()


@torch.no_grad()
def test_perplexity_from_left_to_right_is_gpt2s(ours: ArbProbForCausalLM, theirs: GPT2LMHeadModel) -> None:
    ids = tokens(3, 10)
    nats = ours.log_prob(ids, ours.ask(given=[0])).sum(-1)
    found = ConditionalPerplexity().compute(predictions=nats, references=[9] * 3)
    loss = F.cross_entropy(theirs(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert found["conditional_perplexity"] == pytest.approx(loss.exp().item(), rel=1e-5)


def test_bytes_may_be_counted_beforehand() -> None:
    counted = BitsPerByte().compute(predictions=EXAMPLES[BitsPerByte][0], references=[2, 4])
    assert counted == pytest.approx(EXAMPLES[BitsPerByte][2])


def test_a_text_of_digits_is_a_text() -> None:
    assert BitsPerByte().compute(predictions=[math.log(1 / 16)], references=["16"]) == {"bits_per_byte": 2.0}


def test_what_was_held_impossible_is_infinitely_surprising() -> None:
    infinite = {"conditional_perplexity": math.inf, "nats_per_token": math.inf}
    assert ConditionalPerplexity().compute(predictions=[-math.inf], references=[1]) == infinite
    assert ConditionalPerplexity().compute(predictions=[-1e4], references=[1])["conditional_perplexity"] == math.inf
    assert BitsPerByte().compute(predictions=[-math.inf], references=["a"]) == {"bits_per_byte": math.inf}


def test_a_match_may_leave_case_and_space_aside() -> None:
    given = dict(predictions=[" Sat", "mat"], references=[" sat", " mat"])
    assert InfillMatch().compute(**given) == {"infill_match": 0.0}
    assert InfillMatch().compute(**given, ignore_case=True) == {"infill_match": 0.5}
    assert InfillMatch().compute(**given, strip=True) == {"infill_match": 0.5}
    assert InfillMatch().compute(**given, strip=True, ignore_case=True) == {"infill_match": 1.0}


def test_overlap_takes_several_references_and_the_best_for_rouge() -> None:
    given = dict(
        predictions=["the cat sat on the mat", "no"], references=[["a dog", "the cat sat on the mat"], ["no"] * 2]
    )
    found = InfillOverlap().compute(**given)
    assert found == pytest.approx({"bleu": 100, "rouge1": 1, "rouge2": 0.5, "rougeL": 1})


def test_overlap_compares_stems_where_asked() -> None:
    given = dict(predictions=["cats"], references=["cat"])
    assert InfillOverlap().compute(**given)["rouge1"] == 0
    assert InfillOverlap().compute(**given, use_stemmer=True)["rouge1"] == 1


@pytest.mark.parametrize("kind", CLASSES)
def test_no_answers_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="^predictions: expected at least one, got none$"):
        kind().compute(predictions=[], references=[])


@pytest.mark.parametrize(
    ("kind", "predictions", "references", "message"),
    [
        (ConditionalPerplexity, [0.5], [1], "predictions: expected log-probabilities, at most 0, got 0.5"),
        (ConditionalPerplexity, [math.nan], [1], "predictions: expected log-probabilities, at most 0, got nan"),
        (ConditionalPerplexity, [-1.0], [0], "references: expected at least one target token a question, got 0"),
        (BitsPerByte, [2.0], ["a"], "predictions: expected log-probabilities, at most 0, got 2.0"),
        (BitsPerByte, [-1.0], [""], "references: expected at least one byte a question, got 0"),
        (InfillMatch, ["a"], [None], "^references: expected a value for each, got None at 0; leave such out$"),
        (
            InfillOverlap,
            ["a", "b"],
            [["a"], ["b", None]],
            "^references: expected a value for each, got None at 1",
        ),
        (BitsPerByte, [None], ["a"], "^predictions: expected a value for each, got None at 0; leave such out$"),
        (InfillMatch, ["a"], [[]], "references: expected at least one text a blank, got none for blank 0"),
        (
            InfillOverlap,
            ["a", "b"],
            [["a"], ["b", "c"]],
            "same number of texts for each blank, at least 1, got 1 and 2",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused(kind: Any, predictions: Any, references: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind().compute(predictions=predictions, references=references)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(
        ValueError, match="^InfillOverlap: sacrebleu is not installed; pip install sacrebleu rouge-score$"
    ):
        InfillOverlap().compute(predictions=["a"], references=["a"])
