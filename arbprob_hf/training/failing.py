"""How a command ends when it cannot go on: one line on stderr and an exit status, not a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..runs.checkpoints import CheckpointError
from .options import UsageError
from .trainer import NonFiniteError

_IN_WORKER = "in DataLoader worker process"


@contextmanager
def told_in_one_line(program: str, *, traceback: bool = False) -> Iterator[None]:
    """Turn what users can cause into `program: error: ...` and an exit.

    The status is 2 for options, 130 for Ctrl-C, 1 for the rest. `traceback` lets every exception through;
    errors that nobody should be able to cause always come with theirs.
    """
    try:
        yield
    except KeyboardInterrupt:
        if traceback:
            raise
        _leave(f"{program}: interrupted; --resume_from_checkpoint true goes on from the last checkpoint", 130)
    except (ValueError, TypeError, OSError, NonFiniteError, CheckpointError) as error:
        if traceback:
            raise
        # torch puts the traceback of a loader's worker into the message
        said = str(error).rpartition(f"\n{type(error).__name__}: ")[2] if _IN_WORKER in str(error) else str(error)
        line = " ".join(said.split())
        _leave(f"{program}: error: {line or type(error).__name__}", 2 if isinstance(error, UsageError) else 1)


def _leave(line: str, status: int) -> None:
    print(line, file=sys.stderr, flush=True)
    raise SystemExit(status) from None
