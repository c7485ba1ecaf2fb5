"""A deployed federation of many institutions on one machine, measured.

make bench TARGET=deployment ARGS="[--institutions 32] [--folder F] [--json OUT]"

A coordinator and the institutions, each a process group of its own, talk over mutual TLS on loopback, every institution
through a relay that counts bytes; Ta-Feng's customers are dealt out among them. A clustering study with profiles and
RFM segments runs to its end.

- *idle*: proportional set size of a node's process and of the coordinator's processes (smaps_rollup, Pss); the share of
  a processor that the coordinator takes while nobody is asked anything;
- *study*: seconds from the run's start to its release; waves (messages that a node answered); processor seconds of the
  coordinator and its SuperLink, the run's own process apart; bytes on the wire for one node and wave, TLS and
  heartbeats included.

Exits with 1 when the study does not release its sums.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from relay import Network, Relay

from cohortium.simulations import datasets
from cohortium.simulations.loopback import Deployment, processes_of, wait_until
from cohortium.simulations.sources import public_data
from cohortium.study.contract import Contract
from cohortium.study.plans import Plan, parse_plan

_TICKS = os.sysconf("SC_CLK_TCK")
_IDLE_SECONDS, _START_SECONDS, _RUN_SECONDS = 20.0, 600.0, 3600.0


def plan_of(contract: Contract, institutions: int) -> Plan:
    """A clustering study that three of four institutions carry."""
    return parse_plan(
        {
            "schema": "cohortium.plan/1",
            "study": "segments",
            "name": "deployment",
            "purpose": "CustomerSegmentation",
            "lawful_basis": "consent",
            "regions": ["EU"],
            "contract": contract.digest,
            "expires": "2099-12-31",
            "trust": "distributed",
            "epsilon": 2.0,
            "delta": 1e-6,
            "min_institutions": max(institutions * 3 // 4, 3),
            "colluders": 1,
            "min_cell": 100,
            "max_attempts": 2,
            "segments": {"k": [5, 8]},
            "shares": {"marginals": 15, "clustering": 60, "profiles": 20, "rfm": 5},
        }
    )


def processor_seconds(pids: list[int]) -> float:
    """Of processes that live, their own time."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def megabytes(pids: list[int]) -> float:
    """Proportional set size of processes."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def measure(folder: Path, institutions: int) -> dict[str, Any]:
    """Set a federation up, run the study, and end every process; the figures."""
    contract = datasets.load_packaged_contract("ta-feng")
    deployment, network = Deployment(folder), Network()
    clock = time.monotonic()
    data = public_data("ta-feng", str(institutions), contract, say)
    deployment.found(contract, data, dict.fromkeys(range(institutions), "EU"))
    plan = deployment.propose(plan_of(contract, institutions))
    deployment.approve(plan)
    found: dict[str, Any] = {"institutions": institutions, "setup_seconds": time.monotonic() - clock}
    say(f"set up {institutions} institutions in {found['setup_seconds']:.0f} s")
    relays = {name: Relay(network, deployment.port) for name in deployment.institutions}
    for name, relay in relays.items():
        link = deployment.node(name) / "link.json"
        link.write_text(json.dumps({**json.loads(link.read_text()), "address": f"127.0.0.1:{relay.port}"}))
    try:
        coordinator = deployment.start_coordinator(wave=600, gather=600)
        clock = time.monotonic()
        nodes = {name: deployment.start_node(name) for name in deployment.institutions}
        wait_until(lambda: len(deployment.studies.approvals(plan)) == institutions, _START_SECONDS, "the approvals")
        found["start_seconds"] = time.monotonic() - clock
        say(f"all of them are connected after {found['start_seconds']:.0f} s")
        centre = processes_of(deployment.coordinator)
        before, clock = processor_seconds(centre), time.monotonic()
        time.sleep(_IDLE_SECONDS)  # what is measured is that nothing happens
        found["idle_processor_share"] = (processor_seconds(centre) - before) / (time.monotonic() - clock)
        found["idle_node_megabytes"] = statistics.mean(megabytes([one.process.pid]) for one in nodes.values())
        found["idle_coordinator_megabytes"] = megabytes(centre)
        passed = sum(relay.passed for relay in relays.values())
        before, clock = processor_seconds(centre), time.monotonic()
        deployment.run(plan)
        found["ended"] = deployment.ended(plan, _RUN_SECONDS)
        found["study_seconds"] = time.monotonic() - clock
        found["study_processor_seconds"] = processor_seconds(centre) - before
        answered = [sum(line["message"] == "answered" for line in one.lines()) for one in nodes.values()]
        found["questions"] = len(deployment.studies.progress(plan))
        found["waves"] = max(answered)
        found["node_wave_bytes"] = (sum(relay.passed for relay in relays.values()) - passed) / sum(answered)
        found["ended_nodes"] = [one.stop(60) for one in nodes.values()] == [0] * institutions
        found["ended_coordinator"] = coordinator.stop(60) == 0
        found["left"] = len(processes_of(deployment.coordinator) + processes_of(folder / "nodes"))
    finally:
        deployment.close()
        network.close()
    return found


def say(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def report(found: dict[str, Any]) -> str:
    """The figures as lines."""
    waves, seconds = found["waves"], found["study_seconds"]
    return "\n".join(
        [
            f"institutions                       {found['institutions']}",
            f"set-up, each                       {found['setup_seconds'] / found['institutions']:.2f} s",
            f"all connected after                {found['start_seconds']:.0f} s",
            f"memory of an idle node             {found['idle_node_megabytes']:.0f} MB",
            f"memory of the coordinator          {found['idle_coordinator_megabytes']:.0f} MB",
            f"processor of an idle coordinator   {found['idle_processor_share']:.1%}",
            f"study                              {found['ended']}, {found['questions']} questions, {waves} waves",
            f"from start to release              {seconds:.0f} s, {seconds / waves:.2f} s a wave",
            f"processor of the coordinator       {found['study_processor_seconds']:.0f} s",
            f"bytes of one node and wave         {found['node_wave_bytes'] / 1024:.1f} KiB",
            f"processes left behind              {found['left']}",
        ]
    )


def main() -> None:
    """Measure, print, and exit with 1 when the study did not release its sums or a process was left."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--institutions", type=int, default=32)
    parser.add_argument("--folder", type=Path, help="where it is set up; a temporary folder by default")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if reason := datasets.unavailable_reason("ta-feng"):
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(chosen.folder or Path(temporary), chosen.institutions)
    print(report(found))
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    good = found["ended"] == "released" and found["ended_nodes"] and found["ended_coordinator"] and not found["left"]
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
