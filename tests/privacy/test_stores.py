"""Where stores are: what `stores.toml` may say, what a server has to promise, and forms of earlier versions."""

from __future__ import annotations

import logging
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from cohortium.client.store import NodeStore
from cohortium.governance.consent import ConsentStore
from cohortium.privacy import store_forms
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.ledger import Ledger
from cohortium.privacy.secure_sum import SqlOnceStore
from cohortium.privacy.store_forms import Form, append_only, copy_store, drop_leftovers, open_form
from cohortium.privacy.stores import has_store, open_store
from cohortium.study.errors import DataError

BUDGET = budget_for(1.0, 1e-6)


def declare(folder: Path, *lines: str, mode: int = 0o600) -> Path:
    file = folder / "stores.toml"
    file.write_text("\n".join(('schema = "cohortium.stores/1"', *lines)) + "\n")
    file.chmod(mode)
    return folder / "node.sqlite"


# --- stores.toml -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (('node = "postgresql://u:secret-word@h/d"',), "holds a password"),
        (('node = "postgresql://u@h/d?password=secret-word"',), "holds a password"),
        (('node = "mysql://u@h/d"',), "not known here"),
        (('node = "sqlite:///beside.sqlite"',), "not known here"),
        (('node = "no url"',), "is no SQLAlchemy URL"),
        (('node = "postgresql://u@h/d?schema=a;b"',), "no usable schema"),
        (('node = "postgresql://u@h/d"', 'consent = "postgresql://u@h/d"'), "two stores have the same URL"),
        (('nodes = "postgresql://u@h/d"',), "nodes"),
    ],
)
def test_what_does_not_hold_together_is_named(tmp_path: Path, lines: tuple[str, ...], words: str) -> None:
    path = declare(tmp_path, *lines)
    for ask in (lambda: open_store(path), lambda: has_store(path)):
        with pytest.raises(DataError, match=words) as refused:
            ask()
        assert "secret-word" not in str(refused.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "stores.toml"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_files_that_others_can_read_are_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(DataError, match="others than its owner"):
        open_store(declare(tmp_path, mode=mode))
    (tmp_path / "password").write_text("secret-word")
    (tmp_path / "password").chmod(mode)
    pytest.importorskip("psycopg", reason="PostgreSQL's driver is not installed")
    with pytest.raises(DataError, match="others than its owner"):
        open_store(declare(tmp_path, 'password_file = "password"', 'node = "postgresql://u@127.0.0.1:1/d"'))


def test_a_store_can_be_another_file_and_the_rest_stay(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = declare(tmp_path, f'node = "sqlite:///{elsewhere}/ledger.db"')
    assert not has_store(path)
    with closing(Ledger(open_store(path), "north", BUDGET)):
        pass
    with closing(ConsentStore(open_store(tmp_path / "consent.sqlite"))):
        pass
    assert has_store(path)
    assert {file.name for file in tmp_path.glob("*.sqlite")} == {"consent.sqlite"}
    assert (elsewhere / "ledger.db").is_file()


def test_without_the_driver_one_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(DataError, match=r"driver of PostgreSQL is not installed .*cohortium\[postgresql\]"):
        open_store(declare(tmp_path, 'node = "postgresql://u@h/d"'))


# --- the server ------------------------------------------------------------------------------------------------------


def test_a_server_out_of_reach_is_named_without_the_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="PostgreSQL's driver is not installed")
    (tmp_path / "password").write_text("secret-word\n")
    (tmp_path / "password").chmod(0o600)
    path = declare(tmp_path, 'password_file = "password"', 'node = "postgresql://u@127.0.0.1:1/d"')
    with pytest.raises(DataError, match=r"stores.toml: node: the database cannot be used") as refused:
        open_store(path)
    shown: BaseException | None = refused.value
    while shown is not None:
        assert "secret-word" not in str(shown)
        shown = shown.__cause__


@pytest.mark.parametrize("setting", ["synchronous_commit", "synchronous_commit_of_database"])
def test_a_server_that_does_not_wait_for_the_disk_is_refused(tmp_path: Path, postgresql: str, setting: str) -> None:
    loose = "loose_role" if setting == "synchronous_commit" else "loose_database"
    engine = sa.create_engine(postgresql, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if setting == "synchronous_commit":
            connection.exec_driver_sql(f"CREATE ROLE {loose} LOGIN SUPERUSER")
            connection.exec_driver_sql(f"ALTER ROLE {loose} SET synchronous_commit = off")
            url = postgresql.replace("cohortium@", f"{loose}@")
        else:
            connection.exec_driver_sql(f"CREATE DATABASE {loose}")
            connection.exec_driver_sql(f"ALTER DATABASE {loose} SET synchronous_commit = off")
            url = postgresql.replace("/postgres", f"/{loose}")
    engine.dispose()
    with pytest.raises(DataError, match="synchronous_commit off: a charge could be lost"):
        open_store(declare(tmp_path, f'node = "{url}&schema={loose}"'))


def test_sessions_commit_durably_and_lock_before_they_read(tmp_path: Path, in_postgresql: Callable[..., str]) -> None:
    in_postgresql(tmp_path)
    engine = open_store(tmp_path / "node.sqlite")
    with engine.begin() as connection:
        shown = {name: connection.exec_driver_sql(f"SHOW {name}").scalar() for name in ("fsync", "synchronous_commit")}
        held = connection.exec_driver_sql("SELECT mode, granted FROM pg_locks WHERE locktype = 'advisory'").all()
    assert shown == {"fsync": "on", "synchronous_commit": "on"}
    assert [tuple(row) for row in held] == [("ExclusiveLock", True)]
    engine.dispose()


def test_those_that_open_a_new_store_at_once_all_get_it(tmp_path: Path, in_postgresql: Callable[..., str]) -> None:
    in_postgresql(tmp_path)
    together = threading.Barrier(6)

    def opening(_: int) -> bool:
        together.wait()
        engine = open_store(tmp_path / "node.sqlite")
        with closing(Ledger(engine, "n", budget_for(3.0, 1e-6))) as ledger:
            return not list(ledger.charges())

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(opening, range(6))) == [True] * 6


def test_a_lost_ledger_is_not_made_anew(tmp_path: Path, in_postgresql: Callable[..., str]) -> None:
    in_postgresql(tmp_path)
    path = tmp_path / "node.sqlite"
    assert not has_store(path)
    for terms in ({"create": False}, {"read_only": True}):
        with pytest.raises(DataError, match="the ledger is missing"):
            open_store(path, **terms)
    Ledger(open_store(path), "north", BUDGET).close()
    assert has_store(path)
    engine = open_store(path, read_only=True)
    with pytest.raises(sa.exc.DBAPIError), engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM charges")
    engine.dispose()


class OnceContract:
    @pytest.fixture
    def engine(self, tmp_path: Path) -> Iterator[sa.Engine]:
        raise NotImplementedError

    def test_values_are_written_once_and_erased_as_a_whole(self, engine: sa.Engine) -> None:
        store = SqlOnceStore(engine)
        assert store.keep("r", 1, "seed", b"\x00a") == b"\x00a"
        assert SqlOnceStore(engine).keep("r", 1, "seed", b"b") == b"\x00a"
        store.keep("r", 1, "key", b"k")
        store.keep("r", 2, "seed", b"c")
        store.erase("r", 2, ("seed",))
        found = [store.find("r", *key) for key in ((1, "seed"), (1, "key"), (2, "seed"))]
        assert found == [None, b"k", b"c"]


class TestSqliteOnce(OnceContract):
    @pytest.fixture
    def engine(self, tmp_path: Path) -> Iterator[sa.Engine]:
        engine = open_store(tmp_path / "node.sqlite")
        yield engine
        engine.dispose()


class TestPostgresqlOnce(OnceContract):
    @pytest.fixture
    def engine(self, tmp_path: Path, in_postgresql: Callable[..., str]) -> Iterator[sa.Engine]:
        in_postgresql(tmp_path)
        engine = open_store(tmp_path / "node.sqlite")
        yield engine
        engine.dispose()


# --- forms -----------------------------------------------------------------------------------------------------------

_old, _new = sa.MetaData(), sa.MetaData()
_old_header = sa.Table("review_header", _old, sa.Column("schema", sa.String, primary_key=True))
_new_header = sa.Table("review_header", _new, sa.Column("schema", sa.String, primary_key=True))
sa.Table("things", _old, sa.Column("number", sa.Integer, primary_key=True))
sa.Table(
    "things", _new, sa.Column("number", sa.Integer, primary_key=True), sa.Column("colour", sa.String, nullable=False)
)
sa.Table("owners", _new, sa.Column("name", sa.String, primary_key=True))
for header in (_old_header, _new_header):
    append_only(header, "EXISTS (SELECT 1 FROM review_header)")
OLD = Form("things/1", "store of things", _old_header, _old, "name it")
STEP = ("ALTER TABLE things ADD COLUMN colour VARCHAR NOT NULL DEFAULT 'grey'",)
NEW = Form("things/2", "store of things", _new_header, _new, "name it", steps={1: STEP})
BROKEN = Form("things/2", "store of things", _new_header, _new, "name it", steps={1: (*STEP, "NO SQL")})


@pytest.fixture(params=["sqlite", "postgresql"])
def things(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """A store of the earlier form, with one row."""
    if request.param == "postgresql":
        request.getfixturevalue("in_postgresql")(tmp_path)
    engine = open_store(tmp_path / "review.sqlite")
    with engine.begin() as connection:
        assert open_form(connection, OLD, "here")
        connection.exec_driver_sql("INSERT INTO things VALUES (7)")
    yield engine
    engine.dispose()


def opened(engine: sa.Engine, form: Form) -> None:
    with engine.begin() as connection:
        open_form(connection, form, "here")


def rows(engine: sa.Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.begin() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


def test_a_store_of_the_earlier_form_is_brought_to_this_one(things: sa.Engine, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        opened(things, NEW)
    assert "brought from things/1 to things/2; make a backup now" in caplog.text
    assert rows(things, "SELECT * FROM things") == [(7, "grey")]
    assert rows(things, "SELECT * FROM owners") == []
    assert rows(things, "SELECT * FROM review_header") == [("things/2",)]
    with pytest.raises(sa.exc.DBAPIError, match="append-only"):
        rows(things, "UPDATE review_header SET schema = 'x'")
    opened(things, NEW)
    with pytest.raises(DataError, match=r"later version of this package \(things/2; this version knows things/1\)"):
        opened(things, OLD)


def test_a_step_that_fails_leaves_the_store_as_it_was(things: sa.Engine) -> None:
    with pytest.raises((sa.exc.DBAPIError, DataError)):
        opened(things, BROKEN)
    opened(things, OLD)
    assert rows(things, "SELECT * FROM things") == [(7,)]
    opened(things, NEW)


# --- read and copied while others write -----------------------------------------------------------------------------


def is_noticed(reader: sa.Engine, path: Path) -> bool:
    """Whether a writer that cuts off its log waits for who reads: else pages would change beneath the reader."""
    reading = reader.raw_connection()
    reading.cursor().execute("BEGIN")
    reading.cursor().execute("SELECT * FROM things").fetchall()
    writer = open_store(path)
    with writer.begin() as connection:
        connection.exec_driver_sql("INSERT INTO things SELECT max(number) + 1 FROM things")
    cutting = writer.raw_connection()
    cutting.cursor().execute("PRAGMA busy_timeout=0")
    busy, *_ = cutting.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    for one in (cutting, reading):
        one.close()
    writer.dispose()
    return bool(busy)


@pytest.mark.parametrize("things", ["sqlite"], indirect=True)
def test_who_reads_alone_is_noticed_also_after_the_log_was_cut_off(things: sa.Engine, tmp_path: Path) -> None:
    assert drop_leftovers(things)
    assert (tmp_path / "review.sqlite-wal").stat().st_size == 0
    again = open_store(tmp_path / "review.sqlite", read_only=True)
    assert is_noticed(again, tmp_path / "review.sqlite")
    again.dispose()


@pytest.mark.parametrize("things", ["sqlite"], indirect=True)
def test_a_copy_is_one_state_whoever_begins_to_write_meanwhile(
    things: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    things.dispose()
    assert not (tmp_path / "review.sqlite-wal").exists(), "nobody has it open when the copy begins"
    noticed, copied = [], store_forms._backed_up

    def meanwhile(source: sa.Engine, target: sa.Engine) -> None:
        noticed.append(is_noticed(source, tmp_path / "review.sqlite"))
        copied(source, target)

    monkeypatch.setattr(store_forms, "_backed_up", meanwhile)
    copy_store(tmp_path / "review.sqlite", tmp_path / "copy", [])
    assert noticed == [True]
    copy = open_store(tmp_path / "copy", create=False)
    assert rows(copy, "SELECT * FROM things") == [(7,), (8,)]
    copy.dispose()


def test_a_form_without_steps_from_there_is_refused(things: sa.Engine) -> None:
    with pytest.raises(DataError, match="is no store of things of this version"):
        opened(things, Form("things/2", "store of things", _new_header, _new, "name it"))


def test_what_is_read_alone_is_not_migrated(things: sa.Engine, tmp_path: Path) -> None:
    again = open_store(tmp_path / "review.sqlite", read_only=True)
    with pytest.raises(DataError, match=r"earlier form .* make a backup"):
        opened(again, NEW)
    again.dispose()
    opened(things, OLD)


PREVIOUS_NODE = """
CREATE TABLE approvals (plan VARCHAR NOT NULL PRIMARY KEY, approved_at VARCHAR NOT NULL, document BLOB NOT NULL,
    charter BLOB NOT NULL);
CREATE TABLE decisions (sequence INTEGER NOT NULL PRIMARY KEY, recorded_at VARCHAR NOT NULL, plan VARCHAR NOT NULL,
    subject VARCHAR NOT NULL, decision VARCHAR NOT NULL, admitted BOOLEAN NOT NULL, document BLOB, facts BLOB);
INSERT INTO approvals VALUES ('sha256:p', '2026-01-01T00:00:00+00:00', '{}', '{}');
INSERT INTO decisions VALUES (1, '2026-01-01T00:00:00+00:00', 'sha256:p', 'r', 'sha256:d', 1, NULL, NULL);
"""


def test_a_node_of_the_version_before_keeps_its_approvals_and_decisions(tmp_path: Path) -> None:
    """Made by what that version wrote: there was no header yet."""
    path = tmp_path / "node.sqlite"
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(PREVIOUS_NODE)
    engine = open_store(path, read_only=True)
    with pytest.raises(DataError, match="earlier form"):
        NodeStore(engine)
    engine.dispose()
    engine = open_store(path)
    store = NodeStore(engine)
    assert store.plans() == ("sha256:p",)
    assert store.admitted("sha256:p", "r") == "sha256:d"
    assert store.restored() is None
    assert rows(engine, "SELECT * FROM node_header") == [("cohortium.node-store/2",)]
    store.mark_restored("2026-01-01T00:00:00+00:00")
    NodeStore(engine).confirm_restored(("west",))
    engine.dispose()
