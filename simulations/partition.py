"""Split one party's tables into several institutions, each with its own sources for the deployed onboarding.

Two ways: by a column (each value is an institution) or by a hash of the person's id. Every line goes, unchanged, to its
institution; a person with lines at two institutions is a person at both, as in life. Nothing is cleaned or counted
here: that is onboarding's work, done at each institution by the code that runs deployed.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cohortium.client.onboarding.cells import text
from cohortium.client.onboarding.engine import Engine, Resources, literal, quoted
from cohortium.client.onboarding.sources import OpenSource, Source, open_source, require_columns
from cohortium.study.contract import Contract, Table
from cohortium.study.errors import DataError, OutputError

__all__ = ["ByColumn", "ByHash", "Institution", "Partition", "partition"]

_NOBODY = "(none)"
_MOST_INSTITUTIONS = 1_000


@dataclass(frozen=True)
class ByColumn:
    """Every value of a column is an institution; no value is one too, labelled `(none)`.

    Args:
        table: the contract's table that holds the column. Lines of other tables follow the person to each institution
            at which the person has a line of this table.
        column: any column of the source, whether the contract reads it or not.
    """

    table: str
    column: str


@dataclass(frozen=True)
class ByHash:
    """Institutions `part-1` … of about equal size; all lines of a person go to one of them.

    Args:
        parts: how many, at least 1.
        salt: another text gives another split.
    """

    parts: int
    salt: str = ""


@dataclass(frozen=True)
class Institution:
    """One institution's share.

    Args:
        label: the column's value, or `part-1` ….
        name: the label as a folder's name: letters, digits and dashes, distinct.
        sources: the Parquet file of every table of the contract.
        lines: lines of every table.
    """

    label: str
    name: str
    sources: dict[str, Path]
    lines: dict[str, int]


@dataclass(frozen=True)
class Partition:
    """All institutions in the order of their labels, and malformed lines by table, which no institution got."""

    institutions: tuple[Institution, ...]
    malformed: dict[str, int]


def partition(contract: Contract, sources: Mapping[str, Source], how: ByColumn | ByHash, out: Path) -> Partition:
    """Write one folder with one Parquet file per table for every institution.

    Args:
        contract: names the tables and their id columns.
        sources: one source per table, as for `onboard`.
        how: what decides.
        out: folder to write into; created.

    Raises:
        DataError: a table or column that is not there, an unreadable source, or more than 1,000 institutions.
        OutputError: `out` cannot be written.
    """
    _check(contract, sources, how)
    try:
        out.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".partition-", dir=out))
    except OSError as error:
        raise OutputError(error.strerror or "cannot be written", place=out.name, fix="choose another") from error
    engine = Engine(scratch / "spill", Resources())
    try:
        return _split(_Tables(contract, engine, sources, how, scratch), how, out)
    finally:
        engine.close()
        shutil.rmtree(scratch, ignore_errors=True)


class _Tables:
    """Every source copied into the engine, all columns, with the person's id as `person`."""

    def __init__(
        self, contract: Contract, engine: Engine, sources: Mapping[str, Source], how: ByColumn | ByHash, scratch: Path
    ) -> None:
        self.contract = contract
        self.engine = engine
        self.malformed: dict[str, int] = {}
        for table in contract.tables:
            wanted = contract.columns_of(table)
            if isinstance(how, ByColumn) and how.table == table.name:
                wanted = tuple(dict.fromkeys((*wanted, how.column)))
            opened = open_source(engine, table.name, sources[table.name], wanted, scratch)
            require_columns(table.name, wanted, opened)
            self._copy(table, opened)

    def _copy(self, table: Table, opened: OpenSource) -> None:
        person = text(table.customer, opened.types[table.customer], table.missing_tokens)
        sql = f"CREATE TEMP TABLE {quoted(table.name)} AS SELECT *, {person} AS person FROM {opened.relation}"
        self.engine.run(f"reading {table.name}", sql, table.name)
        rejected = 0
        if opened.rejects is not None:
            count = f"SELECT count(DISTINCT line) FROM {quoted(opened.rejects)}"
            rejected = int(self.engine.run("counting", count, table.name)[0][0])
        self.malformed[table.name] = rejected

    def types(self, table: str) -> dict[str, str]:
        return self.engine.columns(f"SELECT * FROM {quoted(table)}", table)


