"""`cohortium ledger`: what a node has spent, what still fits, and whether its ledger holds together."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from cohortium.cli.access import authorised
from cohortium.client.node import NodeIdentity
from cohortium.governance.access import Act
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.ledger import TABLES as LEDGER_TABLES
from cohortium.privacy.ledger import Ledger, open_store
from cohortium.privacy.outlook import Preview, Statement, differences, preview, statement
from cohortium.privacy.replay import replay
from cohortium.privacy.sharing import NoiseShare
from cohortium.privacy.store_forms import sqlite_copy
from cohortium.study.errors import DataError
from cohortium.study.plans import load_plan

__all__ = ["app"]

NOT_VERIFIED = 1
"""Exit code of `verify` when the ledger does not hold together; mistakes of the caller exit with 2."""

app = typer.Typer(
    name="ledger",
    help="What a node has spent, what still fits, and whether its ledger holds together. Nothing is ever changed.",
    no_args_is_help=True,
)

_Folder = Annotated[Path, typer.Argument(help="The node's state folder, with node.json and node.sqlite.")]


@app.command("show")
def show(
    folder: _Folder,
    institutions: Annotated[
        int | None, typer.Option(min=1, help="How many institutions there are in all, for a person at every one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """What was spent: by plan, phase and trust, by three accountants, and for a person at several institutions.

    \b
    Examples:
      cohortium ledger show state/north
      cohortium ledger show state/north --institutions 8 --json
    """
    authorised(folder, Act.LEDGER_READ)
    with _opened(folder) as (identity, ledger):
        told = statement(ledger, identity.lifetime_delta, institutions)
    if as_json:
        typer.echo(json.dumps({**told.to_json(), "lifetime_epsilon": identity.lifetime_epsilon}, indent=2))
    else:
        _print_statement(told, identity)


@app.command("preview")
def preview_plan(
    folder: _Folder,
    plan: Annotated[Path, typer.Option(help="The plan, a TOML file that names its contract.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the preview as JSON.")] = False,
) -> None:
    """How many further runs of a plan fit into the lifetime budget, before anything is spent.

    \b
    Example:
      cohortium ledger preview state/north --plan plan.toml
    """
    authorised(folder, Act.LEDGER_READ)
    asked, _contract = load_plan(plan)
    with _opened(folder) as (identity, ledger):
        told = preview(ledger, budget_for(asked.epsilon, asked.delta), identity.lifetime_delta)
        begun = ledger.reservation(asked.digest) is not None
    if as_json:
        typer.echo(json.dumps({**told.to_json(), "delta": identity.lifetime_delta, "begun": begun}, indent=2))
    else:
        _print_preview(told, identity, begun)


@app.command("verify")
def verify(
    folder: _Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Recompute every price, sum, link and epsilon from the rows, by a second code path.

    Exits with 0 when everything agrees, 1 with a line for every entry that does not, 2 when there is no ledger to read.

    \b
    Example:
      cohortium ledger verify state/north
    """
    authorised(folder, Act.LEDGER_READ)
    identity = _identity(folder)
    lifetime = budget_for(identity.lifetime_epsilon, identity.lifetime_delta)
    tables = LEDGER_TABLES.sorted_tables
    with (
        tempfile.TemporaryDirectory(prefix="cohortium-") as scratch,
        sqlite_copy(folder / "node.sqlite", Path(scratch), tables) as file,
    ):
        again = replay(file, identity.institution, (lifetime.mu2, lifetime.tv))
    findings = list(again.findings)
    if not findings:
        with _opened(folder) as (_, ledger):
            ledger.verify()
            findings = differences(ledger, again, identity.lifetime_delta)
    epsilon = again.epsilon(identity.lifetime_delta)
    if as_json:
        told = {"verified": not findings, "findings": findings, "charges": again.entries}
        sums = {"mu2": again.mu2, "tv": again.tv, "epsilon": epsilon if math.isfinite(epsilon) else None}
        typer.echo(json.dumps({**told, **sums, "delta": identity.lifetime_delta}, indent=2))
    else:
        for finding in findings:
            typer.echo(finding)
        verdict = (
            "NOT verified" if findings else f"verified: epsilon {epsilon:.4f} at delta {identity.lifetime_delta:g}"
        )
        typer.echo(f"{again.entries} charges, {verdict}")
    if findings:
        raise typer.Exit(NOT_VERIFIED)


