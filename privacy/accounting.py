"""What releases cost: Gaussian differential privacy in exact integer units, rounded against the spender.

The currency is mu^2 of Gaussian differential privacy (Dong, Roth, Su, "Gaussian differential privacy", JRSS-B 2022):
a sum of L2 sensitivity D released with Gaussian noise of standard deviation sigma costs mu^2 = D^2 / sigma^2, and the
cost of several releases, each chosen after seeing the earlier ones, is the sum of theirs as long as a filter stops
before the sum passes a bound fixed in advance (Smith, Thakurta, "Fully adaptive composition for Gaussian
differential privacy", arXiv 2210.17520, theorem 1).

Our noise is the *discrete* Gaussian. Rounding continuous Gaussian noise to the nearest integer is post-processing of
the Gaussian mechanism on an integer sum, so it is exactly mu-GDP; per coordinate, the discrete Gaussian lies within
total variation 1 / (24 sigma^2) of the rounded one, and, but for a tail of probability 2^-287, within a factor of
exp(a / (24 sigma^2)) of its masses, a = 401 (proofs in docs/privacy-guarantee.md). The second currency, `tv`, adds up
1 / (24 sigma^2) over all coordinates released. With

    delta_GDP(epsilon) = Phi(-epsilon/mu + mu/2) - exp(epsilon) Phi(-epsilon/mu - mu/2),

a programme that spent (mu^2, tv) is (epsilon, delta)-DP for the smaller delta of these two:

    delta_GDP(epsilon) + (1 + exp(epsilon)) tv,
    exp(a tv) delta_GDP(epsilon - 2 a tv) + (1 + exp(epsilon + a tv)) 2^-225.

Three accountants tell the same spend's epsilon. The closed form above is exact for a sum of Gaussians, and the ledger
refuses on its currency. The privacy loss distribution discretises pessimistically, Renyi orders convert with a loss:
closed form <= PLD <= RDP, each up to its own rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from importlib import import_module
from typing import Any

from scipy.optimize import brentq
from scipy.special import log_ndtr

from cohortium.privacy.sharing import ALONE, NoiseShare
from cohortium.study.errors import CohortiumError

__all__ = [
    "MU2_UNIT",
    "TV_UNIT",
    "Spend",
    "budget_for",
    "delta_spent",
    "epsilon_by_pld",
    "epsilon_by_rdp",
    "epsilon_spent",
    "if_more_collude",
    "person_at",
    "price",
    "sigma_for",
]

MU2_UNIT = Fraction(1, 2**48)
"""One ledger unit of mu^2."""

TV_UNIT = Fraction(1, 2**80)
"""One ledger unit of total variation distance."""

_RATIO = 401.0  # K^2 + 1 with K = 20: noise beyond 20 sigma is the tail
_TAIL = 2.0**-225  # of all words that anybody will ever release, 2^62 of them
_SLACK_SHARE = 2.0**-14  # of epsilon
_KEPT = 2.0**-20  # of delta, for the tail
_MAX_EPSILON = 50.0
_MIN_DELTA = 1e-15
_MIN_MU = 2.0**-25  # its square is below one ledger unit
_SAFETY = 1.0 - 1e-9


@dataclass(frozen=True, order=False)
class Spend:
    """An amount of both currencies, in integer units. Spends add up; a budget is a spend that must not be passed.

    Args:
        mu2: units of mu^2, at least 0.
        tv: units of total variation distance, at least 0.
    """

    mu2: int = 0
    tv: int = 0

    def __add__(self, other: Spend) -> Spend:
        return Spend(self.mu2 + other.mu2, self.tv + other.tv)

    def __sub__(self, other: Spend) -> Spend:
        return Spend(self.mu2 - other.mu2, self.tv - other.tv)

    def times(self, factor: int) -> Spend:
        """This spend `factor` times."""
        return Spend(self.mu2 * factor, self.tv * factor)

    def fits(self, budget: Spend) -> bool:
        """Whether neither currency passes the budget."""
        return self.mu2 <= budget.mu2 and self.tv <= budget.tv

    @property
    def mu_squared(self) -> float:
        """mu^2 as a float, for reports."""
        return float(self.mu2 * MU2_UNIT)


@lru_cache(maxsize=1024)
def budget_for(epsilon: float, delta: float) -> Spend:
    """The largest spend that is still (epsilon, delta)-DP, rounded down in both currencies.

    Of epsilon, one part in 16,384 is kept for the discreteness of the noise; the rest bounds mu^2.

    Raises:
        CohortiumError: epsilon outside (0, 50] or delta outside [1e-15, 0.1].
    """
    if not 0 < epsilon <= _MAX_EPSILON:
        raise CohortiumError("epsilon must be above 0 and at most 50", fix="state an epsilon such as 1.0")
    if not _MIN_DELTA <= delta <= 0.1:
        raise CohortiumError("delta must be at least 1e-15 and at most 0.1", fix="state a delta such as 1e-6")
    slack = epsilon * _SLACK_SHARE
    rest, target = epsilon - slack, (delta - (1 + math.exp(epsilon + slack)) * _TAIL) * math.exp(-slack)
    mu = 0.0
    if _gaussian_delta(rest, _MIN_MU**2) < target:
        mu = brentq(lambda m: _gaussian_delta(rest, m * m) - target, _MIN_MU, 40.0, xtol=1e-15, rtol=1e-14) * _SAFETY
    tv = slack / (2 * _RATIO) * _SAFETY
    return Spend(math.floor(Fraction(mu) ** 2 / MU2_UNIT), math.floor(Fraction(tv) / TV_UNIT))


def sigma_for(bound_squared: int, allotment: int) -> int:
    """The smallest integer sigma at which a release of that squared sensitivity costs at most `allotment` mu2 units."""
    if allotment < 1:
        raise CohortiumError("a release without budget", fix="give its phase a larger share of the plan")
    return _ceil_sqrt(Fraction(bound_squared) / (allotment * MU2_UNIT))


def price(bound_squared: int, sigma: int, width: int, share: NoiseShare = ALONE) -> Spend:
    """What one release of `width` words with squared sensitivity `bound_squared` costs, rounded up.

    Args:
        bound_squared: square of the most that one person at one institution moves the sum, in integer units.
        sigma: standard deviation of the noise that protects the sum: the joint noise's when it is shared.
        width: words released.
        share: whose noise it is. Shared noise is a sum of discrete Gaussians, within one unit of total variation of a
            discrete Gaussian (docs/privacy-guarantee.md, *Shared noise*); that unit is charged.
    """
    variance = sigma * sigma
    return Spend(
        mu2=-(-(bound_squared * MU2_UNIT.denominator) // variance),
        tv=-(-(width * TV_UNIT.denominator) // (24 * variance)) + share.is_shared,
    )


def person_at(local: Spend, distributed: Spend, institutions: int) -> Spend:
    """What the releases of one ledger cost a person whose data lie at several institutions that spend the same.

    Independent releases under local noise add up: mu^2 of j institutions is j mu^2. In a sum under shared noise the
    person moves the one sum by j bounds: mu is j mu, mu^2 is j^2 mu^2. Total variation is of the noise, and a shared
    noise is drawn once.

    Args:
        local: what the ledger holds for releases under the institution's own noise.
        distributed: what it holds for sums under shared noise.
        institutions: j, at how many institutions the person's data lie.
    """
    if institutions < 1:
        raise ValueError("a person is at one institution at least")
    return Spend(
        mu2=institutions * local.mu2 + institutions * institutions * distributed.mu2,
        tv=institutions * local.tv + distributed.tv,
    )


def if_more_collude(spend: Spend, share: NoiseShare, colluders: int) -> Spend:
    """What a spend under a share of noise comes to when `colluders` institutions tell their noise, rounded up.

    Where the secure sum's bounds still hold for j > c colluders (`SumTerms.shares_left` says when they do not), a sum
    keeps t - j of the t - c shares that the price counted on, and mu^2 grows by
    (t - c) / (t - j). An institution's own share always stays with it: from j = t - 1 on the factor is t - c, which is
    the price of a release under that share alone. The discreteness of less noise grows by the same factor.

    Args:
        spend: the sum of charges under this very share.
        share: under which they were charged.
        colluders: j, how many institutions collude, the curious one included; up to c nothing changes.
    """
    left = max(share.contributions - max(colluders, share.colluders), 1)
    return Spend(mu2=-(-spend.mu2 * share.shares // left), tv=-(-spend.tv * share.shares // left))


@lru_cache(maxsize=4096)
def epsilon_spent(spend: Spend, delta: float) -> float:
    """The smallest epsilon such that the spend is (epsilon, delta)-DP; infinity when none up to 200 is.

    delta_spent first falls with epsilon and, because exp(epsilon) multiplies the tail, rises again: the first crossing
    from the left, looked for in steps of 1/8 and then bisected down to neighbouring floats, is the answer. It is
    rounded up: delta_spent at the answer is at most delta.
    """
    if delta_spent(spend, 0.0) <= delta:
        return 0.0
    for step in range(1, 1601):
        high = step / 8
        if delta_spent(spend, high) <= delta:
            return _bisect(spend, delta, high - 1 / 8, high)
    return math.inf


def _bisect(spend: Spend, delta: float, low: float, high: float) -> float:
    """The upper one of two neighbouring floats between which delta_spent crosses `delta` downwards."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if delta_spent(spend, middle) <= delta else (middle, high)
    return high


