"""The audit log of one institution, or of the coordinator: entries that are only ever appended, in a file of their own.

An entry is acknowledged when `append` returns: from then on neither a crash nor a power cut loses it. Triggers refuse
every change of what was written. They stop accidents; whoever owns the file can drop them. What the owner cannot do is
change the past unseen, once others hold a checkpoint of it: see `verify.verify_log`.

Beside every leaf stands its hash, and for every 256 leaves the root over them. Proofs are made from these roots and
leaves; they are never trusted when a log is verified.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    bindparam,
    func,
    insert,
    inspect,
    select,
)
from sqlalchemy.exc import DBAPIError

from cohortium.governance.log.checkpoint import Checkpoint, open_checkpoint
from cohortium.governance.log.joined import LogFile
from cohortium.governance.log.leaf import Leaf, fresh_leaf, parse_leaf
from cohortium.governance.log.merkle import Frontier, consistency_ranges, inclusion_ranges, leaf_hash
from cohortium.governance.log.note import Note, Signer, parse_note
from cohortium.privacy.store_forms import Form, append_only, disk_is_full, open_form
from cohortium.study.errors import CohortiumError, DataError, Defect, OutputError, RefusedError

__all__ = [
    "BLOCK",
    "LOG_SCHEMA",
    "TABLES",
    "AuditLog",
    "KeptRows",
    "LogEntry",
    "LogReader",
    "database_errors",
    "kept_rows",
    "log_origin_of",
]

LOG_SCHEMA = "cohortium.log/1"
"""The form of the file; a later one is refused."""

BLOCK = 256
"""Leaves under one stored root."""

_CHUNK = 4096
_IN_QUERY = 500

TABLES = MetaData()

_header = Table("log_header", TABLES, Column("schema", String, primary_key=True), Column("origin", String))

_entries = Table(
    "log_entries",
    TABLES,
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("key", String, unique=True),
    Column("leaf", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)

_blocks = Table(
    "log_blocks",
    TABLES,
    Column("block", Integer, primary_key=True, autoincrement=False),
    Column("root", LargeBinary, nullable=False),
)

_checkpoints = Table(
    "log_checkpoints",
    TABLES,
    Column("size", Integer, primary_key=True, autoincrement=False),
    Column("note", String, nullable=False),
)

_cosigned = Table(
    "log_cosigned",
    TABLES,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("size", Integer, nullable=False, index=True),
    Column("note", String, nullable=False),
)


append_only(_header, "EXISTS (SELECT 1 FROM log_header)")
append_only(_entries, "NEW.position <> (SELECT COALESCE(MAX(position) + 1, 0) FROM log_entries)")
append_only(_blocks, "NEW.block <> (SELECT COALESCE(MAX(block) + 1, 0) FROM log_blocks)")
append_only(_checkpoints, "EXISTS (SELECT 1 FROM log_checkpoints WHERE size >= NEW.size)")
append_only(_cosigned, "NEW.sequence <> (SELECT COALESCE(MAX(sequence) + 1, 0) FROM log_cosigned)")

_FORM = Form(
    LOG_SCHEMA,
    "audit log",
    _header,
    TABLES,
    "name the log of a node, and use the version that wrote it",
    alone=False,
)


# made once: SQLAlchemy takes longer to build such a statement than SQLite to answer it
_SIZE = select(func.coalesce(func.max(_entries.c.position) + 1, 0))
_NEXT_COSIGNED = select(func.coalesce(func.max(_cosigned.c.sequence) + 1, 0))
_LEAVES = (
    select(_entries.c.leaf)
    .where(_entries.c.position >= bindparam("start"), _entries.c.position < bindparam("stop"))
    .order_by(_entries.c.position)
)
_NEWEST = select(_checkpoints).order_by(_checkpoints.c.size.desc()).limit(1)
_NEWEST_COSIGNED = select(_cosigned.c.note).order_by(_cosigned.c.size.desc(), _cosigned.c.sequence.desc()).limit(1)


@dataclass(frozen=True)
class LogEntry:
    """An entry where it stands in the log."""

    index: int
    entry: Mapping[str, Any]
    salt: str

    @property
    def leaf(self) -> Leaf:
        """What is hashed."""
        return Leaf(self.entry, self.salt)


@dataclass(frozen=True)
class KeptRows:
    """A log as it stands in the file, nothing of it believed: what verification begins with.

    Args:
        origin: whose log the file says it is.
        checkpoints, cosigned: the notes kept in it, as text, in the order of sizes.
    """

    origin: str
    checkpoints: tuple[str, ...]
    cosigned: tuple[str, ...]
    _store: LogFile

    def leaves(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Position, leaf and stored hash of every row, in the order of positions."""
        after = -1
        while True:
            query = select(_entries.c.position, _entries.c.leaf, _entries.c.hash).where(_entries.c.position > after)
            with database_errors(self._store), self._store.begin() as connection:
                rows = connection.execute(query.order_by(_entries.c.position).limit(_CHUNK)).all()
            yield from ((position, _blob(leaf), _blob(stored)) for position, leaf, stored in rows)
            if not rows:
                return
            after = rows[-1].position

    def blocks(self) -> dict[int, bytes]:
        """The stored roots by block."""
        with database_errors(self._store), self._store.begin() as connection:
            return {block: _blob(root) for block, root in connection.execute(select(_blocks))}


