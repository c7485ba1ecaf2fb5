"""Were an institution's masks fresh? Two vectors under one mask give their difference away."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from cohortium.study.errors import Defect

__all__ = ["masks_look_fresh"]

_WHOLE = 2.0**64


def masks_look_fresh(first: NDArray[np.uint64], second: NDArray[np.uint64], alarm: float = 1e-9) -> bool:
    """Whether the difference of two masked vectors looks uniform modulo 2^64 rather than small.

    Under independent uniform masks the distance r of a word's difference from 0, on the circle of 2^64, is uniform.
    Fisher's combination -2 sum ln((2r + 1) / 2^64) over w words then has a chi-square law of 2w degrees of freedom, up
    to the grid's 2^-64; a mask used twice leaves the difference of two noised sums, whose distances are small.

    Formal guarantees: fresh masks are rejected with probability at most `alarm`. Masks reused in all of w words are
    rejected for certain when every word of the two noised sums differs by less than 2^33 (w = 1), 2^45 (w = 2), 2^52
    (w = 4) or 2^60 (w = 64) at the default alarm. Noise at the product's scales stays below 2^40 and the sums of a
    million people below 2^45. Masks reused in half of 64 words are rejected with probability 0.998 for differences
    below 2^58; a single reused word among many fresh ones is not seen.

    A vector compared with zeros is tested for being masked at all.

    Args:
        first, second: uint64, the same shape, what one institution sent in two attempts.
        alarm: probability of a false alarm.

    Raises:
        Defect: shapes or dtypes disagree, or there is no word.
    """
    if first.dtype != np.uint64 or second.dtype != np.uint64 or first.shape != second.shape or first.size == 0:
        raise Defect("mask test: two uint64 vectors of one shape are needed")
    difference = (first - second).ravel()
    distance = np.minimum(difference, np.uint64(0) - difference).astype(np.float64)
    statistic = -2.0 * float(np.log(np.minimum((2.0 * distance + 1.0) / _WHOLE, 1.0)).sum())
    return bool(chi2.sf(statistic, 2 * first.size) >= alarm)
