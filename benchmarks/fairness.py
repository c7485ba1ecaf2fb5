"""Fairness intervals and verdicts: how often they are right, with the noise that the product adds.

Three institutions, one of which may collude, delta 1e-6, two protected attributes and their pair (a person is in three
cells), a reference of 20,000 people of whom 20% are chosen; groups at parity and at an impact ratio of 0.65.

    make bench TARGET=fairness            two minutes
    make bench TARGET=fairness ARGS="--seeds 300"

Ends with 1 when a target is missed: every coverage of a ratio within 93-97%, over all draws and over those in which an
interval has ends; coverage of the others at least 93%; no more than 5% of families of fair groups with a fail; with
groups of 5,000, at least 90% of planted biases fail and of fair groups pass; every tiny group is insufficient.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohortium.governance.fairness.association import association
from cohortium.governance.fairness.intervals import Interval, Quotient, critical, difference, ratio, share
from cohortium.governance.fairness.variation import total_variation
from cohortium.governance.fairness.verdicts import against_best, judge_ratios, size_problem
from cohortium.models.group_table import GroupTable
from cohortium.privacy.accounting import budget_for

EPSILONS = (0.2, 0.5, 1.0)
SIZES = (200, 500, 5_000)
REFERENCE, RATE, MINIMUM_CELL, ALPHA = 20_000, 0.2, 50.0, 0.05
Z = critical(ALPHA)


def product_std(epsilon: float, institutions: int = 3, colluders: int = 1, tables: int = 3) -> float:
    """Standard deviation of a count's noise: sensitivity sqrt(tables), shares for all but the colluders."""
    mu2 = budget_for(epsilon, 1e-6).mu_squared
    return math.sqrt(tables / mu2 * institutions / (institutions - colluders))


def noisy(rng: np.random.Generator, people: int, rate: float, std: float) -> NDArray[np.float64]:
    """Chosen and not chosen."""
    chosen = rng.binomial(people, rate)
    return np.asarray(np.array([chosen, people - chosen]) + rng.normal(0, std, 2))


def rate_of(cells: NDArray[np.float64], std: float) -> Quotient:
    """The share of the chosen."""
    return share(float(cells[0]), float(cells.sum()), std**2, 2 * std**2, std**2)


def log_ratio(first: NDArray[np.float64], second: NDArray[np.float64], std: float) -> Interval | None:
    """The delta method on the logarithm, with sampling variance and a noise of `std`; None where it is undefined."""
    if min(first[0], first.sum(), second[0], second.sum()) <= 0:
        return None
    rates, variance = [], 0.0
    for cells in (first, second):
        rate = min(float(cells[0] / cells.sum()), 1.0)
        rates.append(rate)
        variance += (1 - rate) / cells[0] + std**2 * ((1 - rate) ** 2 + rate**2) / cells[0] ** 2
    middle, reach = math.log(rates[0] / rates[1]), Z * math.sqrt(variance)
    return Interval(math.exp(middle), math.exp(middle - reach), math.exp(min(middle + reach, 700.0)), bounded=True)


def fieller(first: NDArray[np.float64], second: NDArray[np.float64], std: float) -> Interval | None:
    """Fieller's set of two rates with variances estimated once, at the estimates; None where it has no end."""
    if min(first.sum(), second.sum()) <= 0:
        return None
    rates, variances = [], []
    for cells in (first, second):
        people = float(cells.sum())
        rate = min(max(float(cells[0]) / people, 0.0), 1.0)
        rates.append(rate)
        variances.append(rate * (1 - rate) / people + std**2 * ((1 - rate) ** 2 + rate**2) / people**2)
    lead = rates[1] ** 2 - Z**2 * variances[1]
    root = (rates[0] * rates[1]) ** 2 - lead * (rates[0] ** 2 - Z**2 * variances[0])
    if lead <= 0 or root < 0:
        return None
    ends = [(rates[0] * rates[1] + sign * math.sqrt(root)) / lead for sign in (-1, 1)]
    return Interval(rates[0] / rates[1], max(ends[0], 0.0), ends[1], bounded=True)


