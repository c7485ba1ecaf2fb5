"""The many-run audit: release the same questions about two neighbouring tables many times, and tell them apart.

The tables differ by one canary: the person, among many candidates, who changes the sums most. The attacker knows
everything but whether the canary is there: both exact sums and every sigma. By Neyman and Pearson the likelihood ratio
is the best attack; with Gaussian noise it is a projection on the canary's contribution, added up over the questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cohortium.privacy.accounting import TV_UNIT, Spend, epsilon_spent, price
from cohortium.privacy.audit.bounds import (
    best_threshold,
    epsilon_at,
    epsilon_lower,
    mu_lower,
    mu_of_share,
    mu_upper,
)
from cohortium.privacy.audit.mechanism import Mechanism, Releaser
from cohortium.privacy.query import SumQuery
from cohortium.privacy.release import noise_scale
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import Defect

__all__ = ["Asked", "AuditedRelease", "ClaimFinding", "audit_release", "canary_strength", "with_worst_case"]

REPORTED_ERROR = 0.05
"""A reported bound may lie on the wrong side of the truth with this probability, each claim and side for itself."""


_LEAST_DISTINCT = 0.99


@dataclass(frozen=True)
class Asked:
    """A question and what it may cost.

    Args:
        query: the question.
        allotment: mu2 units.
    """

    query: SumQuery
    allotment: int

    @property
    def sigma(self) -> int:
        """The claimed standard deviation of the noise, in integer units."""
        return noise_scale(self.query, self.allotment)

    @property
    def spend(self) -> Spend:
        """What the ledger would charge."""
        return price(self.query.bound_squared, self.sigma, self.query.width)


@dataclass(frozen=True)
class AuditedRelease:
    """A claim: these questions together cost no more than their prices.

    Args:
        name: what is released.
        plan_epsilon: the plan's epsilon from which the allotments follow.
        delta: at which epsilons are stated.
        questions: at least one; of several rounds, all.
        crowd: everybody but the canary.
        canary: a table of one row, the same columns.
    """

    name: str
    plan_epsilon: float
    delta: float
    questions: tuple[Asked, ...]
    crowd: CustomerTable
    canary: CustomerTable

    @property
    def spend(self) -> Spend:
        """What the ledger would charge for all questions."""
        return sum((asked.spend for asked in self.questions), Spend())

    @property
    def with_canary(self) -> CustomerTable:
        """The neighbouring table: the crowd and the canary."""
        rows = np.vstack([self.crowd.values, self.canary.values])
        return CustomerTable(self.crowd.columns, rows, np.arange(len(rows)))


class ClaimFinding(BaseModel):
    """What the audit of one claim found; docs/privacy-audit.md explains every field.

    Epsilons are at the claim's delta; None stands for one above 200.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    release: str
    plan_epsilon: float
    delta: float
    questions: int
    words: int
    canary_strength: float
    runs: int
    right: int
    claimed_mu: float
    mu_estimate: float
    mu_lower: float
    mu_upper: float
    mu_alarm: float
    claimed_epsilon: float
    epsilon_estimate: float | None
    epsilon_lower: float | None
    epsilon_upper: float | None
    epsilon_lower_any_curve: float | None
    epsilon_alarm_any_curve: float | None
    distinct_share: float
    flagged: bool

    @property
    def ratio(self) -> float | None:
        """Share of the claimed epsilon that the audit recovers."""
        return None if self.epsilon_lower is None else self.epsilon_lower / self.claimed_epsilon


def canary_strength(questions: Sequence[Asked], mechanism: Mechanism, person: CustomerTable) -> float:
    """How much of the claimed sensitivity a person uses: 1 for a worst case, above 1 where a bound is broken.

    Ratio of mu^2: of the person's real contributions under the claimed sigmas, over what is claimed.
    """
    nobody = person.take(slice(0, 0))
    used = claimed = 0.0
    for asked in questions:
        change = mechanism.total(asked.query, person) - mechanism.total(asked.query, nobody)
        used += float((change.astype(np.float64) ** 2).sum()) / asked.sigma**2
        claimed += asked.query.bound_squared / asked.sigma**2
    return used / claimed


def with_worst_case(questions: Sequence[Asked], mechanism: Mechanism, candidates: CustomerTable) -> CustomerTable:
    """The candidate of the greatest strength, as a table of one row."""
    people = [candidates.take(slice(row, row + 1)) for row in range(len(candidates))]
    return max(people, key=lambda person: canary_strength(questions, mechanism, person))


