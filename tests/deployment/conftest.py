"""A real federation on loopback for one test, and its run in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cohortium.client.app import make_client_app
from cohortium.client.node import open_node
from cohortium.client.onboarding import load_customer_table
from cohortium.governance.log import AuditLog, Ed25519Signer, log_origin
from cohortium.privacy.ledger import open_store
from cohortium.privacy.randomness import BitSource
from cohortium.privacy.secure_sum import SqlOnceStore
from cohortium.server.app import StudyOrder, make_server_app
from cohortium.simulations.grid import run_in_process
from cohortium.simulations.loopback import PASSWORD, Deployment
from cohortium.study.keys import read_identity_file


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def run_here() -> Callable[..., bytes]:
    """What the apps of a deployment release from its folders in this process."""

    def run(at: Deployment, plan: str, run: str, noise: Callable[[int], BitSource | None] = lambda _: None) -> bytes:
        """`noise` gives the source of each node's noise, by the node's place; the operating system's by default."""
        proposal, delivered = at.studies.proposal(plan), list[Any]()
        origin = log_origin(proposal.charter.name)
        signer = Ed25519Signer(origin, read_identity_file(at.coordinator / "identity.pem", PASSWORD))
        with ExitStack() as stack:
            nodes = []
            for place, name in enumerate(at.institutions):
                people = load_customer_table(at.node(name) / "customers", proposal.contract)
                nodes.append(open_node(at.node(name), people, noise(place), password=PASSWORD))
                stack.callback(nodes[-1].close)
            stores = [open_store(at.coordinator / f"{name}.sqlite") for name in ("log", "coordinator")]
            for store in stores:
                stack.callback(store.dispose)
            log, journal = AuditLog(stores[0], origin, signer), SqlOnceStore(stores[1])
            order = StudyOrder(proposal.plan, proposal.contract, proposal.charter, run=run, expected=len(nodes))
            server = make_server_app(order, journal, log, delivered.append, lambda _asked: None)
            client = make_client_app(lambda context: nodes[int(context.node_config["partition-id"])])
            run_in_process(server, client, nodes=len(nodes))
        return bytes(delivered[0].to_bytes())

    return run
