"""Where a folder keeps its stores: SQLite files in it, or PostgreSQL where its `stores.toml` says so.

Whoever opens `folder / "node.sqlite"` gets the store that the folder names for `node`. Whatever the database:

- a transaction locks before it reads, so that of two who read before they write one waits for the other;
- a commit is on disk when it returns, or the store is not opened.

A store in PostgreSQL has a schema of its own, so that several stores can share a database. Its lock is an advisory one
on the schema's name: it keeps apart those who open it here, as the file's lock does in SQLite.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from sqlalchemy import URL, Connection, Engine, ExceptionContext, NullPool, create_engine, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, InterfaceError, OperationalError

from cohortium.study.document import Agreed, read_toml, validated
from cohortium.study.errors import DataError

__all__ = [
    "STORES_FILE",
    "folder_of",
    "has_store",
    "is_read_only",
    "open_sqlite",
    "open_store",
    "schema_in",
    "store_url",
]

STORES_FILE = "stores.toml"

_READ_ONLY, _FOLDER = "cohortium_read_only", "cohortium_folder"
_WAIT = 30
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_HEADERS = {
    "node": "ledger_header",
    "consent": "consent_header",
    "review": "review_header",
    "log": "log_header",
    "obligations": "obligations_header",
}
"""The stores of a folder, each with the table by which one knows that it was begun."""


class _Stores(Agreed):
    """`stores.toml`: a SQLAlchemy URL for each store that is no SQLite file in the folder."""

    format: Literal["cohortium.stores/1"] = Field(alias="schema")
    password_file: str | None = None
    node: str | None = None
    consent: str | None = None
    review: str | None = None
    log: str | None = None
    obligations: str | None = None

    @model_validator(mode="after")
    def _apart(self) -> _Stores:
        urls = [url for name in _HEADERS if (url := getattr(self, name)) is not None]
        if len(set(urls)) < len(urls):
            raise ValueError("two stores have the same URL: give each a schema of its own")
        return self


# --- where a store is ------------------------------------------------------------------------------------------------


def store_url(path: Path) -> URL | None:
    """Where the store of a folder is, if its `stores.toml` puts it elsewhere; never with a password.

    Args:
        path: the file in which it is otherwise, such as `folder / "node.sqlite"`.

    Raises:
        DataError: `stores.toml` does not hold together, others than its owner may read it, or it names a database that
            is not known here.
    """
    declared = _declared(path) if path.suffix == ".sqlite" and path.stem in _HEADERS else None
    told = None if declared is None else getattr(declared, path.stem)
    if told is None:
        return None
    place = f"{path.with_name(STORES_FILE)}: {path.stem}"
    try:
        url = make_url(told)
    except ArgumentError:
        raise DataError("is no SQLAlchemy URL", place=place, fix="write postgresql+psycopg://USER@HOST/DB") from None
    if url.password is not None or "password" in url.query:
        raise DataError(
            "holds a password", place=place, fix="put it into the file that password_file names, or into PGPASSFILE"
        )
    if url.drivername in ("postgresql", "postgresql+psycopg"):
        schema_in(url, place)
        return url.set(drivername="postgresql+psycopg")
    if url.drivername == "sqlite" and url.database and Path(url.database).is_absolute():
        return url
    raise DataError("names a database that is not known here", place=place, fix="use postgresql+psycopg or sqlite:////")


def has_store(path: Path) -> bool:
    """Whether the store of a folder was begun, wherever it is; errors as `open_store`."""
    url = store_url(path)
    if url is None or url.drivername == "sqlite":
        return (path if url is None else Path(str(url.database))).is_file()
    with _plain(url, path) as connection:
        return _is_begun(connection, url, path)


def schema_in(url: URL, place: str = "") -> str:
    """The PostgreSQL schema that a store's URL names: `?schema=`, or `cohortium`."""
    name = url.query.get("schema", "cohortium")
    if not isinstance(name, str) or not _SCHEMA.fullmatch(name):
        raise DataError("has no usable schema", place=place, fix="write ?schema= with small letters, digits and _")
    return name


