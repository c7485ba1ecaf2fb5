"""The store of review: append-only, one after the other, and worthless to whoever edits it."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.exc import IntegrityError

from cohortium.governance.review import (
    ReviewStore,
    Terms,
    case_page,
    export_case,
    parse_case_file,
    require_approved,
    sign_statement,
)
from cohortium.privacy.ledger import open_store
from cohortium.study.errors import CohortiumError, DataError, RefusedError

NOW = datetime(2026, 4, 1, tzinfo=UTC)
NAME = "spring-1"


def keep(store: ReviewStore, world: Any, *said: tuple[str, str]) -> list[Any]:
    record = world.record(*said)
    for one in record:
        store.add(NAME, one, world.charter, NOW)
    return record


FOUR_EYES = (("priya", "approve"), ("rolf", "approve"))


def test_what_is_kept_is_what_was_signed(store: ReviewStore, world: Any, tmp_path: Path) -> None:
    assert store.head(NAME) == world.case.digest
    record = keep(store, world, *FOUR_EYES)
    again = ReviewStore(open_store(tmp_path / "review.sqlite", read_only=True))
    assert again.cases() == (world.case,)
    assert again.statements(NAME) == tuple(record)
    assert again.head(NAME) == record[-1].digest
    assert again.standing(NAME, world.charter, NOW).state == "approved"
    assert again.document(world.case, "audit") == world.documents()["audit"]


def test_the_gate_opens_for_these_very_documents_alone(store: ReviewStore, world: Any) -> None:
    def gate(version: int = 1, institution: str = "north", now: datetime = NOW) -> None:
        subject = world.make_case(version=version).subject
        require_approved(store, subject, world.charter, now, institution=institution)

    with pytest.raises(RefusedError, match="privacy: priya or pavel; risk or compliance: rolf or carla"):
        gate()
    keep(store, world, FOUR_EYES[0])
    with pytest.raises(RefusedError, match=r"signed by risk or compliance: rolf or carla$"):
        gate()
    store.add(NAME, world.say("rolf", earlier=store.statements(NAME), hours=2), world.charter, NOW)
    gate()
    for refused in ({"version": 2}, {"institution": "south"}, {"now": datetime(2027, 1, 1, tzinfo=UTC)}):
        with pytest.raises(RefusedError):
            gate(**refused)


@pytest.mark.parametrize("kind", ["model_release", "waiver"])
def test_an_approval_of_another_kind_does_not_open_the_gate(world: Any, tmp_path: Path, kind: str) -> None:
    store = ReviewStore(open_store(tmp_path / "other.sqlite"))
    case = world.make_case(kind=kind)
    store.open(case, world.documents())
    action = "waive" if kind == "waiver" else "approve"
    first = world.say("priya", action, case=case)
    store.add(NAME, first, world.charter, NOW)
    assert store.add(NAME, world.say("rolf", action, [first], case=case), world.charter, NOW).state == "approved"
    with pytest.raises(RefusedError, match="no case of these documents"):
        require_approved(store, case.subject, world.charter, NOW, institution="north")


def test_another_institutions_approval_does_not_open_the_gate(store: ReviewStore, world: Any) -> None:
    """The same documents, signed by the reviewers of another institution in a case of theirs."""
    south = world.make_case(name="south-1", institution="south")
    store.open(south, world.documents())
    first = world.say("sven", case=south)
    store.add("south-1", first, world.charter, NOW)
    assert store.add("south-1", world.say("sara", earlier=[first], case=south), world.charter, NOW).state == "approved"
    require_approved(store, south.subject, world.charter, NOW, institution="south")
    with pytest.raises(RefusedError, match="is waiting"):
        require_approved(store, south.subject, world.charter, NOW, institution="north")


@pytest.mark.parametrize("person", ["olga", "bert", "sven"])
def test_who_may_not_sign_is_refused_and_named(store: ReviewStore, world: Any, person: str) -> None:
    with pytest.raises(RefusedError, match=rf"{person} .*the signature cannot count"):
        store.add(NAME, world.say(person), world.charter, NOW)
    assert store.statements(NAME) == ()


def test_a_key_that_is_not_enrolled_is_refused(store: ReviewStore, world: Any) -> None:
    stranger = Ed25519PrivateKey.generate()
    posing = world.reviewer("priya").model_copy(update={"key": stranger.public_key().public_bytes_raw().hex()})
    with pytest.raises(RefusedError, match=r"priya .* is not enrolled with this key"):
        store.add(NAME, world.say("priya", reviewer=posing, key=stranger), world.charter, NOW)
    own = world.say("priya")
    forged = own.model_copy(update={"signature": stranger.sign(own.statement.signable()).hex()})
    with pytest.raises(RefusedError, match="the signature is not of this statement"):
        store.add(NAME, forged, world.charter, NOW)


def test_replays_are_refused(store: ReviewStore, world: Any) -> None:
    record = keep(store, world, *FOUR_EYES, ("carla", "return"))
    for old in record:
        with pytest.raises(RefusedError, match="made before"):
            store.add(NAME, old, world.charter, NOW)
    with pytest.raises(RefusedError, match="does not follow the last one"):
        store.add(NAME, world.say("pavel", earlier=record[:2]), world.charter, NOW)
    other = world.make_case(name="spring-2", version=2)
    store.open(other, world.documents(2))
    with pytest.raises(RefusedError, match="of another case"):
        store.add("spring-2", record[0], world.charter, NOW)
    assert store.statements("spring-2") == ()


@pytest.mark.parametrize(("hours", "words"), [(-1, "before the case was opened"), (24 * 60, "in the future")])
def test_dates_that_cannot_be_are_refused(store: ReviewStore, world: Any, hours: float, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        store.add(NAME, world.say("priya", hours=hours), world.charter, NOW)


def test_nothing_follows_a_rejection_and_the_documents_do_not_come_back(store: ReviewStore, world: Any) -> None:
    record = keep(store, world, ("priya", "reject"))
    with pytest.raises(RefusedError, match="the case is rejected"):
        store.add(NAME, world.say("rolf", earlier=record, hours=2), world.charter, NOW)
    for again in (
        world.make_case(name="spring-2"),
        world.make_case(name="spring-2", owner="carla", builders=["x-1"]),
        world.make_case(name="spring-2", about="another name"),
    ):
        with pytest.raises(RefusedError, match="these very documents are the case 'spring-1' already"):
            store.open(again, world.documents())
    with pytest.raises(RefusedError, match="is rejected"):
        require_approved(store, world.case.subject, world.charter, NOW, institution="north")
    changed = world.make_case(name="spring-2", version=2)
    store.open(changed, world.documents(2))
    assert store.standing("spring-2", world.charter, NOW).state == "waiting"


def test_a_case_is_opened_once_with_its_own_documents(store: ReviewStore, world: Any) -> None:
    store.open(world.case, world.documents())
    assert len(store.cases()) == 1
    with pytest.raises(RefusedError, match="a case has this name"):
        store.open(world.make_case(version=2), world.documents(2))
    other = world.make_case(name="spring-2", version=2)
    with pytest.raises(DataError, match="the card is not the one of this case"):
        store.open(other, world.documents())
    with pytest.raises(DataError, match="the dpia is not"):
        store.open(other, {part: text for part, text in world.documents(2).items() if part != "dpia"})
    assert len(store.cases()) == 1


def raw(store_file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(store_file)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


TABLES = ("review_header", "review_documents", "review_cases", "review_statements")


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "edit", ["DELETE FROM {0}", "UPDATE {0} SET rowid = rowid", "INSERT OR REPLACE INTO {0} SELECT * FROM {0}"]
)
def test_triggers_refuse_every_change(store: ReviewStore, world: Any, tmp_path: Path, table: str, edit: str) -> None:
    keep(store, world, *FOUR_EYES)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        raw(tmp_path / "review.sqlite", edit.format(table))


def drop_triggers(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]
    assert len(names) == 3 * len(TABLES)
    raw(file, *(f"DROP TRIGGER {name}" for name in names))


def replaced(table: str, old: str, new: str) -> str:
    return f"UPDATE {table} SET document = CAST(replace(CAST(document AS TEXT), '{old}', '{new}') AS BLOB)"


EDITS = {
    "what was said": replaced("review_statements", '"approve"', '"reject"'),
    "who said it": replaced("review_statements", "priya", "pavel"),
    "until when": replaced("review_statements", "2026-12-31", "2027-01-31"),
    "a digest": "UPDATE review_statements SET digest = 'sha256:' || digest WHERE sequence = 0",
    "a link": "UPDATE review_statements SET previous = 'x' WHERE sequence = 0",
    "the length of a signature": replaced("review_statements", 'signature":"', 'signature":"0'),
    "half a document": "UPDATE review_statements SET document = substr(document, 1, 100) WHERE sequence = 0",
    "the first statement": "DELETE FROM review_statements WHERE sequence = 0",
    "the second statement": "DELETE FROM review_statements WHERE sequence = 1",
    "the owner": replaced("review_cases", '"olga"', '"oleg"'),
    "the subject of the case": "UPDATE review_cases SET subject = 'x'",
    "the case's bytes": "UPDATE review_cases SET document = CAST(document || ' ' AS BLOB)",
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_store_is_never_approved(store: ReviewStore, world: Any, tmp_path: Path, what: str) -> None:
    """With the triggers dropped, as the owner of the file can."""
    keep(store, world, *FOUR_EYES, ("carla", "approve"))
    file = tmp_path / "review.sqlite"
    drop_triggers(file)
    raw(file, EDITS[what])
    with pytest.raises(CohortiumError, match=r"was altered|is invalid|no case of these documents"):
        require_approved(store, world.case.subject, world.charter, NOW, institution="north")
    with pytest.raises(DataError, match=r"was altered|something is missing|is not of this statement"):
        store.add(NAME, world.say("pavel", earlier=world.record(*FOUR_EYES), hours=9), world.charter, NOW)


def test_digests_made_anew_do_not_help_whoever_edits(store: ReviewStore, world: Any, tmp_path: Path) -> None:
    """A rejection turned into an approval, with its digest computed anew: the signature is not of it."""
    keep(store, world, ("priya", "approve"), ("carla", "reject"))
    file = tmp_path / "review.sqlite"
    drop_triggers(file)
    honest = store.statements(NAME)[1]
    edited = honest.model_copy(
        update={"statement": world.say("carla", earlier=world.record(("priya", "approve")), hours=2).statement}
    )
    document = json.dumps(edited.model_dump(mode="json", by_alias=True))
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(
            "UPDATE review_statements SET document = ?, digest = ? WHERE sequence = 1", (document, edited.digest)
        )
    found = store.standing(NAME, world.charter, NOW)
    assert (found.state, found.reasons) == (
        "invalid",
        ("carla (compliance): the signature is not of this statement",),
    )


def test_documents_that_were_altered_are_not_shown(store: ReviewStore, world: Any, tmp_path: Path) -> None:
    assert case_page(store, NAME, world.charter, NOW).documents["audit"]["verdict"] == "pass"
    drop_triggers(tmp_path / "review.sqlite")
    raw(tmp_path / "review.sqlite", replaced("review_documents", '"pass"', '"fail"'))
    with pytest.raises(DataError, match="the audit of case 'spring-1' was altered"):
        case_page(store, NAME, world.charter, NOW)


def test_of_two_who_sign_at_once_one_is_kept(world: Any, tmp_path: Path) -> None:
    ReviewStore(open_store(tmp_path / "review.sqlite")).open(world.case, world.documents())
    said = [world.say("priya"), world.say("rolf")]
    results: list[str] = []
    gate = threading.Barrier(2)

    def sign(one: Any) -> None:
        store = ReviewStore(open_store(tmp_path / "review.sqlite"))
        gate.wait()
        try:
            results.append(store.add(NAME, one, world.charter, NOW).state)
        except RefusedError as error:
            results.append(error.message)

    threads = [threading.Thread(target=sign, args=(one,)) for one in said]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["the statement does not follow the last one on this case", "waiting"]
    store = ReviewStore(open_store(tmp_path / "review.sqlite"))
    kept = store.statements(NAME)
    late = next(one for one in said if one.digest != kept[0].digest)
    anew = world.say(late.statement.person, earlier=kept, hours=2)
    assert store.add(NAME, anew, world.charter, NOW).state == "approved"


def test_what_another_program_wrote_is_no_store(tmp_path: Path) -> None:
    raw(tmp_path / "other.sqlite", "CREATE TABLE something (x)")
    with pytest.raises(DataError, match="no review store of this version"):
        ReviewStore(open_store(tmp_path / "other.sqlite"))
    raw(tmp_path / "later.sqlite", "CREATE TABLE review_header (schema)", "INSERT INTO review_header VALUES ('later')")
    with pytest.raises(DataError, match="no review store of this version"):
        ReviewStore(open_store(tmp_path / "later.sqlite"))


def test_a_failed_write_keeps_nothing(store: ReviewStore, world: Any, tmp_path: Path) -> None:
    """A trigger of the test's own stands for a full disk."""
    raw(
        tmp_path / "review.sqlite",
        "CREATE TRIGGER full BEFORE INSERT ON review_statements BEGIN SELECT RAISE(ABORT, 'disk full'); END",
    )
    with pytest.raises(IntegrityError, match="disk full"):
        store.add(NAME, world.say("priya"), world.charter, NOW)
    raw(tmp_path / "review.sqlite", "DROP TRIGGER full")
    assert store.statements(NAME) == ()
    assert store.add(NAME, world.say("priya"), world.charter, NOW).state == "waiting"


