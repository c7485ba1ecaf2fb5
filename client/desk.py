"""A proposed plan beside a node's records: whatever stands in its way here, and what it would cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from cohortium.client.governing import NodeGovernance, cohort_of, open_consent, read_governance
from cohortium.client.lookalike import NodeRecords
from cohortium.client.node import check_software
from cohortium.client.proposals import DECLINED, place_of
from cohortium.client.restored import require_confirmed
from cohortium.client.store import Approval
from cohortium.client.witnessing import LOG_FILE
from cohortium.governance.log import LogReader, log_origin, quorum_for
from cohortium.governance.rules import Decision
from cohortium.models.preflight import preflight
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.ledger import Ledger, open_store
from cohortium.privacy.outlook import preview
from cohortium.privacy.stores import has_store
from cohortium.study.charter import Charter
from cohortium.study.errors import BudgetError, CohortiumError, Defect, RefusedError
from cohortium.study.plan import Plan
from cohortium.study.proposal import Proposal

__all__ = ["ComingLog", "Coverage", "Desk", "Lifetime"]


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
class Desk:
    """A node's records beside a proposal."""

    records: NodeRecords
    proposal: Proposal
    ledger: Ledger
    governance: NodeGovernance

    @classmethod
    def open(cls, records: NodeRecords, proposal: Proposal, stack: ExitStack) -> Desk:
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
            ComingLog(records.folder, identity.institution, proposal.charter),
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
        path = place_of(self.records.folder, DECLINED, self.proposal.plan.digest)
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


class ComingLog:
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


def _today() -> date:
    return datetime.now(UTC).date()
