"""`cohortium retention`: what ends on its last day, what is owed and until when, and how it was met."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from cohortium.cli.access import authorised
from cohortium.client.lookalike import open_records
from cohortium.client.retention import Owed, Retained, Step, Waiting, close, extend, owed, record_event, retain
from cohortium.governance.access import Act
from cohortium.study.errors import DataError

__all__ = ["app"]

NOT_IN_ORDER = 1
"""Exit code of `run` when something is overdue, refused or could not be done; mistakes of the caller exit with 2."""

app = typer.Typer(
    name="retention",
    help="What ends on its last day, what is owed and until when, and how it was met. Not legal advice.",
    no_args_is_help=True,
)

_Node = Annotated[Path, typer.Argument(metavar="NODE", help="The node's state folder.")]
_Id = Annotated[str, typer.Argument(metavar="ID", help="The obligation; `retention list` has it.")]
_By = Annotated[str, typer.Option(metavar="PERSON", help="Who says so, by name or function.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command("run")
def run(
    node: _Node,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be done.")] = False,
    as_json: _Json = False,
) -> None:
    """End what is past its last day, ask the rules of retention, and say what is overdue or due soon.

    Safe at any time, from cron or a systemd timer; stopped, it goes on at the next call. Exits with 0 when all is in
    order, 1 when something is overdue, refused by a rule or could not be done, 2 when it could not run.

    \b
    Examples:
      cohortium retention run state/north --dry-run
      cohortium retention run state/north --json
    """
    authorised(node, Act.RETENTION_RUN)
    with open_records(node) as records:
        told = retain(records, _now(), dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps({"dry_run": dry_run, **_retained_json(told)}, indent=2))
    else:
        _print_retained(told, "would" if dry_run else "done")
    if not told.in_order:
        raise typer.Exit(NOT_IN_ORDER)


@app.command("list")
def list_owed(
    node: _Node,
    closed: Annotated[bool, typer.Option("--closed", help="What was closed too.")] = False,
    as_json: _Json = False,
) -> None:
    """Show what is owed, by deadline: obligations of rules, people's in the consent store, removals of audiences.

    Then the duties that begin with an event, and the command that records it.

    \b
    Examples:
      cohortium retention list state/north
      cohortium retention list state/north --closed --json
    """
    authorised(node, Act.RETENTION_READ)
    with open_records(node) as records:
        listed, waiting = owed(records, _now(), closed=closed)
    if as_json:
        typer.echo(
            json.dumps({"owed": [_owed_json(one) for one in listed], "waiting": _waiting_json(waiting)}, indent=2)
        )
        return
    _print_owed(listed)
    for one in waiting:
        typer.echo(f"waits for {one.event} (cohortium {one.recorded_by}): {'; '.join(one.rules)}")
    typer.echo(_counts(listed))


@app.command("event")
def record(
    node: _Node,
    event: Annotated[
        str, typer.Argument(metavar="EVENT", help="What happened; `retention list` has what is waited for.")
    ],
    at: Annotated[str, typer.Option(help="When, ISO 8601 with a zone, such as 2026-03-02T09:00:00Z.")],
    note: Annotated[str, typer.Option(help="Where the house keeps the case. Name no customer.")],
    as_json: _Json = False,
) -> None:
    """Write down that something happened, and so start the clocks of the duties that begin with it, or end others.

    What is planned, such as an audit or an offer, may lie ahead. Withdrawals, opt-outs and erasures are recorded by
    cohortium consent where the node keeps consent.

    \b
    Examples:
      cohortium retention event state/north rights_request --at 2026-03-02T09:00:00Z --note "case 2026-117"
      cohortium retention event state/north audit --at 2026-06-01T00:00:00Z --note "audit of June, planned"
    """
    authorised(node, Act.RETENTION_CHANGE, event)
    moment = _time(at)
    with open_records(node) as records:
        told, opened = record_event(records, event, moment, note, _now())
    if as_json:
        typer.echo(json.dumps({"event": told.kind, "at": _shown(told.at), "opened": list(opened)}, indent=2))
        return
    typer.echo(f"{told.kind} at {_shown(told.at)}: {', '.join(opened) if opened else 'nothing is owed for it'}")


@app.command("close")
def close_one(
    node: _Node,
    id: _Id,
    by: _By,
    how: Annotated[str, typer.Option(metavar="TEXT", help="What was done.")],
    evidence: Annotated[str, typer.Option(metavar="REF", help="Where to find what shows it: a document, a ticket.")],
    at: Annotated[str | None, typer.Option(help="When it was done, ISO 8601 with a zone; now when left out.")] = None,
    as_json: _Json = False,
) -> None:
    """Write down that an obligation was met, by whom, when, how, and where the evidence is. It stays so.

    \b
    Examples:
      cohortium retention close state/north ob-3 --by "the privacy office" --how "told the person" --evidence case-117
      cohortium retention close state/north consent:tell-recipients:5-9 --by "the privacy office" \\
        --how "removal delta sent" --evidence mail-22
    """
    authorised(node, Act.RETENTION_CHANGE, id)
    moment = None if at is None else _time(at)
    with open_records(node) as records:
        count = close(records, id, by, how, evidence, _now(), moment)
    typer.echo(json.dumps({"id": id, "closed": count}, indent=2) if as_json else f"{id}: {count} closed")


@app.command("extend")
def extend_one(
    node: _Node,
    id: _Id,
    by: _By,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why it takes longer, as the person concerned is told.")],
    as_json: _Json = False,
) -> None:
    """Let an obligation take as much longer as its rule allows: once, before its deadline, and with a reason.

    \b
    Example:
      cohortium retention extend state/north ob-3 --by "the privacy office" --reason "eleven systems to search"
    """
    authorised(node, Act.RETENTION_CHANGE, id)
    with open_records(node) as records:
        told = extend(records, id, by, reason, _now())
    due = None if told.due is None else _shown(told.due)
    typer.echo(json.dumps({"id": id, "due": due}, indent=2) if as_json else f"{id}: due {due}")


def _now() -> datetime:
    return datetime.now(UTC)


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise DataError("is no ISO 8601 time", place="--at", fix="write such as 2026-03-02T09:00:00Z") from None


def _shown(at: datetime) -> str:
    return at.isoformat(timespec="seconds")


def _counts(listed: Iterable[Owed]) -> str:
    found = Counter({"overdue": 0, "due soon": 0, "open": 0})
    for one in listed:
        found[one.state] += one.count
    return ", ".join(f"{count} {state}" for state, count in found.items())


def _print_retained(told: Retained, verb: str) -> None:
    for step in told.done:
        _print_step(verb, step)
    for step in told.not_done:
        _print_step("not done", step)
    for step in told.refused:
        _print_step("refused", step)
    for note in told.notes:
        typer.echo(f"note: {note}")
    if told.opened:
        typer.echo(f"opened: {', '.join(told.opened)}")
    _print_owed(one for one in told.owed if one.state in ("overdue", "due soon"))
    typer.echo(_counts(told.owed))


def _print_step(verb: str, step: Step) -> None:
    typer.echo(f"{verb}: {step.what}")
    typer.echo(f"  {step.why}")


def _print_owed(listed: Iterable[Owed]) -> None:
    for one in listed:
        due = f"before {' or '.join(one.before)}" if one.due is None else _shown(one.due)
        many = f" ({one.count} times)" if one.count > 1 else ""
        typer.echo(f"{one.state}  {due}  {one.id}  {one.what}{many}")
        typer.echo(f"  {'; '.join(one.rules)}; since {_shown(one.since)}; {_ending(one)}")


def _ending(one: Owed) -> str:
    closure = None if one.obligation is None else one.obligation.closure
    if closure is None:
        return f"ends by: {one.ends}"
    late = ", late" if one.obligation is not None and one.obligation.was_late else ""
    return f"closed by {closure.by}, {_shown(closure.at)}{late}: {closure.how} ({closure.evidence})"


def _retained_json(told: Retained) -> dict[str, Any]:
    return {
        "in_order": told.in_order,
        **{name: [vars(step) for step in getattr(told, name)] for name in ("done", "not_done", "refused")},
        "notes": list(told.notes),
        "opened": list(told.opened),
        "owed": [_owed_json(one) for one in told.owed],
        "waiting": _waiting_json(told.waiting),
    }


def _owed_json(one: Owed) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": one.id,
        "state": one.state,
        "due": None if one.due is None else _shown(one.due),
        "before": list(one.before),
        "what": one.what,
        "rules": list(one.rules),
        "since": _shown(one.since),
        "count": one.count,
        "ends": one.ends,
    }
    if one.obligation is None:
        return told
    extension, closure = one.obligation.extension, one.obligation.closure
    return {
        **told,
        "deadline": one.obligation.part.duty.deadline,
        "event": {
            "kind": one.obligation.event.kind,
            "note": one.obligation.event.note,
            "source": one.obligation.event.source,
        },
        "plans": list(one.obligation.plans),
        "extension": None if extension is None else {**vars(extension), "at": _shown(extension.at)},
        "closure": None
        if closure is None
        else {
            **vars(closure),
            "at": _shown(closure.at),
            "recorded_at": _shown(closure.recorded_at),
            "late": one.obligation.was_late,
        },
    }


def _waiting_json(waiting: Iterable[Waiting]) -> list[dict[str, Any]]:
    return [
        {"event": one.event, "rules": list(one.rules), "recorded_by": f"cohortium {one.recorded_by}"} for one in waiting
    ]
