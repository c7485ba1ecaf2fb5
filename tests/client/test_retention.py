"""Retention at one node: what ends, what is asked and owed, and that a run can be stopped anywhere and told twice."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cohortium.client import retention
from cohortium.client.audience import Audience, AudienceStore, Level
from cohortium.client.audience.store import ExportRecord
from cohortium.client.governing import CONSENT_FILE, GOVERNANCE_FILE
from cohortium.client.lookalike import NodeRecords, open_records
from cohortium.client.node import NodeIdentity, create_node, identity_key, open_node
from cohortium.client.retention import OBLIGATIONS_FILE, Owed, Retained, close, extend, owed, record_event, retain
from cohortium.client.witnessing import LOG_FILE
from cohortium.governance.consent import ConsentSignal, ConsentStore, Entry, RecordTemplate
from cohortium.governance.obligations import ObligationRegister
from cohortium.governance.rules import Facts, evaluate, load_packs
from cohortium.privacy.ledger import open_store
from cohortium.privacy.table import CustomerTable
from cohortium.study.charter import parse_charter
from cohortium.study.contract import Contract
from cohortium.study.errors import DataError, RefusedError
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan
from cohortium.study.question import PlanQuestion
from cohortium.study.software import installed_software

RUN = "0" * 32
NOW = datetime.now(UTC).replace(microsecond=0)
TODAY = NOW.date()
TOMORROW = NOW + timedelta(days=1)
OFFICE = {"by": "the privacy office", "how": "told the person", "evidence": "case 7"}
WHY = "EU-GDPR-5-1-E (GDPR Art. 5(1)(e); C, unverified)"
MODEL = "sha256:" + "c" * 64
OWN = """
schema = "cohortium.rules/1"
name = "north"
title = "North Bank"
as_of = 2026-01-01
disclaimer = "not legal advice"
[sheet]
model.inventory_ref = "line 7"
[[rules]]
id = "NORTH-KEEP"
article = "Board decision 12"
plain = "A model that is kept stands in the inventory."
stage = "retention"
effect = "require"
must = { present = "model.inventory_ref" }
status = "house"
confidence = "house"
passing = {}
failing = { facts = { model.inventory_ref = false } }
"""


def packaged(name: str) -> str:
    return (resources.files("cohortium.simulations") / "plans" / name).read_text(encoding="utf-8")


def declared(*packs: str, own: str = "") -> str:
    named = ", ".join(f'"{pack}"' for pack in packs)
    return packaged("demo.governance.toml").replace("packs = []", f"packs = [{named}]\n{own}")


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory,
    small_contract: Contract,
    make_plan: Callable[..., Plan],
    make_people: Callable[..., CustomerTable],
    exchange: Callable[..., None],
) -> Path:
    """The folder of a real institution at which a run was admitted under EU rules; read only."""
    base = tmp_path_factory.mktemp("retention")
    contract = small_contract.model_copy(update={"purposes": ("CustomerSegmentation",)})
    names = ["north", "south", "west"]
    for name in names:
        create_node(base / name, NodeIdentity(institution=name, simulation=name != "north"), contract)
    (base / "north" / GOVERNANCE_FILE).write_text(declared("eu"), encoding="utf-8")
    store = ConsentStore(open_store(base / "north" / CONSENT_FILE))
    template = RecordTemplate.model_validate(tomllib.loads(packaged("demo.consent.toml")))
    store.add_template(template)
    given = ConsentSignal(
        template=template.digest,
        purposes=("Marketing",),
        state="ConsentGiven",
        event_type="explicit",
        validity_duration="P24M",
        entity_id="data subject",
    )
    ids = [f"person-{number:03d}" for number in range(60)]
    store.record_many([Entry(person, given, int(time.time()) - 1000) for person in ids])
    store.close()
    people = make_people(60)
    people = CustomerTable(people.columns, people.select(people.columns), np.array(ids))
    nodes = [open_node(base / name, people) for name in names]
    members = [{"name": name, "region": "EU", "identity": identity_key(base / name)} for name in names]
    charter = parse_charter({"schema": "cohortium.charter/1", "name": "real", "institutions": members})
    plan = make_plan(
        software=installed_software().model_dump(),
        contract=contract.digest,
        purpose="CustomerSegmentation",
        min_institutions=3,
        trust="distributed",
        expires=TODAY + timedelta(days=20),
    )
    for node in nodes:
        node.store.approve(plan, contract, charter)
    exchange(nodes, plan)
    nodes[0].accept(PlanQuestion(plan.digest, RUN, int(time.time())))
    for node in nodes:
        node.close()
    return base / "north"


@pytest.fixture
def bare(tmp_path: Path, small_contract: Contract) -> Iterator[NodeRecords]:
    """A node with EU rules in force, at which nothing was run."""
    contract = small_contract.model_copy(update={"purposes": ("CustomerSegmentation",)})
    create_node(tmp_path / "bare", NodeIdentity(institution="bare"), contract)
    (tmp_path / "bare" / GOVERNANCE_FILE).write_text(declared("eu"), encoding="utf-8")
    with open_records(tmp_path / "bare") as opened:
        yield opened


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "north")


@pytest.fixture
def records(folder: Path) -> Iterator[NodeRecords]:
    with open_records(folder) as opened:
        yield opened


def rows(path: Path) -> str:
    """Every row of a database."""
    with closing(sqlite3.connect(path)) as connection:
        return "\n".join(connection.iterdump())


def state_of(folder: Path) -> dict[str, str]:
    """Everything that a node's folder says."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith(("-wal", "-shm")):
            text = rows(path).encode() if path.suffix == ".sqlite" else path.read_bytes()
            found[str(path.relative_to(folder))] = hashlib.sha256(text).hexdigest()
    return found


