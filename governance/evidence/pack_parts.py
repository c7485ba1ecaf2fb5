"""The documents of an evidence pack that are made for it: what one party holds of the plans that the pack is about.

Each is canonical JSON with a schema of its own. Nothing in them is of a single customer: entries of the audit log,
prices, decisions with the facts that they rest on, roots of consent snapshots, and what was witnessed of other logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote

from pydantic import Field, StringConstraints

from cohortium.governance.rules import Decision, Facts
from cohortium.privacy.accounting import Spend, epsilon_spent
from cohortium.privacy.ledger import Charge
from cohortium.study.document import Agreed, Document
from cohortium.study.plan import Plan
from cohortium.study.witness import Statement

__all__ = [
    "ConsentOpening",
    "ConsentOpenings",
    "Decided",
    "Decisions",
    "KeptCheckpoint",
    "LedgerExtract",
    "LoggedEntry",
    "PackedCharge",
    "PartyLog",
    "PlanSpend",
    "Stated",
    "Witnessed",
    "ledger_extract",
    "party_folder",
    "party_name",
]

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
_Hash = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{43}=$")]
_Path = Annotated[tuple[_Hash, ...], Field(max_length=64)]
_Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(strict=True, ge=0, lt=2**53)]
_Units = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,80})$")]
_Sigma = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,40}$")]
_Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_PARTIES = "parties/"


class KeptCheckpoint(Agreed):
    """A checkpoint that the log signed, and the proof that it continues the one before it in the list."""

    note: str
    proof: _Path


class LoggedEntry(Agreed):
    """An entry of a log, and the proof that it is under the last checkpoint of the list."""

    index: _Count
    entry: dict[str, Any]
    salt: _Hex
    proof: _Path


class PartyLog(Document):
    """What a pack holds of one audit log.

    Args:
        schema_id: `cohortium.evidence-log/1`; written `schema`.
        origin: the log's name.
        checkpoints: every one that the party kept, by size.
        cosigned: the largest one that a quorum cosigned, with the cosignatures; None when there is none.
        entries: those of the pack's plans and those that name no plan, in order.
    """

    schema_id: Annotated[Literal["cohortium.evidence-log/1"], Field(alias="schema")] = "cohortium.evidence-log/1"
    origin: str
    checkpoints: tuple[KeptCheckpoint, ...]
    cosigned: str | None
    entries: tuple[LoggedEntry, ...]


class PackedCharge(Agreed):
    """A charge of the ledger; integers that can pass 2^53 are written as text."""

    sequence: _Count
    plan: Digest
    run: str
    phase: str
    step: _Count
    attempt: _Count
    question: Digest
    mechanism: str
    contributions: _Count
    colluders: _Count
    width: _Count
    bound_squared: _Units
    sigma: _Sigma
    mu2: _Units
    tv: _Units


class PlanSpend(Agreed):
    """What the charges of one plan come to, as the institution states it; epsilon is at the plan's delta."""

    plan: Digest
    charges: _Count
    mu2: _Units
    tv: _Units
    delta: _Finite
    epsilon: _Finite


class LedgerExtract(Document):
    """Charges of the pack's plans.

    Args:
        schema_id: `cohortium.evidence-ledger/1`; written `schema`.
        institution: whose ledger it is.
        charges: in order.
        spent: their sums, by plan in the order of the first charge.
    """

    schema_id: Annotated[Literal["cohortium.evidence-ledger/1"], Field(alias="schema")] = "cohortium.evidence-ledger/1"
    institution: str
    charges: tuple[PackedCharge, ...]
    spent: tuple[PlanSpend, ...]


class Decided(Agreed):
    """A policy decision and the facts that it rests on, as the institution keeps them."""

    plan: Digest
    decision: Decision
    facts: Facts


class Decisions(Document):
    """Decisions about the pack's plans, oldest first.

    Args:
        schema_id: `cohortium.evidence-decisions/1`; written `schema`.
        institution: whose.
        decisions: with their facts.
    """

    schema_id: Annotated[Literal["cohortium.evidence-decisions/1"], Field(alias="schema")] = (
        "cohortium.evidence-decisions/1"
    )
    institution: str
    decisions: tuple[Decided, ...]


