"""`arbprob export-gpt2`: a model for tools that know only GPT-2."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import check_folder
from .shared import Patterns, TrustRemoteCode, refuse_in_one_line


def run(
    checkpoint: Annotated[Path, typer.Argument(help="Output folder of a run, or a checkpoint in it.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, which must be new or empty.")],
    force: Annotated[bool, typer.Option("--force", help="Also where GPT-2 would misread the weights.")] = False,
    patterns: Patterns = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write a model as a stock GPT-2, for tools that know no other."""
    with refuse_in_one_line("export-gpt2"):
        check_folder(checkpoint)
        from ..publishing.gpt2 import export_gpt2

        remarks = export_gpt2(checkpoint, out, force=force, patterns=patterns, trust_remote_code=trust_remote_code)
    for remark in remarks:
        typer.echo(remark, err=True)
    typer.echo(str(out))