def audience(
    records: NodeRecords, name: str, expires: date, *, exported: bool = False, state: Any = "active"
) -> Audience:
    """An audience as its commands leave it, with its lists."""
    store = records.audiences()
    made = Audience(
        id="aud-" + hashlib.sha256(name.encode()).hexdigest()[:32],
        name=name,
        reason=None,
        model=MODEL,
        plan=MODEL,
        level=Level("broad", 0.5, 0.1),
        min_cell=50,
        created=(NOW - timedelta(days=40)).isoformat(),
        expires=expires,
        state=state,
        replaced_by=None,
        revision=1,
        scores=MODEL,
        members=100,
        members_digest=MODEL,
        suppressed_digest=MODEL,
    )
    store.add(made, None)
    store.members_file(made.id, 1).write_bytes(b"ids")
    if exported:
        handed_over(store, made)
    return made


def handed_over(store: AudienceStore, made: Audience, *, removal: bool = False) -> None:
    sequence = 2 if removal else 1
    record = ExportRecord(made.id, "ads", sequence, "begun", store.folder / f"out-{sequence}", 1)
    store.begin_export(record)
    store.seal_export(replace(record, state="sealed", kind="full", removal=removal, digest=MODEL))
    store.finish_export(record)


def campaign(records: NodeRecords, seed: str, expires: date, name: str = "campaign") -> None:
    """An approved plan that names a seed list."""
    document = {
        "schema": "cohortium.plan/1",
        "study": "lookalike",
        "name": name,
        "purpose": "CustomerSegmentation",
        "lawful_basis": "consent",
        "regions": ["EU"],
        "contract": records.contract.digest,
        "expires": expires.isoformat(),
        "trust": "local",
        "epsilon": 1.0,
        "delta": 1e-6,
        "model": MODEL,
        "lookalike": {"seed": seed},
    }
    members = [{"name": name, "region": "EU"} for name in ("north", "south", "west")]
    charter = {"schema": "cohortium.charter/1", "name": "three", "institutions": members, "coordinator": "00" * 32}
    records.approvals.approve(parse_plan(document), records.contract, parse_charter(charter))


def listed(records: NodeRecords, *names: str) -> None:
    """Seed lists of these names."""
    file = records.folder.parent / "vip.csv"
    ids = np.array([f"c{number:05d}" for number in range(400)])
    file.write_text("id\n" + "\n".join(ids[:150]) + "\n", encoding="utf-8")
    for name in names:
        records.seeds.add(name, file, "id", CustomerTable(("x",), np.zeros((400, 1)), ids))