def coverage(seeds: int) -> tuple[list[dict[str, Any]], bool]:
    """Intervals of the impact ratio against a named reference."""
    print("\nCoverage of 95% intervals of an impact ratio, in %: over all draws (an interval without an end holds")
    print("everything), over draws with ends, and how many those are; others: over draws where they are defined")
    print(f"{'epsilon':>8}{'noise':>7}{'people':>8}{'ratio':>7}{'all':>8}{'ends':>8}{'given':>8}{'judged':>8}"
          f"{'ignoring noise':>16}{'log delta':>11}{'(defined)':>11}{'Fieller':>9}{'(defined)':>11}")  # fmt: skip
    found, good = [], True
    reach = 2.0 if seeds >= 1000 else 300 * math.sqrt(0.05 * 0.95 / seeds)  # three standard errors of fewer seeds
    for epsilon in EPSILONS:
        for people in SIZES:
            for truth in (1.0, 0.65):
                row = _covered(
                    np.random.default_rng([int(epsilon * 10), people, int(truth * 100)]), epsilon, people, truth, seeds
                )
                found.append(row)
                good &= abs(row["all"] - 95) <= reach and abs(row["ends"] - 95) <= reach
                print(f"{epsilon:8}{row['noise']:7.1f}{people:8,}{truth:7}{row['all']:8.1f}{row['ends']:8.1f}"
                      f"{row['given']:8.1f}{row['judged']:8.1f}{row['naive'][0]:16.1f}{row['log'][0]:11.1f}"
                      f"{row['log'][1]:11.1f}{row['fieller'][0]:9.1f}{row['fieller'][1]:11.1f}")  # fmt: skip
    return found, good


def _covered(rng: np.random.Generator, epsilon: float, people: int, truth: float, seeds: int) -> dict[str, Any]:
    std, held, given, inside, judged = product_std(epsilon), 0, 0, 0, 0
    others: dict[str, list[bool]] = {"naive": [], "log": [], "fieller": []}
    for _ in range(seeds):
        group, reference = noisy(rng, people, RATE * truth, std), noisy(rng, REFERENCE, RATE, std)
        rates = rate_of(group, std), rate_of(reference, std)
        ours = ratio(*rates, Z)
        hit = ours.low <= truth <= ours.high
        held, given, inside = held + (hit or not ours.bounded), given + ours.bounded, inside + (hit and ours.bounded)
        overall = (rates[0].top + rates[1].top) / (rates[0].bottom + rates[1].bottom)
        judged += size_problem(overall * rates[0].bottom, std, MINIMUM_CELL) is None
        for name, other in (
            ("naive", log_ratio(group, reference, 0.0)),
            ("log", log_ratio(group, reference, std)),
            ("fieller", fieller(group, reference, std)),
        ):
            if other is not None:
                others[name].append(other.low <= truth <= other.high)
    percent = {"all": held / seeds, "ends": inside / max(given, 1), "given": given / seeds, "judged": judged / seeds}
    return {
        "epsilon": epsilon, "noise": std, "people": people, "ratio": truth,
        **{name: 100 * value for name, value in percent.items()},
        **{name: (100 * sum(hits) / max(len(hits), 1), 100 * len(hits) / seeds) for name, hits in others.items()},
    }  # fmt: skip


