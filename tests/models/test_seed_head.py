"""The head: finds a known direction as noise goes away, and nothing where there is nothing but noise."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cohortium.models.basis import Basis, Block
from cohortium.models.features import Rows, on_row_grid, on_weight_grid
from cohortium.models.row_moments import FrameSumQuery, RowMomentsQuery, make_frame, read_row_moments
from cohortium.models.rows import SEED
from cohortium.models.seed_head import (
    FrameFacts,
    HeadState,
    first_head,
    intercept_and_curvature,
    next_head,
    row_weights,
)
from cohortium.models.seed_queries import SEED_COUNT, SeedGradientQuery, SeedSumQuery
from cohortium.privacy.query import SCALE, SumQuery, bounded_total
from cohortium.privacy.table import CustomerTable

NUMBERS = ("a", "b", "c", "d", "e")
BASIS = Basis((*(Block(name, low=-2.5, high=2.5) for name in NUMBERS), Block("g", levels=4)))
COLUMNS = (*BASIS.features, SEED)


@cache
def crowd(seed: int = 0, n: int = 20_000) -> CustomerTable:
    """Seeds, about one in ten, lie along a, against b, and in one group."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (n, 5))
    x[:, 1] = 0.6 * x[:, 0] + 0.8 * x[:, 1]
    group = rng.choice(4, n, p=[0.5, 0.3, 0.15, 0.05])
    logit = -3.2 + 1.2 * x[:, 0] - 0.9 * x[:, 1] + 0.5 * x[:, 2] + 1.0 * (group == 2)
    return CustomerTable(COLUMNS, np.column_stack([x, group, rng.random(n) < 1 / (1 + np.exp(-logit))]), np.arange(n))


def noisy(query: SumQuery, people: CustomerTable, std: float, rng: np.random.Generator) -> NDArray[np.float64]:
    return np.asarray(bounded_total(query, people) / SCALE + rng.normal(0, std, query.width))


def learnt_facts(people: CustomerTable, std: float, seed: int = 0) -> FrameFacts:
    """What an encoder's study releases, with noise of `std` units in every word."""
    rng = np.random.default_rng(seed)
    centre = on_row_grid(BASIS.rows(people).mean(axis=0) / 2**10)
    rows = Rows(BASIS, centre, 1.5)
    query = RowMomentsQuery(rows)
    moments = read_row_moments(query, noisy(query, people, std, rng), std)
    frame, variances, factors = make_frame(rows, moments)
    unit = frame.radius / moments.people
    return FrameFacts(
        frame=frame,
        people=moments.people,
        variances=variances,
        factors=factors,
        entry_std=moments.entry_std,
        row_mean=moments.mean,
        mean=noisy(FrameSumQuery(frame), people, std, rng) * unit,
        mean_std=std * unit,
    )


def learn(people: CustomerTable, facts: FrameFacts, std: float, steps: int = 4, seed: int = 1) -> list[HeadState]:
    """The belief after the seeds' sum and after every gradient."""
    rng, radius = np.random.default_rng(seed), facts.frame.radius
    total = SeedSumQuery(facts.frame)
    summed, count = total.read(noisy(total, people, std, rng))
    states = [first_head(facts, summed, count, std * radius, std / SEED_COUNT)]
    for _ in range(steps):
        intercept, curvature = intercept_and_curvature(facts, states[-1])
        placed = float(on_weight_grid(np.array([intercept]))[0])
        query = SeedGradientQuery(facts.frame, row_weights(facts, states[-1].weights), placed)
        gradient = query.read(noisy(query, people, std, rng))
        states.append(next_head(facts, states[-1], curvature, gradient, std * radius))
    return states


def auc(facts: FrameFacts, state: HeadState, people: CustomerTable) -> float:
    scores = facts.frame.rows.of(people) @ row_weights(facts, state.weights)
    return float(roc_auc_score(people.values[:, -1], scores))


@cache
def best_auc() -> float:
    """Of scikit-learn's logistic regression on the same rows, on other people."""
    rows = Rows(BASIS, np.zeros(BASIS.width), 3.0)
    model = LogisticRegression(C=np.inf, max_iter=2000).fit(rows.of(crowd()), crowd().values[:, -1])
    return float(roc_auc_score(crowd(1).values[:, -1], model.decision_function(rows.of(crowd(1)))))


