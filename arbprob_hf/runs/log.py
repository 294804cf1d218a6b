"""The training log of a run, a CSV file: where it lies, what its columns mean, how it is written and read."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..atomic_write import replacing
from ..machine_errors import naming

COLUMNS = (
    "step",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens_seen",
    "tokens_per_second",
    "eval_loss",
    "perplexity",
    "bits_per_byte",
)
# what the further columns of a run with a task are called in pictures
CURVES = {
    "left_to_right_loss": "1 left to right",
    "infilling_loss": "2 infilling",
    "task_loss": "3 task",
    "infilling_left_to_right_loss": "4 targets of 2, left to right",
    "task_left_to_right_loss": "5 targets of 3, left to right",
    "infilling_gain": "4 - 2, infilling",
    "task_gain": "5 - 3, task",
}
LOSSES = tuple(column for column in CURVES if column.endswith("_loss"))
Row = dict[str, float | None]


def read_log(path: Path) -> list[Row]:
    """The rows of a training log by column, numbers as floats and empty cells as None, without an unfinished last line.

    A run with a task has columns of its evaluation modes behind COLUMNS.
    Raises ValueError when the file is not a training log.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file))
    except (csv.Error, UnicodeDecodeError):
        # no text at all
        lines = []
    if not lines or tuple(lines[0][: len(COLUMNS)]) != COLUMNS:
        raise ValueError(
            f"{path}: expected a training log whose first line is {','.join(COLUMNS[:3])},...; move it away"
        )
    rows = [_row(lines[0], line) for line in lines[1:]]
    return [row for row in rows if row is not None and row["step"] is not None]


def find_log(run: Path) -> Path | None:
    """The log of a run's output folder, of a checkpoint in it, or the file itself; None where there is none."""
    if run.is_file():
        return run
    folders = [run, run.parent] if run.name.startswith("checkpoint-") else [run]
    return next((path for path in (folder / "logs" / "training_log.csv" for folder in folders) if path.is_file()), None)


def has_modes(rows: Sequence[Mapping[str, float | None]]) -> bool:
    """Whether a log is that of a run with a task."""
    return any(row.get(name) is not None for row in rows for name in LOSSES)


def by_mode(rows: Sequence[Row]) -> list[Row]:
    """The rows with a column for each of LOSSES; a run that has none logs that of reading from left to right."""
    if not has_modes(rows):
        rows = [{**row, LOSSES[0]: row.get("eval_loss")} for row in rows]
    return [{**dict.fromkeys(LOSSES), **row} for row in rows]


def run_names(folders: Sequence[Path]) -> list[str]:
    """A name for each run: its folder's, or its path where several folders have one name.

    Raises ValueError where there is no run, or one twice.
    """
    if not folders:
        raise ValueError("expected at least one run, got none")
    for place in {folder.resolve() for folder in folders}:
        same = [str(folder) for folder in folders if folder.resolve() == place]
        if len(same) > 1:
            raise ValueError(f"{same[1]}: the same folder as {same[0]}; name each run once")
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _row(columns: Sequence[str], cells: Sequence[str]) -> Row | None:
    try:
        numbers = [float(cell) if cell else None for cell in cells]
    except ValueError:
        return None
    return dict(zip(columns, numbers, strict=True)) if len(numbers) == len(columns) else None


class CsvLog:
    """The CSV file: started anew or continued, one flushed line at a time; `further` columns stand behind COLUMNS."""

    def __init__(self, path: Path, further: Sequence[str] = ()) -> None:
        self.path = path
        self.columns = (*COLUMNS, *further)

    def start(self) -> None:
        """Begin an empty file."""
        self._replace([])

    def resume(self, step: int) -> None:
        """Keep the rows up to `step`; what an interrupted run wrote later, or left half written, goes."""
        rows = read_log(self.path) if self.path.exists() else []
        self._replace([row for row in rows if (row["step"] or 0) <= step])

    def append(self, row: Mapping[str, float | None]) -> None:
        """Add one line, and hand it to the operating system before returning."""
        with naming(self.path), self.path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow([_cell(row.get(column)) for column in self.columns])
            file.flush()
            os.fsync(file.fileno())

    def _replace(self, rows: list[Row]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows([_cell(row.get(column)) for column in self.columns] for row in rows)


def _cell(value: float | None) -> str:
    # nine digits tell any two float32 losses apart
    return "" if value is None else f"{value:.9g}"
