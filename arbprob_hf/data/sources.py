"""Finds the text of a run: embedded, local files, or a data set by name, split by document."""

import hashlib
import itertools
import logging
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetBuilder, DownloadManager, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from datasets.naming import camelcase_to_snakecase

from ..errors import brief, reason
from .arguments import DataArguments, is_local, reader_of, refuse_missing_source
from .documents import columns_of, hold_out, streamed_texts, texts_of
from .fallback import (
    UnavailableError,
    first_available,
    hub_answers,
    is_about_content,
    is_connection_lost,
    is_revision_unknown,
    known_language,
    title,
)
from .files import local_splits, read_files, stream_files
from .python_docs import embedded_documents
from .streaming import Streamed

logger = logging.getLogger(__name__)

# as git names a commit
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Origin:
    """Where documents are from.

    Attributes:
        split: that the validation documents are from. held_out: their share of it, None where all of it is for
            validation.
        dataset: their name on the Hub, None where they are not from there. commit: the state of it that was read, 40
            hexadecimal digits, None where it is not known.
        language: a code, such as en, None where it is not known.
    """

    split: str
    held_out: float | None = None
    dataset: str | None = None
    commit: str | None = None
    language: str | None = None


@dataclass(frozen=True)
class Texts:
    """Training and validation documents, one a row in column "text", one line on what they are, and where from."""

    train: Dataset
    validation: Dataset
    source: str
    origin: Origin


@dataclass(frozen=True)
class Streams:
    """Documents that are read as they are needed.

    Attributes:
        train: the documents for training. validation: gives the texts for validation, from their beginning.
        source, origin: as in `Texts`.
    """

    train: Streamed
    validation: Callable[[], Iterator[str]]
    source: str
    origin: Origin


def load_texts(arguments: DataArguments) -> Texts:
    """The documents that `arguments` name, those for validation never among those for training.

    Without `validation_split`, `validation_share` of the training split's documents are held out, chosen by
    their text alone. Where Wikipedia or WikiText are unavailable, others are taken instead, unless `fallback` is off.
    Raises `ValueError` or `TypeError` naming what cannot be found or read.
    """
    texts, missing = first_available(arguments, _texts)
    return replace(texts, source=f"{texts.source} ({missing})") if missing else texts


def _texts(arguments: DataArguments) -> Texts:
    source = find_source(arguments)
    train = source.split(arguments.train_split)
    if arguments.validation_split is None:
        train, validation = hold_out(train, arguments.validation_share)
        held = "documents held out of it"
    else:
        validation = source.split(arguments.validation_split)
        held = f"its split {arguments.validation_split}"
    return Texts(train, validation, f"{source.title}; validation on {held}", _origin(source, arguments))


def load_streams(arguments: DataArguments) -> Streams:
    """As `load_texts`, but read while training; which documents are held out depends on their text alone, too."""
    streams, missing = first_available(arguments, _streams)
    return replace(streams, source=f"{streams.source} ({missing})") if missing else streams


def _streams(arguments: DataArguments) -> Streams:
    source = find_source(arguments)
    train, split = source.stream(arguments.train_split), arguments.validation_split
    train = replace(train, least=arguments.min_document_length, revision=_state(source, arguments))
    if split is None:
        train = replace(train, held_out=arguments.validation_share)
        validation, held = partial(train.texts, validation=True), "documents held out of it"
    else:
        others = replace(source.stream(split), least=arguments.min_document_length)
        validation, held = partial(others.texts), f"its split {split}"
    return Streams(train, validation, f"{source.title}, streamed; validation on {held}", _origin(source, arguments))


def _state(source: "Embedded | LocalFiles | Named", arguments: DataArguments) -> str:
    # another column is another text; that it is the usual one was never noted
    chosen = {"text_column": "text", "json_field": None}
    others = [str(getattr(arguments, name)) for name, usual in chosen.items() if getattr(arguments, name) != usual]
    return " ".join([*others, source.revision])


def _origin(source: "Embedded | LocalFiles | Named", arguments: DataArguments) -> Origin:
    split, held_out = arguments.validation_split, None
    if split is None:
        split, held_out = arguments.train_split, arguments.validation_share
    if isinstance(source, Named):
        return Origin(split, held_out, arguments.source, source.commit, known_language(arguments))
    return Origin(split, held_out, language="en" if isinstance(source, Embedded) else None)