def seeds(records: NodeRecords) -> list[str]:
    return [each.name for each in records.seeds.lists() if not each.removed]


def one(told: Retained | tuple[tuple[Owed, ...], Any], id: str) -> Owed:
    found = told.owed if isinstance(told, Retained) else told[0]
    return next(each for each in found if each.id == id)


def whats(told: Retained) -> list[str]:
    return [step.what for step in told.done]


# --- rules -----------------------------------------------------------------------------------------------------------


def test_the_duties_of_a_run_stand_and_wait_for_their_events(records: NodeRecords) -> None:
    told = retain(records, NOW)
    assert told.in_order
    assert (told.done, told.not_done, told.refused, told.owed, told.opened) == ((), (), (), (), ())
    waiting = {each.event: (each.recorded_by, [rule.split()[0] for rule in each.rules]) for each in told.waiting}
    assert waiting["rights_request"] == ("retention event", ["EU-GDPR-12-3", "EU-GDPR-15-20"])
    assert waiting["withdrawal"] == ("consent withdraw", ["EU-GDPR-7-3"])
    assert waiting["erasure"] == ("consent erase", ["EU-GDPR-17-MODEL"])


def test_a_second_run_changes_nothing(records: NodeRecords) -> None:
    retain(records, NOW)
    before = state_of(records.folder)
    retain(records, NOW + timedelta(days=400))
    assert state_of(records.folder) == before


def test_a_rule_of_retention_that_lacks_a_fact_refuses_and_says_which(folder: Path) -> None:
    (folder / "north.toml").write_text(OWN, encoding="utf-8")
    (folder / GOVERNANCE_FILE).write_text(declared("eu", own='own_packs = ["north.toml"]'), encoding="utf-8")
    with open_records(folder) as records:
        for now in (NOW, NOW + timedelta(days=400)):  # also when the plan is past its last day
            told = retain(records, now)
            assert not told.in_order
            (step,) = told.refused
            assert step.what.startswith("plan sha256:")
            assert "NORTH-KEEP (Board decision 12; house)" in step.why
            assert "model.inventory_ref is unknown [state model.inventory_ref (declared)" in step.why


def test_without_rules_a_real_node_is_not_in_order(folder: Path) -> None:
    (folder / GOVERNANCE_FILE).unlink()
    with open_records(folder) as records:
        told = retain(records, NOW)
        assert [step.what for step in told.refused] == ["no rules are in force"]
        simulated = replace(records, identity=records.identity.model_copy(update={"simulation": True}))
        told = retain(simulated, NOW)
        assert told.in_order
        assert told.notes == ("no rules are in force: a simulation's node needs none",)


def test_a_node_without_runs_has_nothing_to_ask(bare: NodeRecords) -> None:
    told = retain(bare, NOW)
    assert told.in_order
    assert told.waiting == ()


def test_a_missing_log_is_told_and_not_made_anew(folder: Path) -> None:
    (folder / LOG_FILE).unlink()
    with open_records(folder) as records:
        told = retain(records, NOW)
    assert "the audit log is missing" in told.refused[0].why
    assert not (folder / LOG_FILE).exists()


# --- obligations -----------------------------------------------------------------------------------------------------


def test_a_request_for_rights_from_event_to_evidence(records: NodeRecords) -> None:
    with pytest.raises(RefusedError, match=r"use one of .*rights_request"):
        record_event(records, "breach", NOW, "case 7", NOW)
    _, opened = record_event(records, "rights_request", NOW, "case 7", NOW)
    assert opened == ("ob-1",), "what the admission brought; keeping is asked by the first run"
    assert retain(records, NOW).opened == ("ob-2",)
    told = one(owed(records, NOW), "ob-1")
    assert (told.state, told.rules) == ("open", ("EU-GDPR-12-3 (GDPR Art. 12(3); C, unverified)",))
    assert told.due is not None
    extended = extend(records, "ob-2", "the privacy office", "eleven systems", NOW)
    assert extended.due is not None
    assert extended.due > told.due
    assert not retain(records, told.due + timedelta(seconds=1)).in_order
    assert retain(records, told.due).in_order
    assert close(records, "ob-1", **OFFICE, now=NOW) == 1
    assert retain(records, told.due + timedelta(seconds=1)).in_order
    assert [each.id for each in owed(records, NOW)[0]] == ["ob-2"]
    assert [each.id for each in owed(records, NOW, closed=True)[0]] == ["ob-2", "ob-1"]
    with pytest.raises(RefusedError, match="was closed by the privacy office"):
        close(records, "ob-1", **OFFICE, now=NOW)


