"""Proposals at a node: what is taken, what a reviewer sees, what can be approved, and what never leaves."""

from __future__ import annotations

import json
import logging
import math
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.client import approving, desk, proposals, reviewing
from cohortium.client import node as node_module
from cohortium.client.approving import approval_file, approve, decline
from cohortium.client.governing import CONSENT_FILE, GOVERNANCE_FILE
from cohortium.client.joining import Link
from cohortium.client.lookalike import open_records
from cohortium.client.node import NodeIdentity, create_node, read_key
from cohortium.client.proposals import add_proposal, pending
from cohortium.client.reviewing import review
from cohortium.governance.consent import ConsentSignal, ConsentStore, Entry, RecordTemplate
from cohortium.models.catalogue import QUERY_KINDS
from cohortium.models.studies import phases
from cohortium.privacy.accounting import Spend, budget_for, epsilon_spent, person_at
from cohortium.privacy.ledger import Ledger, Slot, open_store
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.contract import Contract
from cohortium.study.errors import BudgetError, CohortiumError, DataError, PlanError, RefusedError
from cohortium.study.plan import PLAN_SCHEMA, Plan
from cohortium.study.plans import PLAN_KINDS, parse_plan
from cohortium.study.proposal import (
    MAX_PROPOSAL,
    Proposal,
    check_approval,
    parse_approval,
    sign_proposal,
)
from cohortium.study.software import Software, installed_software

NOW = datetime.now(UTC).replace(microsecond=0)
OTHER = Software(version="0", code="sha256:" + "1" * 64, bundle="sha256:" + "2" * 64)
RUN = "0" * 32


