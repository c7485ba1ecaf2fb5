"""Seeds, measured: `python benchmarks/seeds.py [--draws N] [--noises N] [--rounds N] [--json OUT]`.

*Doctor.* Draws of (seed subset, noise) over 100 to 2,000 seeds and epsilon 0.25 to 2, for adult and a synthetic set of
32 dimensions: the forecast cosine against the one that exact discrete Gaussian noise leaves. Where noise and signal are
alike, a single release scatters by more than any forecast can know, so these are checked: the forecast is within 0.05
of the mean over noise in 95% of draws; its 95% interval holds 93 to 97% of single releases; and a single release is
within 0.05 of the forecast in 95% of draws from 500 seeds (advised) and epsilon 0.5 on, and wherever 0.9 is forecast.
The share over all draws stands beside the most that any forecast could have had.

With seeds at three institutions, one of them forecasts from its own third and the number of the others.

*Choice.* adult, concept income above 50K, held-out AUC of the ranker that a campaign learns: a refined list (`models.
seed_choice`, the rule of `cohortium seed refine`) against a random part of the same list and expected size. Campaigns
ask their own questions of everybody, with exact noise. All arms cost the same epsilon, but for the model that
refines, of which both ways of paying are shown:

- "chosen": it comes from an earlier wave of the same epsilon on the whole list, paid then. That earlier model, free by
  now, is shown too ("whole list"): it is what a campaign on the whole list finds.
- "all who pass": the same, not thinned. "Drawn without bands": thinned alike, not crowded bands first.
- "chosen, model paid here": 30% of this budget's mu^2 for a campaign on the whole list, and 70% for the chosen.

Checked: of a list with 30% others, the chosen part beats the random one by two standard errors, each setting. Ten
institutions; the noise of eight less two protects a sum.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from lookalike_sets import SETS, Concept
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from cohortium.models.encoding import EncodedStudy, encoder_programme
from cohortium.models.lookalike import CampaignResult, lookalike_programme
from cohortium.models.moments import MomentQuery, read_moments
from cohortium.models.programme import NoisySum, Programme
from cohortium.models.rows import HASH, SEED, row_hashes
from cohortium.models.scaler import Scaler
from cohortium.models.seed_choice import seed_rule
from cohortium.models.seed_doctor import forecast_seed, seed_moments, seed_noise
from cohortium.models.studies import phases
from cohortium.privacy.accounting import Spend, budget_for
from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.privacy.query import SCALE, SumQuery, bounded_total
from cohortium.privacy.randomness import OsBitSource, fresh_key
from cohortium.privacy.release import noise_scale
from cohortium.privacy.sharing import NoiseShare
from cohortium.privacy.table import CustomerTable
from cohortium.simulations.datasets import fetch
from cohortium.simulations.local_federation import plan_head
from cohortium.study.contract import Contract
from cohortium.study.lookalike_plan import EncoderPlan, LookalikePlan
from cohortium.study.plan import Plan

DELTA, INSTITUTIONS, SHARED = 1e-6, 10, NoiseShare(8, 2)
SIZES, EPSILONS = (100, 200, 500, 1000, 2000), (0.25, 0.5, 1.0, 2.0)
HEAD, BASE, MODEL = Fraction(3, 5), Fraction(1, 4), Fraction(3, 10)
PART = 0.35
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
    """Customers, who of them has the concept, and the public clipping radius in the box."""

    people: CustomerTable
    concept: NDArray[np.bool_]
    radius: float

    @property
    def scaler(self) -> Scaler:
        """Every column from [0, 1] to the box: public bounds."""
        d = len(self.people.columns)
        return Scaler(self.people.columns, np.zeros(d, dtype=np.bool_), np.zeros(d), np.ones(d))


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
    return _population(columns, (frame["income_over_50k"] == ">50K").to_numpy(), 3.2)


def synthetic(people: int = 30_000) -> Population:
    """A 32-dimensional cloud in which the concept is a soft half-space: the size of an embedding."""
    rng = np.random.default_rng(7)
    points = rng.normal(0.0, 0.12, (people, 32)) * np.linspace(1.5, 0.5, 32)
    towards = rng.normal(size=32)
    score = points @ (towards / np.linalg.norm(towards)) + rng.normal(0.0, 0.05, people)
    columns = {f"e{i:02d}": np.clip((column + 1) / 2, 0, 1) for i, column in enumerate(points.T)}
    return _population(columns, score > np.quantile(score, 0.75), 1.0)


def _hats(
    columns: dict[str, NDArray[np.float64]], name: str, values: NDArray[np.float64], knots: NDArray[np.float64]
) -> None:
    """Piecewise-linear functions on public knots that add up to one."""
    for index, knot in enumerate(knots):
        columns[f"{name}~{knot:g}"] = np.interp(values, knots, np.eye(len(knots))[index])


def _population(columns: dict[str, NDArray[np.float64]], concept: NDArray[np.bool_], radius: float) -> Population:
    values = np.column_stack([*columns.values()])
    return Population(CustomerTable(tuple(columns), values, np.arange(len(values))), concept, radius)


def released(
    query: SumQuery, people: CustomerTable, budget: Spend, share: Fraction
) -> tuple[NDArray[np.float64], float]:
    """A noisy sum as ten institutions' doors make it for that share of a budget, and its standard deviation."""
    sigma = noise_scale(query, int(share * budget.mu2))
    values, std = noised_often(bounded_total(query, people), sigma, 1)
    return values[0], std


