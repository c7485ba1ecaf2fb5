"""An institution's node: what it approves, what it admits, what it remembers, and folders that are not its own."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from cohortium.client.node import (
    MAX_CLOCK_SKEW,
    Node,
    NodeIdentity,
    PlanGate,
    check_software,
    create_node,
    identity_key,
    open_node,
    read_contract,
)
from cohortium.client.store import Approval
from cohortium.models.marginals import Axis, MarginalsQuery
from cohortium.models.studies import question_terms
from cohortium.privacy.secure_sum import ShareRequest, SurvivorSet, UnmaskRequest
from cohortium.privacy.secure_sum.messages import Roster
from cohortium.privacy.table import CustomerTable
from cohortium.study.charter import Charter
from cohortium.study.contract import Contract
from cohortium.study.errors import BudgetError, CohortiumError, DataError, OutputError, PlanError, RefusedError
from cohortium.study.plan import Plan
from cohortium.study.question import PlanQuestion, Question, QuestionHeader
from cohortium.study.software import installed_software

MakeNode = Callable[..., Node]
MakePlan = Callable[..., Plan]
MakePeople = Callable[..., CustomerTable]
Logged = Callable[[Node], list[dict[str, Any]]]

QUERY = MarginalsQuery((Axis("visits", 0, 40, integer=True), Axis("spend", 0, 2000, log=True), Axis("score", -1, 1)))


def question(plan: Plan, run: str = "0" * 32, **changes: Any) -> Question:
    spec = QUERY.spec()
    header: dict[str, Any] = {"plan": plan.digest, "run": run, "phase": "marginals", "step": 0, "attempt": 1}
    return Question(QuestionHeader(**{**header, "kind": spec.kind, "scalars": spec.scalars, **changes}), spec.arrays)


def offer(plan: Plan, run: str = "0" * 32, seconds: float = 0.0) -> PlanQuestion:
    """What a coordinator asks whose clock goes that much wrong."""
    return PlanQuestion(plan.digest, run, int(datetime.now(UTC).timestamp() + seconds))


# --- approvals -------------------------------------------------------------------------------------------------------


def test_only_an_approved_digest_is_accepted(make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople) -> None:
    plan, other = make_plan(), make_plan(epsilon=0.5)
    node = make_node("north", make_people(), plan)
    assert node.accept(offer(plan)) is None
    with pytest.raises(RefusedError, match="not approved"):
        node.accept(offer(other))
    with pytest.raises(RefusedError, match="not approved"):
        node.door.release(question(other))
    assert node.ledger.spent().mu2 == 0


def test_approvals_survive_and_are_read_back_exactly(
    tmp_path: Path, small_contract: Contract, charter: Charter, make_plan: MakePlan, make_people: MakePeople
) -> None:
    plan = make_plan(segments={"k": [2, 5], "features": ["score", "visits"]}, max_attempts=3)
    create_node(tmp_path / "n", NodeIdentity(institution="n"), small_contract)
    for _ in range(2):
        node = open_node(tmp_path / "n", make_people())
        node.store.approve(plan, small_contract, charter)
        node.close()
    node = open_node(tmp_path / "n", make_people())
    known = node.store.approved(plan.digest)
    node.close()
    assert known == Approval(plan, charter)
    assert known is not None
    assert (known.plan.digest, known.charter.digest) == (plan.digest, charter.digest)


def test_a_plan_of_another_contract_cannot_be_approved(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople, small_contract: Contract, charter: Charter
) -> None:
    node = make_node("north", make_people())
    foreign = make_plan().model_copy(update={"contract": "sha256:" + "0" * 64})
    with pytest.raises(PlanError, match="another contract"):
        node.store.approve(foreign, small_contract, charter)
    assert node.store.approved(foreign.digest) is None


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"trust": "unsafe-none"}, "plan: trust"),
        ({"expires": "2024-06-30"}, "plan: expires"),
        ({"epsilon": 3.5}, "plan: epsilon"),
        ({"trust": "distributed", "min_institutions": 3}, "charter: institutions.identity"),
    ],
    ids=str,
)
def test_an_unsafe_plan_cannot_be_approved(
    changes: dict[str, Any],
    place: str,
    make_node: MakeNode,
    make_plan: MakePlan,
    make_people: MakePeople,
    small_contract: Contract,
    charter: Charter,
) -> None:
    """All of `models.preflight`, of which these are some, stands before the approval."""
    node, plan = make_node("north", make_people()), make_plan(**changes)
    members = tuple(member.model_copy(update={"identity": None}) for member in charter.institutions)
    with pytest.raises(PlanError) as caught:
        node.store.approve(plan, small_contract, charter.model_copy(update={"institutions": members}))
    assert caught.value.place == place
    assert node.store.approved(plan.digest) is None
    with pytest.raises(RefusedError, match="not approved"):
        node.accept(offer(plan))


def test_an_approval_holds_within_its_charter_alone(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople, small_contract: Contract, charter: Charter
) -> None:
    plan = make_plan()
    node = make_node("north", make_people(), plan)
    other = charter.model_copy(update={"min_cell": 50, "name": "other"})
    with pytest.raises(RefusedError, match="another charter"):
        node.store.approve(plan, small_contract, other)
    assert node.store.approved(plan.digest) == Approval(plan, charter)


# --- the gate --------------------------------------------------------------------------------------------------------


class Calendar:
    """A day that a test sets for the gate, the ledger and the preflight of a node."""

    def __init__(self, patch: pytest.MonkeyPatch, day: date) -> None:
        self.day = day
        for name in ("cohortium.client.node._utc_today", "cohortium.privacy.ledger._utc_today"):
            patch.setattr(name, lambda: self.day)

        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return datetime.combine(self.day, datetime.min.time(), tz)

        patch.setattr("cohortium.models.preflight.datetime", Clock)
        patch.setattr("cohortium.client.node.datetime", Clock)

    def asks(self, plan: Plan) -> PlanQuestion:
        return PlanQuestion(
            plan.digest, "0" * 32, int(datetime.combine(self.day, datetime.min.time(), UTC).timestamp())
        )


def test_an_expired_plan_answers_nothing(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, calendar = make_plan(expires="2024-06-30"), Calendar(monkeypatch, date(2024, 6, 29))
    node = make_node("north", make_people(), plan)
    calendar.day = date(2024, 7, 1)
    with pytest.raises(RefusedError, match="expired"):
        node.accept(calendar.asks(plan))
    with pytest.raises(RefusedError, match="expired"):
        node.door.release(question(plan))
    with pytest.raises(RefusedError, match="expired"):
        node.check_terms(plan, "0" * 32)
    assert list(node.ledger.charges()) == []
    assert node.ledger.reservations() == []


def test_a_plan_that_expires_on_the_way_answers_no_more(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, calendar = make_plan(expires="2024-06-30"), Calendar(monkeypatch, date(2024, 6, 30))
    node = make_node("north", make_people(), plan)
    node.accept(calendar.asks(plan))
    node.door.release(question(plan))
    spent = node.ledger.spent()
    calendar.day = date(2024, 7, 1)
    with pytest.raises(RefusedError, match="expired"):
        node.door.release(question(plan))
    assert node.ledger.spent() == spent


def test_a_plan_that_has_expired_cannot_be_approved(
    make_node: MakeNode,
    make_plan: MakePlan,
    make_people: MakePeople,
    small_contract: Contract,
    charter: Charter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan, calendar = make_plan(expires="2024-06-30"), Calendar(monkeypatch, date(2024, 7, 1))
    node = make_node("north", make_people())
    with pytest.raises(PlanError, match="expired"):
        node.store.approve(plan, small_contract, charter)
    calendar.day = date(2024, 6, 30)
    node.store.approve(plan, small_contract, charter)


def test_the_last_day_of_a_plan_counts(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(expires="2024-06-30")
    Calendar(monkeypatch, date(2024, 6, 30))
    node = make_node("north", make_people(), plan)
    header = question(plan).header
    gate = PlanGate(node.store, lambda *_: "none", lambda: date(2024, 6, 30), simulation=True)
    assert gate.admit(header) == replace(question_terms(plan, header), decision="none")
    with pytest.raises(RefusedError, match="expired"):
        PlanGate(node.store, lambda *_: "none", lambda: date(2024, 7, 1), simulation=True).admit(header)


def test_a_plan_for_other_code_is_neither_accepted_nor_answered(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an upgrade, too: the approval was of the code that the plan names."""
    installed = installed_software()
    plan = make_plan(software=installed.model_dump())
    node = make_node("north", make_people(), plan)
    node.accept(offer(plan))
    node.door.release(question(plan))
    for changed in ("code", "bundle", "version"):
        other = installed.model_copy(update={changed: "sha256:" + "0" * 64})
        monkeypatch.setattr("cohortium.client.node.installed_software", lambda other=other: other)
        with pytest.raises(RefusedError, match=r"the plan is for cohortium .*; installed here"):
            node.accept(offer(plan))
        with pytest.raises(RefusedError, match="the plan is for cohortium"):
            node.gate.admit(question(plan).header)


