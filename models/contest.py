"""Which ranker is best, from the seeds alone: a paired comparison of rank sums.

A ranker's AUC is the mean, over seeds, of the share of other people who score lower. Those shares are known well from
counts already released (`models.reach`), as there are many other people; so each seed adds, for every ranker, its own
share under that ranker less its share under the default one. Rankers agree on most seeds: the differences are small,
are clipped to a small radius, and so need little noise. Two AUCs of separate curves, subtracted, are about seven times
as noisy at the same price. The shares are worth a few bins of every ranker, released first: those of a normal
distribution with the scores' mean and deviation favour rankers by the skewness of their scores (benchmarks/reach.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from cohortium.models.reach import ScoreCounts
from cohortium.models.scorebins import MAX_RANKERS, ScoreBins, is_seed, scales_from_spec, scales_to_spec
from cohortium.models.validation import Estimate
from cohortium.privacy.query import SCALE, Contribution, QuerySpec, quantise, unit_scale
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError
from cohortium.study.reach import RankerChoice

__all__ = ["Contest", "ContestQuery", "choose_ranker", "percentile_noise", "percentiles", "read_contest"]

_COUNT_WEIGHT = 0.5
_RADIUS = 0.25
_HIDDEN = 3.0  # standard deviations that the number of seeds must have to be divided by
_PRIOR_GAP, _PRIOR_STD = 0.01, 0.012


def percentiles(counts: ScoreCounts) -> NDArray[np.float64]:
    """Share of people who score below each bin, the bin's own counted half; **highest first**, shape (bins,).

    Post-processing of released counts. One half everywhere when nobody is known.
    """
    masses = counts.masses
    total = float(masses.sum())
    if total <= 0.0:
        return np.full(len(masses), 0.5)
    below: NDArray[np.float64] = np.clip(1.0 - (np.cumsum(masses) - 0.5 * masses) / total, 0.0, 1.0)
    return below


def percentile_noise(counts: ScoreCounts) -> float:
    """Noise standard deviation of `percentiles` where it is largest; one half when hidden."""
    if counts.total <= max(_HIDDEN * counts.total_std, 1.0):
        return 0.5
    shares, bins = counts.reach / counts.total, np.arange(len(counts.counts))
    return max(counts.noise((bins <= k) - share) for k, share in enumerate(shares.tolist())) / counts.total


@dataclass(frozen=True)
class ContestQuery:
    """Per seed: a count, the default's percentile, and the others' percentiles less the default's.

    The count is one word of weight 1/2; the default's percentile, from -1 to 1, another of weight 1/2; the differences
    are clipped to the L2 norm 1/4 times the root of their number and quantised. Anybody else adds nothing. The squared
    sensitivity is SCALE^2 (1 + 1/4 + 1/4), exactly; without other rankers than the default, SCALE^2 / 2.

    Args:
        scales: rankers with their bins, the default first.
        tables: for each ranker the percentile of each bin, highest first, within [0, 1], shape (bins,).
    """

    scales: tuple[ScoreBins, ...]
    tables: tuple[NDArray[np.float64], ...]
    kind = "ranker-contest"

    @property
    def width(self) -> int:
        return 1 + len(self.scales)

    @property
    def words_per_person(self) -> int:
        return self.width

    @property
    def bound_squared(self) -> int:
        return 2 * unit_scale(_COUNT_WEIGHT) ** 2 + (SCALE**2 if len(self.scales) > 1 else 0)

    @property
    def radius(self) -> float:
        """L2 norm to which differences of percentiles are clipped."""
        return _RADIUS * math.sqrt(max(len(self.scales) - 1, 1))

    def contribute(self, people: CustomerTable) -> Contribution:
        ranks = [table[scale.places(people)] for scale, table in zip(self.scales, self.tables, strict=True)]
        values = np.empty((len(people), self.width), dtype=np.int64)
        values[:, 0] = unit_scale(_COUNT_WEIGHT)
        values[:, 1] = np.trunc((2.0 * ranks[0] - 1.0) * unit_scale(_COUNT_WEIGHT)).astype(np.int64)
        if len(ranks) > 1:
            values[:, 2:] = quantise(np.column_stack([rank - ranks[0] for rank in ranks[1:]]), self.radius)
        values[~is_seed(people)] = 0
        return Contribution(np.broadcast_to(np.arange(self.width), values.shape), values)

    def spec(self) -> QuerySpec:
        rankers, arrays = scales_to_spec(self.scales)
        arrays |= {f"percentiles{index}": table for index, table in enumerate(self.tables)}
        return QuerySpec(self.kind, {"rankers": rankers}, arrays)

    @classmethod
    def from_spec(cls, spec: QuerySpec) -> ContestQuery:
        """Rebuild strictly; `RefusedError` for anything `spec` would not have written."""
        arrays = dict(spec.arrays)
        tables = [arrays.pop(f"percentiles{index}", None) for index in range(MAX_RANKERS)]
        if set(spec.scalars) != {"rankers"}:
            raise RefusedError("malformed contest question")
        scales = scales_from_spec(spec.scalars["rankers"], arrays)
        known = [table for table in tables if table is not None]
        if len(known) != len(scales) or any(table is None for table in tables[: len(scales)]):
            raise RefusedError("malformed contest question")
        for scale, table in zip(scales, known, strict=True):
            if table.shape != (scale.bins,) or not ((table >= 0.0) & (table <= 1.0)).all():
                raise RefusedError("malformed contest question")
        return cls(scales, tuple(known))


@dataclass(frozen=True)
class Contest:
    """A decoded answer.

    Args:
        seeds: noisy number of seeds, may be negative.
        auc: the default's AUC; None where noise hides the number of seeds.
        leads: each other ranker's AUC less the default's, in order; None likewise. Clipping draws leads toward 0.
    """

    seeds: float
    auc: Estimate | None
    leads: tuple[Estimate | None, ...]


def read_contest(query: ContestQuery, values: NDArray[np.float64], std: float, table_noise: Sequence[float]) -> Contest:
    """The answer behind noisy words in units of 1.0, shape (query.width,), of noise standard deviation `std`.

    The noise of a lead is the words' and that of both rankers' tables: `percentile_noise`, for each ranker. Sampling
    errors are bounds: percentiles of seeds are taken to spread as far as their mean allows, and differences as far as
    the radius.
    """
    seeds, seeds_std = float(values[0]) / _COUNT_WEIGHT, std / _COUNT_WEIGHT
    if seeds <= max(_HIDDEN * seeds_std, 1.0):
        return Contest(seeds, None, (None,) * (len(query.scales) - 1))
    auc = min(max(0.5 + float(values[1]) / seeds, 0.0), 1.0)
    noise = math.hypot(std / seeds, (auc - 0.5) * seeds_std / seeds, table_noise[0])
    leads = []
    for word, other in zip(values[2:], table_noise[1:], strict=True):
        lead = float(word) * query.radius / seeds
        error = math.hypot(query.radius * std / seeds, lead * seeds_std / seeds, table_noise[0], other)
        leads.append(Estimate(lead, error, query.radius / math.sqrt(seeds)))
    return Contest(seeds, Estimate(auc, noise, math.sqrt(auc * (1.0 - auc) / seeds)), tuple(leads))


def choose_ranker(names: Sequence[str], leads: Sequence[Estimate | None]) -> RankerChoice:
    """The ranker with the least expected regret; the first, the default, where noise hides the rest.

    Prior: a candidate's AUC less the default's is Gaussian with mean -0.01 and standard deviation 0.012. That is what
    benchmarks/lookalike.py shows of the ranker on the embedding beside that on features, and the default stands first
    because of it. The greatest posterior mean has the least expected regret. A candidate wins when its lead passes
    0.01 s^2 / 0.012^2 for a noise of s: next to nothing while noise is small, 0.007 at a noise of 0.01, more than any
    ranker ever led by where noise is wider than the spread of rankers. Taking the highest figure, or asking for one or
    two standard deviations, loses more AUC wherever rankers differ as assumed (benchmarks/reach.py).

    Args:
        names: the rankers, the default first.
        leads: each other's AUC less the default's, in order; None where unknown.
    """
    beliefs = {names[0]: (0.0, 0.0)}
    seen = {names[0]: Estimate(0.0, 0.0, 0.0)}
    for name, lead in zip(names[1:], leads, strict=True):
        if lead is not None:
            beliefs[name], seen[name] = _posterior(lead), lead
    if len(beliefs) < 2:
        return RankerChoice(ranker=names[0])
    taken, rival = sorted(beliefs, key=lambda name: -beliefs[name][0])[:2]
    lead_of = beliefs[taken][0] - beliefs[rival][0]
    doubt = math.sqrt(beliefs[taken][1] + beliefs[rival][1])
    certain = doubt <= 0.0
    z = math.inf if certain else lead_of / doubt
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return RankerChoice(
        ranker=taken,
        rival=rival,
        margin=seen[taken].value - seen[rival].value,
        margin_std=math.hypot(seen[taken].noise, seen[rival].noise),
        probability=float(ndtr(z)),
        regret=0.0 if certain else max(float(doubt * density - lead_of * ndtr(-z)), 0.0),
    )


def _posterior(lead: Estimate) -> tuple[float, float]:
    """Mean and variance of a candidate's lead over the default, given the noisy one."""
    seen, prior = lead.noise**2, _PRIOR_STD**2
    return (lead.value * prior - _PRIOR_GAP * seen) / (prior + seen), prior * seen / (prior + seen)
