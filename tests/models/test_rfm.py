"""RFM: scores, bands that ties merge, names, and the grid query."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium.models.marginals import Axis, Marginal
from cohortium.models.rfm import RFM_NAMES, QuintileEdges, RfmGridQuery, quintile_edges, rfm_names
from cohortium.privacy.query import SCALE, QuerySpec, bounded_total
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError

settings.register_profile("models", derandomize=True, deadline=None)
settings.load_profile("models")

EDGES = st.lists(st.integers(0, 6).map(float), min_size=4, max_size=4).map(lambda e: tuple(sorted(e)))


def test_scores_run_from_one_to_five() -> None:
    values = np.array([0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 9.0])
    assert QuintileEdges("f", (1, 2, 3, 4)).score(values).tolist() == [1, 1, 2, 2, 3, 4, 5]
    assert QuintileEdges("r", (1, 2, 3, 4), reversed=True).score(values).tolist() == [5, 5, 4, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("edges", "forward", "backward"),
    [
        ((1, 2, 3, 4), ("1", "2", "3", "4", "5"), ("1", "2", "3", "4", "5")),
        ((1, 1, 3, 4), ("1-2", "3", "4", "5"), ("1", "2", "3", "4-5")),
        ((1, 2, 2, 4), ("1", "2-3", "4", "5"), ("1", "2", "3-4", "5")),
        ((1, 2, 3, 3), ("1", "2", "3-4", "5"), ("1", "2-3", "4", "5")),
        ((1, 1, 2, 2), ("1-2", "3-4", "5"), ("1", "2-3", "4-5")),
        ((1, 1, 1, 4), ("1-3", "4", "5"), ("1", "2", "3-5")),
        ((1, 1, 1, 1), ("1-4", "5"), ("1", "2-5")),
    ],
)
def test_ties_merge_bands(edges: Any, forward: Any, backward: Any) -> None:
    assert QuintileEdges("f", edges).bands == forward
    assert QuintileEdges("r", edges, reversed=True).bands == backward


@given(EDGES, st.booleans())
def test_every_score_that_occurs_lies_in_a_band_and_every_band_occurs(edges: Any, is_reversed: bool) -> None:
    quintiles = QuintileEdges("f", edges, is_reversed)
    occurring = set(quintiles.score(np.arange(-0.5, 8, 0.25)).tolist())
    covered = [set(range(int(band[0]), int(band[-1]) + 1)) for band in quintiles.bands]
    assert set().union(*covered) == {1, 2, 3, 4, 5}
    assert sum(len(band) for band in covered) == 5
    assert all(len(band & occurring) == 1 for band in covered)


@given(EDGES, st.lists(st.floats(-1, 8), min_size=1, max_size=20), st.booleans())
def test_scores_are_monotone(edges: Any, values: list[float], is_reversed: bool) -> None:
    scores = QuintileEdges("f", edges, is_reversed).score(np.sort(np.array(values)))
    steps = np.diff(scores)
    assert (steps <= 0).all() if is_reversed else (steps >= 0).all()


def test_edges_of_a_released_marginal() -> None:
    axis = Axis("frequency", 0, 9, integer=True)
    even = quintile_edges(Marginal(axis, np.ones(10), 0.0))
    assert even == QuintileEdges("frequency", (1, 3, 5, 7))
    mostly_one = np.array([0, 50, 10, 10, 10, 10, 10, 0, 0, 0], dtype=np.float64)
    assert quintile_edges(Marginal(axis, mostly_one, 0.0)).bands == ("1-2", "3", "4", "5")
    assert quintile_edges(Marginal(axis, mostly_one, 0.0), is_recency=True).reversed


def test_every_pair_of_scores_has_one_name() -> None:
    assert set(RFM_NAMES) == {(r, f) for r in range(1, 6) for f in range(1, 6)}
    assert rfm_names(np.array([5, 1, 5, 1]), np.array([5, 5, 1, 1])) == [
        "Champions",
        "Cannot lose them",
        "New",
        "Hibernating",
    ]


def test_the_grid_counts_pairs_of_scores() -> None:
    query = RfmGridQuery(QuintileEdges("r", (1, 2, 3, 4), True), QuintileEdges("f", (1, 1, 2, 3)))
    rng = np.random.default_rng(0)
    values = rng.integers(0, 6, (300, 2)).astype(np.float64)
    counts = bounded_total(query, CustomerTable(("f", "r"), values, np.arange(300)))
    expected = np.zeros((5, 5))
    for frequency, recency in values:
        r = 5 - sum(edge < recency for edge in query.recency.edges)
        f = 1 + sum(edge < frequency for edge in query.frequency.edges)
        expected[r - 1, f - 1] += SCALE
    assert (counts.reshape(5, 5) == expected).all()


@pytest.mark.parametrize(
    ("names", "edges"),
    [
        (["r"], [[1, 2, 3, 4], [1, 2, 3, 4]]),
        ("rf", [[1, 2, 3, 4], [1, 2, 3, 4]]),
        (["r", 3], [[1, 2, 3, 4], [1, 2, 3, 4]]),
        (["r", "f"], [[1, 2, 3, 4]]),
        (["r", "f"], [[1, 2, 3], [1, 2, 3]]),
        (["r", "f"], [[1, 2, 4, 3], [1, 2, 3, 4]]),
        (["r", "f"], [[1, 2, 3, np.nan], [1, 2, 3, 4]]),
    ],
    ids=str,
)
def test_malformed_grids_are_refused(names: Any, edges: Any) -> None:
    with pytest.raises(RefusedError):
        RfmGridQuery.from_spec(QuerySpec("rfm-grid", {"features": names}, {"edges": np.array(edges, dtype=np.float64)}))
