"""Memory does not follow the number of customers: what does not fit spills."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

MEASURED = """
import json, resource, sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np, pyarrow as pa, pyarrow.parquet as pq

from cohortium.client.audience import *
from cohortium.client.onboarding.engine import Resources
from cohortium.privacy.ledger import open_store

folder, rows = Path(sys.argv[1]), int(sys.argv[2])
LABELS = {
    "schema": SCORES_SCHEMA, "model": "sha256:" + "a" * 64, "plan": "sha256:" + "c" * 64, "expires": "2026-12-31",
    "node": "north", "customers": "sha256:" + "d" * 64
}
ORIGIN = ScoresOrigin("north", "sha256:" + "d" * 64)
schema = SCORES_COLUMNS.with_metadata(LABELS)
nothing = pa.nulls(10_000, pa.string())
with pq.ParquetWriter(folder / "scores.parquet", schema) as writer:
    for first in range(0, rows, 10_000):
        ids = pa.array([f"{i:0230d}" for i in range(first, first + 10_000)])
        flags = pa.array(np.zeros(10_000, dtype=bool))
        scores = pa.array(np.full(10_000, 0.9))
        writer.write_table(pa.table([ids, scores, nothing, nothing, nothing, flags], schema=schema))


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


small, before, everybody = Resources("64MB", 1), peak(), EverybodyAllowed()
now = datetime(2026, 3, 1, tzinfo=UTC)
store = AudienceStore(open_store(folder / "node.sqlite"), folder / "audiences", lambda: now, origin=lambda: ORIGIN)
options, broad = {"min_cell": 100, "resources": small, "activation": everybody}, Level("broad", 0.5, 1.0)
preview(folder / "scores.parquet", [broad], origin=ORIGIN, **options)
made = create(store, folder / "scores.parquet", broad, "a", **options).audience
hashed = Destination(columns=(parse_column("id:sha256"),), max_rows=10_000)
done = export(store, made.id, folder / "out", hashed, resources=small, activation=everybody)
print(json.dumps({"grown": peak() - before, "files": len(done.files)}))
"""
"""Previews, creates and exports everybody, hashed, with 64 MB for the private database; megabytes above the start.

Ids of 230 letters make up for the small number of customers: without a limit, memory grows by about 230 MB and the
test fails.
"""


def test_three_hundred_thousand_customers_need_hardly_more_memory_than_thirty_thousand(tmp_path: Path) -> None:
    grown = {}
    for rows in (30_000, 300_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        command = [sys.executable, "-W", "error", "-c", MEASURED, str(folder), str(rows)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["files"] == rows // 10_000
        grown[rows] = told["grown"]
    print(f"megabytes above the start: {grown}")  # noqa: T201 - shown by pytest -s
    assert grown[300_000] < grown[30_000] + 180