def folder_of(store: Engine) -> Path:
    """The folder to which an opened store belongs."""
    return Path(store.get_execution_options()[_FOLDER])


def is_read_only(connection: Connection) -> bool:
    """Whether a store was opened to be read alone."""
    return bool(connection.get_execution_options().get(_READ_ONLY))


def _declared(path: Path) -> _Stores | None:
    file = path.with_name(STORES_FILE)
    if not file.is_file():
        return None
    _require_private(file)
    return validated(_Stores, read_toml(file, DataError), str(file), {}, DataError)


def _require_private(file: Path) -> None:
    try:
        found = file.stat()
    except OSError as error:
        raise DataError("cannot be read", place=str(file), fix="check the path and its permissions") from error
    if stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid not in (os.geteuid(), 0):
        raise DataError("others than its owner can read or change it", place=str(file), fix=f"chmod 600 {file}")


def _password(path: Path) -> str | None:
    """From the file that `stores.toml` names; the driver asks PGPASSFILE otherwise."""
    declared = _declared(path)
    if declared is None or declared.password_file is None:
        return None
    file = path.parent / declared.password_file
    _require_private(file)
    return file.read_text(encoding="utf-8").strip()


# --- opening ---------------------------------------------------------------------------------------------------------


def open_store(path: Path, *, create: bool = True, read_only: bool = False) -> Engine:
    """The store of a folder, whose commits survive a crash and a power cut; readable by its owner alone.

    Args:
        path: the SQLite file; the folder's `stores.toml` may say that this store is elsewhere.
        create: make it when missing. False where it must be there already: an empty ledger in place of a lost one would
            spend the people's budget a second time.
        read_only: never create or change anything.

    Raises:
        DataError: the store is missing and must not be made, is no database, or cannot be opened; `stores.toml` does
            not hold together; a PostgreSQL server that does not wait for the disk.
    """
    url = store_url(path)
    if url is not None and url.drivername != "sqlite":
        return _open_postgresql(url, path, create and not read_only, read_only)
    return open_sqlite(
        path if url is None else Path(str(url.database)), path.parent, create=create, read_only=read_only
    )


