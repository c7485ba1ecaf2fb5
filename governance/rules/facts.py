"""Facts: what an institution knows when it decides, each with its provenance. What is absent is unknown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator

from cohortium.governance.rules.errors import FactError
from cohortium.governance.rules.pack import checked_facts
from cohortium.governance.rules.schema import Value, checked_value
from cohortium.study.canonical import digest_json
from cohortium.study.document import Agreed, Document, read_toml, validated

__all__ = ["Fact", "FactSheet", "Facts", "read_facts"]

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Fact(Agreed):
    """A value and where it comes from, such as `plan sha256:…` or `declared by the privacy office, 2026-11-23`."""

    value: Value
    provenance: _Text


class Facts(Document):
    """Facts by name.

    Args:
        schema_id: `cohortium.facts/1`; written `schema` in JSON.
        facts: only names and values that the schema of facts allows.
    """

    schema_id: Annotated[Literal["cohortium.facts/1"], Field(alias="schema")]
    facts: dict[str, Fact]

    @field_validator("facts", mode="after")
    @classmethod
    def _allowed(cls, facts: dict[str, Fact]) -> dict[str, Fact]:
        return {
            name: Fact(value=checked_value(name, fact.value), provenance=fact.provenance)
            for name, fact in sorted(facts.items())
        }

    @classmethod
    def of(cls, values: Mapping[str, Any], provenance: str) -> Facts:
        """Facts that share a provenance, by whole names (`run.purpose`) or in tables (`run` with `purpose` in it).

        Raises:
            FactError: unknown name (with the nearest), wrong type, NaN, or a text that is no choice.
        """
        raw = {"schema": "cohortium.fact-sheet/1", "provenance": provenance, "facts": values}
        return _facts_of(raw, provenance)

    @classmethod
    def merged(cls, *parts: Facts) -> Facts:
        """All facts of several sources. The same value from two keeps the first's provenance.

        Raises:
            FactError: two sources state different values; it names the fact and both, not the values.
        """
        found: dict[str, Fact] = {}
        for part in parts:
            for name, fact in part.facts.items():
                first = found.setdefault(name, fact)
                if first.value != fact.value:
                    raise FactError(
                        f"{first.provenance} and {fact.provenance} state different values",
                        place=f"fact '{name}'",
                        fix="correct one of the two sources",
                    )
        return cls.model_validate({"schema": "cohortium.facts/1", "facts": found})

    @cached_property
    def values(self) -> Mapping[str, Value]:
        """The values alone, by name."""
        return MappingProxyType({name: fact.value for name, fact in self.facts.items()})

    @cached_property
    def digest(self) -> str:
        """`sha256:…` of the canonical JSON (RFC 8785)."""
        return digest_json(self.to_json())


class FactSheet(Document):
    """Facts as people write them: one provenance, and values by name or in tables.

    Args:
        schema_id: `cohortium.fact-sheet/1`; written `schema` in TOML and JSON.
        provenance: who states this, and when.
        facts: `run.purpose = "dpv:DirectMarketing"`, `cohort.minors = 0`, …
    """

    schema_id: Annotated[Literal["cohortium.fact-sheet/1"], Field(alias="schema")]
    provenance: _Text
    facts: dict[str, Any]

    @field_validator("facts", mode="after")
    @classmethod
    def _flat(cls, value: dict[str, Any]) -> dict[str, Any]:
        return checked_facts(value)


def read_facts(path: Path) -> Facts:
    """The facts in a sheet, TOML or JSON by the file's name; `FactError` names file, fact and fix."""
    raw = _read_json(path) if path.suffix == ".json" else read_toml(path, FactError)
    return _facts_of(raw, str(path))


def _facts_of(raw: Mapping[str, Any], place: str) -> Facts:
    sheet = validated(FactSheet, raw, place, {}, FactError)
    facts = {name: {"value": value, "provenance": sheet.provenance} for name, value in sheet.facts.items()}
    return Facts.model_validate({"schema": "cohortium.facts/1", "facts": facts})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as failure:
        reason = "is not UTF-8 text" if isinstance(failure, UnicodeDecodeError) else failure.strerror
        raise FactError(reason or "cannot be read", place=str(path), fix="check the path") from failure
    except ValueError as failure:
        raise FactError(f"not JSON: {failure}", place=str(path), fix="correct that line") from failure
    if not isinstance(raw, dict):
        raise FactError("is no fact sheet", place=str(path), fix="write an object with schema, provenance and facts")
    return raw
