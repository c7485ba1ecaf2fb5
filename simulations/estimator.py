"""A scikit-learn style estimator that runs the federation's own apps on arrays."""

from __future__ import annotations

import operator
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from cohortium.client.app import make_client_app
from cohortium.client.node import Node, NodeIdentity, create_node, open_node
from cohortium.models.assignment import nearest_centre, squared_distances
from cohortium.privacy.accounting import Spend, epsilon_spent
from cohortium.privacy.table import CustomerTable
from cohortium.server.app import StudyOrder, make_server_app
from cohortium.simulations.grid import run_in_process
from cohortium.study.bundle import Bundle
from cohortium.study.contract import Contract
from cohortium.study.errors import Defect, PlanError
from cohortium.study.plan import Plan, parse_plan

__all__ = ["FederatedKMeans", "PrivacySpent"]

_MAX_BOUND = 1e300


@dataclass(frozen=True)
class PrivacySpent:
    """What fitting cost.

    Args:
        epsilon, delta: guarantee for one person at one institution, adding or removing all they have there.
        mu_squared: the same as mu^2 of Gaussian differential privacy.
        releases: questions that every institution answered.
        person_at: epsilon at that delta for a person who is a customer of 1, 2, 3 and all institutions.
    """

    epsilon: float
    delta: float
    mu_squared: float
    releases: int
    person_at: Mapping[int, float]


