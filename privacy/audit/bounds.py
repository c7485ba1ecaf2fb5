"""Confidence bounds of an audit, and what each of them assumes.

Two kinds of lower bounds are kept apart, by name:

- **mu**: whoever must tell two worlds apart under a mechanism that is mu-GDP up to total variation `tv` is right in at
  most Phi(mu/2) + tv of all trials with even odds (Dong, Roth, Su, "Gaussian differential privacy", JRSS-B 2022: the
  total variation of N(0,1) and N(mu,1) is 2 Phi(mu/2) - 1). A lower bound on the share of right guesses refutes every
  smaller mu. Nothing is assumed about the mechanism. mu is what the ledger charges, so this is a test of its claim.
- **epsilon**: (epsilon, delta)-DP says TPR <= exp(epsilon) FPR + delta and TNR <= exp(epsilon) FNR + delta for every
  attack. Bounded rates refute every smaller epsilon, without any assumption. At delta 1e-6 only events far rarer than
  the number of runs would come near the claim, so that this bound is loose for a sound mechanism.

A bound on mu is *expressed* as an epsilon at delta by the curve of mu-GDP. Read as a lower bound on (epsilon, delta)
itself, that number assumes that the trade-off curve is Gaussian; the noise tests support it, nothing here proves it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm

from cohortium.privacy.accounting import MU2_UNIT, Spend, epsilon_spent

__all__ = [
    "best_threshold",
    "epsilon_at",
    "epsilon_lower",
    "mu_lower",
    "mu_of_share",
    "mu_upper",
    "share_lower",
    "share_upper",
]


def share_lower(hits: int, trials: int, error: float) -> float:
    """Clopper-Pearson: a share that lies above the true probability with probability at most `error`."""
    return 0.0 if hits == 0 else float(beta.ppf(error, hits, trials - hits + 1))


def share_upper(hits: int, trials: int, error: float) -> float:
    """Clopper-Pearson: a share that lies below the true probability with probability at most `error`."""
    return 1.0 if hits == trials else float(beta.isf(error, hits + 1, trials - hits))


def mu_of_share(share: float) -> float:
    """The mu at which the best attack is right in this share of its guesses.

    Edge cases: 0 for a share of one half or less; 16.4 for a share of 1, as far as doubles can tell.
    """
    return 2.0 * float(norm.ppf(min(share, 1.0 - 2.0**-53))) if share > 0.5 else 0.0


def mu_lower(right: int, guesses: int, error: float, tv: float = 0.0) -> float:
    """A lower bound on mu from independent guesses with a threshold fixed in advance.

    As many guesses in one world as in the other. Their number of right ones is a sum of independent trials of two
    probabilities; its upper tail beyond the mean is at most the binomial's of the mean probability (Hoeffding,
    "On the distribution of the number of successes in independent trials", 1956), so Clopper-Pearson holds.

    Args:
        right, guesses: how many of how many were right.
        error: probability with which the bound may lie above the true mu.
        tv: total variation by which the mechanism may differ from a mu-GDP one.
    """
    return mu_of_share(share_lower(right, guesses, error) - tv)


def mu_upper(right: int, guesses: int, error: float) -> float:
    """How strong this one attack is at most. No upper bound on the privacy loss: other attacks may do better."""
    return mu_of_share(share_upper(right, guesses, error))


def epsilon_at(mu: float, delta: float) -> float:
    """The epsilon of mu-GDP at delta; infinity when it is above 200."""
    return epsilon_spent(Spend(math.floor(Fraction(mu) ** 2 / MU2_UNIT)), delta)


def epsilon_lower(
    without: NDArray[np.float64], present: NDArray[np.float64], threshold: float, delta: float, error: float
) -> float:
    """A lower bound on epsilon at delta, assumption-free, from scores against a threshold fixed without them.

    Args:
        without, present: scores of runs without and with the canary; large speaks for its presence.
        threshold: scores above it are taken for presence.
        delta: of the claim.
        error: probability with which the bound may lie above the true epsilon; half is spent on either rate.
    """
    hits, alarms = int((present > threshold).sum()), int((without > threshold).sum())
    power = share_lower(hits, len(present), error / 2)
    false = share_upper(alarms, len(without), error / 2)
    return max(_log_ratio(power - delta, false), _log_ratio(1.0 - false - delta, 1.0 - power), 0.0)


def best_threshold(
    without: NDArray[np.float64], present: NDArray[np.float64], bound: Callable[[float], float]
) -> float:
    """The threshold, among the scores' quantiles, that gives the largest bound; to be used on other scores."""
    steps = np.unique(np.concatenate([np.geomspace(2e-4, 0.5, 40), 1.0 - np.geomspace(2e-4, 0.5, 40)]))
    tried = np.unique(np.quantile(np.concatenate([without, present]), steps))
    return float(max(tried, key=lambda threshold: bound(float(threshold))))


def _log_ratio(above: float, below: float) -> float:
    if above <= 0.0:
        return 0.0
    return math.inf if below <= 0.0 else math.log(above / below)
