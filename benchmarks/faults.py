"""Bad days by the hundred: `python benchmarks/faults.py [--faults N] [--seed S] [--institutions N]`.

A coordinator and institutions, each a process, over mutual TLS on loopback, run one small study after another. Faults
are drawn by the seed over kinds, waves and victims, and injected one at a time, at an exact moment of the victim's
answer (`tapped_node.py` says which there are): the node waits meanwhile. A fault is over when every process is up and
every node has reached the coordinator again; a supervisor restarts what ended, as systemd would, and an operator
resumes a run that failed. After every study everything that left a node, its ledger, its audit log and the
coordinator's log are compared:

- *uncharged*: answers that left, or that the coordinator holds, without exactly one charge committed before they left;
- *re-masked*: slots of which two different bodies left a node, or whose stored reply is not what left;
- *lost*: charges or log entries that an earlier look saw and a later one does not, and ledgers that do not verify;
- *leaked*: processes that outlive what started them;
- *stuck*: studies that neither release nor fail with a reason, attempts above the plan's `max_attempts`, processes that
  do not come back.

`FILE` gets a line for every fault and study; called again with the same seed and file, the campaign goes on where it
was, the study in hand excepted. Ends with 1 unless all counts are zero. A full disk is a limit on the sizes of files
(`prlimit`), under which writes fail with EFBIG and not with ENOSPC: it needs no privilege. A clock is off as Python
reads it.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import resource
import shutil
import signal
import socketserver
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fault_books import Books
from relay import Network, Relay

from cohortium.simulations.loopback import Deployment, Process, processes_of, wait_until
from cohortium.study.contract import Contract
from cohortium.study.errors import CohortiumError, OutputError
from cohortium.study.plans import parse_plan

COUNTS = ("uncharged", "re-masked", "lost", "leaked", "stuck")
WAVES = ("plan", "witness", "share", "answer", "consent", "unmask")
NODE_KINDS = ("kill", "reset", "partition", "slow-link", "slow-node", "full-disk", "clock")
CENTRE_KINDS = ("kill-coordinator", "kill-keeper", "kill-superlink", "kill-app", "power", "full-disk-centre")
"""`kill-coordinator` ends the supervisor alone, `power` all of its processes at once."""

LASTING = ("kill", "reset", "partition", "slow-link", "slow-node")
"""Half of these last until a wave's time is up, or nearly."""

TAPPED = Path(__file__).with_name("tapped_node.py")
NAMES = ("north", "south", "west", "east", "centre", "coast")
LEAST = {3: 3, 4: 3, 5: 4, 6: 4}
"""Contributions that a sum needs, by institutions; of six, a question takes three waves."""

PEOPLE, QUESTIONS, ATTEMPTS, LIFETIME = 300, 9, 5, 50.0
MOST, MOST_A_QUESTION = 16, 3
"""Faults in one study, and until the next question is asked."""

STUDIES = 5
"""In one federation: its rules let nobody's epsilon pass 3."""

