"""Draws a second of the exact discrete Gaussian sampler, and of OpenDP's, in one run.

python benchmarks/noise.py [--json OUT] [--sigma 134217728]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import opendp.prelude as dp

from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.privacy.randomness import OsBitSource

ROUNDS = 5


def draws_per_second(draw: Callable[[int], object], count: int) -> float:
    """The median of several rounds of `count` draws."""
    rates = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        draw(count)
        rates.append(count / (time.perf_counter() - start))
    return statistics.median(rates)


def main() -> int:
    """Measure, print, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sigma", type=int, default=2**27)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    dp.enable_features("contrib")
    oracle = dp.m.make_gaussian(
        dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="i64"), scale=float(options.sigma)
    )
    bits = OsBitSource()
    ours = draws_per_second(lambda count: sample_discrete_gaussian(options.sigma, count, bits), 1_000_000)
    theirs = draws_per_second(lambda count: oracle([0] * count), 20_000)
    print(f"cohortium {ours / 1e6:.2f} million draws a second, OpenDP {theirs / 1e6:.3f}: ratio {ours / theirs:.0f}")
    if options.json:
        figures = {"cohortium": ours, "opendp": theirs, "ratio": ours / theirs, "sigma": options.sigma}
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
