"""Data sets of one document a row: checked, cut, and held out by document."""

import errno
import functools
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset, IterableDataset, Value
from datasets.config import HF_DATASETS_CACHE

from ..errors import brief, reason

logger = logging.getLogger(__name__)

# how GPT-2's own training text marks the end of a document
SEPARATOR = "<|endoftext|>"

# characters, about GPT-2's context of 1,024 tokens
PASSAGE = 4096

# passages of so many times their least length are cut where no line ends
_TOO_LONG, _SPACE = 16, re.compile(r"\s")

# what ends an Arrow stream that is whole
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"

TEXT_TYPES = ("string", "large_string", "string_view")
# columns of turns, which only a template makes a text of
CHATS = ("messages", "conversations", "conversation")


class WrongColumnError(ValueError):
    """A text column that is not there, or without text."""


def missing_column(column: str, where: str, columns: Iterable[str], advice: str = "") -> WrongColumnError:
    """The error for a source without the text column, which says what it has, and what to do with that."""
    columns = list(columns)
    advice = next((_write_chats(name) for name in columns if name in CHATS), advice)
    said = f"text_column {brief(column, 40)} is not in source {where}, which has {brief(columns, 70)}"
    return WrongColumnError(f"{said}; {advice}" if advice else said)


def wrong_kind(column: str, where: str, found: object) -> TypeError:
    """The error for a text column in which something else was found."""
    advice = f"; {_write_chats(column)}" if column in CHATS else ""
    return TypeError(f"text_column {brief(column, 40)} of source {where} must hold text, got {found}{advice}")


def _write_chats(column: str) -> str:
    return f"write each of its {column} as one text first, as tokenizer.apply_chat_template(..., tokenize=False) does"


def texts_of(rows: Dataset, column: str, *, where: str) -> Dataset:
    """`rows` with the text column alone, named "text".

    Raises `ValueError` when the column is missing, or the file that holds the rows is cut off, `TypeError` when the
    column holds something else than text.
    """
    check_copies(rows)
    if column not in rows.column_names:
        raise missing_column(column, where, rows.column_names)
    if getattr(rows.features[column], "dtype", None) not in TEXT_TYPES:
        raise wrong_kind(column, where, brief(rows.features[column]))
    _refuse_broken_text(rows, column, where)
    rows = rows.select_columns([column])
    if column != "text":
        rows = rows.rename_column(column, "text")
    missing = rows.data.column("text").null_count
    if missing:
        logger.warning("source %s: rows without a text (null) are left out: %s", where, missing)
    # of another type, `datasets` would copy all of them
    return rows if rows.features["text"] == Value("string") else rows.cast_column("text", Value("string"))


