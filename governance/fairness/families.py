"""Families of metrics that both kinds of audits are made of: rates by group, associations, what was not judged."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cohortium.governance.fairness.association import association
from cohortium.governance.fairness.intervals import Interval, Quotient
from cohortium.governance.fairness.result import Metric, NotJudged
from cohortium.governance.fairness.tables import AuditTerms, problems_of
from cohortium.governance.fairness.verdicts import Direction, Judged, decide, judge_ratios
from cohortium.models.group_table import GroupTable

__all__ = ["association_metric", "missing", "people_of", "rate_ratios", "shown"]


def rate_ratios(
    name: str,
    table: GroupTable,
    rates: Sequence[Quotient],
    terms: AuditTerms,
    threshold: str,
    direction: Direction = "benefit",
) -> list[Metric]:
    """One metric per group: the ratio of its rate to the reference's, or to the best one's.

    Args:
        name: of the metric.
        table: whose groups, attributes and institution are meant.
        rates: by group.
        threshold: its name.
        direction: whether a high rate is a benefit or a cost.
    """
    reference = terms.reference(table)
    problems = problems_of(rates, terms.minimum_cell)
    judged = judge_ratios(rates, problems, reference, direction, terms.limit(threshold), terms.alpha)
    return [
        Metric.of(
            shown(each, rate.bottom, terms),
            name=name,
            attributes=table.attributes,
            group=group,
            institution=table.institution,
            reference=None if reference is None else table.groups[reference],
            people=people_of(rate.bottom, terms),
            people_std=math.sqrt(rate.var_bottom),
            threshold=threshold,
        )
        for group, rate, each in zip(table.groups, rates, judged, strict=True)
    ]


def association_metric(
    name: str, table: GroupTable, terms: AuditTerms, outcome: str | None = None
) -> Metric | NotJudged:
    """Cramér's V of a whole table."""
    found = association(table, terms.alpha)
    if found is None:
        return missing(name, table, "fewer than two groups or columns are large enough")
    verdict = decide(found.interval, terms.limit("association"), "at most")
    why = "the noise leaves its interval without an end" if verdict == "insufficient" else None
    return Metric.of(
        Judged(found.interval, 1 - terms.alpha, verdict, why),
        name=name,
        attributes=table.attributes,
        outcome=outcome,
        institution=table.institution,
        people=people_of(found.people, terms),
        people_std=table.std * math.sqrt(table.counts.size),
        threshold="association",
        p_value=found.p_value,
    )


def missing(metric: str, table: GroupTable, why: str) -> NotJudged:
    """A metric that cannot be made of what there is."""
    return NotJudged(metric=metric, attributes=table.attributes, institution=table.institution, why=why)


def people_of(people: float, terms: AuditTerms) -> float | None:
    """Noisy people, or None below the minimum cell."""
    return people if people >= terms.minimum_cell else None


def shown(judged: Judged, people: float, terms: AuditTerms) -> Judged:
    """Without its numbers where fewer people than the minimum cell are behind them."""
    if people >= terms.minimum_cell:
        return judged
    return Judged(Interval(None, math.nan, math.nan, bounded=False), judged.level, judged.verdict, judged.why)
