"""What onboarding counted, by table, column and feature; frozen, and JSON on disk.

The report stays at the institution: its counts are exact, and nothing in it may travel.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["ONBOARDING_SCHEMA", "ColumnReport", "FeatureReport", "OnboardingReport", "TableReport"]

ONBOARDING_SCHEMA = "cohortium.onboarding/1"


class _Counted(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ColumnReport(_Counted):
    """What was wrong in one source column.

    Args:
        table: the contract's name of the table.
        column: the source column's name.
        used_as: its role in the table, or the feature it feeds.
        cells: cells looked at: all lines for customer, time and amount; used lines otherwise.
        problems: count by kind. A line may have several.
        bad: cells that count towards `max_bad_share` (each once).
    """

    table: str
    column: str
    used_as: str
    cells: int
    problems: dict[str, int]
    bad: int

    @property
    def bad_share(self) -> float:
        """bad / cells, 0 when there are none."""
        return self.bad / self.cells if self.cells else 0.0


class TableReport(_Counted):
    """What one table held.

    Args:
        name: the contract's name of the table.
        lines: lines of the source, malformed ones included.
        malformed: lines of a text file with another number of fields than its header, or broken quotes or encoding.
        used: lines that entered features.
        people: distinct ids among the used lines.
        lines_of_others: used lines of ids outside the person set (no row in the customers table): left out.
        duplicates: lines that repeat an earlier line in every column; they are kept. None when not counted.
        first_day, last_day: of the used lines of a transactions table.
        source: kind, sizes and digests of the source.
    """

    name: str
    lines: int
    malformed: int
    used: int
    people: int
    lines_of_others: int
    duplicates: int | None
    first_day: date | None
    last_day: date | None
    source: dict[str, Any]


class FeatureReport(_Counted):
    """What happened to one feature, in people.

    Args:
        name: the feature.
        missing: people without a value (a category: without a listed one); they got the public fill value.
        clipped_low, clipped_high: people whose value lay outside the public bounds.
        at_low, at_high: people at or beyond a bound.
        conflicts: people with several values in the source; the most frequent one was taken.
    """

    name: str
    missing: int
    clipped_low: int
    clipped_high: int
    at_low: int
    at_high: int
    conflicts: int


class OnboardingReport(_Counted):
    """Everything onboarding counted.

    Args:
        schema_id: `cohortium.onboarding/1`.
        contract: the contract's name.
        contract_digest: its digest; loading under another contract is refused.
        people: rows of the customer table.
        tables, columns, features: the counts.
        outputs: SHA-256 of every file written beside the report; empty for a check.
        seconds: wall time by stage: the only part that differs between two runs over identical input.
    """

    schema_id: str = ONBOARDING_SCHEMA
    contract: str
    contract_digest: str
    people: int
    tables: tuple[TableReport, ...]
    columns: tuple[ColumnReport, ...]
    features: tuple[FeatureReport, ...]
    outputs: dict[str, str]
    seconds: dict[str, float]

    def feature(self, name: str) -> FeatureReport:
        """The report of one feature; `KeyError` otherwise."""
        return {feature.name: feature for feature in self.features}[name]

    def column(self, table: str, column: str, used_as: str) -> ColumnReport:
        """The report of one column in one use; `KeyError` otherwise."""
        return {(c.table, c.column, c.used_as): c for c in self.columns}[table, column, used_as]

    def beyond(self, max_bad_share: float) -> Iterator[tuple[str, str, int, int]]:
        """(table, what, bad, cells) of every column, and of every table's lines, whose bad share is above the limit."""
        for table in self.tables:
            if table.malformed > max_bad_share * table.lines:
                yield table.name, "malformed lines", table.malformed, table.lines
        for column in self.columns:
            if column.bad > max_bad_share * column.cells:
                yield column.table, f"column '{column.column}'", column.bad, column.cells
