"""`arbprob sanity`: is this installation sound?"""

import typer


def run() -> None:
    """Check model, masks, text and a short training run; one line each, about a minute."""
    from ..training.selfcheck import run_checks

    passed = []
    for result in run_checks():
        passed.append(result.passed)
        typer.echo(f"{'ok  ' if result.passed else 'FAIL'}  {result.name}: {result.figure}")
    if not all(passed):
        typer.echo(f"{passed.count(False)} of {len(passed)} checks failed", err=True)
        raise typer.Exit(1)
