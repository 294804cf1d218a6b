"""Finds local files of text, one, a folder or a pattern of them, by split, and reads them as a data set."""

import functools
import glob
import itertools
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset, Value
from datasets.exceptions import DatasetGenerationError

from ..errors import brief, chain_of, one_line, reason
from .arguments import COMPRESSED, KNOWN, READERS, matches, reader_of
from .documents import WrongColumnError, code_of, copies_of_text
from .readers import UnreadableError, gone, texts_in

logger = logging.getLogger(__name__)

Splits = dict[str, list[Path]]

# the kinds of files in the order in which they are read
_ORDER = (*dict.fromkeys(READERS.values()), "arrow")
# what `datasets` writes beside the files of a data set, and into the folder of several splits
_STATE, _SPLITS = "state.json", "dataset_dict.json"
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
# a file's name with its number and how many there are, as `datasets` writes them; also compressed
_COUNTED = re.compile(r"(.*-)(\d{5})-of-(\d{5})(\..*?)(\.gz|\.zst|)")
_FEATURES = Features({"text": Value("string")})
# documents in memory while they are prepared: so many, or as few as that where files of text are large
_MEMORY, _TOGETHER, _FEWEST = 1 << 28, 1000, 100


def local_splits(source: str) -> Splits:
    """The text files of a file, a folder or a pattern by split, in the order in which they are read.

    What is at the path `source` comes before what it matches as a pattern. Where some file is named after the training
    split (train-00000.parquet, train/a.txt), files belong to such splits; otherwise each belongs to "train". A folder
    that `save_to_disk` wrote has the splits that it says. One line is logged on what is read and what is not.

    Raises:
        ValueError: an unknown ending, a folder without text files, or one that lacks a file it should have; an emptied
            file of several that are numbered, or a text both packed and unpacked.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if reader_of(path.name) is None:
            raise ValueError(f"source {brief(source)} has an unknown extension; expected one of {KNOWN}")
        return {"train": [path]}
    if path.is_dir():
        return _saved(path) or _in_folder(path)
    found = matches(source)
    logger.warning("source %s is no file or folder; as a pattern it matches %s files", brief(source), f"{len(found):,}")
    # names of folders above the first part that is a pattern say nothing about splits
    above = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    return _by_split(above, [one.relative_to(above) for one in found], source)


def _in_folder(folder: Path) -> Splits:
    return _by_split(folder, list(_below(folder)), folder, is_whole=True)


def _below(folder: Path) -> Iterator[Path]:
    """The files below `folder`, as paths from there, also in folders that are linked; each folder comes once."""

    def refuse(error: OSError) -> None:
        raise ValueError(f"source folder {brief(str(error.filename))} cannot be read: {reason(error)}") from error

    seen: set[str] = set()
    # a folder's own place comes before a link to it
    tops = [str(folder)]
    for top in tops:
        for at, folders, names in os.walk(top, onerror=refuse):
            # hidden files and folders are a tool's, not text
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            real = os.path.realpath(at)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            tops += [path for name in folders if os.path.islink(path := os.path.join(at, name))]
            yield from (Path(at, name).relative_to(folder) for name in names if not name.startswith("."))


def _check_shards(folder: Path, texts: Sequence[Path], source: str | Path, *, is_whole: bool) -> None:
    """Refuse an emptied one of several numbered files or, where all should be there (`is_whole`), a missing one."""
    counted = [(path, match.groups()) for path in texts if (match := _COUNTED.fullmatch(path.as_posix()))]
    emptied = next((path for path, _ in counted if not (folder / path).stat().st_size), None)
    if emptied is not None:
        # a path of a shard is long
        name = brief(str(folder / emptied), 180)
        raise ValueError(f"source {name} is empty: 0 bytes, and other names count it; write it again, or remove it")
    missing = _missing([groups for _, groups in counted])
    if not missing:
        return
    names = ", ".join(missing[:3]) + ", ..." * (len(missing) > 3)
    those = (
        "is not there, though the names of others count it"
        if len(missing) == 1
        else "are not there, though the names of others count them"
    )
    line = f"source {brief(str(source))}: {len(missing):,} file{'s' * (len(missing) != 1)} {those} ({names})"
    if is_whole:
        raise ValueError(
            f"{line}; put back what is gone, or give a pattern, as {brief(str(folder / '*'), 60)}, for the rest"
        )
    logger.warning("%s", line)


def _missing(counted: Sequence[tuple[str, ...]]) -> list[str]:
    """The names of files that those of others, as train-00001-of-00004.parquet, tell of, in order.

    `counted`: of each that is there, the parts of its name.
    """
    there: dict[tuple[str, str, str], dict[int, str]] = {}
    for before, number, total, after, packed in counted:
        there.setdefault((before, total, after), {})[int(number)] = packed
    found = []
    for (before, total, after), numbers in sorted(there.items()):
        # some count from 1
        first, ending = int(int(total) in numbers), next(iter(numbers.values()))
        wanted = range(first, int(total) + first)
        found += [f"{before}{number:05}-of-{total}{after}{ending}" for number in wanted if number not in numbers]
    return found


def _refuse_twins(folder: Path, texts: Sequence[Path]) -> None:
    """Refuse a text beside the same one packed or packed otherwise."""
    unpacked: dict[Path, Path] = {}
    for path in texts:
        name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
        if name in unpacked:
            raise ValueError(
                f"source {brief(str(folder / unpacked[name]), 180)} stands beside {path.name}, and would be read "
                "twice; remove one, or give a pattern that matches one of them"
            )
        unpacked[name] = path


def _by_split(folder: Path, paths: Sequence[Path], source: str | Path, *, is_whole: bool = False) -> Splits:
    kinds = {path: reader_of(path.name) for path in sorted(paths)}
    has_tables = not {"text", "arrow", None}.issuperset(kinds.values())
    # beside a table, notes are about it; .arrow files of no save_to_disk may be anybody's cache
    texts = [
        path
        for path, kind in kinds.items()
        if kind not in (None, "arrow") and not (has_tables and ".md" in path.name.lower())
    ]
    lost = next((path for path in texts if not (folder / path).exists()), None)
    if lost is not None:
        raise ValueError(f"source {brief(str(folder / lost))} is a link to a file that is not there; put it back")
    if not texts:
        raise ValueError(f"source folder {brief(str(source))} holds no text files; expected some of {KNOWN}")
    _refuse_twins(folder, texts)
    _check_shards(folder, texts, source, is_whole=is_whole)
    empty = [path for path in texts if kinds[path] == "text" and not (folder / path).stat().st_size]
    named = {path: _split_in_name(path) for path in texts if path not in empty}
    if not named:
        raise ValueError(f"source {brief(str(source))} is empty; expected text")
    if "train" not in named.values():
        named = dict.fromkeys(named, "train")
    nameless = [path for path, split in named.items() if split is None]
    others = [path for path in kinds if path not in set(texts)]
    left_out = {"no split in their names": nameless, "empty": empty, "of other kinds": others}
    _report(source, len(named) - len(nameless), left_out)
    splits: Splits = {}
    for path, split in sorted(named.items(), key=lambda item: _ORDER.index(kinds[item[0]] or "")):
        if split is not None:
            splits.setdefault(split, []).append(folder / path)
    return splits


def _report(source: str | Path, read: int, left_out: Mapping[str, Sequence[Path]]) -> None:
    parts = [f"{read:,} file{'s are' if read != 1 else ' is'} read"]
    for why, paths in left_out.items():
        if paths:
            names = ", ".join(brief(str(path), 40) for path in paths[:3]) + ", ..." * (len(paths) > 3)
            parts.append(f"{len(paths):,} {'are' if len(paths) != 1 else 'is'} left out, {why} ({names})")
    logger.warning("source %s: %s", brief(str(source)), "; ".join(parts))


def _split_in_name(path: Path) -> str | None:
    # the file's own name speaks before its folders'
    for part in (path.stem, *reversed(path.parts[:-1])):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def _saved(folder: Path) -> Splits | None:
    """The files of a folder that `save_to_disk` wrote; None where it is no such folder."""
    if (folder / _SPLITS).is_file():
        splits = {str(name): folder / str(name) for name in _written(folder / _SPLITS, "splits")}
    elif (folder / _STATE).is_file() and (folder / "dataset_info.json").is_file():
        splits = {"train": folder}
    else:
        return None
    found = {
        split: [own / str(one["filename"]) for one in _written(own / _STATE, "_data_files")]
        for split, own in splits.items()
    }
    _report(folder, sum(map(len, found.values())), {})
    return found


def _written(path: Path, key: str) -> list[Any]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"source {brief(str(path))} is not as save_to_disk writes it ({one_line(error):.60}); save it again"
        ) from error


def read_files(
    files: Sequence[Path | str], column: str, json_field: str | None = None, *, names: Sequence[str] | None = None
) -> Dataset:
    """The documents of some files, column "text" alone, as `readers.texts_in` reads each; a row without a text is None.

    `names`: of the files, where their paths do not tell. Kept in the cache of `datasets`, by the paths, sizes and times
    of change of the files and by the code that reads them. Raises what `texts_in` raises, which names the file.
    """
    given = _described(files, column, json_field, names)
    sizes = (
        size for name, (_, size, *_) in zip(given["names"], given["states"], strict=True) if reader_of(name) == "text"
    )
    longest = max(sizes, default=0)
    try:
        with copies_of_text():
            return Dataset.from_generator(
                _rows,
                features=_FEATURES,
                gen_kwargs=given,
                # a file may be one document
                writer_batch_size=min(_TOGETHER, max(_FEWEST, _MEMORY // max(1, longest))),
            )
    except DatasetGenerationError as error:
        # what names the file is the first of ours
        causes = (
            cause for cause in chain_of(error) if isinstance(cause, (UnreadableError, WrongColumnError, TypeError))
        )
        raise next(causes, error) from None


def stream_files(files: Sequence[Path | str], column: str, json_field: str | None = None) -> IterableDataset:
    """The same rows as `read_files` reads, as they are needed; a part of it, as `shard` gives them, is a file."""
    given = {**_described(files, column, json_field), "says_missing": True}
    return IterableDataset.from_generator(_rows, features=_FEATURES, gen_kwargs=given)


def _described(
    files: Sequence[Path | str], column: str, json_field: str | None, names: Sequence[str] | None = None
) -> dict[str, Any]:
    paths = list(map(str, files))
    # lists are shared out, file by file; that a file has changed makes it another one for the cache
    return {
        "paths": paths,
        "names": paths if names is None else list(names),
        "states": list(map(_state, paths)),
        "column": column,
        "json_field": json_field,
        "code": code_of("arguments", "documents", "files", "readers"),
    }


def _state(path: str) -> tuple[str, int, int, int]:
    # an address of the Hub names a commit
    if "://" in path:
        return path, 0, 0, 0
    try:
        state = Path(path).stat()
    except FileNotFoundError as error:
        raise gone(path) from error
    # what writes a file anew may set the time of its change, but not that of its state
    return str(Path(path).absolute()), state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _rows(
    paths: Sequence[str],
    names: Sequence[str],
    states: Sequence[tuple[str, int, int, int]],
    column: str,
    json_field: str | None,
    code: str,
    says_missing: bool = False,
) -> Iterator[dict[str, str | None]]:
    for path, name in zip(paths, names, strict=True):
        missing = 0
        for text in texts_in(path, column, name=name, json_field=json_field):
            missing += text is None
            yield {"text": text}
        if missing and says_missing:
            _say_missing(name, missing)


# a stream reads its files again and again
@functools.cache
def _say_missing(name: str, rows: int) -> None:
    logger.warning("source %s: rows without a text (null) are left out: %s", brief(name), rows)
