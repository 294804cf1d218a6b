"""Questions about blocks: drawn from a task for each document, and the five sets that models are evaluated on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset, Features, List, Value

from .packing import LENGTH
from .tasks import Task, question_rng

Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.integer]
# the columns of a set of questions, (blocks, T) each
Columns = Mapping[str, npt.NDArray[Any]]

# the text after the first quarter and before the last is asked
INFILLING = "boundary(start=0.25, end=0.25)"
# name of each set -> what it measures; the protocol of the research code that this package comes from
MODES = {
    "left_to_right": "mode 1: every token given those before it",
    "infilling": "mode 2: the middle of a document given its start and its end",
    "task": "mode 3: questions of the training task",
    "infilling_left_to_right": "mode 4: the targets of mode 2, each given all tokens before it and none after",
    "task_left_to_right": "mode 5: the targets of mode 3, each given all tokens before it and none after",
}
# what seeing later tokens is worth, in nats per target token: first minus second
GAINS = {
    "infilling_gain": ("infilling_left_to_right", "infilling"),
    "task_gain": ("task_left_to_right", "task"),
}
COLUMNS = ("given", "target", "step", "scored")
# as an epoch: no training epoch is drawn alike
EVALUATION_EPOCH = 2**31 - 1


@dataclass(frozen=True)
class BlockQuestion:
    """A question about one block of T tokens, asked of each of its documents by itself.

    Attributes:
        given, target: bool (T,); the first token of each document is given.
        step: int64 (T,), 1, 2, ... on the targets of each document in the order asked, 0 elsewhere.
        scored: bool (T,), the targets that count: all of them, but in modes 4 and 5.
    """

    given: Bools
    target: Bools
    step: Integers
    scored: Bools

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The attributes by name, as columns of a data set."""
        return {name: getattr(self, name) for name in COLUMNS}


def draw_question(
    task: Task, document_ids: Integers, random: np.random.Generator, *, length: int | None = None
) -> BlockQuestion:
    """A question for each document of a block, one after the other; a document of one token has none to ask.

    `document_ids`: integers (T,), equal within a document. `length`: tokens that are no padding, all when None.
    """
    size = len(document_ids)
    given, target = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    step = np.zeros(size, np.int64)
    length = size if length is None else int(length)
    bounds = np.flatnonzero(np.diff(document_ids[:length])) + 1
    for begin, end in zip([0, *bounds], [*bounds, length], strict=True):
        if end - begin < 2:
            given[begin:end] = True
            continue
        drawn = task.draw(int(end - begin), random)
        given[begin:end], target[begin:end], step[begin:end] = drawn.given, drawn.target, drawn.step
    return BlockQuestion(given, target, step, target.copy())


def left_to_right(document_ids: Integers, scored: Bools | None = None, *, length: int | None = None) -> BlockQuestion:
    """Every token but the first of a document, given those before it; only `scored` ones count, all when None.

    `length`: tokens that are no padding, all when None.
    """
    begins = np.ones(len(document_ids), np.bool_)
    begins[1:] = document_ids[1:] != document_ids[:-1]
    index = np.arange(len(document_ids))
    is_text = index < (len(index) if length is None else length)
    step = np.where(is_text, index - np.maximum.accumulate(np.where(begins, index, 0)), 0)
    target = ~begins & is_text
    return BlockQuestion(begins & is_text, target, step, target if scored is None else scored & target)


def draw_modes(blocks: Dataset, task: Task, *, seed: int) -> dict[str, Dataset]:
    """The five sets of MODES over the same blocks: rows of `input_ids`, `document_ids` and a question's columns.

    `blocks` have rows of `input_ids` and `document_ids`, integers (T,). The same task and seed give the same questions.
    """
    rows = blocks.with_format("numpy")
    documents = [np.asarray(row["document_ids"]) for row in rows]
    infilling = Task.parse(INFILLING)
    drawn: dict[str, list[BlockQuestion]] = {name: [] for name in MODES}
    for index, (ids, row) in enumerate(zip(documents, rows, strict=True)):
        length = row.get(LENGTH)
        middle = draw_question(infilling, ids, question_rng(seed, EVALUATION_EPOCH, index), length=length)
        # another stream than that of the set before
        asked = draw_question(task, ids, question_rng(seed + 1, EVALUATION_EPOCH, index), length=length)
        drawn["left_to_right"].append(left_to_right(ids, length=length))
        drawn["infilling"].append(middle)
        drawn["task"].append(asked)
        drawn["infilling_left_to_right"].append(left_to_right(ids, middle.target, length=length))
        drawn["task_left_to_right"].append(left_to_right(ids, asked.target, length=length))
    tokens = {name: [row[name] for row in rows] for name in ("input_ids", "document_ids")}
    return {name: _dataset(tokens, questions) for name, questions in drawn.items()}


def save_modes(modes: Mapping[str, Dataset], folder: Path) -> None:
    """Write each set as `<name>.parquet` into `folder`, which need not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, questions in modes.items():
        questions.to_parquet(folder / f"{name}.parquet")


def load_modes(folder: Path) -> dict[str, Dataset]:
    """The sets that `save_modes` wrote. Raises ValueError, in one line, where one is missing or unreadable."""
    found = {}
    for name in MODES:
        path = folder / f"{name}.parquet"
        if not path.is_file():
            raise ValueError(f"{folder}: no questions of {name}; expected {path.name}, which a run with a task writes")
        try:
            loaded = Dataset.from_parquet(str(path), keep_in_memory=True)
        except Exception as error:
            raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())[:150]}") from error
        missing = {"input_ids", "document_ids", *COLUMNS} - set(loaded.column_names)
        if missing:
            raise ValueError(f"{path}: lacks the columns {', '.join(sorted(missing))}; is it a set of questions?")
        found[name] = loaded.with_format("numpy")
    return found


def _dataset(tokens: Mapping[str, list[Any]], questions: list[BlockQuestion]) -> Dataset:
    columns = {**tokens, **{name: [getattr(one, name) for one in questions] for name in COLUMNS}}
    kinds = {name: "bool" if rows[0].dtype == np.bool_ else str(rows[0].dtype) for name, rows in columns.items()}
    features = Features({name: List(Value(kind)) for name, kind in kinds.items()})
    return Dataset.from_dict(columns, features=features).with_format("numpy")
