"""`cohortium consent`: what customers agreed and objected to, and who may be counted."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from cohortium.cli.access import authorised
from cohortium.cli.progress import progress_printer
from cohortium.governance.access import Act
from cohortium.governance.consent import (
    PURPOSES,
    Cohort,
    ConsentStore,
    ImportCounts,
    import_signals,
    purpose_term,
)
from cohortium.privacy.stores import has_store, open_store
from cohortium.study.errors import DataError, RefusedError
from cohortium.study.plan import LawfulBasis

__all__ = ["app"]

STORE_FILE = "consent.sqlite"

Objection = Literal["marketing", "interests", "sharing", "affiliates", "gpc"]

_KINDS: dict[str, Any] = {
    "marketing": "marketing-objection",
    "interests": "interests-objection",
    "sharing": "sharing-opt-out",
    "affiliates": "affiliate-opt-out",
    "gpc": "gpc",
}

app = typer.Typer(
    name="consent",
    help="What customers agreed and objected to, and who may be counted. Nothing of it leaves the node.",
    no_args_is_help=True,
)

_Node = Annotated[Path, typer.Argument(metavar="NODE", help="The node's state folder, which holds consent.sqlite.")]
_Person = Annotated[str, typer.Option(help="The customer's id; - reads it from standard input, out of the history.")]
_At = Annotated[
    str | None, typer.Option(help="When it was said, ISO 8601 with a zone, such as 2026-03-01T12:00:00Z; else now.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command("import")
def import_file(
    node: _Node,
    file: Annotated[Path, typer.Argument(help="CSV with a header line, .jsonl, or .json with a list of objects.")],
    mapping: Annotated[Path, typer.Option(help="TOML file that says which columns hold what.")],
    rejects: Annotated[Path, typer.Option(help="CSV file to write: row, field and reason of what was not taken.")],
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: _Json = False,
) -> None:
    """Record what every row of a file says: consents, objections, opt-outs, permissions or age bands.

    The node's consent store is made when there is none. A stopped import goes on where it was when the same command is
    given again; a finished one changes nothing.

    \b
    Example:
      cohortium consent import state/north consents.csv --mapping consents.toml --rejects rejects.csv
    """
    authorised(node, Act.CONSENT_CHANGE)
    say = progress_printer(quiet)

    def tell(counts: ImportCounts) -> None:
        say(f"{counts.rows:,} rows, {counts.rejected:,} rejected")

    with _opened(node, create=True) as store:
        counts = import_signals(store, file, mapping, rejects, tell)
    if as_json:
        typer.echo(json.dumps(asdict(counts), indent=2))
        return
    typer.echo(f"{counts.recorded:,} recorded, {counts.repeated:,} known before, {counts.rejected:,} rejected")
    if counts.rejected:
        typer.echo(f"{rejects} has row, field and reason of each")


@app.command("withdraw")
def withdraw(
    node: _Node,
    person: _Person,
    purpose: Annotated[
        list[str] | None,
        typer.Option(help="What is withdrawn, with all narrower purposes; repeat it. Else everything."),
    ] = None,
    at: _At = None,
    as_json: _Json = False,
) -> None:
    """Record that a customer withdrew consent. The next question leaves the customer out.

    \b
    Examples:
      cohortium consent withdraw state/north --person C00001
      cohortium consent withdraw state/north --person - --purpose TargetedAdvertising
    """
    authorised(node, Act.CONSENT_CHANGE)
    terms = PURPOSES if purpose is None else tuple(purpose_term(each) for each in purpose)
    with _opened(node) as store:
        _tell(store.withdraw(_id(person), terms, _time(at)), as_json)


@app.command("object")
def object_to(
    node: _Node,
    person: _Person,
    to: Annotated[Objection, typer.Option(help="What the customer objects to, or opts out of.")] = "marketing",
    cleared: Annotated[bool, typer.Option("--cleared", help="The customer takes the objection back.")] = False,
    at: _At = None,
    as_json: _Json = False,
) -> None:
    """Record an objection or an opt-out. It outlives an erasure, in a list of its own.

    `marketing` leaves out of every marketing purpose, whatever the lawful basis; `interests` of what rests on
    legitimate interests; `sharing`, `affiliates` and `gpc` (Global Privacy Control) of advertising across contexts and
    of sharing.

    \b
    Examples:
      cohortium consent object state/north --person C00001
      cohortium consent object state/north --person C00001 --to gpc
    """
    authorised(node, Act.CONSENT_CHANGE)
    with _opened(node) as store:
        _tell(store.object_(_id(person), _KINDS[to], _time(at), cleared), as_json)


@app.command("erase")
def erase(
    node: _Node,
    person: _Person,
    rows_deleted: Annotated[
        bool, typer.Option("--rows-deleted", help="The customer's rows are gone from all tables: finish the erasure.")
    ] = False,
    at: _At = None,
    as_json: _Json = False,
) -> None:
    """Accept an erasure, and finish it once the customer's rows are deleted.

    From the moment it is accepted the customer is in no question. Finished with --rows-deleted, the key that linked the
    customer to past events is destroyed, for good; objections are kept in a list under another key. Keep the receipt
    that is printed: nothing can find it again.

    \b
    Examples:
      cohortium consent erase state/north --person C00001
      cohortium consent erase state/north --person C00001 --rows-deleted
    """
    authorised(node, Act.CONSENT_CHANGE)
    with _opened(node) as store:
        known = _id(person)
        _tell(store.complete_erasure(known) if rows_deleted else store.erase(known, _time(at)), as_json)


@app.command("status")
def status(
    node: _Node,
    person: Annotated[str | None, typer.Option(help="A customer's id, or - ; else the store as a whole.")] = None,
    as_json: _Json = False,
) -> None:
    """Where a customer stands; or how many events there are, whether they hold together, and what is owed.

    \b
    Examples:
      cohortium consent status state/north
      cohortium consent status state/north --person C00001 --json
    """
    authorised(node, Act.CONSENT_READ)
    with _opened(node) as store:
        if person is not None:
            told = store.standing(_id(person))
            if told is None:
                raise RefusedError("there is no record of this customer", place=STORE_FILE, fix="check the id")
        else:
            owed = store.open_obligations()
            told = {
                "events": store.verify(),
                "open_obligations": dict(Counter(each.duty for each in owed)),
                "overdue": dict(Counter(each.duty for each in owed if each.overdue)),
                "next_deadline": _shown(min((each.house_by for each in owed if not each.overdue), default=None)),
            }
    _print(told, as_json)


@app.command("receipt")
def receipt(node: _Node, person: _Person, as_json: _Json = False) -> None:
    """Everything a customer said, and the first question that took notice of it.

    \b
    Example:
      cohortium consent receipt state/north --person C00001 --json
    """
    authorised(node, Act.CONSENT_READ)
    with _opened(node) as store:
        receipts = store.receipt(_id(person))
    if as_json:
        typer.echo(json.dumps(receipts, indent=2))
        return
    for each in receipts:
        _tell(each, as_json=False)
    if not receipts:
        typer.echo("there is no record of this customer")


@app.command("snapshot")
def snapshot(
    node: _Node,
    purpose: Annotated[str, typer.Option(help="What people are wanted for, such as CustomerSegmentation.")],
    basis: Annotated[str, typer.Option(help=f"Lawful basis: {', '.join(get_args(LawfulBasis))}.")] = "consent",
    as_json: _Json = False,
) -> None:
    """How many of the customers on record may be counted now, and why others may not. For this house alone.

    \b
    Examples:
      cohortium consent snapshot state/north --purpose CustomerSegmentation
      cohortium consent snapshot state/north --purpose TargetedAdvertising --basis legitimate_interests --json
    """
    authorised(node, Act.CONSENT_READ)
    if basis not in get_args(LawfulBasis):
        raise RefusedError("is no lawful basis", place="--basis", fix=f"use one of {', '.join(get_args(LawfulBasis))}")
    cohort = Cohort(purpose_term(purpose), basis)  # type: ignore[arg-type] # checked above
    with _opened(node) as store:
        made = store.snapshot(cohort)
    _print(
        {"purpose": cohort.purpose, "basis": basis, "sequence": made.sequence, "root": made.root, **made.totals()},
        as_json,
    )


@contextmanager
def _opened(node: Path, create: bool = False) -> Iterator[ConsentStore]:
    """The node's consent store."""
    file = node / STORE_FILE
    if not node.is_dir():
        raise DataError("is no folder", place=str(node), fix="name a node's state folder")
    if not create and not has_store(file):
        raise DataError(
            "the node has no consent store",
            place=str(file),
            fix="make it by consent import; if it was lost, put back the newest copy: a new one knows no objection",
        )
    store = ConsentStore(open_store(file))
    try:
        yield store
    finally:
        store.close()


