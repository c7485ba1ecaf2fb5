"""Sums without noise, for baselines on public or synthetic data: nothing is protected, nothing passes the door."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cohortium.models.catalogue import build_query
from cohortium.privacy.query import QuerySpec, bounded_total
from cohortium.privacy.table import CustomerTable
from cohortium.study.question import Question

__all__ = ["PlainSums"]


class PlainSums:
    """Tables in one process, answered exactly (trust model `unsafe-none`). No node ever does this.

    Args:
        tables: one per simulated institution.
    """

    def __init__(self, tables: Sequence[CustomerTable]) -> None:
        self._tables = tuple(tables)

    def ask(self, question: Question, width: int) -> tuple[NDArray[np.int64], int]:
        """The exact sum, and of how many tables it is."""
        header = question.header
        query = build_query(QuerySpec(header.kind, dict(header.scalars), dict(question.arrays)))
        total = np.zeros(width, dtype=np.int64)
        for table in self._tables:
            total += bounded_total(query, table)
        return total, len(self._tables)
