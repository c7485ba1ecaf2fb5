"""An institution's answer to a proposed plan: approved under its signature, or declined."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from cohortium.client.desk import Desk
from cohortium.client.governing import refusal
from cohortium.client.lookalike import open_records
from cohortium.client.proposals import APPROVALS, DECLINED, PROPOSALS, keep, place_of, read_kept, read_proposal
from cohortium.client.store import Approval
from cohortium.client.witnessing import NodeLog
from cohortium.study.document import Agreed, Moment, read_json, validated
from cohortium.study.errors import CohortiumError, DataError, RefusedError
from cohortium.study.proposal import (
    Proposal,
    StudyApproval,
    check_approval,
    parse_approval,
    sign_approval,
)

__all__ = ["SignedStudy", "approval_file", "approve", "decline", "signed_study"]

_MOST_REASON = 500


class _Declined(Agreed):
    """That a plan is not approved here. It stays in this folder."""

    schema_id: Annotated[Literal["cohortium.study-declined/1"], Field(alias="schema")]
    plan: str
    by: str
    reason: str
    declined_at: Moment


def approve(folder: Path, plan: str, approver: str, key: Ed25519PrivateKey) -> StudyApproval:
    """Approve a proposed plan: the node answers its questions from now on. Approving again gives the same approval.

    It is logged first, then recorded for the node, then written to the file that the node delivers.

    Args:
        folder: the node's.
        plan: digest of the proposed plan.
        approver: account that approves.
        key: the institution's identity key.

    Raises:
        RefusedError: there is no such proposal, it was altered, declined or approved within another charter, the node
            was restored and is not confirmed, the plan is for other code, a rule in force here does not admit it, or
            the key is not the charter's.
        PlanError: it has expired, is not safe in this federation, or not for the contract of this node's table.
        BudgetError: the lifetime budget does not cover it.
    """
    proposal = read_proposal(folder, plan)
    with open_records(folder) as records, ExitStack() as stack:
        desk = Desk.open(records, proposal, stack)
        for check in desk.checks():
            check()
        institution = records.identity.institution
        earlier = _approval(folder, proposal)
        if earlier is not None and records.approvals.approved(plan) is not None:
            return earlier
        decision = desk.decision()
        if decision is not None and not decision.admitted:
            raise RefusedError(
                refusal(decision), place="rules in force here", fix="cohortium study review shows every finding"
            )
        signed = sign_approval(proposal, institution, approver, key, datetime.now(UTC))
        said = signed.approval
        log = NodeLog(folder, institution, key, lambda _plan: Approval(proposal.plan, proposal.charter))
        stack.callback(log.close)
        entry = {"event": "study-approved", "plan": plan, "charter": said.charter, "proposal": said.proposal}
        log.record(f"study-approved {said.digest}", {**entry, "approval": said.digest})
        records.approvals.approve(proposal.plan, records.contract, proposal.charter)
        keep(approval_file(folder, plan), signed.to_bytes())
    return said


def approval_file(folder: Path, plan: str) -> Path:
    """Where a plan's approval is kept; `RefusedError` for what is no plan's digest."""
    return place_of(folder, APPROVALS, plan)


@dataclass(frozen=True)
class SignedStudy:
    """A proposal, and the bytes of it and of this institution's approval as they were signed."""

    proposal: Proposal
    proposed: bytes
    approved: bytes


def signed_study(folder: Path, plan: str, *, simulation: bool) -> SignedStudy | None:
    """What was signed of a plan that is approved here.

    Args:
        folder: the node's.
        plan: its digest.
        simulation: of the node: one of a simulation has plans that nobody proposed, of which this is None.

    Raises:
        RefusedError: proposal or approval are not there, or were altered.
    """
    path, file = place_of(folder, PROPOSALS, plan), approval_file(folder, plan)
    if simulation and not path.exists():
        return None
    proposal, approved = read_proposal(folder, plan), read_kept(file)
    check_approval(parse_approval(approved, str(file)), proposal, str(file))
    return SignedStudy(proposal, read_kept(path), approved)


def decline(folder: Path, plan: str, by: str, reason: str) -> None:
    """Write down that a proposed plan is not approved here, for good. It stays in this folder.

    Raises:
        RefusedError: there is no such proposal, or it was approved: an approval ends with its plan.
        DataError: no reason in one line of at most 500 characters.
    """
    proposal = read_proposal(folder, plan)
    if not reason.strip() or len(reason) > _MOST_REASON or not reason.isprintable():
        raise DataError("is no line of 1 to 500 characters", place="reason", fix="say why in one line")
    with open_records(folder) as records:
        if records.approvals.approved(proposal.plan.digest) is not None:
            raise RefusedError(
                "the plan was approved here", place="plan", fix="an approval ends on the plan's last day"
            )
    path = place_of(folder, DECLINED, plan)
    if path.exists():
        validated(_Declined, read_json(path, DataError), str(path), {}, DataError)
        return
    said = {"plan": plan, "by": by, "reason": reason.strip(), "declined_at": datetime.now(UTC).replace(microsecond=0)}
    document = _Declined.model_validate({"schema": "cohortium.study-declined/1", **said})
    keep(path, (document.model_dump_json(indent=2, by_alias=True) + "\n").encode())


def _approval(folder: Path, proposal: Proposal) -> StudyApproval | None:
    """The approval that was given before, if it is whole."""
    path = approval_file(folder, proposal.plan.digest)
    if not path.exists():
        return None
    try:
        signed = parse_approval(read_kept(path), str(path))
        check_approval(signed, proposal, str(path))
    except CohortiumError:
        return None
    return signed.approval
