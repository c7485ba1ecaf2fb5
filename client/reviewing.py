"""A proposed plan in plain words: what it would ask here, what it costs and changes, and which rules speak.

A review counts the institution's own customers for its own people. No number of it stands in any file that leaves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from cohortium.client.desk import Coverage, Desk, Lifetime
from cohortium.client.lookalike import open_records
from cohortium.client.proposals import State, read_proposal, state_of
from cohortium.client.store import Approval
from cohortium.governance.rules import Decision
from cohortium.models.programme import Phase
from cohortium.models.studies import phases
from cohortium.privacy.accounting import Spend, budget_for, epsilon_spent, person_at
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.errors import CohortiumError, Defect
from cohortium.study.plan import Plan, TrainingPlan
from cohortium.study.proposal import Proposal
from cohortium.study.software import installed_software

__all__ = ["Asked", "Change", "Member", "Review", "review"]

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
class Change:
    """A field that differs from an earlier plan or its charter; None where one of them lacks it."""

    field: str
    before: str | None
    after: str | None


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


def review(folder: Path, plan: str) -> Review:
    """A proposal as a reviewer has to see it. Nothing is changed, and nothing of it leaves.

    Args:
        folder: the node's.
        plan: digest of the proposed plan.

    Raises:
        RefusedError: there is no such proposal, or it was altered.
        DataError: no node there, or one that this version cannot read.
    """
    proposal = read_proposal(folder, plan)
    with open_records(folder) as records, ExitStack() as stack:
        desk = Desk.open(records, proposal, stack)
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


def _told(desk: Desk, decision: Decision | None, problems: tuple[str, ...]) -> Review:
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
        state=state_of(desk.records.folder, desk.records, plan),
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
