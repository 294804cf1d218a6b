"""Masks of another copy of these files: a model loaded with its own code has its own classes.

What `causal()` of the installed package makes is no mask to such a model, nor the other way round, until it is rebuilt.
"""

import ast
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from torch import Tensor

from .mask import PATTERNS, Mask
from .text import kind_of

# what Mask has had in every version
_KNOWN_BY = ("allowed", "operands", "shifted", "takes_tensors")
_ADVICE = "pass mask.dense(...), a tensor, or load a model saved with the same code"


def from_foreign(value: Any) -> Any:
    """A mask made by another copy of these files in the classes of this copy; anything else as it is.

    What it holds is kept, tensors as the same objects.

    Raises:
        ValueError: a mask that this copy has not, or has with other fields or as another function; one line.
    """
    return _from_foreign(value, {})


def as_mask(value: object, name: str = "mask") -> Mask:
    """What people write for a mask, as one: a `Mask` of this or another copy, its text, or a 0-1 tensor.

    `name` is the argument's, for errors.

    Raises:
        TypeError: something else. ValueError: a text or tensor that cannot be read; one line.
    """
    value = from_foreign(value)
    if isinstance(value, Mask):
        return value
    if isinstance(value, str):
        return Mask.parse(value)
    if isinstance(value, Tensor):
        return Mask.of(value)
    raise TypeError(f"{name}: expected a Mask, its text or a 0-1 tensor, got {kind_of(value)}")


def definition_of(source: str | None) -> str | None:
    """A function's text without its name, decorators, comments and layout; None where it is no def by itself."""
    try:
        first = ast.parse(source or "").body[0]
    except (SyntaxError, IndexError):
        return None
    if not isinstance(first, ast.FunctionDef):
        return None
    first.name, first.decorator_list = "rule", []
    return ast.unparse(first)


def _from_foreign(value: Any, known: dict[int, Mask]) -> Any:
    if isinstance(value, tuple):
        return tuple(_from_foreign(part, known) for part in value)
    if isinstance(value, Mask | Tensor | str | int | None) or not any(map(_is_mask_class, type(value).__mro__)):
        return value
    if id(value) not in known:
        kind = _kind_like(type(value))
        own: Mask = object.__new__(kind)
        for field in fields(kind):  # type: ignore[arg-type]
            object.__setattr__(own, field.name, _from_foreign(getattr(value, field.name), known))
        # operands that are one object stay one: heads evaluates each but once
        known[id(value)] = own
    return known[id(value)]


def _is_mask_class(kind: type[Any]) -> bool:
    # in which file it stands differs: a saved checkpoint holds one file a room, and older ones held others
    return kind.__name__ == Mask.__name__ and all(hasattr(kind, name) for name in _KNOWN_BY)


def _kind_like(kind: type[Any]) -> type[Mask]:
    name = kind.__name__[:60]
    # custom patterns are known by their names in texts, the others by those of their classes
    is_custom = hasattr(kind, "rule")
    alike = (one for one in _descendants(Mask) if one.__name__ == kind.__name__ and not hasattr(one, "rule"))
    own = PATTERNS.get(kind.__name__) if is_custom else next(alike, None)
    if own is None:
        raise ValueError(f"mask: {name} of another copy of the package is not known to this one; {_ADVICE}")
    if is_custom and _definition(kind) != _definition(own):
        raise ValueError(f"mask: {name} of another copy of the package is another function in this one; {_ADVICE}")
    here, there = ([field.name for field in fields(one)] for one in (own, kind))  # type: ignore[arg-type]
    if here != there:
        raise ValueError(f"mask: {name} of another copy of the package has other fields in this one; {_ADVICE}")
    return own


def _definition(kind: type[Any]) -> str | None:
    return definition_of(getattr(kind, "source", None))


def _descendants(kind: type[Any]) -> Iterator[type[Any]]:
    for one in kind.__subclasses__():
        yield one
        yield from _descendants(one)
