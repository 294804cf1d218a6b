"""Writes the code that a saved model carries: one file a room, generated from the files of the room.

transformers loads the code of a checkpoint from flat files, and fetches each by itself; so the rooms of this package,
which are folders, become a handful of files. Comments and docstrings stay as they are. This file stays at home: a model
that was loaded with its own code has that copied by transformers.
"""

import ast
import functools
import os
import re
import sys
import textwrap
from collections.abc import Collection, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from ..version import __version__
from .configuration_arbprob import ArbProbConfig
from .masks.mask import Mask
from .saved_patterns import CUSTOM_FILE, RULES_LINE, carried_code

MODEL = Path(__file__).parent
# file of the bundle -> its modules, a folder or files of this one; each file may import those above it
ROOMS = {
    "configuration_arbprob": ("configuration_arbprob",),
    "masks_arbprob": ("masks",),
    "attention_arbprob": ("attention",),
    "questions_arbprob": ("questions",),
    "modeling_arbprob": (
        "saved_patterns",
        "saved_weights",
        "validation",
        "layers",
        "lm_head",
        "lean_step",
        "generation",
        "slot_passes",
        "modeling_arbprob",
        "classifiers",
    ),
}
# what each file ends with
_ENDINGS = {
    "configuration_arbprob": """
ArbProbConfig.register_for_auto_class()

if TYPE_CHECKING:
    # never run: transformers keeps copies of this code apart by this file and the files that it names
    from .modeling_arbprob import ArbProbModel  # noqa: F401
""",
    "modeling_arbprob": """
# transformers copies this file, and those it names, beside every model that is saved again
ArbProbModel.register_for_auto_class("AutoModel")
ArbProbForCausalLM.register_for_auto_class("AutoModelForCausalLM")
ArbProbForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
ArbProbForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
ArbProbForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
""",
}
# of the two files that transformers asks for
_IN_PACKAGE = """
# transformers enters this module into sys.modules alone; dill, which datasets uses, finds classes through their package
setattr(import_module(__name__.rpartition(".")[0]), __name__.rpartition(".")[2], modules[__name__])
"""
_REGISTERED = """
for _name, _rule in RULES.items():
    pattern(name=_name)(_rule)
"""
# further files of checkpoints that held one file a module; a save into the same folder replaces them
_FORMER = """
adopting blanks blocks branching carrying checking classes conditioning continuing flex foreseeing
generating heads labelling layouts losses masking parsing patterns plans products querying reaching registering
resolving sampling scoring stepping structure tables tiled tiling
"""
_WIDTH = 120


def write_code(config: ArbProbConfig, folder: str | os.PathLike[str]) -> None:
    """Write into `folder` the code of a model of this configuration, over what a save wrote there before.

    Where a mask names patterns that are not known here, a `custom_arbprob.py` that lies there stays.

    Raises:
        ValueError: a custom pattern of its masks cannot stand by itself; one line with the reason.
    """
    there = Path(folder) / CUSTOM_FILE
    try:
        masks = [Mask.parse(text) for text in config.mask_texts]
    except ValueError:
        files = bundle(has_custom=there.exists())
    else:
        custom = carried_code(masks)
        files = bundle(has_custom=custom is not None)
        if custom is not None:
            files[CUSTOM_FILE] = custom
        elif there.exists() and RULES_LINE in there.read_text(encoding="utf-8"):
            there.unlink()
    _remove_former(Path(folder), files)
    for name, code in files.items():
        # also where nothing changed: transformers uploads what is newer than the save
        (Path(folder) / name).write_text(code, encoding="utf-8", newline="\n")


def _remove_former(folder: Path, files: Collection[str]) -> None:
    # a folder that holds them all is a checkpoint of then; a file of one of the names may be the user's
    former = [folder / f"{name}_arbprob.py" for name in _FORMER.split()]
    if all(path.exists() for path in former):
        for path in former:
            if path.name not in files:
                path.unlink()


def bundle(*, has_custom: bool = False) -> dict[str, str]:
    """The files that every saved model carries, name to text; `has_custom`: beside a `custom_arbprob.py`."""
    return dict(_bundle(has_custom))


@functools.cache
def _bundle(has_custom: bool) -> dict[str, str]:
    rooms = {file: [_Module(path) for path in _paths(entries)] for file, entries in ROOMS.items()}
    homes = {module.name: file for file, modules in rooms.items() for module in modules}
    texts = {}
    for file, modules in rooms.items():
        endings = [_ENDINGS.get(file, "")]
        extra = []
        if file == "configuration_arbprob":
            extra.append("from typing import TYPE_CHECKING")
        if file in _ENDINGS:
            endings.append(_IN_PACKAGE)
            extra += ["from importlib import import_module", "from sys import modules"]
        if has_custom and file == "modeling_arbprob":
            endings.insert(0, _REGISTERED)
            extra.append(f"from .{CUSTOM_FILE.removesuffix('.py')} import RULES")
        ordered = _in_order(modules)
        top = f"{_header(file, ordered)}\n\n{_imports(file, ordered, homes, extra)}\n\n"
        parts = [module.section(is_alone=len(ordered) == 1) for module in ordered]
        parts += [ending.strip("\n") for ending in endings if ending]
        texts[f"{file}.py"] = top + "\n\n\n".join(parts) + "\n"
    return texts