WAVE_SECONDS, UP_SECONDS, END_SECONDS = 8.0, 180.0, 240.0
CONTRACT = """
schema = "cohortium.contract/1"
name = "faults"
purposes = ["CustomerSegmentation"]
max_bad_share = 0.05
window = { start = 2024-01-01, end = 2025-01-01 }
tables = [{ name = "people", kind = "customers", customer = "id" }]

[[features]]
name = "visits"
table = "people"
kind = "numeric"
column = "visits"
low = 0
high = 40
missing = 0
block = "behaviour"

[[features]]
name = "spend"
table = "people"
kind = "numeric"
column = "spend"
low = 0
high = 2_000
missing = 0
block = "value"
"""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        number: in the campaign.
        kind: one of `NODE_KINDS` or `CENTRE_KINDS`.
        wave, moment: of the answer at which it happens.
        victim: whose answer that is; a fault of a node is its.
        after: how many questions of the study come first.
        seconds: how long it lasts: until the restart, or until it is healed.
        size: how far a clock is off in seconds, how long a link holds back, the bytes that still fit on a disk.
    """

    number: int
    kind: str
    wave: str
    moment: str
    victim: str
    after: int
    seconds: float
    size: float


def drawn(seed: int, number: int, names: tuple[str, ...], kinds: list[str]) -> Fault:
    """The fault of that number: the same for the same seed; of these kinds in turn where any are given."""
    rng = random.Random(f"{seed}/{number}")
    waves = [wave for wave in WAVES if wave != "consent" or len(names) > 5]
    kind, wave = rng.choice(NODE_KINDS * 2 + CENTRE_KINDS), rng.choice([*waves, "answer", "unmask"])
    kind = kinds[number % len(kinds)] if kinds else kind
    moment = rng.choice(["arrived", "leaving", "left"] + ["charged"] * 3 * (wave == "answer"))
    short, long = rng.uniform(0, 1), WAVE_SECONDS * rng.uniform(0.3, 1.6)
    seconds = long if kind in LASTING and rng.random() < 0.5 else short
    sizes: dict[str, list[float]] = {
        "clock": [sign * off for sign in (-1, 1) for off in (200, 3600, 93_600)],
        "slow-link": [0.05, 0.3, 1.0],
        "full-disk": [0, 4096, 1 << 16, 1 << 18],
        "full-disk-centre": [0, 4096, 1 << 16, 1 << 18],
    }
    after = 0 if wave in ("plan", "share") else rng.randrange(QUESTIONS - 1)
    return Fault(number, kind, wave, moment, rng.choice(names), after, seconds, rng.choice(sizes.get(kind, [0])))


class People:
    """Three kinds of customers in each institution."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def tables(self, contract: Contract, work: Path) -> dict[str, dict[str, Any]]:
        """See `simulations.sources.CustomerData`."""
        work.mkdir()
        found = {}
        for number, name in enumerate(self._names):
            rows = [f"c{number}{one:03d},{3 + 12 * (one % 3)},{50 + 600 * (one % 3)}" for one in range(PEOPLE)]
            (work / f"{name}.csv").write_text("\n".join(["id,visits,spend", *rows]) + "\n")
            found[name] = {"people": work / f"{name}.csv"}
        return found


@dataclass
class Hit:
    """A fault whose moment has come; the node waits until `done`."""

    fault: Fault
    event: dict[str, Any]
    done: threading.Event = field(default_factory=threading.Event)


class Tap:
    """Hears what nodes tell, keeps it, and stops the one whose moment has come.

    Args:
        file: gets every line, on disk before the node goes on.
    """

    def __init__(self, file: Path) -> None:
        self.hits: queue.Queue[Hit] = queue.Queue()
        self.events: list[dict[str, Any]] = []
        self.alive: dict[str, float] = {}
        self.off: dict[str, float] = {}
        self._armed: list[Fault] = []
        self._asked: set[tuple[str, int]] = set()
        self._hits: Counter[int] = Counter()
        self._file, self._lock = file.open("a", encoding="utf-8"), threading.Lock()
        tap = self

        class Line(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):
                    for line in self.rfile:
                        self.wfile.write(f"{tap.heard(json.loads(line))}\n".encode())

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", 0), Line)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def arm(self, faults: list[Fault], *, fresh: bool) -> None:
        """Wait for the moments of these faults; `fresh` when a study begins."""
        with self._lock:
            self._armed = list(faults)
            if fresh:
                self._asked, self._hits = set(), Counter()

    def heard(self, event: dict[str, Any]) -> float:
        """How far the node's clock is to be off."""
        node = str(event["node"])
        hit = None
        with self._lock:
            if event["moment"] in ("alive", "arrived"):
                self.alive[node] = time.monotonic()
            if event["moment"] != "alive":
                event["time"] = time.time()
                self.events.append(event)
                self._file.write(json.dumps(event) + "\n")
                self._file.flush()
                os.fsync(self._file.fileno())
                if "phase" in event:
                    self._asked.add((event["phase"], event["step"]))
                hit = self._hit(event)
        if hit is not None:
            self.hits.put(hit)
            hit.done.wait(UP_SECONDS)
        return self.off.get(node, 0.0)

    def _hit(self, event: dict[str, Any]) -> Hit | None:
        """The first fault that waited for this very event; the others wait until they are armed again."""
        for fault in self._armed:
            when = fault.victim, fault.wave, fault.moment
            if when == (event["node"], event.get("wave"), event["moment"]) and self._may_hit(fault):
                self._armed = []
                self._hits[len(self._asked)] += 1
                return Hit(fault, event)
        return None

    def _may_hit(self, fault: Fault) -> bool:
        asked = len(self._asked)
        return asked >= fault.after and self._hits[asked] < MOST_A_QUESTION

    def close(self) -> None:
        """Hear nothing more."""
        self._server.shutdown()
        self._server.server_close()
        self._file.close()