@cache
def facts_of(std: float) -> FrameFacts:
    return learnt_facts(crowd(), std)


@pytest.mark.parametrize(("std", "lost"), [(0.0, 0.003), (1e-3, 0.003), (1.0, 0.004), (10.0, 0.02)])
def test_the_head_is_as_good_as_scikit_learns_while_noise_allows(std: float, lost: float) -> None:
    """One unit is the most that a person adds: noise of ten is about epsilon 1 for all of these questions."""
    states = learn(crowd(), facts_of(std), std)
    assert best_auc() > 0.78
    assert auc(facts_of(std), states[-1], crowd(1)) > best_auc() - lost


def test_the_weights_go_to_those_of_scikit_learn() -> None:
    """On uncentred, unclipped rows; only what rows tell apart can be compared: their scores."""
    state = learn(crowd(), facts_of(0.0), 0.0, steps=12)[-1]
    rows = facts_of(0.0).frame.rows.of(crowd())
    scores = rows @ row_weights(facts_of(0.0), state.weights)
    model = LogisticRegression(C=np.inf, max_iter=2000).fit(rows, crowd().values[:, -1])
    best = rows @ model.coef_[0]
    assert np.corrcoef(scores, best)[0, 1] > 0.995
    assert np.std(scores) / np.std(best) == pytest.approx(1.0, abs=0.1), "the model's unit, not only its direction"
    intercept, curvature = intercept_and_curvature(facts_of(0.0), state)
    chance = 1 / (1 + np.exp(-(scores + intercept)))
    assert chance.mean() == pytest.approx(crowd().values[:, -1].mean(), rel=0.05)
    assert curvature == pytest.approx(float((chance * (1 - chance)).mean()), rel=0.05)


def test_gradients_improve_on_the_discriminant() -> None:
    states = learn(crowd(), facts_of(0.0), 0.0)
    found = [auc(facts_of(0.0), state, crowd(1)) for state in states]
    assert found[-1] > found[0] - 1e-4
    loss = [log_loss(facts_of(0.0), state) for state in states]
    assert loss[-1] < loss[0]


def log_loss(facts: FrameFacts, state: HeadState) -> float:
    intercept, _ = intercept_and_curvature(facts, state)
    logits = facts.frame.rows.of(crowd()) @ row_weights(facts, state.weights) + intercept
    return float(np.logaddexp(0, np.where(crowd().values[:, -1] > 0.5, -logits, logits)).mean())


def spread_of_scores(facts: FrameFacts, state: HeadState) -> float:
    return math.sqrt(float((state.weights**2 * facts.kept).sum()))


def test_noise_that_drowns_everything_leaves_nothing() -> None:
    """For most noise there is; the evidence takes a part of it for a signal, as any estimate of a width would."""
    facts, rng = facts_of(1.0), np.random.default_rng(0)
    query, radius = SeedSumQuery(facts.frame), facts.frame.radius
    sums = bounded_total(query, crowd()) / SCALE
    median = {}
    for std in (1.0, 100.0, 1e3, 1e6):
        lengths = []
        for _ in range(80):
            summed, count = query.read(sums + rng.normal(0, std, query.width))
            lengths.append(spread_of_scores(facts, first_head(facts, summed, count, std * radius, std / SEED_COUNT)))
        median[std] = float(np.median(lengths))
    assert median[1.0] > 0.9
    assert median[100.0] < 0.6 * median[1.0]
    assert max(median[1e3], median[1e6]) < 1e-3 * median[1.0]


def test_what_noise_hides_is_shrunk_and_what_it_leaves_is_kept() -> None:
    """Of two coordinates with the same difference, the one under more noise gets less weight."""
    base = facts_of(0.0)
    facts = replace(base, variances=np.ones(14), factors=np.ones(14), entry_std=0.0, mean=np.zeros(14), mean_std=0.0)
    total = np.full(14, 100.0)
    clear = first_head(facts, total, 1000.0, 1.0, 1.0).weights
    hidden = first_head(facts, total, 1000.0, 1000.0, 1.0).weights
    assert (hidden < 0.5 * clear).all()
    assert (hidden >= 0).all()
    half = np.where(np.arange(14) < 7, 1.0, 1e-4)
    uneven = first_head(replace(facts, factors=half), total * half, 1000.0, 20.0, 1.0)
    assert (uneven.weights[7:] < 0.2 * uneven.weights[:7].min()).all()
    assert (uneven.spread[7:] > uneven.spread[:7].max()).all()


