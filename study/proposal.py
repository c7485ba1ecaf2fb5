"""Proposals of studies and their approvals: what a coordinator asks institutions to answer, and what they signed of it.

A proposal holds everything that a node needs to judge a plan: the plan with the code that runs it, the feature
contract and the charter, whole. The coordinator signs it with its identity key; an institution that approves signs an
answer with its own. Either signature covers a label and the canonical JSON (RFC 8785) of everything else.

On disk and on every wire a document is its canonical JSON, byte for byte, and anything else is refused.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    StringConstraints,
    model_validator,
)

from cohortium.study.charter import Charter, has_signed, parse_charter
from cohortium.study.contract import Contract
from cohortium.study.document import Document, Moment, parse_json, validated
from cohortium.study.errors import PlanError, RefusedError
from cohortium.study.lookalike_plan import LookalikePlan
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan

__all__ = [
    "APPROVAL_SCHEMA",
    "MAX_PROPOSAL",
    "PROPOSAL_SCHEMA",
    "Proposal",
    "SignedApproval",
    "SignedProposal",
    "StudyApproval",
    "check_approval",
    "parse_approval",
    "parse_proposal",
    "sign_approval",
    "sign_proposal",
]

PROPOSAL_SCHEMA = "cohortium.proposal/1"
"""The schema of a proposal; another one is refused."""

APPROVAL_SCHEMA = "cohortium.study-approval/1"
"""The schema of an approval; another one is refused."""

MAX_PROPOSAL = 2**22
"""Bytes of a proposal; an approval has at most a hundredth of it."""

_MAX_APPROVAL = MAX_PROPOSAL // 100
_DIGEST = r"^sha256:[0-9a-f]{64}$"
_NAME = r"^[^\s](.{0,126}[^\s])?$"
_ACCOUNT = r"^[A-Za-z0-9_][A-Za-z0-9._@-]{0,127}$"
_SIGNATURE = r"^[0-9a-f]{128}$"
_FORMS = {
    _DIGEST: "give a digest, sha256: and 64 hexadecimal digits",
    _NAME: "give a name of 1 to 128 characters",
    _ACCOUNT: "give an account's name: letters, digits, '.', '-', '_' and '@'",
    _SIGNATURE: "give the Ed25519 signature as 128 hexadecimal digits",
}
_Digest = Annotated[str, StringConstraints(pattern=_DIGEST)]
_Name = Annotated[str, StringConstraints(pattern=_NAME)]
_Signature = Annotated[str, StringConstraints(pattern=_SIGNATURE)]
_Signed = TypeVar("_Signed", "SignedProposal", "SignedApproval")


def _any_plan(value: Any) -> Plan:
    """A plan of its kind."""
    if isinstance(value, Plan):
        return value
    if not isinstance(value, dict):
        raise ValueError("a plan is an object; give the whole document")
    try:
        return parse_plan(value)
    except PlanError as error:
        raise ValueError(f"{error.place}: {error.message}; {error.fix}") from None


def _any_charter(value: Any) -> Charter:
    if isinstance(value, Charter):
        return value
    if not isinstance(value, dict):
        raise ValueError("a charter is an object; give the whole document")
    try:
        return parse_charter(value)
    except PlanError as error:
        raise ValueError(f"{error.place}: {error.message}; {error.fix}") from None


_Plan = Annotated[SerializeAsAny[Plan], BeforeValidator(_any_plan)]
_Charter = Annotated[Charter, BeforeValidator(_any_charter)]


class Proposal(Document):
    """A plan that a coordinator wants answered, with all that it rests on.

    Args:
        schema_id: `cohortium.proposal/1`; written `schema`.
        federation: the charter's name.
        plan: with the code that asks and answers.
        contract: the one that the plan names.
        charter: with the coordinator's identity key.
        base: digest of the encoder's model that a campaign stands on; None for other plans.
        made: UTC, whole seconds.
    """

    schema_id: Annotated[Literal["cohortium.proposal/1"], Field(alias="schema")] = "cohortium.proposal/1"
    federation: _Name
    plan: _Plan
    contract: Contract
    charter: _Charter
    base: _Digest | None
    made: Moment

    @model_validator(mode="after")
    def _of_one_piece(self) -> Proposal:
        if self.plan.contract != self.contract.digest:
            raise ValueError("the contract is not the one that the plan names; propose the plan with its contract")
        if self.plan.software is None:
            raise ValueError("the plan does not say which code asks and answers; have it proposed again")
        if self.charter.name != self.federation:
            raise ValueError("the charter is another federation's; propose within the charter of this one")
        if self.charter.coordinator is None:
            raise ValueError("the charter has no key of the coordinator; enrol its Ed25519 public key")
        if self.base != (self.plan.model if isinstance(self.plan, LookalikePlan) else None):
            raise ValueError("base is not the model that the plan stands on; propose the plan with its model")
        return self

    def signable(self) -> bytes:
        """What the coordinator signs."""
        return f"{PROPOSAL_SCHEMA}\n".encode() + self.to_bytes()


class SignedProposal(Document):
    """A proposal with the coordinator's signature in hexadecimal."""

    proposal: Proposal
    signature: _Signature


