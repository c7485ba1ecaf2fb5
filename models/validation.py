"""How good a ranker is: how far the seeds stand above the rest, from noisy score counts of both.

The seeds are those on whom the ranker was learnt; nobody is held out. A ranker learnt under differential privacy can
favour them only as much as its guarantee allows; the lookalike benchmark measures by how much it does.

Standard errors are first-order (delta method) in both noise and sampling, with the noise's exact covariance; for the
AUC, which is a product of two noisy counts, the noise's second order is added in closed form, and its sampling error is
DeLong's (DeLong, DeLong, Clarke-Pearson, "Comparing the areas under two or more correlated ROC curves", Biometrics
1988). A quality whose denominator the noise hides is None.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from cohortium.models.reach import ScoreCounts, noise_product
from cohortium.study.reach import Measured, RankerQuality

__all__ = ["LIFT_AT", "RECALL_AT", "Dilution", "Estimate", "Validation"]

RECALL_AT = (0.05, 0.1, 0.2)
LIFT_AT = (0.01, 0.05, 0.1)

_Z95 = 1.959963984540054
_HIDDEN = 3.0  # standard deviations that a total must have to be divided by
_SLOPE_SHARE = 0.02


@dataclass(frozen=True)
class Estimate:
    """A value and its standard errors: of the noise, and of who the people are."""

    value: float
    noise: float
    sampling: float

    def measured(self, low: float = 0.0, high: float = math.inf) -> Measured:
        """With its 95% interval, all kept within [low, high]."""
        half = _Z95 * math.hypot(self.noise, self.sampling)
        ends = [min(max(self.value + step * half, low), high) for step in (-1, 0, 1)]
        return Measured(value=ends[1], low=ends[0], high=ends[2])


@dataclass(frozen=True)
class Dilution:
    """Of one audience; None where noise hides it.

    Args:
        recall: share of the seeds in it.
        lift: that over the share of all people in it.
        precision: share of seeds among the people in it.
        ratio: recall over the share of other people in it.
    """

    recall: Estimate
    lift: Estimate | None = None
    precision: Estimate | None = None
    ratio: Estimate | None = None


@dataclass(frozen=True)
class Validation:
    """Seeds against the rest, for one ranker.

    Args:
        seeds, rest: disjoint, of the same bins.
    """

    seeds: ScoreCounts
    rest: ScoreCounts

    @property
    def is_hidden(self) -> bool:
        """Whether seeds or others are too few against the noise to divide by their number."""
        return any(counts.total <= max(_HIDDEN * counts.total_std, 1.0) for counts in (self.seeds, self.rest))

    @property
    def _people(self) -> float:
        return self.seeds.total + self.rest.total

    @cached_property
    def auc(self) -> Estimate | None:
        """Probability that a seed scores above another person, ties within a bin counted half."""
        if self.is_hidden:
            return None
        seeds, rest = self.seeds, self.rest
        wins = _wins(len(seeds.counts))
        pairs = seeds.total * rest.total
        value = float(seeds.counts @ wins @ rest.counts) / pairs
        below, above = _shares(rest) @ wins.T, _shares(seeds) @ wins  # of a seed's bin; of another's bin
        first = math.hypot(
            seeds.noise(below - value) / seeds.total,
            rest.noise(above - value) / rest.total,
        )
        second = noise_product(seeds, rest, wins - value) / pairs
        spread = _variance(_shares(seeds), below) / seeds.total
        spread += _variance(_shares(rest), above) / rest.total
        return Estimate(value, math.hypot(first, second), math.sqrt(spread))

    def quality(self, name: str) -> RankerQuality:
        """The figures people know; None where noise hides them."""
        if self.auc is None:
            return RankerQuality(ranker=name, auc=None, auc_noise_std=None)
        deciles = [self._within((i - 1) / 10, i / 10).measured() for i in range(1, 11)]
        return RankerQuality(
            ranker=name,
            auc=self.auc.measured(0.0, 1.0),
            auc_noise_std=self.auc.noise,
            recall=tuple(self.recall_at(share).measured(0.0, 1.0) for share in RECALL_AT),
            lift=tuple(self._within(0.0, share).measured(0.0, 1.0 / share) for share in LIFT_AT),
            deciles=tuple(deciles),
        )

    def recall_at(self, share: float) -> Estimate:
        """Share of the seeds among the top `share` of people."""
        return self._scaled(0.0, share, 1.0)

    def _within(self, first: float, last: float) -> Estimate:
        """The lift of the people between two shares from the top."""
        return self._scaled(first, last, 1.0 / (last - first))

    def _scaled(self, first: float, last: float, factor: float) -> Estimate:
        """Share of the seeds between two shares of people from the top, times a factor.

        The place of a share among people is itself noisy: an error in people above moves the recall by the slope.
        """
        seeds = self.seeds
        value, on_seeds, on_rest = 0.0, np.zeros(len(seeds.counts)), np.zeros(len(seeds.counts))
        for sign, share in ((1.0, last), (-1.0, first)):
            above = self._weights(share)
            recall = float(above @ seeds.counts) / seeds.total
            slope = self._slope(share)
            value += sign * recall
            on_seeds += sign * ((above - recall) / seeds.total - slope * (above - share) / self._people)
            on_rest -= sign * slope * (above - share) / self._people
        return self._estimate(factor * value, factor * on_seeds, factor * on_rest)

    @cached_property
    def _masses(self) -> NDArray[np.float64]:
        """People per bin, highest first, none negative."""
        return self.seeds.masses + self.rest.masses

    def _weights(self, share: float) -> NDArray[np.float64]:
        """How much of each bin is among the top `share` of people."""
        before = np.cumsum(self._masses) - self._masses
        room = share * self._masses.sum() - before
        part: NDArray[np.float64] = np.clip(room / np.maximum(self._masses, 1e-9), 0.0, 1.0)
        return part

    def _slope(self, share: float) -> float:
        """The lift about a share of people."""
        if not 0.0 < share < 1.0:
            return 0.0
        low, high = max(share - _SLOPE_SHARE, 0.0), min(share + _SLOPE_SHARE, 1.0)
        between = self._weights(high) - self._weights(low)
        return float(between @ _shares(self.seeds)) / (high - low)

    def dilution(self, bins: int) -> Dilution | None:
        """Of the audience of the `bins` highest bins; None where noise hides even the number of seeds."""
        if self.is_hidden:
            return None
        above = (np.arange(len(self.seeds.counts)) < bins).astype(np.float64)
        seeds, rest = self.seeds, self.rest
        reached_seeds, reached_rest = float(above @ seeds.counts), float(above @ rest.counts)
        recall, share = reached_seeds / seeds.total, reached_rest / rest.total
        known = self._estimate(recall, (above - recall) / seeds.total, np.zeros_like(above))
        hidden = _HIDDEN * rest.noise(above)
        if reached_rest <= hidden or share <= 0:
            return Dilution(known)
        return Dilution(known, *self._ratios(above, max(recall, 0.0), share))

    def _ratios(self, above: NDArray[np.float64], recall: float, share: float) -> tuple[Estimate, Estimate, Estimate]:
        """Lift, precision and ratio of an audience that reaches these shares of seeds and of others."""
        mix = self.seeds.total / self._people
        of_recall = (above - recall) / self.seeds.total
        of_share = (above - share) / self.rest.total
        of_mix_seeds = np.full_like(above, (1.0 - mix) / self._people)
        of_mix_rest = np.full_like(above, -mix / self._people)
        all_ = mix * recall + (1.0 - mix) * share
        by_recall, by_share = (1.0 - mix) * share / all_**2, -(1.0 - mix) * recall / all_**2
        by_mix = -recall * (recall - share) / all_**2
        lift_seeds = by_recall * of_recall + by_mix * of_mix_seeds
        lift_rest = by_share * of_share + by_mix * of_mix_rest
        lift = recall / all_
        return (
            self._estimate(lift, lift_seeds, lift_rest),
            self._estimate(mix * lift, mix * lift_seeds + lift * of_mix_seeds, mix * lift_rest + lift * of_mix_rest),
            self._estimate(recall / share, of_recall / share, -recall / share**2 * of_share),
        )

    def _estimate(self, value: float, on_seeds: NDArray[np.float64], on_rest: NDArray[np.float64]) -> Estimate:
        """A value by its derivatives in both counts."""
        noise = math.hypot(self.seeds.noise(on_seeds), self.rest.noise(on_rest))
        spread = self.seeds.total * _variance(_shares(self.seeds), on_seeds)
        spread += self.rest.total * _variance(_shares(self.rest), on_rest)
        return Estimate(value, noise, math.sqrt(spread))


@cache
def _wins(bins: int) -> NDArray[np.float64]:
    """Chance that somebody of one bin (row) scores above somebody of another (column), highest bins first."""
    return np.triu(np.ones((bins, bins)), 1) + 0.5 * np.eye(bins)


def _shares(counts: ScoreCounts) -> NDArray[np.float64]:
    """Share of people per bin, none negative."""
    masses = counts.masses
    return masses / max(float(masses.sum()), 1e-9)


def _variance(shares: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Variance of a value per bin over people spread by these shares."""
    mean = float(shares @ values)
    return max(float(shares @ (values - mean) ** 2), 0.0)