def test_what_people_are_owed_is_listed_from_the_consent_store_and_kept_there(records: NodeRecords) -> None:
    retain(records, NOW)
    store = retention.open_consent(records.folder)
    assert store is not None
    for number in range(3):
        store.withdraw(f"person-{number:03d}")
    told = retain(records, NOW)
    assert {each.id: each.count for each in told.owed} == {
        "consent:leave-out-of-rounds:61-63": 3,
        "consent:tell-recipients:61-63": 3,
    }
    rounds = one(told, "consent:leave-out-of-rounds:61-63")
    assert rounds.rules[1].startswith("EU-GDPR-7-3")
    assert rounds.due is not None
    assert timedelta(hours=23) < rounds.due - NOW < timedelta(hours=25)
    late = retain(records, NOW + timedelta(days=3))
    assert {each.id.split(":")[1]: each.state for each in late.owed} == {
        "leave-out-of-rounds": "overdue",
        "tell-recipients": "due soon",
    }
    assert not late.in_order
    with pytest.raises(DataError, match="by: is no line"):
        close(records, "consent:tell-recipients:61-62", **{**OFFICE, "by": " "}, now=NOW)
    assert close(records, "consent:tell-recipients:61-62", **OFFICE, now=NOW) == 2
    assert [each.id for each in owed(records, NOW)[0]][-1] == "consent:tell-recipients:63"
    with pytest.raises(RefusedError, match="nothing of it is open"):
        close(records, "consent:tell-recipients:61-62", **OFFICE, now=NOW)
    with sqlite3.connect(records.folder / CONSENT_FILE) as connection:
        ((how,),) = connection.execute("SELECT DISTINCT how FROM closures").fetchall()
    assert how == "told the person (by the privacy office; evidence: case 7)"
    store.note_round(RUN, "sha256:" + "1" * 64, store.sequence)
    assert [each.id for each in owed(records, NOW)[0]] == ["consent:tell-recipients:63"]
    store.close()


def test_a_pack_with_a_shorter_clock_makes_people_s_obligations_due_earlier(records: NodeRecords) -> None:
    retain(records, NOW)
    packs = load_packs(["br"])
    clean = Facts.of({name: value for pack in packs for name, value in pack.sheet.items()}, "the packs' sheets")
    engine = open_store(records.folder / OBLIGATIONS_FILE)
    ObligationRegister(engine).owe(evaluate(packs, clean, "admission", TODAY), MODEL, TODAY)
    engine.dispose()
    store = retention.open_consent(records.folder)
    assert store is not None
    store.withdraw("person-001")
    (opened,) = {one.opened_at for one in store.open_obligations()}
    store.close()
    at = datetime.fromtimestamp(opened, UTC)
    rounds = one(owed(records, at + timedelta(seconds=1)), "consent:leave-out-of-rounds:61")
    assert (rounds.state, rounds.due) == ("overdue", at)
    assert [rule.split()[0] for rule in rounds.rules[1:]] == ["EU-GDPR-7-3", "BR-LGPD-8-5"]
    told = one(owed(records, at), "consent:tell-recipients:61")
    assert told.due == at + timedelta(days=7), "our own limit is before the 15 days of the pack"
    assert [rule.split()[0] for rule in told.rules[1:]] == ["BR-LGPD-8-5"]


def test_of_people_s_obligations_in_one_line_the_earliest_deadline_is_told(records: NodeRecords) -> None:
    clock = [NOW]
    store = ConsentStore(open_store(records.folder / CONSENT_FILE), lambda: clock[0])
    for person in ("person-001", "person-002"):
        store.withdraw(person)
        clock[0] += timedelta(hours=1)
    store.close()
    rounds = one(owed(records, NOW), "consent:leave-out-of-rounds:61-62")
    assert rounds.due == NOW + timedelta(hours=24)


