"""The coordinator's belief about the customers: synthetic particles, made and corrected from noisy answers alone.

Everything here is post-processing of released numbers. The particles begin as a Gaussian copula with the released
marginals and the released covariance; each answer about cells reweights them to the noisy counts and moves the
particles of every cell, by an affine map, to the posterior mean and covariance of the cell. What clusters the particles
well clusters the customers well, and clustering particles costs nothing: any number of restarts, of candidates for k
and of split and merge moves is free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from threadpoolctl import threadpool_limits

from cohortium.models.assignment import nearest_centre, squared_distances
from cohortium.models.marginals import Marginal
from cohortium.models.moments import CellMoments, MomentQuery
from cohortium.models.scaler import Scaler

if TYPE_CHECKING:
    from sklearn.cluster import KMeans

__all__ = [
    "Outline",
    "cluster_particles",
    "copula_particles",
    "corrected_particles",
    "outline",
    "positive_definite",
    "shortened",
    "swapped_centres",
]

PARTICLES = 6000
_PRIOR = 0.3  # relative standard deviation of the particles' own moments: the prior of a correction
_JITTER = 0.05


@dataclass(frozen=True)
class Outline:
    """The released marginals in the scaled space.

    Args:
        edges: for each feature, ascending bin edges in [-1, 1].
        masses: for each feature, estimated people per bin.
        mean, variance: of each feature, shape (d,).
    """

    edges: tuple[NDArray[np.float64], ...]
    masses: tuple[NDArray[np.float64], ...]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]


def outline(marginals: Sequence[Marginal], scaler: Scaler) -> Outline:
    """Released marginals carried over to the scaled space; a feature with no estimated people counts as uniform."""
    edges, masses, means, variances = [], [], [], []
    for index, marginal in enumerate(marginals):
        ends = _scaled(scaler, index, marginal.axis.edges)
        mass = marginal.mass if marginal.total > 0 else np.ones(marginal.axis.bins)
        middle, share = (ends[:-1] + ends[1:]) / 2, mass / mass.sum()
        mean = float(share @ middle)
        within = float(share @ (ends[1:] - ends[:-1]) ** 2) / 12
        edges.append(ends)
        masses.append(mass)
        means.append(mean)
        variances.append(max(float(share @ (middle - mean) ** 2) + within, 1e-9))
    return Outline(tuple(edges), tuple(masses), np.array(means), np.array(variances))


def copula_particles(shape: Outline, covariance: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Particles with the released marginals and a positive definite covariance's correlations, shape (PARTICLES, d)."""
    spread = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(spread, spread)
    normal = rng.multivariate_normal(np.zeros(len(spread)), correlation, PARTICLES, method="eigh")
    uniform = ndtr(normal)
    particles = np.empty_like(uniform)
    for index, (ends, mass) in enumerate(zip(shape.edges, shape.masses, strict=True)):
        cumulative = np.concatenate([[0.0], np.cumsum(mass)]) / mass.sum() + np.arange(len(ends)) * 1e-9
        particles[:, index] = np.interp(uniform[:, index], cumulative, ends)
    return particles