def noised_often(total: NDArray[np.int64], sigma: int, times: int) -> tuple[NDArray[np.float64], float]:
    """The sum as so many independent releases, one a row."""
    own = SHARED.sigma_of(sigma)
    noise = sample_discrete_gaussian(own, INSTITUTIONS * times * len(total), BITS)
    return (total + noise.reshape(INSTITUTIONS, times, -1).sum(axis=0)) / SCALE, own * INSTITUTIONS**0.5 / SCALE


def released_centre(world: Population) -> NDArray[np.float64]:
    """The mean of all people in the box, for a quarter of epsilon 2."""
    d = len(world.scaler.features)
    wide = np.array([float(np.sqrt(d))])
    query = MomentQuery(world.scaler, np.zeros((1, d)), wide, (0.25, 1.0))
    values, _std = released(query, world.people, budget_for(2.0, DELTA), BASE)
    first = read_moments(query, values)
    return np.asarray(np.clip(first.sums[0] / first.counts[0] * wide[0], -1.0, 1.0))


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
    query = MomentQuery(world.scaler, released_centre(world)[np.newaxis], np.array([world.radius]), (0.25, 1.0))
    result, concept = [], np.flatnonzero(world.concept)
    for number in range(draws):
        size, epsilon = SIZES[number % len(SIZES)], EPSILONS[number // len(SIZES) % len(EPSILONS)]
        chosen = rng.choice(concept, places * size, replace=False)
        seeds = CustomerTable(world.people.columns, world.people.values[chosen], world.people.keys[chosen])
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

SHARES = {"features": 75, "embedding": 0, "contest": 0, "curve": 25, "profile": 0}
START = {"marginals": 5, "moments": 85, "training": 0, "centres": 10}


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


def asked(
    plan: Plan, budget: Spend, programme: Programme[CampaignResult] | Programme[EncodedStudy], people: CustomerTable
) -> CampaignResult | EncodedStudy:
    """What a programme finds when its plan's phases share that budget: every answer with exact noise."""
    known = {phase.name: phase for phase in phases(plan)}
    try:
        ask = next(programme)
        while True:
            phase = known[ask.phase]
            values, std = released(ask.query, people, budget, phase.share / phase.rounds)
            ask = programme.send(NoisySum(values, std, INSTITUTIONS))
    except StopIteration as end:
        return end.value


@dataclass(frozen=True)
class Split:
    """A split of adult: training people with who has the concept, what an encoder released, and the held out."""

    contract: Contract
    people: CustomerTable
    concept: NDArray[np.bool_]
    base: EncodedStudy
    test: CustomerTable
    truth: NDArray[np.bool_]

    def campaign(self, rows: NDArray[np.int64], budget: Spend) -> CampaignResult:
        """One campaign on everybody, with these rows as seeds."""
        plan = LookalikePlan.model_validate(
            _head("campaign", self.contract)
            | {"study": "lookalike", "model": "sha256:" + "0" * 64, "lookalike": {"seed": "s"}, "shares": SHARES}
        )
        seeds = np.zeros(len(self.people))
        seeds[rows] = 1.0
        found = asked(plan, budget, lookalike_programme(plan, self.base), self.people.with_column(SEED, seeds))
        return cast("CampaignResult", found)

    def auc(self, result: CampaignResult) -> float:
        """On the people held out."""
        return float(roc_auc_score(self.truth, result.ranker.scores(self.test)))


def _head(name: str, contract: Contract) -> dict[str, Any]:
    return plan_head(name, contract, "distributed", INSTITUTIONS, 8, 2) | {"epsilon": 1.0, "delta": DELTA}


def split(concept: Concept, number: int) -> Split:
    """70% to train on; an encoder at epsilon 2 that is not trained, as a campaign's ranker on features needs it."""
    train = np.random.default_rng(number).random(len(concept.people)) < 0.7
    people = concept.people.take(train)
    people = people.with_column(HASH, row_hashes(people.keys))
    plan = EncoderPlan.model_validate(_head("encoder", concept.contract) | {"study": "encoder", "shares": START})
    base = asked(plan, budget_for(2.0, DELTA), encoder_programme(plan, concept.contract), people)
    return Split(
        concept.contract,
        people,
        concept.member[train],
        cast("EncodedStudy", base),
        concept.people.take(~train),
        concept.member[~train],
    )


def choice_round(
    part: Split, rows: NDArray[np.int64], share: float, epsilon: float, rng: np.random.Generator
) -> dict[str, float]:
    """One split, list and noise: the held-out AUC of every arm, and how many were chosen."""
    whole = budget_for(epsilon, DELTA)
    first, rest = (Spend(int(of * whole.mu2)) for of in (MODEL, 1 - MODEL))

    listed = part.people.take(np.isin(np.arange(len(part.people)), rows))
    rows = np.sort(rows)

    def chosen(by: CampaignResult, most: float) -> NDArray[np.int64]:
        return rows[seed_rule(by.ranker, by.curve, most).kept(listed, fresh_key())[1]]

    earlier = part.campaign(rows, whole)
    kept, refined = chosen(earlier, share), chosen(earlier, 1.0)
    plain = rng.choice(refined, len(kept), replace=False)
    return {
        "random": part.auc(part.campaign(rng.choice(rows, len(kept), replace=False), whole)),
        "chosen": part.auc(part.campaign(kept, whole)),
        "chosen, drawn without bands": part.auc(part.campaign(plain, whole)),
        "chosen, model paid here": part.auc(part.campaign(chosen(part.campaign(rows, first), share), rest)),
        "all who pass": part.auc(part.campaign(refined, whole)),
        "whole list": part.auc(earlier),
        "kept": float(len(kept)),
        "passed": float(len(refined)),
        "concept before": float(part.concept[rows].mean()),
        "concept after": float(part.concept[kept].mean()),
    }


def judge_choice(label: str, rounds: list[dict[str, float]]) -> dict[str, float]:
    """The table of one setting: means, and gains over the random seed with the standard error of paired differences."""
    figures = {name: float(np.mean([one[name] for one in rounds])) for name in rounds[0]}
    print(
        f"\n{label}: {figures['passed']:.0f} pass, {figures['kept']:.0f} kept;"
        f" concept {figures['concept before']:.0%} of the list, {figures['concept after']:.0%} of the kept"
    )
    for name in rounds[0]:
        if name in ("kept", "passed", "concept before", "concept after"):
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
    parser.add_argument("--rounds", type=int, default=24)
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
    concept = SETS["adult"]()
    splits = [split(concept, number) for number in range(arguments.rounds)]
    for lister, make in LISTS.items():
        for listed in (2000, 4000):
            for epsilon in (0.5, 1.0):
                label = f"choice, {lister}, {listed} listed, a share {PART} of who pass, epsilon {epsilon}"
                rounds = []
                for number, part in enumerate(splits):
                    rng = np.random.default_rng(100 + number)
                    rows = make(rng, np.flatnonzero(part.concept), np.flatnonzero(~part.concept), listed)
                    rounds.append(choice_round(part, rows, PART, epsilon, rng))
                report[label] = judge_choice(label, rounds)
                if make is _mixed and not beaten(report[label], "chosen"):
                    missed.append(f"{label}, chosen")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("\nmissed: " + "; ".join(missed) if missed else "\nall promises kept")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