def test_only_a_simulation_answers_a_plan_that_names_no_code(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople
) -> None:
    plan = make_plan()
    check_software(plan, simulation=True)
    with pytest.raises(RefusedError, match="does not say which code"):
        check_software(plan, simulation=False)
    node = make_node("north", make_people(), plan)
    node.accept(offer(plan))
    with pytest.raises(RefusedError, match="does not say which code"):
        PlanGate(node.store, node.store.admitted).admit(question(plan).header)


def test_a_run_that_no_decision_admitted_is_not_answered(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople
) -> None:
    """Each run for itself: the admission of one says nothing of the next, and the newest decision counts."""
    plan = make_plan()
    node = make_node("north", make_people(), plan)
    with pytest.raises(RefusedError, match="no rule has admitted this run"):
        node.door.release(question(plan))
    node.accept(offer(plan))
    assert node.gate.admit(question(plan).header).decision == "none"
    with pytest.raises(RefusedError, match="no rule has admitted this run"):
        node.door.release(question(plan, run="1" * 32))
    node.store.keep_decision(plan.digest, "0" * 32, "sha256:" + "0" * 64, admitted=False, documents=None)
    with pytest.raises(RefusedError, match="no rule has admitted this run"):
        node.door.release(question(plan))
    assert node.ledger.spent().mu2 == 0


