"""Cramér's V and total variation: exact without noise, honest with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2_contingency
from scipy.stats.contingency import association as scipy_v

from cohortium.governance.fairness.association import Association, association
from cohortium.governance.fairness.variation import total_variation
from cohortium.models.group_table import GroupTable

ROWS, COLUMNS = (0.5, 0.3, 0.2), (0.4, 0.3, 0.2, 0.1)
STD = 30.0


def table(counts: NDArray[np.float64], std: float) -> GroupTable:
    groups = tuple((f"g{row}",) for row in range(counts.shape[0]))
    return GroupTable(("sex",), groups, tuple(f"s{column}" for column in range(counts.shape[1])), counts, std)


def drawn(rng: np.random.Generator, v: float, people: int = 20_000) -> NDArray[np.float64]:
    """A noisy table whose V is v."""
    cells = np.outer(ROWS, COLUMNS)
    shift = np.zeros_like(cells)
    shift[:2, :2] = [[1, -1], [-1, 1]]
    cells = cells + shift * v * math.sqrt(2 / (shift**2 / cells).sum())
    return np.asarray(rng.multinomial(people, cells.ravel()).reshape(cells.shape) + rng.normal(0, STD, cells.shape))


def found(counts: NDArray[np.float64], std: float) -> Association:
    result = association(table(counts, std), 0.05)
    assert result is not None
    return result


def test_without_noise_the_statistic_and_its_null_are_pearsons() -> None:
    counts = np.array([[30.0, 50, 20], [45, 40, 35]])
    pearson = chi2_contingency(counts, correction=False)
    ours = found(counts, 0.0)
    assert ours.p_value == pytest.approx(pearson.pvalue, rel=1e-9)
    # V less the null's mean, which is the degrees of freedom
    assert ours.interval.estimate == pytest.approx(math.sqrt((pearson.statistic - 2) / 220))
    assert ours.interval.estimate is not None
    assert ours.interval.estimate < scipy_v(counts.astype(int))


def test_the_null_is_what_a_parametric_bootstrap_with_fresh_noise_draws_from() -> None:
    rng = np.random.default_rng(1)
    p_values = np.sort([found(drawn(rng, 0.0), STD).p_value for _ in range(400)])
    # Kolmogorov-Smirnov against uniform: 1.63 / sqrt(400) is passed in one run of a hundred
    assert np.abs(p_values - np.arange(0.5, 400) / 400).max() < 1.63 / 20


def test_a_null_that_ignores_the_noise_is_rejected() -> None:
    rng = np.random.default_rng(2)
    assert sum(found(drawn(rng, 0.0), 0.0).p_value < 0.05 for _ in range(100)) > 20  # 5 are right


@pytest.mark.parametrize("v", [0.05, 0.3])
def test_the_interval_covers(v: float) -> None:
    rng = np.random.default_rng(3)
    intervals = [found(drawn(rng, v), STD).interval for _ in range(300)]
    assert 0.92 <= sum(each.low <= v <= each.high for each in intervals) / 300 <= 0.98
    assert np.mean([each.estimate or 0.0 for each in intervals]) == pytest.approx(v, abs=0.003)


def test_rows_and_columns_that_are_too_small_are_left_out() -> None:
    counts = np.vstack([drawn(np.random.default_rng(4), 0.1), [40.0, -50, 10, 90]])
    assert found(counts, STD).people == pytest.approx(counts[:3].sum())
    assert association(table(np.full((2, 2), 40.0), STD), 0.05) is None
    assert association(table(np.full((1, 4), 4e4), STD), 0.05) is None
    assert association(table(-np.ones((2, 2)), STD), 0.05) is None


def test_a_table_that_tells_everything_has_v_1() -> None:
    result = found(np.diag([5e3, 5e3, 5e3]), 10.0).interval
    assert result.estimate == pytest.approx(1.0, abs=1e-3)
    assert result.low > 0.95


def test_total_variation_is_exact_without_noise() -> None:
    chosen, people = np.array([300.0, 100.0, 100.0]), np.array([4_000.0, 3_000.0, 3_000.0])
    exact = total_variation(chosen, people - chosen, 0.0, 0.05)
    expected = np.abs(chosen / chosen.sum() - people / people.sum()).sum() / 2
    assert exact.estimate == pytest.approx(expected, abs=1e-12)
    assert exact.low < expected < exact.high


def test_of_a_large_audience_the_rest_differs_more_than_everybody() -> None:
    exact = total_variation(np.array([8_000.0, 2_000.0]), np.array([2_000.0, 8_000.0]), 0.0, 0.05)
    assert exact.estimate == pytest.approx(0.3)
    assert 0.28 < exact.low < 0.3 < exact.high < 0.32
    even = total_variation(np.array([2_000.0, 8_000.0]), np.array([8_000.0, 2_000.0]), 0.0, 0.05)
    assert (even.low, even.high) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize("rates", [(0.1, 0.1, 0.1), (0.14, 0.06, 0.05)])
def test_total_variation_is_covered(rates: tuple[float, ...]) -> None:
    rng, people = np.random.default_rng(6), np.array([8_000, 4_000, 2_000])
    mean = people * rates
    truth = float(np.abs(mean / mean.sum() - people / people.sum()).sum() / 2)
    held = blind = 0
    for _ in range(150):
        chosen = rng.binomial(people, rates)
        cells = chosen + rng.normal(0, STD, 3), people - chosen + rng.normal(0, STD, 3)
        noisy, naive = (total_variation(*cells, std, 0.05) for std in (STD, 0.0))
        held += noisy.low <= truth + 1e-12 and truth <= noisy.high
        blind += naive.low <= truth + 1e-12 and truth <= naive.high
    assert held >= 138
    assert blind < held


def test_an_audience_that_the_noise_hides_has_no_interval() -> None:
    hidden = total_variation(np.array([-5.0, 2.0]), np.array([900.0, 900.0]), 30.0, 0.05)
    assert not hidden.bounded
    assert (hidden.low, hidden.high) == (0.0, 1.0)
