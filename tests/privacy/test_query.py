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
from cohortium.models.audience_profile import AudienceProfileQuery
from cohortium.models.audit_queries import Cells, GroupCountsQuery, GroupSumsQuery
from cohortium.models.basis import Basis, Block
from cohortium.models.catalogue import QUERY_KINDS, build_query
from cohortium.models.contest import ContestQuery
from cohortium.models.encoder import Encoder, EncoderGradientQuery, encoder_shapes, on_scale_grid, on_weight_grid
from cohortium.models.features import Rows, on_row_grid
from cohortium.models.features import on_weight_grid as on_row_weight_grid
from cohortium.models.marginals import Axis, MarginalsQuery
from cohortium.models.moments import MomentQuery
from cohortium.models.profiles import ProfileQuery, ProfileRange
from cohortium.models.ranker import Ranker
from cohortium.models.reach import ScoreCurveQuery
from cohortium.models.rfm import QuintileEdges, RfmGridQuery
from cohortium.models.row_moments import Frame, FrameSumQuery, RowMomentsQuery
from cohortium.models.rows import HASH, SEED, row_hashes
from cohortium.models.scaler import Scaler
from cohortium.models.scorebins import ScoreBins
from cohortium.models.seed_queries import SeedGradientQuery, SeedSumQuery
from cohortium.privacy import query as module
from cohortium.privacy.query import (
    MAX_LEFT,
    MAX_RIGHT,
    SCALE,
    Contribution,
    Outer,
    OuterQuery,
    QuerySpec,
    SumQuery,
    bounded_total,
    quantise,
    unit_scale,
)
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import Defect, RefusedError

COLUMNS = ("a", "b", "c")
OWN = (*COLUMNS, HASH, SEED)
ANY = st.floats(allow_nan=False, allow_infinity=False)
USUAL = st.floats(-1000, 1000)
GRIDDED = st.integers(-8, 8).map(lambda i: i / 4)


def make_table(rows: Any, columns: tuple[str, ...] | None = None) -> CustomerTable:
    """A table; of the usual three columns, and of hashes made up for them, when no columns are given."""
    if columns is None:
        values = np.array(rows, dtype=np.float64).reshape(-1, 3)
        seeds = np.arange(len(values)) % 3 != 1
        own = np.column_stack([values, row_hashes(np.arange(len(values))), seeds])
        return CustomerTable(OWN, own, np.arange(len(values)))
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
def bases(draw: Any) -> Basis:
    blocks = []
    for name in COLUMNS:
        if draw(st.booleans()):
            blocks.append(Block(name, levels=draw(st.integers(1, 4))))
        else:
            low = draw(GRIDDED)
            blocks.append(Block(name, low=low, high=low + draw(st.floats(0.01, 1e6)), log=draw(st.booleans())))
    return Basis(tuple(blocks))


@st.composite
def encoders(draw: Any) -> Encoder:
    basis, rng = draw(bases()), np.random.default_rng(draw(st.integers(0, 99)))
    spread = draw(st.sampled_from([0.0, 0.3, 2.0, 100.0]))
    shapes = encoder_shapes(basis, draw(st.integers(1, 5)), draw(st.integers(1, 4)))
    first, second, third, fourth = (on_weight_grid(rng.normal(0, spread, shape)) for shape in shapes)
    return Encoder(basis, on_scale_grid(rng.exponential(1.0, basis.width)), (first, second, third, fourth))


encoder_gradients = st.builds(
    EncoderGradientQuery,
    encoders(),
    st.integers(0, 2**20 - 1),
    st.integers(1, 255),
    st.floats(2.0**-10, 2.0**10),
)


@st.composite
def rows(draw: Any) -> Rows:
    encoder = draw(encoders()) if draw(st.booleans()) else None
    basis = encoder.basis if encoder is not None else draw(bases())
    width = encoder.width if encoder is not None else basis.width
    centre = on_row_grid(np.array(draw(st.lists(st.floats(-4, 4), min_size=width, max_size=width))))
    return Rows(basis, centre, draw(st.floats(2.0**-6, 8)), encoder)


@st.composite
def frames(draw: Any) -> Frame:
    of, rng = draw(rows()), np.random.default_rng(draw(st.integers(0, 99)))
    spread = draw(st.sampled_from([0.0, 0.3, 200.0]))
    axes = on_row_weight_grid(rng.normal(0, spread, (of.width, of.width)))
    return Frame(of, axes, draw(st.floats(2.0**-10, 2.0**10)))


