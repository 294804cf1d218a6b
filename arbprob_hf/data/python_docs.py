"""Text that every Python brings along: its documentation topics and standard-library docstrings."""

import ast
import gc
import os
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import brief

# not the standard library, or tests, tables and tools with little prose
SKIPPED_FOLDERS = {
    "__pycache__",
    "distutils",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib-dynload",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "dist-packages",
    "tkinter",
    "turtledemo",
}

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def embedded_documents(root: Path | None = None) -> list[str]:
    """One document a documentation topic and one a module of the standard library, in a fixed order.

    Source files under `root` (default: this Python's library folder) are parsed, never imported. No
    text occurs twice. Raises `ValueError` where the folder holds no source files.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    with _collector_paused():
        documents = list(dict.fromkeys(_topics(root)))
        seen: set[str] = set()
        for path in _sources(root):
            text = "\n\n".join(_docstrings(_parsed(path), seen))
            if text:
                documents.append(text)
    if not documents:
        raise ValueError(
            f"no documentation found in {brief(str(root))}: this Python comes without the sources of its "
            "standard library; give a file, a folder or a `datasets` name as source"
        )
    return documents


@contextmanager
def _collector_paused() -> Iterator[None]:
    # syntax trees hold no cycles worth collecting, and looking for them takes two thirds of the time
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _topics(root: Path) -> list[str]:
    path = root / "pydoc_data" / "topics.py"
    if not path.is_file():
        return []
    tables = [ast.literal_eval(node.value) for node in _parsed(path).body if isinstance(node, ast.Assign)]
    return [table[key].strip() for table in tables for key in sorted(table)]


def _sources(root: Path) -> list[Path]:
    found: list[Path] = []
    for folder, subfolders, files in os.walk(root):
        # pruned in place: installed packages below are many times the library
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS and "test" not in name]
        found += [Path(folder, name) for name in files if name.endswith(".py") and "test" not in name]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _parsed(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        # an old module's stray backslash is no business of the user's
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return ast.parse(path.read_bytes())


def _docstrings(node: Documented, seen: set[str], prefix: str = "") -> Iterator[str]:
    """Docstrings of a module, top-down, each under the heading that says whose it is."""
    text = ast.get_docstring(node)
    if text and text not in seen:
        # the same sentence in two modules would put training text into the validation part
        seen.add(text)
        yield f"{_heading(node, prefix)}{text}"
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings(child, seen, prefix + _own_prefix(node))


def _own_prefix(node: Documented) -> str:
    return "" if isinstance(node, ast.Module) else f"{node.name}."


def _heading(node: Documented, prefix: str) -> str:
    if isinstance(node, ast.Module):
        return ""
    if isinstance(node, ast.ClassDef):
        return f"class {prefix}{node.name}\n\n"
    return f"{prefix}{node.name}({ast.unparse(node.args)})\n\n"
