"""How the audit obtains releases: the door's own functions, in the door's order, without its ledger.

What is audited is the number that leaves: the exact bounded sum, sigma from the question's allotment, exact noise from
the operating system's bits, addition modulo 2^64. Gate, ledger, seal and transport do not change that number; they are
left out because a release through them takes a durable write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.privacy.query import SumQuery, bounded_total
from cohortium.privacy.randomness import BitSource, OsBitSource
from cohortium.privacy.release import noise_scale
from cohortium.privacy.sharing import ALONE, NoiseShare
from cohortium.privacy.table import CustomerTable

__all__ = ["DoorArithmetic", "Mechanism", "Releaser"]

Releaser = Callable[[], NDArray[np.int64]]
"""One fresh release of the same question about the same table at every call."""


class Mechanism(Protocol):
    """What is attacked."""

    def total(self, query: SumQuery, people: CustomerTable) -> NDArray[np.int64]:
        """The sum before noise: a worst-case attacker knows everybody but the canary, and so both sums."""
        ...

    def releaser(self, query: SumQuery, people: CustomerTable, allotment: int) -> Releaser:
        """Releases of one question that may cost `allotment` mu2 units."""
        ...


class DoorArithmetic:
    """The door's arithmetic.

    Args:
        share: whose noise protects the release. With shared noise, a release is what a coalition of the tolerated size
            sees of a sum over the least number of institutions: the noise of all others, t - c shares.
        bits: the source of noise; the operating system's by default.
    """

    def __init__(self, share: NoiseShare = ALONE, bits: BitSource | None = None) -> None:
        self._share = share
        self._bits = bits if bits is not None else OsBitSource()

    def total(self, query: SumQuery, people: CustomerTable) -> NDArray[np.int64]:
        """The exact bounded sum."""
        return bounded_total(query, people)

    def sigma(self, query: SumQuery, allotment: int) -> int:
        """Standard deviation of the full noise, in integer units."""
        return noise_scale(query, allotment)

    def noise(self, sigma: int, width: int) -> NDArray[np.int64]:
        """The noise of one release: of every institution that is not of the coalition, modulo 2^64."""
        noise = np.zeros(width, dtype=np.uint64)
        for institution in range(self._share.shares):
            noise += self.noise_of(institution, self._share.sigma_of(sigma), width).view(np.uint64)
        return noise.view(np.int64)

    def noise_of(self, institution: int, sigma: int, width: int) -> NDArray[np.int64]:
        """What one institution adds."""
        return sample_discrete_gaussian(sigma, width, self._bits)

    def releaser(self, query: SumQuery, people: CustomerTable, allotment: int) -> Releaser:
        """Releases of one question that may cost `allotment` mu2 units."""
        total, sigma, width = self.total(query, people).view(np.uint64), self.sigma(query, allotment), query.width
        return lambda: (total + self.noise(sigma, width).view(np.uint64)).view(np.int64)
