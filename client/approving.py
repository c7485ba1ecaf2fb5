"""Studies that a coordinator proposed: what they would ask here in plain words, and this institution's answer.

In the node's folder, by the 64 digits of a plan's digest:

    proposals/HEX.json   the proposal, as the coordinator signed it
    approvals/HEX.json   this institution's signed approval, which the node delivers
    declined/HEX.json    that it is not approved here, and why; never sent

A review counts the institution's own customers for its own people. No number of it stands in any file that leaves.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from cohortium.client.governing import NodeGovernance, cohort_of, open_consent, read_governance, refusal
from cohortium.client.joining import Link, read_link
from cohortium.client.lookalike import NodeRecords, open_records
from cohortium.client.node import check_software
from cohortium.client.restored import require_confirmed
from cohortium.client.store import Approval
from cohortium.client.witnessing import LOG_FILE, NodeLog
from cohortium.governance.log import LogReader, log_origin, quorum_for
from cohortium.governance.rules import Decision
from cohortium.models.preflight import preflight
from cohortium.models.programme import Phase
from cohortium.models.studies import phases
from cohortium.privacy.accounting import Spend, budget_for, epsilon_spent, person_at
from cohortium.privacy.ledger import Ledger, open_store
from cohortium.privacy.outlook import preview
from cohortium.privacy.stores import has_store
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.charter import Charter
from cohortium.study.document import Agreed, Moment, read_json, validated
from cohortium.study.errors import BudgetError, CohortiumError, DataError, Defect, OutputError, RefusedError
from cohortium.study.keys import write_whole
from cohortium.study.plan import Plan, TrainingPlan
from cohortium.study.proposal import (
    MAX_PROPOSAL,
    Proposal,
    StudyApproval,
    check_approval,
    parse_approval,
    parse_proposal,
    sign_approval,
)
from cohortium.study.software import installed_software

__all__ = [
    "Asked",
    "Change",
    "Coverage",
    "Lifetime",
    "Member",
    "Pending",
    "Review",
    "add_proposal",
    "approval_file",
    "approve",
    "decline",
    "pending",
    "review",
]

_PROPOSALS, _APPROVALS, _DECLINED = "proposals", "approvals", "declined"
_MOST_PROPOSALS = 1000
_MOST_REASON = 500
_log = logging.getLogger(__name__)

State = Literal["new", "approved", "declined", "expired"]

_QUESTIONS: Mapping[str, str] = {
    "marginals": "how many customers lie in each of many intervals of every number feature",
    "moments": "how many customers there are, and the mean and covariance of their features",
    "moments cells": "the same within each of the groups that earlier answers suggest",
    "moments lloyd": "how many customers are nearest to each centre, and how far they lie from it together",
    "profiles": "how many customers each segment has, and the sums of their features",
    "rfm-grid": "how many customers fall into each cell of recency by frequency",
    "row-moments": "the covariance of customers' features",
    "encoder-gradient": "the sum of the customers' clipped gradients, for one step of training",
    "frame-sum": "the sum of the customers' coordinates",
    "seed-sum": "how many customers are on the seed list, and the sum of their coordinates",
    "seed-gradient": "the sum of clipped gradients that tell the seed list from all others",
    "ranker-contest": "which of two rankings puts the seed list higher, as sums of ranks",
    "score-curve": "how many customers, on the seed list and not, have each score",
    "audience-profile": "how many customers are in the audience and outside, and the sums of their features",
    "group-counts": "how many customers of each protected group have each outcome",
    "group-sums": "the sum, over each protected group, of the distance to the segment's centre",
}
"""What a question asks, by the kind of query; by kind and phase where that says more."""

_RELEASED: Mapping[str, str] = {
    "segments": "segments: centres, noisy sizes and feature means, and the RFM grid where the plan asks for it",
    "encoder": "an encoder: its weights, and the noisy statistics it starts from",
    "lookalike": "a ranker, its noisy curve of reach, and the noisy profile of the audience",
    "audit": "noisy tables of outcomes by protected group",
}
"""What a run releases to all members and the coordinator, by the kind of study."""

_TRUST: Mapping[str, str] = {
    "distributed": "a secure sum: institutions share the noise, which protects while at most {c} of them collude",
    "local": "every institution adds all of the noise: nobody else has to be trusted",
    "unsafe-none": "no noise at all: nobody is protected",
}


class _Declined(Agreed):
    """That a plan is not approved here. It stays in this folder."""

    schema_id: Annotated[Literal["cohortium.study-declined/1"], Field(alias="schema")]
    plan: str
    by: str
    reason: str
    declined_at: Moment


@dataclass(frozen=True)
class Pending:
    """A proposal in a node's folder, and what this institution said of it."""

    proposal: Proposal
    state: State