def _identity(folder: Path) -> NodeIdentity:
    try:
        return NodeIdentity.model_validate_json((folder / "node.json").read_bytes())
    except OSError as error:
        raise DataError("holds no node", place=str(folder), fix="name a node's state folder") from error
    except ValidationError as error:
        raise DataError("holds a node of another version", place=str(folder), fix="use the version it names") from error


@contextmanager
def _opened(folder: Path) -> Iterator[tuple[NodeIdentity, Ledger]]:
    """The node's identity and its ledger, which is read and never written."""
    identity = _identity(folder)
    store = open_store(folder / "node.sqlite", read_only=True)
    try:
        lifetime = budget_for(identity.lifetime_epsilon, identity.lifetime_delta)
        yield identity, Ledger(store, identity.institution, lifetime)
    finally:
        store.dispose()


def _print_statement(told: Statement, identity: NodeIdentity) -> None:
    console = Console(highlight=False, markup=False)
    console.print(f"{told.institution}: every epsilon at delta {told.delta:g}", soft_wrap=True)
    spent = told.epsilon
    of_life = 100 * told.spent.mu2 / told.lifetime.mu2 if told.lifetime.mu2 else math.nan
    console.print(
        f"spent: epsilon {spent.closed_form:.4f} of {identity.lifetime_epsilon:g} for life "
        f"(PLD {spent.pld:.4f}, RDP {spent.rdp:.4f}); {of_life:.1f}% of mu squared",
        soft_wrap=True,
    )
    lines = Table("plan", "run", "phase", "trust", "charges", "share of life", box=None, pad_edge=False)
    for line in told.lines:
        share = f"{100 * line.spend.mu2 / told.lifetime.mu2:.2f}%" if told.lifetime.mu2 else "-"
        trust = _trust_text(line.share)
        lines.add_row(line.plan[:19], line.run[:12], line.phase, trust, str(line.charges), share)
    if told.lines:
        console.print(lines)
    people = Table("a person at", "epsilon", "PLD", "RDP", box=None, pad_edge=False)
    for count, epsilons in told.person_at.items():
        cells = (f"{value:.4f}" for value in (epsilons.closed_form, epsilons.pld, epsilons.rdp))
        people.add_row(f"{count} institution{'s' if count > 1 else ''}", *cells)
    console.print(people)
    if any(share.is_shared for share in told.by_trust):
        console.print(f"if all others colluded: epsilon {told.all_others_collude:.4f}", soft_wrap=True)


def _print_preview(told: Preview, identity: NodeIdentity, begun: bool) -> None:
    plural = "" if told.runs_left == 1 else "s"
    typer.echo(f"{identity.institution}: {told.runs_left} further run{plural} of a plan of this budget")
    if begun:
        typer.echo("this very plan has begun here and is not run a second time: a further run is a new plan")
    typer.echo(f"spent so far: epsilon {told.epsilon_now:.4f} at delta {identity.lifetime_delta:g}")
    if told.epsilon_held > told.epsilon_now:
        typer.echo(f"with what open runs may still charge: {told.epsilon_held:.4f}")
    for number, epsilon in enumerate(told.epsilon_after, start=1):
        typer.echo(f"after {number} more: {epsilon:.4f}")
    if told.runs_left > len(told.epsilon_after):
        typer.echo("...")
    typer.echo(f"for life: {identity.lifetime_epsilon:g}")


def _trust_text(share: NoiseShare) -> str:
    return f"t {share.contributions}, c {share.colluders}" if share.is_shared else "local"
