"""Rules of one's own that the masks of a saved model use, by name; the package itself has none."""

from collections.abc import Callable

RULES: dict[str, Callable[..., object]] = {}
