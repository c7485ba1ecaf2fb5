"""Verdicts: pass, fail, inconclusive, insufficient; groups of a family by Holm's procedure; the worst one overall.

A verdict is a statement about an interval and a threshold. It is made for all groups of a family together: the
probability that any of its verdicts of pass or fail is wrong is at most alpha (Holm, Scand. J. Statist. 6, 1979). The
interval that is shown is the one at the level at which its group was decided. Nothing becomes a pass by itself:
what the noise hides is inconclusive, what is too small to say anything is insufficient, and either one keeps the
whole from passing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from cohortium.governance.fairness.intervals import Interval, Quotient, critical, ratio

__all__ = [
    "NOISE_DEVIATIONS",
    "Direction",
    "Judged",
    "Side",
    "Verdict",
    "against",
    "against_best",
    "decide",
    "holm",
    "judge_ratios",
    "size_problem",
    "worst",
]

Verdict = Literal["pass", "fail", "inconclusive", "insufficient"]
Side = Literal["at least", "at most"]
Direction = Literal["benefit", "cost"]

NOISE_DEVIATIONS = 5.0
"""An expected count of so many standard deviations of its noise can be judged; a smaller one is insufficient."""

_WORST: tuple[Verdict, ...] = ("fail", "insufficient", "inconclusive", "pass")
_HIDDEN = "the noise leaves its interval without an end"


@dataclass(frozen=True)
class Judged:
    """An interval and what follows from it.

    Args:
        interval: at the level at which it was decided; None where nothing may be shown.
        level: that level, 1 - alpha / (groups not yet decided).
        verdict: None for what is described and not judged.
        why: for `insufficient`, what is too small.
    """

    interval: Interval | None
    level: float
    verdict: Verdict | None
    why: str | None = None


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst verdict: fail, then insufficient, then inconclusive; `insufficient` of none at all."""
    return next((each for each in _WORST if each in verdicts), "insufficient")


def decide(found: Interval, limit: float, side: Side) -> Verdict:
    """One interval against one limit. A limit that the interval holds, or touches from outside, is no fail."""
    if not found.bounded:
        return "insufficient"
    if side == "at least":
        return "pass" if found.low >= limit else "fail" if found.high < limit else "inconclusive"
    return "pass" if found.high <= limit else "fail" if found.low > limit else "inconclusive"


def size_problem(expected: float, std: float, minimum_cell: float) -> str | None:
    """Why a group cannot be judged; None when it can.

    Args:
        expected: how many of the group's people would be counted at everybody's rate: not how many are, since
            nobody chosen of a large group is a finding, not a lack of data.
        std: standard deviation of the noise of the count.
        minimum_cell: people below which nothing about a group is said.
    """
    if not expected >= minimum_cell:
        return "fewer people expected than the minimum cell"
    if not expected >= NOISE_DEVIATIONS * std:
        return f"fewer people expected than {NOISE_DEVIATIONS:g} standard deviations of the noise"
    return None


def holm(at: Sequence[Callable[[float], Interval]], limit: float, side: Side, alpha: float) -> tuple[Judged, ...]:
    """Verdicts of a family, step by step: whoever alpha / (groups left) decides leaves; the next step has fewer left.

    Args:
        at: for every group, its interval at an error of alpha.
        limit, side: the threshold.
        alpha: error of the family.
    """
    judged: dict[int, Judged] = {}
    left = list(range(len(at)))
    while left:
        error = alpha / len(left)
        now = {index: at[index](error) for index in left}
        verdicts = {index: decide(found, limit, side) for index, found in now.items()}
        done = [index for index in left if verdicts[index] in ("pass", "fail")]
        for index in done or left:
            why = _HIDDEN if verdicts[index] == "insufficient" else None
            judged[index] = Judged(now[index], 1 - error, verdicts[index], why)
        left = [index for index in left if index not in judged]
    return tuple(judged[index] for index in range(len(at)))


