"""Intervals for shares, and for differences and ratios of two, from counts with sampling variation and known noise.

One idea serves all of them. For a share p = S / N of people, D(p) = S - p N has mean 0 and the variance

    V(p) = n p (1 - p) + Var S - 2 p Cov(S, N) + p^2 Var N,

the first part from sampling (binomial; n is N, at least 0), the rest from the noise, whose variance is public. The
interval is every p in [0, 1] with D(p)^2 <= z^2 V(p): Wilson's interval where there is no noise, Fieller's where there
is nothing else. The noise of numerator and denominator is never divided by one another, so small groups under large
noise are held as honestly as large ones. For two independent quantities the interval of their ratio (or difference)
is every value that some pair within D1^2 / V1 + D2^2 / V2 <= z^2 has: Koopman's interval (Biometrics 40, 1984) with
the noise in its variances. The same with n w in place of n p (1 - p) holds the odds w = A / B of two counts.

Sets that noise leaves without an end are returned as they are: up to infinity, or all of [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

__all__ = ["Interval", "Quotient", "critical", "difference", "interval", "odds", "ratio", "share"]

_GRID = (1 - np.cos(np.linspace(0, math.pi, 129))) / 2  # dense at the ends, where sets shrink like square roots


@dataclass(frozen=True)
class Interval:
    """An estimate between two ends.

    Args:
        estimate: None where the noisy denominator is not above 0.
        low, high: the ends; `high` may be infinite. Both NaN where no value at all agrees with the counts.
        bounded: whether the counts say anything: the set has ends, and is not all that is possible.
    """

    estimate: float | None
    low: float
    high: float
    bounded: bool


@dataclass(frozen=True)
class Quotient:
    """A quotient top / bottom of two noisy counts, with the variance of top - q bottom for every value q.

    The variance is linear q - square q^2 from sampling and var_top - 2 q covariance + q^2 var_bottom from noise.

    Args:
        top, bottom: noisy counts, in people.
        linear, square: of the sampling variance.
        var_top, var_bottom, covariance: of the noise, in people squared.
        most: the largest possible value: 1 for shares, infinity for odds.
    """

    top: float
    bottom: float
    linear: float
    square: float
    var_top: float
    var_bottom: float
    covariance: float
    most: float

    @property
    def estimate(self) -> float | None:
        """top / bottom within 0 and `most`; None when bottom is not above 0."""
        return min(max(self.top / self.bottom, 0.0), self.most) if self.bottom > 0 else None

    def distance(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        """D^2 / V: how far, in squared standard deviations, every value is from the counts."""
        variance = (
            self.linear * value
            - self.square * value**2
            + self.var_top
            - 2 * value * self.covariance
            + self.var_bottom * value**2
        )
        gap = (self.top - value * self.bottom) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(gap <= 1e-18 * (self.top**2 + self.bottom**2), 0.0, gap / np.maximum(variance, 0.0))

    def within(self, squared: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ends of the values no farther than so many squared standard deviations; NaN where there is none.

        Where the values make two pieces, their hull within 0 and `most`.
        """
        first = self.bottom**2 + squared * (self.square - self.var_bottom)
        half = self.top * self.bottom + squared * (self.linear / 2 - self.covariance)
        last = self.top**2 - squared * self.var_top
        root = np.sqrt(np.maximum(half**2 - first * last, 0.0))
        none = (half**2 - first * last < -1e-9 * half**2) & (first > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = (half - root) / first, (half + root) / first
        low = np.where(first > 0, np.clip(ends[0], 0.0, self.most), 0.0)
        high = np.where(first > 0, np.clip(ends[1], 0.0, self.most), self.most)
        none |= (first > 0) & ((ends[1] < 0) | (ends[0] > self.most))
        return np.where(none, np.nan, low), np.where(none, np.nan, high)


def share(top: float, bottom: float, var_top: float, var_bottom: float, covariance: float) -> Quotient:
    """The share of people counted in `top` among those counted in `bottom`.

    For the mean of a measure within 0 and 1 give its sum as `top`: p (1 - p) is the most that its variance can be, so
    that its interval is never too short.
    """
    people = max(bottom, 0.0)
    return Quotient(top, bottom, people, people, var_top, var_bottom, covariance, 1.0)


def odds(top: float, bottom: float, var_top: float, var_bottom: float) -> Quotient:
    """People counted in `top` for each one counted in `bottom`, two separate cells with independent noise."""
    return Quotient(top, bottom, max(top + bottom, 0.0), 0.0, var_top, var_bottom, 0.0, math.inf)


def critical(alpha: float) -> float:
    """The standard normal deviation that is passed, on either side, with probability alpha."""
    return float(-ndtri(alpha / 2))


def interval(of: Quotient, z: float) -> Interval:
    """The interval of one quotient, `z` standard deviations wide."""
    low, high = (float(end[0]) for end in of.within(np.array([z * z])))
    bounded = not math.isnan(low) and high < math.inf and (low > 0.0 or high < of.most)
    return Interval(of.estimate, low, high, bounded)


def difference(first: Quotient, second: Quotient, z: float) -> Interval:
    """The interval of first - second, two independent shares; all of [-1, 1] where the noise hides either."""
    estimates = first.estimate, second.estimate
    estimate = None if estimates[0] is None or estimates[1] is None else estimates[0] - estimates[1]
    if not (interval(first, z).bounded and interval(second, z).bounded):
        return Interval(estimate, -second.most, first.most, bounded=False)
    values, low, high = _pairs(first, second, z)
    return _hull(estimate, low - values, high - values)


def ratio(first: Quotient, second: Quotient, z: float) -> Interval:
    """The interval of first / second, two independent quotients.

    Up to infinity where second may be 0; from 0 to infinity where the noise hides either.
    """
    estimates = first.estimate, second.estimate
    estimate = estimates[0] / estimates[1] if estimates[0] is not None and estimates[1] else None
    if not (interval(first, z).bounded and interval(second, z).bounded):
        return Interval(estimate, 0.0, math.inf, bounded=False)
    values, low, high = _pairs(first, second, z)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _hull(estimate, low / values, np.where(values > 0, high / values, math.inf))


def _pairs(
    first: Quotient, second: Quotient, z: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Values of the second that the counts allow, and for each of them the ends of the first's that go with it."""
    low, high = (float(end[0]) for end in second.within(np.array([z * z])))
    middle = min(max(second.estimate or low, low), high)
    values = np.append(low + (high - low) * _GRID, middle)
    left = np.maximum(z * z - second.distance(values), 0.0)
    return values, *first.within(left)


def _hull(estimate: float | None, low: NDArray[np.float64], high: NDArray[np.float64]) -> Interval:
    kept = ~(np.isnan(low) | np.isnan(high))
    if not kept.any():
        return Interval(estimate, math.nan, math.nan, bounded=False)
    ends = float(low[kept].min()), float(high[kept].max())
    return Interval(estimate, *ends, bounded=ends[1] < math.inf)
