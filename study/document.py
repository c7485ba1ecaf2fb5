"""Documents that parties agree on: frozen, extra-forbidding, one canonical JSON and one digest each; TOML on disk."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, ValidationError
from rfc8785 import CanonicalizationError

from cohortium.study.canonical import canonical_bytes, digest_json
from cohortium.study.errors import CohortiumError
from cohortium.study.validation import first_problem, first_repeat

__all__ = ["Agreed", "Document", "Moment", "parse_json", "parse_toml", "read_json", "read_toml", "validated"]

_MAX_JSON = 2**26
_Model = TypeVar("_Model", bound=BaseModel)


def _whole_seconds(value: datetime) -> datetime:
    if value.utcoffset() != UTC.utcoffset(None) or value.microsecond:
        raise ValueError("a time is in UTC and whole seconds; write it as 2026-01-31T12:00:00Z")
    return value.astimezone(UTC)


Moment = Annotated[AwareDatetime, AfterValidator(_whole_seconds)]
"""A time in UTC and whole seconds."""


class Agreed(BaseModel):
    """A part of a document: frozen, and refusing what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Document(Agreed):
    """A whole document, with a digest."""

    @property
    def digest(self) -> str:
        """`sha256:…` of `to_bytes()`: the name under which others refer to the document."""
        return digest_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The document as JSON types, `schema` by its name on disk, every default spelled out."""
        return self.model_dump(mode="json", by_alias=True)

    def to_bytes(self) -> bytes:
        """Canonical JSON (RFC 8785)."""
        return canonical_bytes(self.to_json())


def read_toml(path: Path, error: type[CohortiumError]) -> dict[str, Any]:
    """The table in a TOML file; `error`, in one line, when it cannot be read or is no TOML."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        reason = "is not UTF-8 text" if isinstance(failure, UnicodeDecodeError) else failure.strerror
        raise error(reason or "cannot be read", place=str(path), fix="check the path") from failure
    return parse_toml(text, str(path), error)


def parse_toml(text: str, place: str, error: type[CohortiumError]) -> dict[str, Any]:
    """The table in a TOML text; `error`, in one line, when it is no TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as failure:
        raise error(f"not TOML: {failure}", place=place, fix="correct that line") from failure
    except RecursionError as failure:
        raise error("not TOML: nested too deeply", place=place, fix="write plain tables") from failure


def read_json(path: Path, error: type[CohortiumError]) -> dict[str, Any]:
    """The object in a JSON file; `error`, in one line, when it cannot be read or is no such object (`parse_json`)."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_JSON + 1)
    except OSError as failure:
        raise error(failure.strerror or "cannot be read", place=str(path), fix="check the path") from failure
    return parse_json(data, str(path), error)


def parse_json(data: bytes, place: str, error: type[CohortiumError]) -> dict[str, Any]:
    """The object in a JSON text, each key once.

    `error`, in one line, when it is none, holds what canonical JSON cannot (NaN), or is above 64 MiB.
    """
    try:
        if len(data) > _MAX_JSON:
            raise ValueError
        document = json.loads(data, object_pairs_hook=_no_repeats)
        canonical_bytes(document)
    except (ValueError, RecursionError, CanonicalizationError) as failure:
        raise error(
            "is no JSON document of plain, finite values, each key once", place=place, fix="write it anew"
        ) from failure
    if not isinstance(document, dict):
        raise error("is no JSON object", place=place, fix="give the whole document")
    return document


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if first_repeat(key for key, _ in pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def validated(
    model: type[_Model], raw: Mapping[str, Any], place: str, forms: Mapping[str, str], error: type[CohortiumError]
) -> _Model:
    """The document of JSON or TOML types; `error`, in one line that names place and fix, when it does not hold."""
    try:
        return model.model_validate(raw)
    except ValidationError as failure:
        where, message, fix = first_problem(failure, raw, model, forms)
        raise error(message, place=f"{place}: {where}" if where else place, fix=fix) from None
