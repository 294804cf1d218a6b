"""Files and folders that appear whole or not at all: written beside their place, then moved over it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .machine_errors import naming


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside `path`, where nothing is, for the block to write a file or a folder to; then it becomes `path`.

    A process that is killed leaves the old file or the new one; a block that raises leaves the old one. A file is on
    the disk before it takes its name. A folder takes the place of none, or of an empty one, else OSError is raised.
    """
    beside = path.with_name(f".{path.name}.tmp")
    _remove(beside)
    try:
        with naming(path):
            yield beside
            if beside.is_file():
                flush(beside)
            os.replace(beside, path)
    finally:
        _remove(beside)


def flush(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
