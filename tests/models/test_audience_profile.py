"""Who an audience is: plain group means without noise, intervals that cover with it, nothing of small groups."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortium.models.audience_profile import AudienceProfileQuery, read_profile
from cohortium.models.basis import UNIT, Basis, Block
from cohortium.models.features import Rows, on_weight_grid
from cohortium.models.ranker import Ranker
from cohortium.models.rows import SEED
from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.privacy.query import SCALE, QuerySpec, bounded_total
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError
from cohortium.study.model import AudienceShare

BASIS = Basis(
    (Block("age", low=20.0, high=70.0), Block("plan", levels=3), Block("spend", high=math.log1p(900), log=True))
)
RANKER = Ranker(Rows(BASIS, np.zeros(7), 2.0), on_weight_grid(np.array([1.0, 0.2, 0.0, 0.3, 0.6, 0.8, 0.1])))
QUERY = AudienceProfileQuery(RANKER, 0.75)
COLUMNS = (*BASIS.features, SEED)


class SimulatedBits:
    """Seeded words for simulation; never a source of protection."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def words(self, count: int) -> NDArray[np.uint64]:
        return self._rng.integers(0, 2**64, count, dtype=np.uint64)


@cache
def crowd(n: int = 6000) -> CustomerTable:
    rng = np.random.default_rng(0)
    columns = [rng.uniform(15, 80, n), rng.choice(3, n, p=[0.6, 0.3, 0.1]), np.expm1(rng.normal(4, 1.5, n)).clip(0)]
    return CustomerTable(COLUMNS, np.column_stack([*columns, rng.random(n) < 0.1]), np.arange(n))


@cache
def sums() -> NDArray[np.float64]:
    return np.asarray(bounded_total(QUERY, crowd()) / SCALE)


def groups() -> tuple[CustomerTable, CustomerTable]:
    """The audience, and everybody eligible."""
    eligible = crowd().take(crowd().values[:, 3] <= 0.5)
    return eligible.take(RANKER.scores(eligible) >= QUERY.cutoff), eligible


def truth(people: CustomerTable) -> list[float]:
    """Mean of winsorised ages, shares of codes, mean of the winsorised logarithm of spend turned back."""
    age, plan, spend, _ = people.values.T
    return [
        float(np.clip(age, 20, 70).mean()),
        *(float((plan == code).mean()) for code in range(3)),
        float(np.expm1(np.clip(np.log1p(spend), 0, math.log1p(900)).mean())),
    ]


def test_without_noise_the_profile_is_that_of_plain_group_means() -> None:
    audience, eligible = groups()
    assert 500 < len(audience) < len(eligible) - 500
    profile = read_profile(QUERY, sums(), 0.0, 50.0)
    assert [(share.feature, share.level) for share in profile] == [
        ("age", None),
        ("plan", 0),
        ("plan", 1),
        ("plan", 2),
        ("spend", None),
    ]
    for share, inside, all_ in zip(profile, truth(audience), truth(eligible), strict=True):
        # a number's column is truncated to steps of 2^-10 towards its middle: 1.4 steps of half its range
        rel, slack = (1e-6, 0.0) if share.level is not None else (0.0, {"age": 0.036, "spend": 1.2}[share.feature])
        assert share.audience.value == pytest.approx(inside, rel=rel, abs=slack)
        assert share.eligible.value == pytest.approx(all_, rel=rel, abs=slack)
        assert share.audience.low == share.audience.value == share.audience.high
    assert abs(profile[3].audience.value - profile[3].eligible.value) > 0.03, "the groups do differ"


def released(std: float, draws: int) -> list[tuple[AudienceShare, ...]]:
    sigma = round(std * SCALE)
    noise = sample_discrete_gaussian(sigma, draws * QUERY.width, SimulatedBits(5)).reshape(draws, -1) / SCALE
    return [read_profile(QUERY, sums() + one, std, 50.0) for one in noise]


def test_intervals_cover_what_they_should_and_no_more() -> None:
    exact = read_profile(QUERY, sums(), 0.0, 50.0)
    held = np.array(
        [
            [
                (part.low <= true.value <= part.high, part.low > true.value)
                for share, plain in zip(profile, exact, strict=True)
                for part, true in ((share.audience, plain.audience), (share.eligible, plain.eligible))
            ]
            for profile in released(8.0, 400)
        ]
    )
    assert 0.935 < held[:, :, 0].mean() < 0.965  # 4,000 intervals, ten of them alike
    assert (held[:, :, 0].mean(axis=0) > 0.91).all()
    assert (held[:, :, 0].mean(axis=0) < 0.985).all()
    assert 0.015 < held[:, :, 1].mean() < 0.035, "as often too high as too low"


def test_more_noise_means_wider_intervals_within_what_can_be() -> None:
    widths = []
    for std in (1.0, 10.0, 100.0):
        profiles = [profile for profile in released(std, 20) if profile]
        widths.append(np.mean([share.audience.high - share.audience.low for p in profiles for share in p[1:4]]))
        for profile in profiles:
            for share in profile:
                for part in (share.audience, share.eligible):
                    least, most = (
                        (0.0, 1.0) if share.level is not None else {"age": (20, 70), "spend": (0, 900)}[share.feature]
                    )
                    assert least - 1e-9 <= part.low <= part.value <= part.high <= most + 1e-9
    assert widths == sorted(widths)
    assert widths[0] < 0.2 * widths[1]


