"""The consent store of one institution: what every person said, for ever, and where they stand now.

Events are only ever added; triggers refuse everything else. Each names the person's event before it and is linked to it
by a hash. A person's standing is kept in the same transaction, so that a snapshot is a set operation.

Nobody's id is in here. A person is found by a keyed hash of the id; events carry a tag under the person's own random
key. When an erasure is completed, key, hash and standing are deleted: the person's events stay, and nothing links them
to anybody. What the person objected to goes into a suppression list under another key, and is honoured when the same
id comes back. The link finds accidents and clumsy edits; it is no seal, for the owner of the file could make it anew.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from cohortium.governance.consent import tables
from cohortium.governance.consent.appending import ROUNDS, ROWS, Appender, Entry, Recorded, Rejected
from cohortium.governance.consent.columns import keyed_tags
from cohortium.governance.consent.purposes import PURPOSES, covers
from cohortium.governance.consent.records import RecordTemplate
from cohortium.governance.consent.rows import ConsentRows, day, link, time
from cohortium.governance.consent.signals import (
    EMPTY,
    FLAGS,
    NEVER,
    OBJECTIONS,
    AnySignal,
    ConsentSignal,
    ErasureSignal,
    FlagKind,
    FlagSignal,
    day_of,
    unpack,
)
from cohortium.governance.consent.snapshot import Cohort, Snapshot
from cohortium.governance.consent.standings import Standings
from cohortium.study.errors import DataError, Defect, RefusedError

__all__ = ["BackDatedError", "ConsentStore", "Entry", "Obligation", "Recorded", "Rejected"]

RECEIPT_SCHEMA = "cohortium.consent-receipt/1"

_ERASED = FLAGS["erasure"]
_COMPLETED = ErasureSignal(state="completed")


class BackDatedError(DataError):
    """An event that claims a time before what was recorded later, or in the future."""


@dataclass(frozen=True)
class Obligation:
    """What is owed to a person who spoke in event `sequence`, and until when; times in seconds since 1970.

    Args:
        sequence: of the event.
        duty: `leave-out-of-rounds`, `tell-recipients` or `delete-rows`.
        opened_at, house_by, law_by: since when, and until when by our own limit and by law (GDPR Art. 12(3)).
        overdue: whether our own limit has passed.
    """

    sequence: int
    duty: str
    opened_at: int
    house_by: int
    law_by: int | None
    overdue: bool


_FIX = {
    "person": "give the customer's id as it stands in the customer table, without spaces around it",
    "time": "record what was said when it was said; correct the time, or the clock",
    "template": "add the record template first",
    "purposes": "use purposes that the record template names, or narrower ones",
}

_STATEMENTS = {
    True: (
        "Earlier rounds stay as they are: what was added up cannot be taken out again.",
        "Privacy budget that was spent is not given back.",
        "A model released under differential privacy is not rewritten; it is kept to its expiry at most.",
    ),
    False: ("It holds from the first round after it.",),
}


class ConsentStore:
    """One institution's consent store.

    Args:
        store: from `privacy.stores.open_store`.
        now: the time (UTC); a seam for tests of clocks.

    Raises:
        DataError: the database holds something else, or another version.
    """

    def __init__(self, store: sa.Engine, now: Callable[[], datetime] | None = None) -> None:
        self._store = store
        self._rows = ConsentRows(store, now if now is not None else _utc_now)
        self._appender = Appender(self._rows)
        self._standings = Standings(self._rows)

    def close(self) -> None:
        """Close the store's connections; it must not be used afterwards."""
        self._store.dispose()

    @property
    def sequence(self) -> int:
        """The last event's number, 0 when there is none."""
        with self._rows.transaction() as connection:
            return tables.top(connection, tables.events.c.sequence)

    # --- what people say ----------------------------------------------------------------------------------------------

    def add_template(self, template: RecordTemplate) -> str:
        """Store a record template, to which consents refer; its digest. The same again changes nothing."""
        with self._rows.transaction() as connection:
            self._rows.document(connection, "template", template.digest, template.to_bytes)
        return template.digest

    def record(self, entry: Entry) -> dict[str, Any]:
        """Add what one person said, durably, and return its receipt.

        Raises:
            BackDatedError: it claims the future, or a time before something later that was recorded.
            DataError: no such template, or not an id.
        """
        with self._rows.transaction() as connection:
            (done,) = self._appender.add(connection, [entry])
        if isinstance(done, Rejected):
            kind = BackDatedError if done.field == "time" else DataError
            raise kind(done.reason, place=done.field, fix=_FIX.get(done.field, "correct it"))
        return self._receipt(done.sequence)

    def record_many(
        self,
        entries: Sequence[Entry],
        source: str | None = None,
        progress: Callable[[list[Recorded | Rejected]], bytes] | None = None,
    ) -> list[Recorded | Rejected]:
        """Add many entries in one transaction, in the order of times for each person; what became of each.

        Events of different people are stored in the order of tags, so that the order of a file does not tell who is
        who. With `source`, the `progress` that is made of the outcome is committed with them.
        """
        with self._rows.transaction() as connection:
            done = self._appender.add(connection, entries)
            if source is not None and progress is not None:
                row = {"digest": source, "progress": progress(done)}
                connection.execute(sa.delete(tables.imports).where(tables.imports.c.digest == source))
                connection.execute(sa.insert(tables.imports).values(**row))
        return done

    def progress(self, source: str) -> bytes | None:
        """How far an import of that digest came."""
        with self._rows.transaction() as connection:
            query = sa.select(tables.imports.c.progress).where(tables.imports.c.digest == source)
            return connection.execute(query).scalar_one_or_none()

    def withdraw(
        self, person: str, purposes: Sequence[str] = PURPOSES, at: datetime | None = None, entity: str = "data subject"
    ) -> dict[str, Any]:
        """Withdraw consent to these purposes and all narrower ones; its receipt. See `record` for errors."""
        signal = ConsentSignal(
            purposes=tuple(purposes),
            state="ConsentWithdrawn",
            event_type="explicit",
            validity_duration="until-withdrawn",
            entity_id=entity,
        )
        return self.record(Entry(person, signal, self._rows.seconds(at)))

    def object_(
        self, person: str, kind: FlagKind = "marketing-objection", at: datetime | None = None, cleared: bool = False
    ) -> dict[str, Any]:
        """Object to direct marketing or legitimate interests, opt out of sharing, or take it back; its receipt."""
        if not FLAGS[kind] & OBJECTIONS:
            raise DataError("is a permission, not an objection", place=kind, fix="record it as a signal")
        signal = FlagSignal(kind=kind, state="cleared" if cleared else "set")
        return self.record(Entry(person, signal, self._rows.seconds(at)))

    def opt_out(self, person: str, kind: FlagKind = "sharing-opt-out", at: datetime | None = None) -> dict[str, Any]:
        """Opt out of sharing, of use by affiliates, or by Global Privacy Control; its receipt."""
        return self.object_(person, kind, at)

    def erase(self, person: str, at: datetime | None = None) -> dict[str, Any]:
        """Accept an erasure: from now on the person is left out of everything; its receipt. See `complete_erasure`."""
        return self.record(Entry(person, ErasureSignal(state="accepted"), self._rows.seconds(at)))

    def complete_erasure(self, person: str) -> dict[str, Any]:
        """The person's rows are deleted: destroy key, hash and standing, keep what was objected to; the last receipt.

        Afterwards nothing in the store leads from the id to the events, or from these to anybody.

        Raises:
            RefusedError: no erasure of this person was accepted.
        """
        with self._rows.transaction() as connection:
            found = self._rows.find(connection, person)
            if found is None or not unpack(found.state)[0] & _ERASED:
                raise RefusedError("no erasure of this person was accepted", fix="accept it first: consent erase")
            (done,) = self._appender.add(connection, [Entry(person, _COMPLETED, self._rows.seconds(None))])
            if isinstance(done, Rejected):
                raise Defect("consent: an erasure could not be completed")
            connection.execute(sa.insert(tables.erasures).values(sequence=done.sequence))
            flags = unpack(found.state)[0] & (OBJECTIONS | _ERASED)
            self._suppress(connection, keyed_tags(self._rows.suppression_key, [person]), flags)
            connection.execute(sa.delete(tables.standings).where(tables.standings.c.person == found.number))
            connection.execute(sa.delete(tables.keys).where(tables.keys.c.person == found.number))
            chain = {row.sequence for row in self._rows.chain(connection, done.sequence)}
            self._close(
                connection,
                (tables.obligations.c.sequence.in_(chain)) & (tables.obligations.c.duty == ROWS),
                "rows deleted",
            )
        receipt = self._receipt(done.sequence)
        self._rows.scrub()
        return receipt

    # --- what was said ------------------------------------------------------------------------------------------------

    def principal(self, person: str) -> str | None:
        """The person's tag in records and logs, as hexadecimal digits; None when the store has no record."""
        with self._rows.transaction() as connection:
            found = self._rows.find(connection, person)
        return None if found is None else found.principal.hex()

    def standing(self, person: str) -> dict[str, Any] | None:
        """Where a person stands today, as JSON types; None when the store has no record."""
        with self._rows.transaction() as connection:
            found = self._rows.find(connection, person)
        if found is None:
            return None
        flags, until, bank = unpack(found.state)
        today = day(self._rows.clock())
        return {
            "principal": found.principal.hex(),
            "consents": {
                term: "until withdrawn" if end == NEVER else _date(end)
                for term, end in zip(PURPOSES, until, strict=True)
                if end > today
            },
            "flags": sorted(name for name, bit in FLAGS.items() if flags & bit),
            "open_banking": {"ends": _date(bank[0]), "authenticated": _date(bank[1]), "pulls_24h": bank[2]}
            if bank[0]
            else None,
            "last_event": found.last,
        }

    def receipt(self, person: str) -> list[dict[str, Any]]:
        """The receipts of all a person's signals, oldest first; none when the store has no record.

        Each names the first question whose snapshot was taken after the signal, once `note_round` told of it.
        """
        with self._rows.transaction() as connection:
            found = self._rows.find(connection, person)
            chain = [] if found is None else [row.sequence for row in self._rows.chain(connection, found.last)]
        return [self._receipt(sequence) for sequence in reversed(chain)]

    def full_records(self, person: str) -> list[dict[str, Any]]:
        """A person's consent records with every mandatory field, one for each template, as JSON types."""
        with self._rows.transaction() as connection:
            found = self._rows.find(connection, person)
            chain = [] if found is None else list(reversed(list(self._rows.chain(connection, found.last))))
            said = [(row, self._rows.said(connection, row.document).signal) for row in chain]
            digests = {signal.template: None for _, signal in said if isinstance(signal, ConsentSignal)}
            templates = {digest: self._rows.template(connection, digest) for digest in digests if digest is not None}
        records = []
        for digest, template in templates.items():
            about = [(row, signal) for row, signal in said if _concerns(signal, digest, template)]
            header = {
                "record_id": str(UUID(bytes=bytes(about[0][0].record))),
                "pii_principal_id": chain[0].principal.hex(),
            }
            records.append(template.full_record(header, [_event_json(row, signal) for row, signal in about]))
        return records

    def note_round(self, run: str, question: str, sequence: int) -> None:
        """A question was answered from the snapshot of that sequence; the same again changes nothing."""
        with self._rows.transaction() as connection:
            here = (tables.rounds.c.run == run) & (tables.rounds.c.question == question)
            if connection.execute(sa.select(tables.rounds.c.number).where(here)).first() is None:
                row = {"run": run, "question": question, "sequence": sequence, "noted_at": self._rows.seconds(None)}
                connection.execute(
                    sa.insert(tables.rounds).values(number=tables.top(connection, tables.rounds.c.number) + 1, **row)
                )

    def open_obligations(self, now: datetime | None = None) -> list[Obligation]:
        """What is still owed, the oldest first.

        `leave-out-of-rounds` ends with the first question whose snapshot was taken after the signal, `delete-rows` with
        the completed erasure, `tell-recipients` with `close_obligations`.
        """
        at = self._rows.seconds(now)
        with self._rows.transaction() as connection:
            reached = tables.top(connection, tables.rounds.c.sequence)
            still = ~_is_closed() & ~(
                (tables.obligations.c.duty == ROUNDS) & (tables.obligations.c.sequence <= reached)
            )
            rows = connection.execute(
                sa.select(tables.obligations).where(still).order_by(tables.obligations.c.sequence)
            ).all()
        return [Obligation(**row._mapping, overdue=row.house_by < at) for row in rows]

    def erasures(self) -> list[tuple[int, int]]:
        """Every erasure that was accepted, finished or not, oldest first: its event, and the second since 1970."""
        query = sa.select(tables.obligations.c.sequence, tables.obligations.c.opened_at)
        query = query.where(tables.obligations.c.duty == ROWS).order_by(tables.obligations.c.sequence)
        with self._rows.transaction() as connection:
            return [(row.sequence, row.opened_at) for row in connection.execute(query)]

    def close_obligations(self, duty: str, events: range, how: str) -> int:
        """Record that open obligations of these events were met, and how; how many there were."""
        within = (tables.obligations.c.sequence >= events.start) & (tables.obligations.c.sequence < events.stop)
        with self._rows.transaction() as connection:
            return self._close(connection, within & (tables.obligations.c.duty == duty), how)

    def _close(self, connection: sa.Connection, which: sa.ColumnElement[bool], how: str) -> int:
        open_ = sa.select(tables.obligations.c.sequence, tables.obligations.c.duty).where(which & ~_is_closed())
        rows = [row._asdict() for row in connection.execute(open_)]
        if rows:
            connection.execute(sa.insert(tables.closures).values(closed_at=self._rows.seconds(None), how=how), rows)
        return len(rows)

    def snapshot(self, cohort: Cohort) -> Snapshot:
        """Who may be counted for a cohort now. Made anew only when something was recorded or the day (UTC) changed."""
        return self._standings.snapshot(cohort)

    # --- checking -----------------------------------------------------------------------------------------------------

    def verify(self) -> int:
        """Recompute every link and every standing from the events; how many events there are.

        Raises:
            DataError: an event or a standing was altered or is missing.
        """
        with self._rows.transaction() as connection:
            top = tables.top(connection, tables.events.c.sequence)
            if connection.execute(sa.select(sa.func.count()).select_from(tables.events)).scalar_one() != top:
                raise self._rows.altered("an event is missing")
            standings = iter(connection.execute(sa.select(tables.standings).order_by(tables.standings.c.principal)))
            events = connection.execute(
                sa.select(tables.events).order_by(tables.events.c.principal, tables.events.c.sequence)
            )
            standing = next(standings, None)
            for _, rows in itertools.groupby(events, key=lambda row: bytes(row.principal)):
                last, state = self._replay(connection, rows)
                if state is None:
                    continue
                if standing is None or (standing.last, bytes(standing.state)) != (last, state):
                    raise self._rows.altered(f"the standing after event {last} is altered or missing")
                standing = next(standings, None)
            if standing is not None:
                raise self._rows.altered("a standing has no event")
        return top

    def _replay(self, connection: sa.Connection, rows: Iterator[Any]) -> tuple[int, bytes | None]:
        """A person's last event and the standing after it, None after an erasure; every link checked."""
        state: bytes | None = EMPTY
        last, before = 0, bytes(32)
        for row in rows:
            said = self._rows.said(connection, row.document)
            before = link(before, row, said.digest)
            if row.previous != last or bytes(row.link) != before or state is None:
                raise self._rows.altered(f"event {row.sequence} is altered")
            last, state = row.sequence, said.signal.apply(state, day_of(row.event_time))
            if said.completes:
                state = None
        return last, state

    # --- within a transaction -----------------------------------------------------------------------------------------

    def _suppress(self, connection: sa.Connection, tag: bytes, flags: int) -> None:
        here = tables.suppressions.c.tag == tag
        if connection.execute(sa.select(tables.suppressions.c.number).where(here)).first() is not None:
            connection.execute(sa.update(tables.suppressions).where(here).values(flags=flags))
        else:
            number = tables.top(connection, tables.suppressions.c.number) + 1
            connection.execute(sa.insert(tables.suppressions).values(number=number, tag=tag, flags=flags))

    def _receipt(self, sequence: int) -> dict[str, Any]:
        with self._rows.transaction() as connection:
            row = connection.execute(sa.select(tables.events).where(tables.events.c.sequence == sequence)).one()
            signal = self._rows.said(connection, row.document).signal
            query = (
                sa.select(tables.rounds)
                .where(tables.rounds.c.sequence >= sequence)
                .order_by(tables.rounds.c.number)
                .limit(1)
            )
            first = connection.execute(query).first()
        said = signal.model_dump(mode="json", exclude_none=True)
        return {
            "schema": RECEIPT_SCHEMA,
            "record_id": str(UUID(bytes=bytes(row.record))),
            "principal": bytes(row.principal).hex(),
            "sequence": sequence,
            "what": {name: value for name, value in said.items() if name != "template"},
            "said_at": time(row.event_time),
            "recorded_at": time(row.recorded_at),
            "first_round": None
            if first is None
            else {"run": first.run, "question": first.question, "noted_at": time(first.noted_at)},
            "statements": list(_STATEMENTS[signal.is_restrictive]),
        }


def _is_closed() -> sa.ColumnElement[bool]:
    same = (tables.closures.c.sequence == tables.obligations.c.sequence) & (
        tables.closures.c.duty == tables.obligations.c.duty
    )
    return sa.exists().where(same)


def _concerns(signal: AnySignal, digest: str, template: RecordTemplate) -> bool:
    """Whether a signal belongs to the consent record of a template."""
    if not isinstance(signal, ConsentSignal):
        return False
    if signal.template is not None:
        return signal.template == digest
    return any(covers(own, term) or covers(term, own) for own in template.purposes for term in signal.purposes)


def _event_json(row: Any, signal: AnySignal) -> dict[str, Any]:
    """An event in the standard's terms."""
    said = signal.model_dump(mode="json", exclude_none=True)
    event = {
        "event_time": time(row.event_time),
        "validity_duration": said["validity_duration"],
        "entity_id": said["entity_id"],
        "event_type": said["event_type"],
        "event_state": said["state"],
        "purposes": said["purposes"],
    }
    if row.personal is not None:
        event.update(json.loads(row.personal))
    return event


def _date(day: int) -> str:
    return date.fromordinal(date(1970, 1, 1).toordinal() + day).isoformat()


def _utc_now() -> datetime:
    return datetime.now(UTC)
