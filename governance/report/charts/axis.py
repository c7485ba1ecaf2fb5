"""A linear axis with round ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["LinearAxis", "axis_over"]


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


def _round_step(least: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= least * (1 - 1e-9))