def open_sqlite(path: Path, folder: Path, *, create: bool, read_only: bool) -> Engine:
    """A store that is this SQLite file, whatever `stores.toml` says; otherwise as `open_store`."""
    if (read_only or not create) and not path.is_file():
        raise _missing(str(path))
    options = {_FOLDER: str(folder), _READ_ONLY: read_only}
    url = URL.create("sqlite", database=str(path))
    if read_only:
        engine = create_engine(
            url,
            creator=lambda: _connect_read_only(path),
            poolclass=NullPool,
            execution_options=options,
            hide_parameters=True,
        )
        begin = "BEGIN"
    else:
        _touch(path)
        engine = create_engine(url, execution_options=options, hide_parameters=True)
        begin = "BEGIN IMMEDIATE"

        @event.listens_for(engine, "connect")
        def _durable(connection: Any, _record: object) -> None:
            connection.isolation_level = None  # transactions are begun below, explicitly
            connection.execute(f"PRAGMA busy_timeout={1000 * _WAIT}")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA secure_delete=ON")

    @event.listens_for(engine, "begin")
    def _lock(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA schema_version")
    except DatabaseError as error:
        raise DataError("not a usable SQLite file", place=str(path), fix="put back the newest copy") from error
    return engine


def _missing(place: str) -> DataError:
    return DataError(
        "the ledger is missing" if "node" in Path(place).name else "the store is missing",
        place=place,
        fix="put back the newest copy; a new one would forget what was spent",
    )


def _touch(path: Path) -> None:
    try:
        path.touch(mode=0o600)
    except OSError as error:
        raise DataError("cannot be opened", place=str(path), fix="check the path and its permissions") from error


def _connect_read_only(path: Path) -> sqlite3.Connection:
    """Where nobody has the file open, reading it as immutable leaves no file beside it.

    Whoever has it open keeps an index beside it (`-shm`), also while the write-ahead log is empty.
    """
    index, log = (path.with_name(f"{path.name}-{end}") for end in ("shm", "wal"))
    mode = "mode=ro" if index.exists() or (log.exists() and log.stat().st_size) else "mode=ro&immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None, timeout=_WAIT)


def _open_postgresql(url: URL, path: Path, create: bool, read_only: bool) -> Engine:
    schema = schema_in(url)
    with _plain(url, path) as connection:
        _require_durable(connection, path)
        if not _is_begun(connection, url, path):
            if not create:
                raise _missing(f"{path.with_name(STORES_FILE)}: {path.stem}")
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({_lock_key(schema)})")  # two may open it first at once
            if schema not in inspect(connection).get_schema_names():
                connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    engine = create_engine(
        url.set(query={}),
        connect_args=_arguments(url, path, read_only),
        isolation_level="REPEATABLE READ" if read_only else "READ COMMITTED",
        execution_options={_FOLDER: str(path.parent), _READ_ONLY: read_only},
        hide_parameters=True,
        pool_pre_ping=True,
    )
    if not read_only:
        key = _lock_key(schema)

        @event.listens_for(engine, "begin")
        def _lock(connection: Connection) -> None:
            """Every later statement sees what was committed before the lock was had: the level is READ COMMITTED."""
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({key})")

    _name_errors(engine, path)
    return engine


def _lock_key(schema: str) -> int:
    return int.from_bytes(hashlib.sha256(f"cohortium {schema}".encode()).digest()[:8], "big", signed=True)


def _arguments(url: URL, path: Path, read_only: bool) -> dict[str, Any]:
    """What the driver is told: settings of the session, and the dead found out within a minute."""
    settings = {
        "search_path": schema_in(url),
        "lock_timeout": f"{_WAIT}s",
        "tcp_keepalives_idle": "20",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
        "default_transaction_read_only": "on" if read_only else "off",
    }
    more = {name: value for name, value in url.query.items() if name != "schema"}
    password = _password(path)
    return {
        **more,
        **({} if password is None else {"password": password}),
        "connect_timeout": _WAIT,
        "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
    }


@contextmanager
def _plain(url: URL, path: Path) -> Iterator[Connection]:
    """One connection of no transaction, to look around."""
    try:
        engine = create_engine(
            url.set(query={}),
            connect_args=_arguments(url, path, read_only=False),
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
        )
    except ImportError as error:
        raise DataError(
            "the driver of PostgreSQL is not installed",
            place=f"{path.with_name(STORES_FILE)}: {path.stem}",
            fix="pip install 'cohortium[postgresql]'",
        ) from error
    _name_errors(engine, path)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _name_errors(engine: Engine, path: Path) -> None:
    """A server that is out of reach is an error of ours, without what the driver says: it could quote a row."""
    place = f"{path.with_name(STORES_FILE)}: {path.stem}"

    @event.listens_for(engine, "handle_error")
    def _named(context: ExceptionContext) -> None:
        found = context.sqlalchemy_exception
        if isinstance(found, OperationalError | InterfaceError) and not context.is_pre_ping:
            code = getattr(context.original_exception, "sqlstate", None) or "no connection"
            raise DataError(
                f"the database cannot be used ({code}); what was not acknowledged was not kept",
                place=place,
                fix="check that the server runs, the URL, the user's rights and the password file",
            ) from None


def _is_begun(connection: Connection, url: URL, path: Path) -> bool:
    return inspect(connection).has_table(_HEADERS[path.stem], schema=schema_in(url))


def _require_durable(connection: Connection, path: Path) -> None:
    for name in ("fsync", "synchronous_commit", "full_page_writes"):
        if connection.exec_driver_sql(f"SHOW {name}").scalar() == "off":
            raise DataError(
                f"the server runs with {name} off: a charge could be lost",
                place=f"{path.with_name(STORES_FILE)}: {path.stem}",
                fix=f"set {name} to on for this server and role",
            )
