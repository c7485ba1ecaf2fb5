"""Scores and their public bins: what every question about rankers shares, and its strict wire form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from cohortium.models.ranker import Ranker
from cohortium.models.rows import SEED
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError

__all__ = [
    "MAX_BINS",
    "MAX_RANKERS",
    "ScoreBins",
    "is_seed",
    "scales_from_spec",
    "scales_to_spec",
    "standard_edges",
    "wanted_shares",
]

MAX_BINS = 256
MAX_RANKERS = 8

_TOP = 0.125  # of the people: they get half of the bins
_FARTHEST = 6.0  # standard deviations from the top eighth to the highest cut-off
_GRID, _LARGEST, _LEAST_STD = 2.0**-32, 2.0**20, 2.0**-20  # of scores


@dataclass(frozen=True)
class ScoreBins:
    """A ranker and the public bins of its scores.

    Args:
        ranker: what scores.
        edges: ascending cut-offs, finite, shape (bins - 1,). A score belongs to the bin above every edge that it
            reaches (score >= edge); the outer bins are open.
    """

    ranker: Ranker
    edges: NDArray[np.float64]

    @property
    def bins(self) -> int:
        """Number of bins."""
        return len(self.edges) + 1

    def places(self, people: CustomerTable) -> NDArray[np.int64]:
        """Each person's bin, counted from the highest."""
        above = np.searchsorted(self.edges, self.ranker.scores(people), side="right")
        return np.asarray(len(self.edges) - above, dtype=np.int64)


def is_seed(people: CustomerTable) -> NDArray[np.bool_]:
    """Who is a seed."""
    return np.asarray(people.select((SEED,))[:, 0] > 0.5)


def wanted_shares(bins: int) -> NDArray[np.float64]:
    """Shares of people that the cut-offs should reach, ascending: half of the bins for the top eighth of people."""
    tail = bins // 2
    top = np.arange(1, tail + 1) / tail * _TOP
    return np.concatenate([top, np.linspace(_TOP, 1.0, bins - tail + 1)[1:-1]])


def standard_edges(mean: float, std: float, bins: int = MAX_BINS) -> NDArray[np.float64]:
    """Cut-offs for scores of which only the mean and the standard deviation are known, such as from released moments.

    Below the top eighth they stand at the quantiles of a normal distribution; above it their steps grow evenly, up to
    six standard deviations further, as the scores of real rankers are skewed and their tails are heavy.

    Args:
        mean, std: of everybody's scores, estimated; brought within what scores can be.
        bins: 2 to MAX_BINS.

    Returns:
        bins - 1 distinct multiples of 2^-32, ascending.
    """
    if not math.isfinite(mean) or not math.isfinite(std) or not 2 <= bins <= MAX_BINS:
        raise ValueError("edges need a finite mean and standard deviation and 2 to 256 bins")
    tail, z = bins // 2, -ndtri(wanted_shares(bins))
    z[:tail] = z[tail - 1] + np.geomspace(1.0 + _FARTHEST, 1.0, tail) - 1.0
    centre, unit = min(max(mean, -_LARGEST), _LARGEST), min(max(std, _LEAST_STD), _LARGEST)
    return np.asarray(np.rint((centre + unit * z[::-1]) / _GRID) * _GRID)


def scales_to_spec(scales: Sequence[ScoreBins]) -> tuple[list[dict[str, Any]], dict[str, NDArray[np.float64]]]:
    """Rankers and bins as they travel: the rankers' scalars, and all arrays."""
    rankers, arrays = [], {}
    for index, scale in enumerate(scales):
        scalars, parts = scale.ranker.parts()
        rankers.append(scalars)
        arrays[f"edges{index}"] = scale.edges
        arrays |= {f"ranker{index}.{name}": values for name, values in parts.items()}
    return rankers, arrays


def scales_from_spec(rankers: object, arrays: Mapping[str, NDArray[np.float64]]) -> tuple[ScoreBins, ...]:
    """The inverse of `scales_to_spec`; `RefusedError` when malformed or when an array is left over."""
    if not isinstance(rankers, list) or not 1 <= len(rankers) <= MAX_RANKERS:
        raise RefusedError("malformed score question")
    left, scales = dict(arrays), []
    for index, scalars in enumerate(rankers):
        edges, prefix = left.pop(f"edges{index}", None), f"ranker{index}."
        names = [name for name in left if name.startswith(prefix)]
        parts = {name.removeprefix(prefix): left.pop(name) for name in names}
        if not isinstance(scalars, dict):
            raise RefusedError("malformed score question")
        scales.append(ScoreBins(Ranker.from_parts(scalars, parts), _checked_edges(edges)))
    if left:
        raise RefusedError("malformed score question")
    return tuple(scales)


def _checked_edges(edges: NDArray[np.float64] | None) -> NDArray[np.float64]:
    if edges is None or edges.ndim != 1 or not 1 <= len(edges) < MAX_BINS:
        raise RefusedError("malformed score question")
    if not np.isfinite(edges).all() or (edges[1:] <= edges[:-1]).any():
        raise RefusedError("malformed score question")
    return edges