@dataclass(frozen=True)
class Member:
    """Who would take part; `identity` as the charter pins it."""

    name: str
    region: str
    group: str | None
    identity: str | None


@dataclass(frozen=True)
class Asked:
    """A phase of the plan.

    Args:
        phase: its name.
        questions: how many it asks; each may be asked again, up to the plan's `max_attempts`.
        asks: what, in words.
        share: per cent of the plan's budget (its mu^2).
        epsilon: what the phase alone may cost one person here, at the plan's delta.
    """

    phase: str
    questions: int
    asks: str
    share: float
    epsilon: float


@dataclass(frozen=True)
class Lifetime:
    """The institution's budget for life, every epsilon at `delta`.

    Args:
        epsilon, delta: the budget.
        before: what was spent.
        held: with what open runs may still spend.
        after: with this plan; None where it does not fit.
    """

    epsilon: float
    delta: float
    before: float
    held: float
    after: float | None


@dataclass(frozen=True)
class Change:
    """A field that differs from an earlier plan or its charter; None where one of them lacks it."""

    field: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Coverage:
    """Of how many customers on record consent stands for this plan. For this institution alone.

    Args:
        people: on record.
        counted: of them, who may be counted now.
        left_out: how many each reason leaves out; one person may have several.
    """

    people: int
    counted: int
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class Review:
    """A proposed plan in plain words, and what stands in its way here.

    Args:
        plan: its digest.
        name, study, purpose, lawful_basis, regions, expires, min_cell, min_institutions, max_attempts: the plan's.
        federation, charter: the charter's name and digest.
        members: who would take part.
        trust: whose noise protects, in words.
        asked: every phase.
        features: what it uses of the contract.
        epsilon, delta: what the whole plan may cost one person here.
        person_at: the same for somebody who is a customer of 1, 2, 3 or all members, at the plan's delta.
        lifetime: the budget for life before and after.
        released: what comes of it, for all members.
        software, installed: the plan's code and what is installed, as version and digest.
        fields: every field of the plan and, as `charter.…`, of the charter, by its place: its value as JSON.
        earlier: digest of the newest plan of this name and kind that was approved; None where there is none.
        changes: what differs from that one.
        decision: what the rules in force here say today; None where a node of a simulation has none.
        coverage: of consent; None where none is kept here.
        state: what this institution said of it.
        problems: why it cannot be approved, each with what to do; empty when it can.
    """

    plan: str
    name: str
    study: str
    purpose: str
    lawful_basis: str
    regions: tuple[str, ...]
    expires: date
    min_cell: int
    min_institutions: int
    max_attempts: int
    federation: str
    charter: str
    members: tuple[Member, ...]
    trust: str
    asked: tuple[Asked, ...]
    features: tuple[str, ...]
    epsilon: float
    delta: float
    person_at: Mapping[int, float]
    lifetime: Lifetime
    released: str
    software: tuple[str, str]
    installed: tuple[str, str]
    fields: Mapping[str, str]
    earlier: str | None
    changes: tuple[Change, ...]
    decision: Decision | None
    coverage: Coverage | None
    state: State
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON types; null for an epsilon that is infinite."""
        told = {**vars(self), "decision": None if self.decision is None else self.decision.to_json()}
        parts = ("members", "asked", "changes")
        told |= {name: [asdict(one) for one in getattr(self, name)] for name in parts}
        told |= {"lifetime": asdict(self.lifetime), "expires": self.expires.isoformat()}
        told |= {"coverage": None if self.coverage is None else asdict(self.coverage)}
        told |= {"person_at": {str(count): epsilon for count, epsilon in self.person_at.items()}}
        finite: dict[str, Any] = json.loads(json.dumps(told), parse_constant=lambda _: None)
        return finite


# --- proposals -------------------------------------------------------------------------------------------------------


def add_proposal(folder: Path, data: bytes) -> Proposal:
    """Keep a proposal, from the wire or from a file; the same again changes nothing.

    Args:
        folder: the node's; its `link.json` says who the coordinator is.
        data: the document.

    Raises:
        RefusedError: too large, malformed, of another federation, not signed by its coordinator, of a charter without
            this institution, or another proposal of a plan that was proposed before.
        OutputError: the folder cannot be written.
    """
    link = read_link(folder)
    proposal = _verified(data, "proposal", link)
    if link.institution not in {one.name for one in proposal.charter.institutions}:
        raise RefusedError("the charter does not name this institution", place="proposal", fix="have it enrolled")
    path = _path(folder, _PROPOSALS, proposal.plan.digest)
    if path.exists() and _bytes(path) == data:
        return proposal
    there = _known(path, link)
    if there is not None and there != proposal:
        raise RefusedError(
            "another proposal of this plan is here", place=str(path), fix="have the plan proposed under another name"
        )
    if there is None:
        if sum(1 for _ in path.parent.glob("*.json")) >= _MOST_PROPOSALS:
            raise RefusedError(
                f"there are {_MOST_PROPOSALS} proposals already", place=str(path.parent), fix="remove old ones"
            )
        _write(path, data)
    return proposal


def pending(folder: Path) -> tuple[Pending, ...]:
    """The proposals in a node's folder, oldest first. One that was altered is left out, logged."""
    link, found = read_link(folder), []
    with open_records(folder) as records:
        for path in sorted((folder / _PROPOSALS).glob("*.json")):
            try:
                proposal = _verified(_bytes(path), str(path), link)
            except CohortiumError as error:
                _log.warning("left out: %s", error)
                continue
            found.append(Pending(proposal, _state(folder, records, proposal.plan)))
    return tuple(sorted(found, key=lambda one: (one.proposal.made, one.proposal.plan.digest)))


