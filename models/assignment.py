"""Nearest centres: the one definition of which segment a customer belongs to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["nearest_centre", "squared_distances"]

_BLOCK = 65_536


def squared_distances(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared Euclidean distances, shape (len(points), len(centres)), never negative."""
    cross = points @ centres.T
    squares = (points * points).sum(axis=1)[:, np.newaxis] + (centres * centres).sum(axis=1)[np.newaxis]
    distances: NDArray[np.float64] = np.maximum(squares - 2.0 * cross, 0.0)
    return distances


def nearest_centre(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the nearest centre of each point; ties go to the lower index. Memory stays flat in len(points)."""
    result = np.empty(len(points), dtype=np.int64)
    half_squares = 0.5 * (centres * centres).sum(axis=1)
    for start in range(0, len(points), _BLOCK):
        block = points[start : start + _BLOCK]
        result[start : start + _BLOCK] = np.argmin(half_squares - block @ centres.T, axis=1)
    return result
