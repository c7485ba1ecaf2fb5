"""Thresholds by group: the ratio is reached, the reach kept, and the cost told."""

from __future__ import annotations

import numpy as np
import pytest

from cohortium.governance.fairness.mitigation import group_thresholds
from cohortium.models.group_table import GroupTable
from cohortium.study.errors import DataError, Defect

BINS = ("top", "high", "middle", "low")
SCORES = np.array([[400.0, 600, 1_000, 2_000], [50.0, 150, 600, 1_200]])


def of(counts: np.ndarray) -> GroupTable:
    return GroupTable(("sex",), (("f",), ("m",)), BINS, counts, 0.0)


def test_the_ratio_is_reached_with_as_many_people() -> None:
    found = group_thresholds(of(SCORES), 0.15, 0.8)
    sizes = SCORES.sum(axis=1)
    for cutoffs in (found.before, found.after):
        rates = np.array([cutoff.rate for cutoff in cutoffs])
        assert sizes @ rates == pytest.approx(0.15 * sizes.sum())
    # one score for all: everybody in the top bin and half of the next
    assert found.before[0].bin == found.before[1].bin == "high"
    assert found.ratio_before == pytest.approx(((50 + 150 * 0.6) / 2_000) / ((400 + 600 * 0.6) / 4_000), rel=1e-6)
    assert found.ratio_before < 0.4
    assert 0.8 <= found.ratio_after + 1e-9 < 0.801  # the highest rate is searched in 201 steps
    assert found.lift_after is None
    assert found.moved == pytest.approx(2 * (0.8 * 0.15 * 6_000 / 5_600 * 2_000 - 140), rel=1e-3)


def test_the_last_bin_is_taken_in_part() -> None:
    found = group_thresholds(of(SCORES), 0.15, 0.8)
    for row, cutoff in zip(SCORES, found.after, strict=True):
        last = BINS.index(cutoff.bin)
        assert row[:last].sum() + cutoff.part * row[last] == pytest.approx(cutoff.rate * row.sum())


def test_a_cost_in_lift_is_told_and_is_the_least() -> None:
    responses = of(SCORES * [[0.4, 0.2, 0.1, 0.05]])
    found = group_thresholds(of(SCORES), 0.15, 0.8, responses)
    assert found.lift_before is not None
    assert found.lift_after is not None
    assert found.ratio_after >= 0.8 - 1e-9
    assert 1.0 < found.lift_after < found.lift_before
    stricter = group_thresholds(of(SCORES), 0.15, 1.0, responses)
    assert stricter.ratio_after == pytest.approx(1.0)
    assert stricter.lift_after is not None
    assert stricter.lift_after < found.lift_after


def test_what_is_even_already_stays_as_it_is() -> None:
    found = group_thresholds(of(np.vstack([SCORES[0], SCORES[0] / 2])), 0.15, 0.8)
    assert found.moved == pytest.approx(0.0, abs=1e-6)
    assert found.before == found.after


def test_negative_counts_are_nobody() -> None:
    found = group_thresholds(of(np.array([[-20.0, 600, 1_000, 2_000], [50.0, -3, 600, 1_200]])), 0.1, 0.9)
    assert 0.9 <= found.ratio_after + 1e-9 < 0.901
    assert all(0 <= cutoff.part <= 1 for cutoff in found.after)


@pytest.mark.parametrize(("reach", "ratio"), [(0.0, 0.8), (1.0, 0.8), (0.1, 0.0), (0.1, 1.1)])
def test_what_cannot_be_asked_is_refused(reach: float, ratio: float) -> None:
    with pytest.raises(DataError, match="within 0 and 1"):
        group_thresholds(of(SCORES), reach, ratio)


def test_an_empty_group_and_tables_that_differ_are_refused() -> None:
    with pytest.raises(DataError, match="fold it into another group"):
        group_thresholds(of(np.vstack([SCORES[0], np.full(4, -1.0)])), 0.1, 0.8)
    with pytest.raises(Defect):
        group_thresholds(of(SCORES), 0.1, 0.8, GroupTable(("sex",), (("f",), ("x",)), BINS, SCORES, 0.0))
