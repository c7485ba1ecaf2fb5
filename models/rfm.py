"""RFM: quintile edges from released marginals, scores, and the usual named segments.

Recency is the number of days since the last purchase before the window's end: fewer is better, so its score is
reversed. Frequency and monetary value score upwards. A score is 1 to 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from cohortium.models.marginals import Marginal
from cohortium.privacy.query import SCALE, Contribution, QuerySpec
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError

__all__ = ["RFM_NAMES", "QuintileEdges", "RfmGridQuery", "quintile_edges", "rfm_names"]

_GRID: Mapping[str, tuple[range, range]] = MappingProxyType(
    {
        "Champions": (range(5, 6), range(4, 6)),
        "Loyal": (range(3, 5), range(4, 6)),
        "Potential loyalists": (range(4, 6), range(2, 4)),
        "New": (range(5, 6), range(1, 2)),
        "Promising": (range(4, 5), range(1, 2)),
        "Need attention": (range(3, 4), range(3, 4)),
        "About to sleep": (range(3, 4), range(1, 3)),
        "Cannot lose them": (range(1, 3), range(5, 6)),
        "At risk": (range(1, 3), range(3, 5)),
        "Hibernating": (range(1, 3), range(1, 3)),
    }
)

RFM_NAMES: Mapping[tuple[int, int], str] = MappingProxyType(
    {(r, f): name for name, (rs, fs) in _GRID.items() for r in rs for f in fs}
)
"""The usual name of every pair (recency score, frequency score)."""


@dataclass(frozen=True)
class QuintileEdges:
    """The four values that cut a feature into quintiles.

    Args:
        feature: its name.
        edges: four ascending values in the contract's unit; equal neighbours when ties merge quintiles.
        reversed: whether low values score high (recency).
    """

    feature: str
    edges: tuple[float, float, float, float]
    reversed: bool = False

    def score(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Scores 1 to 5, shape of `values`: one more than the number of edges below the value, or reversed."""
        below = np.searchsorted(np.array(self.edges), values, side="left")
        return np.asarray(5 - below if self.reversed else 1 + below, dtype=np.int64)

    @property
    def scores(self) -> frozenset[int]:
        """The scores that can occur: between equal edges lies nobody."""
        counted = {1, 5, *(index + 1 for index in range(1, 4) if self.edges[index - 1] < self.edges[index])}
        return frozenset(6 - score for score in counted) if self.reversed else frozenset(counted)

    @property
    def bands(self) -> tuple[str, ...]:
        """The scores that can occur, each named with those that ties merged into it, such as '1', '2', '3-4', '5'."""
        names, first = [], 1
        for band in range(1, 6):
            if band < 5 and self.edges[band - 1] == (self.edges[band] if band < 4 else None):
                continue
            names.append(str(band) if first == band else f"{first}-{band}")
            first = band + 1
        if self.reversed:
            flipped = [tuple(6 - int(part) for part in name.split("-")) for name in reversed(names)]
            return tuple(str(b[0]) if len(b) == 1 else f"{b[1]}-{b[0]}" for b in flipped)
        return tuple(names)


def quintile_edges(marginal: Marginal, *, is_recency: bool = False) -> QuintileEdges:
    """Quintile edges of a released marginal. Post-processing: free of charge."""
    first, second, third, fourth = (marginal.quantile(q) for q in (0.2, 0.4, 0.6, 0.8))
    return QuintileEdges(marginal.axis.name, (first, second, third, fourth), is_recency)


def rfm_names(recency: NDArray[np.int64], frequency: NDArray[np.int64]) -> list[str]:
    """The usual RFM segment of each pair of scores."""
    return [RFM_NAMES[(int(r), int(f))] for r, f in zip(recency, frequency, strict=True)]


@dataclass(frozen=True)
class RfmGridQuery:
    """People in each of the 25 cells of recency score by frequency score.

    A person adds one unit to one cell: the sensitivity is one unit, exactly. Cell (r, f) stands at 5 (r-1) + f - 1.
    """

    recency: QuintileEdges
    frequency: QuintileEdges
    kind = "rfm-grid"
    width = 25
    words_per_person = 1
    bound_squared = SCALE**2

    def contribute(self, people: CustomerTable) -> Contribution:
        values = people.select((self.recency.feature, self.frequency.feature))
        cell = 5 * (self.recency.score(values[:, 0]) - 1) + self.frequency.score(values[:, 1]) - 1
        return Contribution(cell[:, np.newaxis], np.full((len(people), 1), SCALE, dtype=np.int64))

    def spec(self) -> QuerySpec:
        edges = np.array([self.recency.edges, self.frequency.edges], dtype=np.float64)
        return QuerySpec(self.kind, {"features": [self.recency.feature, self.frequency.feature]}, {"edges": edges})

    @classmethod
    def from_spec(cls, spec: QuerySpec) -> RfmGridQuery:
        """Rebuild strictly; `RefusedError` for anything `spec` would not have written."""
        names, edges = spec.scalars.get("features"), spec.arrays.get("edges")
        if set(spec.scalars) != {"features"} or set(spec.arrays) != {"edges"} or edges is None:
            raise RefusedError("malformed RFM question")
        if not isinstance(names, list) or len(names) != 2 or not all(isinstance(name, str) for name in names):
            raise RefusedError("malformed RFM question")
        if edges.shape != (2, 4) or not np.isfinite(edges).all() or (edges[:, 1:] < edges[:, :-1]).any():
            raise RefusedError("malformed RFM question")
        recency, frequency = (tuple(float(edge) for edge in row) for row in edges)
        return cls(
            QuintileEdges(names[0], recency, reversed=True),  # type: ignore[arg-type] # four by the shape check
            QuintileEdges(names[1], frequency),  # type: ignore[arg-type] # four by the shape check
        )
