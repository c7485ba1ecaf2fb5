"""How many people a ranker's cut-offs reach: noisy counts per score bin, of seeds and of the rest, for several rankers.

What is released is neither the bins nor their tails but the bins times a lower-triangular matrix, the normalised square
root of the matrix of tail sums: one multiplication by its inverse gives the bins, unbiased, and tails with less noise
than a tree, cumulative counts or plain bins give at the same price (benchmarks/reach.py shows how much less). Source:
Henzinger, Kalinin, Upadhyay, "Normalized square root: sharper matrix factorization bounds for differentially private
continual counting" (arXiv 2509.14334); time there is the order of scores here, highest first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.optimize import isotonic_regression

from cohortium.models.scorebins import ScoreBins, is_seed, scales_from_spec, scales_to_spec, wanted_shares
from cohortium.privacy.query import SCALE, Contribution, QuerySpec
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError

__all__ = [
    "ScoreCounts",
    "ScoreCurveQuery",
    "monotone",
    "noise_product",
    "read_score_counts",
    "refined_edges",
]


@dataclass(frozen=True)
class ScoreCurveQuery:
    """Counts per score bin, times the square-root matrix, of the seeds and of the rest, for one ranker or several.

    A person adds, for every ranker, one column of that ranker's integer matrix, in the words of the seeds or in those
    of the rest. So the squared sensitivity is the sum over rankers of the largest squared column norm, exactly: at most
    SCALE^2 each, however many bins there are; that seeds are counted apart costs nothing.

    Args:
        scales: rankers with their bins, 1 to MAX_RANKERS.
    """

    scales: tuple[ScoreBins, ...]
    kind = "score-curve"

    @property
    def width(self) -> int:
        return 2 * self.words_per_person

    @property
    def words_per_person(self) -> int:
        return sum(scale.bins for scale in self.scales)

    @cached_property
    def bound_squared(self) -> int:
        return sum(_longest(scale.bins) for scale in self.scales)

    def contribute(self, people: CustomerTable) -> Contribution:
        rest = ~is_seed(people)[:, np.newaxis]
        columns, values, offset = [], [], 0
        for scale in self.scales:
            columns.append(offset + rest * scale.bins + np.arange(scale.bins))
            values.append(_matrix(scale.bins)[scale.places(people)])
            offset += 2 * scale.bins
        return Contribution(np.hstack(columns), np.hstack(values))

    def spec(self) -> QuerySpec:
        rankers, arrays = scales_to_spec(self.scales)
        return QuerySpec(self.kind, {"rankers": rankers}, arrays)

    @classmethod
    def from_spec(cls, spec: QuerySpec) -> ScoreCurveQuery:
        """Rebuild strictly; `RefusedError` for anything `spec` would not have written."""
        if set(spec.scalars) != {"rankers"}:
            raise RefusedError("malformed score question")
        return cls(scales_from_spec(spec.scalars["rankers"], spec.arrays))


@cache
def _matrix(bins: int) -> NDArray[np.int64]:
    """What a person of each bin adds, one row per bin from the highest: shape (bins, bins), integer units.

    Word i of a person in bin t is r[i - t] / sqrt(r[0]^2 + ... + r[bins-1-t]^2) for i >= t, with r[k] the coefficients
    of (1 - z)^(-1/2), rounded down. Plain float steps in a fixed order: the same integers everywhere.
    """
    roots = [1.0]
    for k in range(1, bins):
        roots.append(roots[-1] * (1.0 - 0.5 / k))
    squares = list(accumulate(root * root for root in roots))
    table = np.zeros((bins, bins), dtype=np.int64)
    for t in range(bins):
        unit = SCALE / math.sqrt(squares[bins - 1 - t])
        table[t, t:] = [math.floor(root * unit) for root in roots[: bins - t]]
    table.flags.writeable = False
    return table


@cache
def _longest(bins: int) -> int:
    """The largest squared length of what one person adds."""
    return max(sum(int(word) ** 2 for word in person) for person in _matrix(bins))


@cache
def _inverse(bins: int) -> NDArray[np.float64]:
    """From noisy words in units of 1.0 to unbiased counts per bin, highest first; lower-triangular."""
    forward = _matrix(bins).T / SCALE
    inverse: NDArray[np.float64] = solve_triangular(forward, np.eye(bins), lower=True)
    inverse.flags.writeable = False
    return inverse


@dataclass(frozen=True)
class ScoreCounts:
    """One group's noisy people per score bin: unbiased, Gaussian, of known covariance.

    Args:
        edges: ascending cut-offs, shape (bins - 1,).
        counts: people per bin **from the highest bin down**, shape (bins,); may be negative.
        std: noise standard deviation of a released word, in units of 1.0.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.float64]
    std: float

    @property
    def total(self) -> float:
        """Estimated people."""
        return float(self.counts.sum())

    @cached_property
    def total_std(self) -> float:
        """Noise standard deviation of `total`."""
        return self.noise(np.ones(len(self.counts)))

    @cached_property
    def reach(self) -> NDArray[np.float64]:
        """Unbiased people at or above each cut-off, **highest first**; the last is everybody. Shape (bins,)."""
        return np.cumsum(self.counts)

    @cached_property
    def reach_std(self) -> NDArray[np.float64]:
        """Noise standard deviation of `reach`, exactly."""
        rows = np.cumsum(_inverse(len(self.counts)), axis=0)
        return np.asarray(self.std * np.sqrt((rows * rows).sum(axis=1)))

    @cached_property
    def monotone_reach(self) -> NDArray[np.float64]:
        """`reach` made non-decreasing and non-negative: less noise than `reach`, slightly biased where bins are empty.

        Isotonic regression; noise of neighbouring tails is nearly common to them, so that it seldom has to act.
        """
        return np.maximum(monotone(self.reach), 0.0)

    @cached_property
    def masses(self) -> NDArray[np.float64]:
        """People per bin that fit `monotone_reach`: none negative, highest bin first."""
        return np.diff(self.monotone_reach, prepend=0.0)

    def noise(self, weights: NDArray[np.float64]) -> float:
        """Noise standard deviation of the sum of counts times weights, shape (bins,)."""
        return self.std * float(np.linalg.norm(weights @ _inverse(len(self.counts))))


