"""One person changes the sum by no more than the declared bound: for every product query, and for hostile ones.

A new product query is covered by one more line in `PRODUCT`: a strategy of queries over the columns of `TABLES`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cohortium.models.assignment import nearest_centre, on_grid
from cohortium.models.catalogue import QUERY_KINDS, build_query
from cohortium.models.head import HeadGradientQuery
from cohortium.models.marginals import Axis, MarginalsQuery
from cohortium.models.moments import MomentQuery
from cohortium.models.profiles import ProfileQuery, ProfileRange
from cohortium.models.rfm import QuintileEdges, RfmGridQuery
from cohortium.models.scaler import Scaler
from cohortium.privacy import query as module
from cohortium.privacy.query import SCALE, Contribution, QuerySpec, SumQuery, bounded_total, quantise, unit_scale
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import Defect, RefusedError

COLUMNS = ("a", "b", "c")
ANY = st.floats(allow_nan=False, allow_infinity=False)
USUAL = st.floats(-1000, 1000)
GRIDDED = st.integers(-8, 8).map(lambda i: i / 4)


def make_table(rows: Any, columns: tuple[str, ...] = COLUMNS) -> CustomerTable:
    values = np.array(rows, dtype=np.float64).reshape(-1, len(columns))
    return CustomerTable(columns, values, np.arange(len(values)))


TABLES = st.lists(st.tuples(*[st.one_of(GRIDDED, USUAL, ANY)] * 3), min_size=0, max_size=12).map(make_table)


@st.composite
def axes(draw: Any, name: str) -> Axis:
    log, integer = draw(st.booleans()), draw(st.booleans())
    low = draw(st.one_of(st.just(0.0), GRIDDED, USUAL))
    low = abs(low) if log else low
    return Axis(name, low, low + draw(st.floats(0.5, 1e7)), integer, log)


@st.composite
def scalers(draw: Any) -> Scaler:
    d = draw(st.integers(1, 3))
    lows = np.array(draw(st.lists(GRIDDED, min_size=d, max_size=d)))
    spans = np.array(draw(st.lists(st.floats(1e-3, 1e6), min_size=d, max_size=d)))
    return Scaler(COLUMNS[:d], np.array(draw(st.lists(st.booleans(), min_size=d, max_size=d))), lows, lows + spans)


@st.composite
def centres(draw: Any, d: int) -> NDArray[np.float64]:
    """Ordinary centres, or hostile ones that differ in the last bits alone."""
    k = draw(st.integers(1, 5))
    first = np.array(draw(st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=k * d, max_size=k * d)))
    result = first.reshape(k, d)
    if draw(st.booleans()):
        result = result[0] * (1 + np.arange(k)[:, np.newaxis] * 2.0**-52)
    return np.ascontiguousarray(result)


@st.composite
def ranges(draw: Any) -> tuple[ProfileRange, ...]:
    names = draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=3, unique=True))
    return tuple(ProfileRange(name, low := draw(USUAL), low + draw(st.floats(1e-3, 1e6))) for name in names)


@st.composite
def moments(draw: Any) -> MomentQuery:
    scaler = draw(scalers())
    middle = draw(centres(len(scaler.features)))
    radii = np.array(draw(st.lists(st.floats(1e-6, 4), min_size=len(middle), max_size=len(middle))))
    weights = draw(st.lists(st.floats(2.0**-10, 1), min_size=2, max_size=3))
    return MomentQuery(scaler, middle, radii, tuple(weights))


@st.composite
def heads(draw: Any) -> HeadGradientQuery:
    whole = draw(scalers())
    d = min(len(whole.features), 2)  # the third column says who is a seed
    scaler = Scaler(COLUMNS[:d], whole.logs[:d], whole.lows[:d], whole.highs[:d])
    weights = np.array(draw(st.lists(st.floats(-1024, 1024), min_size=d + 1, max_size=d + 1)))
    return HeadGradientQuery(scaler, "c", weights, draw(st.floats(1e-6, 1.4)), draw(st.floats(2.0**-10, 1)))


edges = st.lists(USUAL, min_size=4, max_size=4).map(lambda e: tuple(sorted(e)))

PRODUCT: dict[str, Any] = {
    "head-gradient": heads(),
    "marginals": st.tuples(axes("a"), axes("b"), axes("c")).map(MarginalsQuery),
    "moments": moments(),
    "profiles": scalers().flatmap(lambda s: st.builds(ProfileQuery, st.just(s), centres(len(s.features)), ranges())),
    "rfm-grid": st.builds(
        RfmGridQuery,
        st.builds(QuintileEdges, st.just("a"), edges, st.just(True)),
        st.builds(QuintileEdges, st.just("b"), edges),
    ),
}

each_product_query = pytest.mark.parametrize("kind", sorted(PRODUCT))


def norm_squared(difference: NDArray[np.int64]) -> int:
    return sum(int(word) ** 2 for word in difference)


def without(table: CustomerTable, person: int) -> CustomerTable:
    return table.take(np.arange(len(table)) != person)


def test_every_kind_of_question_has_a_strategy() -> None:
    assert set(PRODUCT) == set(QUERY_KINDS)


@each_product_query
@settings(max_examples=60)
@given(data=st.data(), table=TABLES)
def test_removing_a_person_changes_the_sum_by_at_most_the_bound(kind: str, data: Any, table: CustomerTable) -> None:
    query = data.draw(PRODUCT[kind])
    full = bounded_total(query, table)
    for person in range(len(table)):
        change = full - bounded_total(query, without(table, person))
        assert norm_squared(change) <= query.bound_squared


@each_product_query
@settings(max_examples=60)
@given(data=st.data(), table=TABLES)
def test_a_product_query_needs_no_correction(kind: str, data: Any, table: CustomerTable) -> None:
    """Within the bound by its own mathematics: nobody is silently dropped, whatever finite values they have."""
    query = data.draw(PRODUCT[kind])
    with np.errstate(all="ignore"):
        part = query.contribute(table)
    assert module._within_bound(part, query).all()
    assert part.columns.shape == part.values.shape == (len(table), query.words_per_person)
    assert part.columns.dtype == part.values.dtype == np.int64


@each_product_query
@settings(max_examples=40)
@given(data=st.data(), table=TABLES)
def test_people_answer_alone_as_in_company(kind: str, data: Any, table: CustomerTable) -> None:
    query = data.draw(PRODUCT[kind])
    alone = sum((bounded_total(query, table.take(slice(i, i + 1))) for i in range(len(table))), np.zeros(1, np.int64))
    assert (bounded_total(query, table) == alone).all()


@each_product_query
@settings(max_examples=40)
@given(data=st.data(), table=TABLES)
def test_a_question_travels_without_change(kind: str, data: Any, table: CustomerTable) -> None:
    query = data.draw(PRODUCT[kind])
    spec = query.spec()
    again = build_query(QuerySpec(spec.kind, dict(spec.scalars), dict(spec.arrays)))
    assert spec.kind == kind
    assert (again.width, again.bound_squared, again.words_per_person) == (
        query.width,
        query.bound_squared,
        query.words_per_person,
    )
    assert (bounded_total(again, table) == bounded_total(query, table)).all()
    second = again.spec()
    assert second.scalars == spec.scalars
    assert all((second.arrays[name] == values).all() for name, values in spec.arrays.items())


@each_product_query
@settings(max_examples=80)
@given(data=st.data())
def test_a_tampered_question_is_refused_or_still_bounded(kind: str, data: Any) -> None:
    """Any scalars, shapes and values: a `RefusedError`, or a query that cannot break the bound and never fails."""
    spec = data.draw(PRODUCT[kind]).spec()
    scalars, arrays = dict(spec.scalars), dict(spec.arrays)
    junk = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.sampled_from(COLUMNS), max_size=4))
    if data.draw(st.booleans()):
        scalars[data.draw(st.sampled_from([*scalars, "extra"]))] = data.draw(
            st.one_of(junk, st.lists(junk, max_size=3), st.dictionaries(st.text(max_size=2), junk, max_size=2))
        )
    name = data.draw(st.sampled_from([*arrays, "extra"]))
    change = data.draw(st.sampled_from(["value", "shape", "drop", "add"]))
    if change == "value" and name in arrays and arrays[name].size:
        values = arrays[name].copy()
        values.flat[data.draw(st.integers(0, values.size - 1))] = data.draw(st.floats())
        arrays[name] = values
    elif change == "shape" and name in arrays:
        arrays[name] = np.zeros(data.draw(st.lists(st.integers(0, 3), max_size=3)))
    elif change == "drop":
        arrays.pop(name, None)
    else:
        arrays["extra"] = np.zeros(2)
    try:
        query = build_query(QuerySpec(kind, scalars, arrays))
    except RefusedError:
        return
    table = make_table([[0.0, 0.0, 0.0], [1.0, -2.0, 1e300]])
    try:
        one, both = (bounded_total(query, part) for part in (table.take(slice(0, 1)), table))
    except Defect:  # a column that the table does not have: then nobody's presence matters
        with pytest.raises(Defect):
            bounded_total(query, make_table([]))
        return
    assert norm_squared(both - one) <= query.bound_squared


@each_product_query
def test_parameters_that_are_not_finite_are_refused(kind: str) -> None:
    spec = SPECS[kind].spec()
    for name, values in spec.arrays.items():
        for bad in (np.nan, np.inf, -np.inf):
            broken = values.copy()
            broken.flat[0] = bad
            with pytest.raises(RefusedError):
                build_query(QuerySpec(kind, dict(spec.scalars), {**spec.arrays, name: broken}))


@each_product_query
def test_more_or_fewer_parameters_are_refused(kind: str) -> None:
    spec = SPECS[kind].spec()
    broken = [
        QuerySpec(kind, {**spec.scalars, "more": 1}, spec.arrays),
        QuerySpec(kind, {}, spec.arrays),
        QuerySpec(kind, spec.scalars, {**spec.arrays, "more": np.zeros(1)}),
        QuerySpec(kind, spec.scalars, {}),
        QuerySpec("another-kind", spec.scalars, spec.arrays),
        *(QuerySpec(kind, {**spec.scalars, key: [1] * len(value)}, spec.arrays) for key, value in spec.scalars.items()),
        *(QuerySpec(kind, {**spec.scalars, key: ["a"] * 3}, spec.arrays) for key in spec.scalars),
    ]
    for candidate in broken:
        with pytest.raises(RefusedError):
            build_query(candidate)


_SCALER = Scaler(("a", "b"), np.array([False, True]), np.array([-1.0, 0.0]), np.array([1.0, 3.0]))
_CENTRES = np.array([[0.0, 0.5], [-0.5, 0.1]])
SPECS: dict[str, Any] = {
    "head-gradient": HeadGradientQuery(_SCALER, "c", np.array([0.5, -1.0, 0.1]), 0.5, 0.25),
    "marginals": MarginalsQuery((Axis("a", 0, 10, True), Axis("b", 0, 1e4, log=True))),
    "moments": MomentQuery(_SCALER, _CENTRES, np.array([1.0, 2.0]), (0.5, 1.0, 0.25)),
    "profiles": ProfileQuery(_SCALER, _CENTRES, (ProfileRange("a", 0, 1), ProfileRange("c", 0, 9))),
    "rfm-grid": RfmGridQuery(QuintileEdges("a", (1, 2, 3, 4), True), QuintileEdges("b", (1, 1, 2, 5))),
}


# --- nobody's company changes anybody's rounding ---------------------------------------------------------------------


def near_ties(d: int = 8, people: int = 400) -> tuple[CustomerTable, Scaler, NDArray[np.float64]]:
    """Centres that differ in their last bits: which one is nearest is a matter of rounding alone."""
    rng = np.random.default_rng(3)
    names = tuple(f"f{i}" for i in range(d))
    table = make_table(rng.uniform(-1, 1, (people, d)), names)
    scaler = Scaler(names, np.zeros(d, dtype=np.bool_), -np.ones(d), np.ones(d))
    start = rng.uniform(-1, 1, d)
    steps = [np.nextafter(start, start + rng.choice([-1, 1], d)) for _ in range(7)]
    return table, scaler, np.array([start, *steps])


def alone_equals_company(query: SumQuery, table: CustomerTable) -> bool:
    company = query.contribute(table).columns
    alone = np.vstack([query.contribute(table.take(slice(i, i + 1))).columns for i in range(len(table))])
    return bool((company == alone).all())


def test_hostile_centres_cannot_make_people_depend_on_each_other() -> None:
    table, scaler, middle = near_ties()
    assert alone_equals_company(ProfileQuery(scaler, middle, (ProfileRange("f0", -1, 1),)), table)


def test_hostile_centres_cannot_make_people_depend_on_each_other_in_moments() -> None:
    table, scaler, middle = near_ties()
    assert alone_equals_company(MomentQuery(scaler, middle, np.ones(len(middle)), (1.0, 1.0)), table)


@given(d=st.integers(1, 512), k=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_distances_on_the_grid_are_exact(d: int, k: int, seed: int) -> None:
    """Integer arithmetic gives the same nearest centre, for points and centres anywhere in [-2, 2]."""
    rng = np.random.default_rng(seed)
    middle = on_grid(rng.uniform(-2, 2, (1, d)) + rng.choice([0.0, 2.0**-20], (k, d)))
    points = on_grid(middle[rng.integers(0, k, 6)] + rng.choice([0.0, 0.5, 2.0**-20], (6, d)))
    whole = lambda x: (x * 2**20).astype(np.int64).astype(object)  # noqa: E731 - one expression, used three times below
    exact = [
        int(np.argmin([int((c * c).sum()) - 2 * int((p * c).sum()) for c in whole(middle)])) for p in whole(points)
    ]
    assert nearest_centre(points, middle).tolist() == exact


@pytest.mark.parametrize("order", ["C", "F"])
def test_quantising_a_row_does_not_depend_on_the_others(order: Any) -> None:
    values = np.asarray(np.random.default_rng(0).normal(size=(500, 40)), order=order)
    company = quantise(values, 3.0)
    alone = np.vstack([quantise(np.asarray(values[i : i + 1], order=order), 3.0) for i in range(len(values))])
    assert (company == alone).all()


# --- quantising ------------------------------------------------------------------------------------------------------


@given(
    rows=st.lists(st.lists(st.one_of(USUAL, ANY), min_size=5, max_size=5), min_size=1, max_size=5),
    radius=st.floats(1e-6, 1e6),
)
@example(rows=[[1e200] * 5], radius=1.0)
@example(rows=[[5e-324] * 5], radius=1e-6)
@example(rows=[[1.0, 0.0, 0.0, 0.0, 0.0]], radius=1.0)
def test_a_quantised_row_is_never_longer_than_the_scale(rows: list[list[float]], radius: float) -> None:
    with np.errstate(all="ignore"):
        result = quantise(np.array(rows), radius)
    assert all(norm_squared(row) <= SCALE**2 for row in result)
    assert result.dtype == np.int64


@given(st.lists(st.floats(-0.5, 0.5), min_size=4, max_size=4))
def test_a_short_row_keeps_its_value_to_one_unit(row: list[float]) -> None:
    exact = np.array(row) * SCALE
    result = quantise(np.array([row]), 1.0)[0]
    assert (np.abs(result) <= np.abs(exact)).all()
    assert (np.abs(result - exact) <= 1.0 + 1e-4).all()


def test_a_weight_is_rounded_down() -> None:
    assert unit_scale(1.0) == SCALE
    assert unit_scale(0.1) <= 0.1 * SCALE


# --- hostile queries -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """Answers with given arrays, whatever the table; people are its rows in order."""

    columns: NDArray[Any]
    values: NDArray[Any]
    width: int = 4
    bound_squared: int = 25
    words_per_person: int = 2
    asked: list[int] = field(default_factory=list)

    def contribute(self, people: CustomerTable) -> Contribution:
        self.asked.append(len(people))
        return Contribution(self.columns[people.keys], self.values[people.keys])


def total_of(columns: Any, values: Any, **changes: Any) -> list[int]:
    query = Given(np.array(columns, dtype=np.int64), np.array(values, dtype=np.int64), **changes)
    return bounded_total(query, make_table(np.zeros((len(columns), 3)))).tolist()  # type: ignore[no-any-return]


GOOD = ([0, 1], [3, 4])
"""A person exactly at the bound 25."""


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ([0, 1], [3, 5]),
        ([0, 1], [-6, 0]),
        ([2, 2], [3, 4]),
        ([2, 2], [0, 0]),
        ([-1, 1], [1, 1]),
        ([0, 4], [1, 1]),
        ([0, 1], [2**63 - 1, 0]),
        ([0, 1], [-(2**63), 0]),
        ([0, 1], [-(2**63), -(2**63)]),
        ([0, 1], [2**32, 2**32]),
        ([0, 1], [2**28 + 1, 0]),
        ([-(2**63), 2**63 - 1], [0, 1]),
    ],
    ids=str,
)
def test_whoever_breaks_the_bound_counts_as_zero(columns: list[int], values: list[int]) -> None:
    assert total_of([GOOD[0], columns, GOOD[0]], [GOOD[1], values, GOOD[1]]) == [6, 8, 0, 0]


def test_the_bound_itself_is_kept() -> None:
    assert total_of([GOOD[0], [3, 2]], [GOOD[1], [-3, -4]]) == [3, 4, -4, -3]


@given(
    words=st.integers(1, 40),
    data=st.data(),
    bound=st.one_of(st.integers(0, 100), st.integers(0, 2**62), st.integers(2**31, 2**34)),
)
def test_the_norm_check_is_exact_integer_arithmetic(words: int, data: Any, bound: int) -> None:
    """Against unbounded integers, for words up to and beyond the largest accepted one, and bounds just around."""
    word = st.one_of(st.integers(-3, 3), st.integers(-(2**28), 2**28), st.integers(-(2**63), 2**63 - 1))
    values = data.draw(st.lists(word, min_size=words, max_size=words))
    exact = sum(value**2 for value in values)
    if data.draw(st.booleans()) and exact < 2**62:
        bound = max(exact + data.draw(st.integers(-1, 1)), 0)
    counted = total_of([list(range(words))], [values], width=words, words_per_person=words, bound_squared=bound)
    fits = exact <= bound and all(abs(value) <= 2**28 for value in values)
    assert counted == (values if fits else [0] * words)


def test_how_a_person_is_judged_does_not_depend_on_the_company() -> None:
    """Blocks of well-behaved people are checked by a faster path: it must decide about everybody in the same way."""
    large = ([0, 1], [2**28 + 1, 0])
    for company in (GOOD, ([2, 2], [1, 1]), ([0, 9], [1, 1]), ([1, 0], [1, 1]), ([0, 1], [-(2**63), 0])):
        for person in (large, GOOD, ([1, 0], [4, 3]), ([0, 1], [2**28, 2**28])):
            people = [person, company]
            both = total_of([p[0] for p in people], [p[1] for p in people], bound_squared=2**60)
            alone = [total_of([p[0]], [p[1]], bound_squared=2**60) for p in people]
            assert both == np.sum(alone, axis=0).tolist()
    assert total_of([large[0]], [large[1]], bound_squared=2**60) == [0, 0, 0, 0]


@pytest.mark.parametrize("people", [0, 1, 3])
def test_a_query_without_words_answers_whoever_is_there(people: int) -> None:
    empty = np.zeros((people, 0), np.int64)
    query = Given(empty, empty, words_per_person=0)
    assert bounded_total(query, make_table(np.zeros((people, 3)))).tolist() == [0, 0, 0, 0]


@given(st.permutations(range(6)), st.integers(0, 5), st.integers(0, 5))
def test_repeated_positions_are_found_in_any_order(order: list[int], first: int, second: int) -> None:
    columns = list(order)
    columns[first] = columns[second]
    counted = total_of([columns], [[1] * 6], width=6, words_per_person=6, bound_squared=6)
    assert counted == ([1] * 6 if first == second else [0] * 6)


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        (np.zeros((3, 1), np.int64), np.zeros((3, 1), np.int64)),
        (np.zeros((3, 2), np.int64), np.zeros((3, 3), np.int64)),
        (np.zeros((3, 2), np.int64), np.zeros((3, 2), np.float64)),
        (np.zeros((3, 2), np.int64), np.zeros((3, 2), np.uint64)),
        (np.zeros((3, 2), np.int64), np.zeros((3, 2), np.bool_)),
        (np.zeros((3, 2), np.float64), np.zeros((3, 2), np.int64)),
        (np.zeros((3, 2), np.bool_), np.zeros((3, 2), np.int64)),
    ],
)
@pytest.mark.parametrize("people", [0, 3])
def test_a_wrong_shape_or_dtype_is_a_defect_even_of_nobody(
    columns: NDArray[Any], values: NDArray[Any], people: int
) -> None:
    with pytest.raises(Defect):
        bounded_total(Given(columns, values), make_table(np.zeros((people, 3))))


def test_an_empty_table_is_asked_like_any_other() -> None:
    """A question that fails on people must fail on nobody too, or a failure would say that somebody is there."""
    empty = make_table([])
    query = MarginalsQuery((Axis("no such column", 0, 1),))
    for table in (empty, make_table([[1, 2, 3]])):
        with pytest.raises(Defect):
            bounded_total(query, table)
    good = MarginalsQuery((Axis("a", 0, 1),))
    assert bounded_total(good, empty).tolist() == [0] * good.width


def test_floating_point_warnings_are_nobodys_business() -> None:
    @dataclass(frozen=True)
    class Dividing:
        width: int = 1
        bound_squared: int = 1
        words_per_person: int = 1

        def contribute(self, people: CustomerTable) -> Contribution:
            quotient = people.values[:, :1] / people.values[:, 1:2]
            return Contribution(np.zeros((len(people), 1), np.int64), quotient.astype(np.int64))

    # pytest turns warnings into errors: the division by zero would surface here
    assert bounded_total(Dividing(), make_table([[1, 1, 0], [1, 0, 0], [0, 0, 0]])).tolist() == [1]


# --- blocks ----------------------------------------------------------------------------------------------------------


@each_product_query
def test_blocks_do_not_matter(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    table = make_table(np.round(rng.gamma(1.0, 3.0, (1000, 3)), 3))
    query = SPECS[kind]
    whole = bounded_total(query, table)
    for words in (1, 17, 1000, 4097):
        monkeypatch.setattr(module, "_BLOCK_WORDS", words * query.words_per_person)
        assert (bounded_total(query, table) == whole).all()


def test_blocks_are_bounded_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_WORDS", 20)
    query = Given(np.tile([0, 1], (25, 1)), np.ones((25, 2), np.int64))
    assert bounded_total(query, make_table(np.zeros((25, 3)))).tolist() == [25, 25, 0, 0]
    assert query.asked == [10, 10, 5]


# --- the table -------------------------------------------------------------------------------------------------------


def test_a_table_holds_finite_rows_of_distinct_people() -> None:
    rows = np.zeros((2, 1))
    for columns, values, keys in (
        (("a", "a"), np.zeros((2, 2)), np.arange(2)),
        (("a",), rows, np.array([1, 1])),
        (("a",), rows, np.arange(3)),
        (("a",), rows.astype(np.float32), np.arange(2)),
        (("a",), np.array([[np.nan], [0.0]]), np.arange(2)),
        (("a",), np.array([[np.inf], [0.0]]), np.arange(2)),
    ):
        with pytest.raises(Defect):
            CustomerTable(columns, values, keys)


@given(TABLES, st.integers(1, 5))
def test_pieces_make_the_whole(table: CustomerTable, rows: int) -> None:
    assume(len(table))
    pieces = list(table.blocks(rows))
    assert all(1 <= len(piece) <= rows for piece in pieces)
    assert (np.vstack([piece.values for piece in pieces]) == table.values).all()
    assert np.concatenate([piece.keys for piece in pieces]).tolist() == table.keys.tolist()


def test_columns_are_selected_by_name() -> None:
    table = make_table([[1, 2, 3]])
    assert table.select(("c", "a")).tolist() == [[3, 1]]
    assert table.select(COLUMNS) is table.values
    with pytest.raises(Defect):
        table.select(("z",))
