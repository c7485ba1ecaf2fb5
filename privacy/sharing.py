"""How much of a sum's noise one institution adds: all of it, or a share of what the institutions add together.

With shares, every institution adds discrete Gaussian noise of variance sigma^2 / (t - c): any t contributions, less
those of any c institutions that tell each other and the coordinator their noise, still carry variance sigma^2. The sum
of discrete Gaussians is no discrete Gaussian, but within 2^-80 of one at every scale this package uses
(docs/privacy-guarantee.md, *Shared noise*).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from cohortium.study.errors import RefusedError
from cohortium.study.plan import Plan

__all__ = ["ALONE", "NoiseShare", "noise_share"]


@dataclass(frozen=True)
class NoiseShare:
    """Whose noise protects a release.

    Args:
        contributions: t, the least number of institutions whose sum is unmasked; 1 where every institution's noise
            protects its people alone (trust model `local`).
        colluders: c, how many institutions may collude, the curious institution itself included; 0 when alone.
    """

    contributions: int = 1
    colluders: int = 0

    def __post_init__(self) -> None:
        alone = self.contributions == 1 and self.colluders == 0
        if not alone and not 1 <= self.colluders < self.contributions:
            raise ValueError("shared noise needs 1 <= colluders < contributions")

    @property
    def is_shared(self) -> bool:
        """Whether the noise of several institutions protects a sum (trust model `distributed`)."""
        return self.contributions > 1

    @property
    def shares(self) -> int:
        """How many shares make the full noise, t - c."""
        return self.contributions - self.colluders

    def sigma_of(self, sigma: int) -> int:
        """The least integer standard deviation of one share, such that `shares` of them make at least `sigma`."""
        share = isqrt(sigma * sigma // self.shares)
        while share * share * self.shares < sigma * sigma:
            share += 1
        return share


ALONE = NoiseShare()
"""Full noise at every institution."""


def noise_share(plan: Plan) -> NoiseShare:
    """Whose noise protects the answers to a plan.

    Raises:
        RefusedError: a plan without noise, which no institution answers.
    """
    if plan.trust == "unsafe-none":
        raise RefusedError("a plan without noise", fix='set trust = "distributed" or "local"')
    return NoiseShare(plan.min_institutions, plan.colluders) if plan.trust == "distributed" else ALONE