@pytest.mark.parametrize("seconds", [-MAX_CLOCK_SKEW - 5, MAX_CLOCK_SKEW + 5, -86_400, 86_400, -(10**9), 10**11])
def test_a_coordinator_whose_clock_is_off_is_refused(
    seconds: float, make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople
) -> None:
    plan = make_plan()
    node = make_node("north", make_people(), plan)
    with pytest.raises(RefusedError, match="clock") as caught:
        node.accept(offer(plan, seconds=seconds))
    assert "NTP" in str(caught.value.fix)
    assert node.ledger.reservations() == []
    for near in (-MAX_CLOCK_SKEW + 5, MAX_CLOCK_SKEW - 5, 0):
        node.accept(offer(plan, seconds=near))


@pytest.mark.parametrize("changes", [{"phase": "more"}, {"step": 1}, {"attempt": 2}, {"kind": "profiles"}])
def test_what_the_plan_does_not_foresee_costs_nothing(
    changes: dict[str, Any], make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople, logged: Logged
) -> None:
    plan = make_plan()
    node = make_node("north", make_people(), plan)
    node.accept(offer(plan))
    with pytest.raises(RefusedError):
        node.door.release(question(plan, **changes))
    assert node.ledger.spent().mu2 == 0
    assert [one["event"] for one in logged(node)] == ["admission"]


# --- budgets ---------------------------------------------------------------------------------------------------------


def test_a_second_run_of_a_plan_finds_its_share_spent(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople
) -> None:
    plan = make_plan(shares={"marginals": 60, "clustering": 40, "profiles": 0, "rfm": 0})
    node = make_node("north", make_people(), plan)
    node.accept(offer(plan))
    node.door.release(question(plan))
    spent = node.ledger.spent()
    with pytest.raises(BudgetError, match="another run has begun"):
        node.accept(offer(plan, run="1" * 32))
    with pytest.raises(BudgetError, match="no budget is reserved"):
        node.door.release(question(plan, run="1" * 32))
    assert node.ledger.spent() == spent


def test_accepting_reserves_all_of_a_plan_at_once(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople
) -> None:
    """Two plans that do not fit together can never both be accepted, in whatever order, before any question."""
    first, second = make_plan(), make_plan(epsilon=0.97)
    for name, order in (("north", (first, second)), ("south", (second, first))):
        node = make_node(name, make_people(), first, second, epsilon=1.02)
        node.accept(offer(order[0]))
        with pytest.raises(BudgetError, match="lifetime"):
            node.accept(offer(order[1], run="1" * 32))
        with pytest.raises(BudgetError, match="no budget is reserved"):
            node.door.release(question(order[1], run="1" * 32))
        with pytest.raises(BudgetError, match="lifetime"):
            node.check_terms(order[1], "1" * 32)
        assert [r.plan for r in node.ledger.reservations()] == [order[0].digest]
        node.door.release(question(order[0]))
        node.accept(offer(order[0]))
        assert next(iter(node.ledger.charges())).slot.plan == order[0].digest


