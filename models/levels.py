"""The curve that is shown and the levels on it: cut-offs by reach, similarity or dilution, nested, none too small.

Cut-offs are chosen among the released edges, where noise is Gaussian of known size: a band is the unbiased estimate
plus and minus 1.96 standard deviations, untouched, so that it covers as often as it says. It is monotone because a
point whose band is out of order with another's is not shown beside it. Nor are two points that differ by less than the
minimum cell; the same holds against nobody and against everybody, so that no difference reveals a small cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from cohortium.models.reach import ScoreCounts
from cohortium.models.validation import Dilution, Estimate, Validation
from cohortium.study.errors import PlanError
from cohortium.study.reach import STANDARD_LEVELS, CurvePoint, LevelTarget, Lock, Measured, ReachCurve, ReachLevel

__all__ = ["PROTECTION", "reach_curve", "why_suppressed"]

PROTECTION = (0.9, 1.1)
"""A level's reach over its reach before the refit is kept within these."""

_Z95 = 1.959963984540054
_NEAR = 0.1  # of a level's target: how far it may move to keep the minimum cell


def reach_curve(
    people: Validation,
    min_cell: float,
    targets: Sequence[LevelTarget] = STANDARD_LEVELS,
    previous: Mapping[str, float] | None = None,
) -> ReachCurve:
    """The curve with its levels.

    Each level keeps its locks at the unfavourable end of every interval, comes as near to its share as they allow, and
    is moved to within PROTECTION of its reach before the refit, when that is given, unless a lock forbids it: with the
    whole band if it can be, else with the estimate. A level without a share is the largest audience that keeps its
    locks, or the smallest when they only ask for more people. A level without locks that cannot stand apart from the
    next smaller one by the minimum cell is suppressed.

    Args:
        people: the seeds, and the rest: everybody who could be reached.
        min_cell: least (noisy) number of people in any reach, and between any two; at least 1.
        targets: of distinct names.
        previous: a level's reach before the refit, by name.

    Raises:
        PlanError: a lock that no audience can keep; the nearest possible is named.
    """
    choice = _Choice(people, min_cell)
    before = previous or {}
    chosen: dict[str, int | None] = {}
    last = -1  # levels with a share are nested in the order of their shares; only a lock makes two of them one
    for target in sorted(targets, key=lambda target: target.share or math.inf):
        first = 0 if target.share is None else max(last, 0) if target.locks else last + 1
        index = choice.level(target, before.get(target.name), first, [k for k in chosen.values() if k is not None])
        chosen[target.name] = index
        if index is not None and target.share is not None:
            last = index
    points = choice.shown([index for index in chosen.values() if index is not None])
    levels = [_level(name, None if k is None else points[k], before.get(name)) for name, k in chosen.items()]
    places = {target.name: (target.share or 0.0) * choice.reach[-1] for target in targets}
    levels.sort(key=lambda level: places[level.name] if level.point is None else level.point.people.value)
    return ReachCurve(eligible=choice.everybody, points=tuple(points.values()), levels=tuple(levels))


def why_suppressed(curve: ReachCurve, target: LevelTarget | None, min_cell: int) -> str:
    """Why a level is suppressed, in words for people, from what was released alone.

    Args:
        curve: as released.
        target: what the plan asks of the level; None where it does not say.
        min_cell: the plan's.
    """
    fewer, apart = f"fewer than {min_cell:,} people", f"less than {min_cell:,} people apart from another level"
    if curve.eligible is None:
        return f"{fewer} are eligible"
    if target is None or target.share is None:
        return f"{fewer}, or {apart}"
    wanted = target.share * curve.eligible.value
    if wanted < min_cell:
        return fewer
    if curve.eligible.value - wanted < min_cell:
        return f"{fewer} would be left out"
    shown = [level.point.people.value for level in curve.levels if level.point is not None]
    if any(abs(wanted - people) < min_cell for people in shown):
        return apart
    return "no cut-off of the score is surely near it"


def _level(name: str, point: CurvePoint | None, before: float | None) -> ReachLevel:
    if point is None or before is None:
        return ReachLevel(name=name, point=point)
    low, high = (bound * before for bound in PROTECTION)
    protected = low <= point.people.low and point.people.high <= high
    return ReachLevel(name=name, point=point, change=point.people.value / before - 1.0, protected=protected)


