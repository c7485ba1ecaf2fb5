"""What people said stands for ever, decides who may be counted, and leads to nobody after an erasure."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal as signals
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohortium.governance.consent import (
    AgeSignal,
    BackDatedError,
    BankSignal,
    Cohort,
    ConsentSignal,
    ConsentStore,
    Entry,
    ErasureSignal,
    FlagSignal,
    OpenBanking,
    Recorded,
    Rejected,
)
from cohortium.governance.consent.signals import FLAGS
from cohortium.privacy.ledger import open_store
from cohortium.study.errors import CohortiumError, DataError, RefusedError

from .conftest import Clock

SEGMENTS = Cohort("CustomerSegmentation", "consent")
LOOKALIKE = Cohort("LookalikeModelling", "consent")
DAY = 86400


def allowed(store: ConsentStore, cohort: Cohort, *people: str) -> list[bool]:
    return store.snapshot(cohort).allowed(np.array(people)).tolist()


# --- states, purposes, validity --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "valid"),
    [
        ("ConsentGiven", True),
        ("RenewedConsentGiven", True),
        ("ConsentRequested", False),
        ("ConsentRequestDeferred", False),
        ("ConsentRefused", False),
        ("ConsentWithdrawn", False),
        ("ConsentRevoked", False),
        ("ConsentExpired", False),
        ("ConsentInvalidated", False),
        ("ConsentUnknown", False),
    ],
)
def test_only_two_states_are_valid(store: ConsentStore, give: Callable[..., Any], state: str, valid: bool) -> None:
    give("anna", state=state)
    assert allowed(store, SEGMENTS, "anna") == [valid]


def test_a_narrower_purpose_is_covered_and_a_broader_one_is_not(store: ConsentStore, give: Callable[..., Any]) -> None:
    give("anna", "Marketing")
    give("ben", "TargetedAdvertising")
    give("cleo", "Personalisation")
    assert allowed(store, LOOKALIKE, "anna", "ben", "cleo", "nobody") == [True, True, True, False]
    assert allowed(store, SEGMENTS, "anna", "ben", "cleo", "nobody") == [True, False, False, False]


def test_the_newest_signal_that_covers_a_purpose_decides(
    store: ConsentStore, give: Callable[..., Any], clock: Clock
) -> None:
    give("anna", "Marketing")
    clock.forward(hours=1)
    store.withdraw("anna", ["TargetedAdvertising"])
    assert allowed(store, LOOKALIKE, "anna") == [False]
    assert allowed(store, SEGMENTS, "anna") == [True]
    clock.forward(hours=1)
    store.withdraw("anna", ["Marketing"])
    assert allowed(store, SEGMENTS, "anna") == [False]


def test_a_consent_ends(store: ConsentStore, give: Callable[..., Any], clock: Clock) -> None:
    give("anna", validity="P2D")
    for still in (True, True, False):
        assert allowed(store, SEGMENTS, "anna") == [still]
        clock.forward(days=1)


def test_objections_opt_outs_and_minors(store: ConsentStore, give: Callable[..., Any], clock: Clock) -> None:
    people = ("marketing-objection", "interests-objection", "sharing-opt-out", "affiliate-opt-out", "gpc", "minor")
    for person in people:
        give(person, "Marketing", "CommercialResearch")
        if person == "minor":
            store.record(Entry(person, AgeSignal(state="13-17"), clock.seconds))
        else:
            store.object_(person, person)  # type: ignore[arg-type]
    out = {
        cohort: [person for person, may in zip(people, allowed(store, cohort, *people), strict=True) if not may]
        for cohort in (
            SEGMENTS,
            LOOKALIKE,
            Cohort("CommercialResearch", "consent"),
            Cohort("CommercialResearch", "consent", sharing=True),
            Cohort("CommercialResearch", "legitimate_interests"),
            Cohort("Marketing", "legitimate_interests"),
        )
    }
    assert list(out.values()) == [
        ["marketing-objection", "minor"],
        ["marketing-objection", "sharing-opt-out", "affiliate-opt-out", "gpc", "minor"],
        [],
        ["sharing-opt-out", "affiliate-opt-out", "gpc"],
        ["interests-objection"],
        ["marketing-objection", "interests-objection", "minor"],
    ]
    clock.forward(hours=1)
    store.object_("marketing-objection", cleared=True)
    store.record(Entry("minor", AgeSignal(state="18-24"), clock.seconds))
    assert allowed(store, SEGMENTS, "marketing-objection", "minor") == [True, True]


def test_channels_special_categories_and_open_banking(
    store: ConsentStore, give: Callable[..., Any], clock: Clock
) -> None:
    for person in ("anna", "ben"):
        give(person, "Marketing")
    for kind in ("channel-email", "special-category-consent"):
        store.record(Entry("anna", FlagSignal.model_validate({"kind": kind, "state": "set"}), clock.seconds))
    today = clock.now.date()
    bank = BankSignal(state="authorised", valid_until="2027-01-01", last_authentication=today, pulls_24h=4)
    store.record(Entry("anna", bank, clock.seconds, {"permission": "P-77"}))
    for asked in ({"channel": "email"}, {"special": True}, {"open_banking": OpenBanking(most_days=90)}):
        assert allowed(store, Cohort("CustomerSegmentation", "consent", **asked), "anna", "ben") == [True, False]
    tight = Cohort("CustomerSegmentation", "consent", open_banking=OpenBanking(most_days=90, most_pulls=3))
    assert allowed(store, tight, "anna") == [False]
    assert allowed(store, Cohort("CustomerSegmentation", "consent", channel="phone"), "anna") == [False]
    clock.forward(days=90)
    stale = Cohort("CustomerSegmentation", "consent", open_banking=OpenBanking(most_days=90))
    assert allowed(store, stale, "anna") == [True]
    clock.forward(days=1)
    assert allowed(store, stale, "anna") == [False]


def test_people_without_a_record(store: ConsentStore, give: Callable[..., Any]) -> None:
    give("anna")
    assert allowed(store, SEGMENTS, "stranger") == [False]
    assert allowed(store, Cohort("CustomerSegmentation", "contract"), "stranger", "anna") == [True, True]
    assert allowed(store, Cohort("CustomerSegmentation", "contract", channel="ads"), "stranger") == [False]


def test_who_is_filtered_is_counted_by_reason(store: ConsentStore, give: Callable[..., Any]) -> None:
    for person in ("anna", "ben", "cleo"):
        give(person)
    store.object_("ben")
    store.erase("cleo")
    ids = np.array(["anna", "ben", "cleo", "stranger"])
    snapshot = store.snapshot(SEGMENTS)
    left_out = {reason: count for reason, count in snapshot.filtered(ids).items() if count}
    assert left_out == {"without_valid_consent": 1, "objectors": 1, "erasure_pending": 1}
    assert snapshot.totals()["people"] == 3
    assert snapshot.totals()["allowed"] == 1


# --- recording -------------------------------------------------------------------------------------------------------


def test_back_dated_and_future_events_are_named(store: ConsentStore, give: Callable[..., Any], clock: Clock) -> None:
    give("anna", "Marketing")
    clock.forward(days=2)
    store.withdraw("anna")
    with pytest.raises(BackDatedError, match="recorded as later") as caught:
        give("anna", "Marketing", at=clock.seconds - DAY)
    assert "anna" not in str(caught.value)
    with pytest.raises(BackDatedError, match="recorded as later"):
        give("anna", "Marketing", at=clock.seconds - 60)  # no grace for what gives
    with pytest.raises(BackDatedError, match="future"):
        give("anna", "Marketing", at=clock.seconds + 301)
    assert allowed(store, SEGMENTS, "anna") == [False]
    give("anna", "Marketing", at=clock.seconds + 299)
    assert store.sequence == 3


def test_what_is_older_on_another_matter_is_recorded(
    store: ConsentStore, give: Callable[..., Any], clock: Clock
) -> None:
    give("anna", "CommercialResearch")
    store.record(Entry("anna", FlagSignal(kind="gpc", state="set"), clock.seconds - 400 * DAY))
    give("anna", "Marketing", at=clock.seconds - 400 * DAY)
    with pytest.raises(BackDatedError):
        give("anna", "CommercialResearch", at=clock.seconds - 400 * DAY)
    assert store.sequence == 3


def test_a_withdrawal_a_little_late_still_takes(store: ConsentStore, give: Callable[..., Any], clock: Clock) -> None:
    give("anna", "Marketing")
    late = ConsentSignal(
        purposes=("Marketing",),
        state="ConsentWithdrawn",
        event_type="explicit",
        validity_duration="until-withdrawn",
        entity_id="x",
    )
    store.record(Entry("anna", late, clock.seconds - 300))
    assert allowed(store, SEGMENTS, "anna") == [False]
    with pytest.raises(BackDatedError):
        store.record(Entry("anna", late, clock.seconds - 301))


def test_the_same_again_is_not_recorded_twice(store: ConsentStore, give: Callable[..., Any], clock: Clock) -> None:
    first, at = give("anna"), clock.seconds
    clock.forward(days=1)
    store.withdraw("anna")
    assert give("anna", at=at) == first
    assert store.sequence == 2


def test_consents_without_a_template_or_outside_it_are_refused(
    store: ConsentStore, give: Callable[..., Any], clock: Clock
) -> None:
    said: dict[str, Any] = {"event_type": "explicit", "validity_duration": "P1Y", "entity_id": "x"}
    for template, word in ((None, "no record template"), ("sha256:" + "0" * 64, "not in the store")):
        given = ConsentSignal(template=template, purposes=("Marketing",), state="ConsentGiven", **said)
        with pytest.raises(DataError, match=word):
            store.record(Entry("anna", given, clock.seconds))
    with pytest.raises(DataError, match="not all among"):
        give("anna", "ResearchAndDevelopment")
    with pytest.raises(RefusedError):
        store.withdraw("anna", ["Spying"])
    assert store.sequence == 0
    assert store.standing("anna") is None


@pytest.mark.parametrize("person", ["", " anna", "an\x00na", "a\nb", "x" * 257])
def test_what_is_no_id_is_refused(store: ConsentStore, person: str) -> None:
    with pytest.raises(DataError, match="not an id"):
        store.withdraw(person)


def test_no_error_quotes_a_person(store: ConsentStore, give: Callable[..., Any], clock: Clock) -> None:
    secret = "customer-4711"
    give(secret)
    clock.forward(days=1)
    store.withdraw(secret)
    failing: list[Callable[[], object]] = [
        lambda: give(secret, at=clock.seconds - DAY + 1),
        lambda: store.withdraw(secret + "\n"),
        lambda: store.complete_erasure(secret),
        lambda: store.record(Entry(secret, ErasureSignal(state="accepted"), clock.seconds, {secret: "x"})),
        lambda: store.record(Entry(secret, ErasureSignal(state="accepted"), clock.seconds, {"evidence_hash": secret})),
        lambda: store.snapshot(SEGMENTS).allowed(np.array([secret, 3], dtype=object)),
    ]
    for fail in failing:
        with pytest.raises(CohortiumError) as caught:
            fail()
        chain: BaseException | None = caught.value
        while chain is not None:
            assert secret not in repr(chain) + str(chain)
            chain = chain.__cause__ or chain.__context__


def test_events_are_never_changed_or_taken_away(store: ConsentStore, give: Callable[..., Any], database: Path) -> None:
    give("anna")
    store.object_("anna")
    store.note_round("run", "q1", 2)
    store.close_obligations("tell-recipients", range(2, 3), "nobody was told")
    with closing(sqlite3.connect(database)) as raw:
        for table in ("documents", "events", "rounds", "obligations", "closures"):
            assert raw.execute(f"SELECT count(*) FROM {table}").fetchone()[0] > 0
            column = raw.execute(f"PRAGMA table_info({table})").fetchall()[0][1]
            for act in (f"DELETE FROM {table}", f"UPDATE {table} SET {column} = {column}"):
                with pytest.raises(sqlite3.IntegrityError, match="only ever added to"):
                    raw.execute(act)


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE events SET event_time = event_time - 1 WHERE sequence = 2",
        "UPDATE events SET document = 3 WHERE sequence = 1",
        "UPDATE events SET previous = 0 WHERE sequence = 3",
        "UPDATE events SET recorded_at = recorded_at + 1 WHERE sequence = 1",
        "UPDATE events SET personal = NULL WHERE sequence = 1",
        "DELETE FROM events WHERE sequence = 3",
        "DELETE FROM events WHERE sequence = 1",
        "UPDATE standings SET state = zeroblob(42) WHERE person = 1",
        "DELETE FROM standings WHERE person = 1",
        "UPDATE standings SET last = 1 WHERE person = 1",
    ],
)
def test_edits_are_found(
    store: ConsentStore,
    open_consent: Callable[[], ConsentStore],
    give: Callable[..., Any],
    clock: Clock,
    database: Path,
    edit: str,
) -> None:
    give("anna", evidence_hash="sha256:" + "1" * 64)
    store.object_("anna")
    clock.forward(hours=1)
    store.withdraw("anna")
    give("ben")
    assert store.verify() == 4
    with closing(sqlite3.connect(database)) as raw, raw:
        for trigger in ("no_update_of_events", "no_delete_of_events"):
            raw.execute(f"DROP TRIGGER {trigger}")
        raw.execute(edit)
    with pytest.raises(DataError, match=r"altered|missing"):
        open_consent().verify()


def test_a_foreign_database_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as raw, raw:
        raw.execute("CREATE TABLE t (x)")
    with pytest.raises(DataError, match="no consent store"):
        ConsentStore(open_store(tmp_path / "other.sqlite"))


def test_a_full_disk_loses_nothing(store: ConsentStore, give: Callable[..., Any], database: Path) -> None:
    give("anna")
    with store._store.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    with pytest.raises(DataError, match="nothing was recorded") as caught:
        store.record_many([Entry(f"p{i}", FlagSignal(kind="gpc", state="set"), 1) for i in range(5000)])
    assert caught.value.place == str(database)
    assert store.verify() == store.sequence == 1
    with store._store.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=1000000")
    store.object_("anna")
    assert store.verify() == 2


# --- erasure ---------------------------------------------------------------------------------------------------------


def test_an_erasure_unlinks_and_its_objections_live_on(
    store: ConsentStore, give: Callable[..., Any], clock: Clock, database: Path
) -> None:
    person = "customer-4711"
    give(person, "Marketing", evidence_hash="sha256:" + "2" * 64)
    store.object_(person)
    give("other")
    tag = bytes.fromhex(str(store.principal(person)))
    with closing(sqlite3.connect(database)) as raw:
        query = "SELECT key, lookup FROM person_keys JOIN standings USING (person) WHERE principal = ?"
        secrets = raw.execute(query, (tag,)).fetchone()
    before = events(database)

    store.erase(person)
    assert allowed(store, Cohort("CommercialResearch", "contract"), person) == [False]
    with pytest.raises(RefusedError, match="no erasure"):
        store.complete_erasure("other")
    receipt = store.complete_erasure(person)
    assert receipt["what"] == {"kind": "erasure", "state": "completed"}

    assert store.principal(person) is store.standing(person) is None
    assert store.receipt(person) == []
    assert events(database)[: len(before)] == before  # bytes stay
    kept = b"".join(file.read_bytes() for file in database.parent.iterdir())
    assert tag in kept
    for secret in (*secrets, person.encode()):
        assert secret not in kept
    assert store.verify() == 5

    # still in the table: left out whatever the basis; back with a new consent: the objection holds
    for basis in ("consent", "contract"):
        assert allowed(store, Cohort("CommercialResearch", basis), person) == [False]  # type: ignore[arg-type]
    clock.forward(days=1)
    give(person, "Marketing", "CommercialResearch")
    assert allowed(store, Cohort("CommercialResearch", "consent"), person) == [True]
    assert allowed(store, SEGMENTS, person) == [False]
    assert store.principal(person) != tag.hex()
    clock.forward(days=1)
    store.object_(person, cleared=True)
    assert allowed(store, SEGMENTS, person) == [True]
    assert store.verify() == 8


def test_a_table_answered_before_an_erasure_leaves_the_person_out_after_it(store: ConsentStore) -> None:
    contract, ids = Cohort("CommercialResearch", "contract"), np.array(["anna", "ben"])
    store.record(Entry("anna", FlagSignal(kind="channel-ads", state="set"), 1))
    assert store.snapshot(contract).allowed(ids).all()
    store.erase("anna")
    assert store.snapshot(contract).allowed(ids).tolist() == [False, True]
    store.complete_erasure("anna")
    assert store.snapshot(contract).allowed(ids).tolist() == [False, True]


def events(database: Path) -> list[Any]:
    with closing(sqlite3.connect(database)) as raw:
        return raw.execute("SELECT * FROM events ORDER BY sequence").fetchall()


def test_no_id_and_no_permission_is_ever_in_the_files(
    store: ConsentStore, give: Callable[..., Any], clock: Clock, database: Path
) -> None:
    people = [f"customer-{i:05d}" for i in range(50)]
    for person in people:
        give(person)
    bank = BankSignal(state="authorised", valid_until="2027-01-01", last_authentication="2026-03-01")
    store.record(Entry(people[0], bank, clock.seconds, {"permission": "permission-99"}))
    store.erase(people[1])
    store.snapshot(SEGMENTS).allowed(np.array(people))
    kept = b"".join(file.read_bytes() for file in database.parent.iterdir())
    assert b"customer-" not in kept
    assert b"permission-99" not in kept


def test_the_order_of_events_is_not_that_of_the_people(store: ConsentStore) -> None:
    entries = [Entry(f"p{i:04d}", FlagSignal(kind="gpc", state="set"), 1) for i in range(500)]
    done = store.record_many(entries)
    sequences = [each.sequence for each in done if isinstance(each, Recorded)]
    assert sorted(sequences) == list(range(1, 501))
    assert abs(np.corrcoef(sequences, np.arange(500))[0, 1]) < 0.25


# --- receipts, rounds, obligations -----------------------------------------------------------------------------------


def test_a_receipt_names_the_first_round_without_the_person(
    store: ConsentStore, give: Callable[..., Any], clock: Clock
) -> None:
    give("anna")
    store.note_round("run", "q1", store.snapshot(SEGMENTS).sequence)
    clock.forward(minutes=10)
    receipt = store.withdraw("anna", ["Marketing"])
    assert receipt["first_round"] is None
    assert receipt["what"]["purposes"] == ["Marketing"]
    assert (receipt["sequence"], receipt["recorded_at"]) == (2, "2026-03-01T12:10:00+00:00")
    store.note_round("run", "q1", 1)  # an answer sent again
    store.note_round("run", "q2", store.snapshot(SEGMENTS).sequence)
    store.note_round("run", "q3", store.snapshot(SEGMENTS).sequence)
    given, withdrawn = store.receipt("anna")
    assert given["first_round"]["question"] == "q1"
    assert withdrawn["first_round"] == {"run": "run", "question": "q2", "noted_at": "2026-03-01T12:10:00+00:00"}
    assert "anna" not in json.dumps([given, withdrawn])


def test_obligations_have_clocks(store: ConsentStore, give: Callable[..., Any], clock: Clock) -> None:
    give("anna")
    assert store.open_obligations() == []
    store.withdraw("anna")
    store.erase("ben")
    assert {(each.sequence, each.duty) for each in store.open_obligations()} == {
        (2, "leave-out-of-rounds"),
        (2, "tell-recipients"),
        (3, "delete-rows"),
        (3, "leave-out-of-rounds"),
        (3, "tell-recipients"),
    }
    erase = next(each for each in store.open_obligations() if each.duty == "delete-rows")
    assert erase.house_by - erase.opened_at == 7 * DAY
    assert erase.law_by is not None
    assert erase.law_by - erase.opened_at == 31 * DAY  # from 1 March to 1 April
    clock.forward(hours=24, seconds=1)
    assert {each.duty for each in store.open_obligations() if each.overdue} == {"leave-out-of-rounds"}
    store.note_round("run", "q", 2)
    assert [each.sequence for each in store.open_obligations() if each.duty == "leave-out-of-rounds"] == [3]
    store.note_round("run", "q2", 3)
    store.complete_erasure("ben")
    assert {each.duty for each in store.open_obligations()} == {"tell-recipients"}
    assert store.close_obligations("tell-recipients", range(1, 4), "nobody holds an audience") == 2
    assert store.close_obligations("tell-recipients", range(1, 4), "again") == 0
    assert store.open_obligations() == []


def test_a_full_record_has_every_mandatory_field(store: ConsentStore, give: Callable[..., Any], clock: Clock) -> None:
    give("anna", validity="P1Y", evidence_hash="sha256:" + "3" * 64)
    clock.forward(days=1)
    store.withdraw("anna", ["Marketing"])
    (record,) = store.full_records("anna")
    header = {"schema_version", "record_id", "pii_principal_id", "privacy_notice", "parties", "processings", "events"}
    assert set(record) == header
    assert record["pii_principal_id"] == store.principal("anna")
    given, withdrawn = record["events"]
    assert given["validity_duration"] == "P1Y"
    assert given["evidence_hash"] == "sha256:" + "3" * 64
    assert (given["event_state"], withdrawn["event_state"]) == ("ConsentGiven", "ConsentWithdrawn")


def test_a_standing_in_words(store: ConsentStore, give: Callable[..., Any], clock: Clock) -> None:
    give("anna", "TargetedAdvertising", validity="P10D")
    store.object_("anna", "gpc")
    standing = store.standing("anna")
    assert standing is not None
    assert standing["consents"] == {"TargetedAdvertising": "2026-03-11", "LookalikeModelling": "2026-03-11"}
    assert standing["flags"] == ["gpc"]
    assert store.standing("ben") is None


def test_permissions_are_no_objections(store: ConsentStore) -> None:
    for kind in FLAGS:
        if kind.startswith(("channel", "special")):
            with pytest.raises(DataError, match="permission"):
                store.object_("anna", kind)  # type: ignore[arg-type]


def test_times_need_a_zone(store: ConsentStore, clock: Clock) -> None:
    with pytest.raises(DataError, match="time zone"):
        store.withdraw("anna", at=clock.now.replace(tzinfo=None))


# --- several processes -----------------------------------------------------------------------------------------------


def _write(database: Path, prefix: str, count: int) -> None:
    store = ConsentStore(open_store(database))
    for number in range(count):
        store.object_(f"{prefix}{number}")
    store.close()


def test_two_writers(store: ConsentStore, database: Path, give: Callable[..., Any]) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(database, prefix, 15)) for prefix in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert store.verify() == 30
    assert not any(allowed(store, Cohort("Marketing", "contract"), *(f"{p}{i}" for p in "ab" for i in range(15))))


WRITER = """
import sys
from pathlib import Path
from cohortium.governance.consent import ConsentStore
from cohortium.privacy.ledger import open_store
store = ConsentStore(open_store(Path(sys.argv[1])))
for number in range(10_000):
    print(store.object_(f"p{number}")["sequence"], flush=True)
"""


def test_killed_writers_lose_nothing(database: Path, tmp_path: Path) -> None:
    told = 0
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(database)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(20):
                told = max(told, int(writer.stdout.readline()))
            time.sleep(0.01)
            os.kill(writer.pid, signals.SIGKILL)
    store = ConsentStore(open_store(database))
    assert store.verify() == store.sequence >= told
    store.close()


def test_many_entries_are_told_apart(store: ConsentStore, clock: Clock) -> None:
    objection = FlagSignal(kind="marketing-objection", state="set")
    done = store.record_many(
        [Entry("a", objection, 1), Entry("", objection, 1), Entry("a", objection, 1), Entry("b", objection, 2**40)]
    )
    assert done == [
        Recorded(1),
        Rejected("person", "is not an id"),
        Recorded(1, repeated=True),
        Rejected("time", "is in the future"),
    ]
    assert store.standing("b") is None
