"""Words for segments: distinct names that say what stands out, and rules that hold."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cohortium.models.assignment import nearest_centre
from cohortium.models.personas import segment_names, threshold_rules
from cohortium.models.scaler import Scaler

FEATURES = ("recency", "spend", "visits")


def test_the_features_that_stand_out_most_give_the_name() -> None:
    names = segment_names(np.array([[0.9, -0.5, 0.0], [-0.9, 0.5, 0.0]]), [100.0, 100.0], FEATURES)
    assert names == ["high recency, low spend", "low recency, high spend"]


def test_the_average_is_weighed_by_size_and_negative_sizes_count_as_none() -> None:
    centres = np.array([[0.0, 0.0, 0.0], [0.6, 0.0, 0.0]])
    assert segment_names(centres, [1e6, 1.0], FEATURES) == ["average", "high recency"]
    assert segment_names(centres, [1e6, -1e6], FEATURES) == ["average", "high recency"]
    assert len(set(segment_names(centres, [0.0, -3.0], FEATURES))) == 2


@given(
    st.integers(1, 12).flatmap(
        lambda k: st.lists(st.lists(st.sampled_from([-0.8, 0.0, 0.1, 0.8]), min_size=3, max_size=3), min_size=k)
    )
)
def test_names_are_never_empty_and_never_shared(centres: list[list[float]]) -> None:
    names = segment_names(np.array(centres), [1.0] * len(centres), FEATURES)
    assert len(names) == len(centres) == len(set(names))
    assert all(names)


def selected(rule: str, values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Rows in the contract's units that satisfy "recency <= 12 and spend > 4"."""
    signs: dict[str, Callable[..., NDArray[np.bool_]]] = {"<=": operator.le, ">": operator.gt}
    result = np.ones(len(values), dtype=np.bool_)
    for part in rule.split(" and "):
        name, sign, number = part.split()
        result &= signs[sign](values[:, FEATURES.index(name)], float(number))
    return result


@pytest.mark.parametrize("k", [2, 3, 6])
def test_a_rule_selects_mostly_its_own_segment_in_the_contracts_units(k: int) -> None:
    rng = np.random.default_rng(k)
    centres = rng.uniform(-0.9, 0.9, (k, 3))
    particles = np.clip(centres[rng.integers(0, k, 3000)] + rng.normal(0, 0.1, (3000, 3)), -1, 1)
    scaler = Scaler(FEATURES, np.array([False, True, False]), np.array([0.0, 0.0, -5.0]), np.array([30.0, 8.0, 5.0]))
    own = nearest_centre(particles, centres)
    values = scaler.inverse(particles)
    rules = threshold_rules(particles, centres, scaler)
    assert len(rules) == k
    assert any(rules)
    for index, texts in enumerate(rules):
        assert len(texts) <= 2
        shares = [float(np.mean(own[selected(text, values)] == index)) for text in texts]
        assert all(share > 0.55 for share in shares)
        sizes = [int(selected(text, values).sum()) for text in texts]
        assert all(size > 0 for size in sizes)


def test_one_segment_needs_no_rule() -> None:
    scaler = Scaler(FEATURES, np.zeros(3, dtype=np.bool_), -np.ones(3), np.ones(3))
    particles = np.random.default_rng(0).uniform(-1, 1, (100, 3))
    assert threshold_rules(particles, np.zeros((1, 3)), scaler) == [()]
    assert threshold_rules(np.zeros((100, 3)), np.eye(3), scaler) == [(), (), ()]