@st.composite
def rankers(draw: Any) -> Ranker:
    of, rng = draw(rows()), np.random.default_rng(draw(st.integers(0, 99)))
    return Ranker(of, on_row_weight_grid(rng.normal(0, draw(st.sampled_from([0.0, 1.0, 100.0])), of.width)))


@st.composite
def seed_gradients(draw: Any) -> SeedGradientQuery:
    frame, rng = draw(frames()), np.random.default_rng(draw(st.integers(0, 99)))
    weights = on_row_weight_grid(rng.normal(0, draw(st.sampled_from([0.0, 1.0, 100.0])), frame.rows.width + 1))
    return SeedGradientQuery(frame, weights[:-1], float(weights[-1]))


@st.composite
def contests(draw: Any) -> ContestQuery:
    scales = tuple(draw(st.lists(score_bins, min_size=1, max_size=3)))
    share = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
    tables = (draw(st.lists(share, min_size=scale.bins, max_size=scale.bins)) for scale in scales)
    return ContestQuery(scales, tuple(np.array(table) for table in tables))


@st.composite
def cells(draw: Any) -> Cells:
    columns = draw(st.lists(st.sampled_from(OWN), min_size=1, max_size=4, unique=True))
    levels = tuple(draw(st.integers(1, 5)) for _ in columns)
    table = st.lists(st.integers(0, len(columns) - 1), min_size=1, max_size=len(columns), unique=True).map(tuple)
    tables = draw(st.lists(table, min_size=1, max_size=4, unique=True))
    return Cells(tuple(columns), levels, tuple(tables))


cutoffs = st.sets(st.one_of(GRIDDED, USUAL), min_size=1, max_size=6).map(lambda e: np.array(sorted(e)))
score_bins = st.builds(ScoreBins, rankers(), cutoffs)
edges = st.lists(USUAL, min_size=4, max_size=4).map(lambda e: tuple(sorted(e)))

PRODUCT: dict[str, Any] = {
    "audience-profile": st.builds(AudienceProfileQuery, rankers(), USUAL),
    "encoder-gradient": encoder_gradients,
    "frame-sum": frames().map(FrameSumQuery),
    "group-counts": cells().map(GroupCountsQuery),
    "group-sums": st.builds(GroupSumsQuery, cells(), st.sampled_from(OWN)),
    "marginals": st.tuples(axes("a"), axes("b"), axes("c")).map(MarginalsQuery),
    "moments": moments(),
    "profiles": scalers().flatmap(lambda s: st.builds(ProfileQuery, st.just(s), centres(len(s.features)), ranges())),
    "ranker-contest": contests(),
    "row-moments": rows().map(RowMomentsQuery),
    "score-curve": st.lists(score_bins, min_size=1, max_size=3).map(tuple).map(ScoreCurveQuery),
    "seed-gradient": seed_gradients(),
    "seed-sum": frames().map(SeedSumQuery),
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
        *(QuerySpec(kind, {**spec.scalars, key: [1] * 3}, spec.arrays) for key in spec.scalars),
        *(QuerySpec(kind, {**spec.scalars, key: ["a"] * 3}, spec.arrays) for key in spec.scalars),
    ]
    for candidate in broken:
        with pytest.raises(RefusedError):
            build_query(candidate)


