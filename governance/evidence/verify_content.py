"""The documents of packs, read: each by its place, each once, each of a form that is known there."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from cohortium.governance.evidence.pack_parts import (
    ConsentOpenings,
    Decisions,
    LedgerExtract,
    PartyLog,
    Stated,
    Witnessed,
    party_folder,
    party_name,
)
from cohortium.governance.evidence.pack_reading import Pack
from cohortium.governance.evidence.verify_finding import Finding, wrong
from cohortium.governance.fairness import FairnessResult
from cohortium.governance.log import COORDINATOR
from cohortium.governance.review import PARTS, CaseFile, parse_case_file
from cohortium.study.audit_tables import AuditTables
from cohortium.study.bundle import Bundle
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.contract import Contract
from cohortium.study.document import Document, validated
from cohortium.study.errors import CohortiumError, DataError
from cohortium.study.model import EncoderModel, LookalikeModel, ModelDocument, load_model
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan
from cohortium.study.proposal import Proposal, SignedApproval, parse_approval, parse_proposal

__all__ = [
    "ATTACK_AUDIT",
    "CHARTER",
    "Content",
    "Party",
    "ReleasedDocument",
    "ReviewedCase",
    "read_content",
]

CHARTER, ATTACK_AUDIT = "charter.json", "attack-audit.json"
"""Documents with a place of their own."""

ReleasedDocument = Bundle | AuditTables | EncoderModel | LookalikeModel
"""What a run released; a model's arrays were verified against it."""

_HEX = r"(?P<hex>[0-9a-f]{64})"
_MODELS: dict[str, type[EncoderModel] | type[LookalikeModel]] = {
    "encoder.safetensors": EncoderModel,
    "lookalike.safetensors": LookalikeModel,
}
_DOCUMENTS: dict[str, type[Bundle] | type[AuditTables]] = {"bundle.json": Bundle, "tables.json": AuditTables}
_Read = TypeVar("_Read", bound=Document)
_Own = TypeVar("_Own", LedgerExtract, Decisions, ConsentOpenings, Witnessed, Stated)


@dataclass(frozen=True)
class ReviewedCase:
    """A case with its statements, and the documents that lie beside it, by part."""

    place: str
    file: CaseFile
    documents: dict[str, dict[str, Any]]


@dataclass
class Party:
    """What packs hold of one party; None where they hold nothing.

    Args:
        plans: of its log: those whose entries were packed; None where nothing was left out.
    """

    name: str
    log: PartyLog | None = None
    plans: frozenset[str] | None = None
    ledger: LedgerExtract | None = None
    decisions: Decisions | None = None
    consent: ConsentOpenings | None = None
    witnessed: Witnessed | None = None
    stated: Stated | None = None
    cases: list[ReviewedCase] = field(default_factory=list)

    @property
    def institution(self) -> str | None:
        """Its name in the charter; None for the coordinator."""
        return None if self.name == COORDINATOR else self.name

    def shows(self, plan: str) -> bool:
        """Whether its log is there with the entries of a plan."""
        return self.log is not None and (self.plans is None or plan in self.plans)


@dataclass
class Content:
    """The documents of one pack or several.

    Args:
        plans, contracts, proposals, approvals: by digest.
        parties: by name.
        released: by the digest of the plan, with the document's name.
        fairness: results by the document's name.
        charters: by the path of the pack.
        attack_audit: None where it is not there.
        others: documents that nothing is checked of but their bytes.
    """

    plans: dict[str, Plan] = field(default_factory=dict)
    contracts: dict[str, Contract] = field(default_factory=dict)
    proposals: dict[str, Proposal] = field(default_factory=dict)
    approvals: dict[str, SignedApproval] = field(default_factory=dict)
    parties: dict[str, Party] = field(default_factory=dict)
    released: dict[str, tuple[str, ReleasedDocument]] = field(default_factory=dict)
    fairness: dict[str, FairnessResult] = field(default_factory=dict)
    charters: dict[str, Charter] = field(default_factory=dict)
    attack_audit: dict[str, Any] | None = None
    others: list[str] = field(default_factory=list)


