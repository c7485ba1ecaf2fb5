"""The empirical privacy audit: how much of each claimed epsilon the attacks recover.

python benchmarks/audit.py [--json OUT] [--runs 20000] [--epsilon 1 2 4]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from cohortium.simulations.privacy_audit import FULL_RUNS, AuditOrder, run_privacy_audit

TARGET = 0.8


def main() -> int:
    """Audit, print, write JSON if asked; 1 when a claim is refuted or less than the target is recovered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=FULL_RUNS)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    start = time.perf_counter()
    report = run_privacy_audit(AuditOrder(options.runs, tuple(options.epsilon)), lambda line: print(line, flush=True))
    seconds = time.perf_counter() - start
    print(f"\n{'release':<26} {'claimed':>8} {'lower bound':>12} {'ratio':>6} {'any curve':>10}")
    for claim in report.claims:
        lower, free = claim.epsilon_lower or float("inf"), claim.epsilon_lower_any_curve or 0.0
        print(f"{claim.release:<26} {claim.claimed_epsilon:8.3f} {lower:12.3f} {claim.ratio or 0:6.2f} {free:10.3f}")
    print(f"{options.runs} runs of each table, {seconds:.0f} s; flags: {'; '.join(report.flags) or 'none'}")
    if options.json:
        options.json.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    recovered = all(claim.ratio is None or claim.ratio >= TARGET for claim in report.claims)
    return 0 if recovered and not report.flags else 1


if __name__ == "__main__":
    sys.exit(main())
