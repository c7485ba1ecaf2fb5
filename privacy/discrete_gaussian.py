"""The discrete Gaussian, sampled exactly and in bulk from a source of uniform bits.

Method: Karney, "Sampling exactly from the normal distribution" (ACM TOMS 42(1), 2016), algorithm D, for an integer
sigma. A value z = s (k sigma + j) with sign s, 0 <= j < sigma is proposed with probability proportional to
exp(-k^2/2) / sigma and accepted with probability exp(-x (2k + x) / 2), x = j/sigma; the product is proportional to
exp(-z^2 / (2 sigma^2)).

Exactness: a uniform real number U in [0, 1) is known by its first 64 bits. A comparison U < p with a real p is decided
from those bits whenever they decide it. Floating point only *filters*: it settles comparisons that are clear by a
margin (2**-40) far above its error (below 2**-46); what it leaves open, about one draw in 2**39, is settled in
decimal arithmetic of growing precision with further bits of U. No float enters the result, and the distribution is the
discrete Gaussian itself, not an approximation.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal
from functools import cache

import numpy as np
from numpy.typing import NDArray

from cohortium.privacy.randomness import BitSource
from cohortium.study.errors import Defect

__all__ = ["sample_discrete_gaussian"]

_MARGIN = 2.0**-40
_MAX_SIGMA = 2**52
_BATCH = 2**18
_STEPS = 9
_WORD = 2.0**-64


def sample_discrete_gaussian(sigma: int, count: int, bits: BitSource) -> NDArray[np.int64]:
    """Independent draws from the discrete Gaussian: P(z) proportional to exp(-z^2 / (2 sigma^2)) on the integers.

    Args:
        sigma: scale in integer units, 1 <= sigma <= 2**52.
        count: number of draws, at least 0.
        bits: where the randomness comes from.

    Returns:
        int64, shape (count,). Exact: see the module.

    Raises:
        Defect: sigma is not an integer in range.
    """
    if not isinstance(sigma, int) or not 1 <= sigma <= _MAX_SIGMA:
        raise Defect("discrete Gaussian: sigma must be an integer from 1 to 2**52")
    parts: list[NDArray[np.int64]] = []
    missing = count
    while missing > 0:
        drawn = _accepted(sigma, min(missing + missing // 2 + 16, _BATCH), bits)[:missing]
        parts.append(drawn)
        missing -= len(drawn)
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _accepted(sigma: int, proposals: int, bits: BitSource) -> NDArray[np.int64]:
    """The accepted ones among `proposals` proposals, in order."""
    random = bits.words(3 * proposals).reshape(3, proposals)
    k = _half_normal_steps(random[0], bits)
    sign, j, uniform = _signed_offsets(random[1], sigma)
    keep = uniform & ~(sign & (k == 0) & (j == 0)) & _bernoulli_tail(k, j, sigma, random[2], uniform, bits)
    size = k * sigma + j
    values: NDArray[np.int64] = np.where(sign, -size, size)[keep]
    return values


def _signed_offsets(
    words: NDArray[np.uint64], sigma: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.bool_]]:
    """A sign and an offset 0 <= j < sigma from each word, and which words are exactly uniform over both."""
    span = 2 * sigma
    uniform = words < np.uint64(2**64 // span * span) if 2**64 % span else np.ones(len(words), dtype=np.bool_)
    residue = words % np.uint64(span)
    return (residue & np.uint64(1)).astype(np.bool_), (residue >> np.uint64(1)).astype(np.int64), uniform


def _half_normal_steps(words: NDArray[np.uint64], bits: BitSource) -> NDArray[np.int64]:
    """k >= 0 with probability proportional to exp(-k^2/2), by comparing each word with the cumulative table."""
    table = np.array(_thresholds(64), dtype=np.uint64)
    k = np.searchsorted(table, words, side="right").astype(np.int64)
    below = table[np.minimum(k, _STEPS - 1)] - words <= np.uint64(1)
    above = words - table[np.maximum(k - 1, 0)] <= np.uint64(1)
    for index in np.flatnonzero(below | above | (k == _STEPS)):
        k[index] = _exact_step(int(words[index]), bits)
    return k


def _exact_step(word: int, bits: BitSource) -> int:
    """k for a uniform number that begins with `word`, by as many further bits as it takes."""
    known = 64
    while True:
        steps = math.isqrt(2 * known) + 2  # exp(-k^2/2) is below 2**-known beyond it
        table = _thresholds(known, steps)
        open_ = [k for k, threshold in enumerate(table) if abs(word - threshold) <= 1]
        if not open_ and word < table[-1]:
            return next(k for k, threshold in enumerate(table) if word < threshold)
        word = (word << 64) | int(bits.words(1)[0])
        known += 64


@cache
def _thresholds(precision: int, steps: int = _STEPS) -> tuple[int, ...]:
    """P(K <= k) * 2**precision for k < steps, rounded down; in error by less than one unit."""
    context = Context(prec=precision // 3 + 24)
    terms = [context.exp(context.divide(Decimal(-k * k), Decimal(2))) for k in range(math.isqrt(2 * precision) + 12)]
    total = Decimal(0)
    for term in reversed(terms):
        total = context.add(total, term)
    result, partial = [], Decimal(0)
    for term in terms[:steps]:
        partial = context.add(partial, term)
        result.append(int(context.multiply(context.divide(partial, total), Decimal(2**precision))))
    return tuple(result)


def _bernoulli_tail(
    k: NDArray[np.int64],
    j: NDArray[np.int64],
    sigma: int,
    words: NDArray[np.uint64],
    wanted: NDArray[np.bool_],
    bits: BitSource,
) -> NDArray[np.bool_]:
    """True with probability exp(-x (2k + x) / 2), x = j/sigma, decided by a uniform number that begins with a word."""
    x = j / sigma
    gap = np.exp(-0.5 * x * (2 * k + x)) - words * _WORD
    accepted: NDArray[np.bool_] = gap > 0
    for index in np.flatnonzero((np.abs(gap) <= _MARGIN) & wanted):
        accepted[index] = _exact_bernoulli(int(k[index]), int(j[index]), sigma, int(words[index]), bits)
    return accepted


def _exact_bernoulli(k: int, j: int, sigma: int, word: int, bits: BitSource) -> bool:
    """Whether a uniform number that begins with `word` is below exp(-j (2 k sigma + j) / (2 sigma^2))."""
    if j == 0:
        return True  # the probability is one
    known = 64
    while True:
        context = Context(prec=known // 3 + 24)
        exponent = context.divide(Decimal(-j * (2 * k * sigma + j)), Decimal(2 * sigma * sigma))
        threshold = int(context.multiply(context.exp(exponent), Decimal(2**known)))
        if word + 1 < threshold:
            return True
        if word > threshold + 1:
            return False
        word = (word << 64) | int(bits.words(1)[0])
        known += 64
