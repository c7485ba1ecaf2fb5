"""`simulate` as a library: what a run writes and charges, what a resumed run does not, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cohortium.governance.report import DatasetFacts, RunSummary, load_summary
from cohortium.privacy.accounting import Spend, budget_for, epsilon_by_pld, epsilon_spent
from cohortium.privacy.ledger import Charge, Ledger, open_store
from cohortium.simulations.bank_world import load_bank_world_contract
from cohortium.simulations.partition import ByColumn, ByHash
from cohortium.simulations.run_folder import SimulationOrder
from cohortium.simulations.sources import BankWorldData, SplitData
from cohortium.simulations.starter import demo_plan
from cohortium.simulations.study import simulate
from cohortium.study.bundle import load_bundle
from cohortium.study.charter import Charter, Institution, parse_charter
from cohortium.study.contract import Contract
from cohortium.study.errors import BudgetError, CohortiumError, Defect, OutputError, PlanError, RefusedError
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan
from cohortium.study.segment_plan import Segments

REGIONS = ("north", "south", "west")
FACTS = DatasetFacts(name="small", note="made for this test", licence="none")
SHARED = tuple(f"c{number:04d}" for number in range(0, 60, 3))
"""Customers of the north who are customers of the south as well."""


@dataclass(frozen=True)
class Finished:
    order: SimulationOrder
    summary: RunSummary
    said: list[str]


def quiet(_line: str) -> None:
    """Progress that nobody reads."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def charges(state: Path) -> dict[str, list[Charge]]:
    """Every ledger's charges by institution; each ledger verifies."""
    found = {}
    for folder in sorted(path.parent for path in state.rglob("node.sqlite")):
        ledger = Ledger(open_store(folder / "node.sqlite"), folder.name, Spend())
        try:
            ledger.verify()
            found[folder.name] = list(ledger.charges())
        finally:
            ledger.close()
    return found


def total(entries: list[Charge]) -> Spend:
    return sum((entry.spend for entry in entries), Spend())


def ids(path: Path) -> list[str]:
    return [str(value) for value in pq.read_table(path).column("id").to_pylist()]


def finish(order: SimulationOrder) -> Finished:
    said: list[str] = []
    return Finished(order, simulate(order, said.append), said)


@pytest.fixture(scope="module")
def people_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """900 customers of three regions, 20 of them of two."""
    rng = np.random.default_rng(3)
    lines = ["id,region,visits,spend,score"]
    for number in range(900):
        kind = number % 3 if rng.random() < 0.2 else int(rng.integers(3))
        values = f"{4 + 14 * kind + rng.integers(3)},{20 * 8**kind * rng.uniform(0.8, 1.2):.2f},{(kind - 1) * 0.6:.1f}"
        key = f"c{number:04d}"
        lines += [f"{key},{region},{values}" for region in (REGIONS[number % 3], *["south"] * (key in SHARED))]
    path = tmp_path_factory.mktemp("data") / "people.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(people_csv: Path) -> SplitData:
    return SplitData(FACTS, {"people": people_csv}, ByColumn("people", "region"))


@pytest.fixture(scope="module")
def split_run(
    tmp_path_factory: pytest.TempPathFactory,
    data: SplitData,
    small_contract: Contract,
    make_plan: Callable[..., Plan],
) -> Finished:
    """A finished run on the split data; read only."""
    out = tmp_path_factory.mktemp("split") / "out"
    return finish(SimulationOrder(make_plan(), small_contract, data, out))


