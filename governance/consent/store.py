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
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.exc import DatabaseError

from cohortium.governance.consent import tables
from cohortium.governance.consent.columns import STORED, Columns, keyed_tags, words
from cohortium.governance.consent.purposes import PURPOSES, covers
from cohortium.governance.consent.records import RecordTemplate
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
    consent_end,
    day_of,
    parse_signal,
    unpack,
)
from cohortium.governance.consent.snapshot import Cohort, Roll, Snapshot
from cohortium.privacy.randomness import OsBitSource, fresh_key
from cohortium.study.canonical import canonical_bytes, digest_bytes
from cohortium.study.errors import DataError, Defect, RefusedError

__all__ = ["BackDatedError", "ConsentStore", "Entry", "Obligation", "Recorded", "Rejected"]

SCHEMA = "cohortium.consent/1"
RECEIPT_SCHEMA = "cohortium.consent-receipt/1"

TOLERANCE = 300
"""Seconds by which clocks may differ."""

ROUNDS, RECIPIENTS, ROWS = "leave-out-of-rounds", "tell-recipients", "delete-rows"
_HOUSE = {ROUNDS: timedelta(hours=24), RECIPIENTS: timedelta(days=7), ROWS: timedelta(days=7)}
_ERASED = FLAGS["erasure"]
_READ, _LOADED, _CACHE_KIB = 5_000, 200_000, 256 * 1024
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_COMPLETED = ErasureSignal(state="completed")


class BackDatedError(DataError):
    """An event that claims a time before what was recorded later, or in the future."""


@dataclass(frozen=True)
class Entry:
    """One thing that one person said.

    Args:
        person: the customer's id.
        signal: what was said.
        event_time: when, in seconds since 1970 (UTC).
        personal: what only this person's event has, such as `evidence_hash`; kept as JSON.
        record: id of the record, a UUID of version 4; made when left out.
    """

    person: str
    signal: AnySignal
    event_time: int
    personal: Mapping[str, str] | None = None
    record: UUID | None = None


@dataclass(frozen=True)
class Recorded:
    """An entry that stands in the store: as event `sequence`, `repeated` when it stood there before."""

    sequence: int
    repeated: bool = False


@dataclass(frozen=True)
class Rejected:
    """An entry that was not recorded: field and reason, without any value."""

    field: str
    reason: str


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


class _Said(NamedTuple):
    """A signal as it is stored."""

    number: int
    digest: str
    signal: AnySignal
    restrictive: bool
    fields: int

    @property
    def completes(self) -> bool:
        """Whether it ends an erasure."""
        return isinstance(self.signal, ErasureSignal) and self.signal.state == "completed"


class _Event(NamedTuple):
    """A row of events."""

    sequence: int
    record: bytes
    principal: bytes
    document: int
    event_time: int
    recorded_at: int
    personal: bytes | None
    previous: int
    link: bytes


@dataclass
class _Person:
    """A person as one transaction sees them."""

    number: int
    lookup: bytes
    principal: bytes
    last: int = 0
    latest: int = 0
    state: bytes = EMPTY
    link: bytes = bytes(32)
    key: bytes | None = None
    is_new: bool = False
    carried: tuple[FlagSignal, ...] = ()
    added: list[_Event] = field(default_factory=list)

    def row(self) -> tuple[Any, ...]:
        """Its row of standings."""
        return (self.number, self.lookup, self.principal, self.last, self.latest, self.state)