def end_processes(pids: list[int]) -> None:
    """SIGKILL, all at once."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def command_of(pid: int) -> str:
    """The command line of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


class Federation:
    """Institutions, their links and their coordinator, and what keeps them running."""

    def __init__(self, root: Path, names: tuple[str, ...], wave: float) -> None:
        self.root, self.names, self._wave = root, names, wave
        self.deployment = Deployment(root)
        contract = Contract.model_validate(tomllib.loads(CONTRACT))
        self.deployment.found(contract, People(names), dict.fromkeys(names, "EU"), LIFETIME)
        self.contract = contract
        self.tap = Tap(root / "told.jsonl")
        self._network = Network()
        self.relays = {name: Relay(self._network, self.deployment.port) for name in names}
        for name, relay in self.relays.items():
            link = self.deployment.node(name) / "link.json"
            link.write_text(json.dumps({**json.loads(link.read_text()), "address": f"127.0.0.1:{relay.port}"}))
        self.leaked: list[str] = []
        self.restarts: list[str] = []
        self.coordinator = self.deployment.start_coordinator(self._wave)
        self.nodes = {name: self._node(name) for name in names}

    def _node(self, name: str) -> Process:
        return self.deployment.start_node(name, TAPPED, str(self.tap.port))

    def supervise(self) -> None:
        """Start again what has ended, as systemd would."""
        for name, process in self.nodes.items():
            if not process.running:
                self.restarts.append(f"{name} ended with {process.process.returncode}")
                self.nodes[name] = self._node(name)
        if not self.coordinator.running:
            self.restarts.append(f"coordinator ended with {self.coordinator.process.returncode}")
            self.start_coordinator()

    def start_coordinator(self) -> None:
        """Once nothing of its earlier life is left."""
        with suppress(OutputError):
            wait_until(lambda: not self._left_behind(), 30, "the end of what a coordinator left behind")
        for pid in self._left_behind():
            self.leaked.append(command_of(pid))
            end_processes([pid])
        self.coordinator = self.deployment.start_coordinator(self._wave)

    def _left_behind(self) -> list[int]:
        return processes_of(self.deployment.coordinator)

    def recover(self) -> None:
        """Have everything up, and every node in touch with the coordinator; `OutputError` when that does not come."""
        since = time.monotonic()

        def up() -> bool:
            self.supervise()
            return all(self.tap.alive.get(name, 0.0) > since for name in self.names)

        wait_until(up, UP_SECONDS, "everybody to be back")

    def disturb(self, hit: Hit) -> None:
        """Inject a fault, let it last, and end it; the node that waits goes on as soon as it is there."""
        fault = hit.fault
        heal = self._inject(fault)
        hit.done.set()
        time.sleep(fault.seconds)
        heal()

    def _inject(self, fault: Fault) -> Callable[[], None]:
        """Make it happen; what ends it."""
        node, relay = self.nodes[fault.victim], self.relays[fault.victim]
        centre, coordinator = processes_of(self.deployment.coordinator), self.coordinator
        match fault.kind:
            case "kill":
                node.kill()
                return nothing
            case "reset":
                relay.cut()
                return relay.heal
            case "partition":
                relay.stall()
                return relay.heal
            case "slow-link":
                relay.slow(fault.size)
                return relay.heal
            case "slow-node":
                node.process.send_signal(signal.SIGSTOP)
                return lambda: node.process.send_signal(signal.SIGCONT)
            case "full-disk":
                return limited([node.process.pid], int(fault.size), node.kill)
            case "clock":
                self.tap.off[fault.victim] = fault.size
                return lambda: self.tap.off.update({fault.victim: 0.0})
            case "full-disk-centre":
                return limited(centre, int(fault.size), coordinator.kill)
            case "kill-coordinator":
                coordinator.kill()
            case "kill-keeper":
                end_processes([pid for pid in centre if "cohortium.server.keeper" in command_of(pid)])
            case "kill-superlink":
                end_processes([pid for pid in centre if "flower-superlink" in command_of(pid)])
            case "kill-app":
                end_processes([pid for pid in centre if "flwr-serverapp" in command_of(pid)])
            case "power":
                end_processes(centre)
                coordinator.process.wait()
        return nothing

    def close(self) -> list[str]:
        """End everything; the commands of what would not end."""
        codes = {name: node.stop() for name, node in self.nodes.items() if node.running}
        codes["coordinator"] = self.coordinator.stop() if self.coordinator.running else 0
        left = [command_of(pid) for pid in processes_of(self.root)]
        left += [f"{name} stopped with {code}" for name, code in codes.items() if code]
        self.end()
        return left

    def end(self) -> None:
        """End everything, whatever state it is in."""
        end_processes(processes_of(self.root))
        self.deployment.close()
        self.tap.close()
        self._network.close()


