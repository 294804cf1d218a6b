"""The fields of a run that say which text is trained on and how it is cut into blocks."""

import glob
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import brief, check_integer

# documents
SHUFFLE_BUFFER = 10_000
# ending of a file's name -> how its text is read
READERS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
# behind one of these; a .parquet file is compressed by itself
COMPRESSED = (".gz", ".zst")
KNOWN = f"{', '.join(READERS)}, or one of them (not .parquet) with {' or '.join(COMPRESSED)}"


def reader_of(name: str) -> str | None:
    """How the file `name` is read: as text, json, csv, parquet, or arrow; None where its ending tells of no text."""
    stem, ending = os.path.splitext(name.lower())
    if ending == ".arrow":
        return "arrow"
    if ending not in COMPRESSED:
        return READERS.get(ending)
    inner = READERS.get(os.path.splitext(stem)[1])
    return None if inner == "parquet" else inner


def matches(source: str) -> list[Path]:
    """The files that `source` matches as a pattern, in order; none where it is the path of something, or no pattern."""
    path = os.path.expanduser(source)
    if os.path.lexists(path) or not glob.has_magic(path):
        return []
    return [Path(found) for found in sorted(glob.glob(path, recursive=True)) if os.path.isfile(found)]


def is_local(source: str) -> bool:
    """Whether there is something at the path `source`, or it is a pattern that some file matches."""
    return Path(source).expanduser().exists() or bool(matches(source))


def refuse_missing_source(source: str) -> None:
    """Raise ValueError where `source` can only be a path or a pattern, and nothing is there."""
    path = Path(source).expanduser()
    is_pattern = glob.has_magic(source)
    is_path = path.is_absolute() or source.startswith((".", "~")) or reader_of(path.name) is not None or is_pattern
    if is_path and not is_local(source):
        also = ", and as a pattern it matches no file" if is_pattern else ""
        raise ValueError(f"source {brief(source)} does not exist{also}; give 'embedded', a path or a data set's name")


@dataclass
class DataArguments:
    """Where the text comes from, what is held out, and the size of a block.

    Raises ValueError for a value outside its range, TypeError where a number is no integer.
    """

    source: str = field(
        default="embedded",
        metadata={
            "help": "'embedded' (documentation that comes with Python), a file, a folder or a pattern (texts/*.txt) of "
            f"{', '.join(READERS)}, also with {' or '.join(COMPRESSED)}, a folder of save_to_disk, 'wikipedia', "
            "'wikitext', or the name of a data set for `datasets`."
        },
    )
    source_config: str | None = field(
        default=None, metadata={"help": "Configuration of a `datasets` name, as wikitext-2-raw-v1."}
    )
    source_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a `datasets` name on the Hub; none: the newest."}
    )
    fallback: bool = field(
        default=True,
        metadata={"help": "Where Wikipedia is unavailable, take WikiText-2, then the embedded text; false: an error."},
    )
    text_column: str = field(default="text", metadata={"help": "Column that holds the text of a document."})
    json_field: str | None = field(
        default=None,
        metadata={"help": "Where the rows of a .json file are: a key, or several with dots between; none: at the top."},
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str | None = field(
        default=None,
        metadata={"help": "Split to evaluate on; none: documents of the training split are held out."},
    )
    validation_share: float = field(
        default=0.05, metadata={"help": "Share of the documents held out when no validation split is named."}
    )
    min_document_length: int = field(
        default=1, metadata={"help": "Characters a document must have; shorter ones are left out."}
    )
    packing: bool = field(
        default=True,
        metadata={
            "help": "Documents one after the other in a block; false: one a block and its end, the rest is padding."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read the training text while training, again and again, instead of preparing it first."},
    )
    shuffle_buffer: int = field(
        default=SHUFFLE_BUFFER, metadata={"help": "Documents of a stream that are shuffled at a time; 1: as they come."}
    )
    tokenizer: str = field(default="gpt2", metadata={"help": "Tokenizer: a name on the Hub or a folder."})
    block_size: int | None = field(
        default=None, metadata={"help": "Tokens a block; none: the n_positions of the model."}
    )
    preprocessing_num_workers: int = field(
        default=1, metadata={"help": "Processes that tokenise the text before training; a stream has none."}
    )
    num_train_samples: int | None = field(default=None, metadata={"help": "Training blocks to keep; none: all."})
    num_val_samples: int | None = field(default=None, metadata={"help": "Validation blocks to keep; none: all."})

    def __post_init__(self) -> None:
        for name in ("source", "text_column", "train_split", "tokenizer"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"{name} must be a non-empty text, got {brief(value)}")
        if self.source_revision is not None and (not isinstance(self.source_revision, str) or not self.source_revision):
            raise ValueError(
                "source_revision must be a branch, a tag or a commit of a data set, or none for the newest, got "
                f"{brief(self.source_revision)}"
            )
        if self.json_field is not None and (not isinstance(self.json_field, str) or not self.json_field):
            raise ValueError(f"json_field must be a key of a .json file, or none, got {brief(self.json_field)}")
        share = self.validation_share
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
            raise ValueError(f"validation_share must lie between 0 and 1, both excluded, got {brief(share)}")
        for name in ("fallback", "packing", "streaming"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {brief(getattr(self, name))}")
        optional = {"block_size": 2, "num_train_samples": 1, "num_val_samples": 1}
        needed = dict.fromkeys(("min_document_length", "shuffle_buffer", "preprocessing_num_workers"), 1)
        for name, least in {**optional, **needed}.items():
            value = getattr(self, name)
            if value is not None or name in needed:
                check_integer(name, value, low=least)
        if self.validation_split == self.train_split:
            raise ValueError(
                f"validation_split must differ from train_split, both are {brief(self.train_split)}; "
                "leave validation_split out to hold out documents"
            )
        self._refuse_idle()

    def _refuse_idle(self) -> None:
        is_local_text = self.source == "embedded" or is_local(self.source)
        for name in ("source_config", "source_revision"):
            value = getattr(self, name)
            if is_local_text and value is not None:
                raise ValueError(
                    f"{name} {brief(value, 40)} is for data sets by name; source {brief(self.source)} has none, "
                    "leave it out"
                )
        if not self.streaming and self.shuffle_buffer != SHUFFLE_BUFFER:
            raise ValueError(
                f"shuffle_buffer is {self.shuffle_buffer}, but only a stream has one: a text that is prepared is "
                "shuffled whole; give streaming: true, or leave shuffle_buffer out"
            )
        if self.streaming and self.preprocessing_num_workers != 1:
            raise ValueError(
                f"preprocessing_num_workers is {self.preprocessing_num_workers}, but a stream is tokenised while "
                "it is read; give dataloader_num_workers, or leave preprocessing_num_workers out"
            )
        if self.streaming and self.num_train_samples is not None:
            raise ValueError(
                f"num_train_samples is {self.num_train_samples}, but a stream has no end; give max_steps and "
                "num_train_samples: none, or streaming: false"
            )
