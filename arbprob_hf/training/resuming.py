"""Chooses the checkpoint that a run resumes from: the newest that verifies, or the one that was named."""

from __future__ import annotations

import logging
from pathlib import Path

from ..runs.checkpoints import MANIFEST_NAME, newest, numbered, sealed_names, set_aside, verify
from .coercion import FALSE, TRUE
from .options import UsageError

logger = logging.getLogger(__name__)


def resume_choice(value: str | bool | None) -> str | bool:
    """What `resume_from_checkpoint` asks for: False (start), True (the newest of the output folder) or a path.

    The words that a command line takes for booleans (true, yes, on, 1 and their opposites) count as such.
    """
    word = value.strip().lower() if isinstance(value, str) else None
    if word in TRUE:
        return True
    return False if value is None or word in (*FALSE, "") else value


def refuse_missing(choice: str | bool) -> None:
    """Raise UsageError when `choice` is a path at which there is nothing: asked before the text is prepared."""
    if isinstance(choice, str) and not Path(choice).exists():
        raise UsageError(
            f"resume_from_checkpoint: {choice} does not exist; name a checkpoint, or true for the newest that verifies"
        )


def choose_checkpoint(choice: str | bool, output_dir: Path) -> Path | None:
    """The checkpoint to resume from, verified; None to start from the beginning.

    `choice` is True, the path of one checkpoint, or the path of a folder of checkpoints. With True and nothing to
    resume from, the run starts from the beginning and says so (a job that may be killed can always pass true).
    Of `output_dir` what is damaged is set aside.
    Raises ValueError when a path is named and no checkpoint there verifies, or one without an optimizer is chosen.
    """
    if choice is False:
        return None
    if choice is True:
        found = newest(output_dir)
        if found is None:
            logger.warning("no checkpoint to resume from in %s: starting from the beginning", output_dir)
            return None
    else:
        found = _named(Path(str(choice)), output_dir)
    if not any(name.startswith(("optimizer", "global_step")) for name in sealed_names(found)):
        raise ValueError(
            f"{found} cannot be resumed from: it holds no optimizer state (saved with save_only_model); "
            "train with save_only_model: false"
        )
    return found


def leave_later_ones(source: Path, output_dir: Path) -> None:
    """Set aside the checkpoints of `output_dir` that are later than `source`, if that is one of them.

    They belong to a future that the run leaves: a later resume must not pick them.
    """
    if not _same_folder(source.parent, output_dir):
        return
    for later in reversed(numbered(output_dir)):
        if _same_folder(later, source):
            return
        set_aside(later, f"it is later than {source.name}, which was named to resume from")


def _named(path: Path, output_dir: Path) -> Path:
    own = _same_folder(path, output_dir)
    if numbered(path) and not (path / MANIFEST_NAME).exists():
        found = newest(path, repair=own)
        if found is None:
            raise ValueError(f"resume_from_checkpoint: no checkpoint in {path} verifies; name another folder")
        return found
    problem = verify(path) if path.exists() else "it does not exist"
    if problem is not None:
        raise ValueError(
            f"resume_from_checkpoint: {path} does not verify: {problem}; "
            "name another checkpoint, or true for the newest that verifies"
        )
    return path


def _same_folder(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
