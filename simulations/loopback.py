"""A real federation on one machine: a coordinator and institutions as processes of their own, over mutual TLS.

Tests and benchmarks set it up as the commands do, start and kill its processes, and see whether any is left behind.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

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
from cohortium.server.studies import Studies, StudyRun
from cohortium.simulations.governed import SimulatedGovernance
from cohortium.simulations.sources import CustomerData
from cohortium.study.charter import load_charter
from cohortium.study.contract import Contract
from cohortium.study.enrolment import coordinator_fingerprint
from cohortium.study.errors import CohortiumError, OutputError
from cohortium.study.keys import read_identity_file
from cohortium.study.plan import Plan
from cohortium.study.software import installed_software

__all__ = ["PASSWORD", "Deployment", "Process", "free_port", "processes_of", "wait_until"]

PASSWORD = "loopback words for tests only"
"""Of every key."""

_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}
_Found = TypeVar("_Found")


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_until(holds: Callable[[], _Found], seconds: float = 60.0, what: str = "it") -> _Found:
    """What `holds` returns once that is true; `OutputError` after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise OutputError(f"waited {seconds:g} s for {what}", place="loopback", fix="the processes' logs say more")
        time.sleep(0.05)
    return found


def processes_of(folder: Path) -> list[int]:
    """Processes that name a folder in their command or environment and live; this one is not among them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                told = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if str(folder).encode() in told and not zombie:
                found.append(int(entry.name))
    return found


@dataclass
class Process:
    """A process of the federation, in a session of its own.

    Args:
        process: started.
        log: where it writes.
        begins: where in the log this life of it begins.
    """

    process: subprocess.Popen[bytes]
    log: Path
    begins: int = 0

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def lines(self) -> list[dict[str, Any]]:
        """What it logged."""
        text = self.log.read_bytes()[self.begins :].decode(errors="replace")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]

    def said(self, message: str) -> dict[str, Any] | None:
        """The first line with that message."""
        return next((line for line in self.lines() if line["message"] == message), None)

    def kill(self) -> None:
        """SIGKILL, and nothing else: what it started is left alone."""
        self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = 30.0) -> int:
        """SIGTERM; the code with which it ended. `TimeoutExpired` when it did not."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@dataclass
class Deployment:
    """A federation in a folder, and the processes that were started of it.

    Args:
        root: empty folder; everything is in it.
        port: of the coordinator's gate.
        health: of its health page.
    """

    root: Path
    port: int = field(default_factory=free_port)
    health: int = field(default_factory=free_port)
    contract: Contract | None = None
    running: list[Process] = field(default_factory=list)

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.root / "coordinator"

    def node(self, name: str) -> Path:
        """The folder of an institution's node."""
        return self.root / "nodes" / name

    @property
    def studies(self) -> Studies:
        """The coordinator's."""
        return Studies(self.coordinator)

    @property
    def password_file(self) -> Path:
        """With the password of every key."""
        return self.root / "password"

    @property
    def institutions(self) -> list[str]:
        """Their names, in order."""
        return sorted(path.name for path in (self.root / "nodes").iterdir())

    def found(self, contract: Contract, data: CustomerData, regions: Mapping[Any, str], epsilon: float = 3.0) -> None:
        """Set everything up, as the commands do: keys, enrolments, customers, rules and consents.

        Args:
            contract: of the customers' tables.
            data: the customers.
            regions: of the institutions, in the order of the data's.
            epsilon: every institution's lifetime budget.
        """
        now = datetime.now(UTC)
        self.contract = contract
        self.password_file.write_text(PASSWORD)
        identity = found_federation(self.coordinator, "loopback", f"127.0.0.1:{self.port}", PASSWORD, now)
        create_accounts(self.coordinator)
        tables = data.tables(contract, self.root / "tables")
        for name, region in zip(tables, regions.values(), strict=True):
            founded = NodeIdentity(institution=name, lifetime_epsilon=epsilon, lifetime_delta=1e-6)
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

    def propose(self, plan: Plan) -> str:
        """Propose a plan; the digest it has then."""
        key = read_identity_file(self.coordinator / "identity.pem", PASSWORD)
        charter = load_charter(self.coordinator / "charter.json")
        if self.contract is None:
            raise OutputError("was not set up", place=str(self.root), fix="call found first")
        return self.studies.propose(plan, self.contract, charter, None, installed_software(), key).plan.digest

    def approve(self, plan: str, *names: str) -> None:
        """Have institutions approve, all by default; the proposal is handed over by hand."""
        data = self.studies.signed(plan)
        for name in names or self.institutions:
            add_proposal(self.node(name), data)
            approve(self.node(name), plan, "tester", read_key(self.node(name), PASSWORD))

    def start(self, *command: str, name: str, folder: Path | None = None) -> Process:
        """Start a program of this interpreter in a folder; what it prints is appended to NAME.log."""
        log = self.root / f"{name}.log"
        begins = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, **_ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                cwd=folder,
            )
        self.running.append(Process(process, log, begins))
        return self.running[-1]

    def start_coordinator(self, wave: float = 30.0, gather: float = 30.0) -> Process:
        """Start the coordinator, and wait until it listens; `wave` and `gather` are its time-outs in seconds."""
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
        wait_until(lambda: found.said("listening") or not found.running, 90, "the coordinator")
        if not found.running:
            raise OutputError("the coordinator ended", place=str(found.log), fix="its last lines say why")
        return found

    def start_node(self, name: str, entry: Path | None = None, *arguments: str) -> Process:
        """Start a node: by `cohortium node start`, or by an entry for tests as `ENTRY FOLDER PASSWORD_FILE ...`."""
        folder, password = str(self.node(name)), str(self.password_file)
        if entry is not None:
            return self.start(str(entry), folder, password, *arguments, name=name)
        words = ["node", "start", folder, "--health-port", "0", "--password-file", password]
        return self.start("-m", "cohortium.cli", *words, name=name)

    def run(self, plan: str) -> str:
        """Begin the run of a plan once everybody's approval has been delivered; its number."""
        missing = len(self.institutions)
        wait_until(lambda: len(self.studies.approvals(plan)) == missing, 60, "the approvals")
        return self._started(plan, self.studies.begin)

    def resume(self, plan: str) -> str:
        """Let a run go on that was stopped or has failed; its number."""
        return self._started(plan, self.studies.resume)

    def _started(self, plan: str, begin: Callable[[str], StudyRun]) -> str:
        with closing(connect(self.coordinator)) as control:
            run = begin(plan)
            try:
                self.studies.started(plan, control.start(plan, run.run))
            except CohortiumError as error:
                self.studies.note(plan, "failed", str(error))
                raise
        return run.run

    def ended(self, plan: str, seconds: float = 240.0) -> str:
        """The state in which the run ended."""

        def state() -> str | None:
            run = self.studies.run(plan)
            return None if run is None or run.state == "running" else run.state

        return str(wait_until(state, seconds, "the run's end"))

    def healthy(self) -> dict[str, Any]:
        """What the coordinator's health page says."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/healthz", timeout=5) as answer:
            return dict(json.load(answer))

    def close(self) -> None:
        """End every process that was started."""
        for one in self.running:
            if one.running:
                one.process.send_signal(signal.SIGTERM)
        for one in self.running:
            try:
                one.process.wait(20)
            except subprocess.TimeoutExpired:
                one.kill()
