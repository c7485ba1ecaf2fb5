"""`cohortium doctor`: is this machine fit to run a node or a simulation?"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cohortium.simulations.doctor import examine

__all__ = ["doctor"]


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Check Python, packages, the noise, the ledger's durability, the data cache, disk space and Ray.

    Exits with 0 when everything needed is there, 1 otherwise.

    \b
    Example:
      cohortium doctor --json
    """
    findings = examine()
    if as_json:
        typer.echo(json.dumps([finding.to_json() for finding in findings], indent=2))
    else:
        for finding in findings:
            mark = "ok  " if finding.ok else ("note" if finding.optional else "FAIL")
            typer.echo(f"{mark}  {finding.name}: {finding.detail}")
    if any(not finding.ok and not finding.optional for finding in findings):
        raise typer.Exit(1)