class ConsentStore:
    """One institution's consent store.

    Args:
        store: from `privacy.ledger.open_store`.
        now: the time (UTC); a seam for tests of clocks.

    Raises:
        DataError: the database holds something else, or another version.
    """

    def __init__(self, store: sa.Engine, now: Callable[[], datetime] | None = None) -> None:
        self._store = store
        self._clock = now if now is not None else _utc_now
        self._lock = threading.RLock()
        self._columns: Columns | None = None
        self._suppressed: tuple[NDArray[np.uint64], NDArray[np.uint32]] = (words(b""), np.zeros(0, dtype=np.uint32))
        self._root = ""
        self._snapshots: dict[Cohort, Snapshot] = {}
        self._rolls: list[Roll] = []
        self._signals: dict[int, _Said] = {}
        self._numbers: dict[str, int] = {}
        self._templates: dict[str, RecordTemplate] = {}
        with self._transaction() as connection:
            self._open(connection)
            secrets = {row.name: bytes(row.key) for row in connection.execute(sa.select(tables.secrets))}
        self._lookup_key, self._suppression_key = secrets["lookup"], secrets["suppression"]

    def close(self) -> None:
        """Close the store's connections; it must not be used afterwards."""
        self._store.dispose()

    @property
    def sequence(self) -> int:
        """The last event's number, 0 when there is none."""
        with self._transaction() as connection:
            return tables.top(connection, tables.events.c.sequence)

    # --- what people say ----------------------------------------------------------------------------------------------

    def add_template(self, template: RecordTemplate) -> str:
        """Store a record template, to which consents refer; its digest. The same again changes nothing."""
        with self._transaction() as connection:
            self._document(connection, "template", template.digest, template.to_bytes)
        return template.digest

    def record(self, entry: Entry) -> dict[str, Any]:
        """Add what one person said, durably, and return its receipt.

        Raises:
            BackDatedError: it claims the future, or a time before something later that was recorded.
            DataError: no such template, or not an id.
        """
        with self._transaction() as connection:
            (done,) = self._add(connection, [entry])
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
        with self._transaction() as connection:
            done = self._add(connection, entries)
            if source is not None and progress is not None:
                row = {"digest": source, "progress": progress(done)}
                connection.execute(sa.delete(tables.imports).where(tables.imports.c.digest == source))
                connection.execute(sa.insert(tables.imports).values(**row))
        return done

    def progress(self, source: str) -> bytes | None:
        """How far an import of that digest came."""
        with self._transaction() as connection:
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
        return self.record(Entry(person, signal, self._seconds(at)))

    def object_(
        self, person: str, kind: FlagKind = "marketing-objection", at: datetime | None = None, cleared: bool = False
    ) -> dict[str, Any]:
        """Object to direct marketing or legitimate interests, opt out of sharing, or take it back; its receipt."""
        if not FLAGS[kind] & OBJECTIONS:
            raise DataError("is a permission, not an objection", place=kind, fix="record it as a signal")
        signal = FlagSignal(kind=kind, state="cleared" if cleared else "set")
        return self.record(Entry(person, signal, self._seconds(at)))

    def opt_out(self, person: str, kind: FlagKind = "sharing-opt-out", at: datetime | None = None) -> dict[str, Any]:
        """Opt out of sharing, of use by affiliates, or by Global Privacy Control; its receipt."""
        return self.object_(person, kind, at)

    def erase(self, person: str, at: datetime | None = None) -> dict[str, Any]:
        """Accept an erasure: from now on the person is left out of everything; its receipt. See `complete_erasure`."""
        return self.record(Entry(person, ErasureSignal(state="accepted"), self._seconds(at)))

    def complete_erasure(self, person: str) -> dict[str, Any]:
        """The person's rows are deleted: destroy key, hash and standing, keep what was objected to; the last receipt.

        Afterwards nothing in the store leads from the id to the events, or from these to anybody.

        Raises:
            RefusedError: no erasure of this person was accepted.
        """
        with self._transaction() as connection:
            found = self._find(connection, person)
            if found is None or not unpack(found.state)[0] & _ERASED:
                raise RefusedError("no erasure of this person was accepted", fix="accept it first: consent erase")
            (done,) = self._add(connection, [Entry(person, _COMPLETED, self._seconds(None))])
            if isinstance(done, Rejected):
                raise Defect("consent: an erasure could not be completed")
            connection.execute(sa.insert(tables.erasures).values(sequence=done.sequence))
            flags = unpack(found.state)[0] & (OBJECTIONS | _ERASED)
            self._suppress(connection, keyed_tags(self._suppression_key, [person]), flags)
            connection.execute(sa.delete(tables.standings).where(tables.standings.c.person == found.number))
            connection.execute(sa.delete(tables.keys).where(tables.keys.c.person == found.number))
            chain = {row.sequence for row in self._chain(connection, done.sequence)}
            self._close(
                connection,
                (tables.obligations.c.sequence.in_(chain)) & (tables.obligations.c.duty == ROWS),
                "rows deleted",
            )
        receipt = self._receipt(done.sequence)
        self._scrub()
        return receipt

    # --- what was said ------------------------------------------------------------------------------------------------

    def principal(self, person: str) -> str | None:
        """The person's tag in records and logs, as hexadecimal digits; None when the store has no record."""
        with self._transaction() as connection:
            found = self._find(connection, person)
        return None if found is None else found.principal.hex()

    def standing(self, person: str) -> dict[str, Any] | None:
        """Where a person stands today, as JSON types; None when the store has no record."""
        with self._transaction() as connection:
            found = self._find(connection, person)
        if found is None:
            return None
        flags, until, bank = unpack(found.state)
        today = _day(self._clock())
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
        with self._transaction() as connection:
            found = self._find(connection, person)
            chain = [] if found is None else [row.sequence for row in self._chain(connection, found.last)]
        return [self._receipt(sequence) for sequence in reversed(chain)]

    def full_records(self, person: str) -> list[dict[str, Any]]:
        """A person's consent records with every mandatory field, one for each template, as JSON types."""
        with self._transaction() as connection:
            found = self._find(connection, person)
            chain = [] if found is None else list(reversed(list(self._chain(connection, found.last))))
            said = [(row, self._said(connection, row.document).signal) for row in chain]
            digests = {signal.template: None for _, signal in said if isinstance(signal, ConsentSignal)}
            templates = {digest: self._template(connection, digest) for digest in digests if digest is not None}
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
        with self._transaction() as connection:
            here = (tables.rounds.c.run == run) & (tables.rounds.c.question == question)
            if connection.execute(sa.select(tables.rounds.c.number).where(here)).first() is None:
                row = {"run": run, "question": question, "sequence": sequence, "noted_at": self._seconds(None)}
                connection.execute(
                    sa.insert(tables.rounds).values(number=tables.top(connection, tables.rounds.c.number) + 1, **row)
                )

    def open_obligations(self, now: datetime | None = None) -> list[Obligation]:
        """What is still owed, the oldest first.

        `leave-out-of-rounds` ends with the first question whose snapshot was taken after the signal, `delete-rows` with
        the completed erasure, `tell-recipients` with `close_obligations`.
        """
        at = self._seconds(now)
        with self._transaction() as connection:
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
        with self._transaction() as connection:
            return [(row.sequence, row.opened_at) for row in connection.execute(query)]

    def close_obligations(self, duty: str, events: range, how: str) -> int:
        """Record that open obligations of these events were met, and how; how many there were."""
        within = (tables.obligations.c.sequence >= events.start) & (tables.obligations.c.sequence < events.stop)
        with self._transaction() as connection:
            return self._close(connection, within & (tables.obligations.c.duty == duty), how)

    def _close(self, connection: sa.Connection, which: sa.ColumnElement[bool], how: str) -> int:
        open_ = sa.select(tables.obligations.c.sequence, tables.obligations.c.duty).where(which & ~_is_closed())
        rows = [row._asdict() for row in connection.execute(open_)]
        if rows:
            connection.execute(sa.insert(tables.closures).values(closed_at=self._seconds(None), how=how), rows)
        return len(rows)

    # --- snapshots ----------------------------------------------------------------------------------------------------

    def snapshot(self, cohort: Cohort) -> Snapshot:
        """Who may be counted for a cohort now. Made anew only when something was recorded or the day (UTC) changed."""
        with self._lock:
            day = _day(self._clock())
            if self._columns is None:
                self._columns = self._load()
            self._advance(self._columns)
            made = self._snapshots.get(cohort)
            if made is None or (made.sequence, made.day) != (self._columns.sequence, day):
                made = Snapshot(cohort, day, self._columns, self._suppressed[1], self._root, self._roll)
                self._snapshots[cohort] = made
            return made

    def _load(self) -> Columns:
        """Everybody's standing, read in pieces, so that no withdrawal waits for it; `_advance` makes it consistent."""
        table, number = tables.standings, tables.standings.c.person
        with self._transaction() as connection:
            sequence, last = tables.top(connection, tables.events.c.sequence), tables.top(connection, number)
            people = connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
        stored, filled = np.zeros(people, dtype=STORED), 0
        for start in range(0, last, _LOADED):
            within = (number > start) & (number <= min(start + _LOADED, last))
            with self._transaction() as connection:
                piece = np.frombuffer(_joined(connection, sa.select(tables.packed()).where(within)), dtype=STORED)
            piece = piece[: people - filled]  # more have come only since, and `_advance` brings them
            stored[filled : filled + len(piece)] = piece
            filled += len(piece)
        return Columns(stored[:filled], sequence)

    def _advance(self, columns: Columns) -> None:
        with self._transaction() as connection:
            sequence = tables.top(connection, tables.events.c.sequence)
            if sequence == columns.sequence and self._root:
                return
            rows = _joined(connection, sa.select(tables.packed()).where(tables.standings.c.last > columns.sequence))
            gone = connection.execute(
                sa.select(tables.events.c.principal)
                .join(tables.erasures, tables.erasures.c.sequence == tables.events.c.sequence)
                .where(tables.erasures.c.sequence > columns.sequence)
            ).all()
            if gone or not self._root:
                self._suppressed = _suppression_columns(connection)
        changed = np.frombuffer(rows, dtype=STORED)
        columns.advance(changed, words(b"".join([row[0] for row in gone])), sequence)
        tags, flags = self._suppressed
        listed = sha256(tags.astype(">u8").tobytes() + flags.astype(">u4").tobytes()).digest()
        self._root = "sha256:" + sha256(b"cohortium.consent-snapshot/1\n" + columns.root + listed).hexdigest()

    def _roll(self, ids: NDArray[np.generic]) -> Roll:
        with self._lock:
            if self._columns is None:
                raise Defect("consent: a snapshot without standings")
            self._rolls = [roll for roll in self._rolls if roll.of() is not None][-4:]
            roll = next((roll for roll in self._rolls if roll.of() is ids), None)
            if roll is None:
                roll = Roll(ids, (self._lookup_key, self._suppression_key))
                self._rolls.append(roll)
            roll.resolve(ids, self._columns, self._suppressed[0])
            return roll

    # --- checking -----------------------------------------------------------------------------------------------------

    def verify(self) -> int:
        """Recompute every link and every standing from the events; how many events there are.

        Raises:
            DataError: an event or a standing was altered or is missing.
        """
        with self._transaction() as connection:
            top = tables.top(connection, tables.events.c.sequence)
            if connection.execute(sa.select(sa.func.count()).select_from(tables.events)).scalar_one() != top:
                raise self._altered("an event is missing")
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
                    raise self._altered(f"the standing after event {last} is altered or missing")
                standing = next(standings, None)
            if standing is not None:
                raise self._altered("a standing has no event")
        return top

    def _replay(self, connection: sa.Connection, rows: Iterator[Any]) -> tuple[int, bytes | None]:
        """A person's last event and the standing after it, None after an erasure; every link checked."""
        state: bytes | None = EMPTY
        last, link = 0, bytes(32)
        for row in rows:
            said = self._said(connection, row.document)
            link = _link(link, row, said.digest)
            if row.previous != last or bytes(row.link) != link or state is None:
                raise self._altered(f"event {row.sequence} is altered")
            last, state = row.sequence, said.signal.apply(state, day_of(row.event_time))
            if said.completes:
                state = None
        return last, state

    # --- within a transaction -----------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """All or nothing. What the database says is not passed on: it could quote a row."""
        failed = False
        try:
            with self._store.begin() as connection:
                yield connection
        except DatabaseError:
            failed = True
        except BaseException:
            self._forget()
            raise
        if failed:
            self._forget()
            raise DataError(
                "cannot be read or written; nothing was recorded",
                place=self._place,
                fix="check that the file is whole and writable, that no other process holds it, and free disk space",
            )

    def _forget(self) -> None:
        """What was read in a transaction may not have come to be."""
        for kept in (self._numbers, self._signals, self._templates):
            kept.clear()

    @property
    def _place(self) -> str:
        return str(self._store.url.database)

    def _open(self, connection: sa.Connection) -> None:
        found = set(sa.inspect(connection).get_table_names())
        if not found:
            tables.metadata.create_all(connection)
            connection.execute(sa.insert(tables.header).values(schema=SCHEMA))
            for name in ("lookup", "suppression"):
                connection.execute(sa.insert(tables.secrets).values(name=name, key=fresh_key()))
        elif not set(tables.metadata.tables) <= found or connection.execute(
            sa.select(tables.header.c.schema)
        ).all() != [(SCHEMA,)]:
            raise DataError("is no consent store of this version", place=self._place, fix="point at consent.sqlite")

    def _add(self, connection: sa.Connection, entries: Sequence[Entry]) -> list[Recorded | Rejected]:
        """Append what may be appended; what became of each entry."""
        now = self._seconds(None)
        done: list[Recorded | Rejected] = [Rejected("person", "is not an id")] * len(entries)
        fit = [place for place, entry in enumerate(entries) if _is_id(entry.person)]
        people = self._people(connection, [entries[place].person for place in fit])
        told = dict(zip(fit, people, strict=True))
        batch = _Batch(tables.top(connection, tables.events.c.sequence), now, _record_ids(len(fit)))
        restrictive = {id(entry.signal): entry.signal.is_restrictive for entry in entries}
        fit.sort(key=lambda at: (told[at].principal, entries[at].event_time, restrictive[id(entries[at].signal)], at))
        for place in fit:
            done[place] = self._take(connection, batch, told[place], entries[place])
        self._write(connection, batch)
        return done

    def _take(self, connection: sa.Connection, batch: _Batch, person: _Person, entry: Entry) -> Recorded | Rejected:
        checked = batch.checked.get(id(entry.signal))
        if checked is None:
            checked = batch.checked[id(entry.signal)] = self._checked(connection, entry.signal)
        if isinstance(checked, Rejected):
            return checked
        personal = self._personal(connection, person, entry.personal)
        if isinstance(personal, Rejected):
            return personal
        stands = self._stands(connection, batch, person, entry, checked, personal)
        if stands is not None:
            return stands
        for flag in person.carried:
            carried = self._checked(connection, flag)
            if isinstance(carried, _Said):
                batch.append(person, carried, entry.event_time, None, *_record_ids(1))
        person.carried = ()
        record = entry.record.bytes if entry.record is not None else batch.records.pop()
        return batch.append(person, checked, entry.event_time, personal, record)

    def _write(self, connection: sa.Connection, batch: _Batch) -> None:
        if not batch.events:
            return
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(f"PRAGMA cache_size={-_CACHE_KIB}")
        new = [person for person in batch.touched.values() if person.is_new]
        old = [person for person in batch.touched.values() if not person.is_new]
        tables.insert_all(connection, tables.events, list(batch.events))
        tables.insert_all(connection, tables.obligations, batch.obligations)
        tables.insert_all(connection, tables.keys, [(each.number, each.key) for each in new])
        tables.insert_all(connection, tables.standings, [each.row() for each in new])
        if old:
            here = sa.update(tables.standings).where(tables.standings.c.person == sa.bindparam("of"))
            values: dict[str, Any] = {name: sa.bindparam(name) for name in ("last", "latest", "state")}
            rows = [{"of": each.number, "last": each.last, "latest": each.latest, "state": each.state} for each in old]
            connection.execute(here.values(**values), rows)

    def _stands(
        self,
        connection: sa.Connection,
        batch: _Batch,
        person: _Person,
        entry: Entry,
        said: _Said,
        personal: bytes | None,
    ) -> Recorded | Rejected | None:
        """What keeps an entry from being appended: the future, itself recorded before, something later on the same."""
        if entry.event_time > batch.now + TOLERANCE:
            return Rejected("time", "is in the future")
        if entry.event_time < 0:
            return Rejected("time", "is before 1970")
        if entry.event_time > person.latest or not person.last:
            return None
        stored = person.added[0].previous if person.added else person.last
        history = [*person.added, *self._chain(connection, stored)]
        for row in history:
            if (row.document, row.event_time, row.personal) == (said.number, entry.event_time, personal):
                return Recorded(row.sequence, repeated=True)
        allowed = entry.event_time + (TOLERANCE if said.restrictive else 0)
        for row in history:
            if row.event_time > allowed and self._said(connection, row.document).fields & said.fields:
                return Rejected("time", "is before something on the same matter that was recorded as later")
        return None

    def _checked(self, connection: sa.Connection, signal: AnySignal) -> _Said | Rejected:
        """The signal's document, if its template is there and foresees its purposes."""
        if isinstance(signal, ConsentSignal) and (signal.template is not None or not signal.is_restrictive):
            if signal.template is None:
                return Rejected("template", "a consent names no record template")
            try:
                template = self._template(connection, signal.template)
            except DataError:
                return Rejected("template", "is not in the store")
            if not all(any(covers(own, term) for own in template.purposes) for term in signal.purposes):
                return Rejected("purposes", "are not all among those of the record template")
        number = self._document(connection, signal.kind, signal.digest, signal.to_bytes)
        return self._said(connection, number)

    def _personal(
        self, connection: sa.Connection, person: _Person, personal: Mapping[str, str] | None
    ) -> bytes | Rejected | None:
        """What only this event has, the open-banking permission's id as a tag under the person's own key."""
        if not personal:
            return None
        told = dict(personal)
        if set(told) - {"evidence_hash", "permission"}:
            return Rejected("personal", "has a field that is not foreseen")
        if "evidence_hash" in told and not _DIGEST.fullmatch(told["evidence_hash"]):
            return Rejected("evidence_hash", "is not sha256: and 64 hexadecimal digits")
        if "permission" in told:
            if person.key is None:
                query = sa.select(tables.keys.c.key).where(tables.keys.c.person == person.number)
                person.key = bytes(connection.execute(query).scalar_one())
            told["permission"] = keyed_tags(person.key, [told["permission"]]).hex()
        return canonical_bytes(told)

    def _people(self, connection: sa.Connection, ids: Sequence[str]) -> list[_Person]:
        """The person behind each id; new ones are not stored yet."""
        tags = keyed_tags(self._lookup_key, ids)
        lookups = _cut(tags, 16)
        people = self._known(connection, list(dict.fromkeys(lookups)))
        keys = _cut(OsBitSource().words(4 * len(lookups)).tobytes(), 32)
        number = max(tables.top(connection, tables.standings.c.person), tables.top(connection, tables.keys.c.person))
        new: dict[bytes, str] = {}
        for lookup, person in zip(lookups, ids, strict=True):
            if lookup not in people:
                number += 1
                key = keys.pop()
                people[lookup] = _Person(number, lookup, keyed_tags(key, [person]), key=key, is_new=True)
                new[lookup] = person
        self._carry_over(connection, people, new)
        return [people[lookup] for lookup in lookups]

    def _carry_over(self, connection: sa.Connection, people: dict[bytes, _Person], new: dict[bytes, str]) -> None:
        """Objections of people who come back after an erasure."""
        if not new or not tables.top(connection, tables.suppressions.c.number):
            return
        tags = keyed_tags(self._suppression_key, list(new.values()))
        by_tag = {tags[16 * place : 16 * place + 16]: lookup for place, lookup in enumerate(new)}
        for part in _parts(list(by_tag)):
            query = sa.select(tables.suppressions.c.tag, tables.suppressions.c.flags).where(
                tables.suppressions.c.tag.in_(part)
            )
            for tag, flags in connection.execute(query):
                people[by_tag[bytes(tag)]].carried = tuple(
                    FlagSignal.model_validate({"kind": kind, "state": "set"})
                    for kind, bit in FLAGS.items()
                    if flags & bit & OBJECTIONS
                )

    def _known(self, connection: sa.Connection, lookups: Sequence[bytes]) -> dict[bytes, _Person]:
        """The people of these keyed hashes of whom there is a record."""
        known = {}
        joined = sa.select(tables.standings, tables.events.c.link).join(
            tables.events, tables.events.c.sequence == tables.standings.c.last
        )
        for part in _parts(lookups):
            for row in connection.execute(joined.where(tables.standings.c.lookup.in_(part))):
                known[row.lookup] = _Person(*row)
        return known

    def _find(self, connection: sa.Connection, person: str) -> _Person | None:
        return next(iter(self._known(connection, [keyed_tags(self._lookup_key, [person])]).values()), None)

    def _chain(self, connection: sa.Connection, last: int) -> Iterator[Any]:
        """A person's events, newest first."""
        while last:
            row = connection.execute(sa.select(tables.events).where(tables.events.c.sequence == last)).first()
            if row is None:
                raise self._altered(f"event {last} is missing")
            yield row
            last = row.previous

    def _document(self, connection: sa.Connection, kind: str, digest: str, body: Callable[[], bytes]) -> int:
        """The number under which a document is stored, stored now if need be."""
        if digest not in self._numbers:
            query = sa.select(tables.documents.c.number).where(tables.documents.c.digest == digest)
            number = connection.execute(query).scalar_one_or_none()
            if number is None:
                number = tables.top(connection, tables.documents.c.number) + 1
                row = {"number": number, "digest": digest, "kind": kind, "body": body()}
                connection.execute(sa.insert(tables.documents).values(**row))
            self._numbers[digest] = number
        return self._numbers[digest]

    def _said(self, connection: sa.Connection, number: int) -> _Said:
        """The signal that is stored under a number."""
        if number not in self._signals:
            query = sa.select(tables.documents.c.body).where(tables.documents.c.number == number)
            body = connection.execute(query).scalar_one_or_none()
            if body is None:
                raise self._altered("a signal is missing")
            signal = parse_signal(json.loads(body))
            self._signals[number] = _Said(number, digest_bytes(body), signal, signal.is_restrictive, signal.fields)
        return self._signals[number]

    def _template(self, connection: sa.Connection, digest: str) -> RecordTemplate:
        if digest not in self._templates:
            query = sa.select(tables.documents.c.body).where(
                tables.documents.c.digest == digest, tables.documents.c.kind == "template"
            )
            body = connection.execute(query).scalar_one_or_none()
            if body is None:
                raise DataError("no such record template", place=digest, fix="add the template first")
            self._templates[digest] = RecordTemplate.model_validate_json(body)
        return self._templates[digest]

    def _suppress(self, connection: sa.Connection, tag: bytes, flags: int) -> None:
        here = tables.suppressions.c.tag == tag
        if connection.execute(sa.select(tables.suppressions.c.number).where(here)).first() is not None:
            connection.execute(sa.update(tables.suppressions).where(here).values(flags=flags))
        else:
            number = tables.top(connection, tables.suppressions.c.number) + 1
            connection.execute(sa.insert(tables.suppressions).values(number=number, tag=tag, flags=flags))

    def _receipt(self, sequence: int) -> dict[str, Any]:
        with self._transaction() as connection:
            row = connection.execute(sa.select(tables.events).where(tables.events.c.sequence == sequence)).one()
            signal = self._said(connection, row.document).signal
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
            "said_at": _time(row.event_time),
            "recorded_at": _time(row.recorded_at),
            "first_round": None
            if first is None
            else {"run": first.run, "question": first.question, "noted_at": _time(first.noted_at)},
            "statements": list(_STATEMENTS[signal.is_restrictive]),
        }

    def _scrub(self) -> None:
        """Cut off the write-ahead log, in which deleted pages would stay; while others read, they stay a while."""
        if self._store.dialect.name == "sqlite":
            connection = self._store.raw_connection()  # not within a transaction
            try:
                connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                connection.close()

    def _seconds(self, at: datetime | None) -> int:
        """Seconds since 1970; now when left out."""
        if at is not None and at.tzinfo is None:
            raise DataError("has no time zone", place="time", fix="write it with one, such as +00:00")
        return int((self._clock() if at is None else at).timestamp())

    def _altered(self, message: str) -> DataError:
        return DataError(message, place=self._place, fix="put back the newest copy of the consent store")


