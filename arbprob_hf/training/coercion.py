"""Turns the text of an option, from YAML or the command line, into the type its field is annotated with."""

import json
import math
import types
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from .options import UsageError, parse_yaml

_NULLS = ("", "null", "none", "~")
TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")


def coerce(name: str, value: Any, hint: Any, default: Any = None) -> Any:
    """`value` as `hint` wants it: text, a list or a mapping of text in, the typed value out.

    "1e-4" becomes a float where a float is wanted and stays text where text is; `null`, `none` and nothing at
    all mean None where None is allowed. Raises UsageError, naming the option, what was expected and given.
    """
    kinds = _kinds(hint)
    if isinstance(value, str):
        return _from_text(name, value, hint, default)
    if isinstance(value, list) and _container(kinds, list) is not None:
        item = (get_args(_container(kinds, list)) or (Any,))[0]
        return [_plain(v) if item is Any else coerce(name, v, item) for v in value]
    if isinstance(value, dict) and _container(kinds, dict) is not None:
        return _plain(value)
    raise _wrong(name, value, kinds)


def _from_text(name: str, text: str, hint: Any, default: Any) -> Any:
    kinds = _kinds(hint)
    # "none" is a value of its own for some options (report_to), and then it is their default
    if isinstance(default, str) and not isinstance(default, Enum) and text == default:
        return text
    if type(None) in kinds and text.strip().lower() in _NULLS:
        return None
    if text.lstrip()[:1] in ("[", "{") and (_container(kinds, list) or _container(kinds, dict)):
        parsed = parse_yaml(text, name)
        if not isinstance(parsed, str):
            return coerce(name, parsed, hint)
    choices = [member.value for kind in kinds if _is_enum(kind) for member in kind]
    if choices and text not in choices:
        raise UsageError(f"{name}: expected one of {_shortened(choices)}, got {text!r:.60}")
    for kind in (bool, int, float):
        found = _scalar(text, kind, only=str not in kinds) if kind in kinds else None
        if found is not None:
            return found
    if str in kinds or choices:
        return text
    raise _wrong(name, text, kinds)


def _scalar(text: str, kind: type, *, only: bool) -> bool | int | float | None:
    """The number or truth value that `text` spells, or None; `only`: no text is wanted, so yes is true."""
    word = text.strip().lower()
    if kind is bool:
        true, false = (TRUE, FALSE) if only else (TRUE[:1], FALSE[:1])
        return True if word in true else False if word in false else None
    try:
        number = float(word)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    if kind is float:
        return number
    return (int(word) if word.lstrip("+-").isdigit() else int(number)) if number == int(number) else None


def _plain(value: Any) -> Any:
    """Text inside an untyped container, read as JSON would: numbers, true, false, null, else text."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    found = _scalar(value, int, only=False)
    if found is None:
        found = _scalar(value, float, only=False)
    if found is not None:
        return found
    return {"true": True, "false": False, "null": None}.get(value, value)


def _kinds(hint: Any) -> list[Any]:
    """The alternatives of a possibly nested union; literals count as the type of their values."""
    if get_origin(hint) in (Union, types.UnionType):
        return [kind for part in get_args(hint) for kind in _kinds(part)]
    if get_origin(hint) is Literal:
        return [type(value) for value in get_args(hint)]
    return [hint]


def _container(kinds: Sequence[Any], base: type) -> Any:
    return next((kind for kind in kinds if kind is base or get_origin(kind) is base), None)


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _wrong(name: str, value: Any, kinds: Sequence[Any]) -> UsageError:
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a finite number",
        str: "text",
        type(None): "null",
    }
    expected = [
        words.get(get_origin(kind) or kind, f"a {getattr(get_origin(kind) or kind, '__name__', kind)}")
        for kind in kinds
    ]
    shown = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return UsageError(f"{name}: expected {' or '.join(dict.fromkeys(expected))}, got {shown[:60]}")


def _shortened(choices: Sequence[Any]) -> str:
    text = ", ".join(str(choice) for choice in choices[:12])
    return f"{text}, ..." if len(choices) > 12 else text