def audit_release(release: AuditedRelease, mechanism: Mechanism, runs: int, alarm: float) -> ClaimFinding:
    """Release everything `runs` times without and `runs` times with the canary, and bound what that reveals.

    Formal guarantees: `mu_lower` lies above the mechanism's true mu with probability at most 0.05, whatever the
    mechanism is; the same holds for `epsilon_lower_any_curve` and its epsilon at delta. `epsilon_lower` is `mu_lower`
    expressed at delta by the Gaussian curve (see `bounds`). A mechanism of fresh noise at production scale whose claim
    is true is flagged with probability at most `alarm`.

    Scores that repeat in more than one run of a hundred are flagged as well: exact noise of such scales gives equal
    scores in fewer than one run of a thousand, for up to ten million runs, so that it is noise that was used again, or
    that was left out.

    Thresholds: for mu, equal likelihood, known before the first run, so that all runs count. For the epsilon of any
    curve, the best on the runs of even number, applied to those of odd number.

    Args:
        release: the claim.
        mechanism: what is attacked.
        runs: of each table.
        alarm: probability of a false alarm for this claim; the reported 95% bounds do not flag, because those of a
            tight mechanism lie above the truth in one run of twenty.
    """
    absent, present = _scores(release, mechanism, runs)
    right, guesses = int((absent <= 0).sum() + (present > 0).sum()), 2 * runs
    spend, delta = release.spend, release.delta
    tv = float(spend.tv * TV_UNIT)
    claimed_mu, claimed = math.sqrt(spend.mu_squared), epsilon_spent(spend, delta)
    alarm_mu = mu_lower(right, guesses, alarm / 2, tv)
    distinct = min(len(np.unique(scores)) for scores in (absent, present)) / runs
    learnt = best_threshold(absent[::2], present[::2], partial(_bound, absent[::2], present[::2], delta))
    tested = partial(epsilon_lower, absent[1::2], present[1::2], learnt, delta)
    measured = mu_of_share(right / guesses)
    lowest, highest = mu_lower(right, guesses, REPORTED_ERROR, tv), mu_upper(right, guesses, REPORTED_ERROR)
    return ClaimFinding(
        release=release.name,
        plan_epsilon=release.plan_epsilon,
        delta=delta,
        questions=len(release.questions),
        words=sum(asked.query.width for asked in release.questions),
        canary_strength=canary_strength(release.questions, mechanism, release.canary),
        runs=runs,
        right=right,
        claimed_mu=claimed_mu,
        mu_estimate=measured,
        mu_lower=lowest,
        mu_upper=highest,
        mu_alarm=alarm_mu,
        claimed_epsilon=claimed,
        epsilon_estimate=_or_none(epsilon_at(measured, delta)),
        epsilon_lower=_or_none(epsilon_at(lowest, delta)),
        epsilon_upper=_or_none(epsilon_at(highest, delta)),
        epsilon_lower_any_curve=_or_none(tested(REPORTED_ERROR)),
        epsilon_alarm_any_curve=_or_none(tested(alarm / 2)),
        distinct_share=distinct,
        flagged=alarm_mu > claimed_mu or tested(alarm / 2) > claimed or distinct < _LEAST_DISTINCT,
    )


def _bound(absent: NDArray[np.float64], present: NDArray[np.float64], delta: float, threshold: float) -> float:
    return epsilon_lower(absent, present, threshold, delta, REPORTED_ERROR)


def _or_none(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _scores(
    release: AuditedRelease, mechanism: Mechanism, runs: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log likelihood ratios of presence, over all questions, of runs without and with the canary."""
    absent, present = np.zeros(runs), np.zeros(runs)
    table, moved = release.crowd, 0.0
    neighbour = release.with_canary
    for asked in release.questions:
        base = mechanism.total(asked.query, table)
        change = (mechanism.total(asked.query, neighbour).view(np.uint64) - base.view(np.uint64)).view(np.int64)
        support = np.flatnonzero(change)
        direction = change[support].astype(np.float64) / asked.sigma**2
        middle = 0.5 * float(direction @ change[support])
        moved += middle
        for people, scores in ((table, absent), (neighbour, present)):
            releaser = mechanism.releaser(asked.query, people, asked.allotment)
            scores += _projected(releaser, base.view(np.uint64)[support], support, direction, runs) - middle
    if moved == 0.0:
        raise Defect(f"audit: the canary of '{release.name}' changes nothing")
    return absent, present


def _projected(
    releaser: Releaser,
    base: NDArray[np.uint64],
    support: NDArray[np.intp],
    direction: NDArray[np.float64],
    runs: int,
) -> NDArray[np.float64]:
    """Each run's distance from the crowd's sum, along the canary's contribution."""
    result = np.empty(runs)
    for run in range(runs):
        residual = (releaser().view(np.uint64)[support] - base).view(np.int64)
        result[run] = residual.astype(np.float64) @ direction
    return result