@contextmanager
def copies_of_text() -> Iterator[None]:
    """Name a copy of the text that cannot be read, which `datasets` keeps in its cache, as an error on one line."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        # a full disk, or no permission, is something else
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise
        raise damaged_copy(f"a copy of the text below {HF_DATASETS_CACHE}", reason(error)) from error


@functools.cache
def code_of(*modules: str) -> str:
    """A hash of modules beside this one: `datasets` knows functions by name, and would take what old ones prepared."""
    files = (Path(__file__).with_name(f"{module}.py") for module in modules)
    return blake2b(b"".join(file.read_bytes() for file in files), digest_size=8).hexdigest()


def check_copies(rows: Dataset) -> None:
    """Raise ValueError where a file that `rows` are mapped from is cut off, which would only make them fewer."""
    for path in (str(file["filename"]) for file in rows.cache_files):
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - len(END_OF_STREAM)))
            if file.read() != END_OF_STREAM:
                raise damaged_copy(f"the copy of the text {path}", "it is cut off")


def damaged_copy(which: str, why: str) -> ValueError:
    """The error for a copy of the text that cannot be used."""
    return ValueError(f"{which} is damaged: {why:.110}; remove it, and it is made again")


def columns_of(rows: IterableDataset) -> Mapping[str, object]:
    """The columns of a stream, each with its feature or, where these are not known beforehand, its first value."""
    return rows.features if rows.features is not None else next(iter(rows), {})


def streamed_texts(rows: IterableDataset, columns: Mapping[str, object], column: str, *, where: str) -> IterableDataset:
    """`rows`, of `columns`, with the text column alone, named "text", as `texts_of` gives it.

    Raises `ValueError` when the column is missing, `TypeError` when it holds something else than text.
    """
    if column not in columns:
        raise missing_column(column, where, sorted(columns))
    held = columns[column]
    if not isinstance(held, str | None) and getattr(held, "dtype", None) not in TEXT_TYPES:
        kind = brief(held) if rows.features is not None else type(held).__name__
        raise wrong_kind(column, where, kind)
    rows = rows.select_columns([column])
    rows = rows if column == "text" else rows.rename_column(column, "text")
    # files that are read together must agree on one type
    return rows if rows.features is None else rows.cast_column("text", Value("string"))


def is_held_out(text: str, share: float) -> bool:
    """Whether a stream holds a document out, by its text alone; about `share` of all are."""
    return _digest(text) < share * 2**64


def _refuse_broken_text(rows: Dataset, column: str, where: str) -> None:
    # readers of JSON pass undecodable bytes on, which would fail much later
    try:
        rows.data.column(column).validate(full=True)
    except ValueError as error:
        raise ValueError(
            f"text_column {brief(column, 40)} of source {where} is not UTF-8 text: {reason(error, 80)}"
        ) from error


def pieces(text: str | None, least: int = 1) -> list[str]:
    """The documents in a text that may hold separators; blank ones and those below `least` characters are dropped."""
    return [piece for piece in (text or "").split(SEPARATOR) if len(piece.strip()) >= least]


def hold_out(documents: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """Training documents and, as `share` of the different ones (at least one), validation documents.

    Which ones depends on their text alone: equal documents stay together, every seed gives the same split,
    and further documents leave most of it as it was. A single document is cut into passages first.
    Raises `ValueError` when there are not two different documents or passages.
    """
    digests = _digests(documents)
    different = np.unique(digests[digests > 0])
    if len(different) == 1:
        code = {"code": code_of("documents")}
        documents = documents.map(
            _passage_batch, batched=True, batch_size=16, fn_kwargs=code, desc="cutting into passages"
        )
        digests = _digests(documents)
        different = np.unique(digests[digests > 0])
        if len(different) > 1:
            logger.info("the source is one document, cut into %s passages to hold some out", len(different))
    if len(different) < 2:
        raise ValueError(
            f"the source holds {len(different) or 'no'} document with text, not enough to hold one out; add "
            "text, put <|endoftext|> between documents, or name a validation_split"
        )
    count = min(max(1, round(share * len(different))), len(different) - 1)
    held = digests <= different[count - 1]
    return documents.select(np.flatnonzero(~held)), documents.select(np.flatnonzero(held & (digests > 0)))


def _digests(documents: Dataset) -> npt.NDArray[np.uint64]:
    """One uniform number a document, from its text alone; 0 for a blank one."""
    numbers = (_digest(text) for batch in documents.iter(1000) for text in batch["text"])
    return np.fromiter(numbers, np.uint64, len(documents))


def _digest(text: str | None) -> int:
    if not text or not text.strip():
        return 0
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") or 1


def _passage_batch(batch: dict[str, list[str | None]], code: str) -> dict[str, list[str]]:
    return {"text": [passage for text in batch["text"] for passage in passages(text or "")]}


def passages(text: str, least: int = PASSAGE) -> Iterator[str]:
    """`text` in order and in full, cut behind blank lines or, without any, lines; before spaces where both are far.

    Each passage but the last has at least `least` characters.
    """
    pattern = r"\n[ \t]*\n+" if re.search(r"\S\s*\n[ \t]*\n+\s*\S", text) else r"\n"
    begin = 0
    for match in re.finditer(pattern, text):
        if match.end() - begin >= least:
            yield from _cut_at_spaces(text[begin : match.end()], least)
            begin = match.end()
    if text[begin:].strip():
        yield from _cut_at_spaces(text[begin:], least)


def _cut_at_spaces(text: str, least: int) -> Iterator[str]:
    """`text`, cut before spaces where it is many times `least` characters; where no space is near, anywhere."""
    begin = 0
    while len(text) > _TOO_LONG * least and len(text) - begin > 3 * least:
        space = _SPACE.search(text, begin + least, begin + 2 * least)
        end = begin + 2 * least if space is None else space.start()
        yield text[begin:end]
        begin = end
    yield text[begin:]
