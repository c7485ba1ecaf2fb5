"""The linear head that tells seeds from the rest: one full-batch gradient of the logistic loss as a sum query.

Rows alone: every step from a person's place in the box to that person's words is an elementwise addition,
multiplication, division, root, comparison or table look-up, each of which IEEE 754 rounds in one way whatever stands
beside it. No matrix product, whose rounding depends on its shape, and no vectorised exponential.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from cohortium.models.scaler import Scaler, scaler_from_array, scaler_to_array
from cohortium.privacy.query import SCALE, Contribution, QuerySpec, quantise, unit_scale
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError

__all__ = ["HeadGradient", "HeadGradientQuery", "read_head_gradient", "sigmoid"]

_MAX_DIMENSIONS = 512
_MAX_WEIGHT = 2.0**10
_SIGMOID_REACH, _SIGMOID_STEPS = 24, 2**8


@dataclass(frozen=True)
class HeadGradientQuery:
    """Clipped gradients of the logistic loss, seed against rest, at one point of the weights, and a count.

    With z = w.x + b for a person's features x in the box [-1, 1]^d and y = 1 for seeds, 0 for others, the gradient
    (sigmoid(z) - y) (x, 1) is clipped to the L2 norm `clip`, in units of which it is quantised: its words have a norm
    of at most SCALE. The count adds one word of `count_weight` units. The squared sensitivity is
    SCALE^2 + count_weight^2, exactly.

    Args:
        scaler: from the contract's units to the box, by public bounds; d features.
        seed: column that is 1 for seeds and 0 for others (above one half counts as 1); no feature.
        weights: w and b, shape (d + 1,), each at most 2^10 in size.
        clip: L2 norm to which a person's gradient is clipped, positive; no gradient is longer than sqrt(d + 1).
        count_weight: of the count, above 0 and at most 1.
    """

    scaler: Scaler
    seed: str
    weights: NDArray[np.float64]
    clip: float
    count_weight: float
    kind = "head-gradient"

    @property
    def width(self) -> int:
        return len(self.weights) + 1

    @property
    def words_per_person(self) -> int:
        return self.width

    @cached_property
    def _count_unit(self) -> int:
        return unit_scale(self.count_weight)

    @property
    def bound_squared(self) -> int:
        return SCALE**2 + self._count_unit**2

    def contribute(self, people: CustomerTable) -> Contribution:
        points = self.scaler.transform(people.select(self.scaler.features))
        is_seed = people.select((self.seed,))[:, 0] > 0.5
        logit = np.full(len(people), self.weights[-1])
        for column, weight in zip(points.T, self.weights[:-1], strict=True):
            logit += weight * column
        residual = sigmoid(logit) - is_seed
        gradient = residual[:, np.newaxis] * np.column_stack([points, np.ones(len(people))])
        values = np.empty((len(people), self.width), dtype=np.int64)
        values[:, 0] = self._count_unit
        values[:, 1:] = quantise(gradient, self.clip)
        return Contribution(np.broadcast_to(np.arange(self.width), values.shape), values)

    def spec(self) -> QuerySpec:
        arrays = {"scaler": scaler_to_array(self.scaler), "weights": self.weights}
        arrays["limits"] = np.array([self.clip, self.count_weight])
        return QuerySpec(self.kind, {"features": list(self.scaler.features), "seed": self.seed}, arrays)

    @classmethod
    def from_spec(cls, spec: QuerySpec) -> HeadGradientQuery:
        """Rebuild strictly; `RefusedError` for anything `spec` would not have written."""
        if set(spec.scalars) != {"features", "seed"} or set(spec.arrays) != {"scaler", "weights", "limits"}:
            raise RefusedError("malformed head question")
        scaler = scaler_from_array(spec.scalars["features"], spec.arrays["scaler"])
        seed, weights, limits = spec.scalars["seed"], spec.arrays["weights"], spec.arrays["limits"]
        d = len(scaler.features)
        if not isinstance(seed, str) or seed in scaler.features or d > _MAX_DIMENSIONS:
            raise RefusedError("malformed head question")
        if weights.shape != (d + 1,) or limits.shape != (2,) or not (np.abs(weights) <= _MAX_WEIGHT).all():
            raise RefusedError("malformed head question")
        clip, count_weight = (float(limit) for limit in limits)
        if not 1e-6 <= clip <= math.sqrt(d + 1) or not 2.0**-10 <= count_weight <= 1:
            raise RefusedError("malformed head question")
        return cls(scaler, seed, weights, clip, count_weight)


@dataclass(frozen=True)
class HeadGradient:
    """A decoded noisy answer.

    Args:
        people: noisy number of people, may be negative.
        gradient: noisy sum of clipped gradients in the loss's unit, shape (d + 1,), the intercept's last.
    """

    people: float
    gradient: NDArray[np.float64]


def read_head_gradient(query: HeadGradientQuery, values: NDArray[np.float64]) -> HeadGradient:
    """Undo the weights of a noisy answer of shape (query.width,), in units of 1.0."""
    return HeadGradient(float(values[0]) * SCALE / query._count_unit, values[1:] * query.clip)


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-z)) within 2e-7, from 0 to 1, by a table in steps of 2^-8 and straight lines between them.

    Elementwise sums, products and look-ups alone: a row's result never depends on its place among others.
    """
    table = _sigmoid_table()
    place = (np.clip(logits, -_SIGMOID_REACH, _SIGMOID_REACH) + _SIGMOID_REACH) * _SIGMOID_STEPS
    left = np.minimum(place.astype(np.int64), len(table) - 2)
    rise: NDArray[np.float64] = table[left] + (place - left) * (table[left + 1] - table[left])
    return rise


@cache
def _sigmoid_table() -> NDArray[np.float64]:
    steps = range(-_SIGMOID_REACH * _SIGMOID_STEPS, _SIGMOID_REACH * _SIGMOID_STEPS + 1)
    return np.array([1.0 / (1.0 + math.exp(-step / _SIGMOID_STEPS)) for step in steps])
