"""Seeds, measured: `python benchmarks/seeds.py [--draws N] [--noises N] [--rounds N] [--json OUT]`.

*Doctor.* Draws of (seed subset, noise) over 100 to 2,000 seeds and epsilon 0.25 to 2, for adult and a synthetic set of
32 dimensions: the forecast cosine against the one that exact discrete Gaussian noise leaves. Where noise and signal are
alike, a single release scatters by more than any forecast can know, so these are checked: the forecast is within 0.05
of the mean over noise in 95% of draws; its 95% interval holds 93 to 97% of single releases; and a single release is
within 0.05 of the forecast in 95% of draws from 500 seeds (advised) and epsilon 0.5 on, and wherever 0.9 is forecast.
The share over all draws stands beside the most that any forecast could have had.

With seeds at three institutions, one of them forecasts from its own third and the number of the others.

*Choice.* adult, concept income above 50K, held-out AUC, 60% of the campaign for the ranker: a chosen seed of about m
customers against a random one of the same expected size. All arms cost the same: those with a survey pay it out of the
ranker's budget. "with survey" ranks by survey and second sum together, which costs nothing more. Checked where four are
listed for one used: of a list with 30% others, the chosen seed alone beats the random one by two standard errors; with
its survey, of a clean list too. Ten institutions; the noise of eight less two protects a sum.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from cohortium.models.moments import MomentQuery, read_moments
from cohortium.models.scaler import Scaler
from cohortium.models.seed_choice import (
    SeedRule,
    SeedSurvey,
    SeedSurveyQuery,
    choose_seeds,
    pooled_direction,
    read_survey,
    seed_direction,
)
from cohortium.models.seed_doctor import forecast_seed, seed_moments, seed_noise
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.privacy.query import SCALE, SumQuery, bounded_total
from cohortium.privacy.randomness import OsBitSource, fresh_key
from cohortium.privacy.release import noise_scale
from cohortium.privacy.sharing import NoiseShare
from cohortium.privacy.table import CustomerTable
from cohortium.simulations.datasets import fetch

DELTA, INSTITUTIONS, SHARED = 1e-6, 10, NoiseShare(8, 2)
SIZES, EPSILONS = (100, 200, 500, 1000, 2000), (0.25, 0.5, 1.0, 2.0)
HEAD, SURVEY, BASE = Fraction(3, 5), Fraction(3, 20), Fraction(1, 4)
KNOTS: dict[str, tuple[float, ...]] = {
    "age": (15, 25, 35, 45, 55, 65, 90),
    "education_num": (1, 7, 9, 10, 13, 16),
    "hours_per_week": (0, 30, 40, 50, 99),
}
AMOUNTS: dict[str, tuple[float, ...]] = {
    "capital_gain": (0.0, 7.0, 8.5, 11.5129255),
    "capital_loss": (0.0, 7.2, 7.6, 8.5173932),
}
CATEGORIES = ("workclass", "marital_status", "occupation", "relationship")
BITS = OsBitSource()


@dataclass(frozen=True)
class Population:
    """Customers, who of them has the concept, public cells, and the public clipping radius in the box."""

    people: CustomerTable
    concept: NDArray[np.bool_]
    cells: NDArray[np.float64]
    radius: float

    @property
    def scaler(self) -> Scaler:
        """Every column from [0, 1] to the box: public bounds."""
        d = len(self.people.columns) - 1
        return Scaler(self.people.columns[:-1], np.zeros(d, dtype=np.bool_), np.zeros(d), np.ones(d))


def adult() -> Population:
    """The census set in hat functions and one-hot columns; income is the concept and no feature."""
    frame = pd.read_parquet(fetch("adult").sources["customers"])
    columns: dict[str, NDArray[np.float64]] = {}
    for name, knots in KNOTS.items():
        _hats(columns, name, frame[name].to_numpy(dtype=np.float64), np.array(knots))
    for name, knots in AMOUNTS.items():
        _hats(columns, name, np.log1p(frame[name].to_numpy(dtype=np.float64)), np.array(knots))
    for name in CATEGORIES:
        for value in sorted(set(frame[name].dropna())):
            columns[f"{name}={value}"] = (frame[name] == value).to_numpy(dtype=np.float64)
    names = [name for name in columns if name.startswith("relationship=")]
    cells = np.zeros((len(names), len(columns)))
    for cell, name in zip(cells, names, strict=True):
        cell[[list(columns).index(other) for other in names]] = -1.0
        cell[list(columns).index(name)] = 1.0
    return _population(columns, (frame["income_over_50k"] == ">50K").to_numpy(), cells, 3.2)


def synthetic(people: int = 30_000) -> Population:
    """A 32-dimensional cloud in which the concept is a soft half-space: the size of an embedding."""
    rng = np.random.default_rng(7)
    points = rng.normal(0.0, 0.12, (people, 32)) * np.linspace(1.5, 0.5, 32)
    towards = rng.normal(size=32)
    score = points @ (towards / np.linalg.norm(towards)) + rng.normal(0.0, 0.05, people)
    columns = {f"e{i:02d}": np.clip((column + 1) / 2, 0, 1) for i, column in enumerate(points.T)}
    return _population(columns, score > np.quantile(score, 0.75), np.zeros((1, 32)), 1.0)


def _hats(
    columns: dict[str, NDArray[np.float64]], name: str, values: NDArray[np.float64], knots: NDArray[np.float64]
) -> None:
    """Piecewise-linear functions on public knots that add up to one."""
    for index, knot in enumerate(knots):
        columns[f"{name}~{knot:g}"] = np.interp(values, knots, np.eye(len(knots))[index])


def _population(
    columns: dict[str, NDArray[np.float64]], concept: NDArray[np.bool_], cells: NDArray[np.float64], radius: float
) -> Population:
    values = np.column_stack([*columns.values(), np.zeros(len(concept))])
    return Population(CustomerTable((*columns, "@seed"), values, np.arange(len(values))), concept, cells, radius)


def marked(people: CustomerTable, rows: NDArray[np.int64]) -> CustomerTable:
    """These rows alone, marked as seeds: others add zeros to a sum over seeds."""
    values = people.values[rows]
    values[:, -1] = 1.0
    return CustomerTable(people.columns, values, people.keys[rows])


def released(
    query: SumQuery, people: CustomerTable, epsilon: float, share: Fraction
) -> tuple[NDArray[np.float64], float]:
    """A noisy sum as ten institutions' doors make it, and its standard deviation."""
    sigma = noise_scale(query, int(share * budget_for(epsilon, DELTA).mu2))
    return noised(bounded_total(query, people), sigma)


