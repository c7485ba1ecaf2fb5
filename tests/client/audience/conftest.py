"""Made-up scores, contacts and a store with a clock that tests can set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine

from cohortium.client.audience import (
    SCORES_COLUMNS,
    SCORES_SCHEMA,
    Audience,
    AudienceStore,
    ChosenAudience,
    EverybodyAllowed,
    Level,
    ScoresOrigin,
    create,
)
from cohortium.privacy.ledger import open_store

MODEL, OTHER_MODEL, PLAN = ("sha256:" + digit * 64 for digit in "abc")
ORIGIN = ScoresOrigin("north", "sha256:" + "d" * 64)
LABELS = {
    "schema": SCORES_SCHEMA,
    "model": MODEL,
    "plan": PLAN,
    "expires": "2026-12-31",
    "node": ORIGIN.node,
    "customers": ORIGIN.customers,
}
BROAD = Level("broad", 0.5, 0.1)
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass
class Clock:
    """What time it is."""

    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def pass_days(self, days: int) -> None:
        self.now += timedelta(days=days)


@dataclass
class House:
    """An institution's store and the folder in which its operator works."""

    store: AudienceStore
    clock: Clock
    folder: Path
    engine: Engine

    def scores(self, scores: Mapping[str, float], **options: Any) -> Path:
        """The institution's scores file; see `write_scores`."""
        return write_scores(self.folder / "scores.parquet", scores, **options)

    def csv(self, name: str, **columns: Sequence[str | None]) -> Path:
        """A CSV file of text."""
        path = self.folder / name
        pacsv.write_csv(pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}), path)
        return path

    def members(self, audience: Audience) -> list[str]:
        """The ids that the store keeps as the audience's members."""
        return pq.read_table(self.store.members_file(audience.id, audience.revision))["id"].to_pylist()

    def create(self, scores: Mapping[str, float] | Path | None = None, **options: Any) -> ChosenAudience:
        """An audience of those with a score of at least one half."""
        path = scores if isinstance(scores, Path) else self.scores(scores if scores is not None else people(100))
        level, name = options.pop("level", BROAD), options.pop("name", "spring campaign")
        defaults = {"min_cell": 50, "activation": EverybodyAllowed()}
        return create(self.store, path, level, name, **defaults | options)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    engine = open_store(tmp_path / "node.sqlite")
    clock = Clock()
    yield House(AudienceStore(engine, tmp_path / "audiences", clock, origin=lambda: ORIGIN), clock, tmp_path, engine)
    engine.dispose()


def people(members: int, others: int = 20, first: int = 0) -> dict[str, float]:
    """Scores by id: so many at or above one half, then so many below."""
    high = {f"c{first + i:05d}": 0.5 + 0.4 * i / max(members, 1) for i in range(members)}
    return high | {f"x{i:05d}": 0.1 for i in range(others)}


def write_scores(
    path: Path,
    scores: Mapping[str, float],
    seeds: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    schema: pa.Schema = SCORES_COLUMNS,
) -> Path:
    """A scores file in a shuffled order."""
    ids = np.array(list(scores), dtype=object)
    np.random.default_rng(0).shuffle(ids)
    columns = {
        "id": ids.tolist(),
        "score": [scores[i] for i in ids],
        "reason_1": ["visits often"] * len(ids),
        "reason_2": [None] * len(ids),
        "reason_3": [None] * len(ids),
        "seed": [i in set(seeds) for i in ids],
    }
    table = pa.table({name: columns[name] for name in SCORES_COLUMNS.names}, schema=SCORES_COLUMNS)
    table = table.cast(schema) if schema is not SCORES_COLUMNS else table
    pq.write_table(table.replace_schema_metadata(LABELS | dict(labels or {})), path)
    return path


def identifiers(folder: Path, held: list[set[str]]) -> None:
    """Apply an exported folder as a destination does: per column a set of identifiers; removals first."""
    for operation in ("remove", "add"):
        for row in rows_of(folder, operation):
            for column, value in zip(held, row, strict=True):
                if value is not None:
                    column.discard(value) if operation == "remove" else column.add(value)


def rows_of(folder: Path, operation: str) -> list[tuple[str | None, ...]]:
    """The rows of an exported folder's CSV files, in order."""
    rows: list[tuple[str | None, ...]] = []
    options = pacsv.ConvertOptions(strings_can_be_null=True, null_values=[""])
    for file in sorted(folder.glob(f"{operation}-*.csv")):
        names = pacsv.read_csv(file).column_names
        options.column_types = {name: pa.string() for name in names}
        table = pacsv.read_csv(file, convert_options=options)
        rows += [tuple(row.values()) for row in table.to_pylist()]
    return rows


@pytest.fixture
def rows() -> Any:
    """`rows_of`."""
    return rows_of


@pytest.fixture
def applied() -> Any:
    """`identifiers`."""
    return identifiers
