"""Audit logs of coordinators, what stands in logs, and institutions that have nothing but a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from sqlalchemy import Engine

from cohortium.client.store import Approval
from cohortium.client.witnessing import NodeLog
from cohortium.governance.log import AuditLog, Ed25519Signer, LogReader, log_origin
from cohortium.privacy.ledger import open_store
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.question import LogMessage, PlanQuestion, Question, split_log, with_log
from cohortium.study.witness import Statement, WitnessRequest

COORDINATOR_KEY = Ed25519PrivateKey.from_private_bytes(b"coordinator".ljust(32))


@pytest.fixture(scope="session")
def coordinator_key() -> str:
    """The public key of `coordinator_log`, as a charter pins it."""
    return COORDINATOR_KEY.public_key().public_bytes_raw().hex()


@pytest.fixture(scope="session")
def coordinator_log() -> Callable[[Engine, str], AuditLog]:
    """A coordinator's audit log in a store, by the charter's name."""

    def begin(store: Engine, charter: str) -> AuditLog:
        origin = log_origin(charter)
        return AuditLog(store, origin, Ed25519Signer(origin, COORDINATOR_KEY))

    return begin


@pytest.fixture(scope="session")
def log_entries() -> Callable[[Path], list[dict[str, Any]]]:
    """All entries of the log in a file."""

    def read(path: Path) -> list[dict[str, Any]]:
        store = open_store(path, read_only=True)
        try:
            log = LogReader(store)
            return [dict(one.entry) for one in log.entries(0, log.size)]
        finally:
            store.dispose()

    return read


class Fake:
    """An institution with a real audit log and no customers: it answers whatever a test has it answer."""

    def __init__(self, name: str, key: Ed25519PrivateKey, folder: Path) -> None:
        self.name, self.key = name, key
        self.charter: Charter | None = None
        self.log = self.another_log(folder)

    def another_log(self, folder: Path) -> NodeLog:
        """A log of the same name and key on other files."""
        folder.mkdir(parents=True)
        return NodeLog(folder, self.name, self.key, lambda _: Approval(None, self.charter))  # type: ignore[arg-type]

    def entry(self, asked: Question, /, **changes: Any) -> dict[str, Any]:
        """What a door's entry says of a question."""
        header = asked.header
        slot = {"plan": header.plan, "run": header.run, "phase": header.phase, "step": header.step}
        rest = {"attempt": header.attempt, "question": asked.digest, "charge": 0, "decision": "none"}
        return {"event": "release", **slot, **rest, "mu2": "1", "tv": "0", "consent": "0" * 64, **changes}

    def statement(self, asked: Question, /, *, log: NodeLog | None = None, **changes: Any) -> Statement:
        """Of a release that answers a question; one entry for each."""
        key = f"{asked.digest} {sorted(changes.items())}"
        return Statement.from_bytes((log or self.log).record(key, self.entry(asked, **changes)))

    def app(self, answer: Callable[[Question, bytes], RecordDict], accepts: Callable[[], RecordDict]) -> ClientApp:
        """Its Flower app: what goes beside its answers about logs is honest."""
        app = ClientApp()

        def about_logs(request: WitnessRequest) -> LogMessage:
            return LogMessage(self.log.answer(request).to_bytes())

        def take(message: Message) -> RecordDict:
            content, log = split_log(message.content)
            if log is not None:
                self.log.take(WitnessRequest.from_bytes(log.payload))
            return content

        @app.query("witness")
        def witness(message: Message, _: Context) -> Message:
            payload = LogMessage.from_record(message.content).payload
            return Message(about_logs(WitnessRequest.from_bytes(payload)).to_record(), reply_to=message)

        @app.query("plan")
        def plan(message: Message, _: Context) -> Message:
            asked = PlanQuestion.from_record(take(message))
            self.log.require_witnessed(asked.plan)
            self.log.record(f"admission {asked.run}", {"event": "admission", "plan": asked.plan, "run": asked.run})
            news = about_logs(WitnessRequest(plan=asked.plan))
            return Message(with_log(accepts(), news), reply_to=message)

        @app.query("answer")
        def give(message: Message, _: Context) -> Message:
            question = Question.from_record(take(message))
            return Message(answer(question, self.statement(question).to_bytes()), reply_to=message)

        return app


@dataclass(frozen=True)
class Fakes:
    """Institutions of one charter."""

    charter: Charter
    banks: list[Fake]


@contextmanager
def making_fakes(folder: Path, coordinator_key: str) -> Iterator[Callable[..., Fakes]]:
    """So many institutions, "bank 0" and so on; by default two others have to witness everybody's log."""
    made: list[Fake] = []

    def make(count: int, **quorum: int) -> Fakes:
        place = folder / f"fakes-{len(made)}"
        names = [f"bank {index}" for index in range(count)]
        banks = [Fake(n, Ed25519PrivateKey.from_private_bytes(n.ljust(32).encode()), place / n) for n in names]
        made.extend(banks)
        public = {bank.name: bank.key.public_key().public_bytes_raw().hex() for bank in banks}
        members = [{"name": name, "region": "EU", "identity": public[name]} for name in names]
        document = {"schema": "cohortium.charter/1", "name": "fakes", "institutions": members, "quorum": quorum}
        charter = parse_charter({**document, "coordinator": coordinator_key})
        for bank in banks:
            bank.charter = charter
        return Fakes(charter, banks)

    try:
        yield make
    finally:
        for bank in made:
            bank.log.close()


@pytest.fixture
def make_fakes(tmp_path: Path, coordinator_key: str) -> Iterator[Callable[..., Fakes]]:
    """See `making_fakes`."""
    with making_fakes(tmp_path, coordinator_key) as make:
        yield make


@pytest.fixture(scope="module")
def make_lasting_fakes(
    tmp_path_factory: pytest.TempPathFactory, coordinator_key: str
) -> Iterator[Callable[..., Fakes]]:
    """The same for all tests of a module."""
    with making_fakes(tmp_path_factory.mktemp("lasting"), coordinator_key) as make:
        yield make