@lru_cache(maxsize=4096)
def epsilon_by_pld(spend: Spend, delta: float) -> float:
    """The same epsilon by the privacy loss distribution of `dp-accounting`, pessimistically discretised.

    An independent code path for reports. It is sound for programmes fixed in advance; the ledger never refuses on it.
    Losses are rounded up to multiples of mu / 512, which moves epsilon by about a millionth. The discreteness of the
    noise is added as in the closed form's second line.
    """
    grid = math.sqrt(spend.mu_squared) / 512 or 1.0
    accountant = _dp_accounting("pld.pld_privacy_accountant").PLDAccountant(value_discretization_interval=grid)
    return _epsilon_by(accountant, spend, delta)


def epsilon_by_rdp(spend: Spend, delta: float) -> float:
    """The same epsilon by Renyi orders of `dp-accounting`: looser, and sound for adaptive programmes too.

    The discreteness of the noise is added as in `epsilon_by_pld`.
    """
    return _epsilon_by(_dp_accounting("rdp.rdp_privacy_accountant").RdpAccountant(), spend, delta)


def _dp_accounting(module: str) -> Any:
    """A module of `dp-accounting`, imported when first asked for: it brings scipy.signal, most of a second."""
    return import_module(f"dp_accounting.{module}")


def _epsilon_by(accountant: Any, spend: Spend, delta: float) -> float:
    """One Gaussian event of the spend's whole mu^2, composed once."""
    slack, epsilon = _RATIO * float(spend.tv * TV_UNIT), 0.0
    if spend.mu2 > 0:
        accountant.compose(_dp_accounting("dp_event").GaussianDpEvent(1 / math.sqrt(spend.mu_squared)))
        epsilon = float(accountant.get_epsilon(delta * (1 - _KEPT) * math.exp(-slack)))
    epsilon += 2 * slack
    tail = (1 + math.exp(min(epsilon + slack, 700.0))) * _TAIL
    return epsilon if tail <= delta * _KEPT else math.inf


