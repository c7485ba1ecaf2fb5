"""The clustering programme: what it asks, what it finds without noise, and that nothing but the answers matters."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortium.models.assignment import squared_distances
from cohortium.models.clustering import CandidateK, Clustering, cluster, clustering_phases, widest_questions
from cohortium.models.marginals import Axis, Marginal, MarginalsQuery, estimate_marginals
from cohortium.models.moments import MomentQuery
from cohortium.models.programme import Ask, NoisySum
from cohortium.models.scaler import Scaler, bounds_scaler
from cohortium.privacy.query import SCALE, bounded_total
from cohortium.privacy.table import CustomerTable

MIDDLES = np.array([[-0.7, -0.6], [0.0, 0.7], [0.75, -0.5], [-0.6, 0.5]])


def mixture(k: int, count: int, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return np.clip(MIDDLES[rng.integers(0, k, count)] + rng.normal(0, 0.06, (count, 2)), -1, 1)


def learnt(
    points: NDArray[np.float64],
    k_range: tuple[int, int],
    *,
    mu2: float = 0.05,
    noise: int | None = 0,
    seed: int = 0,
) -> tuple[Clustering, list[Ask]]:
    """The programme over rows of the box, with Gaussian noise as the plan's mu^2 has it, or next to none."""
    names = tuple(f"x{index}" for index in range(points.shape[1]))
    table = CustomerTable(names, np.ascontiguousarray(points), np.arange(len(points)))
    axes = tuple(Axis(name, -1.0, 1.0) for name in names)
    generator = None if noise is None else np.random.default_rng(noise)

    def answered(query: Any, share: Fraction) -> NoisySum:
        std = float(np.sqrt(query.bound_squared / (float(share) * mu2))) / SCALE
        values = bounded_total(query, table) / SCALE
        if generator is None:
            return NoisySum(values, std * 1e-6, 1)
        return NoisySum(values + generator.normal(0, std, len(values)), std, 1)

    first = MarginalsQuery(axes)
    answer = answered(first, Fraction(7, 100))
    marginals: list[Marginal] = list(estimate_marginals(first, answer.values, answer.std))
    programme = cluster(marginals, bounds_scaler(axes), k_range, Fraction(93, 100), np.random.default_rng(seed))
    shares = {phase.name: phase.share / phase.rounds for phase in clustering_phases(Fraction(93, 100))}
    asks = [next(programme)]
    while True:
        try:
            asks.append(programme.send(answered(asks[-1].query, shares[asks[-1].phase])))
        except StopIteration as done:
            return done.value, asks


def cost(points: NDArray[np.float64], centres: NDArray[np.float64]) -> float:
    return float(squared_distances(points, centres).min(axis=1).mean())


# --- what is asked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [Fraction(1), Fraction(60, 100), Fraction(1, 7)])
def test_the_phases_cost_exactly_their_share(share: Fraction) -> None:
    phases = clustering_phases(share)
    assert sum(phase.share for phase in phases) == share
    assert len({phase.name for phase in phases}) == len(phases)
    assert all(phase.kind == MomentQuery.kind and phase.rounds >= 1 for phase in phases)


@pytest.mark.parametrize(("k_range", "count"), [((1, 1), 500), ((2, 5), 2000), ((4, 4), 50_000)])
def test_it_asks_what_its_phases_say_and_nothing_wider_than_announced(k_range: tuple[int, int], count: int) -> None:
    _, asks = learnt(mixture(4, count), k_range)
    expected = [phase.name for phase in clustering_phases(Fraction(1)) for _ in range(phase.rounds)]
    scaler = Scaler(("x0", "x1"), np.zeros(2, dtype=np.bool_), -np.ones(2), np.ones(2))
    announced = widest_questions(scaler, k_range[1])
    assert [ask.phase for ask in asks] == expected == [ask.phase for ask in announced]
    for ask, widest in zip(asks, announced, strict=True):
        assert ask.query.width <= widest.query.width
        assert ask.query.bound_squared == widest.query.bound_squared


def test_every_question_survives_the_strict_parser() -> None:
    for points in (mixture(4, 3000), np.zeros((200, 2)), np.ones((1, 2)), np.zeros((0, 2))):
        for ask in learnt(points, (1, 6))[1]:
            MomentQuery.from_spec(ask.query.spec())


def test_with_many_people_the_widest_question_is_asked() -> None:
    _, asks = learnt(mixture(4, 50_000), (4, 4))
    assert len(asks[1].query.centres) == 8  # type: ignore[attr-defined]  # the announced width is not a loose bound