class StudyApproval(Document):
    """What an institution says when it approves a plan.

    Args:
        schema_id: `cohortium.study-approval/1`; written `schema`.
        federation: the charter's name.
        plan, charter, proposal: digests of what was approved.
        institution: who approves.
        approver: account at the institution that did it.
        approved_at: UTC, whole seconds.
    """

    schema_id: Annotated[Literal["cohortium.study-approval/1"], Field(alias="schema")] = "cohortium.study-approval/1"
    federation: _Name
    plan: _Digest
    charter: _Digest
    proposal: _Digest
    institution: _Name
    approver: Annotated[str, StringConstraints(pattern=_ACCOUNT)]
    approved_at: Moment

    def signable(self) -> bytes:
        """What the institution signs."""
        return f"{APPROVAL_SCHEMA}\n".encode() + self.to_bytes()


class SignedApproval(Document):
    """An approval with the institution's signature in hexadecimal."""

    approval: StudyApproval
    signature: _Signature


def sign_proposal(proposal: Proposal, key: Ed25519PrivateKey) -> SignedProposal:
    """The proposal, signed.

    Raises:
        RefusedError: the charter names another key as the coordinator's.
    """
    if proposal.charter.coordinator != key.public_key().public_bytes_raw().hex():
        raise RefusedError(
            "the charter names another key as the coordinator's",
            place="charter: coordinator",
            fix="propose with the identity key that the charter names",
        )
    return SignedProposal(proposal=proposal, signature=key.sign(proposal.signable()).hex())


def parse_proposal(data: bytes, place: str, *, federation: str, coordinator: str) -> SignedProposal:
    """A proposal that the coordinator of a federation signed.

    Args:
        data: the document.
        place: where it is from, for messages.
        federation: the name that its charter must have.
        coordinator: the coordinator's Ed25519 public key in hexadecimal, as it was confirmed when the node joined.

    Raises:
        RefusedError: too large, malformed, of another federation, not signed by that key, or different in one byte from
            what was signed.
    """
    found = _parsed(SignedProposal, data, place, MAX_PROPOSAL)
    proposal = found.proposal
    if proposal.federation != federation:
        raise RefusedError("is of another federation", place=place, fix="take proposals of the one that was joined")
    if proposal.charter.coordinator != coordinator or not has_signed(coordinator, found.signature, proposal.signable()):
        raise RefusedError(
            "is not signed by the coordinator of this federation", place=place, fix="get it from the coordinator anew"
        )
    return found


def sign_approval(
    proposal: Proposal, institution: str, approver: str, key: Ed25519PrivateKey, now: datetime
) -> SignedApproval:
    """An institution's approval of a proposal, signed.

    Args:
        proposal: verified before (`parse_proposal`).
        institution: who approves, by its name in the charter.
        approver: account that approves.
        key: the institution's identity key.
        now: UTC.

    Raises:
        RefusedError: the charter does not name the institution with that key, or an account's name of the wrong form.
    """
    document = {
        "federation": proposal.federation,
        "plan": proposal.plan.digest,
        "charter": proposal.charter.digest,
        "proposal": proposal.digest,
        "institution": institution,
        "approver": approver,
        "approved_at": now.astimezone(UTC).replace(microsecond=0),
    }
    approval = validated(StudyApproval, {"schema": APPROVAL_SCHEMA, **document}, "approval", _FORMS, RefusedError)
    signed = SignedApproval(approval=approval, signature=key.sign(approval.signable()).hex())
    check_approval(signed, proposal, "approval")
    return signed


def parse_approval(data: bytes, place: str) -> SignedApproval:
    """An approval, whose signature nobody has verified yet; `RefusedError` when it is too large or malformed."""
    return _parsed(SignedApproval, data, place, _MAX_APPROVAL)


def check_approval(signed: SignedApproval, proposal: Proposal, place: str) -> None:
    """Whether an institution of the proposal's charter approved this very proposal.

    Args:
        signed: the approval.
        proposal: verified before.
        place: where it is from, for messages.

    Raises:
        RefusedError: it is about another federation, plan, charter or proposal, of nobody whom the charter names, or
            not signed by that member's identity key.
    """
    approval = signed.approval
    pairs = {
        "federation": (approval.federation, proposal.federation),
        "plan": (approval.plan, proposal.plan.digest),
        "charter": (approval.charter, proposal.charter.digest),
        "proposal": (approval.proposal, proposal.digest),
    }
    for name, (said, wanted) in pairs.items():
        if said != wanted:
            raise RefusedError(f"approves another {name}", place=place, fix="have this very proposal approved")
    member = next((one for one in proposal.charter.institutions if one.name == approval.institution), None)
    if member is None or member.identity is None:
        raise RefusedError(
            f"the charter has no identity key of '{approval.institution}'", place=place, fix="enrol the institution"
        )
    if not has_signed(member.identity, signed.signature, approval.signable()):
        raise RefusedError(
            f"is not signed by the identity key of '{member.name}'", place=place, fix="have the institution sign it"
        )


def _parsed(model: type[_Signed], data: bytes, place: str, most: int) -> _Signed:
    if len(data) > most:
        raise RefusedError(f"is above {most:,} bytes", place=place, fix="get the file that was made")
    found = validated(model, parse_json(data, place, RefusedError), place, _FORMS, RefusedError)
    if found.to_bytes() != data:
        raise RefusedError("is not byte for byte what was signed", place=place, fix="get the file that was made")
    return found
