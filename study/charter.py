"""The charter: who takes part in a federation, and the thresholds that no plan of it may undercut."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from cohortium.study.canonical import digest_json
from cohortium.study.errors import PlanError
from cohortium.study.plan import MAX_EPSILON, MIN_CELL, Plan
from cohortium.study.validation import first_problem, first_repeat

__all__ = ["CHARTER_SCHEMA", "Charter", "Institution", "load_charter", "parse_charter"]

CHARTER_SCHEMA = "cohortium.charter/1"
"""The schema name this version reads and writes; any other is refused."""

_TEXT = r"^[^\s](.{0,126}[^\s])?$"
_KEY = r"^[0-9a-f]{64}$"
_FORMS = {_TEXT: "give a name of 1 to 128 characters", _KEY: "give the Ed25519 public key as 64 hexadecimal digits"}
_Text = Annotated[str, StringConstraints(pattern=_TEXT)]


class _Agreed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Institution(_Agreed):
    """One member.

    Args:
        name: how it is called, for people; distinct within the charter.
        region: where its customers are, such as EU.
        group: members of one group of companies share it; a group does not witness for itself.
        identity: its Ed25519 public key in hexadecimal; absent in simulations, where nobody signs.
    """

    name: _Text
    region: _Text
    group: _Text | None = None
    identity: Annotated[str, StringConstraints(pattern=_KEY)] | None = None


class Charter(_Agreed):
    """Who takes part, and what they agreed on once for all plans.

    Args:
        schema_id: `cohortium.charter/1`; written `schema` in TOML.
        name: the federation's name.
        institutions: its members.
        max_epsilon: no plan may ask for more.
        min_cell: no plan may release smaller cells.
    """

    schema_id: Annotated[Literal["cohortium.charter/1"], Field(alias="schema")]
    name: _Text
    institutions: Annotated[tuple[Institution, ...], Field(min_length=1)]
    max_epsilon: Annotated[float, Field(strict=True, gt=0, le=MAX_EPSILON, allow_inf_nan=False)] = MAX_EPSILON
    min_cell: Annotated[int, Field(strict=True, ge=MIN_CELL)] = MIN_CELL

    @model_validator(mode="after")
    def _distinct(self) -> Charter:
        if repeated := first_repeat(institution.name for institution in self.institutions):
            raise ValueError(f"institutions must have distinct names; rename one '{repeated}'")
        return self

    @property
    def digest(self) -> str:
        """`sha256:…` of the canonical JSON of `to_json()`."""
        return digest_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The charter as JSON types, `schema` by its TOML name, every default spelled out."""
        return self.model_dump(mode="json", by_alias=True)

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
                fix="lower it, or enrol more institutions",
            )


def load_charter(path: Path) -> Charter:
    """Read a charter from a TOML file; `PlanError` in one line with field and fix."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError("cannot be read", place=str(path), fix="check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"is no TOML: {error}", place=str(path), fix="mend the line it names") from error
    return parse_charter(document, place=str(path))


def parse_charter(document: dict[str, Any], place: str = "charter") -> Charter:
    """Validate a charter of JSON or TOML types; `PlanError` in one line otherwise."""
    try:
        return Charter.model_validate(document)
    except ValidationError as error:
        where, message, fix = first_problem(error, document, Charter, _FORMS)
        raise PlanError(message, place=f"{place}: {where}" if where else place, fix=fix) from None
