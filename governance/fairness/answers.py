"""An audit's answers, judged: what a run of an audit's plan learnt, made into one result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

from cohortium.governance.fairness.audit import Audited, audit_lookalike, audit_segments
from cohortium.governance.fairness.result import FairnessResult
from cohortium.governance.fairness.tables import AuditTerms, LookalikeTables, SegmentTables
from cohortium.models.auditing import GroupAnswers
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.canonical import digest_json

__all__ = ["judge_answers"]


def judge_answers(
    plan: AuditPlan, pooled: Sequence[GroupAnswers], own: Mapping[str, Sequence[GroupAnswers]], made: date
) -> FairnessResult:
    """Every metric that a plan's tables allow, and verdicts.

    Verdicts are made of the noisy tables themselves, nothing suppressed: a large group of which nobody was chosen is a
    finding. What the result shows of a group keeps to the plan's minimum cell.

    Args:
        plan: of the audit.
        pooled: sums over all institutions, by attribute and pair.
        own: the same of institutions that released tables of their own.
        made: today (UTC).
    """
    audit, every = plan.audit, [*pooled, *(one for answers in own.values() for one in answers)]
    epsilon = None if plan.trust == "unsafe-none" else plan.epsilon
    audited = Audited(_subject(plan), plan.digest, epsilon, plan.delta, made, audit.level)
    terms = AuditTerms(minimum_cell=float(plan.min_cell), references=_references(plan))
    if audit.of == "audience" or audit.chosen:
        return audit_lookalike([_lookalike(plan, one) for one in every], audited, terms)
    return audit_segments([_segments(plan, one) for one in every], audited, terms)


def _subject(plan: AuditPlan) -> str:
    """Digest of what is audited: of the model, or of a column's name under the contract."""
    audit = plan.audit
    return audit.model or digest_json({"contract": plan.contract, "column": audit.column, "chosen": list(audit.chosen)})


def _references(plan: AuditPlan) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Of single attributes as the plan names them, and of pairs of which it names both."""
    named = plan.audit.reference
    references: dict[tuple[str, ...], tuple[str, ...]] = {(name,): (group,) for name, group in named.items()}
    for pair in plan.audit.pairs:
        if set(pair) <= set(named):
            references[pair] = tuple(named[name] for name in pair)
    return references


def _lookalike(plan: AuditPlan, answers: GroupAnswers) -> LookalikeTables:
    return LookalikeTables(
        audience=answers.audience,
        seeds=answers.seeds if plan.audit.of == "audience" else None,
        responses=answers.responses,
        features=answers.features,
    )


def _segments(plan: AuditPlan, answers: GroupAnswers) -> SegmentTables:
    beneficial, costly = (
        tuple(f"segment {one}" if isinstance(one, int) else one for one in named)
        for named in (plan.audit.beneficial, plan.audit.costly)
    )
    return SegmentTables(answers.outcomes, beneficial, costly, distance=answers.distances)
