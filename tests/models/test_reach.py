"""Reach and dilution: counted exactly, bands that cover, levels that keep their locks, nothing small shown."""

from __future__ import annotations

import json
import math
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from cohortium.models.basis import Basis, Block
from cohortium.models.contest import ContestQuery, choose_ranker, percentile_noise, percentiles, read_contest
from cohortium.models.features import Rows, on_weight_grid
from cohortium.models.levels import PROTECTION, reach_curve, why_suppressed
from cohortium.models.ranker import Ranker
from cohortium.models.reach import ScoreCounts, ScoreCurveQuery, read_score_counts, refined_edges
from cohortium.models.scorebins import ScoreBins, is_seed, standard_edges
from cohortium.models.validation import Estimate, Validation
from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.privacy.query import SCALE, QuerySpec, bounded_total
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import PlanError, RefusedError
from cohortium.study.reach import (
    STANDARD_LEVELS,
    LevelTarget,
    Lock,
    Measured,
    ReachCurve,
    ReachLevel,
    even_levels,
)

EDGES = np.linspace(-5.0, 6.0, 129)[1:-1]


class SimulatedBits:
    """Seeded words for simulation; never a source of protection."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def words(self, count: int) -> NDArray[np.uint64]:
        return self._rng.integers(0, 2**64, count, dtype=np.uint64)


def line(*weights: float) -> Ranker:
    """Scores x, y -> weights[0] x + weights[1] y, nearly: values between -8 and 8 are seen in steps of 1/90."""
    rows = Rows(Basis((Block("x", low=-8.0, high=8.0), Block("y", low=-8.0, high=8.0))), np.zeros(4), 4.0)
    steps = [8.0 * math.sqrt(2.0) * weight for weight in weights]
    return Ranker(rows, on_weight_grid(np.array([steps[0], 0.0, steps[1], 0.0])))


FIRST, SECOND = ScoreBins(line(1.0, 0.0), EDGES), ScoreBins(line(0.8, 0.3), EDGES[::2])


def table(x: Any, seed: Any, y: Any = None) -> CustomerTable:
    values = np.column_stack([x, np.zeros(len(x)) if y is None else y, seed]).astype(np.float64)
    return CustomerTable(("x", "y", "@seed"), values, np.arange(len(values)))


def people(n: int = 20_000, seeds: float = 0.05, seed: int = 0) -> CustomerTable:
    rng = np.random.default_rng(seed)
    is_seed = rng.random(n) < seeds
    x, y = rng.normal(size=(2, n)) + 1.2 * is_seed * np.array([[1.0], [0.5]])
    return table(x, is_seed, y)


def scores(who: CustomerTable, ranker: Ranker = FIRST.ranker) -> NDArray[np.float64]:
    return ranker.scores(who)


def release(query: Any, who: CustomerTable, std: float, bits: int = 1) -> NDArray[np.float64]:
    return noised(query, bounded_total(query, who), std, bits)


def noised(query: Any, total: NDArray[np.int64], std: float, bits: int) -> NDArray[np.float64]:
    if std == 0.0:
        return np.asarray(total / SCALE)
    return np.asarray((total + sample_discrete_gaussian(round(std * SCALE), query.width, SimulatedBits(bits))) / SCALE)


@cache
def crowd() -> CustomerTable:
    return people(40_000)


@cache
def crowd_total() -> NDArray[np.int64]:
    """The exact sum behind `counts(crowd(), ...)`, on which many draws of noise are put."""
    return bounded_total(ScoreCurveQuery((FIRST,)), crowd())


def counts(who: CustomerTable, std: float = 0.0, bits: int = 1, scale: ScoreBins = FIRST) -> Validation:
    query = ScoreCurveQuery((scale,))
    total = crowd_total() if who is crowd() and scale is FIRST else bounded_total(query, who)
    return Validation(*read_score_counts(query, noised(query, total, std, bits), std)[0])


def bump(total: float = 20_000, std: float = 20.0, noisy: int | None = None) -> ScoreCounts:
    """Counts of a bell of people, with noise of the released kind when seeded."""
    middle = np.concatenate([[-5.0], (EDGES[1:] + EDGES[:-1]) / 2, [6.0]])[::-1]
    shape = np.exp(-(middle**2) / 2)
    noise = counts(people(0), std, noisy).rest.counts if noisy is not None else 0.0
    return ScoreCounts(EDGES, total * shape / shape.sum() + noise, std)


def unseeded(rest: ScoreCounts) -> Validation:
    """Counts of people of whom nobody is a seed."""
    return Validation(ScoreCounts(rest.edges, np.zeros(len(rest.counts)), rest.std), rest)


# --- the question ----------------------------------------------------------------------------------------------------


def test_without_noise_the_counts_are_those_of_the_bins_of_seeds_and_rest_by_ranker() -> None:
    who = people(3000)
    query = ScoreCurveQuery((FIRST, SECOND))
    decoded = read_score_counts(query, release(query, who, 0.0), 1.0)
    for scale, found in zip(query.scales, decoded, strict=True):
        for group, mask in zip(found, (is_seed(who), ~is_seed(who)), strict=True):
            own = scale.ranker.scores(who.take(mask))
            expected = np.histogram(own, [-np.inf, *scale.edges, np.inf])[0][::-1]
            np.testing.assert_allclose(group.counts, expected, atol=1e-6)
            np.testing.assert_allclose(group.reach[:-1], [(own >= e).sum() for e in scale.edges[::-1]], atol=1e-6)


@pytest.mark.parametrize("bins", [2, 3, 64, 256])
def test_the_bound_is_reached_and_kept_by_everybody(bins: int) -> None:
    who = table(np.linspace(-8, 8, bins), np.arange(bins) % 2)
    scale = ScoreBins(FIRST.ranker, np.unique(scores(who))[1:])
    query = ScoreCurveQuery((scale, scale))
    squares = (query.contribute(who).values.astype(object) ** 2).sum(axis=1)
    assert sorted(scale.places(who)) == list(range(bins))
    assert max(squares) == query.bound_squared
    assert min(squares) > 0.9999 * query.bound_squared
    assert 0.9999 * 2 * SCALE**2 < query.bound_squared <= 2 * SCALE**2


def test_an_edge_belongs_to_the_bin_above_it_and_extreme_people_stand_outermost() -> None:
    who = table([1.0, 1.0, 0.9, 0.0, -1e300, 1e300], [1, 0, 0, 0, 0, 0])
    found = counts(who, scale=ScoreBins(FIRST.ranker, scores(who)[[3, 0]]))
    np.testing.assert_allclose(found.seeds.counts, [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found.rest.counts, [2, 2, 1], atol=1e-6)


@pytest.mark.parametrize("make", [ScoreCurveQuery, lambda s: contest(s)])
def test_people_have_the_same_words_in_any_company(make: Any) -> None:
    who, query = people(300), make((FIRST, SECOND))
    company = query.contribute(who)
    alone = [query.contribute(who.take(slice(i, i + 1))) for i in range(len(who))]
    assert (company.values == np.vstack([each.values for each in alone])).all()
    assert (company.columns == np.vstack([each.columns for each in alone])).all()


def test_noise_of_tails_is_what_the_curve_says() -> None:
    query, bits = ScoreCurveQuery((FIRST,)), SimulatedBits(3)
    runs = []
    for _ in range(2000):
        words = sample_discrete_gaussian(2 * SCALE, query.width, bits) / SCALE
        runs.append(read_score_counts(query, words, 2.0)[0][1])
    spread = np.std([run.reach for run in runs], axis=0)
    np.testing.assert_allclose(spread, runs[0].reach_std, rtol=0.08)  # five standard errors
    assert runs[0].total_std == pytest.approx(runs[0].reach_std[-1])
    assert runs[0].reach_std.max() < 2.0 * 2.45  # against 2 sqrt(128) of plain bins


# --- the wire --------------------------------------------------------------------------------------------------------

XY = {"features": ["x", "y"]}


def contest(scales: tuple[ScoreBins, ...] = (FIRST, SECOND)) -> ContestQuery:
    return ContestQuery(scales, tuple(np.linspace(1, 0, scale.bins) for scale in scales))


@pytest.mark.parametrize("query", [ScoreCurveQuery((FIRST, SECOND)), contest(), contest((FIRST,))])
def test_a_question_survives_the_wire(query: Any) -> None:
    spec, who = query.spec(), people(200)
    again = type(query).from_spec(QuerySpec(spec.kind, json.loads(json.dumps(spec.scalars)), dict(spec.arrays)))
    assert again.bound_squared == query.bound_squared
    assert (bounded_total(again, who) == bounded_total(query, who)).all()


@pytest.mark.parametrize(
    ("scalars", "arrays"),
    [
        ({"rankers": []}, {}),
        ({"rankers": [XY]}, {}),
        ({"rankers": [XY] * 9}, {}),
        ({"rankers": [XY, 3]}, {}),
        ({"rankers": [XY, {"features": ["x", "x"]}]}, {}),
        ({"rankers": None}, {}),
        ({"more": 1}, {}),
        ({}, {"more": np.zeros(1)}),
        ({}, {"edges0": np.zeros(0)}),
        ({}, {"edges0": np.zeros((2, 2))}),
        ({}, {"edges0": np.array([0.0, 0.0])}),
        ({}, {"edges0": np.array([0.0, math.nan])}),
        ({}, {"edges0": np.array([0.0, math.inf])}),
        ({}, {"edges0": np.arange(256.0)}),
        ({}, {"ranker1.ranker": np.zeros(3)}),
    ],
)
def test_a_malformed_score_question_is_refused(scalars: dict[str, Any], arrays: dict[str, Any]) -> None:
    spec = ScoreCurveQuery((FIRST, SECOND)).spec()
    with pytest.raises(RefusedError):
        ScoreCurveQuery.from_spec(QuerySpec(spec.kind, spec.scalars | scalars, spec.arrays | arrays))


@pytest.mark.parametrize(
    ("scalars", "arrays"),
    [
        ({"more": ["rest"]}, {}),
        ({}, {"percentiles0": np.zeros(3)}),
        ({}, {"percentiles0": np.full(len(EDGES) + 1, 1.5)}),
        ({}, {"percentiles0": np.full(len(EDGES) + 1, math.nan)}),
        ({}, {"percentiles2": np.zeros(len(EDGES) + 1)}),
        ({}, {"edges1": EDGES}),
    ],
)
def test_a_malformed_contest_is_refused(scalars: dict[str, Any], arrays: dict[str, Any]) -> None:
    spec = contest().spec()
    with pytest.raises(RefusedError):
        ContestQuery.from_spec(QuerySpec(spec.kind, spec.scalars | scalars, spec.arrays | arrays))


# --- edges -----------------------------------------------------------------------------------------------------------


def test_refined_edges_cut_the_top_eighth_of_people_into_even_parts() -> None:
    who = people(50_000, seeds=0.0)
    edges = refined_edges(counts(who, 10.0).rest, 64)
    assert (np.diff(edges) > 0).all()
    assert len(edges) == 63
    reach = (scores(who) >= edges[::-1][:, np.newaxis]).sum(axis=1) / 50_000
    np.testing.assert_allclose(reach[:32], np.arange(1, 33) / 32 * 0.125, atol=0.004)


@pytest.mark.parametrize("known", [bump(0.0, 1.0), ScoreCounts(EDGES, np.zeros(128), 1.0), bump(20.0, 30.0, 4)])
def test_refined_edges_of_nearly_nobody_are_still_edges(known: ScoreCounts) -> None:
    edges = refined_edges(known, 64)
    assert 1 <= len(edges) < 64
    assert (np.diff(edges) > 0).all()
    assert EDGES[0] <= edges[0] <= edges[-1] <= EDGES[-1]


@pytest.mark.parametrize("mean", [0.0, -3.7, 1e9])
@pytest.mark.parametrize("std", [-1.0, 0.0, 1e-5, 2.0, 1e9])
@pytest.mark.parametrize("bins", [2, 3, 64, 256])
def test_standard_edges_are_distinct_and_as_many_as_asked_for(mean: float, std: float, bins: int) -> None:
    edges = standard_edges(mean, std, bins)
    assert edges.shape == (bins - 1,)
    assert (np.diff(edges) > 0).all()
    assert (edges * 2**32 == np.rint(edges * 2**32)).all()


@pytest.mark.parametrize("bend", [lambda x: x, np.exp, lambda x: x**2, lambda x: np.tanh(x)])
def test_standard_edges_hit_the_levels_of_skewed_scores_too(bend: Any) -> None:
    own = bend(np.random.default_rng(4).normal(size=200_000))
    edges = standard_edges(float(own.mean()), float(own.std()))
    reach = (own.size - np.searchsorted(np.sort(own), edges)) / own.size
    for share in (0.025, 0.05, 0.1):
        assert np.abs(reach - share).min() < 0.1 * share
    assert (edges > np.quantile(own, 0.875)).sum() > 64


@pytest.mark.parametrize(("mean", "std", "bins"), [(math.nan, 1, 8), (0, math.inf, 8), (0, 1, 1), (0, 1, 257)])
def test_edges_without_a_finite_scale_are_a_mistake(mean: float, std: float, bins: int) -> None:
    with pytest.raises(ValueError, match="finite mean"):
        standard_edges(mean, std, bins)


# --- the curve -------------------------------------------------------------------------------------------------------


def test_bands_cover_the_true_reach_as_often_as_they_say() -> None:
    """300 noise seeds of the exact sampler: 92.5-98.5%; the true coverage's standard error here is 1.3%.

    benchmarks/reach.py does 1,000 seeds in four settings.
    """
    who = people(20_000, seeds=0.0)
    query, bits = ScoreCurveQuery((FIRST,)), SimulatedBits(2)
    total, own = bounded_total(query, who), scores(who)
    hits: dict[str, list[bool]] = {"narrow": [], "balanced": [], "broad": [], "curve": []}
    for _ in range(300):
        noisy = (total + sample_discrete_gaussian(12 * SCALE, query.width, bits)) / SCALE
        curve = reach_curve(unseeded(read_score_counts(query, noisy, 12.0)[0][1]), 100)
        for level in curve.levels:
            assert level.point is not None
            hits[level.name].append(_covers(level.point.people, (own >= level.point.cutoff).sum()))
        hits["curve"].extend(_covers(p.people, (own >= p.cutoff).sum()) for p in curve.points[::4])
    covered = {name: float(np.mean(each)) for name, each in hits.items()}
    assert all(0.925 <= value <= 0.985 for value in covered.values()), covered


def _covers(band: Measured, true: float) -> bool:
    return band.low <= true <= band.high


@pytest.mark.parametrize(("total", "std"), [(20_000, 10), (3_000, 40), (100_000, 400), (500, 5), (400, 200)])
def test_shown_points_are_ordered_and_never_less_than_the_minimum_cell_apart(total: float, std: float) -> None:
    for seed in range(15):
        curve = reach_curve(unseeded(bump(total, std, seed)), 100, even_levels(25, 1.0))
        reaches = [point.people for point in curve.points]
        for first, second in pairwise(reaches):
            assert second.value - first.value >= 100
            assert second.low >= first.low
            assert second.high >= first.high
        assert all(each.value >= 100 and each.low >= 0 for each in reaches)
        if curve.eligible is None:
            assert not reaches
        else:
            assert all(curve.eligible.value - each.value >= 100 for each in reaches)
        assert ReachCurve.model_validate_json(curve.model_dump_json()) == curve


def test_levels_are_nested_and_as_near_to_their_shares_as_the_edges_allow() -> None:
    who = people(50_000, seeds=0.0)
    curve = reach_curve(counts(who, 10.0), 100)
    assert [level.name for level in curve.levels] == ["narrow", "balanced", "broad"]
    cutoffs = [level.point.cutoff for level in curve.levels if level.point]
    assert cutoffs == sorted(cutoffs, reverse=True)
    own = scores(who)
    reach = np.array([(own >= edge).sum() for edge in EDGES])
    for level, share in zip(curve.levels, (0.025, 0.05, 0.1), strict=True):
        assert level.point is not None
        best = np.abs(reach - 50_000 * share).min()
        assert abs((own >= level.point.cutoff).sum() - 50_000 * share) <= best + 6 * 2.4 * 10


def test_small_levels_are_suppressed_and_large_ones_stay() -> None:
    curve = reach_curve(unseeded(bump(3_000, 5.0)), 100)
    assert [level.point is None for level in curve.levels] == [True, False, False]
    fine = reach_curve(unseeded(bump(3_000, 5.0)), 100, even_levels(25))
    shown = [level.point.people.value for level in fine.levels if level.point is not None]
    assert len(shown) < 25
    assert all(second - first >= 100 for first, second in pairwise(shown))


@pytest.mark.parametrize(
    "counted",
    [
        bump(0.0, 5.0, 1),
        bump(80.0, 5.0, 2),
        bump(300.0, 1e6, 3),
        counts(people(0), 5.0).rest,
        counts(people(0), 0.0).rest,
    ],
)
def test_where_there_is_nobody_or_only_noise_everything_is_suppressed_or_within_its_band(counted: ScoreCounts) -> None:
    curve = reach_curve(Validation(counted, counted), 100)
    if curve.eligible is None:
        assert curve.points == ()
        assert all(level.point is None for level in curve.levels)
    else:
        assert curve.eligible.low <= 300 <= curve.eligible.high


def test_why_a_level_is_suppressed_follows_from_what_is_released() -> None:
    targets = {target.name: target for target in even_levels(25)}
    curve = reach_curve(unseeded(bump(3_000, 5.0)), 100, tuple(targets.values()))
    found = {
        level.name: why_suppressed(curve, targets[level.name], 100) for level in curve.levels if level.point is None
    }
    assert [name for name, why in found.items() if why == "fewer than 100 people"] == ["bin-01", "bin-02", "bin-03"]
    apart = "less than 100 people apart from another level"
    assert {why for name, why in found.items() if name > "bin-03"} == {apart}
    shown = {level.name: level.point.people.value for level in curve.levels if level.point is not None}
    for name in found:  # 30 people a bin: what is suppressed stands between two that are shown
        assert name < "bin-04" or any(abs(people - 30 * int(name[-2:])) < 100 for people in shown.values())
    assert why_suppressed(curve, None, 1000) == (
        "fewer than 1,000 people, or less than 1,000 people apart from another level"
    )
    nearly = LevelTarget(name="nearly", share=0.95)
    few = reach_curve(unseeded(bump(500, 5.0)), 100, (nearly,))
    assert few.levels[0].point is None
    assert why_suppressed(few, nearly, 100) == "fewer than 100 people would be left out"
    nobody = reach_curve(unseeded(bump(80.0, 5.0)), 100)
    assert why_suppressed(nobody, STANDARD_LEVELS[0], 100) == "fewer than 100 people are eligible"
    alike = reach_curve(counts(table(np.full(5000, 1.3), np.zeros(5000)), 5.0), 100)
    assert why_suppressed(alike, STANDARD_LEVELS[0], 100) == "no cut-off of the score is surely near it"


def test_when_all_scores_are_equal_no_level_can_be_cut_out() -> None:
    who = table(np.full(5000, 1.3), np.zeros(5000))
    curve = reach_curve(counts(who, 5.0), 100)
    assert curve.eligible is not None
    assert all(level.point is None for level in curve.levels)
    assert curve.points == ()


# --- quality ---------------------------------------------------------------------------------------------------------


def test_without_noise_the_quality_is_that_of_the_people() -> None:
    who = crowd()
    validation = counts(who)
    binned, seed = np.searchsorted(EDGES, scores(who), side="right"), who.values[:, 2]
    assert validation.auc is not None
    assert validation.auc.value == pytest.approx(roc_auc_score(seed, binned), abs=1e-6)
    assert validation.auc.noise < 1e-9
    ranked = seed[np.argsort(-scores(who))]
    quality = validation.quality("line")
    for share, measured in zip((0.05, 0.1, 0.2), quality.recall, strict=True):
        assert measured is not None
        assert measured.value == pytest.approx(ranked[: round(share * len(who))].sum() / seed.sum(), abs=0.01)
    deciles = [part.mean() / seed.mean() for part in np.array_split(ranked, 10)]
    np.testing.assert_allclose([d.value for d in quality.deciles if d], deciles, atol=0.12)
    assert np.mean([d.value for d in quality.deciles if d]) == pytest.approx(1.0, abs=1e-6)


def test_dilution_at_a_cutoff_is_that_of_the_people_above_it() -> None:
    who = crowd()
    curve = reach_curve(counts(who), 100)
    seeds, rest = scores(who)[is_seed(who)], scores(who)[~is_seed(who)]
    for point in curve.points[::10]:
        recall, share = (seeds >= point.cutoff).mean(), (rest >= point.cutoff).mean()
        weight = len(seeds) / (len(seeds) + len(rest))
        mixed = weight * recall + (1 - weight) * share
        assert point.recall
        assert point.lift
        assert point.precision
        assert point.recall.value == pytest.approx(recall, abs=1e-5)
        assert point.lift.value == pytest.approx(recall / mixed, rel=1e-4)
        assert point.precision.value == pytest.approx(weight * recall / mixed, rel=1e-4)
    relevance = [point.relevance.value for point in curve.points if point.relevance]
    assert len(relevance) == len(curve.points)
    assert relevance == sorted(relevance, reverse=True)
    assert relevance[0] > relevance[-1] >= 0.5


def test_intervals_of_quality_hold_the_figures_of_the_population() -> None:
    """200 populations and noises: within 90-99.5% each; the standard error of 95% is 1.5% here."""
    exact = counts(people(400_000, seed=99))
    true = exact.dilution(60)
    assert true
    assert true.lift
    assert exact.auc
    expected = {"auc": exact.auc.value, "recall": exact.recall_at(0.1).value, "lift": true.lift.value}
    hits: dict[str, list[bool]] = {name: [] for name in expected}
    share = [np.maximum(c.counts, 0.0) / np.maximum(c.counts, 0.0).sum() for c in (exact.rest, exact.seeds)]
    rng = np.random.default_rng(8)
    ratio = exact.rest.total / exact.seeds.total
    for run in range(200):
        noise = counts(people(0), 4.0, 100 + run)
        seeds, rest = rng.multinomial(1_000, share[1]), rng.multinomial(round(1_000 * ratio), share[0])
        found = Validation(
            ScoreCounts(EDGES, seeds + noise.seeds.counts, 4.0), ScoreCounts(EDGES, rest + noise.rest.counts, 4.0)
        )
        got = found.dilution(60)
        assert got
        bands = {"auc": found.auc, "recall": found.recall_at(0.1), "lift": got.lift}
        for name, estimate in bands.items():
            assert estimate
            hits[name].append(_covers(estimate.measured(), expected[name]))
    covered = {name: float(np.mean(each)) for name, each in hits.items()}
    assert all(0.90 <= value <= 0.995 for value in covered.values()), covered


@pytest.mark.parametrize("seeds", [0.0, 0.0005])
def test_without_enough_seeds_quality_is_hidden_and_reach_is_not(seeds: float) -> None:
    who = people(20_000, seeds=seeds)
    validation = counts(who, 10.0)
    quality = validation.quality("line")
    assert quality.auc is None
    assert quality.recall == (None, None, None)
    assert quality.deciles == (None,) * 10
    curve = reach_curve(validation, 100)
    assert all(level.point is not None and level.point.lift is None for level in curve.levels)


# --- locks and protection --------------------------------------------------------------------------------------------


def locked(lock: Lock, std: float = 10.0, bits: int = 1, **more: Any) -> ReachLevel:
    target = LevelTarget(name="own", locks=(lock,), **more)
    return reach_curve(counts(crowd(), std, bits), 100, (target,)).levels[0]


@pytest.mark.parametrize(
    "lock",
    [
        Lock(measure="people", at_most=1500),
        Lock(measure="people", at_least=1500),
        Lock(measure="share", at_most=0.04),
        Lock(measure="share", at_least=0.04),
        Lock(measure="cutoff", at_least=1.5),
        Lock(measure="relevance", at_least=0.7),
        Lock(measure="lift", at_least=2.5),
        Lock(measure="precision", at_least=0.12),
        Lock(measure="recall", at_least=0.4),
    ],
)
def test_a_lock_holds_at_the_unfavourable_end_and_in_truth(lock: Lock) -> None:
    who = crowd()
    seeds, rest = scores(who)[is_seed(who)], scores(who)[~is_seed(who)]
    for bits in range(1, 4):
        point = locked(lock, bits=bits).point
        assert point is not None
        ends = {
            "people": (point.people.low, point.people.high),
            "share": (point.share, point.share),
            "cutoff": (point.cutoff, point.cutoff),
        }
        if lock.kind == "dilution" or lock.measure == "relevance":
            measured = getattr(point, lock.measure)
            ends[lock.measure] = (measured.low, measured.high)
        low, high = ends[lock.measure]
        assert lock.at_least is None or low >= lock.at_least
        assert lock.at_most is None or high <= lock.at_most
        recall, share = (seeds >= point.cutoff).mean(), (rest >= point.cutoff).mean()
        mix = len(seeds) / (len(seeds) + len(rest))
        lift = recall / (mix * recall + (1 - mix) * share)
        truth = {"people": share * len(rest), "share": share, "cutoff": point.cutoff, "lift": lift, "recall": recall}
        true = (truth | {"precision": mix * lift, "relevance": recall / (recall + share)})[lock.measure]
        assert lock.at_least is None or true >= lock.at_least
        assert lock.at_most is None or true <= lock.at_most


def test_a_lock_by_itself_takes_the_largest_audience_that_keeps_it_or_the_smallest() -> None:
    rest = scores(crowd())[~is_seed(crowd())]
    most, least = locked(Lock(measure="people", at_most=1500)), locked(Lock(measure="people", at_least=1500))
    assert most.point
    assert least.point
    assert 1200 < (rest >= most.point.cutoff).sum() <= 1500 <= (rest >= least.point.cutoff).sum() < 1800


def test_a_locked_share_moves_only_as_far_as_the_lock_needs() -> None:
    free = locked(Lock(measure="people", at_most=30_000), share=0.1).point
    held = locked(Lock(measure="people", at_most=2_000), share=0.1).point
    assert free
    assert held
    assert free.share == pytest.approx(0.1, abs=0.01)
    assert held.people.high <= 2_000 < free.people.value


@pytest.mark.parametrize(
    ("lock", "said"),
    [
        (Lock(measure="lift", at_least=50), r"lift of at least 50: the nearest that is sure is \d"),
        (Lock(measure="people", at_most=20), r"people of at most 20: the nearest that is sure is 2\d\d"),
        (Lock(measure="people", at_least=10**6), r"at least 1,000,000: the nearest that is sure is 3\d,\d\d\d"),
        (Lock(measure="cutoff", at_least=20), r"cutoff of at least 20: the nearest that is sure is \d"),
    ],
)
def test_an_impossible_lock_names_the_nearest_possible(lock: Lock, said: str) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        locked(lock)
    assert caught.value.place == "level own"
    assert caught.value.fix == "loosen the lock"


def test_locks_that_contradict_one_another_or_are_hidden_by_noise_say_so() -> None:
    both = (Lock(measure="people", at_most=800), Lock(measure="recall", at_least=0.9))
    found = counts(crowd(), 10.0)
    with pytest.raises(PlanError, match="all locks at once"):
        reach_curve(found, 100, (LevelTarget(name="own", locks=both),))
    with pytest.raises(PlanError, match="the noise hides it"):
        reach_curve(unseeded(found.rest), 100, (LevelTarget(name="own", locks=both[1:]),))
    with pytest.raises(PlanError, match="large enough"):
        reach_curve(unseeded(bump(50, 1.0)), 100, (LevelTarget(name="own", locks=both[:1]),))


@pytest.mark.parametrize("factor", [0.5, 0.8, 0.95, 1.0, 1.05, 1.3, 2.0])
def test_a_refit_keeps_a_level_within_its_protection_band(factor: float) -> None:
    before, target = 2_000.0 * factor, (LevelTarget(name="own", share=0.05),)
    level = reach_curve(unseeded(bump(40_000, 5.0)), 100, target, {"own": before}).levels[0]
    assert level.point
    assert level.change == pytest.approx(level.point.people.value / before - 1)
    assert PROTECTION[0] * before <= level.point.people.low
    assert level.point.people.high <= PROTECTION[1] * before
    assert level.protected


def test_where_the_protection_band_is_taken_the_level_stands_beside_it_and_the_report_says_so() -> None:
    levels = reach_curve(unseeded(bump(40_000, 5.0)), 100, previous={"narrow": 1_000.0, "balanced": 990.0}).levels
    assert levels[0].protected
    assert levels[1].point
    assert levels[1].point.people.value - (levels[0].point.people.value if levels[0].point else 0.0) >= 100
    assert levels[1].protected is False


def test_a_lock_wins_over_protection_and_the_report_says_so() -> None:
    target = LevelTarget(name="own", share=0.05, locks=(Lock(measure="people", at_most=1_000),))
    level = reach_curve(unseeded(bump(40_000, 5.0)), 100, (target,), {"own": 2_000.0}).levels[0]
    assert level.point
    assert level.point.people.high <= 1_000
    assert level.protected is False
    assert level.change is not None
    assert level.change < -0.4


# --- the contest -----------------------------------------------------------------------------------------------------


def test_a_contest_without_noise_gives_the_aucs_and_their_difference() -> None:
    who = crowd()
    scales = (FIRST, SECOND)
    tables = tuple(percentiles(counts(who, scale=scale).rest) for scale in scales)
    query = ContestQuery(scales, tables)
    found = read_contest(query, release(query, who, 0.0), 0.0, (0.0, 0.0))
    aucs = [roc_auc_score(who.values[:, 2], -scale.places(who)) for scale in scales]
    assert found.seeds == pytest.approx(is_seed(who).sum())
    assert found.auc
    assert found.leads[0]
    assert found.auc.value == pytest.approx(aucs[0], abs=1e-5)
    assert found.leads[0].value == pytest.approx(aucs[1] - aucs[0], abs=2e-3)  # clipping draws it toward 0
    assert (found.leads[0].value > 0) == (aucs[1] > aucs[0])


def test_the_contest_keeps_its_bound_and_only_seeds_add() -> None:
    who, query = people(5_000), contest((FIRST, SECOND, ScoreBins(line(-1.0, 0.0), EDGES)))
    who = CustomerTable(who.columns, np.vstack([who.values, [9.0, 9.0, 1.0]]), np.arange(5_001))
    values = query.contribute(who).values
    assert ((values != 0).any(axis=1) == is_seed(who)).all()
    squares = (values.astype(object) ** 2).sum(axis=1)
    assert 0.9999 * query.bound_squared < max(squares) <= query.bound_squared == SCALE**2 * 3 // 2


def test_the_noise_of_a_lead_is_what_the_contest_says_and_far_below_that_of_two_curves() -> None:
    who = crowd()
    query, bits = contest(), SimulatedBits(6)
    total, leads = bounded_total(query, who), []
    for _ in range(1500):
        noisy = (total + sample_discrete_gaussian(10 * SCALE, query.width, bits)) / SCALE
        found = read_contest(query, noisy, 10.0, (0.0, 0.0))
        assert found.leads[0]
        leads.append(found.leads[0])
    assert np.std([lead.value for lead in leads]) == pytest.approx(np.mean([lead.noise for lead in leads]), rel=0.1)
    first, second = (counts(who, 10.0, scale=scale) for scale in (FIRST, SECOND))
    assert first.auc
    assert second.auc
    assert math.hypot(first.auc.noise, second.auc.noise) > 5 * leads[0].noise


def test_a_contest_of_too_few_seeds_is_hidden_and_the_default_stays() -> None:
    query = contest()
    found = read_contest(query, release(query, people(2_000, seeds=0.0), 10.0), 10.0, (0.0, 0.0))
    assert found.auc is None
    assert found.leads == (None,)
    assert choose_ranker(("raw", "encoder"), found.leads).model_dump(exclude_none=True) == {"ranker": "raw"}


def test_the_highest_lead_wins_unless_noise_is_as_wide_as_the_spread_of_rankers() -> None:
    names = ("raw", "encoder", "prototypes")
    clear = choose_ranker(names, (Estimate(0.01, 0.002, 0.1), Estimate(-0.05, 0.002, 0.1)))
    assert (clear.ranker, clear.rival) == ("encoder", "raw")
    assert clear.margin == pytest.approx(0.01)
    assert clear.margin_std == pytest.approx(0.002)
    assert clear.probability is not None
    assert clear.probability > 0.999
    assert clear.regret is not None
    assert clear.regret < 1e-6
    doubtful = choose_ranker(names, (Estimate(0.02, 0.2, 0.1), None))
    assert (doubtful.ranker, doubtful.rival) == ("raw", "encoder")
    assert doubtful.margin == pytest.approx(-0.02)
    assert doubtful.regret is not None
    mean, std = -0.01, 0.012  # believed before anything is seen; noise of 0.2 says next to nothing
    assert doubtful.regret == pytest.approx(std * norm.pdf(mean / std) + mean * norm.cdf(mean / std), rel=0.03)
    exact = choose_ranker(names[:2], (Estimate(0.0, 0.0, 0.0),))
    assert exact.ranker == "raw"
    assert choose_ranker(names[:1], ()).ranker == "raw"


def test_a_lead_carries_the_noise_of_the_tables_and_no_percentile_has_more_than_said() -> None:
    who, runs = crowd(), []
    for bits in range(60):
        runs.append(percentiles(counts(who, 40.0, 200 + bits).rest))
    said = percentile_noise(counts(who, 40.0).rest)
    assert 0.7 * said < np.std(runs, axis=0).max() < 1.3 * said
    query = contest()
    found = read_contest(query, release(query, who, 0.0), 0.0, (said, 2 * said))
    assert found.leads[0]
    assert found.leads[0].noise == pytest.approx(math.sqrt(5) * said)


def test_percentiles_of_nobody_are_one_half() -> None:
    assert percentile_noise(ScoreCounts(EDGES, np.zeros(128), 1.0)) == 0.5
    assert percentiles(ScoreCounts(EDGES, np.zeros(128), 1.0)).tolist() == [0.5] * 128


# --- what is agreed and released -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: Lock(measure="lift"),
        lambda: Lock(measure="lift", at_most=3),
        lambda: Lock(measure="people", at_least=3, at_most=4),
        lambda: Lock(measure="share", at_most=1.2),
        lambda: Lock(measure="recall", at_least=0),
        lambda: LevelTarget(name="own"),
        lambda: LevelTarget(name="Own", share=0.1),
        lambda: LevelTarget(name="own", share=0.0),
        lambda: Measured(value=3, low=4, high=5),
        lambda: Measured(value=math.nan, low=0, high=1),
    ],
)
def test_what_does_not_hold_together_is_no_document(make: Any) -> None:
    with pytest.raises(ValidationError):
        make()


def test_even_levels_are_one_to_twenty_five_steps() -> None:
    assert [level.share for level in even_levels(5, 0.25)] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25])
    assert even_levels(25)[-1].name == "bin-25"
    for bins in (0, 26):
        with pytest.raises(ValueError, match="1 to 25"):
            even_levels(bins)


def test_a_curve_out_of_order_is_no_document() -> None:
    curve = json.loads(reach_curve(unseeded(bump(40_000, 5.0)), 100).model_dump_json())
    for broken in (
        {"points": curve["points"][::-1]},
        {"levels": curve["levels"][::-1]},
        {"points": curve["points"][:3]},
    ):
        with pytest.raises(ValidationError):
            ReachCurve.model_validate(curve | broken)


@pytest.mark.parametrize("bits", range(6))
def test_recall_never_falls_along_the_curve_whatever_the_noise(bits: int) -> None:
    recalls = [point.recall for point in reach_curve(counts(crowd(), 40.0, bits), 100).points]
    known = [recall for recall in recalls if recall is not None]
    assert len(known) == len(recalls) > 5
    for first, second in pairwise(known):
        assert (first.value, first.low, first.high) <= (second.value, second.low, second.high)
        assert first.value <= second.value
        assert first.low <= second.low
        assert first.high <= second.high


def test_without_noise_recalls_are_those_of_the_people() -> None:
    points = reach_curve(counts(crowd()), 100).points
    found, seed = scores(crowd()), crowd().values[:, 2] > 0.5
    for point in points:
        assert point.recall is not None
        assert point.recall.value == pytest.approx((found[seed] >= point.cutoff).mean(), abs=1e-4)
