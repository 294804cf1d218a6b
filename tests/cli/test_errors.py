"""Wording of errors: one line, the innermost cause, and integers within bounds."""

from typing import Any

import numpy as np
import pytest

from arbprob_hf.errors import check_integer, one_line, reason, root_cause


def caused() -> Exception:
    try:
        try:
            raise OSError("the disk\n  is full")
        except OSError as error:
            raise ValueError("cannot save") from error
    except ValueError as error:
        return error


def test_one_line_joins_lines_and_names_the_class_of_an_exception_without_words() -> None:
    assert one_line("a\n   b\t c ") == "a b c"
    assert one_line(ValueError("a\nb")) == "a b"
    assert one_line(ValueError()) == "ValueError"


def test_the_innermost_cause_is_what_is_said() -> None:
    assert type(root_cause(caused())) is OSError
    assert reason(caused()) == "the disk is full"
    assert reason(caused(), width=8) == "the d..."


@pytest.mark.parametrize("value", [2, 5, np.int64(3)], ids=repr)
def test_an_integer_within_bounds_is_returned_as_int(value: Any) -> None:
    found = check_integer("seed", value, low=2, high=5)
    assert found == value
    assert type(found) is int


@pytest.mark.parametrize(
    ("value", "high", "kind", "message"),
    [
        (1, None, ValueError, "^seed: expected an integer of at least 2, got 1$"),
        (6, 5, ValueError, "^seed: expected an integer from 2 to 5, got 6$"),
        (3.0, None, TypeError, r"^seed: expected an integer of at least 2, got 3\.0$"),
        (True, 5, TypeError, "^seed: expected an integer from 2 to 5, got True$"),
        ("3", 5, TypeError, "^seed: expected an integer from 2 to 5, got '3'$"),
    ],
)
def test_another_value_is_refused_with_name_bounds_and_value(
    value: Any, high: int | None, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        check_integer("seed", value, low=2, high=high)
