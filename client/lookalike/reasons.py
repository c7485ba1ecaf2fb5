"""Reasons: which features raise one customer's score most. Local, like the score.

A feature's contribution is a change of the score that is exact and follows from that customer's row alone:

- *ranker on features*: the part of the score that the feature's columns add, which is relative to the released mean
  row, as rows are centred by it.
- *ranker on the embedding*: the score with the feature less the score with the feature hidden from the encoder. The
  encoder is trained to do without hidden features, and begins by putting the released mean in their place. The score is
  taken before the row is clipped to its norm, which moves all of a customer's contributions alike. (Occlusion, as in
  Zeiler, Fergus, ECCV 2014, with the model's own notion of "not known" in place of a made-up value.)

Contributions add up to the score of a ranker on features; those on the embedding need not, as features interact.

A feature that is the same for everybody moves every score alike and changes no ranking. Its contribution is what sets
it apart from the released mean: nothing, but for the grid and the noise of that mean. What weighs less than a hundredth
of all contributions together is no reason; noise can lift it above that, and a ranker does not say how noisy it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cohortium.models.basis import UNIT
from cohortium.models.encoder import Encoder
from cohortium.models.features import exact_product
from cohortium.models.ranker import Ranker
from cohortium.privacy.table import CustomerTable

__all__ = ["REASONS", "contributions", "leading_reasons"]

REASONS = 3
"""Reasons of a customer."""

_LEAST_SHARE = 0.01
_REACH = 8.0 * UNIT  # of the encoder's activations
_ROWS = 1024


def contributions(ranker: Ranker, people: CustomerTable) -> NDArray[np.float64]:
    """What each feature adds to each customer's score, in the score's unit, shape (n, features)."""
    encoder = ranker.rows.encoder
    if encoder is None:
        placed = ranker.weights[:, np.newaxis] * _members(ranker)
        return exact_product(ranker.rows.of(people), placed)
    basis_rows = encoder.basis.rows(people)
    result = np.empty((len(people), len(encoder.basis.blocks)))
    for start in range(0, len(people), _ROWS):
        result[start : start + _ROWS] = _hidden_in_turn(encoder, ranker.weights, basis_rows[start : start + _ROWS])
    return result


def leading_reasons(added: NDArray[np.float64]) -> NDArray[np.int64]:
    """The features that add most, most first: their positions, -1 where no further one adds enough, shape (n, 3).

    Args:
        added: from `contributions`; of equal contributions the first feature's counts as larger.
    """
    left = np.where(added > _LEAST_SHARE * np.abs(added).sum(axis=1, keepdims=True), added, 0.0)
    result = np.full((len(added), REASONS), -1, dtype=np.int64)
    everybody = np.arange(len(added))
    for rank in range(min(REASONS, added.shape[1])):
        best = left.argmax(axis=1)
        result[:, rank] = np.where(left[everybody, best] > 0.0, best, -1)
        left[everybody, best] = 0.0
    return result


def _members(ranker: Ranker) -> NDArray[np.float64]:
    """1.0 where a column belongs to a feature, shape (width, features)."""
    basis = ranker.rows.basis
    return np.asarray(basis.feature_of[:, np.newaxis] == np.arange(len(basis.blocks)), dtype=np.float64)


def _hidden_in_turn(
    encoder: Encoder, weights: NDArray[np.float64], basis_rows: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Score less the score without each feature. Hiding one changes the first layer's sum by that block's part alone.

    The first layer's sums are multiples of 2^-16 below 2^29, the scores of 2^-20 below 2^30: exact in float64, whatever
    rows are computed together.
    """
    first, second = encoder.weights[0], encoder.weights[1]
    width = encoder.basis.width
    rows = np.rint(basis_rows * encoder.scales)
    shown = rows @ first[:width] + first[-1] * UNIT
    whole = _code(np.array(shown), second) @ weights
    result = np.empty((len(rows), len(encoder.basis.blocks)))
    start = 0
    for index, block in enumerate(encoder.basis.blocks):
        own = slice(start, start + block.width)
        without = shown - rows[:, own] @ first[own]
        without += first[width + index] * UNIT
        result[:, index] = whole - _code(without, second) @ weights
        start += block.width
    result *= 1.0 / UNIT
    return result


def _code(summed: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """The embedding of the first layer's sums, in steps of 2^-10, as `Encoder.embed` rounds it. Overwrites `summed`."""
    np.rint(summed, out=summed)
    np.clip(summed, 0.0, _REACH, out=summed)
    code = summed @ second[:-1]
    code += second[-1] * UNIT
    np.rint(code, out=code)
    return np.clip(code, -_REACH, _REACH, out=code)
