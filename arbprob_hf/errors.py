"""Wording of one-line errors: shortens values and foreign exceptions."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def brief(value: object, width: int = 90) -> str:
    """`repr(value)` on one line, its middle left out when longer than `width` characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= width else f"{text[: width // 2 - 2]}...{text[-(width // 2 - 1) :]}"


def reason(error: BaseException, width: int = 110) -> str:
    """What an exception (its innermost cause) says, on one line of at most `width` characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= width else f"{text[: width - 3]}..."


class UsageError(ValueError):
    """What the user asked for cannot be understood; the message is one line and says what to change."""


class RunError(RuntimeError):
    """A run that cannot go on; the message is one line and says what is left of it."""


_IN_WORKER = "in DataLoader worker process"


@contextmanager
def exit_on_user_error(program: str, *, traceback: bool = False) -> Iterator[None]:
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
    except (ValueError, TypeError, OSError, RunError) as error:
        if traceback:
            raise
        # torch puts the traceback of a loader's worker into the message
        said = str(error).rpartition(f"\n{type(error).__name__}: ")[2] if _IN_WORKER in str(error) else str(error)
        line = " ".join(said.split())
        _leave(f"{program}: error: {line or type(error).__name__}", 2 if isinstance(error, UsageError) else 1)


def _leave(line: str, status: int) -> None:
    print(line, file=sys.stderr, flush=True)
    raise SystemExit(status) from None
