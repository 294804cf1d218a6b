"""The command `arbprob`, one module for each of its commands.

What a command computes with is imported when it runs, after what can be checked without: `arbprob --help` and a mistake
in an option's name, file, number or path do not wait for torch.
"""

import sys

import typer

from ..errors import exit_on_user_error, keep_imports_quiet
from ..version import __version__
from . import compare, export_gpt2, mask, oracles, publish, sanity, verify
from .shared import SHOWS_TRACEBACK

app = typer.Typer(
    help="Language models under arbitrary attention masks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
    traceback: bool = typer.Option(False, "--traceback", help="Show where in the code an error happened."),
) -> None:
    SHOWS_TRACEBACK.set(traceback)
    if version:
        typer.echo(f"arbprob-hf {__version__}")
        raise typer.Exit


app.command("sanity")(sanity.run)
app.command("mask")(mask.run)
app.command("compare")(compare.run)
app.command("oracles")(oracles.run)
app.command("export-gpt2")(export_gpt2.run)
app.command("publish")(publish.run)
app.command("verify")(verify.run)


def main() -> None:
    """Entry point of the console script; `--traceback` may stand anywhere."""
    keep_imports_quiet()
    words = [word for word in sys.argv[1:] if word != "--traceback"]
    traceback = len(words) < len(sys.argv) - 1
    with exit_on_user_error("arbprob", traceback=traceback):
        app(["--traceback"] * traceback + words, prog_name="arbprob")
