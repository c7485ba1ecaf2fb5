"""Builds that are broken on purpose are flagged by the quick audit; the true build is not.

Every control is a subclass or a patch here; the product has no switch that could break it. Bits are seeded, so that
what these tests find does not change; the stated powers hold for fresh bits.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortium.models import moments, seed_queries
from cohortium.models.encoder import GRADIENT_SCALE, EncoderGradientQuery
from cohortium.privacy.accounting import sigma_for
from cohortium.privacy.audit.many_runs import AuditedRelease, ClaimFinding, audit_release, canary_strength
from cohortium.privacy.audit.mechanism import DoorArithmetic, Releaser
from cohortium.privacy.query import SCALE, Contribution, OuterQuery, SumQuery
from cohortium.privacy.sharing import NoiseShare
from cohortium.privacy.table import CustomerTable
from cohortium.simulations.privacy_audit import FALSE_ALARM, QUICK_RUNS, audited_releases

EPSILON = 4.0
ALARM = FALSE_ALARM / 30  # as many tests as the quick audit has
SHARED = NoiseShare(contributions=3, colluders=1)


class HalvedNoise(DoorArithmetic):
    def sigma(self, query: SumQuery, allotment: int) -> int:
        return super().sigma(query, allotment) // 2


class UnsquaredSensitivity(DoorArithmetic):
    """The bound D, in units of 1.0, where D^2 belongs."""

    def sigma(self, query: SumQuery, allotment: int) -> int:
        return sigma_for(isqrt(query.bound_squared) * SCALE, allotment)


class UnsquaredUnits(DoorArithmetic):
    """The same mistake in integer units."""

    def sigma(self, query: SumQuery, allotment: int) -> int:
        return sigma_for(isqrt(query.bound_squared), allotment)


class WithoutBoundCheck(DoorArithmetic):
    """Adds whatever a query contributes."""

    def total(self, query: SumQuery, people: CustomerTable) -> NDArray[np.int64]:
        total, part = np.zeros(query.width, dtype=np.int64), query.contribute(people)
        np.add.at(total, part.columns.ravel(), part.values.ravel())
        for outer, (left, right) in zip(
            query.outers if isinstance(query, OuterQuery) else (), part.outers, strict=True
        ):
            total[outer.offset : outer.offset + outer.words] += (left.T @ right).astype(np.int64).ravel()
        return total


class ShareLeftOut(DoorArithmetic):
    """One of the institutions whose noise is counted on adds none."""

    def noise_of(self, institution: int, sigma: int, width: int) -> NDArray[np.int64]:
        return np.zeros(width, dtype=np.int64) if institution == 0 else super().noise_of(institution, sigma, width)


class NoiseDrawnOnce(DoorArithmetic):
    """The same noise in every release."""

    def releaser(self, query: SumQuery, people: CustomerTable, allotment: int) -> Releaser:
        noise = DoorArithmetic(bits=self._bits).noise(self.sigma(query, allotment), query.width)
        total = self.total(query, people)
        return lambda: total + noise


class SometimesNoNoise(DoorArithmetic):
    """One release in fifty leaves without noise: an average hides it."""

    calls = 0

    def noise(self, sigma: int, width: int) -> NDArray[np.int64]:
        self.calls += 1
        return super().noise(sigma, width) if self.calls % 50 else np.zeros(width, dtype=np.int64)


class DoubledNoise(DoorArithmetic):
    def sigma(self, query: SumQuery, allotment: int) -> int:
        return 2 * super().sigma(query, allotment)


def not_clipped(values: NDArray[np.float64], radius: float = 1.0) -> NDArray[np.int64]:
    return np.trunc(values / radius * SCALE).astype(np.int64)


def not_clipped_gradients(query: EncoderGradientQuery, people: CustomerTable) -> Contribution:
    """In units of the clipping norm, but as long as they are."""
    factors = query.encoder.gradient_factors(query.encoder.basis.rows(people), query._hidden(people))
    unit = GRADIENT_SCALE / (2.0**10 * 2.0**16) / query.clip
    nothing = np.empty((len(people), 0), dtype=np.int64)
    return Contribution(nothing, nothing, tuple((left, np.trunc(right * unit)) for left, right in factors))


@pytest.fixture(scope="module")
def claims() -> dict[str, AuditedRelease]:
    releases, _ = audited_releases(EPSILON, DoorArithmetic())
    return {release.name: release for release in releases}


def audit(release: AuditedRelease, mechanism: DoorArithmetic) -> ClaimFinding:
    return audit_release(release, mechanism, QUICK_RUNS, ALARM)


each_release = pytest.mark.parametrize("name", ["histogram", "clustering", "head", "encoder"])


@each_release
def test_the_true_build_is_not_flagged(
    name: str, claims: dict[str, AuditedRelease], seeded_bits: Callable[[int], Any]
) -> None:
    finding = audit(claims[name], DoorArithmetic(bits=seeded_bits(1)))
    assert not finding.flagged
    assert finding.mu_alarm < finding.mu_lower < finding.mu_estimate < finding.mu_upper
    assert abs(finding.mu_estimate / finding.claimed_mu - 1) < 0.2  # more than four standard deviations
    assert finding.claimed_epsilon == pytest.approx(EPSILON, rel=1e-3)


@each_release
def test_the_canary_uses_the_whole_sensitivity_and_no_more(name: str, claims: dict[str, AuditedRelease]) -> None:
    release = claims[name]
    assert 0.97 < canary_strength(release.questions, DoorArithmetic(), release.canary) <= 1.0


@each_release
def test_halved_noise_is_flagged(
    name: str, claims: dict[str, AuditedRelease], seeded_bits: Callable[[int], Any]
) -> None:
    finding = audit(claims[name], HalvedNoise(bits=seeded_bits(2)))
    assert finding.flagged
    assert finding.mu_estimate == pytest.approx(2 * finding.claimed_mu, rel=0.15)


@each_release
def test_an_unsquared_sensitivity_in_integer_units_is_flagged(
    name: str, claims: dict[str, AuditedRelease], seeded_bits: Callable[[int], Any]
) -> None:
    finding = audit(claims[name], UnsquaredUnits(bits=seeded_bits(3)))
    assert finding.flagged
    assert finding.right == 2 * QUICK_RUNS


def test_an_unsquared_sensitivity_in_units_of_one_is_flagged(
    claims: dict[str, AuditedRelease], seeded_bits: Callable[[int], Any]
) -> None:
    assert audit(claims["histogram"], UnsquaredSensitivity(bits=seeded_bits(4))).flagged


def test_forgotten_clipping_of_the_head_is_flagged(
    monkeypatch: pytest.MonkeyPatch, seeded_bits: Callable[[int], Any]
) -> None:
    monkeypatch.setattr(seed_queries, "quantise", not_clipped)
    assert forgotten_clipping("head", WithoutBoundCheck(bits=seeded_bits(5))).flagged


def test_forgotten_clipping_of_the_encoder_is_flagged(
    monkeypatch: pytest.MonkeyPatch, seeded_bits: Callable[[int], Any]
) -> None:
    monkeypatch.setattr(EncoderGradientQuery, "contribute", not_clipped_gradients)
    assert forgotten_clipping("encoder", WithoutBoundCheck(bits=seeded_bits(13))).flagged


def test_forgotten_clipping_of_the_clustering_is_flagged(
    monkeypatch: pytest.MonkeyPatch, seeded_bits: Callable[[int], Any]
) -> None:
    monkeypatch.setattr(moments, "quantise", not_clipped)
    assert forgotten_clipping("clustering", WithoutBoundCheck(bits=seeded_bits(6))).flagged


@pytest.mark.parametrize("name", ["head", "encoder"])
def test_the_doors_bound_check_makes_up_for_forgotten_clipping(
    name: str, monkeypatch: pytest.MonkeyPatch, seeded_bits: Callable[[int], Any]
) -> None:
    monkeypatch.setattr(seed_queries, "quantise", not_clipped)
    monkeypatch.setattr(EncoderGradientQuery, "contribute", not_clipped_gradients)
    finding = forgotten_clipping(name, DoorArithmetic(bits=seeded_bits(7)))
    assert finding.canary_strength <= 1.0
    assert not finding.flagged


def forgotten_clipping(name: str, mechanism: DoorArithmetic) -> ClaimFinding:
    """Canaries are chosen anew: they are looked for in the build that is audited."""
    releases, _ = audited_releases(EPSILON, mechanism)
    return audit(next(release for release in releases if release.name == name), mechanism)


def test_shared_noise_is_not_flagged_and_a_share_left_out_is(
    claims: dict[str, AuditedRelease], seeded_bits: Callable[[int], Any]
) -> None:
    assert not audit(claims["histogram"], DoorArithmetic(SHARED, seeded_bits(8))).flagged
    assert audit(claims["histogram"], ShareLeftOut(SHARED, seeded_bits(9))).flagged


@each_release
def test_noise_drawn_once_is_flagged(
    name: str, claims: dict[str, AuditedRelease], seeded_bits: Callable[[int], Any]
) -> None:
    """Each table's releases are all alike: no threshold need see it, repetition does."""
    finding = audit(claims[name], NoiseDrawnOnce(bits=seeded_bits(10)))
    assert finding.flagged
    assert finding.distinct_share == 1 / QUICK_RUNS


def test_noise_that_is_sometimes_left_out_is_flagged(
    claims: dict[str, AuditedRelease], seeded_bits: Callable[[int], Any]
) -> None:
    """The guesses alone would not tell: one release in fifty moves their share by one percent."""
    finding = audit(claims["histogram"], SometimesNoNoise(bits=seeded_bits(11)))
    assert finding.mu_alarm < finding.claimed_mu
    assert finding.flagged


def test_more_noise_than_claimed_is_no_failure(
    claims: dict[str, AuditedRelease], seeded_bits: Callable[[int], Any]
) -> None:
    finding = audit(claims["histogram"], DoubledNoise(bits=seeded_bits(12)))
    assert not finding.flagged
    assert finding.mu_upper < finding.claimed_mu
