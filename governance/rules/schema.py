"""The schema of facts: which names rules may read, of what type, with which values, and where each comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, datetime
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from cohortium.governance.rules.errors import FactError
from cohortium.study.document import Agreed, parse_toml
from cohortium.study.errors import Defect
from cohortium.study.validation import suggestion

__all__ = ["FactSpec", "Kind", "Origin", "Value", "checked_value", "fact_schema", "spec_of"]

Value: TypeAlias = bool | int | float | str | date
"""What a fact may hold. `False` for a text, a date or a reference says that there is none."""

Kind = Literal["bool", "number", "text", "date", "reference"]

Origin = Literal["plan", "contract", "charter", "consent", "ledger", "audit", "review", "log", "declared"]
"""Who knows a fact; `declared` is the institution itself."""

_LARGEST = 2**53


class FactSpec(Agreed):
    """What one fact means and may hold.

    Args:
        kind: `bool`; `number`, finite and at least 0; `text`, one of `values`; `date`; `reference`, a name by which the
            institution finds a document.
        meaning: what it says, as a noun or a yes-or-no statement.
        origin: where it comes from.
        integer: a number without a fraction.
        values: all that a text may be.
        may_be_none: `false` says that there is none. A fact that is left out is unknown, which is something else.
    """

    kind: Kind
    meaning: str
    origin: Origin
    integer: bool = False
    values: tuple[str, ...] = ()
    may_be_none: bool = False


@cache
def fact_schema() -> Mapping[str, FactSpec]:
    """Every fact by name, in the order of `facts.toml`."""
    text = files("cohortium.governance.rules").joinpath("facts.toml").read_text(encoding="utf-8")
    try:
        raw = parse_toml(text, "facts.toml", FactError)
        specs = TypeAdapter(dict[Annotated[str, Field(pattern=r"^[a-z]+\.[a-z0-9_]+$")], FactSpec]).validate_python(raw)
    except (FactError, ValidationError) as error:
        raise Defect(f"the schema of facts that ships does not hold: {error}") from error
    return MappingProxyType(specs)


def spec_of(name: str) -> FactSpec:
    """What a fact may hold; `ValueError` as `problem; fix` with the nearest name when there is no such fact."""
    spec = fact_schema().get(name)
    if spec is None:
        raise ValueError(f"there is no fact '{name}'; {suggestion(name, fact_schema())}")
    return spec


def checked_value(name: str, value: object) -> Value:
    """The value of a fact, if the schema allows it.

    Raises:
        ValueError: as `problem; fix`: unknown name (with the nearest), wrong type, NaN, or a text that is no choice.
    """
    spec = spec_of(name)
    if value is False and spec.may_be_none:
        return False
    none = ", or false if there is none" if spec.may_be_none else ""
    if spec.kind == "bool" and isinstance(value, bool):
        return value
    if spec.kind == "number" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _checked_number(name, value, spec)
    if spec.kind == "date" and isinstance(value, date) and not isinstance(value, datetime):
        return value
    if spec.kind == "date" and isinstance(value, str):
        return _checked_date(name, value, none)
    if spec.kind == "text" and isinstance(value, str):
        if value not in spec.values:
            raise ValueError(f"'{name}' has a value that is no choice; {suggestion(value, spec.values)}")
        return value
    if spec.kind == "reference" and isinstance(value, str) and value.strip():
        return value
    raise ValueError(f"'{name}' is of the wrong type; state {_WANTED[spec.kind]}{none}")


_WANTED = {
    "bool": "true or false",
    "number": "a number",
    "text": "one of its choices",
    "date": "a date, such as 2027-12-31",
    "reference": "a name by which you find the document",
}


def _checked_number(name: str, value: float, spec: FactSpec) -> float:
    if not math.isfinite(value):
        raise ValueError(f"'{name}' is not a number; state a finite one, or leave it out, and it is unknown")
    if not 0 <= value <= _LARGEST:
        raise ValueError(f"'{name}' is out of range; state a number from 0 to 2^53")
    if not spec.integer:
        return value
    if value != int(value):
        raise ValueError(f"'{name}' has a fraction; state a whole number")
    return int(value)


def _checked_date(name: str, value: str, none: str) -> date:
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise ValueError(f"'{name}' is not a date; state one such as 2027-12-31{none}") from None
