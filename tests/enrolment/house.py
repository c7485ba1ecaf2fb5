"""Folders of one test: a coordinator, and nodes that ask to be enrolled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cohortium.client.joining import REQUEST, join
from cohortium.governance.log import LogReader
from cohortium.privacy.stores import open_store
from cohortium.server.founding import read_coordinator
from cohortium.server.members import Enrolled, Member, enrol, revoke
from cohortium.study.enrolment import EnrolmentRequest, load_request

PASSWORD = "four words of a house"
NAME = "north sea"

Found = Callable[..., EnrolmentRequest]
"""Makes a node's folder: the folder, its name, and what differs."""


@dataclass(frozen=True)
class House:
    """`now` is when the test began."""

    folder: Path
    now: datetime

    @property
    def coordinator(self) -> Path:
        return self.folder / "coordinator"

    @property
    def fingerprint(self) -> str:
        return read_coordinator(self.coordinator).fingerprint(self.coordinator)

    def node(self, name: str) -> Path:
        return self.folder / name

    def request(self, name: str) -> EnrolmentRequest:
        return load_request(self.node(name) / REQUEST)

    def enrol(self, asked: EnrolmentRequest | str, now: datetime | None = None) -> Enrolled:
        asked = self.request(asked) if isinstance(asked, str) else asked
        return enrol(self.coordinator, PASSWORD, asked, asked.fingerprint, now or self.now)

    def join(self, name: str, now: datetime | None = None) -> Enrolled:
        """Enrolled and joined."""
        found = self.enrol(name, now)
        join(self.node(name), found.enrolment, self.fingerprint, PASSWORD, now or self.now)
        return found

    def revoke(self, name: str, reason: str = "left") -> Member:
        return revoke(self.coordinator, PASSWORD, name, reason, self.now)

    def logged(self) -> list[tuple[str, str]]:
        """Events of the coordinator's log, and whom they befell."""
        engine = open_store(self.coordinator / "log.sqlite", read_only=True)
        try:
            entries = LogReader(engine).entries(0, 1000)
            return [(one.entry["event"], one.entry.get("institution", "")) for one in entries]
        finally:
            engine.dispose()
