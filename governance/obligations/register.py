"""The register of obligations, in a file of its own. Rows are only ever added; triggers refuse everything else.

A duty stands from the first decision that brings it. An event opens one obligation for every part of a standing duty
that begins with it; deadlines are not kept but computed, by the clocks of the rule as it stood then. Nobody's id is in
here: an event's note says where the house keeps the case.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    func,
    insert,
    select,
)

from cohortium.governance.obligations.obligation import (
    Closure,
    Extension,
    Obligation,
    Occurrence,
    Part,
    StandingDuty,
    deadline,
    end_of,
    parts_of,
)
from cohortium.governance.rules import Decision, Duty
from cohortium.privacy.store_forms import Form, append_only, open_form
from cohortium.study.canonical import canonical_bytes
from cohortium.study.errors import DataError, RefusedError
from cohortium.study.validation import suggestion

__all__ = ["DECLARED", "TABLES", "ObligationRegister", "one_line"]

DECLARED = "declared"
"""The source of events that people tell."""

_MOST = 512
_PLANNED = frozenset({"audit", "board_report", "offer", "price", "retraining", "round"})

TABLES = MetaData()

_header = Table("obligations_header", TABLES, Column("schema", String, primary_key=True))

_decisions = Table(
    "decisions",
    TABLES,
    Column("digest", String, primary_key=True),
    Column("document", LargeBinary, nullable=False),
)

_duties = Table(
    "duties",
    TABLES,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("rule", String, nullable=False, index=True),
    Column("plan", String, nullable=False),
    Column("decision", String, ForeignKey(_decisions.c.digest), nullable=False),
    Column("since", String, nullable=False),
    Column("duty", LargeBinary, nullable=False),
)

_occurrences = Table(
    "occurrences",
    TABLES,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("kind", String, nullable=False),
    Column("at", String, nullable=False),
    Column("note", String, nullable=False),
    Column("source", String, nullable=False),
    Column("recorded_at", String, nullable=False),
    UniqueConstraint("kind", "at", "note", "source"),
)

_obligations = Table(
    "obligations",
    TABLES,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("occurrence", Integer, ForeignKey(_occurrences.c.number), nullable=False),
    Column("duty", Integer, ForeignKey(_duties.c.number), nullable=False),
    Column("rule", String, nullable=False),
    Column("act", String, nullable=False),
    UniqueConstraint("occurrence", "rule", "act"),
)

_extensions = Table(
    "extensions",
    TABLES,
    Column("obligation", Integer, ForeignKey(_obligations.c.number), primary_key=True, autoincrement=False),
    Column("units", Integer, nullable=False),
    Column("by", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("at", String, nullable=False),
)

_closures = Table(
    "closures",
    TABLES,
    Column("obligation", Integer, ForeignKey(_obligations.c.number), primary_key=True, autoincrement=False),
    Column("by", String, nullable=False),
    Column("at", String, nullable=False),
    Column("how", String, nullable=False),
    Column("evidence", String, nullable=False),
    Column("recorded_at", String, nullable=False),
)

# without a condition on new rows SQLite's INSERT OR REPLACE could replace old ones
append_only(_header, "EXISTS (SELECT 1 FROM obligations_header)")
append_only(_decisions, "EXISTS (SELECT 1 FROM decisions WHERE digest = NEW.digest)")
append_only(_duties, "NEW.number <> (SELECT COUNT(*) + 1 FROM duties)")
append_only(_occurrences, "NEW.number <> (SELECT COUNT(*) + 1 FROM occurrences)")
append_only(_obligations, "NEW.number <> (SELECT COUNT(*) + 1 FROM obligations)")
append_only(_extensions, "EXISTS (SELECT 1 FROM extensions WHERE obligation = NEW.obligation)")
append_only(_closures, "EXISTS (SELECT 1 FROM closures WHERE obligation = NEW.obligation)")

_FORM = Form(
    "cohortium.obligations/1",
    "register of obligations",
    _header,
    TABLES,
    "put back the newest copy, or use the version that wrote it",
)


class ObligationRegister:
    """The obligations of one institution.

    Args:
        store: from `privacy.ledger.open_store`; a read-only one can be read.
        now: the time (UTC); a seam for tests of clocks.

    Raises:
        DataError: the file is of another version.
    """

    def __init__(self, store: Engine, now: Callable[[], datetime] | None = None) -> None:
        self._store = store
        self._now = now if now is not None else _utc_now
        with store.begin() as connection:
            open_form(connection, _FORM, str(store.url.database))

    # --- duties -------------------------------------------------------------------------------------------------------

    def owe(self, decision: Decision, plan: str, since: date, rules: Collection[str] | None = None) -> tuple[str, ...]:
        """Let the duties of a decision stand; the rules of those that did not stand before.

        A duty stands once for a rule and a plan, however often that is decided anew. Where the rule has changed since,
        its new text and clocks hold for later events.

        Args:
            decision: its id and its document are kept when it brings something new.
            plan: of which it decided, by digest.
            since: the first day (UTC) of which events count.
            rules: whose duties; all when left out.
        """
        new = []
        with self._store.begin() as connection:
            for duty in decision.duties:
                if rules is not None and duty.rule not in rules:
                    continue
                body = canonical_bytes(duty.model_dump(mode="json"))
                own = select(_duties.c.duty).where((_duties.c.rule == duty.rule) & (_duties.c.plan == plan))
                if connection.execute(own.order_by(_duties.c.number.desc()).limit(1)).scalar() == body:
                    continue
                _keep(connection, decision)
                row = {"rule": duty.rule, "plan": plan, "decision": decision.id, "since": since.isoformat()}
                _add(connection, _duties, duty=body, **row)
                new.append(duty.rule)
            self._open(connection)
        return tuple(new)

    def standing(self) -> tuple[StandingDuty, ...]:
        """Every duty that stands, in the order in which rules first brought one."""
        with self._store.begin() as connection:
            return tuple(made for _, made in _standing(connection))

    # --- events -------------------------------------------------------------------------------------------------------

    def record(self, kind: str, at: datetime, note: str) -> tuple[Occurrence, tuple[str, ...]]:
        """Write an event down that somebody tells of, durably, and open what it makes due. The same again adds nothing.

        Returns:
            The event, and the ids of all obligations that it opened, now or before.

        Raises:
            RefusedError: no duty that stands begins or ends with such an event; it lies in the future and is none that
                is planned.
            DataError: no time zone, or a note that is no line of text.
        """
        with self._store.begin() as connection:
            parts = [part for _, duty in _standing(connection) for part in parts_of(duty.duty)]
            known = {part.event for part in parts}
            known |= {end_of(clock.before) for part in parts for clock in part.clocks if clock.before}
            if kind not in known:
                fix = suggestion(kind, sorted(known)) if known else "run retention first, on a node with rules in force"
                raise RefusedError("no duty here begins or ends with such an event", place=kind, fix=fix)
            moment = _moment(at)
            if moment > self._present() and kind not in _PLANNED:
                raise RefusedError("lies in the future", place=f"{kind}: time", fix="record it when it has happened")
            found = self._written(connection, kind, moment, one_line(note, "note"), DECLARED)
            self._open(connection)
            opened = select(_obligations.c.number).where(_obligations.c.occurrence == found.number)
            ids = tuple(map(_id, connection.execute(opened.order_by(_obligations.c.number)).scalars()))
        return found, ids

    def record_found(self, kind: str, told: Iterable[tuple[datetime, str]]) -> tuple[str, ...]:
        """Open what events make due that another store keeps; the ids of what was opened.

        An obligation is for all events of the kind up to the day on which it is closed: of several parts of duties each
        gets one, for the first event after it was closed last, and none while one is open.

        Args:
            kind: of the events.
            told: when each was, and where it is kept (`consent event 12`), oldest first.
        """
        events = [(_moment(at), source) for at, source in told]
        opened = []
        with self._store.begin() as connection:
            for number, standing in _standing(connection):
                for part in parts_of(standing.duty):
                    if part.event != kind or (after := self._settled(connection, part)) is None:
                        continue
                    first = next((e for e in events if e[0] > after and e[0].date() >= standing.since), None)
                    if first is not None:
                        event = self._written(connection, kind, first[0], "", first[1])
                        opened.append(_open_one(connection, event.number, number, part))
        return tuple(opened)

    # --- obligations --------------------------------------------------------------------------------------------------

    def obligations(self) -> tuple[Obligation, ...]:
        """All of them, the closed ones too, by deadline; those without one last."""
        with self._store.begin() as connection:
            found = _all(connection)
        return tuple(sorted(found, key=lambda one: (one.due is None, one.due or one.event.at, int(one.id[3:]))))

    def close(self, id: str, by: str, how: str, evidence: str, at: datetime | None = None) -> Obligation:
        """Write down that an obligation was met.

        Args:
            id: which.
            by: who says so.
            how: what was done.
            evidence: where to find what shows it.
            at: when it was done; now if left out.

        Raises:
            RefusedError: no such obligation, it is closed, or the time is before its event or in the future.
            DataError: no time zone, or something that is no line of text.
        """
        said = {"by": one_line(by, "by"), "how": one_line(how, "how"), "evidence": one_line(evidence, "evidence")}
        now = self._present()
        done = now if at is None else _moment(at)
        with self._store.begin() as connection:
            found = _one(connection, id)
            if done < found.event.at and not found.dates_itself:
                raise RefusedError(
                    f"was done before it was owed, since {_text(found.event.at)}", place=id, fix="correct the time"
                )
            if done > now:
                raise RefusedError("lies in the future", place=f"{id}: time", fix="close it when it is done")
            row = {"obligation": int(id[3:]), "at": _text(done), "recorded_at": _text(now), **said}
            connection.execute(insert(_closures).values(**row))
            return next(one for one in _all(connection) if one.id == id)

    def extend(self, id: str, by: str, reason: str) -> Obligation:
        """Let an obligation take as much longer as its rule allows, once; the person concerned is told the reason.

        Raises:
            RefusedError: no such obligation; it is closed, extended, or overdue; its rule allows no extension.
            DataError: something that is no line of text.
        """
        now = self._present()
        said = {"by": one_line(by, "by"), "reason": one_line(reason, "reason")}
        with self._store.begin() as connection:
            found = _one(connection, id)
            if not found.part.may_take_longer:
                raise RefusedError("its rule lets nobody take longer", place=id, fix="do it, and close it")
            if found.extension is not None:
                raise RefusedError("was extended before", place=id, fix="do it, and close it")
            if found.state(now) == "overdue":
                raise RefusedError(
                    "is overdue: whoever waits is told of an extension in time", place=id, fix="do it, and close it"
                )
            row = {"obligation": int(id[3:]), "units": found.part.may_take_longer, "at": _text(now), **said}
            connection.execute(insert(_extensions).values(**row))
            return next(one for one in _all(connection) if one.id == id)

    def _present(self) -> datetime:
        return _moment(self._now())

    # --- within a transaction -----------------------------------------------------------------------------------------

    def _open(self, connection: Connection) -> None:
        """Open whatever events that people told make due and that is not open."""
        known = set(
            map(tuple, connection.execute(select(_obligations.c.occurrence, _obligations.c.rule, _obligations.c.act)))
        )
        events = [event for event in _events(connection) if event.source == DECLARED]
        for number, standing in _standing(connection):
            for part in parts_of(standing.duty):
                for event in events:
                    key = (event.number, part.duty.rule, part.act or "")
                    if event.kind == part.event and event.at.date() >= standing.since and key not in known:
                        _open_one(connection, event.number, number, part)

    def _written(self, connection: Connection, kind: str, at: datetime, note: str, source: str) -> Occurrence:
        for event in _events(connection):
            if (event.kind, event.at, event.note, event.source) == (kind, at, note, source):
                return event
        row = {"kind": kind, "at": _text(at), "note": note, "source": source, "recorded_at": _text(self._present())}
        number = _add(connection, _occurrences, **row)
        return Occurrence(number, kind, at, note, source, self._present())

    def _settled(self, connection: Connection, part: Part) -> datetime | None:
        """Until when everything is done for a part; None while an obligation of it is open."""
        own = [one for one in _all(connection) if (one.part.duty.rule, one.part.act) == (part.duty.rule, part.act)]
        own = [one for one in own if one.part.event == part.event]
        if any(one.closure is None for one in own):
            return None
        return max((one.closure.at for one in own if one.closure), default=datetime.min.replace(tzinfo=UTC))


def _keep(connection: Connection, decision: Decision) -> None:
    if connection.execute(select(_decisions.c.digest).where(_decisions.c.digest == decision.id)).first() is None:
        connection.execute(insert(_decisions).values(digest=decision.id, document=decision.to_bytes()))


def _add(connection: Connection, table: Table, **values: Any) -> int:
    """One more row; its number."""
    number = int(connection.execute(select(func.count()).select_from(table)).scalar_one()) + 1
    connection.execute(insert(table).values(number=number, **values))
    return number


def _open_one(connection: Connection, occurrence: int, duty: int, part: Part) -> str:
    row = {"occurrence": occurrence, "duty": duty, "rule": part.duty.rule, "act": part.act or ""}
    return _id(_add(connection, _obligations, **row))


def _standing(connection: Connection) -> list[tuple[int, StandingDuty]]:
    """Duties by rule, each with the number of the row that states it newest."""
    found: dict[str, list[Any]] = {}
    for row in connection.execute(select(_duties).order_by(_duties.c.number)):
        found.setdefault(row.rule, []).append(row)
    return [
        (
            rows[-1].number,
            StandingDuty(
                duty=_duty(rows[-1].duty),
                since=min(date.fromisoformat(row.since) for row in rows),
                plans=tuple(dict.fromkeys(row.plan for row in rows)),
                decisions=tuple(dict.fromkeys(row.decision for row in rows)),
            ),
        )
        for rows in found.values()
    ]


def _events(connection: Connection) -> list[Occurrence]:
    rows = connection.execute(select(_occurrences).order_by(_occurrences.c.number))
    return [
        Occurrence(row.number, row.kind, _time(row.at), row.note, row.source, _time(row.recorded_at)) for row in rows
    ]


def _all(connection: Connection) -> list[Obligation]:
    events = _events(connection)
    by_number = {event.number: event for event in events}
    standing = {duty.duty.rule: duty for _, duty in _standing(connection)}
    duties = {row.number: _duty(row.duty) for row in connection.execute(select(_duties))}
    longer = {
        row.obligation: Extension(row.units, row.by, row.reason, _time(row.at))
        for row in connection.execute(select(_extensions))
    }
    closed = {
        row.obligation: Closure(row.by, _time(row.at), row.how, row.evidence, _time(row.recorded_at))
        for row in connection.execute(select(_closures))
    }
    found = []
    for row in connection.execute(select(_obligations).order_by(_obligations.c.number)):
        event, extension = by_number[row.occurrence], longer.get(row.number)
        part = next(
            part for part in parts_of(duties[row.duty]) if (part.event, part.act or "") == (event.kind, row.act)
        )
        due, before = deadline(part, event.kind, event.at, events, extension.units if extension else 0)
        plans = standing[row.rule].plans
        found.append(Obligation(_id(row.number), part, plans, event, due, before, extension, closed.get(row.number)))
    return found


def _one(connection: Connection, id: str) -> Obligation:
    """The obligation of that id, which is not closed."""
    found = {one.id: one for one in _all(connection)}
    if id not in found:
        fix = suggestion(id, found) if found else "nothing was opened yet"
        raise RefusedError("there is no such obligation", place=id, fix=fix)
    if (closed := found[id].closure) is not None:
        raise RefusedError(
            f"was closed by {closed.by}, {_text(closed.at)}", place=id, fix="what was closed stays closed"
        )
    return found[id]


def _duty(body: bytes) -> Duty:
    return Duty.model_validate(json.loads(body))


def _id(number: int) -> str:
    return f"ob-{number}"


def one_line(text: str, field: str) -> str:
    """Text of one line, without blanks around it; `DataError` names the field."""
    cut = text.strip()
    if not 0 < len(cut) <= _MOST or not cut.isprintable():
        raise DataError(f"is no line of 1 to {_MOST} characters", place=field, fix="write one, naming no customer")
    return cut


def _moment(at: datetime) -> datetime:
    if at.tzinfo is None:
        raise DataError("has no time zone", place="time", fix="write it with one, such as +00:00")
    return at.astimezone(UTC).replace(microsecond=0)


def _text(at: datetime) -> str:
    return at.isoformat(timespec="seconds")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _utc_now() -> datetime:
    return datetime.now(UTC)
