"""`cohortium privacy`: attack the releases of this very installation, and see what they give away."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cohortium.cli.progress import progress_printer
from cohortium.simulations.privacy_audit import (
    EPSILONS,
    FULL_RUNS,
    QUICK_RUNS,
    AuditOrder,
    AuditReport,
    claim_line,
    run_privacy_audit,
)
from cohortium.simulations.privacy_audit_page import begin_audit, write_audit
from cohortium.study.errors import PlanError

__all__ = ["app"]

REFUTED = 1
"""Exit code of `audit` when something is flagged; mistakes of the caller exit with 2."""

app = typer.Typer(name="privacy", help="Audit the privacy of what this installation releases.", no_args_is_help=True)


@app.callback()
def noun() -> None:
    """Audit the privacy of what this installation releases."""


@app.command("audit")
def audit(
    out: Annotated[Path, typer.Option(help="Folder for audit.json and audit.html; one without an audit.")],
    runs: Annotated[
        int | None,
        typer.Option(help=f"Releases of each of two neighbouring tables for every claim; {FULL_RUNS} when left out."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"{QUICK_RUNS} runs: finds gross mistakes in half a minute.")
    ] = False,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(help="A plan's epsilon to audit, from 0.1 to 16; repeat it. 1, 2 and 4 when left out."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Attack this installation's releases with a worst-case canary, and bound their privacy loss from below.

    Histograms, clustering and the head's gradients are released many times with and without one person, by the code
    that releases them in a study. The exact noise is tested for shape, scale and lattice. On synthetic people only: no
    customer table is read and no budget is spent.

    An audit refutes or fails to refute; it proves nothing. Exits with 0 when nothing is refuted, 1 when something is.

    \b
    Examples:
      cohortium privacy audit --quick --out audit
      cohortium privacy audit --runs 50000 --epsilon 1 --epsilon 8 --out audit
    """
    if quick and runs is not None:
        raise PlanError("both a number of runs and --quick", place="--quick", fix="leave one of them out")
    order = AuditOrder(runs if runs is not None else (QUICK_RUNS if quick else FULL_RUNS), tuple(epsilon or EPSILONS))
    begin_audit(out)
    report = run_privacy_audit(order, progress_printer(quiet))
    write_audit(report, out)
    _print(report, out, as_json=as_json)
    if report.flags:
        raise typer.Exit(REFUTED)


def _print(report: AuditReport, out: Path, *, as_json: bool) -> None:
    """The findings in a few lines, or the whole report as JSON."""
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
        return
    for claim in report.claims:
        typer.echo(claim_line(claim))
    sound = sum(not finding.flagged for finding in report.noise)
    typer.echo(f"noise: {sound} of {len(report.noise)} scales as they should be")
    best = max(report.membership, key=lambda finding: finding.auc)
    typer.echo(f"membership inference, sanity and never proof: AUC {best.auc:.3f} at best ({best.attack})")
    typer.echo("REFUTED: " + "; ".join(report.flags) if report.flags else "no claim was refuted")
    typer.echo(f"report: {out / 'audit.html'}")
