"""How what people say is appended to a consent store: checked, linked to what they said before, and written at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import numpy as np
import sqlalchemy as sa

from cohortium.governance.consent import tables
from cohortium.governance.consent.columns import keyed_tags
from cohortium.governance.consent.purposes import covers
from cohortium.governance.consent.rows import ConsentRows, Event, Person, Said, cut, link, parts
from cohortium.governance.consent.signals import (
    FLAGS,
    OBJECTIONS,
    AnySignal,
    ConsentSignal,
    ErasureSignal,
    FlagSignal,
    consent_end,
    day_of,
)
from cohortium.privacy.randomness import OsBitSource
from cohortium.privacy.store_forms import insert_all
from cohortium.study.canonical import canonical_bytes
from cohortium.study.errors import DataError

__all__ = ["RECIPIENTS", "ROUNDS", "ROWS", "TOLERANCE", "Appender", "Entry", "Recorded", "Rejected"]

TOLERANCE = 300
"""Seconds by which clocks may differ."""

ROUNDS, RECIPIENTS, ROWS = "leave-out-of-rounds", "tell-recipients", "delete-rows"
_HOUSE = {ROUNDS: timedelta(hours=24), RECIPIENTS: timedelta(days=7), ROWS: timedelta(days=7)}
_CACHE_KIB = 256 * 1024
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


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


class Appender:
    """Appends entries to the rows of a consent store, within a transaction of theirs."""

    def __init__(self, rows: ConsentRows) -> None:
        self._rows = rows

    def add(self, connection: sa.Connection, entries: Sequence[Entry]) -> list[Recorded | Rejected]:
        """Append what may be appended; what became of each entry."""
        now = self._rows.seconds(None)
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

    def _take(self, connection: sa.Connection, batch: _Batch, person: Person, entry: Entry) -> Recorded | Rejected:
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
            if isinstance(carried, Said):
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
        insert_all(connection, tables.events, list(batch.events))
        insert_all(connection, tables.obligations, batch.obligations)
        insert_all(connection, tables.keys, [(each.number, each.key) for each in new])
        insert_all(connection, tables.standings, [each.row() for each in new])
        if old:
            here = sa.update(tables.standings).where(tables.standings.c.person == sa.bindparam("of"))
            values: dict[str, Any] = {name: sa.bindparam(name) for name in ("last", "latest", "state")}
            rows = [{"of": each.number, "last": each.last, "latest": each.latest, "state": each.state} for each in old]
            connection.execute(here.values(**values), rows)

    def _stands(
        self,
        connection: sa.Connection,
        batch: _Batch,
        person: Person,
        entry: Entry,
        said: Said,
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
        history = [*person.added, *self._rows.chain(connection, stored)]
        for row in history:
            if (row.document, row.event_time, row.personal) == (said.number, entry.event_time, personal):
                return Recorded(row.sequence, repeated=True)
        allowed = entry.event_time + (TOLERANCE if said.restrictive else 0)
        for row in history:
            if row.event_time > allowed and self._rows.said(connection, row.document).fields & said.fields:
                return Rejected("time", "is before something on the same matter that was recorded as later")
        return None

    def _checked(self, connection: sa.Connection, signal: AnySignal) -> Said | Rejected:
        """The signal's document, if its template is there and foresees its purposes."""
        if isinstance(signal, ConsentSignal) and (signal.template is not None or not signal.is_restrictive):
            if signal.template is None:
                return Rejected("template", "a consent names no record template")
            try:
                template = self._rows.template(connection, signal.template)
            except DataError:
                return Rejected("template", "is not in the store")
            if not all(any(covers(own, term) for own in template.purposes) for term in signal.purposes):
                return Rejected("purposes", "are not all among those of the record template")
        number = self._rows.document(connection, signal.kind, signal.digest, signal.to_bytes)
        return self._rows.said(connection, number)

    def _personal(
        self, connection: sa.Connection, person: Person, personal: Mapping[str, str] | None
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

    def _people(self, connection: sa.Connection, ids: Sequence[str]) -> list[Person]:
        """The person behind each id; new ones are not stored yet."""
        tags = keyed_tags(self._rows.lookup_key, ids)
        lookups = cut(tags, 16)
        people = self._rows.known(connection, list(dict.fromkeys(lookups)))
        keys = cut(OsBitSource().words(4 * len(lookups)).tobytes(), 32)
        number = max(tables.top(connection, tables.standings.c.person), tables.top(connection, tables.keys.c.person))
        new: dict[bytes, str] = {}
        for lookup, person in zip(lookups, ids, strict=True):
            if lookup not in people:
                number += 1
                key = keys.pop()
                people[lookup] = Person(number, lookup, keyed_tags(key, [person]), key=key, is_new=True)
                new[lookup] = person
        self._carry_over(connection, people, new)
        return [people[lookup] for lookup in lookups]

    def _carry_over(self, connection: sa.Connection, people: dict[bytes, Person], new: dict[bytes, str]) -> None:
        """Objections of people who come back after an erasure."""
        if not new or not tables.top(connection, tables.suppressions.c.number):
            return
        tags = keyed_tags(self._rows.suppression_key, list(new.values()))
        by_tag = {tags[16 * place : 16 * place + 16]: lookup for place, lookup in enumerate(new)}
        for part in parts(list(by_tag)):
            query = sa.select(tables.suppressions.c.tag, tables.suppressions.c.flags).where(
                tables.suppressions.c.tag.in_(part)
            )
            for tag, flags in connection.execute(query):
                people[by_tag[bytes(tag)]].carried = tuple(
                    FlagSignal.model_validate({"kind": kind, "state": "set"})
                    for kind, bit in FLAGS.items()
                    if flags & bit & OBJECTIONS
                )


@dataclass
class _Batch:
    """What a transaction is about to write."""

    sequence: int
    now: int
    records: list[bytes]
    events: list[Event] = field(default_factory=list)
    obligations: list[tuple[Any, ...]] = field(default_factory=list)
    touched: dict[int, Person] = field(default_factory=dict)
    checked: dict[int, Said | Rejected] = field(default_factory=dict)
    _states: dict[tuple[int, bytes, int], bytes] = field(default_factory=dict)

    def append(self, person: Person, said: Said, time: int, personal: bytes | None, record: bytes) -> Recorded:
        """One more event of a person, with what is owed for it."""
        self.sequence += 1
        row = Event(self.sequence, record, person.principal, said.number, time, self.now, personal, person.last, b"")
        person.link = link(person.link, row, said.digest)
        person.added.append(row._replace(link=person.link))
        self.events.append(person.added[-1])
        state = self._applied(said, person.state, time)
        if said.restrictive and not said.completes and state != person.state:
            duties = (ROUNDS, RECIPIENTS, ROWS) if isinstance(said.signal, ErasureSignal) else (ROUNDS, RECIPIENTS)
            self.obligations.extend(_owed(self.sequence, duty, self.now) for duty in duties)
        person.state, person.last, person.latest = state, self.sequence, max(person.latest, time)
        self.touched[person.number] = person
        return Recorded(self.sequence)

    def _applied(self, said: Said, state: bytes, time: int) -> bytes:
        """The standing after a signal; most people of a batch share it."""
        key = (said.number, state, time // 86400)
        if key not in self._states:
            self._states[key] = said.signal.apply(state, day_of(time))
        return self._states[key]


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


def _record_ids(count: int) -> list[bytes]:
    """So many fresh UUIDs of version 4, as bytes."""
    ids = np.frombuffer(bytearray(OsBitSource().words(2 * count).tobytes()), dtype=np.uint8).reshape(-1, 16)
    ids[:, 6] = ids[:, 6] & 0x0F | 0x40
    ids[:, 8] = ids[:, 8] & 0x3F | 0x80
    return cut(ids.tobytes(), 16)
