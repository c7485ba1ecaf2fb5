"""A consent store with a template for five purposes, and a clock that tests move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cohortium.governance.consent import ConsentSignal, ConsentStore, Entry, RecordTemplate
from cohortium.privacy.ledger import open_store

TEMPLATE_PURPOSES = ("Marketing", "Personalisation", "CommercialResearch", "ServiceProvision", "CustomerManagement")


def template_document(**processing: Any) -> dict[str, Any]:
    """A record template with every field; keys of its processings changed, or taken out where None."""
    shared = {
        "lawful_basis": "eu-gdpr:A6-1-a-explicit-consent",
        "pii_information": [{"pii_type": "purchases", "pii_optional": False, "special_pii_category": False}],
        "pii_controllers": ["bank"],
        "collection_method": "form",
        "processing_method": "profiling",
        "storage_locations": ["EU"],
        "retention_period": "P5Y",
        "processing_locations": ["EU"],
        "geographic_restrictions": "EU",
        "jurisdiction": "EU",
        "recipient_third_parties": [],
        "withdrawal_method": "app",
        "privacy_rights": ["access"],
        **processing,
    }
    present = {name: value for name, value in shared.items() if value is not None}
    return {
        "schema": "cohortium.consent-record/1",
        "schema_version": "ISO/IEC TS 27560:2023",
        "privacy_notice": {"version": "1", "text_digest": "sha256:" + "0" * 64, "language": "en"},
        "parties": [
            {
                "party_id": "bank",
                "party_name": "North",
                "party_address": "1 Street",
                "party_contact": "dpo@north.example",
                "party_type": "controller",
                "role": "controller",
            }
        ],
        "processings": [{**present, "purpose": purpose} for purpose in TEMPLATE_PURPOSES],
    }


class Clock:
    """A time that only tests move."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **by: float) -> None:
        self.now += timedelta(**by)

    @property
    def seconds(self) -> int:
        return int(self.now.timestamp())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "consent.sqlite"


@pytest.fixture
def open_consent(database: Path, clock: Clock) -> Iterator[Callable[[], ConsentStore]]:
    """Open the same store again: another process would see the same."""
    opened: list[ConsentStore] = []

    def again() -> ConsentStore:
        opened.append(ConsentStore(open_store(database), clock))
        return opened[-1]

    yield again
    for store in opened:
        store.close()


@pytest.fixture
def store(open_consent: Callable[[], ConsentStore]) -> ConsentStore:
    return open_consent()


@pytest.fixture
def give(store: ConsentStore, clock: Clock) -> Callable[..., dict[str, Any]]:
    """Record a consent now, or at a time in seconds, and return its receipt."""
    digest = store.add_template(RecordTemplate.model_validate(template_document()))

    def record(
        person: str,
        *purposes: str,
        state: Any = "ConsentGiven",
        validity: str = "until-withdrawn",
        at: int | None = None,
        **personal: str,
    ) -> dict[str, Any]:
        signal = ConsentSignal(
            template=digest,
            purposes=purposes or ("Marketing",),
            state=state,
            event_type="explicit",
            validity_duration=validity,
            entity_id="data subject",
        )
        return store.record(Entry(person, signal, clock.seconds if at is None else at, personal or None))

    return record
