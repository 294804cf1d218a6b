"""Reads options as text, flat: a YAML file first, then `--field value` pairs on top of it."""

import difflib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

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


class UsageError(ValueError):
    """What the user asked for cannot be understood; the message is one line and says what to change."""


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
        options[name] = Option(_use_cpu(value) if given == "device" else value, where)
    return options


def _advice(given: str, known: Collection[str]) -> str:
    if given in MOVED:
        return MOVED[given]
    near = difflib.get_close_matches(given, [*known, *ALIASES], n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "--help lists them all"


def _use_cpu(value: Any) -> str:
    # imported here: torch takes seconds, and most mistakes should be told before
    import torch

    kind = str(value).removesuffix(":0")
    if kind not in _DEVICES:
        more = "; choose among several GPUs with CUDA_VISIBLE_DEVICES" if str(value).startswith("cuda:") else ""
        raise UsageError(f"device: expected one of {', '.join(_DEVICES)}, got {value!r:.60}{more}")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, True):
        raise UsageError(f"device: {value} asked for, but torch finds no {kind.upper()} device; use device cpu or auto")
    return "true" if kind == "cpu" or (kind == "auto" and not torch.accelerator.is_available()) else "false"
