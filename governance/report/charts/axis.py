"""Axes with round ticks: linear and logarithmic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["LinearAxis", "LogAxis", "axis_over", "log_axis_over"]


@dataclass(frozen=True)
class LinearAxis:
    """Values from `low` to `high` on the line from `start` to `start + length`.

    Args:
        low, high: the values at its ends, low < high.
        start, length: where the line lies, in drawing units.
    """

    low: float
    high: float
    start: float
    length: float

    def at(self, value: float) -> float:
        """Where a value lies."""
        return self.start + self.length * (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> tuple[float, ...]:
        """At most `most` + 1 round values within the axis."""
        step = _round_step((self.high - self.low) / most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return tuple(step * index for index in range(first, last + 1))

    def written(self, tick: float, most: int) -> str:
        """One of `ticks(most)` with as many decimals as their step has."""
        step = _round_step((self.high - self.low) / most)
        decimals = next((d for d in range(12) if abs(round(step, d) - step) < 1e-6 * step), 12)
        return f"{round(tick, decimals) or 0.0:,.{decimals}f}"


def axis_over(values: Sequence[float], start: float, length: float) -> LinearAxis:
    """An axis over all values with a little room; around 0 when there are none, around the value when there is one."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return LinearAxis(low - room, high + room, start, length)


@dataclass(frozen=True)
class LogAxis:
    """Values from `low` to `high`, by their logarithms, on the line from `start` to `start + length`.

    Args:
        low, high: the values at its ends, 0 < low < high; what lies beyond is drawn at the end.
        start, length: where the line lies, in drawing units; the length may be negative.
    """

    low: float
    high: float
    start: float
    length: float

    def at(self, value: float) -> float:
        """Where a value lies."""
        within = min(max(value, self.low), self.high)
        return self.start + self.length * math.log(within / self.low) / math.log(self.high / self.low)

    def ticks(self) -> tuple[float, ...]:
        """1, 2 and 5 times every power of ten within the axis; powers of ten alone where it spans more than four."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        factors = (1, 2, 5) if last - first <= 4 else (1,)
        every = (factor * 10.0**power for power in range(first, last + 1) for factor in factors)
        return tuple(tick for tick in every if self.low * (1 - 1e-9) <= tick <= self.high * (1 + 1e-9))


def log_axis_over(values: Sequence[float], start: float, length: float) -> LogAxis:
    """An axis over all values, at least one and all positive, from a round number to a round number."""
    low, high = _round_below(min(values)), _round_above(max(values))
    return LogAxis(low if low < high else low / 10, high, start, length)


def _round_below(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value) + 1e-12)
    return max((factor * power for factor in (1.0, 2.0, 5.0) if factor * power <= value * (1 + 1e-9)), default=power)


def _round_above(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value) + 1e-12)
    return next((f * power for f in (1.0, 2.0, 5.0) if f * power >= value * (1 - 1e-9)), 10.0 * power)


def _round_step(least: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= least * (1 - 1e-9))
