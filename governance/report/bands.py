"""Sizes as people see them: bands, never false precision; below the smallest band, suppressed, never 0.

The sixteen bands, each from its first number up to, not including, its second:

50-100, 100-200, 200-300, 300-500, 500-1,000, 1,000-2,000, 2,000-3,000, 3,000-4,000, 4,000-5,000, 5,000-10,000,
10,000-20,000, 20,000-50,000, 50,000-100,000, 100,000-500,000, 500,000-1,000,000, 1,000,000 or more.

A noisy size is shown as the shortest run of bands that holds its 95% interval, so that a band never promises more than
the noise allows. The bands start at the smallest cell that any plan may release.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from cohortium.study.plan import MIN_CELL
from cohortium.study.reach import Measured

__all__ = [
    "BAND_LIMITS",
    "HIDDEN",
    "SUPPRESSED",
    "Band",
    "measured_band",
    "measured_limits",
    "size_band",
    "size_limits",
]

BAND_LIMITS: tuple[int, ...] = (
    MIN_CELL, 100, 200, 300, 500, 1_000, 2_000, 3_000, 4_000, 5_000,
    10_000, 20_000, 50_000, 100_000, 500_000, 1_000_000,
)  # fmt: skip
"""Where each of the sixteen bands begins; the last is open."""

SUPPRESSED = "suppressed"
"""What stands for a size that may not be shown."""

HIDDEN = "hidden by the noise"
"""What stands for a size whose noise reaches over all bands."""

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Band:
    """A run of neighbouring bands.

    Args:
        low: where it begins; 0 when noise reaches below the smallest band.
        high: where it ends, exclusive; None when it is open.
    """

    low: int
    high: int | None

    @property
    def typical(self) -> float:
        """One number for drawing: the geometric middle; twice the beginning of an open band."""
        low = max(self.low, MIN_CELL)
        return math.sqrt(low * (4 * low if self.high is None else self.high))

    def __str__(self) -> str:
        if self.high is None:
            return HIDDEN if self.low == 0 else f"{self.low:,} or more"
        return f"{self.low:,}\N{EN DASH}{self.high:,}" if self.low else f"fewer than {self.high:,}"


def size_limits(size: float | None, std: float = 0.0) -> Band | None:
    """The shortest run of bands that holds a noisy size's 95% interval; None when the size is suppressed.

    Args:
        size: noisy number of people, or None when suppressed. Below the smallest band it counts as suppressed.
        std: standard deviation of its noise; 0 gives the one band that holds the size.
    """
    if size is None or not size >= BAND_LIMITS[0]:
        return None
    return _around(size - _Z95 * std, size + _Z95 * std)


def measured_limits(size: Measured | None) -> Band | None:
    """The shortest run of bands that holds a noisy size's interval; None when the size is suppressed."""
    if size is None or not size.value >= BAND_LIMITS[0]:
        return None
    return _around(size.low, size.high)


def measured_band(size: Measured | None) -> str:
    """`measured_limits` in words."""
    band = measured_limits(size)
    return SUPPRESSED if band is None else str(band)


def size_band(size: float | None, std: float = 0.0) -> str:
    """`size_limits` in words: '4,000-5,000' (with an en dash), '1,000,000 or more', 'suppressed'."""
    band = size_limits(size, std)
    return SUPPRESSED if band is None else str(band)


def _around(least: float, most: float) -> Band:
    first, last = (bisect_right(BAND_LIMITS, end) - 1 for end in (least, most))
    high = BAND_LIMITS[last + 1] if last + 1 < len(BAND_LIMITS) else None
    return Band(0 if first < 0 else BAND_LIMITS[first], high)
