"""Reads local .txt, .jsonl, .json and .parquet files, one or a folder of them, as a data set."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, IterableDataset, concatenate_datasets, load_dataset

from ..errors import brief, reason
from .arguments import READERS
from .documents import SEPARATOR, columns_of, cut_at_separators, streamed_texts, texts_of

logger = logging.getLogger(__name__)

_ORDER = tuple(dict.fromkeys(READERS.values()))
# word in a file's path -> its split, as the datasets package names them
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def local_splits(source: Path) -> dict[str, list[Path]]:
    """The text files of a file or folder by split, in name order.

    A folder in which some file is named after the training split (train-00000.parquet, train/a.txt) is read
    by such names; otherwise every file belongs to "train".
    Raises `ValueError` for an unknown extension or a folder without text files.
    """
    known = ", ".join(READERS)
    if source.is_file():
        if source.suffix.lower() not in READERS:
            raise ValueError(f"source {brief(str(source))} has an unknown extension; expected one of {known}")
        return {"train": [source]}
    paths = [path.relative_to(source) for path in source.rglob("*") if path.suffix.lower() in READERS]
    # hidden files and folders are a tool's, not text
    paths = sorted(path for path in paths if not any(part.startswith(".") for part in path.parts))
    if not paths:
        raise ValueError(f"source folder {brief(str(source))} holds no text files; expected some of {known}")
    named = {path: _split_in_name(path) for path in paths}
    if "train" not in named.values():
        return {"train": [source / path for path in paths]}
    splits: dict[str, list[Path]] = {}
    for path, split in named.items():
        splits.setdefault(split or "", []).append(source / path)
    nameless = splits.pop("", [])
    if nameless:
        logger.warning("source: %s are left out, no split in their names", _where(nameless))
    return splits


def _split_in_name(path: Path) -> str | None:
    # the file's own name speaks before its folders'
    for part in (path.stem, *reversed(path.parts[:-1])):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def read_files(files: Sequence[Path], column: str) -> Dataset:
    """The documents of some files, column "text" alone: a row of a table, or a text file (see below), is one.

    A text file that holds <|endoftext|> is cut there. Kept in the cache of `datasets`, by path and time of
    change. Raises `ValueError` for what cannot be read, `TypeError` for a column that holds no text.
    """
    chosen = _by_reader(files)
    return concatenate_datasets(
        [texts_of(_read(reader, own), column, where=_where(own)) for reader, own in chosen.items()]
    )


def stream_files(files: Sequence[Path], column: str) -> tuple[IterableDataset, list[Path]]:
    """The same rows as `read_files` reads, as they are needed, and the files in the order in which they come.

    A text file is read whole, and cut by whoever takes it. Raises `ValueError` for a file that cannot be read,
    `TypeError` for a column that holds no text.
    """
    chosen = _by_reader(files)
    parts = []
    for reader, own in chosen.items():
        names, where = [str(file) for file in own], _where(own)
        try:
            rows = load_dataset(reader, data_files=names, split="train", streaming=True, **_options(reader))
            columns = columns_of(rows)
        except Exception as error:
            raise ValueError(f"source {where} cannot be read as {reader}: {reason(error)}") from error
        parts.append(streamed_texts(rows, columns, column, where=where))
    order = [file for own in chosen.values() for file in own]
    return (concatenate_datasets(parts) if len(parts) > 1 else parts[0]), order


def _by_reader(files: Sequence[Path]) -> dict[str, list[Path]]:
    # a file without a byte has no columns either
    named = {
        reader: [f for f in files if READERS[f.suffix.lower()] == reader and f.stat().st_size] for reader in _ORDER
    }
    chosen = {reader: own for reader, own in named.items() if own}
    if not chosen:
        raise ValueError(f"source {_where(files)} is empty; expected text")
    return chosen


def _options(reader: str) -> dict[str, str]:
    # utf-8-sig drops the byte order mark that some editors write
    return {"sample_by": "document", "encoding": "utf-8-sig"} if reader == "text" else {}


def _where(files: Sequence[Path]) -> str:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{brief(str(files[0]))}{more}"


def _read(reader: str, files: Sequence[Path]) -> Dataset:
    names = [str(file) for file in files]
    try:
        rows = load_dataset(reader, data_files=names, split="train", **_options(reader))
    except Exception as error:
        if reader != "parquet":
            _refuse_other_encodings(files)
        raise ValueError(f"source {_where(files)} cannot be read as {reader}: {reason(error)}") from error
    if reader == "text" and any(SEPARATOR in text for text in rows["text"]):
        rows = cut_at_separators(rows)
    return rows


def _refuse_other_encodings(files: Sequence[Path]) -> None:
    for file in files:
        try:
            file.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{brief(str(file))} is not UTF-8 text (byte {error.object[error.start]:#04x} at offset "
                f"{error.start}); convert it, as with iconv -t utf-8"
            ) from error
