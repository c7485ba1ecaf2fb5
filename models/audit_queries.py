"""Sum queries of a fairness audit: people in the cells of tables of groups and outcomes, and sums of a measure in them.

Both read columns of codes that the node makes for an audit's plan and for nothing else (`client.people`): a group, an
outcome, an answer is a whole number from 0, the last one for whoever has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cohortium.privacy.query import SCALE, Contribution, QuerySpec
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError

__all__ = ["MAX_LEVELS", "Cells", "GroupCountsQuery", "GroupSumsQuery"]

MAX_LEVELS = 4096
"""Most codes of one column."""

_DEPTH = 4  # two attributes, an outcome and an answer
_MAX_TABLES = 1024
_MAX_COLUMNS = 64
_MAX_CELLS = 2**22


@dataclass(frozen=True)
class Cells:
    """The cells of several tables, each a product of a few columns of codes. A person is in one cell of every table.

    Args:
        columns: names of the columns, distinct.
        levels: how many codes each has; whatever is no code counts as the last one.
        tables: for every table, positions of its columns, the last one varying fastest.
    """

    columns: tuple[str, ...]
    levels: tuple[int, ...]
    tables: tuple[tuple[int, ...], ...]

    def shape(self, table: int) -> tuple[int, ...]:
        """Levels of a table's columns."""
        return tuple(self.levels[column] for column in self.tables[table])

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Cells of every table."""
        return tuple(math.prod(self.shape(table)) for table in range(len(self.tables)))

    @property
    def width(self) -> int:
        """Cells of all tables."""
        return sum(self.sizes)

    def places(self, people: CustomerTable) -> NDArray[np.int64]:
        """Everybody's cell in each table, int64, shape (n, tables), ascending in every row."""
        values = people.select(self.columns)
        codes = np.empty(values.shape, dtype=np.int64)
        for index, levels in enumerate(self.levels):
            one = values[:, index]
            codes[:, index] = np.where((one >= 0) & (one < levels) & (np.floor(one) == one), one, levels - 1)
        places = np.empty((len(people), len(self.tables)), dtype=np.int64)
        offset = 0
        for number, (table, size) in enumerate(zip(self.tables, self.sizes, strict=True)):
            cell = np.zeros(len(people), dtype=np.int64)
            for column in table:
                cell = cell * self.levels[column] + codes[:, column]
            places[:, number] = offset + cell
            offset += size
        return places

    def counted(self, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """An answer, shape (width,), as one array per table, of its `shape`."""
        ends = np.cumsum(self.sizes)[:-1]
        return tuple(part.reshape(self.shape(table)) for table, part in enumerate(np.split(values, ends)))

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Arrays of the wire form."""
        tables = np.full((len(self.tables), _DEPTH), -1.0)
        for row, table in zip(tables, self.tables, strict=True):
            row[: len(table)] = table
        return {"levels": np.array(self.levels, dtype=np.float64), "tables": tables}

    @classmethod
    def from_parts(cls, columns: object, arrays: Mapping[str, NDArray[np.float64]]) -> Cells:
        """Rebuild strictly; `RefusedError` for anything that `arrays` would not have written."""
        if set(arrays) != {"levels", "tables"} or not isinstance(columns, list):
            raise _malformed()
        levels, tables = arrays["levels"], arrays["tables"]
        if not all(isinstance(name, str) for name in columns) or levels.shape != (len(columns),):
            raise _malformed()
        if not 1 <= len(set(columns)) == len(columns) <= _MAX_COLUMNS or not _are_whole(levels, 1, MAX_LEVELS):
            raise _malformed()
        if tables.ndim != 2 or tables.shape[1] != _DEPTH or not 1 <= len(tables) <= _MAX_TABLES:
            raise _malformed()
        if not _are_whole(tables, -1, len(columns) - 1):
            raise _malformed()
        named = tuple(tuple(int(column) for column in row if column >= 0) for row in tables)
        cells = cls(tuple(columns), tuple(int(count) for count in levels), named)
        if any(not table or len(set(table)) != len(table) for table in named) or len(set(named)) != len(named):
            raise _malformed()
        if not np.array_equal(cells.arrays()["tables"], tables) or cells.width > _MAX_CELLS:
            raise _malformed()
        return cells


@dataclass(frozen=True)
class GroupCountsQuery:
    """People in every cell of several tables.

    A person adds one unit to one cell of each table: the squared sensitivity is the number of tables, exactly.

    Args:
        cells: of which tables.
    """

    cells: Cells
    kind = "group-counts"

    @property
    def width(self) -> int:
        return self.cells.width

    @property
    def words_per_person(self) -> int:
        return len(self.cells.tables)

    @property
    def bound_squared(self) -> int:
        return len(self.cells.tables) * SCALE**2

    def contribute(self, people: CustomerTable) -> Contribution:
        places = self.cells.places(people)
        return Contribution(places, np.full(places.shape, SCALE, dtype=np.int64))

    def spec(self) -> QuerySpec:
        return QuerySpec(self.kind, {"columns": list(self.cells.columns)}, self.cells.arrays())

    @classmethod
    def from_spec(cls, spec: QuerySpec) -> GroupCountsQuery:
        """Rebuild strictly; `RefusedError` for anything `spec` would not have written."""
        if set(spec.scalars) != {"columns"}:
            raise _malformed()
        return cls(Cells.from_parts(spec.scalars["columns"], spec.arrays))


@dataclass(frozen=True)
class GroupSumsQuery:
    """Sums of a measure over the people in every cell of several tables.

    A person adds the measure, clipped to 0..1 and truncated towards zero, to one cell of each table: the squared
    sensitivity is at most the number of tables, and exactly that for whoever is at 1.

    Args:
        cells: of which tables.
        measure: the column that is summed.
    """

    cells: Cells
    measure: str
    kind = "group-sums"

    @property
    def width(self) -> int:
        return self.cells.width

    @property
    def words_per_person(self) -> int:
        return len(self.cells.tables)

    @property
    def bound_squared(self) -> int:
        return len(self.cells.tables) * SCALE**2

    def contribute(self, people: CustomerTable) -> Contribution:
        places = self.cells.places(people)
        words = np.trunc(np.clip(people.select((self.measure,)), 0.0, 1.0) * SCALE).astype(np.int64)
        return Contribution(places, np.repeat(words, places.shape[1], axis=1))

    def spec(self) -> QuerySpec:
        scalars = {"columns": list(self.cells.columns), "measure": self.measure}
        return QuerySpec(self.kind, scalars, self.cells.arrays())

    @classmethod
    def from_spec(cls, spec: QuerySpec) -> GroupSumsQuery:
        """Rebuild strictly; `RefusedError` for anything `spec` would not have written."""
        measure = spec.scalars.get("measure")
        if set(spec.scalars) != {"columns", "measure"} or not isinstance(measure, str):
            raise _malformed()
        return cls(Cells.from_parts(spec.scalars["columns"], spec.arrays), measure)


def _are_whole(values: NDArray[np.float64], least: int, most: int) -> bool:
    within = (values >= least) & (values <= most)  # which nan is not
    return bool(within.all() and (np.floor(values) == values).all())


def _malformed() -> RefusedError:
    return RefusedError("malformed question about groups")
