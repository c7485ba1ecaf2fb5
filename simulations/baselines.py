"""What clustering without privacy would have found: possible only in a simulation, where all rows are in one place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from cohortium.client.people import bundle_scaler
from cohortium.governance.report import Comparison
from cohortium.models.assignment import squared_distances
from cohortium.privacy.table import CustomerTable
from cohortium.study.bundle import Bundle

__all__ = ["central_cost", "compare_with_central"]

_ROWS = 100_000
_RESTARTS = 10
_ALONE_RESTARTS = 3


def compare_with_central(bundle: Bundle, tables: Mapping[str, CustomerTable]) -> Comparison | None:
    """Mean squared distance to the nearest centre over everybody: released centres, central k-means, each one alone.

    Args:
        bundle: what the run released; its scaler makes the space in which all are compared.
        tables: every institution's customers.

    Returns:
        The comparison, on a random sample of 100,000 customers if there are more; None when central k-means has cost 0
        (all customers alike).
    """
    scaler = bundle_scaler(bundle)
    own = {name: scaler.transform(table.select(scaler.features)) for name, table in tables.items()}
    everybody = _sample(np.vstack(list(own.values())))
    k = len(bundle.segments)
    central = _cost(everybody, _centres(everybody, k))
    if central <= 1e-12:
        return None
    released = np.array([segment.centre for segment in bundle.segments])
    alone = {name: _cost(everybody, _centres(_sample(points), k, _ALONE_RESTARTS)) for name, points in own.items()}
    return Comparison.of(central_cost=central, federated_cost=_cost(everybody, released), alone=alone)


def central_cost(points: NDArray[np.float64], k: int, restarts: int = _RESTARTS) -> float:
    """Total cost of non-private scikit-learn k-means, the best of `restarts`."""
    return float(squared_distances(points, _centres(points, k, restarts)).min(axis=1).sum())


def _sample(points: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(points) <= _ROWS:
        return points
    return points[np.random.default_rng(0).choice(len(points), _ROWS, replace=False)]


def _centres(points: NDArray[np.float64], k: int, restarts: int = _RESTARTS) -> NDArray[np.float64]:
    distinct = len(np.unique(points, axis=0))
    model = KMeans(min(k, distinct), n_init=restarts, random_state=0).fit(points)
    return np.asarray(model.cluster_centers_, dtype=np.float64)


def _cost(points: NDArray[np.float64], centres: NDArray[np.float64]) -> float:
    return float(squared_distances(points, centres).min(axis=1).mean())
