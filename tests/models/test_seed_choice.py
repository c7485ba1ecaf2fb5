"""The seed survey and the rule: one person moves nothing but that person, exact bounds, sizes, strict documents."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortium.models.scaler import Scaler
from cohortium.models.seed_choice import (
    SeedRule,
    SeedSurvey,
    SeedSurveyQuery,
    choose_seeds,
    pooled_direction,
    read_survey,
    seed_direction,
)
from cohortium.privacy.query import SCALE, QuerySpec, bounded_total
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import CohortiumError, Defect, RefusedError

D = 4
NAMES = tuple(f"f{i}" for i in range(D))
BOX = Scaler(NAMES, np.zeros(D, dtype=np.bool_), np.zeros(D), np.ones(D))
CELLS = np.array([[-0.5, 0, 0, 0], [0.5, 0, 0, 0]], dtype=np.float64)
KEY = bytes(range(32))


def people(n: int = 2000, listed: float = 0.3, wrong: float = 0.3, seed: int = 0) -> CustomerTable:
    """The listed lie towards (1, 1, 0, 0), but for a share `wrong` of them who are like everybody."""
    rng = np.random.default_rng(seed)
    is_listed = rng.random(n) < listed
    valued = is_listed & (rng.random(n) >= wrong)
    points = rng.normal(0.0, 0.2, (n, D)) + 0.3 * valued[:, np.newaxis] * np.array([1, 1, 0, 0])
    values = np.column_stack([np.clip((points + 1) / 2, 0, 1), is_listed])
    return CustomerTable((*NAMES, "@seed"), values, np.array([f"k{i:05d}" for i in range(n)]))


def query(cells: NDArray[np.float64] = CELLS, radius: float = 1.0, weight: float = 0.25) -> SeedSurveyQuery:
    return SeedSurveyQuery(BOX, "@seed", np.zeros(D), radius, cells, weight)


def listed_of(table: CustomerTable) -> CustomerTable:
    return table.take(table.values[:, -1] > 0.5)


def survey_of(table: CustomerTable, std: float = 0.0, question: SeedSurveyQuery | None = None) -> SeedSurvey:
    question = question or query()
    values = bounded_total(question, table) / SCALE
    return read_survey(question, values + np.random.default_rng(9).normal(0, std, question.width), std)


def covariance_of(table: CustomerTable) -> NDArray[np.float64]:
    points = BOX.transform(table.values[:, :D])
    return np.asarray(points.T @ points / len(points))


def test_the_survey_is_the_sum_of_the_listed_and_their_cells() -> None:
    table = people()
    points = BOX.transform(listed_of(table).values[:, :D])
    survey = survey_of(table)
    clipped = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1.0)
    np.testing.assert_allclose(survey.total, clipped.sum(axis=0), atol=1e-3)
    np.testing.assert_allclose(survey.counts, [(points[:, 0] <= 0).sum(), (points[:, 0] > 0).sum()], atol=1e-6)


def test_people_who_are_not_listed_add_nothing() -> None:
    table = people()
    np.testing.assert_array_equal(bounded_total(query(), table), bounded_total(query(), listed_of(table)))


def test_the_bound_is_exact_and_reached_by_somebody_at_the_radius() -> None:
    corner = CustomerTable((*NAMES, "@seed"), np.ones((1, D + 1)), np.arange(1))
    squares = int((bounded_total(query(), corner).astype(object) ** 2).sum())
    assert 0.9999 < squares / query().bound_squared <= 1


def test_removing_a_person_changes_nobody_elses_survey_or_membership() -> None:
    table = people(500)
    rule = choose_seeds(query(), survey_of(people(), 2.0), covariance_of(people()), size=200).rule
    contributed, kept = query().contribute(table), rule.kept(table, KEY)
    assert 0 < kept.sum() < len(table)
    rng = np.random.default_rng(3)
    for _ in range(20):
        rest = rng.random(len(table)) < rng.uniform(0.05, 1.0)
        part = table.take(rest)
        np.testing.assert_array_equal(query().contribute(part).values, contributed.values[rest])
        np.testing.assert_array_equal(query().contribute(part).columns, contributed.columns[rest])
        np.testing.assert_array_equal(rule.scores(part), rule.scores(table)[rest])
        np.testing.assert_array_equal(rule.kept(part, KEY), kept[rest])
    for index in range(50):
        np.testing.assert_array_equal(rule.kept(table.take(slice(index, index + 1)), KEY), kept[index : index + 1])


def test_the_chosen_sum_moves_by_one_persons_bound_at_most() -> None:
    table = people(400)
    rule = choose_seeds(query(), survey_of(people(), 2.0), covariance_of(people()), size=200).rule

    def second(part: CustomerTable) -> NDArray[np.int64]:
        values = part.values.copy()
        values[:, -1] *= rule.kept(part, KEY)
        return bounded_total(query(), CustomerTable(part.columns, values, part.keys))

    whole = second(table)
    for index in range(0, 400, 7):
        without = table.take(np.arange(400) != index)
        moved = int(((whole - second(without)).astype(object) ** 2).sum())
        assert moved <= query().bound_squared


def test_those_who_look_like_the_rest_are_left_out() -> None:
    table = people(6000)
    rng = np.random.default_rng(0)
    rng.random(6000)
    listed = table.values[:, -1] > 0.5
    valued = listed & (rng.random(6000) >= 0.3)
    choice = choose_seeds(query(), survey_of(table, 3.0), covariance_of(table))
    kept = np.zeros(6000, dtype=np.bool_)
    kept[listed] = choice.rule.kept(listed_of(table), KEY)
    assert valued[listed].mean() == pytest.approx(0.7, abs=0.03)
    assert valued[kept].mean() > 0.8
    assert kept[valued].mean() > 0.85
    assert choice.alike == pytest.approx(1 - kept[listed].mean(), abs=0.06)
    assert choice.expected == pytest.approx(kept.sum(), rel=0.1)


@pytest.mark.parametrize(("depth", "share"), [(0.0, 0.5), (1.0, 0.159), (-1.0, 0.841)])
def test_the_cut_is_in_standard_deviations_around_the_mean_of_all(depth: float, share: float) -> None:
    table = people(20_000, listed=0.02, wrong=0.0)
    table.values[:, :D] += 0.1  # the mean of all is not the middle of the box
    points = BOX.transform(table.values[:, :D])
    centre, radius = points.mean(axis=0), 2.0
    question = SeedSurveyQuery(BOX, "@seed", centre, radius, CELLS, 0.25)
    covariance = (points - centre).T @ (points - centre) / len(points) / radius**2
    rule = choose_seeds(question, survey_of(table, 0.0, question), covariance, depth=depth).rule
    assert (rule.scores(table) >= rule.cutoff).mean() == pytest.approx(share, abs=0.03)


def test_the_estimate_of_who_remains_is_not_flattered_by_the_noise() -> None:
    table = people(4000, wrong=1.0)
    listed, clean, covariance = listed_of(table), survey_of(table), covariance_of(table)
    rng, told, seen = np.random.default_rng(6), [], []
    for _ in range(40):
        survey = SeedSurvey(clean.counts, clean.total + rng.normal(0, 300.0, D), 0.0, 300.0)
        choice = choose_seeds(query(), survey, covariance)
        told.append(1 - choice.alike)
        seen.append(choice.rule.kept(listed, KEY).mean())
    assert np.mean(told) == pytest.approx(np.mean(seen), abs=0.1)


@pytest.mark.parametrize("size", [100, 400, 900])
def test_a_size_is_met_in_expectation(size: int) -> None:
    table = people(6000)
    choice = choose_seeds(query(), survey_of(table, 1.0), covariance_of(table), size=size, depth=-math.inf)
    counts = [choice.rule.kept(listed_of(table), bytes([k]) * 32).sum() for k in range(30)]
    assert np.mean(counts) == pytest.approx(size, abs=4 * math.sqrt(size / 30) + 0.02 * size)
    assert len(set(counts)) > 5, "the draw is by the key"
    assert choice.expected == pytest.approx(size)
    assert any("A larger seed is not noisier" in line for line in choice.advice())


def test_a_size_beyond_the_list_keeps_the_list() -> None:
    table = people()
    choice = choose_seeds(query(), survey_of(table), covariance_of(table), size=10**6, depth=-math.inf)
    assert choice.rule.kept(listed_of(table), KEY).all()
    assert not any("larger seed" in line for line in choice.advice())


def test_no_cell_holds_more_than_its_share_of_the_kept() -> None:
    table = people(8000, wrong=0.0)
    listed = listed_of(table)
    right = BOX.transform(listed.values[:, :D])[:, 0] > 0
    assert right.mean() > 0.85
    choice = choose_seeds(query(), survey_of(table, 1.0), covariance_of(table), size=300, most=0.6, depth=-math.inf)
    kept = choice.rule.kept(listed, KEY)
    assert right[kept].mean() == pytest.approx(0.6, abs=0.09)
    assert kept.sum() == pytest.approx(300, abs=70)
    assert choice.capped == 1
    assert "1 groups were thinned" in choice.advice()[1]


def test_the_direction_is_fishers_where_there_is_no_noise() -> None:
    table = people(20_000, wrong=0.0)
    direction = seed_direction(survey_of(table, question=query(radius=3.0)), covariance_of(table) / 9.0)
    points = BOX.transform(listed_of(table).values[:, :D])
    fisher = np.linalg.solve(covariance_of(table), points.mean(axis=0))
    assert direction @ fisher / np.linalg.norm(direction) / np.linalg.norm(fisher) > 0.999


def test_noise_shortens_the_direction_and_the_pool_is_nearer_than_its_parts() -> None:
    table = people(4000)
    covariance, clean = covariance_of(table), survey_of(table)
    truth = seed_direction(clean, covariance)
    rng = np.random.default_rng(5)

    def noisy(std: float) -> SeedSurvey:
        return SeedSurvey(clean.counts, clean.total + rng.normal(0, std, D), std, std)

    shrunk = seed_direction(SeedSurvey(clean.counts, clean.total, 99.0, 300.0), covariance)
    assert np.linalg.norm(shrunk) < 0.8 * np.linalg.norm(truth)

    def cosine(direction: NDArray[np.float64]) -> float:
        return float(direction @ truth / np.linalg.norm(direction) / np.linalg.norm(truth))

    parts, pools = [], []
    for _ in range(200):
        one, other = noisy(150.0), noisy(150.0)
        parts.append(cosine(seed_direction(one, covariance)))
        pools.append(cosine(pooled_direction(one, other, covariance)))
    assert np.mean(pools) > np.mean(parts) + 0.02


def test_a_noisy_covariance_with_negative_eigenvalues_gives_a_finite_direction() -> None:
    covariance = np.diag([0.05, 0.05, 0.04, -0.01])
    assert np.isfinite(seed_direction(survey_of(people(), 5.0), covariance)).all()
    assert np.isfinite(seed_direction(survey_of(people(), 5.0), np.zeros((D, D)))).all()


def test_survey_and_rule_travel_and_come_back_the_same() -> None:
    question = query()
    again = SeedSurveyQuery.from_spec(question.spec())
    np.testing.assert_array_equal(bounded_total(again, people()), bounded_total(question, people()))
    for depth in (0.0, -math.inf):
        choice = choose_seeds(question, survey_of(people(), 2.0), covariance_of(people()), size=200, depth=depth)
        rule = SeedRule.from_spec(*choice.rule.spec())
        np.testing.assert_array_equal(rule.kept(people(), KEY), choice.rule.kept(people(), KEY))


def _with(spec: QuerySpec, name: str, value: Any) -> QuerySpec:
    if name in spec.arrays:
        return QuerySpec(spec.kind, spec.scalars, {**spec.arrays, name: value})
    return QuerySpec(spec.kind, {**spec.scalars, name: value}, spec.arrays)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "f0"),
        ("seed", 3),
        ("features", ["f0"]),
        ("centre", np.zeros(3)),
        ("centre", np.full(D, np.nan)),
        ("centre", np.full(D, 1.5)),
        ("cells", np.zeros((0, D))),
        ("cells", np.zeros((300, D))),
        ("cells", np.full((1, D), 3.0)),
        ("limits", np.array([0.0, 0.25])),
        ("limits", np.array([100.0, 0.25])),
        ("limits", np.array([1.0, 0.0])),
        ("limits", np.array([1.0, 2.0])),
        ("limits", np.array([np.nan, 0.25])),
        ("limits", np.array([1.0])),
        ("extra", 1),
    ],
)
def test_a_survey_that_was_never_written_so_is_refused(name: str, value: Any) -> None:
    with pytest.raises(RefusedError):
        SeedSurveyQuery.from_spec(_with(query().spec(), name, value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("direction", np.full(D, np.inf)),
        ("direction", np.zeros(2)),
        ("rates", np.array([0.5, 1.5])),
        ("rates", np.array([0.5])),
        ("rates", np.array([0.5, np.nan])),
        ("cutoff", np.array([np.nan])),
        ("cells", np.zeros((2, 3))),
    ],
)
def test_a_rule_that_was_never_written_so_is_refused(name: str, value: Any) -> None:
    scalars, arrays = choose_seeds(query(), survey_of(people()), covariance_of(people())).rule.spec()
    with pytest.raises(RefusedError):
        SeedRule.from_spec(scalars, {**arrays, name: value})


def test_bad_wishes_are_named() -> None:
    survey, covariance = survey_of(people()), covariance_of(people())
    with pytest.raises(CohortiumError, match="never used"):
        choose_seeds(query(), survey, covariance, size=99)
    for most in (0.0, 1.1, 0.3):
        with pytest.raises(CohortiumError, match="largest share"):
            choose_seeds(query(), survey, covariance, most=most)
    with pytest.raises(RefusedError, match="too few"):
        choose_seeds(query(), SeedSurvey(np.array([3.0, 4.0]), np.zeros(D), 1.0, 1.0), covariance)
    with pytest.raises(Defect, match="key"):
        choose_seeds(query(), survey, covariance).rule.kept(people(), b"short")
