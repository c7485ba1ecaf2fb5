"""What the gate relies on in a store of review, whatever the database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from cohortium.governance.review import ReviewStore, require_approved
from cohortium.privacy.stores import open_store
from cohortium.study.errors import DataError, RefusedError

NOW = datetime(2026, 4, 1, tzinfo=UTC)
NAME = "spring-1"


class ReviewStoreContract:
    """A database gives `place`: the path of the store, in a folder that says which database it is."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        raise NotImplementedError

    @pytest.fixture
    def engine(self, place: Path, world: Any) -> Iterator[sa.Engine]:
        """Of a store with the case in it."""
        engine = open_store(place)
        ReviewStore(engine).open(world.case, world.documents())
        yield engine
        engine.dispose()

    def test_two_signatures_open_the_gate_for_whoever_opens_the_store(
        self, engine: sa.Engine, place: Path, world: Any
    ) -> None:
        record = world.record(("priya", "approve"), ("rolf", "approve"))
        for one in record:
            ReviewStore(engine).add(NAME, one, world.charter, NOW)
        again = open_store(place, read_only=True)
        store = ReviewStore(again)
        assert store.cases() == (world.case,)
        assert store.statements(NAME) == tuple(record)
        assert store.document(world.case, "audit") == world.documents()["audit"]
        require_approved(store, world.case.subject, world.charter, NOW, institution="north")
        with pytest.raises((DBAPIError, DataError)):
            store.open(world.make_case("other", version=2), world.documents(2))
        again.dispose()

    def test_a_statement_is_kept_once_and_nothing_follows_a_rejection(self, engine: sa.Engine, world: Any) -> None:
        store = ReviewStore(engine)
        (said,) = world.record(("priya", "reject"))
        assert store.add(NAME, said, world.charter, NOW).state == "rejected"
        for again in (said, world.say("rolf", earlier=[said], hours=2)):
            with pytest.raises(RefusedError):
                store.add(NAME, again, world.charter, NOW)
        assert store.statements(NAME) == (said,)

    def test_of_two_who_sign_at_once_one_is_kept(self, engine: sa.Engine, place: Path, world: Any) -> None:
        results: list[str] = []
        gate = threading.Barrier(2)

        def sign(one: Any) -> None:
            own = open_store(place)
            store = ReviewStore(own)
            gate.wait()
            try:
                results.append(store.add(NAME, one, world.charter, NOW).state)
            except RefusedError as error:
                results.append(error.message)
            own.dispose()

        threads = [threading.Thread(target=sign, args=(world.say(person),)) for person in ("priya", "rolf")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == ["the statement does not follow the last one on this case", "waiting"]
        assert len(ReviewStore(engine).statements(NAME)) == 1

    @pytest.mark.parametrize(
        "edit",
        [
            "UPDATE review_cases SET kind = 'x'",
            "DELETE FROM review_statements",
            "DELETE FROM review_documents",
            "UPDATE review_header SET schema = 'x'",
            "INSERT INTO review_header VALUES ('x')",
            "INSERT INTO review_statements VALUES (7, 'n', 'd', 'p', '')",
            "INSERT INTO review_cases SELECT 5, 'n', 'd', institution, kind, 's', document FROM review_cases",
        ],
    )
    def test_the_database_refuses_every_change(self, engine: sa.Engine, world: Any, edit: str) -> None:
        ReviewStore(engine).add(NAME, world.say("priya"), world.charter, NOW)
        with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
            connection.exec_driver_sql(edit)
        assert len(ReviewStore(engine).statements(NAME)) == 1

    def test_a_store_of_a_later_version_is_refused(self, engine: sa.Engine) -> None:
        on = "" if engine.dialect.name == "sqlite" else "ON review_header"
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP TRIGGER review_header_no_update {on}")
            connection.exec_driver_sql("UPDATE review_header SET schema = 'cohortium.review-store/2'")
        with pytest.raises(DataError, match="later version"):
            ReviewStore(engine)


class TestSqliteReview(ReviewStoreContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        return tmp_path / "review.sqlite"


class TestPostgresqlReview(ReviewStoreContract):
    @pytest.fixture
    def place(self, tmp_path: Path, in_postgresql: Callable[[Path], str]) -> Path:
        in_postgresql(tmp_path)
        return tmp_path / "review.sqlite"

    def test_the_database_refuses_to_empty_a_table(self, engine: sa.Engine) -> None:
        with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
            connection.exec_driver_sql("TRUNCATE review_cases")
