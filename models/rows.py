"""Columns that a node makes of its own beside the contract's, and what is drawn from a person's hash.

A contract's features begin with a letter, these with @. `@hash` is a whole number of 53 bits, the same for the same
customer id everywhere; which features an encoder hides from itself in a round follows from it: per person,
reproducibly, and independently of everybody else. No privacy rests on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["HASH", "SEED", "row_hashes", "row_words"]

HASH = "@hash"
"""Name of the column of hashes."""

SEED = "@seed"
"""Name of the column that is 1 for the customers of a campaign's seed and 0 for all others."""

_ODD, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def row_hashes(keys: Iterable[object]) -> NDArray[np.float64]:
    """53-bit hashes of customer ids (as text), as whole numbers in float64, shape (n,)."""
    digests = b"".join(
        hashlib.blake2b(str(key).encode(), digest_size=8, person=b"cohortium.rows/1").digest() for key in keys
    )
    words: NDArray[np.float64] = (np.frombuffer(digests, dtype="<u8") >> np.uint64(11)).astype(np.float64)
    return words


def row_words(hashes: NDArray[np.float64], stream: int) -> NDArray[np.uint64]:
    """64 pseudo-random bits per person for a numbered stream (SplitMix64's finaliser; Steele, Lea, Flood 2014)."""
    sound = np.where((hashes >= 0) & (hashes < 2.0**53), hashes, 0.0)  # of other numbers a cast is undefined
    state = sound.astype(np.uint64) + np.uint64((stream * _ODD + _ODD) % 2**64)  # sums and products modulo 2**64
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
    return np.asarray(state ^ (state >> np.uint64(31)), dtype=np.uint64)