def test_two_plans_that_fit_together_are_both_accepted(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople
) -> None:
    first, second = make_plan(epsilon=0.5), make_plan(epsilon=0.4)
    node = make_node("north", make_people(), first, second, epsilon=1.02)
    for _ in range(2):
        node.accept(offer(first))
        node.accept(offer(second, run="1" * 32))
    node.door.release(question(second, run="1" * 32))
    node.door.release(question(first))
    assert [(r.plan, r.run) for r in node.ledger.reservations()] == [
        (first.digest, "0" * 32),
        (second.digest, "1" * 32),
    ]


def test_two_plans_accepted_at_the_same_time_never_both_pass(
    tmp_path: Path, make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople
) -> None:
    """Four nodes on one folder, as processes that came up twice, each accepting another plan at once."""
    plans = [make_plan(name=f"plan-{index}", epsilon=0.9) for index in range(4)]
    make_node("north", make_people(), *plans, epsilon=1.02).close()
    nodes = [open_node(tmp_path / "nodes" / "north", make_people()) for _ in plans]
    together = Barrier(len(nodes))

    def accepts(index: int) -> bool:
        together.wait()
        try:
            nodes[index].accept(offer(plans[index], run=str(index) * 32))
        except BudgetError:
            return False
        return True

    with ThreadPoolExecutor(len(nodes)) as pool:
        accepted = list(pool.map(accepts, range(len(nodes))))
    assert sum(accepted) == 1
    assert [r.plan for r in nodes[0].ledger.reservations()] == [plans[accepted.index(True)].digest]
    for node in nodes:
        node.close()


def test_a_second_run_is_not_accepted_on_the_same_plan(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople
) -> None:
    plan = make_plan()
    node = make_node("north", make_people(), plan)
    node.accept(offer(plan))
    for run in ("1" * 32, "f" * 32):
        with pytest.raises(BudgetError, match="another run has begun"):
            node.accept(offer(plan, run=run))
        with pytest.raises(BudgetError, match="another run has begun"):
            node.check_terms(plan, run)
    node.check_terms(plan, "0" * 32)
    node.accept(offer(plan))


def test_a_lifetime_budget_below_the_plan_s_is_refused(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople
) -> None:
    plan = make_plan(epsilon=1.0)
    node = make_node("north", make_people(), plan, epsilon=0.999)
    with pytest.raises(BudgetError, match="lifetime") as caught:
        node.accept(offer(plan))
    assert "epsilon" in str(caught.value.fix)
    assert node.ledger.reservations() == []
    make_node("south", make_people(), plan, epsilon=1.0).accept(offer(plan))


def test_checking_terms_leaves_no_trace(make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople) -> None:
    node = make_node("north", make_people(), epsilon=0.5)
    with pytest.raises(BudgetError, match="lifetime"):
        node.check_terms(make_plan(), "0" * 32)
    node.check_terms(make_plan(epsilon=0.4), "0" * 32)
    assert node.store.approved(make_plan().digest) is None
    assert node.store.approved(make_plan(epsilon=0.4).digest) is None
    assert node.ledger.reservations() == []


# --- secure sums -----------------------------------------------------------------------------------------------------


def test_keys_of_a_run_belong_to_its_plan(
    make_members: Callable[..., Any], make_plan: MakePlan, make_people: MakePeople, exchange: Callable[..., None]
) -> None:
    one, two = (make_plan(trust="distributed", min_institutions=3, epsilon=0.5, name=name) for name in ("one", "two"))
    nodes = make_members([make_people(50)] * 3, one, two).nodes
    node = nodes[0]
    exchange(nodes, one)
    first = node.accept(offer(one))
    assert first is not None
    exchange(nodes, one)
    assert node.accept(offer(one)) == first
    with pytest.raises(RefusedError, match="another plan"):
        node.accept(offer(two))
    other = node.accept(offer(two, run="1" * 32))
    assert other is not None
    assert other.payload != first.payload
    assert {r.plan: r.run for r in node.ledger.reservations()} == {one.digest: "0" * 32, two.digest: "1" * 32}


def test_a_member_whose_key_the_charter_does_not_pin_takes_no_part(
    make_members: Callable[..., Any], make_plan: MakePlan, make_people: MakePeople, small_contract: Contract
) -> None:
    plan, (ours, theirs) = (
        make_plan(trust="distributed", min_institutions=3),
        [make_members([make_people(50)] * 3) for _ in range(2)],
    )
    node = ours.nodes[0]
    node.store.approve(plan, small_contract, theirs.charter)
    with pytest.raises(RefusedError, match="another key"):
        node.accept(offer(plan))
    assert node.ledger.reservations() == []


