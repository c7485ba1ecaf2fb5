"""A real federation on loopback: a coordinator and institutions as processes of their own, over mutual TLS."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cohortium.client.approving import approve
from cohortium.client.governing import GOVERNANCE_FILE
from cohortium.client.joining import found_node, join
from cohortium.client.node import NodeIdentity, read_key
from cohortium.client.onboarding import load_customer_table, onboard
from cohortium.client.proposals import add_proposal
from cohortium.governance.access import create_accounts
from cohortium.server.control import connect
from cohortium.server.founding import found_federation
from cohortium.server.members import enrol
from cohortium.server.studies import Studies
from cohortium.simulations.governed import SimulatedGovernance
from cohortium.simulations.sources import CustomerData
from cohortium.study.charter import load_charter
from cohortium.study.contract import Contract
from cohortium.study.enrolment import coordinator_fingerprint
from cohortium.study.keys import read_identity_file
from cohortium.study.plan import Plan
from cohortium.study.software import installed_software

PASSWORD = "loopback words for tests only"
SEEDED = Path(__file__).with_name("seeded_node.py")
ENVIRONMENT = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
Wait = Callable[..., Any]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_until(holds: Callable[[], Any], seconds: float = 60.0, what: str = "it") -> Any:
    """What `holds` returns once that is true; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.05)
    return found


@dataclass
class Process:
    """A process of the federation, in a session of its own: a test sees whether it leaves anything behind."""

    process: subprocess.Popen[bytes]
    log: Path

    def lines(self) -> list[dict[str, Any]]:
        """What it logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def said(self, message: str) -> dict[str, Any] | None:
        return next((line for line in self.lines() if line["message"] == message), None)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = 30.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@dataclass
class Deployment:
    """A federation in a folder, and the processes that were started of it."""

    root: Path
    port: int = field(default_factory=free_port)
    health: int = field(default_factory=free_port)
    contract: Contract | None = None
    running: list[Process] = field(default_factory=list)

    @property
    def coordinator(self) -> Path:
        return self.root / "coordinator"

    def node(self, name: str) -> Path:
        return self.root / "nodes" / name

    @property
    def studies(self) -> Studies:
        return Studies(self.coordinator)

    @property
    def password_file(self) -> Path:
        return self.root / "password"

    def found(self, contract: Contract, data: CustomerData, regions: Mapping[str, str]) -> None:
        """Set everything up, as the commands do: keys, enrolments, customers, rules and consents."""
        now = datetime.now(UTC)
        self.contract = contract
        self.password_file.write_text(PASSWORD)
        identity = found_federation(self.coordinator, "loopback", f"127.0.0.1:{self.port}", PASSWORD, now)
        create_accounts(self.coordinator)
        tables = data.tables(contract, self.root / "tables")
        for name, region in zip(tables, regions.values(), strict=True):
            founded = NodeIdentity(institution=name, lifetime_delta=1e-6)
            folder = self.node(name)
            folder.parent.mkdir(exist_ok=True, mode=0o700)
            asked = found_node(folder, founded, contract, PASSWORD, federation="loopback", region=region)
            create_accounts(folder)
            answer = enrol(self.coordinator, PASSWORD, asked, asked.fingerprint, now).enrolment
            fingerprint = coordinator_fingerprint("loopback", identity.identity, answer.authority)
            join(folder, answer, fingerprint, PASSWORD)
            onboard(contract, tables[name], folder / "customers")
            people = load_customer_table(folder / "customers", contract)
            (folder / GOVERNANCE_FILE).unlink()  # no question is answered in it
            SimulatedGovernance(regions=(region,)).prepare(folder, 0, people.keys.tolist())

    @property
    def institutions(self) -> list[str]:
        return sorted(path.name for path in (self.root / "nodes").iterdir())

    def propose(self, plan: Plan) -> str:
        """Propose a plan; the digest it has then."""
        key = read_identity_file(self.coordinator / "identity.pem", PASSWORD)
        charter = load_charter(self.coordinator / "charter.json")
        assert self.contract is not None
        return self.studies.propose(plan, self.contract, charter, None, installed_software(), key).plan.digest

    def approve(self, plan: str, *names: str) -> None:
        """Have institutions approve; the files are handed over by hand."""
        data = (self.coordinator / "studies" / plan[7:] / "proposal.json").read_bytes()
        for name in names or self.institutions:
            add_proposal(self.node(name), data)
            approval = approve(self.node(name), plan, "tester", read_key(self.node(name), PASSWORD))
            assert approval.institution == name

    def start(self, *command: str, name: str) -> Process:
        log = self.root / f"{name}.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.running.append(Process(process, log))
        return self.running[-1]

    def start_coordinator(self, wave: float = 30.0, gather: float = 30.0) -> Process:
        options = {
            "--listen": f"127.0.0.1:{self.port}",
            "--health-port": str(self.health),
            "--wave-timeout": str(wave),
            "--gather-timeout": str(gather),
            "--password-file": str(self.password_file),
        }
        words = [word for pair in options.items() for word in pair]
        found = self.start(
            "-m", "cohortium.cli", "coordinator", "start", str(self.coordinator), *words, name="coordinator"
        )
        wait_until(lambda: found.said("listening") or found.process.poll() is not None, 90, "the coordinator")
        assert found.process.poll() is None, found.log.read_text()[-2000:]
        return found

    def start_node(self, name: str, seed: int | None = None) -> Process:
        folder, password = str(self.node(name)), str(self.password_file)
        if seed is not None:
            return self.start(str(SEEDED), folder, str(seed), password, name=name)
        words = ["node", "start", folder, "--health-port", "0", "--password-file", password]
        return self.start("-m", "cohortium.cli", *words, name=name)

    def run(self, plan: str) -> str:
        """Begin the run of a plan once everybody's approval has been delivered; its number."""
        missing = len(self.institutions)
        wait_until(lambda: len(self.studies.approvals(plan)) == missing, 60, "the approvals")
        run = self.studies.begin(plan)
        with closing(connect(self.coordinator)) as control:
            self.studies.started(plan, control.start(plan, run.run))
        return run.run

    def ended(self, plan: str, seconds: float = 240.0) -> str:
        """The state in which the run ended."""

        def state() -> str | None:
            run = self.studies.run(plan)
            return None if run is None or run.state == "running" else run.state

        return str(wait_until(state, seconds, "the run's end"))

    def healthy(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/healthz", timeout=5) as answer:
            return dict(json.load(answer))

    def close(self) -> None:
        for one in self.running:
            if one.process.poll() is None:
                one.process.send_signal(signal.SIGTERM)
        for one in self.running:
            try:
                one.process.wait(20)
            except subprocess.TimeoutExpired:
                one.kill()


@pytest.fixture(scope="session")
def wait() -> Wait:
    return wait_until


@pytest.fixture(scope="session")
def make_deployment() -> type[Deployment]:
    return Deployment


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path)
    yield made
    made.close()
