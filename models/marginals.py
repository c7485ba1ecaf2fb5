"""Marginal distributions of numeric features: one joint release of hierarchical histograms.

Each feature's public range is cut into up to 128 bins (equal widths on its transformed scale; one bin per integer
where they fit). The query counts people in every node of a tree of branching 4 over the bins, for all features jointly.
Counts of ranges, and with them quantiles, then need a handful of nodes instead of many bins (Hay, Rastogi, Miklau,
Suciu, "Boosting the accuracy of differentially private histograms through consistency", VLDB 2010); non-negative least
squares makes the tree consistent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from cohortium.privacy.query import SCALE, Contribution, QuerySpec
from cohortium.privacy.table import CustomerTable
from cohortium.study.contract import Feature
from cohortium.study.errors import RefusedError

__all__ = ["BINS", "Axis", "Marginal", "MarginalsQuery", "estimate_marginals", "feature_axis"]

_MAX_AXES = 64
_MAX_BOUND = 2.0**53

BINS = 128
_BRANCHING = 4


@dataclass(frozen=True)
class Axis:
    """The public bins of one feature.

    Args:
        name: the feature.
        low, high: public bounds in the contract's unit.
        integer: whether the feature takes whole numbers only.
        log: whether bins are equal on the scale log(1 + value); low is then at least 0.
    """

    name: str
    low: float
    high: float
    integer: bool = False
    log: bool = False

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        """Ascending bin edges, shape (bins + 1,); the outer ones include the bounds."""
        if not self.integer:
            return self._grid(self.low, self.high, BINS)
        low, high = math.floor(self.low) - 0.5, math.ceil(self.high) + 0.5
        if high - low <= BINS:
            return np.arange(low, high + 1.0)
        halves: NDArray[np.float64] = np.unique(np.floor(self._grid(low, high, BINS)) + 0.5)
        halves[0], halves[-1] = low, high
        return halves

    @property
    def bins(self) -> int:
        """Number of bins."""
        return len(self.edges) - 1

    def transform(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values on the scale that distances use, elementwise."""
        return np.log1p(np.maximum(values, 0.0)) if self.log else values

    def _grid(self, low: float, high: float, bins: int) -> NDArray[np.float64]:
        if not self.log:
            return np.linspace(low, high, bins + 1)
        grid: NDArray[np.float64] = np.expm1(np.linspace(math.log1p(max(low, 0.0)), math.log1p(high), bins + 1))
        grid[0], grid[-1] = low, high
        return grid


def feature_axis(feature: Feature) -> Axis:
    """The public bins of a number."""
    low, high = feature.bounds
    return Axis(feature.name, low, high, integer=feature.integer, log=feature.transform == "log1p")


def _level_sizes(bins: int) -> tuple[int, ...]:
    """Nodes of each tree level from the finest up, the root left out."""
    sizes = [bins]
    while sizes[-1] > _BRANCHING:
        sizes.append(math.ceil(sizes[-1] / _BRANCHING))
    return tuple(sizes)