def test_duties_come_of_decisions_that_were_carried_out_alone(records: NodeRecords) -> None:
    (plan,) = records.approvals.plans()
    packs = load_packs(["eu", "uk"])
    facts = Facts.of({}, "nobody")
    refused = evaluate(packs, facts, "admission", TODAY)
    records.approvals.keep_decision(plan, "1" * 32, refused.id, admitted=False, documents=(refused, facts))
    assert "UK-DUAA-COMPLAINT" in {duty.rule for duty in refused.duties}
    assert "complaint" not in {each.event for each in retain(records, NOW).waiting}


def test_erasures_open_one_obligation_about_models(records: NodeRecords) -> None:
    store = retention.open_consent(records.folder)
    assert store is not None
    store.erase("person-004")
    store.erase("person-005")
    told = retain(records, NOW)
    assert told.opened == ("ob-1",)
    duty = one(told, "ob-1")
    assert duty.rules[0].startswith("EU-GDPR-17-MODEL")
    assert duty.obligation is not None
    assert duty.obligation.event.source == "consent event 61"
    assert duty.due == duty.since + timedelta(days=90)
    assert one(told, "consent:delete-rows:61-62").count == 2
    with pytest.raises(RefusedError, match="cohortium consent erase --rows-deleted"):
        close(records, "consent:delete-rows:61-62", **OFFICE, now=NOW)
    store.complete_erasure("person-004")
    assert [each.id for each in owed(records, NOW)[0] if "rows" in each.id] == ["consent:delete-rows:62"]
    assert retain(records, NOW).opened == ()
    close(records, "ob-1", **OFFICE, now=NOW + timedelta(hours=1))
    assert retain(records, NOW + timedelta(hours=1)).opened == ()
    store.close()


@pytest.mark.parametrize("event", ["withdrawal", "erasure", "opt_out"])
def test_what_the_consent_store_records_is_not_recorded_a_second_time(records: NodeRecords, event: str) -> None:
    with pytest.raises(RefusedError, match="record it by cohortium consent"):
        record_event(records, event, NOW, "case 7", NOW)


@pytest.mark.parametrize(
    ("id", "word"),
    [
        ("aud-0123", "cohortium audience export NODE aud-0123 --removal"),
        ("consent:tell-recipients:1", "nothing of it is open"),
        ("consent:everything:1", "no such obligation"),
        ("consent:tell-recipients", "no such obligation"),
        ("ob-9", "no such obligation"),
    ],
)
def test_what_cannot_be_closed_says_what_ends_it(bare: NodeRecords, id: str, word: str) -> None:
    with pytest.raises(RefusedError, match=word):
        close(bare, id, **OFFICE, now=NOW)
    if id.startswith("consent:"):
        with pytest.raises(RefusedError, match="the consent store closes at the present time"):
            close(bare, id, **OFFICE, now=NOW, at=NOW)
    with pytest.raises(RefusedError, match=r"no rule lets it take longer|no such obligation"):
        extend(bare, id, "the privacy office", "busy", NOW)


# --- what ends -------------------------------------------------------------------------------------------------------


def test_an_audience_ends_the_day_after_its_last_and_its_removal_is_due(bare: NodeRecords) -> None:
    past = audience(bare, "past", TODAY - timedelta(days=1), exported=True)
    last = audience(bare, "last", TODAY, exported=True)
    store = bare.audiences()
    told = retain(bare, NOW)
    assert [(step.what.split()[2], step.why) for step in told.done] == [(past.id, WHY)]
    assert (store.audience(past.id).state, store.audience(last.id).state) == ("expired", "active")
    assert not store.members_file(past.id, 1).exists()
    assert store.members_file(last.id, 1).exists()
    removal = one(told, past.id)
    assert (removal.state, removal.what) == ("overdue", "Hand over the removal of 'past' to ads.")
    assert removal.due == datetime.combine(past.expires, datetime.max.time(), UTC).replace(microsecond=0)
    assert len(told.owed) == 1
    assert not told.in_order
    handed_over(store, past, removal=True)
    told = retain(bare, NOW)
    assert told.in_order
    assert (told.done, told.owed) == ((), ())


