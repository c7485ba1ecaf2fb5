"""Moments of cells: sensitivity in exact integers, the decoder's inverse, strict parsing, nearest centres."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cohortium.models.assignment import nearest_centre, squared_distances
from cohortium.models.moments import MomentQuery, read_moments
from cohortium.models.scaler import Scaler
from cohortium.privacy.query import SCALE, QuerySpec, bounded_total
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError
from cohortium.study.question import digest_array


def make_scaler(d: int) -> Scaler:
    return Scaler(tuple(f"x{i}" for i in range(d)), np.arange(d) % 2 == 1, np.full(d, -1.0), np.full(d, 3.0))


def make_table(scaler: Scaler, values: NDArray[np.float64]) -> CustomerTable:
    return CustomerTable(scaler.features, np.ascontiguousarray(values, dtype=np.float64), np.arange(len(values)))


@st.composite
def studies(draw: st.DrawFn) -> tuple[MomentQuery, CustomerTable]:
    d, cells, people = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = tuple(draw(st.lists(st.floats(2.0**-10, 1.0), min_size=2, max_size=3)))
    radii = 10.0 ** rng.uniform(-6, 1, cells)
    scaler = make_scaler(d)
    values = rng.normal(0.0, 10.0 ** rng.uniform(-3, 3), (people, d))
    return MomentQuery(scaler, rng.uniform(-1, 1, (cells, d)), radii, weights), make_table(scaler, values)


def norm_squared(values: NDArray[np.int64]) -> int:
    return sum(int(value) ** 2 for value in values)


# --- sensitivity -----------------------------------------------------------------------------------------------------


@given(studies(), st.data())
@settings(max_examples=150)
def test_removing_a_person_changes_the_sum_by_no_more_than_the_bound(
    study: tuple[MomentQuery, CustomerTable], data: st.DataObject
) -> None:
    query, people = study
    gone = data.draw(st.integers(0, len(people) - 1))
    kept = np.arange(len(people)) != gone
    change = bounded_total(query, people) - bounded_total(query, people.take(kept))
    assert norm_squared(change) <= query.bound_squared
    assert change.any(), "nobody is left out of the sum: the door would zero a person who breaks the bound"


@pytest.mark.parametrize("weights", [(0.3, 1.0), (0.5, 1.0, 0.7), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("d", [1, 2, 7])
def test_the_bound_is_reached_by_a_person_on_the_edge_of_a_cell(weights: tuple[float, ...], d: int) -> None:
    scaler = make_scaler(d)
    query = MomentQuery(scaler, np.zeros((1, d)), np.array([1e-3]), weights)
    change = norm_squared(bounded_total(query, make_table(scaler, np.full((1, d), 2.9))))
    assert query.bound_squared * (1 - 1e-6) < change <= query.bound_squared


def test_the_bound_is_the_sum_of_the_squared_weights() -> None:
    query = MomentQuery(make_scaler(1), np.zeros((1, 1)), np.ones(1), (0.3, 0.6, 1.0))
    assert query.bound_squared == math.floor(0.3 * SCALE) ** 2 + math.floor(0.6 * SCALE) ** 2 + SCALE**2
    assert query.bound == pytest.approx(math.sqrt(0.09 + 0.36 + 1), rel=1e-6)


# --- the decoder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(0.3, 1.0), (0.5, 1.0, 0.7)])
def test_without_noise_the_moments_come_back(weights: tuple[float, ...]) -> None:
    rng = np.random.default_rng(1)
    scaler = Scaler(("a", "b", "c"), np.zeros(3, dtype=np.bool_), np.zeros(3), np.full(3, 2.0))
    raw = rng.uniform(0, 2, (500, 3))
    query = MomentQuery(scaler, rng.uniform(-1, 1, (4, 3)), np.array([0.3, 0.7, 1.0, 3.0]), weights)
    moments = read_moments(query, bounded_total(query, make_table(scaler, raw)) / SCALE)
    points = raw - 1.0
    cell = squared_distances(points, query.centres).argmin(axis=1)
    for index in range(4):
        residual = (points[cell == index] - query.centres[index]) / query.radii[index]
        residual /= np.maximum(np.linalg.norm(residual, axis=1), 1.0)[:, np.newaxis]
        assert moments.counts[index] == pytest.approx(len(residual), abs=1e-4)
        assert moments.sums[index] == pytest.approx(residual.sum(axis=0), abs=1e-3)
        if len(weights) == 3:
            assert moments.seconds[index] == pytest.approx(residual.T @ residual, abs=1e-3)
    assert len(moments.seconds) == (4 if len(weights) == 3 else 0)


# --- the wire --------------------------------------------------------------------------------------------------------


@given(studies())
@settings(max_examples=40)
def test_a_question_survives_its_wire_form(study: tuple[MomentQuery, CustomerTable]) -> None:
    query, people = study
    again = MomentQuery.from_spec(query.spec())
    for name, values in query.spec().arrays.items():
        assert digest_array(again.spec().arrays[name]) == digest_array(values)
    assert again.bound_squared == query.bound_squared
    assert (bounded_total(again, people) == bounded_total(query, people)).all()


GOOD = MomentQuery(make_scaler(2), np.zeros((3, 2)), np.ones(3), (0.5, 1.0, 0.7)).spec()


def changed(**arrays: Any) -> QuerySpec:
    return QuerySpec("moments", GOOD.scalars, {**GOOD.arrays, **{k: np.array(v, float) for k, v in arrays.items()}})


@pytest.mark.parametrize(
    "spec",
    [
        QuerySpec("moments", {}, GOOD.arrays),
        QuerySpec("moments", {**GOOD.scalars, "more": 1}, GOOD.arrays),
        QuerySpec("moments", GOOD.scalars, {**GOOD.arrays, "more": np.ones(1)}),
        QuerySpec("moments", GOOD.scalars, {k: v for k, v in GOOD.arrays.items() if k != "radii"}),
        QuerySpec("moments", {"features": ["x0"]}, GOOD.arrays),
        QuerySpec("moments", {"features": ["x0", "x0"]}, GOOD.arrays),
        QuerySpec("moments", {"features": [0, 1]}, GOOD.arrays),
        QuerySpec("moments", {"features": "x0"}, GOOD.arrays),
        changed(centres=np.zeros((0, 2)), radii=np.ones(0)),
        changed(centres=np.zeros((1025, 2)), radii=np.ones(1025)),
        changed(centres=np.zeros((3, 3))),
        changed(centres=np.zeros(6)),
        changed(centres=np.full((3, 2), np.nan)),
        changed(centres=np.full((3, 2), 2.5)),
        changed(radii=np.ones(2)),
        changed(radii=np.ones((3, 1))),
        changed(radii=[1, 1, 0]),
        changed(radii=[1, 1, -1]),
        changed(radii=[1, 1, 1e-7]),
        changed(radii=[1, 1, np.inf]),
        changed(weights=[1.0]),
        changed(weights=[1.0, 1.0, 1.0, 1.0]),
        changed(weights=[0.0, 1.0]),
        changed(weights=[1.0, -1.0]),
        changed(weights=[1.0, 1.1]),
        changed(weights=[1.0, np.nan]),
        changed(scaler=[[0, 0, 1]]),
        changed(scaler=[[0, 0, 1], [0, 1, 1]]),
        changed(scaler=[[0, 0, 1], [0.5, 0, 1]]),
        changed(scaler=[[0, 0, 1], [0, 0, np.inf]]),
    ],
)
def test_what_the_product_would_not_have_written_is_refused(spec: QuerySpec) -> None:
    with pytest.raises(RefusedError, match=r"^malformed"):
        MomentQuery.from_spec(spec)


def test_more_dimensions_than_a_sketch_can_have_are_refused() -> None:
    wide = MomentQuery(make_scaler(65), np.zeros((1, 65)), np.ones(1), (1.0, 1.0))
    with pytest.raises(RefusedError):
        MomentQuery.from_spec(wide.spec())


# --- nearest centres -------------------------------------------------------------------------------------------------


def test_nearest_centres_agree_with_brute_force_and_ties_go_to_the_lower_index() -> None:
    rng = np.random.default_rng(2)
    points, centres = rng.uniform(-1, 1, (2000, 4)), rng.uniform(-1, 1, (9, 4))
    brute = ((points[:, np.newaxis] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest_centre(points, centres) == brute).all()
    assert nearest_centre(np.zeros((1, 2)), np.array([[0.5, 0], [0, 0.5], [-0.5, 0]])).tolist() == [0]
    assert nearest_centre(np.zeros((0, 2)), np.zeros((1, 2))).shape == (0,)


def test_squared_distances_are_never_negative() -> None:
    point = np.full((1, 3), 1 / 3)
    assert squared_distances(point, point + 1e-17).min() >= 0.0
