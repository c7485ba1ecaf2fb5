"""The audit of segments: who is in them, who is treated how, whom they fit, and what they tell about a group."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from cohortium.governance.fairness.families import association_metric, missing, people_of, rate_ratios, shown
from cohortium.governance.fairness.intervals import Interval, Quotient, critical, interval, ratio, share
from cohortium.governance.fairness.result import Metric, NotJudged
from cohortium.governance.fairness.tables import KEPT, AuditTerms, SegmentTables, shares_of, sums_of
from cohortium.governance.fairness.verdicts import Judged, size_problem

__all__ = ["segment_metrics"]


def segment_metrics(tables: SegmentTables, terms: AuditTerms) -> list[Metric | NotJudged]:
    """Every metric of one attribute's tables (formulas: docs/fairness.md), or why it is not there."""
    return [
        *_representation(tables, terms),
        _balance(tables, terms),
        *_treatments(tables, terms),
        *_distance(tables, terms),
        association_metric("leakage", tables.people, terms),
        *_suppressed(tables, terms),
        *_stability(tables, terms),
    ]


def _against_all(inside: Quotient, outside: Quotient, alpha: float) -> Interval:
    """The interval of inside / all, all being inside and outside together.

    With w, the part of all people who are inside, the ratio is x / (w x + 1 - w) of x = inside / outside, and grows
    with it.
    """
    if inside.estimate is None or outside.estimate is None:
        return Interval(None, math.nan, math.nan, bounded=False)
    found, people = ratio(inside, outside, critical(alpha)), inside.bottom + outside.bottom
    whole = (inside.top + outside.top) / people
    estimate = inside.estimate / whole if whole > 0 else None
    low, high = (_mixed(end, inside.bottom / people) for end in (found.low, found.high))
    return Interval(estimate, low, high, found.bounded)


def _mixed(value: float, part: float) -> float:
    if math.isinf(value):
        return 1 / part
    return value / (part * value + 1 - part)


def _cells(
    tables: SegmentTables, terms: AuditTerms
) -> Iterator[tuple[int, str, float, Quotient, Quotient, str | None]]:
    """Every group and segment: the cell's people, the rates inside and outside the group, what is too small."""
    table = tables.people
    everybody = table.counts.sum(axis=0)
    people = float(everybody.sum())
    for column, outcome in enumerate(table.outcomes):
        rates = shares_of(table, (outcome,))
        for row, inside in enumerate(rates):
            others = len(table.groups) - 1
            variance = others * table.std**2
            outside = share(
                float(everybody[column]) - inside.top,
                people - inside.bottom,
                variance,
                variance * len(table.outcomes),
                variance,
            )
            expected = inside.bottom * max(float(everybody[column]), 0.0) / people if people > 0 else 0.0
            yield row, outcome, inside.top, inside, outside, size_problem(expected, table.std, terms.minimum_cell)


def _representation(tables: SegmentTables, terms: AuditTerms) -> list[Metric | NotJudged]:
    """P(segment | group) / P(segment), described."""
    table = tables.people
    if len(table.groups) < 2:
        return [missing("representation", table, "there is one group only")]
    found: list[Metric | NotJudged] = []
    for row, outcome, count, inside, outside, problem in _cells(tables, terms):
        hidden = people_of(count, terms) is None
        why = "fewer people than the minimum cell" if hidden else problem
        at = None if hidden else _against_all(inside, outside, terms.alpha)
        found.append(
            Metric.of(
                Judged(at, 1 - terms.alpha, None, why),
                name="representation",
                attributes=table.attributes,
                group=table.groups[row],
                outcome=outcome,
                institution=table.institution,
                people=people_of(count, terms),
                people_std=table.std,
            )
        )
    return found


