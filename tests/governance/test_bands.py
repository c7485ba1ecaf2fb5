from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium.governance.report import size_band
from cohortium.governance.report.bands import BAND_LIMITS, size_limits
from cohortium.study.plan import MIN_CELL

_DASH = "\N{EN DASH}"


def test_sixteen_bands_begin_at_the_house_minimum() -> None:
    assert len(BAND_LIMITS) == 16
    assert BAND_LIMITS[0] == MIN_CELL
    assert list(BAND_LIMITS) == sorted(set(BAND_LIMITS))


@pytest.mark.parametrize(
    ("size", "std", "expected"),
    [
        (None, 0.0, "suppressed"),
        (0.0, 0.0, "suppressed"),
        (-12.0, 3.0, "suppressed"),
        (49.9, 0.0, "suppressed"),
        (math.nan, 0.0, "suppressed"),
        (50.0, 0.0, f"50{_DASH}100"),
        (4467.8, 0.0, f"4,000{_DASH}5,000"),
        (4999.99, 0.0, f"4,000{_DASH}5,000"),
        (5000.0, 0.0, f"5,000{_DASH}10,000"),
        (4950.0, 41.0, f"4,000{_DASH}10,000"),
        (110.0, 60.0, "fewer than 300"),
        (2_345_678.0, 0.0, "1,000,000 or more"),
        (5000.0, 10**6, "hidden by the noise"),
    ],
)
def test_size_band(size: float | None, std: float, expected: str) -> None:
    assert size_band(size, std) == expected


@given(st.floats(50, 1e9), st.floats(0, 1e6))
def test_a_band_holds_the_whole_interval_of_the_noise(size: float, std: float) -> None:
    band = size_limits(size, std)
    assert band is not None
    assert band.low == 0 or band.low <= size - 1.9599 * std
    assert band.high is None or band.high > size + 1.9599 * std
    assert band.typical > 0
    assert not size_band(size, std).startswith("0")
