"""Who the segments are: noised sizes and feature means of every segment, with intervals.

Means are winsorised: a value counts as no less than the feature's released 1% quantile and no more than its 99%
quantile, because the mean of a heavy-tailed amount over its whole public range would drown in noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cohortium.models.assignment import nearest_centre
from cohortium.models.marginals import Marginal
from cohortium.models.scaler import Scaler, scaler_from_array, scaler_to_array
from cohortium.privacy.query import SCALE, Contribution, QuerySpec, quantise, unit_scale
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError

__all__ = ["FeatureMean", "ProfileQuery", "ProfileRange", "SegmentProfile", "estimate_profiles", "profile_ranges"]

_COUNT_WEIGHT = 0.5
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class ProfileRange:
    """The range in which a feature's segment means are measured, in the contract's unit; low < high."""

    feature: str
    low: float
    high: float


def profile_ranges(marginals: Sequence[Marginal], tail: float = 0.01) -> tuple[ProfileRange, ...]:
    """Released quantile ranges; the public bounds where a released range is empty."""
    result = []
    for marginal in marginals:
        low, high = marginal.quantile(tail), marginal.quantile(1.0 - tail)
        if high <= low:
            low, high = marginal.axis.low, marginal.axis.high
        result.append(ProfileRange(marginal.axis.name, low, high))
    return tuple(result)


@dataclass(frozen=True)
class ProfileQuery:
    """Per segment: people, and the sum of every feature mapped to [-1, 1] over its range.

    A person adds to one segment only: half a unit of count and a vector clipped to L2 norm 1 after division by
    sqrt(features), so the squared sensitivity is 1 + 1/4 units, exactly. Per segment the words are the count, then
    the features in order.

    Args:
        scaler: to the space in which the centres stand.
        centres: shape (segments, len(scaler.features)).
        ranges: the features to describe segments by.
    """

    scaler: Scaler
    centres: NDArray[np.float64]
    ranges: tuple[ProfileRange, ...]
    kind = "profiles"

    @property
    def width(self) -> int:
        return len(self.centres) * self.words_per_person

    @property
    def words_per_person(self) -> int:
        return len(self.ranges) + 1

    @property
    def bound_squared(self) -> int:
        return SCALE**2 + unit_scale(_COUNT_WEIGHT) ** 2

    @cached_property
    def _ends(self) -> NDArray[np.float64]:
        return np.array([[r.low, r.high] for r in self.ranges], dtype=np.float64).T

    def contribute(self, people: CustomerTable) -> Contribution:
        points = self.scaler.transform(people.select(self.scaler.features))
        segment = nearest_centre(points, self.centres)
        low, high = self._ends
        raw = people.select(tuple(r.feature for r in self.ranges))
        unit = np.clip(2.0 * (raw - low) / (high - low) - 1.0, -1.0, 1.0)
        counts = np.full((len(people), 1), unit_scale(_COUNT_WEIGHT), dtype=np.int64)
        values = np.hstack([counts, quantise(unit, math.sqrt(len(self.ranges)))])
        columns = segment[:, np.newaxis] * self.words_per_person + np.arange(self.words_per_person)
        return Contribution(columns, values)

    def spec(self) -> QuerySpec:
        scaler = self.scaler
        scale = scaler_to_array(scaler)
        scalars = {"features": list(scaler.features), "profiled": [r.feature for r in self.ranges]}
        return QuerySpec(self.kind, scalars, {"scaler": scale, "centres": self.centres, "ranges": self._ends.T})

    @classmethod
    def from_spec(cls, spec: QuerySpec) -> ProfileQuery:
        """Rebuild strictly; `RefusedError` for anything `spec` would not have written."""
        if set(spec.scalars) != {"features", "profiled"} or set(spec.arrays) != {"scaler", "centres", "ranges"}:
            raise RefusedError("malformed profiles question")
        scaler = scaler_from_array(spec.scalars["features"], spec.arrays["scaler"])
        names, ranges, centres = spec.scalars["profiled"], spec.arrays["ranges"], spec.arrays["centres"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RefusedError("malformed profiles question")
        if not 1 <= len(set(names)) == len(names) or ranges.shape != (len(names), 2):
            raise RefusedError("malformed profiles question")
        if centres.ndim != 2 or centres.shape[1] != len(scaler.features) or not 1 <= len(centres) <= 1024:
            raise RefusedError("malformed profiles question")
        if not (np.isfinite(ranges).all() and np.isfinite(centres).all()) or (ranges[:, 0] >= ranges[:, 1]).any():
            raise RefusedError("malformed profiles question")
        kept = tuple(
            ProfileRange(name, float(low), float(high)) for name, (low, high) in zip(names, ranges, strict=True)
        )
        return cls(scaler, centres, kept)


@dataclass(frozen=True)
class FeatureMean:
    """A noised mean and its 95% interval for the noise, in the contract's unit."""

    feature: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class SegmentProfile:
    """A segment's noised size and means; `means` is empty when the size is below the minimum cell (suppressed).

    Args:
        size: noisy number of people; may be negative.
        size_std: its noise standard deviation.
        means: one per described feature, or none.
    """

    size: float
    size_std: float
    means: tuple[FeatureMean, ...]

    @property
    def suppressed(self) -> bool:
        """Whether the segment is below the minimum cell."""
        return not self.means


def estimate_profiles(
    query: ProfileQuery, sums: NDArray[np.float64], std: float, min_cell: float
) -> tuple[SegmentProfile, ...]:
    """Sizes and means from the noisy sums.

    Args:
        query: what was asked.
        sums: noisy sums in units of 1.0, shape (query.width,).
        std: noise standard deviation of a word, in units of 1.0.
        min_cell: noisy sizes below it are suppressed: no means, and the size is shown to nobody.
    """
    table = sums.reshape(len(query.centres), query.words_per_person)
    return tuple(_profile(query, row, std, min_cell) for row in table)


def _profile(query: ProfileQuery, row: NDArray[np.float64], std: float, min_cell: float) -> SegmentProfile:
    size, size_std = float(row[0]) / _COUNT_WEIGHT, std / _COUNT_WEIGHT
    if size < min_cell:
        return SegmentProfile(size, size_std, ())
    stretch = math.sqrt(len(query.ranges))
    means = []
    for bounds, word in zip(query.ranges, row[1:], strict=True):
        ratio = float(word) * stretch / size
        # delta method for a ratio of two independent noisy sums
        error = math.hypot(std * stretch, ratio * size_std) / size
        middle, half = (bounds.low + bounds.high) / 2, (bounds.high - bounds.low) / 2
        ends = [middle + half * min(max(ratio + step * _Z95 * error, -1.0), 1.0) for step in (-1, 0, 1)]
        means.append(FeatureMean(bounds.feature, mean=ends[1], low=ends[0], high=ends[2]))
    return SegmentProfile(size, size_std, tuple(means))
