"""What a report is drawn from: the released bundle and the facts around it, as one JSON document.

Every number that derives from customers is either noised and paid for (the bundle), a price (the ledger's), or marked
as possible only in a simulation (`left_out`, `comparison`). True sizes have no place here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from cohortium.privacy.accounting import Spend, epsilon_by_pld, epsilon_spent
from cohortium.privacy.accounting import person_at as spend_at
from cohortium.privacy.secure_sum import SumTerms
from cohortium.study.bundle import Bundle
from cohortium.study.contract import Contract, FeatureKind
from cohortium.study.errors import DataError
from cohortium.study.plan import Plan
from cohortium.study.validation import first_repeat

__all__ = [
    "SIMULATION_NOTE",
    "SUMMARY_SCHEMA",
    "AloneCost",
    "CollusionRow",
    "Comparison",
    "ContractFacts",
    "DatasetFacts",
    "FeatureFacts",
    "InstitutionFacts",
    "LeftOut",
    "PersonAt",
    "RunSummary",
    "StageTime",
    "Units",
    "collusion",
    "load_summary",
    "person_at",
]

SUMMARY_SCHEMA = "cohortium.summary/1"
"""The schema name this version reads and writes; any other is refused."""

SIMULATION_NOTE: Final = "un-noised, possible only in simulation"
"""The mark of every number that a deployment could not show."""

_Text = Annotated[str, Field(min_length=1, max_length=512)]
_Count = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Epsilon = Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
"""None where no epsilon up to 200 holds at the plan's delta."""


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StageTime(_Fact):
    """Wall time of one stage of the run."""

    stage: _Text
    seconds: _Seconds


class DatasetFacts(_Fact):
    """What the run was on.

    Args:
        name: the data set.
        note: what a reader must know about it, such as "synthetic" or "simulated, for education".
        licence: of the data; "unknown" where its source states none.
    """

    name: _Text
    note: _Text
    licence: _Text = "unknown"


class FeatureFacts(_Fact):
    """What is needed to print a feature."""

    name: _Text
    unit: str
    kind: FeatureKind
    protected: bool = False


class ContractFacts(_Fact):
    """What is needed to print the feature contract."""

    name: _Text
    digest: _Text
    currency: str | None
    start: date
    end: date
    features: Annotated[tuple[FeatureFacts, ...], Field(min_length=1)]

    @classmethod
    def of(cls, contract: Contract) -> ContractFacts:
        """The facts of a contract."""
        features = tuple(
            FeatureFacts(name=f.name, unit=contract.unit_of(f), kind=f.kind, protected=f.protected)
            for f in contract.features
        )
        return cls(
            name=contract.name,
            digest=contract.digest,
            currency=contract.currency,
            start=contract.window.start,
            end=contract.window.end,
            features=features,
        )

    def unit(self, name: str) -> str:
        """The unit of a feature; `KeyError` for one the contract does not have."""
        return {feature.name: feature.unit for feature in self.features}[name]


class Units(_Fact):
    """A spend in the ledger's integer units, exact."""

    mu2: _Count
    tv: _Count

    @classmethod
    def of(cls, spend: Spend) -> Units:
        """The units of a spend."""
        return cls(mu2=spend.mu2, tv=spend.tv)

    @property
    def spend(self) -> Spend:
        """The same as a spend."""
        return Spend(self.mu2, self.tv)


