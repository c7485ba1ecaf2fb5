"""A node for the fault campaign: what `cohortium node start` runs, but that every step of an answer is told first.

    python tapped_node.py FOLDER PASSWORD_FILE PORT

To whom listens on that port of loopback it tells, a line of JSON each, and goes on when a line comes back:

- `arrived`: a message was read; nothing is answered yet;
- `charged`: a charge is committed and noise drawn, the reply not stored;
- `leaving`: a reply is about to be sent: the SHA-256 of its body, and for a release the charge that this process finds
  committed in the ledger's file by a connection of its own;
- `left`: it was taken;
- `alive`: the coordinator was reached; at most once a second.

The line that comes back holds how many seconds the node's clock is off from then on, as Python reads clocks; OpenSSL's
is right. What cannot be told is not sent: the process ends. The package has no such entry.
"""

from __future__ import annotations

import datetime as dates
import hashlib
import json
import os
import signal
import socket
import sqlite3
import sys
import time
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flwr.supercore.date
from flwr.app import Message

from cohortium.client.fleet import Delivered, FleetLink
from cohortium.client.serving import at_work
from cohortium.governance.operations import log_as_json
from cohortium.privacy.ledger import Charge, Ledger
from cohortium.privacy.secure_sum.messages import ShareRequest, SurvivorSet, UnmaskRequest
from cohortium.study.errors import CohortiumError
from cohortium.study.keys import password_in
from cohortium.study.packing import unpacked
from cohortium.study.question import (
    PlanQuestion,
    Release,
    SumMessage,
    parse_question_request,
    reply_kind,
    split_log,
)

_ALIVE_SECONDS = 1.0
_real_time = time.time


class Clock:
    """How far this process's clock is off, in seconds."""

    off = 0.0


class Skewed(datetime):
    """Times of a clock that is off."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        """See `datetime`."""
        return datetime.now(tz) + timedelta(seconds=Clock.off)


def skew_clocks() -> None:
    """Have everything of the package and of Flower's client read the clock that is off."""
    time.time = lambda: _real_time() + Clock.off
    flwr.supercore.date.datetime = SimpleNamespace(datetime=Skewed, UTC=UTC)
    for name, module in tuple(sys.modules.items()):
        if name.startswith("cohortium.") and getattr(module, "datetime", None) is dates.datetime:
            module.datetime = Skewed


class Tap:
    """Tells what happens.

    Args:
        folder: the node's.
        port: who listens.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._line = socket.create_connection(("127.0.0.1", port)).makefile("rw", encoding="utf-8")
        self._now: dict[str, Any] = {}
        self._alive = 0.0

    def tell(self, moment: str, **fields: Any) -> None:
        """Tell, and wait until that was heard."""
        try:
            self._line.write(json.dumps({"node": self._folder.name, "moment": moment, **self._now, **fields}) + "\n")
            self._line.flush()
            Clock.off = float(self._line.readline())
        except (OSError, ValueError):
            os._exit(3)

    def install(self) -> None:
        """Put itself before and behind the methods of link and ledger."""
        pull, opened, reply, settle = FleetLink.pull, FleetLink.open, FleetLink.reply, Ledger.settle

        def tapped_pull(link: FleetLink) -> str | None:
            name = pull(link)
            if name is None and time.monotonic() > self._alive:
                self._alive = time.monotonic() + _ALIVE_SECONDS
                self.tell("alive")
            return name

        def tapped_open(link: FleetLink, name: str) -> Delivered:
            delivered = opened(link, name)
            self._now = {"message": name, **what_is_asked(delivered.message)}
            self.tell("arrived")
            return delivered

        def tapped_settle(ledger: Ledger, charge: Charge, data: bytes) -> bytes:
            self.tell("charged")
            return settle(ledger, charge, data)

        def tapped_reply(link: FleetLink, name: str, message: Message, asked: Message) -> int:
            self.tell("leaving", **self._body(message))
            sent = reply(link, name, message, asked)
            self.tell("left")
            self._now = {}
            return sent

        FleetLink.pull, FleetLink.open, FleetLink.reply = tapped_pull, tapped_open, tapped_reply
        Ledger.settle = tapped_settle

    def _body(self, reply: Message) -> dict[str, Any]:
        """What of a reply has to be the same whenever it is sent, as a digest."""
        content, _ = split_log(unpacked(reply.content))
        kind = reply_kind(content)
        if kind == "release":
            release = Release.from_record(content)
            body = release.vector.astype("<i8").tobytes() + release.note
            words = hashlib.sha256(release.vector.astype("<i8").tobytes()).hexdigest()
            return {"reply": kind, "body": _digest(body), "words": words, "charge": self._charge(release.question)}
        if kind == "secure-sum":
            return {"reply": kind, "body": _digest(SumMessage.from_record(content).payload)}
        return {"reply": kind}

    def _charge(self, question: str) -> int | None:
        """The committed charge of a question, as another reader of the file sees it."""
        file = sqlite3.connect(f"file:{self._folder / 'node.sqlite'}?mode=ro", uri=True)
        try:
            found = file.execute("SELECT sequence FROM charges WHERE question = ?", (question,)).fetchall()
        finally:
            file.close()
        return int(found[0][0]) if len(found) == 1 else None


def what_is_asked(message: Message) -> dict[str, Any]:
    """The slot of a message: its wave, and the plan, question, run or round that it is about."""
    wave = message.metadata.message_type.removeprefix("query.")
    try:
        return {"wave": wave, **_slot(wave, unpacked(message.content))}
    except CohortiumError:
        return {"wave": wave}


def _slot(wave: str, content: Any) -> dict[str, Any]:
    content, _ = split_log(content)
    if wave == "plan":
        asked = PlanQuestion.from_record(content)
        return {"plan": asked.plan, "run": asked.run}
    if wave == "answer":
        question, _ = parse_question_request(content)
        said = question.header
        slot = {"plan": said.plan, "run": said.run, "phase": said.phase, "step": said.step, "attempt": said.attempt}
        return {**slot, "question": question.digest}
    if wave == "witness":
        return {}
    payload = SumMessage.from_record(content).payload
    about = {
        "share": ShareRequest.from_bytes,
        "consent": SurvivorSet.from_bytes,
        "unmask": lambda data: UnmaskRequest.from_bytes(data).survivor_set,
    }[wave](payload)
    return {"run": about.run, "round": about.round}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    log_as_json()
    tap = Tap(Path(sys.argv[1]), int(sys.argv[3]))
    tap.install()
    skew_clocks()
    with at_work(Path(sys.argv[1]), password_in(Path(sys.argv[2]))) as serving:
        signal.signal(signal.SIGTERM, lambda *_: serving.stop())
        serving.run()