def noised(total: NDArray[np.int64], sigma: int) -> tuple[NDArray[np.float64], float]:
    """A sum with ten shares of exact noise."""
    values, std = noised_often(total, sigma, 1)
    return values[0], std


def noised_often(total: NDArray[np.int64], sigma: int, times: int) -> tuple[NDArray[np.float64], float]:
    """The sum as so many independent releases, one a row."""
    own = SHARED.sigma_of(sigma)
    noise = sample_discrete_gaussian(own, INSTITUTIONS * times * len(total), BITS)
    return (total + noise.reshape(INSTITUTIONS, times, -1).sum(axis=0)) / SCALE, own * INSTITUTIONS**0.5 / SCALE


@dataclass(frozen=True)
class Base:
    """What a base plan released of everybody: the mean in the box, and second moments around it."""

    centre: NDArray[np.float64]
    covariance: NDArray[np.float64]


def base_plan(world: Population, people: CustomerTable) -> Base:
    """Two sums at epsilon 2: the mean, and second moments around it, a quarter of the budget each."""
    d = len(world.scaler.features)
    origin, wide = np.zeros((1, d)), np.array([float(np.sqrt(d))])
    query = MomentQuery(world.scaler, origin, wide, (0.25, 1.0))
    values, _std = released(query, people, 2.0, BASE)
    first = read_moments(query, values)
    centre = np.clip(first.sums[0] / first.counts[0] * wide[0], -1.0, 1.0)
    query = MomentQuery(world.scaler, centre[np.newaxis], np.array([world.radius]), (0.25, 0.25, 1.0))
    values, _std = released(query, people, 2.0, BASE)
    second = read_moments(query, values)
    return Base(centre, second.seconds[0] / second.counts[0])


