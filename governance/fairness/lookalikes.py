"""The audit of an audience: who is chosen, beside who could be, who was seed, who was reached before, who responds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from cohortium.governance.fairness.families import association_metric, missing, people_of, rate_ratios, shown
from cohortium.governance.fairness.intervals import Interval, Quotient, critical, difference, interval, odds, ratio
from cohortium.governance.fairness.result import Metric, NotJudged
from cohortium.governance.fairness.tables import (
    CHOSEN,
    RESPONSES,
    REST,
    UPLIFT,
    AuditTerms,
    LookalikeTables,
    problems_of,
    shares_of,
    sums_of,
)
from cohortium.governance.fairness.variation import MOST_GROUPS, total_variation
from cohortium.governance.fairness.verdicts import Judged, decide, holm, size_problem
from cohortium.models.group_table import GroupTable

__all__ = ["lookalike_metrics"]

_Found = list[Metric | NotJudged]


def lookalike_metrics(tables: LookalikeTables, terms: AuditTerms) -> _Found:
    """Every metric of one attribute's tables (formulas: docs/fairness.md), or why it is not there."""
    return [
        *rate_ratios("impact-ratio", tables.audience, shares_of(tables.audience, (CHOSEN,)), terms, "impact-ratio"),
        _variation(tables.audience, terms),
        *_amplification(tables, terms),
        *_reach(tables, terms),
        *_responses(tables, terms),
        *_uplift(tables, terms),
        *_proxies(tables, terms),
    ]


def _variation(table: GroupTable, terms: AuditTerms) -> Metric | NotJudged:
    """Total variation between the groups' shares in the audience and among everybody eligible."""
    groups = len(table.groups)
    if not 2 <= groups <= MOST_GROUPS:
        return missing("variation", table, f"it needs two to {MOST_GROUPS} groups")
    chosen, rest = sums_of(table, (CHOSEN,)), sums_of(table, (REST,))
    people = float(chosen.sum())
    why = size_problem(people, math.sqrt(groups) * table.std, terms.minimum_cell)
    found = total_variation(chosen, rest, table.std, terms.alpha)
    verdict = "insufficient" if why else decide(found, terms.limit("variation"), "at most")
    if verdict == "insufficient":
        why = why or "the noise leaves its interval without an end"
    return Metric.of(
        shown(Judged(found, 1 - terms.alpha, verdict, why), people, terms),
        name="variation",
        attributes=table.attributes,
        institution=table.institution,
        people=people_of(people, terms),
        people_std=math.sqrt(groups) * table.std,
        threshold="variation",
    )


def _amplification(tables: LookalikeTables, terms: AuditTerms) -> _Found:
    """A group's people per person of the reference in the audience, over the same in the seed."""
    if tables.seeds is None:
        return [missing("amplification", tables.audience, "there is no table of seeds")]
    return [*_odds_ratios("amplification", tables.audience, tables.seeds, terms, "amplification")]


def _odds_ratios(
    name: str,
    table: GroupTable,
    before: GroupTable,
    terms: AuditTerms,
    threshold: str | None,
    outcome: str | None = None,
) -> list[Metric]:
    """A group's people per person of the reference in the first columns of two tables, one over the other.

    The reference is the named one, else the group with the most people: a choice by size, not by rate, for a rate that
    is chosen because it looks high is too high.
    """
    sizes, last = sums_of(table, table.outcomes), terms.reference(table)
    base = int(sizes.argmax()) if last is None else last
    sides = [
        (shares_of(each, each.outcomes[:1]), each.std**2, sums_of(each, each.outcomes[:1])) for each in (table, before)
    ]
    problems = [problems_of(rates, terms.minimum_cell) for rates, *_ in sides]

    def at(row: int) -> Callable[[float], Interval]:
        ways = [odds(float(top[row]), float(top[base]), variance, variance) for _, variance, top in sides]
        return lambda alpha: ratio(ways[0], ways[1], critical(alpha))

    def problem(row: int) -> str | None:
        own = problems[0][row] or problems[1][row]
        return own or ("the reference group is too small" if problems[0][base] or problems[1][base] else None)

    rows = [row for row in range(len(table.groups)) if row != base]
    judged = _family([at(row) for row in rows], [problem(row) for row in rows], terms, threshold)
    return [
        Metric.of(
            shown(each, float(sizes[row]), terms),
            name=name,
            attributes=table.attributes,
            group=table.groups[row],
            outcome=outcome,
            institution=table.institution,
            reference=table.groups[base],
            people=people_of(float(sizes[row]), terms),
            people_std=table.std * math.sqrt(len(table.outcomes)),
            threshold=threshold,
        )
        for row, each in zip(rows, judged, strict=True)
    ]


