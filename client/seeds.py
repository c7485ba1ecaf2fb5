"""Seed lists: the customers an institution values, by id, under the name by which a campaign's plan asks for them.

A list never leaves its institution, and neither do its counts or its version. A node that has a list of the plan's name
marks those customers in its table by a column of its own; a node without one marks nobody.

A floor refuses a list when it is *made*, to the operator who made it. Questions are never refused for want of seeds:
a refusal because one customer withdrew consent would tell of that one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy import Column, Integer, LargeBinary, MetaData, String, Table, delete, insert, select, update

from cohortium.client.onboarding.cells import text
from cohortium.client.onboarding.engine import Engine, Resources, quoted
from cohortium.client.onboarding.sources import OpenSource, open_source
from cohortium.models.seed_choice import SeedRule
from cohortium.models.seed_doctor import ADVISED_SEEDS, LEAST_SEEDS
from cohortium.privacy.randomness import fresh_key
from cohortium.privacy.store_forms import drop_leftovers
from cohortium.privacy.stores import folder_of
from cohortium.privacy.table import CustomerTable
from cohortium.study.canonical import canonical_bytes
from cohortium.study.errors import DataError, RefusedError
from cohortium.study.validation import suggestion

__all__ = [
    "MOST_EXPORTED_SHARE",
    "MOST_SEED_SHARE",
    "TABLES",
    "PeopleFilter",
    "SeedCounts",
    "SeedList",
    "SeedOrigin",
    "SeedRefinement",
    "SeedRemoval",
    "SeedStore",
]

MOST_SEED_SHARE = 0.5
"""A list of more than this part of an institution's customers is refused.

