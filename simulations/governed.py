"""Consent and rules of simulated institutions. Who consented is made up: nothing here says anything of real people."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from importlib import resources
from pathlib import Path

from cohortium.client.governing import CONSENT_FILE, GOVERNANCE_FILE
from cohortium.governance.consent import ConsentSignal, ConsentStore, Entry, FlagSignal, RecordTemplate
from cohortium.governance.consent.signals import AnySignal
from cohortium.privacy.ledger import open_store
from cohortium.study.keys import write_whole

__all__ = ["SimulatedGovernance"]

_PACKS = {"EU": ("eu",), "UK": ("eu", "uk")}
_GIVEN = int(datetime(2026, 1, 2, tzinfo=UTC).timestamp())
_PURPOSE = "Marketing"
_OBJECTS = FlagSignal(kind="marketing-objection", state="set")


@dataclass(frozen=True)
class SimulatedGovernance:
    """Regions, rules and consents for the institutions of a simulation.

    Args:
        regions: of the institutions, in their order; those after the last have the last one's.
        refused: percent of customers who refuse.
        silent: percent who never answered.
        objected: percent who object to direct marketing although they once agreed.
    """

    regions: tuple[str, ...] = ("EU", "EU", "EU", "EU", "EU", "UK", "UK", "UK")
    refused: int = 4
    silent: int = 3
    objected: int = 1

    def region(self, index: int) -> str:
        """Of the institution of that number."""
        return self.regions[min(index, len(self.regions) - 1)]

    def prepare(self, folder: Path, index: int, ids: Sequence[str]) -> None:
        """Write what the node in a folder declares, and what its customers said; what is there stays as it is."""
        path = folder / GOVERNANCE_FILE
        if not path.exists():
            packs = ", ".join(f'"{pack}"' for pack in _PACKS.get(self.region(index), ()))
            write_whole(path, _packaged("demo.governance.toml").replace("packs = []", f"packs = [{packs}]").encode())
        engine = open_store(folder / CONSENT_FILE)
        try:
            store = ConsentStore(engine)
            if store.sequence == 0:
                template = store.add_template(_template())
                answers = {agreed: _consent(template, agreed=agreed) for agreed in (False, True)}
                store.record_many([entry for person in ids for entry in self._said(person, answers)])
        finally:
            engine.dispose()

    def _said(self, person: str, answers: Mapping[bool, ConsentSignal]) -> list[Entry]:
        """What somebody said: the same for the same id."""
        draw = int.from_bytes(blake2b(person.encode(), digest_size=8, person=b"cohortium.demo/1").digest(), "big") % 100
        if draw < self.silent:
            return []
        said: list[AnySignal] = [answers[draw >= self.silent + self.refused]]
        if draw >= 100 - self.objected:
            said.append(_OBJECTS)
        return [Entry(person, signal, _GIVEN + place) for place, signal in enumerate(said)]


def _consent(template: str, *, agreed: bool) -> ConsentSignal:
    return ConsentSignal(
        template=template,
        purposes=(_PURPOSE,),
        state="ConsentGiven" if agreed else "ConsentRefused",
        event_type="explicit",
        validity_duration="P24M",
        entity_id="data subject",
    )


def _template() -> RecordTemplate:
    return RecordTemplate.model_validate(tomllib.loads(_packaged("demo.consent.toml")))


def _packaged(name: str) -> str:
    return (resources.files("cohortium.simulations") / "plans" / name).read_text(encoding="utf-8")