def _known(path: Path, link: Link) -> Proposal | None:
    """The proposal in a file; None where there is none that verifies."""
    try:
        return _verified(_bytes(path), str(path), link)
    except CohortiumError:
        return None


def _proposal(folder: Path, plan: str) -> Proposal:
    path = _path(folder, _PROPOSALS, plan)
    proposal = _verified(_bytes(path), str(path), read_link(folder))
    if proposal.plan.digest != plan:
        raise RefusedError("is a proposal of another plan", place=str(path), fix="get it from the coordinator anew")
    return proposal


def _verified(data: bytes, place: str, link: Link) -> Proposal:
    found = parse_proposal(data, place, federation=link.federation, coordinator=link.coordinator)
    return found.proposal


def _state(folder: Path, records: NodeRecords, plan: Plan) -> State:
    if records.approvals.approved(plan.digest) is not None:
        return "approved"
    if _path(folder, _DECLINED, plan.digest).exists():
        return "declined"
    return "expired" if plan.expires < _today() else "new"


# --- review ----------------------------------------------------------------------------------------------------------


def review(folder: Path, plan: str) -> Review:
    """A proposal as a reviewer has to see it. Nothing is changed, and nothing of it leaves.

    Args:
        folder: the node's.
        plan: digest of the proposed plan.

    Raises:
        RefusedError: there is no such proposal, or it was altered.
        DataError: no node there, or one that this version cannot read.
    """
    proposal = _proposal(folder, plan)
    with open_records(folder) as records, ExitStack() as stack:
        desk = _Desk.open(records, proposal, stack)
        found: list[str] = []
        decision: Decision | None = None
        for check in desk.checks():
            try:
                check()
            except CohortiumError as error:
                found.append(str(error))
        try:
            decision = desk.decision()
        except CohortiumError as error:
            found.append(str(error))
        else:
            if decision is not None and not decision.admitted:
                refused = ", ".join(one.rule for one in decision.findings)
                found.append(f"{len(decision.findings)} rules in force here do not admit it: {refused}")
        return _told(desk, decision, tuple(found))


