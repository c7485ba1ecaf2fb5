"""The forms of stores: begun, brought to the present version, guarded against changes, copied from one to another.

The same on SQLite and on PostgreSQL; see `privacy.stores` for where a store is.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, Table, event, func, insert, inspect, select, text, update
from sqlalchemy.exc import DBAPIError

from cohortium.privacy.stores import is_read_only, open_sqlite, open_store, store_url
from cohortium.study.errors import DataError

__all__ = [
    "Form",
    "append_only",
    "copy_rows",
    "copy_store",
    "disk_is_full",
    "drop_leftovers",
    "insert_all",
    "keeps_last_number",
    "last_number",
    "open_form",
    "refuse_changes",
    "sqlite_copy",
]

_NUMBERS = "last_numbers"
_CHUNK, _CACHE_KIB = 5_000, 256 * 1024
_log = logging.getLogger(__name__)


# --- forms -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """What a version of this package expects of a store.

    Args:
        name: what the header says, `SCHEMA/VERSION`.
        what: the store's kind in a message, such as `review store`.
        header: its table of one row with the column `schema`.
        tables: all its tables.
        fix: what to do about another file.
        steps: for each earlier version that is still known, the statements that make the next one of it. Tables that
            are missing afterwards are made.
        alone: whether nothing else may be where it is begun.
        headerless: the version of a store that has some of the tables, and no header.
    """

    name: str
    what: str
    header: Table
    tables: MetaData
    fix: str
    steps: Mapping[int, Sequence[str]] = field(default_factory=dict)
    alone: bool = True
    headerless: int | None = None

    @property
    def schema(self) -> str:
        """Its name without the version."""
        return self.name.rpartition("/")[0]

    @property
    def version(self) -> int:
        """The number in its name."""
        return int(self.name.rpartition("/")[2])


def open_form(connection: Connection, form: Form, place: str, **values: Any) -> bool:
    """Begin a store, or bring it to the present form, in the transaction of the connection; whether it was begun.

    Args:
        connection: of a store from `open_store`.
        form: what to make of it.
        place: the store's, for messages.
        values: what a new header says besides.

    Raises:
        DataError: something else is in its place, it is of a later version or of an unknown one, or it is of an earlier
            one and was opened to be read alone.
    """
    found = set(inspect(connection).get_table_names())
    own = {table.name for table in form.tables.tables.values()}
    if form.header.name not in found and not (found if form.alone else found & own) and not is_read_only(connection):
        form.tables.create_all(connection)
        connection.execute(insert(form.header).values(schema=form.name, **values))
        return True
    foreign = DataError(f"is no {form.what} of this version", place=place, fix=form.fix)
    if form.header.name not in found and (form.headerless is None or not found & own):
        raise foreign
    if form.header.name not in found:
        told = [f"{form.schema}/{form.headerless}"]
    else:
        told = list(connection.scalars(select(form.header.c.schema)))
    schema, _, number = str(told[0]).rpartition("/") if len(told) == 1 else ("", "", "")
    if schema != form.schema or not number.isdecimal():
        raise foreign
    if int(number) > form.version:
        raise DataError(
            f"was written by a later version of this package ({told[0]}; this version knows {form.name})",
            place=place,
            fix="install that version, or a later one",
        )
    if int(number) < form.version:
        _migrate(connection, form, int(number), place, foreign)
    elif not own <= found:
        raise foreign
    return False


def _migrate(connection: Connection, form: Form, version: int, place: str, foreign: DataError) -> None:
    if any(step not in form.steps for step in range(version, form.version)):
        raise foreign
    if is_read_only(connection):
        raise DataError(
            f"is of an earlier form ({form.schema}/{version}), and was opened to be read alone",
            place=place,
            fix="make a backup, then open it once by a command that writes; that brings it to the present form",
        )
    for step in range(version, form.version):
        for statement in form.steps[step]:
            connection.exec_driver_sql(statement)
    form.tables.create_all(connection)
    guarded = _GUARD in form.header.info
    if guarded:
        _unguard(form.header, connection)
    if not connection.execute(update(form.header).values(schema=form.name)).rowcount:
        connection.execute(insert(form.header).values(schema=form.name))
    if guarded:
        _guard(form.header, connection)
    _log.warning(
        "%s: brought from %s/%s to %s; make a backup now: earlier ones hold the earlier form, and an earlier version "
        "of this package does not open this one",
        place,
        form.schema,
        version,
        form.name,
    )


# --- guards ----------------------------------------------------------------------------------------------------------

_GUARD = "cohortium_append_only"
_REFUSAL = "this table is append-only"
_RAISE = f"RAISE EXCEPTION '{_REFUSAL}' USING ERRCODE = 'integrity_constraint_violation'"


def append_only(table: Table, unless: str | None = None) -> None:
    """Give a table, when it is made, triggers that refuse to update and to delete.

    Args:
        table: which.
        unless: in SQL, when a new row is refused; without it SQLite's INSERT OR REPLACE could still replace rows.
    """
    table.info[_GUARD] = unless

    @event.listens_for(table, "after_create")
    def _made(_table: Table, connection: Connection, **_options: object) -> None:
        _guard(table, connection)


def _guard(table: Table, connection: Connection) -> None:
    name, unless = table.name, table.info[_GUARD]
    if connection.dialect.name == "sqlite":
        kinds = [("UPDATE", ""), ("DELETE", ""), *([("INSERT", f"WHEN {unless}")] if unless else [])]
        for kind, condition in kinds:
            connection.exec_driver_sql(
                f"CREATE TRIGGER {name}_no_{kind.lower()} BEFORE {kind} ON {name} {condition} "
                f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
            )
        return
    refuse_changes(table, connection)
    if unless:
        _function(connection, f"{name}_new", f"IF {unless} THEN {_RAISE}; END IF; RETURN NEW;")
        _trigger(connection, f"{name}_no_insert", "BEFORE INSERT", name, "ROW", f"{name}_new")


def refuse_changes(table: Table, connection: Connection) -> None:
    """Give a PostgreSQL table triggers that refuse to update, to delete and to truncate."""
    name = table.name
    _function(connection, f"{name}_kept", f"{_RAISE}; RETURN NULL;")
    for kind, each in (("UPDATE", "ROW"), ("DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
        _trigger(connection, f"{name}_no_{kind.lower()}", f"BEFORE {kind}", name, each, f"{name}_kept")


def _unguard(table: Table, connection: Connection) -> None:
    of = "" if connection.dialect.name == "sqlite" else f" ON {table.name}"
    for kind in ("update", "delete", "insert", *(() if not of else ("truncate",))):
        connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {table.name}_no_{kind}{of}")


def _function(connection: Connection, name: str, body: str) -> None:
    text_of = f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$"
    connection.exec_driver_sql(text_of)


def _trigger(connection: Connection, name: str, when: str, table: str, each: str, function: str) -> None:
    connection.exec_driver_sql(f"CREATE TRIGGER {name} {when} ON {table} FOR EACH {each} EXECUTE FUNCTION {function}()")


def keeps_last_number(table: Table) -> None:
    """Have the database remember the greatest number (`sequence`) that a table ever had, whatever is deleted later.

    SQLite does so by AUTOINCREMENT.
    """

    @event.listens_for(table, "after_create")
    def _made(_table: Table, connection: Connection, **_options: object) -> None:
        if connection.dialect.name == "sqlite":
            return
        connection.exec_driver_sql(
            f"CREATE TABLE IF NOT EXISTS {_NUMBERS} (name text PRIMARY KEY, seq bigint NOT NULL)"
        )
        keep = (
            f"INSERT INTO {_NUMBERS} VALUES (TG_TABLE_NAME, NEW.sequence) ON CONFLICT (name) "
            f"DO UPDATE SET seq = GREATEST({_NUMBERS}.seq, EXCLUDED.seq); RETURN NULL;"
        )
        _function(connection, f"{table.name}_numbered", keep)
        _trigger(connection, f"{table.name}_number", "AFTER INSERT", table.name, "ROW", f"{table.name}_numbered")


def last_number(connection: Connection, table: Table) -> int:
    """The highest number that a table of `keeps_last_number` ever had, 0 before the first."""
    kept = "sqlite_sequence" if connection.dialect.name == "sqlite" else _NUMBERS
    found = connection.execute(text(f"SELECT seq FROM {kept} WHERE name = :name"), {"name": table.name}).scalar()
    return int(found or 0)


# --- leftovers, copies -----------------------------------------------------------------------------------------------


def drop_leftovers(store: Engine, *tables: Table) -> bool:
    """Remove what deleted rows left: in SQLite's write-ahead log, or in the pages of these PostgreSQL tables.

    What was written over on the disk itself is up to its file system; what is in PostgreSQL's own log and in its
    copies, to its owner.

    Returns:
        False while another process reads an SQLite store: then the log stays until the last process closes it.
    """
    connection = store.raw_connection()  # not within a transaction
    try:
        if store.dialect.name == "sqlite":
            busy, *_pages = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy
    finally:
        connection.close()
    with store.connect().execution_options(isolation_level="AUTOCOMMIT") as plain:
        for table in tables:
            plain.exec_driver_sql(f"VACUUM {table.name}")
    return True


def disk_is_full(error: DBAPIError) -> bool:
    """Whether that is why a statement failed."""
    return getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL or (
        getattr(error.orig, "sqlstate", None) == "53100"
    )


def insert_all(connection: Connection, table: Table, rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows, their values in the order of the table's columns, by what is fastest in the database."""
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(str(insert(table).compile(dialect=connection.dialect)), list(map(tuple, rows)))
        return
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    with connection.connection.cursor().copy(f"COPY {table.name} ({names}) FROM STDIN") as copying:
        for row in rows:
            copying.write_row(row)


