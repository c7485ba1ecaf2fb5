"""Total variation between the groups' shares in an audience and among everybody eligible.

It is the largest P(A | audience) - P(A | eligible) over all sets A of groups, and that difference is
(1 - reach) (P(A | audience) - P(A | rest)): two independent shares. The upper end of the interval is the largest of
the sets' upper ends, without correction, since the set that attains the variation is one of them. The lower end
is the largest of their lower ends, which all sets must hold at once: Bonferroni or Scheffé, whichever is shorter.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from cohortium.governance.fairness.intervals import Interval, critical, difference, share

__all__ = ["MOST_GROUPS", "total_variation"]

MOST_GROUPS = 10
"""With more groups there are too many sets of them; fold groups first."""


def total_variation(audience: NDArray[np.float64], rest: NDArray[np.float64], std: float, alpha: float) -> Interval:
    """Total variation, 0..1, with its interval.

    Args:
        audience, rest: noisy people by group who were chosen, and eligible people who were not; shape (groups,), 2 to
            MOST_GROUPS of them.
        std: of the noise of every count.
        alpha: error of the interval.

    Returns:
        Unbounded where the noise hides who was chosen.
    """
    totals = float(audience.sum()), float(rest.sum())
    if min(totals) <= 0:
        return Interval(None, 0.0, 1.0, bounded=False)
    left = totals[1] / sum(totals)
    estimate = left * float(np.abs(audience / totals[0] - rest / totals[1]).sum()) / 2
    low = high = 0.0
    z_high, z_low = critical(alpha), _simultaneous(len(audience), alpha)
    for members in _sets(len(audience)):
        chosen = [
            share(float(side[members].sum()), total, len(members) * std**2, len(side) * std**2, len(members) * std**2)
            for side, total in zip((audience, rest), totals, strict=True)
        ]
        wide, narrow = difference(chosen[0], chosen[1], z_low), difference(chosen[0], chosen[1], z_high)
        if not (wide.bounded and narrow.bounded):
            return Interval(estimate, 0.0, 1.0, bounded=False)
        low, high = max(low, left * wide.low, -left * wide.high), max(high, left * narrow.high, -left * narrow.low)
    return Interval(estimate, low, min(high, 1.0), bounded=True)


def _sets(groups: int) -> list[list[int]]:
    """One of every set of groups and its complement, whose differences are each other's negatives."""
    others = range(1, groups)
    return [[0, *more] for size in range(groups - 1) for more in combinations(others, size)]


def _simultaneous(groups: int, alpha: float) -> float:
    """Deviations that hold for all sets at once, alpha / 2 on the side that counts."""
    bonferroni = critical(alpha / (2 ** (groups - 1) - 1) / 2)  # of either side of every set
    return min(bonferroni, math.sqrt(float(chdtri(groups - 1, alpha / 2))))
