"""The sampler is the discrete Gaussian: by power tests, by its exact mass, by an independent implementation, and by
scripts that drive every exact fallback against high-precision decisions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from cohortium.privacy import discrete_gaussian as module
from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.study.errors import Defect

N = 20_000
ALPHA = 1e-9
SIGMAS = [20, 1000, 2**20 + 7, 2**31 + 11, 2**40 + 1, 2**52]


def accepts_scale(draws: NDArray[np.int64], sigma: float) -> bool:
    """Two-sided chi-square test of the variance around the known mean 0."""
    statistic = float((draws.astype(np.float64) ** 2).sum()) / sigma**2
    tail = min(stats.chi2.cdf(statistic, len(draws)), stats.chi2.sf(statistic, len(draws)))
    return bool(2 * tail > ALPHA)


def accepts_shape(draws: NDArray[np.int64], sigma: float) -> bool:
    """Kolmogorov-Smirnov against the continuous Gaussian, after spreading every integer over its unit cell."""
    spread = draws + np.random.default_rng(1).uniform(-0.5, 0.5, len(draws))
    return bool(stats.kstest(spread / sigma, "norm").pvalue > ALPHA)


def exact_mass(sigma: float, reach: int) -> NDArray[np.float64]:
    """P(z) for -reach <= z <= reach, from mpmath."""
    with mpmath.workdps(40):
        masses = [mpmath.exp(-(mpmath.mpf(z) ** 2) / (2 * mpmath.mpf(sigma) ** 2)) for z in range(-reach, reach + 1)]
        total = mpmath.fsum(mpmath.exp(-(mpmath.mpf(z) ** 2) / (2 * mpmath.mpf(sigma) ** 2)) for z in range(-200, 201))
        return np.array([float(m / total) for m in masses])


def accepts_mass(draws: NDArray[np.int64], sigma: float) -> bool:
    """Chi-square of counts against the exact masses, tails pooled so that every cell expects at least 5."""
    reach = math.ceil(5 * sigma)
    mass = exact_mass(sigma, reach)
    while len(draws) * mass[0] < 5:
        mass, reach = mass[1:-1], reach - 1
    inner = np.array([(draws == z).sum() for z in range(-reach + 1, reach)])
    observed = np.concatenate([[(draws <= -reach).sum()], inner, [(draws >= reach).sum()]])
    tail = (1 - mass[1:-1].sum()) / 2
    expected = len(draws) * np.concatenate([[tail], mass[1:-1], [tail]])
    return bool(stats.chisquare(observed, expected).pvalue > ALPHA)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_large_scales_accept_the_true_scale_and_reject_five_percent(
    sigma: int, seeded_bits: Callable[[int], Any]
) -> None:
    draws = sample_discrete_gaussian(sigma, N, seeded_bits(sigma))
    assert accepts_shape(draws, sigma)
    assert accepts_scale(draws, sigma)
    for wrong in (0.95, 1.05):
        assert not accepts_scale(draws, sigma * wrong)
        off = np.rint(draws * wrong).astype(np.int64)
        assert not accepts_scale(off, sigma), "the test cannot see a scale that is wrong by five percent"


@pytest.mark.parametrize("sigma", [1, 2, 3, 7])
def test_small_scales_have_the_exact_mass(sigma: int, seeded_bits: Callable[[int], Any]) -> None:
    draws = sample_discrete_gaussian(sigma, 5 * N, seeded_bits(sigma))
    assert accepts_mass(draws, sigma)
    assert not accepts_mass(draws, sigma * 0.95)
    assert not accepts_mass(draws, sigma * 1.05)


@pytest.mark.parametrize("sigma", [3, 2**20 + 7])
def test_no_difference_from_an_independent_implementation(sigma: int, seeded_bits: Callable[[int], Any]) -> None:
    dp = pytest.importorskip("opendp.prelude")
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=int), size=N), dp.l2_distance(T=float)
    theirs = np.array(dp.m.make_gaussian(*space, scale=float(sigma))([0] * N), dtype=np.int64)
    ours = sample_discrete_gaussian(sigma, N, seeded_bits(5))
    # alpha is for one run against fresh bits of theirs
    if sigma < 10:
        values = np.arange(-3 * sigma, 3 * sigma + 1)
        sides = [np.clip(side, values[0], values[-1]) for side in (ours, theirs)]
        counts = np.array([[(side == value).sum() for value in values] for side in sides])
        assert stats.chi2_contingency(counts).pvalue > ALPHA
    else:
        assert stats.ks_2samp(ours, theirs).pvalue > ALPHA
        assert stats.ks_2samp(np.rint(ours * 1.25), theirs).pvalue < ALPHA


@pytest.mark.parametrize("sigma", [1, 6, 2**24 + 3])
def test_signs_and_neighbouring_draws_are_independent(sigma: int, seeded_bits: Callable[[int], Any]) -> None:
    draws = sample_discrete_gaussian(sigma, 200_000, seeded_bits(9)).astype(np.float64)
    positive, negative = int((draws > 0).sum()), int((draws < 0).sum())
    assert stats.binomtest(positive, positive + negative).pvalue > ALPHA
    for lag in (1, 2, 3):
        correlation = float((draws[lag:] * draws[:-lag]).mean()) / sigma**2
        assert abs(correlation) * math.sqrt(len(draws)) < 6.2


def test_zero_counts_once(seeded_bits: Callable[[int], Any]) -> None:
    # at sigma 1 a zero of either sign would make P(0) 0.570 instead of 0.399
    draws = sample_discrete_gaussian(1, 200_000, seeded_bits(2))
    assert stats.binomtest(int((draws == 0).sum()), len(draws), float(exact_mass(1, 3)[3])).pvalue > ALPHA


def test_batches_join_without_bias(seeded_bits: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 3)
    draws = sample_discrete_gaussian(2, N, seeded_bits(4))
    assert len(draws) == N
    assert accepts_mass(draws, 2)


def test_same_bits_same_draws(seeded_bits: Callable[[int], Any]) -> None:
    first = sample_discrete_gaussian(12345, 1000, seeded_bits(1))
    assert (first == sample_discrete_gaussian(12345, 1000, seeded_bits(1))).all()
    assert (first != sample_discrete_gaussian(12345, 1000, seeded_bits(2))).any()


@pytest.mark.parametrize("sigma", [0, -1, 2**52 + 1, 1.5, np.int64(4)])
def test_a_scale_out_of_range_is_a_defect(sigma: Any, seeded_bits: Callable[[int], Any]) -> None:
    with pytest.raises(Defect):
        sample_discrete_gaussian(sigma, 1, seeded_bits(0))


def test_no_draws(seeded_bits: Callable[[int], Any]) -> None:
    bits = seeded_bits(0)
    assert sample_discrete_gaussian(5, 0, bits).shape == (0,)
    assert bits.drawn == 0


# --- exact fallbacks, scripted -------------------------------------------------------------------------------------


@cache
def cumulative(k: int) -> Any:
    """P(K <= k) for P(K = k) proportional to exp(-k^2/2), to 140 digits."""
    with mpmath.workdps(140):
        terms = [mpmath.exp(-(mpmath.mpf(i) ** 2) / 2) for i in range(40)]
        return mpmath.fsum(terms[: k + 1]) / mpmath.fsum(terms)


def decided_step(words: list[int]) -> int:
    """k for the number in [0, 1) whose 64-bit digits are `words`, by 130-digit arithmetic."""
    value = sum(mpmath.mpf(w) / mpmath.mpf(2) ** (64 * i) for i, w in enumerate(words, start=1))
    return next(k for k in range(100) if value < cumulative(k))


def digits_of(value: Any, count: int) -> list[int]:
    """The first `count` 64-bit digits of a number in [0, 1)."""
    whole = int(mpmath.floor(value * mpmath.mpf(2) ** (64 * count)))
    return [(whole >> (64 * (count - 1 - i))) % 2**64 for i in range(count)]


@pytest.mark.parametrize("k", range(13))
@pytest.mark.parametrize("offset", [-2, -1, 0, 1, 2])
@pytest.mark.parametrize("further", [0, 2**63, 2**64 - 1])
def test_steps_at_their_thresholds(k: int, offset: int, further: int, scripted_bits: Callable[..., Any]) -> None:
    with mpmath.workdps(130):
        word = min(digits_of(cumulative(k), 1)[0] + offset, 2**64 - 1)
        tail = [further, 2**63 + 12345, 99]
        bits = scripted_bits(tail)
        found = int(module._half_normal_steps(np.array([word], dtype=np.uint64), bits)[0])
        used = len(tail) - bits.left
        assert found == decided_step([word, *tail])
        if used == 0:  # decided by the first word alone: then every continuation must agree
            assert found == decided_step([word, *[0] * 3]) == decided_step([word, *[2**64 - 1] * 3])


@pytest.mark.parametrize("k", [0, 3, 8, 9, 10, 12])
@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_steps_undecided_for_several_words(k: int, shift: int, scripted_bits: Callable[..., Any]) -> None:
    # follows the threshold's own digits for three words and leaves it, by `shift`, in the fourth alone
    with mpmath.workdps(130):
        digits = digits_of(cumulative(k), 5)
        digits[3] = (digits[3] + 10 * shift) % 2**64
        bits = scripted_bits([*digits[1:], 2**63])
        found = int(module._half_normal_steps(np.array([digits[0]], dtype=np.uint64), bits)[0])
        assert found == decided_step([*digits, 2**63])
        assert bits.left < 3


def test_words_beyond_the_table_reach_far_steps(scripted_bits: Callable[..., Any]) -> None:
    with mpmath.workdps(130):
        for script in ([2**64 - 1, 2**64 - 1, 5, 0], [2**64 - 1, 2**64 - 2**40, 7, 0], [2**64 - 3, 1, 1, 1]):
            bits = scripted_bits(script[1:])
            found = int(module._half_normal_steps(np.array([script[0]], dtype=np.uint64), bits)[0])
            assert found == decided_step(script)
            assert found >= 9


def test_steps_by_the_table_agree_with_high_precision(seeded_bits: Callable[[int], Any]) -> None:
    words = seeded_bits(3).words(300)
    steps = module._half_normal_steps(words, seeded_bits(4))
    with mpmath.workdps(60):
        assert [decided_step([int(word)]) for word in words] == steps.tolist()


def acceptance(k: int, j: int, sigma: int) -> Any:
    x = mpmath.mpf(j) / sigma
    return mpmath.exp(-x * (2 * k + x) / 2)


CASES = [(0, 1, 2), (0, 1, 2**52), (0, 2**52 - 1, 2**52), (1, 3, 7), (2, 2**30, 2**31 + 11), (9, 5, 6), (14, 99, 100)]


@pytest.mark.parametrize(("k", "j", "sigma"), CASES)
@pytest.mark.parametrize("offset", [-(2**25), -(2**23), -2, -1, 0, 1, 2, 2**23, 2**25])
@pytest.mark.parametrize("further", [0, 2**64 - 1])
def test_acceptance_at_its_threshold(
    k: int, j: int, sigma: int, offset: int, further: int, scripted_bits: Callable[..., Any]
) -> None:
    with mpmath.workdps(130):
        probability = acceptance(k, j, sigma)
        word = min(max(digits_of(probability, 1)[0] + offset, 0), 2**64 - 1)
        tail = [further, 77, 88]
        bits = scripted_bits(tail)
        found = one_acceptance(k, j, sigma, word, bits)
        value = sum(mpmath.mpf(w) / mpmath.mpf(2) ** (64 * i) for i, w in enumerate([word, *tail], start=1))
        assert found == bool(value < probability)


@pytest.mark.parametrize(("k", "j", "sigma"), CASES)
@pytest.mark.parametrize("shift", [-10, 10])
def test_acceptance_undecided_for_several_words(
    k: int, j: int, sigma: int, shift: int, scripted_bits: Callable[..., Any]
) -> None:
    with mpmath.workdps(130):
        digits = digits_of(acceptance(k, j, sigma), 5)
        digits[3] += shift
        bits = scripted_bits(digits[1:])
        assert one_acceptance(k, j, sigma, digits[0], bits) == (shift < 0)
        assert bits.left == 1


def test_acceptance_of_certainty_needs_no_bits(scripted_bits: Callable[..., Any]) -> None:
    for word in (0, 2**63, 2**64 - 1):
        assert one_acceptance(5, 0, 3, word, scripted_bits([]))


def test_the_float_filter_errs_far_less_than_its_margin(seeded_bits: Callable[[int], Any]) -> None:
    rng = np.random.default_rng(0)
    with mpmath.workdps(60):
        for sigma in (1, 3, 2**20 + 7, 2**52):
            for k in range(16):
                j = int(rng.integers(0, sigma))
                x = np.array([j], dtype=np.int64) / sigma
                assert abs(mpmath.mpf(float(np.exp(-0.5 * x * (2 * k + x))[0])) - acceptance(k, j, sigma)) < 2.0**-46


def one_acceptance(k: int, j: int, sigma: int, word: int, bits: Any) -> bool:
    ks, js = np.array([k], dtype=np.int64), np.array([j], dtype=np.int64)
    words, wanted = np.array([word], dtype=np.uint64), np.ones(1, dtype=np.bool_)
    return bool(module._bernoulli_tail(ks, js, sigma, words, wanted, bits)[0])


@pytest.mark.parametrize("sigma", [1, 2, 3, 5, 2**20 + 7])
def test_offsets_are_uniform_and_the_last_incomplete_cycle_is_rejected(sigma: int) -> None:
    span = 2 * sigma
    limit = 2**64 // span * span
    words = np.array([0, 1, 2, span - 1, span, limit - 1, min(limit, 2**64 - 1), 2**64 - 1], dtype=np.uint64)
    sign, j, uniform = module._signed_offsets(words, sigma)
    expected = [(int(w) % span % 2, int(w) % span // 2, int(w) < limit) for w in words]
    assert list(zip(sign.astype(int).tolist(), j.tolist(), uniform.tolist(), strict=True)) == expected


def test_a_whole_draw_by_script(scripted_bits: Callable[..., Any]) -> None:
    # sigma 3: one wanted draw means 17 proposals; k words, then sign/offset words, then acceptance words
    k_words = [0] * 17
    offsets = [1, 3, *[0] * 15]  # first: minus zero, refused; second: sign -, j = 1
    acceptance_words = [0] * 17
    draws = sample_discrete_gaussian(3, 1, scripted_bits(k_words + offsets + acceptance_words))
    assert draws.tolist() == [-1]
