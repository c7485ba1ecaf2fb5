"""The rule that a released model suggests: where it cuts, whom it thins, and that a person moves nobody else."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortium.models.basis import Basis, Block
from cohortium.models.features import Rows, on_weight_grid
from cohortium.models.ranker import Ranker
from cohortium.models.seed_choice import SeedRule, seed_rule
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import CohortiumError, Defect, RefusedError
from cohortium.study.reach import CurvePoint, Measured, ReachCurve

KEY = bytes(range(32))
ROWS = Rows(Basis((Block("visits", low=0.0, high=10.0, degree=1),)), np.zeros(1), 4.0)
RANKER = Ranker(ROWS, on_weight_grid(np.array([1.0])))
"""Scores grow with visits, from -1 to 1."""

SHARES, RECALLS = (0.02, 0.1, 0.2, 0.4, 0.7), (0.3, 0.7, 0.78, 0.9, 0.95)
CUTOFFS = (0.4, 0.2, 0.1, 0.0, -0.2)
BEST = 0.2


def people(visits: NDArray[np.float64]) -> CustomerTable:
    return CustomerTable(("visits",), visits[:, np.newaxis], np.array([f"k{i:05d}" for i in range(len(visits))]))


def many(n: int = 4000) -> CustomerTable:
    return people(np.random.default_rng(1).uniform(0.0, 10.0, n))


def measured(value: float, error: float = 0.02) -> Measured:
    return Measured(value=value, low=value - error, high=value + error)


def curve(
    recalls: tuple[float | None, ...] = RECALLS, shares: tuple[float, ...] = SHARES, error: float = 0.02
) -> ReachCurve:
    points = tuple(
        CurvePoint(
            cutoff=cutoff,
            people=measured(1000 * share),
            share=share,
            recall=None if recall is None else measured(recall, error),
        )
        for cutoff, share, recall in zip(CUTOFFS, shares, recalls, strict=True)
    )
    return ReachCurve(eligible=None, points=points, levels=())


def test_who_looks_like_the_rest_is_below_the_cutoff_where_seeds_and_others_part_most() -> None:
    table = many()
    passed, kept = seed_rule(RANKER, curve()).kept(table, KEY)
    scores = RANKER.scores(table)
    assert passed.tolist() == (scores >= BEST).tolist()
    assert kept.tolist() == passed.tolist(), "all who pass stay where nothing is to be thinned"
    assert 0 < passed.sum() < len(table)


def test_a_score_at_the_cutoff_stays() -> None:
    at, below = people(np.array([7.0])), people(np.array([6.99]))
    cutoff = float(RANKER.scores(at)[0])
    rule = SeedRule(RANKER, cutoff, np.empty(0), np.ones(1))
    assert rule.kept(at, KEY)[1].tolist() == [True]
    assert rule.kept(below, KEY)[1].tolist() == [False]


@pytest.mark.parametrize("strangers", [0.1, 0.3, 0.6])
def test_strangers_among_the_models_seeds_do_not_move_the_cutoff(strangers: float) -> None:
    mixed = tuple((1 - strangers) * r + strangers * s for r, s in zip(RECALLS, SHARES, strict=True))
    assert seed_rule(RANKER, curve(mixed)).cutoff == seed_rule(RANKER, curve()).cutoff == BEST


def test_points_whose_recall_is_hidden_are_passed_over() -> None:
    assert seed_rule(RANKER, curve((0.3, None, 0.78, 0.9, None))).cutoff == 0.1


def test_a_person_moves_nobody_elses_membership() -> None:
    table, rule = many(), seed_rule(RANKER, curve(), 0.3)
    passed, kept = rule.kept(table, KEY)
    assert 0 < kept.sum() < passed.sum()
    some = np.random.default_rng(2).random(len(table)) < 0.5
    for given, alone in zip((passed, kept), rule.kept(table.take(some), KEY), strict=True):
        assert alone.tolist() == given[some].tolist()
    one = int(np.flatnonzero(kept)[0])
    assert rule.kept(table.take(slice(one, one + 1)), KEY)[1].tolist() == [True]


def test_a_draw_follows_from_id_and_key() -> None:
    table, rule = many(), seed_rule(RANKER, curve(), 0.3)
    kept = rule.kept(table, KEY)[1]
    assert rule.kept(table, KEY)[1].tolist() == kept.tolist()
    assert rule.kept(table, KEY[::-1])[1].tolist() != kept.tolist()
    renamed = CustomerTable(table.columns, table.values, np.array([f"x{i}" for i in range(len(table))]))
    assert rule.kept(renamed, KEY)[1].tolist() != kept.tolist()


def as_the_seeds(n: int = 20_000) -> CustomerTable:
    """People whose scores fall between the curve's cut-offs as its seeds' do."""
    rng = np.random.default_rng(3)
    above = np.array([0.0, *RECALLS])
    scores = np.interp(rng.random(n) * above[-1], above, [0.5, *CUTOFFS])
    return people((scores + 1) * 5)


@pytest.mark.parametrize("share", [0.05, 0.35, 0.8])
def test_the_share_is_met_in_expectation(share: float) -> None:
    passed, kept = seed_rule(RANKER, curve(), share).kept(as_the_seeds(), KEY)
    wanted = share * passed.sum()
    assert abs(kept.sum() - wanted) < 4 * np.sqrt(wanted)


def test_the_fullest_bands_are_thinned_first_and_the_others_stay_whole() -> None:
    table = as_the_seeds()
    whole, rule = seed_rule(RANKER, curve()), seed_rule(RANKER, curve(), 0.8)
    assert whole.rates.tolist() == [1.0] * len(whole.rates)
    band = np.searchsorted(rule.edges, RANKER.scores(table), side="right")
    crowd, stays = (
        np.bincount(band[mask], minlength=len(rule.rates))
        for mask in (whole.kept(table, KEY)[0], rule.kept(table, KEY)[1])
    )
    order = np.argsort(crowd)
    assert all(rule.rates[a] >= rule.rates[b] for a, b in pairwise(order.tolist()))
    assert rule.rates[order[0]] == 1.0
    assert rule.rates[order[-1]] < 0.8
    assert stays[order[0]] == crowd[order[0]]
    assert stays.max() / stays.sum() < crowd.max() / crowd.sum() - 0.05


def test_the_best_point_may_be_the_highest() -> None:
    rule = seed_rule(RANKER, curve((0.9, 0.91, 0.92, 0.93, 0.95)), 0.5)
    passed, kept = rule.kept(many(), KEY)
    assert rule.cutoff == CUTOFFS[0]
    assert abs(kept.sum() - 0.5 * passed.sum()) < 4 * np.sqrt(passed.sum() / 4)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_that_is_none_is_named(share: float) -> None:
    with pytest.raises(CohortiumError, match="no such share") as caught:
        seed_rule(RANKER, curve(), share)
    assert caught.value.fix


@pytest.mark.parametrize(
    "useless",
    [
        curve((None,) * 5),
        curve(tuple(s + 0.01 for s in SHARES)),
        curve(error=0.61),
        ReachCurve(eligible=None, points=(), levels=()),
    ],
    ids=["hidden", "chance", "within the noise", "empty"],
)
def test_a_curve_that_tells_nothing_gives_no_rule(useless: ReachCurve) -> None:
    with pytest.raises(RefusedError, match="does not tell its seeds from others") as caught:
        seed_rule(RANKER, useless)
    assert caught.value.fix


def test_a_key_of_the_wrong_length_is_our_mistake() -> None:
    with pytest.raises(Defect, match="key"):
        seed_rule(RANKER, curve()).kept(many(10), b"short")
