"""The self-test accepts the exact sampler and rejects what is off by five percent, on a coarser grid or of floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortium.privacy.audit.noise import examine_noise, scale_power
from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.study.errors import Defect

SIGMA, DRAWS, ALARM = 2**24 + 7, 100_000, 1e-7


@pytest.fixture
def draws(seeded_bits: Callable[[int], Any]) -> NDArray[np.int64]:
    return sample_discrete_gaussian(SIGMA, DRAWS, seeded_bits(1))


def test_the_exact_sampler_is_accepted_at_its_scale(draws: NDArray[np.int64]) -> None:
    finding = examine_noise(draws, SIGMA, ALARM)
    assert not finding.flagged
    assert finding.lattice_step == 1
    assert finding.measured_sigma == pytest.approx(SIGMA, rel=0.01)
    assert min(finding.shape_p, finding.scale_p, finding.low_bits_p) > 1e-3


@pytest.mark.parametrize("ratio", [0.95, 1.05])
def test_a_scale_wrong_by_five_percent_is_rejected_either_way(
    ratio: float, draws: NDArray[np.int64], seeded_bits: Callable[[int], Any]
) -> None:
    off = sample_discrete_gaussian(round(SIGMA * ratio), DRAWS, seeded_bits(2))
    assert examine_noise(off, SIGMA, ALARM).scale_p < ALARM / 3
    assert examine_noise(off, SIGMA, ALARM).shape_p < 1e-4
    assert examine_noise(draws, round(SIGMA * ratio), ALARM).flagged


def test_the_stated_power_is_that_of_the_scale_test(seeded_bits: Callable[[int], Any]) -> None:
    assert examine_noise(sample_discrete_gaussian(SIGMA, DRAWS, seeded_bits(3)), SIGMA, ALARM).power_at_five_percent > (
        1 - 1e-9
    )
    assert scale_power(DRAWS, 1.0, 1e-3) == pytest.approx(1e-3, rel=1e-6)
    rng, few, found = np.random.default_rng(0), 1_000, 0
    for _ in range(400):
        found += examine_noise(np.rint(rng.normal(0, 1.1 * SIGMA, few)).astype(np.int64), SIGMA, 3e-3).scale_p < 1e-3
    assert found / 400 == pytest.approx(scale_power(few, 1.1, 1e-3), abs=0.1)


def test_p_values_of_the_exact_sampler_are_not_small_too_often(seeded_bits: Callable[[int], Any]) -> None:
    bits = seeded_bits(4)
    found = [examine_noise(sample_discrete_gaussian(SIGMA, 2_000, bits), SIGMA, ALARM) for _ in range(200)]
    for name in ("shape_p", "scale_p", "low_bits_p"):
        small = sum(getattr(finding, name) < 0.1 for finding in found)
        assert 5 <= small <= 40, f"{name}: {small} of 200 below 0.1"


def test_another_shape_of_the_right_scale_is_rejected(seeded_bits: Callable[[int], Any]) -> None:
    rng = np.random.default_rng(5)
    laplace = np.rint(rng.laplace(0, SIGMA / np.sqrt(2), DRAWS)).astype(np.int64)
    finding = examine_noise(laplace, SIGMA, ALARM)
    assert finding.flagged
    assert finding.shape_p < ALARM / 3


@pytest.mark.parametrize("step", [2, 3, 1000])
def test_a_coarser_lattice_is_rejected(step: int, draws: NDArray[np.int64]) -> None:
    coarse = (draws // step) * step + 1  # a lattice that does not hold 0
    finding = examine_noise(coarse, SIGMA, ALARM)
    assert finding.flagged
    assert finding.lattice_step == step


def test_noise_made_in_single_precision_is_rejected() -> None:
    rng = np.random.default_rng(6)
    sigma = 2**30
    finding = examine_noise(rng.normal(0, sigma, DRAWS).astype(np.float32).astype(np.int64), sigma, ALARM)
    assert finding.lattice_step == 1, "small values still have odd neighbours: only the low bits tell"
    assert finding.low_bits_p < ALARM / 3


def test_a_constant_is_rejected() -> None:
    finding = examine_noise(np.full(DRAWS, 5, dtype=np.int64), SIGMA, ALARM)
    assert finding.flagged
    assert finding.lattice_step == 0


def test_too_few_draws_floats_or_a_toy_scale_are_defects(draws: NDArray[np.int64]) -> None:
    for bad, sigma in ((draws[:999], SIGMA), (draws.astype(np.float64), SIGMA), (draws, 2**20 - 1)):
        with pytest.raises(Defect):
            examine_noise(bad, sigma, ALARM)  # type: ignore[arg-type]
