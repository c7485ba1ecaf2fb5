"""A coordinator and five institutions, each a process, run the Ta-Feng study and release what one process does."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cohortium.client.app import make_client_app
from cohortium.client.node import open_node
from cohortium.client.onboarding import load_customer_table
from cohortium.governance.log import AuditLog, Ed25519Signer, log_origin
from cohortium.privacy.ledger import open_store
from cohortium.privacy.secure_sum import SqlOnceStore
from cohortium.server.app import StudyOrder, make_server_app
from cohortium.simulations import datasets
from cohortium.simulations.grid import run_in_process
from cohortium.simulations.loopback import PASSWORD
from cohortium.simulations.sources import public_data
from cohortium.study.contract import Contract
from cohortium.study.keys import read_identity_file
from cohortium.study.plans import parse_plan

SEEDED = Path(__file__).with_name("seeded_node.py")
REGIONS = dict.fromkeys(range(5), "EU")


def ta_feng_plan(contract: Contract) -> Any:
    return parse_plan(
        {
            "schema": "cohortium.plan/1",
            "study": "segments",
            "name": "loopback-segments",
            "purpose": "CustomerSegmentation",
            "lawful_basis": "consent",
            "regions": ["EU"],
            "contract": contract.digest,
            "expires": "2099-12-31",
            "trust": "distributed",
            "epsilon": 2.0,
            "delta": 1e-6,
            "min_institutions": 4,
            "colluders": 1,
            "min_cell": 100,
            "max_attempts": 2,
            "segments": {"k": [5, 8]},
            "shares": {"marginals": 15, "clustering": 60, "profiles": 20, "rfm": 5},
        }
    )


@pytest.mark.online
@pytest.mark.slow
def test_five_institutions_and_a_coordinator_release_what_one_process_releases(
    deployment: Any, seeded_bits: Any, tmp_path: Path
) -> None:
    if reason := datasets.unavailable_reason("ta-feng"):
        pytest.skip(reason)
    contract = datasets.load_packaged_contract("ta-feng")
    deployment.found(contract, public_data("ta-feng", "5", contract, lambda _line: None), REGIONS)
    plan = deployment.propose(ta_feng_plan(contract))
    deployment.approve(plan)
    for part in ("nodes", "coordinator"):
        shutil.copytree(deployment.root / part, tmp_path / "twin" / part)
    started = deployment.start_coordinator()
    nodes = [deployment.start_node(name, SEEDED, str(seed)) for seed, name in enumerate(deployment.institutions)]
    run = deployment.run(plan)
    assert deployment.ended(plan) == "released", (deployment.coordinator / "flower" / "superlink.log").read_text()[
        -3000:
    ]
    ((name, released),) = deployment.studies.released(plan)
    assert name == "bundle.json"
    assert [node.stop() for node in nodes] == [0] * 5
    assert started.stop() == 0
    proposal, names = deployment.studies.proposal(plan), deployment.institutions
    assert released == in_one_process(tmp_path / "twin", proposal, run, names, seeded_bits)


def in_one_process(root: Path, proposal: Any, run: str, names: list[str], seeded_bits: Any) -> bytes:
    """What the same apps release from the same folders, in this process, with the same noise."""
    key = read_identity_file(root / "coordinator" / "identity.pem", PASSWORD)
    origin, delivered = log_origin(proposal.charter.name), []
    with ExitStack() as stack:
        nodes = []
        for seed, name in enumerate(names):
            people = load_customer_table(root / "nodes" / name / "customers", proposal.contract)
            nodes.append(open_node(root / "nodes" / name, people, seeded_bits(seed), password=PASSWORD))
            stack.callback(nodes[-1].close)
        log = AuditLog(open_store(root / "coordinator" / "log.sqlite"), origin, Ed25519Signer(origin, key))
        order = StudyOrder(proposal.plan, proposal.contract, proposal.charter, run=run, expected=len(nodes))
        store = SqlOnceStore(open_store(root / "coordinator" / "coordinator.sqlite"))
        server = make_server_app(order, store, log, delivered.append, lambda _asked: None)
        client = make_client_app(lambda context: nodes[int(context.node_config["partition-id"])])
        run_in_process(server, client, nodes=len(nodes))
    return bytes(delivered[0].to_bytes())
