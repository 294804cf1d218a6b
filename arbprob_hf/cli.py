"""The command `arbprob`: everything that is not training itself."""

import typer

app = typer.Typer(help="Language models under arbitrary attention masks.", no_args_is_help=True, add_completion=False)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    if version:
        # imported here, as in every command: `arbprob --help` need not wait for torch
        from arbprob_hf import __version__

        typer.echo(f"arbprob-hf {__version__}")
        raise typer.Exit


@app.command()
def sanity() -> None:
    """Check model, masks, text and a short training run; one line each, about a minute."""
    from arbprob_hf.sanity import run_checks

    passed = []
    for result in run_checks():
        passed.append(result.passed)
        typer.echo(f"{'ok  ' if result.passed else 'FAIL'}  {result.name}: {result.figure}")
    if not all(passed):
        typer.echo(f"{passed.count(False)} of {len(passed)} checks failed", err=True)
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="arbprob")
