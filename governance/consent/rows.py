"""The rows of a consent store: opened, read, and written down one kind at a time; what several parts of it share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError

from cohortium.governance.consent import tables
from cohortium.governance.consent.columns import keyed_tags
from cohortium.governance.consent.records import RecordTemplate
from cohortium.governance.consent.signals import EMPTY, AnySignal, ErasureSignal, FlagSignal, parse_signal
from cohortium.privacy.randomness import fresh_key
from cohortium.privacy.store_forms import Form, drop_leftovers, open_form
from cohortium.study.canonical import digest_bytes
from cohortium.study.errors import DataError

__all__ = ["ConsentRows", "Event", "Person", "Said", "cut", "day", "joined", "link", "parts", "time"]

_READ = 5_000
_FORM = Form("cohortium.consent/1", "consent store", tables.header, tables.metadata, "point at consent.sqlite")


class Said(NamedTuple):
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


class Event(NamedTuple):
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
class Person:
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
    added: list[Event] = field(default_factory=list)

    def row(self) -> tuple[Any, ...]:
        """Its row of standings."""
        return (self.number, self.lookup, self.principal, self.last, self.latest, self.state)


class ConsentRows:
    """The rows of one institution's consent store.

    Args:
        store: from `privacy.stores.open_store`.
        clock: the time (UTC).

    Raises:
        DataError: the database holds something else, or another version.
    """

    def __init__(self, store: sa.Engine, clock: Callable[[], datetime]) -> None:
        self._store = store
        self.clock = clock
        self._signals: dict[int, Said] = {}
        self._numbers: dict[str, int] = {}
        self._templates: dict[str, RecordTemplate] = {}
        with self.transaction() as connection:
            if open_form(connection, _FORM, self.place):
                for name in ("lookup", "suppression"):
                    connection.execute(sa.insert(tables.secrets).values(name=name, key=fresh_key()))
            secrets = {row.name: bytes(row.key) for row in connection.execute(sa.select(tables.secrets))}
        self.lookup_key, self.suppression_key = secrets["lookup"], secrets["suppression"]

    @property
    def place(self) -> str:
        """The store's, for messages."""
        return str(self._store.url.database)

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """All or nothing. What the database says is not passed on: it could quote a row."""
        failed = False
        try:
            with self._store.begin() as connection:
                yield connection
        except DatabaseError:
            failed = True
        except BaseException:
            self.forget()
            raise
        if failed:
            self.forget()
            raise DataError(
                "cannot be read or written; nothing was recorded",
                place=self.place,
                fix="check that the file is whole and writable, that no other process holds it, and free disk space",
            )

    def forget(self) -> None:
        """What was read in a transaction may not have come to be."""
        for kept in (self._numbers, self._signals, self._templates):
            kept.clear()

    def known(self, connection: sa.Connection, lookups: Sequence[bytes]) -> dict[bytes, Person]:
        """The people of these keyed hashes of whom there is a record."""
        known = {}
        joined = sa.select(tables.standings, tables.events.c.link).join(
            tables.events, tables.events.c.sequence == tables.standings.c.last
        )
        for part in parts(lookups):
            for row in connection.execute(joined.where(tables.standings.c.lookup.in_(part))):
                known[row.lookup] = Person(*row)
        return known

    def find(self, connection: sa.Connection, person: str) -> Person | None:
        return next(iter(self.known(connection, [keyed_tags(self.lookup_key, [person])]).values()), None)

    def chain(self, connection: sa.Connection, last: int) -> Iterator[Any]:
        """A person's events, newest first."""
        while last:
            row = connection.execute(sa.select(tables.events).where(tables.events.c.sequence == last)).first()
            if row is None:
                raise self.altered(f"event {last} is missing")
            yield row
            last = row.previous

    def document(self, connection: sa.Connection, kind: str, digest: str, body: Callable[[], bytes]) -> int:
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

    def said(self, connection: sa.Connection, number: int) -> Said:
        """The signal that is stored under a number."""
        if number not in self._signals:
            query = sa.select(tables.documents.c.body).where(tables.documents.c.number == number)
            body = connection.execute(query).scalar_one_or_none()
            if body is None:
                raise self.altered("a signal is missing")
            signal = parse_signal(json.loads(body))
            self._signals[number] = Said(number, digest_bytes(body), signal, signal.is_restrictive, signal.fields)
        return self._signals[number]

    def template(self, connection: sa.Connection, digest: str) -> RecordTemplate:
        if digest not in self._templates:
            query = sa.select(tables.documents.c.body).where(
                tables.documents.c.digest == digest, tables.documents.c.kind == "template"
            )
            body = connection.execute(query).scalar_one_or_none()
            if body is None:
                raise DataError("no such record template", place=digest, fix="add the template first")
            self._templates[digest] = RecordTemplate.model_validate_json(body)
        return self._templates[digest]

    def scrub(self) -> None:
        """Remove what deleted rows left; while others read an SQLite store, that stays a while."""
        drop_leftovers(self._store, tables.standings, tables.keys)

    def seconds(self, at: datetime | None) -> int:
        """Seconds since 1970; now when left out."""
        if at is not None and at.tzinfo is None:
            raise DataError("has no time zone", place="time", fix="write it with one, such as +00:00")
        return int((self.clock() if at is None else at).timestamp())

    def altered(self, message: str) -> DataError:
        return DataError(message, place=self.place, fix="put back the newest copy of the consent store")


def link(before: bytes, row: Any, digest: str) -> bytes:
    """An event's link: SHA-256 over the link before it and everything that the event says."""
    numbers = (row.sequence, row.event_time, row.recorded_at)
    said = sha256(bytes(row.personal)).digest() if row.personal is not None else bytes(32)
    whole = b"".join(
        (before, bytes(row.record), bytes(row.principal), digest.encode(), *(n.to_bytes(8) for n in numbers))
    )
    return sha256(whole + said).digest()


def joined(connection: sa.Connection, query: sa.Select[Any]) -> bytes:
    """The bytes of a query's only column, joined; by the driver's own cursor, at half the time."""
    cursor = connection.execute(query).cursor
    return b"" if cursor is None else b"".join([value for (value,) in cursor.fetchall()])


def parts(values: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """As many at a time as a query takes."""
    return (values[at : at + _READ] for at in range(0, len(values), _READ))


def cut(whole: bytes, size: int) -> list[bytes]:
    """Pieces of that size."""
    return [whole[at : at + size] for at in range(0, len(whole), size)]


def time(seconds: int) -> str:
    """Seconds since 1970 in ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def day(at: datetime) -> int:
    """Days since 1970."""
    return int(at.timestamp()) // 86400
