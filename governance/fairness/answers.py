"""An audit's answers, judged: what a run of an audit's plan learnt, made into one result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date

import numpy as np

from cohortium.governance.fairness.audit import Audited, audit_lookalike, audit_segments
from cohortium.governance.fairness.result import FairnessResult
from cohortium.governance.fairness.tables import AuditTerms, LookalikeTables, SegmentTables
from cohortium.models.auditing import GroupAnswers
from cohortium.models.group_table import GroupTable
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.audit_tables import AuditTables
from cohortium.study.canonical import digest_json
from cohortium.study.errors import DataError

__all__ = ["judge_answers"]


def judge_answers(
    plan: AuditPlan,
    pooled: Sequence[GroupAnswers],
    own: Mapping[str, Sequence[GroupAnswers]],
    made: date,
    previous: AuditTables | None = None,
) -> FairnessResult:
    """Every metric that a plan's tables allow, and verdicts.

    Verdicts are made of the noisy tables themselves, nothing suppressed: a large group of which nobody was chosen is a
    finding. What the result shows of a group keeps to the plan's minimum cell.

    Args:
        plan: of the audit.
        pooled: sums over all institutions, by attribute and pair.
        own: the same of institutions that released tables of their own.
        made: today (UTC).
        previous: of the audit of the last approved audience: then nobody may be made equal by being reached less.

    Raises:
        DataError: `previous` is no audit of an audience, or was not asked by the same groups.
    """
    audit, every = plan.audit, [*pooled, *(one for answers in own.values() for one in answers)]
    epsilon = None if plan.trust == "unsafe-none" else plan.epsilon
    audited = Audited(_subject(plan), plan.digest, epsilon, plan.delta, made, audit.level)
    terms = AuditTerms(minimum_cell=float(plan.min_cell), references=_references(plan))
    if audit.of == "audience" or audit.chosen:
        return audit_lookalike([_lookalike(plan, one, previous) for one in every], audited, terms)
    if previous is not None:
        raise DataError("is compared with audiences alone", place="previous audit", fix="leave it out")
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


def _lookalike(plan: AuditPlan, answers: GroupAnswers, previous: AuditTables | None) -> LookalikeTables:
    pooled = answers.outcomes.institution is None
    return LookalikeTables(
        audience=answers.audience,
        seeds=answers.seeds if plan.audit.of == "audience" else None,
        previous=_earlier(answers.audience, previous) if previous is not None and pooled else None,
        responses=answers.responses,
        features=answers.features,
    )


def _segments(plan: AuditPlan, answers: GroupAnswers) -> SegmentTables:
    beneficial, costly = (
        tuple(f"segment {one}" if isinstance(one, int) else one for one in named)
        for named in (plan.audit.beneficial, plan.audit.costly)
    )
    return SegmentTables(answers.outcomes, beneficial, costly, distance=answers.distances)


def _earlier(now: GroupTable, previous: AuditTables) -> GroupTable:
    """The earlier audience by the same groups. What is below its minimum cell is 0, and so too small to judge by."""
    for table in previous.tables:
        if (table.kind, table.attributes, table.institution) == ("outcomes", now.attributes, None):
            if table.groups != now.groups or table.outcomes[: len(now.outcomes)] != now.outcomes:
                break
            counts = [[value or 0.0 for value in row[: len(now.outcomes)]] for row in table.counts]
            return replace(now, counts=np.array(counts), std=table.std)
    raise DataError(
        f"has no table of an audience by {' and '.join(now.attributes)} in these groups",
        place="previous audit",
        fix="give the tables.json of an audit that was asked alike, or leave it out",
    )
