"""Old names of modules that are now in `oracles` and `analysis`; they work, with a warning, for one release."""

import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING

from ..lazy import lazy_names


def stand_in(old: str, new: str) -> None:
    """Make `old`, the module that is being imported, the module `new` itself, with a FutureWarning at its importer."""
    warnings.warn(f"{old} is now {new}; the old name works for one release", FutureWarning, stacklevel=3)
    sys.modules[old] = import_module(new)


if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, {})