@dataclass
class _Batch:
    """What a transaction is about to write."""

    sequence: int
    now: int
    records: list[bytes]
    events: list[_Event] = field(default_factory=list)
    obligations: list[tuple[Any, ...]] = field(default_factory=list)
    touched: dict[int, _Person] = field(default_factory=dict)
    checked: dict[int, _Said | Rejected] = field(default_factory=dict)
    _states: dict[tuple[int, bytes, int], bytes] = field(default_factory=dict)

    def append(self, person: _Person, said: _Said, time: int, personal: bytes | None, record: bytes) -> Recorded:
        """One more event of a person, with what is owed for it."""
        self.sequence += 1
        row = _Event(self.sequence, record, person.principal, said.number, time, self.now, personal, person.last, b"")
        person.link = _link(person.link, row, said.digest)
        person.added.append(row._replace(link=person.link))
        self.events.append(person.added[-1])
        state = self._applied(said, person.state, time)
        if said.restrictive and not said.completes and state != person.state:
            duties = (ROUNDS, RECIPIENTS, ROWS) if isinstance(said.signal, ErasureSignal) else (ROUNDS, RECIPIENTS)
            self.obligations.extend(_owed(self.sequence, duty, self.now) for duty in duties)
        person.state, person.last, person.latest = state, self.sequence, max(person.latest, time)
        self.touched[person.number] = person
        return Recorded(self.sequence)

    def _applied(self, said: _Said, state: bytes, time: int) -> bytes:
        """The standing after a signal; most people of a batch share it."""
        key = (said.number, state, time // 86400)
        if key not in self._states:
            self._states[key] = said.signal.apply(state, day_of(time))
        return self._states[key]


def _link(before: bytes, row: Any, digest: str) -> bytes:
    """An event's link: SHA-256 over the link before it and everything that the event says."""
    numbers = (row.sequence, row.event_time, row.recorded_at)
    said = sha256(bytes(row.personal)).digest() if row.personal is not None else bytes(32)
    whole = b"".join(
        (before, bytes(row.record), bytes(row.principal), digest.encode(), *(n.to_bytes(8) for n in numbers))
    )
    return sha256(whole + said).digest()


def _is_closed() -> sa.ColumnElement[bool]:
    same = (tables.closures.c.sequence == tables.obligations.c.sequence) & (
        tables.closures.c.duty == tables.obligations.c.duty
    )
    return sa.exists().where(same)


def _joined(connection: sa.Connection, query: sa.Select[Any]) -> bytes:
    """The bytes of a query's only column, joined; by the driver's own cursor, at half the time."""
    cursor = connection.execute(query).cursor
    return b"" if cursor is None else b"".join([value for (value,) in cursor.fetchall()])


def _parts(values: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (values[at : at + _READ] for at in range(0, len(values), _READ))


def _suppression_columns(connection: sa.Connection) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    query = sa.select(tables.suppressions.c.tag, tables.suppressions.c.flags).order_by(tables.suppressions.c.number)
    rows = connection.execute(query).all()
    return words(b"".join([bytes(row.tag) for row in rows])), np.array([row.flags for row in rows], dtype=np.uint32)


def _owed(sequence: int, duty: str, now: int) -> tuple[Any, ...]:
    by_law = None if duty == ROUNDS else _month_later(now)
    house = now + int(_HOUSE[duty].total_seconds())
    return (sequence, duty, now, house, by_law)


def _month_later(now: int) -> int:
    return (consent_end(day_of(now), "P1M")) * 86400 + now % 86400


def _is_id(person: object) -> bool:
    """Whether it can be a customer's id: text of 1 to 256 characters, no spaces around it, none that do not print."""
    if type(person) is not str or not 0 < len(person) <= 256 or person != person.strip():
        return False
    return person.isprintable()


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
        "event_time": _time(row.event_time),
        "validity_duration": said["validity_duration"],
        "entity_id": said["entity_id"],
        "event_type": said["event_type"],
        "event_state": said["state"],
        "purposes": said["purposes"],
    }
    if row.personal is not None:
        event.update(json.loads(row.personal))
    return event


def _record_ids(count: int) -> list[bytes]:
    """So many fresh UUIDs of version 4, as bytes."""
    ids = np.frombuffer(bytearray(OsBitSource().words(2 * count).tobytes()), dtype=np.uint8).reshape(-1, 16)
    ids[:, 6] = ids[:, 6] & 0x0F | 0x40
    ids[:, 8] = ids[:, 8] & 0x3F | 0x80
    return _cut(ids.tobytes(), 16)


def _cut(whole: bytes, size: int) -> list[bytes]:
    return [whole[at : at + size] for at in range(0, len(whole), size)]


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _date(day: int) -> str:
    return date.fromordinal(date(1970, 1, 1).toordinal() + day).isoformat()


def _day(at: datetime) -> int:
    return int(at.timestamp()) // 86400


def _utc_now() -> datetime:
    return datetime.now(UTC)
