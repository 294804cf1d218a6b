"""The fields of a run's options; those of transformers' TrainingArguments are read from its source.

Importing transformers takes seconds, which `--help` and a mistyped option need not wait for.
"""

import ast
import dataclasses
from functools import reduce
from importlib.util import find_spec
from operator import or_
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints


class Field(NamedTuple):
    """A field's default, help and type; `hint` is None where only an import of transformers can say."""

    default: Any
    help: str
    hint: Any


def own_fields(group: type) -> dict[str, Field]:
    """The fields of a dataclass by name."""
    hints = get_type_hints(group)
    return {
        field.name: Field(field.default, field.metadata.get("help", ""), hints[field.name])
        for field in dataclasses.fields(group)
        if field.init
    }


def training_fields() -> dict[str, Field]:
    """The fields of this package's TrainingArguments, in transformers' order, its class unimported."""
    package = find_spec("transformers")
    assert package is not None
    assert package.origin is not None
    theirs, ours = Path(package.origin).with_name("training_args.py"), Path(__file__).parents[1] / "defaults.py"
    return {**_declared(theirs), **_declared(ours)}


def _declared(path: Path) -> dict[str, Field]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments")
    fields: dict[str, Field] = {}
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            options = {word.arg: word.value for word in node.value.keywords} if isinstance(node.value, ast.Call) else {}
            default = options.get("default") if isinstance(node.value, ast.Call) else node.value
            if "init" not in options:
                fields[node.target.id] = Field(_literal(default), "", _hint(ast.unparse(node.annotation)))
    return fields


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        # computed, as the optimizer is
        return None


def _hint(annotation: str) -> Any:
    known: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, "None": type(None)}
    kinds = [part.strip() for part in annotation.split("|")]
    return reduce(or_, [known[kind] for kind in kinds]) if set(kinds) <= set(known) else None
