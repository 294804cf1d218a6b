"""The pages of the documentation as tests read them: blocks, commands, tables, and what their code prints."""

import functools
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[2]
README = "README.md"
PAGES = [README, *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
# what a command may start with, in a block or in a span of code
PROGRAMS = (
    "accelerate",
    "arbprob",
    "hf",
    "jupyter",
    "lm_eval",
    "make",
    "pip",
    "python",
    "source",
    "tensorboard",
    "torchrun",
)


@functools.cache
def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def fences(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page in order: language and text."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", read(page), flags=re.DOTALL | re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    return [text for found, text in fences(page) if found == language]


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```\w+\n.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE)


def spans(page: str) -> list[str]:
    """What stands between single backticks outside the blocks."""
    return [" ".join(span.replace("\\|", "|").split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def commands(page: str) -> list[list[str]]:
    """The words of each command, in blocks and spans, without leading settings of the environment."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += [span for span in spans(page) if span.split()[0] in PROGRAMS and " " in span]
    parsed = [shlex.split(line, comments=True) for line in lines]
    return [words[next(i for i, w in enumerate(words) if not re.match(r"[A-Z_]+=", w)) :] for words in parsed if words]


def tables(page: str) -> Iterator[list[list[str]]]:
    """Each table as rows of cells, the heading first."""
    for text in re.findall(r"(?:^\|.*\|\n)+", read(page), flags=re.MULTILINE):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()]
        yield [row for row in rows if set("".join(row)) != {"-"}]


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of all tables of a page whose first column has this heading."""
    rows = [row for found in tables(page) if found[0][0] == heading for row in found[1:]]
    assert rows, f"{page} has no table {heading}"
    return rows


def printed(page: str) -> str:
    """What the Python of a page prints; all its blocks, one after the other, run without an error."""
    done = _run(page)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def _run(page: str) -> subprocess.CompletedProcess[str]:
    # once a session and not once a process of pytest: importing torch and transformers is most of its time
    known = Path(os.environ["ARBPROB_TESTS_SHARED"]) / f"{page.replace('/', '-')}.json"
    with FileLock(f"{known}.lock"):
        if not known.exists():
            done = _run_now(page)
            known.write_text(json.dumps([done.returncode, done.stdout, done.stderr]), encoding="utf-8")
    return subprocess.CompletedProcess([page], *json.loads(known.read_text(encoding="utf-8")))


def _run_now(page: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        # a file, as custom patterns are saved by the text of their functions
        code = Path(folder) / "page.py"
        code.write_text("\n".join(blocks(page, "python")), encoding="utf-8")
        return subprocess.run(
            [sys.executable, code.name],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