def _check(contract: Contract, sources: Mapping[str, Source], how: ByColumn | ByHash) -> None:
    for table in contract.tables:
        if table.name not in sources:
            raise DataError(f"no source for table '{table.name}'", place=contract.name, fix=f"give {table.name}=SOURCE")
    if isinstance(how, ByColumn):
        contract.table(how.table)
    elif how.parts < 1:
        raise DataError("parts must be at least 1", place="partition", fix="ask for one part or more")


def _split(tables: _Tables, how: ByColumn | ByHash, out: Path) -> Partition:
    _label_lines(tables, how)
    rows = tables.engine.run("finding institutions", "SELECT DISTINCT label FROM labelled ORDER BY label", "partition")
    labels = [str(row[0]) for row in rows]
    if len(labels) > _MOST_INSTITUTIONS:
        raise DataError(
            f"would make {len(labels)} institutions", place="partition", fix="choose a column with fewer values"
        )
    institutions = tuple(
        _write(tables, how, label, name, out) for label, name in zip(labels, _safe_names(labels), strict=True)
    )
    return Partition(institutions, tables.malformed)


def _label_lines(tables: _Tables, how: ByColumn | ByHash) -> None:
    """CREATE TABLE labelled: (person, label), each pair once; a person of NULL stands for lines without an id."""
    if isinstance(how, ByColumn):
        kinds = tables.types(how.table)
        pairs = f"SELECT person, {_label(how, kinds)} AS label FROM {quoted(how.table)}"
    else:
        everybody = " UNION ALL ".join(f"SELECT person FROM {quoted(table.name)}" for table in tables.contract.tables)
        hashed = f"md5_number(coalesce(person, '') || {literal(how.salt)}) % {how.parts}"
        width = len(str(how.parts))
        pairs = (
            f"SELECT person, 'part-' || lpad(CAST({hashed} + 1 AS VARCHAR), {width}, '0') AS label FROM ({everybody})"
        )
    tables.engine.run("labelling", f"CREATE TEMP TABLE labelled AS SELECT DISTINCT * FROM ({pairs})", "partition")


def _label(how: ByColumn, kinds: Mapping[str, str]) -> str:
    return f"coalesce({text(how.column, kinds[how.column])}, {literal(_NOBODY)})"


def _write(tables: _Tables, how: ByColumn | ByHash, label: str, name: str, out: Path) -> Institution:
    folder = out / name
    folder.mkdir(exist_ok=True)
    sources, lines = {}, {}
    for table in tables.contract.tables:
        if isinstance(how, ByColumn) and table.name == how.table:
            condition = f"{_label(how, tables.types(table.name))} = {literal(label)}"
        else:
            people = f"SELECT person FROM labelled WHERE label = {literal(label)}"
            condition = f"coalesce(person, '') IN (SELECT coalesce(person, '') FROM ({people}))"
        file = folder / f"{table.name}.parquet"
        sql = (
            f"COPY (SELECT * EXCLUDE (person) FROM {quoted(table.name)} WHERE {condition})"
            f" TO {literal(str(file))} (FORMAT parquet, COMPRESSION zstd)"
        )
        lines[table.name] = int(tables.engine.run("writing", sql, table.name)[0][0])
        sources[table.name] = file
    return Institution(label, name, sources, lines)


def _safe_names(labels: list[str]) -> list[str]:
    """Labels as folder names: what is neither letter nor digit becomes a dash, clashes get a number."""
    names: list[str] = []
    for label in labels:
        stem = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:48] or "none"
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names
