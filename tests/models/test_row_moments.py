"""Moments of rows: exact without noise, whitening frames, noise of the size that is stated."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortium.models.basis import Basis, Block
from cohortium.models.features import MAX_RADIUS, ROW_UNIT, Rows, on_row_grid, on_weight_grid
from cohortium.models.row_moments import (
    CONSTANT,
    Frame,
    FrameSumQuery,
    RowMoments,
    RowMomentsQuery,
    frame_from_parts,
    make_frame,
    read_row_moments,
)
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.privacy.query import MAX_LEFT, SCALE, QuerySpec, bounded_total
from cohortium.privacy.release import noise_scale
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError

BASIS = Basis((Block("a", low=-2.0, high=2.0), Block("b", levels=3), Block("c", low=0.0, high=4.0)))
ROWS = Rows(BASIS, on_row_grid(np.array([0.0, 0.2, 0.5, 0.3, 0.2, -0.1, 0.3])), 1.2)


class SimulatedBits:
    """Seeded words for simulation; never a source of protection."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def words(self, count: int) -> NDArray[np.uint64]:
        return self._rng.integers(0, 2**64, count, dtype=np.uint64)


@cache
def crowd(n: int = 3000) -> CustomerTable:
    rng = np.random.default_rng(0)
    a = rng.normal(0, 0.9, n)
    values = np.column_stack([a, rng.choice(3, n, p=[0.6, 0.3, 0.1]), 2 + a + rng.normal(0, 0.5, n)])
    return CustomerTable(BASIS.features, values, np.arange(n))


@cache
def exact() -> RowMoments:
    query = RowMomentsQuery(ROWS)
    return read_row_moments(query, bounded_total(query, crowd()) / SCALE, 0.0)


def test_without_noise_the_moments_are_those_of_the_rows() -> None:
    rows, moments = ROWS.of(crowd()), exact()
    assert moments.people == pytest.approx(3000, rel=1e-12)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(rows.T, bias=True), atol=1e-12)
    assert moments.entry_std == 0.0
    assert (np.linalg.norm(rows, axis=1) > 1.19).mean() > 0.05, "some are clipped"


@pytest.mark.parametrize("radius", [2.0**-6, 0.3, 1.2, MAX_RADIUS])
def test_nobody_passes_the_sensitivity_and_clipped_people_reach_it(radius: float) -> None:
    query = RowMomentsQuery(Rows(BASIS, ROWS.centre, radius))
    ((left, right),) = query.contribute(crowd()).outers
    squares = (left.astype(object) ** 2).sum(axis=1) * (right.astype(object) ** 2).sum(axis=1)
    assert squares.max() <= query.bound_squared
    assert np.abs(left).max() <= MAX_LEFT
    if radius < 2:
        assert squares.max() / query.bound_squared > 1 - 100 / (radius * ROW_UNIT)
    assert (bounded_total(query, crowd()) != 0).any()


