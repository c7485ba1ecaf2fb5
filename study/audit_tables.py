"""What a fairness audit makes known: noisy tables of people by protected group and outcome, as one JSON document.

Numbers of people are noisy and paid for. Whatever is below the plan's minimum cell is absent (null), never 0. No second
cell is left out to hide the first: the whole answer is one release that was charged, and what the others leave of a sum
is noisier than the cell itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from cohortium.study.audit_plan import AuditPlan
from cohortium.study.bundle import ReleaseRecord
from cohortium.study.document import Agreed, Document
from cohortium.study.errors import DataError

__all__ = ["AUDIT_SCHEMA", "AuditTable", "AuditTables", "load_audit_tables"]

AUDIT_SCHEMA = "cohortium.audit/1"
"""The schema name this version reads and writes; any other is refused."""

_Finite = Annotated[float, Field(allow_inf_nan=False)]


class AuditTable(Agreed):
    """One table.

    Args:
        kind: people by group and outcome (`outcomes`), by group, outcome and answer (`labels`), by group and bin of a
            feature (`proxies`), or sums of distances by group (`distances`).
        attributes: one protected attribute, or two that are crossed.
        groups: every group's label under each attribute.
        outcomes: labels of the columns.
        counts: people by group and column, or the sums; null below the minimum cell.
        totals: people by group, over all columns; null below the minimum cell. Empty for distances.
        std: standard deviation of the noise of every count.
        feature: of a proxy table, the feature whose bins are the columns.
        institution: whose own table it is, by its name in the charter; null for the sum over all.
    """

    kind: Literal["outcomes", "labels", "distances", "proxies"]
    attributes: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)]
    groups: Annotated[tuple[tuple[str, ...], ...], Field(min_length=1)]
    outcomes: Annotated[tuple[str, ...], Field(min_length=1)]
    counts: tuple[tuple[_Finite | None, ...], ...]
    totals: tuple[_Finite | None, ...] = ()
    std: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    feature: str | None = None
    institution: str | None = None

    @model_validator(mode="after")
    def _shapes(self) -> AuditTable:
        if len(self.counts) != len(self.groups) or any(len(row) != len(self.outcomes) for row in self.counts):
            raise ValueError("counts must have one row per group and one number per outcome")
        if any(len(group) != len(self.attributes) for group in self.groups):
            raise ValueError("a group must have one label per attribute")
        if len(self.totals) != (0 if self.kind == "distances" else len(self.groups)):
            raise ValueError("totals must have one number per group, and none for distances")
        if (self.feature is not None) != (self.kind == "proxies"):
            raise ValueError("exactly a proxy table names its feature")
        return self


class AuditTables(Document):
    """See the module.

    Args:
        schema_id: `cohortium.audit/1`; written `schema`.
        plan: the approved plan.
        run: identifies the run.
        institutions: how many answered to the end.
        tables: by attribute and pair of attributes in the plan's order: pooled ones first, then, with `trust = "local"`
            alone, each institution's own.
        releases: every question in order. An institution's own tables are its part of the same answers: under `local`
            each part carries full noise and was charged in full.
    """

    schema_id: Annotated[Literal["cohortium.audit/1"], Field(alias="schema")] = "cohortium.audit/1"
    plan: AuditPlan
    run: str
    institutions: Annotated[int, Field(ge=1)]
    tables: Annotated[tuple[AuditTable, ...], Field(min_length=1)]
    releases: tuple[ReleaseRecord, ...]

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _trusted(self) -> AuditTables:
        if self.plan.trust != "local" and any(table.institution is not None for table in self.tables):
            raise ValueError('an institution\'s own table exists with trust = "local" alone')
        return self


def load_audit_tables(path: Path) -> AuditTables:
    """Read an audit's tables; `DataError` for what is unreadable, of another schema, or does not hold together."""
    try:
        tables = AuditTables.model_validate(json.loads(path.read_bytes()))
        tables.to_bytes()  # an integer that JSON cannot hold exactly has no digest
    except OSError as error:
        raise DataError("cannot be read", place=str(path), fix="check the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError("are no audit's tables of this version", place=str(path), fix="export them again") from error
    return tables
