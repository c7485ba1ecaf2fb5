"""Thresholds by group that reach an impact ratio, and what they cost in lift: post-processing of released tables.

Where the rules of a place do not allow a group to have a threshold of its own, this may not be used; that is decided by
the rule packs, not here. Whatever is chosen is audited again: tables are noisy, so the ratio that they promise is one.

With r the share of a group's people above a common score, every group gets the rate min(max(r, ratio P), P) for a
highest rate P; the common score is moved until as many people as before are chosen. Of all P the one with the most
responses is taken, or, without a table of responses, the one that moves the fewest people.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohortium.models.group_table import GroupTable
from cohortium.study.errors import DataError, Defect

__all__ = ["Cutoff", "Mitigation", "group_thresholds"]

_CANDIDATES = 201
_HALVINGS = 60


@dataclass(frozen=True)
class Cutoff:
    """How far down a group's scores people are chosen.

    Args:
        group: its labels.
        bin: the last bin of scores from which people are chosen.
        part: which part of that bin, 0..1, to be drawn by lot.
        rate: share of the group that is chosen.
    """

    group: tuple[str, ...]
    bin: str
    part: float
    rate: float


@dataclass(frozen=True)
class Mitigation:
    """Cutoffs before and after.

    Args:
        before, after: by group, in the table's order.
        ratio_before, ratio_after: lowest over highest rate.
        moved: people chosen before or after, but not both.
        lift_before, lift_after: rate of responses among the chosen over everybody's; None without responses.
    """

    before: tuple[Cutoff, ...]
    after: tuple[Cutoff, ...]
    ratio_before: float
    ratio_after: float
    moved: float
    lift_before: float | None
    lift_after: float | None


def group_thresholds(scores: GroupTable, reach: float, ratio: float, responses: GroupTable | None = None) -> Mitigation:
    """The thresholds under which no group's rate is below `ratio` times the highest.

    Args:
        scores: eligible people by group and bin of scores, highest scores first; negative noisy counts count as 0.
        reach: share of all eligible people to choose, above 0 and below 1.
        ratio: the impact ratio to reach, above 0 and at most 1.
        responses: of the people of every cell, how many respond; same groups and bins.

    Raises:
        DataError: a reach or ratio outside its range, or a group without people.
    """
    if not (0 < reach < 1 and 0 < ratio <= 1):
        raise DataError(
            "reach must be within 0 and 1, ratio above 0 and at most 1", fix="state for example 0.1 and 0.8"
        )
    if responses is not None and (responses.groups, responses.outcomes) != (scores.groups, scores.outcomes):
        raise Defect("tables of scores and responses that differ")
    people = np.maximum(scores.counts, 0.0)
    if not (people.sum(axis=1) > 0).all():
        raise DataError("a group without people has no threshold", fix="fold it into another group")
    gains = None if responses is None else np.clip(responses.counts, 0.0, people)
    before = _rates(people, reach, 1.0, 0.0)
    highest = [float(before.max()), *np.linspace(reach, min(1.0, reach / ratio), _CANDIDATES).tolist()]
    plans = [_rates(people, reach, most, ratio) for most in highest if reach <= most <= reach / ratio]
    after = max(plans, key=lambda rates: _worth(people, gains, before, rates))
    return Mitigation(
        before=_cutoffs(scores, people, before),
        after=_cutoffs(scores, people, after),
        ratio_before=float(before.min() / before.max()),
        ratio_after=float(after.min() / after.max()),
        moved=_moved(people, before, after),
        lift_before=None if gains is None else _lift(people, gains, before),
        lift_after=None if gains is None else _lift(people, gains, after),
    )


def _rates(people: NDArray[np.float64], reach: float, most: float, ratio: float) -> NDArray[np.float64]:
    """Rates by group of a common score, within [ratio most, most], such that `reach` of all people are chosen."""
    sizes = people.sum(axis=1)
    deep = np.concatenate([np.zeros((len(people), 1)), np.cumsum(people, axis=1)], axis=1) / sizes[:, np.newaxis]
    low, high = 0.0, float(people.shape[1])
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        rates = _at(deep, middle, ratio * most, most)
        low, high = (middle, high) if float(sizes @ rates) < reach * float(sizes.sum()) else (low, middle)
    return _at(deep, high, ratio * most, most)


def _at(deep: NDArray[np.float64], score: float, least: float, most: float) -> NDArray[np.float64]:
    """Rates of the people in the first `score` bins, the last one in part, within the limits."""
    rates = np.array([np.interp(score, np.arange(len(each)), each) for each in deep])
    return np.asarray(np.minimum(np.maximum(rates, least), most), dtype=np.float64)


def _worth(
    people: NDArray[np.float64],
    gains: NDArray[np.float64] | None,
    before: NDArray[np.float64],
    rates: NDArray[np.float64],
) -> float:
    return -_moved(people, before, rates) if gains is None else _caught(people, gains, rates)


def _moved(people: NDArray[np.float64], before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    return float(people.sum(axis=1) @ np.abs(after - before))


def _caught(people: NDArray[np.float64], gains: NDArray[np.float64], rates: NDArray[np.float64]) -> float:
    """Responses among the chosen."""
    return float(sum((part * row).sum() for part, row in zip(_parts(people, rates), gains, strict=True)))


def _lift(people: NDArray[np.float64], gains: NDArray[np.float64], rates: NDArray[np.float64]) -> float | None:
    chosen, overall = float(people.sum(axis=1) @ rates), float(gains.sum() / people.sum())
    return _caught(people, gains, rates) / chosen / overall if overall > 0 else None


def _parts(people: NDArray[np.float64], rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Which part of every cell is chosen when each group's rate is taken from the highest scores down."""
    wanted = (people.sum(axis=1) * rates)[:, np.newaxis]
    above = np.cumsum(people, axis=1) - people
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(people > 0, (wanted - above) / people, wanted > above)
    return np.asarray(np.clip(part, 0.0, 1.0))


def _cutoffs(scores: GroupTable, people: NDArray[np.float64], rates: NDArray[np.float64]) -> tuple[Cutoff, ...]:
    found = []
    for group, parts, rate in zip(scores.groups, _parts(people, rates), rates, strict=True):
        last = int(np.flatnonzero(parts > 0).max(initial=0))
        found.append(Cutoff(group, scores.outcomes[last], float(parts[last]), float(rate)))
    return tuple(found)