class Embedded:
    """What comes with Python."""

    title = f"documentation topics and standard-library docstrings of Python {platform.python_version()}"

    def __init__(self, arguments: DataArguments) -> None:
        only = {"text_column": "text", "json_field": None, "train_split": "train", "validation_split": None}
        for name, default in only.items():
            if getattr(arguments, name) != default:
                raise ValueError(
                    f"{name} is {brief(getattr(arguments, name))}, but the embedded source has only the "
                    f"split 'train' with the column 'text'; leave {name} out"
                )

    # changes with Python, which the title names
    revision = ""

    def split(self, name: str) -> Dataset:
        return Dataset.from_dict({"text": embedded_documents()})

    def stream(self, name: str) -> Streamed:
        """The documents; in four parts, for as many readers."""
        return Streamed(self.split(name).to_iterable_dataset(num_shards=4), self.title)


class LocalFiles:
    """A file, a folder of files, or a pattern that some match."""

    def __init__(self, arguments: DataArguments) -> None:
        self._where = brief(arguments.source)
        self._column, self._json_field = arguments.text_column, arguments.json_field
        self._splits = local_splits(arguments.source)
        kinds = {reader_of(path.name) for paths in self._splits.values() for path in paths}
        if self._json_field is not None and "json" not in kinds:
            field = brief(self._json_field, 40)
            raise ValueError(f"json_field {field} is for .json files; {self._where} has none, leave it out")
        if self._column != "text" and kinds == {"text"}:
            raise ValueError(
                f"text_column {brief(self._column, 40)} is for tables; {self._where} is plain text, leave it out"
            )
        # the last part alone: a card must not reveal where somebody keeps files
        self.title = f"local text {Path(arguments.source).expanduser().resolve().name}"

    @property
    def revision(self) -> str:
        """What identifies the state of the files: their names, sizes and times of change."""
        files = [path for paths in self._splits.values() for path in paths]
        states = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
        return hashlib.sha256(repr(states).encode()).hexdigest()

    def split(self, name: str) -> Dataset:
        rows = read_files(self._files(name), self._column, self._json_field)
        return texts_of(rows, "text", where=self._where)

    def stream(self, name: str) -> Streamed:
        """The documents, read as they are needed."""
        files = self._files(name)
        return Streamed(stream_files(files, self._column, self._json_field), self._where, [str(file) for file in files])

    def _files(self, split: str) -> Sequence[Path]:
        if split not in self._splits:
            raise ValueError(
                f"split {brief(split, 40)} is not in source {self._where}, whose file names give {sorted(self._splits)}"
            )
        return self._splits[split]


