"""A text and its blanks: what typing and clicking make of it, and that both say the same."""

import itertools

import pytest

from arbprob_hf.demo.network import Network
from arbprob_hf.demo.passage import Passage, current_passage, read_passage, toggled
from tests.demo.micro_networks import micro_network

TEXTS = [
    "Return the number of items in the list.",
    "The  cat  sat on the caf\u00e9's mat. \n x",
    "unbelievable words (and others), 1234 of them",
    "  begins and ends with spaces ",
    "one",
]


def typed(passage: Passage, network: Network) -> Passage:
    """The same text as somebody writes it who has not clicked."""
    return read_passage(passage.text, network)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_becomes_the_start_and_its_tokens(text: str, network: Network) -> None:
    passage = read_passage(text, network)
    assert list(passage.tokens) == [50256, *network.tokenizer.encode(text)]
    assert (passage.text, passage.blanks, passage.is_known) == (text, (), True)
    assert passage.ids().tolist() == passage.answers().tolist() == [list(passage.tokens)]


@pytest.mark.parametrize("text", TEXTS)
def test_clicks_write_what_is_read_as_the_same_question(text: str, network: Network) -> None:
    whole = read_passage(text, network)
    positions = range(1, len(whole))
    for chosen in [*itertools.combinations(positions, 1), *itertools.combinations(positions, 2)]:
        passage = whole
        for position in chosen:
            passage = toggled(passage, position, network)
        assert passage.blanks == chosen
        assert typed(passage, network).ids().tolist() == passage.ids().tolist(), passage.text


@pytest.mark.parametrize("text", TEXTS)
def test_two_clicks_change_nothing(text: str, network: Network) -> None:
    whole = read_passage(text, network)
    for position in range(1, len(whole)):
        assert toggled(toggled(whole, position, network), position, network) == whole


def test_blanks_in_a_row_are_written_as_one(network: Network) -> None:
    passage = read_passage("Return the number of items.", network)
    for position in (3, 2, 4):
        passage = toggled(passage, position, network)
    assert passage.text == "Return [M:3] items."
    assert passage.runs() == [[2, 3, 4]]


def test_half_a_character_can_be_blank_as_clicks_are_remembered(network: Network) -> None:
    whole = read_passage("a \U0001f9a9 b", network)
    clicked = toggled(whole, 3, network)
    assert "\ufffd" in clicked.text
    assert typed(clicked, network).ids().tolist() != clicked.ids().tolist()
    assert read_passage(clicked.text, network, clicked) is clicked
    assert toggled(clicked, 3, network) == whole


def test_a_text_that_clicks_have_changed_since_is_not_taken_for_a_new_one(network: Network) -> None:
    whole = read_passage("The cat sat on", network)
    clicked = toggled(toggled(whole, 2, network), 3, network)
    for late in ("The cat sat on", "The [M] sat on", "The [M:2] on"):
        assert current_passage(late, network, clicked) is clicked
    assert current_passage("The dog sat on", network, clicked).blanks == ()
    assert read_passage("The cat sat on", network, clicked) == whole


def test_a_typed_blank_hides_the_token_that_stood_there(network: Network) -> None:
    before = read_passage("The cat sat on the mat", network)
    now = read_passage("The cat [M] on the [M]", network, before)
    assert (now.tokens, now.blanks) == (before.tokens, (3, 6))
    assert toggled(toggled(now, 3, network), 6, network) == before


def test_a_typed_blank_in_another_text_hides_nothing_known(network: Network) -> None:
    now = read_passage("The dog [M] on", network, read_passage("The cat sat on", network))
    assert not now.is_known
    with pytest.raises(ValueError, match="token: nobody knows what this blank hides; write a word for it in the text"):
        toggled(now, 3, network)
    assert toggled(now, 2, network).text == "The [M:2] on"
    assert read_passage("The dog sat on", network, now).is_known


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text: expected a text, got nothing; write some words"),
        (" \n", "text: expected a text, got nothing"),
        ("The [mask] sat", r"text: expected blanks \[M\], or \[M:3\] for three tokens, got '\[mask\]'"),
        ("The [M:0] sat", r"text: expected a blank of 1 to 100000 tokens, got '\[M:0\]'"),
        ("word " * 39, "text: expected at most n_positions=40 tokens with its start and blanks, got 41; shorten it"),
        ("a [M:90]", "expected at most n_positions=40 tokens with its start and blanks, got 92"),
    ],
    ids=["empty", "white", "misspelt", "no tokens", "long", "long blank"],
)
def test_what_cannot_be_read_is_refused_in_a_line(text: str, message: str, network: Network) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_passage(text, network)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_network_is_refused() -> None:
    small = micro_network(vocab_size=100, bos_token_id=0, eos_token_id=0)
    with pytest.raises(ValueError, match="tokenizer: gives ids up to 50256, the network knows 100 tokens"):
        read_passage("The cat", small)


@pytest.mark.parametrize("position", [0, 5])
def test_there_is_no_token_before_the_first_or_after_the_last(position: int, network: Network) -> None:
    with pytest.raises(ValueError, match=f"token: expected 1 to 4, got {position}"):
        toggled(read_passage("The cat sat on", network), position, network)
