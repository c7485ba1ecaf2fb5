"""Stores on SQLite and PostgreSQL, measured: `python benchmarks/stores.py [--url URL] [--people N] [--json OUT]`.

With `--url postgresql+psycopg://...` everything is measured there too, in schemas that are dropped at the end.

- *charges*: charges of a ledger a second, each committed by itself;
- *import*: consents of so many people from a CSV file, the product's own way;
- *full*, *incremental*: the first snapshot; another one after 10,000 withdrawals;
- *backup*, *restore*: of a node with both stores, in seconds.

Whether the snapshots of both databases count the same people is checked.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from consent import PURPOSES, WITHDRAWALS, withdraw, write_files

from cohortium.client.backup import make_backup, restore_backup
from cohortium.client.store import NodeStore
from cohortium.governance.consent import Cohort, ConsentStore, import_signals
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.ledger import Ledger, Slot, open_store

CHARGES, PASSWORD = 500, "nobody has to remember this"
STORES = ("node", "consent")


def measure(folder: Path, inputs: Path, people: int) -> dict[str, Any]:
    """Every figure of the stores of one folder; times in seconds."""
    clock = time.perf_counter()

    def lap() -> float:
        nonlocal clock
        before, clock = clock, time.perf_counter()
        return clock - before

    found: dict[str, Any] = {}
    budget = budget_for(3.0, 1e-6)
    ledger = Ledger(open_store(folder / "node.sqlite"), "bench", budget)
    ledger.reserve("plan", "run", budget, date.max)
    lap()
    for step in range(CHARGES):
        ledger.charge(Slot("plan", "run", "p", step, 1), "q", width=3, bound_squared=1 << 48, sigma=1 << 32)
    found["charges a second"] = CHARGES / lap()
    ledger.close()
    engine = open_store(folder / "node.sqlite")
    NodeStore(engine)
    engine.dispose()
    store = ConsentStore(open_store(folder / "consent.sqlite"))
    lap()
    counts = import_signals(store, inputs / "consents.csv", inputs / "mapping.toml", folder / "rejects.csv")
    found["import"] = lap()
    if (counts.recorded, counts.rejected) != (people, 0):
        sys.exit("the import did not take every row")
    store.close()
    store = ConsentStore(open_store(folder / "consent.sqlite"))
    cohort, ids = Cohort(PURPOSES[0], "consent"), np.array([f"c{i:09d}" for i in range(people)])
    lap()
    first = store.snapshot(cohort)
    found["full"] = lap()
    first.allowed(ids)
    withdraw(store, min(WITHDRAWALS, people // 10), datetime.now(UTC))
    lap()
    second = store.snapshot(cohort)
    found["counted"] = int(second.allowed(ids).sum())
    found["incremental"] = lap()
    store.close()
    (folder / "node.json").write_text('{"institution": "bench"}')
    lap()
    make_backup(folder, folder.with_name(f"{folder.name}.backup"), PASSWORD)
    found["backup"] = lap()
    found["backup megabytes"] = folder.with_name(f"{folder.name}.backup").stat().st_size / 2**20
    restore_backup(folder.with_name(f"{folder.name}.backup"), folder.with_name(f"{folder.name}-back"), PASSWORD)
    found["restore"] = lap()
    return found


def main() -> int:
    """Print every figure; 1 when the databases do not count the same people."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url")
    parser.add_argument("--people", type=int, default=10**6)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="cohortium-stores-") as name:
        inputs = Path(name)
        write_files(inputs, asked.people, datetime.now(UTC))
        for database in ("sqlite", *(("postgresql",) if asked.url else ())):
            folder = inputs / database
            folder.mkdir(mode=0o700)
            if database == "postgresql":
                declare(folder, asked.url)
            found[database] = measure(folder, inputs, asked.people)
    if asked.url:
        drop(asked.url)
    if asked.json:
        asked.json.write_text(json.dumps({"people": asked.people, **found}, indent=2) + "\n")
    print(f"{asked.people:,} people")
    for database, figures in found.items():
        print(f"{database}: " + "; ".join(f"{key} {value:,.1f}" for key, value in figures.items()))
    same = len({figures["counted"] for figures in found.values()}) == 1
    print("the same people counted" if same else "NOT the same people counted")
    return 0 if same else 1


def declare(folder: Path, url: str) -> None:
    """Have the folder's stores in schemas of the server."""
    file = folder / "stores.toml"
    file.touch(mode=0o600)
    joint = "&" if "?" in url else "?"
    lines = [f'{store} = "{url}{joint}schema=cohortium_bench_{store}"' for store in STORES]
    file.write_text("\n".join(['schema = "cohortium.stores/1"', *lines]) + "\n")


def drop(url: str) -> None:
    """Leave nothing on the server."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for store in STORES:
            connection.exec_driver_sql(f"DROP SCHEMA cohortium_bench_{store} CASCADE")
    engine.dispose()


if __name__ == "__main__":
    sys.exit(main())
