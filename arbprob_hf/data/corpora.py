"""Finds the text of a run: embedded, local files, or a data set by name, split by document."""

import platform
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, load_dataset

from arbprob_hf.data.arguments import DataArguments
from arbprob_hf.data.documents import hold_out, texts_of
from arbprob_hf.data.embedded import embedded_documents
from arbprob_hf.data.errors import brief, reason
from arbprob_hf.data.local_files import READERS, local_splits, read_files


@dataclass(frozen=True)
class Texts:
    """Training and validation documents, one a row in column "text", and one line on what they are."""

    train: Dataset
    validation: Dataset
    source: str


def load_texts(arguments: DataArguments) -> Texts:
    """The documents that `arguments` name, those for validation never among those for training.

    Without `validation_split`, `validation_share` of the training split's documents are held out, chosen by
    their text alone. Raises `ValueError` or `TypeError` naming what cannot be found or read.
    """
    source = _source(arguments)
    train = source.split(arguments.train_split)
    if arguments.validation_split is None:
        train, validation = hold_out(train, arguments.validation_share)
        held = "documents held out of it"
    else:
        validation = source.split(arguments.validation_split)
        held = f"its split {arguments.validation_split}"
    return Texts(train, validation, f"{source.title}; validation on {held}")


class Embedded:
    """What comes with Python."""

    title = f"documentation topics and standard-library docstrings of Python {platform.python_version()}"

    def __init__(self, arguments: DataArguments) -> None:
        for name, default in (("text_column", "text"), ("train_split", "train"), ("validation_split", None)):
            if getattr(arguments, name) != default:
                raise ValueError(
                    f"{name} is {brief(getattr(arguments, name))}, but the embedded source has only the "
                    f"split 'train' with the column 'text'; leave {name} out"
                )

    def split(self, name: str) -> Dataset:
        return Dataset.from_dict({"text": embedded_documents()})


class LocalFiles:
    """A file or a folder of files."""

    def __init__(self, arguments: DataArguments) -> None:
        path = Path(arguments.source).expanduser()
        self._where = brief(arguments.source)
        self._column = arguments.text_column
        self._splits = local_splits(path)
        # the last part alone: a card must not tell where somebody keeps files
        self.title = f"local text {path.resolve().name}"

    def split(self, name: str) -> Dataset:
        if name not in self._splits:
            raise ValueError(
                f"split {brief(name, 40)} is not in source {self._where}, whose file names tell {sorted(self._splits)}"
            )
        return read_files(self._splits[name], self._column)


class Named:
    """A data set that the `datasets` package loads by name."""

    def __init__(self, arguments: DataArguments) -> None:
        self._arguments = arguments
        self._where = brief(arguments.source)
        if arguments.source_config is not None:
            self._where += f" ({brief(arguments.source_config, 40)})"
        self.title = " ".join(filter(None, (arguments.source, arguments.source_config)))

    def split(self, name: str) -> Dataset:
        try:
            rows = load_dataset(self._arguments.source, self._arguments.source_config, split=name)
        except Exception as error:
            raise ValueError(
                f"source {self._where}, split {brief(name, 40)}: no such path, and `datasets` could not load "
                f"it: {reason(error)}"
            ) from error
        return texts_of(rows, self._arguments.text_column, where=self._where)


def _source(arguments: DataArguments) -> Embedded | LocalFiles | Named:
    name, path = arguments.source, Path(arguments.source).expanduser()
    local = name == "embedded" or path.exists()
    if local and arguments.source_config is not None:
        raise ValueError(
            f"source_config {brief(arguments.source_config, 40)} is for data sets by name; source "
            f"{brief(name)} has none, leave it out"
        )
    if name == "embedded":
        return Embedded(arguments)
    if path.exists():
        return LocalFiles(arguments)
    if path.is_absolute() or name.startswith((".", "~")) or path.suffix.lower() in READERS:
        raise ValueError(f"source {brief(name)} does not exist; give 'embedded', a path or a data set's name")
    return Named(arguments)
