from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import brentq
from scipy.stats import norm

from cohortium.governance.report import InstitutionFacts, RunSummary, collusion, load_summary, person_at
from cohortium.privacy.accounting import MU2_UNIT, Spend, budget_for
from cohortium.study.errors import DataError
from cohortium.study.plan import Plan

from .conftest import Scenario

_DELTA = 1e-6


def _plan(trust: str, **changes: Any) -> Plan:
    return replace(Scenario(), trust=trust).build().bundle.plan.model_copy(update=changes)


_LOCAL = _plan("local")


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of mu-GDP by its closed form, without our accounting."""

    def slack(epsilon: float) -> float:
        tail = math.exp(epsilon) * norm.cdf(-epsilon / mu - mu / 2)
        return float(norm.cdf(-epsilon / mu + mu / 2) - tail) - delta

    return float(brentq(slack, 0.0, 60.0))


def test_json_round_trip(scenario: Scenario, tmp_path: Path) -> None:
    summary = scenario.build()
    path = tmp_path / "summary.json"
    path.write_bytes(summary.to_bytes())
    assert load_summary(path) == summary
    assert json.loads(summary.to_bytes())["schema"] == "cohortium.summary/1"


def test_unreadable_summaries_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_summary(tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"schema": "cohortium.summary/2"}')
    with pytest.raises(DataError, match="not a summary of this version"):
        load_summary(tmp_path / "other.json")


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_person_at_equals_the_closed_form(count: int) -> None:
    spend = Spend(budget_for(1.0, _DELTA).mu2, 0)
    rows = person_at([spend] * count, _LOCAL)
    assert [row.institutions for row in rows] == sorted({1, min(2, count), min(3, count), count})
    for row in rows:
        mu = math.sqrt(row.institutions * spend.mu2 * float(MU2_UNIT))
        assert row.epsilon == pytest.approx(_gaussian_epsilon(mu, _DELTA), rel=1e-6)
        assert row.epsilon_pld == pytest.approx(row.epsilon, rel=1e-2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(10**10, 2 * 10**13), min_size=1, max_size=5))
def test_person_at_is_monotone_and_bounds_every_choice(charges: list[int]) -> None:
    rows = person_at([Spend(charge, 0) for charge in charges], _LOCAL)
    found = [row.epsilon for row in rows]
    assert all(value is not None for value in found)
    assert found == sorted(found, key=lambda value: value or 0.0)
    assert rows[0] == person_at([Spend(max(charges), 0)], _LOCAL)[0]
    assert rows[-1].epsilon == person_at([Spend(sum(charges), 0)], _LOCAL)[0].epsilon


@pytest.mark.parametrize("count", [3, 8])
def test_with_shared_noise_a_person_at_j_institutions_costs_j_squared(count: int) -> None:
    spend = Spend(budget_for(1.0, _DELTA).mu2, 0)
    rows = person_at([Spend(10, 0), *[spend] * (count - 1)], _plan("distributed"))
    for row in rows:
        mu = row.institutions * math.sqrt(spend.mu2 * float(MU2_UNIT))
        assert row.epsilon == pytest.approx(_gaussian_epsilon(mu, _DELTA), rel=1e-6)


def test_more_colluders_than_the_plan_tolerates_leave_fewer_shares_of_noise() -> None:
    spend = Spend(budget_for(1.0, _DELTA).mu2, 0)
    plan = _plan("distributed", min_institutions=9, colluders=2, share_threshold=9)
    rows = collusion([spend], plan, 10)
    assert [(row.colluders, row.shares) for row in rows] == [(2, 7), (3, 6), (5, 4), (9, 1)]
    for row in rows:
        mu = math.sqrt(7 / row.shares * spend.mu2 * float(MU2_UNIT))
        assert row.epsilon == pytest.approx(_gaussian_epsilon(mu, _DELTA), rel=1e-6)
    fragile = collusion([spend], plan.model_copy(update={"share_threshold": None}), 10)
    assert [(row.colluders, row.shares) for row in fragile] == [(2, 7), (3, 6), (5, 1), (9, 1)]
    assert collusion([spend], _LOCAL, 10) == ()


def test_without_noise_there_is_no_epsilon(scenario: Scenario) -> None:
    assert {row.epsilon for row in person_at([Spend()] * 3, _plan("unsafe-none"))} == {None}
    facts = InstitutionFacts.of(
        "A", accepted=True, spent=Spend(), lifetime=Spend(9, 9), lifetime_spent=Spend(), plan=_plan("unsafe-none")
    )
    assert facts.epsilon is None


def test_no_bound_is_none_not_infinity() -> None:
    (row,) = person_at([Spend(2**70, 2**90)], _LOCAL)
    assert row.epsilon is None
    assert row.epsilon_pld is None


def test_lifetime_left_and_runs_left_come_from_what_adds_up() -> None:
    spent, lifetime = Spend(10**12, 7), budget_for(3.0, _DELTA)
    facts = InstitutionFacts.of(
        "A", accepted=True, spent=spent, lifetime=lifetime, lifetime_spent=spent.times(3), plan=_LOCAL
    )
    left = (lifetime.mu2 - 3 * spent.mu2) * float(MU2_UNIT)
    assert facts.runs_left == (lifetime.mu2 - 3 * spent.mu2) // spent.mu2
    assert facts.lifetime_left == pytest.approx(_gaussian_epsilon(math.sqrt(left), _DELTA), rel=2e-3)
    idle = InstitutionFacts.of(
        "B", accepted=False, spent=Spend(), lifetime=lifetime, lifetime_spent=Spend(), plan=_LOCAL
    )
    assert (idle.runs_left, idle.epsilon) == (None, 0.0)


def _without(document: dict[str, Any], *path: str | int, value: Any) -> dict[str, Any]:
    target: Any = document
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("bundle", "segments", 0, "size"), 70.0, "below the plan's minimum"),
        (("bundle", "rfm", "cells", 1, "size"), 99.0, "below the plan's minimum"),
        (("bundle", "segments", 0, "size"), None, "describes a suppressed segment"),
        (("bundle", "institutions"), 5, "more institutions answered"),
        (("contract", "digest"), "sha256:" + "0" * 64, "names another contract"),
        (("bundle", "scaler", 0, "feature"), "other", "not a feature of the contract"),
        (("institutions", 1, "name"), "Northbank", "distinct names"),
        (("left_out", 0, "institution"), "Stranger", "not one of the institutions"),
        (("comparison", "alone", 0, "institution"), "Stranger", "not one of the institutions"),
        (("comparison", "note"), "exact", "possible only in simulation"),
        (("finished",), "2020-01-01T00:00:00Z", "must not lie before"),
        (("started",), "2026-03-02T09:30:00+01:00", "must be in UTC"),
        (("institutions", 0, "lifetime_spent", "mu2"), 0, "at least what this one did"),
        (("true_sizes",), [1], "Extra inputs"),
    ],
)
def test_what_does_not_hold_together_is_refused(
    scenario: Scenario, path: tuple[str | int, ...], value: Any, message: str
) -> None:
    document = _without(scenario.build().to_json(), *path, value=value)
    with pytest.raises(ValidationError, match=message):
        RunSummary.model_validate(document)


def test_contract_facts_carry_units(scenario: Scenario) -> None:
    contract = replace(scenario, features=("monetary", "recency", "frequency", "age_group")).build().contract
    assert [contract.unit(name) for name in ("monetary", "recency", "frequency")] == ["EUR", "days", "purchase days"]
    assert [feature.name for feature in contract.features if feature.protected] == ["age_group"]
