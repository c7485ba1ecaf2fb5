"""The study of a fairness audit: which tables of groups and outcomes a plan asks for, and what answers are made into.

Everything follows from plan and contract: no question depends on an earlier answer. The node makes the columns of codes
that `AuditLayout` describes; coordinator and node read labels and codes from the same one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from cohortium.models.audit_queries import Cells, GroupCountsQuery, GroupSumsQuery
from cohortium.models.group_table import GroupTable
from cohortium.models.programme import Ask, NoisySum, Phase, Programme
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.audit_tables import AuditTable
from cohortium.study.contract import Contract, Feature

__all__ = [
    "CHOSEN",
    "DISTANCE",
    "LABEL",
    "OUTCOME",
    "REST",
    "SEEDS",
    "UNKNOWN",
    "AuditLayout",
    "Coding",
    "GroupAnswers",
    "audit_layout",
    "audit_phases",
    "audit_programme",
    "audit_widest",
    "released_tables",
]

OUTCOME, LABEL, DISTANCE = "@outcome", "@label", "@distance"
"""Columns that the node makes for an audit beside the codes of groups and features."""

CHOSEN, REST, SEEDS = "chosen", "rest", "seed"
"""Outcomes of an audience: eligible people in it, eligible people who are not, and the seed's, who are not eligible."""

UNKNOWN = "unknown"
"""The group of people without a value."""

_ANSWERS = ("yes", "no")
_BINS = 8


