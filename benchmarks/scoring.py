"""Scoring at an institution, measured: `make bench TARGET=scoring ARGS="[--sizes 100000 ...] [--json OUT]"`.

A node, a plan that it approved, a signed model of random weights and a customer table of 32 features (24 numbers, 8
categories of 7 values and the unknown one) are made; a process of its own with one thread then scores all customers,
the check of the table's digest and the writing of the scores file included.

*Speed*, at the middle size: both kinds of ranker, with and without reasons. Customers a minute of processor time;
beside it of wall time, which a busy machine makes longer. Target: 1,000,000.

*Memory*, at every size, by the variant that needs most: the peak of resident memory of that process (VmHWM; the peak
that getrusage gives counts the memory of the process that started it). Target: from the smallest to the largest size it
grows by 64 MB at most.

Needs 4 GB of disk for the largest table, which is deleted in the end. Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.client.lookalike import open_records, score_customers_file
from cohortium.client.node import NodeIdentity, create_node
from cohortium.client.onboarding.report import OnboardingReport
from cohortium.client.onboarding.store import CUSTOMERS_FILE, REPORT_FILE, file_digest
from cohortium.models.basis import Basis, Block
from cohortium.models.encoder import Encoder, encoder_shapes, on_scale_grid
from cohortium.models.encoder import on_weight_grid as on_encoder_grid
from cohortium.models.features import Rows, on_row_grid, on_weight_grid
from cohortium.models.ranker import Ranker
from cohortium.privacy.table import CustomerTable
from cohortium.study.charter import parse_charter
from cohortium.study.contract import Contract, parse_contract
from cohortium.study.lookalike_plan import LookalikePlan
from cohortium.study.model import LookalikeModel, Model, array_facts, save_model
from cohortium.study.plans import parse_plan
from cohortium.study.reach import RankerChoice, RankerQuality, ReachCurve

NUMBERS, CATEGORIES, VALUES = 24, 8, 7
LEAST_A_MINUTE, MOST_GROWTH = 1_000_000, 64
SEEDS, CHUNK = 5_000, 122_880
KINDS = ("features", "embedding")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
CONTRACT = """
schema = "cohortium.contract/1"
name = "benchmark"
purposes = ["research"]
[window]
start = 2026-01-01
end = 2026-07-01
[[tables]]
name = "people"
kind = "customers"
customer = "id"
"""
NUMBER = """
[[features]]
name = "{name}"
table = "people"
kind = "numeric"
column = "{name}"
low = 0
high = 100
missing = 0
block = "behaviour"
"""
CATEGORY = """
[[features]]
name = "{name}"
table = "people"
kind = "category"
column = "{name}"
categories = [{values}]
block = "product"
"""


def contract() -> Contract:
    """32 features."""
    values = ", ".join(f'"v{i}"' for i in range(VALUES))
    numbers = "".join(NUMBER.format(name=f"number_{i:02d}") for i in range(NUMBERS))
    categories = "".join(CATEGORY.format(name=f"category_{i}", values=values) for i in range(CATEGORIES))
    return parse_contract(CONTRACT + numbers + categories, "benchmark")


def ranker(kind: str, agreed: Contract) -> Ranker:
    """Random weights, of the sizes that plans have when they say nothing else."""
    rng = np.random.default_rng(0)
    blocks = (
        Block(f.name, levels=f.levels) if f.is_category else Block(f.name, low=0.0, high=4.0, log=True)
        for f in agreed.training_features
    )
    basis = Basis(tuple(blocks))
    rows = Rows(basis, on_row_grid(np.full(basis.width, 0.1)), 2.0)
    if kind == "embedding":
        weights = [on_encoder_grid(rng.normal(0.0, 0.2, shape)) for shape in encoder_shapes(basis, 64, 32)]
        scales = on_scale_grid(np.full(basis.width, 1.5))
        encoder = Encoder(basis, scales, (weights[0], weights[1], weights[2], weights[3]))
        rows = Rows(basis, np.zeros(32), 2.0, encoder)
    return Ranker(rows, on_weight_grid(rng.normal(size=rows.width)))


def make_node(folder: Path, agreed: Contract) -> None:
    """A node that approved a plan, its seed list, and a signed model of either kind of ranker."""
    key = Ed25519PrivateKey.generate()
    charter = parse_charter(
        {
            "schema": "cohortium.charter/1",
            "name": "benchmark",
            "institutions": [{"name": name, "region": "EU"} for name in ("north", "south", "west")],
            "coordinator": key.public_key().public_bytes_raw().hex(),
        }
    )
    plan = parse_plan(
        {
            "schema": "cohortium.plan/1",
            "study": "lookalike",
            "name": "benchmark",
            "purpose": "research",
            "lawful_basis": "consent",
            "regions": ["EU"],
            "contract": agreed.digest,
            "expires": "2999-12-31",
            "trust": "local",
            "epsilon": 1.0,
            "delta": 1e-6,
            "model": "sha256:" + "0" * 64,
            "lookalike": {"seed": "vip"},
        }
    )
    assert isinstance(plan, LookalikePlan)
    create_node(folder, NodeIdentity(institution="north", simulation=True), agreed)
    with open_records(folder) as records:
        records.approvals.approve(plan, agreed, charter)
        ids = np.array([f"c{i:09d}" for i in range(10 * SEEDS)])
        listed = folder / "vip.csv"
        listed.write_text("\n".join(["id", *ids[::10]]) + "\n")
        records.seeds.add("vip", listed, "id", CustomerTable(("x",), np.zeros((len(ids), 1)), ids))
    for kind in KINDS:
        made = ranker(kind, agreed)
        arrays = made.parts()[1]
        document = LookalikeModel(
            plan=plan,
            run="benchmark",
            institutions=3,
            customers=1e6,
            features=made.rows.features,
            arrays=array_facts(arrays),
            releases=(),
            seeds=None,
            choice=RankerChoice(ranker=kind),
            quality=RankerQuality(ranker=kind, auc=None, auc_noise_std=None),
            curve=ReachCurve(eligible=None, points=(), levels=()),
        )
        save_model(Model(document, arrays), key, folder / f"{kind}.safetensors")


def make_customers(folder: Path, agreed: Contract, people: int) -> None:
    """The customer table as onboarding writes it, made in chunks."""
    customers = folder / "customers"
    customers.mkdir(exist_ok=True)
    rng = np.random.default_rng(people)
    names = [feature.name for feature in agreed.training_features]
    types = [pa.int32() if feature.is_category else pa.float64() for feature in agreed.training_features]
    schema = pa.schema([("id", pa.string()), *zip(names, types, strict=True)])
    with pq.ParquetWriter(customers / CUSTOMERS_FILE, schema) as writer:
        for start in range(0, people, CHUNK):
            n = min(CHUNK, people - start)
            columns: list[Any] = [[f"c{i:09d}" for i in range(start, start + n)]]
            columns += [np.round(rng.gamma(2.0, 10.0, n), 2).clip(0, 100) for _ in range(NUMBERS)]
            columns += [rng.integers(0, VALUES + 1, n).astype(np.int32) for _ in range(CATEGORIES)]
            writer.write_table(pa.table(columns, schema=schema))
    report = OnboardingReport(
        contract=agreed.name,
        contract_digest=agreed.digest,
        people=people,
        tables=(),
        columns=(),
        features=(),
        outputs={CUSTOMERS_FILE: file_digest(customers / CUSTOMERS_FILE)},
        seconds={},
    )
    (customers / REPORT_FILE).write_text(report.model_dump_json())


def measure(folder: Path, kind: str, reasons: bool) -> dict[str, Any]:
    """One scoring in this process."""
    wall, processor = time.perf_counter(), time.process_time()
    with open_records(folder) as records:
        out = folder / "scores.parquet"
        scored = score_customers_file(
            records, folder / f"{kind}.safetensors", out, reasons=reasons, today=date(2026, 1, 1)
        )
    assert scored.seeds == min(SEEDS, -(-scored.customers // 10))
    return {
        "ranker": kind,
        "reasons": reasons,
        "customers": scored.customers,
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - processor,
        "peak_mb": peak_mb(),
    }


def peak_mb() -> float:
    """The most resident memory that this process ever had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def measured(folder: Path, kind: str, *, reasons: bool) -> dict[str, Any]:
    """The same in a fresh process."""
    words = [sys.executable, __file__, "--measure", str(folder), kind, "yes" if reasons else "no"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **ONE_THREAD})
    if done.returncode != 0:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    a_minute, on_the_wall = (60 * found["customers"] / found[key] for key in ("processor_seconds", "seconds"))
    print(
        f"{found['customers']:>10,} customers  ranker on {kind:<9}  {'with' if reasons else 'without':<7} reasons"
        f"  {a_minute:>12,.0f} a minute and core ({on_the_wall:,.0f} on the wall)  peak {found['peak_mb']:,.0f} MB",
        flush=True,
    )
    return {**found, "a_minute": a_minute}


