"""Shamir's secret sharing ("How to share a secret", CACM 1979) of 32 bytes over the prime field of 2**256 + 297.

Formal guarantee: fewer than `threshold` shares are independent of the secret; any `threshold` of them determine it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cohortium.privacy.randomness import fresh_below
from cohortium.study.errors import RefusedError

__all__ = ["PRIME", "SHARE_BYTES", "Combiner", "split"]

PRIME = 2**256 + 297
"""The least prime above 2**256: every 32 bytes are an element of its field."""

SHARE_BYTES = 33


def split(secret: bytes, threshold: int, count: int) -> list[int]:
    """Shares at the points 1, 2, ..., count of a random polynomial of degree threshold - 1 that is the secret at 0."""
    coefficients = [fresh_below(PRIME) for _ in range(threshold - 1)]
    start = int.from_bytes(secret, "big")
    shares = []
    for point in range(1, count + 1):
        value = 0
        for coefficient in coefficients:
            value = (value + coefficient) * point  # a few bits more each time: reduced once, at the end
        shares.append((value + start) % PRIME)
    return shares


class Combiner:
    """Recovers secrets from shares at fixed points: Lagrange interpolation at 0, its weights computed once.

    Args:
        points: distinct, from 1 up; as many as the threshold.
    """

    def __init__(self, points: Sequence[int]) -> None:
        self._weights = {}
        for point in points:
            above = below = 1
            for other in points:
                if other != point:
                    above = above * other % PRIME
                    below = below * (other - point) % PRIME
            self._weights[point] = above * pow(below, -1, PRIME) % PRIME

    def secret(self, shares: Mapping[int, int]) -> bytes:
        """The 32 bytes that these shares, by point, belong to; `RefusedError` when there are none."""
        value = sum(weight * shares[point] for point, weight in self._weights.items()) % PRIME
        if value >= 2**256:
            raise RefusedError("shares that belong to no secret")
        return value.to_bytes(32, "big")