_SCALER = Scaler(("a", "b"), np.array([False, True]), np.array([-1.0, 0.0]), np.array([1.0, 3.0]))
_CENTRES = np.array([[0.0, 0.5], [-0.5, 0.1]])
_BASIS = Basis((Block("a", low=0.0, high=1.0), Block("b", levels=2), Block("c", low=0.0, high=2.0, log=True)))
_MATRICES = tuple(np.full(shape, 0.25) for shape in encoder_shapes(_BASIS, 3, 2))
_ENCODER = Encoder(_BASIS, np.ones(6), (_MATRICES[0], _MATRICES[1], _MATRICES[2], _MATRICES[3]))
_FRAME = Frame(Rows(_BASIS, np.full(6, 0.25), 1.0), np.eye(6), 2.0)
_CODE = Frame(Rows(_BASIS, np.zeros(2), 1.0, _ENCODER), np.eye(2), 2.0)
_SCALES = (ScoreBins(Ranker(_FRAME.rows, np.full(6, 0.5)), np.array([-0.5, 0.5])),)
_CELLS = Cells(("a", "b"), (3, 2), ((0,), (0, 1)))
SPECS: dict[str, Any] = {
    "ranker-contest": ContestQuery(_SCALES, (np.array([0.9, 0.5, 0.1]),)),
    "score-curve": ScoreCurveQuery(_SCALES),
    "audience-profile": AudienceProfileQuery(Ranker(_FRAME.rows, np.full(6, 0.5)), 0.25),
    "encoder-gradient": EncoderGradientQuery(_ENCODER, 4, 64, 1.0),
    "frame-sum": FrameSumQuery(_CODE),
    "group-counts": GroupCountsQuery(_CELLS),
    "group-sums": GroupSumsQuery(_CELLS, "c"),
    "row-moments": RowMomentsQuery(_FRAME.rows),
    "seed-gradient": SeedGradientQuery(_FRAME, np.full(6, 0.5), -1.0),
    "seed-sum": SeedSumQuery(_CODE),
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
    assert table.select(OWN) is table.values
    with pytest.raises(Defect):
        table.select(("z",))


# --- outer products --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GivenOuters:
    """Answers with given factors beside given sparse words: products in words 2 to 7 and 8 to 11, of 14."""

    factors: tuple[tuple[NDArray[Any], NDArray[Any]], ...]
    columns: NDArray[np.int64]
    values: NDArray[np.int64]
    outers: tuple[Outer, ...] = (Outer(2, 2, 3), Outer(8, 4, 1))
    width: int = 14
    bound_squared: int = 2**80
    words_per_person: int = 2
    asked: list[int] = field(default_factory=list)

    def contribute(self, people: CustomerTable) -> Contribution:
        self.asked.append(len(people))
        parts = tuple((left[people.keys], right[people.keys]) for left, right in self.factors)
        return Contribution(self.columns[people.keys], self.values[people.keys], parts)

    def spec(self) -> QuerySpec:
        return QuerySpec("given-outers")


def whole_numbers(rng: np.random.Generator, people: int, words: int, reach: int) -> NDArray[np.float64]:
    return rng.integers(-reach, reach + 1, (people, words)).astype(np.float64)


def outer_query(people: int, seed: int = 0, **changes: Any) -> GivenOuters:
    """Factors anywhere within the limits, those of every third person at the very limits."""
    rng = np.random.default_rng(seed)
    shapes = ((2, MAX_LEFT), (3, MAX_RIGHT), (4, MAX_LEFT), (1, MAX_RIGHT))
    parts = [whole_numbers(rng, people, words, reach) for words, reach in shapes]
    for part, (_, reach) in zip(parts, shapes, strict=True):
        part[::3] = np.where(part[::3] < 0, -reach, reach)
    columns = np.tile([0, 13], (people, 1))
    values = rng.integers(-(2**28), 2**28 + 1, (people, 2))
    return GivenOuters(((parts[0], parts[1]), (parts[2], parts[3])), columns, values, **changes)


def words_of(query: GivenOuters, person: int) -> list[int]:
    """One person's words in unbounded integers."""
    words = [0] * query.width
    for column, value in zip(query.columns[person], query.values[person], strict=True):
        words[int(column)] += int(value)
    for outer, (left, right) in zip(query.outers, query.factors, strict=True):
        for i, first in enumerate(left[person]):
            for j, second in enumerate(right[person]):
                words[outer.offset + i * outer.right + j] += int(first) * int(second)
    return words


def answer(query: GivenOuters) -> list[int]:
    return bounded_total(query, make_table(np.zeros((len(query.columns), 3)))).tolist()  # type: ignore[no-any-return]


def test_sums_of_outer_products_are_exact() -> None:
    query = outer_query(1200)
    assert isinstance(query, OuterQuery)
    expected = np.array([words_of(query, person) for person in range(1200)], dtype=object).sum(axis=0)
    assert answer(query) == expected.tolist()
    assert query.asked == [1024, 176]


@pytest.mark.parametrize("people", [1024, 2**19, 2**19 + 2**12])
def test_people_at_the_limits_add_up_exactly(people: int) -> None:
    """The largest partial sums there are, odd in their last bit; the last one is beyond what float64 holds."""
    left, right = np.full((people, 1), float(MAX_LEFT)), np.full((people, 1), float(MAX_RIGHT))
    left[0], right[0] = MAX_LEFT - 1, MAX_RIGHT - 1
    nothing = np.zeros((people, 0), np.int64)
    query = GivenOuters(((left, right),), nothing, nothing, (Outer(0, 1, 1),), 1, 2**70, 0)
    assert answer(query) == [(people - 1) * 2**34 + (2**14 - 1) * (2**20 - 1)]


def test_blocks_of_outer_products_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    query = outer_query(300, seed=1)
    whole = answer(query)
    for rows, blocks in ((1, 512), (1, 1), (7, 3), (299, 2), (1000, 512)):
        monkeypatch.setattr(module, "_OUTER_ROWS", rows)
        monkeypatch.setattr(module, "_OUTER_BLOCKS", blocks)
        assert answer(query) == whole


HOSTILE_FACTORS = [
    (part, side, value)
    for part in (0, 1)
    for side, limit in ((0, MAX_LEFT), (1, MAX_RIGHT))
    for value in (limit + 1, -limit - 1, 0.5, limit - 2.0**-20, np.nan, np.inf, -np.inf, 1e300, 5e-324)
]


@pytest.mark.parametrize(("part", "side", "value"), HOSTILE_FACTORS, ids=str)
def test_whoever_has_a_factor_beyond_the_limits_counts_as_zero_alone(part: int, side: int, value: float) -> None:
    """Also where all other factors of that person are zeros, and whether or not company makes the check slower."""
    query = outer_query(5, seed=2)
    for factors in query.factors:
        for factor in factors:
            factor[2] = 0.0
    query.factors[part][side][2, 0] = value
    others = np.array([words_of(query, person) for person in (0, 1, 3, 4)], dtype=object).sum(axis=0)
    assert answer(query) == others.tolist()


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ([0, 2], [1, 1]),
        ([0, 11], [1, 0]),
        ([0, 7], [1, 0]),
        ([13, 13], [1, 1]),
        ([-1, 0], [1, 1]),
        ([0, 14], [1, 1]),
        ([-(2**63), 2**63 - 1], [0, 0]),
        ([0, 1], [2**28 + 1, 0]),
        ([0, 1], [-(2**63), 0]),
    ],
    ids=str,
)
def test_sparse_words_beside_outer_products_are_checked(columns: list[int], values: list[int]) -> None:
    """Words of a product count as another's: positions there would add up to more than the norms say."""
    query = outer_query(3, seed=3)
    query.columns[1], query.values[1] = columns, values
    others = np.array([words_of(query, person) for person in (0, 2)], dtype=object).sum(axis=0)
    assert answer(query) == others.tolist()


