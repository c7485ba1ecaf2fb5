"""The seed doctor against simulated noise, against closed forms, and in what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortium.models.seed_doctor import SeedMoments, forecast_seed, seed_moments, seed_noise
from cohortium.privacy.accounting import budget_for, price
from cohortium.privacy.query import SCALE
from cohortium.privacy.sharing import NoiseShare
from cohortium.study.errors import CohortiumError, Defect


def rows(n: int, d: int = 32, signal: float = 0.5, spread: float = 0.1, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    points = rng.normal(0, spread, (n, d)) * np.linspace(1.5, 0.5, d)
    points[:, 0] += signal
    return np.asarray(points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1.0))


def cosines(total: NDArray[np.float64], truth: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    noisy = total + noise
    return np.asarray(noisy @ truth / (np.linalg.norm(noisy, axis=1) * np.linalg.norm(truth)))


@pytest.mark.parametrize(("n", "std"), [(100, 2.0), (100, 12.0), (300, 30.0), (2000, 15.0)])
def test_the_forecast_is_the_law_of_the_cosine_to_the_same_seeds(n: int, std: float) -> None:
    sample = rows(n)
    told = forecast_seed(seed_moments(sample), std).centroid
    total = sample.sum(axis=0)
    seen = cosines(total, total, np.random.default_rng(1).normal(0, std, (40_000, 32)))
    assert told.expected == pytest.approx(seen.mean(), abs=0.005)
    low, high = np.quantile(seen, (0.025, 0.975))
    assert (told.low, told.high) == pytest.approx((low, high), abs=0.02)


def test_the_population_forecast_counts_the_sampling_of_seeds_too() -> None:
    std, n, d = 0.5, 60, 32
    truth = rows(40_000, signal=0.15).mean(axis=0)
    rng = np.random.default_rng(2)
    seen, told = [], []
    for draw in range(20):
        sample = rows(n, signal=0.15, seed=100 + draw)
        total = sample.sum(axis=0)
        seen.append(cosines(total, truth, rng.normal(0, std, (200, d))).mean())
        forecast = forecast_seed(seed_moments(sample), std)
        assert forecast.population.expected < forecast.centroid.expected - 0.01
        told.append(forecast.population.expected)
    assert np.mean(told) == pytest.approx(np.mean(seen), abs=0.03)


def test_seeds_elsewhere_are_counted_as_more_of_the_same() -> None:
    std, n, total = 20.0, 200, 1000
    sample = rows(total, signal=0.3)
    told = forecast_seed(seed_moments(sample[:n]), std, elsewhere=(500, 300))
    assert (told.here, told.total) == (n, total)
    whole = sample.sum(axis=0)
    seen = cosines(whole, whole, np.random.default_rng(3).normal(0, std, (20_000, 32))).mean()
    assert told.centroid.expected == pytest.approx(seen, abs=0.03)
    assert told.centroid.expected > forecast_seed(seed_moments(sample[:n]), std).centroid.expected + 0.2


def test_unknown_seeds_lengthen_the_sum_by_their_own_scatter_too() -> None:
    d, n, std = 16, 100, 2.0
    covariance = 0.01 * np.eye(d)
    mean = np.zeros(d)
    mean[0] = math.sqrt(np.trace(covariance) / n)  # what seeds without any direction of their own look like
    told = forecast_seed(SeedMoments(n, mean, covariance), std, elsewhere=(n,))
    rng = np.random.default_rng(8)
    totals = n * mean + rng.normal(0, math.sqrt(0.01 * n), (4000, d))
    noisy = totals + rng.normal(0, std, totals.shape)
    lengths = np.linalg.norm(totals, axis=1) * np.linalg.norm(noisy, axis=1)
    assert told.centroid.expected == pytest.approx(((totals * noisy).sum(axis=1) / lengths).mean(), abs=0.03)


def test_so_many_more_customers_bring_the_wanted_cosine_and_one_fewer_does_not() -> None:
    std = 12.0
    told = forecast_seed(seed_moments(rows(100)), std, wanted=0.9)
    assert told.more is not None
    assert told.more > 0
    moments = seed_moments(rows(100))
    assert forecast_seed(moments, std, elsewhere=(told.more,)).centroid.expected >= 0.9
    assert forecast_seed(moments, std, elsewhere=(told.more - 1,)).centroid.expected < 0.9
    grown = rows(100 + told.more).sum(axis=0)
    seen = cosines(grown, grown, np.random.default_rng(4).normal(0, std, (20_000, 32))).mean()
    assert seen == pytest.approx(0.9, abs=0.02)
    line = f"{told.more:,} more matched customers bring the expected cosine from {told.centroid.expected:.2f} to 0.90."
    assert line in told.advice()


def test_enough_seeds_need_no_more_and_are_not_warned_about() -> None:
    told = forecast_seed(seed_moments(rows(2000)), 5.0, wanted=0.9)
    assert told.more == 0
    assert len(told.advice()) == 2
    assert any("500 advised" in line for line in forecast_seed(seed_moments(rows(499)), 5.0).advice())


def test_seeds_that_are_like_the_rest_are_told_so() -> None:
    told = forecast_seed(seed_moments(rows(300, signal=0.0)), 50.0)
    assert told.more is None
    assert told.reachable == told.centroid.expected
    assert any("hardly told from the rest" in line for line in told.advice())


def test_the_noise_of_released_means_is_no_signal() -> None:
    """Everybody is alike, seeds too: all that sets them apart is the noise of means and of the number of people."""
    d, n, std, rng = 16, 300, 8.0, np.random.default_rng(9)
    truth = np.full(d, 0.2)
    noise = 0.01**2 * np.eye(d) + 0.02**2 * np.outer(truth, truth)
    gaps = rng.multivariate_normal(np.zeros(d), noise, 100)
    told = [forecast_seed(SeedMoments(n, gap, np.zeros((d, d)), noise), std) for gap in gaps]
    assert sum(one.more is None for one in told) >= 95
    assert sum(abs(one.centroid.expected) < 0.01 for one in told) >= 95
    assert "No number of customers" in " ".join(told[0].advice())


def test_the_forecast_counts_the_noise_of_released_means() -> None:
    d, n, std, rng = 16, 300, 8.0, np.random.default_rng(10)
    covariance, noise = 0.01 * np.eye(d), 0.02**2 * np.eye(d)
    truth = np.zeros(d)
    truth[0] = 0.15
    seen, told, blind = [], [], []
    for _ in range(100):
        mean = truth + rng.normal(0, 0.02, d)
        told.append(forecast_seed(SeedMoments(n, mean, covariance, noise), std).centroid.expected)
        blind.append(forecast_seed(SeedMoments(n, mean, covariance), std).centroid.expected)
        seen.append(cosines(n * mean, truth, rng.normal(0, std, (200, d))).mean())
    assert np.mean(told) == pytest.approx(np.mean(seen), abs=0.01)
    assert np.mean(blind) > np.mean(seen) + 0.03


def test_a_noisy_mean_bounds_what_more_seeds_can_do() -> None:
    d = 16
    mean = np.zeros(d)
    mean[0] = 0.15
    told = forecast_seed(SeedMoments(300, mean, 1e-4 * np.eye(d), 0.02**2 * np.eye(d)), 8.0, wanted=0.95)
    assert told.more is None
    assert told.centroid.expected < told.reachable - 0.1
    assert 0.8 < told.reachable < 0.95
    assert f"the noise of the model's means leaves at most {told.reachable:.2f}: 0.95 was wanted." in told.advice()[2]


def test_a_transform_bends_rows_and_noise_alike() -> None:
    std, sample = 15.0, rows(300)
    mapping = np.diag(np.linspace(0.2, 3.0, 32))
    told = forecast_seed(seed_moments(sample), std, transform=mapping).centroid
    total = sample.sum(axis=0) @ mapping
    seen = cosines(total, total, np.random.default_rng(5).normal(0, std, (40_000, 32)) @ mapping)
    assert told.expected == pytest.approx(seen.mean(), abs=0.01)
    plain = forecast_seed(seed_moments(sample), std).centroid.expected
    assert abs(told.expected - plain) > 0.05
    same = forecast_seed(seed_moments(sample), std, transform=3.0 * np.eye(32)).centroid.expected
    assert same == pytest.approx(plain, abs=1e-12)


def test_the_same_seeds_give_the_same_forecast() -> None:
    first, second = (forecast_seed(seed_moments(rows(150)), 9.0, elsewhere=(40,)) for _ in range(2))
    assert first == second


def test_the_noise_is_what_the_door_adds() -> None:
    allotment = int(0.25 * budget_for(1.0, 1e-6).mu2)
    alone = seed_noise(1.0, 1e-6, 0.25, institutions=1)
    paid = price(SCALE**2, round(alone * SCALE), 1).mu2
    assert 0.999 * allotment < paid <= allotment
    shared = seed_noise(1.0, 1e-6, 0.25, institutions=10, noise=NoiseShare(8, 2))
    assert shared == pytest.approx(alone * math.sqrt(10 / 6), rel=1e-6)
    everywhere = seed_noise(1.0, 1e-6, 0.25, institutions=10)
    assert everywhere == pytest.approx(alone * math.sqrt(10), rel=1e-6)
    weighted = seed_noise(1.0, 1e-6, 0.25, institutions=1, bound_squared=5 * SCALE**2 // 4)
    assert weighted == pytest.approx(alone * math.sqrt(1.25), rel=1e-6)


def test_one_feature_has_a_side_and_no_angle() -> None:
    told = forecast_seed(SeedMoments(100, np.array([0.3]), np.array([[0.01]])), 30.0).centroid
    assert told.expected == pytest.approx(math.erf(1.0 / math.sqrt(2)), abs=0.02)
    assert (told.low, told.high) == (-1.0, 1.0)


def test_no_mean_at_all_is_an_even_chance_and_no_division_by_zero() -> None:
    told = forecast_seed(SeedMoments(100, np.zeros(8), np.zeros((8, 8))), 1.0)
    assert told.centroid.expected == pytest.approx(0.0, abs=0.01)
    assert told.more is None


def test_bad_arguments_are_named() -> None:
    moments = seed_moments(rows(100))
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(CohortiumError, match="noise"):
            forecast_seed(moments, bad)
    with pytest.raises(CohortiumError, match="wanted"):
        forecast_seed(moments, 1.0, wanted=1.0)
    with pytest.raises(CohortiumError, match="negative"):
        forecast_seed(moments, 1.0, elsewhere=(-1,))
    with pytest.raises(CohortiumError, match="transform"):
        forecast_seed(moments, 1.0, transform=np.eye(3))
    with pytest.raises(CohortiumError, match="not clipped"):
        seed_moments(10 * rows(100))
    with pytest.raises(CohortiumError, match="two seeds"):
        seed_moments(rows(1))
    with pytest.raises(CohortiumError, match="share"):
        seed_noise(1.0, 1e-6, 0.0, institutions=3)
    with pytest.raises(CohortiumError, match="minimum"):
        seed_noise(1.0, 1e-6, 0.5, institutions=3, noise=NoiseShare(8, 2))
    with pytest.raises(Defect):
        SeedMoments(100, np.zeros(3), np.zeros((2, 2)))
    with pytest.raises(Defect):
        SeedMoments(100, np.zeros(3), np.zeros((3, 3)), np.zeros((2, 2)))
    with pytest.raises(Defect):
        SeedMoments(100, np.zeros(3), np.zeros((3, 3)), np.full((3, 3), np.nan))
