"""Seed prototypes, measured: are several noisy centroids better than the discriminant of one noisy sum?

    python benchmarks/prototypes.py [--draws 8] [--sets adult bank tafeng synthetic union] [--json OUT]

Held-out AUC and lift at 5% of a campaign's ranker, for 66% of epsilon 0.05 to 1 at delta 1e-6; ten institutions, the
noise of eight less two protects a sum; means over draws of noise in one split, with their standard errors. All methods
stand on one encoder of epsilon 2 and cost the same:

- the product: the discriminant of the seeds' sum (`steps = 0`) on features and on the embedding, and the two steps that
  follow it on features, with the product's queries and rules;
- the same sum over the frame's eight widest axes alone: fewer words, each with less noise;
- *k centroids*: for every cell the number of seeds and the sum of what they differ by from the cell's mean. Cells
  without a number of seeds above noise are dropped, differences are shrunk. By the largest *cosine*, by the *ratio* of
  the seeds' mixture to everybody's, or by one discriminant *in each cell*;
- *k counts*: only the number of seeds in every cell, alone or beside the sum, whose discriminant they correct.

Cells are k-means on normal particles of the released moments. Their shares, means and variances among everybody are
taken as known exactly, for nothing: that favours prototypes. "(people's cells)" are k-means on the customers
themselves, which no release pays for: how far better cells could help, never judged.

`union` is adult with a concept made for prototypes: four small groups that have little in common. What leads there is
printed and breaks no promise. Exits with 1 when, on any other set, a prototype method leads both of the product's sums
by more than 0.01 AUC and three standard errors: then docs/decisions/0012-no-seed-prototypes.md is to be revisited.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from lookalike import make_split, measures
from lookalike_sets import SETS, Concept, synthetic
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.cluster import KMeans

from cohortium.models.encoding import EncodedStudy, encoder_phases, encoder_programme
from cohortium.models.features import on_weight_grid
from cohortium.models.programme import NoisySum
from cohortium.models.row_moments import Frame
from cohortium.models.rows import HASH, SEED, row_hashes
from cohortium.models.seed_head import (
    FrameFacts,
    HeadState,
    first_head,
    intercept_and_curvature,
    next_head,
    row_weights,
)
from cohortium.models.seed_queries import SEED_COUNT, SeedGradientQuery, SeedSumQuery
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.privacy.query import SCALE, Contribution, QuerySpec, SumQuery, bounded_total, quantise, unit_scale
from cohortium.privacy.randomness import OsBitSource
from cohortium.privacy.release import noise_scale
from cohortium.privacy.sharing import NoiseShare
from cohortium.privacy.table import CustomerTable
from cohortium.simulations.local_federation import plan_head
from cohortium.study.plans import parse_plan

DELTA, INSTITUTIONS, SHARED = 1e-6, 10, NoiseShare(8, 2)
EPSILONS, RANKER, FIRST = (0.05, 0.1, 0.25, 0.5, 1.0), Fraction(66, 100), Fraction(2, 5)
BITS = OsBitSource()
COUNT = 0.6  # of the count words of prototypes, in units of the radius: better than 0.2 for counts at small budgets
LEAD, ERRORS = 0.01, 3.0
QUIET = 0.1  # up to it noise decides, and twice as many draws are taken
TESTED = 6_000
GRADIENTS = 3  # draws of the two steps, which look at everybody
MADE = "union"
AXES = 8
SUM, EMBEDDED, COARSE = "sum, features", "sum, embedding", f"sum, features, {AXES} widest axes"
STEPS = "sum and two steps, features"


# --- the questions of prototypes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """Voronoi cells in the unscaled axes of a frame; centres of shape (k, d)."""

    frame: Frame
    factors: NDArray[np.float64]
    centres: NDArray[np.float64]

    def coordinates(self, people: CustomerTable) -> NDArray[np.float64]:
        """Coordinates in the frame, clipped to its radius."""
        found = self.frame.coordinates(self.frame.rows.of(people))
        return clipped(found, self.frame.radius)

    def of(self, coordinates: NDArray[np.float64]) -> NDArray[np.intp]:
        """The cell of everybody."""
        return np.asarray(squared(coordinates / self.factors, self.centres).argmin(axis=1))


@dataclass(frozen=True)
class CentroidQuery:
    """For every cell the seeds' number and the sum of their coordinates' differences from its mean, clipped."""

    cells: Cells
    means: NDArray[np.float64]
    radius: float
    kind = "benchmark-centroids"

    @property
    def words_per_person(self) -> int:
        return self.means.shape[1] + 1

    @property
    def width(self) -> int:
        return len(self.means) * self.words_per_person

    @property
    def bound_squared(self) -> int:
        return SCALE**2 + unit_scale(COUNT) ** 2

    def contribute(self, people: CustomerTable) -> Contribution:
        """Everybody is a seed."""
        coordinates = self.cells.coordinates(people)
        cell = self.cells.of(coordinates)
        words = quantise(coordinates - self.means[cell], self.radius)
        counts = np.full((len(people), 1), unit_scale(COUNT), dtype=np.int64)
        columns = cell[:, np.newaxis] * self.words_per_person + np.arange(self.words_per_person)
        return Contribution(columns, np.hstack([words, counts]))

    def spec(self) -> QuerySpec:
        return QuerySpec(self.kind, {}, {})


@dataclass(frozen=True)
class CountQuery:
    """The seeds' number in every cell."""

    cells: Cells
    kind = "benchmark-counts"
    words_per_person = 1
    bound_squared = SCALE**2

    @property
    def width(self) -> int:
        return len(self.cells.centres)

    def contribute(self, people: CustomerTable) -> Contribution:
        """Everybody is a seed."""
        cell = self.cells.of(self.cells.coordinates(people))
        return Contribution(cell[:, np.newaxis], np.full((len(people), 1), SCALE, dtype=np.int64))

    def spec(self) -> QuerySpec:
        return QuerySpec(self.kind, {}, {})