def cluster_particles(
    particles: NDArray[np.float64], k: int, restarts: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The best of several k-means of the particles, shape (k, d). Deterministic given the generator."""
    distinct = np.unique(particles, axis=0)
    if len(distinct) <= k:
        extra = rng.normal(0.0, 1e-3, (k - len(distinct), particles.shape[1]))
        return np.clip(np.vstack([distinct, distinct[:1] + extra]), -1.0, 1.0)
    with threadpool_limits(limits=1):  # with several threads the order of additions, and so the result, would vary
        model = _k_means(k, n_init=restarts, max_iter=50, random_state=int(rng.integers(2**31 - 1))).fit(particles)
    return np.asarray(model.cluster_centers_, dtype=np.float64)


def swapped_centres(
    particles: NDArray[np.float64], centres: NDArray[np.float64], moves: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Centres improved by swap search: drop one that is hardly missed, add a far particle, keep what costs less.

    A move drops one of the three centres whose loss costs least, puts a new one at a particle drawn with probability
    proportional to its squared distance, and runs a few Lloyd iterations. It cures the local optima of many clusters.
    """
    k = len(centres)
    if k == 1 or len(np.unique(particles, axis=0)) <= k:
        return centres
    best, cost = centres, float(squared_distances(particles, centres).min(axis=1).sum())
    with threadpool_limits(limits=1):
        for _ in range(moves):
            start = _one_swapped(particles, best, rng)
            if start is None:
                break
            model = _k_means(k, init=start, n_init=1, max_iter=15).fit(particles)
            if model.inertia_ < cost:
                best, cost = np.asarray(model.cluster_centers_, dtype=np.float64), float(model.inertia_)
    return best


def corrected_particles(
    particles: NDArray[np.float64],
    query: MomentQuery,
    moments: CellMoments,
    std: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Particles that agree with noisy moments of cells as far as the noise lets these be believed.

    Args:
        particles: the belief before, shape (PARTICLES, d).
        query, moments: the cells that were asked about, and the decoded answer.
        std: noise standard deviation of a word, in units of 1.0.
        rng: for resampling.

    Returns:
        The belief after; unchanged when no cell has a positive noisy count.
    """
    weights = np.maximum(moments.counts, 0.0)
    if weights.sum() <= 0:
        return particles
    sizes = np.round(weights / weights.sum() * PARTICLES).astype(int)
    cell = nearest_centre(particles, query.centres)
    moved = [
        _moved_cell(particles[cell == index], int(sizes[index]), int(index), query, moments, std, rng)
        for index in np.flatnonzero(sizes)
    ]
    return np.clip(np.concatenate(moved), -1.0, 1.0)


def shortened(vector: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    """The vector, no longer than `length`."""
    return np.asarray(vector / max(float(np.linalg.norm(vector)) / length, 1.0))


def positive_definite(matrix: NDArray[np.float64], least: float, most: float) -> NDArray[np.float64]:
    """The symmetric part with its eigenvalues brought into [least, most]."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.asarray((vectors * np.clip(values, least, max(most, least))) @ vectors.T)


def _one_swapped(
    particles: NDArray[np.float64], centres: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64] | None:
    """The centres with one replaced; None when every particle sits on a centre."""
    squares = squared_distances(particles, centres)
    nearest = np.partition(squares, 1, axis=1)[:, :2]
    cell = squares.argmin(axis=1)
    loss = np.bincount(cell, nearest[:, 1] - nearest[:, 0], len(centres))
    dropped = int(rng.choice(np.argsort(loss, kind="stable")[:3]))
    left = nearest[:, 0] + np.where(cell == dropped, nearest[:, 1] - nearest[:, 0], 0.0)
    if left.sum() <= 0:
        return None
    start = centres.copy()
    start[dropped] = particles[rng.choice(len(particles), p=left / left.sum())]
    return start


def _moved_cell(
    own: NDArray[np.float64],
    size: int,
    index: int,
    query: MomentQuery,
    moments: CellMoments,
    std: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """`size` particles of one cell with the posterior mean and covariance."""
    centre, radius = query.centres[index], float(query.radii[index])
    d = len(centre)
    if len(own) > d + 2:
        mean, covariance = own.mean(axis=0), np.atleast_2d(np.cov(own.T)) + 1e-7 * np.eye(d)
    else:
        own, mean, covariance = centre[np.newaxis], centre, np.eye(d) * radius**2 / d / 4
    level = float(np.trace(covariance)) / d
    w0, w1, w2 = query.weights
    people = max(float(moments.counts[index]), 2 * std / w0)

    observed = centre + shortened(moments.sums[index] / people, 1.0) * radius
    trust = _trust(3 * _PRIOR * level, (std / w1 * radius / people) ** 2)
    new_mean = mean + trust * (observed - mean)

    offset = new_mean - centre
    seen = moments.seconds[index] / people * radius**2 - np.outer(offset, offset)
    trust = _trust((_PRIOR * level) ** 2, (std / w2 * radius**2 / people) ** 2)
    new_covariance = positive_definite(covariance + trust * (seen - covariance), 0.02 * level, radius**2)

    drawn = own[rng.integers(len(own), size=size)]
    stretched = (drawn - mean) @ _power(covariance, -0.5) @ _power(new_covariance, 0.5)
    moved: NDArray[np.float64] = new_mean + stretched + rng.normal(0.0, _JITTER * math.sqrt(level), drawn.shape)
    return moved


def _trust(prior_variance: float, noise_variance: float) -> float:
    """Weight of an observation against a prior."""
    return prior_variance / (prior_variance + noise_variance)


def _power(matrix: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(values, 1e-12) ** exponent) @ vectors.T)


def _scaled(scaler: Scaler, index: int, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of one feature in the scaled space."""
    moved = np.log1p(np.maximum(values, 0.0)) if scaler.logs[index] else values
    low, high = scaler.lows[index], scaler.highs[index]
    return np.asarray(np.clip(2.0 * (moved - low) / (high - low) - 1.0, -1.0, 1.0))


def _k_means(k: int, **settings: Any) -> KMeans:
    from sklearn.cluster import KMeans  # noqa: PLC0415 - slow to import, and a node never gets here

    return KMeans(k, **settings)
