"""Rows: what rankers see of a customer, centred and clipped to one norm, on a grid.

    basis, or an encoder's embedding of it  -  released centre  ->  clipped to an L2 norm

The very same row is summed, learnt on and scored. Its words are multiples of 2^-12, each the same bit for bit in any
company, so that products with weights on a grid are exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cohortium.models.basis import UNIT, Basis, basis_from_array, basis_to_array
from cohortium.models.encoder import Encoder, encoder_from_arrays
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import Defect, RefusedError

__all__ = [
    "MAX_CENTRE",
    "MAX_RADIUS",
    "ROW_UNIT",
    "Rows",
    "exact_product",
    "on_row_grid",
    "on_weight_grid",
    "rows_from_parts",
]

ROW_UNIT = 2**12
"""Steps per 1.0 of a row."""

MAX_CENTRE = 4.0
"""Largest absolute entry of a centre, and of a row around it."""

MAX_RADIUS = 15.0
"""Largest norm of rows: the sum of the squares of 2^31 rows, in steps of 2^-24, stays below 2^63."""

_WEIGHT_UNIT, _WEIGHT_REACH = 2**20, 2.0**8
_SLACK = 1.0 - 2.0**-40
_BLOCK = 2**12


def on_weight_grid(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights rounded to multiples of 2^-20 within [-256, 256]."""
    return np.asarray(np.rint(np.clip(weights, -_WEIGHT_REACH, _WEIGHT_REACH) * _WEIGHT_UNIT) / _WEIGHT_UNIT)


def on_row_grid(centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """A centre rounded to the multiples of 2^-10 that a basis stands on."""
    return np.asarray(np.rint(centre * UNIT) / UNIT)


def exact_product(rows: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """rows @ weights, exact for rows of `Rows` and weights of `on_weight_grid`: at most 2^14 * 2^28 * 2^11 = 2^53."""
    return np.asarray(rows @ weights)


@dataclass(frozen=True)
class Rows:
    """How customers become rows.

    Args:
        basis: of the features.
        centre: subtracted, multiples of 2^-10, shape (width,).
        radius: L2 norm to which rows are clipped, at most 15.
        encoder: whose embedding the rows are; None for the basis itself.

    Raises:
        Defect: shapes or grids disagree.
    """

    basis: Basis
    centre: NDArray[np.float64]
    radius: float
    encoder: Encoder | None = None

    def __post_init__(self) -> None:
        if not 2.0**-6 <= self.radius <= MAX_RADIUS or not (np.abs(self.centre) <= MAX_CENTRE).all():
            raise Defect("rows: a radius or centre out of range")
        if self.centre.shape != (self.width,) or not np.array_equal(on_row_grid(self.centre), self.centre):
            raise Defect("rows: a centre of another shape or grid")
        if self.encoder is not None and self.encoder.basis != self.basis:
            raise Defect("rows: an encoder of another basis")

    @cached_property
    def width(self) -> int:
        """Words of a row."""
        return self.basis.width if self.encoder is None else self.encoder.width

    @property
    def features(self) -> tuple[str, ...]:
        """Which columns are read."""
        return self.basis.features

    def of(self, people: CustomerTable) -> NDArray[np.float64]:
        """Everybody's row in units of 1.0, multiples of 2^-12, of L2 norm at most `radius`, shape (n, width)."""
        result = np.empty((len(people), self.width))
        for start in range(0, len(people), _BLOCK):
            result[start : start + _BLOCK] = self._block(people.take(slice(start, start + _BLOCK)))
        return result

    def _block(self, people: CustomerTable) -> NDArray[np.float64]:
        rows = self.basis.rows(people)
        if self.encoder is not None:
            rows = self.encoder.embed(rows)
        rows *= 1.0 / UNIT
        rows -= self.centre
        np.clip(rows, -MAX_CENTRE, MAX_CENTRE, out=rows)
        # exact: multiples of 2^-10 of at most 4, whose squares and their sums over 2^10 words are far below 2^53
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        factor = ROW_UNIT * np.where(
            norms > self.radius * _SLACK, self.radius * _SLACK / np.maximum(norms, 2.0**-20), 1.0
        )
        rows *= factor[:, np.newaxis]
        np.trunc(rows, out=rows)
        rows *= 1.0 / ROW_UNIT
        return rows

    def parts(self) -> tuple[dict[str, object], dict[str, NDArray[np.float64]]]:
        """Scalars and arrays of the wire form; the arrays' names begin with `rows_`."""
        arrays = {"rows_centre": self.centre, "rows_radius": np.array([self.radius])}
        arrays["rows_basis"] = basis_to_array(self.basis)
        if self.encoder is not None:
            arrays["rows_scales"] = self.encoder.scales
            arrays |= {f"rows_weights{index}": matrix for index, matrix in enumerate(self.encoder.weights)}
        return {"features": list(self.features)}, arrays


def rows_from_parts(features: object, arrays: Mapping[str, NDArray[np.float64]]) -> Rows:
    """Rows from their wire form; `RefusedError` when malformed. Arrays of other names are not looked at."""
    own = {name.removeprefix("rows_"): values for name, values in arrays.items() if name.startswith("rows_")}
    encoded = {"scales", *(f"weights{index}" for index in range(4))}
    plain = {"basis", "centre", "radius"}
    if set(own) not in (plain, plain | encoded) or own["radius"].shape != (1,):
        raise RefusedError("malformed rows")
    radius, centre = float(own["radius"][0]), own["centre"]
    if not (math.isfinite(radius) and np.isfinite(centre).all()):
        raise RefusedError("malformed rows")
    try:
        if set(own) == plain:
            return Rows(basis_from_array(features, own["basis"]), centre, radius)
        encoder = encoder_from_arrays(features, own)
        return Rows(encoder.basis, centre, radius, encoder)
    except Defect:
        raise RefusedError("malformed rows") from None
