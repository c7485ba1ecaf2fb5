"""The study: terms that never exceed the plan, feasibility before the first question, an honest result."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cohortium.models.programme import Phase
from cohortium.models.segmentation import segmentation_programme
from cohortium.models.studies import check_feasible, phases, question_terms
from cohortium.privacy.accounting import Spend, budget_for, epsilon_spent, price
from cohortium.privacy.release import noise_scale
from cohortium.privacy.table import CustomerTable
from cohortium.simulations.bank_world import load_bank_world_contract
from cohortium.study.contract import Contract
from cohortium.study.errors import PlanError, RefusedError
from cohortium.study.plan import Plan
from cohortium.study.question import QuestionHeader
from cohortium.study.segment_plan import SegmentPlan

MakePlan = Callable[..., Plan]


def header(plan: Plan, of: Phase, **changes: Any) -> QuestionHeader:
    known: dict[str, Any] = {"plan": plan.digest, "run": "0" * 32, "phase": of.name, "step": 0, "attempt": 1}
    return QuestionHeader(**{**known, "kind": of.kind, **changes})


def bank_plan(**changes: Any) -> tuple[Plan, Contract]:
    contract = load_bank_world_contract()
    document = {
        "schema": "cohortium.plan/1",
        "name": "bank",
        "purpose": contract.purposes[0],
        "lawful_basis": "consent",
        "regions": ["EU"],
        "contract": contract.digest,
        "expires": "2099-12-31",
        "epsilon": 1.0,
        "delta": 1e-6,
    }
    return SegmentPlan.model_validate({**document, **changes}), contract


def bank_people(contract: Contract, count: int) -> CustomerTable:
    rng = np.random.default_rng(0)
    features = contract.training_features
    values = np.zeros((count, len(features)))
    kind = rng.integers(0, 2, count)
    for index, feature in enumerate(features):
        if feature.is_category:
            continue
        low, high = feature.bounds
        values[:, index] = low + (high - low) * np.clip(0.1 + 0.5 * kind + rng.normal(0, 0.05, count), 0, 1)
        if feature.integer:
            values[:, index] = np.round(values[:, index])
    return CustomerTable(tuple(feature.name for feature in features), values, np.arange(count))


# --- terms -----------------------------------------------------------------------------------------------------------


@st.composite
def shares(draw: st.DrawFn) -> dict[str, int]:
    marginals, profiles, rfm = draw(st.integers(1, 60)), draw(st.integers(0, 25)), draw(st.integers(0, 14))
    return {"marginals": marginals, "clustering": 100 - marginals - profiles - rfm, "profiles": profiles, "rfm": rfm}


@given(shares(), st.integers(1, 5), st.floats(0.01, 3.0), st.sampled_from([1e-4, 1e-6, 1e-9]))
@settings(max_examples=20)
def test_everything_a_plan_allows_costs_no_more_than_the_plan(
    parts: dict[str, int], attempts: int, epsilon: float, delta: float
) -> None:
    plan, _ = bank_plan(shares=parts, max_attempts=attempts, epsilon=epsilon, delta=delta)
    total = 0
    for phase in phases(plan):
        first = question_terms(plan, header(plan, phase))
        assert first == question_terms(plan, header(plan, phase, step=phase.rounds - 1, attempt=attempts))
        total += first.allotment * phase.rounds * attempts
    assert total <= budget_for(epsilon, delta).mu2
    assert sum(phase.share for phase in phases(plan)) == Fraction(1)
    assert epsilon_spent(Spend(total, 0), delta) <= epsilon


def test_nearly_all_of_the_budget_may_be_used() -> None:
    plan, _ = bank_plan(max_attempts=3)
    allotments = [question_terms(plan, header(plan, p)).allotment * p.rounds * 3 for p in phases(plan)]
    assert sum(allotments) > budget_for(1.0, 1e-6).mu2 - 100


def test_a_share_of_nothing_is_no_phase() -> None:
    plan, _ = bank_plan(shares={"marginals": 20, "clustering": 80, "profiles": 0, "rfm": 0})
    assert {phase.name for phase in phases(plan)} == {"marginals", "moments", "cells", "lloyd"}


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": "other"},
        {"phase": "rfm"},  # its kind is another
        {"kind": "profiles"},
        {"kind": "unknown"},
        {"step": 1},
        {"step": 10_000},
        {"attempt": 2},
        {"attempt": 100},
    ],
)
def test_a_question_the_plan_does_not_foresee_is_refused(changes: dict[str, Any]) -> None:
    plan, _ = bank_plan()
    question_terms(plan, header(plan, phases(plan)[0]))
    with pytest.raises(RefusedError, match="the plan foresees no"):
        question_terms(plan, header(plan, phases(plan)[0], **changes))


def test_the_last_step_and_attempt_are_foreseen_and_the_next_are_not() -> None:
    plan, _ = bank_plan(max_attempts=2)
    for phase in phases(plan):
        question_terms(plan, header(plan, phase, step=phase.rounds - 1, attempt=2))
        for beyond in ({"step": phase.rounds}, {"attempt": 3}):
            with pytest.raises(RefusedError):
                question_terms(plan, header(plan, phase, **beyond))


# --- feasibility -----------------------------------------------------------------------------------------------------


def test_ordinary_plans_are_feasible(small_contract: Contract, make_plan: MakePlan) -> None:
    check_feasible(make_plan(), small_contract)
    check_feasible(*bank_plan(epsilon=3.0, segments={"k": [1, 64]}))
    check_feasible(*bank_plan(epsilon=0.01, delta=1e-9, max_attempts=5))
    check_feasible(*bank_plan(epsilon=3.0, delta=1e-12))
    check_feasible(*bank_plan(epsilon=30.0))


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"epsilon": 1e-9, "delta": 1e-12}, "epsilon"),
    ],
)
def test_a_plan_that_would_fail_half_way_is_refused_before(changes: dict[str, Any], place: str) -> None:
    plan, contract = bank_plan(**changes)
    with pytest.raises(PlanError) as caught:
        check_feasible(plan, contract)
    assert str(caught.value.place) == f"plan: {place}"
    assert caught.value.fix


def test_more_features_than_a_question_can_ask_about_are_refused_before() -> None:
    features = [
        {"name": f"x{i}", "table": "t", "kind": "numeric", "column": "c", "low": 0, "high": 1, "missing": 0}
        | {"block": "value"}
        for i in range(65)
    ]
    contract = Contract.model_validate(
        {
            "schema": "cohortium.contract/1",
            "name": "wide",
            "purposes": ["CustomerSegmentation"],
            "window": {"start": "2024-01-01", "end": "2025-01-01"},
            "tables": [{"name": "t", "kind": "customers", "customer": "id"}],
            "features": features,
        }
    )
    split = {"marginals": 20, "clustering": 60, "profiles": 20, "rfm": 0}
    plan, _ = bank_plan(contract=contract.digest, purpose="CustomerSegmentation", shares=split)
    with pytest.raises(PlanError, match=r"segments\.features"):
        check_feasible(plan, contract)


def test_another_contract_is_refused_before(small_contract: Contract) -> None:
    with pytest.raises(PlanError, match="another contract"):
        check_feasible(bank_plan()[0], small_contract)


@given(st.floats(0.05, 3.0), st.integers(6, 13), st.integers(1, 6), st.integers(0, 3))
@settings(max_examples=6)
def test_what_is_feasible_is_answered_to_the_end_within_both_budgets(
    drive: Callable[..., Any], epsilon: float, digits: int, k: int, noise: int
) -> None:
    plan, contract = bank_plan(epsilon=epsilon, delta=10.0**-digits, segments={"k": [1, k]})
    try:
        check_feasible(plan, contract)
    except PlanError:
        assume(False)
    driven = drive(segmentation_programme(plan, contract), plan, bank_people(contract, 200), noise)
    spent = Spend()
    by_name = {phase.name: phase for phase in phases(plan)}
    for ask in driven.asks:
        sigma = noise_scale(ask.query, question_terms(plan, header(plan, by_name[ask.phase])).allotment)
        spent += price(ask.query.bound_squared, sigma, ask.query.width)
    assert spent.fits(budget_for(plan.epsilon, plan.delta))
    assert spent.mu2 > 0.999 * budget_for(plan.epsilon, plan.delta).mu2


# --- the result ------------------------------------------------------------------------------------------------------


def test_questions_are_a_function_of_plan_contract_and_answers(
    small_contract: Contract, make_plan: MakePlan, make_people: Callable[..., CustomerTable], drive: Callable[..., Any]
) -> None:
    plan = make_plan()
    runs = [drive(segmentation_programme(plan, small_contract), plan, make_people(), noise=5) for _ in range(2)]
    assert runs[0].digests == runs[1].digests
    assert runs[0].result == runs[1].result
    other = drive(segmentation_programme(plan, small_contract), plan, make_people(), noise=6)
    assert other.digests[0] == runs[0].digests[0]
    assert set(other.digests[1:]).isdisjoint(runs[0].digests)


def test_without_noise_the_segments_are_the_people(
    small_contract: Contract, make_plan: MakePlan, make_people: Callable[..., CustomerTable], drive: Callable[..., Any]
) -> None:
    plan, people = make_plan(), make_people(900)
    result = drive(segmentation_programme(plan, small_contract), plan, people, noise=None).result
    assert [segment.id for segment in result.segments] == [1, 2, 3]
    sizes = [segment.size for segment in result.segments]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == pytest.approx(900, abs=0.01)
    assert result.customers == pytest.approx(900, abs=0.01)
    assert result.explained > 0.9
    truth = sorted(np.bincount(np.digitize(people.values[:, 0], [10.0, 25.5])), reverse=True)
    assert sizes == pytest.approx(truth, abs=0.01)
    visits = {round(next(m.mean for m in segment.means if m.feature == "visits")) for segment in result.segments}
    assert visits == {4, 20, 34}
    assert all(segment.rules for segment in result.segments)


def test_one_person_and_nobody_are_suppressed_and_never_zero(
    small_contract: Contract, make_plan: MakePlan, make_people: Callable[..., CustomerTable], drive: Callable[..., Any]
) -> None:
    plan = make_plan()
    for count in (0, 1):
        for noise in range(3):
            driven = drive(segmentation_programme(plan, small_contract), plan, make_people(count), noise)
            for segment in driven.result.segments:
                assert segment.size is None or segment.size >= plan.min_cell
                if segment.suppressed:
                    assert (segment.means, segment.rules) == ((), ())
                    assert segment.name == f"segment {segment.id}"


def test_without_profiles_nobody_is_described(
    small_contract: Contract, make_plan: MakePlan, make_people: Callable[..., CustomerTable], drive: Callable[..., Any]
) -> None:
    plan = make_plan(shares={"marginals": 20, "clustering": 80, "profiles": 0, "rfm": 0})
    result = drive(segmentation_programme(plan, small_contract), plan, make_people(), noise=0).result
    assert len(result.segments) == 3
    assert all(segment.suppressed and not segment.means for segment in result.segments)


def test_rfm_cells_add_up_and_small_ones_are_suppressed(drive: Callable[..., Any]) -> None:
    plan, contract = bank_plan(segments={"k": 2}, min_cell=60)
    result = drive(segmentation_programme(plan, contract), plan, bank_people(contract, 1000), noise=None).result
    rfm = result.rfm
    assert (rfm.recency, rfm.frequency, rfm.monetary) == ("recency", "frequency", "monetary")
    assert set(rfm.edges) == {"recency", "frequency", "monetary"}
    shown = [cell.size for cell in rfm.cells if cell.size is not None]
    assert all(size >= 60 for size in shown)
    assert any(cell.size is None for cell in rfm.cells)
    assert 0 < sum(shown) <= 1000.01
    places = [(cell.recency, cell.frequency) for cell in rfm.cells]
    assert places == sorted(set(places))
