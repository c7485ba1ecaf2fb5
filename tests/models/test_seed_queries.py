"""The seeds' sum and the head's gradient: against the textbook formulas, clipped exactly, decoded in their units."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from cohortium.models.basis import Basis, Block
from cohortium.models.catalogue import build_query
from cohortium.models.encoder import Encoder, encoder_shapes
from cohortium.models.encoder import on_weight_grid as on_encoder_grid
from cohortium.models.features import Rows, on_weight_grid
from cohortium.models.row_moments import Frame, FrameSumQuery, RowMomentsQuery
from cohortium.models.rows import SEED
from cohortium.models.seed_queries import SEED_COUNT, SeedGradientQuery, SeedSumQuery
from cohortium.models.sigmoid import sigmoid
from cohortium.privacy.query import SCALE, QuerySpec, bounded_total
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import Defect, RefusedError

BASIS = Basis((Block("a", low=0.0, high=10.0), Block("b", low=-4.0, high=4.0)))
COLUMNS = ("a", "b", SEED)
RNG = np.random.default_rng(0)
AXES = on_weight_grid(np.linalg.qr(RNG.normal(size=(4, 4)))[0] * [1.0, 2.0, 0.5, 3.0])
ROWS = Rows(BASIS, np.zeros(4), 2.0)
WEIGHTS = on_weight_grid(np.array([0.7, -1.1, 0.4, 0.9]))


def frame(radius: float = 1.0) -> Frame:
    return Frame(ROWS, AXES, radius)


def gradient_query(weights: Any = WEIGHTS, intercept: float = -0.5, radius: float = 1.0) -> SeedGradientQuery:
    return SeedGradientQuery(frame(radius), np.asarray(weights), intercept)


@cache
def people(n: int = 500, seed: int = 0) -> CustomerTable:
    rng = np.random.default_rng(seed)
    values = np.column_stack([rng.uniform(0, 10, n), rng.uniform(-4, 4, n), np.zeros(n)])
    values[:, 2] = rng.random(n) < 1 / (1 + np.exp(-(values[:, 0] - 6)))
    return CustomerTable(COLUMNS, values, np.arange(n))


def coordinates(table: CustomerTable, radius: float = np.inf) -> NDArray[np.float64]:
    """By the textbook: rows times axes, clipped."""
    found = ROWS.of(table) @ AXES
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found * np.minimum(1.0, radius / norms))


def residuals(table: CustomerTable, weights: NDArray[np.float64], intercept: float) -> NDArray[np.float64]:
    chance = 1 / (1 + np.exp(-(ROWS.of(table) @ weights + intercept)))
    return np.asarray((table.values[:, 2] > 0.5) - chance)


@pytest.mark.parametrize("radius", [0.5, 1.5, 100.0])
def test_the_seeds_sum_is_that_of_their_clipped_coordinates_and_their_number(radius: float) -> None:
    query = SeedSumQuery(frame(radius))
    total, count = query.read(bounded_total(query, people()) / SCALE)
    chosen = people().values[:, 2] > 0.5
    assert count == pytest.approx(chosen.sum(), abs=1e-3)
    expected = coordinates(people(), radius)[chosen].sum(axis=0)
    np.testing.assert_allclose(total, expected, atol=500 * radius * 2 / SCALE)


def test_who_is_no_seed_adds_nothing_to_the_seeds_sum() -> None:
    query = SeedSumQuery(frame())
    others = people().take(people().values[:, 2] <= 0.5)
    assert (query.contribute(others).values == 0).all()
    assert (bounded_total(query, others) == 0).all()


@pytest.mark.parametrize("radius", [0.5, 1.5, 100.0])
def test_the_gradient_is_that_of_the_loss_with_clipped_coordinates(radius: float) -> None:
    query = gradient_query(radius=radius)
    found = query.read(bounded_total(query, people()) / SCALE)
    expected = residuals(people(), WEIGHTS, -0.5) @ coordinates(people(), radius)
    np.testing.assert_allclose(found, expected, atol=500 * radius * 5e-7)


def test_the_bounds_are_reached_by_a_seed_that_the_head_is_sure_is_none() -> None:
    far = CustomerTable(COLUMNS, np.array([[10.0, 4.0, 1.0]]), np.arange(1))
    squares = [
        int((bounded_total(query, far).astype(object) ** 2).sum()) / query.bound_squared
        for query in (SeedSumQuery(frame(0.5)), gradient_query(np.zeros(4), -30.0, 0.5))
    ]
    assert all(0.999999 < square <= 1 for square in squares)
    assert SeedSumQuery(frame()).bound_squared / SCALE**2 == pytest.approx(1 + SEED_COUNT**2, rel=1e-6)


def test_the_gradient_vanishes_where_scikit_learn_ends_and_points_there_from_elsewhere() -> None:
    table = people(4000)
    oracle = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=10_000)
    best = oracle.fit(coordinates(table), table.values[:, 2]).coef_[0]

    def gradient(at: NDArray[np.float64]) -> NDArray[np.float64]:
        query = gradient_query(on_weight_grid(AXES @ at), 0.0, 100.0)
        return np.asarray(query.read(bounded_total(query, table) / SCALE) / len(table))

    assert np.abs(gradient(best)).max() < 2e-5
    for away in (np.zeros(4), 0.9 * best, 1.1 * best, best + np.array([0.3, 0.0, 0.0, -0.1])):
        assert gradient(away) @ (best - away) > 1e-3


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("make", [lambda: SeedSumQuery(frame()), gradient_query], ids=["sum", "gradient"])
def test_people_have_the_same_words_in_any_company_and_any_memory_order(make: Any, order: Any) -> None:
    table, query = people(), make()
    laid = CustomerTable(table.columns, np.asarray(table.values, order=order), table.keys)
    company = query.contribute(laid).values
    alone = np.vstack([query.contribute(table.take(slice(i, i + 1))).values for i in range(len(table))])
    assert (company == alone).all()


def test_any_number_above_one_half_is_a_seed() -> None:
    rows = np.array([[9.0, 1.0, y] for y in (0.0, -7.0, 0.5, 1.0, 0.51, 1e300)])
    table = CustomerTable(COLUMNS, rows, np.arange(6))
    words = gradient_query().contribute(table).values
    assert (np.sign(words[:3]) == -np.sign(words[3:])).all()
    assert (words[0] != 0).all()
    assert (SeedSumQuery(frame()).contribute(table).values[:, -1] > 0).tolist() == [False] * 3 + [True] * 3


def test_nobody_gives_zeros_and_a_table_without_seeds_is_a_defect() -> None:
    nobody = people().take(slice(0, 0))
    unmarked = CustomerTable(("a", "b"), np.zeros((0, 2)), np.zeros(0))
    for query in (SeedSumQuery(frame()), gradient_query()):
        assert (bounded_total(query, nobody) == 0).all()
        with pytest.raises(Defect, match="no column @seed"):
            bounded_total(query, unmarked)


def test_hostile_weights_break_no_bound() -> None:
    """Scores of any size: the residual goes to 0 or 1, never beyond."""
    table = people()
    for size in (256.0, -256.0, 2.0**-20):
        for intercept in (-256.0, 0.0, 256.0):
            query = gradient_query(np.full(4, size), intercept, 2.0**-10)
            squares = (query.contribute(table).values.astype(object) ** 2).sum(axis=1)
            assert squares.max() <= query.bound_squared


def test_the_sigmoid_is_within_its_error_monotone_and_from_0_to_1() -> None:
    logits = np.linspace(-40, 40, 200_001)
    values = sigmoid(logits)
    np.testing.assert_allclose(values, 1 / (1 + np.exp(-logits)), atol=2e-7)
    assert (np.diff(values) >= 0).all()
    assert values.min() >= 0
    assert values.max() <= 1
    assert sigmoid(np.array([0.0, -np.inf, np.inf])).tolist() == pytest.approx([0.5, 0, 1], abs=1e-10)


@pytest.mark.parametrize(
    ("scalars", "arrays"),
    [
        ({"seed": "a"}, {}),
        ({"features": ["a"]}, {}),
        ({}, {"weights": np.zeros(4)}),
        ({}, {"weights": np.zeros((5, 1))}),
        ({}, {"weights": np.full(5, 256.5)}),
        ({}, {"weights": np.full(5, 2.0**-21)}),
        ({}, {"weights": np.array([0.0, 0.0, 0.0, 0.0, np.nan])}),
        ({}, {"weights": np.array([0.0, 0.0, 0.0, 0.0, -np.inf])}),
        ({}, {"frame_limits": np.array([0.0])}),
        ({}, {"frame_limits": np.array([1e9])}),
        ({}, {"frame_axes": np.eye(3)}),
        ({}, {"more": np.zeros(1)}),
    ],
    ids=range(12),
)
def test_parameters_out_of_range_are_refused(scalars: dict[str, Any], arrays: dict[str, Any]) -> None:
    spec = gradient_query().spec()
    assert build_query(spec).bound_squared == gradient_query().bound_squared
    with pytest.raises(RefusedError):
        build_query(QuerySpec(spec.kind, {**spec.scalars, **scalars}, {**spec.arrays, **arrays}))


@pytest.mark.parametrize(
    "query",
    [RowMomentsQuery(ROWS), FrameSumQuery(frame()), SeedSumQuery(frame()), gradient_query()],
    ids=["moments", "frame", "seed", "gradient"],
)
def test_a_question_has_the_parts_of_its_kind_and_no_others(query: Any) -> None:
    spec = query.spec()
    assert type(build_query(spec)) is type(query)
    for scalars, arrays in (
        ({**spec.scalars, "more": 1}, spec.arrays),
        ({}, spec.arrays),
        (spec.scalars, {**spec.arrays, "more": np.zeros(5)}),
        *((spec.scalars, {key: array for key, array in spec.arrays.items() if key != name}) for name in spec.arrays),
    ):
        with pytest.raises(RefusedError):
            build_query(QuerySpec(spec.kind, scalars, arrays))


def test_a_frame_of_an_embedding_is_read_from_the_wire_whole() -> None:
    shapes = encoder_shapes(BASIS, 5, 3)
    first, second, third, fourth = (on_encoder_grid(RNG.normal(0, 0.5, shape)) for shape in shapes)
    code = Frame(
        Rows(BASIS, np.zeros(3), 1.0, Encoder(BASIS, np.ones(4), (first, second, third, fourth))), np.eye(3), 1.0
    )
    query = SeedSumQuery(code)
    spec = query.spec()
    assert (bounded_total(build_query(spec), people()) == bounded_total(query, people())).all()
    for name in spec.arrays:
        with pytest.raises(RefusedError):
            build_query(QuerySpec(spec.kind, spec.scalars, {key: a for key, a in spec.arrays.items() if key != name}))
