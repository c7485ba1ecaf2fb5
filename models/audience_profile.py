"""Who an audience is: shares of categories and means of numbers in it, beside everybody else who is eligible."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohortium.models.basis import UNIT, Basis, Block
from cohortium.models.ranker import Ranker
from cohortium.models.rows import SEED
from cohortium.privacy.query import SCALE, Contribution, QuerySpec, quantise, unit_scale
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError
from cohortium.study.model import AudienceShare
from cohortium.study.reach import Measured

__all__ = ["AudienceProfileQuery", "read_profile"]

_COUNT = 0.5
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class AudienceProfileQuery:
    """For the audience, and for the eligible people outside it: their number, and the sum of their rows of the basis.

    A person who is no seed adds to one of the two groups half a unit of count and the row, of norm 1 after division by
    the root of the number of features: the squared sensitivity is 1 + 1/4 units, exactly. Seeds add nothing.

    Args:
        ranker: what scores.
        cutoff: people whose score is at least so much are the audience.
    """

    ranker: Ranker
    cutoff: float
    kind = "audience-profile"

    @property
    def basis(self) -> Basis:
        """Whose rows are summed."""
        return self.ranker.rows.basis

    @property
    def width(self) -> int:
        return 2 * self.words_per_person

    @property
    def words_per_person(self) -> int:
        return self.basis.width + 1

    @property
    def bound_squared(self) -> int:
        return SCALE**2 + unit_scale(_COUNT) ** 2

    def contribute(self, people: CustomerTable) -> Contribution:
        eligible = people.select((SEED,))[:, 0] <= 0.5
        outside = self.ranker.scores(people) < self.cutoff
        values = np.empty((len(people), self.words_per_person), dtype=np.int64)
        values[:, 0] = unit_scale(_COUNT)
        values[:, 1:] = quantise(self.basis.rows(people), UNIT * math.sqrt(len(self.basis.blocks)))
        values[~eligible] = 0
        columns = outside[:, np.newaxis] * self.words_per_person + np.arange(self.words_per_person)
        return Contribution(columns.astype(np.int64), values)

    def spec(self) -> QuerySpec:
        scalars, arrays = self.ranker.parts()
        return QuerySpec(self.kind, scalars, {**arrays, "cutoff": np.array([self.cutoff])})

    @classmethod
    def from_spec(cls, spec: QuerySpec) -> AudienceProfileQuery:
        """Rebuild strictly; `RefusedError` for anything `spec` would not have written."""
        arrays = dict(spec.arrays)
        cutoff = arrays.pop("cutoff", None)
        if cutoff is None or cutoff.shape != (1,) or not np.isfinite(cutoff).all():
            raise RefusedError("malformed profile question")
        return cls(Ranker.from_parts(spec.scalars, arrays), float(cutoff[0]))


def read_profile(
    query: AudienceProfileQuery, values: NDArray[np.float64], std: float, min_cell: float
) -> tuple[AudienceShare, ...]:
    """The profile from a noisy answer, in units of 1.0.

    Empty when either group is below the minimum cell; a category of fewer members than that, by the noisy count, is
    left out. No second category is left out to hide the first (complementary suppression): the whole answer is one
    release that was charged, so that nothing computed from it reveals more of a person than its price says. What the
    other categories leave of a group is no exact figure either: its noise is that of the group's size and of all the
    others together, more than the category's own.
    """
    inside, outside = values.reshape(2, -1)
    both, both_std = inside + outside, std * math.sqrt(2.0)
    sizes = [float(row[0]) / _COUNT for row in (inside, outside)]
    if min(sizes) < min_cell:
        return ()
    stretch = math.sqrt(len(query.basis.blocks))
    result, start = [], 1
    for block in query.basis.blocks:
        for column in range(block.levels or 1):
            word = start + column
            members = (float(inside[word]) * stretch, float(both[word]) * stretch)
            if block.levels and min(members) < min_cell:
                continue
            audience = _ratio(inside[word] * stretch, sizes[0], std * stretch, std / _COUNT)
            eligible = _ratio(both[word] * stretch, sum(sizes), both_std * stretch, both_std / _COUNT)
            result.append(
                AudienceShare(
                    feature=block.feature,
                    level=column if block.levels else None,
                    audience=_shown(block, *audience),
                    eligible=_shown(block, *eligible),
                )
            )
        start += block.width
    return tuple(result)


def _ratio(total: float, size: float, std: float, size_std: float) -> tuple[float, float]:
    """A mean and its standard error by the delta method for a ratio of two independent noisy sums."""
    mean = float(total) / size
    return mean, math.hypot(std, mean * size_std) / size


def _shown(block: Block, mean: float, error: float) -> Measured:
    low, value, high = (mean + step * _Z95 * error for step in (-1, 0, 1))
    if block.levels:
        low, value, high = (min(max(share, 0.0), 1.0) for share in (low, value, high))
    else:
        low, value, high = (_back(block, unit / block.scales[0]) for unit in (low, value, high))
    return Measured(value=value, low=low, high=high)


def _back(block: Block, unit: float) -> float:
    """From the basis, -1 to 1, to the contract's unit."""
    moved = block.low + (min(max(unit, -1.0), 1.0) + 1.0) / 2.0 * (block.high - block.low)
    return math.expm1(moved) if block.log else moved