def copy_rows(source: Connection, target: Connection, tables: Sequence[Table]) -> int:
    """Copy every row of these tables, in the order of their keys, with the last numbers ever given; how many rows.

    Args:
        source: within a transaction that sees one state of the store.
        target: a store that has these tables, empty.
        tables: those that `source` lacks are passed over.
    """
    there, rows = set(inspect(source).get_table_names()), 0
    if target.dialect.name == "sqlite":
        target.exec_driver_sql(f"PRAGMA cache_size={-_CACHE_KIB}")  # keys of people come in no order
    for table in [table for table in tables if table.name in there]:
        ordered = select(table).order_by(*table.primary_key.columns)
        for part in source.execute(ordered.execution_options(yield_per=_CHUNK)).partitions():
            insert_all(target, table, part)
            rows += len(part)
        _number_on(source, target, table)
    return rows


def _number_on(source: Connection, target: Connection, table: Table) -> None:
    column = table.autoincrement_column
    if column is None or table.primary_key.columns.values() != [column]:
        return
    counted = "sqlite_sequence" if source.dialect.name == "sqlite" else _NUMBERS
    if inspect(source).has_table(counted):
        kept = "sqlite_sequence" if target.dialect.name == "sqlite" else _NUMBERS
        if inspect(target).has_table(kept):
            move = text(f"UPDATE {kept} SET seq = :seq WHERE name = :name AND seq < :seq")
            target.execute(move, {"seq": last_number(source, table), "name": table.name})
    if target.dialect.name != "sqlite":
        last = target.execute(select(func.max(column))).scalar()
        serial = target.execute(
            text("SELECT pg_get_serial_sequence(:table, :column)"), {"table": table.name, "column": column.name}
        ).scalar()
        if last is not None and serial is not None:
            target.execute(text("SELECT setval(:serial, :last)"), {"serial": serial, "last": last})