@given(
    left=st.lists(st.integers(-MAX_LEFT, MAX_LEFT), min_size=2, max_size=2),
    right=st.lists(st.integers(-MAX_RIGHT, MAX_RIGHT), min_size=3, max_size=3),
    other=st.integers(-MAX_RIGHT, MAX_RIGHT),
    sparse=st.one_of(st.just(0), st.integers(-(2**28), 2**28)),
    slack=st.integers(-2, 2),
)
@example(left=[MAX_LEFT, MAX_LEFT], right=[MAX_RIGHT] * 3, other=MAX_RIGHT, sparse=2**28, slack=0)
@example(left=[MAX_LEFT, MAX_LEFT], right=[MAX_RIGHT] * 3, other=MAX_RIGHT, sparse=2**28, slack=-1)
def test_the_norm_of_outer_products_is_checked_in_exact_integers(
    left: list[int], right: list[int], other: int, sparse: int, slack: int
) -> None:
    """Bounds one unit off a squared norm of up to 2^71, which no float64 holds; with sparse words and without."""
    parts = (([left], [right]), ([[1, 2, 3, MAX_LEFT]], [[other]]))
    factors = tuple((np.array(a, dtype=np.float64), np.array(b, dtype=np.float64)) for a, b in parts)
    for words in (2, 0):
        columns, values = np.array([[0, 13][:words]], dtype=np.int64), np.array([[sparse, 0][:words]], dtype=np.int64)
        free = GivenOuters(factors, columns.reshape(1, words), values.reshape(1, words), words_per_person=words)
        expected = words_of(free, 0)
        exact = sum(word**2 for word in expected)
        bound = max(exact + slack, 0)
        query = GivenOuters(factors, free.columns, free.values, bound_squared=bound, words_per_person=words)
        assert answer(query) == (expected if exact <= bound else [0] * 14)


