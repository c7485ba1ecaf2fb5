"""Programmes: what a study asks, as generators that yield sum queries and are sent noisy sums back.

A programme neither knows who answers nor how noise is added: it yields an `Ask`, is sent a `NoisySum`, and returns its
result in the end. The coordinator drives it over a federation, tests drive it with arrays.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cohortium.privacy.query import SumQuery

__all__ = ["Ask", "NoisySum", "Phase", "Programme"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Phase:
    """A part of a plan that asks one kind of question a fixed number of times.

    Args:
        name: distinct within the plan.
        kind: the kind of query that may be asked.
        share: part of the plan's mu^2 that the whole phase may cost, 0 < share <= 1.
        rounds: questions in the phase; each may cost share / rounds.
    """

    name: str
    kind: str
    share: Fraction
    rounds: int = 1


@dataclass(frozen=True)
class Ask:
    """A question a programme wants answered: the next step of that phase."""

    phase: str
    query: SumQuery


@dataclass(frozen=True)
class NoisySum:
    """An answer.

    Args:
        values: the noisy sum over everybody who answered, in units of 1.0, float64, shape (query.width,).
        std: standard deviation of the noise in every word, in units of 1.0.
        institutions: how many institutions answered.
    """

    values: NDArray[np.float64]
    std: float
    institutions: int


Programme = Generator[Ask, NoisySum, Result]