def nothing() -> None:
    """What ends by itself, or by the supervisor."""


def limited(pids: list[int], size: int, restart: Callable[[], None]) -> Callable[[], None]:
    """Let no file of these processes be written beyond a size; what lifts that, and restarts them."""
    for pid in pids:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    return restart


class Study:
    """One study under faults.

    Args:
        federation: at work, everybody in touch.
        name: of its plan.
    """

    def __init__(self, federation: Federation, name: str) -> None:
        self._federation, self._deployment = federation, federation.deployment
        self.plan = self._deployment.propose(plan_of(federation, name))
        self._deployment.approve(self.plan)
        self.hit: list[dict[str, Any]] = []
        self.stuck: list[str] = []
        self.resumed = 0

    def run(self, waiting: list[Fault]) -> str:
        """Begin it, and see it to its end under those of the faults that wait whose moment comes; its run's number."""
        tap, answered = self._federation.tap, 0
        tap.arm(waiting, fresh=True)
        run = self._deployment.run(self.plan)
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            with suppress(queue.Empty):
                self._happened(tap.hits.get(timeout=0.2))
                done = {one["fault"] for one in self.hit}
                left = [fault for fault in waiting if fault.number not in done]
                tap.arm(left if len(done) < MOST else [], fresh=False)
                deadline = time.monotonic() + END_SECONDS
            self._federation.supervise()
            state = self._state
            if state == "released" or (state == "failed" and answered == len(self.hit)):
                break
            if state == "failed":
                answered = len(self.hit)
                self._resume()
        else:
            self.stuck.append(f"no end in {END_SECONDS:g} s")
            self._deployment.studies.note(self.plan, "stopped")
        tap.arm([], fresh=False)
        return run

    @property
    def _state(self) -> str:
        run = self._deployment.studies.run(self.plan)
        return "none" if run is None else run.state

    def _happened(self, hit: Hit) -> None:
        """Inject a fault and wait until everybody is back."""
        begun = time.monotonic()
        self._federation.disturb(hit)
        healed = time.monotonic()
        try:
            self._federation.recover()
        except OutputError as error:
            self.stuck.append(f"fault {hit.fault.number}: {error}")
        said = {name: hit.event.get(name) for name in ("phase", "step", "attempt", "round")}
        times = {"lasted": round(healed - begun, 1), "recovered": round(time.monotonic() - healed, 1)}
        self.hit.append({"fault": hit.fault.number, **asdict(hit.fault), **said, **times})

    def _resume(self) -> None:
        """What an operator does with a run that failed on a bad day."""
        self.resumed += 1
        try:
            self._federation.recover()
            self._deployment.resume(self.plan)
        except CohortiumError as error:
            self.stuck.append(f"not resumed: {error}")

    def line(self) -> dict[str, Any]:
        """How it ended."""
        studies = self._deployment.studies
        tried, run = studies.progress(self.plan), studies.run(self.plan)
        most = max((one.attempt for one in tried), default=0)
        if most > ATTEMPTS:
            self.stuck.append(f"attempt {most} of {ATTEMPTS}")
        if run is None or (run.state != "released" and not run.problem):
            self.stuck.append("an end without a reason")
        state, problem = ("none", None) if run is None else (run.state, run.problem)
        failed = sum(one.problem is not None for one in tried)
        return {"state": state, "problem": problem, "resumed": self.resumed, "failed attempts": failed, "most": most}


