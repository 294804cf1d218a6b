"""Reads the texts of one file: plain text, JSON, CSV, Parquet or Arrow, compressed or not; says where one is none.

Nothing is read but the text column, so that no other column can refuse a file.
"""

import csv
import gzip
import io
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import brief, reason
from .arguments import reader_of
from .documents import END_OF_STREAM, SEPARATOR, TEXT_TYPES, WrongColumnError, missing_column, passages, wrong_kind

logger = logging.getLogger(__name__)

# characters of a text file, and rows of a table, read at a time
CHUNK, ROWS = 1 << 22, 1000
# characters of a line above which a text is none that somebody wrote in paragraphs, such as text8
LONG_LINE = 1_000_000
# rows without the column after which a file is not searched for it any further
_PATIENCE = 100_000
# cells that must not all be numbers
_LOOKED_AT = 100
# what stands in place of a file that Git LFS has not fetched
_POINTER = b"version https://git-lfs.github.com/spec/v1"

# a text, None where a row has none, and the place of its row, as in "line 3"
Rows = Iterator[tuple[Any, str]]


class UnreadableError(ValueError):
    """A file that cannot be read; the message names it."""


def texts_in(path: str, column: str, *, name: str | None = None, json_field: str | None = None) -> Iterator[str | None]:
    """The documents of a file in order: a row of a table, or what <|endoftext|> ends in a text; None: a row without.

    `path`: of a file, or an address that `datasets` opens. `name`: of the file, where `path` does not end in it.
    `json_field`: keys, with dots between them, that lead to the rows in a .json file.

    Raises:
        UnreadableError: the file is gone, empty, damaged, or no UTF-8. WrongColumnError: it lacks the column.
        TypeError: the column holds something else than text. All name the file and, where there is one, the line.
    """
    name = name or path
    kind = reader_of(name)
    try:
        with _opened(path, name) as file:
            if kind == "text":
                for document in _documents(file, name):
                    yield from _without_long_lines(document, name)
            else:
                rows = _READERS[kind or ""](file, name, column, json_field)
                yield from _checked(rows, column, name)
    except (WrongColumnError, UnreadableError, TypeError):
        raise
    except FileNotFoundError as error:
        raise gone(name) from error
    except UnicodeDecodeError as error:
        raise _not_utf8(path, name) from error
    except (OSError, EOFError, ValueError, RecursionError, csv.Error, zlib.error, pa.ArrowException) as error:
        raise UnreadableError(f"source {_shown(name)} cannot be read as {kind}: {reason(error)}") from error


def gone(name: str) -> UnreadableError:
    """The error for a file that was there when files were listed."""
    return UnreadableError(f"source {_shown(name)} is not there any more; put it back, or start again without it")


def _shown(name: str) -> str:
    # names of shards are long, and differ in the middle
    return brief(name, 180)


def _opened(path: str, name: str) -> BinaryIO:
    if "://" in path:
        # with its retries where a connection is lost
        from datasets.utils.file_utils import xopen

        raw = xopen(path, "rb")
    else:
        # closed with what reads from it
        raw = open(path, "rb")  # noqa: SIM115
        beginning = raw.read(len(_POINTER))
        if beginning in (b"", _POINTER):
            raw.close()
            found = "only names its content; run git lfs pull" if beginning else "is empty: 0 bytes; write it again"
            raise UnreadableError(f"source {_shown(name)} {found}, or remove it")
        raw.seek(0)
    ending = Path(name).suffix.lower()
    if ending == ".gz":
        return _Closing(gzip.GzipFile(fileobj=raw), raw)
    if ending == ".zst":
        return _Closing(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"), raw)
    return raw


class _Closing(io.BufferedReader):
    """A decompressed file that closes what it is read from."""

    def __init__(self, file: Any, raw: Any) -> None:
        super().__init__(_Raw(file), 1 << 20)
        self._from = raw

    def close(self) -> None:
        super().close()
        self._from.close()


class _Raw(io.RawIOBase):
    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _lines(file: BinaryIO, newline: str | None) -> io.TextIOWrapper:
    # utf-8-sig drops the byte order mark that some editors write
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)


def _documents(file: BinaryIO, name: str) -> Iterator[str]:
    """What separators part; one without text is none, unless that is all there is."""
    held: list[str] = []
    is_first = True
    with _lines(file, None) as text:
        for chunk in iter(lambda: text.read(CHUNK), ""):
            # a separator may be cut by the end of a chunk: what could be its beginning is looked at again
            *whole, rest = (held.pop() + chunk if held else chunk).split(SEPARATOR)
            for document in whole:
                yield from filter(str.strip, ["".join([*held, document])])
                held, is_first = [], False
            held += [rest[: -len(SEPARATOR)], rest[-len(SEPARATOR) :]]
    last = "".join(held)
    if is_first and not last:
        # what is packed has bytes all the same
        raise UnreadableError(f"source {_shown(name)} is empty: no text is in it; write it again, or remove it")
    if is_first or last.strip():
        yield last