@dataclass(frozen=True)
class _Choice:
    """What a cut-off is chosen by. Index k is the k-th cut-off from the highest; the last stands for everybody."""

    people: Validation
    min_cell: float

    @property
    def eligible(self) -> ScoreCounts:
        """Everybody who could be reached."""
        return self.people.rest

    @cached_property
    def reach(self) -> NDArray[np.float64]:
        """Estimates: monotone, and within their bands."""
        return np.clip(self.eligible.monotone_reach, *self.band)

    @cached_property
    def band(self) -> NDArray[np.float64]:
        """Lower and upper ends of the unbiased 95% intervals, none negative; shape (2, bins)."""
        half = _Z95 * self.eligible.reach_std
        return np.maximum([self.eligible.reach - half, self.eligible.reach + half], 0.0)

    @property
    def everybody(self) -> Measured | None:
        """The eligible people; None when suppressed."""
        return self._people(len(self.reach) - 1) if self.reach[-1] >= self.min_cell else None

    @cached_property
    def _dilutions(self) -> tuple[Dilution | None, ...]:
        return tuple(self.people.dilution(bins) for bins in range(1, len(self.reach)))

    @cached_property
    def _relevance(self) -> Mapping[int, Measured]:
        """Relevance by cut-off: x / (1 + x) of the ratio x of shares reached, first made non-increasing in reach.

        Isotonic regression of values and of intervals' ends, weighted by reach.
        """
        found = {k: each.ratio for k, each in enumerate(self._dilutions) if each is not None and each.ratio is not None}
        if not found:
            return {}
        raw = np.array([[each.low, each.value, each.high] for each in (e.measured() for e in found.values())])
        weights = np.maximum(self.reach[list(found)], 1.0)
        fitted = [isotonic_regression(column, weights=weights, increasing=False).x for column in raw.T]
        ratios = np.sort(np.column_stack(fitted), axis=1)
        rows = (ratios / (1.0 + ratios)).tolist()
        return {k: Measured(low=low, value=v, high=high) for k, (low, v, high) in zip(found, rows, strict=True)}

    def level(self, target: LevelTarget, before: float | None, first: int, others: Sequence[int]) -> int | None:
        """The cut-off of a level at or below cut-off `first`, apart from the `others`; None when suppressed."""
        apart = self._apart(others) & (np.arange(len(self.reach) - 1) >= first)
        margins = [self._margins(lock) for lock in target.locks]
        kept = apart & np.all([margin >= 0.0 for margin in margins], axis=0)
        if not kept.any():
            if target.locks:
                raise _impossible(target, apart, margins)
            return None
        wanted = self._wanted(target, kept)
        index, missed = self._nearest(kept, wanted)
        if not target.locks and missed > max(_NEAR * wanted, float(np.abs(self.reach[:-1] - wanted).min())):
            return None
        return index if before is None else self._nearest(*self._protected(before, kept, wanted))[0]

    def _nearest(self, kept: NDArray[np.bool_], wanted: float) -> tuple[int, float]:
        """The cut-off whose reach is nearest to the one wanted, and by how much it misses it."""
        missed = np.where(kept, np.abs(self.reach[:-1] - wanted), math.inf)
        return int(np.argmin(missed)), float(missed.min())

    def _wanted(self, target: LevelTarget, kept: NDArray[np.bool_]) -> float:
        """The reach that a level should have."""
        if target.share is not None:
            return float(target.share * self.reach[-1])
        grows = all(
            lock.measure == "recall" or (lock.kind == "reach" and lock.at_most is None) for lock in target.locks
        )
        return 0.0 if grows else float(self.reach[:-1][kept].max())

    def _protected(self, before: float, kept: NDArray[np.bool_], wanted: float) -> tuple[NDArray[np.bool_], float]:
        """Cut-offs within the protection band and the reach wanted there; the same as before where there is none."""
        low, high = (bound * before for bound in PROTECTION)
        reach, (lower, upper) = self.reach[:-1], self.band[:, :-1]
        for within in ((low <= lower) & (upper <= high), (low <= reach) & (reach <= high)):
            if (within & kept).any():
                kept = within & kept
                break
        return kept, min(max(wanted, low), high)

    def _apart(self, others: Sequence[int]) -> NDArray[np.bool_]:
        """Which cut-offs may be shown beside these, beside nobody and beside everybody."""
        apart = self.reach[:-1] >= self.min_cell
        for other in (*others, len(self.reach) - 1):
            apart = apart & self._beside(other)
        return apart

    def _beside(self, other: int) -> NDArray[np.bool_]:
        """Which cut-offs may be shown beside another: itself; else a cell away at least, with bands in order."""
        places = np.arange(len(self.reach) - 1)
        far = np.abs(self.reach[:-1] - self.reach[other]) >= self.min_cell
        steps = (self.band[:, :-1] - self.band[:, [other]]) * np.sign(places - other)
        return np.asarray((far & (steps >= 0.0).all(axis=0)) | (places == other))

    def _margins(self, lock: Lock) -> NDArray[np.float64]:
        """By how much each cut-off keeps a lock at the unfavourable end, in the measure's unit; negative: not."""
        if lock.at_most is not None:
            ends = self.band[1, :-1] if lock.measure == "people" else self._shares(1.0)
            return lock.at_most - ends
        bound = -math.inf if lock.at_least is None else lock.at_least
        if lock.measure == "people":
            return self.band[0, :-1] - bound
        if lock.measure == "share":
            return self._shares(-1.0) - bound
        if lock.measure == "cutoff":
            return np.asarray(self.eligible.edges[::-1] - bound)
        found = [self._quality(k)[lock.measure] for k in range(len(self.reach) - 1)]
        return np.array([-math.inf if each is None else each.low - bound for each in found])

    def _shares(self, side: float) -> NDArray[np.float64]:
        """An end of the interval of every cut-off's share of the eligible; unfavourable where they are hidden."""
        counts, total = self.eligible, self.eligible.total
        if total <= 3.0 * counts.total_std:
            return np.full(len(self.reach) - 1, side * math.inf)
        shares, result = counts.reach / total, []
        for k, share in enumerate(shares[:-1]):
            error = counts.noise((np.arange(len(shares)) <= k) - share) / total
            result.append(share + side * _Z95 * error)
        return np.array(result)

    def shown(self, levels: Sequence[int]) -> dict[int, CurvePoint]:
        """The levels' points and as many others as may stand beside them, from the highest cut-off."""
        free, kept = self._apart(levels), set(levels)
        for k in range(len(self.reach) - 1):
            if free[k]:
                kept.add(k)
                free &= self._beside(k)
        places = sorted(kept)
        return dict(zip(places, _rising_recall([self._point(k) for k in places]), strict=True))

    def _point(self, k: int) -> CurvePoint:
        share = min(float(self.reach[k] / self.reach[-1]), 1.0)
        cutoff = float(self.eligible.edges[::-1][k])
        return CurvePoint(cutoff=cutoff, people=self._people(k), share=share, **self._quality(k))

    def _people(self, k: int) -> Measured:
        low, high = self.band[:, k]
        return Measured(value=float(self.reach[k]), low=float(low), high=float(high))

    def _quality(self, k: int) -> dict[str, Measured | None]:
        found = self._dilutions[k]
        if found is None:
            return dict.fromkeys(("recall", "lift", "precision", "relevance"))
        return {
            "recall": found.recall.measured(0.0, 1.0),
            "lift": _measured(found.lift, math.inf),
            "precision": _measured(found.precision, 1.0),
            "relevance": self._relevance.get(k),
        }