class Campaign:
    """Studies, one after the other, until every fault has happened.

    Args:
        federation: started.
        out: file for lines.
        seed: of the faults.
    """

    def __init__(self, federation: Federation, out: Path, seed: int) -> None:
        self._federation, self._out, self._seed = federation, out, seed
        self._books = Books(federation.deployment, LIFETIME)

    def study(self, number: int, waiting: list[Fault]) -> set[int]:
        """Run a study and check it; the numbers of the faults that happened in it."""
        begun, federation = time.monotonic(), self._federation
        federation.recover()
        seen = len(federation.tap.events)
        study = Study(federation, f"faults-{self._seed}-{number}")
        run = study.run(waiting)
        federation.recover()
        self._books.check(run, federation.tap.events[seen:])
        line = {"study": number, **study.line(), "restarts": federation.restarts}
        problems = {**self._books.problems, "leaked": federation.leaked, "stuck": study.stuck}
        line["problems"] = {name: found for name, found in problems.items() if found}
        line["seconds"] = round(time.monotonic() - begun, 1)
        append(self._out, [{**one, "study": number} for one in study.hit] + [line])
        self._books.forget()
        federation.leaked, federation.restarts = [], []
        return {one["fault"] for one in study.hit}


def plan_of(federation: Federation, name: str) -> Any:
    """A small plan that all institutions share."""
    return parse_plan(
        {
            "schema": "cohortium.plan/1",
            "study": "segments",
            "name": name,
            "purpose": "CustomerSegmentation",
            "lawful_basis": "consent",
            "regions": ["EU"],
            "contract": federation.contract.digest,
            "expires": "2099-12-31",
            "trust": "distributed",
            "epsilon": 2.0,
            "delta": 1e-6,
            "min_institutions": LEAST[len(federation.names)],
            "colluders": 1,
            "min_cell": 50,
            "max_attempts": ATTEMPTS,
            "segments": {"k": 3},
            "shares": {"marginals": 20, "clustering": 60, "profiles": 20, "rfm": 0},
        }
    )


def append(file: Path, lines: list[dict[str, Any]]) -> None:
    """Write lines at a file's end; they are on disk when it returns."""
    with file.open("a", encoding="utf-8") as out:
        out.write("".join(json.dumps(line) + "\n" for line in lines))
        out.flush()
        os.fsync(out.fileno())


