"""Particles: made of released numbers alone, repeatable given the generator, corrected towards what was answered."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cohortium.models.assignment import nearest_centre, squared_distances
from cohortium.models.marginals import Axis, Marginal
from cohortium.models.moments import CellMoments, MomentQuery, read_moments
from cohortium.models.particles import (
    PARTICLES,
    Outline,
    cluster_particles,
    copula_particles,
    corrected_particles,
    outline,
    positive_definite,
    shortened,
    swapped_centres,
)
from cohortium.models.scaler import Scaler
from cohortium.privacy.query import SCALE, bounded_total
from cohortium.privacy.table import CustomerTable

BOX = Scaler(("x", "y"), np.zeros(2, dtype=np.bool_), np.full(2, -1.0), np.ones(2))
FLAT = Outline(
    edges=(np.linspace(-1, 1, 11), np.linspace(-1, 1, 11)),
    masses=(np.ones(10), np.ones(10)),
    mean=np.zeros(2),
    variance=np.full(2, 1 / 3),
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def blobs(k: int, count: int = PARTICLES, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Well separated blobs on a circle, and their middles."""
    angles = np.arange(k) * 2 * np.pi / k
    middles = 0.8 * np.column_stack([np.cos(angles), np.sin(angles)])
    generator = rng(seed)
    return middles[generator.integers(0, k, count)] + generator.normal(0, 0.03, (count, 2)), middles


def matched(found: NDArray[np.float64], middles: NDArray[np.float64]) -> float:
    """The largest distance of a middle to its nearest centre."""
    return float(np.sqrt(squared_distances(middles, found).min(axis=1)).max())


# --- the first belief ------------------------------------------------------------------------------------------------


def test_copula_particles_have_the_released_marginals_and_correlation() -> None:
    masses = (np.array([0, 0, 0, 0, 0, 0, 0, 1, 3, 0.0]), np.ones(10))
    shape = Outline(FLAT.edges, masses, FLAT.mean, FLAT.variance)
    particles = copula_particles(shape, np.array([[1.0, 0.9], [0.9, 1.0]]), rng())
    assert particles.shape == (PARTICLES, 2)
    assert ((particles[:, 0] > 0.4 - 1e-6) & (particles[:, 0] < 0.8 + 1e-6)).all()
    assert np.mean(particles[:, 0] > 0.6) == pytest.approx(0.75, abs=0.05)
    assert np.corrcoef(np.argsort(np.argsort(particles, axis=0), axis=0).T)[0, 1] > 0.8


def test_a_marginal_without_people_counts_as_uniform() -> None:
    axis = Axis("x", 0.0, 1.0)
    nobody = Marginal(axis, np.zeros(axis.bins), 1.0)
    scaler = Scaler(("x",), np.zeros(1, dtype=np.bool_), np.zeros(1), np.ones(1))
    shape = outline([nobody], scaler)
    assert shape.mean[0] == pytest.approx(0.0, abs=1e-9)
    assert shape.variance[0] == pytest.approx(1 / 3, rel=1e-6)
    particles = copula_particles(shape, np.eye(1), rng())
    assert np.abs(particles).max() <= 1.0 + 1e-9
    assert particles.std() == pytest.approx(3**-0.5, abs=0.03)


# --- clustering them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5])
def test_clear_clusters_are_found(k: int) -> None:
    particles, middles = blobs(k)
    assert matched(cluster_particles(particles, k, 5, rng()), middles) < 0.02


@pytest.mark.parametrize("distinct", [1, 2, 3])
@pytest.mark.parametrize("k", [3, 8])
def test_fewer_distinct_particles_than_clusters_give_that_many_centres_all_the_same(distinct: int, k: int) -> None:
    particles = np.repeat(np.linspace(-1, 1, distinct)[:, np.newaxis] * np.ones(2), 50, axis=0)
    centres = cluster_particles(particles, k, 2, rng())
    assert centres.shape == (k, 2)
    assert np.abs(centres).max() <= 1.0
    assert matched(centres, np.unique(particles, axis=0)) < 1e-9
    assert (swapped_centres(particles, centres, 5, rng()) == centres).all()


def test_swap_search_cures_a_bad_start_and_never_costs_more() -> None:
    particles, middles = blobs(8)
    bad = middles.copy()
    bad[0] = bad[1] + 0.01
    before = squared_distances(particles, bad).min(axis=1).sum()
    better = swapped_centres(particles, bad, 30, rng())
    assert squared_distances(particles, better).min(axis=1).sum() < 0.1 * before
    assert matched(better, middles) < 0.02
    assert (swapped_centres(particles, bad[:1], 30, rng()) == bad[:1]).all()


