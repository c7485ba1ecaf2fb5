"""Facts that every report is drawn from: the data set, the contract, and what was paid, by whom and for whom."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cohortium.privacy.accounting import Spend, epsilon_by_pld, epsilon_spent
from cohortium.privacy.accounting import person_at as spend_at
from cohortium.privacy.secure_sum import SumTerms
from cohortium.study.contract import Contract, FeatureKind
from cohortium.study.errors import DataError
from cohortium.study.plan import Plan

__all__ = [
    "CollusionRow",
    "ContractFacts",
    "Cost",
    "Count",
    "DatasetFacts",
    "Epsilon",
    "Fact",
    "FeatureFacts",
    "InstitutionFacts",
    "PersonAt",
    "StageTime",
    "Text",
    "Units",
    "Written",
    "bounded_epsilon",
    "check_times",
    "collusion",
    "load_written",
    "person_at",
    "person_counts",
    "spend_of_person",
]

Text = Annotated[str, Field(min_length=1, max_length=512)]
Count = Annotated[int, Field(ge=0)]
Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Epsilon = Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
"""None where no epsilon up to 200 holds at the plan's delta."""


class Fact(BaseModel):
    """A part of a summary: frozen, and refusing what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Written(Fact):
    """A whole summary, as it stands in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON types."""
        return self.model_dump(mode="json", by_alias=True)

    def to_bytes(self) -> bytes:
        """UTF-8 JSON, indented for people, with a newline at its end."""
        return (json.dumps(self.to_json(), ensure_ascii=False, indent=2) + "\n").encode()


_Summary = TypeVar("_Summary", bound=Written)


class StageTime(Fact):
    """Wall time of one stage of the run."""

    stage: Text
    seconds: Cost


class DatasetFacts(Fact):
    """What the run was on.

    Args:
        name: the data set.
        note: what a reader must know about it, such as "synthetic" or "simulated, for education".
        licence: of the data; "unknown" where its source states none.
    """

    name: Text
    note: Text
    licence: Text = "unknown"


class FeatureFacts(Fact):
    """What is needed to print a feature; `categories` are a category's public values in the contract's order."""

    name: Text
    unit: str
    kind: FeatureKind
    protected: bool = False
    categories: tuple[Text, ...] = ()


class ContractFacts(Fact):
    """What is needed to print the feature contract."""

    name: Text
    digest: Text
    currency: str | None
    start: date
    end: date
    features: Annotated[tuple[FeatureFacts, ...], Field(min_length=1)]

    @classmethod
    def of(cls, contract: Contract) -> ContractFacts:
        """The facts of a contract."""
        features = tuple(
            FeatureFacts(
                name=f.name,
                unit=contract.unit_of(f),
                kind=f.kind,
                protected=f.protected,
                categories=f.categories,
            )
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

    def feature(self, name: str) -> FeatureFacts:
        """The feature of that name; `KeyError` for one the contract does not have."""
        return {feature.name: feature for feature in self.features}[name]

    def unit(self, name: str) -> str:
        """The unit of a feature; `KeyError` for one the contract does not have."""
        return self.feature(name).unit


class Units(Fact):
    """A spend in the ledger's integer units, exact."""

    mu2: Count
    tv: Count

    @classmethod
    def of(cls, spend: Spend) -> Units:
        """The units of a spend."""
        return cls(mu2=spend.mu2, tv=spend.tv)

    @property
    def spend(self) -> Spend:
        """The same as a spend."""
        return Spend(self.mu2, self.tv)


class InstitutionFacts(Fact):
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

    name: Text
    accepted: bool
    spent: Units
    lifetime: Units
    lifetime_spent: Units
    epsilon: Epsilon
    lifetime_epsilon: Epsilon
    lifetime_used: Epsilon
    lifetime_left: Epsilon

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
            epsilon=bounded_epsilon(spent, delta) if noised else None,
            lifetime_epsilon=bounded_epsilon(lifetime, delta),
            lifetime_used=bounded_epsilon(lifetime_spent, delta),
            lifetime_left=bounded_epsilon(_left(lifetime, lifetime_spent), delta),
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


class PersonAt(Fact):
    """What the plan costs a person who is a customer of `institutions` of the institutions.

    Args:
        institutions: at how many.
        epsilon: by the ledger's accounting, at the plan's delta.
        epsilon_pld: the same by the privacy loss distribution, an independent code path.
    """

    institutions: Annotated[int, Field(ge=1)]
    epsilon: Epsilon
    epsilon_pld: Epsilon


class CollusionRow(Fact):
    """What the plan costs a person at one institution if more institutions collude than it tolerates.

    Args:
        colluders: how many, the curious institution itself included.
        shares: honest shares of noise in the smallest sum that they and the coordinator can open.
        epsilon: by the ledger's accounting, at the plan's delta.
    """

    colluders: Annotated[int, Field(ge=1)]
    shares: Annotated[int, Field(ge=1)]
    epsilon: Epsilon


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
    counts = person_counts(len(charges))
    if plan.trust == "unsafe-none":
        return tuple(PersonAt(institutions=count, epsilon=None, epsilon_pld=None) for count in counts)
    return tuple(_person_at(count, spend_of_person(charges, plan, count), plan.delta) for count in counts)


def person_counts(institutions: int) -> list[int]:
    """The numbers of institutions that a report tells: 1, 2, 3 and all, as far as there are so many."""
    return sorted({count for count in (1, 2, 3, institutions) if 1 <= count <= institutions})


def spend_of_person(charges: Sequence[Spend], plan: Plan, count: int) -> Spend:
    """What a plan with noise costs, at most, a customer of `count` of the institutions; see `person_at`."""
    if plan.trust == "local":
        return _largest(charges, count)
    return spend_at(Spend(), _largest(charges, 1), count)


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
        rows.append(CollusionRow(colluders=count, shares=left, epsilon=bounded_epsilon(spend, plan.delta)))
    return tuple(rows)


def _person_at(count: int, spend: Spend, delta: float) -> PersonAt:
    epsilon = bounded_epsilon(spend, delta)
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


def bounded_epsilon(spend: Spend, delta: float) -> float | None:
    """The epsilon of a spend; None where none holds."""
    epsilon = epsilon_spent(spend, delta)
    return epsilon if math.isfinite(epsilon) else None


def check_times(started: datetime, finished: datetime) -> None:
    """`ValueError` unless both are in UTC and in order."""
    if any(time.utcoffset() != timedelta(0) for time in (started, finished)):
        raise ValueError("started and finished must be in UTC")
    if finished < started:
        raise ValueError("finished must not lie before started")


def load_written(
    path: Path, kind: type[_Summary], what: str = "summary", fix: str = "run the simulation again"
) -> _Summary:
    """Read a summary; `DataError` for one that is unreadable, of another schema, or does not hold together.

    Args:
        what, fix: what it is called in errors, and how to get a good one.
    """
    try:
        return kind.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise DataError("cannot be read", place=str(path), fix="check the path") from error
    except (ValueError, RecursionError) as error:  # pydantic's included
        raise DataError(f"is not a {what} of this version", place=str(path), fix=fix) from error