def test_an_audience_that_was_ended_early_is_removed_by_its_last_day(bare: NodeRecords) -> None:
    early = audience(bare, "early", TODAY + timedelta(days=3), exported=True, state="expired")
    told = retain(bare, NOW)
    assert one(told, early.id).state == "due soon"
    assert told.in_order


def test_a_seed_list_goes_when_no_plan_in_force_names_it(bare: NodeRecords) -> None:
    listed(bare, "over", "running", "unnamed", "last")
    campaign(bare, "over", TODAY)
    campaign(bare, "running", TODAY)
    campaign(bare, "running", TODAY + timedelta(days=9), name="next")
    campaign(bare, "last", TOMORROW.date())
    told = retain(bare, TOMORROW)
    assert [(step.what.split(":")[0], step.why) for step in told.done] == [("remove seed list 'over'", WHY)]
    assert seeds(bare) == ["last", "running", "unnamed"]
    assert retain(bare, TOMORROW).done == ()


def test_leftovers_go_when_nobody_can_be_at_work_there(bare: NodeRecords) -> None:
    old = (NOW - timedelta(hours=24, minutes=1)).timestamp()
    bare.audiences()
    (bare.folder / "models").mkdir()
    gone = [bare.folder / name for name in (".seeds-old", "models/.old.partial", "audiences/scratch-old")]
    kept = [bare.folder / name for name in (".seeds-new", "models/.new.partial")]
    for path in (*gone, *kept):
        path.mkdir()
        (path / "ids").write_text("ids")
        os.utime(path, (old, old))
    for path in gone:
        os.utime(path / "ids", (old, old))
    told = retain(bare, NOW)
    assert {step.what.rsplit(" ", 1)[1] for step in told.done} == {".seeds-old", ".old.partial", "left"}
    assert [path.exists() for path in (*gone, *kept)] == [False] * 3 + [True] * 2


def test_an_interrupted_export_is_undone(bare: NodeRecords) -> None:
    made = audience(bare, "spring", TODAY + timedelta(days=3))
    store = bare.audiences()
    record = ExportRecord(made.id, "ads", 1, "begun", bare.folder / "out", 1)
    store.begin_export(record)
    record.partial.mkdir()
    told = retain(bare, NOW)
    assert whats(told) == [f"finish or undo an interrupted export of audience {made.id} to ads"]
    assert store.exports(made.id) == ()
    assert not record.partial.exists()


def test_an_export_whose_folder_is_gone_is_told_and_stops_nothing_else(bare: NodeRecords) -> None:
    made = audience(bare, "spring", TODAY + timedelta(days=3))
    past = audience(bare, "past", TODAY - timedelta(days=1))
    store = bare.audiences()
    record = ExportRecord(made.id, "ads", 1, "begun", bare.folder / "out", 1)
    store.begin_export(record)
    store.seal_export(replace(record, state="sealed", kind="full", digest=MODEL))
    told = retain(bare, NOW)
    (step,) = told.not_done
    assert "settle the export as delivered or lost" in step.why
    assert store.audience(past.id).state == "expired"
    assert not told.in_order


def test_while_another_command_works_on_audiences_the_rest_is_done(bare: NodeRecords) -> None:
    past = audience(bare, "past", TODAY - timedelta(days=1))
    listed(bare, "over")
    campaign(bare, "over", TODAY)
    with bare.audiences().locked():
        told = retain(bare, TOMORROW)
    assert ["another command works on audiences" in step.why for step in told.not_done] == [True]
    assert seeds(bare) == []
    assert not told.in_order
    assert retain(bare, TOMORROW).in_order
    assert bare.audiences().audience(past.id).state == "expired"


