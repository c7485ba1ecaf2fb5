"""A scikit-learn style estimator that runs the federation's own apps on arrays."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from cohortium.models.assignment import nearest_centre, squared_distances
from cohortium.privacy.table import CustomerTable
from cohortium.simulations.local_federation import (
    LocalFederation,
    matrix_contract,
    plan_head,
    public_bounds,
    split_rows,
    whole,
)
from cohortium.study.bundle import Bundle
from cohortium.study.contract import Contract
from cohortium.study.errors import Defect
from cohortium.study.plan import Plan, Trust
from cohortium.study.plans import parse_plan

__all__ = ["FederatedKMeans"]


class FederatedKMeans(ClusterMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """k-means under customer-level differential privacy, by the very code that runs deployed.

    Every institution is a node with its own ledger and door; a coordinator adds up what they release. Noise comes from
    the operating system and cannot be seeded: two fits differ, by design.

    Args:
        n_clusters: number of clusters, 1 to 64.
        epsilon, delta: what fitting may cost one person at one institution; everything is charged to it.
        bounds: public (low, high), two numbers or two arrays of length n_features. They must not be computed from X.
            Values outside are clipped. Distances are Euclidean after the bounds are mapped to [-1, 1].
        trust: `distributed`: institutions share the noise in a secure sum; `local`: every institution adds all of it;
            `unsafe-none`: no noise, for comparisons. When left out, `distributed` from three institutions on, `local`
            below.
        min_institutions: with `distributed`, t: the least number of institutions in a sum; four fifths when left out.
        colluders: with `distributed`, c: how many institutions may collude without weakening the guarantee.
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
        trust: Trust | None = None,
        min_institutions: int | None = None,
        colluders: int = 1,
        random_state: int | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.epsilon = epsilon
        self.delta = delta
        self.bounds = bounds
        self.trust = trust
        self.min_institutions = min_institutions
        self.colluders = colluders
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
        low, high = public_bounds(self.bounds, values.shape[1], "FederatedKMeans")
        groups = split_rows(len(values), institutions, self.random_state)
        contract = matrix_contract(low, high)
        plan = self._plan(contract, len(groups))
        clipped = np.clip(values, low, high)
        names = tuple(feature.name for feature in contract.training_features)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cohortium-")))
            tables = [CustomerTable(names, np.ascontiguousarray(clipped[rows]), rows) for rows in groups]
            budget = {"epsilon": plan.epsilon, "delta": plan.delta}
            federation = LocalFederation(folder, contract, tables, **budget, stack=stack)
            released = federation.run(plan)
            if not isinstance(released, Bundle):
                raise Defect("a segmentation study released no bundle")
            self.bundle_ = released
            self.privacy_spent_ = federation.spent(plan.trust, plan.delta, len(released.releases))
        scaled_centres = np.array([segment.centre for segment in self.bundle_.segments])
        self._low, self._high = low, high
        self.cluster_centers_ = low + (scaled_centres + 1.0) / 2.0 * (high - low)
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

    def _plan(self, contract: Contract, institutions: int) -> Plan:
        head = plan_head("federated-k-means", contract, self.trust, institutions, self.min_institutions, self.colluders)
        return parse_plan(
            {
                **head,
                "epsilon": float(self.epsilon),
                "delta": float(self.delta),
                "segments": {"k": whole(self.n_clusters), "scale": "bounds", "seed": whole(self.random_state or 0)},
                "shares": {"marginals": 7, "clustering": 93, "profiles": 0, "rfm": 0},
            },
            place="FederatedKMeans",
        )
