"""Membership inference: right figures on scores whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from cohortium.privacy.audit.membership import membership_inference
from cohortium.study.errors import Defect


def test_the_area_and_the_rate_are_those_of_an_independent_implementation() -> None:
    rng = np.random.default_rng(0)
    members, others = np.round(rng.normal(0.5, 1, 3000), 2), np.round(rng.normal(0, 1, 5000), 2)  # with ties
    found = membership_inference("known", members, others)
    truth = np.concatenate([np.ones(3000), np.zeros(5000)])
    assert found.auc == pytest.approx(roc_auc_score(truth, np.concatenate([members, others])))
    assert found.false_positive_rate <= 0.001
    expected = norm.sf(norm.isf(0.001) - 0.5)
    assert found.true_positive_low < expected < found.true_positive_high


def test_the_interval_of_the_area_covers_the_truth_about_as_often_as_stated() -> None:
    rng, covered = np.random.default_rng(1), 0
    truth = norm.cdf(0.5 / np.sqrt(2))
    for _ in range(200):
        found = membership_inference("known", rng.normal(0.5, 1, 300), rng.normal(0, 1, 1000))
        covered += found.auc_low <= truth <= found.auc_high
    assert 180 <= covered <= 199


def test_people_who_are_alike_cannot_be_told_apart_and_leaked_people_can() -> None:
    rng = np.random.default_rng(2)
    alike = membership_inference("alike", rng.normal(size=2000), rng.normal(size=2000))
    assert abs(alike.auc - 0.5) < 2.5 * (alike.auc_high - alike.auc)  # five standard deviations
    leaked = membership_inference("leaked", np.ones(100), rng.random(1000))
    assert (leaked.auc, leaked.true_positive_rate) == (1.0, 1.0)


def test_equal_scores_are_guessing() -> None:
    found = membership_inference("equal", np.zeros(10), np.zeros(1000))
    assert (found.auc, found.true_positive_rate, found.false_positive_rate) == (0.5, 0.0, 0.0)


def test_too_few_people_are_a_defect() -> None:
    for members, others in ((1, 1000), (10, 999)):
        with pytest.raises(Defect):
            membership_inference("few", np.zeros(members), np.zeros(others))
