"""An audience goes out only witnessed, reviewed and admitted; every way in which it is not is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cohortium.client.audience import (
    Audience,
    Level,
    create,
    expire,
    export,
    export_removal,
    export_withdrawals,
    read_manifest,
)
from cohortium.client.governing import CONSENT_FILE, GOVERNANCE_FILE, NodeGovernance
from cohortium.client.lookalike import (
    REVIEW_FILE,
    GovernedActivation,
    NodeRecords,
    admit_model,
    case_documents,
    open_records,
    score_customers_file,
)
from cohortium.client.node import open_books, read_key
from cohortium.client.store import NodeStore
from cohortium.client.witnessing import LOG_FILE
from cohortium.governance.consent import ConsentStore
from cohortium.governance.evidence import complete_dpia, dpia
from cohortium.governance.fairness import FairnessResult, judge_answers, load_fairness
from cohortium.governance.log import LogReader
from cohortium.governance.review import (
    Action,
    Case,
    ReviewStore,
    Terms,
    open_case,
    read_reviewer_key,
    sign_statement,
)
from cohortium.governance.rules import Facts
from cohortium.models.auditing import GroupAnswers
from cohortium.models.group_table import GroupTable
from cohortium.privacy.ledger import Slot, open_store
from cohortium.simulations.audit_study import simulate_audit
from cohortium.simulations.governance_account import governed_institutions
from cohortium.simulations.governed import SimulatedGovernance
from cohortium.simulations.lookalike_study import (
    LOOKALIKE_FILE,
    SeedOrder,
    export_changes,
    simulate_campaign,
    simulate_encoder,
)
from cohortium.simulations.reviewing import REVIEWERS_PASSWORD, review_audience
from cohortium.simulations.run_folder import Begun, SimulationOrder
from cohortium.simulations.sources import own_data
from cohortium.simulations.withdrawing import MemberWithdraws
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.audit_tables import load_audit_tables
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.contract import Contract, parse_contract
from cohortium.study.errors import RefusedError
from cohortium.study.model import LookalikeModel, Model, load_model
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan

CONTRACT = """
schema = "cohortium.contract/1"
name = "shop"
purposes = ["LookalikeModelling"]
window = { start = 2024-01-01, end = 2025-01-01 }
[[tables]]
name = "customers"
kind = "customers"
customer = "id"
[[features]]
name = "spend"
table = "customers"
kind = "numeric"
column = "spend"
low = -4
high = 4
missing = 0
block = "behaviour"
[[features]]
name = "visits"
table = "customers"
kind = "numeric"
column = "visits"
low = -4
high = 4
missing = 0
block = "behaviour"
[[features]]
name = "sex"
table = "customers"
kind = "category"
column = "sex"
categories = ["f", "m"]
protected = true
"""
HEAD: dict[str, Any] = {
    "schema": "cohortium.plan/1",
    "purpose": "LookalikeModelling",
    "lawful_basis": "consent",
    "regions": ["EU"],
    "expires": "2099-01-01",
    "trust": "distributed",
    "min_institutions": 3,
    "min_cell": 50,
    "epsilon": 1.2,
    "delta": 1e-6,
}
FAIR = [[4_000, 16_000, 900], [4_000, 16_000, 900], [0, 0, 0]]
UNFAIR = [[4_000, 16_000, 900], [2_000, 18_000, 900], [0, 0, 0]]
NAME = "east"


@dataclass(frozen=True)
class House:
    """One institution after a campaign, that is to export an audience of it; a copy of its own for every test."""

    folder: Path
    campaign: Path
    plan: Plan
    contract: Contract
    charter: Charter
    model: Model[LookalikeModel]

    @property
    def file(self) -> Path:
        return self.campaign / LOOKALIKE_FILE

    def audit(
        self, counts: list[list[int]] = FAIR, *, made: date | None = None, level: str = "wide", approved: bool = True
    ) -> FairnessResult:
        """An audit of the audience whose tables are these; the questions that give them are tested elsewhere."""
        settings = {"of": "audience", "model": self.model.digest, "level": level, "seed": "valued"}
        document = {**HEAD, "study": "audit", "name": "audit", "contract": self.contract.digest}
        plan = parse_plan({**document, "audit": {**settings, "attributes": ["sex"]}})
        assert isinstance(plan, AuditPlan)
        with open_records(self.folder) as records:
            if approved:
                records.approvals.approve(plan, self.contract, self.charter)
        groups = (("f",), ("m",), ("unknown",))
        table = GroupTable(("sex",), groups, ("chosen", "rest", "seed"), np.array(counts, dtype=float), 3.0)
        return judge_answers(plan, [GroupAnswers(table)], {}, made or datetime.now(UTC).date())

    def assessed(self, plan: Plan | None = None, outcome: Any = "approve") -> dict[str, Any]:
        draft = dpia(NAME, plan or self.plan, self.charter, self.contract, Facts.of({}, "nobody"))
        answers = {one.name: "made up" for one in draft.questions}
        return complete_dpia(draft, answers, outcome, by=("p-1",), on=date(2026, 11, 1)).to_json()

    @contextmanager
    def reviews(self) -> Iterator[ReviewStore]:
        engine = open_store(self.folder / REVIEW_FILE)
        try:
            yield ReviewStore(engine)
        finally:
            engine.dispose()

    def open(self, name: str = "one", result: FairnessResult | None = None, **documents: Any) -> Case:
        with open_records(self.folder) as records:
            made, facts = case_documents(
                records.models, records.approvals, result or self.audit(), documents.pop("dpia", self.assessed())
            )
        made |= documents
        people = {"owner": "owner", "builders": ("builder",)}
        case = open_case(
            made,
            facts.facts,
            name=name,
            federation=self.charter.name,
            institution=NAME,
            kind="audience_export",
            about="campaign",
            purpose="LookalikeModelling",
            opened_at=datetime.now(UTC).replace(microsecond=0),
            **people,
        )
        with self.reviews() as store:
            store.open(case, made)
        return case

    def sign(self, case: Case, function: str, action: Action = "approve", **terms: Any) -> None:
        now = datetime.now(UTC).replace(microsecond=0)
        (who,) = [r for r in self.charter.reviewers if (r.institution, r.function) == (NAME, function)]
        key = read_reviewer_key(self.folder / "reviewers" / f"{function}.pem", REVIEWERS_PASSWORD)
        said = Terms(expires=now.date() + timedelta(days=30), **terms)
        with self.reviews() as store:
            store.add(
                case.name, sign_statement(case, store.head(case.name), who, key, action, said, now), self.charter, now
            )

    def approve(self, case: Case) -> None:
        for function in ("privacy", "risk"):
            self.sign(case, function)

    def reject(self, case: Case) -> None:
        now = datetime.now(UTC).replace(microsecond=0)
        (who,) = [r for r in self.charter.reviewers if (r.institution, r.function) == (NAME, "privacy")]
        key = read_reviewer_key(self.folder / "reviewers" / "privacy.pem", REVIEWERS_PASSWORD)
        with self.reviews() as store:
            said = sign_statement(case, store.head(case.name), who, key, "reject", Terms(reason="no"), now)
            store.add(case.name, said, self.charter, now)

    def waive(self, case: Case) -> None:
        for function in ("privacy", "risk"):
            self.sign(case, function, "waive", reason="measured", task="train anew")

    def audience(self, records: NodeRecords, level: Level | None = None, name: str = "spring") -> Audience:
        scores = self.folder / "scores.parquet"
        if not scores.exists():
            score_customers_file(records, self.file, scores)
        chosen = level or admit_model(records, self.file).level("wide")
        allowed = records.activation(self.plan.digest)
        return create(records.audiences(), scores, chosen, name, min_cell=50, activation=allowed).audience

    def export(self, out: str = "out", now: datetime | None = None, level: Level | None = None) -> Path:
        with open_records(self.folder) as records:
            activation = records.activation(self.plan.digest)
            if now is not None:
                activation = replace(activation, now=lambda: now)
            made = self.audience(records, level, out)
            export(records.audiences(), made.id, self.folder / out, activation=activation)
        return self.folder / out

    def refusal(self, **how: Any) -> str:
        with pytest.raises(RefusedError) as caught:
            self.export(**how)
        assert not (self.folder / how.get("out", "out")).exists()
        return str(caught.value)

    def entries(self) -> list[dict[str, Any]]:
        engine = open_store(self.folder / LOG_FILE)
        try:
            log = LogReader(engine)
            found = [dict(one.entry) for one in log.entries(0, log.size)]
        finally:
            engine.dispose()
        return [entry for entry in found if entry["event"] == "activation"]


@dataclass(frozen=True)
class Campaign:
    """Where it lies, and how to go on with it."""

    folder: Path
    order: SimulationOrder
    seeds: SeedOrder


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """A campaign of three governed institutions; the second is to export."""
    folder = tmp_path_factory.mktemp("campaign")
    rng, people = np.random.default_rng(3), 2_400
    frame = pd.DataFrame({"id": [f"c{row}" for row in range(people)]})
    frame["spend"], frame["visits"] = rng.normal(0, 1, people).clip(-4, 4), rng.normal(0, 1, people).clip(-4, 4)
    frame["sex"] = rng.choice(["f", "m"], people)
    frame["shop"] = np.array(["north", NAME, "west"])[np.arange(people) % 3]
    frame.to_parquet(folder / "customers.parquet")
    frame[["id"]][frame["spend"] > 1].to_csv(folder / "valued.csv", index=False)
    contract = parse_contract(CONTRACT, "shop.toml")
    data = own_data({"customers": folder / "customers.parquet"}, "shop", contract)
    settings = {"encoder": {"rounds": 1, "hidden": 4, "width": 2}}
    head = {**HEAD, "contract": contract.digest}
    plan = parse_plan({**head, **settings, "study": "encoder", "name": "encoder"})
    governance = SimulatedGovernance(regions=("EU",))
    order = SimulationOrder(
        plan, contract, data, folder / "encoder", state=folder / "nodes", governance=governance, lifetime_epsilon=3.0
    )
    base = simulate_encoder(order, lambda _line: None)
    wanted = {"seed": "valued", "steps": 0, "levels": [{"name": "wide", "share": 0.3}, {"name": "whole", "share": 0.6}]}
    shares = {"features": 70, "embedding": 0, "contest": 0, "curve": 30, "profile": 0}
    second = parse_plan(
        {**head, "study": "lookalike", "name": "campaign", "model": base.digest, "lookalike": wanted, "shares": shares}
    )
    order = replace(order, plan=second, base=base, out=folder / "campaign", onboarded=("east", "north", "west"))
    seeds = SeedOrder(folder / "valued.csv", "id", ("north",))
    simulate_campaign(order, seeds, lambda _line: None)
    return Campaign(folder, order, seeds)


@pytest.fixture
def make(campaign: Campaign, tmp_path: Path) -> Callable[..., House]:
    def house(**declared: str) -> House:
        folder = tmp_path / NAME
        shutil.copytree(campaign.folder / "nodes" / NAME, folder)
        path = folder / GOVERNANCE_FILE
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace('packs = ["eu"]', declared.get("packs", 'packs = ["eu"]')), encoding="utf-8")
        out = campaign.order.out
        return House(
            folder,
            out,
            parse_plan(json.loads((out / "plan.json").read_bytes())),
            parse_contract(CONTRACT, "shop.toml"),
            parse_charter(json.loads((out / "charter.json").read_bytes())),
            load_model(out / LOOKALIKE_FILE, LookalikeModel, signer=None),
        )

    return house


@pytest.fixture
def house(make: Callable[..., House]) -> House:
    return make()


def test_an_approved_audience_goes_out_and_says_by_whose_leave(house: House) -> None:
    case = house.open()
    house.approve(case)
    manifest = read_manifest(house.export())
    (entry,) = house.entries()
    with house.reviews() as store:
        head = store.head(case.name)
    assert manifest.added >= 50
    assert manifest.case == entry["case"] == case.digest
    assert manifest.decision == entry["decision"]
    assert (entry["admitted"], entry["statement"], entry["level"]) == ("true", head, "wide")
    assert (entry["model"], entry["plan"], entry["audience"]) == (
        house.model.digest,
        house.plan.digest,
        manifest.audience,
    )
    with open_records(house.folder) as records:
        decision, facts = records.approvals.decisions(house.plan.digest)[-1]
    assert (decision.id, decision.stage, decision.admitted) == (manifest.decision, "activation", True)
    told = {
        name: facts.facts[name] for name in ("audit.verdict", "audit.age_days", "review.approvers", "log.cosigners")
    }
    assert told == {"audit.verdict": "pass", "audit.age_days": 0, "review.approvers": 2, "log.cosigners": 2}


def test_without_a_case_nothing_goes_out(house: House) -> None:
    assert "no audience is before the reviewers" in house.refusal()
    assert house.entries() == []


def test_one_signature_is_not_enough(house: House) -> None:
    case = house.open()
    house.sign(case, "privacy")
    said = house.refusal()
    assert "is waiting" in said
    assert "risk-reviewer" in said
    house.sign(case, "risk")
    house.export("again")


def test_a_new_case_of_changed_documents_takes_the_place_of_the_approved_one(house: House) -> None:
    house.approve(house.open())
    changed = house.open("two", dpia=house.assessed(outcome="approve") | {"activity": "another name"})
    assert "case 'two' is waiting" in house.refusal()
    house.approve(changed)
    house.export("again")


def test_an_approval_ends_on_its_last_day(house: House) -> None:
    house.approve(house.open())
    now = datetime.now(UTC).replace(microsecond=0)
    assert "is expired" in house.refusal(now=now + timedelta(days=31))
    house.export("again", now=now + timedelta(days=29))


def test_a_failed_audit_is_refused_by_the_house_unless_two_people_waive_it(house: House) -> None:
    case = house.open(result=house.audit(UNFAIR))
    house.approve(case)
    said = house.refusal()
    assert "X-AUDIT-VERDICT" in said
    assert "audit.verdict is fail" in said
    house.sign(case, "privacy", "waive", reason="measured", task="train anew")
    assert "X-AUDIT-VERDICT" in house.refusal(out="second")
    house.sign(case, "risk", "waive", reason="measured", task="train anew")
    house.export("again")
    assert [entry["admitted"] for entry in house.entries()] == ["false", "false", "true"]


def test_a_waiver_does_not_satisfy_the_equality_act(make: Callable[..., House]) -> None:
    house = make(packs='packs = ["eu", "uk"]')
    case = house.open(result=house.audit(UNFAIR))
    house.approve(case)
    house.waive(case)
    said = house.refusal()
    assert "UK-EQA-19-29" in said
    assert "docs.objective_justification_ref is unknown" in said


def test_an_old_audit_is_refused(house: House) -> None:
    today = datetime.now(UTC).date()
    house.approve(house.open(result=house.audit(made=today - timedelta(days=91))))
    assert "X-AUDIT-FRESH" in house.refusal()


def test_an_audit_of_another_level_is_none_of_this_one(house: House) -> None:
    house.approve(house.open(result=house.audit(level="whole")))
    assert "no audience of level 'wide' of this model" in house.refusal()


def test_a_cut_off_of_ones_own_was_not_audited(house: House) -> None:
    house.approve(house.open())
    for name in ("custom", "wide"):
        said = house.refusal(level=Level(name, -100.0, 0.3), out=name)
        assert f"does not begin where the model's level '{name}' does" in said


@pytest.mark.parametrize("declared", ["none", None])
def test_an_export_is_an_activation_whatever_is_declared(house: House, declared: str | None) -> None:
    path = house.folder / GOVERNANCE_FILE
    line = "" if declared is None else f'use.activation = "{declared}"'
    path.write_text(path.read_text(encoding="utf-8").replace('use.activation = "own_channels"', line), encoding="utf-8")
    house.approve(house.open(result=house.audit(UNFAIR)))
    assert "state use.activation" in house.refusal()


def test_an_audit_that_this_institution_never_approved_is_refused(house: House) -> None:
    house.approve(house.open(result=house.audit(approved=False)))
    assert "is not one whose plan this institution approved" in house.refusal()


def test_an_audit_by_limits_of_its_own_is_refused(house: House) -> None:
    unfair = house.audit(UNFAIR)
    lax = tuple(
        each.model_copy(update={"limit": 0.0 if each.side == "at least" else 1.0}) for each in unfair.thresholds
    )
    passed = tuple(
        metric.model_copy(update={"verdict": "pass"}) if metric.verdict in ("fail", "inconclusive") else metric
        for metric in unfair.metrics
    )
    forged = FairnessResult.model_validate(
        unfair.model_copy(update={"thresholds": lax, "metrics": passed, "verdict": "pass"}).to_json()
    )
    house.approve(house.open(result=forged))
    assert "is not judged by the usual limits" in house.refusal()


def test_an_audit_that_leaves_a_comparison_out_is_refused(house: House) -> None:
    whole = house.audit(UNFAIR)
    some = tuple(metric for metric in whole.metrics if metric.name != "impact-ratio")
    left = [metric.verdict for metric in some if metric.verdict is not None]
    worst = next(verdict for verdict in ("fail", "insufficient", "inconclusive", "pass") if verdict in left)
    named = {metric.threshold for metric in some}
    cut = whole.model_copy(
        update={
            "metrics": some,
            "verdict": worst,
            "thresholds": tuple(each for each in whole.thresholds if each.name in named),
        }
    )
    house.approve(house.open(result=FairnessResult.model_validate(cut.to_json())))
    assert "is not about every group that its plan asks about" in house.refusal()


def test_who_withdraws_while_an_export_is_made_stops_it(house: House) -> None:
    house.approve(house.open())
    with open_records(house.folder) as records:
        activation = records.activation(house.plan.digest)
        made = house.audience(records)
        with consents(house.folder) as store:
            store.withdraw(str(records.people().keys[0]))
        with pytest.raises(RefusedError, match="somebody's consent changed meanwhile"):
            export(records.audiences(), made.id, house.folder / "out", activation=activation)
    assert not (house.folder / "out").exists()
    assert house.entries() == []
    house.export("again")


def test_a_rejection_while_an_export_is_made_stops_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    case = house.open()
    house.approve(case)
    decide = NodeGovernance.activate

    def activate(*words: Any) -> Any:
        decided = decide(*words)
        house.reject(case)
        return decided

    monkeypatch.setattr(NodeGovernance, "activate", activate)
    assert "is rejected" in house.refusal()


def test_a_decision_is_kept_before_the_log_names_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.approve(house.open())

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(NodeStore, "keep_decision", dies)
        with pytest.raises(KeyboardInterrupt):
            house.export()
    assert house.entries() == []
    house.export("again")


def test_a_card_that_the_model_does_not_give_is_refused(house: House) -> None:
    with open_records(house.folder) as records:
        made, _ = case_documents(records.models, records.approvals, house.audit(), house.assessed())
    house.approve(house.open(card=made["card"] | {"name": "a better name"}))
    assert "the card of case 'one' is not the card of this model" in house.refusal()


def test_a_decision_that_admitted_something_else_is_refused(house: House) -> None:
    with open_records(house.folder) as records:
        admissions = [
            decision
            for plan in records.approvals.plans()
            for decision, _ in records.approvals.decisions(plan)
            if plan != house.plan.digest
        ]
    house.approve(house.open(decision=admissions[0].to_json()))
    assert "is not one that admitted the campaign here" in house.refusal()


@pytest.mark.parametrize("what", ["draft", "refer", "of another plan", "no assessment"])
def test_an_assessment_that_came_to_no_approval_of_this_campaign_is_refused(house: House, what: str) -> None:
    draft = dpia(NAME, house.plan, house.charter, house.contract, Facts.of({}, "nobody")).to_json()
    with open_records(house.folder) as records:
        (digest,) = [plan for plan in records.approvals.plans() if plan != house.plan.digest]
        other = records.approvals.approved(digest)
    assert other is not None
    documents = {
        "draft": draft,
        "refer": house.assessed(outcome="refer"),
        "of another plan": house.assessed(other.plan),
        "no assessment": {"outcome": "approve"},
    }
    house.approve(house.open(dpia=documents[what]))
    said = house.refusal()
    assert "the impact assessment of case 'one' is not" in said


def test_a_release_that_nobody_witnessed_holds_exports_back(house: House) -> None:
    house.approve(house.open())
    with open_records(house.folder) as records:
        books = open_books(house.folder, records.identity, records.database, read_key(house.folder))
        (begun,) = (one for one in books.ledger.reservations() if one.plan == house.plan.digest)
        slot = Slot(begun.plan, begun.run, "profile", 99, 1)
        charge = books.ledger.charge(slot, "sha256:" + "0" * 64, width=1, bound_squared=1, sigma=2**40)
        spent = {"mu2": str(charge.spend.mu2), "tv": str(charge.spend.tv)}
        entry = {"event": "release", "charge": charge.sequence, "question": charge.question, **vars(slot), **spent}
        books.log.record("a release", entry)
        books.close()
    assert "nobody has witnessed" in house.refusal()


def test_a_model_that_the_node_does_not_hold_is_refused(house: House) -> None:
    house.approve(house.open())
    shutil.rmtree(house.folder / "models")
    assert "cohortium fairness add" in house.refusal()


def test_a_document_changed_in_the_store_is_refused(house: House) -> None:
    house.approve(house.open())
    engine = open_store(house.folder / REVIEW_FILE)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER IF EXISTS review_documents_no_update")
        for (name,) in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
        connection.exec_driver_sql("UPDATE review_documents SET document = replace(document, 'approve', 'approwe')")
    engine.dispose()
    with pytest.raises(Exception, match="was altered"):
        house.export()


def test_a_removal_needs_nobodys_leave(house: House) -> None:
    house.approve(house.open())
    out = house.export()
    audience = read_manifest(out).audience
    (house.folder / REVIEW_FILE).unlink()
    with open_records(house.folder) as records:
        expire(records.audiences(), audience)
        export_removal(records.audiences(), audience, house.folder / "removal")
    manifest = read_manifest(house.folder / "removal")
    assert (manifest.decision, manifest.case) == (None, None)
    assert manifest.removed == read_manifest(out).added


def test_who_withdraws_is_removed_also_while_nothing_may_go_out(house: House) -> None:
    house.approve(house.open())
    out = house.export()
    audience = read_manifest(out).audience
    member = str(pd.read_csv(out / "add-000001.csv", dtype=str)["id"][0])
    with consents(house.folder) as store:
        store.withdraw(member)
    house.open("two", dpia=house.assessed() | {"activity": "another name"})
    with open_records(house.folder) as records:
        activation = records.activation(house.plan.digest)
        with pytest.raises(RefusedError, match="case 'two' is waiting"):
            export(records.audiences(), audience, house.folder / "second", activation=activation)
        export_withdrawals(records.audiences(), audience, house.folder / "second", activation=activation)
    manifest = read_manifest(house.folder / "second")
    assert (manifest.added, manifest.removed, manifest.not_allowed) == (0, 1, 1)
    assert (manifest.decision, manifest.case) == (None, None)


@contextmanager
def consents(folder: Path) -> Iterator[ConsentStore]:
    store = ConsentStore(open_store(folder / CONSENT_FILE, create=False))
    try:
        yield store
    finally:
        store.close()


def test_a_simulation_without_rules_asks_nothing_and_says_so(house: House) -> None:
    (house.folder / GOVERNANCE_FILE).unlink()
    manifest = read_manifest(house.export())
    assert (manifest.decision, manifest.case) == (None, None)
    assert house.entries() == []


def test_who_is_allowed_follows_the_consents_of_the_day(house: House) -> None:
    with open_records(house.folder) as records:
        activation = records.activation(house.plan.digest)
        assert isinstance(activation, GovernedActivation)
        ids = records.people().keys
        allowed = activation.allowed(ids.tolist())
    assert 0.85 < allowed.mean() < 0.99
    assert not activation.allowed(["nobody"]).any()


def test_the_whole_way_from_the_audit_to_the_removal_of_who_withdrew(campaign: Campaign, tmp_path: Path) -> None:
    shutil.copytree(campaign.folder, tmp_path / "all")
    home, said, pages = tmp_path / "all", [], []
    order = replace(campaign.order, out=home / "campaign", state=home / "nodes", resume=True)
    model = load_model(home / "campaign" / LOOKALIKE_FILE, LookalikeModel, signer=None)
    head = {**HEAD, "contract": order.contract.digest, "study": "audit", "epsilon": 0.8}
    audited = {"of": "audience", "model": model.digest, "level": "wide", "seed": "valued", "attributes": ["sex"]}
    plan = parse_plan({**head, "name": "audit", "audit": audited})

    def review(begun: Begun) -> None:
        audit = replace(order, plan=plan, out=home / "audit", base=None, resume=False)
        pages.append(simulate_audit(audit, home / "campaign" / LOOKALIKE_FILE, said.append))
        for name in ("east", "west"):
            found = review_audience(
                begun.folders[name], name, order.plan, order.contract, begun.charter, pages[0].result
            )
            assert (found.state, found.approvers) == ("approved", ("privacy-reviewer", "risk-reviewer"))

    summary = simulate_campaign(order, replace(campaign.seeds, audience="wide"), said.append, review)
    assert [one.facts.name for one in summary.institutions if one.exports] == ["east", "west"], said
    result = load_fairness(home / "audit" / "fairness.json")
    assert result == pages[0].result
    assert (result.audited, result.level, result.plan) == (model.digest, "wide", plan.digest)
    assert load_audit_tables(home / "audit" / "tables.json").plan == plan
    assert result.verdict in (home / "audit" / "report.html").read_text(encoding="utf-8").lower()

    folders = {name: home / "nodes" / name for name in ("north", "east", "west")}
    watching = {**audited, "intersections": [], "proxies": ["spend"]}
    shares = {"outcomes": 60, "proxies": 40}
    plan = parse_plan({**head, "name": "watching", "audit": watching, "shares": shares, "epsilon": 0.5})
    run = summary.campaign.run
    withdraws = MemberWithdraws(folders, "east", folders["east"] / "exports" / run, plan, "outcomes")
    watched = replace(order, plan=plan, out=home / "watched", base=None, resume=False)
    simulate_audit(watched, home / "campaign" / LOOKALIKE_FILE, said.append, withdraws.after)
    changes = export_changes(order, "east", run)
    assert (changes.kind, changes.removed, changes.added) == ("delta", 1, 0)
    told = withdraws.account(changes.removed, changes.added)
    assert told.first_without is not None
    assert "changed: east, of 3 institutions" in told.changed[0]
    (east,) = governed_institutions({"east": folders["east"]}, review_charter(home))
    stages = [one.stage for one in east.decisions if one.plan == "campaign"]
    assert stages == ["admission", "admission", "activation", "activation"]  # the run was resumed
    assert east.log is not None
    assert east.log.cosigned == 2
    assert east.log.entries == east.log.checkpoint + 1  # the last activation came after the last wave
    assert [one.state for one in east.reviews] == ["approved"]


def review_charter(home: Path) -> Charter:
    return parse_charter(json.loads((home / "campaign" / "charter.json").read_bytes()))
