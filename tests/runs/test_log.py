"""The training log: what is kept on resume, what a crash may leave, and the figures in it."""

import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbprob_hf.runs.log import COLUMNS, CsvLog, read_log
from arbprob_hf.training.eval_modes import bits_per_byte, perplexity


def book_with_steps(folder: Path, *steps: int) -> CsvLog:
    book = CsvLog(folder / "logs" / "training_log.csv")
    book.start()
    for step in steps:
        book.append({"step": step, "loss": 1 / step})
    return book


def steps_in(book: CsvLog) -> list[float | None]:
    return [row["step"] for row in read_log(book.path)]


def test_the_columns_are_those_promised(tmp_path: Path) -> None:
    book = book_with_steps(tmp_path)
    assert book.path.read_text() == (
        "step,epoch,loss,learning_rate,grad_norm,tokens_seen,tokens_per_second,eval_loss,perplexity,bits_per_byte\n"
    )


def test_resume_drops_what_was_logged_after_the_checkpoint(tmp_path: Path) -> None:
    book = book_with_steps(tmp_path, 1, 2, 3, 4, 5)
    book.resume(3)
    assert steps_in(book) == [1, 2, 3]


def test_resume_changes_nothing_in_what_it_keeps(tmp_path: Path) -> None:
    book = book_with_steps(tmp_path, 1, 3, 7)
    before = book.path.read_bytes()
    book.resume(7)
    assert book.path.read_bytes() == before


def test_start_forgets_an_earlier_log(tmp_path: Path) -> None:
    book = book_with_steps(tmp_path, 1, 2)
    book.start()
    assert steps_in(book) == []


def test_resume_without_a_log_begins_one(tmp_path: Path) -> None:
    book = CsvLog(tmp_path / "logs" / "training_log.csv")
    book.resume(5)
    assert steps_in(book) == []


@given(st.integers(min_value=0, max_value=200))
def test_a_log_cut_off_anywhere_loses_at_most_its_last_line(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        book = book_with_steps(Path(folder), *range(1, 12))
        whole = book.path.read_bytes()
        header = len(",".join(COLUMNS)) + 1
        kept = whole[: header + cut]
        book.path.write_bytes(kept)
        complete = kept.count(b"\n") - 1
        book.resume(11)
        # a line that lacks only its end may be kept: every one of its figures is there
        assert steps_in(book)[:complete] == list(range(1, complete + 1))
        assert len(steps_in(book)) <= complete + 1
        book.append({"step": 12})
        assert steps_in(book)[-1] == 12


def test_a_file_that_is_no_log_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "training_log.csv"
    path.write_text("my,own\n1,2\n")
    with pytest.raises(ValueError, match="expected a training log whose first line is step,epoch,loss"):
        CsvLog(path).resume(1)
    assert path.read_text() == "my,own\n1,2\n"


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    assert perplexity(math.log(50257)) == pytest.approx(50257)


def test_perplexity_of_a_hopeless_loss_is_infinite() -> None:
    assert perplexity(1000.0) == math.inf


def test_bits_per_byte_of_a_uniform_guess_at_bytes_is_eight() -> None:
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8)


def test_bits_per_byte_counts_bytes_not_tokens() -> None:
    assert bits_per_byte(2.0, 4.0) == pytest.approx(bits_per_byte(1.0, 2.0))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_bits_per_byte_needs_bytes(value: float) -> None:
    with pytest.raises(ValueError, match="bytes_per_token: expected a number above 0"):
        bits_per_byte(1.0, value)
