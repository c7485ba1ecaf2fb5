"""Without noise the estimates are those of fairlearn: on random tables, on PAKDD-2009 and on Ta-Feng."""

from __future__ import annotations

from datetime import date

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import (
    MetricFrame,
    demographic_parity_ratio,
    equalized_odds_ratio,
    false_positive_rate,
    selection_rate,
    true_positive_rate,
)
from numpy.typing import NDArray
from sklearn.metrics import precision_score

from cohortium.governance.fairness import (
    CHOSEN,
    RESPONSES,
    REST,
    Audited,
    AuditTerms,
    FairnessResult,
    LookalikeTables,
    audit_lookalike,
)
from cohortium.governance.fairness.tables import shares_of
from cohortium.models.group_table import GroupTable
from cohortium.simulations import datasets

EXACT = {"abs": 1e-12, "rel": 1e-12}


def tables_of(group: NDArray[np.str_], chosen: NDArray[np.bool_], label: NDArray[np.bool_]) -> LookalikeTables:
    """What an audit without noise would be given."""
    names = np.unique(group)
    cells = [
        [np.count_nonzero((group == name) & (chosen == one) & (label == other)) for one, other in _CELLS]
        for name in names
    ]
    responses = np.array(cells, dtype=np.float64)
    groups = tuple((str(name),) for name in names)
    audience = np.stack([responses[:, :2].sum(axis=1), responses[:, 2:].sum(axis=1)], axis=1)
    return LookalikeTables(
        GroupTable(("group",), groups, (CHOSEN, REST), audience, 0.0),
        responses=GroupTable(("group",), groups, RESPONSES, responses, 0.0),
    )


_CELLS = ((True, True), (True, False), (False, True), (False, False))


def estimates(result: FairnessResult, name: str) -> list[float]:
    return [each.estimate for each in result.metrics if each.name == name and each.estimate is not None]


def check(group: NDArray[np.str_], chosen: NDArray[np.bool_], label: NDArray[np.bool_]) -> FairnessResult:
    tables = tables_of(group, chosen, label)
    result = audit_lookalike([tables], Audited("sha256:a", "sha256:p", None, 1e-6, date(2026, 11, 23)), AuditTerms(0))
    assert tables.responses is not None
    frame = MetricFrame(
        metrics={
            "rate": selection_rate, "true": true_positive_rate, "false": false_positive_rate,
            "precision": lambda y, p: precision_score(y, p, zero_division=0.0),
        },
        y_true=label, y_pred=chosen, sensitive_features=group,
    )  # fmt: skip
    for name, rates in (
        ("rate", shares_of(tables.audience, (CHOSEN,))),
        ("true", shares_of(tables.responses, RESPONSES[:1], (RESPONSES[0], RESPONSES[2]))),
        ("false", shares_of(tables.responses, RESPONSES[1:2], (RESPONSES[1], RESPONSES[3]))),
        ("precision", shares_of(tables.responses, RESPONSES[:1], RESPONSES[:2])),
    ):
        assert [rate.estimate for rate in rates] == pytest.approx(frame.by_group[name].to_list(), **EXACT)
    for metric, name in (("impact-ratio", "rate"), ("true-positive-rate", "true"), ("precision", "precision")):
        ratios = frame.by_group[name] / frame.by_group[name].max()
        assert estimates(result, metric) == pytest.approx(ratios.to_list(), **EXACT)
    parity = demographic_parity_ratio(label, chosen, sensitive_features=group)
    assert min(estimates(result, "impact-ratio")) == pytest.approx(parity, **EXACT)
    worse = min(
        min(estimates(result, "true-positive-rate")), frame.by_group["false"].min() / frame.by_group["false"].max()
    )
    assert worse == pytest.approx(equalized_odds_ratio(label, chosen, sensitive_features=group), **EXACT)
    return result


def test_random_tables() -> None:
    rng = np.random.default_rng(12)
    for _ in range(6):
        people, groups = int(rng.integers(300, 3_000)), int(rng.integers(2, 7))
        group = rng.choice(
            np.array([f"g{index}" for index in range(groups)]), people, p=rng.dirichlet(np.full(groups, 5))
        )
        label = rng.random(people) < 0.3
        check(group, rng.random(people) < 0.15 + 0.3 * label, label)


@pytest.mark.online
def test_pakdd_2009() -> None:
    """Of the fifth of applicants with the highest incomes, how many are women; bad payers as the outcome."""
    if reason := datasets.unavailable_reason("pakdd2009-credit"):
        pytest.skip(reason)
    rows = pd.read_parquet(datasets.fetch("pakdd2009-credit").sources["customers"])
    income = rows["PERSONAL_NET_INCOME"].fillna(0).to_numpy(dtype=np.float64)
    chosen = income >= np.quantile(income, 0.8)
    for column in ("SEX", "MARITAL_STATUS"):
        known = rows[column].notna().to_numpy()  # one applicant's sex is not
        group = rows.loc[known, column].to_numpy(dtype=np.str_)
        result = check(group, chosen[known], (rows["bad_payer"] == "1").to_numpy()[known])
        assert result.epsilon is None


@pytest.mark.online
def test_ta_feng() -> None:
    """Of the customers who spent most until January, age bands; who comes back in February as the outcome."""
    if reason := datasets.unavailable_reason("ta-feng"):
        pytest.skip(reason)
    lines = pd.read_csv(
        datasets.fetch("ta-feng").sources["purchases"],
        encoding="utf-8-sig",
        usecols=["CUSTOMER_ID", "TRANSACTION_DT", "AGE_GROUP", "SALES_PRICE"],
    )
    later = lines["TRANSACTION_DT"].str.match(r"2/\d+/2001")
    people = lines[~later].groupby("CUSTOMER_ID").agg(spend=("SALES_PRICE", "sum"), age=("AGE_GROUP", "first"))
    chosen = (people["spend"] >= people["spend"].quantile(0.8)).to_numpy()
    back = people.index.isin(lines.loc[later, "CUSTOMER_ID"].unique())
    result = check(people["age"].fillna("unknown").to_numpy(dtype=np.str_), chosen, np.asarray(back))
    assert len(estimates(result, "impact-ratio")) == 11
