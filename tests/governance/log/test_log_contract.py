"""What doors and witnesses rely on in the file of a log, whatever the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.exc import DBAPIError

from cohortium.governance.log import AuditLog, Ed25519Signer, JoinedStore, Witness, parse_note, verify_log
from cohortium.privacy.stores import open_store
from cohortium.study.errors import RefusedError

ORIGIN = "cohortium/sea/north"


class LogContract:
    """A database gives `place`: the path of the log, in a folder that says which database it is."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        raise NotImplementedError

    @pytest.fixture
    def engine(self, place: Path) -> Iterator[sa.Engine]:
        engine = open_store(place)
        yield engine
        engine.dispose()

    @pytest.fixture
    def log(self, engine: sa.Engine, keys: dict[str, Ed25519PrivateKey]) -> AuditLog:
        """Of 600 entries: two whole blocks and a rest."""
        log = AuditLog(JoinedStore(engine), ORIGIN, Ed25519Signer(ORIGIN, keys["north"]))
        log.append([{"event": "query", "step": step} for step in range(600)], keys=[f"k{step}" for step in range(600)])
        return log

    def test_a_log_is_verified_where_it_is(self, log: AuditLog, place: Path, keys: dict[str, Any]) -> None:
        note = log.checkpoint()
        assert log.checkpoint() == note
        report = verify_log(place, Ed25519Signer(ORIGIN, keys["north"]).verifier, notes=[note])
        assert (report.size, report.findings) == (600, ())

    def test_an_entry_is_appended_once(self, log: AuditLog) -> None:
        assert log.append([{"event": "query", "step": 7}], keys=["k7"]) == [7]
        with pytest.raises(RefusedError, match="another entry"):
            log.append([{"event": "query", "step": 8}], keys=["k7"])
        assert log.size == 600

    def test_a_witness_cosigns_one_history(self, log: AuditLog, engine: sa.Engine, keys: dict[str, Any]) -> None:
        verifier = Ed25519Signer(ORIGIN, keys["north"]).verifier
        west = Witness(engine, "cohortium/sea/west", keys["west"])
        line = west.cosign(ORIGIN, verifier, 0, [], log.checkpoint())
        assert line.startswith("— cohortium/sea/west ")
        log.append([{"event": "query", "step": 600}])
        west.cosign(ORIGIN, verifier, 600, log.consistency(600, 601), log.checkpoint())
        known = west.known(ORIGIN)
        assert known is not None
        assert known.checkpoint.size == 601
        log.keep_cosigned(log.checkpoint())
        assert parse_note(log.cosigned() or "").text == parse_note(log.checkpoint()).text

    @pytest.mark.parametrize(
        "edit",
        [
            "UPDATE log_entries SET key = 'x' WHERE position = 1",
            "DELETE FROM log_entries WHERE position = 599",
            "INSERT INTO log_entries SELECT 700, 'x', leaf, hash FROM log_entries WHERE position = 1",
            "DELETE FROM log_checkpoints",
        ],
    )
    def test_the_database_refuses_every_change(self, log: AuditLog, engine: sa.Engine, edit: str) -> None:
        log.checkpoint()
        with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
            connection.exec_driver_sql(edit)
        assert log.size == 600


class TestSqliteLog(LogContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        return tmp_path / "log.sqlite"


class TestPostgresqlLog(LogContract):
    @pytest.fixture
    def place(self, tmp_path: Path, in_postgresql: Callable[[Path], str]) -> Path:
        in_postgresql(tmp_path)
        return tmp_path / "log.sqlite"
