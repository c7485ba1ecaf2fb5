"""The basis: rows that anybody can compute by hand, ranges from released marginals, a strict wire form."""

from __future__ import annotations

import math
import tomllib
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cohortium.models.basis import (
    MAX_BASIS,
    UNIT,
    Basis,
    Block,
    basis_axes,
    basis_from_array,
    basis_to_array,
    fit_basis,
)
from cohortium.models.marginals import Axis, Marginal, MarginalsQuery, estimate_marginals
from cohortium.privacy.query import SCALE, bounded_total
from cohortium.privacy.table import CustomerTable
from cohortium.study.contract import Contract
from cohortium.study.errors import RefusedError

settings.register_profile("models", derandomize=True, deadline=None)
settings.load_profile("models")

BASIS = Basis(
    (Block("age", low=20.0, high=60.0), Block("plan", levels=3), Block("spend", high=math.log1p(99), log=True))
)
FIRST, SECOND = math.trunc(UNIT * math.sqrt(0.8)), math.trunc(UNIT * math.sqrt(0.2))  # of degree 2: 4 to 1

CONTRACT = """
schema = "cohortium.contract/1"
name = "small"
purposes = ["research"]

[window]
start = 2024-01-01
end = 2025-01-01

[[tables]]
name = "people"
kind = "customers"
customer = "id"

[[features]]
name = "visits"
table = "people"
kind = "numeric"
column = "visits"
low = 0
high = 40
integer = true
missing = 0
block = "behaviour"

[[features]]
name = "plan"
table = "people"
kind = "category"
column = "plan"
categories = ["free", "paid", "team"]
block = "product"

[[features]]
name = "spend"
table = "people"
kind = "numeric"
column = "spend"
low = 0
high = 2_000
transform = "log1p"
missing = 0
block = "value"

[[features]]
name = "score"
table = "people"
kind = "numeric"
column = "score"
low = -1
high = 1
missing = 0
block = "behaviour"
"""


def contract() -> Contract:
    return Contract.model_validate(tomllib.loads(CONTRACT))


def table(columns: tuple[str, ...], rows: Any) -> CustomerTable:
    values = np.array(rows, dtype=np.float64).reshape(-1, len(columns))
    return CustomerTable(columns, values, np.arange(len(values)))


def crowd(n: int = 5000) -> CustomerTable:
    rng = np.random.default_rng(0)
    columns = [
        rng.poisson(9, n).clip(0, 40),
        rng.choice(4, n, p=[0.5, 0.3, 0.15, 0.05]),
        np.expm1(rng.normal(4, 1, n)).clip(0, 2000),
        rng.beta(2, 3, n) * 2 - 1,
    ]
    return table(("visits", "plan", "spend", "score"), np.column_stack(columns))


def marginals_of(people: CustomerTable) -> dict[str, Marginal]:
    query = MarginalsQuery(basis_axes(contract().training_features))
    counts = bounded_total(query, people) / SCALE
    return {marginal.axis.name: marginal for marginal in estimate_marginals(query, counts, 0.0)}


