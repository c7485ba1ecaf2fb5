"""Seed optimisation: which of the listed customers to learn from, decided row by row.

A *survey* of the listed customers is released first, with noise and at its price: how many stand in each public cell,
and the sum of their rows. From the released numbers alone follows a *rule*: a listed customer who looks like the rest
is left out, cells that would crowd out the others are thinned, and a draw by a keyed hash of the id brings the list to
a size. The chosen are then asked about in a second sum, with its own charge.

**Why the bound of the second sum holds.** Whether a person is kept is a function of that person's own row and id, of
released (noised) numbers and of a key that depends on nobody. It does not depend on how many others are listed, on
their rows, or on a rank among them. So adding or removing a person changes that person's membership and no other's,
and the second sum moves by one person's bounded contribution; the rule itself is post-processing of a paid release.
A size is therefore met in expectation only: keeping *exactly* m would make each membership depend on all the others.

What it is good for (benchmarks/seeds.py measures it): a list that must not be used whole and whose people are not all
valued customers. Of a clean list a random part is as good as a chosen one or a little better, and what two stages win
over one is the survey's: it saw everybody. Survey and second sum together (`pooled_direction`, free) rank better than
a random part alone where a quarter of the list is used, and hardly so where half of it is.
Where nothing caps the seed, nothing should be thinned: the noise of a sum does not grow with the number of people in
it, and a whole list ranked better than any part of it, contaminated or not. `SeedChoice.advice` says so.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from cohortium.models.assignment import nearest_centre, on_grid
from cohortium.models.scaler import Scaler, scaler_from_array, scaler_to_array
from cohortium.models.seed_doctor import LEAST_SEEDS
from cohortium.privacy.query import SCALE, Contribution, QuerySpec, quantise, unit_scale
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import CohortiumError, Defect, RefusedError

__all__ = [
    "SeedChoice",
    "SeedRule",
    "SeedSurvey",
    "SeedSurveyQuery",
    "choose_seeds",
    "pooled_direction",
    "read_survey",
    "seed_direction",
]

_MAX_DIMENSIONS = 512
_MAX_CELLS = 256
_RIDGE = 1.0 / 200.0  # of the trace
_NOISE_RIDGE = 3.0
_LEAST_KEPT = 0.05


@dataclass(frozen=True)
class SeedSurveyQuery:
    """The listed customers' sum of rows, and how many of them stand in each cell, jointly.

    A listed person adds `count_weight` units to the nearest cell and the residual u = (z - centre) / radius, clipped to
    |u| <= 1 and quantised, to the sum; others add zeros. The squared sensitivity is SCALE^2 + count_weight^2, exactly.
    The words are the counts, then the sum.

    Args:
        scaler: from the contract's units to the box; d features, 512 at most.
        seed: column that is 1 for the listed and 0 for others (above one half counts as 1); no feature.
        centre: released mean of all people in the box, shape (d,).
        radius: clipping radius around it, positive.
        cells: public or released centres in the box, shape (k, d), k at most 256; one cell counts them together.
        count_weight: of a count, above 0 and at most 1.
    """

    scaler: Scaler
    seed: str
    centre: NDArray[np.float64]
    radius: float
    cells: NDArray[np.float64]
    count_weight: float
    kind = "seed-survey"

    @property
    def width(self) -> int:
        return len(self.cells) + len(self.centre)

    @property
    def words_per_person(self) -> int:
        return 1 + len(self.centre)

    @cached_property
    def count_unit(self) -> int:
        """Integer units of one count."""
        return unit_scale(self.count_weight)

    @property
    def bound_squared(self) -> int:
        return SCALE**2 + self.count_unit**2

    def contribute(self, people: CustomerTable) -> Contribution:
        points = self.scaler.transform(people.select(self.scaler.features))
        listed = people.select((self.seed,)) > 0.5
        values = np.empty((len(people), self.words_per_person), dtype=np.int64)
        values[:, 0] = self.count_unit
        values[:, 1:] = quantise((points - self.centre) / self.radius)
        columns = np.empty_like(values)
        columns[:, 0] = nearest_centre(points, self.cells)
        columns[:, 1:] = len(self.cells) + np.arange(len(self.centre))
        return Contribution(columns, np.where(listed, values, 0))

    def spec(self) -> QuerySpec:
        arrays = {"scaler": scaler_to_array(self.scaler), "centre": self.centre, "cells": self.cells}
        arrays["limits"] = np.array([self.radius, self.count_weight])
        return QuerySpec(self.kind, {"features": list(self.scaler.features), "seed": self.seed}, arrays)

    @classmethod
    def from_spec(cls, spec: QuerySpec) -> SeedSurveyQuery:
        """Rebuild strictly; `RefusedError` for anything `spec` would not have written."""
        if set(spec.scalars) != {"features", "seed"} or set(spec.arrays) != {"scaler", "centre", "cells", "limits"}:
            raise RefusedError("malformed seed survey")
        scaler = scaler_from_array(spec.scalars["features"], spec.arrays["scaler"])
        seed, centre, cells, limits = spec.scalars["seed"], *(spec.arrays[n] for n in ("centre", "cells", "limits"))
        d = len(scaler.features)
        if not isinstance(seed, str) or seed in scaler.features or d > _MAX_DIMENSIONS or centre.shape != (d,):
            raise RefusedError("malformed seed survey")
        if cells.ndim != 2 or cells.shape[1] != d or not 1 <= len(cells) <= _MAX_CELLS or limits.shape != (2,):
            raise RefusedError("malformed seed survey")
        if not (np.abs(centre) <= 1).all() or not (np.abs(cells) <= 2).all():
            raise RefusedError("malformed seed survey")
        radius, count_weight = (float(limit) for limit in limits)
        if not 1e-6 <= radius <= 2 * math.sqrt(d) or not 2.0**-10 <= count_weight <= 1:
            raise RefusedError("malformed seed survey")
        return cls(scaler, seed, centre.copy(), radius, cells.copy(), count_weight)


@dataclass(frozen=True)
class SeedSurvey:
    """A decoded noisy survey.

    Args:
        counts: noisy listed people per cell, may be negative, shape (k,).
        total: noisy sum of the listed people's rows in units of the radius, shape (d,).
        count_std, total_std: noise standard deviation of one count and of one coordinate of the sum.
    """

    counts: NDArray[np.float64]
    total: NDArray[np.float64]
    count_std: float
    total_std: float

    @property
    def people(self) -> float:
        """Noisy number of listed people."""
        return float(self.counts.sum())


def read_survey(query: SeedSurveyQuery, values: NDArray[np.float64], std: float) -> SeedSurvey:
    """Undo the weights of a noisy answer of shape (query.width,), in units of 1.0, with that noise in every word."""
    k, weight = len(query.cells), query.count_unit / SCALE
    return SeedSurvey(values[:k] / weight, values[k:].copy(), std / weight, std)


def seed_direction(survey: SeedSurvey, covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The direction that tells the surveyed from all people: (M + lambda I)^-1 total / people. Post-processing.

    Fisher's discriminant with the released second moments M of all people around the centre, in units of the radius
    squared (their noise's negative eigenvalues cut), and a ridge of trace(M) / 200 + 3 s^2, s the noise of the surveyed
    people's mean: coordinates that drown in noise are shrunk.

    Args:
        survey: what was released; fewer than 100 people count as 100.
        covariance: M, symmetric, shape (d, d).
    """
    people = max(survey.people, float(LEAST_SEEDS))
    values, vectors = _spectrum(covariance)
    mean = survey.total / people
    return np.asarray(vectors @ ((vectors.T @ mean) / (values + _ridge(values, survey.total_std / people))))