@dataclass(frozen=True)
class Coding:
    """How a feature's values become codes: groups of a protected one, bins of another.

    Args:
        feature: of the contract.
        cuts: of a number, ascending, in the contract's unit.
    """

    feature: Feature
    cuts: tuple[float, ...] = ()

    @property
    def column(self) -> str:
        """Name of the column of codes."""
        return f"@code:{self.feature.name}"

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """What every code means; the last one is UNKNOWN. A category of that very name is no other group."""
        if self.feature.is_category:
            return (*(name for name in self.feature.categories if name != UNKNOWN), UNKNOWN)
        cuts = [f"{cut:,.12g}" for cut in self.cuts]
        between = (f"{low} to {high}" for low, high in pairwise(cuts))
        return (f"below {cuts[0]}", *between, f"{cuts[-1]} and above", UNKNOWN)

    def codes(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Codes of the customer table's values, shape (n,); each from its own value alone.

        A number that equals the contract's public value for missing ones cannot be told from a missing one: it is
        unknown.
        """
        last = len(self.labels) - 1
        if self.feature.is_category:
            known = [self.labels.index(name) for name in self.feature.categories]
            places = np.where((values >= 0) & (values < len(known)), values, len(known)).astype(np.int64)
            return np.array([*known, last], dtype=np.float64)[places]
        codes = np.searchsorted(np.array(self.cuts), values, side="right").astype(np.float64)
        return codes if self.feature.missing is None else np.where(values == self.feature.missing, float(last), codes)


@dataclass(frozen=True)
class AuditLayout:
    """The columns of an audit.

    Args:
        attributes: the protected attributes.
        pairs: positions of those that are crossed.
        outcomes: labels of the outcomes.
        outcome: the column of the contract that they are read from; None where a model makes them.
        label: who responded, or None.
        features: the features of proxy tables.
    """

    attributes: tuple[Coding, ...]
    pairs: tuple[tuple[int, int], ...]
    outcomes: tuple[str, ...]
    outcome: Coding | None = None
    label: Coding | None = None
    features: tuple[Coding, ...] = ()

    @property
    def sets(self) -> tuple[tuple[int, ...], ...]:
        """Positions of the attributes of every table: each alone, then the pairs."""
        return (*((index,) for index in range(len(self.attributes))), *self.pairs)

    def names(self, attributes: tuple[int, ...]) -> tuple[str, ...]:
        """Names of some attributes."""
        return tuple(self.attributes[index].feature.name for index in attributes)

    def groups(self, attributes: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
        """Every group of some attributes, the last attribute varying fastest."""
        return tuple(product(*(self.attributes[index].labels for index in attributes)))

    def cells(self, *columns: tuple[str, int], sets: Sequence[tuple[int, ...]] | None = None) -> Cells:
        """Tables of the attributes by further columns, each given with its number of codes."""
        own = [(coding.column, len(coding.labels)) for coding in self.attributes]
        names, levels = zip(*own, *columns, strict=True)
        more = tuple(range(len(own), len(names)))
        return Cells(names, levels, tuple((*each, *more) for each in (self.sets if sets is None else sets)))

    @property
    def proxy_cells(self) -> Cells:
        """Tables of every attribute by every feature."""
        every = (*self.attributes, *self.features)
        pairs = product(range(len(self.attributes)), range(len(self.attributes), len(every)))
        return Cells(tuple(c.column for c in every), tuple(len(c.labels) for c in every), tuple(pairs))


def audit_layout(plan: AuditPlan, contract: Contract) -> AuditLayout:
    """The columns of an audit of a plan that fits the contract (`AuditPlan.check_contract`)."""
    audit = plan.audit

    def coding(name: str) -> Coding:
        feature = contract.feature(name)
        return Coding(feature, () if feature.is_category else audit.cuts.get(name) or _equal_bins(feature))

    outcome = None if audit.column is None else coding(audit.column)
    position = {name: index for index, name in enumerate(audit.attributes)}
    return AuditLayout(
        attributes=tuple(map(coding, audit.attributes)),
        pairs=tuple((position[first], position[second]) for first, second in audit.pairs),
        outcomes=_outcomes(plan, outcome),
        outcome=outcome,
        label=None if audit.label is None else coding(audit.label),
        features=tuple(map(coding, audit.proxies)),
    )


def _outcomes(plan: AuditPlan, outcome: Coding | None) -> tuple[str, ...]:
    if plan.audit.segments is not None:
        return tuple(f"segment {number}" for number in range(1, plan.audit.segments + 1))
    if outcome is None:
        return CHOSEN, REST, SEEDS
    return (CHOSEN, REST, UNKNOWN) if plan.audit.chosen else outcome.labels


def _equal_bins(feature: Feature) -> tuple[float, ...]:
    """Inner ends of bins of equal width on the scale that distances use."""
    low, high = feature.bounds
    if feature.transform == "log1p":
        return tuple(math.expm1(cut) for cut in np.linspace(math.log1p(low), math.log1p(high), _BINS + 1)[1:-1])
    return tuple(np.linspace(low, high, _BINS + 1)[1:-1].tolist())


def audit_phases(plan: AuditPlan) -> tuple[Phase, ...]:
    """Everything such a plan asks, with its share of the plan's mu^2. The shares add up to 1."""
    kinds = {"distances": GroupSumsQuery.kind}
    return tuple(
        Phase(name, kinds.get(name, GroupCountsQuery.kind), Fraction(share, 100))
        for name, share in plan.shares.model_dump().items()
        if share
    )


def audit_widest(plan: AuditPlan, contract: Contract) -> list[Ask]:
    """Every question of the plan: they are known beforehand."""
    layout = audit_layout(plan, contract)
    outcome, label = (OUTCOME, len(layout.outcomes)), (LABEL, len(_ANSWERS) + 1)
    asks = [Ask("outcomes", GroupCountsQuery(layout.cells(outcome)))]
    if layout.label is not None:
        asks.append(Ask("labels", GroupCountsQuery(layout.cells(outcome, label))))
    if plan.audit.distance:
        asks.append(Ask("distances", GroupSumsQuery(layout.cells(), DISTANCE)))
    if layout.features:
        asks.append(Ask("proxies", GroupCountsQuery(layout.proxy_cells)))
    return asks


@dataclass(frozen=True)
class GroupAnswers:
    """What an audit learnt about one attribute, or about one pair: noisy, nothing suppressed yet.

    Args:
        outcomes: people by group and outcome.
        labels: people by group under OUTCOME-yes and OUTCOME-no, for every outcome; whoever's answer is unknown is in
            neither.
        distances: by group, sums of everybody's distance to the segment's centre, divided by the root of the number of
            features and clipped to 1.
        features: people by group and bin, for every proxy; of single attributes alone.
    """

    outcomes: GroupTable
    labels: GroupTable | None = None
    distances: GroupTable | None = None
    features: Mapping[str, GroupTable] = field(default_factory=dict)

    @property
    def audience(self) -> GroupTable:
        """Eligible people under CHOSEN and REST, of an audience or of a column with chosen categories."""
        return _columns(self.outcomes, 2)

    @property
    def responses(self) -> GroupTable | None:
        """Eligible people by answer, in the order chosen-yes, chosen-no, rest-yes, rest-no."""
        return None if self.labels is None else _columns(self.labels, 4)

    @property
    def seeds(self) -> GroupTable:
        """People under SEEDS and others, of an audience. The noise is the larger one, of the others."""
        chosen, rest, seeds = self.outcomes.counts.T
        counts = np.column_stack([seeds, chosen + rest])
        return replace(self.outcomes, outcomes=(SEEDS, "others"), counts=counts, std=self.outcomes.std * math.sqrt(2.0))


def _columns(table: GroupTable, count: int) -> GroupTable:
    return replace(table, outcomes=table.outcomes[:count], counts=table.counts[:, :count])


def audit_programme(
    plan: AuditPlan, contract: Contract, institution: str | None = None
) -> Programme[tuple[GroupAnswers, ...]]:
    """Ask what the plan foresees.

    Args:
        plan, contract: as agreed.
        institution: whose answers they are; None for sums over all.

    Returns:
        One for every attribute, then one for every pair, in the plan's order.
    """
    layout = audit_layout(plan, contract)
    answers: dict[str, tuple[tuple[NDArray[np.float64], ...], float]] = {}
    for ask in audit_widest(plan, contract):
        answer: NoisySum = yield ask
        if isinstance(ask.query, GroupCountsQuery | GroupSumsQuery):
            answers[ask.phase] = ask.query.cells.counted(answer.values), answer.std
    return tuple(_read(layout, number, answers, institution) for number in range(len(layout.sets)))


def _read(
    layout: AuditLayout,
    number: int,
    answers: Mapping[str, tuple[tuple[NDArray[np.float64], ...], float]],
    institution: str | None,
) -> GroupAnswers:
    attributes = layout.sets[number]
    names, groups = layout.names(attributes), layout.groups(attributes)

    def table(phase: str, outcomes: tuple[str, ...], part: int = number) -> GroupTable:
        counts, std = answers[phase][0][part], answers[phase][1]
        if phase == "labels":
            counts = counts[..., :-1]
        return GroupTable(names, groups, outcomes, counts.reshape(len(groups), len(outcomes)), std, institution)

    answered = tuple(f"{outcome}-{answer}" for outcome, answer in product(layout.outcomes, _ANSWERS))
    alone, features = len(attributes) == 1, layout.features
    return GroupAnswers(
        outcomes=table("outcomes", layout.outcomes),
        labels=table("labels", answered) if "labels" in answers else None,
        distances=table("distances", ("distance",)) if "distances" in answers else None,
        features={
            coding.feature.name: table("proxies", coding.labels, attributes[0] * len(features) + index)
            for index, coding in enumerate(features if alone else ())
        },
    )


def released_tables(answers: Sequence[GroupAnswers], min_cell: float) -> tuple[AuditTable, ...]:
    """The tables as they are made known: counts below the minimum cell are absent, by the noisy count alone."""
    released = []
    for one in answers:
        released.append(_counted("outcomes", one.outcomes, min_cell))
        if one.labels is not None:
            released.append(_counted("labels", one.labels, min_cell))
        if one.distances is not None:
            released.append(_summed(one.distances, one.outcomes, min_cell))
        released += [_counted("proxies", table, min_cell, name) for name, table in one.features.items()]
    return tuple(released)


def _counted(kind: str, table: GroupTable, min_cell: float, feature: str | None = None) -> AuditTable:
    return AuditTable.model_validate(
        {
            **_head(kind, table),
            "counts": [[_shown(count, count, min_cell) for count in row] for row in table.counts.tolist()],
            "totals": [_shown(total, total, min_cell) for total in table.counts.sum(axis=1).tolist()],
            "feature": feature,
        }
    )


def _summed(table: GroupTable, people: GroupTable, min_cell: float) -> AuditTable:
    sizes = people.counts.sum(axis=1).tolist()
    counts = [[_shown(value, size, min_cell)] for (value,), size in zip(table.counts.tolist(), sizes, strict=True)]
    return AuditTable.model_validate({**_head("distances", table), "counts": counts})


def _head(kind: str, table: GroupTable) -> dict[str, object]:
    return {
        "kind": kind,
        "attributes": table.attributes,
        "groups": table.groups,
        "outcomes": table.outcomes,
        "std": table.std,
        "institution": table.institution,
    }


def _shown(value: float, people: float, min_cell: float) -> float | None:
    return value if people >= min_cell else None