# --- correcting them -------------------------------------------------------------------------------------------------


def answered(centres: NDArray[np.float64], points: NDArray[np.float64]) -> tuple[MomentQuery, CellMoments]:
    query = MomentQuery(BOX, centres, np.full(len(centres), 2.0), (0.5, 1.0, 0.7))
    table = CustomerTable(("x", "y"), points, np.arange(len(points)))
    return query, read_moments(query, bounded_total(query, table) / SCALE)


def test_a_believable_answer_moves_counts_means_and_covariances() -> None:
    centres = np.array([[-0.5, 0.0], [0.5, 0.0]])
    truth = np.vstack([rng(1).normal([-0.8, 0.5], [0.02, 0.1], (900, 2)), rng(2).normal([0.3, -0.5], 0.05, (100, 2))])
    query, moments = answered(centres, truth)
    particles = corrected_particles(rng(3).uniform(-1, 1, (PARTICLES, 2)), query, moments, 1e-6, rng(4))
    left = nearest_centre(particles, centres) == 0
    assert left.mean() == pytest.approx(0.9, abs=0.01)
    assert particles[left].mean(axis=0) == pytest.approx([-0.8, 0.5], abs=0.02)
    assert particles[~left].mean(axis=0) == pytest.approx([0.3, -0.5], abs=0.02)
    assert particles[left].std(axis=0) == pytest.approx([0.02, 0.1], abs=0.05)
    assert np.abs(particles).max() <= 1.0


def test_an_answer_lost_in_noise_changes_little() -> None:
    centres = np.array([[-0.5, 0.0], [0.5, 0.0]])
    query, moments = answered(centres, rng(1).normal([0.0, 0.9], 0.01, (100, 2)))
    before = rng(3).uniform(-1, 1, (PARTICLES, 2))
    after = corrected_particles(before, query, moments, 1e6, rng(4))
    assert after.mean(axis=0) == pytest.approx(before.mean(axis=0), abs=0.05)


@pytest.mark.parametrize("counts", [[0.0, 0.0], [-5.0, -1.0]])
def test_nobody_answering_changes_nothing(counts: list[float]) -> None:
    centres = np.array([[-0.5, 0.0], [0.5, 0.0]])
    query, moments = answered(centres, np.zeros((0, 2)))
    before = rng(3).uniform(-1, 1, (PARTICLES, 2))
    moments = CellMoments(np.array(counts), moments.sums, moments.seconds)
    assert corrected_particles(before, query, moments, 1.0, rng(4)) is before


def test_cells_without_particles_are_filled_from_their_centre() -> None:
    centres = np.array([[-0.9, -0.9], [0.9, 0.9]])
    query, moments = answered(centres, np.full((400, 2), 0.9))
    particles = corrected_particles(np.full((PARTICLES, 2), -0.9), query, moments, 1e-6, rng(4))
    assert particles.mean(axis=0) == pytest.approx([0.9, 0.9], abs=0.1)


# --- resuming relies on this -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_everything_is_a_function_of_its_arguments_and_the_generator(threads: int) -> None:
    def once() -> bytes:
        generator = rng(7)
        particles = copula_particles(FLAT, np.array([[1.0, 0.3], [0.3, 1.0]]), generator)
        query, moments = answered(np.array([[-0.5, 0.0], [0.5, 0.0]]), blobs(3, 500)[0])
        particles = corrected_particles(particles, query, moments, 0.1, generator)
        centres = cluster_particles(particles, 4, 2, generator)
        return particles.tobytes() + swapped_centres(particles, centres, 5, generator).tobytes()

    with threadpool_limits(limits=1):
        first = once()
    with threadpool_limits(limits=threads):
        assert once() == first


# --- small parts -----------------------------------------------------------------------------------------------------


def test_a_matrix_is_brought_into_its_limits() -> None:
    matrix = np.array([[2.0, 5.0], [3.0, -1.0]])
    values = np.linalg.eigvalsh(positive_definite(matrix, 0.1, 1.5))
    assert values.min() == pytest.approx(0.1)
    assert values.max() == pytest.approx(1.5)
    good = np.array([[1.0, 0.2], [0.2, 0.8]])
    assert positive_definite(good, 0.1, 2.0) == pytest.approx(good)


def test_only_long_vectors_are_shortened() -> None:
    assert shortened(np.array([3.0, 4.0]), 1.0) == pytest.approx([0.6, 0.8])
    assert (shortened(np.array([0.3, 0.4]), 1.0) == [0.3, 0.4]).all()
    assert (shortened(np.zeros(2), 1.0) == 0).all()
