"""Onboarding: an institution's tables become one bounded row per person, and a report of everything that was wrong."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from cohortium.client.onboarding import store
from cohortium.client.onboarding.aggregate import LINE_PROBLEMS, TableSql, share_column
from cohortium.client.onboarding.duplicates import count_duplicates
from cohortium.client.onboarding.engine import Engine, Progress, Resources, literal, quoted
from cohortium.client.onboarding.features import FEATURE_COUNTS, count_features, create_people, select_features
from cohortium.client.onboarding.report import ColumnReport, FeatureReport, OnboardingReport, TableReport
from cohortium.client.onboarding.sources import Source, open_source, require_columns, suggestion
from cohortium.study.contract import Contract, Feature, Table
from cohortium.study.errors import DataError

__all__ = ["inspect_sources", "onboard", "refuse_bad_shares"]

_ROWS_PER_GROUP = 122_880


def onboard(
    contract: Contract,
    sources: Mapping[str, Source],
    out: Path,
    *,
    resources: Resources | None = None,
    progress: Progress | None = None,
    duplicates: bool = True,
) -> OnboardingReport:
    """Read an institution's tables once and write its customer table.

    Args:
        contract: what the columns mean; bounds and categories come from here and never from the data.
        sources: one source per table of the contract, by the table's name.
        out: folder to write (`store` lists its files); an earlier onboarding there is replaced when this one ends well.
        resources: memory and threads.
        progress: called with (stage, share done).
        duplicates: also count repeated lines, which reads the sources a second time.

    Returns:
        The report that also stands in `onboarding.json`.

    Raises:
        DataError: a missing or wrongly typed column, no customer at all, or a bad share above the contract's limit;
            nothing is written. No message contains a value of a customer.
        OutputError: `out` cannot be written.
    """
    with store.staging(out) as (new, scratch), _engine(scratch, resources, progress) as engine:
        run = _Run(contract, engine, scratch)
        report = run.read(sources, duplicates)
        refuse_bad_shares(contract, report)
        report = report.model_copy(update={"outputs": run.write(new), "seconds": run.seconds})
        (new / store.REPORT_FILE).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return report


def inspect_sources(
    contract: Contract,
    sources: Mapping[str, Source],
    *,
    resources: Resources | None = None,
    progress: Progress | None = None,
    duplicates: bool = True,
) -> OnboardingReport:
    """What `onboard` would count, without writing anything and without refusing for a bad share."""
    with (
        tempfile.TemporaryDirectory(prefix="cohortium-") as folder,
        _engine(Path(folder), resources, progress) as engine,
    ):
        return _Run(contract, engine, Path(folder)).read(sources, duplicates)


def refuse_bad_shares(contract: Contract, report: OnboardingReport) -> None:
    """Raise `DataError` for the first column, or table of lines, with a bad share above `max_bad_share`."""
    for table, what, bad, cells in report.beyond(contract.max_bad_share):
        raise DataError(
            f"{bad} of {cells} are bad, more than the contract's {contract.max_bad_share:.1%}",
            place=f"{table}, {what}",
            fix="clean the source, or agree on another max_bad_share",
        )


@contextmanager
def _engine(scratch: Path, resources: Resources | None, progress: Progress | None) -> Iterator[Engine]:
    engine = Engine(scratch / "spill", resources or Resources(), progress)
    try:
        yield engine
    finally:
        engine.close()


@dataclass
class _Run:
    """One run over one institution's sources; the statements' results live in the engine."""

    contract: Contract
    engine: Engine
    scratch: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def read(self, sources: Mapping[str, Source], duplicates: bool) -> OnboardingReport:
        """Aggregate every table, build `people`, count."""
        _refuse_other_tables(self.contract, sources)
        with self._timed("features"):
            tables = [self._aggregate(table, sources[table.name]) for table in self.contract.tables]
            conflicts = self._conflicts(tables)
            self.engine.run("joining tables", create_people(self.contract, tables, frozenset(conflicts)), "people")
            features = self._feature_reports(conflicts)
        people = int(self.engine.run("counting", "SELECT count(*) FROM people", "people")[0][0])
        columns = tuple(column for table in tables for column in self._column_reports(table))
        reports = [self._table_report(table) for table in tables]
        if people == 0:
            raise DataError(_why_empty(reports, columns), place=self.contract.name, fix="check ids, window and formats")
        if duplicates:
            reports = self._with_duplicates(tables, reports)
        return OnboardingReport(
            contract=self.contract.name,
            contract_digest=self.contract.digest,
            people=people,
            tables=tuple(reports),
            columns=columns,
            features=features,
            outputs={},
            seconds=self.seconds,
        )

    def write(self, folder: Path) -> dict[str, str]:
        """Both Parquet files; their digests by name."""
        with self._timed("writing"):
            for name, features in (
                (store.CUSTOMERS_FILE, self.contract.training_features),
                (store.PROTECTED_FILE, self.contract.protected_features),
            ):
                target = literal(str(folder / name))
                sql = (
                    f"COPY ({select_features(features)}) TO {target}"
                    f" (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_ROWS_PER_GROUP})"
                )
                self.engine.run("writing", sql, name)
        return {file: store.file_digest(folder / file) for file in (store.CUSTOMERS_FILE, store.PROTECTED_FILE)}

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - started, 3)

    def _aggregate(self, table: Table, source: Source) -> TableSql:
        wanted = self.contract.columns_of(table)
        opened = open_source(self.engine, table.name, source, wanted, self.scratch)
        require_columns(table.name, wanted, opened)
        sql = TableSql(self.contract, table, opened)
        self.engine.run(f"reading {table.name}", sql.create(), table.name)
        return sql

    def _conflicts(self, tables: Sequence[TableSql]) -> dict[str, int]:
        """People with several values, by feature; their most frequent value is computed where there are any."""
        found = {}
        for table in tables:
            if not table.attributes:
                continue
            differ = ", ".join(
                f"count(*) FILTER ({quoted(f'{feature.name}.low')} <> {quoted(f'{feature.name}.high')})"
                for feature in table.attributes
            )
            counts = self._one(f"SELECT {differ} FROM {table.name} WHERE key NOT LIKE ' %'", table)
            for feature, people in zip(table.attributes, counts, strict=True):
                if people:
                    found[feature.name] = int(people)
                    self.engine.run("resolving conflicts", table.create_modes(feature), table.table.name)
        return found

    def _feature_reports(self, conflicts: Mapping[str, int]) -> tuple[FeatureReport, ...]:
        row = self.engine.run("counting", count_features(self.contract), "people")[0][1:]
        width = len(FEATURE_COUNTS)
        return tuple(
            FeatureReport(
                name=feature.name,
                conflicts=conflicts.get(feature.name, 0),
                **dict(zip(FEATURE_COUNTS, map(int, row[width * i : width * (i + 1)]), strict=True)),
            )
            for i, feature in enumerate(self.contract.features)
        )

    def _table_report(self, table: TableSql) -> TableReport:
        malformed = self._malformed(table)
        lines, used, people = self._one(
            "SELECT coalesce(sum(lines), 0), coalesce(sum(lines) FILTER (key NOT LIKE ' %'), 0),"
            f" count(*) FILTER (key NOT LIKE ' %') FROM {table.name}",
            table,
        )
        others = self._one(
            f"SELECT coalesce(sum(lines), 0) FROM {table.name} WHERE key NOT LIKE ' %'"
            " AND key NOT IN (SELECT id FROM people)",
            table,
        )[0]
        first, last = self._history(table)
        return TableReport(
            name=table.table.name,
            lines=int(lines) + malformed,
            malformed=malformed,
            used=int(used),
            people=int(people),
            lines_of_others=int(others),
            duplicates=None,
            first_day=first,
            last_day=last,
            source=table.source.facts,
        )

    def _with_duplicates(self, tables: Sequence[TableSql], reports: Sequence[TableReport]) -> list[TableReport]:
        with self._timed("duplicates"):
            counts = [
                count_duplicates(self.engine, table.source, report.lines, report.name)
                for table, report in zip(tables, reports, strict=True)
            ]
        return [report.model_copy(update={"duplicates": count}) for report, count in zip(reports, counts, strict=True)]

    def _history(self, table: TableSql) -> tuple[date | None, date | None]:
        if table.table.kind == "customers":
            return None, None
        row = self._one(f"SELECT min(first_day), max(last_day) FROM {table.name} WHERE key NOT LIKE ' %'", table)
        start = self.contract.window.start
        first, last = (None if day is None else start + timedelta(days=int(day)) for day in row)
        return first, last

    def _malformed(self, table: TableSql) -> int:
        """Lines the first scan rejected; later scans of the same file reject the same ones again."""
        if table.source.rejects is None:
            return 0
        rejects = quoted(table.source.rejects)
        first = f"SELECT min(scan_id) FROM {rejects}"
        return int(self._one(f"SELECT count(DISTINCT line) FROM {rejects} WHERE scan_id = ({first})", table)[0])

    def _column_reports(self, table: TableSql) -> Iterator[ColumnReport]:
        masks = self.engine.run(
            "counting", f"SELECT CAST(key AS INTEGER), lines FROM {table.name} WHERE key LIKE ' %'", table.table.name
        )
        lines = int(self._one(f"SELECT coalesce(sum(lines), 0) FROM {table.name}", table)[0])
        yield from _role_reports(table.table, [(int(mask), int(count)) for mask, count in masks], lines)
        used = lines - sum(int(count) for _, count in masks)
        yield from self._optional_reports(table, used)
        for feature in table.attributes:
            yield self._attribute_report(table, feature, used)

    def _optional_reports(self, table: TableSql, used: int) -> Iterator[ColumnReport]:
        """Missing cells of the basket, category and channel columns that some feature reads."""
        roles = {feature.derive: share_column(feature, table.table) for feature in table.features}
        present = {f"{derive}.present": column for derive, column in roles.items() if column is not None}
        if table.counts_baskets and table.table.basket is not None:
            present["basket.present"] = table.table.basket
        for name, column in present.items():
            filled = self._one(
                f"SELECT coalesce(sum({quoted(name)}), 0) FROM {table.name} WHERE key NOT LIKE ' %'", table
            )[0]
            yield ColumnReport(
                table=table.table.name,
                column=column,
                used_as=name.partition(".")[0].removesuffix("_share"),
                cells=used,
                problems=_positive({"missing": used - int(filled)}),
                bad=0,
            )

    def _attribute_report(self, table: TableSql, feature: Feature, used: int) -> ColumnReport:
        numeric = not feature.is_category and feature.kind != "date"
        names = ("present", "parsed", *(("odd",) if numeric else ()))
        sums = ", ".join(f"coalesce(sum({quoted(f'{feature.name}.{name}')}), 0)" for name in names)
        row = self._one(f"SELECT {sums} FROM {table.name} WHERE key NOT LIKE ' %'", table)
        present, parsed = int(row[0]), int(row[1])
        odd = int(row[2]) if numeric else 0
        kind = (
            "not in the categories"
            if feature.is_category
            else f"not a {'date' if feature.kind == 'date' else 'number'}"
        )
        problems = {"missing": used - present, kind: present - parsed - odd, "not finite": odd}
        return ColumnReport(
            table=table.table.name,
            column=feature.column or "",
            used_as=feature.name,
            cells=used,
            problems=_positive(problems),
            bad=present - parsed,
        )

    def _one(self, sql: str, table: TableSql) -> tuple[Any, ...]:
        return self.engine.run("counting", sql, table.table.name)[0]


def _role_reports(table: Table, masks: Sequence[tuple[int, int]], lines: int) -> Iterator[ColumnReport]:
    """One report for each of customer, time and amount, from the counts of unused lines by mask."""
    for role in ("customer", "time", "amount"):
        column: str | None = getattr(table, role)
        if column is None:
            continue
        own = [problem for problem in LINE_PROBLEMS if problem.role == role]
        bad_bits = sum(problem.bit for problem in own if problem.bad)
        yield ColumnReport(
            table=table.name,
            column=column,
            used_as=role,
            cells=lines,
            problems=_positive({p.kind: sum(n for mask, n in masks if mask & p.bit) for p in own}),
            bad=sum(count for mask, count in masks if mask & bad_bits),
        )


def _positive(counts: Mapping[str, int]) -> dict[str, int]:
    return {kind: count for kind, count in counts.items() if count}


def _refuse_other_tables(contract: Contract, sources: Mapping[str, Source]) -> None:
    known = [table.name for table in contract.tables]
    for name in sources:
        if name not in known:
            raise DataError(f"the contract has no table '{name}'", place=contract.name, fix=suggestion(name, known))
    for name in known:
        if name not in sources:
            raise DataError(f"no source for table '{name}'", place=contract.name, fix=f"give {name}=SOURCE")


def _why_empty(tables: Sequence[TableReport], columns: Sequence[ColumnReport]) -> str:
    if all(table.lines == 0 for table in tables):
        return "the sources hold no line"
    worst = max(columns, key=lambda column: sum(column.problems.values()))
    kinds = ", ".join(f"{count} {kind}" for kind, count in worst.problems.items()) or "no line of a known customer"
    return f"no line can be used ({worst.table}, column '{worst.column}': {kinds})"