def read_content(packs: Sequence[Pack], charter: Charter) -> tuple[Content, list[Finding]]:
    """Everything that can be read, and a finding for every document that cannot, or is not the same in two packs.

    Args:
        packs: opened, so that every byte is verified.
        charter: pins the key under which proposals and released models are signed.
    """
    content, findings = Content(), []
    first: dict[str, Pack] = {}
    for pack in packs:
        reader = _Reader(pack, charter, content)
        for name in pack.names:
            try:
                if name == CHARTER or first.setdefault(name, pack) is pack:
                    reader.take(name)
                else:
                    _require_same(name, first[name], pack)
            except CohortiumError as error:
                findings.append(Finding("documents", name, "failed", error.message))
    return content, findings


def _require_same(name: str, one: Pack, other: Pack) -> None:
    if one.packed[name].sha256 != other.packed[name].sha256:
        raise wrong(f"is not the same in {one.path} and {other.path}")


class _Reader:
    def __init__(self, pack: Pack, charter: Charter, content: Content) -> None:
        self._pack, self._charter, self.content = pack, charter, content
        self._kinds: list[tuple[re.Pattern[str], Callable[[str, re.Match[str]], None]]] = [
            (re.compile(re.escape(CHARTER)), self._take_charter),
            (re.compile(re.escape(ATTACK_AUDIT)), self._take_attack_audit),
            (re.compile(rf"plans/{_HEX}\.json"), self._take_plan),
            (re.compile(rf"contracts/{_HEX}\.json"), self._take_contract),
            (re.compile(rf"proposals/{_HEX}\.json"), self._take_proposal),
            (re.compile(rf"approvals/{_HEX}\.json"), self._take_approval),
            (re.compile(rf"released/{_HEX}/(?P<file>[a-z.]+)"), self._take_released),
            (re.compile(r"fairness/[^/]+\.json"), self._take_fairness),
            (re.compile(r"added/[^/]+"), self._take_other),
            (re.compile(r"parties/[^/]+/(?P<file>[a-z]+)\.json"), self._take_part),
            (re.compile(r"parties/[^/]+/reviews/(?P<case>[^/]+)/case\.json"), self._take_case),
            (
                re.compile(rf"parties/[^/]+/reviews/(?P<case>[^/]+)/({'|'.join(PARTS)})\.json"),
                self._take_reviewed,
            ),
        ]

    def take(self, name: str) -> None:
        """Read one document; `CohortiumError` for one that is not what its place says."""
        for pattern, read in self._kinds:
            if found := pattern.fullmatch(name):
                read(name, found)
                return
        raise wrong("is no document that this version knows")

    def _document(self, kind: type[_Read], name: str) -> _Read:
        made = validated(kind, self._pack.json(name), name, {}, DataError)
        if made.to_bytes() != self._pack.read(name):
            raise wrong("is not canonical JSON")
        return made

    def _take_charter(self, name: str, _: re.Match[str]) -> None:
        self.content.charters[str(self._pack.path)] = parse_charter(self._pack.json(name), name)

    def _take_attack_audit(self, name: str, _: re.Match[str]) -> None:
        self.content.attack_audit = self._pack.json(name)

    def _take_plan(self, name: str, found: re.Match[str]) -> None:
        plan = parse_plan(self._pack.json(name), name)
        self.content.plans[_same_digest(plan, found)] = plan

    def _take_contract(self, name: str, found: re.Match[str]) -> None:
        contract = validated(Contract, self._pack.json(name), name, {}, DataError)
        self.content.contracts[_same_digest(contract, found)] = contract

    def _take_proposal(self, name: str, found: re.Match[str]) -> None:
        coordinator = self._charter.coordinator or ""
        data = self._pack.read(name)
        signed = parse_proposal(data, name, federation=self._charter.name, coordinator=coordinator)
        self.content.proposals[_same_digest(signed.proposal, found)] = signed.proposal

    def _take_approval(self, name: str, found: re.Match[str]) -> None:
        signed = parse_approval(self._pack.read(name), name)
        self.content.approvals[_same_digest(signed.approval, found)] = signed

    def _take_released(self, name: str, found: re.Match[str]) -> None:
        file, plan = found["file"], f"sha256:{found['hex']}"
        made = self._model(name, _MODELS[file]) if file in _MODELS else self._plain(name, file)
        if made.plan.digest != plan:
            raise wrong("was released under another plan")
        if plan in self.content.released:
            raise wrong("two documents were released under one plan")
        self.content.released[plan] = name, made

    def _plain(self, name: str, file: str) -> Bundle | AuditTables:
        if file not in _DOCUMENTS:
            raise wrong("is nothing that a run releases")
        try:
            return _DOCUMENTS[file].model_validate(self._pack.json(name))
        except ValidationError as error:
            raise wrong("does not hold together") from error

    def _model(self, name: str, kind: type[ModelDocument]) -> EncoderModel | LookalikeModel:
        with tempfile.TemporaryDirectory(prefix="cohortium-") as work:
            file = Path(work) / "model.safetensors"
            self._pack.unpack(name, file)
            made = load_model(file, kind, signer=self._charter.coordinator or "").document
        if not isinstance(made, EncoderModel | LookalikeModel):
            raise wrong("is nothing that a run releases")
        return made

    def _take_fairness(self, name: str, _: re.Match[str]) -> None:
        self.content.fairness[name] = validated(FairnessResult, self._pack.json(name), name, {}, DataError)

    def _take_other(self, name: str, _: re.Match[str]) -> None:
        self.content.others.append(name)

    def _take_part(self, name: str, found: re.Match[str]) -> None:
        party = self._party(name)
        match found["file"]:
            case "log":
                party.log = self._document(PartyLog, name)
                plans = self._pack.manifest.plans
                party.plans = None if plans is None else frozenset(plans)
            case "ledger":
                party.ledger = self._of(party, self._document(LedgerExtract, name))
            case "decisions":
                party.decisions = self._of(party, self._document(Decisions, name))
            case "consent":
                party.consent = self._of(party, self._document(ConsentOpenings, name))
            case "witnessed":
                party.witnessed = self._of(party, self._document(Witnessed, name))
            case "stated":
                party.stated = self._of(party, self._document(Stated, name))
            case _:
                raise wrong("is no document that this version knows")

    def _take_case(self, name: str, found: re.Match[str]) -> None:
        file = parse_case_file(self._pack.read(name), name)
        if file.case.name != found["case"]:
            raise wrong("is another case than its place says")
        folder = name.removesuffix("case.json")
        beside = {part: f"{folder}{part}.json" for part in PARTS}
        documents: dict[str, dict[str, Any]] = {
            part: self._pack.json(place) for part, place in beside.items() if place in self._pack.offsets
        }
        self._party(name).cases.append(ReviewedCase(folder, file, documents))

    def _take_reviewed(self, name: str, found: re.Match[str]) -> None:
        """A document of a case is read with the case."""
        if name.rpartition("/")[0] + "/case.json" not in self._pack.offsets:
            raise wrong(f"case '{found['case']}' is not there")
        self._pack.json(name)

    def _party(self, name: str) -> Party:
        who = party_name(name)
        members = {member.name for member in self._charter.institutions} | {COORDINATOR}
        if who not in members or not name.startswith(party_folder(who)):
            raise wrong("is of nobody whom the charter names")
        return self.content.parties.setdefault(who, Party(who))

    @staticmethod
    def _of(party: Party, made: _Own) -> _Own:
        if made.institution != party.name:
            raise wrong("is of another institution than its place says")
        return made


def _same_digest(made: Document, found: re.Match[str]) -> str:
    if made.digest != f"sha256:{found['hex']}":
        raise wrong("is not of the digest that its name says")
    return made.digest
