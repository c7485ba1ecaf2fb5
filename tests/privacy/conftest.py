"""Bits, doors and tables that the tests of the privacy room share.

Seeded bits exist in tests alone: the package ships the operating system's source and no other.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import settings
from numpy.typing import NDArray

from cohortium.privacy.accounting import Spend, budget_for
from cohortium.privacy.ledger import Ledger, open_store

settings.register_profile("privacy", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("privacy")


class SeededBits:
    """ChaCha20 keyed by a seed: reproducible, of good quality, for tests only."""

    def __init__(self, seed: int) -> None:
        cipher = Cipher(algorithms.ChaCha20(seed.to_bytes(32, "big"), bytes(16)), mode=None)
        self._stream = cipher.encryptor()
        self.drawn = 0

    def words(self, count: int) -> NDArray[np.uint64]:
        self.drawn += count
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64)


class ScriptedBits:
    """Given words in order; asking for more than the script holds is an error."""

    def __init__(self, words: Sequence[int]) -> None:
        self._words = list(words)

    def words(self, count: int) -> NDArray[np.uint64]:
        if count > len(self._words):
            raise AssertionError(f"script exhausted: {count} words wanted, {len(self._words)} left")
        taken, self._words = self._words[:count], self._words[count:]
        return np.array(taken, dtype=np.uint64)

    @property
    def left(self) -> int:
        return len(self._words)


@pytest.fixture
def seeded_bits() -> Callable[[int], SeededBits]:
    return SeededBits


@pytest.fixture
def scripted_bits() -> Callable[[Sequence[int]], ScriptedBits]:
    return ScriptedBits


@pytest.fixture
def lifetime() -> Spend:
    return budget_for(3.0, 1e-6)


@pytest.fixture
def ledger(tmp_path: Path, lifetime: Spend) -> Ledger:
    return Ledger(open_store(tmp_path / "node.sqlite"), "north bank", lifetime)


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Makes real processes that share nothing with this one, forked where the imports are done already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "hypothesis", "psycopg", "cohortium.privacy.release"])
    return context
