"""Tables of cases of which `make test` takes a few and `make test-long` the rest."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def quick(cases: Iterable[Any], taken: Collection[Any]) -> list[Any]:
    """The cases as parameters, those that are not `taken` marked long; a name that is no case is refused."""
    listed = list(cases)
    assert [name for name in taken if name not in listed] == [], "no such case"
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if case in taken else pytest.mark.long)
        for case in listed
    ]
