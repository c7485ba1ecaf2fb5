"""From noisy seed sums to the weights of a linear ranker: empirical Bayes, then Newton steps that know their noise.

Everything is diagonal in a frame (`models.row_moments`), whose coordinates are eigenvectors of the rows' covariance.
The first answer, the seeds' mean, gives Fisher's linear discriminant with a prior whose width maximises the marginal
likelihood of what was seen (type-II maximum likelihood): coordinates that noise drowns are shrunk, the others kept. The
discriminant starts a logistic regression; every further answer, a gradient, moves it by a Kalman update with the
curvature that released moments imply, as far as that answer's noise allows. All of it is post-processing.

Sources: Fisher 1936; MacKay, "Bayesian interpolation", 1992 (evidence); Kalman 1960.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohortium.models.features import on_weight_grid
from cohortium.models.row_moments import Frame

__all__ = ["FrameFacts", "HeadState", "first_head", "intercept_and_curvature", "next_head", "row_weights"]

_LEAST_SEEDS = 10.0
_LEAST_ERROR = 1e-18  # a variance: without noise, a feature that all people share would have none
_NODES = np.linspace(-5.0, 5.0, 101)
_NODE_WEIGHTS = np.exp(-(_NODES**2) / 2.0) / np.exp(-(_NODES**2) / 2.0).sum()


@dataclass(frozen=True)
class FrameFacts:
    """A frame and what was released about it.

    Args:
        frame: the axes, d of them.
        people: noisy number of people.
        variances: of the rows along the axes before scaling, noisy, shape (d,).
        factors: scaling of the axes, shape (d,).
        entry_std: standard deviation of the noise in an entry of the rows' covariance.
        row_mean: noisy mean of the rows, shape (d,).
        mean: noisy mean of the clipped coordinates, shape (d,).
        mean_std: standard deviation of its noise.
    """

    frame: Frame
    people: float
    variances: NDArray[np.float64]
    factors: NDArray[np.float64]
    entry_std: float
    row_mean: NDArray[np.float64]
    mean: NDArray[np.float64]
    mean_std: float

    @property
    def kept(self) -> NDArray[np.float64]:
        """The variances, none below 0."""
        return np.maximum(self.variances, 0.0)

    @property
    def axis_mean(self) -> NDArray[np.float64]:
        """The rows' mean along the unscaled axes."""
        projected: NDArray[np.float64] = self.row_mean @ self.frame.axes / self.factors
        return projected


@dataclass(frozen=True)
class HeadState:
    """What is believed of the best weights along the unscaled axes.

    Args:
        weights: expected, shape (d,).
        spread: variances of the belief, shape (d,).
        seed_share: estimated share of seeds among all people.
        seeds: noisy number of seeds, at least 10.
    """

    weights: NDArray[np.float64]
    spread: NDArray[np.float64]
    seed_share: float
    seeds: float


def first_head(facts: FrameFacts, total: NDArray[np.float64], count: float, std: float, count_std: float) -> HeadState:
    """The discriminant from the seeds' noisy sum.

    Args:
        facts: of the frame.
        total: noisy sum of the seeds' clipped coordinates, shape (d,).
        count: noisy number of seeds.
        std, count_std: noise standard deviations of both.
    """
    seeds = max(count, count_std, _LEAST_SEEDS)
    difference = total / seeds - facts.mean
    slope = facts.factors * facts.kept
    fixed = (std / seeds) ** 2 + facts.mean_std**2 + facts.factors**2 * facts.kept / seeds + _LEAST_ERROR
    per_width = (facts.factors * facts.entry_std) ** 2 * len(slope)

    def fit(width: float) -> tuple[float, NDArray[np.float64]]:
        error = fixed + per_width * width
        explained = width * slope**2 + error
        return float((np.log(explained) + difference**2 / explained).sum()), error

    widths = np.exp(np.linspace(-12.0, 12.0, 97))
    width = float(widths[int(np.argmin([fit(float(w))[0] for w in widths]))])
    error = fit(width)[1]
    explained = width * slope**2 + error
    weights, spread = width * slope * difference / explained, width * error / explained
    share = min(max(seeds / facts.people, 1e-3), 0.9)
    separation = float((weights**2 * facts.kept).sum()) / (1.0 - share) ** 2
    # the discriminant's length in the logistic model's unit: within-class covariance is the whole less the difference
    scale = 1.0 / (1.0 - share) / max(1.0 - share * (1.0 - share) * separation, 0.25)
    return HeadState(weights * scale, spread * scale**2, share, seeds)


def intercept_and_curvature(facts: FrameFacts, state: HeadState) -> tuple[float, float]:
    """Intercept at which the mean predicted probability is the share of seeds, and the mean of p (1 - p) there.

    Scores are taken as normal with the mean and variance that released moments give them.
    """
    spread = math.sqrt(max(float((state.weights**2 * facts.kept).sum()), 1e-9))
    middle = float(state.weights @ facts.axis_mean)
    low, high = -30.0, 30.0
    for _ in range(60):
        tried = (low + high) / 2.0
        if float(_NODE_WEIGHTS @ _logistic(tried + middle + spread * _NODES)) < state.seed_share:
            low = tried
        else:
            high = tried
    chance = _logistic(low + middle + spread * _NODES)
    return low, float(_NODE_WEIGHTS @ (chance * (1.0 - chance)))


def next_head(
    facts: FrameFacts, state: HeadState, curvature: float, gradient: NDArray[np.float64], std: float
) -> HeadState:
    """The belief after a noisy gradient at `state.weights`.

    Args:
        facts, state: before.
        curvature: from `intercept_and_curvature`.
        gradient: noisy sum of (y - p) times the clipped coordinates, shape (d,).
        std: standard deviation of its noise.
    """
    slope = facts.factors * curvature * facts.kept
    error = (std / facts.people) ** 2 + curvature * facts.factors**2 * facts.kept / facts.people
    error = error + (curvature * facts.factors * facts.entry_std) ** 2 * float(state.spread.sum()) + _LEAST_ERROR
    explained = state.spread * slope**2 + error
    weights = state.weights + state.spread * slope / explained * (gradient / facts.people)
    return HeadState(weights, state.spread * error / explained, state.seed_share, state.seeds)


def row_weights(facts: FrameFacts, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights on rows, on their grid, from weights along the unscaled axes."""
    return on_weight_grid(facts.frame.axes @ (weights / facts.factors))


def _logistic(values: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.clip(values, -30.0, 30.0)))
    return result
