"""Reach-dilution curve: which matrix tells tails best, whether the bands cover, and how rankers are best chosen.

python benchmarks/reach.py [--json OUT] [--seeds 1000] [--fresh]

Coverage: synthetic customers of three sizes, the query as an institution answers it, noise by the exact discrete
Gaussian sampler, the curve as it is released. Bands of narrow, balanced and broad, and of the points of the curve on
average, must hold the true reach in 93-97% of the seeds; exit code 1 otherwise. Noise is seeded for repeatability;
--fresh takes the operating system's.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from cohortium.models.basis import Basis, Block
from cohortium.models.contest import ContestQuery, choose_ranker, percentile_noise, percentiles, read_contest
from cohortium.models.features import Rows, on_weight_grid
from cohortium.models.levels import reach_curve
from cohortium.models.ranker import Ranker
from cohortium.models.reach import ScoreCurveQuery, read_score_counts
from cohortium.models.scorebins import ScoreBins, standard_edges
from cohortium.models.validation import Estimate, Validation
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.privacy.query import SCALE, bounded_total
from cohortium.privacy.randomness import BitSource, OsBitSource
from cohortium.privacy.release import noise_scale
from cohortium.privacy.table import CustomerTable

DELTA, SHARE, MIN_CELL = 1e-6, 0.15, 100.0
SETTINGS = ((5_000, 1.0), (20_000, 0.5), (20_000, 1.0), (200_000, 0.25))
LEVELS = ("narrow", "balanced", "broad")
LOW, HIGH = 0.93, 0.97


class SimulatedBits:
    """Seeded words for simulation; never a source of protection."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def words(self, count: int) -> NDArray[np.uint64]:
        """Uniform words."""
        return self._rng.integers(0, 2**64, count, dtype=np.uint64)


def column(name: str) -> Ranker:
    """A ranker whose scores are a column of numbers between -8 and 8, in steps of 1/90."""
    rows = Rows(Basis((Block(name, low=-8.0, high=8.0),)), np.zeros(2), 4.0)
    return Ranker(rows, on_weight_grid(np.array([8.0 * math.sqrt(2.0), 0.0])))


def binned(name: str, table: CustomerTable, bins: int) -> ScoreBins:
    """That ranker with standard bins for its mean and standard deviation."""
    ranker = column(name)
    scores = ranker.scores(table)
    return ScoreBins(ranker, standard_edges(float(scores.mean()), float(scores.std()), bins))


# --- which matrix ----------------------------------------------------------------------------------------------------


