"""What an audit is given: noisy tables of one attribute, or of a pair of them, pooled or of one institution.

Columns share people among them: everybody of a group is in exactly one. A person may be in several tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cohortium.governance.fairness.intervals import Quotient, share
from cohortium.governance.fairness.result import THRESHOLDS, Threshold
from cohortium.governance.fairness.verdicts import size_problem
from cohortium.models.group_table import GroupTable
from cohortium.study.errors import Defect

__all__ = [
    "CHOSEN",
    "KEPT",
    "OTHERS",
    "RESPONSES",
    "REST",
    "SEEDS",
    "STABILITY",
    "UPLIFT",
    "AuditTerms",
    "LookalikeTables",
    "SegmentTables",
    "problems_of",
    "shares_of",
    "sums_of",
]

CHOSEN, REST = "chosen", "rest"
"""Columns of an audience's table: eligible people in it, and eligible people who are not."""

SEEDS, OTHERS = "seed", "others"
"""Columns of a seed list's table."""

KEPT = "kept"
STABILITY = (KEPT, "moved")
"""Columns of people whose segment stays under another draw of the noise, and whose does not."""

RESPONSES = ("chosen-yes", "chosen-no", "rest-yes", "rest-no")
"""Columns of who was chosen by who responded."""

UPLIFT = ("treated-yes", "treated-no", "control-yes", "control-no")
"""Columns of a randomised test: arm by outcome, yes being the good one."""


@dataclass(frozen=True)
class SegmentTables:
    """What is known about segments by group.

    Args:
        people: people by group and segment.
        beneficial, costly: segments whose treatment the plan calls so.
        distance: sums by group of the distance to the segment's centre, clipped to 1 radius and in its units, so that
            everybody's is within 0 and 1.
        stability: people by group under STABILITY.
    """

    people: GroupTable
    beneficial: tuple[str, ...] = ()
    costly: tuple[str, ...] = ()
    distance: GroupTable | None = None
    stability: GroupTable | None = None

    def __post_init__(self) -> None:
        _same_groups(self.people, self.distance, self.stability)
        _columns(self.stability, STABILITY)
        if not {*self.beneficial, *self.costly} <= set(self.people.outcomes):
            raise Defect("a treatment of a segment that is not there")


@dataclass(frozen=True)
class LookalikeTables:
    """What is known about an audience by group.

    Args:
        audience: eligible people by group under (CHOSEN, REST).
        seeds: people by group under (SEEDS, OTHERS).
        previous: the last approved audience, as `audience`.
        responses: eligible people under RESPONSES, where responses exist.
        uplift: people of a randomised test under UPLIFT.
        features: for each feature, people by group and bin of the feature.
        without: for each feature, the audience of a ranker that does not see it, as `audience`.
    """

    audience: GroupTable
    seeds: GroupTable | None = None
    previous: GroupTable | None = None
    responses: GroupTable | None = None
    uplift: GroupTable | None = None
    features: Mapping[str, GroupTable] = field(default_factory=dict)
    without: Mapping[str, GroupTable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        audiences = (self.audience, self.previous, *self.without.values())
        _same_groups(self.audience, *audiences, self.seeds, self.responses, self.uplift, *self.features.values())
        for table in audiences:
            _columns(table, (CHOSEN, REST))
        _columns(self.seeds, (SEEDS, OTHERS))
        _columns(self.responses, RESPONSES)
        _columns(self.uplift, UPLIFT)


@dataclass(frozen=True)
class AuditTerms:
    """How an audit judges.

    Args:
        minimum_cell: people below which nothing about a group is said.
        alpha: error of every family of verdicts.
        references: for attributes, the group that others are compared with; for those not named, the best group.
        thresholds: `THRESHOLDS`, or `thresholds_with` others.
    """

    minimum_cell: float
    alpha: float = 0.05
    references: Mapping[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    thresholds: tuple[Threshold, ...] = THRESHOLDS

    def limit(self, name: str) -> float:
        """The limit of a threshold."""
        return next(each.limit for each in self.thresholds if each.name == name)

    def reference(self, table: GroupTable) -> int | None:
        """Row of the named reference; None when none is named.

        Raises:
            Defect: a reference that is no group of the table.
        """
        named = self.references.get(table.attributes)
        if named is None:
            return None
        if named not in table.groups:
            raise Defect("a reference that is no group of its table")
        return table.groups.index(named)


def shares_of(table: GroupTable, top: Sequence[str], bottom: Sequence[str] | None = None) -> tuple[Quotient, ...]:
    """For every group, the share of the people of some columns among those of others, which contain them.

    Args:
        top: columns counted.
        bottom: columns that they are counted among; None for all.
    """
    counted, among = sums_of(table, top), sums_of(table, bottom or table.outcomes)
    variance = table.std**2
    width = len(bottom or table.outcomes)
    return tuple(
        share(float(part), float(whole), len(top) * variance, width * variance, len(top) * variance)
        for part, whole in zip(counted, among, strict=True)
    )


def sums_of(table: GroupTable, columns: Sequence[str]) -> NDArray[np.float64]:
    """Noisy people of some columns by group, shape (groups,)."""
    return np.asarray(table.counts[:, [table.outcomes.index(column) for column in columns]].sum(axis=1))


def problems_of(rates: Sequence[Quotient], minimum_cell: float) -> tuple[str | None, ...]:
    """What is too small to judge, by group: what everybody's rate would make of the group's people."""
    whole = sum(rate.bottom for rate in rates)
    overall = min(max(sum(rate.top for rate in rates) / whole, 0.0), 1.0) if whole > 0 else 0.0
    return tuple(size_problem(overall * rate.bottom, rate.var_top**0.5, minimum_cell) for rate in rates)


def _same_groups(first: GroupTable, *others: GroupTable | None) -> None:
    for other in others:
        if other is not None and (other.attributes, other.groups, other.institution) != (
            first.attributes,
            first.groups,
            first.institution,
        ):
            raise Defect("tables of one audit with different groups or institutions")


def _columns(table: GroupTable | None, columns: tuple[str, ...]) -> None:
    if table is not None and table.outcomes != columns:
        raise Defect("a table of an audit with other columns")