def delta_spent(spend: Spend, epsilon: float) -> float:
    """The delta at which the spend is (epsilon, delta)-DP, rounded up."""
    tv = float(spend.tv * TV_UNIT)
    delta = _gaussian_delta(epsilon, spend.mu_squared) + (1 + math.exp(epsilon)) * tv
    slack = _RATIO * tv
    rest = (epsilon - 2 * slack) * (1.0 - 2.0**-50)
    if rest >= 0:
        tail = (1 + math.exp(epsilon + slack)) * _TAIL
        delta = min(delta, math.exp(slack) * _gaussian_delta(rest, spend.mu_squared) + tail)
    return delta * (1.0 + 2.0**-40)


def _gaussian_delta(epsilon: float, mu_squared: float) -> float:
    """delta(epsilon) of mu-GDP (Dong, Roth, Su 2022, corollary 2.13), stable in the tails.

    For deltas from 1e-15 up, the error is below 2**-40 of the result, apart from that of the logarithms' difference.
    Rounded arguments and rounded logarithms put that off by a few units in the last place of their own size: it is
    below 2**-48 (1 + |first|) and added.
    """
    if mu_squared <= 0:
        return 0.0
    mu = math.sqrt(mu_squared)
    first = float(log_ndtr(-epsilon / mu + mu / 2))
    second = epsilon + float(log_ndtr(-epsilon / mu - mu / 2))
    return float(math.exp(first) * (2.0**-48 * (1.0 - first) - math.expm1(min(second - first, 0.0))))


def _ceil_sqrt(value: Fraction) -> int:
    """The smallest positive integer whose square is at least `value`."""
    root = math.isqrt(math.ceil(value))
    while root * root < value:
        root += 1
    return max(root, 1)
