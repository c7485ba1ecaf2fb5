"""What every kind of plan asks, and what each question may cost: the one place that nodes and coordinator share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from cohortium.models.auditing import audit_phases, audit_widest
from cohortium.models.catalogue import build_query
from cohortium.models.encoding import encoder_phases, encoder_widest
from cohortium.models.lookalike import lookalike_phases, lookalike_widest
from cohortium.models.programme import Ask, Phase
from cohortium.models.segmentation import segmentation_phases, segmentation_widest
from cohortium.privacy.accounting import Spend, budget_for, price
from cohortium.privacy.gate import Terms
from cohortium.privacy.release import noise_scale
from cohortium.privacy.sharing import ALONE, noise_share
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.contract import Contract
from cohortium.study.errors import Defect, PlanError, RefusedError
from cohortium.study.lookalike_plan import EncoderPlan, LookalikePlan
from cohortium.study.plan import Plan
from cohortium.study.question import QuestionHeader
from cohortium.study.segment_plan import SegmentPlan

__all__ = ["check_feasible", "phases", "question_terms", "widest_questions"]

_SIZES: Mapping[str, str] = MappingProxyType(
    {"segments": "segments.features", "encoder": "encoder", "lookalike": "lookalike", "audit": "audit"}
)


def phases(plan: Plan) -> tuple[Phase, ...]:
    """Everything a plan asks, with its share of the plan's mu^2. The shares add up to 1."""
    match plan:
        case SegmentPlan():
            return segmentation_phases(plan)
        case EncoderPlan():
            return encoder_phases(plan)
        case LookalikePlan():
            return lookalike_phases(plan)
        case AuditPlan():
            return audit_phases(plan)
    raise Defect(f"a plan of the kind {type(plan).__name__}")


def widest_questions(plan: Plan, contract: Contract) -> list[Ask]:
    """A question at least as wide as the widest there can be, for every question of the plan."""
    match plan:
        case SegmentPlan():
            return segmentation_widest(plan, contract)
        case EncoderPlan():
            return encoder_widest(plan, contract)
        case LookalikePlan():
            return lookalike_widest(plan, contract)
        case AuditPlan():
            return audit_widest(plan, contract)
    raise Defect(f"a plan of the kind {type(plan).__name__}")


def question_terms(plan: Plan, question: QuestionHeader) -> Terms:
    """What a plan says a question may cost; `RefusedError` for a phase, step, attempt or kind it does not foresee."""
    phase = next((phase for phase in phases(plan) if phase.name == question.phase), None)
    if phase is None or phase.kind != question.kind:
        raise RefusedError("the plan foresees no such question")
    if question.step >= phase.rounds or question.attempt > plan.max_attempts:
        raise RefusedError("the plan foresees no further question of this phase")
    budget = budget_for(plan.epsilon, plan.delta)
    allotment = phase.share * budget.mu2 / (phase.rounds * plan.max_attempts)
    return Terms(math.floor(allotment), noise_share(plan))


def check_feasible(plan: Plan, contract: Contract, place: str = "plan") -> None:
    """Whether every question of the plan can be answered within its budget, whatever the answers turn out to be.

    To be called before the first question: a plan that fails half-way has spent for nothing.

    Raises:
        PlanError: naming the line to change.
    """
    plan.check_contract(contract, place)
    by_name = {phase.name: phase for phase in phases(plan)}
    budget, total = budget_for(plan.epsilon, plan.delta), Spend()
    share = ALONE if plan.trust == "unsafe-none" else noise_share(plan)
    for ask in widest_questions(plan, contract):
        phase = by_name[ask.phase]
        allotment = math.floor(phase.share * budget.mu2 / (phase.rounds * plan.max_attempts))
        try:
            query = build_query(ask.query.spec())
            sigma = noise_scale(query, max(allotment, 1))
        except RefusedError as error:
            raise PlanError(
                f"{ask.phase}: more features, wider bounds or more of them than one question can ask about",
                place=f"{place}: {_SIZES[plan.study]}",
                fix="name fewer features, there or in the contract, or make it smaller",
            ) from error
        if allotment < 1:
            raise PlanError(f"{ask.phase}: nothing to spend", place=f"{place}: epsilon", fix="raise epsilon")
        total += price(query.bound_squared, sigma, query.width, share).times(plan.max_attempts)
    if not total.fits(budget):
        raise PlanError(
            "no room for the noise's grid",
            place=f"{place}: epsilon",
            fix="lower epsilon, or make the questions narrower: fewer features, segments or units",
        )