def main() -> int:
    """Print every figure; 1 when a target is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        folder, kind, reasons = asked.measure
        print(json.dumps(measure(Path(folder), kind, reasons == "yes")))
        return 0
    agreed, found, sizes = contract(), [], sorted(asked.sizes)
    with tempfile.TemporaryDirectory(prefix="cohortium-scoring-") as name:
        folder = Path(name)
        make_node(folder, agreed)
        for size in sizes:
            make_customers(folder, agreed, size)
            found.append(measured(folder, "embedding", reasons=True))
            if size == sizes[len(sizes) // 2]:
                rest = (("embedding", False), ("features", True), ("features", False))
                found.extend(measured(folder, kind, reasons=reasons) for kind, reasons in rest)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")
    slowest = min(each["a_minute"] for each in found)
    peaks = [each["peak_mb"] for each in found if each["ranker"] == "embedding" and each["reasons"]]
    fast, flat = slowest >= LEAST_A_MINUTE, peaks[-1] - peaks[0] <= MOST_GROWTH
    print(f"speed: {slowest:,.0f} a minute and core at least, wanted {LEAST_A_MINUTE:,}: {'met' if fast else 'MISSED'}")
    print(
        f"memory: {peaks[-1] - peaks[0]:+,.0f} MB from {sizes[0]:,} to {sizes[-1]:,} customers, "
        f"wanted {MOST_GROWTH} at most: {'met' if flat else 'MISSED'}"
    )
    return 0 if fast and flat else 1


if __name__ == "__main__":
    sys.exit(main())
