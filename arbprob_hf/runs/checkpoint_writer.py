"""Puts the checkpoints and the finished model of a run in place: staged, sealed, and only then seen."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from ..errors import RunError
from ..machine_errors import full_disk, is_full_disk
from .checkpoints import PRIVATE_NAME, CheckpointError, install, remove, rotate, seal, staging
from .record import Record, write_record


class CheckpointWriter:
    """The way of a checkpoint into the output folder `output_dir`; of a run's processes, the main one calls it.

    Attributes:
        stage: the hidden folder below which a checkpoint is written before it is one.
    """

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.stage = staging(output_dir)

    def clear(self) -> None:
        """Remove whatever is in the stage."""
        remove(self.stage)

    def seal(self, name: str, record: Record) -> Path:
        """Add `record` to the finished folder `name` of the stage, seal it and put it in place; its new path."""
        staged = self.stage / name
        write_record(record, staged)
        return seal(staged, self.output_dir)

    def rotate(self, limit: int | None, protected: Collection[str], in_use: Collection[str] = ()) -> None:
        """Delete the oldest sealed checkpoints beyond `limit`, never a name in `protected`, nor yet one `in_use`."""
        rotate(self.output_dir, limit, protected, in_use)

    def failure(self, name: str, error: BaseException) -> CheckpointError:
        """What to raise where the checkpoint `name` could not be written."""
        free = shutil.disk_usage(self.output_dir).free // 2**20
        # a disk is blamed where it was the disk
        advice = (
            f" ({free} MiB free): make room, then resume" if isinstance(error, OSError) or is_full_disk(error) else ""
        )
        return CheckpointError(
            f"{name} could not be saved in {self.output_dir}: {_one_line(error)}; "
            f"the earlier checkpoints are intact{advice}"
        )


@contextlib.contextmanager
def installed(folder: Path) -> Iterator[Path]:
    """A hidden folder to write a finished model to; then its files go into `folder`, each whole, the weights last.

    Raises RunError where the disk is full; what was in `folder` is as it was, or whole.
    """
    stage = folder / PRIVATE_NAME / "final"
    remove(stage)
    try:
        yield stage
        install(stage, folder)
    except Exception as error:
        if is_full_disk(error):
            raise RunError(f"the model could not be saved: {full_disk(folder)}") from error
        raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        with contextlib.suppress(OSError):
            stage.parent.rmdir()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "inline_container" in text:
        # torch's writer knows only that bytes are missing
        return "a file could not be written whole, as on a full disk"
    if is_full_disk(error):
        return "the disk is full"
    return text if len(text) <= 120 else text[:117] + "..."
