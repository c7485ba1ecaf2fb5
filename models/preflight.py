"""Whether a plan may begin: every unsafe combination of plan, contract and charter, and the line to change.

Run by an institution before it approves, and by the coordinator before the first question. What depends on an
institution's own state (its ledger, its clock) is checked by its node when a run begins.
"""

from __future__ import annotations

from datetime import UTC, date, datetime

from cohortium.models.studies import check_feasible
from cohortium.privacy.secure_sum import SumRun
from cohortium.study.charter import Charter
from cohortium.study.contract import Contract
from cohortium.study.errors import PlanError
from cohortium.study.plan import Plan

__all__ = ["preflight"]


def preflight(plan: Plan, contract: Contract, charter: Charter, *, today: date | None = None) -> None:
    """Refuse a plan that is not safe, or cannot be answered to its end, in this federation.

    Args:
        plan, contract, charter: as agreed.
        today: today's date (UTC); a seam for tests.

    Raises:
        PlanError: in one line, with the line to change.
    """
    plan.check_contract(contract)
    charter.check_plan(plan)
    if (today if today is not None else datetime.now(UTC).date()) > plan.expires:
        raise PlanError("the plan has expired", place="plan: expires", fix="agree on a new one")
    if plan.trust == "unsafe-none":
        raise PlanError(
            "a plan without noise protects nobody", place="plan: trust", fix='set trust = "distributed" or "local"'
        )
    if plan.trust == "distributed":
        _check_sum(plan, charter)
    check_feasible(plan, contract)


def _check_sum(plan: Plan, charter: Charter) -> None:
    """The secure sum is safe for every roster that the charter allows: the largest is the hardest."""
    signing = sum(member.identity is not None for member in charter.institutions)
    if signing < plan.min_institutions:
        raise PlanError(
            f"only {signing} members have an identity key to sign with; the plan needs {plan.min_institutions}",
            place="charter: institutions.identity",
            fix='give the members\' Ed25519 public keys, or set trust = "local" in the plan',
        )
    SumRun.of(plan, charter, "0" * 32).terms(signing)