def read(file: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The faults of studies that came to their end, and those studies."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    studies = [line for line in lines if "state" in line]
    ended = {line["study"] for line in studies}
    return [line for line in lines if "fault" in line and line["study"] in ended], studies


def end_what_was_left(file: Path) -> None:
    """End and remove what a campaign that was killed left behind."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    for root in [json.loads(line)["root"] for line in lines if line.startswith('{"root"')]:
        end_processes(processes_of(Path(root)))
        shutil.rmtree(root, ignore_errors=True)


def table(faults: list[dict[str, Any]]) -> str:
    """Faults by kind and wave."""
    count = Counter((one["kind"], one["wave"]) for one in faults)
    rows = [["", *WAVES, "all"]]
    for kind in (*NODE_KINDS, *CENTRE_KINDS):
        row = [count[kind, wave] for wave in WAVES]
        rows.append([kind, *map(str, row), str(sum(row))])
    last = [sum(count[kind, wave] for kind in (*NODE_KINDS, *CENTRE_KINDS)) for wave in WAVES]
    rows.append(["all", *map(str, last), str(sum(last))])
    return "\n".join(f"{row[0]:18}" + "".join(f"{cell:>9}" for cell in row[1:]) for row in rows)


def problems_of(studies: list[dict[str, Any]]) -> Counter[str]:
    """How many there were of each."""
    found: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    for study in studies:
        found.update({name: len(problems) for name, problems in study["problems"].items()})
    return found


def run_campaign(out: Path, faults: int, seed: int, names: tuple[str, ...], wave: float, kinds: list[str]) -> None:
    """Have every fault happen that has not happened yet, in one federation after the other."""
    happened, _ = read(out)
    waiting = [drawn(seed, number, names, kinds) for number in range(faults)]
    waiting = [fault for fault in waiting if fault.number not in {one["fault"] for one in happened}]
    while waiting:
        root = Path(tempfile.mkdtemp(prefix="faults-"))
        append(out, [{"root": str(root)}])
        waiting, left = in_one_federation(Federation(root, names, wave), out, seed, waiting)
        problems = {"leaked": left} if left else {}
        append(out, [{"study": len(read(out)[1]), "state": "end", "problems": problems}])
        if not problems_of(read(out)[1]).total():
            shutil.rmtree(root)


def in_one_federation(
    federation: Federation, out: Path, seed: int, waiting: list[Fault]
) -> tuple[list[Fault], list[str]]:
    """Run as many studies as a federation has budget for; the faults that still wait, and the processes it left."""
    try:
        campaign = Campaign(federation, out, seed)
        for _ in range(STUDIES):
            number = len(read(out)[1])
            done = campaign.study(number, waiting)
            waiting = [fault for fault in waiting if fault.number not in done]
            line = read(out)[1][-1]
            print(
                f"study {number}: {line['state']} after {len(done)} faults and {line['resumed']} resumptions in "
                f"{line['seconds']:.0f} s; {len(waiting)} faults to go; problems: {line['problems'] or 'none'}",
                flush=True,
            )
            if not waiting:
                break
        return waiting, federation.close()
    except BaseException:
        federation.end()
        raise


def main() -> None:
    """Run it, or go on with it, and print what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--institutions", type=int, default=6, choices=sorted(LEAST))
    parser.add_argument("--kinds", nargs="*", default=[], choices=(*NODE_KINDS, *CENTRE_KINDS), help="in turn")
    parser.add_argument("--wave", type=float, default=WAVE_SECONDS, help="seconds that a wave waits")
    parser.add_argument("--out", type=Path, default=Path("faults.jsonl"))
    asked = parser.parse_args()
    end_what_was_left(asked.out)
    names = NAMES[: asked.institutions]
    run_campaign(asked.out, asked.faults, asked.seed, names, asked.wave, asked.kinds)
    faults, studies = read(asked.out)
    print(table(faults))
    ended = Counter(study["state"] for study in studies if study["state"] != "end")
    print(f"studies: {dict(ended)}, resumed {sum(study.get('resumed', 0) for study in studies)} times")
    found = problems_of(studies)
    print(", ".join(f"{name}: {count}" for name, count in found.items()))
    sys.exit(1 if found.total() or len(faults) < asked.faults else 0)


if __name__ == "__main__":
    main()