def test_how_a_person_is_judged_beside_outer_products_does_not_depend_on_the_company() -> None:
    """One person exactly at the bound, one a unit beyond; a fast path decides about blocks that are far below it."""
    nothing = np.zeros((3, 0), np.int64)
    left, right = np.array([[3.0], [3.0], [1.0]]), np.array([[5.0], [6.0], [1.0]])
    verdicts = {}
    for people in ([0], [1], [2], [0, 2], [1, 2], [0, 1, 2]):
        query = GivenOuters(((left, right),), nothing, nothing, (Outer(0, 1, 1),), 1, 225, 0)
        present = make_table(np.zeros((3, 3))).take(np.isin(range(3), people))
        kept = module._within_bound(query.contribute(present), query)
        for person, verdict in zip(people, kept, strict=True):
            assert verdicts.setdefault(person, bool(verdict)) == verdict
    assert verdicts == {0: True, 1: False, 2: True}


def test_the_longest_factors_have_exact_norms() -> None:
    people, nothing = 3, np.zeros((3, 0), np.int64)
    left, right = np.full((people, 1), float(MAX_LEFT)), np.full((people, 4096), float(MAX_RIGHT))
    right[1, 0] -= 1
    exact = [2**28 * sum(int(word) ** 2 for word in row) for row in right]
    query = GivenOuters(((left, right),), nothing, nothing, (Outer(0, 1, 4096),), 4096, exact[1], 0)
    assert answer(query) == [MAX_LEFT * int(word) for word in right[1]]


ONES = (np.ones((3, 2)), np.ones((3, 3)))
COLUMN = (np.ones((3, 4)), np.ones((3, 1)))


@pytest.mark.parametrize(
    ("factors", "outers"),
    [
        ((ONES, COLUMN), (Outer(2, 2, 3), Outer(7, 4, 1))),
        ((ONES, COLUMN), (Outer(8, 2, 3), Outer(8, 4, 1))),
        ((ONES, COLUMN), (Outer(2, 2, 3), Outer(11, 4, 1))),
        ((ONES, COLUMN), (Outer(-1, 2, 3), Outer(8, 4, 1))),
        ((ONES, COLUMN), (Outer(2, 2, 3), Outer(8, 1, 4))),
        ((ONES, COLUMN), (Outer(2, 2, 3),)),
        ((ONES,), (Outer(2, 2, 3), Outer(8, 4, 1))),
        ((), (Outer(2, 2, 3),)),
        ((ONES,), ()),
        (((np.ones((3, 0)), np.ones((3, 3))),), (Outer(2, 0, 3),)),
        (((np.ones((3, 2), np.float32), np.ones((3, 3))),), (Outer(2, 2, 3),)),
        (((np.ones((3, 2), np.int64), np.ones((3, 3))),), (Outer(2, 2, 3),)),
        (((np.ones((3, 2)), np.ones((3, 3), np.complex128)),), (Outer(2, 2, 3),)),
        (((np.ones(3), np.ones((3, 3))),), (Outer(2, 1, 3),)),
        (((np.ones((3, 2, 1)), np.ones((3, 3))),), (Outer(2, 2, 3),)),
    ],
    ids=range(15),
)
@pytest.mark.parametrize("people", [0, 3])
def test_outer_products_of_a_wrong_shape_or_place_are_a_defect_even_of_nobody(
    factors: Any, outers: tuple[Outer, ...], people: int
) -> None:
    query = GivenOuters(factors, np.tile([0, 1], (3, 1)), np.ones((3, 2), np.int64), outers)
    with pytest.raises(Defect):
        bounded_total(query, make_table(np.zeros((people, 3))))


def test_factors_of_more_words_than_add_up_exactly_are_a_defect() -> None:
    nothing = np.zeros((1, 0), np.int64)
    factors = ((np.ones((1, 1)), np.ones((1, 4097))),)
    query = GivenOuters(factors, nothing, nothing, (Outer(0, 1, 4097),), 4097, 2**70, 0)
    with pytest.raises(Defect):
        bounded_total(query, make_table([[0, 0, 0]]))


def test_nobody_has_no_outer_products() -> None:
    assert answer(outer_query(0)) == [0] * 14