class Named:
    """A data set that the `datasets` package loads by name."""

    def __init__(self, arguments: DataArguments) -> None:
        self._arguments = arguments
        self._where = brief(arguments.source)
        if arguments.source_config is not None:
            self._where += f" ({brief(arguments.source_config, 40)})"
        self.title = title(arguments)
        self._builder = self._found()

    @property
    def revision(self) -> str:
        """What identifies the state of the data set."""
        return str(self._builder.hash)

    @property
    def commit(self) -> str | None:
        """The commit that is read, as `source_revision` takes it; None where `datasets` does not say."""
        return self.revision if _COMMIT.fullmatch(self.revision) else None

    def split(self, name: str) -> Dataset:
        column, files = self._arguments.text_column, self._files(name)
        try:
            rows = load_dataset(**self._named(), split=name)
        except Exception as error:
            if not is_about_content(error):
                raise self._refusal(error, name) from error
            if self._are_plain(files):
                # another column may be what cannot be read; if it is not, the file is named
                paths = DownloadManager(self._builder.dataset_name).download(files)
                return texts_of(read_files(paths, column, self._json_field, names=files), "text", where=self._where)
            if isinstance(error, DatasetGenerationError):
                self._name_damaged_file(name)
            raise self._refusal(error, name) from error
        self._warn_of_empty_files(name, rows)
        return texts_of(rows, column, where=self._where)

    def stream(self, name: str) -> Streamed:
        """The documents of a split, read as they are needed."""
        files = self._files(name)
        if self._are_plain(files):
            documents = stream_files(files, self._arguments.text_column, self._json_field)
            try:
                # files are listed by one server and sent by another
                next(iter(documents), None)
            except Exception as error:
                if is_connection_lost(error):
                    raise self._refusal(error, name) from error
                raise
            return Streamed(documents, self._where, files)
        try:
            rows = load_dataset(**self._named(), split=name, streaming=True)
            columns = columns_of(rows)
        except Exception as error:
            raise self._refusal(error, name) from error
        documents = streamed_texts(rows, columns, self._arguments.text_column, where=self._where)
        try:
            # files are listed by one server and sent by another
            next(iter(documents), None)
        except Exception as error:
            # what is damaged is named when it is read
            if is_connection_lost(error):
                raise self._refusal(error, name) from error
        return Streamed(documents, self._where, files)

    def _files(self, split: str) -> list[str]:
        return list(map(str, (self._builder.config.data_files or {}).get(split, ())))

    def _are_plain(self, files: Sequence[str]) -> bool:
        """Whether `readers` takes files for what `datasets` takes them, but for the columns that nobody asked for."""
        kind, tables = self._builder.name, ("json", "csv", "parquet")
        separator = "\t" if any(".tsv" in file.lower() for file in files) else ","
        is_usual = getattr(self._builder.config, "sep", separator) == separator
        return is_usual and kind in tables and {reader_of(file) for file in files} == {kind}

    @property
    def _json_field(self) -> str | None:
        return getattr(self._builder.config, "field", None)

    def _warn_of_empty_files(self, name: str, rows: Dataset) -> None:
        files = self._files(name)
        lengths = getattr((rows.info.splits or {}).get(name), "original_shard_lengths", None) or ()
        for file, length in itertools.zip_longest(files, lengths[: len(files)], fillvalue=0) if lengths else ():
            if not length:
                logger.warning("source %s has no rows", brief(file))

    def _named(self) -> dict[str, Any]:
        given = self._arguments
        return {"path": given.source, "name": given.source_config, "revision": given.source_revision}

    def _found(self) -> DatasetBuilder:
        owner, _, name = self._arguments.source.rpartition("/")
        # as `datasets` names the folder of what it prepared
        known = "___".join(filter(None, (owner, camelcase_to_snakecase(name))))
        answers = hub_answers()
        if not answers and not (Path(datasets.config.HF_DATASETS_CACHE) / known).is_dir():
            message = f"source {self._where} is not a path, is not in the local cache, and the Hub does not answer"
            raise UnavailableError(message, "the Hub does not answer")
        try:
            builder = load_dataset_builder(**self._named())
        except ValueError as error:
            message = f"source {self._where}: {reason(error, 200)}"
            # what is cached may be another configuration
            raise (ValueError(message) if answers else UnavailableError(message, reason(error))) from error
        except Exception as error:
            if is_revision_unknown(error):
                wanted = brief(self._arguments.source_revision, 60)
                raise ValueError(
                    f"source_revision {wanted} is not a branch, tag or commit of {self._where}; give one, or leave it "
                    "out for the newest"
                ) from error
            message = f"source {self._where} is not a path, and `datasets` could not load it: {reason(error)}"
            is_missing = isinstance(error, DatasetNotFoundError) or is_connection_lost(error)
            raise (UnavailableError(message, reason(error)) if is_missing else ValueError(message)) from error
        self._refuse_cached(builder)
        return builder

    def _refuse_cached(self, builder: DatasetBuilder) -> None:
        # where the Hub does not answer, `datasets` takes what it prepared last, whatever revision is named
        wanted, cached = self._arguments.source_revision, str(builder.hash)
        if wanted is None or builder.hash == wanted or builder.name != "cache":
            return
        message = (
            f"source_revision {brief(wanted, 60)} of {self._where} is unavailable, as the Hub does not answer, and the "
            f"local cache has {cached:.40}; try again, or give that"
        )
        raise UnavailableError(message, f"the local cache has the revision {cached:.8}")

    def _name_damaged_file(self, split: str) -> None:
        # `datasets` does not say which of the files it was: read them one by one
        if self._files(split):
            for _ in self.stream(split).texts():
                pass

    def _refusal(self, error: Exception, split: str) -> ValueError:
        text = f"source {self._where}, split {brief(split, 40)}: it could not be loaded: {reason(error)}"
        return UnavailableError(text, reason(error)) if is_connection_lost(error) else ValueError(text)


def find_source(arguments: DataArguments) -> Embedded | LocalFiles | Named:
    """The kind of source that `arguments` name. Raises ValueError where there is none, or it is unavailable."""
    name = arguments.source
    local = name == "embedded" or is_local(name)
    if name == "embedded":
        return Embedded(arguments)
    if local:
        return LocalFiles(arguments)
    refuse_missing_source(name)
    if arguments.json_field is not None:
        raise ValueError(f"json_field {brief(arguments.json_field, 40)} is for local .json files; leave it out")
    return Named(arguments)
