"""How a command leaves on a mistake: one line on stderr, and a status that says whose it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from ..errors import one_line


@contextmanager
def refuse_in_one_line(command: str, *, status: int = 2) -> Iterator[None]:
    """Turn what users can cause into `arbprob COMMAND: error: ...` and an exit: 1 for the disk, else `status`."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"arbprob {command}: error: {one_line(error)}", err=True)
        raise typer.Exit(1 if isinstance(error, OSError) else status) from None