def selection(seeds: int) -> tuple[list[dict[str, Any]], bool]:
    """Coverage where the reference is chosen from noisy counts: the best of all against the one that looks best."""
    print("\nReference chosen from noisy counts: coverage of the ratio to the truly best group, in %")
    print(f"{'epsilon':>8}  {'groups':34}{'best of all':>12}{'looks best':>12}{'its pass':>10}{'its fail':>10}")
    found, good = [], True
    cases = {
        "5 of 5,000, equal": ((5_000,) * 5, (1.0,) * 5),
        "20,000 and 4 small ones, equal": ((20_000, 8_000, 2_000, 1_000, 500), (1.0,) * 5),
        "20,000, 8,000, 5,000 at 0.65": ((20_000, 8_000, 5_000), (1.0, 1.0, 0.65)),
    }
    for epsilon in EPSILONS:
        for name, (sizes, ratios) in cases.items():
            row = _selected(
                np.random.default_rng([7, int(epsilon * 10), len(sizes)]), epsilon, sizes, ratios, max(seeds // 4, 50)
            )
            found.append({"epsilon": epsilon, "groups": name, **row})
            good &= row["best"] >= 93
            print(
                f"{epsilon:8}  {name:34}{row['best']:12.1f}{row['looks']:12.1f}{row['pass']:10.1f}{row['fail']:10.1f}"
            )
    return found, good


def _selected(
    rng: np.random.Generator, epsilon: float, sizes: tuple[int, ...], ratios: tuple[float, ...], seeds: int
) -> dict[str, float]:
    std, seen = product_std(epsilon), Counter[str]()
    for _ in range(seeds):
        rates = [rate_of(noisy(rng, n, RATE * r, std), std) for n, r in zip(sizes, ratios, strict=True)]
        able = [row for row, rate in enumerate(rates) if size_problem(RATE * rate.bottom, std, MINIMUM_CELL) is None]
        if len(able) < 2:
            continue
        kept, truths = [rates[row] for row in able], [ratios[row] for row in able]
        top = max(range(len(kept)), key=lambda row: kept[row].estimate or 0.0)
        for row, truth in enumerate(truths):
            wide = against_best(kept, row, "benefit")(ALPHA)
            seen["draws"] += 1
            seen["best"] += wide.low <= truth / max(truths) <= wide.high
            if row != top:
                plain = ratio(kept[row], kept[top], Z)
                seen["plain"] += 1
                seen["looks"] += plain.low <= truth / max(truths) <= plain.high
        for each in judge_ratios(kept, [None] * len(kept), None, "benefit", 0.8, ALPHA):
            seen[str(each.verdict)] += 1
    return {
        "best": 100 * seen["best"] / seen["draws"], "looks": 100 * seen["looks"] / seen["plain"],
        "pass": 100 * seen["pass"] / seen["draws"], "fail": 100 * seen["fail"] / seen["draws"],
    }  # fmt: skip


def verdicts(seeds: int) -> tuple[list[dict[str, Any]], bool]:
    """How often a group at parity, one at 0.65 and a tiny one get which verdict, beside a bare test of 0.8."""
    print("\nVerdicts against a named reference of 20,000, in %; a bare test fails what looks below 0.8")
    names = "".join(f"{name:>14}" for name in ("pass", "fail", "inconclusive", "insufficient", "bare fail"))
    print(f"{'epsilon':>8}{'people':>8}{'ratio':>7}{names}")
    found, good = [], True
    for epsilon in EPSILONS:
        for people in (60, 200, 500, 1_000, 2_000, 5_000):
            for truth in (1.0, 0.65):
                row = _judged(
                    np.random.default_rng([11, int(epsilon * 10), people, int(truth * 100)]),
                    epsilon,
                    people,
                    truth,
                    seeds,
                )
                found.append({"epsilon": epsilon, "people": people, "ratio": truth, **row})
                good &= people != 60 or row["insufficient"] == 100
                good &= people != 5_000 or (row["pass"] if truth == 1.0 else row["fail"]) >= 90
                good &= truth < 1.0 or row["fail"] <= 5
                print(f"{epsilon:8}{people:8,}{truth:7}" + "".join(f"{value:14.1f}" for value in row.values()))
    return found, good


def _judged(rng: np.random.Generator, epsilon: float, people: int, truth: float, seeds: int) -> dict[str, float]:
    std, seen = product_std(epsilon), Counter[str]()
    for _ in range(seeds):
        rates = [rate_of(noisy(rng, n, RATE * r, std), std) for n, r in ((REFERENCE, 1.0), (people, truth))]
        overall = sum(rate.top for rate in rates) / sum(rate.bottom for rate in rates)
        problems = [size_problem(overall * rate.bottom, std, MINIMUM_CELL) for rate in rates]
        seen[str(judge_ratios(rates, problems, 0, "benefit", 0.8, ALPHA)[1].verdict)] += 1
        estimates = [rate.estimate or 0.0 for rate in rates]
        seen["bare"] += estimates[0] > 0 and estimates[1] / estimates[0] < 0.8
    names = ("pass", "fail", "inconclusive", "insufficient", "bare")
    return {name: 100 * seen[name] / seeds for name in names}


def families(seeds: int) -> tuple[list[dict[str, Any]], bool]:
    """How often a family of fair groups holds a fail, and one of groups exactly at 0.8 any pass or fail."""
    print("\nFamilies of six groups of 3,000, in %: fair ones with a fail; ones at 0.8 with any pass or fail")
    found, good = [], True
    for epsilon in EPSILONS:
        rng, std, draws = np.random.default_rng([13, int(epsilon * 10)]), product_std(epsilon), max(seeds // 2, 50)
        wrong = Counter[float]()
        for truth in (1.0, 0.8):
            for _ in range(draws):
                rates = [
                    rate_of(noisy(rng, n, RATE * r, std), std) for n, r in ((REFERENCE, 1.0), *((3_000, truth),) * 6)
                ]
                made = judge_ratios(rates, [None] * 7, 0, "benefit", 0.8, ALPHA)
                bad = ("fail",) if truth == 1.0 else ("pass", "fail")
                wrong[truth] += any(each.verdict in bad for each in made)
        row = {"epsilon": epsilon, "fair": 100 * wrong[1.0] / draws, "edge": 100 * wrong[0.8] / draws}
        found.append(row)
        good &= row["fair"] <= 5 and row["edge"] <= 5 + 3 * 100 * math.sqrt(0.05 * 0.95 / draws)
        print(f"{epsilon:8}{row['fair']:8.1f}{row['edge']:8.1f}")
    return found, good


def others(seeds: int) -> tuple[list[dict[str, Any]], bool]:
    """Differences, Cramér's V and total variation."""
    print("\nCoverage of the other intervals, in %, and how often V is found where there is none (5 is right)")
    print(f"{'epsilon':>8}" + "".join(f"{name:>14}" for name in _OTHERS))
    found, good, draws = [], True, max(seeds // 2, 50)
    for epsilon in EPSILONS:
        rng, std = np.random.default_rng([17, int(epsilon * 10)]), product_std(epsilon)
        row = {name: 100 * sum(one(rng, std) for _ in range(draws)) / draws for name, one in _OTHERS.items()}
        found.append({"epsilon": epsilon, **row})
        error = 300 * math.sqrt(0.05 * 0.95 / draws)
        good &= all(value >= 95 - error for name, value in row.items() if name != "found at V 0")
        good &= row["found at V 0"] <= 5 + error
        print(f"{epsilon:8}" + "".join(f"{value:14.1f}" for value in row.values()))
    return found, good


def _apart(rng: np.random.Generator, std: float) -> bool:
    rates = (rate_of(noisy(rng, 1_000, rate, std), std) for rate in (0.3, 0.2))
    return _holds(difference(*rates, Z), 0.1)


def _holds(found: Interval, truth: float) -> bool:
    return found.low - 1e-12 <= truth <= found.high


def _cramer(rng: np.random.Generator, v: float, std: float, people: int = 20_000) -> Any:
    """Three groups by four segments."""
    cells, shift = np.outer((0.5, 0.3, 0.2), (0.4, 0.3, 0.2, 0.1)), np.zeros((3, 4))
    shift[:2, :2] = [[1, -1], [-1, 1]]
    cells = cells + shift * v * math.sqrt(2 / float((shift**2 / cells).sum()))
    counts = rng.multinomial(people, cells.ravel()).reshape(3, 4) + rng.normal(0, std, (3, 4))
    return association(GroupTable(("sex",), (("a",), ("b",), ("c",)), ("1", "2", "3", "4"), counts, std), ALPHA)


def _varied(rng: np.random.Generator, rates: tuple[float, ...], std: float) -> bool:
    people = np.array([8_000, 4_000, 2_000])
    mean, chosen = people * rates, rng.binomial(people, rates)
    truth = float(np.abs(mean / mean.sum() - people / people.sum()).sum() / 2)
    cells = chosen + rng.normal(0, std, 3), people - chosen + rng.normal(0, std, 3)
    return _holds(total_variation(*cells, std, ALPHA), truth)


_OTHERS: dict[str, Callable[[np.random.Generator, float], bool]] = {
    "difference": _apart,
    "V = 0.05": lambda rng, std: _holds(_cramer(rng, 0.05, std).interval, 0.05),
    "V = 0.3": lambda rng, std: _holds(_cramer(rng, 0.3, std).interval, 0.3),
    "found at V 0": lambda rng, std: bool(_cramer(rng, 0.0, std).p_value < 0.05),
    "TV = 0": lambda rng, std: _varied(rng, (0.1, 0.1, 0.1), std),
    "TV = 0.196": lambda rng, std: _varied(rng, (0.14, 0.06, 0.05), std),
}


def main() -> int:
    """Measure, print, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    missed = []
    for part in (coverage, selection, verdicts, families, others):
        figures[part.__name__], good = part(options.seeds)
        if not good:
            missed.append(part.__name__)
    print(f"\ntargets missed: {', '.join(missed) or 'none'}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