def test_models_past_their_last_day_are_told_and_kept(bare: NodeRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bare.folder / "models"
    folder.mkdir()
    ends = {"past.safetensors": -1, "last.safetensors": 0, "old.json": -2}

    def plan_of(path: Path) -> SimpleNamespace:
        if path.name not in ends:
            raise DataError("no model", place=path.name, fix="get the released file")
        return SimpleNamespace(expires=TODAY + timedelta(days=ends[path.name]))

    monkeypatch.setattr(retention, "load_bundle", lambda path: SimpleNamespace(plan=plan_of(path)))
    monkeypatch.setattr(
        retention, "load_model", lambda path, *_, **__: SimpleNamespace(document=SimpleNamespace(plan=plan_of(path)))
    )
    for name in (*ends, "stray.safetensors"):
        (folder / name).write_bytes(b"")
    told = retain(bare, NOW)
    assert told.in_order
    assert told.notes == (
        f"model old… is admitted no more: last day {TODAY - timedelta(days=2)}",
        f"model past… is admitted no more: last day {TODAY - timedelta(days=1)}",
    )
    assert len(list(folder.iterdir())) == 4


# --- stopping, trying, and what is never touched ---------------------------------------------------------------------


def filled(records: NodeRecords) -> None:
    for name in ("first", "second"):
        audience(records, name, TODAY - timedelta(days=1))
    listed(records, "over")
    campaign(records, "over", TODAY)


def test_a_dry_run_says_the_same_and_changes_nothing(records: NodeRecords) -> None:
    filled(records)
    before = state_of(records.folder)
    tried = retain(records, TOMORROW, dry_run=True)
    assert state_of(records.folder) == before
    assert not (records.folder / OBLIGATIONS_FILE).exists()
    assert len(tried.done) == 3
    real = retain(records, TOMORROW)
    assert (real.done, real.waiting) == (tried.done, tried.waiting)
    record_event(records, "rights_request", NOW, "case 7", NOW)
    before = state_of(records.folder)
    assert {each.id for each in retain(records, TOMORROW, dry_run=True).owed} == {"ob-1", "ob-2"}
    assert state_of(records.folder) == before


@pytest.mark.parametrize("survived", [0, 2, 3, 4])
def test_a_run_that_dies_between_two_actions_is_finished_by_the_next(
    records: NodeRecords, survived: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(records)
    acts = 0

    def dying(act: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any, **named: Any) -> Any:
            nonlocal acts
            if acts == survived:
                raise KeyboardInterrupt
            acts += 1
            return act(*given, **named)

        return wrapped

    with monkeypatch.context() as patched:
        patched.setattr(retention, "expire", dying(retention.expire))
        patched.setattr(type(records.seeds), "remove", dying(type(records.seeds).remove))
        patched.setattr(retention.ObligationRegister, "owe", dying(retention.ObligationRegister.owe))
        with pytest.raises(KeyboardInterrupt):
            retain(records, TOMORROW)
    told = retain(records, TOMORROW)
    assert len(told.done) == 3 - min(survived, 3)
    assert {each.state for each in records.audiences().audiences()} == {"expired"}
    assert seeds(records) == []
    assert {each.event for each in told.waiting} >= {"rights_request", "erasure", "withdrawal"}
    assert retain(records, TOMORROW).done == ()


def test_ledgers_logs_decisions_and_consents_are_never_touched(records: NodeRecords) -> None:
    filled(records)
    record_event(records, "rights_request", NOW, "case 7", NOW)
    others = (LOG_FILE, CONSENT_FILE)
    before = {name: rows(records.folder / name) for name in others}
    tables = ("approvals", "decisions", "reservations", "charges", "ledger_header")

    def kept() -> list[str]:
        lines = rows(records.folder / "node.sqlite").splitlines()
        return [line for line in lines if any(f'"{table}"' in line for table in tables)]

    assert len(kept()) >= 4
    known = kept()
    close(records, "ob-1", **OFFICE, now=NOW)
    retain(records, NOW + timedelta(days=400))
    assert kept() == known
    assert {name: rows(records.folder / name) for name in others} == before


def test_a_file_that_cannot_be_removed_is_told(bare: NodeRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    left = bare.folder / ".seeds-a"
    left.mkdir()
    old = (NOW - timedelta(hours=25)).timestamp()
    os.utime(left, (old, old))

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(retention.shutil, "rmtree", refuse)
    (step,) = retain(bare, NOW).not_done
    assert "Permission denied" in step.why
