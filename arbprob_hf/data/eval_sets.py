"""The five sets of questions that models are evaluated on: drawn, written as parquet files, and read again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value
from datasets.table import InMemoryTable

from .block_questions import QUESTION_COLUMNS, BlockQuestion, draw_question, left_to_right, question_rng
from .packing import LENGTH
from .tasks import Task

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
# as an epoch: no training epoch is drawn alike
EVALUATION_EPOCH = 2**31 - 1


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
        # by a path, datasets and fsspec would read an address or a pattern where that looks like one
        with (folder / f"{name}.parquet").open("wb") as file:
            questions.to_parquet(file)


def load_modes(folder: Path) -> dict[str, Dataset]:
    """The sets that `save_modes` wrote. Raises ValueError, in one line, where one is missing or unreadable."""
    found = {}
    for name in MODES:
        path = folder / f"{name}.parquet"
        if not path.is_file():
            raise ValueError(f"{folder}: no questions of {name}; expected {path.name}, which a run with a task writes")
        try:
            with path.open("rb") as file:
                loaded = Dataset(InMemoryTable(pq.read_table(file)))
        except Exception as error:
            raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())[:150]}") from error
        missing = {"input_ids", "document_ids", *QUESTION_COLUMNS} - set(loaded.column_names)
        if missing:
            raise ValueError(f"{path}: lacks the columns {', '.join(sorted(missing))}; is it a set of questions?")
        found[name] = loaded.with_format("numpy")
    return found


def _dataset(tokens: Mapping[str, list[Any]], questions: list[BlockQuestion]) -> Dataset:
    columns = {**tokens, **{name: [getattr(one, name) for one in questions] for name in QUESTION_COLUMNS}}
    kinds = {name: "bool" if rows[0].dtype == np.bool_ else str(rows[0].dtype) for name, rows in columns.items()}
    features = Features({name: List(Value(kind)) for name, kind in kinds.items()})
    return Dataset.from_dict(columns, features=features).with_format("numpy")