def _rising_recall(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """The points with recalls that never fall along the curve, as whoever is reached stays reached.

    A lower end holds for every point that reaches more, an upper end for every one that reaches less; values are the
    nearest rising ones (isotonic). Where noise makes ends cross, they meet.
    """
    found = [point.recall for point in points]
    known = [recall for recall in found if recall is not None]
    if len(known) != len(points) or not known:
        return list(points)
    low = np.maximum.accumulate([recall.low for recall in known])
    high = np.minimum.accumulate([recall.high for recall in known[::-1]])[::-1]
    value = np.asarray(isotonic_regression([recall.value for recall in known]).x)
    low, high = np.minimum(low, value), np.maximum(high, value)
    return [
        point.model_copy(update={"recall": Measured(value=float(v), low=float(a), high=float(b))})
        for point, v, a, b in zip(points, value, low, high, strict=True)
    ]


def _measured(estimate: Estimate | None, high: float) -> Measured | None:
    return None if estimate is None else estimate.measured(0.0, high)


def _impossible(target: LevelTarget, apart: NDArray[np.bool_], margins: Sequence[NDArray[np.float64]]) -> PlanError:
    """Which lock cannot be kept, and how near an audience comes to it."""
    place = f"level {target.name}"
    if not apart.any():
        return PlanError("no audience is large enough to be shown", place=place, fix="widen the neighbouring levels")
    for lock, margin in zip(target.locks, margins, strict=True):
        best = float(margin[apart].max())
        if best < 0.0:
            word, bound = ("at least", lock.at_least) if lock.at_least is not None else ("at most", lock.at_most)
            nearest = (bound or 0.0) + (best if lock.at_least is not None else -best)
            said = f"the nearest that is sure is {_figure(nearest)}" if math.isfinite(nearest) else "the noise hides it"
            fix = "loosen the lock" if math.isfinite(nearest) else "lock another measure or give the phase more budget"
            return PlanError(
                f"no audience has {lock.measure} of {word} {_figure(bound or 0.0)}: {said}", place=place, fix=fix
            )
    return PlanError("no audience keeps all locks at once", place=place, fix="loosen one of them")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
