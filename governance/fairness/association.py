"""Cramér's V between groups and outcomes from a noisy table, against independence with the noise in it.

With e the counts expected under independence, z = (counts - e) / sqrt(e) and T = |z|^2, Pearson's statistic. Sampling
gives z the covariance P, the projection that leaves both margins out; independent noise of variance s^2 in every
count adds s^2 P diag(1 / e) P. So T is a sum of chi-squares weighted by the eigenvalues of
P + s^2 P diag(1 / e) P, which is what a permutation or a parametric bootstrap with fresh noise would draw from. Here
it is computed (three moments, Imhof, Biometrika 48, 1961): the same every time, without a random number. V^2 is
estimated by what T exceeds its mean by, over people times (smaller side - 1); the interval holds every V under which
T is neither among the smallest alpha / 2 nor the largest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import chdtrc

from cohortium.governance.fairness.intervals import Interval
from cohortium.models.group_table import GroupTable

__all__ = ["Association", "association"]

_LEAST = 5.0  # an expected count of fewer people, or noise deviations, is folded away


@dataclass(frozen=True)
class Association:
    """Cramér's V of a table.

    Args:
        interval: of V, within 0 and 1; the estimate has the null's mean taken off.
        p_value: probability of a statistic at least so large without any association.
        people: noisy number of people in the rows and columns that were used.
    """

    interval: Interval
    p_value: float
    people: float


@dataclass(frozen=True)
class _Null:
    """Eigenvalues of the covariance of z, and the observed departure's squared parts along its eigenvectors (sum 1)."""

    weights: NDArray[np.float64]
    parts: NDArray[np.float64]

    def above(self, statistic: float, departure: float) -> float:
        """Probability of more than `statistic` when |E z|^2 is `departure`, along the observed direction."""
        sums = [
            float(np.sum(self.weights**power) + power * departure * np.sum(self.weights ** (power - 1) * self.parts))
            for power in (1, 2, 3)
        ]
        freedom = sums[1] ** 3 / sums[2] ** 2
        return float(chdtrc(freedom, max((statistic - sums[0]) * math.sqrt(freedom / sums[1]) + freedom, 0.0)))


def association(table: GroupTable, alpha: float) -> Association | None:
    """V of groups and outcomes; None where fewer than two rows or columns are large enough to expect anything of.

    Rows and columns whose cells would expect fewer than five people, or five deviations of the noise, are left out.

    Args:
        table: outcomes share the people among them, everybody in one.
        alpha: error of the interval.
    """
    counts = _large_enough(table)
    if min(counts.shape) < 2:
        return None
    people = float(counts.sum())
    rows, columns = counts.sum(axis=1) / people, counts.sum(axis=0) / people
    expected = people * np.outer(rows, columns)
    z = ((counts - expected) / np.sqrt(expected)).ravel()
    statistic, scale = float(z @ z), people * (min(counts.shape) - 1)
    null = _null(rows, columns, expected.ravel(), z, table.std)
    excess = max(statistic - float(null.weights.sum()), 0.0)
    low, high = (_departure(null, statistic, tail) for tail in (alpha / 2, 1 - alpha / 2))
    ends = [min(math.sqrt(value / scale), 1.0) for value in (excess, low, high)]
    return Association(Interval(ends[0], ends[1], ends[2], bounded=ends[2] < 1.0), null.above(statistic, 0.0), people)


def _large_enough(table: GroupTable) -> NDArray[np.float64]:
    """The counts without rows and columns that are too small, the smallest first."""
    counts, least = table.counts, _LEAST * max(1.0, table.std)
    while counts.size:
        rows, columns, people = counts.sum(axis=1), counts.sum(axis=0), float(counts.sum())
        mean_row, mean_column = people / counts.shape[0], people / counts.shape[1]
        if min(people, mean_row, mean_column) <= 0:
            return counts[:0]
        row_cells, column_cells = rows / counts.shape[1], columns / counts.shape[0]
        if min(row_cells.min(), column_cells.min()) >= least:
            return counts
        if row_cells.min() / mean_row <= column_cells.min() / mean_column:
            counts = np.delete(counts, int(row_cells.argmin()), axis=0)
        else:
            counts = np.delete(counts, int(column_cells.argmin()), axis=1)
    return counts


def _null(
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
    expected: NDArray[np.float64],
    z: NDArray[np.float64],
    std: float,
) -> _Null:
    left, right = np.sqrt(rows), np.sqrt(columns)
    project = np.kron(np.eye(len(left)) - np.outer(left, left), np.eye(len(right)) - np.outer(right, right))
    weights, vectors = np.linalg.eigh(project + std**2 * (project / expected) @ project)
    kept = weights > 0.5  # the projection's zeros are the margins; every other eigenvalue is at least 1
    parts = (vectors[:, kept].T @ z) ** 2
    total = float(parts.sum())
    return _Null(weights[kept], parts / total if total > 0 else np.full(len(parts), 1 / len(parts)))


def _departure(null: _Null, statistic: float, tail: float) -> float:
    """The departure at which more than the statistic has the probability `tail`; 0 where even none reaches it."""
    if null.above(statistic, 0.0) >= tail:
        return 0.0
    most = 1.0
    while null.above(statistic, most) < tail:
        most *= 4.0
    return float(brentq(lambda value: null.above(statistic, value) - tail, 0.0, most, xtol=1e-10 * most))
