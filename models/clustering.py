"""Differentially private k-means by moment sketches: three kinds of questions, seven rounds after the marginals.

1. `moments`: count, mean and covariance of all customers around the released mean.
2. `cells` (three rounds): counts, means and covariances of the k-means cells of the particles (see `particles`). After
   each answer the particles are corrected; the next round asks about the cells of the corrected particles.
3. `lloyd` (three rounds): from the best of many k-means of the particles, Lloyd steps on residuals clipped near the
   cells' spread, counts pooled over rounds, steps shrunk where the noise exceeds them (James-Stein, positive part).

Candidates, restarts, the choice of k and the evaluation of all of them happen on the particles and cost nothing. Only
the box [-1, 1]^d, k and the plan are public: neither the number of customers nor the data's radius is assumed known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from cohortium.models.assignment import nearest_centre, on_grid, squared_distances
from cohortium.models.marginals import Marginal
from cohortium.models.moments import CellMoments, MomentQuery, read_moments
from cohortium.models.particles import (
    Outline,
    cluster_particles,
    copula_particles,
    corrected_particles,
    outline,
    positive_definite,
    shortened,
    swapped_centres,
)
from cohortium.models.programme import Ask, NoisySum, Phase, Programme
from cohortium.models.scaler import Scaler

__all__ = ["CandidateK", "Clustering", "cluster", "clustering_phases", "widest_questions"]

_MOMENTS, _CELLS, _LLOYD = Fraction(8, 93), Fraction(45, 93), Fraction(40, 93)
_CELLS_PER_K = (2, 2, 1)
_LLOYD_ROUNDS = 3
_GLOBAL_WEIGHTS = (0.3, 0.6, 1.0)
_CELL_WEIGHTS = (0.5, 1.0, 0.7)
_LLOYD_WEIGHTS = (0.3, 1.0)
_SPREAD_CLIP = 2.0  # clipping radius of moments, in root mean squares
_LLOYD_CLIP = (1.2, 2.0)  # the same of Lloyd steps: least, and where noise does not matter
_QUIET = 0.025  # relative noise of a step from which on the clip grows
_CELL_EVIDENCE = 12.0  # expected people per cell, in standard deviations of a word of a unit-bound release
_MIN_RADIUS = 1e-3
_CELL_RESTARTS, _FINAL_RESTARTS, _SWAPS = 3, 10, 30


def clustering_phases(share: Fraction) -> tuple[Phase, ...]:
    """The phases of `cluster` when the whole of it may cost `share` of a plan's mu^2."""
    return (
        Phase("moments", MomentQuery.kind, share * _MOMENTS),
        Phase("cells", MomentQuery.kind, share * _CELLS, len(_CELLS_PER_K)),
        Phase("lloyd", MomentQuery.kind, share * _LLOYD, _LLOYD_ROUNDS),
    )


def widest_questions(scaler: Scaler, most: int) -> tuple[Ask, ...]:
    """Questions as wide as any that `cluster` will ask with up to `most` clusters, in its order."""
    d = len(scaler.features)
    shapes: list[tuple[str, int, tuple[float, ...]]] = [("moments", 1, _GLOBAL_WEIGHTS)]
    shapes += [("cells", per_k * most, _CELL_WEIGHTS) for per_k in _CELLS_PER_K]
    shapes += [("lloyd", most, _LLOYD_WEIGHTS)] * _LLOYD_ROUNDS
    return tuple(
        Ask(phase, MomentQuery(scaler, np.zeros((cells, d)), np.ones(cells), weights))
        for phase, cells, weights in shapes
    )


@dataclass(frozen=True)
class CandidateK:
    """One number of clusters, judged on the particles.

    Args:
        k: number of clusters.
        silhouette: simplified silhouette, -1 to 1; None for k = 1.
        cost: mean squared distance to the nearest centre.
    """

    k: int
    silhouette: float | None
    cost: float


@dataclass(frozen=True)
class Clustering:
    """What was learnt.

    Args:
        centres: in the scaled space, shape (k, d).
        counts: pooled noisy people per cluster, shape (k,).
        particles: the coordinator's belief in the end, shape (m, d), for free post-processing.
        candidates: the numbers of clusters that were compared; one when k was fixed.
    """

    centres: NDArray[np.float64]
    counts: NDArray[np.float64]
    particles: NDArray[np.float64]
    candidates: tuple[CandidateK, ...]


