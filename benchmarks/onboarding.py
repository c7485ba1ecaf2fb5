"""Onboarding against one hand-written SQL statement: wall time, peak memory, duplicate detection.

    python benchmarks/onboarding.py [--lines 100000000] [--customers 2000000] [--json OUT]

Makes synthetic purchase lines in a temporary folder, then runs, each in a process of its own and over the same files:

- **onboarding** as deployed (validation, counts, bounds, digests, two Parquet files), without duplicate detection;
- **duplicates**: the optional step that counts repeated lines;
- **hand-written**: one statement that computes the same features, shares and trend included, with the same memory
  limit and threads, and no checks at all;
- **tuned**: the same with distinct days counted as bits, as onboarding does. What onboarding takes beyond it is the
  price of checking, counting and bounding.

Targets: peak resident memory of onboarding at most 4 GB; onboarding at most twice either statement. Wall times suffer
from whatever else the machine does, CPU seconds less: read both.
The temporary folder (about 1 GB per 100 million lines, and as much again for spilling) is removed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

from cohortium.client.onboarding import Resources, onboard
from cohortium.client.onboarding.duplicates import count_duplicates
from cohortium.client.onboarding.engine import Engine
from cohortium.client.onboarding.sources import open_source
from cohortium.simulations.bank_world import write_benchmark_lines
from cohortium.study.contract import Contract

MEMORY_TARGET_GB = 4.0
RATIO_TARGET = 2.0
RESOURCES = Resources()

_PLAIN: tuple[tuple[str, str, float, float], ...] = (
    ("recency", "numeric", 1, 366),
    ("frequency", "numeric", 0, 366),
    ("monetary", "money", 0, 100_000),
    ("tenure", "numeric", 1, 366),
    ("basket_size", "money", 0, 1_000),
    ("gap", "numeric", 0, 366),
    ("trend", "numeric", -1, 1),
)
_SHARES = (
    ("category_share", "groceries"),
    ("category_share", "fuel"),
    ("category_share", "travel"),
    ("channel_share", "web"),
    ("channel_share", "app"),
)


def contract() -> Contract:
    """Every derived feature there is: twelve per person."""
    features: list[dict[str, Any]] = [
        {"name": name, "derive": name, "kind": kind, "low": low, "high": high} for name, kind, low, high in _PLAIN
    ]
    features += [
        {"name": f"{value}_share", "derive": derive, "kind": "numeric", "low": 0, "high": 1, "value": value}
        for derive, value in _SHARES
    ]
    for feature in features:
        feature |= {"table": "purchases", "block": "behaviour", "missing": feature["low"]}
    columns = {"customer": "customer_id", "time": "day", "amount": "amount", "category": "category"}
    return Contract.model_validate(
        {
            "schema": "cohortium.contract/1",
            "name": "benchmark",
            "currency": "EUR",
            "purposes": ["CustomerSegmentation"],
            "window": {"start": "2024-01-01", "end": "2025-01-01"},
            "tables": [{"name": "purchases", "kind": "transactions", "channel": "channel", **columns}],
            "features": features,
        }
    )


def run_onboarding(lines: Path, out: Path) -> dict[str, float]:
    """Seconds and people of the deployed onboarding."""
    started = time.perf_counter()
    report = onboard(contract(), {"purchases": lines}, out / "onboarded", resources=RESOURCES, duplicates=False)
    return {"seconds": time.perf_counter() - started, "people": report.people, **report.seconds}


def run_duplicates(lines: Path, out: Path) -> dict[str, float]:
    """Seconds of the duplicate count alone, and what it found."""
    engine = Engine(out / "spill", RESOURCES)
    source = open_source(engine, "purchases", lines, ["customer_id"], out)
    total = engine.run("counting", f"SELECT count(*) FROM {source.relation}", "purchases")[0][0]
    started = time.perf_counter()
    repeats = count_duplicates(engine, source, int(total), "purchases")
    seconds = time.perf_counter() - started
    engine.close()
    return {"seconds": seconds, "duplicates": repeats}


def run_hand_written(lines: Path, out: Path) -> dict[str, float]:
    """One statement over the same files, as somebody who knows SQL would write it."""
    shares = ", ".join(
        f"sum(amount) FILTER ({derive.removesuffix('_share')} = '{value}') / sum(amount) AS {value}"
        for derive, value in _SHARES
    )
    return _timed_copy(
        f"""SELECT customer_id, DATE '2025-01-01' - max(day) AS recency, count(DISTINCT day) AS frequency,
                   sum(amount) AS monetary, DATE '2025-01-01' - min(day) AS tenure,
                   sum(amount) / count(DISTINCT day) AS basket_size,
                   (max(day) - min(day)) / nullif(count(DISTINCT day) - 1, 0) AS gap,
                   (sum(amount) FILTER (day >= DATE '2024-07-02') - sum(amount) FILTER (day < DATE '2024-07-02'))
                       / sum(amount) AS trend,
                   {shares}
            FROM read_parquet('{lines}/*.parquet') GROUP BY customer_id ORDER BY customer_id""",
        out,
    )


def run_tuned(lines: Path, out: Path) -> dict[str, float]:
    """The hardest baseline: hand-written with onboarding's own trick, days as bits, and still no checks."""
    days = " + ".join(
        f"CAST(bit_count(coalesce(bit_or(CASE WHEN d >> 6 = {word} THEN 1::UBIGINT << CAST(d & 63 AS UBIGINT) END), 0))"
        " AS INTEGER)"
        for word in range(6)
    )
    shares = ", ".join(
        f"sum(CASE WHEN {derive.removesuffix('_share')} = '{value}' THEN amount ELSE 0 END) / sum(amount) AS {value}"
        for derive, value in _SHARES
    )
    return _timed_copy(
        f"""SELECT *, monetary / frequency AS basket_size, (tenure - recency) / nullif(frequency - 1, 0) AS gap FROM (
                SELECT customer_id, 366 - max(d) AS recency, {days} AS frequency, sum(amount) AS monetary,
                       366 - min(d) AS tenure, {shares},
                       sum(CASE WHEN d >= 183 THEN amount ELSE -amount END) / sum(amount) AS trend
                FROM (SELECT *, day - DATE '2024-01-01' AS d FROM read_parquet('{lines}/*.parquet'))
                GROUP BY customer_id
            ) ORDER BY customer_id""",
        out,
    )