def _blob(value: Any) -> bytes:
    """A cell's bytes; a cell of another type, which only tampering leaves, has none."""
    return value if isinstance(value, bytes) else b""


def kept_rows(store: LogFile) -> KeptRows:
    """A log to be verified; `DataError` where the store holds none of this version."""
    origin = log_origin_of(store)
    with database_errors(store), store.begin() as connection:
        checkpoints = connection.execute(select(_checkpoints.c.note).order_by(_checkpoints.c.size)).scalars().all()
        order = _cosigned.c.size, _cosigned.c.sequence
        cosigned = connection.execute(select(_cosigned.c.note).order_by(*order)).scalars().all()
    return KeptRows(origin, tuple(map(str, checkpoints)), tuple(map(str, cosigned)), store)


def log_origin_of(store: LogFile) -> str:
    """The origin of the log in a store; `DataError` where it holds none of this version."""
    with database_errors(store), store.begin() as connection:
        return _origin(connection, store)


class LogReader:
    """A log as it stands in a store, to show and to prove from; nothing is written, nothing verified.

    Args:
        store: from `privacy.ledger.open_store`, which may be read-only.

    Raises:
        DataError: the store holds no log of this version.
    """

    def __init__(self, store: LogFile) -> None:
        self._store = store
        self._head = _Head()  # of some earlier size; replaced, never changed
        self.origin = log_origin_of(store)

    @property
    def size(self) -> int:
        """Number of entries."""
        with self._reading() as connection:
            return _size(connection)

    def entry(self, index: int) -> LogEntry:
        """One entry; `DataError` where there is none."""
        found = self.entries(index, index + 1)
        if index < 0 or not found:
            raise DataError(f"entry {index}: there is none", place=self.origin, fix=f"name one below {self.size}")
        return found[0]

    def entries(self, start: int, stop: int) -> list[LogEntry]:
        """The entries from `start` up to and without `stop`, as far as there are any.

        Raises:
            DataError: an entry is not a leaf in canonical JSON: the log was altered.
        """
        query = select(_entries.c.position, _entries.c.leaf).order_by(_entries.c.position)
        with self._reading() as connection:
            rows = connection.execute(query.where(_entries.c.position >= start, _entries.c.position < stop)).all()
        found = []
        for position, data in rows:
            leaf = parse_leaf(_blob(data))
            found.append(LogEntry(position, leaf.entry, leaf.salt))
        return found

    def root(self, size: int | None = None) -> bytes:
        """The root of the first `size` entries, of all when left out; 32 bytes. `DataError` above the log's size."""
        with self._reading() as connection:
            return self._root(connection, _size(connection) if size is None else size)

    def checkpoint_at(self, size: int) -> str:
        """The kept checkpoint of a size, with cosignatures where they came; `DataError` where none was made."""
        signed = select(_checkpoints.c.note).where(_checkpoints.c.size == size)
        cosigned = select(_cosigned.c.note).where(_cosigned.c.size == size).order_by(_cosigned.c.sequence.desc())
        with self._reading() as connection:
            note = connection.execute(cosigned.limit(1)).scalar() or connection.execute(signed).scalar()
        if note is None:
            raise DataError(f"no checkpoint of size {size} was made", place=self.origin, fix="name the size of one")
        return str(note)

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """The hashes that prove entry `index` to be among the first `size`; `DataError` where it is not."""
        if not 0 <= index < size:
            raise DataError(f"entry {index} is not among the first {size}", place=self.origin, fix="name a larger size")
        return self._hashes(inclusion_ranges(index, size), size)

    def consistency(self, old: int, new: int) -> list[bytes]:
        """The hashes that prove the first `new` entries to begin with the first `old`; `DataError` for other sizes."""
        if not 0 <= old <= new:
            raise DataError(f"a log does not shrink from {old} to {new}", place=self.origin, fix="name sizes that grow")
        return self._hashes(consistency_ranges(old, new), new)

    def cosigned(self) -> str | None:
        """The kept cosigned checkpoint of the largest size, with all its cosignatures."""
        with self._reading() as connection:
            return connection.execute(_NEWEST_COSIGNED).scalar()

    def newest(self) -> str | None:
        """The kept checkpoint of the largest size, with cosignatures where they came."""
        with self._reading() as connection:
            size = connection.execute(select(func.max(_checkpoints.c.size))).scalar()
        return None if size is None else self.checkpoint_at(size)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with database_errors(self._store), self._store.begin() as connection:
            yield connection

    def _hashes(self, ranges: list[tuple[int, int]], size: int) -> list[bytes]:
        with self._reading() as connection:
            self._check_size(size, _size(connection))
            return [_head(connection, start, stop).root() for start, stop in ranges]

    def _root(self, connection: Connection, size: int) -> bytes:
        there = _size(connection)
        self._check_size(size, there)
        return self._current(connection, there).root() if size == there else _head(connection, 0, size).root()

    def _check_size(self, size: int, there: int) -> None:
        if not 0 <= size <= there:
            raise DataError(f"size {size} is above the log's {there}", place=self.origin, fix="name a smaller size")

    def _current(self, connection: Connection, size: int) -> _Head:
        """The head of the log of that size; what others appended since the last time is read."""
        if self._head.size > size:  # somebody cut the log off; the file is what counts, and checkpoints will tell
            return _head(connection, 0, size)
        if size - self._head.size >= 2 * BLOCK:
            return _head(connection, 0, size)
        return self._head.extended(_leaf_hashes(connection, self._head.size, size))[0]


