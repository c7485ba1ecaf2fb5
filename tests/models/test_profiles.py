"""Profiles: sums per segment as they should be, means with honest intervals, small segments suppressed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortium.models.marginals import BINS, Axis, Marginal
from cohortium.models.profiles import ProfileQuery, ProfileRange, estimate_profiles, profile_ranges
from cohortium.models.scaler import Scaler
from cohortium.privacy.query import SCALE, QuerySpec, bounded_total
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError

SCALER = Scaler(("x", "y"), np.array([False, False]), np.zeros(2), np.full(2, 10.0))
CENTRES = np.array([[-0.8, -0.8], [0.8, 0.8]])
RANGES = (ProfileRange("x", 0, 10), ProfileRange("y", 2, 8), ProfileRange("z", -1, 1))
QUERY = ProfileQuery(SCALER, CENTRES, RANGES)


def people(n: int = 4000) -> tuple[CustomerTable, NDArray[np.int64]]:
    """Three quarters near (1, 1), the rest near (9, 9)."""
    rng = np.random.default_rng(0)
    second = (np.arange(n) % 4 == 0).astype(np.int64)
    points = np.clip(1 + 8 * second[:, np.newaxis] + rng.normal(0, 0.7, (n, 2)), 0, 10)
    values = np.column_stack([points, rng.uniform(-1, 1, n)])
    return CustomerTable(("x", "y", "z"), values, np.arange(n)), second


def test_without_noise_sizes_and_winsorised_means_come_back() -> None:
    table, segment = people()
    sums = bounded_total(QUERY, table) / SCALE
    for index, profile in enumerate(estimate_profiles(QUERY, sums, 1e-9, 50)):
        mine = table.values[segment == index]
        assert profile.size == pytest.approx(len(mine), abs=1e-3)
        assert [mean.feature for mean in profile.means] == ["x", "y", "z"]
        for column, mean in enumerate(profile.means):
            bounds = RANGES[column]
            exact = np.clip(mine[:, column], bounds.low, bounds.high).mean()
            assert mean.mean == pytest.approx(exact, abs=1e-3)
            assert mean.low <= mean.mean <= mean.high


def test_intervals_cover_what_they_claim() -> None:
    """95% intervals of 2 x 3 means over 2,000 noisy draws: coverage within 5 standard errors of 95%."""
    table, segment = people()
    sums, std = bounded_total(QUERY, table) / SCALE, 20.0
    rng, covered = np.random.default_rng(5), np.zeros((2, 3))
    exact = [
        [np.clip(table.values[segment == s][:, c], RANGES[c].low, RANGES[c].high).mean() for c in range(3)]
        for s in range(2)
    ]
    for _ in range(2000):
        profiles = estimate_profiles(QUERY, sums + rng.normal(0, std, len(sums)), std, 50)
        for s, profile in enumerate(profiles):
            for c, mean in enumerate(profile.means):
                covered[s, c] += mean.low <= exact[s][c] <= mean.high
    error = 5 * math.sqrt(0.95 * 0.05 / 2000)
    assert (np.abs(covered / 2000 - 0.95) < error).all(), covered / 2000


def test_small_segments_are_suppressed_not_zero() -> None:
    table, _ = people(400)
    sums = bounded_total(QUERY, table) / SCALE
    large, small = estimate_profiles(QUERY, sums, 1.0, 150)
    assert not large.suppressed
    assert small.suppressed
    assert small.means == ()


def test_means_stay_within_their_range_under_any_noise() -> None:
    for seed in range(50):
        noisy = np.random.default_rng(seed).normal(0, 500, QUERY.width)
        for profile in estimate_profiles(QUERY, noisy, 500.0, 1.0):
            for bounds, mean in zip(RANGES, profile.means, strict=not profile.suppressed):
                assert bounds.low <= mean.low <= mean.mean <= mean.high <= bounds.high


def test_a_person_counts_in_one_segment_with_at_most_the_bound() -> None:
    table, segment = people(200)
    part = QUERY.contribute(table)
    assert (part.columns // QUERY.words_per_person == segment[:, np.newaxis]).all()
    assert (part.values[:, 0] == SCALE // 2).all()
    assert ((part.values[:, 1:].astype(object) ** 2).sum(axis=1) <= SCALE**2).all()


def test_ranges_come_from_released_quantiles_or_the_public_bounds() -> None:
    axis = Axis("x", 0, 128)
    spread, point = np.ones(BINS), np.zeros(BINS)
    (released,) = profile_ranges([Marginal(axis, spread, 1.0)], tail=0.25)
    assert (released.low, released.high) == pytest.approx((32, 96))
    counted = Axis("n", 0, 9, integer=True)
    alike = Marginal(counted, np.eye(10)[3] * 5, 1.0)
    assert profile_ranges([alike]) == (ProfileRange("n", 0, 9),)
    assert profile_ranges([Marginal(axis, point, 1.0)])[0].high > profile_ranges([Marginal(axis, point, 1.0)])[0].low


@pytest.mark.parametrize(
    "change",
    [
        {"features": ["x", "x"]},
        {"features": ["x", 1]},
        {"features": "xy"},
        {"profiled": []},
        {"profiled": ["x", "x", "z"]},
        {"profiled": ["x", "y", {}]},
        {"scaler": [[0.5, 0, 1], [0, 0, 1]]},
        {"scaler": [[0, 1, 1], [0, 0, 1]]},
        {"scaler": [[0, 0, 1]]},
        {"centres": [[0.0], [1.0]]},
        {"centres": np.zeros((0, 2))},
        {"centres": np.zeros((1025, 2))},
        {"centres": np.zeros(2)},
        {"ranges": [[0, 1], [1, 1], [0, 1]]},
        {"ranges": [[0, 1], [0, 1]]},
    ],
    ids=str,
)
def test_malformed_profiles_are_refused(change: dict[str, Any]) -> None:
    spec = QUERY.spec()
    (name, value), scalars, arrays = next(iter(change.items())), dict(spec.scalars), dict(spec.arrays)
    if name in scalars:
        scalars[name] = value
    else:
        arrays[name] = np.array(value, dtype=np.float64)
    with pytest.raises(RefusedError):
        ProfileQuery.from_spec(QuerySpec("profiles", scalars, arrays))