def _balance(tables: SegmentTables, terms: AuditTerms) -> Metric | NotJudged:
    """The least of representation and its inverse over all cells that are expected to be large, described."""
    table = tables.people
    cells = [(inside, outside) for *_, inside, outside, problem in _cells(tables, terms) if problem is None]
    if len(table.groups) < 2 or not cells:
        return missing("balance", table, "no group is large enough in any segment")
    found = [_against_all(inside, outside, terms.alpha / len(cells)) for inside, outside in cells]
    evened = [_evened(each) for each in found]
    estimates = [each.estimate for each in evened if each.estimate is not None]
    ends = [min(each.low for each in evened), min(each.high for each in evened)]
    people = float(table.counts.sum())
    return Metric.of(
        Judged(Interval(min(estimates, default=None), ends[0], ends[1], bounded=True), 1 - terms.alpha, None),
        name="balance",
        attributes=table.attributes,
        institution=table.institution,
        people=people_of(people, terms),
        people_std=table.std * math.sqrt(table.counts.size),
    )


def _evened(found: Interval) -> Interval:
    """The interval of min(r, 1 / r)."""
    if math.isnan(found.low):
        return Interval(None, 0.0, 1.0, bounded=False)
    low = min(found.low, 1 / found.high if found.high > 0 else 1.0)
    high = found.high if found.high < 1 else 1 / found.low if found.low > 1 else 1.0
    estimate = None if found.estimate is None else min(found.estimate, 1 / found.estimate) if found.estimate else 0.0
    return Interval(estimate, low, high, found.bounded)


def _treatments(tables: SegmentTables, terms: AuditTerms) -> list[Metric | NotJudged]:
    """Ratios of the rates of beneficial and of costly treatment."""
    found: list[Metric | NotJudged] = []
    if tables.beneficial:
        rates = shares_of(tables.people, tables.beneficial)
        found += rate_ratios("beneficial-treatment", tables.people, rates, terms, "treatment-ratio")
    else:
        found.append(missing("beneficial-treatment", tables.people, "the plan calls no segment's treatment beneficial"))
    if tables.costly:
        rates = shares_of(tables.people, tables.costly)
        found += rate_ratios("costly-treatment", tables.people, rates, terms, "treatment-ratio", "cost")
    else:
        found.append(missing("costly-treatment", tables.people, "the plan calls no segment's treatment costly"))
    return found


def _distance(tables: SegmentTables, terms: AuditTerms) -> list[Metric | NotJudged]:
    """Ratios of the least mean distance to each group's."""
    people, distance = tables.people, tables.distance
    if distance is None:
        return [missing("distance-to-centre", people, "there is no table of distances")]
    sums, sizes = sums_of(distance, distance.outcomes), sums_of(people, people.outcomes)
    variances = len(distance.outcomes) * distance.std**2, len(people.outcomes) * people.std**2
    rates = [share(float(top), float(bottom), *variances, 0.0) for top, bottom in zip(sums, sizes, strict=True)]
    return [*rate_ratios("distance-to-centre", people, rates, terms, "quality-ratio", "cost")]


def _suppressed(tables: SegmentTables, terms: AuditTerms) -> list[Metric | NotJudged]:
    """By group, the share of people in cells below the minimum cell, described."""
    table = tables.people
    sizes, variance = sums_of(table, table.outcomes), table.std**2
    below = table.counts < terms.minimum_cell
    found: list[Metric | NotJudged] = []
    for row, group in enumerate(table.groups):
        cells = int(np.count_nonzero(below[row]))
        held = share(
            float(table.counts[row][below[row]].sum()),
            float(sizes[row]),
            cells * variance,
            len(table.outcomes) * variance,
            cells * variance,
        )
        found.append(
            Metric.of(
                shown(Judged(interval(held, critical(terms.alpha)), 1 - terms.alpha, None), float(sizes[row]), terms),
                name="suppressed-share",
                attributes=table.attributes,
                group=group,
                institution=table.institution,
                people=people_of(float(sizes[row]), terms),
                people_std=table.std * math.sqrt(len(table.outcomes)),
            )
        )
    return found


def _stability(tables: SegmentTables, terms: AuditTerms) -> list[Metric | NotJudged]:
    """Ratios of the shares of people whose segment stays when the noise is drawn again."""
    if tables.stability is None:
        return [missing("stability", tables.people, "there is no table of people whose segment moves with the noise")]
    rates = shares_of(tables.stability, (KEPT,))
    return [*rate_ratios("stability", tables.stability, rates, terms, "quality-ratio")]
