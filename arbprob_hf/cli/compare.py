"""`arbprob compare`: trained models side by side."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..errors import check_folder
from .shared import Patterns, TrustRemoteCode, refuse_in_one_line


def run(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of runs; differences are to the first.")],
    questions: Annotated[
        Path | None, typer.Option(help="Folder of questions; that of the first run which has one, if left out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the tables and a picture of the curves there.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files in --out.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Blocks at once.")] = 8,
    device: Annotated[str | None, typer.Option(help="Where to compute; a GPU where there is one, if left out.")] = None,
    patterns: Patterns = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Put the same questions to trained models of any layout: the five modes side by side."""
    with refuse_in_one_line("compare"):
        for folder in runs:
            check_folder(folder)
        from ..comparison.compare import compare
        from ..comparison.report import check_out, markdown, write
        from ..pattern_file import read_patterns

        if patterns is not None:
            read_patterns(patterns)
        if out is not None:
            check_out(out, force=force)
        report = partial(typer.echo, err=True)
        found = compare(
            runs,
            questions=questions,
            batch_size=batch_size,
            device=device,
            trust_remote_code=trust_remote_code,
            report=report,
        )
        typer.echo(markdown(found), nl=False)
        written = write(found, runs, out) if out is not None else []
    for path in written:
        typer.echo(f"written: {path}", err=True)
