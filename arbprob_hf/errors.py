"""What users see on stderr: kinds of errors, their wording on one line, how a command leaves on them, and no noise."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from traceback import walk_tb

from .machine_errors import machine_error


def one_line(said: object) -> str:
    """What a text or an exception says, on one line; an exception that says nothing is named by its class."""
    return " ".join(str(said).split()) or type(said).__name__


def brief(value: object, width: int = 90) -> str:
    """`repr(value)` on one line, its middle left out when longer than `width` characters."""
    text = one_line(repr(value))
    return text if len(text) <= width else f"{text[: width // 2 - 2]}...{text[-(width // 2 - 1) :]}"


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what it was raised from, one after the other."""
    while error is not None:
        yield error
        error = error.__cause__


def root_cause(error: BaseException) -> BaseException:
    """The innermost exception that `error` was raised from; `error` itself where there is none."""
    *_, innermost = chain_of(error)
    return innermost


def reason(error: BaseException, width: int = 110) -> str:
    """What the innermost cause of `error` says, on one line of at most `width` characters."""
    text = one_line(root_cause(error))
    return text if len(text) <= width else f"{text[: width - 3]}..."


def keep_imports_quiet() -> None:
    """For commands: what transformers imports of torchao, where that is installed, reports errors alone.

    On a machine without a GPU it would begin each command with four lines about kernels that nothing here uses.
    """
    for logger in ("torchao", "torch.utils._pytree"):
        logging.getLogger(logger).setLevel(logging.ERROR)


def check_integer(name: str, value: object, *, low: int, high: int | None = None) -> int:
    """`value` as an int, which is `low` or more and, unless `high` is None, `high` or less.

    Raises:
        TypeError: not an integer (a truth value is none; numpy's integers are).
        ValueError: out of bounds.
    """
    bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
    expected = f"{name}: expected an integer {bounds}, got {brief(value, 60)}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(expected)
    number = int(value)
    if number < low or (high is not None and number > high):
        raise ValueError(expected)
    return number


_RUN_FOLDER = (
    "name the output folder of a run, a checkpoint in it, or the one that `hf download NAME --local-dir FOLDER` makes "
    "of a model on the Hub"
)


def check_folder(folder: Path, advice: str = _RUN_FOLDER) -> None:
    """Raise ValueError, which ends in `advice`, unless there is a folder at `folder`."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; {advice}")


def check_source(source: Path | str) -> None:
    """Raise ValueError where no network can be: a folder without one, or a path at which there is no folder."""
    path, name = Path(source), str(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{source}: holds no model, as it has no config.json; {_checkpoint_in(path)}")
        return
    if path.is_file():
        raise ValueError(f"{source}: is a file; name its folder")
    # a name that begins like a folder of this machine is not looked for on the Hub
    begins_here = "/" in name and Path(name.split("/")[0]).is_dir()
    if begins_here or path.is_absolute() or name.startswith(("outputs/", ".", "~")) or name.count("/") > 1:
        raise ValueError(
            f"{source}: no such folder; name the output folder of a run, a checkpoint in it, or a repository on the Hub"
        )


def _checkpoint_in(folder: Path) -> str:
    steps = [int(one.name[11:]) for one in folder.glob("checkpoint-*") if one.name[11:].isdecimal()]
    if steps:
        return f"name one of its checkpoints, such as {folder}/checkpoint-{max(steps)}"
    return "name the output folder of a run that has ended, or a checkpoint in it"


class UsageError(ValueError):
    """What the user asked for cannot be understood; the message is one line and says what to change."""


class RunError(RuntimeError):
    """A run that cannot go on; the message is one line and says what is left of it."""


_IN_WORKER = "in DataLoader worker process"


@contextmanager
def exit_on_user_error(program: str, *, traceback: bool = False) -> Iterator[None]:
    """Turn what users can cause into `program: error: ...` and an exit.

    The status is 2 for options, 130 for Ctrl-C, 1 for the rest. What a library raises is named with its class.
    `traceback` lets every exception through; mistakes in this package's own code always come with theirs.
    """
    try:
        yield
    except KeyboardInterrupt:
        if traceback:
            raise
        _leave(f"{program}: interrupted; --resume_from_checkpoint true goes on from the last checkpoint", 130)
    except Exception as error:
        # what says itself what is left of a run has the better words
        line = None if isinstance(error, RunError) else machine_error(error)
        if traceback or not (line or is_told(error)):
            raise
        _leave(f"{program}: error: {line or what_happened(error)}", 2 if isinstance(error, UsageError) else 1)


# what is said in words for people, whoever raises it
_SAID = (ValueError, TypeError, OSError, RunError)


def is_told(error: Exception) -> bool:
    """Whether a user meets `error` as one line: what is said in words, and all that is raised within a library."""
    if isinstance(error, _SAID):
        return True
    frames = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
    return bool(frames) and any(part in frames[-1] for part in ("site-packages", "dist-packages"))


def what_happened(error: Exception) -> str:
    """What `error` says on one line; that of a library begins with its class, and ends in how to see more."""
    if isinstance(error, _SAID):
        return _without_traceback(error)
    return f"{type(error).__name__}: {_without_traceback(error):.400}; add --traceback to see where it happened"


def _without_traceback(error: Exception) -> str:
    if _IN_WORKER not in str(error):
        return one_line(error)
    # torch puts the traceback of a loader's worker into the message; of an error without words it ends in the class
    name = type(error).__name__
    words = re.split(rf"\n(?:\w+\.)*{name}(?:: |:?\s*$)", str(error))[-1]
    return one_line(words) if words.strip() else name


def _leave(line: str, status: int) -> None:
    print(line, file=sys.stderr, flush=True)
    raise SystemExit(status) from None