@dataclass(frozen=True)
class SumAndCountQuery:
    """The sum of the seeds' coordinates and their number in every cell."""

    cells: Cells
    kind = "benchmark-sum-and-counts"
    bound_squared = SCALE**2 + unit_scale(COUNT) ** 2

    @property
    def words_per_person(self) -> int:
        return self.cells.frame.rows.width + 1

    @property
    def width(self) -> int:
        return self.cells.frame.rows.width + len(self.cells.centres)

    def contribute(self, people: CustomerTable) -> Contribution:
        """Everybody is a seed."""
        coordinates = self.cells.coordinates(people)
        width = self.cells.frame.rows.width
        sums = np.broadcast_to(np.arange(width), (len(people), width))
        words = quantise(coordinates, self.cells.frame.radius)
        counts = np.full((len(people), 1), unit_scale(COUNT), dtype=np.int64)
        columns = np.hstack([sums, width + self.cells.of(coordinates)[:, np.newaxis]])
        return Contribution(columns, np.hstack([words, counts]))

    def spec(self) -> QuerySpec:
        return QuerySpec(self.kind, {}, {})


def clipped(rows: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Rows of at most this norm."""
    return rows * np.minimum(1.0, radius / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def squared(rows: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances, shape (n, k)."""
    return np.asarray((rows**2).sum(axis=1)[:, np.newaxis] - 2.0 * rows @ centres.T + (centres**2).sum(axis=1))


# --- what is released -------------------------------------------------------------------------------------------------


def noised(query: SumQuery, total: NDArray[np.int64], mu2: int) -> NoisySum:
    """The sum as ten institutions' doors make it for that price."""
    own = SHARED.sigma_of(noise_scale(query, mu2))
    noise = sample_discrete_gaussian(own, INSTITUTIONS * len(total), BITS).reshape(INSTITUTIONS, -1).sum(axis=0)
    return NoisySum((total + noise) / SCALE, own * INSTITUTIONS**0.5 / SCALE, INSTITUTIONS)


def encoded(concept: Concept, people: CustomerTable) -> EncodedStudy:
    """The encoder's plan of epsilon 2, answered by everybody."""
    head = plan_head(
        "prototypes", concept.contract, "distributed", INSTITUTIONS, SHARED.contributions, SHARED.colluders
    )
    plan = parse_plan({**head, "delta": DELTA, "study": "encoder", "epsilon": 2.0}, place="benchmarks/prototypes.py")
    phases, mu2 = {phase.name: phase for phase in encoder_phases(plan)}, budget_for(2.0, DELTA).mu2
    programme, answer = encoder_programme(plan, concept.contract), None
    try:
        while True:
            ask = programme.send(answer)  # type: ignore[arg-type] # None starts it
            phase = phases[ask.phase]
            answer = noised(ask.query, bounded_total(ask.query, people), int(mu2 * phase.share / phase.rounds))
    except StopIteration as finished:
        result: EncodedStudy = finished.value
        return result


@dataclass(frozen=True)
class World:
    """A split of a set: everybody with their seeds marked, what was released of them, and who is held out."""

    base: EncodedStudy
    people: CustomerTable
    test: CustomerTable
    member: NDArray[np.bool_]

    @cached_property
    def seeds(self) -> CustomerTable:
        """The seeds alone: others add zeros to a sum over seeds."""
        return self.people.take(self.people.select((SEED,))[:, 0] > 0.5)

    def judged(self, scores: NDArray[np.float64]) -> tuple[float, float]:
        """AUC and lift at 5%."""
        return measures(scores, self.member)[:2]


@dataclass(frozen=True)
class Ground:
    """Cells, and everything that everybody is in them, exactly; the seeds' sums; the held-out people's places.

    Args:
        cells: k cells.
        shares, means, variances: of everybody in the frame: (k,), (k, d), and within cells (d,).
        place: cells of the people who learn, and of those held out.
        queries, totals: of centroids, of counts, of the sum and counts.
    """

    cells: Cells
    shares: NDArray[np.float64]
    means: NDArray[np.float64]
    variances: NDArray[np.float64]
    place: tuple[NDArray[np.intp], NDArray[np.intp]]
    queries: tuple[CentroidQuery, CountQuery, SumAndCountQuery]
    totals: tuple[NDArray[np.int64], ...]


@dataclass(frozen=True)
class Rows:
    """Coordinates in the frame of features: of who learns, clipped, and of who is held out."""

    learn: NDArray[np.float64]
    test: NDArray[np.float64]


def ground(world: World, rows: Rows, sample: NDArray[np.float64], k: int) -> Ground:
    """Cells from a sample in the unscaled axes, and the seeds in them."""
    facts = world.base.features
    found = KMeans(k, n_init=3, random_state=k).fit(sample).cluster_centers_
    cells = Cells(facts.frame, facts.factors, found)
    place = cells.of(rows.learn), cells.of(rows.test)
    counts = np.bincount(place[0], minlength=k)
    sums = np.stack([rows.learn[place[0] == cell].sum(axis=0) for cell in range(k)])
    means = np.where(counts[:, np.newaxis] > 0, sums / np.maximum(counts, 1)[:, np.newaxis], found * facts.factors)
    variances = ((rows.learn - means[place[0]]) ** 2).mean(axis=0)
    radius = float(np.sqrt(variances.sum()))
    queries = CentroidQuery(cells, means, radius), CountQuery(cells), SumAndCountQuery(cells)
    totals = tuple(bounded_total(query, world.seeds) for query in queries)
    return Ground(cells, np.maximum(counts, 1) / len(rows.learn), means, variances, place, queries, totals)


# --- rankers ----------------------------------------------------------------------------------------------------------

Scores = Iterator[tuple[str, NDArray[np.float64]]]


def one_sum(facts: FrameFacts, query: SeedSumQuery, total: NDArray[np.int64], mu2: int) -> HeadState:
    """The product's discriminant."""
    answer = noised(query, total, mu2)
    summed, count = query.read(answer.values)
    return first_head(facts, summed, count, answer.std * query.frame.radius, answer.std / SEED_COUNT)


def coarse(facts: FrameFacts, people: CustomerTable) -> FrameFacts:
    """The frame with all but the widest axes left out; the mean as exact as that of cells."""
    factors = np.where(np.arange(len(facts.factors)) >= len(facts.factors) - AXES, facts.factors, 0.0)
    axes = on_weight_grid(facts.frame.axes * (factors > 0.0))
    frame = replace(facts.frame, axes=axes, radius=float(np.sqrt((facts.kept * factors**2).sum() + 1e-3)))
    mean = clipped(frame.coordinates(frame.rows.of(people)), frame.radius).mean(axis=0)
    return replace(facts, frame=frame, factors=factors, mean=mean, mean_std=0.0)


def on_rows(facts: FrameFacts, state: HeadState) -> NDArray[np.float64]:
    """Weights on rows; none for axes that are left out."""
    used = facts.factors > 0.0
    safe = replace(facts, factors=np.where(used, facts.factors, 1.0))
    return row_weights(safe, np.where(used, state.weights, 0.0))


def two_steps(world: World, query: SeedSumQuery, total: NDArray[np.int64], mu2: int) -> NDArray[np.float64]:
    """The product's head after two gradients: weights on rows."""
    facts = world.base.features
    state = one_sum(facts, query, total, int(mu2 * FIRST))
    for _step in range(2):
        intercept, curvature = intercept_and_curvature(facts, state)
        placed = float(on_weight_grid(np.array([intercept]))[0])
        step = SeedGradientQuery(facts.frame, row_weights(facts, state.weights), placed)
        answer = noised(step, bounded_total(step, world.people), int(mu2 * (1 - FIRST) / 2))
        state = next_head(facts, state, curvature, step.read(answer.values), answer.std * facts.frame.radius)
    return row_weights(facts, state.weights)


def by_centroids(facts: FrameFacts, rows: Rows, at: Ground, mu2: int) -> Scores:
    """Three ways to score by the same noisy centroids."""
    query, k, d = at.queries[0], len(at.means), at.means.shape[1]
    answer = noised(query, at.totals[0], mu2)
    table = answer.values.reshape(k, d + 1)
    counts, count_std, std = table[:, d] / COUNT, answer.std / COUNT, answer.std * query.radius
    kept = counts > max(2.0 * count_std, 10.0)
    kept[np.argmax(counts)] = True
    least = np.maximum(counts, 10.0)[:, np.newaxis]
    apart = table[:, :d] * query.radius / least
    left = np.maximum(1.0 - d * (std / least) ** 2 / np.maximum((apart**2).sum(axis=1, keepdims=True), 1e-9), 0.0)
    centroids, weights = (at.means + left * apart)[kept], np.maximum(counts[kept], 1.0)
    weights = weights / weights.sum()
    around, towards = rows.test - facts.mean, centroids - facts.mean
    cosines = around @ towards.T / np.maximum(np.linalg.norm(towards, axis=1), 1e-9)
    yield f"{k} centroids, cosine", cosines.max(axis=1) / np.linalg.norm(around, axis=1)
    unit = np.sqrt(at.variances) * d**0.25  # tempered by the root of d: coordinates are not independent
    seeds = np.log(weights) - squared(rows.test / unit, centroids / unit) / 2.0
    everybody = np.log(at.shares) - squared(rows.test / unit, at.means / unit) / 2.0
    yield f"{k} centroids, ratio", logsumexp(seeds, axis=1) - logsumexp(everybody, axis=1)
    heads, bases = np.empty((k, d)), np.empty(k)
    for cell in range(k):
        inside = replace(
            facts,
            people=max(at.shares[cell] * facts.people, 10.0),
            variances=at.variances / facts.factors**2,
            row_mean=np.zeros(d),
            mean=at.means[cell],
            mean_std=0.0,
        )
        size = float(least[cell, 0])
        local = table[cell, :d] * query.radius + size * at.means[cell]
        state = first_head(inside, local, size, std, count_std)
        heads[cell], bases[cell] = state.weights / facts.factors, intercept_and_curvature(inside, state)[0]
    place = at.place[1]
    yield f"{k} discriminants", bases[place] + ((rows.test - at.means[place]) * heads[place]).sum(axis=1)


def by_counts(facts: FrameFacts, rows: Rows, at: Ground, mu2: int) -> Scores:
    """Counts alone, and a sum's discriminant that counts correct."""
    k, d = at.queries[1].width, facts.frame.rows.width
    answer = noised(at.queries[1], at.totals[1], mu2)
    counts, floor = np.maximum(answer.values, 0.0), max(answer.std, 10.0)
    ratio = (counts + floor * k * at.shares) / (max(counts.sum(), 10.0) + floor * k) / at.shares
    yield f"{k} counts alone", np.log(ratio)[at.place[1]]
    query = at.queries[2]
    answer = noised(query, at.totals[2], mu2)
    radius, std = facts.frame.radius, answer.std / COUNT
    counts = answer.values[d:] / COUNT
    state = first_head(facts, answer.values[:d] * radius, counts.sum(), answer.std * radius, std * k**0.5)
    weights = state.weights / facts.factors
    odds = rows.learn @ weights
    expected = np.bincount(at.place[0], np.exp(np.clip(odds - odds.mean(), -8.0, 5.0)), minlength=k)
    expected *= max(counts.sum(), 10.0) / expected.sum()
    floor = max(std, 10.0)
    correction = np.log((np.maximum(counts, 0.0) + floor) / (expected + floor))
    yield f"sum and {k} counts", rows.test @ weights + correction[at.place[1]]


# --- the comparison ---------------------------------------------------------------------------------------------------

Figures = dict[str, list[tuple[float, float]]]


def measure(world: World, draws: int) -> dict[float, Figures]:
    """Every method at every epsilon: AUC and lift of every draw of noise."""
    facts = {SUM: world.base.features, EMBEDDED: world.base.embedding}
    facts[COARSE] = coarse(facts[SUM], world.people)
    sums = {name: SeedSumQuery(one.frame) for name, one in facts.items()}
    totals = {name: bounded_total(query, world.seeds) for name, query in sums.items()}
    unseen = {name: one.frame.rows.of(world.test) for name, one in facts.items()}
    features, frame = facts[SUM], facts[SUM].frame
    learn = frame.coordinates(frame.rows.of(world.people))
    rows = Rows(clipped(learn, frame.radius), frame.coordinates(unseen[SUM]))
    rng = np.random.default_rng(0)
    particles = rng.normal(size=(4000, frame.rows.width)) * np.sqrt(features.kept) + features.axis_mean
    grounds = {k: ground(world, rows, particles, k) for k in (2, 4, 8, 32)}
    known = ground(world, rows, rows.learn[:8000] / features.factors, 16)
    result = {}
    for epsilon in EPSILONS:
        mu2, figures = int(budget_for(epsilon, DELTA).mu2 * RANKER), defaultdict(list)
        for draw in range(draws if epsilon > QUIET else 2 * draws):
            for name, one in facts.items():
                state = one_sum(one, sums[name], totals[name], mu2)
                figures[name].append(world.judged(unseen[name] @ on_rows(one, state)))
            if draw < GRADIENTS:
                figures[STEPS].append(world.judged(unseen[SUM] @ two_steps(world, sums[SUM], totals[SUM], mu2)))
            for k, at in grounds.items():
                for name, scores in by_centroids(features, rows, at, mu2) if k <= 8 else ():
                    figures[name].append(world.judged(scores))
                for name, scores in by_counts(features, rows, at, mu2) if k >= 8 else ():
                    figures[name].append(world.judged(scores))
            for name, scores in by_counts(features, rows, known, mu2):
                figures[f"{name} (people's cells)"].append(world.judged(scores))
        result[epsilon] = dict(figures)
    return result


def union() -> Concept:
    """adult; the concept is four groups with little in common, 80% of each."""
    whole = SETS["adult"]()
    people, features = whole.people, {f.name: f for f in whole.contract.training_features}

    def column(name: str) -> NDArray[np.float64]:
        return people.select((name,))[:, 0]

    def among(name: str, value: str) -> NDArray[np.bool_]:
        return np.asarray(column(name) == features[name].categories.index(value))

    age, years = column("age"), column("education_years")
    groups = (
        (age < 26) & among("relationship", "Own-child") & (column("hours_per_week") < 35),
        (age > 55) & among("relationship", "Not-in-family"),
        (age < 45) & among("relationship", "Husband") & (years >= 13),
        among("relationship", "Unmarried") & among("occupation", "Adm-clerical"),
    )
    taken = np.random.default_rng(1).random(len(people)) < 0.8
    return replace(whole, member=np.logical_or.reduce(groups) & taken, seed_share=0.25)


WORLDS: dict[str, Callable[[], Concept]] = {**SETS, "synthetic": lambda: synthetic(30_000), MADE: union}


def world_of(concept: Concept) -> World:
    """Split 0 of the lookalike benchmark, and the encoder's plan on those who learn."""
    part = make_split(concept, 0)
    people = concept.people.take(part.train)
    values = np.column_stack([people.values, row_hashes(people.keys), part.seed])
    marked = CustomerTable((*people.columns, HASH, SEED), values, people.keys)
    test = part.test[:TESTED]
    return World(encoded(concept, marked), marked, concept.people.take(test), concept.member[test])


def judge(name: str, epsilon: float, figures: Figures) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Print one row of figures; what leads the product beyond the bound."""
    means = {
        method: {
            "auc": float(np.mean([auc for auc, _lift in runs])),
            "error": float(np.std([auc for auc, _lift in runs], ddof=1) / len(runs) ** 0.5),
            "lift5": float(np.mean([lift for _auc, lift in runs])),
        }
        for method, runs in figures.items()
    }
    best = max((SUM, EMBEDDED), key=lambda method: means[method]["auc"])
    print(f"\n{name}, epsilon {epsilon}")
    leads = []
    for method, one in means.items():
        lead, error = one["auc"] - means[best]["auc"], float(np.hypot(one["error"], means[best]["error"]))
        print(f"  {method:<38} {one['auc']:.3f} +- {one['error']:.3f}  lift {one['lift5']:.2f}  {lead:+.3f}")
        prototype = method not in (SUM, EMBEDDED, COARSE, STEPS) and "people's" not in method
        if prototype and lead > LEAD and lead > ERRORS * error:
            leads.append(f"{name}, epsilon {epsilon}: {method} leads by {lead:.3f} +- {error:.3f}")
    return means, leads


def main() -> int:
    """Measure, print, write JSON where asked; 1 when the decision should be revisited."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--sets", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report, ahead = {}, {}
    for name in options.sets:
        for epsilon, figures in measure(world_of(WORLDS[name]()), options.draws).items():
            report[f"{name}, epsilon {epsilon}"], leads = judge(name, epsilon, figures)
            ahead.setdefault(name, []).extend(leads)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    made = ahead.pop(MADE, [])
    for lead in made:
        print(f"made for prototypes: {lead}")
    revisit = [lead for leads in ahead.values() for lead in leads]
    print("\n".join(f"REVISIT {lead}" for lead in revisit) or "no prototype leads on a set that is not made for it")
    return 1 if revisit else 0


if __name__ == "__main__":
    sys.exit(main())