class AuditLog(LogReader):
    """An append-only log in a durable store. Any number of writers may share the store, in one process or several.

    Args:
        store: from `privacy.ledger.open_store`; a log is begun in it when it holds none.
        origin: the log's name (`checkpoint.log_origin`).
        signer: signs checkpoints under the origin's name.

    Raises:
        DataError: the store holds the log of another origin or version.
    """

    def __init__(self, store: LogFile, origin: str, signer: Signer) -> None:
        if signer.verifier.name != origin:
            raise Defect("a log is signed under its own name")
        with database_errors(store), store.begin() as connection:
            open_form(connection, _FORM, str(store.url.database), origin=origin)
        super().__init__(store)
        if self.origin != origin:
            raise DataError(
                "is the audit log of another institution",
                place=str(store.url.database),
                fix="point at the state folder of this institution",
            )
        self._signer = signer

    def append(self, entries: Sequence[Mapping[str, Any]], *, keys: Sequence[str] | None = None) -> list[int]:
        """Append entries, all or none, durably; returns their indices.

        Formal guarantee: when this returns, the entries are in the log for good, one after another, whoever appends at
        the same time; when it raises, none of this call is.

        Args:
            entries: objects of JSON types. Each gets a fresh salt.
            keys: one for each entry. An entry whose key was used before is not appended again: its index is the earlier
                one's. Keys stay in this file and are not covered by the log's root.

        Raises:
            DataError: an entry that has no canonical JSON; nothing is appended.
            RefusedError: a key that was used for another entry; nothing is appended.
            OutputError: the disk is full or the file cannot be written; nothing is appended, nothing earlier is lost.
        """
        if keys is not None and len(keys) != len(entries):
            raise Defect("as many keys as entries")
        leaves = [fresh_leaf(entry) for entry in entries]
        data = [
            leaf.to_bytes() for leaf in leaves
        ]  # whatever is wrong with an entry is wrong before the store is locked
        with database_errors(self._store), self._store.begin() as connection:
            head = self._current(connection, _size(connection))
            names: Sequence[str | None] = keys if keys is not None else [None] * len(entries)
            known = _known(connection, [name for name in names if name is not None])
            rows: list[dict[str, Any]] = []
            places: list[int] = []
            for name, leaf, written in zip(names, leaves, data, strict=True):
                if name is not None and name in known:
                    place, earlier = known[name]
                    _same_entry(name, earlier, leaf)
                else:
                    place = head.size + len(rows)
                    rows.append({"position": place, "key": name, "leaf": written, "hash": leaf_hash(written)})
                    if name is not None:
                        known[name] = (place, written)
                places.append(place)
            head, blocks = head.extended([row["hash"] for row in rows])
            if rows:
                connection.execute(insert(_entries), rows)
            if blocks:
                connection.execute(insert(_blocks), blocks)
        self._head = head
        return places

    def checkpoint(self) -> str:
        """The log's signed commitment to all entries: a note, kept before it is given out; the same for the same size.

        Raises:
            RefusedError: the log no longer holds what an earlier checkpoint committed to. Nothing is signed.
        """
        with database_errors(self._store), self._store.begin() as connection:
            size = _size(connection)
            last = connection.execute(_NEWEST).first()
            if last is not None:
                earlier, _ = open_checkpoint(last.note, self._signer.verifier)
                if earlier.size > size or self._root(connection, earlier.size) != earlier.root:
                    raise self._altered(f"its first {earlier.size} entries are not those of an earlier checkpoint")
                if earlier.size == size:
                    return str(last.note)
            made = Checkpoint(self.origin, size, self._root(connection, size))
            note = Note(made.to_text()).signed(self._signer).to_text()
            connection.execute(insert(_checkpoints).values(size=size, note=note))
        return note

    def keep_cosigned(self, note: str) -> None:
        """Keep a checkpoint of this log with the cosignatures it has, durably, and those kept for its size before.

        Whether they are enough is for `quorum.LogQuorum` to say.

        Raises:
            DataError: not a checkpoint that this log signed, or not of its entries.
        """
        checkpoint, opened = open_checkpoint(note, self._signer.verifier)
        with database_errors(self._store), self._store.begin() as connection:
            if self._root(connection, checkpoint.size) != checkpoint.root:
                raise self._altered(f"a checkpoint of size {checkpoint.size} has another root")
            query = select(_cosigned.c.note).where(_cosigned.c.size == checkpoint.size)
            earlier = connection.execute(query.order_by(_cosigned.c.sequence.desc()).limit(1)).scalar()
            if earlier is not None:
                kept = parse_note(earlier)
                opened = kept.with_signatures(opened.signatures)
                if opened == kept:
                    return
            sequence = connection.execute(_NEXT_COSIGNED).scalar_one()
            row = {"sequence": sequence, "size": checkpoint.size, "note": opened.to_text()}
            connection.execute(insert(_cosigned).values(row))

    def _altered(self, what: str) -> RefusedError:
        return RefusedError(
            f"the audit log was altered: {what}",
            place=str(self._store.url.database),
            fix="verify the log; put back the newest copy",
        )


