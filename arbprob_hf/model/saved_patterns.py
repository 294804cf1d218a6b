"""Custom patterns go where the model goes: the text of their functions is saved beside its weights.

A checkpoint whose masks use patterns of `@pattern` holds a file `custom_arbprob.py` with their functions. Loaded with
`trust_remote_code=True`, as all of a checkpoint's code is, they are registered again.
"""

import ast
import builtins
import hashlib
import json
import os
import re
import symtable
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

from .configuration_arbprob import ArbProbConfig, check_mask_texts
from .masks.custom import BUILT_IN, Custom, pattern
from .masks.foreign import definition_of
from .masks.mask import PATTERNS, Mask

CUSTOM_FILE = "custom_arbprob.py"
_BEGINNING = '''"""Custom patterns that the masks of this model use, by name."""

from collections.abc import Callable

import torch
from torch import Tensor

'''
# by which the file is known
RULES_LINE = "RULES: dict[str, Callable[..., object]] = {}"
# which options of from_pretrained say where files are
PLACES = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")
# what a rule may use beside builtins and its own arguments; the file imports just these
_GIVEN = {"torch": torch, "Tensor": Tensor}


def carried_code(masks: Iterable[Mask]) -> str | None:
    """The text of `custom_arbprob.py` for a model of these masks; None where they use no custom pattern.

    Raises:
        ValueError: a pattern whose function cannot stand by itself; one line with the reason.
    """
    kinds = _custom_kinds(masks)
    if not kinds:
        return None
    parts = [f"{_BEGINNING}{RULES_LINE}\n"]
    for name, kind in sorted(kinds.items()):
        parts.append(f'{_definition(name, kind)}\n\n\nRULES["{name}"] = {kind.rule.__name__}\n')
    return "\n\n".join(parts)


def definitions(code: str) -> dict[str, str | None]:
    """The function of each pattern in the text of a `custom_arbprob.py`, by the pattern's name; see `definition_of`."""
    # below each function stands a line RULES["name"] = function
    functions: dict[str, str | None] = {}
    found: dict[str, str | None] = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = definition_of(ast.unparse(node))
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            found[ast.literal_eval(node.targets[0].slice)] = functions[ast.unparse(node.value)]
    return found


def check_travels(masks: Iterable[Mask], *, is_copied: bool = False) -> None:
    """Raise ValueError unless a model can be saved with all custom patterns that its masks use.

    Args:
        is_copied: whether the model was loaded with its own code, whose files are saved as they are.
    """
    masks = list(masks)
    carried_code(masks)
    for name, kind in _custom_kinds(masks).items():
        if is_copied and kind.rule.__module__.rpartition(".")[2] != CUSTOM_FILE.removesuffix(".py"):
            raise _stays(name, "it is not in the custom_arbprob.py that the model was loaded with")


def register_saved(path: str | os.PathLike[str], names: Collection[str]) -> None:
    """Register patterns of a saved `custom_arbprob.py`, which is executed. Raises ValueError where that fails."""
    code = Path(path).read_bytes()
    module = ModuleType(f"custom_arbprob_{hashlib.sha256(code).hexdigest()[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        # not by an import, which would leave compiled code beside the weights
        exec(compile(code, str(path), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"custom_arbprob.py: {str(path)!r:.100} raised {type(error).__name__}: {said:.120}") from error
    register_rules(module, names)


def register_rules(module: ModuleType, names: Collection[str] | None = None) -> None:
    """Register what a saved `custom_arbprob.py`, imported as `module`, holds: `names`, or all; nothing elsewhere."""
    for name, rule in getattr(module, "RULES", {}).items():
        if names is None or name in names:
            pattern(name=name)(rule)


def read_saved(source: str | os.PathLike[str], options: dict[str, Any], *, is_trusted: bool) -> None:
    """Make known the custom patterns that a checkpoint's masks name: they lie beside its configuration.

    Args:
        source: the folder or name on the Hub that is loaded. options: those of from_pretrained, such as `config`.
        is_trusted: whether its code may be executed (`trust_remote_code=True`).

    Raises:
        ValueError: a pattern is not known here and the checkpoint is not trusted, or is known as another function.
    """
    texts, source = _mask_texts(source, options)
    # but for the names of arguments
    names = {name for text in texts for name in re.findall(r"[A-Za-z_]\w*\b(?!\s*=)", text)} - _built_in_names()
    path = find_file(source, CUSTOM_FILE, options) if names else None
    if path is None:
        return
    try:
        saved = definitions(Path(path).read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, KeyError) as error:
        raise ValueError(f"{CUSTOM_FILE}: {str(path)!r:.100} is not as it was saved; save the model again") from error
    unknown = sorted(name for name in names & saved.keys() if name not in PATTERNS)
    if unknown and not is_trusted:
        raise ValueError(
            f"mask: the pattern {unknown[0]!r:.60} is a function in {CUSTOM_FILE} of {str(source)!r:.60}, which is run "
            "only where you trust it: add trust_remote_code=True (--trust_remote_code on a command line), or register "
            "it with @pattern first (--patterns)"
        )
    if unknown:
        register_saved(path, unknown)
    for name in names & saved.keys():
        if saved[name] != definition_of(getattr(PATTERNS.get(name), "source", None)):
            raise ValueError(
                f"pattern {name[:60]}: the function registered here is not the one saved with the model; define that "
                "one with @pattern, or load with AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)"
            )


def _mask_texts(source: Any, options: dict[str, Any]) -> tuple[list[str], Any]:
    # of the network that is loaded; and where its configuration is, which patterns lie beside
    config = options.get("config")
    if isinstance(config, PreTrainedConfig):
        mask, described_by = getattr(config, "mask", None), config._name_or_path or source
    else:
        described_by = base_of_adapter(source) if config is None else config
        where = {name: options[name] for name in PLACES if options.get(name) is not None}
        mask = ArbProbConfig.get_config_dict(described_by, **where)[0].get("mask")
    # a call may give another mask than the checkpoint's; a network of another kind has none
    mask = mask if options.get("mask") is None else options["mask"]
    return [] if mask is None else check_mask_texts(mask), described_by


def base_of_adapter(source: Any) -> Any:
    """What transformers loads for `source`: a folder of an adapter alone names the model that it belongs to."""
    description = os.path.join(source, "adapter_config.json")
    if not os.path.isfile(description) or os.path.isfile(os.path.join(source, "config.json")):
        return source
    with open(description, encoding="utf-8") as file:
        return json.load(file)["base_model_name_or_path"]


def _built_in_names() -> set[str]:
    return {name for name, kind in PATTERNS.items() if kind in BUILT_IN}


def find_file(source: str | os.PathLike[str], name: str, options: dict[str, Any]) -> str | None:
    """Where a file of the loaded folder or repository is on this machine; `options`: those of from_pretrained."""
    where = {name: options[name] for name in PLACES if options.get(name) is not None}
    where |= dict(_raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
    return cached_file(source, name, **where)


def _custom_kinds(masks: Iterable[Mask]) -> dict[str, type[Custom]]:
    return {type(leaf).__name__: type(leaf) for mask in masks for leaf in _custom_leaves(mask)}


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
        one for one in _names(symtable.symtable(text, CUSTOM_FILE, "exec")) if not _is_given(one, rule.__globals__)
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