def _told(desk: _Desk, decision: Decision | None, problems: tuple[str, ...]) -> Review:
    proposal, plan, charter = desk.proposal, desk.proposal.plan, desk.proposal.charter
    software, installed = plan.software, installed_software()
    if software is None:
        raise Defect("a proposal whose plan does not name its code")
    earlier = desk.earlier()
    return Review(
        plan=plan.digest,
        name=plan.name,
        study=plan.study,
        purpose=plan.purpose,
        lawful_basis=plan.lawful_basis,
        regions=plan.regions,
        expires=plan.expires,
        min_cell=plan.min_cell,
        min_institutions=plan.min_institutions,
        max_attempts=plan.max_attempts,
        federation=charter.name,
        charter=charter.digest,
        members=tuple(Member(one.name, one.region, one.group, one.identity) for one in charter.institutions),
        trust=_TRUST[plan.trust].format(c=plan.colluders),
        asked=tuple(_asked(phase, plan) for phase in phases(plan)),
        features=_features(proposal),
        epsilon=plan.epsilon,
        delta=plan.delta,
        person_at=_person_at(plan, len(charter.institutions)),
        lifetime=desk.lifetime(),
        released=_RELEASED[plan.study],
        software=(software.version, software.code),
        installed=(installed.version, installed.code),
        fields=_fields(Approval(plan, charter)),
        earlier=None if earlier is None else earlier.plan.digest,
        changes=() if earlier is None else _changes(earlier, Approval(plan, charter)),
        decision=decision,
        coverage=desk.coverage(),
        state=_state(desk.records.folder, desk.records, plan),
        problems=problems,
    )


def _asked(phase: Phase, plan: Plan) -> Asked:
    words = _QUESTIONS.get(f"{phase.kind} {phase.name}", _QUESTIONS.get(phase.kind))
    if words is None:
        raise Defect(f"questions of the kind {phase.kind} are not in words")
    whole = budget_for(plan.epsilon, plan.delta)
    most = Spend(math.ceil(phase.share * whole.mu2), math.ceil(phase.share * whole.tv))
    return Asked(phase.name, phase.rounds, words, float(100 * phase.share), epsilon_spent(most, plan.delta))


def _features(proposal: Proposal) -> tuple[str, ...]:
    """What the plan uses of the contract: what it learns from, or all that an audit counts by."""
    plan = proposal.plan
    if isinstance(plan, AuditPlan):
        audit = plan.audit
        outcomes = [name for name in (audit.column, audit.label) if name is not None]
        return (*audit.attributes, *outcomes, *audit.proxies)
    if isinstance(plan, TrainingPlan):
        return tuple(feature.name for feature in plan.features(proposal.contract))
    raise Defect(f"a plan of the kind {type(plan).__name__}")


def _person_at(plan: Plan, members: int) -> dict[int, float]:
    whole = budget_for(plan.epsilon, plan.delta)
    local, shared = (Spend(), whole) if plan.trust == "distributed" else (whole, Spend())
    counts = sorted({count for count in (1, 2, 3, members) if count <= members})
    return {count: epsilon_spent(person_at(local, shared, count), plan.delta) for count in counts}


def _changes(earlier: Approval, now: Approval) -> tuple[Change, ...]:
    """Field by field, of plan and charter."""
    before, after = _fields(earlier), _fields(now)
    names = sorted(before.keys() | after.keys())
    return tuple(
        Change(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)
    )


def _fields(asked: Approval) -> dict[str, str]:
    """Every field of plan and charter: what no sentence above it says is there all the same."""
    return {**_flat(asked.plan.to_json()), **_flat(asked.charter.to_json(), "charter")}


