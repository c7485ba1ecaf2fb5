"""An institution's node: what it approves, what it admits, what it remembers, and folders that are not its own."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from cohortium.client.node import Everybody, Node, NodeIdentity, PlanGate, create_node, open_node, read_contract
from cohortium.models.marginals import Axis, MarginalsQuery
from cohortium.models.segmentation import question_terms
from cohortium.privacy.table import CustomerTable
from cohortium.study.contract import Contract
from cohortium.study.errors import BudgetError, CohortiumError, DataError, OutputError, PlanError, RefusedError
from cohortium.study.plan import Plan
from cohortium.study.question import Question, QuestionHeader

MakeNode = Callable[..., Node]
MakePlan = Callable[..., Plan]
MakePeople = Callable[..., CustomerTable]

QUERY = MarginalsQuery((Axis("visits", 0, 40, integer=True), Axis("spend", 0, 2000, log=True), Axis("score", -1, 1)))


def question(plan: Plan, run: str = "0" * 32, **changes: Any) -> Question:
    spec = QUERY.spec()
    header: dict[str, Any] = {"plan": plan.digest, "run": run, "phase": "marginals", "step": 0, "attempt": 1}
    return Question(QuestionHeader(**{**header, "kind": spec.kind, "scalars": spec.scalars, **changes}), spec.arrays)


# --- approvals -------------------------------------------------------------------------------------------------------


def test_only_an_approved_digest_is_accepted(make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople) -> None:
    plan, other = make_plan(), make_plan(epsilon=0.5)
    node = make_node("north", make_people(), plan)
    assert node.accept(plan.digest) == plan
    with pytest.raises(RefusedError, match="not approved"):
        node.accept(other.digest)
    with pytest.raises(RefusedError, match="not approved"):
        node.door.release(question(other))
    assert node.ledger.spent().mu2 == 0


def test_approvals_survive_and_are_read_back_exactly(
    tmp_path: Path, small_contract: Contract, make_plan: MakePlan, make_people: MakePeople
) -> None:
    plan = make_plan(segments={"k": [2, 5], "features": ["score", "visits"]}, max_attempts=3)
    create_node(tmp_path / "n", NodeIdentity(institution="n"), small_contract)
    for _ in range(2):
        node = open_node(tmp_path / "n", make_people())
        node.store.approve(plan, small_contract)
        node.close()
    node = open_node(tmp_path / "n", make_people())
    known = node.store.approved(plan.digest)
    node.close()
    assert known == plan
    assert known is not None
    assert known.digest == plan.digest


def test_a_plan_of_another_contract_cannot_be_approved(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople, small_contract: Contract
) -> None:
    node = make_node("north", make_people())
    foreign = make_plan().model_copy(update={"contract": "sha256:" + "0" * 64})
    with pytest.raises(PlanError, match="another contract"):
        node.store.approve(foreign, small_contract)
    assert node.store.approved(foreign.digest) is None


# --- the gate --------------------------------------------------------------------------------------------------------


def test_an_expired_plan_answers_nothing(make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople) -> None:
    plan = make_plan(expires="2024-06-30")
    node = make_node("north", make_people(), plan)
    with pytest.raises(RefusedError, match="expired"):
        node.accept(plan.digest)
    with pytest.raises(RefusedError, match="expired"):
        node.door.release(question(plan))
    assert list(node.ledger.charges()) == []


def test_the_last_day_of_a_plan_counts(make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople) -> None:
    plan = make_plan(expires="2024-06-30")
    node = make_node("north", make_people(), plan)
    header = question(plan).header
    gate = PlanGate(node.store, today=lambda: date(2024, 6, 30))
    assert gate.admit(header) == question_terms(plan, header)
    with pytest.raises(RefusedError, match="expired"):
        PlanGate(node.store, today=lambda: date(2024, 7, 1)).admit(header)


@pytest.mark.parametrize("changes", [{"phase": "more"}, {"step": 1}, {"attempt": 2}, {"kind": "profiles"}])
def test_what_the_plan_does_not_foresee_costs_nothing(
    changes: dict[str, Any], make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople
) -> None:
    plan = make_plan()
    node = make_node("north", make_people(), plan)
    with pytest.raises(RefusedError):
        node.door.release(question(plan, **changes))
    assert node.ledger.spent().mu2 == 0
    assert node.store.events() == []


# --- budgets ---------------------------------------------------------------------------------------------------------


def test_a_second_run_of_a_plan_finds_its_share_spent(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople
) -> None:
    plan = make_plan(shares={"marginals": 60, "clustering": 40, "profiles": 0, "rfm": 0})
    node = make_node("north", make_people(), plan)
    node.door.release(question(plan))
    spent = node.ledger.spent()
    with pytest.raises(BudgetError, match="another run has begun"):
        node.door.release(question(plan, run="1" * 32))
    assert node.ledger.spent() == spent


def test_accepting_takes_what_was_asked_already_into_account(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople
) -> None:
    first, second = make_plan(), make_plan(epsilon=0.97)
    node = make_node("north", make_people(), first, second, epsilon=1.02)
    node.accept(first.digest)
    node.accept(second.digest)
    node.door.release(question(first))
    node.accept(first.digest)
    with pytest.raises(BudgetError, match="lifetime"):
        node.accept(second.digest)


def test_checking_terms_leaves_no_trace(make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople) -> None:
    node = make_node("north", make_people(), epsilon=0.5)
    with pytest.raises(BudgetError, match="lifetime"):
        node.check_terms(make_plan())
    node.check_terms(make_plan(epsilon=0.4))
    assert node.store.approved(make_plan().digest) is None
    assert node.store.approved(make_plan(epsilon=0.4).digest) is None


# --- the record of releases ------------------------------------------------------------------------------------------


def test_every_release_leaves_an_event_without_its_content(
    make_node: MakeNode, make_plan: MakePlan, make_people: MakePeople
) -> None:
    plan = make_plan()
    node = make_node("north", make_people(), plan)
    asked = question(plan)
    first, again = node.door.release(asked), node.door.release(asked)
    assert (first.vector == again.vector).all()
    charge = next(iter(node.ledger.charges()))
    (event,) = node.store.events()
    assert event == {
        "event": "release",
        "charge": charge.sequence,
        "plan": plan.digest,
        "run": "0" * 32,
        "phase": "marginals",
        "step": 0,
        "attempt": 1,
        "question": asked.digest,
        "mu2": charge.spend.mu2,
        "tv": charge.spend.tv,
    }


def test_everybody_counts_until_consent_is_built(make_people: MakePeople) -> None:
    people = make_people()
    assert Everybody().snapshot(people) is people


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_for_its_owner_alone_and_made_once(
    tmp_path: Path, small_contract: Contract, make_people: MakePeople
) -> None:
    folder = tmp_path / "deep" / "n"
    create_node(folder, NodeIdentity(institution="n"), small_contract)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"node.json", "contract.json"}
    create_node(folder, NodeIdentity(institution="n"), small_contract)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert read_contract(folder) == small_contract
    open_node(folder, make_people()).close()
    assert stat.S_IMODE((folder / "node.sqlite").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "change", [{"institution": "other"}, {"lifetime_epsilon": 2.0}, {"lifetime_delta": 1e-7}], ids=str
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


def test_a_half_written_node_is_never_seen(
    tmp_path: Path, small_contract: Contract, make_people: MakePeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies while it writes leaves a folder in which the same node can be created."""
    write = Path.write_text

    def dies(self: Path, text: str, **options: Any) -> int:
        write(self, text[: len(text) // 2], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", dies)
    with pytest.raises(KeyboardInterrupt):
        create_node(tmp_path / "n", NodeIdentity(institution="n"), small_contract)
    monkeypatch.undo()
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
