"""The data sets of the lookalike benchmark: customers under a contract, and a concept that a seed is drawn from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import MappingProxyType

import duckdb
import numpy as np
from numpy.typing import NDArray

from cohortium.client.onboarding import Source, load_customer_table, onboard
from cohortium.privacy.table import CustomerTable
from cohortium.simulations.datasets import fetch
from cohortium.study.contract import Contract, load_contract

__all__ = ["SETS", "Concept", "synthetic"]

CONTRACTS = Path(__file__).resolve().parent / "contracts"


@dataclass(frozen=True)
class Concept:
    """Customers, and who of them belongs to the concept.

    Args:
        contract: under which they were onboarded.
        people: their table.
        member: who belongs, shape (n,).
        seed_share: share of the training members that are known as seeds.
    """

    contract: Contract
    people: CustomerTable
    member: NDArray[np.bool_]
    seed_share: float


def _onboarded(contract: Contract, sources: Mapping[str, Source]) -> CustomerTable:
    with tempfile.TemporaryDirectory(prefix="cohortium-") as folder:
        onboard(contract, sources, Path(folder) / "customers", duplicates=False)
        return load_customer_table(Path(folder) / "customers", contract)


def _of_column(name: str, contract_file: str, column: str, value: str, seed_share: float) -> Concept:
    contract = load_contract(CONTRACTS / contract_file)
    file = fetch(name).sources["customers"]
    people = _onboarded(contract, {"customers": file})
    rows = duckdb.query(f"SELECT CAST(id AS VARCHAR), \"{column}\" FROM read_parquet('{file}')").fetchall()
    members = {key for key, cell in rows if str(cell).strip() == value}
    return Concept(contract, people, np.array([str(key) in members for key in people.keys]), seed_share)


def adult() -> Concept:
    """Incomes above 50K among 32,561 persons; 25% of the members known, at least 1,000, at most half."""
    return _of_column("adult", "adult-all.toml", "income_over_50k", ">50K", 0.25)


def bank() -> Concept:
    """Clients of a bank who subscribed; all the subscribers of the training part are the seed."""
    return _of_column("bank-marketing", "bank-marketing-all.toml", "y", "yes", 1.0)


def tafeng() -> Concept:
    """Who of the customers of November to January buys again in February; all of the training part are the seed."""
    fetched = fetch("ta-feng")
    contract = fetched.contract.with_window(date(2000, 11, 1), date(2001, 2, 1))
    people = _onboarded(contract, {"purchases": fetched.sources["purchases"]})
    again = duckdb.query(
        f"""
        SELECT DISTINCT CAST(CUSTOMER_ID AS VARCHAR) FROM read_csv('{fetched.sources["purchases"]}', all_varchar = true)
        WHERE strptime(TRANSACTION_DT, '%m/%d/%Y') >= DATE '2001-02-01'
        """
    ).fetchall()
    members = {key.strip() for (key,) in again}
    return Concept(contract, people, np.array([str(key) in members for key in people.keys]), 1.0)


def synthetic(n: int = 100_000) -> Concept:
    """Twelve latent segments, 40 spend categories, 6 traits; the concept is non-linear in the latent point."""
    rng = np.random.default_rng(5)
    mixture = rng.dirichlet(np.full(12, 2.0))
    segment = rng.choice(12, n, p=mixture)
    centres = rng.normal(0, 1, (12, 6))
    latent = centres[segment] + rng.normal(0, 0.7, (n, 6))
    loads = rng.normal(0, 0.8, (6, 40))
    rate = np.exp(np.clip(latent @ loads / 2 - 0.5, -4, 3))
    spend = np.log1p(rng.poisson(rate * rng.gamma(2, 0.5, (n, 1)))) / 3
    traits = np.tanh(latent @ rng.normal(0, 0.5, (6, 6)) + rng.normal(0, 1, (n, 6)))
    score = np.sin(latent[:, 0] * 1.5) + latent[:, 1] * latent[:, 2] * 0.6 + 0.5 * np.cos(2 * latent[:, 3])
    score += 0.6 * (segment == 3) + rng.normal(0, 0.4, n)
    values = np.hstack([np.clip(spend, 0, 1) * 2 - 1, traits])
    names = [f"spend_{index}" for index in range(40)] + [f"trait_{index}" for index in range(6)]
    features = [
        {
            "name": name,
            "table": "customers",
            "kind": "numeric",
            "column": name,
            "low": -1.0,
            "high": 1.0,
            "missing": 0.0,
            "block": "behaviour",
        }
        for name in names
    ]
    contract = Contract.model_validate(
        {
            "schema": "cohortium.contract/1",
            "name": "synthetic",
            "purposes": ["LookalikeModelling"],
            "window": {"start": "2024-01-01", "end": "2025-01-01"},
            "tables": [{"name": "customers", "kind": "customers", "customer": "id"}],
            "features": features,
        }
    )
    people = CustomerTable(tuple(names), np.ascontiguousarray(values), np.array([str(row) for row in range(n)]))
    return Concept(contract, people, score > np.quantile(score, 0.85), 0.25)


SETS: Mapping[str, Callable[[], Concept]] = MappingProxyType(
    {"adult": adult, "synthetic": synthetic, "bank": bank, "tafeng": tafeng}
)
"""Every set of the benchmark."""
