"""Federations of one process for estimators: arrays split into institutions, nodes, a coordinator, what it all cost."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import ArrayLike, NDArray

from cohortium.client.app import make_client_app
from cohortium.client.node import Node, NodeIdentity, create_node, identity_key, open_node
from cohortium.client.witnessing import LOG_FILE
from cohortium.governance.log import AuditLog, Ed25519Signer, log_origin
from cohortium.privacy.accounting import Spend, epsilon_spent, person_at
from cohortium.privacy.ledger import open_store
from cohortium.privacy.randomness import fresh_key
from cohortium.privacy.secure_sum import SqlOnceStore, usual_contributions
from cohortium.privacy.sharing import NoiseShare
from cohortium.privacy.table import CustomerTable
from cohortium.server.app import StudyOrder, make_server_app
from cohortium.server.study_run import Released, run_study
from cohortium.simulations.grid import run_in_process
from cohortium.simulations.unsafe import PlainSums
from cohortium.study.charter import CHARTER_SCHEMA, SIMULATION, parse_charter
from cohortium.study.contract import Contract
from cohortium.study.errors import Defect, PlanError
from cohortium.study.model import EncoderModel, Model
from cohortium.study.plan import MAX_EPSILON, Plan, Trust

__all__ = ["LocalFederation", "PrivacySpent", "matrix_contract", "plan_head", "public_bounds", "split_rows", "whole"]

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


class LocalFederation:
    """Institutions in a folder, each with a node and a ledger, and one charter for all of them.

    Args:
        folder: private and temporary; everything is in it.
        contract: of the tables.
        tables: one per institution.
        protected: for audits, the protected features of each, people in the same order.
        epsilon, delta: lifetime budget of every institution, and the charter's largest epsilon.
        stack: closes the nodes.
    """

    def __init__(
        self,
        folder: Path,
        contract: Contract,
        tables: Sequence[CustomerTable],
        protected: Sequence[CustomerTable] = (),
        /,
        *,
        epsilon: float,
        delta: float,
        stack: ExitStack,
    ) -> None:
        self._folder, self._contract, self._stack = folder, contract, stack
        self._tables = tuple(tables)
        members, self.nodes = [], []
        for index, table in enumerate(tables):
            name = f"institution {index}"
            identity = NodeIdentity(institution=name, lifetime_epsilon=epsilon, lifetime_delta=delta, simulation=True)
            create_node(folder / str(index), identity, contract)
            self.nodes.append(_opened(folder / str(index), table, protected[index] if protected else None))
            stack.callback(self.nodes[-1].close)
            members.append({"name": name, "region": SIMULATION, "identity": identity_key(folder / str(index))})
        key = Ed25519PrivateKey.from_private_bytes(fresh_key())
        origin = log_origin(SIMULATION)
        database = open_store(folder / LOG_FILE)
        stack.callback(database.dispose)
        self._log = AuditLog(database, origin, Ed25519Signer(origin, key))
        self.charter = parse_charter(
            {
                "schema": CHARTER_SCHEMA,
                "name": SIMULATION,
                "institutions": members,
                "coordinator": key.public_key().public_bytes_raw().hex(),
                "min_customers": 1,
                "max_epsilon": max(epsilon, MAX_EPSILON),
            }
        )

    def run(self, plan: Plan, base: Model[EncoderModel] | None = None) -> Released:
        """Have every institution approve a plan, and run it by the apps that run deployed.

        A plan without noise (`unsafe-none`) meets no node: its sums are added up in the clear.
        """
        if plan.trust == "unsafe-none":
            plain = PlainSums([node.asked_about.of(plan) for node in self.nodes])
            return run_study(plan, self._contract, uuid4().hex, plain, lambda _asked: None, base)
        for node in self.nodes:
            node.store.approve(plan, self._contract, self.charter)
        delivered: list[Released] = []
        order = StudyOrder(plan, self._contract, self.charter, run=uuid4().hex, expected=len(self.nodes), base=base)
        database = open_store(self._folder / f"{order.run}.sqlite")
        self._stack.callback(database.dispose)
        server = make_server_app(order, SqlOnceStore(database), self._log, delivered.append, lambda _asked: None)
        client = make_client_app(lambda context: self.nodes[int(context.node_config["partition-id"])])
        run_in_process(server, client, nodes=len(self.nodes))
        if len(delivered) != 1:
            raise Defect("the server app ended without a result")
        return delivered[0]

    def spent(self, trust: Trust, delta: float, releases: int) -> PrivacySpent:
        """What everything that ran cost."""
        spends = [node.ledger.spent_by_trust() for node in self.nodes]
        return _privacy_spent(spends, len(self.nodes), trust, delta, releases)


def _opened(folder: Path, table: CustomerTable, protected: CustomerTable | None) -> Node:
    return open_node(folder, table) if protected is None else open_node(folder, table, protected=lambda: protected)


def public_bounds(
    bounds: tuple[ArrayLike, ArrayLike] | None, features: int, place: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two arrays of length `features`; `PlanError` when bounds are missing, not finite or do not ascend."""
    if bounds is None:
        raise PlanError("no bounds", place=place, fix="state public bounds=(low, high), not computed from X")
    try:
        low, high = (np.broadcast_to(np.asarray(end, dtype=np.float64), (features,)).copy() for end in bounds)
    except (TypeError, ValueError):
        low = high = np.zeros(features)
    if not (np.abs([low, high]) < _MAX_BOUND).all() or (low >= high).any():
        raise PlanError("bounds must be finite and ascend", place=place, fix="give bounds=(low, high)")
    return low, high


