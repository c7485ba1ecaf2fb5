"""Rows: never longer than the radius, on their grid, the same in any company; products with weights exact."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cohortium.models.basis import UNIT, Basis, Block
from cohortium.models.encoder import Encoder, encoder_shapes, on_scale_grid
from cohortium.models.encoder import on_weight_grid as on_encoder_grid
from cohortium.models.features import (
    MAX_CENTRE,
    MAX_RADIUS,
    ROW_UNIT,
    Rows,
    exact_product,
    on_row_grid,
    on_weight_grid,
    rows_from_parts,
)
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import Defect, RefusedError

settings.register_profile("models", derandomize=True, deadline=None)
settings.load_profile("models")

BASIS = Basis((Block("a", low=-1.0, high=3.0), Block("b", levels=3), Block("c", high=4.0, log=True)))
COLUMNS = ("a", "b", "c")


def table(rows: Any) -> CustomerTable:
    values = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return CustomerTable(COLUMNS, values, np.arange(len(values)))


def crowd(n: int = 400, seed: int = 0) -> CustomerTable:
    rng = np.random.default_rng(seed)
    return table(np.column_stack([rng.normal(1, 2, n), rng.integers(-1, 4, n), rng.gamma(1, 20, n)]))


def encoder(spread: float = 0.4, seed: int = 0) -> Encoder:
    rng = np.random.default_rng(seed)
    first, second, third, fourth = (on_encoder_grid(rng.normal(0, spread, s)) for s in encoder_shapes(BASIS, 9, 4))
    return Encoder(BASIS, on_scale_grid(rng.exponential(1.0, 7)), (first, second, third, fourth))


ANY = st.floats(allow_nan=False, allow_infinity=False)
CENTRES = st.lists(st.floats(-MAX_CENTRE, MAX_CENTRE), min_size=7, max_size=7)


@given(
    people=st.lists(st.tuples(ANY, ANY, ANY), min_size=1, max_size=6),
    centre=CENTRES,
    radius=st.floats(2.0**-6, MAX_RADIUS),
    spread=st.sampled_from([None, 0.0, 0.4, 50.0]),
)
@example(people=[(1e300, -1.0, 1e300)], centre=[MAX_CENTRE] * 7, radius=2.0**-6, spread=None)
@example(people=[(1.0, 1.0, 1.0)], centre=[0.0] * 7, radius=1.0, spread=50.0)
def test_a_row_is_never_longer_than_the_radius_in_exact_arithmetic(
    people: Any, centre: list[float], radius: float, spread: float | None
) -> None:
    of = None if spread is None else encoder(spread)
    middle = on_row_grid(np.array(centre[: 7 if of is None else 4]))
    result = Rows(BASIS, middle, radius, of).of(table(people))
    assert (result * ROW_UNIT == np.rint(result * ROW_UNIT)).all()
    assert (np.abs(result) <= MAX_CENTRE).all()
    for row in result:
        assert sum(Fraction(word) ** 2 for word in row) <= Fraction(radius) ** 2


def test_short_rows_are_the_basis_less_the_centre_and_long_ones_keep_their_direction() -> None:
    people, centre = crowd(), on_row_grid(np.linspace(-0.2, 0.3, 7))
    plain = BASIS.rows(people) / UNIT - centre
    assert (Rows(BASIS, centre, 8.0).of(people) == plain).all()
    clipped = Rows(BASIS, centre, 0.5).of(people)
    norms = np.linalg.norm(plain, axis=1, keepdims=True)
    assert (norms > 0.5).any()
    np.testing.assert_allclose(clipped, plain * np.minimum(1.0, 0.5 / norms), atol=1.001 / ROW_UNIT)
    assert np.linalg.norm(clipped[norms[:, 0] > 0.5], axis=1).min() > 0.5 - 3 / ROW_UNIT


def test_rows_of_an_encoder_are_its_embedding() -> None:
    people, of = crowd(), encoder()
    centre = on_row_grid(np.array([0.25, 0.0, -1.0, 0.5]))
    expected = np.clip(of.embed(BASIS.rows(people)) / UNIT - centre, -MAX_CENTRE, MAX_CENTRE)
    assert (Rows(BASIS, centre, MAX_RADIUS, of).of(people) == expected).all()


@pytest.mark.parametrize("of", [None, encoder(2.0)], ids=["basis", "encoder"])
def test_rows_are_the_same_alone_in_company_and_in_any_block(
    of: Encoder | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = crowd()
    rows = Rows(BASIS, np.zeros(7 if of is None else 4), 0.75, of)
    whole = rows.of(people)
    alone = np.vstack([rows.of(people.take(slice(i, i + 1))) for i in range(len(people))])
    assert (whole == alone).all()
    monkeypatch.setattr("cohortium.models.features._BLOCK", 7)
    assert (rows.of(people) == whole).all()
    assert rows.of(people.take(slice(0, 0))).shape == (0, rows.width)


@pytest.mark.parametrize("words", [1, 17, 1024])
def test_products_are_exact_at_the_largest_numbers_there_are(words: int) -> None:
    rng = np.random.default_rng(words)
    rows = rng.integers(-(2**14), 2**14 + 1, (6, words)).astype(np.float64) / ROW_UNIT
    rows[0], rows[1] = MAX_CENTRE, -MAX_CENTRE
    rows[2, :-1], rows[2, -1] = MAX_CENTRE, MAX_CENTRE - 1 / ROW_UNIT
    weights = on_weight_grid(rng.uniform(-300, 300, words))
    weights[: words // 2 + 1] = 256.0 - 2.0**-20
    exact = [sum(Fraction(a) * Fraction(b) for a, b in zip(row, weights, strict=True)) for row in rows]
    assert [Fraction(score) for score in exact_product(rows, weights)] == exact


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=4))
def test_the_weight_grid_is_a_grid_and_holds_what_is_on_it(weights: list[float]) -> None:
    gridded = on_weight_grid(np.array(weights))
    assert (gridded * 2**20 == np.rint(gridded * 2**20)).all()
    assert (np.abs(gridded) <= 256).all()
    assert (on_weight_grid(gridded) == gridded).all()
    assert (np.abs(gridded - np.clip(weights, -256, 256)) <= 2.0**-21).all()


@pytest.mark.parametrize(
    ("centre", "radius", "of"),
    [
        (np.zeros(6), 1.0, None),
        (np.zeros((7, 1)), 1.0, None),
        (np.full(7, 2.0**-11), 1.0, None),
        (np.full(7, MAX_CENTRE + 2.0**-10), 1.0, None),
        (np.full(7, 1e308), 1.0, None),
        (np.full(7, np.nan), 1.0, None),
        (np.zeros(7), 0.0, None),
        (np.zeros(7), MAX_RADIUS * 1.001, None),
        (np.zeros(7), np.nan, None),
        (np.zeros(7), 1.0, encoder()),
        (np.zeros(4), 1.0, Encoder(Basis(BASIS.blocks[::-1]), np.ones(7), encoder().weights)),
    ],
    ids=range(11),
)
def test_rows_whose_parts_disagree_are_a_defect(centre: NDArray[np.float64], radius: float, of: Encoder | None) -> None:
    with pytest.raises(Defect):
        Rows(BASIS, centre, radius, of)


@pytest.mark.parametrize("of", [None, encoder()], ids=["basis", "encoder"])
def test_rows_travel_without_change(of: Encoder | None) -> None:
    rows = Rows(BASIS, on_row_grid(np.linspace(-1, 1, 7 if of is None else 4)), 1.25, of)
    scalars, arrays = rows.parts()
    again = rows_from_parts(scalars["features"], {**arrays, "another": np.zeros(1)})
    assert (again.of(crowd()) == rows.of(crowd())).all()
    assert all((again.parts()[1][name] == values).all() for name, values in arrays.items())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rows_radius", np.array([1.0, 1.0])),
        ("rows_radius", np.array([np.inf])),
        ("rows_radius", np.array([MAX_RADIUS + 1])),
        ("rows_centre", np.full(4, np.nan)),
        ("rows_centre", np.full(4, 1e308)),
        ("rows_centre", np.zeros(7)),
        ("rows_centre", np.float64(0.0)),
        ("rows_weights2", None),
        ("rows_weights2", np.zeros((5, 8))),
        ("rows_weights1", np.zeros((10, 0))),
        ("rows_weights1", np.float64(0.0)),
        ("rows_weights1", np.full((10, 4), 1e-9)),
        ("rows_weights1", np.full((10, 4), np.inf)),
        ("rows_scales", np.zeros(7)),
        ("rows_scales", np.ones((7, 1))),
        ("rows_weights4", np.zeros((2, 2))),
        ("rows_basis", np.zeros((3, 3))),
    ],
    ids=str,
)
def test_malformed_rows_are_refused(name: str, values: NDArray[np.float64] | None) -> None:
    scalars, arrays = Rows(BASIS, np.zeros(4), 1.0, encoder()).parts()
    parts = {**arrays, name: values}
    if values is None:
        parts.pop(name)
    with pytest.raises(RefusedError):
        rows_from_parts(scalars["features"], parts)  # type: ignore[arg-type] # some are no arrays on purpose
