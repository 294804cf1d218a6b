"""Reads options as text, flat: a YAML file first, then `--field value` pairs on top of it."""

from __future__ import annotations

import difflib
import json
import math
import os
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from ...errors import UsageError

# the classic names of training scripts; accepted wherever an option is
ALIASES: dict[str, str] = {
    "max_epochs": "num_train_epochs",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "lr": "learning_rate",
    "log_interval": "logging_steps",
    "eval_interval": "eval_steps",
    "save_interval": "save_steps",
    "num_workers": "dataloader_num_workers",
    "device": "use_cpu",
    "resume": "resume_from_checkpoint",
}
# `device` is the one alias whose values differ too
_DEVICES = ("cpu", "auto", "cuda", "mps")
# what older versions of transformers called it, and where it went
MOVED: dict[str, str] = {
    "evaluation_strategy": "use eval_strategy",
    "group_by_length": "use train_sampling_strategy",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "no_cuda": "use use_cpu",
    "overwrite_output_dir": "give another output_dir, or resume_from_checkpoint true",
    "warmup_ratio": "use warmup_steps: a value below 1 is a share of all steps",
    "dropout_rate": "use dropout",
    "hub_token": "log in with `hf auth login` instead: an option would be stored with every checkpoint",
}

COMMAND_LINE = "on the command line"


@dataclass(frozen=True)
class Option:
    """An option as given: `value` is text, or a list or mapping of it; `where` a file or `COMMAND_LINE`."""

    value: Any
    where: str


