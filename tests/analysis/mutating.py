"""Mutants of the model's code: one small change each to a function that decides who sees whom, as a package of its own.

The change is made to the syntax tree of a copy of one file; the rest of the mutant package is the unchanged files.
"""

import ast
import importlib
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import arbprob_hf

MODEL = Path(arbprob_hf.__file__).parent / "model"

COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
OPERATORS = {ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Add: ast.Sub, ast.Sub: ast.Add}
OPERATORS |= {ast.Mod: ast.FloorDiv, ast.FloorDiv: ast.Mod}
PAIRS = ["q k", "q_low q_high", "k_low k_high", "left right", "some every", "low high", "keep restarts", "first last"]
PAIRS += ["any all", "queries keys", "start stop", "rank limit", "enter exit", "rows heads", "offset q_len"]
OTHER = {a: b for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}


@dataclass(frozen=True)
class Mutant:
    """One change to one function of one file: the `number`th of those to its `index`th deciding node."""

    file: str
    function: str
    line: int
    change: str
    index: int
    number: int

    @property
    def source(self) -> str:
        """The whole file with the change made."""
        tree = _parsed(self.file)
        place = list(_deciding(find_function(tree, self.function)))[self.index]
        _, apply = list(_changes(place))[self.number]
        apply()
        return ast.unparse(ast.fix_missing_locations(tree))

    def __str__(self) -> str:
        return f"{self.file}.py:{self.line} {self.function}: {self.change}"


def mutants_of(file: str, function: str) -> list[Mutant]:
    """Every small change to one function, `name` or `Class.name`."""
    # listed without being made: of the many that there are, most runs seed a few
    return [
        Mutant(file, function, node.lineno, change, index, number)
        for index, node in enumerate(_deciding(find_function(_parsed(file), function)))
        for number, (change, _) in enumerate(_changes(node))
    ]


def _parsed(file: str) -> ast.Module:
    return ast.parse((MODEL / f"{file}.py").read_text(encoding="utf-8"))


@contextmanager
def loaded(mutant: Mutant | None, folder: Path) -> Iterator[types.SimpleNamespace]:
    """The modules of a mutant, by name without their room; the unchanged ones for None."""
    common, own = folder / "common", folder / "own"
    if not common.exists():
        shutil.copytree(MODEL, common, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    if mutant is not None:
        changed = own / f"{mutant.file}.py"
        changed.parent.mkdir(exist_ok=True)
        changed.write_text(mutant.source, encoding="utf-8")
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, False
    for room in ["", *(path.name for path in common.iterdir() if path.is_dir())]:
        package = types.ModuleType(f"mutated_model.{room}".removesuffix("."))
        # what is changed is found before what is not
        package.__path__ = [str(own / room), str(common / room)]
        sys.modules[package.__name__] = package
    importlib.invalidate_caches()
    try:
        importlib.import_module("mutated_model.modeling_arbprob")
        names = [name for name in sys.modules if name.startswith("mutated_model.")]
        yield types.SimpleNamespace(**{name.split(".")[-1]: sys.modules[name] for name in names})
    finally:
        sys.dont_write_bytecode = writes
        for name in [name for name in sys.modules if name.split(".")[0] == "mutated_model"]:
            del sys.modules[name]


def find_function(tree: ast.Module, function: str) -> ast.FunctionDef:
    """The function `name` or `Class.name` of a file; LookupError where there is none."""
    body: list[ast.stmt] = tree.body
    found: ast.stmt | None = None
    for part in function.split("."):
        named = (node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part)
        found = next(named, None)
        body = getattr(found, "body", [])
    if not isinstance(found, ast.FunctionDef):
        raise LookupError(f"targets: no function {function}; was it renamed or moved?")
    return found


def _deciding(function: ast.FunctionDef) -> Iterator[ast.AST]:
    # the code itself: no annotation, docstring, assertion or error
    waiting: list[ast.AST] = list(reversed(function.body))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        yield node
        skipped = {
            id(getattr(node, "annotation", None)),
            id(getattr(node, "returns", None)),
            id(getattr(node, "args", None)),
        }
        children = [
            c for c in ast.iter_child_nodes(node) if not isinstance(node, ast.FunctionDef) or id(c) not in skipped
        ]
        waiting.extend(reversed([child for child in children if id(child) != id(getattr(node, "annotation", None))]))


Change = tuple[str, Callable[[], None]]


def _changes(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        other = COMPARISONS[type(node.ops[0])]
        yield _named(node, "compares otherwise", lambda: setattr(node, "ops", [other()]))
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATORS:
        exchanged = OPERATORS[type(node.op)]
        yield _named(node, "another operator", lambda: setattr(node, "op", exchanged()))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert | ast.Not):
        yield _named(node, "not negated", lambda: _become(node, node.operand))
    if isinstance(node, ast.If | ast.IfExp):
        kind = "condition negated"
        yield _named(node.test, kind, lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test)))
    if isinstance(node, ast.BoolOp):
        either = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield _named(node, "and for or", lambda: setattr(node, "op", either()))
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield _named(node, "the other truth", lambda: setattr(node, "value", not node.value))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield _named(node, "one more", lambda: setattr(node, "value", node.value + 1))
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in OTHER:
        yield _named(node, "the other name", lambda: setattr(node, "id", OTHER[node.id]))
    if isinstance(node, ast.Attribute) and node.attr in OTHER:
        yield _named(node, "the other attribute", lambda: setattr(node, "attr", OTHER[node.attr]))


def _named(node: ast.AST, kind: str, apply: Callable[[], None]) -> Change:
    return f"{kind} in {ast.unparse(node)[:60]}", apply


def _become(node: ast.AST, other: ast.AST) -> None:
    node.__class__ = other.__class__
    node.__dict__ = dict(other.__dict__)