@dataclass(frozen=True)
class _Noise:
    """Noise of a release of bound 1 that costs all of the plan's mu^2, from which every other noise follows."""

    unit: float

    @classmethod
    def seen(cls, answer: NoisySum, bound: float, phase: Phase) -> _Noise:
        return cls(answer.std / bound * math.sqrt(phase.share / phase.rounds))

    def std(self, bound: float, phase: Phase) -> float:
        return self.unit * bound / math.sqrt(phase.share / phase.rounds)


@dataclass
class _People:
    """The pooled noisy number of customers."""

    value: float
    variance: float

    def pool(self, value: float, variance: float) -> None:
        precision = 1 / self.variance + 1 / variance
        self.value = (self.value / self.variance + value / variance) / precision
        self.variance = 1 / precision

    @property
    def count(self) -> float:
        return max(self.value, 10.0)


def cluster(
    marginals: Sequence[Marginal],
    scaler: Scaler,
    k_range: tuple[int, int],
    share: Fraction,
    rng: np.random.Generator,
) -> Programme[Clustering]:
    """The programme: asks `moments`, `cells` and `lloyd` questions and returns the clustering.

    Args:
        marginals: released marginals of the scaler's features, in its order.
        scaler: to the box.
        k_range: (least, most) clusters; with least < most the simplified silhouette of the particles chooses.
        share: part of the plan's mu^2 that the phases may cost together.
        rng: seeds the post-processing.
    """
    moments_phase, cells_phase, lloyd_phase = clustering_phases(share)
    shape = outline(marginals, scaler)
    first = _global_query(shape, scaler)
    answer = yield Ask(moments_phase.name, first)
    noise = _Noise.seen(answer, first.bound, moments_phase)
    people = _People(float(np.mean([m.total for m in marginals])), 4 * marginals[0].count_std ** 2 / len(marginals))
    particles = _first_particles(shape, first, answer, people, rng)
    for cells_per_k in _CELLS_PER_K:
        cell_std = noise.std(math.hypot(*_CELL_WEIGHTS), cells_phase)
        query = _cell_query(particles, scaler, cells_per_k * k_range[1], people, cell_std, rng)
        answer = yield Ask(cells_phase.name, query)
        particles = corrected_particles(particles, query, read_moments(query, answer.values), answer.std, rng)
    candidates, centres = _choose(particles, k_range, rng)
    lloyd = _Lloyd(centres, particles, people)
    for _ in range(_LLOYD_ROUNDS):
        query = lloyd.query(scaler, noise.std(math.hypot(*_LLOYD_WEIGHTS), lloyd_phase))
        answer = yield Ask(lloyd_phase.name, query)
        lloyd.step(query, read_moments(query, answer.values), answer.std)
    return Clustering(lloyd.centres, lloyd.counts, particles, candidates)


def _global_query(shape: Outline, scaler: Scaler) -> MomentQuery:
    radius = min(max(_SPREAD_CLIP * math.sqrt(float(shape.variance.sum())), _MIN_RADIUS), _diameter(len(shape.mean)))
    return MomentQuery(scaler, on_grid(shape.mean[np.newaxis]), _on_radius_grid(np.array([radius])), _GLOBAL_WEIGHTS)