class FederatedKMeans(ClusterMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """k-means under customer-level differential privacy, by the very code that runs deployed.

    Every institution is a node with its own ledger and door; a coordinator adds up what they release. Noise comes from
    the operating system and cannot be seeded: two fits differ, by design.

    Args:
        n_clusters: number of clusters, 1 to 64.
        epsilon, delta: what fitting may cost one person at one institution; everything is charged to it.
        bounds: public (low, high), two numbers or two arrays of length n_features. They must not be computed from X.
            Values outside are clipped. Distances are Euclidean after the bounds are mapped to [-1, 1].
        trust: `local`: every institution adds full noise.
        random_state: seed of the post-processing and of the split into institutions; never of noise.

    Attributes:
        cluster_centers_: float64, shape (n_clusters, n_features), in the units of X.
        labels_: nearest centre of every row of X. Computed from X without noise: they never leave a simulation.
        inertia_: sum of squared distances to the nearest centre, after mapping the bounds to [-1, 1]. Not private.
        privacy_spent_: see `PrivacySpent`.
        bundle_: what the run released.

    Example:
        >>> import numpy as np
        >>> from cohortium.simulations import FederatedKMeans
        >>> X = np.random.default_rng(0).normal(size=(2000, 2)).clip(-3, 3)
        >>> model = FederatedKMeans(3, epsilon=1.0, bounds=(-3, 3), random_state=0).fit(X, institutions=4)
        >>> model.cluster_centers_.shape
        (3, 2)
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        epsilon: float = 1.0,
        delta: float = 1e-6,
        bounds: tuple[ArrayLike, ArrayLike] | None = None,
        trust: Literal["local"] = "local",
        random_state: int | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.epsilon = epsilon
        self.delta = delta
        self.bounds = bounds
        self.trust = trust
        self.random_state = random_state

    def fit(self, X: Any, y: None = None, *, institutions: int | Sequence[Any] | None = None) -> FederatedKMeans:
        """Learn the centres.

        Args:
            X: numbers, shape (n_samples, n_features); one row is one person at one institution.
            y: ignored.
            institutions: how many equal parts to split the rows into, or one label per row; a single institution when
                left out.

        Raises:
            ValueError: X holds NaN or infinity, or has another shape than the labels.
            PlanError: bounds are missing or do not ascend, or epsilon, delta or n_clusters are out of range.
        """
        values: NDArray[np.float64] = validate_data(self, X, dtype=np.float64, ensure_min_samples=1)
        low, high = self._public_bounds(values.shape[1])
        groups = _split(len(values), institutions, self.random_state)
        contract = _contract(low, high)
        plan = self._plan(contract)
        clipped = np.clip(values, low, high)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cohortium-")))
            nodes = [
                _node(folder / str(index), contract, plan, clipped[rows], rows) for index, rows in enumerate(groups)
            ]
            for node in nodes:
                stack.callback(node.close)
            self.bundle_ = _run(plan, contract, nodes)
            spends = [node.ledger.spent() for node in nodes]
        scaled_centres = np.array([segment.centre for segment in self.bundle_.segments])
        self._low, self._high = low, high
        self.cluster_centers_ = low + (scaled_centres + 1.0) / 2.0 * (high - low)
        self.privacy_spent_ = _privacy_spent(spends, self.delta, len(self.bundle_.releases))
        scaled = self._scaled(values)
        self.labels_ = nearest_centre(scaled, scaled_centres)
        self.inertia_ = float(squared_distances(scaled, scaled_centres).min(axis=1).sum())
        return self

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Index of the nearest centre of every row, after clipping to the bounds."""
        check_is_fitted(self)
        values = validate_data(self, X, dtype=np.float64, reset=False)
        return nearest_centre(self._scaled(values), np.array([segment.centre for segment in self.bundle_.segments]))

    def _scaled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = np.clip(values, self._low, self._high)
        scaled: NDArray[np.float64] = 2.0 * (inside - self._low) / (self._high - self._low) - 1.0
        return scaled

    def _public_bounds(self, features: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self.bounds is None:
            raise PlanError(
                "no bounds", place="FederatedKMeans", fix="state public bounds=(low, high), not computed from X"
            )
        try:
            low, high = (np.broadcast_to(np.asarray(end, dtype=np.float64), (features,)).copy() for end in self.bounds)
        except (TypeError, ValueError):
            low = high = np.zeros(features)
        if not (np.abs([low, high]) < _MAX_BOUND).all() or (low >= high).any():
            raise PlanError("bounds must be finite and ascend", place="FederatedKMeans", fix="give bounds=(low, high)")
        return low, high

    def _plan(self, contract: Contract) -> Plan:
        return parse_plan(
            {
                "schema": "cohortium.plan/1",
                "name": "federated-k-means",
                "purpose": "research",
                "lawful_basis": "legitimate_interests",
                "regions": ["simulation"],
                "contract": contract.digest,
                "expires": datetime.now(UTC).date() + timedelta(days=2),
                "trust": self.trust,
                "epsilon": float(self.epsilon),
                "delta": float(self.delta),
                "segments": {"k": _whole(self.n_clusters), "scale": "bounds", "seed": _whole(self.random_state or 0)},
                "shares": {"marginals": 7, "clustering": 93, "profiles": 0, "rfm": 0},
            },
            place="FederatedKMeans",
        )


def _whole(number: Any) -> Any:
    """NumPy's integers as Python's; anything else as it is, for the plan to refuse."""
    return operator.index(number) if isinstance(number, np.integer) else number


def _contract(low: NDArray[np.float64], high: NDArray[np.float64]) -> Contract:
    """A contract of plain numbers x0, x1, … within the bounds."""
    features = [
        {
            "name": f"x{index}",
            "table": "people",
            "kind": "numeric",
            "column": f"x{index}",
            "low": float(low[index]),
            "high": float(high[index]),
            "missing": float(low[index]),
            "block": "behaviour",
        }
        for index in range(len(low))
    ]
    return Contract.model_validate(
        {
            "schema": "cohortium.contract/1",
            "name": "matrix",
            "purposes": ["research"],
            "window": {"start": "2000-01-01", "end": "2000-01-02"},
            "tables": [{"name": "people", "kind": "customers", "customer": "row"}],
            "features": features,
        }
    )


def _split(rows: int, institutions: int | Sequence[Any] | None, seed: int | None) -> list[NDArray[np.intp]]:
    """Row numbers of every institution; none is empty."""
    if institutions is None:
        return [np.arange(rows)]
    if isinstance(institutions, (int, np.integer)):
        if not 1 <= institutions <= rows:
            raise ValueError(f"institutions must be from 1 to the number of rows, {rows}")
        return [np.sort(part) for part in np.array_split(np.random.default_rng(seed).permutation(rows), institutions)]
    labels = np.asarray(institutions)
    if labels.shape != (rows,):
        raise ValueError(f"institutions must have one label for each of the {rows} rows")
    missing = [label is None or label != label for label in labels.tolist()]
    if any(missing):
        raise ValueError(f"institutions must have one label for each row; {sum(missing)} are missing")
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _node(folder: Path, contract: Contract, plan: Plan, values: NDArray[np.float64], rows: NDArray[np.intp]) -> Node:
    """An institution whose lifetime budget is this one plan's, and which approved it."""
    identity = NodeIdentity(institution=folder.name, lifetime_epsilon=plan.epsilon, lifetime_delta=plan.delta)
    create_node(folder, identity, contract)
    columns = tuple(feature.name for feature in contract.training_features)
    node = open_node(folder, CustomerTable(columns, np.ascontiguousarray(values), rows))
    node.store.approve(plan, contract)
    return node


def _run(plan: Plan, contract: Contract, nodes: Sequence[Node]) -> Bundle:
    delivered: list[Bundle] = []
    order = StudyOrder(plan, contract, run=uuid4().hex, expected=len(nodes))
    server = make_server_app(order, delivered.append, lambda _asked: None)
    client = make_client_app(lambda context: nodes[int(context.node_config["partition-id"])])
    run_in_process(server, client, nodes=len(nodes))
    if len(delivered) != 1:
        raise Defect("the server app ended without a bundle")
    return delivered[0]


def _privacy_spent(spends: Sequence[Spend], delta: float, releases: int) -> PrivacySpent:
    most = max(spends, key=lambda spend: spend.mu2)
    counts = sorted({1, 2, 3, len(spends)} & set(range(1, len(spends) + 1)))
    return PrivacySpent(
        epsilon=epsilon_spent(most, delta),
        delta=delta,
        mu_squared=most.mu_squared,
        releases=releases,
        person_at={count: epsilon_spent(most.times(count), delta) for count in counts},
    )
