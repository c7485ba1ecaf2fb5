from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from cohortium.governance.report.charts.axis import axis_over
from cohortium.governance.report.charts.labels import Box, Circle, place_labels
from cohortium.governance.report.charts.projection import project
from cohortium.governance.report.wording import amount, epsilon_left_text, epsilon_text, number, percent


def test_projection_is_principal_components() -> None:
    centres = np.random.default_rng(3).normal(size=(9, 4))
    ours = project(centres.tolist(), [1.0] * 9)
    theirs = PCA(2).fit(centres)
    np.testing.assert_allclose(np.abs(ours.points), np.abs(theirs.transform(centres)), atol=1e-9)
    assert ours.kept == pytest.approx(theirs.explained_variance_ratio_.sum())


def test_weights_count_as_repetitions() -> None:
    centres = np.random.default_rng(4).normal(size=(5, 3))
    weighted = project(centres.tolist(), [1.0, 2.0, 3.0, 1.0, 1.0])
    repeated = project(np.repeat(centres, [1, 2, 3, 1, 1], axis=0).tolist(), [1.0] * 8)
    np.testing.assert_allclose(weighted.points, repeated.points[[0, 1, 3, 6, 7]], atol=1e-9)


@pytest.mark.parametrize("centres", [[[0.5]], [[0.5], [0.9]], [[1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]]])
def test_degenerate_centres_have_a_place(centres: list[list[float]]) -> None:
    found = project(centres, [1.0] * len(centres))
    assert np.isfinite(found.points).all()
    assert found.points.shape == (len(centres), 2)
    assert found.kept == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("count", "width", "radius"), [(14, 176.0, 34.0), (64, 25.0, 13.0)])
def test_labels_do_not_overlap(seed: int, count: int, width: float, radius: float) -> None:
    rng = np.random.default_rng(seed)
    canvas = Box(4, 4, 612, 452)
    places = rng.normal([310, 230], [150, 110], (count, 2)).clip([40, 40], [580, 420])
    radii = rng.uniform(5, radius, count)
    circles = [Circle(float(x), float(y), float(r)) for (x, y), r in zip(places, radii, strict=True)]
    boxes = place_labels(circles, [(width, 17.0)] * count, canvas)
    assert all(box.inside(canvas) for box in boxes)
    assert not [(i, j) for i in range(count) for j in range(i) if boxes[i].overlap(boxes[j]) > 0]


def test_a_label_keeps_off_a_neighbouring_circle_when_there_is_room() -> None:
    circles = [Circle(540, 110, 30), Circle(450, 145, 36)]
    label = place_labels(circles, [(140, 17)], Box(4, 4, 612, 352))[0]
    for circle in circles:
        x = min(max(circle.x, label.x), label.x + label.width)
        y = min(max(circle.y, label.y), label.y + label.height)
        assert np.hypot(x - circle.x, y - circle.y) >= circle.radius - 1e-9


@settings(max_examples=200)
@given(st.lists(st.floats(-1e8, 1e8), min_size=1, max_size=6))
def test_axis_holds_its_values_and_few_round_ticks(values: list[float]) -> None:
    axis = axis_over(values, 10.0, 100.0)
    assert all(9.99 <= axis.at(value) <= 110.01 for value in values)
    ticks = axis.ticks(4)
    assert len(ticks) <= 5
    assert all(9.99 <= axis.at(tick) <= 110.01 for tick in ticks)


@pytest.mark.parametrize(
    ("value", "resolution", "expected"),
    [(12437.3, 160.0, "12,440"), (0.4641, 0.0078, "0.4641"), (88.7, 13.0, "89"), (0.0, 0.0, "0"), (-0.001, 5.0, "0.0")],
)
def test_amount_has_the_digits_that_the_noise_supports(value: float, resolution: float, expected: str) -> None:
    assert amount(value, resolution) == expected


def test_numbers_are_rounded_against_the_spender() -> None:
    assert (epsilon_text(0.99949), epsilon_left_text(2.77096)) == ("1.000", "2.770")
    assert epsilon_text(None) == "no useful bound"
    assert [percent(share) for share in (0.0, 0.0001, 0.15, 1.0)] == ["0.0%", "below 0.1%", "15.0%", "100.0%"]
    assert [number(value) for value in (0.0, 12.0, 12345.6, 0.88, 1e-7)] == ["0", "12", "12,346", "0.88", "0.0000001"]
