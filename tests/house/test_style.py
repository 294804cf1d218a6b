"""The measurable part of the house style: short files and functions, few parameters, docstrings."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [ROOT / "app.py", ROOT / "train_hf.py"]
SOURCES = sorted([*(ROOT / "arbprob_hf").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *SCRIPTS])
LONGEST_FILE = 480
LONGEST_FUNCTION = 50
MOST_PARAMETERS = 7
# a decoder's forward takes what transformers passes to every decoder; the options of a command are those of its `run`
MANY_PARAMETERS = {"forward", "run"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> list[Function]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def body_length(function: Function) -> int:
    """Lines from the first statement after the docstring to the end: what there is to understand."""
    has_docstring = ast.get_docstring(function) is not None
    body = function.body[1:] if has_docstring else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_functions_are_short(path: Path) -> None:
    long = {function.name: body_length(function) for function in functions(path)}
    assert {name: lines for name, lines in long.items() if lines > LONGEST_FUNCTION} == {}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_functions_take_few_parameters(path: Path) -> None:
    def count(function: Function) -> int:
        names = [a.arg for a in [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]]
        return len([name for name in names if name not in ("self", "cls")])

    many = {f.name: count(f) for f in functions(path) if f.name not in MANY_PARAMETERS}
    assert {name: number for name, number in many.items() if number > MOST_PARAMETERS} == {}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_say_what_they_do(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring is not None
    assert len(docstring.splitlines()[0]) > 20


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_work_is_left_for_later(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [word for word in ("TODO", "FIXME", "XXX") if word in text] == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_code_is_ascii(path: Path) -> None:
    odd = {c for c in path.read_text(encoding="utf-8") if not c.isascii()}
    assert odd == set()
