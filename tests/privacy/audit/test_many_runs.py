"""The audit itself: what it measures, that it goes through the very door, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cohortium.models.marginals import Axis, MarginalsQuery
from cohortium.privacy.accounting import budget_for, epsilon_spent, price
from cohortium.privacy.audit.many_runs import Asked, AuditedRelease, audit_release, canary_strength, with_worst_case
from cohortium.privacy.audit.mechanism import DoorArithmetic
from cohortium.privacy.query import bounded_total
from cohortium.privacy.release import noise_scale
from cohortium.privacy.sharing import NoiseShare
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import Defect

DELTA = 1e-6
QUERY = MarginalsQuery((Axis("a", 0, 10, integer=True),))


def table(*values: float) -> CustomerTable:
    return CustomerTable(("a",), np.array(values, dtype=np.float64).reshape(-1, 1), np.arange(len(values)))


def claim(epsilon: float = 4.0, rounds: int = 1, canary: float = 7.0) -> AuditedRelease:
    asked = Asked(QUERY, budget_for(epsilon, DELTA).mu2 // rounds)
    return AuditedRelease("counts", epsilon, DELTA, (asked,) * rounds, table(1, 2, 3, 3), table(canary))


def test_a_release_is_the_doors_sum_sigma_noise_and_wraparound(seeded_bits: Callable[[int], Any]) -> None:
    asked, crowd = claim().questions[0], claim().crowd
    mechanism, again = DoorArithmetic(bits=seeded_bits(1)), DoorArithmetic(bits=seeded_bits(1))
    releaser = mechanism.releaser(asked.query, crowd, asked.allotment)
    noise = again.noise(noise_scale(asked.query, asked.allotment), QUERY.width)
    assert (releaser() == bounded_total(QUERY, crowd) + noise).all()
    assert (releaser() != releaser()).any()


def test_sums_wrap_modulo_64_bits() -> None:
    class Huge(DoorArithmetic):
        def total(self, query: Any, people: CustomerTable) -> Any:
            return np.full(query.width, 2**63 - 1, dtype=np.int64)

        def noise(self, sigma: int, width: int) -> Any:
            return np.ones(width, dtype=np.int64)

    assert (Huge().releaser(QUERY, table(1), 2**40)() == -(2**63)).all()


def test_shared_noise_is_that_of_the_institutions_outside_the_coalition(seeded_bits: Callable[[int], Any]) -> None:
    share, sigma = NoiseShare(contributions=5, colluders=2), 2**24
    noise = DoorArithmetic(share, seeded_bits(2)).noise(sigma, 50_000)
    assert float(noise.astype(np.float64).std()) == pytest.approx(sigma, rel=0.02)


def test_the_claim_is_the_ledgers_price_of_all_questions() -> None:
    release = claim(rounds=3)
    spend = price(QUERY.bound_squared, release.questions[0].sigma, QUERY.width).times(3)
    assert release.spend == spend
    finding = audit_release(release, DoorArithmetic(), 400, 1e-6)
    assert finding.claimed_epsilon == epsilon_spent(spend, DELTA)
    assert finding.claimed_mu == math.sqrt(spend.mu_squared)
    assert (finding.questions, finding.words, finding.runs) == (3, 3 * QUERY.width, 400)


@pytest.mark.parametrize("rounds", [1, 4])
def test_the_measured_mu_is_the_claimed_one_over_all_rounds(rounds: int, seeded_bits: Callable[[int], Any]) -> None:
    finding = audit_release(claim(rounds=rounds), DoorArithmetic(bits=seeded_bits(3)), 4_000, 1e-6)
    assert finding.mu_estimate == pytest.approx(finding.claimed_mu, abs=0.11)  # four standard deviations
    assert finding.mu_lower < finding.mu_estimate < finding.mu_upper
    assert finding.epsilon_lower is not None
    assert finding.ratio == pytest.approx(finding.epsilon_lower / finding.claimed_epsilon)
    assert finding.epsilon_lower_any_curve is not None
    assert 0 < finding.epsilon_lower_any_curve < finding.claimed_epsilon


def test_false_flags_are_as_rare_as_asked_for(seeded_bits: Callable[[int], Any]) -> None:
    """At an alarm of one half a tight mechanism may be flagged in half of its audits; at 1e-6 it never is here."""
    release, bits = claim(), seeded_bits(4)
    lax = [audit_release(release, DoorArithmetic(bits=bits), 200, 0.5) for _ in range(60)]
    assert 2 <= sum(finding.flagged for finding in lax) <= 30
    above = sum(finding.mu_lower > finding.claimed_mu for finding in lax)
    assert 0 < above <= 10, "about 3 of 60: the 95% bound of a tight mechanism lies above the truth one time in twenty"
    strict = [audit_release(release, DoorArithmetic(bits=bits), 200, 1e-6) for _ in range(20)]
    assert not any(finding.flagged for finding in strict)


def test_the_worst_candidate_is_the_one_of_the_longest_contribution() -> None:
    class LongForSeven(DoorArithmetic):
        def total(self, query: Any, people: CustomerTable) -> Any:
            return bounded_total(query, people) * (3 if 7.0 in people.values else 1)

    asked = claim().questions
    assert with_worst_case(asked, LongForSeven(), table(1, 7, 9)).values.tolist() == [[7.0]]
    assert canary_strength(asked, LongForSeven(), table(7)) == pytest.approx(9.0)
    assert canary_strength(asked, DoorArithmetic(), table(7)) == 1.0


def test_a_canary_that_changes_nothing_is_a_defect() -> None:
    class Blind(DoorArithmetic):
        def total(self, query: Any, people: CustomerTable) -> Any:
            return np.zeros(query.width, dtype=np.int64)

    with pytest.raises(Defect, match="changes nothing"):
        audit_release(claim(), Blind(), 200, 1e-6)
