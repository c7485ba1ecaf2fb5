"""A mask used twice is found in the sums it was to hide; fresh ones are not accused."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from cohortium.privacy.audit.masks import masks_look_fresh
from cohortium.study.errors import Defect


def mask(key: int, words: int) -> NDArray[np.uint64]:
    stream = Cipher(algorithms.ChaCha20(key.to_bytes(32, "big"), bytes(16)), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(8 * words)), dtype=np.uint64)


def noised(seed: int, words: int, size: float = 2.0**38) -> NDArray[np.uint64]:
    return np.rint(np.random.default_rng(seed).normal(0, size, words)).astype(np.int64).view(np.uint64)


@pytest.mark.parametrize("words", [2, 3, 10, 1000])
def test_a_reused_mask_is_found(words: int) -> None:
    first, second = (noised(seed, words) + mask(7, words) for seed in (1, 2))
    assert not masks_look_fresh(first, second)


def test_a_reused_mask_is_found_in_a_single_word_of_little_noise() -> None:
    assert not masks_look_fresh(noised(1, 1, 2.0**30) + mask(7, 1), noised(2, 1, 2.0**30) + mask(7, 1))


@pytest.mark.parametrize(("words", "reach"), [(1, 33), (2, 45), (4, 52), (64, 60)])
def test_the_stated_power_is_certain(words: int, reach: int) -> None:
    """Every word differs by as much as the docstring allows, upwards or downwards."""
    hidden = mask(9, words)
    for sign in (1, -1):
        shifted = hidden + np.full(words, sign * (2**reach - 1), dtype=np.int64).view(np.uint64)
        assert not masks_look_fresh(hidden, shifted)


@pytest.mark.parametrize("words", [1, 2, 10, 1000, 100_000])
def test_fresh_masks_are_not_accused(words: int) -> None:
    for key in range(1, 21):
        assert masks_look_fresh(noised(1, words) + mask(key, words), noised(1, words) + mask(key + 100, words))


def test_false_alarms_are_as_rare_as_stated() -> None:
    found = sum(not masks_look_fresh(mask(2 * k, 4), mask(2 * k + 1, 4), alarm=0.05) for k in range(1, 2001))
    assert 60 <= found <= 145  # 100 expected, five standard deviations of 9.7 at most


def test_masks_reused_in_half_of_the_words_are_found() -> None:
    second = noised(2, 64) + np.concatenate([mask(1, 64)[:32], mask(2, 64)[32:]])
    assert not masks_look_fresh(noised(1, 64) + mask(1, 64), second)


def test_a_vector_without_any_mask_is_found_against_zeros() -> None:
    assert not masks_look_fresh(noised(1, 20), np.zeros(20, dtype=np.uint64))
    assert masks_look_fresh(noised(1, 20) + mask(1, 20), np.zeros(20, dtype=np.uint64))


def test_identical_vectors_are_not_fresh() -> None:
    assert not masks_look_fresh(mask(1, 3), mask(1, 3))


def test_other_shapes_and_types_are_defects() -> None:
    one = mask(1, 4)
    for bad in (one[:3], one.view(np.int64), one.reshape(2, 2)):
        with pytest.raises(Defect):
            masks_look_fresh(one, bad)  # type: ignore[arg-type]
    with pytest.raises(Defect):
        masks_look_fresh(one[:0], one[:0])
