"""Segment centres in two dimensions: classical principal components of released centres. Post-processing: free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Projection", "project"]


@dataclass(frozen=True)
class Projection:
    """Centres in the plane.

    Args:
        points: shape (segments, 2).
        loadings: shape (2, axes): how each axis of the scaled space enters the two directions; rows of norm 1 or 0.
        kept: share of the spread between the centres that the plane shows, 0..1.
    """

    points: NDArray[np.float64]
    loadings: NDArray[np.float64]
    kept: float


def project(centres: Sequence[Sequence[float]], weights: Sequence[float]) -> Projection:
    """The first two principal components of the centres, each weighted.

    Args:
        centres: at least one, all of the same length.
        weights: one per centre, positive.

    Returns:
        The larger half of every direction points to the right or up, so that equal input gives equal maps.
    """
    points, mass = np.array(centres, dtype=np.float64), np.array(weights, dtype=np.float64)
    middle = points - np.average(points, axis=0, weights=mass)
    _, spread, directions = np.linalg.svd(middle * np.sqrt(mass / mass.sum())[:, np.newaxis], full_matrices=False)
    loadings = np.zeros((2, points.shape[1]))
    real = [index for index in range(min(2, len(spread))) if spread[index] > 1e-9]
    for index in real:
        largest = directions[index][np.argmax(np.abs(directions[index]))]
        loadings[index] = directions[index] * np.sign(largest)
    total = float((spread**2).sum())
    kept = float((spread[real] ** 2).sum()) / total if total > 0 else 1.0
    return Projection(middle @ loadings.T, loadings, kept)
