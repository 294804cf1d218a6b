"""Options that several commands take: each is worded once."""

from pathlib import Path
from typing import Annotated

import typer

TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", "--trust_remote_code", help="Run the custom patterns that come with a model's weights."
    ),
]
Patterns = Annotated[
    Path | None, typer.Option(help="Python file of @pattern functions that the masks use; it is executed.")
]
