"""What governance relies on in a consent store, whatever the database."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from cohortium.governance.consent import Cohort, ConsentStore, Entry, FlagSignal
from cohortium.governance.consent import tables as consent_tables
from cohortium.privacy.stores import open_store
from cohortium.study.errors import DataError

COHORT = Cohort("Marketing", "consent")

KINDS = ("marketing-objection", "sharing-opt-out")

WRITER = """
import sys
from pathlib import Path
from cohortium.governance.consent import ConsentStore
from cohortium.privacy.stores import open_store
store = ConsentStore(open_store(Path(sys.argv[1])))
for number in range(40):
    store.object_(f"p{number}", sys.argv[2])
store.close()
"""


def allowed(store: ConsentStore, *people: str) -> list[bool]:
    return store.snapshot(COHORT).allowed(np.array(people)).tolist()


class ConsentStoreContract:
    """A database gives `database`: the path of the store, in a folder that says which database it is."""

    @pytest.fixture
    def database(self, tmp_path: Path) -> Path:
        raise NotImplementedError

    def test_what_was_said_stands_for_whoever_opens_it(
        self, store: ConsentStore, give: Callable[..., Any], open_consent: Callable[[], ConsentStore]
    ) -> None:
        receipts = [give(person) for person in ("ann", "bob", "cid")]
        assert [receipt["sequence"] for receipt in receipts] == [1, 2, 3]
        store.object_("bob")
        for seen in (store, open_consent()):
            assert allowed(seen, "ann", "bob", "cid", "dan") == [True, False, True, False]
            assert [one["sequence"] for one in seen.receipt("bob")] == [2, 4]
        assert open_consent().snapshot(COHORT).root == store.snapshot(COHORT).root
        assert open_consent().verify() == 4

    def test_snapshots_follow_what_others_write(
        self, store: ConsentStore, give: Callable[..., Any], open_consent: Callable[[], ConsentStore]
    ) -> None:
        people = ("ann", "bob", "cid")
        for person in people:
            give(person)
        assert allowed(store, *people) == [True, True, True]
        other = open_consent()
        other.withdraw("ann")
        assert allowed(store, *people) == [False, True, True]
        other.erase("bob")
        other.complete_erasure("bob")
        assert allowed(store, *people) == [False, False, True]
        assert other.principal("bob") is None
        other.note_round("r", "q", other.sequence)
        assert [one.duty for one in store.open_obligations()] == ["tell-recipients", "tell-recipients"]
        other.verify()

    def test_events_are_never_changed_or_taken_away(
        self, store: ConsentStore, give: Callable[..., Any], database: Path
    ) -> None:
        give("ann")
        store.object_("ann")
        engine = open_store(database)
        acts = ["UPDATE events SET previous = 9", "DELETE FROM events", "DELETE FROM obligations"]
        acts += ["TRUNCATE events"] if engine.dialect.name == "postgresql" else []
        for act in acts:
            with pytest.raises(sa.exc.DBAPIError), engine.begin() as connection:
                connection.exec_driver_sql(act)
        engine.dispose()
        assert store.verify() == 2

    def test_an_import_and_its_progress_are_one(
        self, store: ConsentStore, open_consent: Callable[[], ConsentStore]
    ) -> None:
        flag = Entry("ann", FlagSignal(kind="marketing-objection", state="set"), 0)
        with pytest.raises(ZeroDivisionError):
            store.record_many([flag], "sha256:" + "0" * 64, lambda done: bytes(1 // 0))
        assert store.sequence == 0
        store.record_many([flag], "sha256:" + "0" * 64, lambda done: b"1")
        again = open_consent()
        assert (again.sequence, again.progress("sha256:" + "0" * 64)) == (1, b"1")

    def test_two_processes_make_one_chain(self, store: ConsentStore, database: Path) -> None:
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(database), name]) for name in KINDS]
        assert [writer.wait(60) for writer in writers] == [0, 0]
        assert store.verify() == store.sequence == 80

    def test_a_store_of_a_later_version_is_refused(self, store: ConsentStore, database: Path) -> None:
        engine = open_store(database)
        with engine.begin() as connection:
            connection.execute(sa.update(consent_tables.header).values(schema="cohortium.consent/2"))
        with pytest.raises(DataError, match="later version"):
            ConsentStore(engine)
        engine.dispose()


class TestSqliteConsent(ConsentStoreContract):
    @pytest.fixture
    def database(self, tmp_path: Path) -> Path:
        return tmp_path / "consent.sqlite"


class TestPostgresqlConsent(ConsentStoreContract):
    @pytest.fixture
    def database(self, tmp_path: Path, in_postgresql: Callable[[Path], str]) -> Path:
        in_postgresql(tmp_path)
        return tmp_path / "consent.sqlite"