Seeds are learnt against the rest. The mean of a share p of the customers, seen from the mean of all, is (1 - p) times
what separates them from the rest: with all of them nothing is left of it, and what the federation would learn is how
this institution's customers differ from other institutions'. Beyond one half that part outweighs the other.
"""

MOST_EXPORTED_SHARE = 0.5
"""A list of which more than this part was exported as an audience is refused: no lookalike of a lookalike."""

_MOST_MALFORMED = 0.05
_CHUNK = 50_000
_ABSENT = ""  # version in the use of a plan that found no list
_LINES_AT_ONCE = 100_000
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")

TABLES = MetaData()

_lists = Table(
    "seed_lists",
    TABLES,
    Column("name", String, primary_key=True),
    Column("version", String, nullable=False),
    Column("added_at", String, nullable=False),
    Column("removed_at", String, nullable=True),
    Column("counts", LargeBinary, nullable=False),
    Column("origin", LargeBinary, nullable=True),
)

_members = Table(
    "seed_members",
    TABLES,
    Column("name", String, primary_key=True),
    Column("chunk", Integer, primary_key=True),
    Column("ids", LargeBinary, nullable=False),
)

_uses = Table(
    "seed_uses",
    TABLES,
    Column("name", String, primary_key=True),
    Column("plan", String, primary_key=True),
    Column("version", String, nullable=False),
    Column("used_at", String, nullable=False),
)

_salt = Table(
    "seed_salt", TABLES, Column("only", Integer, primary_key=True), Column("salt", LargeBinary, nullable=False)
)


@dataclass(frozen=True)
class SeedCounts:
    """What became of a list, exact. For the operator: it stays at the institution.

    Args:
        listed: lines of the file; of a refined list, members of the one it was made of.
        blank: lines without an id.
        malformed: lines that could not be read.
        duplicate: lines that repeat an id.
        unknown: distinct ids that are no customers here.
        matched: distinct ids that are; of a refined list, those of them who were kept.
        consented: of these, who consented.
        allowed: of these, whom the institution's rules let be seeds.
        consent_checked, policy_checked: whether somebody looked; where not, nobody was taken away.
    """

    listed: int
    blank: int
    malformed: int
    duplicate: int
    unknown: int
    matched: int
    consented: int
    allowed: int
    consent_checked: bool = False
    policy_checked: bool = False

    def advice(self) -> tuple[str, ...]:
        """The counts, and what to do about them, in plain words, one sentence a line."""
        lines = [
            f"{self.listed:,} lines: {self.matched:,} matched, {self.unknown:,} not customers here,"
            f" {self.duplicate:,} repeated, {self.blank:,} blank, {self.malformed:,} unreadable.",
            self._checks(),
        ]
        if self.unknown > self.matched:
            lines.append("Most ids are not customers here: check the column, leading zeros and prefixes.")
        return (*lines, *self._few())

    def _checks(self) -> str:
        return (
            f"Consent: {_checked(self.consented, self.consent_checked)}."
            f" Rules: {_checked(self.allowed, self.policy_checked)}."
        )

    def _few(self) -> tuple[str, ...]:
        if self.allowed >= ADVISED_SEEDS:
            return ()
        return (
            f"{self.allowed:,} seeds are fewer than the {ADVISED_SEEDS} advised: ask the seed doctor what the"
            " plan's noise will leave of them, and list more customers of the same kind if it is too little.",
        )


@dataclass(frozen=True)
class SeedRefinement:
    """What became of a list that was refined into another, exact. It stays at the institution.

    Args:
        counts: of the new list.
        alike: matched members left out because they look like the rest.
        drawn: matched members left out by the draw.
    """

    counts: SeedCounts
    alike: int
    drawn: int

    def advice(self) -> tuple[str, ...]:
        """The counts, and when such a list is of use, in plain words, one sentence a line."""
        counts = self.counts
        return (
            f"{counts.listed:,} members: {counts.matched:,} kept, {self.alike:,} left out because they look like the"
            f" rest, {self.drawn:,} left out by the draw, {counts.unknown:,} no customers any more.",
            counts._checks(),
            "A list is best used whole, in what was measured even with 30% strangers in it: take the refined one where"
            " the list must be short, or must not hold strangers.",
            *counts._few(),
        )


@dataclass(frozen=True)
class SeedOrigin:
    """What a refined list was made of.

    Args:
        list: name of the list it is a part of.
        version: of that list then.
        model: digest of the released model whose rule chose the part.
    """

    list: str
    version: str
    model: str


@dataclass(frozen=True)
class SeedList:
    """A list that the store knows.

    Args:
        name: by which plans ask for it.
        version: digest of its members under this store's salt; equal lists of one store have equal versions. Local.
        added_at: when (UTC, ISO 8601).
        counts: what became of its lines.
        used: whether a plan has used it. It can then be removed, but neither changed nor its name used again.
        removed: whether its members are gone.
        origin: what it was made of; None for a list that was read from a file.
    """

    name: str
    version: str
    added_at: str
    counts: SeedCounts
    used: bool
    removed: bool
    origin: SeedOrigin | None = None


@dataclass(frozen=True)
class SeedRemoval:
    """What the removal of a list left. It stays at the institution.

    Args:
        refined: lists that are still there and were refined from it, directly or through others, by name.
        erased: whether the ids are gone from the database's files; False while another process was reading.
    """

    refined: tuple[str, ...]
    erased: bool


class PeopleFilter(Protocol):
    """Says who may be a seed: by consent, or by a rule."""

    def snapshot(self, people: CustomerTable) -> CustomerTable:
        """Those of the people who may."""
        ...


class SeedStore:
    """An institution's seed lists, in the database that also holds its ledger.

    Only matched ids are kept. Consent and rules are asked again by the door whenever seeds are counted: a list keeps
    everybody matched, so that who consents later is counted later.

    Args:
        store: the node's database (`privacy.ledger.open_store`); readable by its owner alone.
        consent: who consented; None while an institution has no consent store: then nobody is taken away, and the
            counts say so.
        policy: whom the institution's rules let be seeds; None likewise.
    """

    def __init__(
        self, store: sa.Engine, *, consent: PeopleFilter | None = None, policy: PeopleFilter | None = None
    ) -> None:
        self._store = store
        self._consent = consent
        self._policy = policy
        TABLES.create_all(store)

    def add(
        self,
        name: str,
        source: Path,
        column: str | None,
        people: CustomerTable,
        *,
        replace: bool = False,
        already_exported: Callable[[NDArray[np.str_]], float] | None = None,
        resources: Resources | None = None,
    ) -> SeedCounts:
        """Read a list, match it with the customers, and keep it: whole, or not at all.

        Ids are compared as contracts do: as text, surrounding blanks cut. Memory stays flat in the file's lines: what
        does not fit `resources` spills into a private folder beside the database.

        Args:
            name: a small letter, then at most 63 small letters, digits, - and _.
            source: CSV (also .gz) or Parquet file; .txt with one id a line when `column` is None.
            column: which column holds the ids.
            people: the institution's customer table.
            replace: put it in the place of a list of that name which no plan has used yet; `erase_log` then takes what
                the old one left in the database's log.
            already_exported: gives the share of some ids that were exported as an audience.
            resources: memory and threads.

        Raises:
            DataError: the file or the column cannot be read, or more than 5% of its lines.
            RefusedError: the name is taken; fewer than 100 usable seeds; more than half of the customers; more than
                half exported as an audience before.
        """
        self._check_name(name)
        self._refuse_taken(name, replace)
        with tempfile.TemporaryDirectory(prefix=".seeds-", dir=self._folder()) as scratch:
            counts, ids = self._read(name, source, column, people, Path(scratch), resources or Resources(threads=1))
        place = f"{name} ({source.name})"
        _refuse_by_count(
            counts,
            len(people),
            place,
            "list more customers, and check that the column holds the ids of the customer table",
        )
        _refuse_exported(ids, already_exported, place)
        self._write(name, counts, ids, replace)
        return counts

    def refine(
        self,
        source: str,
        name: str,
        rule: SeedRule,
        model: str,
        people: CustomerTable,
        *,
        already_exported: Callable[[NDArray[np.str_]], float] | None = None,
    ) -> SeedRefinement:
        """Keep the part of a list that a rule chooses as a list of its own: whole, or not at all.

        Who is kept follows from each member's own row and id, from the rule and from a key (`models.seed_choice`). The
        key follows from the node's secret, the source's version, the model, the new name and the rates of the draw:
        the same refinement made again keeps the same members, so that none can be drawn until its counts please.

        Whether the new list is made at all depends on everybody in the source: on its version, and on whether the kept
        pass the floors. Both are seen by this institution's operator alone. Nothing leaves the node and nothing is
        charged.

        Args:
            source: name of a list that is there, used by a plan or not; it stays as it is.
            name: of the new list.
            rule: from `models.seed_choice.seed_rule`.
            model: digest of the released model that the rule follows from.
            people: the institution's customer table.
            already_exported: gives the share of some ids that were exported as an audience.

        Raises:
            RefusedError: there is no such list; the name is taken; the part breaks a rule that `add` names.
        """
        self._check_name(name)
        known = self._present(source)
        self._refuse_taken(name, replace=False)
        listed = people.take(self.mask(source, people))
        passed, kept = rule.kept(listed, self._draw_key(known.version, model, name, rule))
        counts = self._counted(
            listed.take(kept), listed=known.counts.matched, unknown=known.counts.matched - len(listed)
        )
        place = f"{name} (of {source})"
        _refuse_by_count(counts, len(people), place, "keep a larger share, or refine a longer list")
        ids = pa.array(np.sort(np.asarray(listed.keys[kept], dtype=np.str_)), type=pa.string())
        _refuse_exported(ids, already_exported, place)
        self._write(name, counts, ids, replace=False, origin=SeedOrigin(source, known.version, model))
        return SeedRefinement(counts, int((~passed).sum()), int((passed & ~kept).sum()))

    def lists(self) -> tuple[SeedList, ...]:
        """All lists, removed ones too, by name."""
        with self._store.begin() as connection:
            rows = connection.execute(select(_lists).order_by(_lists.c.name)).all()
            used = set(connection.execute(select(_uses.c.name).where(_uses.c.version != _ABSENT)).scalars())
        return tuple(_seed_list(row, row.name in used) for row in rows)

    def use(self, name: str, plan: str) -> str | None:
        """Bind a plan, by its digest, to the list of that name or to there being none; neither changes from now on.

        Returns:
            The list's version, the same at every call for the same plan, as long as the list is there; None when there
            is no such list, or was none when the plan first asked.
        """
        with self._store.begin() as connection:
            listed = connection.execute(select(_lists).where(_lists.c.name == name)).first()
            there = _ABSENT if listed is None or listed.removed_at is not None else str(listed.version)
            bound = select(_uses.c.version).where(_uses.c.name == name, _uses.c.plan == plan)
            known = connection.execute(bound).scalar()
            if known is None:
                row = {"name": name, "plan": plan, "version": there, "used_at": _now()}
                connection.execute(insert(_uses).values(**row))
            return None if _ABSENT in (known, there) else there

    def members(self, name: str) -> NDArray[np.str_]:
        """The ids of a list in ascending order, shape (matched,); nobody where there is no such list."""
        chunks = [np.array(ids, dtype=np.str_) for ids in self._chunks(name)]
        return np.concatenate(chunks) if chunks else np.empty(0, dtype=np.str_)

    def mask(self, name: str, people: CustomerTable) -> NDArray[np.bool_]:
        """Which people are on a list, shape (len(people),); nobody where there is no such list."""
        parts = [pa.array(ids, type=pa.string()) for ids in self._chunks(name)]
        if not parts:
            return np.zeros(len(people), dtype=np.bool_)
        marked = pc.is_in(_ids_of(people), value_set=pa.chunked_array(parts).combine_chunks())
        return np.asarray(marked.to_numpy(zero_copy_only=False), dtype=np.bool_)

    def remove(self, name: str) -> SeedRemoval:
        """Erase a list's members. The name of a list that a plan used is not given to another one.

        From SQLite's files too, not only from its tables. What was written over on the disk itself is up to its file
        system and its owner.

        Raises:
            RefusedError: there is no such list, or it is removed already.
        """
        known = self._present(name)
        refined = _refined_from(known, self.lists())
        with self._store.begin() as connection:
            used = _is_used(connection, name)
            connection.execute(delete(_members).where(_members.c.name == name))
            if used:
                change = update(_lists).where(_lists.c.name == name).values(removed_at=_now())
                connection.execute(change)
            else:
                connection.execute(delete(_lists).where(_lists.c.name == name))
        return SeedRemoval(refined, self.erase_log())

    def erase_log(self) -> bool:
        """Copy the write-ahead log into the database's file and cut it off: erased pages would stay in it.

        Returns:
            False while another process reads: then the log stays until the last process closes the database.
        """
        return drop_leftovers(self._store, _members)

    def _present(self, name: str) -> SeedList:
        """The list of that name; `RefusedError` when there is none, or its members are gone."""
        present = {entry.name: entry for entry in self.lists() if not entry.removed}
        if name not in present:
            raise RefusedError(
                "no seed list of that name", place="seeds", fix=suggestion(name, present) if present else "add one"
            )
        return present[name]

    def _check_name(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise RefusedError(
                "not a name for a seed list",
                place="seeds",
                fix="begin with a small letter and use at most 64 small letters, digits, - and _",
            )

    def _refuse_taken(self, name: str, replace: bool) -> None:
        known = next((entry for entry in self.lists() if entry.name == name), None)
        if known is None:
            return
        if known.used:
            raise RefusedError(
                "a plan has used this list, which therefore cannot change", place=name, fix="add it under another name"
            )
        if not replace:
            raise RefusedError(
                "there is a list of this name", place=name, fix="choose another name, or replace that list"
            )

    def _draw_key(self, version: str, model: str, name: str, rule: SeedRule) -> bytes:
        """32 bytes that only this node can make, and makes the same for the same refinement."""
        with self._store.begin() as connection:
            secret = _secret(connection)
        made_of = canonical_bytes({"version": version, "model": model, "name": name, "rates": rule.rates.tolist()})
        return hashlib.blake2b(made_of, key=secret, person=b"seed draw", digest_size=32).digest()

    def _folder(self) -> Path:
        """The node's: ids that spill to disk stay as private as its keys."""
        return folder_of(self._store).resolve()

    def _read(
        self,
        name: str,
        source: Path,
        column: str | None,
        people: CustomerTable,
        scratch: Path,
        resources: Resources,
    ) -> tuple[SeedCounts, pa.Array]:
        engine = Engine(scratch, resources)
        try:
            opened, column, unreadable = _open(engine, source, column, scratch, name)
            return self._matched(engine, opened, column, unreadable, people, f"{name} ({source.name})")
        finally:
            engine.close()

    def _matched(
        self, engine: Engine, opened: OpenSource, column: str, unreadable: int, people: CustomerTable, place: str
    ) -> tuple[SeedCounts, pa.Array]:
        ids = _ids_of(people)
        engine.connection.register("people", pa.table({"id": ids, "row": np.arange(len(people))}))
        cell = text(column, opened.types[column])
        engine.run(
            "reading the list",
            f"CREATE TABLE listed AS SELECT id, count(*) AS n FROM (SELECT {cell} AS id FROM {opened.relation})"
            " GROUP BY id",
            place,
        )
        read, blank, distinct = engine.run(
            "counting",
            "SELECT coalesce(sum(n), 0), coalesce(sum(n) FILTER (id IS NULL), 0), count(id) FROM listed",
            place,
        )[0]
        rows = engine.column("matching", "SELECT row FROM people SEMI JOIN listed USING (id) ORDER BY id", place)
        malformed = unreadable + _malformed(engine, opened, place)
        counts = self._counted(
            people.take(np.isin(np.arange(len(people)), rows)),
            listed=int(read) + malformed,
            blank=int(blank),
            malformed=malformed,
            duplicate=int(read) - int(blank) - int(distinct),
            unknown=int(distinct) - len(rows),
        )
        return counts, ids.take(pa.array(rows, type=pa.int64()))

    def _counted(
        self,
        matched: CustomerTable,
        *,
        listed: int,
        unknown: int,
        blank: int = 0,
        malformed: int = 0,
        duplicate: int = 0,
    ) -> SeedCounts:
        """With how many of the matched consented, and whom the rules let be seeds."""
        consented = matched if self._consent is None else self._consent.snapshot(matched)
        allowed = consented if self._policy is None else self._policy.snapshot(consented)
        return SeedCounts(
            listed=listed,
            blank=blank,
            malformed=malformed,
            duplicate=duplicate,
            unknown=unknown,
            matched=len(matched),
            consented=len(consented),
            allowed=len(allowed),
            consent_checked=self._consent is not None,
            policy_checked=self._policy is not None,
        )

    def _write(
        self, name: str, counts: SeedCounts, ids: pa.Array, replace: bool, origin: SeedOrigin | None = None
    ) -> None:
        """One transaction. What was checked before reading is checked again inside it."""
        with self._store.begin() as connection:
            present = connection.execute(select(_lists.c.name).where(_lists.c.name == name)).first() is not None
            used = _is_used(connection, name)
            same = origin is None or _is_there(connection, origin)
            if used or (present and not replace) or not same:
                raise RefusedError("the list was changed by another process meanwhile", place=name, fix="try again")
            connection.execute(delete(_lists).where(_lists.c.name == name))
            connection.execute(delete(_members).where(_members.c.name == name))
            digest = hmac.new(_secret(connection), digestmod=hashlib.sha256)
            for number, start in enumerate(range(0, len(ids), _CHUNK)):
                chunk = json.dumps(ids.slice(start, _CHUNK).to_pylist()).encode()
                digest.update(len(chunk).to_bytes(8, "big") + chunk)
                connection.execute(insert(_members).values(name=name, chunk=number, ids=chunk))
            row = {"version": digest.hexdigest(), "added_at": _now(), "counts": canonical_bytes(asdict(counts))}
            made_of = None if origin is None else canonical_bytes(asdict(origin))
            connection.execute(insert(_lists).values(name=name, origin=made_of, **row))

    def _chunks(self, name: str) -> Iterator[list[str]]:
        query = select(_members.c.ids).where(_members.c.name == name).order_by(_members.c.chunk)
        with self._store.begin() as connection:
            for ids in connection.execute(query).scalars():
                yield json.loads(ids)


