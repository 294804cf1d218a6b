"""What several commands share: options, and how a command ends that cannot go on."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

import typer

from ..errors import is_told, what_happened

# whether the user asked to see where errors happen
SHOWS_TRACEBACK = ContextVar("SHOWS_TRACEBACK", default=False)
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
    """Turn what users can cause into `arbprob COMMAND: error: ...` and an exit: `status` for what was asked, else 1.

    `arbprob --traceback` lets all of it through.
    """
    try:
        yield
    except Exception as error:
        # what typer raises to leave is raised here, and no library's
        if SHOWS_TRACEBACK.get() or not is_told(error):
            raise
        typer.echo(f"arbprob {command}: error: {what_happened(error)}", err=True)
        raise typer.Exit(status if isinstance(error, ValueError | TypeError) else 1) from None
