"""A coordinator at work: its SuperLink, the gate before it, the members' keys, and runs that go on after a restart.

One supervisor process in one folder. It may be killed at any moment: Flower's processes end with it, and its next life
starts the runs again that had not come to an end.
"""

from __future__ import annotations

import fcntl
import logging
import os
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from cohortium.governance.operations import HealthPage, tell
from cohortium.server.authority import server_context
from cohortium.server.bell import GATE, RUN, Bell, ring
from cohortium.server.control import Control, connect
from cohortium.server.deployed import GATHER_SECONDS, WAVE_SECONDS
from cohortium.server.gate import Gate, Noticeboard
from cohortium.server.members import active_keys, load_members
from cohortium.server.studies import Studies
from cohortium.server.superlink import PRINTED, SuperLink, turn_log
from cohortium.study.errors import CohortiumError, RefusedError
from cohortium.study.keys import PASSWORD_FILE
from cohortium.study.software import installed_software

__all__ = ["Coordinator", "Listening"]

_WATCH_SECONDS, _RUNS_SECONDS = 0.5, 4.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listening:
    """Where a coordinator listens, and for how long its runs wait.

    Args:
        host, port: of the gate, which members connect to; port 0 takes a free one.
        health: port of the health page on loopback; 0 takes a free one.
        wave_seconds: how long a wave waits for an institution that is connected but does not answer.
        gather_seconds: how long a run waits for all that approved.
    """

    host: str = "127.0.0.1"
    port: int = 9440
    health: int = 9441
    wave_seconds: float = 600.0
    gather_seconds: float = 300.0


