"""How far released RFM quintile edges are from the true ones: `python benchmarks/rfm_edges.py [--json OUT]`.

Three features are charged jointly at epsilon 0.25, delta 1e-6, for 20,000 customers; every run releases the marginals
with fresh exact integer noise through the same functions as an institution's door. The distance of an edge that stands
for the share q of people is how far q lies outside [P(x < edge), P(x <= edge)] in the table itself: 0 means that no
better edge exists, ties included. A run's figure is the worst of its twelve edges.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cohortium.models.marginals import Axis, MarginalsQuery, estimate_marginals
from cohortium.models.rfm import quintile_edges
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.privacy.query import SCALE, bounded_total
from cohortium.privacy.randomness import OsBitSource
from cohortium.privacy.release import noise_scale
from cohortium.privacy.table import CustomerTable

CUSTOMERS, EPSILON, DELTA = 20_000, 0.25, 1e-6
SHARES = (0.2, 0.4, 0.6, 0.8)
TARGET = 0.01
Shape = tuple[CustomerTable, tuple[Axis, ...]]


def one_off_buyers() -> Shape:
    """37% of customers bought once; long right tails on logarithmic axes."""
    rng = np.random.default_rng(0)
    more = np.minimum(2 + rng.negative_binomial(1.2, 0.18, CUSTOMERS), 400)
    frequency = np.where(rng.permutation(CUSTOMERS) < 0.37 * CUSTOMERS, 1, more)
    recency = np.minimum(rng.gamma(1.1, 90, CUSTOMERS), 365).round()
    monetary = np.clip(rng.lognormal(4.2, 1.1, CUSTOMERS) * frequency**0.8, 0, 50_000).round(2)
    axes = (Axis("recency", 0, 365, integer=True), Axis("frequency", 0, 400, integer=True, log=True))
    return _table(recency, frequency, monetary), (*axes, Axis("monetary", 0, 50_000, log=True))


def two_camps() -> Shape:
    """Two camps of spenders on a linear axis, regular buyers, 15% who bought on the last day."""
    rng = np.random.default_rng(1)
    recency = np.where(rng.random(CUSTOMERS) < 0.15, 0, np.minimum(rng.exponential(200, CUSTOMERS), 730)).round()
    frequency = np.minimum(rng.poisson(rng.gamma(6, 2, CUSTOMERS)), 120)
    camp = rng.random(CUSTOMERS) < 0.5
    amounts = np.where(camp, rng.normal(900, 200, CUSTOMERS), rng.normal(5200, 900, CUSTOMERS))
    monetary = np.clip(amounts, 0, 10_000)
    axes = (Axis("recency", 0, 730, integer=True), Axis("frequency", 0, 120, integer=True))
    return _table(recency, frequency, monetary), (*axes, Axis("monetary", 0, 10_000))


def _table(*columns: NDArray[np.generic]) -> CustomerTable:
    values = np.column_stack(columns).astype(np.float64)
    return CustomerTable(("recency", "frequency", "monetary"), values, np.arange(len(values)))


def distance(values: NDArray[np.float64], edge: float, share: float) -> float:
    """How far `share` lies outside [P(x < edge), P(x <= edge)]."""
    return float(max((values < edge).mean() - share, share - (values <= edge).mean(), 0.0))


def worst_distances(shape: Shape, runs: int) -> list[float]:
    """The worst edge of every run."""
    people, axes = shape
    query = MarginalsQuery(axes)
    sigma = noise_scale(query, budget_for(EPSILON, DELTA).mu2)
    total, bits, result = bounded_total(query, people), OsBitSource(), []
    for _ in range(runs):
        noisy = total + sample_discrete_gaussian(sigma, query.width, bits)
        marginals = estimate_marginals(query, noisy / SCALE, sigma / SCALE)
        edges = {marginal.axis.name: quintile_edges(marginal).edges for marginal in marginals}
        result.append(
            max(
                distance(people.select((name,))[:, 0], edge, share)
                for name, four in edges.items()
                for edge, share in zip(four, SHARES, strict=True)
            )
        )
    return result


def measure(runs: int) -> dict[str, dict[str, float]]:
    """Median, 95% and worst run for each shape of data."""
    shapes: tuple[Callable[[], Shape], ...] = (one_off_buyers, two_camps)
    report = {}
    for make in shapes:
        found = np.array(worst_distances(make(), runs))
        report[make.__name__] = {
            "runs": runs,
            "median": float(np.median(found)),
            "p95": float(np.quantile(found, 0.95)),
            "worst": float(found.max()),
            "within_target": float((found <= TARGET).mean()),
        }
    return report


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description="distance of released RFM quintile edges")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = measure(arguments.runs)
    for name, figures in report.items():
        print(name, "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
