"""Counts of people by group and outcome: what a fairness audit is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohortium.study.errors import Defect

__all__ = ["GroupTable"]


@dataclass(frozen=True)
class GroupTable:
    """People by group and outcome, with the noise that the counts carry.

    Args:
        attributes: the protected attributes that make the groups: one, or two for their intersections.
        groups: every group's label under each attribute, the unknown one included.
        outcomes: labels of the columns: segments, or who was chosen and who was not.
        counts: people, or sums of a measure of theirs, in units of 1.0; float64, shape (groups, outcomes). With noise
            they are no whole numbers and may be negative.
        std: standard deviation of the noise of every count; 0 without noise.
        institution: whose table it is; None for the sum over all.

    Raises:
        Defect: shapes that disagree.
    """

    attributes: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    outcomes: tuple[str, ...]
    counts: NDArray[np.float64]
    std: float
    institution: str | None = None

    def __post_init__(self) -> None:
        labels = {len(group) for group in self.groups} | {len(self.attributes)}
        if self.counts.shape != (len(self.groups), len(self.outcomes)) or len(labels) != 1 or not self.std >= 0:
            raise Defect("a group table whose shapes disagree")
