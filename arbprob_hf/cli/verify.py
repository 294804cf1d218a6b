"""`arbprob verify`: is a saved model whole, and does it say what it said when it was saved?"""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import check_folder
from .shared import TrustRemoteCode, refuse_in_one_line


def run(
    folder: Annotated[Path, typer.Argument(help="A run's folder, a checkpoint, or the folder of a model.")],
    trust_remote_code: TrustRemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    record: Annotated[
        bool,
        typer.Option("--record", help="Write fingerprint.json of a whole model, to verify it by later."),
    ] = False,
) -> None:
    """Check files, weights, loading and figures of a saved model; one line each. Exit 1 where something is damaged."""
    with refuse_in_one_line("verify"):
        check_folder(folder, "name a run's folder, a checkpoint, or the folder of a model")
        from ..publishing import verification

        if record:
            verification.record(folder, trust_remote_code=trust_remote_code)
        findings = verification.verify(folder, trust_remote_code=trust_remote_code)
    is_whole = all(finding.status != "fail" for finding in findings)
    if as_json:
        rows = [{"status": one.status, "check": one.check, "text": one.text} for one in findings]
        typer.echo(json.dumps({"folder": str(folder), "whole": is_whole, "findings": rows}, indent=1))
    else:
        typer.echo("\n".join(map(str, findings)))
    if not is_whole:
        raise typer.Exit(1)