def private(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(name.ljust(32).encode())


def public(name: str) -> str:
    return private(name).public_key().public_bytes_raw().hex()


def packaged(name: str) -> str:
    return (resources.files("cohortium.simulations") / "plans" / name).read_text(encoding="utf-8")


DECLARED = packaged("demo.governance.toml").replace("packs = []", 'packs = ["eu"]')
TEMPLATE = packaged("demo.consent.toml")


@dataclass
class Bank:
    """A node that joined a federation, and the coordinator that proposes to it."""

    folder: Path
    key: Ed25519PrivateKey
    contract: Contract
    charter: Charter
    make_plan: Callable[..., Plan]
    purpose: str
    entries: Callable[[Path], list[dict[str, Any]]]

    def proposal(self, charter: Charter | None = None, software: Software | None = None, **plan: Any) -> Proposal:
        code = installed_software() if software is None else software
        whole = {"purpose": self.purpose, "contract": self.contract.digest, "software": code, **plan}
        within = self.charter if charter is None else charter
        return Proposal(
            federation=within.name,
            plan=self.make_plan(**whole),
            contract=self.contract,
            charter=within,
            base=None,
            made=NOW,
        )

    def add(self, proposal: Proposal) -> str:
        add_proposal(self.folder, sign_proposal(proposal, private("coordinator")).to_bytes())
        return proposal.plan.digest

    def propose(self, **changes: Any) -> str:
        return self.add(self.proposal(**changes))

    def approve(self, plan: str, approver: str = "ada") -> Any:
        return approve(self.folder, plan, approver, self.key)

    def approved(self, plan: str) -> bool:
        with open_records(self.folder) as records:
            return records.approvals.approved(plan) is not None

    def logged(self) -> list[dict[str, Any]]:
        return self.entries(self.folder) if (self.folder / "log.sqlite").exists() else []

    def refused(self, plan: str, error: type[CohortiumError], words: str) -> None:
        """Review says so, approval refuses for the same reason, and leaves no trace."""
        assert any(words in problem for problem in review(self.folder, plan).problems)
        before = self.logged()
        with pytest.raises(error, match=words):
            self.approve(plan)
        assert self.logged() == before
        assert not approval_file(self.folder, plan).exists()

    def amended(self, change: Callable[[dict[str, Any]], None]) -> Charter:
        document = self.charter.to_json()
        change(document)
        return parse_charter(document)


@pytest.fixture
def make_bank(
    tmp_path: Path,
    small_contract: Contract,
    charter: Charter,
    make_plan: Callable[..., Plan],
    log_entries: Callable[[Path], list[dict[str, Any]]],
) -> Callable[..., Bank]:
    """North, of a simulation, or with rules in force and consents of 60 people."""

    def make(*, governed: bool = False, epsilon: float = 3.0) -> Bank:
        folder = tmp_path / "north"
        purpose = "CustomerSegmentation" if governed else "research"
        contract = small_contract.model_copy(update={"purposes": (purpose,)})
        identity = NodeIdentity(institution="north", lifetime_epsilon=epsilon, simulation=not governed)
        create_node(folder, identity, contract)
        if governed:
            (folder / GOVERNANCE_FILE).write_text(DECLARED, encoding="utf-8")
            fill(folder / CONSENT_FILE)
        key = read_key(folder)
        document = {**charter.to_json(), "coordinator": public("coordinator"), "quorum": {"witnesses": 1}}
        document["institutions"][0]["identity"] = key.public_key().public_bytes_raw().hex()
        link = Link(
            federation="small", institution="north", address="127.0.0.1:9440", coordinator=public("coordinator")
        )
        (folder / "link.json").write_bytes(link.to_bytes())
        return Bank(folder, key, contract, parse_charter(document), make_plan, purpose, log_entries)

    return make


def fill(path: Path) -> None:
    template = RecordTemplate.model_validate(tomllib.loads(TEMPLATE))
    store = ConsentStore(open_store(path))
    store.add_template(template)
    signals = {
        state: ConsentSignal(
            template=template.digest,
            purposes=("Marketing",),
            state=state,
            event_type="explicit",
            validity_duration="P24M",
            entity_id="data subject",
        )
        for state in ("ConsentGiven", "ConsentRefused")
    }
    for number in range(60):
        state = "ConsentRefused" if number < 7 else "ConsentGiven"
        store.record_many([Entry(f"person-{number:03d}", signals[state], int(time.time()) - 1000)])
    store.close()


# --- what is taken ---------------------------------------------------------------------------------------------------


def test_a_proposal_is_kept_as_it_was_signed(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank()
    proposal = bank.proposal()
    plan = bank.add(proposal)
    bank.add(proposal)
    data = (bank.folder / "proposals" / f"{plan.removeprefix('sha256:')}.json").read_bytes()
    assert data == sign_proposal(proposal, private("coordinator")).to_bytes()
    assert [(one.proposal, one.state) for one in pending(bank.folder)] == [(proposal, "new")]


def test_only_the_coordinator_of_the_own_federation_proposes(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank()
    data = sign_proposal(bank.proposal(), private("coordinator")).to_bytes()
    theirs = bank.amended(lambda charter: charter.update(coordinator=public("mallory")))
    elsewhere = bank.amended(lambda charter: charter.update(name="elsewhere"))
    without = bank.amended(lambda charter: charter.update(institutions=charter["institutions"][1:]))
    attacks = {
        "not signed by the coordinator": sign_proposal(bank.proposal(theirs), private("mallory")).to_bytes(),
        "another federation": sign_proposal(bank.proposal(elsewhere), private("coordinator")).to_bytes(),
        "does not name this institution": sign_proposal(bank.proposal(without), private("coordinator")).to_bytes(),
        "not signed by": data.replace(b'"epsilon":1', b'"epsilon":2'),
        "is above": b" " * (MAX_PROPOSAL + 1),
        "no JSON": b"\x00",
    }
    for words, attack in attacks.items():
        with pytest.raises(RefusedError, match=words):
            add_proposal(bank.folder, attack)
    assert pending(bank.folder) == ()


def test_a_second_proposal_of_a_plan_does_not_replace_the_first(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank()
    plan = bank.propose()
    with pytest.raises(RefusedError, match="another proposal of this plan"):
        bank.propose(charter=bank.amended(lambda charter: charter.update(min_customers=999)))
    (found,) = pending(bank.folder)
    assert found.proposal.charter == bank.charter
    path = bank.folder / "proposals" / f"{plan.removeprefix('sha256:')}.json"
    path.write_bytes(path.read_bytes()[:100])
    bank.propose()
    assert len(pending(bank.folder)) == 1, "one that was cut off is replaced"


def test_proposals_do_not_fill_the_disk(make_bank: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch) -> None:
    bank = make_bank()
    monkeypatch.setattr(proposals, "_MOST_PROPOSALS", 2)
    kept = [bank.propose(name=f"plan-{number}") for number in range(2)]
    with pytest.raises(RefusedError, match="there are 2 proposals already"):
        bank.propose(name="plan-2")
    bank.propose(name="plan-0")
    assert sorted(one.proposal.plan.digest for one in pending(bank.folder)) == sorted(kept)


def test_a_node_that_joined_nothing_takes_nothing(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank()
    (bank.folder / "link.json").unlink()
    with pytest.raises(RefusedError, match="joined no federation"):
        bank.propose()


def test_an_altered_proposal_is_not_listed_reviewed_or_approved(
    make_bank: Callable[..., Bank], caplog: pytest.LogCaptureFixture
) -> None:
    bank = make_bank()
    plan, other = bank.propose(), bank.propose(name="other")
    path, theirs = (bank.folder / "proposals" / f"{one.removeprefix('sha256:')}.json" for one in (plan, other))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"epsilon":1', b'"epsilon":2'))
    with caplog.at_level(logging.WARNING):
        assert [one.proposal.plan.digest for one in pending(bank.folder)] == [other]
    assert "left out" in caplog.text
    for act in (lambda: review(bank.folder, plan), lambda: bank.approve(plan)):
        with pytest.raises(RefusedError, match="not signed"):
            act()
    path.write_bytes(theirs.read_bytes())
    with pytest.raises(RefusedError, match="another plan"):
        bank.approve(plan)


@pytest.mark.parametrize("plan", ["", "0" * 64, "sha256:../../x", "sha256:" + "0" * 63 + "/"])
def test_a_plan_is_named_by_its_digest_alone(plan: str, make_bank: Callable[..., Bank]) -> None:
    bank = make_bank()
    with pytest.raises(RefusedError, match="no plan's digest"):
        review(bank.folder, plan)
    with pytest.raises(RefusedError, match="no such proposal"):
        review(bank.folder, "sha256:" + "0" * 64)


# --- review ----------------------------------------------------------------------------------------------------------


def test_a_review_says_what_is_asked_and_what_it_costs(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank()
    plan = bank.propose(trust="distributed", min_institutions=3)
    told = review(bank.folder, plan)
    assert told.problems == ()
    assert [(one.phase, one.questions) for one in told.asked] == [
        ("marginals", 1),
        ("moments", 1),
        ("cells", 3),
        ("lloyd", 3),
        ("profiles", 1),
    ]
    assert sum(one.share for one in told.asked) == pytest.approx(100)
    assert all(0 < one.epsilon < told.epsilon for one in told.asked)
    budget = budget_for(1.0, 1e-6)
    assert told.person_at == {
        count: epsilon_spent(person_at(budget - budget, budget, count), 1e-6) for count in (1, 2, 3)
    }
    assert 0.999 < told.person_at[1] <= 1.0 < told.person_at[2] < told.person_at[3]
    assert (told.lifetime.before, told.lifetime.held) == (0.0, 0.0)
    assert told.lifetime.after is not None
    assert told.lifetime.after <= 3.0
    assert [one.name for one in told.members] == ["north", "south", "west"]
    assert told.software == told.installed
    assert (told.earlier, told.changes, told.decision, told.coverage, told.state) == (None, (), None, None, "new")
    assert json.loads(json.dumps(told.to_json()))["person_at"]["2"] == told.person_at[2]


def test_a_review_has_every_field_of_plan_and_charter(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank()
    plan = bank.propose(trust="distributed", min_institutions=3, share_threshold=3)
    fields = review(bank.folder, plan).fields
    assert fields["share_threshold"] == "3"
    assert fields["segments.k"] == "3"
    assert fields["charter.coordinator"] == f'"{public("coordinator")}"'
    assert fields["charter.institutions.west.region"] == '"EU"'
    for whole, prefix in ((bank.proposal().plan.to_json(), ""), (bank.charter.to_json(), "charter.")):
        assert {f"{prefix}{name}" for name, value in whole.items() if value not in ([], {})} <= {
            ".".join(name.split(".")[: 1 + bool(prefix)]) for name in fields
        }


def test_an_audit_says_by_which_outcomes_and_proxies_it_counts(make_bank: Callable[..., Bank]) -> None:
    proposal = make_bank().proposal()
    whole = {name: value for name, value in proposal.plan.to_json().items() if name in Plan.model_fields}
    audit = {"of": "column", "column": "treated", "attributes": ["gender"], "label": "answered", "positive": "yes"}
    shares = {"outcomes": 40, "labels": 30, "proxies": 30}
    asked = {"schema": PLAN_SCHEMA, **whole, "study": "audit", "shares": shares}
    plan = parse_plan({**asked, "audit": {**audit, "proxies": ["visits"]}})
    features = reviewing._features(proposal.model_copy(update={"plan": plan}))
    assert features == ("gender", "treated", "answered", "visits")


def test_under_local_noise_a_person_at_several_institutions_pays_less_than_under_shared(
    make_bank: Callable[..., Bank],
) -> None:
    bank = make_bank()
    local = review(bank.folder, bank.propose(min_institutions=3))
    shared = review(bank.folder, bank.propose(trust="distributed", min_institutions=3))
    assert local.person_at[1] == shared.person_at[1]
    assert local.person_at[3] < shared.person_at[3]
    assert local.person_at[2] == pytest.approx(epsilon_spent(budget_for(1.0, 1e-6).times(2), 1e-6), rel=1e-12), (
        "independent releases add up"
    )


def test_every_phase_of_every_kind_of_plan_is_in_words(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank()
    whole = {
        name: value for name, value in bank.proposal().plan.to_json().items() if name not in ("segments", "shares")
    }
    plans = [
        bank.proposal(shares={"marginals": 15, "clustering": 60, "profiles": 20, "rfm": 5}).plan,
        parse_plan({**whole, "study": "encoder"}),
        parse_plan({**whole, "study": "lookalike", "model": "sha256:" + "0" * 64, "lookalike": {"seed": "vip"}}),
    ]
    assert {words.split()[0] for words in reviewing._QUESTIONS} == set(QUERY_KINDS)
    assert set(reviewing._RELEASED) == set(PLAN_KINDS)
    for plan in plans:
        asked = [reviewing._asked(phase, plan) for phase in phases(plan)]
        assert [one.phase for one in asked] == [phase.name for phase in phases(plan)]
        assert sum(one.share for one in asked) == pytest.approx(100)


def test_changes_since_the_last_approved_plan_are_named_field_by_field(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank()
    first = bank.propose(epsilon=0.5)
    bank.approve(first)
    bank.approve(bank.propose(name="another", epsilon=0.3))
    renamed = bank.amended(lambda charter: charter["institutions"][2].update(region="UK"))
    grown = bank.amended(
        lambda charter: charter["institutions"].append(
            {"name": "east", "region": "US", "identity": public("east"), "group": None}
        )
    )
    told = review(bank.folder, bank.propose(epsilon=0.75, charter=renamed))
    assert told.earlier == first
    assert [(one.field, one.before, one.after) for one in told.changes] == [
        ("charter.institutions.west.region", '"EU"', '"UK"'),
        ("epsilon", "0.5", "0.75"),
    ]
    told = review(bank.folder, bank.propose(epsilon=0.6, charter=grown))
    added = [one for one in told.changes if one.field.startswith("charter.institutions.east.")]
    assert {one.before for one in added} == {None}
    assert len(added) == 4


def test_rules_are_asked_on_the_facts_as_a_run_would_find_them(make_bank: Callable[..., Bank]) -> None:
    """Nobody has cosigned this node's log: a run would wait for that, and so is no reason against the plan."""
    bank = make_bank(governed=True)
    told = review(bank.folder, bank.propose(trust="distributed", min_institutions=3))
    assert told.problems == ()
    assert told.decision is not None
    assert told.decision.admitted
    assert set(told.decision.packs) == {"house", "eu"}
    assert not (bank.folder / "log.sqlite").exists(), "a review begins no log"
    with open_records(bank.folder) as records:
        assert records.approvals.decisions(told.plan) == [], "a review keeps no decision"


def test_cosignatures_beyond_the_quorum_count_as_they_are(
    make_members: Callable[..., Any],
    make_plan: Callable[..., Plan],
    make_people: Callable[..., Any],
    exchange: Callable[..., None],
) -> None:
    plan = make_plan(min_institutions=4)
    members = make_members([make_people(20)] * 4, plan)
    name = members.nodes[0].identity.institution
    asked = desk.ComingLog(members.folders[0], name, members.charter)
    assert asked.cosigners(plan.digest) == members.charter.quorum_of(name).witnesses == 2
    exchange(members.nodes, plan)
    assert asked.cosigners(plan.digest) == 3
    renamed = parse_charter({**members.charter.to_json(), "name": "another"})
    assert desk.ComingLog(members.folders[0], name, renamed).cosigners(plan.digest) == 2


def test_a_review_counts_the_house_s_own_people_and_no_document_that_leaves_does(
    make_bank: Callable[..., Bank],
) -> None:
    bank = make_bank(governed=True)
    plan = bank.propose(trust="distributed", min_institutions=3)
    told = review(bank.folder, plan)
    assert told.coverage is not None
    assert (told.coverage.people, told.coverage.counted) == (60, 53)
    assert told.coverage.left_out["without_valid_consent"] == 7
    said = bank.approve(plan)
    assert set(said.to_json()) == {
        "schema", "federation", "plan", "charter", "proposal", "institution", "approver", "approved_at",
    }  # fmt: skip
    (entry,) = bank.logged()
    assert set(entry) == {"event", "plan", "charter", "proposal", "approval"}


# --- approving -------------------------------------------------------------------------------------------------------


def test_an_approval_is_logged_recorded_and_signed(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank()
    proposal = bank.proposal()
    plan = bank.add(proposal)
    said = bank.approve(plan)
    signed = parse_approval(approval_file(bank.folder, plan).read_bytes(), "a")
    check_approval(signed, proposal, "a")
    assert signed.approval == said
    assert (said.institution, said.approver) == ("north", "ada")
    assert bank.approved(plan)
    assert bank.logged() == [
        {
            "event": "study-approved",
            "plan": plan,
            "charter": proposal.charter.digest,
            "proposal": proposal.digest,
            "approval": said.digest,
        }
    ]
    assert [one.state for one in pending(bank.folder)] == ["approved"]


def test_approving_again_changes_nothing(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank()
    plan = bank.propose()
    first = bank.approve(plan)
    data = approval_file(bank.folder, plan).read_bytes()
    assert bank.approve(plan, "bob") == first
    assert approval_file(bank.folder, plan).read_bytes() == data
    assert len(bank.logged()) == 1


@pytest.mark.parametrize("point", ["record", "approve", "keep"])
def test_a_node_that_dies_while_it_approves_can_approve_again(
    point: str, make_bank: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = make_bank()
    plan = bank.propose()

    def dies(*_arguments: object) -> None:
        raise KeyboardInterrupt

    owners: dict[str, Any] = {"record": approving.NodeLog, "keep": approving}
    with monkeypatch.context() as patched:
        if point == "approve":
            patched.setattr("cohortium.client.store.NodeStore.approve", dies)
        else:
            patched.setattr(owners[point], point, dies)
        with pytest.raises(KeyboardInterrupt):
            bank.approve(plan)
    assert not approval_file(bank.folder, plan).exists()
    assert bank.approved(plan) == (point == "keep"), "nothing is answered that is not logged"
    said = bank.approve(plan)
    assert bank.logged()[-1]["approval"] == said.digest
    assert bank.approved(plan)


def test_a_plan_for_other_code_is_refused(make_bank: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch) -> None:
    bank = make_bank()
    bank.refused(bank.propose(software=OTHER), RefusedError, "the plan is for cohortium 0")
    plan = bank.propose()
    monkeypatch.setattr(node_module, "installed_software", lambda: OTHER)
    bank.refused(plan, RefusedError, "installed here is")


def test_a_plan_that_is_unsafe_here_is_refused(make_bank: Callable[..., Bank], small_contract: Contract) -> None:
    bank = make_bank()
    strict = bank.amended(lambda charter: charter.update(max_epsilon=0.5))
    bank.refused(bank.propose(charter=strict), PlanError, "above the charter")
    bank.contract = small_contract.model_copy(update={"purposes": ("other",)})
    bank.refused(bank.propose(purpose="other"), PlanError, "made for another contract")


def test_a_plan_that_the_budget_does_not_cover_is_refused(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank(epsilon=0.9)
    plan = bank.propose()
    bank.refused(plan, BudgetError, "does not cover this plan")
    assert review(bank.folder, plan).lifetime.after is None
    assert review(bank.folder, bank.propose(epsilon=0.8)).problems == ()


def test_a_plan_for_which_no_total_variation_is_left_is_refused(
    make_bank: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = make_bank()
    plan = bank.propose()
    monkeypatch.setattr(Ledger, "available", lambda _ledger: Spend(budget_for(3.0, 1e-6).mu2, 0))
    bank.refused(plan, BudgetError, "does not cover this plan")


def test_what_was_spent_and_what_is_held_show_in_the_lifetime(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank()
    first, second = bank.propose(epsilon=0.5), bank.propose(name="second", epsilon=0.5)
    with open_records(bank.folder) as records:
        ledger = Ledger(records.database, "north", budget_for(3.0, 1e-6))
        ledger.reserve(first, RUN, budget_for(0.5, 1e-6), date(2099, 12, 31))
        ledger.charge(
            Slot(first, RUN, "marginals", 0, 1), "sha256:" + "0" * 64, width=4, bound_squared=2**30, sigma=2**20
        )
    told, own = review(bank.folder, second).lifetime, review(bank.folder, first).lifetime
    assert told.after is not None
    assert 0 < told.before < 0.2 < told.held < told.after < 3.0
    assert own.after == own.held, "what is reserved for a plan is not taken twice"


def test_an_expired_plan_is_refused(make_bank: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch) -> None:
    bank = make_bank()
    plan = bank.propose(expires=NOW.date().isoformat())
    assert review(bank.folder, plan).problems == ()
    for one in (proposals, desk):
        monkeypatch.setattr(one, "_today", lambda: NOW.date() + timedelta(days=1))
    assert [one.state for one in pending(bank.folder)] == ["expired"]
    bank.refused(plan, PlanError, "expired")


def test_no_approval_stands_above_a_rule(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank(governed=True)
    plan = bank.propose(trust="distributed", min_institutions=3)
    path = bank.folder / GOVERNANCE_FILE
    text = path.read_text(encoding="utf-8")
    kept = [line for line in text.splitlines() if not line.startswith(("docs.dpia_ref", "docs.ropa_ref"))]
    path.write_text("\n".join(kept), encoding="utf-8")
    told = review(bank.folder, plan)
    assert told.decision is not None
    assert {one.rule for one in told.decision.findings} >= {"EU-GDPR-35", "EU-GDPR-30"}
    bank.refused(plan, RefusedError, "EU-GDPR-35")
    path.unlink()
    bank.refused(plan, RefusedError, "no rules are in force")
    path.write_text(text, encoding="utf-8")
    assert bank.approve(plan).plan == plan


def test_a_plan_that_was_approved_within_another_charter_is_refused(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank()
    proposal = bank.proposal()
    other = bank.amended(lambda charter: charter.update(min_customers=999))
    with open_records(bank.folder) as records:
        records.approvals.approve(proposal.plan, bank.contract, other)
    bank.refused(bank.add(proposal), RefusedError, "within another charter")


def test_a_plan_that_was_approved_before_a_restore_is_not_approved_again(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank()
    plan = bank.propose()
    bank.approve(plan)
    with open_records(bank.folder) as records:
        records.approvals.mark_restored("2026-01-01T00:00:00+00:00")
        records.approvals.confirm_restored(("west",))
    with pytest.raises(RefusedError, match="before this node was restored"):
        bank.approve(plan)


def test_a_node_that_was_restored_approves_nothing_before_it_is_confirmed(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank()
    with open_records(bank.folder) as records:
        records.approvals.mark_restored("2026-01-01T00:00:00+00:00")
    plan = bank.propose()
    bank.refused(plan, RefusedError, "restored from a backup")
    with open_records(bank.folder) as records:
        records.approvals.confirm_restored(("west",))
    assert bank.approve(plan).plan == plan


def test_only_the_key_that_the_charter_pins_approves(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank()
    plan = bank.propose()
    with pytest.raises(RefusedError, match="not signed by the identity key of 'north'"):
        approve(bank.folder, plan, "ada", private("mallory"))
    assert not bank.approved(plan)
    assert bank.logged() == []


def test_a_declined_plan_stays_declined_and_the_reason_stays_here(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank()
    plan, approved = bank.propose(), bank.propose(name="approved")
    decline(bank.folder, plan, "ada", "we do not segment minors")
    decline(bank.folder, plan, "bob", "again")
    (path,) = (bank.folder / "declined").iterdir()
    said = json.loads(path.read_bytes())
    assert (said["plan"], said["by"], said["reason"]) == (plan, "ada", "we do not segment minors")
    assert {one.proposal.plan.digest: one.state for one in pending(bank.folder)}[plan] == "declined"
    bank.refused(plan, RefusedError, "declined here")
    bank.approve(approved)
    with pytest.raises(RefusedError, match="was approved here"):
        decline(bank.folder, approved, "ada", "changed our minds")
    for reason in ("", " ", "two\nlines", "x" * 501):
        with pytest.raises(DataError, match="no line of 1 to 500"):
            decline(bank.folder, plan, "ada", reason)


def test_an_infinite_epsilon_is_null_in_json(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank()
    told = review(bank.folder, bank.propose())
    whole = replace(told, person_at={1: math.inf}).to_json()
    assert whole["person_at"] == {"1": None}