# --- the doctor ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """A seed subset, `size` of it at the institution that forecasts: the forecast, and what releases measured."""

    epsilon: float
    size: int
    forecast: float
    low: float
    high: float
    measured: NDArray[np.float64]

    @property
    def possible(self) -> float:
        """The largest part of the measured cosines that any window of +-0.05 holds."""
        ordered = np.sort(self.measured)
        return float(
            (np.searchsorted(ordered, ordered + 0.1, side="right") - np.arange(len(ordered))).max() / len(ordered)
        )


def doctor(world: Population, draws: int, noises: int, places: int) -> list[Draw]:
    """Forecasts made by one institution, and measured cosines of the federation's sum."""
    rng = np.random.default_rng(3)
    query = _survey_query(world, base_plan(world, world.people), cells=world.cells[:1])
    result, concept = [], np.flatnonzero(world.concept)
    for number in range(draws):
        size, epsilon = SIZES[number % len(SIZES)], EPSILONS[number // len(SIZES) % len(EPSILONS)]
        chosen = rng.choice(concept, places * size, replace=False)
        seeds = marked(world.people, chosen)
        rows = query.contribute(seeds).values[:, 1:] / SCALE
        here = rows[:size]
        std = seed_noise(
            epsilon, DELTA, float(HEAD), institutions=INSTITUTIONS, noise=SHARED, bound_squared=query.bound_squared
        )
        told = forecast_seed(seed_moments(here), std, elsewhere=(size,) * (places - 1)).centroid
        total = bounded_total(query, seeds)
        sigma = noise_scale(query, int(HEAD * budget_for(epsilon, DELTA).mu2))
        measured = _cosines(noised_often(total, sigma, noises)[0][:, 1:], total[1:] / SCALE)
        result.append(Draw(epsilon, size, told.expected, told.low, told.high, measured))
    return result


def _cosines(rows: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rows @ other / np.sqrt((rows * rows).sum(axis=1) * (other @ other)))


def judge_doctor(name: str, draws: list[Draw]) -> dict[str, float]:
    """The table of one set, and its figures."""
    print(f"\ndoctor, {name}: expected cosine / measured mean / single releases within 0.05 (most possible)")
    for epsilon in EPSILONS:
        cells = []
        for size in SIZES:
            part = [draw for draw in draws if (draw.epsilon, draw.size) == (epsilon, size)]
            near = np.mean([np.mean(np.abs(draw.measured - draw.forecast) <= 0.05) for draw in part])
            figures = [np.mean([d.forecast for d in part]), np.mean([d.measured.mean() for d in part])]
            cells.append(f"{figures[0]:.3f}/{figures[1]:.3f}/{near:.0%} ({np.mean([d.possible for d in part]):.0%})")
        print(f"  epsilon {epsilon:<5}" + "".join(f"{cell:>26}" for cell in cells))
    good = [draw for draw in draws if draw.forecast >= 0.9]
    advised = [draw for draw in draws if draw.size >= 500 and draw.epsilon >= 0.5]
    figures_ = {
        "draws": float(len(draws)),
        "mean_within_05": float(np.mean([abs(d.measured.mean() - d.forecast) <= 0.05 for d in draws])),
        "interval_coverage": float(np.mean([np.mean((d.measured >= d.low) & (d.measured <= d.high)) for d in draws])),
        "single_within_05": float(np.mean([np.mean(np.abs(d.measured - d.forecast) <= 0.05) for d in draws])),
        "single_possible": float(np.mean([d.possible for d in draws])),
        "first_within_05": float(np.mean([abs(d.measured[0] - d.forecast) <= 0.05 for d in draws])),
        "advised_draws": float(len(advised)),
        "advised_first_within_05": float(np.mean([abs(d.measured[0] - d.forecast) <= 0.05 for d in advised])),
        "fit_draws": float(len(good)),
        "fit_first_within_05": float(np.mean([abs(d.measured[0] - d.forecast) <= 0.05 for d in good])),
    }
    print("  " + "  ".join(f"{key} {value:.3g}" for key, value in figures_.items()))
    return figures_


# --- the choice ------------------------------------------------------------------------------------------------------


def _survey_query(world: Population, base: Base, cells: NDArray[np.float64]) -> SeedSurveyQuery:
    return SeedSurveyQuery(world.scaler, "@seed", base.centre, world.radius, cells, 0.25)


def _clean(
    rng: np.random.Generator, concept: NDArray[np.int64], rest: NDArray[np.int64], listed: int
) -> NDArray[np.int64]:
    return rng.choice(concept, listed, replace=False)


def _mixed(
    rng: np.random.Generator, concept: NDArray[np.int64], rest: NDArray[np.int64], listed: int
) -> NDArray[np.int64]:
    wrong = int(0.3 * listed)
    return np.concatenate([rng.choice(concept, listed - wrong, replace=False), rng.choice(rest, wrong, replace=False)])


LISTS: dict[str, Callable[..., NDArray[np.int64]]] = {"clean": _clean, "30% others": _mixed}


@dataclass(frozen=True)
class Split:
    """A split of adult: training people, what the base plan released of them, and the people held out."""

    people: CustomerTable
    concept: NDArray[np.bool_]
    base: Base
    test: NDArray[np.float64]
    truth: NDArray[np.bool_]


def split(world: Population, number: int) -> Split:
    """70% to train on."""
    train = np.random.default_rng(number).random(len(world.people)) < 0.7
    people = world.people.take(train)
    base = base_plan(world, people)
    test = world.scaler.transform(world.people.take(~train).select(world.scaler.features)) - base.centre
    return Split(people, world.concept[train], base, test, world.concept[~train])


def choice_round(
    world: Population, part: Split, rows: NDArray[np.int64], size: int, epsilon: float
) -> dict[str, float]:
    """One split, list and noise: the held-out AUC of every arm, and how many were chosen."""
    people, base = part.people, part.base
    query, plain = _survey_query(world, base, world.cells), _survey_query(world, base, world.cells[:1])

    def auc(direction: NDArray[np.float64]) -> float:
        return float(roc_auc_score(part.truth, part.test @ direction))

    def surveyed(chosen: NDArray[np.int64], share: Fraction, asked: SeedSurveyQuery = plain) -> SeedSurvey:
        values, std = released(asked, marked(people, chosen), epsilon, share)
        return read_survey(asked, values, std)

    def alone(survey: SeedSurvey) -> float:
        return auc(seed_direction(survey, base.covariance))

    members = marked(people, rows)
    survey = surveyed(rows, HEAD * SURVEY, query)
    rule = choose_seeds(query, survey, base.covariance, size=size).rule
    broad = choose_seeds(query, survey, base.covariance, size=size, most=0.5).rule
    kept, spread = (rows[one.kept(members, fresh_key())] for one in (rule, broad))
    everywhere = np.array([len(kept) / len(rows)])
    blind = SeedRule(query.scaler, rule.direction, -np.inf, world.cells[:1], everywhere)
    random = rows[blind.kept(members, fresh_key())]
    second, other = surveyed(kept, HEAD * (1 - SURVEY)), surveyed(random, HEAD * (1 - SURVEY))
    return {
        "random": alone(surveyed(random, HEAD)),
        "chosen": alone(second),
        "chosen, half in a cell at most": alone(surveyed(spread, HEAD * (1 - SURVEY))),
        "chosen, with survey": auc(pooled_direction(survey, second, base.covariance)),
        "random, with survey": auc(pooled_direction(survey, other, base.covariance)),
        "whole list": alone(surveyed(rows, HEAD)),
        "kept": float(len(kept)),
        "drawn": float(len(random)),
        "concept before": float(part.concept[rows].mean()),
        "concept after": float(part.concept[kept].mean()),
    }


def judge_choice(label: str, rounds: list[dict[str, float]]) -> dict[str, float]:
    """The table of one setting: means, and gains over the random seed with the standard error of paired differences."""
    figures = {name: float(np.mean([one[name] for one in rounds])) for name in rounds[0]}
    print(
        f"\n{label}: {figures['kept']:.0f} kept, {figures['drawn']:.0f} drawn at random;"
        f" concept {figures['concept before']:.0%} of the list, {figures['concept after']:.0%} of the kept"
    )
    for name in rounds[0]:
        if name in ("kept", "drawn", "concept before", "concept after"):
            continue
        gains = np.array([one[name] - one["random"] for one in rounds])
        error = float(gains.std(ddof=1) / np.sqrt(len(gains)))
        figures[f"gain, {name}"], figures[f"error, {name}"] = float(gains.mean()), error
        print(f"  {name:<32} AUC {figures[name]:.4f}  {gains.mean():+.4f} +- {error:.4f}")
    return figures


def beaten(figures: dict[str, float], arm: str) -> bool:
    """Whether the arm beats the random seed by two standard errors."""
    return figures[f"gain, {arm}"] > 2 * figures[f"error, {arm}"]


def main() -> None:
    """Measure, print, write JSON where asked; 1 when a promise is missed."""
    parser = argparse.ArgumentParser(description="seed doctor and seed choice")
    parser.add_argument("--draws", type=int, default=460)
    parser.add_argument("--noises", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    worlds = {"adult": adult(), "synthetic": synthetic()}
    report: dict[str, dict[str, float]] = {}
    missed: list[str] = []
    for name, world in worlds.items():
        for places in (1, 3):
            label = f"{name}, seeds at {places}"
            figures = judge_doctor(label, doctor(world, arguments.draws, arguments.noises, places))
            report[f"doctor, {label}"] = figures
            promised_shares = ("mean_within_05", "advised_first_within_05", "fit_first_within_05")
            missed += [f"doctor, {label}, {key}" for key in promised_shares if figures[key] < 0.95]
            if places == 1 and not 0.93 <= figures["interval_coverage"] <= 0.97:
                missed.append(f"doctor's interval, {label}")
    splits = [split(worlds["adult"], number) for number in range(arguments.rounds)]
    for lister, make in LISTS.items():
        for listed, size in ((2000, 500), (4000, 1000), (2000, 1000)):
            for epsilon in (0.5, 1.0, 2.0):
                label = f"choice, {lister}, {listed} listed, about {size} used, epsilon {epsilon}"
                rounds = []
                for number, part in enumerate(splits):
                    rng = np.random.default_rng(100 + number)
                    rows = make(rng, np.flatnonzero(part.concept), np.flatnonzero(~part.concept), listed)
                    rounds.append(choice_round(worlds["adult"], part, rows, size, epsilon))
                report[label] = judge_choice(label, rounds)
                promised = ("chosen, with survey",) if lister == "clean" else ("chosen", "chosen, with survey")
                if listed < 4 * size:
                    continue  # shown, not promised: little is left to choose from
                missed += [f"{label}, {arm}" for arm in promised if not beaten(report[label], arm)]
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("\nmissed: " + "; ".join(missed) if missed else "\nall promises kept")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
