"""Simulated studies: what a run writes, what it refuses and leaves untouched, and what a resumed run adds: nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from cohortium.client.node import NodeIdentity, create_node, open_node
from cohortium.client.onboarding import load_customer_table, parse_source
from cohortium.privacy.accounting import Spend, budget_for
from cohortium.privacy.ledger import Ledger, open_store
from cohortium.simulations.run_folder import SimulationOrder
from cohortium.simulations.sources import BankWorldData, own_data
from cohortium.simulations.study import simulate
from cohortium.study.charter import Charter
from cohortium.study.errors import BudgetError, CohortiumError, DataError, OutputError, PlanError, RefusedError
from cohortium.study.plans import load_plan

REGIONS = ("north", "south", "west")
Order = Callable[..., SimulationOrder]


@pytest.fixture
def order(study_folder: Path) -> Order:
    """The small study's order, with arguments changed; `plan_lines` replaces texts in the plan's file."""

    def make(
        out: str = "out",
        *,
        plan_lines: dict[str, str] | None = None,
        data: str = "people.csv",
        by: str = "region",
        **changes: Any,
    ) -> SimulationOrder:
        text = (study_folder / "plan.toml").read_text(encoding="utf-8")
        for old, new in (plan_lines or {}).items():
            assert text.count(old) == 1
            text = text.replace(old, new)
        changed = study_folder / "changed.plan.toml"
        changed.write_text(text, encoding="utf-8")
        plan, contract = load_plan(changed)
        source = own_data({"people": parse_source(str(study_folder / data))}, by, contract)
        return SimulationOrder(plan, contract, source, study_folder / out, **changes)

    return make


def silent(_: str) -> None:
    pass


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def spent(folder: Path, name: str) -> Spend:
    """What a ledger says, verified."""
    store: Engine = open_store(folder / name / "node.sqlite")
    ledger = Ledger(store, name, budget_for(3.0, 1e-6))
    try:
        ledger.verify()
        return ledger.spent()
    finally:
        ledger.close()


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_with_anything_in_it_is_refused_and_kept(order: Order) -> None:
    made = order()
    made.out.mkdir()
    (made.out / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty"):
        simulate(made, silent)
    assert contents(made.out) == {"thesis.txt": b"mine"}


def test_an_empty_folder_is_used(order: Order) -> None:
    made = order()
    made.out.mkdir()
    simulate(made, silent)
    assert (made.out / "report.html").exists()


def test_a_file_in_the_folder_s_place_is_refused(order: Order) -> None:
    made = order()
    made.out.write_text("mine")
    with pytest.raises(OutputError):
        simulate(made, silent)
    assert made.out.read_text() == "mine"


def test_a_run_is_not_begun_over_nor_resumed_from_nothing(order: Order) -> None:
    with pytest.raises(OutputError, match="holds no run to resume"):
        simulate(order(resume=True), silent)
    assert not order().out.exists()
    simulate(order(), silent)
    before = contents(order().out)
    with pytest.raises(OutputError, match="holds a run already"):
        simulate(order(), silent)
    assert contents(order().out) == before


# --- resuming --------------------------------------------------------------------------------------------------------


class Stopped(BaseException):
    """As Ctrl-C, at a line of progress."""


def stopping_at(line: str) -> Callable[[str], None]:
    def say(said: str) -> None:
        if line in said:
            raise Stopped

    return say


@pytest.mark.parametrize("where", ["onboarding", "south", "federated", "marginals 1", "cells 2", "scoring"])
def test_a_stopped_run_is_resumed_to_its_end_at_the_price_of_one(where: str, order: Order) -> None:
    with pytest.raises(Stopped):
        simulate(order(), stopping_at(where))
    summary = simulate(order(resume=True), silent)
    total = Spend(sum(r.mu2 for r in summary.bundle.releases), sum(r.tv for r in summary.bundle.releases))
    assert len(summary.bundle.releases) == 9
    assert {spent(order().state_folder, name) for name in REGIONS} == {total}


def test_a_run_stopped_between_question_and_answer_of_one_institution_pays_once(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The charge is on disk, the reply is not: the resumed run draws noise under the charge that is there."""
    real, calls = Ledger.settle, list[int]()

    def settle(self: Ledger, charge: Any, reply: bytes) -> bytes:
        calls.append(1)
        if len(calls) == 8:
            raise Stopped
        return real(self, charge, reply)

    monkeypatch.setattr(Ledger, "settle", settle)
    with pytest.raises(Stopped):
        simulate(order(), silent)
    folder = order().state_folder
    assert spent(folder, "south").mu2 > spent(folder, "west").mu2 > 0
    summary = simulate(order(resume=True), silent)
    total = sum(record.mu2 for record in summary.bundle.releases)
    assert {spent(folder, name).mu2 for name in REGIONS} == {total}