def _timed_copy(sql: str, out: Path) -> dict[str, float]:
    """Seconds of writing a statement's rows to Parquet, under onboarding's own limits."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": RESOURCES.memory_limit,
        "threads": str(RESOURCES.threads),
        "temp_directory": str(out / "spill"),
    }
    with duckdb.connect(":memory:", config=config) as connection:
        connection.execute("SET enable_progress_bar = false")
        started = time.perf_counter()
        people = connection.execute(f"COPY ({sql}) TO '{out}/hand-written.parquet' (FORMAT parquet)").fetchall()[0][0]
        return {"seconds": time.perf_counter() - started, "people": int(people)}


def alone(work: Callable[[Path, Path], dict[str, float]], lines: Path) -> dict[str, float]:
    """Run in a fresh process, so that its peak memory is its own; adds `cpu_seconds` and `peak_gb`."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, lines))


def _measured(work: Callable[[Path, Path], dict[str, float]], lines: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=lines.parent) as out:
        found = work(lines, Path(out))
    used = resource.getrusage(resource.RUSAGE_SELF)
    return found | {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_gb": used.ru_maxrss / 2**20}


def main() -> int:
    """0 when both targets hold, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=100_000_000)
    parser.add_argument("--customers", type=int, default=2_000_000)
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cohortium-benchmark-") as folder:
        lines = Path(folder) / "lines"
        files = write_benchmark_lines(lines, options.lines, options.customers)
        size = sum(file.stat().st_size for file in files) / 2**30
        print(f"{options.lines:,} lines of {options.customers:,} customers, {size:.2f} GiB of Parquet")
        figures = {
            "onboarding": alone(run_onboarding, lines),
            "hand_written": alone(run_hand_written, lines),
            "tuned": alone(run_tuned, lines),
            "duplicates": alone(run_duplicates, lines),
        }
    ratios = {name: figures["onboarding"]["seconds"] / figures[name]["seconds"] for name in ("hand_written", "tuned")}
    for name, found in figures.items():
        cpu, peak = found["cpu_seconds"], found["peak_gb"]
        print(f"{name:>14}: {found['seconds']:7.1f} s wall, {cpu:7.1f} s CPU, peak {peak:.2f} GB")
    for name, ratio in ratios.items():
        print(f"onboarding / {name}: {ratio:.2f} (target {RATIO_TARGET})")
    print(f"memory target {MEMORY_TARGET_GB} GB")
    if options.json is not None:
        summary = {"lines": options.lines, "customers": options.customers, "ratios": ratios, **figures}
        options.json.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return 0 if max(ratios.values()) <= RATIO_TARGET and figures["onboarding"]["peak_gb"] <= MEMORY_TARGET_GB else 1


if __name__ == "__main__":
    sys.exit(main())