def _flat(value: Any, place: str = "") -> dict[str, str]:
    """The leaves of a JSON value by their places; parts of a list by their names, where they have some."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list) and value and all(isinstance(one, dict) and "name" in one for one in value):
        parts = {str(one["name"]): one for one in value}.items()
    else:
        return {place: json.dumps(value, ensure_ascii=False)}
    return {name: leaf for key, part in parts for name, leaf in _flat(part, f"{place}.{key}" if place else key).items()}


@dataclass(frozen=True)
class _Desk:
    """A node's records beside a proposal."""

    records: NodeRecords
    proposal: Proposal
    ledger: Ledger
    governance: NodeGovernance

    @classmethod
    def open(cls, records: NodeRecords, proposal: Proposal, stack: ExitStack) -> _Desk:
        identity = records.identity
        ledger = Ledger(
            records.database, identity.institution, budget_for(identity.lifetime_epsilon, identity.lifetime_delta)
        )
        consent = open_consent(records.folder)
        if consent is not None:
            stack.callback(consent.close)
        governance = NodeGovernance(
            records.folder,
            identity.institution,
            records.approvals,
            lambda _plan: Approval(proposal.plan, proposal.charter),
            ledger,
            _ComingLog(records.folder, identity.institution, proposal.charter),
            consent,
            simulation=identity.simulation,
            today=_today,
        )
        return cls(records, proposal, ledger, governance)

    def _confirmed(self) -> None:
        require_confirmed(self.records.approvals, self.records.folder)

    def checks(self) -> tuple[Callable[[], None], ...]:
        """Whatever has to hold before anybody approves, but for the rules; each raises when it does not."""
        return (self._confirmed, self._wanted, self._software, self._safe, self._answerable, self._affordable)

    def _wanted(self) -> None:
        path = _path(self.records.folder, _DECLINED, self.proposal.plan.digest)
        if path.exists():
            raise RefusedError("the plan was declined here", place=str(path), fix="have another plan proposed")

    def _software(self) -> None:
        check_software(self.proposal.plan, simulation=False)

    def _safe(self) -> None:
        preflight(self.proposal.plan, self.records.contract, self.proposal.charter, today=_today())

    def _answerable(self) -> None:
        known = self.records.approvals.approved(self.proposal.plan.digest)
        if known is not None and known.ended:
            raise RefusedError(
                "the plan was approved before this node was restored, and is not answered any more",
                place="plan",
                fix="have a new plan proposed",
            )
        if known is not None and known.charter != self.proposal.charter:
            raise RefusedError(
                "the plan was approved within another charter",
                place="proposal: charter",
                fix="have a new plan proposed for the new charter",
            )

    def _affordable(self) -> None:
        plan = self.proposal.plan
        if self.ledger.reservation(plan.digest) is None and not self._fits(plan):
            raise BudgetError(
                "what is left of the lifetime budget does not cover this plan",
                place=self.records.identity.institution,
                fix="have a plan of a lower epsilon proposed; spent budget never comes back",
            )

    def _fits(self, plan: Plan) -> bool:
        budget, available = budget_for(plan.epsilon, plan.delta), self.ledger.available()
        return budget.mu2 <= available.mu2 and min(budget.tv, 1) <= available.tv

    def decision(self) -> Decision | None:
        """What the rules in force say of the plan on today's facts; None where a simulation's node has none."""
        if self.governance.is_simulated:
            return None
        return self.governance.decide(self.proposal.plan, self.proposal.charter, "admission")[0]

    def lifetime(self) -> Lifetime:
        identity, plan = self.records.identity, self.proposal.plan
        told = preview(self.ledger, budget_for(plan.epsilon, plan.delta), identity.lifetime_delta, at_most=1)
        begun = self.ledger.reservation(plan.digest) is not None
        after = told.epsilon_held if begun else next(iter(told.epsilon_after), None)
        return Lifetime(identity.lifetime_epsilon, identity.lifetime_delta, told.epsilon_now, told.epsilon_held, after)

    def coverage(self) -> Coverage | None:
        if self.governance.consent is None:
            return None
        declared = read_governance(self.records.folder)
        try:
            cohort = cohort_of(self.proposal.plan, None if declared is None else declared[0], "admission")
        except CohortiumError:  # a purpose that nobody can be asked about: the rules say so
            return None
        totals = self.governance.consent.snapshot(cohort).totals()
        left_out = {name: count for name, count in totals.items() if name not in ("people", "allowed")}
        return Coverage(totals["people"], totals["allowed"], left_out)

    def earlier(self) -> Approval | None:
        """The newest approved plan of the same name and kind, but for this one."""
        plan = self.proposal.plan
        for digest in reversed(self.records.approvals.plans()):
            found = self.records.approvals.approved(digest)
            if (
                found is not None
                and digest != plan.digest
                and (found.plan.name, found.plan.study)
                == (
                    plan.name,
                    plan.study,
                )
            ):
                return found
        return None