def test_a_changed_plan_does_not_resume_a_run(order: Order) -> None:
    simulate(order(), silent)
    before = contents(order().out)
    with pytest.raises(RefusedError, match="digest is not the one"):
        simulate(order(plan_lines={"epsilon = 1.0": "epsilon = 1.1"}, resume=True), silent)
    with pytest.raises(OutputError, match="give the same --institutions"):
        simulate(order(by="3", resume=True), silent)
    with pytest.raises(OutputError, match="give the same --data"):
        simulate(SimulationOrder(order().plan, order().contract, BankWorldData(2), order().out, resume=True), silent)
    assert contents(order().out) == before


def test_a_run_of_another_version_is_not_resumed(order: Order) -> None:
    simulate(order(), silent)
    path = order().out / "run.json"
    path.write_text(path.read_text().replace("cohortium.run/1", "cohortium.run/2"))
    with pytest.raises(OutputError, match="another version"):
        simulate(order(resume=True), silent)


@pytest.mark.parametrize("text", ["{", "[]", '{"institutions": ["north"]}', '{"schema": "cohortium.institutions/2"}'])
def test_a_list_of_institutions_that_cannot_be_read_is_named(text: str, order: Order) -> None:
    with pytest.raises(Stopped):
        simulate(order(), stopping_at("federated"))
    (order().out / "institutions.json").write_text(text)
    with pytest.raises(OutputError, match=r"institutions\.json: is of another version"):
        simulate(order(resume=True), silent)


def test_an_institution_whose_ledger_is_gone_does_not_begin_anew(order: Order) -> None:
    """It would answer again, with fresh noise, what it has answered and been charged for already."""
    with pytest.raises(Stopped):
        simulate(order(), stopping_at("cells 1"))
    shutil.rmtree(order().state_folder / "south")
    with pytest.raises(OutputError, match="is gone") as caught:
        simulate(order(resume=True), silent)
    assert str(caught.value.place).endswith("south")
    assert not (order().state_folder / "south").exists()


# --- mistakes found before the first question ------------------------------------------------------------------------


def test_a_mended_command_finds_the_folder_as_it_was(order: Order, study_folder: Path) -> None:
    """A mistake in the data, the plan or the charter costs nothing and blocks nothing."""
    for existing in (False, True):
        if existing:
            order().out.mkdir()
        with pytest.raises(DataError):
            simulate(order(data="missing.csv"), silent)
        with pytest.raises(PlanError, match="expired"):
            simulate(order(plan_lines={"2099-12-31": "2024-01-01"}), silent)
        assert order().out.is_dir() == existing
        assert not existing or not list(order().out.iterdir())
    simulate(order(), silent)


def charter(*names: str, **limits: Any) -> Charter:
    members = [{"name": name, "region": "EU"} for name in names]
    return Charter.model_validate({"schema": "cohortium.charter/1", "name": "small", "institutions": members, **limits})


def test_an_institution_the_charter_does_not_name_is_refused(order: Order) -> None:
    with pytest.raises(PlanError, match="'south' that the charter does not name") as caught:
        simulate(order(charter=charter("north", "west", "east")), silent)
    assert "east" in str(caught.value.fix)
    assert not order().out.exists()
    simulate(order(charter=charter(*REGIONS, "east")), silent)
    assert len(json.loads((order().out / "charter.json").read_text())["institutions"]) == 4


@pytest.mark.parametrize(
    ("limits", "place"),
    [({"max_epsilon": 0.5}, "epsilon"), ({"min_cell": 80}, "min_cell")],
)
def test_a_plan_below_the_charter_s_thresholds_is_refused(limits: dict[str, Any], place: str, order: Order) -> None:
    with pytest.raises(PlanError) as caught:
        simulate(order(charter=charter(*REGIONS, **limits)), silent)
    assert caught.value.place == f"plan: {place}"
    assert not order().out.exists()