@dataclass(frozen=True)
class _Head:
    """A frontier in two parts: whole blocks, and the leaves after them."""

    blocks: Frontier = field(default_factory=Frontier)
    rest: Frontier = field(default_factory=Frontier)

    @property
    def size(self) -> int:
        return self.blocks.size * BLOCK + self.rest.size

    def root(self) -> bytes:
        return Frontier(self.size, self.blocks.hashes + self.rest.hashes).root()

    def extended(self, leaves: Sequence[bytes]) -> tuple[_Head, list[dict[str, Any]]]:
        """The head after these leaves, and the rows of the blocks that they completed."""
        blocks, rest, rows, at = self.blocks, self.rest, [], 0
        while at < len(leaves):
            upto = at + BLOCK - rest.size
            rest, at = rest.extended(leaves[at:upto]), upto
            if rest.size == BLOCK:
                rows.append({"block": blocks.size, "root": rest.root()})
                blocks, rest = blocks.extended([rest.root()]), Frontier()
        return _Head(blocks, rest), rows


def _head(connection: Connection, start: int, stop: int) -> _Head:
    """Over the leaves [start, stop) of a subtree: the blocks that are whole in it by their stored roots."""
    first, last = start // BLOCK, stop // BLOCK
    whole = range(first, last) if start % BLOCK == 0 and last > first else range(0)
    query = select(_blocks.c.root).where(_blocks.c.block >= whole.start, _blocks.c.block < whole.stop)
    roots = connection.execute(query.order_by(_blocks.c.block)).scalars().all() if whole else []
    begin = whole.stop * BLOCK if whole else start
    rest = Frontier().extended(_leaf_hashes(connection, begin, stop))
    return _Head(Frontier().extended(roots), rest)


