"""One institution's customer table in memory: one bounded row per person."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohortium.study.errors import Defect

__all__ = ["CustomerTable"]


@dataclass(frozen=True)
class CustomerTable:
    """One institution's people, one row each: the unit of privacy is a row of this table.

    Args:
        columns: feature names, distinct, in the contract's order.
        values: float64, shape (n, len(columns)): every value finite; a category is its index in the contract's list.
        keys: n distinct keys of the people (any NumPy array); they stay at the institution.

    Raises:
        Defect: shapes disagree, a key repeats or a value is not finite. Onboarding guarantees all three, so this is
            never the caller's mistake.
    """

    columns: tuple[str, ...]
    values: NDArray[np.float64]
    keys: NDArray[np.generic]

    def __post_init__(self) -> None:
        if len(set(self.columns)) != len(self.columns):
            raise Defect("customer table: a column repeats")
        if self.values.dtype != np.float64 or self.values.shape != (len(self.keys), len(self.columns)):
            raise Defect("customer table: values must be float64 of shape (people, columns)")
        if not np.isfinite(self.values).all():
            raise Defect("customer table: a value is not finite")
        if len(np.unique(self.keys)) != len(self.keys):
            raise Defect("customer table: a person has more than one row")

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, columns: tuple[str, ...]) -> NDArray[np.float64]:
        """The named columns as a matrix of shape (n, len(columns)); `Defect` when one is missing."""
        missing = [name for name in columns if name not in self.columns]
        if missing:
            raise Defect(f"customer table: no column {missing[0]}")
        if columns == self.columns:
            return self.values
        return self.values[:, [self.columns.index(name) for name in columns]]

    def with_column(self, name: str, values: NDArray[np.float64]) -> CustomerTable:
        """The table with one more column, shape (n,)."""
        return CustomerTable((*self.columns, name), np.column_stack([self.values, values]), self.keys)

    def take(self, rows: NDArray[np.bool_] | slice) -> CustomerTable:
        """The people a mask or slice names, as a table of their own."""
        part = object.__new__(CustomerTable)
        object.__setattr__(part, "columns", self.columns)
        object.__setattr__(part, "values", self.values[rows])
        object.__setattr__(part, "keys", self.keys[rows])
        return part

    def blocks(self, rows: int) -> Iterator[CustomerTable]:
        """The table in consecutive pieces of at most `rows` people: keeps the memory of an answer flat.

        A table without people is one empty piece, so that a question that cannot be asked of this table fails whether
        or not anybody is in it.
        """
        for start in range(0, max(len(self), 1), rows):
            yield self.take(slice(start, start + rows))
