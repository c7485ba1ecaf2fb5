"""What a destination must hold now, what it held before, and the rows that lead from one to the other.

A destination is thought of as a set of identifiers per column. Rows are therefore compared as they were written, not
recomputed: a changed e-mail address removes the old one. A removal row holds only identifiers that no present member
has, so that a shared telephone number does not remove the person who stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pyarrow as pa

from cohortium.client.audience.activation import Activation, allowed_flags
from cohortium.client.audience.lists import Contacts, load_contacts
from cohortium.client.audience.normalise import ID, Column, PhoneRules, normaliser
from cohortium.client.audience.work import append, stream
from cohortium.client.onboarding.engine import Engine

__all__ = [
    "Identified",
    "additions",
    "identify",
    "keep_held",
    "load_held",
    "removals",
    "snapshot_rows",
    "snapshot_schema",
]


@dataclass
class Identified:
    """How members became rows. Exact and local.

    Args:
        members: with at least one identifier.
        unmatched: without a line in the contacts file.
        not_allowed: who may no longer be activated.
        unusable: by column, cells that are empty or no such identifier.
    """

    members: int = 0
    unmatched: int = 0
    not_allowed: int = 0
    unusable: dict[str, int] = field(default_factory=dict)


_ROWS_AT_ONCE = 1_000_000
"""Rows that are joined at a time."""


def snapshot_schema(width: int) -> pa.Schema:
    """Columns of the file that says what a destination holds."""
    cells = [pa.field(f"c{i}", pa.string()) for i in range(width)]
    return pa.schema([pa.field("id", pa.string()), pa.field("current", pa.bool_()), *cells])


def load_held(engine: Engine, width: int, relation: str | None) -> None:
    """Make the tables `held(id, current, c0, ...)`, from a snapshot if any, and `wanted(id, c0, ...)`, empty."""
    cells = _cells(width)
    typed = ", ".join(f"{cell} VARCHAR" for cell in cells)
    engine.run("preparing", f"CREATE TABLE held (id VARCHAR, current BOOLEAN, {typed})", "export")
    engine.run("preparing", f"CREATE TABLE wanted (id VARCHAR, {typed})", "export")
    if relation is not None:
        engine.run("reading", f"INSERT INTO held SELECT id, current, {', '.join(cells)} FROM {relation}", "export")


def identify(
    engine: Engine,
    members: str,
    columns: Sequence[Column],
    phones: PhoneRules | None,
    contacts: Contacts | None,
    activation: Activation,
) -> Identified:
    """Fill the table `wanted` with the identifiers of the members of a relation.

    Args:
        engine: after `load_held`.
        members: relation with `id`.
        columns: of the export.
        phones: for `e164`.
        contacts: where sources other than `id` are; needed by them.
        activation: asked once more.

    Raises:
        DataError: contacts that cannot be read as they should be; `e164` without rules.
    """
    sources = tuple(dict.fromkeys(column.source for column in columns if column.source != ID))
    queries = [f"SELECT id, TRUE AS found FROM {members}"]
    if contacts is not None and sources:
        load_contacts(engine, contacts, sources)
        queries = _joined(engine, members, len(sources))
    steps = [normaliser(column, phones) for column in columns]
    places = [0 if column.source == ID else 2 + sources.index(column.source) for column in columns]
    counts = Identified(unusable={column.name: 0 for column in columns})
    for batch in chain.from_iterable(stream(engine, query, "export") for query in queries):
        flags = allowed_flags(activation, batch.column(0).to_pylist())
        counts.not_allowed += int(np.count_nonzero(~flags))
        allowed = batch.filter(pa.array(flags))
        found = allowed.filter(allowed.column(1))
        counts.unmatched += allowed.num_rows - found.num_rows
        cells = [
            [None if value is None else step(value) for value in found.column(place).to_pylist()]
            for step, place in zip(steps, places, strict=True)
        ]
        _keep(engine, found.column(0), cells, columns, counts)
    return counts


def keep_held(engine: Engine, width: int, members: str, activation: Activation) -> Identified:
    """Fill the table `wanted` with what the destination holds of those who are still members and may be activated.

    As it was written: nobody and nothing is added.
    """
    cells, counts = ", ".join(_cells(width)), Identified()
    query = f"SELECT id, {cells} FROM held SEMI JOIN {members} m USING (id) WHERE current"
    for batch in stream(engine, query, "export"):
        flags = allowed_flags(activation, batch.column(0).to_pylist())
        counts.not_allowed += int(np.count_nonzero(~flags))
        kept = batch.filter(pa.array(flags))
        counts.members += kept.num_rows
        append(engine, "wanted", {name: kept.column(name) for name in kept.schema.names}, "export")
    return counts


def additions(engine: Engine, width: int) -> Iterator[pa.RecordBatch]:
    """Different rows that the destination must have and does not, in their own order: none follows the score."""
    cells = ", ".join(_cells(width))
    _make(engine, "come", width, "SELECT {0} FROM {wanted} EXCEPT SELECT {0} FROM {held} WHERE current", cells)
    return stream(engine, f"SELECT {cells} FROM come ORDER BY {cells}", "export")


def removals(engine: Engine, width: int) -> Iterator[pa.RecordBatch]:
    """Different rows of identifiers that the destination has and must not have, in their own order."""
    cells = ", ".join(_cells(width))
    _make(engine, "gone", width, "SELECT {0} FROM {held} WHERE current EXCEPT SELECT {0} FROM {wanted}", cells)
    for cell in _cells(width):
        blanked = f"gone.* REPLACE (CASE WHEN kept.{cell} IS NULL THEN gone.{cell} END AS {cell})"
        kept = f"(SELECT DISTINCT {cell} FROM {{gone}} SEMI JOIN {{wanted}} USING ({cell})) kept"
        _make(engine, "less", width, f"SELECT {blanked} FROM {{gone}} gone LEFT JOIN {kept} USING ({{0}})", cell)
        engine.run("comparing", "CREATE OR REPLACE TABLE gone AS SELECT * FROM less", "export")
    some = " OR ".join(f"{cell} IS NOT NULL" for cell in _cells(width))
    _make(engine, "less", width, f"SELECT DISTINCT {{0}} FROM {{gone}} WHERE {some}", cells)
    return stream(engine, f"SELECT {cells} FROM less ORDER BY {cells}", "export")


def snapshot_rows(engine: Engine, width: int) -> Iterator[pa.RecordBatch]:
    """What the destination will hold, and without identifiers those whom it ever held; by id."""
    cells = ", ".join(_cells(width))
    nothing = ", ".join(f"NULL AS {cell}" for cell in _cells(width))
    _make(engine, "former", 0, "SELECT {0} FROM {held} ANTI JOIN {wanted} USING ({0})", "id")
    present = f"SELECT id, TRUE AS current, {cells} FROM wanted"
    gone = f"SELECT id, FALSE AS current, {nothing} FROM former"
    return stream(engine, f"SELECT * FROM ({present} UNION ALL {gone}) ORDER BY id", "export")


def _joined(engine: Engine, members: str, sources: int) -> list[str]:
    """Queries that together give every member, whether there is a line of contacts, and its cells."""
    cells = ", ".join(f"s{i}" for i in range(sources))
    parts = _parts(engine, members, "contacts")
    return [
        f"SELECT m.id, c.id IS NOT NULL AS found, {cells} FROM {_part(members, 'id', part, parts)} m"
        f" LEFT JOIN {_part('contacts', 'id', part, parts)} c ON m.id = c.id"
        for part in range(parts)
    ]


def _keep(
    engine: Engine, ids: pa.Array, cells: list[list[str | None]], columns: Sequence[Column], counts: Identified
) -> None:
    for column, values in zip(columns, cells, strict=True):
        counts.unusable[column.name] += values.count(None)
    some = np.array([any(cell is not None for cell in row) for row in zip(*cells, strict=True)], dtype=np.bool_)
    counts.members += int(np.count_nonzero(some))
    arrays = {f"c{i}": pa.array(values, type=pa.string()) for i, values in enumerate(cells)}
    rows = pa.RecordBatch.from_pydict({"id": ids, **arrays}).filter(pa.array(some))
    append(engine, "wanted", {name: rows.column(name) for name in rows.schema.names}, "export")


def _make(engine: Engine, table: str, width: int, sql: str, key: str) -> None:
    """Make a table of text from a statement on tables, one part after another: a join of all of them may not fit.

    Args:
        engine: where.
        table: to make.
        width: its columns are c0, c1, ...; `id` alone when 0.
        sql: with {0} for the key, and {held}, {wanted}, {gone} for the part of a table.
        key: columns by whose hash the tables are cut, so that equal keys meet.
    """
    typed = ", ".join(f"{cell} VARCHAR" for cell in _cells(width) or ["id"])
    engine.run("preparing", f"CREATE OR REPLACE TABLE {table} ({typed})", "export")
    parts = _parts(engine, "held", "wanted")
    for part in range(parts):
        cut = {name: _part(name, key, part, parts) for name in ("held", "wanted", "gone")}
        engine.run("comparing", f"INSERT INTO {table} {sql.format(key, **cut)}", "export")


def _part(table: str, key: str, part: int, parts: int) -> str:
    return f"(SELECT * FROM {table} WHERE hash({key}) % {parts} = {part})"


def _parts(engine: Engine, *relations: str) -> int:
    rows = sum(int(engine.run("counting", f"SELECT count(*) FROM {name}", "export")[0][0]) for name in relations)
    return max(-(-rows // _ROWS_AT_ONCE), 1)


def _cells(width: int) -> list[str]:
    return [f"c{i}" for i in range(width)]