def pooled_direction(first: SeedSurvey, second: SeedSurvey, covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The direction that both surveys give together: each is already shrunk by its own noise, so they add up.

    The first survey is paid for; using it again is free.
    """
    return seed_direction(first, covariance) + seed_direction(second, covariance)


@dataclass(frozen=True)
class SeedRule:
    """Which listed people are kept: a function of a person's own row and id.

    Args:
        scaler: to the box.
        direction: released, shape (d,); only its direction counts: it is brought to the grid of `on_grid`.
        cutoff: least score kept, on the grid direction's scale; -inf keeps all.
        cells: centres in the box, shape (k, d).
        rates: share of each cell's remaining people that the draw keeps, 0 to 1, shape (k,).
    """

    scaler: Scaler
    direction: NDArray[np.float64]
    cutoff: float
    cells: NDArray[np.float64]
    rates: NDArray[np.float64]

    def scores(self, people: CustomerTable) -> NDArray[np.float64]:
        """Scores in the direction, shape (n,). Exact arithmetic on a grid: a row's score is its own."""
        points = self.scaler.transform(people.select(self.scaler.features))
        return np.asarray(on_grid(points) @ _gridded(self.direction))

    def kept(self, people: CustomerTable, key: bytes) -> NDArray[np.bool_]:
        """Who of these listed people is kept, shape (n,).

        Args:
            people: listed people; whoever else is among them changes nothing.
            key: 32 bytes from `privacy.randomness.fresh_key`, made for this plan and kept at the institution: the same
                at every question of a run, and unknown to whoever could choose ids.
        """
        if len(key) != 32:
            raise Defect("seed rule: a key of the wrong length")
        points = self.scaler.transform(people.select(self.scaler.features))
        rate = self.rates[nearest_centre(points, self.cells)]
        return np.asarray((self.scores(people) >= self.cutoff) & (_drawn(people.keys, key) < rate))

    def spec(self) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
        """The rule as it travels: JSON scalars and arrays."""
        arrays = {"scaler": scaler_to_array(self.scaler), "direction": self.direction, "cells": self.cells}
        arrays["rates"], arrays["cutoff"] = self.rates, np.array([max(self.cutoff, -(2.0**20))])
        return {"features": list(self.scaler.features)}, arrays

    @classmethod
    def from_spec(cls, scalars: dict[str, Any], arrays: dict[str, NDArray[np.float64]]) -> SeedRule:
        """Rebuild strictly; `RefusedError` for anything `spec` would not have written."""
        if set(scalars) != {"features"} or set(arrays) != {"scaler", "direction", "cells", "rates", "cutoff"}:
            raise RefusedError("malformed seed rule")
        scaler = scaler_from_array(scalars["features"], arrays["scaler"])
        direction, cells, rates, cutoff = (arrays[name] for name in ("direction", "cells", "rates", "cutoff"))
        d = len(scaler.features)
        if direction.shape != (d,) or cells.ndim != 2 or cells.shape[1] != d or d > _MAX_DIMENSIONS:
            raise RefusedError("malformed seed rule")
        if not 1 <= len(cells) <= _MAX_CELLS or rates.shape != (len(cells),) or cutoff.shape != (1,):
            raise RefusedError("malformed seed rule")
        if not np.isfinite(direction).all() or not (np.abs(cells) <= 2).all() or not np.isfinite(cutoff).all():
            raise RefusedError("malformed seed rule")
        if not ((rates >= 0) & (rates <= 1)).all():
            raise RefusedError("malformed seed rule")
        return cls(scaler, direction.copy(), float(cutoff[0]), cells.copy(), rates.copy())


@dataclass(frozen=True)
class SeedChoice:
    """A rule, and what it is expected to do. All of it follows from released numbers.

    Args:
        rule: who is kept.
        listed: noisy number of listed people.
        alike: estimated share of them who look like the rest and are left out, 0 to 1.
        expected: estimated number of people kept.
        capped: cells whose share was thinned.
        largest: estimated share of the kept who stand in the largest cell, 0 to 1.
    """

    rule: SeedRule
    listed: float
    alike: float
    expected: float
    capped: int
    largest: float

    def advice(self) -> tuple[str, ...]:
        """What the rule does, in plain words, one sentence a line."""
        lines = [
            f"Of about {self.listed:,.0f} listed customers about {self.alike:.0%} look like the rest and are left out;"
            f" about {self.expected:,.0f} are kept."
        ]
        if self.capped:
            lines.append(f"{self.capped} groups were thinned, so that none holds more than about {self.largest:.0%}.")
        if self.expected < 0.9 * (1 - self.alike) * self.listed:
            lines.append(
                "A larger seed is not noisier: the noise of a sum does not grow with the people in it. Thin a list only"
                " where it must not be used whole."
            )
        return tuple(lines)


def choose_seeds(
    query: SeedSurveyQuery,
    survey: SeedSurvey,
    covariance: NDArray[np.float64],
    *,
    size: int | None = None,
    most: float = 1.0,
    depth: float = 0.0,
) -> SeedChoice:
    """The rule that a released survey suggests. Post-processing: it looks at nobody.

    Negative selection: scores along `seed_direction` below the mean of all people plus `depth` standard deviations
    look like the rest. Both are known from the released centre and second moments. Diversity: no cell may hold more
    than a share `most` of the kept; it buys breadth and costs accuracy where the valued do stand in few cells. Size:
    what then remains is thinned to `size` in expectation.

    Args:
        query, survey: what was asked and released.
        covariance: released second moments of all people around the query's centre, in units of its radius squared.
        size: people to keep, at least 100; None thins by cells alone.
        most: largest share of one cell among the kept, above 0 and at most 1.
        depth: of the cut-off, in standard deviations of all people's scores around their mean; -inf cuts nobody.

    Raises:
        CohortiumError: a size below the floor, a share outside (0, 1], or cells too few for the share.
        RefusedError: the survey found hardly anybody.
    """
    if size is not None and size < LEAST_SEEDS:
        raise CohortiumError(f"fewer than {LEAST_SEEDS} seeds are never used", place="size", fix="choose more")
    if not 0 < most <= 1 or most * len(query.cells) < 1:
        raise CohortiumError(
            "no such largest share of a cell", place="most", fix="choose at most 1, and no less than 1 / cells"
        )
    if survey.people < LEAST_SEEDS:
        raise RefusedError("too few listed customers were found to choose from", fix="use the list whole")
    direction = seed_direction(survey, covariance)
    cutoff, above = _cut(query, survey, covariance, direction, depth)
    left = np.maximum(survey.counts, 0.0) * above
    rates, kept, capped = _rates(left, survey.count_std * above, float(left.sum() if size is None else size), most)
    rule = SeedRule(query.scaler, direction, cutoff, query.cells, rates)
    total = max(float(kept.sum()), 1e-12)
    return SeedChoice(rule, survey.people, 1 - above, total, capped, float(kept.max()) / total)


def _cut(
    query: SeedSurveyQuery,
    survey: SeedSurvey,
    covariance: NDArray[np.float64],
    direction: NDArray[np.float64],
    depth: float,
) -> tuple[float, float]:
    """The least score kept, and the estimated share of the listed above it.

    The listed people's mean score in their own noisy direction is too high by what the noise agrees with itself:
    s^2 trace((M + lambda I)^-1), which is taken off. Their scores are taken to spread normally, as all people's do.
    """
    if depth == -math.inf:
        return -math.inf, 1.0
    people = max(survey.people, float(LEAST_SEEDS))
    values, _vectors = _spectrum(covariance)
    noise = survey.total_std / people
    spread = math.sqrt(max(float(direction @ covariance @ direction), 1e-300))
    gain = float(direction @ survey.total) / people - noise**2 * float((1 / (values + _ridge(values, noise))).sum())
    above = min(max(float(norm.cdf(gain / spread - depth)), _LEAST_KEPT), 1.0)
    grid = _gridded(direction)
    stretch = float(np.abs(direction).max()) or 1.0
    return float(query.centre @ grid) + depth * spread * query.radius / stretch, above


def _rates(
    left: NDArray[np.float64], std: float, size: float, most: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """What the draw keeps of each cell (one rate, less where a cell would exceed its share), people, cells capped.

    A cell whose count is within two standard deviations of noise is never thinned below the common rate.
    """
    size = min(size, float(left.sum()))
    ceiling = np.where(left > 2 * std, most * size, np.inf)
    low, high = 0.0, 1.0
    if float(np.minimum(left, ceiling).sum()) > size:
        for _ in range(60):
            rate = (low + high) / 2
            low, high = (rate, high) if float(np.minimum(rate * left, ceiling).sum()) < size else (low, rate)
    kept = np.minimum(high * left, ceiling)
    rates = np.where(left > 0, kept / np.maximum(left, 1e-12), high)
    return np.clip(rates, 0.0, 1.0), kept, int((rates < high * (1 - 1e-9)).sum())


def _spectrum(covariance: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return np.maximum(values, 0.0), vectors


def _ridge(values: NDArray[np.float64], noise: float) -> float:
    return max(_RIDGE * float(values.sum()), 1e-9) + _NOISE_RIDGE * noise**2


def _gridded(direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """The direction with its largest coordinate at 1, on the grid on which scores are exact; zeros stay zeros."""
    return on_grid(direction / max(float(np.abs(direction).max()), 1e-300))


def _drawn(keys: NDArray[np.generic], key: bytes) -> NDArray[np.float64]:
    """A number in [0, 1) from each id alone: the first 53 bits of its keyed BLAKE2b hash (RFC 7693)."""
    whole = np.fromiter(
        (
            int.from_bytes(hashlib.blake2b(str(one).encode(), key=key, digest_size=8).digest(), "big") >> 11
            for one in keys.tolist()
        ),
        dtype=np.int64,
        count=len(keys),
    )
    return np.asarray(whole / 2.0**53)