def _without_long_lines(document: str, name: str) -> Iterator[str]:
    longest = max(map(len, document.splitlines())) if len(document) > LONG_LINE else 0
    if longest <= LONG_LINE:
        yield document
        return
    logger.warning(
        "source %s has a line of %s characters: it is cut at spaces into documents", _shown(name), f"{longest:,}"
    )
    yield from passages(document)


def _json(file: BinaryIO, name: str, column: str, json_field: str | None) -> Rows:
    """Objects a line, a list of them, or an object in which `json_field` leads to them; texts may stand for objects."""
    with _lines(file, "\n") as lines:
        number, first = next(((n, line) for n, line in enumerate(lines, 1) if line.strip()), (1, ""))
        if json_field is None and _is_one_a_line(first, name):
            for at, line in enumerate(chain([first], lines), number):
                if line.strip():
                    yield _cell(_parsed(line.rstrip(), name, at), column, name, f"line {at}"), f"line {at}"
            return
        found = _parsed(first + lines.read(), name, number)
    if json_field is not None:
        found = _below(found, json_field, name)
    for at, row in enumerate(found if isinstance(found, list) else [found], 1):
        yield _cell(row, column, name, f"row {at}"), f"row {at}"


def _is_one_a_line(first: str, name: str) -> bool:
    if ".jsonl" in Path(name.lower()).suffixes and not first.lstrip().startswith("["):
        return True
    try:
        return not isinstance(json.loads(first), list)
    except ValueError:
        # a list, or an object over several lines
        return False


def _parsed(text: str, name: str, line: int) -> Any:
    try:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise
        except ValueError:
            # Python reads no integer of thousands of digits; nobody asked for one
            return json.loads(text, parse_int=float)
    except json.JSONDecodeError as error:
        raise UnreadableError(
            f"source {_shown(name)}, line {line + error.lineno - 1}: is not JSON: {error.msg} at column {error.colno}"
        ) from error
    except RecursionError as error:
        raise UnreadableError(
            f"source {_shown(name)}, line {line}: lists or objects stand in one another too deep"
        ) from error


def _below(found: Any, json_field: str, name: str) -> Any:
    for key in json_field.split("."):
        if not isinstance(found, dict) or key not in found:
            has = brief(sorted(found)) if isinstance(found, dict) else f"a {type(found).__name__}"
            field = f"json_field {brief(json_field, 40)}"
            raise WrongColumnError(f"{field} is not in {_shown(name)}, which has {has} in place of {brief(key, 40)}")
        found = found[key]
    if not isinstance(found, list):
        raise TypeError(
            f"json_field {brief(json_field, 40)} of {_shown(name)} must lead to a list of rows, got {brief(found, 60)}"
        )
    return found


def _cell(row: Any, column: str, name: str, place: str) -> Any:
    # a list of texts has no columns
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise TypeError(f"source {_shown(name)}, {place}: expected an object or a text, got {brief(row, 60)}")
    return row[column] if column in row else _Missing(row)


