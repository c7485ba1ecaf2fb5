"""Rankers: what gives every customer a score, higher for those more like the seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohortium.models.features import Rows, exact_product, on_weight_grid, rows_from_parts
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError

__all__ = ["Ranker"]

_BLOCK = 2**14  # of people whose rows are in memory


@dataclass(frozen=True)
class Ranker:
    """A linear score on rows: exact, so that a customer's score never depends on the customers beside.

    Args:
        rows: how customers become rows.
        weights: on the weight grid, shape (rows.width,).
    """

    rows: Rows
    weights: NDArray[np.float64]

    def scores(self, people: CustomerTable) -> NDArray[np.float64]:
        """Everybody's score, multiples of 2^-32, shape (n,)."""
        parts = [exact_product(self.rows.of(block), self.weights) for block in people.blocks(_BLOCK)]
        return np.concatenate(parts)

    def parts(self) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
        """Scalars and arrays of the wire form."""
        scalars, arrays = self.rows.parts()
        return scalars, {**arrays, "ranker": self.weights}

    @classmethod
    def from_parts(cls, scalars: Mapping[str, Any], arrays: Mapping[str, NDArray[np.float64]]) -> Ranker:
        """The inverse of `parts`; `RefusedError` for anything it would not have written."""
        weights = arrays.get("ranker")
        if set(scalars) != {"features"} or weights is None:
            raise RefusedError("malformed ranker")
        rows = rows_from_parts(scalars["features"], arrays)
        if weights.shape != (rows.width,) or not np.array_equal(on_weight_grid(weights), weights):
            raise RefusedError("malformed ranker")
        ranker = cls(rows, weights)
        if set(ranker.parts()[1]) != set(arrays):
            raise RefusedError("malformed ranker")
        return ranker