# --- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_without_noise_clear_clusters_are_found_exactly(k: int) -> None:
    points = mixture(k, 4000)
    found, _ = learnt(points, (k, k), noise=None)
    best = cost(points, MIDDLES[:k])
    assert cost(points, found.centres) < best * 1.02
    assert found.counts.sum() == pytest.approx(4000, rel=0.02)
    assert [candidate.k for candidate in found.candidates] == [k]


def test_lloyd_steps_bring_centres_to_the_means_of_their_people() -> None:
    """Particles only resemble the people; what remains after three steps is what the clip of residuals leaves."""
    points = mixture(4, 4000)
    found, asks = learnt(points, (4, 4), noise=None)
    start: Any = next(ask.query for ask in asks if ask.phase == "lloyd")

    def off(centres: NDArray[np.float64]) -> float:
        nearest = squared_distances(points, centres).argmin(axis=1)
        means = np.array([points[nearest == index].mean(axis=0) for index in range(4)])
        return float(np.linalg.norm(means - centres, axis=1).max())

    assert off(found.centres) < 5e-4 < off(start.centres)


def test_with_noise_clear_clusters_are_found_nearly() -> None:
    """Five seeds of noise: the median cost stays within 5% of the mixture's own middles, at mu^2 = 0.05."""
    points = mixture(4, 6000)
    ratios = [cost(points, learnt(points, (4, 4), noise=n)[0].centres) / cost(points, MIDDLES) for n in range(5)]
    assert np.median(ratios) < 1.05


def test_released_statistics_choose_the_number_of_clusters() -> None:
    found, _ = learnt(mixture(3, 6000), (2, 6))
    assert [candidate.k for candidate in found.candidates] == [2, 3, 4, 5, 6]
    assert len(found.centres) == 3
    silhouettes = {c.k: c.silhouette for c in found.candidates}
    assert silhouettes[3] == max(value for value in silhouettes.values() if value is not None)
    costs = [c.cost for c in found.candidates]
    assert costs == sorted(costs, reverse=True)


def test_one_cluster_has_no_silhouette() -> None:
    found, _ = learnt(mixture(2, 500), (1, 2))
    assert found.candidates[0] == CandidateK(1, None, found.candidates[0].cost)
    assert len(found.centres) == 2


@pytest.mark.parametrize("points", [np.zeros((0, 2)), np.full((1, 2), 0.4), np.full((3, 2), -1.0)])
@pytest.mark.parametrize("k_range", [(1, 1), (3, 8)])
def test_hardly_anybody_gives_finite_centres_in_the_box(points: NDArray[np.float64], k_range: tuple[int, int]) -> None:
    for noise in range(3):
        found, _ = learnt(points, k_range, noise=noise)
        assert k_range[0] <= len(found.centres) <= k_range[1]
        assert np.isfinite(found.centres).all()
        assert np.abs(found.centres).max() <= 1.0
        assert np.isfinite(found.counts).all()


def test_many_identical_people_are_found_where_they_are() -> None:
    found, _ = learnt(np.full((5000, 2), 0.3), (1, 1))
    assert found.centres[0] == pytest.approx([0.3, 0.3], abs=0.05)
    assert found.counts[0] == pytest.approx(5000, rel=0.1)


# --- resuming relies on this -----------------------------------------------------------------------------------------


def asked(asks: list[Ask]) -> list[bytes]:
    return [b"".join(value.tobytes() for value in ask.query.spec().arrays.values()) for ask in asks]  # type: ignore[attr-defined]


def test_questions_are_a_function_of_answers_and_seed() -> None:
    points = mixture(4, 1500)
    (one, first), (two, second) = learnt(points, (2, 4)), learnt(points, (2, 4))
    assert asked(first) == asked(second)
    assert one.centres.tobytes() == two.centres.tobytes()
    assert one.particles.tobytes() == two.particles.tobytes()
    other_answers, other_seed = learnt(points, (2, 4), noise=1)[1], learnt(points, (2, 4), seed=1)[1]
    assert asked(other_answers)[1:] != asked(first)[1:]
    assert asked(other_seed)[0] == asked(first)[0]
    assert asked(other_seed)[1:] != asked(first)[1:]


def test_question_parameters_stand_on_a_coarse_grid() -> None:
    """So that the last bits of a processor's floating point do not make another question of a resumed run."""
    for ask in learnt(mixture(4, 1500), (4, 4))[1]:
        query: Any = ask.query
        for values in (query.centres, query.radii):
            assert (values * 2.0**20 == np.rint(values * 2.0**20)).all()


@pytest.fixture(autouse=True)
def _no_hidden_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    """The global generator is poisoned: whatever reads it fails."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("numpy's global generator was used")

    for name in ("rand", "randn", "random", "normal", "choice", "randint", "permutation", "shuffle"):
        monkeypatch.setattr(np.random, name, refuse)