def tree(bins: int, branching: int) -> NDArray[np.float64]:
    """All nodes of a tree over the bins but its root."""
    levels, width = [np.eye(bins)], 1
    while bins > branching * width:
        width *= branching
        nodes = np.arange(math.ceil(bins / width))
        levels.append((np.arange(bins) // width == nodes[:, np.newaxis]).astype(np.float64))
    return np.vstack(levels)


def ours(bins: int) -> NDArray[np.float64]:
    """The query's matrix: words by bins, highest bin first."""
    values = np.column_stack([np.linspace(8.0, -8.0, bins), np.zeros(bins)])
    people = CustomerTable(("score", "@seed"), values, np.arange(bins))
    ranker = column("score")
    query = ScoreCurveQuery((ScoreBins(ranker, np.unique(ranker.scores(people))[1:]),))
    return query.contribute(people).values.T / SCALE


def matrices(bins: int) -> dict[str, NDArray[np.float64]]:
    """What could be released of the bins, highest first."""
    coefficients = np.cumprod([1.0, *(1.0 - 0.5 / np.arange(1, bins))])
    root = np.array([[coefficients[i - j] if i >= j else 0.0 for j in range(bins)] for i in range(bins)])
    trees = {f"tree of {b}": tree(bins, b) for b in (2, 4, 8, 16)}
    cumulative = np.tril(np.ones((bins, bins)))
    return {"plain bins": np.eye(bins), "cumulative": cumulative, **trees, "square root": root, "ours": ours(bins)}


def tail_noise(matrix: NDArray[np.float64], shares: NDArray[np.float64]) -> list[float]:
    """Noise of what is asked of least-squares counts, in units of sensitivity / mu.

    The reach at 2.5, 5 and 10%; the mean of ten deciles; a rank sum with weights from -1/2 to 1/2, the AUC's numerator.
    """
    bins = matrix.shape[1]
    inverse = np.linalg.pinv(matrix)
    tails = np.tril(np.ones((bins, bins)))
    at = [int(np.argmin(np.abs(shares - share))) for share in (0.025, 0.05, 0.1)]
    deciles = tails[[int(np.argmin(np.abs(shares - i / 10))) for i in range(1, 11)]]
    deciles = np.diff(deciles, axis=0, prepend=0.0)
    rank = 0.5 - shares
    sensitivity = math.sqrt(float((matrix * matrix).sum(axis=0).max()))
    wanted = [np.linalg.norm(row @ inverse) for row in (*tails[at], rank)]
    decile = np.linalg.norm(deciles @ inverse, axis=1).mean()
    return [sensitivity * float(each) for each in (*wanted[:3], decile, wanted[3])]


def compare_matrices() -> dict[str, list[float]]:
    """Print and return the noise of each matrix."""
    found = {}
    print("Noise of people counted, per unit of 1/mu (half of the bins for the top eighth of people)")
    print(f"{'':24}{'2.5%':>8}{'5%':>8}{'10%':>8}{'decile':>8}{'ranks':>8}")
    for bins in (64, 256):
        top = np.arange(1, bins // 2 + 1) / (bins // 2) * 0.125
        shares = np.concatenate([top, np.linspace(0.125, 1.0, bins // 2 + 1)[1:]])
        for name, matrix in matrices(bins).items():
            found[f"{name}, {bins} bins"] = row = tail_noise(matrix, shares)
            print(f"{f'{name}, {bins} bins':24}" + "".join(f"{value:8.2f}" for value in row))
    return found


# --- coverage --------------------------------------------------------------------------------------------------------


def population(people: int) -> CustomerTable:
    """Scores of a skewed mixture: most customers far from the seeds, some near."""
    rng = np.random.default_rng(11)
    near = rng.random(people) < 0.15
    scores = np.where(near, rng.normal(1.0, 1.0, people), rng.gamma(2.0, 0.6, people) - 3.0)
    return CustomerTable(("score", "@seed"), np.column_stack([scores, np.zeros(people)]), np.arange(people))


def cover(people: int, epsilon: float, seeds: int, bits: BitSource) -> dict[str, float]:
    """Share of seeds whose band holds the true reach: of each level, and of the points shown on average."""
    table = population(people)
    scale = binned("score", table, 256)
    query = ScoreCurveQuery((scale,))
    sigma = noise_scale(query, int(budget_for(epsilon, DELTA).mu2 * SHARE))
    total, scores = bounded_total(query, table), np.sort(scale.ranker.scores(table))
    hits: dict[str, list[bool]] = {name: [] for name in LEVELS}
    curve_hits, points, halves = [], [], []
    for _ in range(seeds):
        noisy = (total + sample_discrete_gaussian(sigma, query.width, bits)) / SCALE
        curve = reach_curve(Validation(*read_score_counts(query, noisy, sigma / SCALE)[0]), MIN_CELL)
        reach = people - np.searchsorted(scores, [point.cutoff for point in curve.points], side="left")
        held = [point.people.low <= true <= point.people.high for point, true in zip(curve.points, reach, strict=True)]
        by_cutoff = {point.cutoff: hit for point, hit in zip(curve.points, held, strict=True)}
        for level in curve.levels:
            if level.point is not None:
                hits[level.name].append(by_cutoff[level.point.cutoff])
        curve_hits.append(np.mean(held) if held else 1.0)
        points.append(len(held))
        halves.extend((point.people.high - point.people.low) / 2 for point in curve.points)
    shown = {f"{name} shown": len(each) / seeds for name, each in hits.items()}
    covered = {name: float(np.mean(each)) if each else math.nan for name, each in hits.items()}
    extra = {"points": float(np.mean(points)), "half width": float(np.mean(halves)), "std": sigma / SCALE}
    return {**covered, "curve": float(np.mean(curve_hits)), **shown, **extra}


def coverage(seeds: int, bits: BitSource) -> tuple[dict[str, dict[str, float]], bool]:
    """Print and return the coverage of each setting, and whether all of it is within the limits."""
    found, good = {}, True
    print(f"\nBands that hold the true reach, {seeds} noise seeds ({SHARE:.0%} of the campaign's mu^2, 256 bins)")
    print(f"{'':26}" + "".join(f"{name:>10}" for name in (*LEVELS, "curve")) + "   points  half width")
    for people, epsilon in SETTINGS:
        row = found[f"{people:,} people, epsilon {epsilon}"] = cover(people, epsilon, seeds, bits)
        judged = [row[name] for name in (*LEVELS, "curve") if not math.isnan(row[name])]
        good = good and all(LOW <= value <= HIGH for value in judged)
        figures = "".join(f"{row[name]:10.3f}" for name in (*LEVELS, "curve"))
        figures += f"{row['points']:9.0f}{row['half width']:12.1f}"
        shown = ", ".join(f"{row[f'{name} shown']:.0%}" for name in LEVELS)
        print(f"{f'{people:,} people, eps {epsilon}':26}{figures}   levels shown {shown}")
    return found, good


# --- choosing a ranker -----------------------------------------------------------------------------------------------


def rivals(people: int) -> CustomerTable:
    """Customers, 2% of them seeds, with the scores of rankers that agree as two heads of one campaign do.

    `bent` is a skewed score of the very order of `score`: its lead over that is 0.
    """
    rng = np.random.default_rng(12)
    seed = rng.random(people) < 0.02
    common = rng.normal(size=people) + 1.2 * seed
    score, other = common + 0.4 * rng.normal(size=people), common + 0.5 * rng.normal(size=people)
    values = np.column_stack([score, other, np.exp(0.4 * score), seed])
    return CustomerTable(("score", "other", "bent", "@seed"), values, np.arange(people))


def compare_contests(bits: BitSource) -> dict[str, float]:
    """Print and return the noise of a lead in AUC at one price: two curves against a paired contest.

    And the error of leads, without the contest's own noise, by where percentiles come from: a normal distribution of
    the scores' mean and deviation, or counts in 64 bins for 2% of the campaign's mu^2.
    """
    table, mu2 = rivals(100_000), budget_for(1.0, DELTA).mu2
    scales = tuple(binned(name, table, 64) for name in ("score", "other", "bent"))
    price = int(mu2 * 0.05)
    pair = [
        Validation(*counts) for counts in _answer(ScoreCurveQuery(scales[:2]), table, price, bits, read_score_counts)
    ]
    curves = math.hypot(*(each.auc.noise if each.auc else math.nan for each in pair))
    coarse = _answer(ScoreCurveQuery(scales), table, int(mu2 * 0.02), bits, read_score_counts)
    exact = [percentiles(counts[1]) for counts in _answer(ScoreCurveQuery(scales), table, 0, bits, read_score_counts)]
    released = ContestQuery(scales, tuple(percentiles(rest) for _seeds, rest in coarse))
    table_noise = [percentile_noise(rest) for _seeds, rest in coarse]
    contest = ContestQuery(scales[:2], released.tables[:2])
    paired = _answer(contest, table, price, bits, partial(read_contest, table_noise=(0.0, 0.0)))
    true = _leads(ContestQuery(scales, tuple(exact)), table)
    found = {
        "seeds": paired.seeds,
        "curves": curves,
        "contest": paired.leads[0].noise if paired.leads[0] else math.nan,
        "tables": math.hypot(*table_noise[:2]),
        "lead": true[0],
    }
    print(
        f"\nNoise of one ranker's lead in AUC over another's, 5% of a campaign of epsilon 1, {paired.seeds:.0f} seeds"
    )
    print(f"two curves {found['curves']:.4f}, contest {found['contest']:.4f}; lead without noise {found['lead']:+.4f}")
    print(f"and of the percentiles that 2% more release, at most {found['tables']:.4f}")
    print("Error of the lead by the percentiles' source: a ranker of like scores, and one of the same order but skewed")
    normal = ContestQuery(scales, tuple(normal_percentiles(scale, table) for scale in scales))
    for name, query in (("normal", normal), ("released", released)):
        errors = [lead - best for lead, best in zip(_leads(query, table), true, strict=True)]
        found |= {f"{name}, like": errors[0], f"{name}, skewed": errors[1]}
        print(f"{name:10} {errors[0]:+.4f} {errors[1]:+.4f}")
    return found


def normal_percentiles(scale: ScoreBins, table: CustomerTable) -> NDArray[np.float64]:
    """Percentiles of bins, highest first, if scores were normal."""
    scores = scale.ranker.scores(table)
    below = np.concatenate([[0.0], ndtr((scale.edges - scores.mean()) / scores.std()), [1.0]])
    return np.asarray((below[1:] + below[:-1])[::-1] / 2.0)


def _leads(query: ContestQuery, table: CustomerTable) -> list[float]:
    leads = read_contest(query, bounded_total(query, table) / SCALE, 0.0, (0.0,) * len(query.scales)).leads
    return [lead.value if lead else math.nan for lead in leads]


def _answer(query: Any, table: CustomerTable, mu2: int, bits: BitSource, read: Any) -> Any:
    """The noisy answer for a price; the exact one for none."""
    sigma = noise_scale(query, mu2) if mu2 else 0
    noise = sample_discrete_gaussian(sigma, query.width, bits) if sigma else 0
    return read(query, (bounded_total(query, table) + noise) / SCALE, sigma / SCALE)


def compare_rules(runs: int = 4000) -> dict[str, list[float]]:
    """Print and return the AUC that rules of choosing lose, on average, against knowing the best."""
    noises = (0.003, 0.01, 0.03, 0.1)
    rng, found = np.random.default_rng(13), {}
    print("\nAUC lost by choosing between the default and two others, by the noise of a lead (in thousandths)")
    print(f"{'others better by':>18} {'rule':22}" + "".join(f"{noise:>9}" for noise in noises))
    for gap in (-0.02, -0.01, 0.0):
        true = rng.normal(gap, 0.012, (runs, 2))
        seen = [true + noise * rng.normal(size=true.shape) for noise in noises]
        for rule in ("cohortium", "highest", "lead of one std", "lead of two std", "always the default"):
            row = [_lost(rule, true, each, noise) for each, noise in zip(seen, noises, strict=True)]
            found[f"{rule}, {gap}"] = row
            print(f"{gap:18} {rule:22}" + "".join(f"{1000 * value:9.2f}" for value in row))
    return found


def _lost(rule: str, true: NDArray[np.float64], seen: NDArray[np.float64], noise: float) -> float:
    """Mean regret of a rule; ranker 0 is the default with a lead of 0."""
    worth = np.column_stack([np.zeros(len(true)), true])
    if rule == "cohortium":
        names = ("0", "1", "2")
        picks = [int(choose_ranker(names, [Estimate(v, noise, 0.0) for v in row]).ranker) for row in seen.tolist()]
    else:
        least = {"highest": 0.0, "lead of one std": noise, "lead of two std": 2 * noise}.get(rule, math.inf)
        picks = np.argmax(np.column_stack([np.full(len(seen), least), seen]), axis=1).tolist()
    return float((worth.max(axis=1) - worth[np.arange(len(worth)), picks]).mean())


def main() -> int:
    """Measure, print, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bits: BitSource = OsBitSource() if options.fresh else SimulatedBits(5)
    figures: dict[str, Any] = {"noise": compare_matrices()}
    figures["contest"], figures["rules"] = compare_contests(bits), compare_rules()
    figures["coverage"], good = coverage(options.seeds, bits)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
