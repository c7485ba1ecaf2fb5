"""The one module through which randomness that protects people enters: the operating system's CSPRNG.

NumPy's generators never appear in this room. A `BitSource` is a seam so that tests can replay a run bit for bit; the
package itself ships the operating system's source and no other.
"""

from __future__ import annotations

import os
import secrets
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["BitSource", "OsBitSource", "fresh_below", "fresh_key"]


class BitSource(Protocol):
    """A stream of independent uniform bits."""

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` 64-bit words, shape (count,)."""
        ...


class OsBitSource:
    """Bits from `os.urandom`, which blocks until the system's CSPRNG is seeded and never repeats."""

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` 64-bit words, shape (count,)."""
        return np.frombuffer(os.urandom(8 * count), dtype=np.uint64)


def fresh_key() -> bytes:
    """32 bytes from the operating system's CSPRNG."""
    return secrets.token_bytes(32)


def fresh_below(limit: int) -> int:
    """A uniform integer in [0, limit) from the operating system's CSPRNG."""
    return secrets.randbelow(limit)
