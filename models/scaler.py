"""Features brought to one scale for distances, from released marginals alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohortium.models.marginals import Axis, Marginal
from cohortium.study.errors import RefusedError

__all__ = ["Scaler", "bounds_scaler", "fit_scaler", "scaler_from_array", "scaler_to_array"]

_MAX_FEATURES = 512

TAIL = 0.01
"""Share of people on either side whom the scaler clips to the box."""


@dataclass(frozen=True)
class Scaler:
    """Maps features to the box [-1, 1]^d: transform, centre, divide by half the range, clip.

    Args:
        features: names, d of them.
        logs: which features are taken on the scale log(1 + value), bool, shape (d,).
        lows, highs: ends of the range on the transformed scale, lows < highs, shape (d,).
    """

    features: tuple[str, ...]
    logs: NDArray[np.bool_]
    lows: NDArray[np.float64]
    highs: NDArray[np.float64]

    def transform(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows in the contract's units, shape (n, d), to the box."""
        moved = np.where(self.logs, np.log1p(np.maximum(values, 0.0)), values)
        return np.clip(2.0 * (moved - self.lows) / (self.highs - self.lows) - 1.0, -1.0, 1.0)

    def inverse(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points of the box, shape (m, d), in the contract's units."""
        moved = self.lows + (np.asarray(points) + 1.0) / 2.0 * (self.highs - self.lows)
        return np.where(self.logs, np.expm1(np.minimum(moved, 700.0)), moved)


def fit_scaler(marginals: Sequence[Marginal], tail: float = TAIL) -> Scaler:
    """A scaler whose box holds all but a share `tail` of people on either side, per feature.

    Post-processing of released marginals. A feature whose released range is empty (all people alike) keeps its public
    bounds, so that it contributes a constant.
    """
    axes = [marginal.axis for marginal in marginals]
    ends = [_range(marginal, tail) for marginal in marginals]
    return Scaler(
        features=tuple(axis.name for axis in axes),
        logs=np.array([axis.log for axis in axes]),
        lows=np.array([low for low, _ in ends]),
        highs=np.array([high for _, high in ends]),
    )


def bounds_scaler(axes: Sequence[Axis]) -> Scaler:
    """A scaler that maps the public bounds to the box: nothing about it depends on data."""
    ends = [_moved(axis, [axis.low, axis.high]) for axis in axes]
    return Scaler(
        features=tuple(axis.name for axis in axes),
        logs=np.array([axis.log for axis in axes]),
        lows=np.array([low for low, _ in ends]),
        highs=np.array([high for _, high in ends]),
    )


def _range(marginal: Marginal, tail: float) -> tuple[float, float]:
    low, high = _moved(marginal.axis, [marginal.quantile(tail), marginal.quantile(1.0 - tail)])
    public_low, public_high = _moved(marginal.axis, [marginal.axis.low, marginal.axis.high])
    if high - low < 1e-6 * (public_high - public_low):
        return public_low, public_high
    return low, high


def _moved(axis: Axis, values: list[float]) -> tuple[float, float]:
    low, high = axis.transform(np.array(values))
    return float(low), float(high)


def scaler_to_array(scaler: Scaler) -> NDArray[np.float64]:
    """A scaler's wire form: one row (log, low, high) per feature."""
    return np.column_stack([scaler.logs.astype(np.float64), scaler.lows, scaler.highs])


def scaler_from_array(features: object, rows: NDArray[np.float64]) -> Scaler:
    """A scaler from its wire form; `RefusedError` when malformed."""
    if not isinstance(features, list) or not all(isinstance(name, str) for name in features):
        raise RefusedError("malformed scaler")
    if not 1 <= len(set(features)) == len(features) <= _MAX_FEATURES or rows.shape != (len(features), 3):
        raise RefusedError("malformed scaler")
    if not np.isfinite(rows).all() or (rows[:, 1] >= rows[:, 2]).any() or not np.isin(rows[:, 0], (0.0, 1.0)).all():
        raise RefusedError("malformed scaler")
    return Scaler(tuple(features), rows[:, 0] == 1.0, rows[:, 1].copy(), rows[:, 2].copy())
