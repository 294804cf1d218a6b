"""What several commands share: options, and how a command ends that cannot go on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ..errors import one_line

TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", "--trust_remote_code", help="Run the custom patterns that come with a model's weights."
    ),
]
Patterns = Annotated[
    Path | None, typer.Option(help="Python file of @pattern functions that the masks use; it is executed.")
]


@contextmanager
def refuse_in_one_line(command: str, *, status: int = 2) -> Iterator[None]:
    """Turn what users can cause into `arbprob COMMAND: error: ...` and an exit: 1 for the disk, else `status`."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"arbprob {command}: error: {one_line(error)}", err=True)
        raise typer.Exit(1 if isinstance(error, OSError) else status) from None
