"""`arbprob publish`: a run onto the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import check_folder
from .shared import refuse_in_one_line


def run(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run that has finished.")],
    repository: Annotated[str, typer.Argument(help="Its name on the Hub, such as somebody/my-model.")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Who sees it; if left out, a new repository is private."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, made if need be; main if left out.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commits.")] = None,
    also: Annotated[
        list[str] | None, typer.Option(help="Further files, such as 'evaluation/*'; may be repeated.")
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(
            help="Of the weights, such as mit; written into the card of FOLDER, which names none unless one is given."
        ),
    ] = None,
) -> None:
    """Upload a run's model, card and curves to the Hub, once they were seen to load without this package."""
    # what stops an upload lies in the folder or at the Hub, rarely on the command line
    with refuse_in_one_line("publish", status=1):
        check_folder(folder, "name the output folder of a finished run")
        from ..publishing import publish
        from ..publishing.card import set_license

        if license is not None:
            set_license(folder, license)
        done = publish(
            folder,
            repository,
            private=private,
            revision=revision,
            message=message,
            also=tuple(also or ()),
        )
    typer.echo(str(done))