@pytest.mark.parametrize("std", [0.0, 1.0, 100.0, 1e6])
def test_every_answer_narrows_the_belief_and_the_noisier_the_less(std: float) -> None:
    states = learn(crowd(), facts_of(1.0), std)
    for earlier, later in pairwise(states):
        assert (later.spread <= earlier.spread * (1 + 1e-12)).all()
        assert (later.spread >= 0).all()
        assert np.isfinite(later.weights).all()
    if std >= 1e6:
        np.testing.assert_allclose(states[-1].spread, states[0].spread, rtol=0.01)


def test_an_answer_narrows_the_belief_the_more_the_less_its_noise() -> None:
    state = learn(crowd(), facts_of(1.0), 1.0, steps=0)[0]
    left = np.array(
        [
            next_head(facts_of(1.0), state, 0.1, np.zeros(14), std).spread / state.spread
            for std in (0.0, 10.0, 100.0, 1e3, 1e6)
        ]
    )
    assert (np.diff(left, axis=0) >= -1e-12).all()
    assert np.median(left[0]) < 0.7
    assert left[-1].min() > 0.99


def test_a_gradient_of_nothing_changes_no_weights_and_its_sign_is_followed() -> None:
    facts, state = facts_of(1.0), learn(crowd(), facts_of(1.0), 1.0)[0]
    assert (next_head(facts, state, 0.1, np.zeros(14), 1.0).weights == state.weights).all()
    for sign in (-1.0, 1.0):
        moved = next_head(facts, state, 0.1, np.full(14, sign * 100.0), 1.0).weights - state.weights
        assert (moved * sign >= 0).all()
        assert (moved * sign > 0).any()


@pytest.mark.parametrize("share", [1e-3, 0.03, 0.5, 0.9])
@pytest.mark.parametrize("length", [0.0, 1.0, 4.0])
def test_the_intercept_makes_the_mean_probability_the_share_of_seeds(share: float, length: float) -> None:
    facts = facts_of(0.0)
    weights = np.full(14, length) / np.sqrt(np.maximum(facts.kept, 1e-3)) / math.sqrt(14)
    state = HeadState(weights, np.zeros(14), share, 100.0)
    intercept, curvature = intercept_and_curvature(facts, state)
    middle, spread = float(weights @ facts.axis_mean), spread_of_scores(facts, state)
    drawn = np.random.default_rng(0).normal(middle + intercept, spread, 400_000)
    chance = 1 / (1 + np.exp(-drawn))
    assert chance.mean() == pytest.approx(share, rel=0.02)
    assert curvature == pytest.approx(float((chance * (1 - chance)).mean()), rel=0.02)


def test_noise_that_leaves_no_seeds_and_no_people_gives_finite_numbers() -> None:
    facts = replace(facts_of(1.0), people=1.0)
    state = first_head(facts, np.full(14, -1e9), -1e9, 1e6, 1e6)
    assert 1e-3 <= state.seed_share <= 0.9
    assert state.seeds == 1e6
    intercept, curvature = intercept_and_curvature(facts, state)
    after = next_head(facts, state, curvature, np.full(14, 1e12), 1e6)
    for values in (state.weights, state.spread, after.weights, after.spread, np.array([intercept, curvature])):
        assert np.isfinite(values).all()


def test_a_feature_that_all_people_share_has_no_weight_even_without_noise() -> None:
    """Its variance, its difference and its error are all exactly 0."""
    people = crowd()
    rows = people.values.copy()
    rows[:, 0], rows[:, 5] = 2.5, 1.0
    same = CustomerTable(COLUMNS, rows, people.keys)
    facts = learnt_facts(same, 0.0)
    states = learn(same, facts, 0.0)
    assert np.isfinite(states[-1].weights).all()
    assert auc(facts, states[-1], same) > 0.6
    nothing = replace(facts, variances=np.zeros(14), mean=np.zeros(14))
    assert (first_head(nothing, np.zeros(14), 100.0, 0.0, 0.0).weights == 0).all()
    unmoved = next_head(nothing, states[-1], 0.1, np.zeros(14), 0.0)
    assert (unmoved.weights == states[-1].weights).all()
