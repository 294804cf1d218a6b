"""Patterns of one's own go where the model goes: the text of their functions is saved beside its weights.

transformers copies the files of the model's code into the folder of every saved model, an empty `custom_arbprob.py`
among them. Where a mask of the model uses patterns of one's own, that copy is filled with their functions; loaded with
`trust_remote_code=True`, as all of the model's code is, they are registered again.
"""

import ast
import builtins
import os
import symtable
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils.hub import cached_file

from .configuration_arbprob import ArbProbConfig
from .custom_arbprob import RULES
from .masks.custom import Custom, pattern
from .masks.foreign import definition_of
from .masks.mask import Mask

for _name, _rule in RULES.items():
    pattern(name=_name)(_rule)

FILE = "custom_arbprob.py"
_EMPTY = '''"""Rules of one's own that the masks of a saved model use, by name; the package itself has none."""

from collections.abc import Callable
{imports}
RULES: dict[str, Callable[..., object]] = {{}}
'''
# which options of from_pretrained say where files are
_PLACES = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")
# what a rule may use beside builtins and its own arguments; the file imports just these
_GIVEN = {"torch": torch, "Tensor": Tensor}


def check_travels(config: ArbProbConfig) -> None:
    """Raise ValueError unless a model of this configuration can be saved with all patterns that its masks use."""
    carried_code(map(Mask.parse, config.mask_texts))


def carried_code(masks: Iterable[Mask], *, is_pushed: bool = False) -> str:
    """The text of `custom_arbprob.py` for a model of these masks.

    Args:
        is_pushed: whether the folder is to be uploaded in the same call that saves it.

    Raises:
        ValueError: a pattern whose function cannot stand by itself; one line with the reason.
    """
    kinds = {type(leaf).__name__: type(leaf) for mask in masks for leaf in _custom_leaves(mask)}
    if not kinds:
        return _EMPTY.format(imports="")
    if is_pushed:
        raise ValueError(
            f"push_to_hub: the pattern {min(kinds)[:60]} is written after the upload would start; call "
            "model.push_to_hub(...) instead, or save_pretrained(folder) alone"
        )
    parts = [_EMPTY.format(imports="\nimport torch\nfrom torch import Tensor\n")]
    for name, kind in sorted(kinds.items()):
        parts.append(f'{_definition(name, kind)}\n\n\nRULES["{name}"] = {kind.rule.__name__}\n')
    return "\n\n".join(parts)


def write_code(code: str, folder: str | os.PathLike[str]) -> None:
    """Put `code` in place of the copy of `custom_arbprob.py` that transformers made, where it made one."""
    path = Path(folder) / FILE
    if path.exists() and path.read_bytes() != code.encode():
        path.write_bytes(code.encode())


def check_saved(masks: Iterable[Mask], source: str | os.PathLike[str], where: dict[str, Any]) -> None:
    """Raise ValueError where a pattern of one's own that the masks use is another function than the saved one.

    Args:
        source: the folder or name on the Hub that the model was loaded from. where: the options it was loaded with.
    """
    kinds = {type(leaf).__name__: type(leaf) for mask in masks for leaf in _custom_leaves(mask)}
    options = {name: where[name] for name in _PLACES if where.get(name) is not None}
    options |= dict(_raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
    path = cached_file(source, FILE, **options) if kinds else None
    if path is None:
        return
    saved = _definitions(Path(path).read_text(encoding="utf-8"))
    for name, kind in kinds.items():
        if name in saved and saved[name] != definition_of(kind.source):
            raise ValueError(
                f"pattern {name[:60]}: the function registered here is not the one saved with the model; define that "
                "one with @pattern, or load with AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)"
            )


def _definitions(code: str) -> dict[str, str | None]:
    # what a saved file says of each name: below each function a line RULES["name"] = function
    functions: dict[str, str | None] = {}
    found: dict[str, str | None] = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = definition_of(ast.unparse(node))
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            found[ast.literal_eval(node.targets[0].slice)] = functions[ast.unparse(node.value)]
    return found


def _custom_leaves(mask: Mask) -> Iterator[Custom]:
    if isinstance(mask, Custom):
        yield mask
    for operand in mask.operands():
        yield from _custom_leaves(operand)


def _definition(name: str, kind: type[Custom]) -> str:
    # the function's own text from `def` on
    rule, source = kind.rule, kind.source
    if rule.__name__ == "<lambda>":
        raise _stays(name, "it is a lambda; write it with def")
    if hasattr(rule, "__wrapped__"):
        raise _stays(name, "another decorator wraps it; leave @pattern alone")
    if source is None:
        raise _stays(name, "python does not know its source; define it in a file or a notebook")
    if rule.__code__.co_freevars:
        raise _stays(name, f"it uses {', '.join(rule.__code__.co_freevars)} of the function around it", _ADVICE)
    if rule.__name__ in _GIVEN or hasattr(builtins, rule.__name__) or rule.__name__ in ("Callable", "RULES"):
        raise _stays(name, f"its function is called {rule.__name__}, which means something else; rename it, give name=")
    text = _function_text(source, rule.__name__)
    if text is None:
        raise _stays(name, "its source cannot be read by itself; define it with a plain def")
    foreign = sorted(
        one for one in _names(symtable.symtable(text, FILE, "exec")) if not _is_given(one, rule.__globals__)
    )
    if foreign:
        raise _stays(name, f"it uses {', '.join(foreign)} from outside", _ADVICE)
    return text


_ADVICE = "give it only torch, Tensor, builtins and its own arguments"


def _stays(name: str, reason: str, advice: str = "") -> ValueError:
    said = reason if len(reason) <= 110 else f"{reason[:107]}..."
    return ValueError(f"pattern {name[:60]}: cannot go with a saved model: {said}{'; ' if advice else ''}{advice}")


def _function_text(source: str, name: str) -> str | None:
    try:
        first = ast.parse(source).body[0]
    except (SyntaxError, IndexError):
        return None
    if not isinstance(first, ast.FunctionDef) or first.name != name:
        return None
    # decorators stand above `def`
    return "\n".join(source.split("\n")[first.lineno - 1 : first.end_lineno])


def _names(table: symtable.SymbolTable) -> set[str]:
    # what is read from outside, defaults and annotations included, and what is imported
    is_module = table.get_type() == "module"
    found = {
        one.get_name()
        for one in table.get_symbols()
        if one.is_imported() or (one.is_referenced() and not one.is_assigned() if is_module else one.is_global())
    }
    return found.union(*map(_names, table.get_children()))


def _is_given(name: str, surroundings: dict[str, object]) -> bool:
    if name in _GIVEN:
        return surroundings.get(name) is _GIVEN[name]
    return name not in surroundings and hasattr(builtins, name)