def _first_particles(
    shape: Outline, query: MomentQuery, answer: NoisySum, people: _People, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The Gaussian copula of the released marginals and the released covariance."""
    moments = read_moments(query, answer.values)
    people.pool(float(moments.counts[0]), (answer.std / query.weights[0]) ** 2)
    radius = float(query.radii[0])
    mean = shortened(moments.sums[0] / people.count, 1.0) * radius
    covariance = moments.seconds[0] / people.count * radius**2 - np.outer(mean, mean)
    least = min(
        0.5 * answer.std / query.weights[2] / people.count * radius**2,
        0.3 * float(shape.variance.mean()),
    )
    return copula_particles(shape, positive_definite(covariance, least, radius**2), rng)


def _cell_query(
    particles: NDArray[np.float64],
    scaler: Scaler,
    most: int,
    people: _People,
    std: float,
    rng: np.random.Generator,
) -> MomentQuery:
    """The particles' own k-means cells, as many as the noise allows to be told apart, with radii near their spread."""
    cells = min(max(int(people.count / (_CELL_EVIDENCE * std)), 1), most)
    centres = on_grid(cluster_particles(particles, cells, _CELL_RESTARTS, rng))
    cell = nearest_centre(particles, centres)
    squares = ((particles - centres[cell]) ** 2).sum(axis=1)
    spread = np.bincount(cell, squares, cells) / np.maximum(np.bincount(cell, minlength=cells), 1)
    radii = np.clip(_SPREAD_CLIP * np.sqrt(spread + 1e-6), _MIN_RADIUS, _diameter(particles.shape[1]))
    return MomentQuery(scaler, centres, _on_radius_grid(radii), _CELL_WEIGHTS)


def _choose(
    particles: NDArray[np.float64], k_range: tuple[int, int], rng: np.random.Generator
) -> tuple[tuple[CandidateK, ...], NDArray[np.float64]]:
    """The candidates, judged, and the centres of the best: highest silhouette, the smaller k on a tie."""
    least, most = k_range
    tried = [(k, cluster_particles(particles, k, _FINAL_RESTARTS, rng)) for k in range(least, most + 1)]
    judged = tuple(_judge(particles, centres) for _, centres in tried)
    best = max(range(len(judged)), key=lambda i: (judged[i].silhouette or 0.0, -judged[i].k))
    return judged, swapped_centres(particles, tried[best][1], _SWAPS, rng)


def _judge(particles: NDArray[np.float64], centres: NDArray[np.float64]) -> CandidateK:
    """Cost and simplified silhouette: for every particle, its distances to the nearest and the second centre."""
    squares = squared_distances(particles, centres)
    if len(centres) == 1:
        return CandidateK(1, None, float(squares.mean()))
    nearest = np.partition(squares, 1, axis=1)[:, :2]
    own, other = np.sqrt(nearest).T
    silhouette = float(np.mean((other - own) / np.maximum(other, 1e-12)))
    return CandidateK(len(centres), silhouette, float(nearest[:, 0].mean()))


class _Lloyd:
    """Lloyd rounds from a start on the particles: centres, pooled counts and each cluster's spread."""

    def __init__(self, centres: NDArray[np.float64], particles: NDArray[np.float64], people: _People) -> None:
        k = len(centres)
        cell = nearest_centre(particles, centres)
        squares = ((particles - centres[cell]) ** 2).sum(axis=1)
        sizes = np.bincount(cell, minlength=k)
        own = np.bincount(cell, squares, k) / np.maximum(sizes, 1)
        self.centres = on_grid(centres)
        self.counts = sizes / len(cell) * people.count
        self._count_variance = (0.3 * people.count / k) ** 2
        self._spread = np.maximum(np.sqrt(0.8 * own + 0.2 * squares.mean()), _MIN_RADIUS)

    def query(self, scaler: Scaler, std: float) -> MomentQuery:
        """The next step's question; radii grow from the least clip as the expected relative noise falls."""
        d = self.centres.shape[1]
        relative = float(np.median(std * math.sqrt(d) / np.maximum(self.counts, 3 * std)))
        clip = min(max(_LLOYD_CLIP[0] * (_QUIET / relative) ** 0.33, _LLOYD_CLIP[0]), _LLOYD_CLIP[1])
        radii = np.minimum(clip * self._spread, _diameter(d))
        return MomentQuery(scaler, self.centres, _on_radius_grid(radii), _LLOYD_WEIGHTS)

    def step(self, query: MomentQuery, moments: CellMoments, std: float) -> None:
        """Move the centres by the shrunk noisy mean residuals."""
        d = self.centres.shape[1]
        variance = (std / query.weights[0]) ** 2
        precision = 1 / self._count_variance + 1 / variance
        self.counts = (self.counts / self._count_variance + moments.counts / variance) / precision
        self._count_variance = 1 / precision
        people = np.maximum(self.counts, 3 * std)
        means = moments.sums / people[:, np.newaxis]
        step = np.stack([shortened(mean, 1.0) for mean in means]) * query.radii[:, np.newaxis]
        noise = (std * query.radii / people) ** 2 * d
        squares = (step**2).sum(axis=1)
        squares = 0.5 * squares + 0.5 * float(np.mean(squares / noise)) * noise  # half own, half pooled
        shrink = np.maximum(0.0, 1.0 - noise / np.maximum(squares, 1e-12))
        self.centres = on_grid(np.clip(self.centres + step * shrink[:, np.newaxis], -1.0, 1.0))


def _on_radius_grid(radii: NDArray[np.float64]) -> NDArray[np.float64]:
    """Radii rounded to multiples of 2**-20, so that a resumed run asks the same to the last bit."""
    return np.asarray(np.rint(radii * 2.0**20) / 2.0**20)


def _diameter(d: int) -> float:
    return 2.0 * math.sqrt(d)