def against(first: Quotient, second: Quotient) -> Callable[[float], Interval]:
    """The interval of first / second by error."""
    return lambda alpha: ratio(first, second, critical(alpha))


def against_best(rates: Sequence[Quotient], index: int, direction: Direction) -> Callable[[float], Interval]:
    """The interval, by error, of a group's ratio to the best of all groups, itself included: 1 at most.

    Which group is best is not known, only which one looks so in noisy counts; the ratio to that one is biased
    downwards. The ratio to the truly best is the least of the ratios to every group. So its lower end is the
    least of their lower ends (the truly best is one of them: no correction), and its upper end the least of their
    upper ends, each at alpha / (groups - 1) (every one of them must hold).

    Args:
        rates: of all groups that can be judged, two at least.
        index: the group.
        direction: for `benefit` the highest rate is best, for `cost` the lowest, and ratios are the best one's over
            the group's.
    """
    others = [rate for position, rate in enumerate(rates) if position != index]
    estimates = [rate.estimate for rate in rates if rate.estimate is not None]

    def pair(other: Quotient, alpha: float) -> Interval:
        first, second = (rates[index], other) if direction == "benefit" else (other, rates[index])
        return ratio(first, second, critical(alpha))

    def estimate() -> float | None:
        own = rates[index].estimate
        if own is None:
            return None
        first, second = (own, max(estimates)) if direction == "benefit" else (min(estimates), own)
        return first / second if second else None

    def at(alpha: float) -> Interval:
        lows = [pair(other, alpha).low for other in others]
        highs = [pair(other, alpha / len(others)).high for other in others]
        if any(math.isnan(end) for end in (*lows, *highs)):
            return Interval(estimate(), math.nan, math.nan, bounded=False)
        low, high = min(1.0, *lows), min(1.0, *highs)
        return Interval(estimate(), low, high, bounded=low > 0.0 or high < 1.0)

    return at


def judge_ratios(
    rates: Sequence[Quotient],
    problems: Sequence[str | None],
    reference: int | None,
    direction: Direction,
    limit: float,
    alpha: float,
) -> tuple[Judged, ...]:
    """Ratios of rates to a named reference, or to the best of the groups that can be judged.

    Args:
        rates: by group.
        problems: what is too small to judge (`size_problem`), by group.
        reference: the named one, itself described as 1 and not judged; None for the best.
        direction: whether a high rate is a benefit or a cost; a cost's ratio is turned round, so that small is bad.
        limit: the least ratio that passes.
        alpha: error of the family.

    Returns:
        One for each group.
    """
    able = [index for index, problem in enumerate(problems) if problem is None and index != reference]
    if reference is not None:
        intervals = [_to_reference(rate, rates[reference], direction) for rate in rates]
        blocked = "the reference group is too small" if problems[reference] else None
    else:
        intervals = [_to_best(rates, able, index, direction) for index in range(len(rates))]
        blocked = "there is no other group that can be judged" if len(able) < 2 else None
    judged = dict(zip(able, holm([intervals[index] for index in able], limit, "at least", alpha), strict=True))
    found = []
    for index, problem in enumerate(problems):
        if index == reference:
            found.append(Judged(Interval(1.0, 1.0, 1.0, bounded=True), 1 - alpha, None))
        elif problem or blocked:
            found.append(Judged(intervals[index](alpha), 1 - alpha, "insufficient", problem or blocked))
        else:
            found.append(judged[index])
    return tuple(found)


def _to_reference(rate: Quotient, reference: Quotient, direction: Direction) -> Callable[[float], Interval]:
    return against(rate, reference) if direction == "benefit" else against(reference, rate)


def _to_best(
    rates: Sequence[Quotient], able: Sequence[int], index: int, direction: Direction
) -> Callable[[float], Interval]:
    """Among the groups that can be judged, and the group itself."""
    others = [rates[other] for other in able if other != index]
    if not others:
        return lambda alpha: Interval(None, math.nan, math.nan, bounded=False)
    return against_best([rates[index], *others], 0, direction)
