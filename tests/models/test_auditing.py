"""An audit's programme: plain group-bys without noise, the planned price with it, nothing small made known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cohortium.models.auditing import (
    DISTANCE,
    LABEL,
    OUTCOME,
    UNKNOWN,
    Coding,
    GroupAnswers,
    audit_layout,
    audit_phases,
    audit_programme,
    audit_widest,
    released_tables,
)
from cohortium.models.group_table import GroupTable
from cohortium.models.studies import check_feasible, phases, widest_questions
from cohortium.privacy.query import SCALE, bounded_total
from cohortium.privacy.table import CustomerTable
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.contract import Contract, Feature
from cohortium.study.errors import PlanError
from cohortium.study.plans import parse_plan


def feature(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "table": "people", "column": name, **more}


CONTRACT = Contract.model_validate(
    {
        "schema": "cohortium.contract/1",
        "name": "bank",
        "purposes": ["research"],
        "window": {"start": "2024-01-01", "end": "2025-01-01"},
        "tables": [{"name": "people", "kind": "customers", "customer": "id"}],
        "features": [
            feature("spend", kind="numeric", low=0, high=1000, missing=0, transform="log1p", block="value"),
            feature("channel", kind="category", categories=["web", "shop"], block="channel"),
            feature("sex", kind="category", categories=["f", "m"], protected=True),
            feature("age", kind="numeric", low=18, high=90, missing=18, protected=True),
        ],
    }
)
COLUMNS = ("@code:sex", "@code:age", OUTCOME, LABEL, DISTANCE, "@code:spend", "@code:channel")
LEVELS = (3, 4, 4, 3, None, 9, 3)


def make_plan(**changes: Any) -> AuditPlan:
    audit = {
        "of": "segments",
        "model": "sha256:" + "0" * 64,
        "segments": 4,
        "attributes": ["sex", "age"],
        "intersections": "all",
        "cuts": {"age": [30, 60]},
        "distance": True,
        "proxies": ["spend", "channel"],
    }
    made = parse_plan(
        {
            "schema": "cohortium.plan/1",
            "study": "audit",
            "name": "audit",
            "purpose": "research",
            "lawful_basis": "consent",
            "regions": ["EU"],
            "contract": CONTRACT.digest,
            "expires": "2998-12-31",
            "trust": "local",
            "epsilon": 1.0,
            "delta": 1e-6,
            "audit": audit,
            "shares": {"outcomes": 60, "distances": 20, "proxies": 20},
            **changes,
        }
    )
    assert isinstance(made, AuditPlan)
    return made


PLAN = make_plan()


def people(count: int = 4000) -> CustomerTable:
    """As the node gives them to an audit: codes, and distances."""
    rng = np.random.default_rng(0)
    columns = [rng.uniform(0, 1, count) if levels is None else rng.integers(0, levels, count) for levels in LEVELS]
    return CustomerTable(COLUMNS, np.column_stack(columns), np.arange(count))


def test_without_noise_the_tables_are_plain_group_bys(drive: Callable[..., Any]) -> None:
    crowd = people()
    driven = drive(audit_programme(PLAN, CONTRACT), PLAN, crowd, None)
    sex, age, segment, _, distance, spend, channel = crowd.values.T
    assert [one.outcomes.attributes for one in driven.result] == [("sex",), ("age",), ("sex", "age")]
    for one in driven.result:
        codes = {"sex": sex, "age": age}
        for row, group in enumerate(one.outcomes.groups):
            inside = np.ones(len(crowd), dtype=bool)
            for name, label in zip(one.outcomes.attributes, group, strict=True):
                inside &= codes[name] == LABELS[name].index(label)
            assert one.outcomes.counts[row].tolist() == [int((inside & (segment == s)).sum()) for s in range(4)]
            assert one.distances.counts[row, 0] == pytest.approx(distance[inside].sum(), abs=1e-3)
    for number, values in ((0, sex), (1, age)):
        for name, bins, levels in (("spend", spend, 9), ("channel", channel, 3)):
            found = driven.result[number].features[name].counts
            expected = np.histogram2d(values, bins, bins=[np.arange(len(found) + 1), np.arange(levels + 1)])[0]
            assert (found == expected).all()
    assert driven.result[2].features == {}, "pairs are not crossed with features"
    assert driven.result[0].outcomes.outcomes == tuple(f"segment {number}" for number in range(1, 5))


LABELS = {
    "sex": ("f", "m", UNKNOWN),
    "age": ("below 30", "30 to 60", "60 and above", UNKNOWN),
}


def test_every_question_is_known_beforehand_and_priced_by_its_share() -> None:
    assert [ask.phase for ask in audit_widest(PLAN, CONTRACT)] == [phase.name for phase in audit_phases(PLAN)]
    assert sum(phase.share for phase in phases(PLAN)) == 1
    assert [ask.query.bound_squared for ask in widest_questions(PLAN, CONTRACT)] == [
        3 * SCALE**2,
        3 * SCALE**2,
        4 * SCALE**2,
    ]
    check_feasible(PLAN, CONTRACT)


def test_a_plan_that_asks_for_more_than_one_answer_holds_is_refused() -> None:
    cuts = [float(cut) for cut in np.linspace(1, 999, 15)]
    wide = [feature(f"p{index}", kind="category", categories=[f"c{i}" for i in range(999)]) for index in range(2)]
    document = {
        **CONTRACT.to_json(),
        "features": [
            *(f.model_dump(mode="json") for f in CONTRACT.training_features),
            *({**one, "protected": True} for one in wide),
        ],
    }
    contract = Contract.model_validate(document)
    audit = {**PLAN.audit.model_dump(mode="json"), "attributes": ["p0", "p1"], "cuts": {"spend": cuts}, "segments": 64}
    plan = make_plan(contract=contract.digest, audit=audit)
    with pytest.raises(PlanError, match="plan: audit"):
        check_feasible(plan, contract)


def test_answers_by_label_leave_the_unknown_ones_out(drive: Callable[..., Any]) -> None:
    audit = {
        "of": "column",
        "column": "sex",
        "chosen": ["f"],
        "attributes": ["age"],
        "cuts": {"age": [30, 60]},
        "label": "told",
        "positive": "yes",
    }
    told = feature("told", kind="category", categories=["yes", "no"], protected=True)
    contract = Contract.model_validate(
        {**CONTRACT.to_json(), "features": [*CONTRACT.to_json()["features"], Feature(**told).model_dump(mode="json")]}
    )
    plan = make_plan(contract=contract.digest, audit=audit, shares={"outcomes": 50, "labels": 50})
    plan.check_contract(contract)
    rng = np.random.default_rng(1)
    values = np.column_stack([rng.integers(0, levels, 2000) for levels in (4, 3, 3)])
    crowd = CustomerTable(("@code:age", OUTCOME, LABEL), values.astype(np.float64), np.arange(2000))
    (one,) = drive(audit_programme(plan, contract), plan, crowd, None).result
    assert one.responses.outcomes == ("chosen-yes", "chosen-no", "rest-yes", "rest-no")
    for row in range(4):
        expected = [
            int(((values[:, 0] == row) & (values[:, 1] == outcome) & (values[:, 2] == answer)).sum())
            for outcome in range(2)
            for answer in range(2)
        ]
        assert one.responses.counts[row].tolist() == expected
        assert one.audience.counts[row].tolist() == [
            int(((values[:, 0] == row) & (values[:, 1] == outcome)).sum()) for outcome in range(2)
        ]
    assert one.audience.outcomes == ("chosen", "rest")


# --- groups ----------------------------------------------------------------------------------------------------------


def codes(coding: Coding, *values: float) -> list[str]:
    return [coding.labels[int(code)] for code in coding.codes(np.array(values))]


def test_a_cut_belongs_to_the_group_above_it_and_a_missing_value_to_nobody_s() -> None:
    age = audit_layout(PLAN, CONTRACT).attributes[1]
    found = codes(age, 18.0, 18.001, 29.999, 30.0, 59.0, 60.0, 90.0)
    assert found == [UNKNOWN, "below 30", "below 30", "30 to 60", "30 to 60", "60 and above", "60 and above"]


def test_a_category_s_extra_code_is_the_unknown_group() -> None:
    sex = audit_layout(PLAN, CONTRACT).attributes[0]
    assert codes(sex, 0.0, 1.0, 2.0, 7.0) == ["f", "m", UNKNOWN, UNKNOWN]


def test_a_category_called_unknown_is_the_unknown_group() -> None:
    listed = Feature(**feature("faith", kind="category", categories=["a", UNKNOWN, "b"], protected=True))
    coding = Coding(listed)
    assert coding.labels == ("a", "b", UNKNOWN)
    assert codes(coding, 0.0, 1.0, 2.0, 3.0) == ["a", UNKNOWN, "b", UNKNOWN]


def test_a_proxy_without_cuts_has_eight_bins_on_the_contract_s_scale() -> None:
    spend = audit_layout(PLAN, CONTRACT).features[0]
    assert len(spend.labels) == 9
    widths = np.diff(np.log1p([0.0, *spend.cuts, 1000.0]))
    assert widths == pytest.approx(np.full(8, math.log1p(1000) / 8))


# --- what is made known ----------------------------------------------------------------------------------------------


def table(counts: list[list[float]], outcomes: tuple[str, ...]) -> GroupTable:
    return GroupTable(("sex",), (("f",), ("m",)), outcomes, np.array(counts), 3.0)


def test_what_is_below_the_minimum_cell_is_absent_and_never_nought() -> None:
    one = GroupAnswers(
        outcomes=table([[99.9, 100.0], [30.0, -5.0]], ("chosen", "rest")),
        distances=table([[40.0], [12.0]], ("distance",)),
        features={"spend": table([[500.0, 1.0], [60.0, 60.0]], ("low", "high"))},
    )
    outcomes, distances, proxies = released_tables([one], 100.0)
    assert outcomes.counts == ((None, 100.0), (None, None))
    assert outcomes.totals == (199.9, None)
    assert distances.counts == ((40.0,), (None,)), "a sum is shown where its people are"
    assert proxies.counts == ((500.0, None), (None, None))
    assert proxies.totals == (501.0, 120.0)
    assert proxies.feature == "spend"


def test_seeds_stand_beside_the_eligible_with_the_larger_noise() -> None:
    one = GroupAnswers(outcomes=table([[10.0, 20.0, 5.0], [1.0, 2.0, 3.0]], ("chosen", "rest", "seed")))
    assert one.seeds.counts.tolist() == [[5.0, 30.0], [3.0, 3.0]]
    assert one.seeds.std == pytest.approx(3.0 * math.sqrt(2))
    assert one.audience.counts.tolist() == [[10.0, 20.0], [1.0, 2.0]]


def test_with_noise_the_tables_are_within_it(drive: Callable[..., Any]) -> None:
    crowd = people(20_000)
    exact = drive(audit_programme(PLAN, CONTRACT), PLAN, crowd, None).result
    noisy = drive(audit_programme(PLAN, CONTRACT), PLAN, crowd, 3).result
    departures = np.concatenate(
        [((n.outcomes.counts - e.outcomes.counts) / n.outcomes.std).ravel() for n, e in zip(noisy, exact, strict=True)]
    )
    assert 0.7 < departures.std() < 1.3
    assert noisy[0].outcomes.std < 20
    assert bounded_total(audit_widest(PLAN, CONTRACT)[0].query, crowd).sum() == 3 * 20_000 * SCALE
