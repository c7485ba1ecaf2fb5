"""What a report is drawn from: the released bundle and the facts around it, as one JSON document.

Every number that derives from customers is either noised and paid for (the bundle), a price (the ledger's), or marked
as possible only in a simulation (`left_out`, `comparison`). True sizes have no place here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field, model_validator

from cohortium.governance.report.facts import (
    CollusionRow,
    ContractFacts,
    Cost,
    Count,
    DatasetFacts,
    Fact,
    InstitutionFacts,
    PersonAt,
    StageTime,
    Text,
    Written,
    check_times,
    load_written,
)
from cohortium.study.bundle import Bundle
from cohortium.study.validation import first_repeat

__all__ = [
    "SIMULATION_NOTE",
    "SUMMARY_SCHEMA",
    "AloneCost",
    "CollusionRow",
    "Comparison",
    "InstitutionFacts",
    "LeftOut",
    "PersonAt",
    "RunSummary",
    "load_summary",
]

SUMMARY_SCHEMA = "cohortium.summary/1"
"""The schema name this version reads and writes; any other is refused."""

SIMULATION_NOTE: Final = "un-noised, possible only in simulation"
"""The mark of every number that a deployment could not show."""


class LeftOut(Fact):
    """What onboarding at one institution left out or changed. Exact: in a deployment it stays at the institution.

    Args:
        institution: whose.
        lines: lines read.
        unused: lines that entered no feature (outside the window, unusable, or of people outside the customer set).
        duplicates: lines that repeat another in every column (they are kept), None when not counted.
        bad_cells: cells that could not be used.
        clipped: values outside the public bounds, set to the bound.
        unknown: values that were missing or not listed, filled with the contract's public value.
    """

    institution: Text
    lines: Count
    unused: Count
    duplicates: Count | None
    bad_cells: Count
    clipped: Count
    unknown: Count


class AloneCost(Fact):
    """Cost of the segments that one institution finds alone, without privacy, measured on everybody's customers."""

    institution: Text
    cost: Cost


class Comparison(Fact):
    """Mean squared distances to the nearest centre over everybody's customers: un-noised, possible only in simulation.

    Leave it out when the central cost is 0: ratios to it have no meaning.

    Args:
        note: marks the numbers; always `SIMULATION_NOTE`.
        central_cost: of non-private k-means on all customers together.
        federated_cost: of the released centres.
        alone: of every institution's own non-private k-means.
    """

    note: Literal["un-noised, possible only in simulation"] = SIMULATION_NOTE
    central_cost: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    federated_cost: Cost
    alone: tuple[AloneCost, ...] = ()

    @classmethod
    def of(cls, *, central_cost: float, federated_cost: float, alone: Mapping[str, float]) -> Comparison:
        """The comparison from costs, `alone` by institution."""
        costs = tuple(AloneCost(institution=name, cost=cost) for name, cost in alone.items())
        return cls(central_cost=central_cost, federated_cost=federated_cost, alone=costs)

    @property
    def federated_ratio(self) -> float:
        """Federated cost by central cost; 1 is as good as central and non-private."""
        return self.federated_cost / self.central_cost

    @property
    def alone_ratios(self) -> tuple[tuple[str, float], ...]:
        """(institution, its cost by central cost)."""
        return tuple((entry.institution, entry.cost / self.central_cost) for entry in self.alone)


class RunSummary(Written):
    """See the module.

    Args:
        schema_id: `cohortium.summary/1`; written `schema`.
        mode: `simulation`: all institutions ran on one machine.
        version: of cohortium.
        started, finished: UTC.
        stages: wall time by stage, in order.
        dataset: what the run was on.
        bundle: what the run released.
        contract: what is needed to print the feature contract that the plan names.
        institutions: every institution that was asked, those that declined included.
        person_at: see `person_at()`.
        collusion: see `collusion()`; empty where institutions do not share the noise.
        left_out: what onboarding left out, by institution.
        comparison: with non-private clustering, or None when it was not computed.
    """

    schema_id: Annotated[Literal["cohortium.summary/1"], Field(alias="schema")] = "cohortium.summary/1"
    mode: Literal["simulation"] = "simulation"
    version: Text
    started: AwareDatetime
    finished: AwareDatetime
    stages: tuple[StageTime, ...] = ()
    dataset: DatasetFacts
    bundle: Bundle
    contract: ContractFacts
    institutions: Annotated[tuple[InstitutionFacts, ...], Field(min_length=1)]
    person_at: Annotated[tuple[PersonAt, ...], Field(min_length=1)]
    collusion: tuple[CollusionRow, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    comparison: Comparison | None = None

    @model_validator(mode="after")
    def _holds_together(self) -> RunSummary:
        check_times(self.started, self.finished)
        self._check_institutions()
        self._check_contract()
        if any(size < self.bundle.plan.min_cell for size in _shown_sizes(self.bundle)):
            raise ValueError("the bundle shows a cell below the plan's minimum; it must be suppressed")
        if any(segment.suppressed and (segment.means or segment.rules) for segment in self.bundle.segments):
            raise ValueError("the bundle describes a suppressed segment")
        return self

    def _check_institutions(self) -> None:
        known = [institution.name for institution in self.institutions]
        if repeated := first_repeat(known):
            raise ValueError(f"institutions must have distinct names; '{repeated}' repeats")
        named = [entry.institution for entry in self.left_out]
        named += [entry.institution for entry in self.comparison.alone] if self.comparison else []
        if strangers := sorted(set(named) - set(known)):
            raise ValueError(f"'{strangers[0]}' is not one of the institutions")
        if self.bundle.institutions > sum(institution.accepted for institution in self.institutions):
            raise ValueError("more institutions answered than accepted the plan")

    def _check_contract(self) -> None:
        if self.contract.digest != self.bundle.plan.contract:
            raise ValueError("the plan of the bundle names another contract")
        known = {feature.name for feature in self.contract.features}
        if strangers := sorted(set(_features_used(self.bundle)) - known):
            raise ValueError(f"'{strangers[0]}' is not a feature of the contract")


def load_summary(path: Path) -> RunSummary:
    """Read a summary; `DataError` for one that is unreadable, of another schema, or does not hold together."""
    return load_written(path, RunSummary)


def _shown_sizes(bundle: Bundle) -> Iterator[float]:
    sizes = [segment.size for segment in bundle.segments]
    sizes += [cell.size for cell in bundle.rfm.cells] if bundle.rfm else []
    return (size for size in sizes if size is not None)


def _features_used(bundle: Bundle) -> Iterator[str]:
    yield from (axis.feature for axis in bundle.scaler)
    yield from (mean.feature for segment in bundle.segments for mean in segment.means)
    if bundle.rfm is not None:
        yield from (name for name in (bundle.rfm.recency, bundle.rfm.frequency, bundle.rfm.monetary) if name)