# --- case files ------------------------------------------------------------------------------------------------------


def test_a_case_file_is_verified_without_the_store(store: ReviewStore, world: Any) -> None:
    record = keep(store, world, *FOUR_EYES)
    data = export_case(world.case, store.statements(NAME))
    found = parse_case_file(data, "spring.json")
    assert found.standing(world.charter, NOW).state == "approved"
    assert found.head == record[-1].digest
    assert parse_case_file(export_case(world.case, ()), "empty").head == world.case.digest


def test_a_case_file_with_one_byte_changed_is_refused(store: ReviewStore, world: Any) -> None:
    keep(store, world, *FOUR_EYES)
    data = export_case(world.case, store.statements(NAME))
    for place in range(0, len(data), 17):
        for bit in (1, 32):
            edited = data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
            try:
                state = parse_case_file(edited, "spring.json").standing(world.charter, NOW).state
            except DataError:
                continue
            assert state == "invalid", (place, bit)


def test_a_case_file_cut_short_is_not_approved(store: ReviewStore, world: Any) -> None:
    keep(store, world, *FOUR_EYES, ("carla", "return"), ("priya", "approve"))
    document = json.loads(export_case(world.case, store.statements(NAME)))
    del document["statements"][2]
    found = parse_case_file(json.dumps(document, separators=(",", ":"), sort_keys=True).encode(), "cut")
    assert found.standing(world.charter, NOW).state == "invalid"


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"a":1,"a":2}', b'{"a":NaN}', b"\xff", b"[" * 100_000])
def test_what_is_no_case_file_is_named(data: bytes) -> None:
    with pytest.raises(DataError, match=r"spring\.json"):
        parse_case_file(data, "spring.json")