@pytest.mark.parametrize("message", ["share", "consent", "unmask"])
def test_keys_of_a_run_it_was_not_introduced_to_are_not_shared(
    message: str, make_members: Callable[..., Any], make_plan: MakePlan, make_people: MakePeople
) -> None:
    plan = make_plan(trust="distributed", min_institutions=3)
    node = make_members([make_people(50)] * 3, plan).nodes[0]
    chosen = SurvivorSet(
        run="0" * 32,
        round=0,
        question="sha256:" + "0" * 64,
        asked="sha256:" + "0" * 64,
        survivors=(0, 1, 2),
        dropped=(),
        notes=("0" * 128,) * 3,
    )
    request = {
        "share": ShareRequest(run="0" * 32, round=0, roster=Roster(introductions=())),
        "consent": chosen,
        "unmask": UnmaskRequest(survivor_set=chosen, consents=()),
    }[message]
    with pytest.raises(RefusedError, match="not introduced to"):
        getattr(node.sums, message)(request.to_bytes())


# --- the record of releases ------------------------------------------------------------------------------------------


def test_every_release_leaves_one_entry_without_its_content(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople, logged: Logged
) -> None:
    plan = make_plan()
    node = make_node("north", make_people(), plan)
    asked = question(plan)
    node.accept(offer(plan))
    first, again = node.door.release(asked), node.door.release(asked)
    assert (first.vector == again.vector).all()
    charge = next(iter(node.ledger.charges()))
    admission, release = logged(node)
    assert admission == {
        "event": "admission",
        "plan": plan.digest,
        "run": "0" * 32,
        "decision": "none",
        "admitted": "true",
    }
    commitment = release.pop("consent")
    assert re.fullmatch("[0-9a-f]{64}", commitment)
    assert release == {
        "event": "release",
        "charge": charge.sequence,
        "plan": plan.digest,
        "run": "0" * 32,
        "phase": "marginals",
        "step": 0,
        "attempt": 1,
        "question": asked.digest,
        "decision": "none",
        "mu2": str(charge.spend.mu2),
        "tv": str(charge.spend.tv),
    }


def test_everybody_counts_where_there_is_no_consent_store(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople
) -> None:
    plan, people = make_plan(), make_people()
    counted = make_node("north", people, plan).governance.counted(people, plan.digest)
    assert counted.people is people
    assert counted.root == bytes(32)


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_for_its_owner_alone_and_made_once(
    tmp_path: Path, small_contract: Contract, make_people: MakePeople
) -> None:
    folder = tmp_path / "deep" / "n"
    create_node(folder, NodeIdentity(institution="n"), small_contract)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"node.json", "contract.json", "identity.pem", "node.sqlite"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
    create_node(folder, NodeIdentity(institution="n"), small_contract)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert read_contract(folder) == small_contract
    open_node(folder, make_people()).close()
    assert stat.S_IMODE((folder / "node.sqlite").stat().st_mode) == 0o600


def test_the_identity_key_is_for_the_owner_alone_and_stays(
    tmp_path: Path, small_contract: Contract, make_people: MakePeople
) -> None:
    keys = set()
    for name in ("a", "b"):
        create_node(tmp_path / name, NodeIdentity(institution=name), small_contract)
        assert stat.S_IMODE((tmp_path / name / "identity.pem").stat().st_mode) == 0o600
        key = identity_key(tmp_path / name)
        open_node(tmp_path / name, make_people()).close()
        create_node(tmp_path / name, NodeIdentity(institution=name), small_contract)
        assert identity_key(tmp_path / name) == key
        keys.add(key)
    assert len(keys) == 2
    assert all(len(bytes.fromhex(key)) == 32 for key in keys)


def test_a_lost_ledger_is_missed_and_never_begun_afresh(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople, small_contract: Contract, tmp_path: Path
) -> None:
    """Neither by opening the node nor by creating it again: it would spend the people's budget a second time."""
    plan, folder = make_plan(), tmp_path / "nodes" / "north"
    node = make_node("north", make_people(), plan)
    node.accept(offer(plan))
    node.door.release(question(plan))
    node.close()
    for path in folder.glob("node.sqlite*"):
        path.unlink()
    for _ in range(2):
        with pytest.raises(DataError, match="ledger is missing") as caught:
            open_node(folder, make_people())
        assert "put back" in str(caught.value.fix)
        create_node(folder, NodeIdentity(institution="north", simulation=True), small_contract)
        assert not list(folder.glob("node.sqlite*"))