def _open(engine: Engine, source: Path, column: str | None, scratch: Path, name: str) -> tuple[OpenSource, str, int]:
    """The list as a relation, its column, and lines that did not get that far."""
    if column is None:
        if source.suffix.lower() != ".txt":
            raise DataError("no column is named", place=f"{name} ({source.name})", fix="name the column of the ids")
        file, unreadable = _plain_lines(source, scratch / "lines.parquet", f"{name} ({source.name})")
        opened = open_source(engine, "seeds", file, ("id",), scratch)
        return opened, "id", unreadable
    try:
        opened = open_source(engine, "seeds", source, (column,), scratch)
        if column not in opened.types:  # the others are not named: without a header line they are customers' values
            raise DataError(
                f"no column '{column}'",
                place="seeds",
                fix="name the column of the ids, and check that a text file begins with a line of column names",
            )
    except DataError as error:
        # the inner place names a table of ours
        raise DataError(error.message, place=f"{name} ({source.name})", fix=error.fix) from error
    return opened, column, 0


def _plain_lines(source: Path, out: Path, place: str) -> tuple[Path, int]:
    """A file of one id a line as Parquet, some lines at a time; and how many were not UTF-8."""
    unreadable, failed = 0, False
    schema = pa.schema([("id", pa.string())])
    try:
        with source.open("rb") as file, pq.ParquetWriter(out, schema) as writer:
            ids: list[str] = []
            for number, line in enumerate(file):
                try:
                    ids.append(line.decode("utf-8-sig" if number == 0 else "utf-8").rstrip("\r\n"))
                except UnicodeDecodeError:
                    unreadable += 1
                if len(ids) == _LINES_AT_ONCE:
                    writer.write_table(pa.table({"id": ids}, schema=schema))
                    ids = []
            writer.write_table(pa.table({"id": ids}, schema=schema))
    except (OSError, pa.ArrowException):
        failed = True
    if failed:
        raise DataError("cannot be read", place=place, fix="check the path, your rights and the disk's room")
    return out, unreadable