def test_too_few_institutions_cost_nothing(order: Order) -> None:
    with pytest.raises(CohortiumError, match=r"min_institutions|needs 4"):
        simulate(order(plan_lines={"min_institutions = 2": "min_institutions = 4"}), silent)
    assert not order().out.exists()


def test_an_institution_without_usable_customers_is_named(order: Order, study_folder: Path) -> None:
    path = study_folder / "people.csv"
    path.write_text(path.read_text() + ",empty,1,1,0\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        simulate(order(), silent)
    assert str(caught.value.place).startswith("empty: ")
    assert caught.value.fix
    assert not order().out.exists()


# --- ledgers for life ------------------------------------------------------------------------------------------------


def test_a_plan_above_what_is_left_is_refused_and_leaves_every_byte(order: Order, study_folder: Path) -> None:
    state = study_folder / "state"
    budget: dict[str, Any] = {"state": state, "lifetime_epsilon": 1.2}
    simulate(order("one", **budget), silent)
    kept = ("node.sqlite", "node.json", "contract.json", "segments.parquet", "customers.parquet")

    def ledgers() -> dict[str, bytes]:
        return {name: data for name, data in contents(state).items() if name.endswith(kept)}

    before, outputs = ledgers(), contents(study_folder / "one")
    with pytest.raises(BudgetError, match="does not cover this plan") as caught:
        simulate(order("two", plan_lines={'name = "small"': 'name = "second"'}, **budget), silent)
    assert caught.value.place in REGIONS
    assert ledgers() == before
    assert contents(study_folder / "one") == outputs
    assert not (study_folder / "two").exists()


def test_the_same_plan_is_not_run_twice_on_one_budget(order: Order, study_folder: Path) -> None:
    state = study_folder / "state"
    simulate(order("one", state=state), silent)
    before = {name: spent(state, name) for name in REGIONS}
    with pytest.raises(BudgetError, match="another run has begun"):
        simulate(order("two", state=state), silent)
    assert {name: spent(state, name) for name in REGIONS} == before
    assert not (study_folder / "two").exists()


def test_a_state_folder_of_another_budget_is_refused(order: Order, study_folder: Path) -> None:
    state = study_folder / "state"
    simulate(order("one", state=state), silent)
    with pytest.raises(OutputError, match="another node"):
        simulate(order("two", state=state, lifetime_epsilon=2.0), silent)


def test_one_refusing_institution_leaves_no_approval_at_the_others(order: Order, study_folder: Path) -> None:
    """The last institution's ledger is spent; the first ones must not have approved a plan that will not run."""
    state, made = study_folder / "state", order("one", state=study_folder / "state", lifetime_epsilon=1.1)
    simulate(made, silent)
    identity = NodeIdentity(institution="aaa", lifetime_epsilon=1.1, simulation=True)
    create_node(state / "aaa", identity, made.contract)
    path = study_folder / "people.csv"
    path.write_text(path.read_text().replace(",north,", ",aaa,"), encoding="utf-8")
    second = order("two", state=state, lifetime_epsilon=1.1, plan_lines={'name = "small"': 'name = "second"'})
    with pytest.raises(BudgetError, match="does not cover"):
        simulate(second, silent)
    node = open_node(state / "aaa", load_customer_table(state / "aaa" / "customers", made.contract))
    try:
        assert node.store.approved(second.plan.digest) is None
    finally:
        node.close()


# --- odd data --------------------------------------------------------------------------------------------------------


def test_one_customer_alone_gets_an_honest_report(order: Order, study_folder: Path) -> None:
    (study_folder / "people.csv").write_text("id,region,visits,spend,score\nc1,north,3,20,0.1\n", encoding="utf-8")
    made = order(plan_lines={"min_institutions = 2": "min_institutions = 1"})
    bundle = simulate(made, silent).bundle
    assert len(bundle.segments) >= 1
    for segment in bundle.segments:
        assert segment.suppressed or (segment.size or 0) >= made.plan.min_cell
    assert "Traceback" not in (made.out / "report.html").read_text()


def test_customers_all_alike_get_an_honest_report(order: Order, study_folder: Path) -> None:
    lines = ["id,region,visits,spend,score", *(f"c{i},{REGIONS[i % 3]},7,100,0.5" for i in range(600))]
    (study_folder / "people.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    summary = simulate(order(), silent)
    assert summary.comparison is None
    assert (order().out / "report.html").stat().st_size > 1000