def test_rows_are_those_computed_by_hand() -> None:
    people = table(("spend", "plan", "age"), [[99, 0, 60], [0, 2, 20], [9, 1, 40], [1e9, 1, -1e9], [-5, 0, 50]])
    rows = BASIS.rows(people)
    assert rows[0].tolist() == [FIRST, SECOND, UNIT, 0, 0, FIRST, SECOND]
    assert rows[1].tolist() == [-FIRST, SECOND, 0, 0, UNIT, -FIRST, SECOND]
    assert rows[2].tolist() == [0, -SECOND, 0, UNIT, 0, 0, -SECOND], (
        "9 is the middle of 0 and 99 on the scale log(1 + x)"
    )
    assert rows[3].tolist() == [-FIRST, SECOND, 0, UNIT, 0, FIRST, SECOND], "beyond the ends counts as the end"
    assert rows[4].tolist() == [FIRST // 2, -(SECOND // 2), UNIT, 0, 0, -FIRST, SECOND]
    ages = BASIS.rows(table(("spend", "plan", "age"), [[0, 0, 54], [0, 0, 26]]))[:, :2]
    assert ages.tolist() == [[641, -9], [-641, -9]], "0.7 of 915.9 and 2 * 0.49 - 1 of 457.9, towards zero"
    fourth = Block("x", low=-1.0, high=1.0, degree=4)
    out = np.zeros((3, 4))
    fourth.fill(np.array([1.0, -1.0, 0.5]), out)
    assert out.tolist() == [[888, 444, 222, 111], [-888, 444, -222, 111], [444, -222, -222, -55]], (
        "Chebyshev, each half"
    )
    assert BASIS.width == 7
    assert BASIS.features == ("age", "plan", "spend")
    assert BASIS.feature_of.tolist() == [0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("code", [3.0, -1.0, 1e300, -1e300, 3.5, 2.0])
def test_a_code_that_the_contract_does_not_have_counts_as_unknown(code: float) -> None:
    assert Basis((Block("plan", levels=3),)).rows(table(("plan",), [[code]])).tolist() == [[0, 0, UNIT]]


ANY = st.floats(allow_nan=False, allow_infinity=False)


@given(rows=st.lists(st.tuples(ANY, ANY, ANY), max_size=5))
def test_a_block_is_whole_steps_and_never_longer_than_one_whatever_the_values(rows: Any) -> None:
    result = BASIS.rows(table(("age", "plan", "spend"), rows))
    assert (result == np.rint(result)).all()
    for row in result:
        for block in range(3):
            assert sum(Fraction(word) ** 2 for word in row[BASIS.feature_of == block]) <= UNIT**2


@given(degree=st.integers(1, 16), values=st.lists(st.floats(-1.001, 1.001), min_size=1, max_size=8))
def test_polynomials_are_chebyshevs_and_never_longer_than_one(degree: int, values: list[float]) -> None:
    basis = Basis((Block("x", low=-1.0, high=1.0, degree=degree),))
    rows = basis.rows(table(("x",), values))
    angle = np.arccos(np.clip(np.array(values), -1, 1))[:, np.newaxis] * np.arange(1, degree + 1)
    weights = 0.5 ** np.arange(degree)
    wanted = np.cos(angle) * UNIT * weights / np.sqrt((weights**2).sum())
    np.testing.assert_allclose(rows, wanted, atol=1 + 1e-6)
    for row in rows:
        assert sum(Fraction(word) ** 2 for word in row) <= UNIT**2


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_the_same_alone_and_in_company(order: Any) -> None:
    rng = np.random.default_rng(0)
    values = np.asarray(
        np.column_stack([rng.gamma(1, 30, 501), rng.integers(-1, 5, 501), rng.gamma(1, 90, 501)]), order=order
    )
    people = CustomerTable(("age", "plan", "spend"), values, np.arange(501))
    alone = np.vstack([BASIS.rows(people.take(slice(i, i + 1))) for i in range(501)])
    assert (alone == BASIS.rows(people)).all()
    assert (alone[::-1] == BASIS.rows(table(people.columns, values[::-1].copy()))).all()


# --- from marginals --------------------------------------------------------------------------------------------------


def test_axes_give_every_code_a_bin_of_its_own() -> None:
    axes = basis_axes(contract().training_features)
    assert [axis.name for axis in axes] == ["visits", "plan", "spend", "score"]
    assert axes[1] == Axis("plan", 0.0, 3.0, integer=True), "three categories and the unknown one"
    assert axes[1].bins == 4


def test_mean_and_trace_from_exact_marginals_are_those_of_the_rows() -> None:
    people = crowd()
    basis, centre, trace = fit_basis(contract().training_features, marginals_of(people))
    rows = basis.rows(people) / UNIT
    whole = np.isin(basis.feature_of, (0, 1))  # a bin of its own for every value: nothing is lost
    np.testing.assert_allclose(centre[whole], rows.mean(axis=0)[whole], atol=1e-9)
    np.testing.assert_allclose(centre, rows.mean(axis=0), atol=0.005)  # bins of 1/128 of the public range
    assert trace == pytest.approx(rows.var(axis=0).sum(), rel=0.01)
    assert [block.levels for block in basis.blocks] == [0, 4, 0, 0]
    assert [block.log for block in basis.blocks] == [False, False, True, False]


def test_ends_are_the_released_quantiles_on_the_transformed_scale() -> None:
    people = crowd()
    basis, _, _ = fit_basis(contract().training_features, marginals_of(people))
    for index, moved in ((0, people.values[:, 0]), (2, np.log1p(people.values[:, 2])), (3, people.values[:, 3])):
        span = (40.0, 0.0, math.log1p(2000), 2.0)[index]
        low, high = np.quantile(moved, [0.01, 0.99])
        assert basis.blocks[index].low == pytest.approx(low, abs=span / 128 + 1e-9)
        assert basis.blocks[index].high == pytest.approx(high, abs=span / 128 + 1e-9)


def test_a_feature_that_is_the_same_for_all_keeps_its_public_bounds() -> None:
    people = crowd()
    people.values[:, 0], people.values[:, 1] = 7.0, 2.0
    basis, centre, trace = fit_basis(contract().training_features, marginals_of(people))
    assert (basis.blocks[0].low, basis.blocks[0].high) == (0.0, 40.0)
    rows = basis.rows(people) / UNIT
    np.testing.assert_allclose(centre[:6], rows[0, :6], atol=1e-9)
    assert trace == pytest.approx(rows.var(axis=0).sum(), rel=0.01)


def test_without_people_every_code_and_every_bin_is_as_likely() -> None:
    basis, centre, trace = fit_basis(contract().training_features, marginals_of(crowd().take(slice(0, 0))))
    np.testing.assert_allclose(centre[basis.feature_of == 1], 0.25)
    assert np.isfinite(centre).all()
    assert trace > 1.0


def test_many_codes_share_bins_evenly() -> None:
    text = CONTRACT.replace('["free", "paid", "team"]', str([f"c{i}" for i in range(299)]))
    many = Contract.model_validate(tomllib.loads(text))
    query = MarginalsQuery(basis_axes(many.training_features))
    people = crowd()
    people.values[:, 1] = np.arange(5000) % 300
    counts = bounded_total(query, people) / SCALE
    released = {marginal.axis.name: marginal for marginal in estimate_marginals(query, counts, 0.0)}
    basis, centre, _ = fit_basis(many.training_features, released)
    codes = centre[basis.feature_of == 1]
    assert len(codes) == 300
    assert codes.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(codes, 1 / 300, rtol=0.2)


def test_a_narrow_public_range_gives_a_basis_that_travels() -> None:
    """All people within a bin of 1e-13: ends so near would not be taken from the wire."""
    axis = Axis("score", 0.0, 1e-11)
    mass = np.zeros(axis.bins)
    mass[5] = 1000.0
    narrow = Contract.model_validate(tomllib.loads(CONTRACT.replace("low = -1\nhigh = 1\n", "low = 0\nhigh = 1e-11\n")))
    released = {**marginals_of(crowd()), "score": Marginal(axis, mass, 0.0)}
    basis, _, _ = fit_basis(narrow.training_features, released)
    assert basis_from_array(list(basis.features), basis_to_array(basis)) == basis


# --- wire ------------------------------------------------------------------------------------------------------------


def test_a_basis_travels_without_change() -> None:
    basis, _, _ = fit_basis(contract().training_features, marginals_of(crowd()))
    for one in (BASIS, basis):
        assert basis_from_array(list(one.features), basis_to_array(one)) == one


def rows_with(row: int, column: int, value: float) -> NDArray[np.float64]:
    rows = basis_to_array(BASIS)
    rows[row, column] = value
    return rows


@pytest.mark.parametrize(
    ("features", "rows"),
    [
        (["age", "plan"], basis_to_array(BASIS)),
        (["age", "plan", "plan"], basis_to_array(BASIS)),
        (["age", "plan", 3], basis_to_array(BASIS)),
        (("age", "plan", "spend"), basis_to_array(BASIS)),
        ("abc", basis_to_array(BASIS)),
        (None, basis_to_array(BASIS)),
        ([], np.zeros((0, 4))),
        (["age", "plan", "spend"], basis_to_array(BASIS).ravel()),
        ([f"f{i}" for i in range(65)], np.tile([0.0, 0.0, 1.0, 0.0, 2.0], (65, 1))),
        (["a", "b"], np.array([[600.0, 0, 0, 0, 0], [MAX_BASIS - 599.0, 0, 0, 0, 0]])),
        *(
            (["age", "plan", "spend"], rows_with(row, column, value))
            for row, column, value in (
                (0, 0, -1.0),
                (0, 0, 2.0),
                (0, 0, 0.5),
                (0, 1, 60.0),
                (0, 1, 61.0),
                (0, 1, -1e300),
                (0, 2, 1e308),
                (0, 2, np.nextafter(20.0, 21.0)),
                (0, 3, 0.5),
                (0, 4, 0.0),
                (0, 4, 1.5),
                (0, 4, -2.0),
                (0, 4, 17.0),
                (1, 4, 2.0),
                (0, 3, -1.0),
                (0, 1, np.nan),
                (0, 2, np.inf),
                (1, 0, MAX_BASIS + 1.0),
                (1, 0, 2.5),
                (1, 1, 1.0),
                (1, 3, 1.0),
            )
        ),
    ],
    ids=str,
)
def test_a_malformed_basis_is_refused(features: object, rows: NDArray[np.float64]) -> None:
    with pytest.raises(RefusedError, match="malformed basis"):
        basis_from_array(features, rows)


def test_a_basis_may_have_as_many_columns_as_allowed_and_no_more() -> None:
    assert (
        basis_from_array(["a", "b"], np.array([[600.0, 0, 0, 0, 0], [MAX_BASIS - 600.0, 0, 0, 0, 0]])).width
        == MAX_BASIS
    )