class _Missing:
    """A row without the column: what it has."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.columns = dict(row)


def _csv(file: BinaryIO, name: str, column: str, json_field: str | None) -> Rows:
    # texts may be long
    csv.field_size_limit(2**31 - 1)
    has_tabs = ".tsv" in Path(name.lower()).suffixes
    with _lines(file, "") as lines:
        rows = csv.reader(lines, delimiter="\t" if has_tabs else ",", strict=True)
        try:
            header = next((row for row in rows if row), [])
            if column not in header:
                raise missing_column(column, f"{_shown(name)}, line {rows.line_num}", header)
            yield from _not_all_numbers(_cells(rows, header, header.index(column), name), column, name)
        except csv.Error as error:
            raise UnreadableError(f"source {_shown(name)}, line {rows.line_num}: is not CSV: {error}") from error


def _cells(rows: Any, header: list[str], index: int, name: str) -> Rows:
    for row in rows:
        if not row:
            continue
        if len(row) > len(header) or len(row) <= index:
            raise UnreadableError(
                f"source {_shown(name)}, line {rows.line_num}: has {len(row)} cells, but the first line names "
                f"{len(header)} columns; put a text that holds a comma, a tab or a line break in double quotes"
            )
        yield row[index] or None, f"line {rows.line_num}"


def _not_all_numbers(rows: Rows, column: str, name: str) -> Rows:
    # a table without types: numbers alone are no text
    head = list(islice(rows, _LOOKED_AT))
    cells = [(text, place) for text, place in head if text is not None]
    if cells and all(_is_number(text) for text, _ in cells):
        raise wrong_kind(
            column, f"{_shown(name)}, {cells[0][1]}", f"{cells[0][0]}, and numbers alone in the lines below"
        )
    yield from head
    yield from rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parquet(file: BinaryIO, name: str, column: str, json_field: str | None) -> Rows:
    table = pq.ParquetFile(file)
    _check_kind(table.schema_arrow, column, name)
    return _in_batches(table.iter_batches(batch_size=ROWS, columns=[column]), column)


def _arrow(file: BinaryIO, name: str, column: str, json_field: str | None) -> Rows:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(END_OF_STREAM)))
    if file.read() != END_OF_STREAM:
        raise UnreadableError(
            f"source {_shown(name)} is cut off, or no Arrow stream as save_to_disk writes; write it again"
        )
    file.seek(0)
    table = pa.ipc.open_stream(file)
    _check_kind(table.schema, column, name)
    return _in_batches(table, column)


def _check_kind(schema: pa.Schema, column: str, name: str) -> None:
    if column not in schema.names:
        raise missing_column(column, _shown(name), schema.names)
    kind = schema.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    # a column of nulls alone has a type of its own
    if str(value) not in TEXT_TYPES and not pa.types.is_null(value):
        raise wrong_kind(column, _shown(name), f"{kind!s:.80}")


def _in_batches(batches: Iterable[pa.RecordBatch], column: str) -> Rows:
    number = 0
    for batch in batches:
        values = batch.column(batch.schema.get_field_index(column))
        values.validate(full=True)
        for text in values.to_pylist():
            number += 1
            yield text, f"row {number}"


def _checked(rows: Rows, column: str, name: str) -> Iterator[str | None]:
    """The texts of rows, of which some row must have one."""
    number, with_text, with_column = 0, 0, 0
    missing: _Missing | None = None
    for number, (text, place) in enumerate(rows, 1):
        if isinstance(text, _Missing):
            missing, text = missing or text, None
        else:
            with_column += 1
        if text is not None:
            with_text += 1
            _check_text(text, column, name, place)
        if missing is not None and not with_column and number == _PATIENCE:
            break
        yield text
    if with_text:
        return
    if not number and "://" in name:
        # its author published it so, and nobody else can write it again
        logger.warning("source %s has no rows", _shown(name))
        return
    if not number:
        raise UnreadableError(f"source {_shown(name)} is empty: a table without rows; write it again, or remove it")
    if missing is not None and not with_column:
        rows_in = _way_to_rows(missing.columns)
        advice = f"where rows are in {brief(rows_in, 40)}, give that as json_field" if rows_in is not None else ""
        raise missing_column(column, _shown(name), missing.columns, advice)
    raise WrongColumnError(
        f"text_column {brief(column, 40)} of source {_shown(name)} is null in all of its {number} rows"
    )


def _way_to_rows(columns: Mapping[str, Any]) -> str | None:
    """The keys, with dots between them, that lead to the first list in an object that is not empty."""
    objects = [("", columns)]
    for above, found in objects:
        for key, value in found.items():
            if value and isinstance(value, list):
                return above + key
        objects += [(f"{above}{key}.", value) for key, value in found.items() if isinstance(value, dict)]
    return None


def _check_text(text: Any, column: str, name: str, place: str) -> None:
    if not isinstance(text, str):
        raise wrong_kind(column, f"{_shown(name)}, {place}", brief(text, 60))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnreadableError(
            f"source {_shown(name)}, {place}: its text holds half of a surrogate pair, {brief(text[error.start], 12)}, "
            "which is no character"
        ) from error


def _not_utf8(path: str, name: str) -> UnreadableError:
    with _opened(path, name) as file:
        try:
            file.read().decode()
        except UnicodeDecodeError as error:
            return UnreadableError(
                f"source {_shown(name)} is not UTF-8 text (byte {error.object[error.start]:#04x} at offset "
                f"{error.start}); convert it, as with iconv -t utf-8"
            )
    # a byte that only a column of a table holds
    return UnreadableError(f"source {_shown(name)} holds text that is not UTF-8; convert it")


_READERS: Mapping[str, Callable[[BinaryIO, str, str, str | None], Rows]] = {
    "json": _json,
    "csv": _csv,
    "parquet": _parquet,
    "arrow": _arrow,
}
