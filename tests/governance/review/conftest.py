"""A federation with reviewers, a case before them, and their signatures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.governance.review import (
    Action,
    Case,
    Part,
    ReviewStore,
    Signed,
    Terms,
    document_digest,
    open_case,
    sign_statement,
)
from cohortium.privacy.ledger import open_store
from cohortium.study.charter import Charter, Function, Reviewer, enrol_reviewer, parse_charter, prove_possession

OPENED = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
HARMLESS = {
    "use.solely_automated": False,
    "use.significant_effect": False,
    "use.decision": "none",
    "features.special_category": 0,
    "features.special_inferred": False,
    "features.vulnerability_targeting": False,
    "features.prohibited_basis": 0,
    "data.partner_sourced": False,
    "data.record_linkage": False,
    "data.uses_ais": False,
    "data.uses_bureau": False,
    "data.uses_credit_data": False,
    "transfer.crosses_border": False,
}
PEOPLE: dict[str, tuple[str, Function]] = {
    "priya": ("north", "privacy"),
    "pavel": ("north", "privacy"),
    "rolf": ("north", "risk"),
    "carla": ("north", "compliance"),
    "olga": ("north", "risk"),  # owns the case
    "bert": ("north", "privacy"),  # built what is reviewed
    "sven": ("south", "privacy"),
    "sara": ("south", "risk"),
}


def key_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(document_digest({"key": name})[7:]))


def public(name: str) -> str:
    return key_of(name).public_key().public_bytes_raw().hex()


@dataclass(frozen=True)
class World:
    """A federation, one case, and the means to make others."""

    charter: Charter
    case: Case

    def reviewer(self, person: str, institution: str | None = None) -> Reviewer:
        return next(
            one for one in self.charter.reviewers if one.person == person and institution in (None, one.institution)
        )

    def documents(self, version: int = 1) -> dict[Part, dict[str, Any]]:
        metric = {"name": "impact-ratio", "group": ["18-25"], "estimate": 0.91, "low": 0.85, "high": 0.97}
        return {
            "card": {"schema": "card", "name": "spring", "version": version},
            "audit": {"schema": "audit", "verdict": "pass", "metrics": [{**metric, "people": 5012.0}]},
            "dpia": {"outcome": "approve"},
            "decision": {"admitted": True, "findings": []},
        }

    def make_case(self, name: str = "spring-1", version: int = 1, **changes: Any) -> Case:
        fields = {
            "name": name,
            "federation": self.charter.name,
            "institution": "north",
            "kind": "audience_export",
            "about": "spring offer",
            "purpose": "Marketing",
            "owner": "olga",
            "builders": ["bert"],
            "opened_at": OPENED,
            **changes,
        }
        return open_case(self.documents(version), HARMLESS, **fields)

    def say(
        self,
        person: str,
        action: Action = "approve",
        earlier: Iterable[Signed] = (),
        *,
        case: Case | None = None,
        hours: float = 1.0,
        until: date = date(2026, 12, 31),
        conditions: tuple[str, ...] = (),
        reviewer: Reviewer | None = None,
        key: Ed25519PrivateKey | None = None,
    ) -> Signed:
        """That person's statement, after the last of the earlier ones, so many hours after the case was opened."""
        terms = {
            "approve": Terms(conditions=conditions, expires=until),
            "return": Terms(questions=("why so few over 65?",)),
            "reject": Terms(reason="too few over 65"),
            "waive": Terms(conditions=conditions, reason="small group", expires=until, task="audit again in May"),
        }[action]
        about = self.case if case is None else case
        previous = [one.digest for one in earlier]
        return sign_statement(
            about,
            previous[-1] if previous else about.digest,
            self.reviewer(person) if reviewer is None else reviewer,
            key_of(person) if key is None else key,
            action,
            terms,
            OPENED + timedelta(hours=hours),
        )

    def record(self, *said: tuple[str, Action]) -> list[Signed]:
        """Statements one after the other, an hour apart."""
        record: list[Signed] = []
        for hours, (person, action) in enumerate(said, start=1):
            record.append(self.say(person, action, record, hours=hours))
        return record


def make_world() -> World:
    members = [{"name": name, "region": "EU", "identity": public(f"identity of {name}")} for name in ("north", "south")]
    bare = parse_charter({"schema": "cohortium.charter/1", "name": "two banks", "institutions": members})
    listed = [
        enrol_reviewer(
            "two banks",
            prove_possession("two banks", person, institution, function, key_of(person)),
            key_of(f"identity of {institution}"),
        )
        for person, (institution, function) in PEOPLE.items()
    ]
    charter = bare.with_reviewers(listed)
    base = World(charter, None)  # type: ignore[arg-type] # made in the next line
    return World(charter, base.make_case())


WORLD = make_world()


@pytest.fixture(scope="session")
def world() -> World:
    return WORLD


@pytest.fixture(scope="session")
def key_for() -> Callable[[str], Ed25519PrivateKey]:
    return key_of


@pytest.fixture
def store(tmp_path: Path, world: World) -> ReviewStore:
    """With the case in it."""
    kept = ReviewStore(open_store(tmp_path / "review.sqlite"))
    kept.open(world.case, world.documents())
    return kept
