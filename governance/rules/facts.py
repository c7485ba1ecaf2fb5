"""Facts: what an institution knows when it decides, each with its provenance. What is absent is unknown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from cohortium.governance.rules.errors import FactError
from cohortium.governance.rules.pack import checked_facts
from cohortium.governance.rules.schema import Value
from cohortium.study.canonical import digest_json
from cohortium.study.document import Document, read_toml, validated

__all__ = ["FactSheet", "Facts", "read_facts"]

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Facts(Document):
    """Facts by name, and who states each.

    Args:
        schema_id: `cohortium.facts/1`; written `schema` in JSON.
        facts: only names and values that the schema of facts allows.
        sources: under each provenance, such as `plan sha256:…` or `declared by the privacy office, 2026-11-23`, the
            names of its facts; every fact has one.
    """

    schema_id: Annotated[Literal["cohortium.facts/1"], Field(alias="schema")]
    facts: dict[str, Value]
    sources: dict[_Text, tuple[str, ...]]

    @field_validator("facts", mode="after")
    @classmethod
    def _allowed(cls, facts: dict[str, Value]) -> dict[str, Value]:
        return checked_facts(facts)

    @field_validator("sources", mode="after")
    @classmethod
    def _in_order(cls, sources: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        return {source: tuple(sorted(names)) for source, names in sources.items()}

    @model_validator(mode="after")
    def _each_has_a_source(self) -> Facts:
        stated = sorted(name for names in self.sources.values() for name in names)
        if stated != sorted(self.facts):
            raise ValueError("facts and sources do not name the same facts; give every fact one source")
        return self

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
        """All facts of several sources. Of the same value from two the first's provenance is kept.

        Raises:
            FactError: two sources state different values; it names the fact and both, not the values.
        """
        facts: dict[str, Value] = {}
        sources: dict[str, list[str]] = {}
        owner: dict[str, str] = {}
        for part in parts:
            for name, value in part.facts.items():
                stated = part.provenance[name]
                if name not in facts:
                    facts[name], owner[name] = value, stated
                    sources.setdefault(stated, []).append(name)
                elif facts[name] != value:
                    raise FactError(
                        f"{owner[name]} and {stated} state different values",
                        place=f"fact '{name}'",
                        fix="correct one of the two sources",
                    )
        return cls.model_validate({"schema": "cohortium.facts/1", "facts": facts, "sources": sources})

    @cached_property
    def provenance(self) -> Mapping[str, str]:
        """Who states each fact."""
        return MappingProxyType({name: source for source, names in self.sources.items() for name in names})

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
    sources = {sheet.provenance: tuple(sheet.facts)} if sheet.facts else {}
    return Facts.model_validate({"schema": "cohortium.facts/1", "facts": sheet.facts, "sources": sources})


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