def _id(person: str) -> str:
    return sys.stdin.readline().strip() if person == "-" else person


def _time(at: str | None) -> datetime | None:
    if at is None:
        return None
    try:
        return datetime.fromisoformat(at)
    except ValueError:
        raise DataError("is no ISO 8601 time", place="--at", fix="write such as 2026-03-01T12:00:00Z") from None


def _shown(seconds: int | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _tell(told: dict[str, Any], as_json: bool) -> None:
    """A receipt."""
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    what = told["what"]
    purposes = f" ({', '.join(what['purposes'])})" if "purposes" in what else ""
    typer.echo(f"{told['said_at']}  {what['kind']}: {what['state']}{purposes}")
    first = told["first_round"]
    noticed = "no question was answered since" if first is None else f"first in run {first['run']}, {first['noted_at']}"
    typer.echo(f"  event {told['sequence']}, record {told['record_id']}; {noticed}")
    for line in told["statements"]:
        typer.echo(f"  {line}")


def _print(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    for name, value in told.items():
        shown = ", ".join(f"{key}: {part}" for key, part in value.items()) if isinstance(value, dict) else value
        if isinstance(shown, list):
            shown = ", ".join(shown)
        typer.echo(f"{name.replace('_', ' ')}: {shown if shown not in ('', None) else 'none'}")
