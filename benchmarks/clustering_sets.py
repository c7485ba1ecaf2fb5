"""The data sets of the clustering benchmark: a matrix in the public box [-1, 1]^d, and a number of clusters.

Scaling to the box uses the data's 0.1% and 99.9% quantiles without privacy: bounds count as public here, for every
method alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import duckdb
import numpy as np
from numpy.typing import NDArray

from cohortium.simulations.datasets import fetch

__all__ = ["SETS"]

Matrix = NDArray[np.float64]


def _mixture(n: int) -> Matrix:
    """Eight spherical Gaussians of unequal weight, centres uniform in [-0.7, 0.7]^8, standard deviation 0.08."""
    rng = np.random.default_rng(7)
    centres = rng.uniform(-0.7, 0.7, (8, 8))
    weights = rng.dirichlet(np.full(8, 4.0))
    cluster = rng.choice(8, n, p=weights)
    return np.clip(centres[cluster] + rng.normal(0, 0.08, (n, 8)), -1, 1)


def _adult() -> Matrix:
    """Six numeric columns of the census set, capital gain and loss on a logarithmic scale."""
    table = duckdb.read_parquet(str(fetch("adult").sources["customers"]))
    columns = "age, fnlwgt, education_num, capital_gain, capital_loss, hours_per_week"
    values = table.select(*columns.split(", ")).fetchnumpy()
    matrix = np.column_stack([np.asarray(values[name], dtype=np.float64) for name in columns.split(", ")])
    matrix[:, 3:5] = np.log1p(matrix[:, 3:5])
    return _boxed(matrix)


def _journey() -> Matrix:
    """Recency, frequency, spend and six further numbers of 2,469 (simulated) households, on a logarithmic scale."""
    baskets = duckdb.read_parquet(str(fetch("complete-journey").sources["baskets"]))
    values = baskets.query(
        "baskets",
        """
        SELECT household_id,
               floor(epoch((SELECT max(transaction_timestamp) FROM baskets) - max(transaction_timestamp)) / 86400),
               count(DISTINCT basket_id), sum(sales_value), sum(quantity), count(DISTINCT store_id),
               count(DISTINCT product_id), sum(retail_disc), sum(coupon_disc)
        FROM baskets GROUP BY household_id ORDER BY household_id
        """,
    ).fetchnumpy()
    columns = list(values.values())[1:]
    matrix = np.column_stack([np.asarray(column, dtype=np.float64) for column in columns])
    return _boxed(np.log1p(np.maximum(matrix, 0.0)))


def _plain_numbers(name: str) -> Matrix:
    """Every trainable number of a public set's contract, as it is; a missing one counts as 0."""
    found = fetch(name)
    columns = [f.column for f in found.contract.training_features if not f.is_category and f.column is not None]
    table = duckdb.read_parquet(str(found.sources["customers"]))
    numbers = ", ".join(f'coalesce(TRY_CAST("{column}" AS DOUBLE), 0) AS "{column}"' for column in columns)
    values = table.project(numbers).fetchnumpy()
    return _boxed(np.column_stack([np.asarray(values[column], dtype=np.float64) for column in columns]))


def _boxed(matrix: Matrix) -> Matrix:
    low, high = np.quantile(matrix, [0.001, 0.999], axis=0)
    return np.clip(2 * (matrix - low) / np.maximum(high - low, 1e-9) - 1, -1, 1)


SETS: Mapping[str, tuple[int, Callable[[], Matrix]]] = MappingProxyType(
    {
        "mix8": (8, lambda: _mixture(100_000)),
        "mix8n10k": (8, lambda: _mixture(10_000)),
        "adult6": (8, _adult),
        "journey8": (6, _journey),
        "bank4": (8, lambda: _plain_numbers("bank-marketing")),
        "credit6": (8, lambda: _plain_numbers("pakdd2009-credit")),
    }
)
"""Number of clusters and a function that makes the matrix, by name. The last two were not looked at in tuning."""