def copy_store(path: Path, copy: Path, tables: Sequence[Table]) -> None:
    """Write one state of a store, which others may go on using, into a new SQLite file.

    Args:
        path: as for `open_store`.
        copy: the file to be made.
        tables: what a store in PostgreSQL holds; an SQLite file is copied whole.

    Raises:
        DataError: as `open_store`.
    """
    url = store_url(path)
    in_postgresql = url is not None and url.drivername != "sqlite"
    source = open_store(path, create=False, read_only=in_postgresql)  # a file under its lock: others may write to it
    target = open_sqlite(copy, copy.parent, create=True, read_only=False)
    try:
        if source.dialect.name == "sqlite":
            _backed_up(source, target)
            return
        with source.begin() as reading, target.begin() as writing:
            for metadata in dict.fromkeys(table.metadata for table in tables):
                metadata.create_all(writing)
            copy_rows(reading, writing, tables)
    finally:
        source.dispose()
        target.dispose()


def _backed_up(source: Engine, target: Engine) -> None:
    reading, writing = source.raw_connection(), target.raw_connection()
    try:
        reading.driver_connection.backup(writing.driver_connection)  # type: ignore[union-attr] # of sqlite3
    finally:
        reading.close()
        writing.close()


@contextmanager
def sqlite_copy(path: Path, scratch: Path, tables: Sequence[Table]) -> Iterator[Path]:
    """The store of a folder as an SQLite file: its own, or a copy of one state of it that goes when the block ends.

    Args:
        path, tables: as for `copy_store`.
        scratch: a private folder for the copy.

    Raises:
        DataError: as `open_store`.
    """
    url = store_url(path)
    if url is None or url.drivername == "sqlite":
        yield path if url is None else Path(str(url.database))
        return
    copy = scratch / path.name
    copy_store(path, copy, tables)
    try:
        yield copy
    finally:
        for file in scratch.glob(f"{path.name}*"):
            file.unlink()
