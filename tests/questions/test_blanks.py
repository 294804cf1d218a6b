"""Texts with blanks: what people type and what comes back."""

from typing import Any

import pytest
import torch

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, Conditional, score_text
from arbprob_hf.data import load_tokenizer
from arbprob_hf.model.questions.blanks import read_blanks


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("gpt2")


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return ArbProbForCausalLM(ArbProbConfig.preset("nano", mask_token=True, given_sees="all")).eval()


def test_a_blank_owns_the_space_before_it(tokenizer: Any) -> None:
    blanked = read_blanks("The cat [M] on the [M:2] mat.", tokenizer)
    words = [50256, *tokenizer.encode("The cat"), -1, *tokenizer.encode(" on the"), -1, -1, *tokenizer.encode(" mat.")]
    assert list(blanked.ids) == words
    assert blanked.blanks == ((3, 4), (6, 8))


def test_a_blank_may_stand_inside_a_word_and_at_either_end(tokenizer: Any) -> None:
    assert list(read_blanks("[M]un[M]", tokenizer).ids) == [50256, -1, *tokenizer.encode("un"), -1]


def test_answers_are_scored_as_log_prob_scores_their_tokens(model: Any, tokenizer: Any) -> None:
    answers = [("sat", "mat"), (" ran", "floor")]
    scored = score_text(model, tokenizer, "The cat [M] on the [M]", answers=answers)
    for one, (first, second) in zip(scored, answers, strict=True):
        text = f"The cat {first.strip()} on the {second}"
        ids = torch.tensor([[50256, *tokenizer.encode(text)]])
        joint = model.log_prob(ids, Conditional([0, 1, 2, 4, 5], [3, 6])).sum()
        assert one.answers == (first, second)
        assert one.log_prob == pytest.approx(joint.item(), abs=1e-5)
        assert sum(one.token_log_probs) == pytest.approx(one.log_prob, abs=1e-5)


def test_without_answers_the_likeliest_tokens_come_best_first(model: Any, tokenizer: Any) -> None:
    scored = score_text(model, tokenizer, "The cat [M] on the mat", top=3)
    again = score_text(model, tokenizer, "The cat[M] on the mat", answers=[one.answers[0] for one in scored])
    assert [one.log_prob for one in scored] == sorted((one.log_prob for one in scored), reverse=True)
    for one, other in zip(scored, again, strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-5)


def test_infilled_texts_keep_what_was_given(model: Any, tokenizer: Any) -> None:
    for one in model.infill("The cat [M] on the [M:2] mat.", tokenizer, samples=3):
        assert str(one) == f"The cat{one.answers[0]} on the{one.answers[1]} mat."
        assert one.log_prob < 0


def test_ids_with_blanks_are_filled_in_too(model: Any) -> None:
    ids = torch.tensor([[50256, 464, -1, 319], [50256, -1, -1, 319]])
    found = model.infill(ids, samples=2)
    assert found.sequences.shape == (4, 4)
    assert torch.equal(found.sequences[:, 3], torch.full((4,), 319))
    assert bool((found.sequences >= 0).all())


REFUSED = {
    "no blank": (
        lambda m, t: m.infill("The cat", t),
        ValueError,
        r"text: expected a blank, written \[M\], in 'The cat'",
    ),
    "misspelt": (
        lambda m, t: m.infill("a [mask]", t),
        ValueError,
        r"expected blanks \[M\], or .* got '\[mask\]'",
    ),
    "misspelt beside a right one": (lambda m, t: m.infill("The [M3] [M]", t), ValueError, r"got '\[M3\]'"),
    "empty answer": (
        lambda m, t: score_text(m, t, "a [M]", [""]),
        ValueError,
        "expected a text for each blank, got ''",
    ),
    "no list": (
        lambda m, t: m.infill([0, -1], t),
        TypeError,
        "text: expected a text with blanks, or ids as a tensor",
    ),
    "name": (
        lambda m, t: m.infill("a [M]", "gpt2"),
        TypeError,
        "tokenizer: a text needs the network's tokenizer, got str",
    ),
    "tokenizer first": (
        lambda m, t: m.infill(t, "a [M]"),
        TypeError,
        "got GPT2Tokenizer.*; score_text takes the tokenizer before the text, infill after it",
    ),
    "text first": (lambda m, t: m.score_text("a [M]", t), TypeError, "; score_text takes the tokenizer before the tex"),
    "longer than the network": (
        lambda m, t: m.infill("a [M:64] [M:64]", t),
        ValueError,
        "text: expected at most n_positions=128 tokens with its start and blanks, got 130; shorten it",
    ),
    "size 0": (lambda m, t: m.infill("a [M:0]", t), ValueError, "a blank of 1 to"),
    "no size": (lambda m, t: m.infill("a [M:x]", t), ValueError, r"got '\[M:x\]'"),
    "not text": (lambda m, t: m.infill(7, t), TypeError, "text: expected a text with blanks"),
    "no tokenizer": (lambda m, t: m.infill("a [M]"), TypeError, "tokenizer: a text needs the network's tokenizer"),
    "ids without blanks": (lambda m, t: m.infill(torch.tensor([[5, 6]])), ValueError, "input_ids: expected -1 at the"),
    "samples": (lambda m, t: m.infill("a [M]", t, samples=0), ValueError, "samples: expected at least 1, got 0"),
    "too long": (
        lambda m, t: score_text(m, t, "The cat [M]", answers=["sat down"]),
        ValueError,
        r"answers: ' sat down' has 2 tokens, its blank 1; write \[M:2\] for it",
    ),
    "one text for two blanks": (lambda m, t: score_text(m, t, "[M] [M]", ["a"]), TypeError, "for each of 2 blanks"),
    "too few": (lambda m, t: score_text(m, t, "[M] [M]", [("a",)]), ValueError, "for each of 2 blanks, got 1"),
    "bare text": (lambda m, t: score_text(m, t, "a [M]", "b"), TypeError, "answers: expected a list of candidates"),
    "none": (lambda m, t: score_text(m, t, "a [M]", []), ValueError, "answers: expected at least one candidate"),
    "no answers": (lambda m, t: score_text(m, t, "a [M:2]"), ValueError, "answers: needed where more than one token"),
    "top": (lambda m, t: score_text(m, t, "a [M]", top=0), ValueError, "top: expected at least 1, got 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_slips_are_told_in_one_line(name: str, model: Any, tokenizer: Any) -> None:
    call, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message) as caught:
        call(model, tokenizer)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300