@pytest.fixture(scope="module")
def bank_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run on the synthetic world: a secure sum of three banks, on a state folder of its own; read only."""
    contract = load_bank_world_contract()
    numbers = {"min_institutions": 3, "colluders": 1, "segments": Segments(k=3)}
    plan = demo_plan(contract).model_copy(update=numbers)
    assert plan.trust == "distributed"
    folder = tmp_path_factory.mktemp("bank")
    order = SimulationOrder(plan, contract, BankWorldData(3), folder / "out", state=folder / "state")
    return finish(order)


@pytest.fixture(params=["split_run", "bank_run"])
def run(request: pytest.FixtureRequest) -> Finished:
    found: Finished = request.getfixturevalue(request.param)
    return found


class TestLedgers:
    def test_every_ledger_holds_the_price_of_every_release(self, run: Finished) -> None:
        bundle = load_bundle(run.order.out / "bundle.json")
        released = Spend(sum(r.mu2 for r in bundle.releases), sum(r.tv for r in bundle.releases))
        ledgers = charges(run.order.state_folder)
        assert len(ledgers) == bundle.institutions == len(run.summary.institutions)
        for name, entries in ledgers.items():
            assert total(entries) == released, name
            assert {(c.slot.plan, c.slot.run) for c in entries} == {(run.order.plan.digest, bundle.run)}
            assert [(c.slot.phase, c.slot.step, c.question) for c in entries] == [
                (r.phase, r.step, r.question) for r in bundle.releases
            ]

    def test_the_plan_is_spent_and_not_passed(self, run: Finished) -> None:
        budget = budget_for(run.order.plan.epsilon, run.order.plan.delta)
        for entries in charges(run.order.state_folder).values():
            assert total(entries).fits(budget)
            assert total(entries).mu2 > 0.98 * budget.mu2

    def test_summary_says_what_the_ledgers_say(self, run: Finished) -> None:
        ledgers = charges(run.order.state_folder)
        for facts in run.summary.institutions:
            assert facts.spent.spend == facts.lifetime_spent.spend == total(ledgers[facts.name])
            assert facts.lifetime.spend == budget_for(run.order.lifetime_epsilon, run.order.lifetime_delta)
            assert facts.epsilon == epsilon_spent(total(ledgers[facts.name]), run.order.plan.delta)

    def test_person_at_is_the_accounting_of_the_dearest_ledgers(self, run: Finished) -> None:
        spends = sorted((total(entries).mu2, total(entries).tv) for entries in charges(run.order.state_folder).values())
        counted = [row.institutions for row in run.summary.person_at]
        assert counted == [count for count in (1, 2, 3) if count <= len(spends)]
        for row in run.summary.person_at:
            dearest = sum((Spend(*spend) for spend in spends[-row.institutions :]), Spend())
            if run.order.plan.trust == "distributed":  # one noise for all: they paid the same, and mu adds up, not mu^2
                assert len(set(spends)) == 1
                dearest = Spend(row.institutions**2 * spends[0][0], spends[0][1])
            assert row.epsilon == epsilon_spent(dearest, run.order.plan.delta)
            assert row.epsilon_pld == epsilon_by_pld(dearest, run.order.plan.delta)


class TestOutputs:
    def test_plan_contract_and_charter_are_the_ones_that_ran(self, run: Finished) -> None:
        out, order = run.order.out, run.order
        assert parse_plan(json.loads((out / "plan.json").read_text("utf-8"))).digest == order.plan.digest
        assert Contract.model_validate_json((out / "contract.json").read_bytes()).digest == order.contract.digest
        charter = parse_charter(json.loads((out / "charter.json").read_text("utf-8")))
        assert {i.name for i in charter.institutions} == {i.name for i in run.summary.institutions}

    def test_summary_returned_is_the_summary_written(self, run: Finished) -> None:
        assert load_summary(run.order.out / "summary.json") == run.summary
        assert run.summary.bundle == load_bundle(run.order.out / "bundle.json")
        assert run.summary.dataset == run.order.data.facts

    def test_scored_are_the_customers_each_once(self, run: Finished) -> None:
        segments = {segment.id for segment in run.summary.bundle.segments}
        for facts in run.summary.institutions:
            folder = run.order.state_folder / facts.name
            scored = ids(folder / "segments.parquet")
            report = json.loads((folder / "customers" / "onboarding.json").read_text("utf-8"))
            assert len(set(scored)) == len(scored) == report["people"]
            assert set(pq.read_table(folder / "segments.parquet").column("segment").to_pylist()) <= segments

    def test_a_person_at_two_institutions_is_counted_at_both(self, split_run: Finished) -> None:
        scored = {name: ids(split_run.order.state_folder / name / "segments.parquet") for name in REGIONS}
        assert {name: len(found) for name, found in scored.items()} == {"north": 300, "south": 320, "west": 300}
        assert set(scored["north"]) & set(scored["south"]) == set(SHARED)

    def test_progress_names_every_stage_and_question(self, run: Finished) -> None:
        asked = [line for line in run.said if "institutions answered" in line]
        assert asked == [
            f"  {r.phase} {r.step + 1}: {r.institutions} institutions answered" for r in run.summary.bundle.releases
        ]
        assert [f"{stage.stage} …" for stage in run.summary.stages] == [line for line in run.said if "…" in line]


def copied(run: Finished, folder: Path) -> SimulationOrder:
    """A copy of a finished run, to be changed."""
    out = shutil.copytree(run.order.out, folder / "out")
    state = shutil.copytree(run.order.state, folder / "state") if run.order.state is not None else None
    return replace(run.order, out=out, state=state)


class TestResume:
    def test_a_finished_run_gives_the_same_bundle_for_no_charge(self, run: Finished, tmp_path: Path) -> None:
        order = copied(run, tmp_path)
        before, files = charges(order.state_folder), contents(order.out)
        (order.out / "bundle.json").unlink()
        again = simulate(replace(order, resume=True), quiet)
        assert charges(order.state_folder) == before
        after = contents(order.out)
        same = {name for name in files if not name.endswith((".html", "summary.json", ".sqlite"))}
        assert {name: after[name] for name in same} == {name: files[name] for name in same}
        assert (again.bundle, again.started) == (run.summary.bundle, run.summary.started)

    def test_a_run_that_broke_down_on_the_way_ends_as_one_run(
        self,
        data: SplitData,
        small_contract: Contract,
        make_plan: Callable[..., Plan],
        split_run: Finished,
        tmp_path: Path,
    ) -> None:
        order = SimulationOrder(make_plan(), small_contract, data, tmp_path / "out")

        def breaks(line: str) -> None:
            if "cells 1:" in line:
                raise Defect("the machine is gone")

        with pytest.raises(Defect, match="gone"):
            simulate(order, breaks)
        paid = charges(order.state_folder)
        assert {len(entries) for entries in paid.values()} == {3}
        summary = simulate(replace(order, resume=True), quiet)
        for name, entries in charges(order.state_folder).items():
            assert entries[:3] == paid[name]
            assert total(entries) == total(charges(split_run.order.state_folder)[name])
            assert len(entries) == len(summary.bundle.releases)

    def test_a_folder_with_a_run_needs_resume(self, split_run: Finished) -> None:
        before = contents(split_run.order.out)
        with pytest.raises(OutputError, match="holds a run already"):
            simulate(split_run.order, quiet)
        assert contents(split_run.order.out) == before

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            (lambda order: replace(order, plan=order.plan.model_copy(update={"epsilon": 0.9})), RefusedError),
            (lambda order: replace(order, data=replace(order.data, how=ByHash(3))), OutputError),
            (lambda order: replace(order, data=BankWorldData(3)), OutputError),
            (lambda order: replace(order, lifetime_epsilon=2.5), OutputError),
        ],
        ids=["plan", "split", "data", "lifetime"],
    )
    def test_another_order_does_not_resume(
        self,
        split_run: Finished,
        tmp_path: Path,
        change: Callable[[SimulationOrder], SimulationOrder],
        error: type[CohortiumError],
    ) -> None:
        order = change(replace(copied(split_run, tmp_path), resume=True))
        before = charges(order.state_folder)
        with pytest.raises(error):
            simulate(order, quiet)
        assert charges(order.state_folder) == before
        assert load_bundle(order.out / "bundle.json") == split_run.summary.bundle


class TestRefusals:
    def test_an_institution_unknown_to_the_charter(
        self, data: SplitData, small_contract: Contract, make_plan: Callable[..., Plan], tmp_path: Path
    ) -> None:
        members = tuple(Institution(name=name, region="EU") for name in ("north", "south", "east"))
        charter = Charter.model_validate(
            {"schema": "cohortium.charter/1", "name": "three", "institutions": [m.model_dump() for m in members]}
        )
        order = SimulationOrder(make_plan(), small_contract, data, tmp_path / "out", charter=charter)
        with pytest.raises(PlanError, match="'west'") as refused:
            simulate(order, quiet)
        assert "east" in str(refused.value.fix)
        assert not (tmp_path / "out").exists()

    def test_an_expired_plan_leaves_no_trace(
        self, data: SplitData, small_contract: Contract, make_plan: Callable[..., Plan], tmp_path: Path
    ) -> None:
        order = SimulationOrder(make_plan(expires=date(2020, 1, 1)), small_contract, data, tmp_path / "out")
        with pytest.raises(PlanError, match="expired") as refused:
            simulate(order, quiet)
        assert refused.value.place == "plan: expires"
        assert list(tmp_path.iterdir()) == []

    def test_two_plans_on_one_state_add_up_until_the_lifetime_budget_is_gone(
        self, data: SplitData, small_contract: Contract, make_plan: Callable[..., Plan], tmp_path: Path
    ) -> None:
        state, plans = tmp_path / "state", [make_plan(name=f"plan-{number}", epsilon=0.9) for number in range(3)]
        orders = [
            SimulationOrder(plan, small_contract, data, tmp_path / plan.name, state=state, lifetime_epsilon=1.4)
            for plan in plans
        ]
        for number, order in enumerate(orders[:2], start=1):
            summary = simulate(order, quiet)
            for facts in summary.institutions:
                assert facts.lifetime_spent.spend.mu2 == pytest.approx(number * facts.spent.spend.mu2, rel=1e-3)
        before = charges(state)
        with pytest.raises(BudgetError, match="lifetime"):
            simulate(orders[2], quiet)
        assert charges(state) == before
        assert not orders[2].out.exists()