class Coordinator:
    """The work of one coordinator, from `run` until `stop` is called. At most one a process, and one a folder.

    Args:
        folder: as `cohortium federation init` made it.
        password: of its keys.
        listening: where.
    """

    def __init__(self, folder: Path, password: str, listening: Listening) -> None:
        self._folder, self._password, self._listening = folder, password, listening
        self._studies = Studies(folder)
        self._stopping = threading.Event()
        self._since = datetime.now(UTC)
        self._registry = CollectorRegistry()
        gauge = partial(Gauge, registry=self._registry)
        self._members = gauge("cohortium_members", "Members whose enrolment stands")
        self._runs = gauge("cohortium_runs", "Studies by the state of their run", ["state"])
        self._superlink: SuperLink | None = None

    def stop(self) -> None:
        """End; safe in a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Serve until stopped.

        Raises:
            OutputError: a port is in use, or the SuperLink does not come up.
            RefusedError: another coordinator runs in this folder, or the SuperLink ended.
            DataError: a key cannot be read.
        """
        context = server_context(self._folder, self._password)
        with ExitStack() as stack:
            stack.enter_context(_alone(self._folder))
            environment = {
                PASSWORD_FILE: stack.enter_context(_password_file(self._password)),
                WAVE_SECONDS: str(self._listening.wave_seconds),
                GATHER_SECONDS: str(self._listening.gather_seconds),
            }
            superlink = self._superlink = SuperLink(self._folder, environment)
            stack.callback(superlink.close)
            control = connect(self._folder)
            stack.callback(control.close)
            self._register(control)
            page = HealthPage("127.0.0.1", self._listening.health, self._health, self._registry)
            stack.callback(page.close)
            bell = Bell(self._folder, GATE)
            stack.callback(bell.close)
            gate = self._open_gate(context, superlink, bell)
            stack.callback(gate.close)
            tell(_log, "listening", host=self._listening.host, port=gate.port, health=page.port)
            self._go_on(control)
            self._watch(control, superlink, gate)
        tell(_log, "stopped")

    def _open_gate(self, context: ssl.SSLContext, superlink: SuperLink, bell: Bell) -> Gate:
        def released(plan: str) -> dict[str, bytes] | None:
            return dict(self._studies.released(f"sha256:{plan}")) or None

        board = Noticeboard(self._studies.open_proposals, self._studies.take_approval, released)
        return Gate(
            self._listening.host,
            self._listening.port,
            context,
            f"https://{superlink.address}",
            superlink.context,
            lambda: frozenset(active_keys(self._folder, datetime.now(UTC))),
            board,
            self._registry,
            bell,
            partial(ring, self._folder, RUN),
        )

    def _register(self, control: Control) -> None:
        """Make the SuperLink know the keys of members, and no others."""
        wanted = active_keys(self._folder, datetime.now(UTC))
        there = {key.strip() + b"\n": node for key, node in control.nodes().items()}
        for key, name in wanted.items():
            if key.strip() + b"\n" not in there:
                tell(_log, "registered", member=name, node_id=control.register(key, name))
        for key in there.keys() - {key.strip() + b"\n" for key in wanted}:
            control.unregister(there[key])
            tell(_log, "a key was struck off", node_id=there[key])
        self._members.set(len(wanted))

    def _go_on(self, control: Control) -> None:
        """Start the runs again that an earlier life did not end."""
        for status in self._studies.status():
            if status.run is not None and status.run.state == "running":
                self._start(control, status.plan, status.run.run)

    def _start(self, control: Control, plan: str, run: str) -> None:
        try:
            self._studies.started(plan, control.start(plan, run))
            tell(_log, "a run goes on", plan=plan)
        except CohortiumError as error:
            self._studies.note(plan, "failed", str(error))
            tell(_log, "a run could not go on", logging.ERROR, plan=plan, problem=str(error))

    def _watch(self, control: Control, superlink: SuperLink, gate: Gate) -> None:
        seen: Mapping[str, object] = {}
        look_again = 0.0
        while not self._stopping.wait(_WATCH_SECONDS):
            if not superlink.running or not gate.listening:
                raise RefusedError(
                    "Flower's SuperLink ended, or the gate did",
                    place=str(self._folder / "flower" / PRINTED),
                    fix="its last lines say why; start the coordinator again: runs go on",
                )
            try:
                members = load_members(self._folder)
                if members != seen:
                    self._register(control)
                    seen = members
                if time.monotonic() > look_again:
                    look_again = time.monotonic() + _RUNS_SECONDS
                    turn_log(self._folder / "flower" / PRINTED)
                    self._look_after_runs(control)
            except CohortiumError as error:
                tell(_log, "looking after members and runs failed", logging.WARNING, problem=str(error))

    def _look_after_runs(self, control: Control) -> None:
        """What ended without a word has failed; it may be resumed."""
        states = dict.fromkeys(("running", "stopped", "failed", "released"), 0)
        for status in self._studies.status():
            run = status.run
            if run is None:
                continue
            states[run.state] += 1
            if run.state == "running" and run.flower and control.state(run.flower[-1]).startswith("finished"):
                time.sleep(_WATCH_SECONDS)  # its last words may be on their way
                self._studies.note(status.plan, "failed", "its process ended without a word")
        for state, count in states.items():
            self._runs.labels(state).set(count)

    def _health(self) -> dict[str, Any]:
        running = self._superlink is not None and self._superlink.running
        return {
            "ok": running and not self._stopping.is_set(),
            "superlink": running,
            "stopping": self._stopping.is_set(),
            "up_since": self._since.isoformat(timespec="seconds"),
            "version": installed_software().version,
        }


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One coordinator in a folder."""
    with open(folder / "coordinator.lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError("a coordinator runs in this folder", place=str(folder), fix="stop it first") from None
        yield


@contextmanager
def _password_file(password: str) -> Iterator[str]:
    """A path under which this process's children read the password: memory, on no disk, gone with this process."""
    handle = os.memfd_create("cohortium-password", os.MFD_CLOEXEC)
    try:
        os.write(handle, password.encode())
        yield f"/proc/{os.getpid()}/fd/{handle}"
    finally:
        os.close(handle)