class _TextLoader(yaml.BaseLoader):
    """YAML whose scalars all stay text: 1e-4, 3, no and null are for the field's own type to read."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise UsageError(f"{twice}: given twice in {node.start_mark.name}; keep one")
        return super().construct_mapping(node, deep=deep)


def parse_yaml(text: str, name: str) -> Any:
    """The YAML `text` with every scalar left as text; `name` says in errors where it came from."""
    loader = _TextLoader(text)
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{name}{line}: not valid YAML: {getattr(error, 'problem', None) or 'unreadable'}") from None
    finally:
        loader.dispose()


def read_options(argv: Sequence[str], known: Collection[str]) -> dict[str, Option]:
    """Options by their own name: those of `--config FILE`, overridden by the `--field value` pairs of `argv`.

    Raises UsageError: an unknown name (the nearest known one is named), a name given twice, an unreadable
    file.
    """
    pairs = _pairs(argv)
    files = [value for name, value in pairs if name == "config"]
    if len(files) > 1:
        raise UsageError("--config: given twice; give one file and override its fields as --field value")
    options = _named(_file_pairs(Path(files[0])), known, where=f"in {files[0]}") if files else {}
    options.update(_named([pair for pair in pairs if pair[0] != "config"], known, where=COMMAND_LINE))
    return options


def _pairs(argv: Sequence[str]) -> list[tuple[str, str]]:
    pairs, words = [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            raise UsageError(
                f"{word[:60]!r}: expected an option such as --learning_rate 1e-3 (quote a value with spaces)"
            )
        name, equals, value = word[2:].partition("=")
        if not equals:
            # a bare --flag means true
            value = "true" if not words or words[0].startswith("--") else words.pop(0)
        pairs.append((name.replace("-", "_"), value))
    return pairs


def _file_pairs(path: Path) -> list[tuple[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"--config: cannot read {path}: {reason}") from None
    content = parse_yaml(text, os.fspath(path))
    if content is None or content == "":
        return []
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected lines of `field: value`, got {type(content).__name__}")
    return [(str(name), value) for name, value in content.items()]


def _named(pairs: Sequence[tuple[str, Any]], known: Collection[str], *, where: str) -> dict[str, Option]:
    options: dict[str, Option] = {}
    names: dict[str, str] = {}
    for given, value in pairs:
        name = ALIASES.get(given, given)
        if name not in known:
            raise UsageError(f"{given}: unknown option {where}; {_advice(given, known)}")
        if name in names:
            both = f", as {names[name]} and {given}" if names[name] != given else ""
            raise UsageError(f"{name}: given twice {where}{both}; keep one")
        names[name] = given
        options[name] = Option(value, where)
    # last: it may need torch, which takes seconds
    if names.get("use_cpu") == "device":
        options["use_cpu"] = Option(_use_cpu(options["use_cpu"].value), where)
    return options


def _advice(given: str, known: Collection[str]) -> str:
    if given in MOVED:
        return MOVED[given]
    near = difflib.get_close_matches(given, [*known, *ALIASES], n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "--help lists them all"


def _use_cpu(value: Any) -> str:
    kind = str(value).removesuffix(":0")
    if kind not in _DEVICES:
        more = "; choose among several GPUs with CUDA_VISIBLE_DEVICES" if str(value).startswith("cuda:") else ""
        raise UsageError(f"device: expected one of {', '.join(_DEVICES)}, got {value!r:.60}{more}")
    if kind == "cpu":
        return "true"
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, True):
        raise UsageError(f"device: {value} asked for, but torch finds no {kind.upper()} device; use device cpu or auto")
    return "true" if kind == "auto" and not torch.accelerator.is_available() else "false"


def resume_choice(value: str | bool | None) -> str | bool:
    """What `resume_from_checkpoint` asks for: False (start), True (the newest of the output folder) or a path.

    The words that a command line takes for booleans (true, yes, on, 1 and their opposites) count as such.
    """
    word = value.strip().lower() if isinstance(value, str) else None
    if word in TRUE:
        return True
    return False if value is None or word in (*FALSE, "") else value


def refuse_missing(choice: str | bool) -> None:
    """Raise UsageError when `choice` is a path at which there is nothing: asked before the text is prepared."""
    if isinstance(choice, str) and not Path(choice).exists():
        raise UsageError(
            f"resume_from_checkpoint: {choice} does not exist; name a checkpoint, or true for the newest that verifies"
        )


_NULLS = ("", "null", "none", "~")
TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    type(None): "null",
}


def coerce(name: str, value: Any, hint: Any, default: Any = None) -> Any:
    """`value` as `hint` wants it: text, a list or a mapping of text in, the typed value out.

    "1e-4" becomes a float where a float is wanted and stays text where text is; `null`, `none` and nothing at
    all mean None where None is allowed. Raises UsageError, naming the option, what was expected and given.
    """
    if isinstance(value, str) and hint is not Any:
        return _from_text(name, value, _kinds(hint), default)
    return _from_tree(name, value, _kinds(hint))


def _from_tree(name: str, value: Any, kinds: Sequence[Any]) -> Any:
    if Any in kinds or (isinstance(value, dict) and dict in map(_base, kinds)):
        return _plain(value)
    items = next((kind for kind in kinds if _base(kind) is list), None)
    if isinstance(value, list) and items is not None:
        return [coerce(name, item, *(get_args(items) or (Any,))) for item in value]
    raise _wrong(name, value, kinds)


def _from_text(name: str, text: str, kinds: Sequence[Any], default: Any) -> Any:
    # "none" is a value of its own for some options (report_to), and then it is their default
    if isinstance(default, str) and not isinstance(default, Enum) and text == default:
        return text
    if type(None) in kinds and text.strip().lower() in _NULLS:
        return None
    if text.lstrip()[:1] in ("[", "{") and {list, dict}.intersection(map(_base, kinds)):
        parsed = parse_yaml(text, name)
        if not isinstance(parsed, str):
            return _from_tree(name, parsed, kinds)
    choices = [member.value for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum) for member in kind]
    if choices and text not in choices:
        more = ", ..." if len(choices) > 12 else ""
        raise UsageError(f"{name}: expected one of {', '.join(map(str, choices[:12]))}{more}, got {text!r:.60}")
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
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        return None
    # digits are exact, 1e3 is a whole number too
    return number if kind is float else int(word) if word.lstrip("+-").isdigit() else int(number)


def _plain(value: Any) -> Any:
    """Text inside an untyped container, read as JSON would: numbers, true, false, null, else text."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    found = (_scalar(value, kind, only=False) for kind in (int, float))
    number = next((one for one in found if one is not None), None)
    return {"true": True, "false": False, "null": None}.get(value, value) if number is None else number


def _kinds(hint: Any) -> list[Any]:
    """The alternatives of a possibly nested union; literals count as the type of their values."""
    if get_origin(hint) in (Union, types.UnionType):
        return [kind for part in get_args(hint) for kind in _kinds(part)]
    return [type(value) for value in get_args(hint)] if get_origin(hint) is Literal else [hint]


def _base(kind: Any) -> Any:
    return get_origin(kind) or kind


def _wrong(name: str, value: Any, kinds: Sequence[Any]) -> UsageError:
    bases = [_base(kind) for kind in kinds]
    expected = dict.fromkeys(_WORDS.get(base, f"a {getattr(base, '__name__', base)}") for base in bases)
    shown = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return UsageError(f"{name}: expected {' or '.join(expected)}, got {shown[:60]}")
