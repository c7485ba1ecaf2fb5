"""An audit: the tables of every attribute, pooled and of each institution, made into one result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from cohortium.governance.fairness.intervals import Quotient, critical, ratio
from cohortium.governance.fairness.lookalikes import lookalike_metrics
from cohortium.governance.fairness.result import FairnessResult, Metric, NotJudged, Reversal, overall
from cohortium.governance.fairness.segments import segment_metrics
from cohortium.governance.fairness.tables import (
    CHOSEN,
    AuditTerms,
    LookalikeTables,
    SegmentTables,
    problems_of,
    shares_of,
)
from cohortium.models.group_table import GroupTable

__all__ = ["Audited", "audit_lookalike", "audit_segments"]


@dataclass(frozen=True)
class Audited:
    """What an audit was of and what it cost.

    Args:
        digest: of the bundle or model.
        plan: digest of the audit's plan.
        epsilon: spent by the audit's questions; None without noise.
        delta: of that epsilon.
        made: the day on which it is judged (UTC).
        level: of a campaign, the level whose audience it is.
    """

    digest: str
    plan: str
    epsilon: float | None
    delta: float
    made: date
    level: str | None = None


def audit_segments(tables: Sequence[SegmentTables], audited: Audited, terms: AuditTerms) -> FairnessResult:
    """The audit of segments.

    Args:
        tables: one for each attribute and pair of attributes, pooled and of those institutions that released their own.
    """
    found = [metric for each in tables for metric in segment_metrics(each, terms)]
    rated = [(each.people, shares_of(each.people, each.beneficial)) for each in tables if each.beneficial]
    return _result("segments", found, _reversals(rated, terms), audited, terms)


def audit_lookalike(tables: Sequence[LookalikeTables], audited: Audited, terms: AuditTerms) -> FairnessResult:
    """The audit of an audience; vulnerable customers are an attribute with its own tables, like any other.

    Args:
        tables: one for each attribute and pair of attributes, pooled and of those institutions that released their own.
    """
    found = [metric for each in tables for metric in lookalike_metrics(each, terms)]
    rated = [(each.audience, shares_of(each.audience, (CHOSEN,))) for each in tables]
    return _result("lookalike", found, _reversals(rated, terms), audited, terms)


def _result(
    subject: Literal["segments", "lookalike"],
    found: Sequence[Metric | NotJudged],
    reversals: Sequence[Reversal],
    audited: Audited,
    terms: AuditTerms,
) -> FairnessResult:
    metrics = tuple(each for each in found if isinstance(each, Metric))
    used = {metric.threshold for metric in metrics}
    return FairnessResult(
        subject=subject,
        audited=audited.digest,
        level=audited.level,
        plan=audited.plan,
        made=audited.made,
        alpha=terms.alpha,
        minimum_cell=terms.minimum_cell,
        epsilon=audited.epsilon,
        delta=audited.delta,
        thresholds=tuple(each for each in terms.thresholds if each.name in used),
        metrics=metrics,
        not_judged=tuple(each for each in found if isinstance(each, NotJudged)),
        reversals=tuple(reversals),
        verdict=overall(metrics),
    )


def _reversals(rated: Sequence[tuple[GroupTable, tuple[Quotient, ...]]], terms: AuditTerms) -> list[Reversal]:
    """Groups whose ratio to the reference lies on one side of 1 pooled, and on the other at an institution.

    The reference is the named one, else the largest group of the pooled table.
    """
    found = []
    for table, rates in rated:
        if table.institution is not None:
            continue
        local = [each for each in rated if each[0].institution and _same(each[0], table)]
        named = terms.reference(table)
        base = max(range(len(rates)), key=lambda row: rates[row].bottom) if named is None else named
        z = critical(terms.alpha / max(1, (len(rates) - 1) * (len(local) + 1)))
        for row in range(len(rates)):
            side = _side(rates, row, base, terms, z)
            for own, own_rates in local if side and row != base else ():
                if _side(own_rates, row, base, terms, z) == -side:
                    found.append(_reversal(table, own, row, base, rates, own_rates))
    return found


def _same(first: GroupTable, second: GroupTable) -> bool:
    return (first.attributes, first.groups) == (second.attributes, second.groups)


def _side(rates: Sequence[Quotient], row: int, base: int, terms: AuditTerms, z: float) -> int:
    """1 or -1 where the whole interval of the ratio lies above or below 1, else 0."""
    problems = problems_of(rates, terms.minimum_cell)
    if problems[row] or problems[base]:
        return 0
    found = ratio(rates[row], rates[base], z)
    return 1 if found.low > 1 else -1 if found.bounded and found.high < 1 else 0


def _reversal(
    table: GroupTable,
    own: GroupTable,
    row: int,
    base: int,
    rates: Sequence[Quotient],
    own_rates: Sequence[Quotient],
) -> Reversal:
    pooled, local = ((each[row].estimate or 0.0) / (each[base].estimate or 1.0) for each in (rates, own_rates))
    return Reversal(
        attributes=table.attributes,
        group=table.groups[row],
        reference=table.groups[base],
        institution=own.institution or "",
        pooled=pooled,
        local=local,
    )
