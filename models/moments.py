"""Moments of cells: counts, sums and second moments of customers around the centre of their own cell, jointly.

One query serves three purposes: with one cell, the global covariance; with many, a sketch of the distribution; without
second moments, a Lloyd step of k-means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cohortium.models.assignment import nearest_centre
from cohortium.models.scaler import Scaler, scaler_from_array, scaler_to_array
from cohortium.privacy.query import SCALE, Contribution, QuerySpec, quantise, unit_scale
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError

__all__ = ["CellMoments", "MomentQuery", "read_moments"]

_MAX_CELLS = 1024
_MAX_DIMENSIONS = 64


@dataclass(frozen=True)
class MomentQuery:
    """Weighted moments of the residual u = (z - centre) / radius of the nearest centre, clipped to |u| <= 1.

    A person adds (w0, w1 u, w2 vech(u u')) to one cell, off-diagonals of u u' times sqrt(2). Its squared norm is
    w0^2 + w1^2 |u|^2 + w2^2 |u|^4, because the Frobenius norm of u u' is |u|^2; so the squared sensitivity is
    w0^2 + w1^2 + w2^2, exactly, in integer units. Without w2 the second moments are left out.

    Args:
        scaler: from the contract's units to the box in which the centres stand; d features.
        centres: of the cells, shape (cells, d).
        radii: clipping radius of every cell, positive, shape (cells,).
        weights: (w0, w1) or (w0, w1, w2), each above 0 and at most 1.
    """

    scaler: Scaler
    centres: NDArray[np.float64]
    radii: NDArray[np.float64]
    weights: tuple[float, ...]
    kind = "moments"

    @cached_property
    def _units(self) -> tuple[int, ...]:
        return tuple(unit_scale(weight) for weight in self.weights)

    @property
    def width(self) -> int:
        return len(self.centres) * self.words_per_person

    @cached_property
    def words_per_person(self) -> int:
        d = self.centres.shape[1]
        seconds = d * (d + 1) // 2 if len(self.weights) == 3 else 0
        return int(1 + d + seconds)

    @property
    def bound_squared(self) -> int:
        return sum(unit * unit for unit in self._units)

    @property
    def bound(self) -> float:
        """The L2 sensitivity in units of 1.0."""
        return math.sqrt(self.bound_squared) / SCALE

    def contribute(self, people: CustomerTable) -> Contribution:
        points = self.scaler.transform(people.select(self.scaler.features))
        cell = nearest_centre(points, self.centres)
        unit = quantise((points - self.centres[cell]) / self.radii[cell, np.newaxis]) / SCALE
        values = np.empty((len(people), self.words_per_person), dtype=np.int64)
        d = points.shape[1]
        values[:, 0] = self._units[0]
        values[:, 1 : 1 + d] = np.trunc(unit * self._units[1])
        if len(self._units) == 3:
            rows, columns, stretch = _upper(d)
            values[:, 1 + d :] = np.trunc(unit[:, rows] * unit[:, columns] * (stretch * self._units[2]))
        positions = cell[:, np.newaxis] * self.words_per_person + np.arange(self.words_per_person)
        return Contribution(positions, values)

    def spec(self) -> QuerySpec:
        arrays = {"scaler": scaler_to_array(self.scaler), "centres": self.centres, "radii": self.radii}
        arrays["weights"] = np.array(self.weights, dtype=np.float64)
        return QuerySpec(self.kind, {"features": list(self.scaler.features)}, arrays)

    @classmethod
    def from_spec(cls, spec: QuerySpec) -> MomentQuery:
        """Rebuild strictly; `RefusedError` for anything `spec` would not have written."""
        if set(spec.scalars) != {"features"} or set(spec.arrays) != {"scaler", "centres", "radii", "weights"}:
            raise RefusedError("malformed moments question")
        scaler = scaler_from_array(spec.scalars["features"], spec.arrays["scaler"])
        centres, radii, weights = (spec.arrays[name] for name in ("centres", "radii", "weights"))
        d = len(scaler.features)
        if centres.ndim != 2 or centres.shape[1] != d or not 1 <= len(centres) <= _MAX_CELLS or d > _MAX_DIMENSIONS:
            raise RefusedError("malformed moments question")
        if radii.shape != (len(centres),) or weights.shape not in ((2,), (3,)):
            raise RefusedError("malformed moments question")
        if not all(np.isfinite(values).all() for values in (centres, radii, weights)):
            raise RefusedError("malformed moments question")
        if (radii < 1e-6).any() or (np.abs(centres) > 2).any() or (weights < 2.0**-10).any() or (weights > 1).any():
            raise RefusedError("malformed moments question")
        return cls(scaler, centres, radii, tuple(float(weight) for weight in weights))


@dataclass(frozen=True)
class CellMoments:
    """Decoded noisy moments of each cell.

    Args:
        counts: noisy people, may be negative, shape (cells,).
        sums: noisy sums of u, shape (cells, d).
        seconds: noisy sums of u u', symmetric, shape (cells, d, d); empty without second moments.
    """

    counts: NDArray[np.float64]
    sums: NDArray[np.float64]
    seconds: NDArray[np.float64]


def read_moments(query: MomentQuery, values: NDArray[np.float64]) -> CellMoments:
    """Undo the weights of a noisy answer of shape (query.width,)."""
    d = query.centres.shape[1]
    table = values.reshape(len(query.centres), query.words_per_person)
    weights = [unit / SCALE for unit in query._units]
    seconds = np.zeros((len(table) if len(weights) == 3 else 0, d, d))
    if len(weights) == 3:
        rows, columns, stretch = _upper(d)
        seconds[:, rows, columns] = seconds[:, columns, rows] = table[:, 1 + d :] / (stretch * weights[2])
    return CellMoments(table[:, 0] / weights[0], table[:, 1 : 1 + d] / weights[1], seconds)


def _upper(d: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Rows and columns of the upper triangle, and what its entries are stretched by: sqrt(2) off the diagonal."""
    rows, columns = np.triu_indices(d)
    return rows, columns, np.where(rows == columns, 1.0, math.sqrt(2.0))
