"""Nearest centres: the one definition of which segment a customer belongs to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["nearest_centre", "on_grid", "squared_distances"]

_BLOCK_WORDS = 2**22
_GRID = 2.0**20


def on_grid(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points of the box rounded to multiples of 2**-20, and kept within [-2, 2].

    Sums of products of such numbers are exact in float64 in up to 512 dimensions, in whatever order and with whatever
    instructions they are added. So distances, and with them who belongs to which centre, do not depend on the place
    of a row in its block or on the other rows, as a matrix product's rounding does: a person's presence changes
    nobody else's contribution.
    """
    return np.asarray(np.rint(np.clip(points, -2.0, 2.0) * _GRID) / _GRID)


def nearest_centre(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the nearest centre of each point, both rounded by `on_grid`; ties go to the lower index.

    The arithmetic is exact, so that a point's answer is a function of that point and the centres alone. Memory stays
    flat in len(points).

    Args:
        points: shape (n, d), d at most 512, in or near the box [-1, 1]^d.
        centres: shape (k, d).
    """
    result = np.empty(len(points), dtype=np.int64)
    exact = on_grid(centres)
    half_squares = 0.5 * (exact * exact).sum(axis=1)
    rows = max(_BLOCK_WORDS // max(centres.size, len(centres), 1), 1)
    for start in range(0, len(points), rows):
        block = on_grid(points[start : start + rows])
        result[start : start + rows] = np.argmin(half_squares - block @ exact.T, axis=1)
    return result


def squared_distances(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared Euclidean distances, shape (len(points), len(centres)), never negative. For released points and reports.

    Rounding may couple rows here: a contribution of a customer must use `nearest_centre` instead.
    """
    cross = points @ centres.T
    squares = (points * points).sum(axis=1)[:, np.newaxis] + (centres * centres).sum(axis=1)[np.newaxis]
    distances: NDArray[np.float64] = np.maximum(squares - 2.0 * cross, 0.0)
    return distances
