"""What a campaign asks about its seed: the sum of the seeds' coordinates, and gradients of the logistic loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cohortium.models.features import exact_product, on_weight_grid
from cohortium.models.row_moments import Frame, frame_from_parts, rebuilt
from cohortium.models.rows import SEED
from cohortium.models.sigmoid import sigmoid
from cohortium.privacy.query import SCALE, Contribution, QuerySpec, quantise, unit_scale
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError

__all__ = ["SEED_COUNT", "SeedGradientQuery", "SeedSumQuery"]

SEED_COUNT = 0.2
"""Weight of the count of seeds beside their coordinates, in units of the frame's radius."""


@dataclass(frozen=True)
class SeedSumQuery:
    """The sum of the seeds' coordinates in a frame, clipped to its radius, and their number.

    A seed adds words of norm at most SCALE and a count of SEED_COUNT * SCALE; others add nothing.
    """

    frame: Frame
    kind = "seed-sum"

    @property
    def width(self) -> int:
        return self.frame.rows.width + 1

    @property
    def words_per_person(self) -> int:
        return self.width

    @cached_property
    def _count(self) -> int:
        return unit_scale(SEED_COUNT)

    @property
    def bound_squared(self) -> int:
        return SCALE**2 + self._count**2

    def contribute(self, people: CustomerTable) -> Contribution:
        is_seed = people.select((SEED,))[:, 0] > 0.5
        coordinates = self.frame.coordinates(self.frame.rows.of(people))
        values = np.empty((len(people), self.width), dtype=np.int64)
        values[:, :-1] = quantise(coordinates, self.frame.radius)
        values[:, -1] = self._count
        values *= is_seed[:, np.newaxis]
        return Contribution(np.broadcast_to(np.arange(self.width), values.shape), values)

    def read(self, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """The noisy sum of coordinates and the noisy number of seeds, from words in units of 1.0."""
        return values[:-1] * self.frame.radius, float(values[-1]) * SCALE / self._count

    def spec(self) -> QuerySpec:
        return QuerySpec(self.kind, *self.frame.parts())

    @classmethod
    def from_spec(cls, spec: QuerySpec) -> SeedSumQuery:
        """Rebuild strictly; `RefusedError` for anything `spec` would not have written."""
        return rebuilt(spec, lambda features, arrays: cls(frame_from_parts(features, arrays)), "seed")


@dataclass(frozen=True)
class SeedGradientQuery:
    """The gradient of the logistic loss, seed against rest, summed over everybody, in a frame's coordinates.

    With y = 1 for seeds and 0 for others, a person adds (y - sigmoid(b + row . w)) times the coordinates clipped to the
    frame's radius, in units of which the words have a norm of at most SCALE: the sensitivity, exactly.

    Args:
        frame: coordinates of people.
        weights: w, on the weight grid, shape (d,).
        intercept: b, on the weight grid.
    """

    frame: Frame
    weights: NDArray[np.float64]
    intercept: float
    kind = "seed-gradient"
    bound_squared = SCALE**2

    @property
    def width(self) -> int:
        return self.frame.rows.width

    @property
    def words_per_person(self) -> int:
        return self.width

    def contribute(self, people: CustomerTable) -> Contribution:
        rows = self.frame.rows.of(people)
        residual = (people.select((SEED,))[:, 0] > 0.5) - sigmoid(exact_product(rows, self.weights) + self.intercept)
        values = quantise(self.frame.coordinates(rows), self.frame.radius)
        # a whole number times at most 1 in size, towards zero: no word, and so no norm, grows
        words = np.trunc(values * np.clip(residual, -1.0, 1.0)[:, np.newaxis]).astype(np.int64)
        return Contribution(np.broadcast_to(np.arange(self.width), words.shape), words)

    def read(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The noisy sum, from words in units of 1.0."""
        return values * self.frame.radius

    def spec(self) -> QuerySpec:
        scalars, arrays = self.frame.parts()
        return QuerySpec(self.kind, scalars, {**arrays, "weights": np.append(self.weights, self.intercept)})

    @classmethod
    def from_spec(cls, spec: QuerySpec) -> SeedGradientQuery:
        """Rebuild strictly; `RefusedError` for anything `spec` would not have written."""
        return rebuilt(spec, cls._from_parts, "gradient")

    @classmethod
    def _from_parts(cls, features: object, arrays: Mapping[str, NDArray[np.float64]]) -> SeedGradientQuery:
        frame, weights = frame_from_parts(features, arrays), arrays.get("weights")
        if weights is None or weights.shape != (frame.rows.width + 1,):
            raise RefusedError("malformed gradient question")
        if not np.array_equal(on_weight_grid(weights), weights):
            raise RefusedError("malformed gradient question")
        return cls(frame, weights[:-1], float(weights[-1]))
