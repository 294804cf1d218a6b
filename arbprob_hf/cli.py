"""The command `arbprob`: everything that is not training itself."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Language models under arbitrary attention masks.", no_args_is_help=True, add_completion=False)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    if version:
        # imported here, as in every command: `arbprob --help` need not wait for torch
        from . import __version__

        typer.echo(f"arbprob-hf {__version__}")
        raise typer.Exit


@app.command()
def sanity() -> None:
    """Check model, masks, text and a short training run; one line each, about a minute."""
    from .training.selfcheck import run_checks

    passed = []
    for result in run_checks():
        passed.append(result.passed)
        typer.echo(f"{'ok  ' if result.passed else 'FAIL'}  {result.name}: {result.figure}")
    if not all(passed):
        typer.echo(f"{passed.count(False)} of {len(passed)} checks failed", err=True)
        raise typer.Exit(1)


@app.command()
def mask(
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
    from .analysis.describe import describe, lines
    from .pattern_file import read_patterns
    from .plotting import check_picture_path, plot_mask

    try:
        if patterns is not None:
            read_patterns(patterns)
        if out is not None:
            check_picture_path(out)
            if out.exists() and not force:
                raise ValueError(f"--out: {out} exists; name another file, or replace it with --force")
        found = describe(masks, length, layers=layers, heads=heads)
        if out is not None:
            plot_mask(found.masks, length, layers=found.layers, path=out)
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"arbprob mask: error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1 if isinstance(error, OSError) else 2) from None
    if as_json:
        typer.echo(json.dumps({**found.figures(), "picture": str(out) if out is not None else None}))
        return
    typer.echo("\n".join(lines(found)))
    if out is not None:
        typer.echo(f"{'picture':<12}{out}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of runs; differences are to the first.")],
    questions: Annotated[
        Path | None, typer.Option(help="Folder of questions; that of the first run which has one, if left out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the tables and a picture of the curves there.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files in --out.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Blocks at once.")] = 8,
    device: Annotated[str | None, typer.Option(help="Where to compute; a GPU where there is one, if left out.")] = None,
    patterns: Annotated[
        Path | None, typer.Option(help="Python file of @pattern functions that the runs' masks use; it is executed.")
    ] = None,
) -> None:
    """Put the same questions to trained models of any layout: the five modes side by side."""
    from .comparison.compare import compare as compare_runs
    from .comparison.report import check_out, markdown, write
    from .pattern_file import read_patterns

    try:
        if patterns is not None:
            read_patterns(patterns)
        if out is not None:
            check_out(out, force=force)
        found = compare_runs(
            runs, questions=questions, batch_size=batch_size, device=device, tell=partial(typer.echo, err=True)
        )
        typer.echo(markdown(found), nl=False)
        written = write(found, runs, out) if out is not None else []
    except (ValueError, OSError) as error:
        typer.echo(f"arbprob compare: error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1 if isinstance(error, OSError) else 2) from None
    for path in written:
        typer.echo(f"written: {path}", err=True)


@app.command()
def oracles(
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
    from .oracles.table import oracle_rows

    try:
        for line in oracle_rows(
            source, layout or ["two_stream"], minutes=minutes, random=random, threads=threads, seed=seed, out=out
        ):
            typer.echo(line)
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"arbprob oracles: error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1 if isinstance(error, OSError) else 2) from None


@app.command("export-gpt2")
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Output folder of a run, or a checkpoint in it.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, which must be new or empty.")],
    force: Annotated[bool, typer.Option("--force", help="Also where GPT-2 would misread the weights.")] = False,
) -> None:
    """Write a model as a stock GPT-2, for tools that know no other."""
    from .publishing.gpt2 import export_gpt2

    try:
        remarks = export_gpt2(checkpoint, out, force=force)
    except (ValueError, OSError) as error:
        typer.echo(f"arbprob export-gpt2: error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1 if isinstance(error, OSError) else 2) from None
    for remark in remarks:
        typer.echo(remark, err=True)
    typer.echo(str(out))


@app.command()
def publish(
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
) -> None:
    """Upload a run's model, card and curves to the Hub, once they were seen to load without this package."""
    from .publishing import publish as publish_run

    try:
        done = publish_run(
            folder, repository, private=private, revision=revision, message=message, also=tuple(also or ())
        )
    except (ValueError, OSError) as error:
        typer.echo(f"arbprob publish: error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None
    typer.echo(str(done))


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="arbprob")