@dataclass(frozen=True)
class MarginalsQuery:
    """Tree histograms of several features jointly.

    A person adds one unit to one node of every level of every feature's tree: the squared sensitivity is the number of
    levels over all features, exactly.

    Args:
        axes: the features and their public bins.
    """

    axes: tuple[Axis, ...]
    kind = "marginals"

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Nodes per level, for each feature."""
        return tuple(_level_sizes(axis.bins) for axis in self.axes)

    @property
    def width(self) -> int:
        return sum(sum(sizes) for sizes in self.levels)

    @property
    def words_per_person(self) -> int:
        return sum(len(sizes) for sizes in self.levels)

    @property
    def bound_squared(self) -> int:
        return self.words_per_person * SCALE**2

    def contribute(self, people: CustomerTable) -> Contribution:
        values = people.select(tuple(axis.name for axis in self.axes))
        columns = np.empty((len(people), self.words_per_person), dtype=np.int64)
        word, offset = 0, 0
        for index, (axis, sizes) in enumerate(zip(self.axes, self.levels, strict=True)):
            node = np.searchsorted(axis.edges[1:-1], values[:, index], side="right")
            for size in sizes:
                columns[:, word] = offset + node
                node = node // _BRANCHING
                offset += size
                word += 1
        return Contribution(columns, np.full(columns.shape, SCALE, dtype=np.int64))

    def spec(self) -> QuerySpec:
        names = [axis.name for axis in self.axes]
        shape = np.array([[a.low, a.high, float(a.integer), float(a.log)] for a in self.axes], dtype=np.float64)
        return QuerySpec(self.kind, {"features": names}, {"axes": shape})

    @classmethod
    def from_spec(cls, spec: QuerySpec) -> MarginalsQuery:
        """Rebuild strictly; `RefusedError` for anything `spec` would not have written."""
        names, shape = spec.scalars.get("features"), spec.arrays.get("axes")
        if set(spec.scalars) != {"features"} or set(spec.arrays) != {"axes"} or shape is None:
            raise RefusedError("malformed marginals question")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RefusedError("malformed marginals question")
        if not 1 <= len(set(names)) == len(names) <= _MAX_AXES or shape.shape != (len(names), 4):
            raise RefusedError("malformed marginals question")
        if not (np.abs(shape) <= _MAX_BOUND).all() or not np.isin(shape[:, 2:], (0.0, 1.0)).all():
            raise RefusedError("malformed marginals question")
        if (shape[:, 0] >= shape[:, 1]).any() or (shape[shape[:, 3] == 1.0, 0] < 0).any():
            raise RefusedError("malformed marginals question")
        return cls(
            tuple(
                Axis(name, float(low), float(high), bool(integer), bool(log))
                for name, (low, high, integer, log) in zip(names, shape, strict=True)
            )
        )


@dataclass(frozen=True)
class Marginal:
    """The estimated distribution of one feature.

    Args:
        axis: its bins.
        mass: estimated people per bin, non-negative float64, shape (axis.bins,).
        count_std: noise standard deviation of one released node count, in people.
    """

    axis: Axis
    mass: NDArray[np.float64]
    count_std: float

    @property
    def total(self) -> float:
        """Estimated number of people."""
        return float(self.mass.sum())

    def quantile(self, q: float) -> float:
        """A value at which the distribution function passes q, 0 < q < 1, in the contract's unit.

        Inside a bin of several values, interpolated on the transformed scale; a bin of one integer gives that integer.
        With no estimated people at all, the value that divides the public range in that proportion.
        """
        mass = self.mass if self.total > 0 else np.ones(self.axis.bins)
        cumulative = np.cumsum(mass)
        target = q * cumulative[-1]
        index = int(np.searchsorted(cumulative, target, side="left"))
        index = min(index, self.axis.bins - 1)
        before = float(cumulative[index - 1]) if index else 0.0
        part = min(max((target - before) / max(float(mass[index]), 1e-12), 0.0), 1.0)
        return self._inside(index, part)

    def _inside(self, index: int, part: float) -> float:
        low, high = self.axis.edges[index], self.axis.edges[index + 1]
        ends = self.axis.transform(np.array([low, high]))
        point = float(ends[0] + part * (ends[1] - ends[0]))
        value = math.expm1(point) if self.axis.log else point
        if self.axis.integer:
            value = min(max(math.floor(value + 0.5), math.ceil(low)), math.floor(high))
        return min(max(value, self.axis.low), self.axis.high)


def estimate_marginals(query: MarginalsQuery, counts: NDArray[np.float64], std: float) -> tuple[Marginal, ...]:
    """The marginals behind noisy node counts: non-negative least squares over each feature's tree.

    Args:
        query: what was asked.
        counts: noisy people per node, shape (query.width,).
        std: noise standard deviation of a node, in people.
    """
    result, offset = [], 0
    for axis, sizes in zip(query.axes, query.levels, strict=True):
        part = counts[offset : offset + sum(sizes)]
        offset += sum(sizes)
        result.append(Marginal(axis, _consistent(part, sizes), std))
    return tuple(result)


def _consistent(counts: NDArray[np.float64], sizes: tuple[int, ...]) -> NDArray[np.float64]:
    """Leaf masses that fit all levels best, none negative."""
    bins = sizes[0]
    rows = [np.eye(bins)]
    for level, size in enumerate(sizes[1:], start=1):
        rows.append((np.arange(bins) // _BRANCHING**level == np.arange(size)[:, np.newaxis]).astype(np.float64))
    mass, _residual = nnls(np.vstack(rows), counts, maxiter=50 * bins)
    return np.asarray(mass, dtype=np.float64)