def _leaf_hashes(connection: Connection, start: int, stop: int) -> list[bytes]:
    if start >= stop:
        return []
    leaves = connection.execute(_LEAVES, {"start": start, "stop": stop}).scalars()
    return [leaf_hash(_blob(leaf)) for leaf in leaves]


def _size(connection: Connection) -> int:
    """One above the largest position, or 0."""
    return int(connection.execute(_SIZE).scalar_one())


def _known(connection: Connection, keys: list[str]) -> dict[str, tuple[int, bytes]]:
    """Index and leaf by key, for the keys that were used before."""
    found: dict[str, tuple[int, bytes]] = {}
    for begin in range(0, len(keys), _IN_QUERY):
        some = keys[begin : begin + _IN_QUERY]
        query = select(_entries.c.key, _entries.c.position, _entries.c.leaf).where(_entries.c.key.in_(some))
        found.update({row.key: (row.position, row.leaf) for row in connection.execute(query)})
    return found


def _same_entry(key: str, earlier: bytes, leaf: Leaf) -> None:
    if Leaf(leaf.entry, parse_leaf(earlier).salt).to_bytes() != earlier:
        raise RefusedError(
            "another entry was logged under this key", place=f"audit log: {key}", fix="an entry is never rewritten"
        )


def _origin(connection: Connection, store: LogFile) -> str:
    missing = {table.name for table in TABLES.tables.values()} - set(inspect(connection).get_table_names())
    rows = [] if missing else [tuple(row) for row in connection.execute(select(_header))]
    if len(rows) != 1 or rows[0][0] != LOG_SCHEMA:
        raise DataError(
            "holds no audit log of this version",
            place=str(store.url.database),
            fix="name the log of a node, and use the version that wrote it",
        )
    return str(rows[0][1])


@contextmanager
def database_errors(store: LogFile) -> Iterator[None]:
    """Names what the database could not do. Its own message could quote a statement, and is not passed on."""
    try:
        yield
    except CohortiumError:
        raise
    except DBAPIError as error:
        full = disk_is_full(error)
        raise OutputError(
            "the disk is full; nothing was written, nothing earlier is lost"
            if full
            else "the audit log cannot be used",
            place=str(store.url.database),
            fix="make room and do it again" if full else "check the file, its permissions and who else writes to it",
        ) from error
