"""The noise self-test: are the draws the discrete Gaussian of the scale they should have, on the finest lattice?

Four tests of one set of draws, at production scales (sigma of 2**20 and more):

- *shape*: Kolmogorov-Smirnov against the exact distribution function, from both sides of every draw;
- *scale*: chi-square of the sum of squares around the known mean zero, two-sided;
- *lattice*: the draws are integers, and no integer above one divides all their differences;
- *low bits*: chi-square of the lowest eight bits, which are uniform at such scales: draws that were rounded, or made in
  floating point, are not.

The distribution function is P(Z <= z) = Phi((z + 1/2) / sigma), exact within 1 / (24 sigma^2), which is below 2^-44
(docs/privacy-guarantee.md, *From the discrete to the rounded Gaussian*): nothing that a sample could show.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.stats import chi2, ksone, norm

from cohortium.privacy.release import MIN_SIGMA
from cohortium.study.errors import Defect

__all__ = ["NoiseFinding", "examine_noise", "scale_power"]

_LOW_BITS = 8
_TESTS = 3


class NoiseFinding(BaseModel):
    """What the self-test of one scale found; docs/privacy-audit.md explains every field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sigma: int
    draws: int
    shape_p: float
    scale_p: float
    low_bits_p: float
    lattice_step: int
    measured_sigma: float
    power_at_five_percent: float
    flagged: bool


def examine_noise(draws: NDArray[np.int64], sigma: int, alarm: float) -> NoiseFinding:
    """Hold draws against the discrete Gaussian of parameter sigma.

    Formal guarantee: exact independent draws are flagged with probability at most `alarm` (a third for each p-value;
    the lattice test adds at most 2^(2 - draws)). Draws whose sigma is wrong by five percent either way are flagged with
    a probability of at least `power_at_five_percent`, by the scale test alone.

    Args:
        draws: int64, at least 1,000.
        sigma: what they should have.
        alarm: probability of a false alarm.

    Raises:
        Defect: the draws are no int64, too few, or the scale is below production's.
    """
    if draws.dtype != np.int64 or len(draws) < 1_000 or sigma < MIN_SIGMA:
        raise Defect("noise test: at least 1,000 draws of int64 at production scale are needed")
    each = alarm / _TESTS
    shape, scale, low = _shape_p(draws, sigma), _scale_p(draws, sigma), _low_bits_p(draws)
    step = _lattice_step(draws)
    return NoiseFinding(
        sigma=sigma,
        draws=len(draws),
        shape_p=shape,
        scale_p=scale,
        low_bits_p=low,
        lattice_step=step,
        measured_sigma=math.sqrt(float((draws.astype(np.float64) ** 2).mean())),
        power_at_five_percent=min(scale_power(len(draws), ratio, each) for ratio in (0.95, 1.05)),
        flagged=min(shape, scale, low) < each or step != 1,
    )


def scale_power(draws: int, ratio: float, alarm: float) -> float:
    """Probability that the scale test rejects draws whose sigma is `ratio` times the true one; exact for Gaussians."""
    low, high = chi2.ppf(alarm / 2, draws), chi2.isf(alarm / 2, draws)
    return float(chi2.cdf(low / ratio**2, draws) + chi2.sf(high / ratio**2, draws))


def _shape_p(draws: NDArray[np.int64], sigma: int) -> float:
    """Kolmogorov-Smirnov, one-sided exact law doubled: conservative, for a discrete law all the more."""
    ordered, n = np.sort(draws).astype(np.float64), len(draws)
    ranks = np.arange(1, n + 1)
    above = (ranks / n - norm.cdf((ordered + 0.5) / sigma)).max()
    below = (norm.cdf((ordered - 0.5) / sigma) - (ranks - 1) / n).max()
    return float(min(2.0 * ksone.sf(max(above, below), n), 1.0))


def _scale_p(draws: NDArray[np.int64], sigma: int) -> float:
    statistic = float(((draws / sigma) ** 2).sum())
    return float(min(2.0 * min(chi2.cdf(statistic, len(draws)), chi2.sf(statistic, len(draws))), 1.0))


def _low_bits_p(draws: NDArray[np.int64]) -> float:
    cells = 2**_LOW_BITS
    expected = len(draws) / cells
    counts = np.bincount(draws & (cells - 1), minlength=cells)
    return float(chi2.sf(float(((counts - expected) ** 2).sum()) / expected, cells - 1))


def _lattice_step(draws: NDArray[np.int64]) -> int:
    """The largest integer that divides all differences of the draws; 0 when all are the same."""
    return int(np.gcd.reduce(draws - draws[0]))
