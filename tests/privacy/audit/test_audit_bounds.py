"""Bounds hold at their error, against exact Gaussian worlds and by definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm

from cohortium.privacy.accounting import budget_for
from cohortium.privacy.audit.bounds import (
    best_threshold,
    epsilon_at,
    epsilon_lower,
    mu_lower,
    mu_of_share,
    mu_upper,
    share_lower,
    share_upper,
)

DELTA = 1e-6


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (1, 10), (7, 10), (10, 10), (530, 1000)])
def test_shares_are_clopper_pearson(hits: int, trials: int) -> None:
    interval = binomtest(hits, trials).proportion_ci(0.95, method="exact")
    assert share_lower(hits, trials, 0.025) == pytest.approx(interval.low)
    assert share_upper(hits, trials, 0.025) == pytest.approx(interval.high)


@pytest.mark.parametrize("probability", [0.5, 0.55, 0.8, 0.999])
def test_the_lower_bound_of_mu_lies_above_the_truth_at_most_as_often_as_stated(probability: float) -> None:
    """Exactly, by summing over all outcomes, not by simulation."""
    guesses, error = 400, 0.05
    outcomes = np.arange(guesses + 1)
    wrong = np.array([mu_lower(int(k), guesses, error) > mu_of_share(probability) for k in outcomes])
    assert binom.pmf(outcomes, guesses, probability)[wrong].sum() <= error


def test_two_worlds_of_different_rates_keep_the_bound() -> None:
    """Half of the guesses are right with probability 0.95, half with 0.65: exactly, by convolution."""
    half, error = 200, 0.05
    law = np.convolve(binom.pmf(np.arange(half + 1), half, 0.95), binom.pmf(np.arange(half + 1), half, 0.65))
    wrong = np.array([mu_lower(k, 2 * half, error) > mu_of_share(0.8) for k in range(2 * half + 1)])
    assert 0 < law[wrong].sum() <= error


def test_the_best_attack_on_a_gaussian_is_right_in_the_share_of_its_mu() -> None:
    for mu in (0.2, 1.0, 3.0):
        right = 0.5 * (norm.cdf(mu / 2) + norm.sf(mu / 2 - mu))  # threshold half-way, either world
        assert mu_of_share(float(right)) == pytest.approx(mu)


def test_edge_cases_of_mu() -> None:
    assert mu_of_share(0.5) == mu_of_share(0.2) == mu_lower(0, 100, 0.05) == 0.0
    assert math.isfinite(mu_of_share(1.0))
    assert mu_upper(100, 100, 0.05) == mu_of_share(1.0)
    assert mu_lower(700, 1000, 0.05, tv=0.1) < mu_lower(700, 1000, 0.05)


def test_an_epsilon_is_that_of_the_gaussian_curve() -> None:
    for epsilon in (0.5, 1.0, 4.0):
        mu = math.sqrt(budget_for(epsilon, DELTA).mu_squared)
        assert epsilon_at(mu, DELTA) == pytest.approx(epsilon, rel=1e-3)
    assert epsilon_at(0.0, DELTA) == 0.0
    assert epsilon_at(20.0, DELTA) == math.inf


def test_epsilon_is_bounded_by_randomised_response_almost_tightly() -> None:
    """A mechanism that tells the truth with odds e^2 has epsilon 2 exactly."""
    rng, n = np.random.default_rng(0), 200_000
    truth = math.exp(2) / (1 + math.exp(2))
    without, present = (rng.random(n) < 1 - truth).astype(float), (rng.random(n) < truth).astype(float)
    assert 1.95 < epsilon_lower(without, present, 0.5, DELTA, 0.05) <= 2.0
    assert 1.95 < epsilon_lower(-present, -without, -0.5, DELTA, 0.05) <= 2.0, "the other direction is seen as well"


def test_equal_worlds_give_no_epsilon_and_disjoint_worlds_a_large_one() -> None:
    same = np.random.default_rng(1).normal(size=5000)
    assert epsilon_lower(same, same, 0.0, DELTA, 0.05) == 0.0
    assert epsilon_lower(np.zeros(5000), np.ones(5000), 0.5, DELTA, 0.05) > 6


def test_a_rare_disaster_is_found_by_the_chosen_threshold_though_not_by_the_middle() -> None:
    rng = np.random.default_rng(2)
    without, present = rng.normal(size=10_000), rng.normal(size=10_000)
    present[::50] += 100.0

    def bound(threshold: float) -> float:
        return epsilon_lower(without, present, threshold, DELTA, 0.05)

    threshold = best_threshold(without, present, bound)
    assert bound(threshold) > 3
    assert bound(0.0) < 0.2