def _malformed(engine: Engine, opened: OpenSource, place: str) -> int:
    """Lines without the header's number of fields, in the first scan that met one: each scan notes them anew."""
    if opened.rejects is None:
        return 0
    rejects = quoted(opened.rejects)
    sql = f"SELECT count(DISTINCT line) FROM {rejects} WHERE scan_id = (SELECT min(scan_id) FROM {rejects})"
    return int(engine.run("counting", sql, place)[0][0])


def _refuse_by_count(counts: SeedCounts, people: int, place: str, more: str) -> None:
    """Refuse what teaches nothing; `more` says how to come by more seeds."""
    if counts.malformed > _MOST_MALFORMED * counts.listed:
        raise DataError(
            f"{counts.malformed:,} of {counts.listed:,} lines cannot be read", place=place, fix="export the list again"
        )
    if counts.allowed < LEAST_SEEDS:
        raise RefusedError(
            f"{counts.allowed:,} usable seeds ({counts.matched:,} matched, {counts.unknown:,} not customers here):"
            f" {LEAST_SEEDS} are the least, {ADVISED_SEEDS} are advised",
            place=place,
            fix=more,
        )
    if counts.matched == people:
        raise RefusedError(
            "every customer is in the seed: there is no rest to tell them from", place=place, fix="list the best alone"
        )
    if counts.matched > MOST_SEED_SHARE * people:
        raise RefusedError(
            "more than half of the customers are in the seed: it would tell this institution from others",
            place=place,
            fix="list the best alone, half of the customers at most",
        )