def plan_head(
    name: str, contract: Contract, trust: Trust | None, institutions: int, least: int | None, colluders: int
) -> dict[str, Any]:
    """What every estimator's plan says: trust `distributed` from three institutions on when none is given."""
    trust = trust if trust is not None else ("distributed" if institutions >= 3 else "local")
    if least is None and trust == "distributed":
        least = usual_contributions(institutions, colluders)
    return {
        "schema": "cohortium.plan/1",
        "name": name,
        "purpose": contract.purposes[0],
        "lawful_basis": "legitimate_interests",
        "regions": ["simulation"],
        "contract": contract.digest,
        "expires": datetime.now(UTC).date() + timedelta(days=2),
        "trust": trust,
        "min_institutions": whole(1 if least is None else least),
        "colluders": whole(colluders),
    }


def whole(number: Any) -> Any:
    """NumPy's integers as Python's; anything else as it is, for the plan to refuse."""
    return operator.index(number) if isinstance(number, np.integer) else number


def matrix_contract(low: NDArray[np.float64], high: NDArray[np.float64]) -> Contract:
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


def split_rows(rows: int, institutions: int | Sequence[Any] | None, seed: int | None) -> list[NDArray[np.intp]]:
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


def _privacy_spent(
    spends: Sequence[Mapping[NoiseShare, Spend]], institutions: int, trust: Trust, delta: float, releases: int
) -> PrivacySpent:
    counts = sorted({1, 2, 3, institutions} & set(range(1, institutions + 1)))
    if trust == "unsafe-none":
        return PrivacySpent(math.inf, delta, math.inf, releases, dict.fromkeys(counts, math.inf))
    local, shared = (
        max(
            (spend for by_trust in spends for share, spend in by_trust.items() if share.is_shared == wanted),
            default=Spend(),
            key=lambda s: s.mu2,
        )
        for wanted in (False, True)
    )
    return PrivacySpent(
        epsilon=epsilon_spent(person_at(local, shared, 1), delta),
        delta=delta,
        mu_squared=person_at(local, shared, 1).mu_squared,
        releases=releases,
        person_at={count: epsilon_spent(person_at(local, shared, count), delta) for count in counts},
    )
