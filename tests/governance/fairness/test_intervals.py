"""Coverage of the intervals with noise as the product adds it, and what they become without any."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binomtest

from cohortium.governance.fairness.intervals import (
    Interval,
    Quotient,
    critical,
    difference,
    interval,
    odds,
    ratio,
    share,
)
from cohortium.privacy.accounting import budget_for

Z = critical(0.05)
DRAWS = 1000


def product_std(epsilon: float) -> float:
    """Noise of a count: two attributes and their pair, so three cells a person; three institutions, one colluder."""
    return math.sqrt(3 / budget_for(epsilon, 1e-6).mu_squared * 3 / 2)


def noisy_share(rng: np.random.Generator, people: int, rate: float, std: float, known: float | None = None) -> Quotient:
    """A share from two noisy cells; `known` is the noise that the interval is told of."""
    chosen = rng.binomial(people, rate)
    cells = np.array([chosen, people - chosen]) + rng.normal(0, std, 2)
    variance = (std if known is None else known) ** 2
    return share(float(cells[0]), float(cells.sum()), variance, 2 * variance, variance)


def covered(truth: float, draw: Callable[[np.random.Generator], Interval], draws: int = DRAWS) -> float:
    rng = np.random.default_rng(20)
    return sum(found.low <= truth <= found.high for found in (draw(rng) for _ in range(draws))) / draws


@pytest.mark.parametrize(("epsilon", "people", "truth"), [(0.2, 500, 0.65), (0.5, 200, 1.0), (1.0, 5_000, 0.65)])
def test_ratios_cover_93_to_97_percent(epsilon: float, people: int, truth: float) -> None:
    std = product_std(epsilon)

    def draw(rng: np.random.Generator) -> Interval:
        return ratio(noisy_share(rng, people, 0.2 * truth, std), noisy_share(rng, 20_000, 0.2, std), Z)

    assert 0.93 <= covered(truth, draw) <= 0.97


def test_an_interval_that_ignores_the_noise_is_rejected() -> None:
    std = product_std(0.5)

    def draw(rng: np.random.Generator) -> Interval:
        return ratio(noisy_share(rng, 500, 0.13, std, known=0.0), noisy_share(rng, 20_000, 0.2, std, known=0.0), Z)

    assert 0.5 <= covered(0.65, draw, 300) <= 0.75


@pytest.mark.parametrize(("people", "rate"), [(200, 0.2), (5_000, 0.02)])
def test_shares_cover_93_to_97_percent(people: int, rate: float) -> None:
    std = product_std(0.5)
    assert 0.93 <= covered(rate, lambda rng: interval(noisy_share(rng, people, rate, std), Z)) <= 0.97


def test_differences_cover_93_to_97_percent() -> None:
    std = product_std(0.5)

    def draw(rng: np.random.Generator) -> Interval:
        return difference(noisy_share(rng, 800, 0.3, std), noisy_share(rng, 1_000, 0.25, std), Z)

    assert 0.93 <= covered(0.05, draw) <= 0.97


def test_odds_and_their_ratios_cover_93_to_97_percent() -> None:
    std = product_std(0.5)

    def of(rng: np.random.Generator, first: float, second: float) -> Quotient:
        counts = rng.poisson((first, second)) + rng.normal(0, std, 2)
        return odds(float(counts[0]), float(counts[1]), std**2, std**2)

    assert 0.93 <= covered(0.4, lambda rng: interval(of(rng, 400, 1_000), Z)) <= 0.97
    assert 0.93 <= covered(0.8, lambda rng: ratio(of(rng, 400, 1_000), of(rng, 250, 500), Z)) <= 0.97


def test_a_mean_of_a_bounded_measure_is_covered_at_least_so_often() -> None:
    std = product_std(0.5)

    def draw(rng: np.random.Generator) -> Interval:
        total = rng.beta(2, 3, 1_000).sum() + rng.normal(0, std)
        return interval(share(float(total), 1_000 + rng.normal(0, std), std**2, std**2, 0.0), Z)

    assert covered(0.4, draw, 300) >= 0.95


@pytest.mark.parametrize(("chosen", "people"), [(0, 20), (7, 40), (40, 40)])
def test_without_noise_a_share_has_wilsons_interval(chosen: int, people: int) -> None:
    found = interval(share(chosen, people, 0.0, 0.0, 0.0), Z)
    wilson = binomtest(chosen, people).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=1e-12)
    assert found.estimate == chosen / people


def test_without_noise_a_ratio_has_koopmans_interval() -> None:
    """Its ends are where the score statistic, with the rates that fit the ratio best, is z squared (Koopman 1984)."""
    first, people, second, others = 36, 40, 16, 80
    found = ratio(share(first, people, 0, 0, 0), share(second, others, 0, 0, 0), Z)
    rates = np.linspace(1e-4, 0.9999, 200_001)

    def statistic(value: float) -> float:
        own = np.minimum(value * rates, 1 - 1e-12)
        return float(
            np.min(
                (first - people * own) ** 2 / (people * own * (1 - own))
                + (second - others * rates) ** 2 / (others * rates * (1 - rates))
            )
        )

    assert found.estimate == pytest.approx(4.5)
    assert statistic(found.low) == pytest.approx(Z**2, rel=2e-3)
    assert statistic(found.high) == pytest.approx(Z**2, rel=2e-3)


@pytest.mark.parametrize(
    "quotient", [share(60.0, 500.0, 300.0, 700.0, 250.0), odds(60.0, 500.0, 300.0, 200.0)], ids=["share", "odds"]
)
def test_the_ends_are_exactly_z_deviations_away(quotient: Quotient) -> None:
    found = interval(quotient, Z)
    assert quotient.distance(np.array([found.low, found.high])) == pytest.approx([Z**2, Z**2], rel=1e-9)
    assert quotient.distance(np.array([quotient.estimate])) == 0.0


def test_what_the_noise_hides_has_no_end() -> None:
    hidden = share(20.0, 40.0, 1600.0, 3200.0, 1600.0)
    sure = share(4_000.0, 20_000.0, 1600.0, 3200.0, 1600.0)
    assert not interval(hidden, Z).bounded
    assert ratio(hidden, sure, Z) == Interval(2.5, 0.0, math.inf, bounded=False)
    assert not ratio(sure, hidden, Z).bounded
    assert difference(sure, hidden, Z) == Interval(-0.3, -1.0, 1.0, bounded=False)


def test_a_reference_rate_that_may_be_0_leaves_the_ratio_without_an_upper_end() -> None:
    found = ratio(share(100, 1_000, 25, 50, 25), share(6, 1_000, 25, 50, 25), Z)
    assert found.high == math.inf
    assert found.low > 1
    assert not found.bounded


def test_counts_that_no_share_explains_give_an_empty_set() -> None:
    found = interval(share(-100.0, 1_000.0, 25.0, 50.0, 25.0), Z)
    assert math.isnan(found.low)
    assert not found.bounded
    assert found.estimate == 0.0


def test_a_denominator_below_0_has_no_estimate() -> None:
    assert interval(share(5.0, -3.0, 100.0, 200.0, 100.0), Z).estimate is None


def test_more_noise_makes_longer_intervals() -> None:
    ends = [ratio(share(65, 500, v, 2 * v, v), share(4_000, 20_000, v, 2 * v, v), Z) for v in (0.0, 100.0, 400.0)]
    lengths = [found.high - found.low for found in ends]
    assert lengths == sorted(lengths)
    assert lengths[2] > 1.5 * lengths[0]