# --- the page --------------------------------------------------------------------------------------------------------


def test_a_page_says_what_changed_since_the_last_approval(store: ReviewStore, world: Any) -> None:
    first = case_page(store, NAME, world.charter, NOW)
    assert (first.earlier, first.changed, first.age) == (None, ("card", "audit", "dpia", "decision"), 30)
    second = world.make_case(name="spring-2", version=2, opened_at=datetime(2026, 3, 30, tzinfo=UTC))
    store.open(second, world.documents(2))
    assert case_page(store, "spring-2", world.charter, NOW).earlier is None
    keep(store, world, ("priya", "waive"), *FOUR_EYES)
    later = case_page(store, "spring-2", world.charter, NOW)
    assert (later.earlier, later.changed, later.age) == (NAME, ("card",), 2)
    assert later.waivers[0]["task"] == "audit again in May"
    assert case_page(store, "spring-2", world.charter, NOW + timedelta(days=400)).earlier == NAME


def test_a_page_shows_every_metric_with_its_interval(store: ReviewStore, world: Any) -> None:
    page = case_page(store, NAME, world.charter, NOW)
    (metric,) = page.documents["audit"]["metrics"]
    assert metric == {
        "name": "impact-ratio",
        "group": "18-25",
        "estimate": 0.91,
        "low": 0.85,
        "high": 0.97,
        "people": 5012.0,
    }
    assert page.may_sign == {"privacy": ("priya", "pavel"), "risk or compliance": ("rolf", "carla")}
    assert json.loads(json.dumps(page.to_json()))["state"] == "waiting"


def test_nobody_signs_in_the_store_what_they_did_not_read(
    store: ReviewStore, world: Any, key_for: Callable[[str], Ed25519PrivateKey]
) -> None:
    """Somebody returned the case after the reviewer looked: the approval is refused, and they look again."""
    seen = store.head(NAME)
    keep(store, world, ("carla", "return"))
    terms = Terms(expires=date(2026, 5, 1))
    late = sign_statement(world.case, seen, world.reviewer("priya"), key_for("priya"), "approve", terms, NOW)
    with pytest.raises(RefusedError, match="read what was said since"):
        store.add(NAME, late, world.charter, NOW)