def noise_product(first: ScoreCounts, second: ScoreCounts, table: NDArray[np.float64]) -> float:
    """Standard deviation of first noise times table times second noise, for independent counts of the same bins."""
    inverse = _inverse(len(first.counts))
    return first.std * second.std * float(np.linalg.norm(inverse.T @ table @ inverse))


def monotone(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest non-decreasing sequence, in squares."""
    return np.asarray(isotonic_regression(values).x, dtype=np.float64)


def read_score_counts(
    query: ScoreCurveQuery, values: NDArray[np.float64], std: float
) -> tuple[tuple[ScoreCounts, ScoreCounts], ...]:
    """For each ranker the counts of the seeds and of the rest: the eligible.

    Args:
        query: what was asked.
        values: noisy words in units of 1.0, shape (query.width,).
        std: noise standard deviation of a word, in units of 1.0.
    """
    result, offset = [], 0
    for scale in query.scales:
        rows = values[offset : offset + 2 * scale.bins].reshape(2, scale.bins)
        offset += 2 * scale.bins
        seeds, rest = rows @ _inverse(scale.bins).T
        result.append((ScoreCounts(scale.edges, seeds, std), ScoreCounts(scale.edges, rest, std)))
    return tuple(result)


def refined_edges(known: ScoreCounts, bins: int) -> NDArray[np.float64]:
    """Edges at estimated quantiles of the scores: half of the bins for the top eighth of people, the rest below it.

    Post-processing of counts already released. Inside a known bin scores are taken to spread evenly. Ties leave fewer
    bins; where nothing is known of anybody the known edges are thinned instead.

    Args:
        known: released counts of the rest.
        bins: 2 to MAX_BINS.
    """
    edges, reach = known.edges, known.monotone_reach
    if reach[-2] <= reach[0]:
        return np.unique(edges[np.linspace(0, len(edges) - 1, min(bins - 1, len(edges))).astype(np.int64)])
    return np.unique(np.interp(wanted_shares(bins) * reach[-1], reach[:-1], edges[::-1]))
