"""`arbprob mask`: what a mask lets through."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..pattern_file import pattern_bytes, read_patterns
from ..plotting import check_picture_path
from .shared import refuse_in_one_line


def run(
    masks: Annotated[
        list[str], typer.Argument(help="A mask, such as 'causal & window(8)'; several are one per layer.")
    ],
    length: Annotated[int, typer.Option(help="Number of tokens.")] = 16,
    layers: Annotated[
        int | None, typer.Option(help="Number of layers; one per mask, but at least 2, if left out.")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(help="Number of heads; a mask made for another number is refused.")
    ] = None,
    patterns: Annotated[
        Path | None, typer.Option(help="Python file of @pattern functions that the masks use; it is executed.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also draw it there, as .png or .svg.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file at --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON instead.")] = False,
) -> None:
    """Say what a mask lets through, layer by layer, and whether later tokens leak; draw it."""
    with refuse_in_one_line("mask"):
        if patterns is not None:
            pattern_bytes(patterns)
        if out is not None:
            check_picture_path(out)
            if out.exists() and not force:
                raise ValueError(f"--out: {out} exists; name another file, or replace it with --force")
        from ..analysis.describe import describe, lines
        from ..plotting import plot_mask

        if patterns is not None:
            read_patterns(patterns)
        found = describe(masks, length, layers=layers, heads=heads)
        if out is not None:
            plot_mask(found.masks, length, layers=found.layers, path=out)
    if as_json:
        typer.echo(json.dumps({**found.figures(), "picture": str(out) if out is not None else None}))
        return
    typer.echo("\n".join(lines(found)))
    if out is not None:
        typer.echo(f"{'picture':<12}{out}")
