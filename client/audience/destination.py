"""Where an audience goes: the columns, steps and files that a destination takes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cohortium.client.audience.files import FORMATS, Format
from cohortium.client.audience.normalise import ID, Column, PhoneRules
from cohortium.study.errors import DataError

__all__ = ["Destination"]

_DESTINATION = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_EVERYBODY_IS_ID = (Column(ID, ID),)


@dataclass(frozen=True)
class Destination:
    """How a destination takes an audience.

    Args:
        name: small letters, digits and hyphens. Every destination has its own sequence of exports.
        columns: at least one, of different names; the same in all exports to this destination.
        format: `csv`, `jsonl` or `parquet`.
        max_rows: most rows of a file, for destinations that take so many a call; None for one file.
        phones: for columns with the step `e164`; the same in all exports to this destination.

    Raises:
        DataError: malformed, or an unknown format.
    """

    name: str = "default"
    columns: tuple[Column, ...] = _EVERYBODY_IS_ID
    format: Format = "csv"
    max_rows: int | None = None
    phones: PhoneRules | None = None

    def __post_init__(self) -> None:
        if not _DESTINATION.fullmatch(self.name):
            raise DataError("malformed name", place="destination", fix="use small letters, digits and hyphens")
        if self.format not in FORMATS:
            raise DataError("unknown format", place=f"destination {self.name}", fix=f"use {', '.join(FORMATS)}")
        names = [column.name for column in self.columns]
        if not names or len({name.lower() for name in names}) != len(names):
            raise DataError(
                "no column, or two of one name", place=f"destination {self.name}", fix="give different columns"
            )
        if self.max_rows is not None and self.max_rows < 1:
            raise DataError("max_rows is below 1", place=f"destination {self.name}", fix="give a positive number")
        if self.phones is None and any("e164" in column.steps for column in self.columns):
            raise DataError(
                "telephone numbers need a default calling code",
                place=f"destination {self.name}",
                fix="give the calling code and trunk prefix of numbers that are written without one",
            )

    @property
    def layout(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Name, and source with the steps in words, of every column."""
        return tuple((column.name, (column.source, *map(self._words, column.steps))) for column in self.columns)

    def _words(self, step: str) -> str:
        if step != "e164" or self.phones is None:
            return step
        return f"e164(calling_code={self.phones.calling_code}, trunk={self.phones.trunk})"
