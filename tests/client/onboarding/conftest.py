"""A contract that uses everything, random lines, and the glossary of `study/contract.py` computed a second time.

`expected` goes one person at a time in pandas and Python: the oracle of the differential tests.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cohortium.study.contract import Contract, Feature

_DERIVED: tuple[tuple[str, str, float, float], ...] = (
    ("recency", "numeric", 1, 90),
    ("tenure", "numeric", 1, 90),
    ("frequency", "numeric", 0, 40),
    ("monetary", "money", 0, 400),
    ("basket_size", "money", 0, 100),
    ("gap", "numeric", 0, 90),
    ("trend", "numeric", -1, 1),
)


def purchases_contract(**changes: Any) -> Contract:
    """Purchases alone: `changes` go into its table."""
    features: list[dict[str, Any]] = [
        {"name": name, "derive": name, "kind": kind, "low": low, "high": high, "missing": high}
        for name, kind, low, high in _DERIVED
    ]
    features += [
        {"name": "toys", "derive": "category_share", "kind": "numeric", "low": 0, "high": 1, "value": "toys"},
        {"name": "web", "derive": "channel_share", "kind": "numeric", "low": 0, "high": 1, "value": "web"},
        {"name": "score", "column": "score", "kind": "numeric", "low": -5, "high": 5},
        {"name": "band", "column": "band", "kind": "category", "categories": ["a", "b", "c"]},
        {"name": "born", "column": "born", "kind": "date", "low": 0, "high": 30_000},
        {"name": "sex", "column": "sex", "kind": "category", "categories": ["f", "m"], "protected": True},
    ]
    for feature in features:
        feature["table"] = "purchases"
        if feature["kind"] != "category":
            feature.setdefault("missing", 0)
        if "protected" not in feature:
            feature["block"] = "behaviour"
    table = {
        "name": "purchases",
        "kind": "transactions",
        "customer": "cid",
        "time": "day",
        "amount": "amount",
        "category": "aisle",
        "channel": "channel",
        "max_amount": 10_000.0,
    }
    return Contract.model_validate(
        {
            "schema": "cohortium.contract/1",
            "name": "shop",
            "currency": "EUR",
            "purposes": ["CustomerSegmentation"],
            "max_bad_share": 1.0,
            "window": {"start": "2024-01-01", "end": "2024-04-01"},
            "tables": [table | changes],
            "features": features,
        }
    )


def random_lines(seed: int, lines: int = 600, people: int = 40) -> pd.DataFrame:
    """Clean types, some cells missing, some days outside the window, some amounts negative."""
    rng = np.random.default_rng(seed)

    def some(values: list[Any], missing: float = 0.15) -> list[Any]:
        return [None if rng.random() < missing else values[rng.integers(len(values))] for _ in range(lines)]

    return pd.DataFrame(
        {
            "cid": some([f"c{n:03d}" for n in range(people)], 0.02),
            "day": pd.Timestamp("2023-12-20") + pd.to_timedelta(rng.integers(0, 110, lines), unit="D"),
            "amount": np.round(rng.normal(12, 9, lines), 2),
            "aisle": some(["toys", "food", "garden"]),
            "channel": some(["web", "shop"]),
            "basket": some([f"b{n}" for n in range(80)]),
            "score": [np.nan if rng.random() < 0.2 else float(rng.integers(-8, 8)) for _ in range(lines)],
            "band": some(["a", "b", "c", "z"]),
            "born": pd.Series(some(list(pd.date_range("1950-01-01", periods=5, freq="3000D"))), dtype="datetime64[ns]"),
            "sex": some(["f", "m"]),
        }
    )


def used_lines(frame: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    """The lines that count; the frame has clean types (NaN or NaT where a cell holds nothing)."""
    start, end = pd.Timestamp(contract.window.start), pd.Timestamp(contract.window.end)
    table = contract.tables[0]
    least = 0 if table.negative_amounts == "bad" else -table.max_amount
    keep = frame["cid"].notna() & (frame["day"] >= start) & (frame["day"] < end)
    return frame[keep & (frame["amount"] >= least) & (frame["amount"] <= table.max_amount)]


def expected(frame: pd.DataFrame, contract: Contract) -> dict[str, dict[str, float]]:
    """Stored value of every feature by person and feature name."""
    people = used_lines(frame, contract).groupby("cid")
    return {
        str(person): {feature.name: _stored(feature, _raw(lines, feature, contract)) for feature in contract.features}
        for person, lines in people
    }


def _raw(lines: pd.DataFrame, feature: Feature, contract: Contract) -> float | None:
    start, end = pd.Timestamp(contract.window.start), pd.Timestamp(contract.window.end)
    if feature.column is not None:
        return _most_frequent(lines[feature.column].dropna(), feature, end)
    days = sorted(lines["day"].dt.normalize().unique())
    spent = math.fsum(lines["amount"])
    purchases = len(days)
    if contract.tables[0].basket is not None:
        baskets = lines["basket"].where(lines["basket"].notna(), "day " + lines["day"].dt.normalize().astype(str))
        purchases = baskets.nunique()
    half = start + pd.Timedelta(days=(end - start).days // 2)
    later = math.fsum(lines.loc[lines["day"] >= half, "amount"])
    shares = {"category_share": "aisle", "channel_share": "channel"}
    match feature.derive:
        case "recency":
            return (end - days[-1]).days
        case "tenure":
            return (end - days[0]).days
        case "frequency":
            return purchases
        case "monetary":
            return spent
        case "basket_size":
            return spent / purchases
        case "gap":
            gaps = [(b - a).days for a, b in itertools.pairwise(days)]
            return sum(gaps) / len(gaps) if gaps else None
        case "trend":
            return (later - (spent - later)) / spent if spent > 0 else None
        case _:
            part = math.fsum(lines.loc[lines[shares[str(feature.derive)]] == feature.value, "amount"])
            return part / spent if spent > 0 else None


def _most_frequent(cells: pd.Series[Any], feature: Feature, end: pd.Timestamp) -> float | None:
    values = [feature.categories.index(c) for c in cells if c in feature.categories] if feature.is_category else None
    if values is None:
        values = [(end - c).days if feature.kind == "date" else float(c) for c in cells]
    counts = pd.Series(values, dtype="float64").value_counts()
    return None if counts.empty else float(counts[counts == counts.max()].index.min())


def _stored(feature: Feature, value: float | None) -> float:
    if feature.is_category:
        return feature.unknown_code if value is None else value
    if value is None:
        assert feature.missing is not None
        return feature.missing
    low, high = feature.bounds
    return min(max(value, low), high)


@pytest.fixture
def contract() -> Contract:
    return purchases_contract()


@pytest.fixture
def make_contract() -> Callable[..., Contract]:
    return purchases_contract


@pytest.fixture
def make_lines() -> Callable[..., pd.DataFrame]:
    return random_lines


@pytest.fixture
def oracle() -> Callable[[pd.DataFrame, Contract], dict[str, dict[str, float]]]:
    return expected
