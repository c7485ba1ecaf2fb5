"""The charter: who takes part in a federation, and the thresholds that no plan of it may undercut."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from cohortium.study.document import Agreed, Document, read_toml, validated
from cohortium.study.errors import Defect, PlanError
from cohortium.study.plan import MAX_EPSILON, MIN_CELL, Plan
from cohortium.study.validation import first_repeat

__all__ = [
    "CHARTER_SCHEMA",
    "SIMULATION",
    "Charter",
    "Institution",
    "NeededWitnesses",
    "Quorum",
    "load_charter",
    "parse_charter",
]

CHARTER_SCHEMA = "cohortium.charter/1"
"""The schema name this version reads and writes; any other is refused."""

SIMULATION = "simulation"
"""Region of institutions whose customers are public or synthetic."""

_TEXT = r"^[^\s](.{0,126}[^\s])?$"
_KEY = r"^[0-9a-f]{64}$"
_FORMS = {_TEXT: "give a name of 1 to 128 characters", _KEY: "give the Ed25519 public key as 64 hexadecimal digits"}
_Text = Annotated[str, StringConstraints(pattern=_TEXT)]


class Institution(Agreed):
    """One member.

    Args:
        name: how it is called, for people; distinct within the charter.
        region: where its customers are, such as EU.
        group: members of one group of companies share it; a group does not witness for itself.
        identity: its Ed25519 public key in hexadecimal, under which it signs; a simulation makes one that lacks.
    """

    name: _Text
    region: _Text
    group: _Text | None = None
    identity: Annotated[str, StringConstraints(pattern=_KEY)] | None = None


class Quorum(Agreed):
    """Whose cosignatures a log's checkpoint needs before anybody relies on it.

    Args:
        witnesses: how many other institutions; 2, or all others where there are fewer, when left out.
        outside_group: how many of them do not belong to the institution's own group; 1, or 0 where there is none, when
            left out.
    """

    witnesses: Annotated[int, Field(strict=True, ge=0, le=1000)] | None = None
    outside_group: Annotated[int, Field(strict=True, ge=0, le=1000)] | None = None


@dataclass(frozen=True)
class NeededWitnesses:
    """A quorum with its defaults filled in for one institution."""

    witnesses: int
    outside_group: int


class Charter(Document):
    """Who takes part, and what they agreed on once for all plans.

    Args:
        schema_id: `cohortium.charter/1`; written `schema` in TOML.
        name: the federation's name.
        institutions: its members.
        max_epsilon: no plan may ask for more; above the house limit of 3 only where every region is `simulation`.
        min_cell: no plan may release smaller cells.
        min_customers: every institution has at least so many; a plan's delta is at most a tenth of one in so many.
        coordinator: its Ed25519 public key in hexadecimal, under which it signs released models; a simulation makes one
            that lacks.
        quorum: of witnesses of the institutions' audit logs.
    """

    schema_id: Annotated[Literal["cohortium.charter/1"], Field(alias="schema")]
    name: _Text
    institutions: Annotated[tuple[Institution, ...], Field(min_length=1)]
    max_epsilon: Annotated[float, Field(strict=True, gt=0, le=50, allow_inf_nan=False)] = MAX_EPSILON
    min_cell: Annotated[int, Field(strict=True, ge=MIN_CELL, le=10**6)] = MIN_CELL
    min_customers: Annotated[int, Field(strict=True, ge=1, le=10**10)] = 1000
    coordinator: Annotated[str, StringConstraints(pattern=_KEY)] | None = None
    quorum: Quorum = Quorum()

    @model_validator(mode="after")
    def _distinct(self) -> Charter:
        if repeated := first_repeat(institution.name for institution in self.institutions):
            raise ValueError(f"institutions must have distinct names; rename one '{repeated}'")
        if repeated := first_repeat(member.identity for member in self.institutions if member.identity is not None):
            raise ValueError(f"institutions must have distinct identity keys; two have {repeated[:16]}…")
        if self.max_epsilon > MAX_EPSILON and {member.region for member in self.institutions} != {SIMULATION}:
            raise ValueError(f"max_epsilon must be {MAX_EPSILON:g} or less outside simulations")
        self._check_quorum()
        return self

    def _check_quorum(self) -> None:
        """Every institution must be able to gather its quorum, or its first question would pause for ever."""
        for member in self.institutions:
            others, outside = len(self._others(member)), len(self._outside(member))
            needed = self.quorum_of(member.name)
            if needed.witnesses > others:
                raise ValueError(f"quorum.witnesses is above the {others} other institutions; lower it")
            if needed.outside_group > outside:
                raise ValueError(
                    f"quorum.outside_group is above the {outside} institutions outside the group of '{member.name}'; "
                    "lower it, or enrol others"
                )
            if needed.outside_group > needed.witnesses:
                raise ValueError("quorum.outside_group is above quorum.witnesses; lower it")

    def quorum_of(self, institution: str) -> NeededWitnesses:
        """Whose cosignatures that member's log needs, the defaults filled in; `Defect` for nobody's name."""
        member = next((one for one in self.institutions if one.name == institution), None)
        if member is None:
            raise Defect("the quorum of an institution that the charter does not name")
        witnesses, outside = self.quorum.witnesses, self.quorum.outside_group
        if witnesses is None:
            witnesses = min(2, len(self._others(member)))
        if outside is None:
            outside = min(1, witnesses, len(self._outside(member)))
        return NeededWitnesses(witnesses, outside)

    def _others(self, member: Institution) -> list[Institution]:
        return [one for one in self.institutions if one.name != member.name]

    def _outside(self, member: Institution) -> list[Institution]:
        return [one for one in self._others(member) if member.group is None or one.group != member.group]

    def check_plan(self, plan: Plan, place: str = "plan") -> None:
        """Whether a plan keeps the charter's limits; `PlanError` names the line to change."""
        if plan.epsilon > self.max_epsilon:
            raise PlanError(
                f"epsilon {plan.epsilon} is above the charter's {self.max_epsilon}",
                place=f"{place}: epsilon",
                fix=f"set epsilon = {self.max_epsilon} or less",
            )
        if plan.min_cell < self.min_cell:
            raise PlanError(
                f"min_cell {plan.min_cell} is below the charter's {self.min_cell}",
                place=f"{place}: min_cell",
                fix=f"set min_cell = {self.min_cell} or more",
            )
        if plan.min_institutions > len(self.institutions):
            raise PlanError(
                f"min_institutions {plan.min_institutions} is above the {len(self.institutions)} members",
                place=f"{place}: min_institutions",
                fix='lower it, enrol more institutions, or, with fewer than three, set trust = "local"',
            )
        if 10 * self.min_customers * Fraction(repr(plan.delta)) > 1:
            raise PlanError(
                f"delta {plan.delta:g} is above 1 / (10 * {self.min_customers:,}), the charter's min_customers",
                place=f"{place}: delta",
                fix=f"set delta = {1 / (10 * self.min_customers):g} or less",
            )


def load_charter(path: Path) -> Charter:
    """Read a charter from a TOML file; `PlanError` in one line with field and fix."""
    return parse_charter(read_toml(path, PlanError), place=str(path))


def parse_charter(document: dict[str, Any], place: str = "charter") -> Charter:
    """Validate a charter of JSON or TOML types; `PlanError` in one line otherwise."""
    return validated(Charter, document, place, _FORMS, PlanError)
