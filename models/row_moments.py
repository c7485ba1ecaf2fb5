"""Means and covariances of rows, over all customers: one sum of outer products, and what follows from it.

Released once with an encoder; every campaign starts from it, so that a campaign spends on its seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cohortium.models.features import ROW_UNIT, Rows, on_weight_grid, rows_from_parts
from cohortium.privacy.query import SCALE, Contribution, Outer, QuerySpec, SumQuery, quantise
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError

__all__ = [
    "CONSTANT",
    "Frame",
    "FrameSumQuery",
    "RowMoments",
    "RowMomentsQuery",
    "frame_from_parts",
    "make_frame",
    "read_row_moments",
    "rebuilt",
]

CONSTANT = 0.15
"""The constant that stands beside a row, in units of its radius: it counts people and makes the mean."""

_POWER = 0.35
_LEAST = 1e-3

_Query = TypeVar("_Query", bound=SumQuery)


def rebuilt(spec: QuerySpec, make: Callable[[object, Mapping[str, NDArray[np.float64]]], _Query], name: str) -> _Query:
    """The query that `make` builds of a spec's features and arrays.

    `RefusedError` when `make` refuses them, and when the query's own spec would have other scalars or arrays.
    """
    if set(spec.scalars) == {"features"}:
        query = make(spec.scalars["features"], spec.arrays)
        if set(query.spec().arrays) == set(spec.arrays):
            return query
    raise RefusedError(f"malformed {name} question")


@dataclass(frozen=True)
class RowMomentsQuery:
    """The sum over all customers of z z^T for z = (row, CONSTANT * radius).

    A person's words have the norm |z|^2 of at most radius^2 (1 + CONSTANT^2): the sensitivity, in units of 2^-24.

    Args:
        rows: how customers become rows.
    """

    rows: Rows
    kind = "row-moments"
    words_per_person = 0

    @cached_property
    def _constant(self) -> int:
        return math.floor(CONSTANT * self.rows.radius * ROW_UNIT)

    @property
    def bound_squared(self) -> int:
        return (math.floor((self.rows.radius * ROW_UNIT) ** 2) + self._constant**2) ** 2

    @property
    def width(self) -> int:
        return (self.rows.width + 1) ** 2

    @property
    def outers(self) -> tuple[Outer, ...]:
        return (Outer(0, self.rows.width + 1, self.rows.width + 1),)

    def contribute(self, people: CustomerTable) -> Contribution:
        rows = self.rows.of(people) * ROW_UNIT
        augmented = np.hstack([rows, np.full((len(people), 1), float(self._constant))])
        nothing = np.empty((len(people), 0), dtype=np.int64)
        return Contribution(nothing, nothing, ((augmented, augmented),))

    def spec(self) -> QuerySpec:
        return QuerySpec(self.kind, *self.rows.parts())

    @classmethod
    def from_spec(cls, spec: QuerySpec) -> RowMomentsQuery:
        """Rebuild strictly; `RefusedError` for anything `spec` would not have written."""
        return rebuilt(spec, lambda features, arrays: cls(rows_from_parts(features, arrays)), "moments")


@dataclass(frozen=True)
class RowMoments:
    """Released moments of rows.

    Args:
        people: noisy number of people, at least 1.
        mean: shape (d,).
        covariance: shape (d, d), symmetric; noisy, so eigenvalues may be below 0.
        entry_std: standard deviation of what the noise of an entry's own words adds to an entry of the covariance
            beside the diagonal. That of the count, which stretches all entries alike, and of the mean come on top.
    """

    people: float
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    entry_std: float


def read_row_moments(query: RowMomentsQuery, values: NDArray[np.float64], std: float) -> RowMoments:
    """Moments from a noisy answer of shape (query.width,) and its noise, in units of 1.0 (SCALE integer units)."""
    d = query.rows.width
    matrix = values.reshape(d + 1, d + 1) * (SCALE / ROW_UNIT**2)
    matrix = (matrix + matrix.T) / 2.0
    constant = query._constant / ROW_UNIT
    people = max(float(matrix[d, d]) / constant**2, 1.0)
    mean = matrix[:d, d] / constant / people
    covariance = matrix[:d, :d] / people - np.outer(mean, mean)
    return RowMoments(people, mean, covariance, std * SCALE / ROW_UNIT**2 / math.sqrt(2.0) / people)


@dataclass(frozen=True)
class Frame:
    """The axes in which campaigns work: eigenvectors of the rows' covariance, each divided by a power of its variance.

    Args:
        rows: how customers become rows.
        axes: shape (d, d), on the weight grid: a row's coordinates are row @ axes.
        radius: L2 norm to which coordinates are clipped.
    """

    rows: Rows
    axes: NDArray[np.float64]
    radius: float

    def coordinates(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Coordinates of rows from `Rows.of`, exact and not yet clipped."""
        return np.asarray(rows @ self.axes)

    def parts(self) -> tuple[dict[str, object], dict[str, NDArray[np.float64]]]:
        """Scalars and arrays of the wire form."""
        scalars, arrays = self.rows.parts()
        return scalars, {**arrays, "frame_axes": self.axes, "frame_limits": np.array([self.radius])}


def make_frame(rows: Rows, moments: RowMoments) -> tuple[Frame, NDArray[np.float64], NDArray[np.float64]]:
    """The frame of released moments.

    Returns:
        the frame, the variances along its axes before scaling (noisy), and the factors of the axes, both shape (d,).
    """
    variances, vectors = np.linalg.eigh(moments.covariance)
    floor = max(moments.entry_std * math.sqrt(len(variances)), _LEAST)
    kept = np.maximum(variances, 0.0)
    factors = (kept + floor) ** -_POWER
    radius = math.sqrt(float((kept * factors**2).sum()) + _LEAST)
    return Frame(rows, on_weight_grid(vectors * factors), radius), variances, factors


def frame_from_parts(features: object, arrays: Mapping[str, NDArray[np.float64]]) -> Frame:
    """A frame from its wire form; `RefusedError` when malformed. Arrays of other names are not looked at."""
    rows = rows_from_parts(features, arrays)
    axes, limits = arrays.get("frame_axes"), arrays.get("frame_limits")
    if axes is None or limits is None or limits.shape != (1,) or axes.shape != (rows.width, rows.width):
        raise RefusedError("malformed frame")
    radius = float(limits[0])
    if not 2.0**-10 <= radius <= 2.0**10 or not np.array_equal(on_weight_grid(axes), axes):
        raise RefusedError("malformed frame")
    return Frame(rows, axes, radius)


@dataclass(frozen=True)
class FrameSumQuery:
    """The sum of everybody's coordinates in a frame, clipped to its radius.

    A person's words, in units of the radius, have a norm of at most SCALE: the sensitivity, exactly.
    """

    frame: Frame
    kind = "frame-sum"
    bound_squared = SCALE**2

    @property
    def width(self) -> int:
        return self.frame.rows.width

    @property
    def words_per_person(self) -> int:
        return self.width

    def contribute(self, people: CustomerTable) -> Contribution:
        coordinates = self.frame.coordinates(self.frame.rows.of(people))
        values = quantise(coordinates, self.frame.radius)
        return Contribution(np.broadcast_to(np.arange(self.width), values.shape), values)

    def spec(self) -> QuerySpec:
        return QuerySpec(self.kind, *self.frame.parts())

    @classmethod
    def from_spec(cls, spec: QuerySpec) -> FrameSumQuery:
        """Rebuild strictly; `RefusedError` for anything `spec` would not have written."""
        return rebuilt(spec, lambda features, arrays: cls(frame_from_parts(features, arrays)), "frame")