@pytest.mark.parametrize("name", ["identity.pem", "contract.json", "node.json"])
def test_a_node_that_lost_a_file_is_not_opened(
    name: str, tmp_path: Path, small_contract: Contract, make_people: MakePeople
) -> None:
    create_node(tmp_path / "n", NodeIdentity(institution="n"), small_contract)
    (tmp_path / "n" / name).unlink()
    with pytest.raises(DataError, match="holds no node"):
        open_node(tmp_path / "n", make_people())


@pytest.mark.parametrize("text", ["", "no key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_key_that_is_none_is_named(
    text: str, tmp_path: Path, small_contract: Contract, make_people: MakePeople
) -> None:
    create_node(tmp_path / "n", NodeIdentity(institution="n"), small_contract)
    (tmp_path / "n" / "identity.pem").write_text(text)
    with pytest.raises(DataError):
        open_node(tmp_path / "n", make_people())


@pytest.mark.parametrize(
    "change",
    [{"institution": "other"}, {"lifetime_epsilon": 2.0}, {"lifetime_delta": 1e-7}, {"simulation": True}],
    ids=str,
)
def test_a_node_cannot_change_its_owner_or_budget(
    change: dict[str, Any], tmp_path: Path, small_contract: Contract
) -> None:
    create_node(tmp_path / "n", NodeIdentity(institution="n"), small_contract)
    changed = NodeIdentity.model_validate({"institution": "n", **change})
    with pytest.raises(OutputError, match=r"another node\.json"):
        create_node(tmp_path / "n", changed, small_contract)


def test_a_node_cannot_change_its_contract(tmp_path: Path, small_contract: Contract) -> None:
    create_node(tmp_path / "n", NodeIdentity(institution="n"), small_contract)
    other = small_contract.model_copy(update={"name": "other"})
    with pytest.raises(OutputError, match=r"another contract\.json"):
        create_node(tmp_path / "n", NodeIdentity(institution="n"), other)


@pytest.mark.parametrize("writes", range(1, 4))
@pytest.mark.parametrize("cut", ["half", "staged", "whole"])
def test_a_half_written_node_is_never_seen(
    writes: int,
    cut: str,
    tmp_path: Path,
    small_contract: Contract,
    make_people: MakePeople,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that dies while it writes any of its files leaves a folder in which the same node can be created."""
    rename, left = os.replace, [writes]

    def dies(source: Path, target: Path) -> None:
        left[0] -= 1
        if not left[0]:
            if cut == "half":
                source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
            elif cut == "whole":
                rename(source, target)
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("cohortium.study.keys.os.replace", dies)
    with pytest.raises(KeyboardInterrupt):
        create_node(tmp_path / "n", NodeIdentity(institution="n"), small_contract)
    monkeypatch.undo()
    whole = (tmp_path / "n" / "node.json").exists()
    assert whole == (writes == 3 and cut == "whole")
    if not whole:
        with pytest.raises(DataError, match="holds no node"):
            open_node(tmp_path / "n", make_people())
    create_node(tmp_path / "n", NodeIdentity(institution="n"), small_contract)
    open_node(tmp_path / "n", make_people()).close()


def test_what_is_no_node_is_not_opened(tmp_path: Path, small_contract: Contract, make_people: MakePeople) -> None:
    with pytest.raises(DataError, match="holds no node"):
        open_node(tmp_path / "nothing", make_people())
    folder = tmp_path / "n"
    create_node(folder, NodeIdentity(institution="n"), small_contract)
    document = json.loads((folder / "node.json").read_text())
    for broken in ({**document, "format": "cohortium.node/2"}, {**document, "more": 1}, []):
        (folder / "node.json").write_text(json.dumps(broken))
        with pytest.raises(DataError, match="another version"):
            open_node(folder, make_people())


def test_a_ledger_of_another_institution_is_not_used(
    tmp_path: Path, small_contract: Contract, make_people: MakePeople
) -> None:
    for name in ("a", "b"):
        create_node(tmp_path / name, NodeIdentity(institution=name), small_contract)
    open_node(tmp_path / "a", make_people()).close()
    (tmp_path / "a" / "node.sqlite").rename(tmp_path / "b" / "node.sqlite")
    with pytest.raises(CohortiumError, match="another institution"):
        open_node(tmp_path / "b", make_people())