@pytest.mark.parametrize("radius", [0.25, MAX_RADIUS])
def test_the_least_and_the_largest_radius_of_a_study_can_be_answered(radius: float) -> None:
    """The sum over 2^31 people must fit 64 bits, the noise its grid: otherwise a study would fail half-way."""
    query = RowMomentsQuery(Rows(BASIS, ROWS.centre, radius))
    for epsilon in (0.05, 1.0, 8.0):
        assert noise_scale(query, budget_for(epsilon, 1e-6).mu2 // 10) >= 2**20


def test_the_stated_noise_of_an_entry_is_that_of_real_releases() -> None:
    query, sigma = RowMomentsQuery(ROWS), 2**25
    total = bounded_total(query, crowd())
    noise = sample_discrete_gaussian(sigma, 300 * query.width, SimulatedBits(1)).reshape(300, -1)
    released = [read_row_moments(query, (total + one) / SCALE, sigma / SCALE) for one in noise]
    off = np.triu_indices(7, 1)

    def summed(one: RowMoments) -> NDArray[np.float64]:
        """The sum of row row^T that these moments were made of: no noise of count or mean in it."""
        return (one.covariance + np.outer(one.mean, one.mean)) * one.people

    errors = np.array([summed(one) - summed(exact()) for one in released])
    stated = np.array([one.entry_std * one.people for one in released])
    np.testing.assert_allclose(stated, stated[0])
    assert 0.95 < float(errors[:, *off].std()) / stated[0] < 1.05  # 6,300 draws: a standard error of 0.9%
    assert abs(float(errors[:, *off].mean())) < 5 * stated[0] / math.sqrt(6300)
    diagonal = np.diagonal(errors, axis1=1, axis2=2)
    assert float(diagonal.std()) / stated[0] == pytest.approx(math.sqrt(2), rel=0.06), "no second word halves it there"
    for one in released:
        assert (one.covariance == one.covariance.T).all()


def test_the_count_and_the_mean_are_as_noisy_as_their_constant_says() -> None:
    query, std = RowMomentsQuery(ROWS), 0.3
    total, rng = bounded_total(query, crowd()) / SCALE, np.random.default_rng(3)
    released = [read_row_moments(query, total + rng.normal(0, std, query.width), std) for _ in range(400)]
    constant = CONSTANT * 1.2
    people = np.array([one.people for one in released])
    assert people.std() == pytest.approx(std / constant**2, rel=0.15)
    assert people.mean() == pytest.approx(3000, abs=5 * std / constant**2 / 20)
    sums = np.array([one.mean * one.people for one in released]) - exact().mean * 3000
    assert sums.std() == pytest.approx(std / math.sqrt(2) / constant, rel=0.1)


def test_noise_that_drowns_the_count_leaves_finite_numbers() -> None:
    query = RowMomentsQuery(ROWS)
    noise = np.random.default_rng(0).normal(0, 1e9, query.width)
    noise[-1] = -1e9
    moments = read_row_moments(query, noise, 1e9)
    assert moments.people == 1.0
    frame, variances, factors = make_frame(ROWS, moments)
    for values in (frame.axes, variances, factors):
        assert np.isfinite(values).all()
    assert frame_from_parts(list(BASIS.features), frame.parts()[1]).radius == frame.radius


# --- frames ----------------------------------------------------------------------------------------------------------


def test_the_axes_of_a_frame_are_uncorrelated_and_scaled_by_a_power_of_their_variance() -> None:
    frame, variances, factors = make_frame(ROWS, exact())
    rows = ROWS.of(crowd())
    coordinates = frame.coordinates(rows)
    covariance = np.cov(coordinates.T, bias=True)
    np.testing.assert_allclose(covariance, np.diag(variances * factors**2), atol=1e-5)
    np.testing.assert_allclose(factors, (np.maximum(variances, 0) + 1e-3) ** -0.35, rtol=1e-12)
    assert frame.radius**2 == pytest.approx(float(np.trace(covariance)) + 1e-3, rel=1e-4)
    assert (on_weight_grid(frame.axes) == frame.axes).all()
    assert np.ptp(variances) > 0.1


def test_axes_below_the_noise_are_not_blown_up() -> None:
    """A variance of nearly nothing would otherwise make nearly all of a coordinate's length."""
    moments = RowMoments(1000.0, np.zeros(7), np.diag([1.0, 0.5, 0.0, -0.01, 0.0, 0.0, 0.0]), 0.1)
    _, variances, factors = make_frame(ROWS, moments)
    assert factors[variances <= 0].max() == pytest.approx((0.1 * math.sqrt(7)) ** -0.35)


def test_coordinates_are_exact_and_the_same_alone_and_in_company() -> None:
    frame, _, _ = make_frame(ROWS, exact())
    rows = ROWS.of(crowd())
    whole = frame.coordinates(rows)
    alone = np.vstack([frame.coordinates(rows[i : i + 1]) for i in range(500)])
    assert (whole[:500] == alone).all()
    steps = (rows[:9] * ROW_UNIT).astype(np.int64) @ (frame.axes * 2**20).astype(np.int64)
    assert (whole[:9] == steps / 2.0**32).all()


@pytest.mark.parametrize("share", [0.5, 1.0, 3.0])
def test_the_sum_of_coordinates_is_that_of_the_clipped_ones(share: float) -> None:
    made, _, _ = make_frame(ROWS, exact())
    frame = Frame(made.rows, made.axes, made.radius * share)
    query = FrameSumQuery(frame)
    coordinates = frame.coordinates(ROWS.of(crowd()))
    norms = np.linalg.norm(coordinates, axis=1, keepdims=True)
    expected = (coordinates * np.minimum(1.0, frame.radius / norms)).sum(axis=0)
    found = bounded_total(query, crowd()) / SCALE * frame.radius
    np.testing.assert_allclose(found, expected, atol=3000 * frame.radius / SCALE)
    squares = (query.contribute(crowd()).values.astype(object) ** 2).sum(axis=1)
    assert squares.max() <= query.bound_squared
    if share < 2:
        assert squares.max() / query.bound_squared > 0.99999


# --- wire ------------------------------------------------------------------------------------------------------------


def spec() -> QuerySpec:
    return FrameSumQuery(make_frame(ROWS, exact())[0]).spec()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("frame_axes", np.eye(6)),
        ("frame_axes", np.full((7, 7), 2.0**-21)),
        ("frame_axes", np.full((7, 7), 1e308)),
        ("frame_axes", np.full((7, 7), np.nan)),
        ("frame_axes", np.zeros(49)),
        ("frame_axes", None),
        ("frame_limits", np.array([0.0])),
        ("frame_limits", np.array([2.0**11])),
        ("frame_limits", np.array([np.nan])),
        ("frame_limits", np.ones(2)),
        ("frame_limits", None),
        ("rows_radius", np.array([-1.0])),
        ("weights", np.zeros(8)),
    ],
    ids=range(13),
)
def test_a_malformed_frame_is_refused(name: str, values: NDArray[np.float64] | None) -> None:
    good = spec()
    assert FrameSumQuery.from_spec(good).frame.radius > 0
    arrays = {**good.arrays, name: values}
    kept = {key: array for key, array in arrays.items() if array is not None}
    with pytest.raises(RefusedError):
        FrameSumQuery.from_spec(QuerySpec(good.kind, good.scalars, kept))


def test_the_constant_counts_people_beside_their_rows() -> None:
    query = RowMomentsQuery(ROWS)
    nobody, one = crowd().take(slice(0, 0)), crowd().take(slice(0, 1))
    assert (bounded_total(query, nobody) == 0).all()
    assert int(bounded_total(query, one)[-1]) == math.floor(CONSTANT * 1.2 * ROW_UNIT) ** 2