def describe_bundle(folder: str | os.PathLike[str]) -> list[tuple[str, str, int]]:
    """Each file of code in `folder` in the order it is read: its name, what it holds, its number of lines."""
    holds = {f"{file}.py": _HOLDS[file] for file in ROOMS} | {CUSTOM_FILE: "the custom patterns that the mask uses"}
    found = ((name, what, Path(folder) / name) for name, what in holds.items())
    return [
        (name, what, len(path.read_text(encoding="utf-8").splitlines())) for name, what, path in found if path.exists()
    ]


_HOLDS = {
    "configuration_arbprob": "sizes, the mask, the layout of questions",
    "masks_arbprob": "patterns, `& | ~`, their text form, what each mask argument means",
    "attention_arbprob": "attention under a mask on each backend",
    "questions_arbprob": "P(targets | given): questions, layouts, exact scores and samples",
    "modeling_arbprob": "the network, its loss, generation",
}


class _Module:
    """One file of a room: its docstring, its imports, and the rest of its text."""

    def __init__(self, path: Path) -> None:
        self.name = ".".join(path.relative_to(MODEL).with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstring, *body = tree.body
        assert isinstance(docstring, ast.Expr), path
        self.docstring = ast.get_docstring(tree) or ""
        self.imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in (docstring, *self.imports):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (int(node.end_lineno or 0) - node.lineno + 1)
        self.text = re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines).strip("\n"))

    def sources(self) -> Iterator[tuple[str, list[str]]]:
        """Each module of this package that it imports from, `masks.tiles`, and the names it takes."""
        here = self.name.split(".")
        for node in self.imports:
            if isinstance(node, ast.ImportFrom) and node.level:
                base = here[: len(here) - node.level]
                assert node.module, ast.unparse(node)
                assert not any(alias.asname for alias in node.names), ast.unparse(node)
                yield ".".join([*base, node.module]), [alias.name for alias in node.names]

    def section(self, *, is_alone: bool) -> str:
        """Its text under a heading that says which file it is and what that does."""
        if is_alone:
            return self.text
        heading = f"{self.name.replace('.', '/')}.py\n\n{self.docstring}"
        return f"{_commented(heading)}\n\n\n{self.text}"


def _paths(entries: tuple[str, ...]) -> list[Path]:
    found = []
    for entry in entries:
        folder = MODEL / entry
        files = sorted(folder.glob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
        found += [path for path in files if path.name != "__init__.py"]
    return found


def _in_order(modules: list[_Module]) -> list[_Module]:
    # each after those of its room that it imports
    by_name = {module.name: module for module in modules}
    graph = {module.name: [name for name, _ in module.sources() if name in by_name] for module in modules}
    return [by_name[name] for name in TopologicalSorter(graph).static_order()]


def _header(file: str, modules: list[_Module]) -> str:
    more = f"\n\n{modules[0].docstring}\n" if len(modules) == 1 else ""
    return f'"""Generated by arbprob_hf {__version__}: {_HOLDS[file]}.{more}"""'


def _imports(file: str, modules: list[_Module], homes: dict[str, str], extra: list[str]) -> str:
    plain: set[str] = set()
    taken: dict[str, set[str]] = {}
    for line in extra:
        module, _, name = line.removeprefix("from ").partition(" import ")
        taken.setdefault(module, set()).add(name)
    for one in modules:
        for node in one.imports:
            if isinstance(node, ast.Import):
                plain.update(ast.unparse(node).removeprefix("import ").split(", "))
            elif not node.level:
                taken.setdefault(str(node.module), set()).update(ast.unparse(alias) for alias in node.names)
        for source, names in one.sources():
            if homes[source] != file:
                taken.setdefault(f".{homes[source]}", set()).update(names)
    groups: list[list[str]] = [[], [], []]
    for name in sorted(plain):
        groups[_group(name)].append(f"import {name}")
    for module in sorted(taken):
        renamed = [name for name in taken[module] if " as " in name]
        groups[_group(module)] += _from(module, sorted(taken[module].difference(renamed), key=_by_kind))
        groups[_group(module)] += [f"from {module} import {name}" for name in sorted(renamed)]
    return "\n\n".join("\n".join(group) for group in groups if group)


def _by_kind(name: str) -> tuple[int, str]:
    # constants, classes, functions
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name)


def _group(module: str) -> int:
    # the standard library, other packages, this bundle
    return 2 if module.startswith(".") else 0 if module.split(".")[0] in sys.stdlib_module_names else 1


def _from(module: str, names: list[str]) -> list[str]:
    line = f"from {module} import {', '.join(names)}"
    if not names or len(line) <= _WIDTH:
        return [line] * bool(names)
    return [f"from {module} import (", *(f"    {name}," for name in names), ")"]


def _commented(text: str) -> str:
    lines = (textwrap.wrap(line, _WIDTH - 2) or [""] for line in text.splitlines())
    return "\n".join(f"# {line}".rstrip() for wrapped in lines for line in wrapped)
