"""A scikit-learn style estimator that runs the federation's own apps on arrays."""

from __future__ import annotations

import math
import operator
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from cohortium.client.app import make_client_app
from cohortium.client.node import Node, NodeIdentity, create_node, identity_key, open_node
from cohortium.models.assignment import nearest_centre, squared_distances
from cohortium.privacy.accounting import Spend, epsilon_spent, person_at
from cohortium.privacy.ledger import open_store
from cohortium.privacy.secure_sum import SqlOnceStore, usual_contributions
from cohortium.privacy.sharing import NoiseShare
from cohortium.privacy.table import CustomerTable
from cohortium.server.app import StudyOrder, make_server_app
from cohortium.server.study_run import run_study
from cohortium.simulations.grid import run_in_process
from cohortium.simulations.unsafe import PlainSums
from cohortium.study.bundle import Bundle
from cohortium.study.charter import CHARTER_SCHEMA, SIMULATION, Charter, parse_charter
from cohortium.study.contract import Contract
from cohortium.study.errors import Defect, PlanError
from cohortium.study.plan import MAX_EPSILON, Plan, Trust, parse_plan

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
        low, high = self._public_bounds(values.shape[1])
        groups = _split(len(values), institutions, self.random_state)
        contract = _contract(low, high)
        plan = self._plan(contract, len(groups))
        clipped = np.clip(values, low, high)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cohortium-")))
            tables = [CustomerTable(_columns(contract), np.ascontiguousarray(clipped[rows]), rows) for rows in groups]
            if plan.trust == "unsafe-none":
                self.bundle_ = run_study(plan, contract, uuid4().hex, PlainSums(tables), lambda _asked: None)
                spends = []
            else:
                nodes, charter = _federation(folder, contract, plan, tables, stack)
                self.bundle_ = _run(plan, contract, charter, nodes, folder, stack)
                spends = [node.ledger.spent_by_trust() for node in nodes]
        scaled_centres = np.array([segment.centre for segment in self.bundle_.segments])
        self._low, self._high = low, high
        self.cluster_centers_ = low + (scaled_centres + 1.0) / 2.0 * (high - low)
        self.privacy_spent_ = _privacy_spent(spends, len(groups), plan, len(self.bundle_.releases))
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

    def _plan(self, contract: Contract, institutions: int) -> Plan:
        trust = self.trust if self.trust is not None else ("distributed" if institutions >= 3 else "local")
        least = self.min_institutions
        if least is None and trust == "distributed":
            least = usual_contributions(institutions, self.colluders)
        return parse_plan(
            {
                "schema": "cohortium.plan/1",
                "name": "federated-k-means",
                "purpose": "research",
                "lawful_basis": "legitimate_interests",
                "regions": ["simulation"],
                "contract": contract.digest,
                "expires": datetime.now(UTC).date() + timedelta(days=2),
                "trust": trust,
                "min_institutions": _whole(1 if least is None else least),
                "colluders": _whole(self.colluders),
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


def _columns(contract: Contract) -> tuple[str, ...]:
    return tuple(feature.name for feature in contract.training_features)


def _federation(
    folder: Path, contract: Contract, plan: Plan, tables: Sequence[CustomerTable], stack: ExitStack
) -> tuple[list[Node], Charter]:
    """Institutions whose lifetime budget is this one plan's and which approved it, and their charter."""
    members, nodes = [], []
    for index, table in enumerate(tables):
        name = f"institution {index}"
        identity = NodeIdentity(institution=name, lifetime_epsilon=plan.epsilon, lifetime_delta=plan.delta)
        create_node(folder / str(index), identity, contract)
        nodes.append(open_node(folder / str(index), table))
        stack.callback(nodes[-1].close)
        members.append({"name": name, "region": SIMULATION, "identity": identity_key(folder / str(index))})
    charter = parse_charter(
        {
            "schema": CHARTER_SCHEMA,
            "name": plan.name,
            "institutions": members,
            "min_customers": 1,
            "max_epsilon": max(plan.epsilon, MAX_EPSILON),
        }
    )
    for node in nodes:
        node.store.approve(plan, contract, charter)
    return nodes, charter


def _run(
    plan: Plan, contract: Contract, charter: Charter, nodes: Sequence[Node], folder: Path, stack: ExitStack
) -> Bundle:
    delivered: list[Bundle] = []
    order = StudyOrder(plan, contract, charter, run=uuid4().hex, expected=len(nodes))
    database = open_store(folder / "coordinator.sqlite")
    stack.callback(database.dispose)
    server = make_server_app(order, SqlOnceStore(database), delivered.append, lambda _asked: None)
    client = make_client_app(lambda context: nodes[int(context.node_config["partition-id"])])
    run_in_process(server, client, nodes=len(nodes))
    if len(delivered) != 1:
        raise Defect("the server app ended without a bundle")
    return delivered[0]


def _privacy_spent(
    spends: Sequence[Mapping[NoiseShare, Spend]], institutions: int, plan: Plan, releases: int
) -> PrivacySpent:
    counts = sorted({1, 2, 3, institutions} & set(range(1, institutions + 1)))
    if plan.trust == "unsafe-none":
        return PrivacySpent(math.inf, plan.delta, math.inf, releases, dict.fromkeys(counts, math.inf))
    local, shared = (
        max(
            (spend for by_trust in spends for share, spend in by_trust.items() if share.is_shared == wanted),
            default=Spend(),
            key=lambda s: s.mu2,
        )
        for wanted in (False, True)
    )
    return PrivacySpent(
        epsilon=epsilon_spent(person_at(local, shared, 1), plan.delta),
        delta=plan.delta,
        mu_squared=person_at(local, shared, 1).mu_squared,
        releases=releases,
        person_at={count: epsilon_spent(person_at(local, shared, count), plan.delta) for count in counts},
    )
