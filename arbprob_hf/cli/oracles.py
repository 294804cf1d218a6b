"""`arbprob oracles`: answers against exact ones."""

from pathlib import Path
from typing import Annotated

import typer

from ..oracles.options import check_options
from .shared import refuse_in_one_line


def run(
    source: Annotated[
        list[str] | None, typer.Option(help="markov, hmm, tree, ising, pcfg or ldpc; may be repeated (default: all).")
    ] = None,
    layout: Annotated[
        list[str] | None, typer.Option(help="two_stream, prefix or sigma; may be repeated (default: two_stream).")
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="Wall time of each training; judging takes about half a minute more.")
    ] = 3.0,
    random: Annotated[float, typer.Option(help="Share of the questions that are trained in random order.")] = 0.0,
    threads: Annotated[int, typer.Option(help="CPU threads that share each step; 0 for torch's own choice.")] = 0,
    seed: Annotated[int, typer.Option(help="Of weights, sequences and questions.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Append each line to this CSV as it is found.")] = None,
) -> None:
    """Train from scratch on sources whose every conditional is known; print how far off the answers are."""
    layouts = layout or ["two_stream"]
    with refuse_in_one_line("oracles"):
        check_options(source or (), layouts, minutes=minutes, random=random, threads=threads, seed=seed)
        from ..oracles.table import oracle_rows

        for line in oracle_rows(source, layouts, minutes=minutes, random=random, threads=threads, seed=seed, out=out):
            typer.echo(line)