class _ComingLog:
    """The audit log as it will stand when a run begins: a node answers nothing before its quorum has cosigned.

    So a plan can be approved by a node whose log nobody has cosigned yet. When the run begins the rules are asked
    again, about the log as it is.
    """

    def __init__(self, folder: Path, institution: str, charter: Charter) -> None:
        self._folder, self._institution, self._charter = folder, institution, charter

    def cosigners(self, _plan: str) -> int:
        """See `client.governing.GovernedLog`."""
        return max(self._charter.quorum_of(self._institution).witnesses, self._now())

    def _now(self) -> int:
        if not has_store(self._folder / LOG_FILE):
            return 0
        engine = open_store(self._folder / LOG_FILE, read_only=True)
        try:
            reader = LogReader(engine)
            note = reader.cosigned() if reader.origin == log_origin(self._charter.name, self._institution) else None
        finally:
            engine.dispose()
        return 0 if note is None else len(quorum_for(self._charter, self._institution).cosigners(note))

    def record(self, key: str, entry: Mapping[str, str | int]) -> bytes:
        """Not here."""
        raise Defect(f"a review that logs {key}: {sorted(entry)}")


# --- the answer ------------------------------------------------------------------------------------------------------


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
    proposal = _proposal(folder, plan)
    with open_records(folder) as records, ExitStack() as stack:
        desk = _Desk.open(records, proposal, stack)
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
        _write(approval_file(folder, plan), signed.to_bytes())
    return said


def approval_file(folder: Path, plan: str) -> Path:
    """Where a plan's approval is kept; `RefusedError` for what is no plan's digest."""
    return _path(folder, _APPROVALS, plan)


def decline(folder: Path, plan: str, by: str, reason: str) -> None:
    """Write down that a proposed plan is not approved here, for good. It stays in this folder.

    Raises:
        RefusedError: there is no such proposal, or it was approved: an approval ends with its plan.
        DataError: no reason in one line of at most 500 characters.
    """
    proposal = _proposal(folder, plan)
    if not reason.strip() or len(reason) > _MOST_REASON or not reason.isprintable():
        raise DataError("is no line of 1 to 500 characters", place="reason", fix="say why in one line")
    with open_records(folder) as records:
        if records.approvals.approved(proposal.plan.digest) is not None:
            raise RefusedError(
                "the plan was approved here", place="plan", fix="an approval ends on the plan's last day"
            )
    path = _path(folder, _DECLINED, plan)
    if path.exists():
        validated(_Declined, read_json(path, DataError), str(path), {}, DataError)
        return
    said = {"plan": plan, "by": by, "reason": reason.strip(), "declined_at": datetime.now(UTC).replace(microsecond=0)}
    document = _Declined.model_validate({"schema": "cohortium.study-declined/1", **said})
    _write(path, (document.model_dump_json(indent=2, by_alias=True) + "\n").encode())


def _approval(folder: Path, proposal: Proposal) -> StudyApproval | None:
    """The approval that was given before, if it is whole."""
    path = approval_file(folder, proposal.plan.digest)
    if not path.exists():
        return None
    try:
        signed = parse_approval(_bytes(path), str(path))
        check_approval(signed, proposal, str(path))
    except CohortiumError:
        return None
    return signed.approval


def _path(folder: Path, kind: str, plan: str) -> Path:
    digits = plan.removeprefix("sha256:")
    if digits == plan or len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise RefusedError("is no plan's digest", place="plan", fix="give sha256: and 64 hexadecimal digits")
    return folder / kind / f"{digits}.json"


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_PROPOSAL + 1)
    except OSError as error:
        raise RefusedError(
            "there is no such proposal", place=str(path), fix="`cohortium study list` names those there are"
        ) from error


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(exist_ok=True, mode=0o700)
        write_whole(path, data)
    except OSError as error:
        raise OutputError(
            error.strerror or "cannot be written", place=str(path), fix="check space and permissions"
        ) from error


def _today() -> date:
    return datetime.now(UTC).date()
