"""Holding out by document, and cutting a long text into documents."""

import logging

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from arbprob_hf.data import documents
from arbprob_hf.data.documents import hold_out, passages, pieces


def texts(count: int) -> list[str]:
    return [f"document number {number}" for number in range(count)]


def split(rows: list[str | None], share: float = 0.05) -> tuple[list[str], list[str]]:
    train, validation = hold_out(Dataset.from_dict({"text": rows}), share)
    return train["text"][:], validation["text"][:]


@pytest.mark.parametrize(("count", "share", "held"), [(200, 0.05, 10), (3, 0.05, 1), (2, 0.9, 1), (10, 0.5, 5)])
def test_the_share_counts_documents_and_leaves_both_sides_some(count: int, share: float, held: int) -> None:
    train, validation = split(texts(count), share)
    assert len(validation) == held
    assert sorted(train + validation) == sorted(texts(count))


def test_both_sides_keep_the_order() -> None:
    train, validation = split(texts(200))
    assert train == [text for text in texts(200) if text in set(train)]
    assert validation == [text for text in texts(200) if text in set(validation)]


def test_equal_documents_stay_on_one_side() -> None:
    train, validation = split(texts(60) * 3, 0.2)
    assert not set(train) & set(validation)
    assert len(validation) == 3 * 12


def test_the_order_of_documents_does_not_decide() -> None:
    assert set(split(texts(100))[1]) == set(split(texts(100)[::-1])[1])


def test_more_documents_leave_most_of_the_split_as_it_was() -> None:
    before, after = set(split(texts(1000))[1]), set(split(texts(1100))[1])
    assert len(before & after) >= 0.8 * len(before)


def test_blank_documents_are_never_held_out() -> None:
    assert split([None, "", " \n", *texts(2)], 0.9)[1] in (["document number 0"], ["document number 1"])


def test_a_single_document_is_cut_into_passages(caplog: pytest.LogCaptureFixture) -> None:
    text = "\n\n".join(f"Paragraph {number}. " + "word " * 300 for number in range(40))
    with caplog.at_level(logging.INFO, documents.__name__):
        train, validation = split([text])
    assert len(validation) == 1
    assert sorted("".join(train + validation).split()) == sorted(text.split())
    assert "the source is one document, cut into" in caplog.text


@pytest.mark.parametrize(("rows", "count"), [(["short"], "1"), (["", None], "no"), (["same"] * 5, "1")])
def test_too_little_to_hold_one_out_is_refused(rows: list[str | None], count: str) -> None:
    with pytest.raises(ValueError, match=f"^the source holds {count} document with text, not enough"):
        split(rows)


@given(st.text(alphabet="ab \n", max_size=120), st.integers(1, 30))
def test_passages_are_the_text_in_order(text: str, least: int) -> None:
    assert "".join(passages(text, least)).rstrip() == text.rstrip()
    assert all(len(passage) >= least for passage in list(passages(text, least))[:-1])


def test_passages_are_cut_behind_blank_lines() -> None:
    assert list(passages("one\ntwo\n\nthree\n\nfour", 4)) == ["one\ntwo\n\n", "three\n\n", "four"]


def test_without_blank_lines_passages_are_cut_behind_lines() -> None:
    assert list(passages("one\ntwo\nthree\n", 5)) == ["one\ntwo\n", "three\n"]


def test_without_lines_passages_are_cut_before_spaces_and_without_spaces_anywhere() -> None:
    assert list(passages("ab cde fg hij klm nop qr " * 2, 3)) == [
        *("ab cde", " fg", " hij", " klm", " nop", " qr", " ab", " cde", " fg", " hij", " klm", " nop qr "),
    ]
    assert list(passages("x" * 50, 3)) == [*["xxxxxx"] * 7, "x" * 8]
    # a line that is long alone
    assert list(passages("short\n" + "ab " * 20 + "\nshort", 3))[:4] == ["short\n", "ab ab", " ab", " ab"]


def test_pieces_are_what_separators_part() -> None:
    assert pieces("one<|endoftext|>\n<|endoftext|> two<|endoftext|>") == ["one", " two"]
    assert pieces(None) == []