def test_a_group_below_the_minimum_cell_leaves_nothing() -> None:
    audience, eligible = groups()
    assert read_profile(QUERY, sums(), 0.0, len(audience) - 1.0)
    assert read_profile(QUERY, sums(), 0.0, len(audience) + 1.0) == ()
    for cutoff in (-100.0, 100.0):
        everybody = AudienceProfileQuery(RANKER, cutoff)
        assert read_profile(everybody, bounded_total(everybody, crowd()) / SCALE, 0.0, 50.0) == ()
    noise = sums().copy()
    noise[0] = -3.0
    assert read_profile(QUERY, noise, 100.0, 50.0) == ()
    assert len(eligible) - len(audience) > len(audience)


def test_seeds_add_nothing_and_everybody_else_one_row_to_one_group() -> None:
    seeds = crowd().take(crowd().values[:, 3] > 0.5)
    assert (bounded_total(QUERY, seeds) == 0).all()
    part = QUERY.contribute(crowd())
    eligible = crowd().values[:, 3] <= 0.5
    inside = RANKER.scores(crowd()) >= QUERY.cutoff
    assert (part.columns[:, 0] == np.where(inside, 0, 8)).all()
    assert ((part.values != 0).any(axis=1) == eligible).all()
    assert (part.values[eligible, 0] == SCALE // 2).all()


def test_the_bound_is_reached_and_never_passed() -> None:
    """By three features at the ends of their ranges: each fills its part of the row."""
    ends = CustomerTable(COLUMNS, np.array([[70.0, 2.0, 900.0, 0.0]]), np.arange(1))
    words = QUERY.contribute(ends).values[0].astype(object)
    assert 0.997 < int((words**2).sum()) / QUERY.bound_squared <= 1  # what truncation to steps of 2^-10 leaves
    squares = (QUERY.contribute(crowd()).values.astype(object) ** 2).sum(axis=1)
    assert squares.max() <= QUERY.bound_squared
    categories = Ranker(Rows(Basis((Block("age", levels=2),)), np.zeros(2), 2.0), np.ones(2))
    one = AudienceProfileQuery(categories, 0.0)
    square = int((one.contribute(ends).values[0].astype(object) ** 2).sum())
    assert 1 - 1e-6 < square / one.bound_squared <= 1


def test_people_answer_the_same_alone_and_in_company() -> None:
    part = QUERY.contribute(crowd())
    for person in range(0, 6000, 101):
        alone = QUERY.contribute(crowd().take(slice(person, person + 1)))
        assert (alone.columns[0] == part.columns[person]).all()
        assert (alone.values[0] == part.values[person]).all()


@pytest.mark.parametrize(
    "cutoff", [None, np.array([np.nan]), np.array([np.inf]), np.zeros(2), np.zeros((1, 1))], ids=str
)
def test_a_malformed_cutoff_is_refused(cutoff: NDArray[np.float64] | None) -> None:
    spec = QUERY.spec()
    again = AudienceProfileQuery.from_spec(spec)
    assert (bounded_total(again, crowd()) / SCALE == sums()).all()
    arrays = {name: values for name, values in {**spec.arrays, "cutoff": cutoff}.items() if values is not None}
    with pytest.raises(RefusedError):
        AudienceProfileQuery.from_spec(QuerySpec(spec.kind, spec.scalars, arrays))


def test_rows_of_the_basis_are_described_whatever_the_ranker_sees() -> None:
    """The profile is of features, in steps of the basis, though the ranker's rows are clipped shorter."""
    short = AudienceProfileQuery(Ranker(Rows(BASIS, np.zeros(7), 2.0**-6), RANKER.weights), 0.0)
    part = short.contribute(crowd())
    expected = BASIS.rows(crowd()) * (SCALE / (UNIT * math.sqrt(3)))
    eligible = crowd().values[:, 3] <= 0.5
    np.testing.assert_allclose(part.values[eligible, 1:], expected[eligible], atol=1.001)


def test_a_category_of_fewer_members_than_the_minimum_is_left_out() -> None:
    audience, _eligible = groups()
    members = [int((audience.values[:, 1] == code).sum()) for code in range(3)]
    rarest = int(np.argmin(members))
    assert members[rarest] + 1 < sorted(members)[1]
    for min_cell, wanted in ((members[rarest], {0, 1, 2}), (members[rarest] + 1, {0, 1, 2} - {rarest})):
        shown = {row.level for row in read_profile(QUERY, sums(), 0.0, min_cell - 0.5) if row.feature == "plan"}
        assert shown == wanted


def test_what_the_others_leave_of_a_group_is_noisier_than_the_category_itself() -> None:
    """Why no second category has to be left out beside one that is too small."""
    shares = np.array([[row.audience.value for row in profile[1:4]] for profile in released(8.0, 400)])
    left = 1.0 - shares[:, :2].sum(axis=1)
    size = math.sqrt(2.0**2 + 2 * len(BASIS.blocks)) / math.sqrt(len(BASIS.blocks))  # in units of a category's noise
    assert left.std() / shares[:, 2].std() == pytest.approx(size, rel=0.15)