class ConsentOpening(Agreed):
    """What opens the commitment in the log entry of a charge: the root of a consent snapshot, and a salt."""

    charge: _Count
    root: _Hex
    salt: _Hex


class ConsentOpenings(Document):
    """Of every charge whose reply was kept, in order.

    Args:
        schema_id: `cohortium.evidence-consent/1`; written `schema`.
        institution: whose.
        openings: see there.
    """

    schema_id: Annotated[Literal["cohortium.evidence-consent/1"], Field(alias="schema")] = (
        "cohortium.evidence-consent/1"
    )
    institution: str
    openings: tuple[ConsentOpening, ...]


class Witnessed(Document):
    """The newest checkpoints of other logs that a party cosigned, by the logs' names.

    Args:
        schema_id: `cohortium.evidence-witnessed/1`; written `schema`.
        institution: who cosigned.
        checkpoints: as the logs signed them.
    """

    schema_id: Annotated[Literal["cohortium.evidence-witnessed/1"], Field(alias="schema")] = (
        "cohortium.evidence-witnessed/1"
    )
    institution: str
    checkpoints: tuple[str, ...]


class Stated(Document):
    """What the coordinator was shown of an institution's log when it took contributions.

    Args:
        schema_id: `cohortium.evidence-stated/1`; written `schema`.
        institution: whose log.
        statements: of every contribution, by the entry's place in the log.
        closed: of every run that was closed, the log's last checkpoint with its cosignatures.
    """

    schema_id: Annotated[Literal["cohortium.evidence-stated/1"], Field(alias="schema")] = "cohortium.evidence-stated/1"
    institution: str
    statements: tuple[Statement, ...]
    closed: tuple[str, ...]


def party_folder(name: str) -> str:
    """Where a party's documents stand in a pack, with a slash at the end: its name, escaped as in URLs."""
    return f"{_PARTIES}{quote(name, safe='').replace('.', '%2E')}/"


def party_name(document: str) -> str | None:
    """Whose document that is, by its place; None where it is nobody's."""
    if not document.startswith(_PARTIES) or document.count("/") < 2:
        return None
    return unquote(document.split("/")[1])


def ledger_extract(institution: str, charges: list[Charge], plans: Mapping[str, Plan]) -> LedgerExtract:
    """The charges of plans with their sums and what each plan's come to in epsilon.

    Args:
        institution: whose.
        charges: in order.
        plans: the plans by digest: those of all charges.
    """
    by_plan: dict[str, list[Charge]] = {}
    for charge in charges:
        by_plan.setdefault(charge.slot.plan, []).append(charge)
    return LedgerExtract(
        institution=institution,
        charges=tuple(_packed(charge) for charge in charges),
        spent=tuple(_spent(plan, some, plans[plan].delta) for plan, some in by_plan.items()),
    )


def _spent(plan: str, charges: list[Charge], delta: float) -> PlanSpend:
    total = sum((charge.spend for charge in charges), Spend())
    return PlanSpend(
        plan=plan,
        charges=len(charges),
        mu2=str(total.mu2),
        tv=str(total.tv),
        delta=delta,
        epsilon=epsilon_spent(total, delta),
    )


def _packed(charge: Charge) -> PackedCharge:
    slot, share = charge.slot, charge.share
    return PackedCharge(
        sequence=charge.sequence,
        plan=slot.plan,
        run=slot.run,
        phase=slot.phase,
        step=slot.step,
        attempt=slot.attempt,
        question=charge.question,
        mechanism=charge.mechanism,
        contributions=share.contributions,
        colluders=share.colluders,
        width=charge.width,
        bound_squared=str(charge.bound_squared),
        sigma=str(charge.sigma),
        mu2=str(charge.spend.mu2),
        tv=str(charge.spend.tv),
    )