def _family(
    at: Sequence[Callable[[float], Interval]],
    problems: Sequence[str | None],
    terms: AuditTerms,
    threshold: str | None,
) -> list[Judged]:
    """Verdicts by Holm over what can be judged; described only where there is no threshold."""
    able = [row for row, problem in enumerate(problems) if problem is None]
    if threshold is None:
        return [Judged(each(terms.alpha), 1 - terms.alpha, None, why) for each, why in zip(at, problems, strict=True)]
    made = holm([at[row] for row in able], terms.limit(threshold), "at least", terms.alpha)
    judged = dict(zip(able, made, strict=True))
    return [
        judged[row] if row in judged else Judged(each(terms.alpha), 1 - terms.alpha, "insufficient", problems[row])
        for row, each in enumerate(at)
    ]


def _reach(tables: LookalikeTables, terms: AuditTerms) -> _Found:
    """People reached of a group, now over the last approved audience: nobody is made equal by being reached less."""
    now, before = tables.audience, tables.previous
    if before is None:
        return [missing("reach", now, "there is no earlier approved audience")]
    reached = [sums_of(each, (CHOSEN,)) for each in (now, before)]
    at = [_fixed(odds(float(new), float(old), now.std**2, before.std**2)) for new, old in zip(*reached, strict=True)]
    problems = [size_problem(float(old), before.std, terms.minimum_cell) for old in reached[1]]
    return [
        Metric.of(
            shown(each, float(old), terms),
            name="reach",
            attributes=now.attributes,
            group=group,
            institution=now.institution,
            people=people_of(float(old), terms),
            people_std=before.std,
            threshold="reach-ratio",
        )
        for group, old, each in zip(now.groups, reached[1], _family(at, problems, terms, "reach-ratio"), strict=True)
    ]


def _fixed(quotient: Quotient) -> Callable[[float], Interval]:
    return lambda alpha: interval(quotient, critical(alpha))


def _responses(tables: LookalikeTables, terms: AuditTerms) -> _Found:
    """Ratios of the share of responders who were chosen, and of the share of the chosen who respond."""
    table = tables.responses
    if table is None:
        why = "there is no table of responses"
        return [missing(name, tables.audience, why) for name in ("true-positive-rate", "precision")]
    caught = shares_of(table, RESPONSES[:1], (RESPONSES[0], RESPONSES[2]))
    right = shares_of(table, RESPONSES[:1], RESPONSES[:2])
    return [
        *rate_ratios("true-positive-rate", table, caught, terms, "quality-ratio"),
        *rate_ratios("precision", table, right, terms, "quality-ratio"),
    ]


def _uplift(tables: LookalikeTables, terms: AuditTerms) -> _Found:
    """Rate of good outcomes of the treated less the control group's: harm below 0, benefit above."""
    table = tables.uplift
    if table is None:
        return [missing("uplift", tables.audience, "there is no table of a randomised test")]
    arms = [shares_of(table, columns[:1], columns) for columns in (UPLIFT[:2], UPLIFT[2:])]
    problems = [problems_of(rates, terms.minimum_cell) for rates in arms]
    at = [_apart(treated, control) for treated, control in zip(*arms, strict=True)]
    judged = _family(at, [one or other for one, other in zip(*problems, strict=True)], terms, "uplift")
    sizes = sums_of(table, table.outcomes)
    return [
        Metric.of(
            shown(each, float(size), terms),
            name="uplift",
            attributes=table.attributes,
            group=group,
            institution=table.institution,
            people=people_of(float(size), terms),
            people_std=2 * table.std,
            threshold="uplift",
        )
        for group, size, each in zip(table.groups, sizes, judged, strict=True)
    ]


def _apart(first: Quotient, second: Quotient) -> Callable[[float], Interval]:
    return lambda alpha: difference(first, second, critical(alpha))


def _proxies(tables: LookalikeTables, terms: AuditTerms) -> _Found:
    """What features tell about a group, and what becomes of a group's odds when one of them is dropped."""
    found: _Found = []
    if not tables.features:
        found.append(missing("proxy", tables.audience, "there is no table of a feature by group"))
    for feature, table in tables.features.items():
        found.append(association_metric("proxy", table, terms, feature))
    if not tables.without:
        found.append(missing("dropped-feature", tables.audience, "no ranker without a feature was asked for"))
    for feature, table in tables.without.items():
        found += _odds_ratios("dropped-feature", table, tables.audience, terms, None, feature)
    return found