def _refuse_exported(ids: pa.Array, already_exported: Callable[[NDArray[np.str_]], float] | None, place: str) -> None:
    if already_exported is not None and already_exported(_as_numpy(ids)) > MOST_EXPORTED_SHARE:
        raise RefusedError(
            "most of these customers were exported as an audience before: no lookalike of a lookalike",
            place=place,
            fix="list customers whom the institution knows to be valuable by what they did",
        )


def _refined_from(source: SeedList, lists: tuple[SeedList, ...]) -> tuple[str, ...]:
    """Names of the lists that are there and were made of that one, through removed ones too."""
    found = {source.name: source.version}
    for _ in lists:  # a chain is no longer than there are lists
        found |= {
            each.name: each.version
            for each in lists
            if each.origin and found.get(each.origin.list) == each.origin.version
        }
    return tuple(each.name for each in lists if each.name in found and each.name != source.name and not each.removed)


def _secret(connection: sa.Connection) -> bytes:
    """32 bytes made once for this store: the salt of versions, and the key from which draws get theirs."""
    secret = connection.execute(select(_salt.c.salt)).scalar()
    if secret is None:
        secret = fresh_key()
        connection.execute(insert(_salt).values(only=1, salt=secret))
    return bytes(secret)


def _is_used(connection: sa.Connection, name: str) -> bool:
    """Whether a plan is bound to members of that list."""
    uses = select(_uses.c.plan).where(_uses.c.name == name, _uses.c.version != _ABSENT)
    return connection.execute(uses).first() is not None


def _is_there(connection: sa.Connection, origin: SeedOrigin) -> bool:
    """Whether the list of the origin still has the members that were read."""
    listed = connection.execute(select(_lists).where(_lists.c.name == origin.list)).first()
    return listed is not None and listed.removed_at is None and bool(listed.version == origin.version)


def _ids_of(people: CustomerTable) -> pa.Array:
    """The people's keys as text."""
    return pa.array(np.asarray(people.keys, dtype=np.str_), type=pa.string())


def _as_numpy(ids: pa.Array) -> NDArray[np.str_]:
    return np.array(ids.to_pylist(), dtype=np.str_)


def _seed_list(row: Any, used: bool) -> SeedList:
    counts = SeedCounts(**json.loads(row.counts))
    origin = None if row.origin is None else SeedOrigin(**json.loads(row.origin))
    return SeedList(
        row.name, row.version, row.added_at, counts, used=used, removed=row.removed_at is not None, origin=origin
    )


def _checked(count: int, checked: bool) -> str:
    return f"{count:,} remain" if checked else "not checked"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