class InstitutionFacts(_Fact):
    """One institution's part, and what its ledger says. Every epsilon is at the plan's delta.

    Args:
        name: how it is called.
        accepted: whether it approved the plan.
        spent: what the plan cost it.
        lifetime: its lifetime budget.
        lifetime_spent: what all plans together cost it so far, this one included.
        epsilon, lifetime_epsilon, lifetime_used: the same three as epsilons. A run without noise has no epsilon.
        lifetime_left: what later plans may still cost. Epsilons do not add up: it comes from what is left of mu^2.
    """

    name: _Text
    accepted: bool
    spent: Units
    lifetime: Units
    lifetime_spent: Units
    epsilon: _Epsilon
    lifetime_epsilon: _Epsilon
    lifetime_used: _Epsilon
    lifetime_left: _Epsilon

    @classmethod
    def of(
        cls, name: str, *, accepted: bool, spent: Spend, lifetime: Spend, lifetime_spent: Spend, plan: Plan
    ) -> InstitutionFacts:
        """The facts from a ledger: what the plan cost, the lifetime budget, and what all plans cost."""
        delta, noised = plan.delta, plan.trust != "unsafe-none"
        return cls(
            name=name,
            accepted=accepted,
            spent=Units.of(spent),
            lifetime=Units.of(lifetime),
            lifetime_spent=Units.of(lifetime_spent),
            epsilon=_bounded_epsilon(spent, delta) if noised else None,
            lifetime_epsilon=_bounded_epsilon(lifetime, delta),
            lifetime_used=_bounded_epsilon(lifetime_spent, delta),
            lifetime_left=_bounded_epsilon(_left(lifetime, lifetime_spent), delta),
        )

    @model_validator(mode="after")
    def _life_holds_the_plan(self) -> InstitutionFacts:
        if not self.spent.spend.fits(self.lifetime_spent.spend):
            raise ValueError("all plans together must have cost at least what this one did")
        return self

    @property
    def runs_left(self) -> int | None:
        """How many more runs at the price of this one the lifetime budget pays for; None when this one cost nothing."""
        left = _left(self.lifetime.spend, self.lifetime_spent.spend)
        prices = ((left.mu2, self.spent.mu2), (left.tv, self.spent.tv))
        return min((rest // price for rest, price in prices if price), default=None)


class PersonAt(_Fact):
    """What the plan costs a person who is a customer of `institutions` of the institutions.

    Args:
        institutions: at how many.
        epsilon: by the ledger's accounting, at the plan's delta.
        epsilon_pld: the same by the privacy loss distribution, an independent code path.
    """

    institutions: Annotated[int, Field(ge=1)]
    epsilon: _Epsilon
    epsilon_pld: _Epsilon


class CollusionRow(_Fact):
    """What the plan costs a person at one institution if more institutions collude than it tolerates.

    Args:
        colluders: how many, the curious institution itself included.
        shares: honest shares of noise in the smallest sum that they and the coordinator can open.
        epsilon: by the ledger's accounting, at the plan's delta.
    """

    colluders: Annotated[int, Field(ge=1)]
    shares: Annotated[int, Field(ge=1)]
    epsilon: _Epsilon


class LeftOut(_Fact):
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

    institution: _Text
    lines: _Count
    unused: _Count
    duplicates: _Count | None
    bad_cells: _Count
    clipped: _Count
    unknown: _Count


class AloneCost(_Fact):
    """Cost of the segments that one institution finds alone, without privacy, measured on everybody's customers."""

    institution: _Text
    cost: _Cost


class Comparison(_Fact):
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
    federated_cost: _Cost
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


class RunSummary(_Fact):
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
    version: _Text
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

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _holds_together(self) -> RunSummary:
        self._check_time()
        self._check_institutions()
        self._check_contract()
        if any(size < self.bundle.plan.min_cell for size in _shown_sizes(self.bundle)):
            raise ValueError("the bundle shows a cell below the plan's minimum; it must be suppressed")
        if any(segment.suppressed and (segment.means or segment.rules) for segment in self.bundle.segments):
            raise ValueError("the bundle describes a suppressed segment")
        return self

    def _check_time(self) -> None:
        if any(time.utcoffset() != timedelta(0) for time in (self.started, self.finished)):
            raise ValueError("started and finished must be in UTC")
        if self.finished < self.started:
            raise ValueError("finished must not lie before started")

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

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON types."""
        return self.model_dump(mode="json", by_alias=True)

    def to_bytes(self) -> bytes:
        """UTF-8 JSON, indented for people, with a newline at its end."""
        return (json.dumps(self.to_json(), ensure_ascii=False, indent=2) + "\n").encode()


def person_at(spends: Iterable[Spend], plan: Plan) -> tuple[PersonAt, ...]:
    """What the plan costs a customer of 1, 2, 3 and all institutions.

    Formal guarantee: row j bounds the loss of every person at j institutions, whichever they are. With `local` noise it
    adds up the j largest charges of either currency; with `distributed` noise one sum moves by j bounds, and mu^2 is
    j^2 times the largest charge. Without noise there is no bound.

    Args:
        spends: what the plan cost each institution that answered; at least one.
        plan: which.
    """
    charges = list(spends)
    counts = sorted({count for count in (1, 2, 3, len(charges)) if 1 <= count <= len(charges)})
    if plan.trust == "unsafe-none":
        return tuple(PersonAt(institutions=count, epsilon=None, epsilon_pld=None) for count in counts)
    if plan.trust == "local":
        return tuple(_person_at(count, _largest(charges, count), plan.delta) for count in counts)
    most = _largest(charges, 1)
    return tuple(_person_at(count, spend_at(Spend(), most, count), plan.delta) for count in counts)


def collusion(spends: Iterable[Spend], plan: Plan, parties: int) -> tuple[CollusionRow, ...]:
    """What the plan costs a person if c, c + 1, half or all but one of the institutions collude with the coordinator.

    Args:
        spends: what the plan cost each institution that answered; at least one.
        plan: which.
        parties: how many institutions shared keys.
    """
    if plan.trust != "distributed":
        return ()
    most = _largest(list(spends), 1)
    terms = SumTerms.of(parties, plan.min_institutions, plan.colluders, plan.share_threshold)
    counts = {plan.colluders, plan.colluders + 1, parties // 2, parties - 1}
    full = plan.min_institutions - plan.colluders
    rows = []
    for count in sorted(count for count in counts if plan.colluders <= count < parties):
        left = terms.shares_left(count)
        spend = Spend(-(-most.mu2 * full // left), -(-most.tv * full // left))
        rows.append(CollusionRow(colluders=count, shares=left, epsilon=_bounded_epsilon(spend, plan.delta)))
    return tuple(rows)


def load_summary(path: Path) -> RunSummary:
    """Read a summary; `DataError` for one that is unreadable, of another schema, or does not hold together."""
    try:
        return RunSummary.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise DataError("cannot be read", place=str(path), fix="check the path") from error
    except (ValueError, ValidationError) as error:
        raise DataError("is not a summary of this version", place=str(path), fix="run the simulation again") from error


def _person_at(count: int, spend: Spend, delta: float) -> PersonAt:
    epsilon = _bounded_epsilon(spend, delta)
    cross_check = None if epsilon is None else epsilon_by_pld(spend, delta)
    return PersonAt(institutions=count, epsilon=epsilon, epsilon_pld=cross_check)


def _left(lifetime: Spend, spent: Spend) -> Spend:
    """What is left of a lifetime budget; nothing where it was passed."""
    left = lifetime - spent
    return Spend(max(left.mu2, 0), max(left.tv, 0))


def _largest(charges: Sequence[Spend], count: int) -> Spend:
    mu2 = sorted((spend.mu2 for spend in charges), reverse=True)[:count]
    tv = sorted((spend.tv for spend in charges), reverse=True)[:count]
    return Spend(sum(mu2), sum(tv))


def _bounded_epsilon(spend: Spend, delta: float) -> float | None:
    epsilon = epsilon_spent(spend, delta)
    return epsilon if math.isfinite(epsilon) else None


def _shown_sizes(bundle: Bundle) -> Iterator[float]:
    sizes = [segment.size for segment in bundle.segments]
    sizes += [cell.size for cell in bundle.rfm.cells] if bundle.rfm else []
    return (size for size in sizes if size is not None)


def _features_used(bundle: Bundle) -> Iterator[str]:
    yield from (axis.feature for axis in bundle.scaler)
    yield from (mean.feature for segment in bundle.segments for mean in segment.means)
    if bundle.rfm is not None:
        yield from (name for name in (bundle.rfm.recency, bundle.rfm.frequency, bundle.rfm.monetary) if name)
