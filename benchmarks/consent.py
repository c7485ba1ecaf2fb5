"""The consent store, measured: `python benchmarks/consent.py [--people N] [--json OUT]`.

Ten million people are imported from a CSV file, the product's own way, each with consent or refusal for five purposes.
Then, in this process and with one database:

- *full*: the first snapshot: everybody's standing read, the Merkle root made, the purpose's filter; 30 s at most;
- *ids*: the first answer for a customer table of all ids, which hashes them once; told, not checked;
- *again*: snapshot and answer for each of the five purposes, nothing recorded since; told, not checked;
- *incremental*: snapshot and answer after 10,000 withdrawals; 2 s at most;
- *memory*: the most resident memory of this process, the table's ids included; 4 GB at most.

Whether a second store that reads everything anew has the same root is checked too, after the memory was read.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from cohortium.governance.consent import Cohort, ConsentSignal, ConsentStore, Entry, import_signals
from cohortium.privacy.ledger import open_store

PURPOSES = ("CustomerSegmentation", "LookalikeModelling", "Personalisation", "CommercialResearch", "CustomerManagement")
WITHDRAWALS, CHUNK = 10_000, 100_000
MOST_FULL, MOST_INCREMENTAL, MOST_MEMORY_GB = 30.0, 2.0, 4.0

HEAD = """schema = "cohortium.consent-record/1"
schema_version = "ISO/IEC TS 27560:2023"

[privacy_notice]
version = "1"
text_digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
language = "en"

[[parties]]
party_id = "bank"
party_name = "Benchmark bank"
party_address = "nowhere"
party_contact = "nobody"
party_type = "controller"
role = "controller"
"""

PROCESSING = """
[[processings]]
purpose = "{purpose}"
lawful_basis = "eu-gdpr:A6-1-a-explicit-consent"
pii_information = [{{ pii_type = "purchases", pii_optional = false, special_pii_category = false }}]
pii_controllers = ["bank"]
collection_method = "form"
processing_method = "profiling"
storage_locations = ["EU"]
retention_period = "P5Y"
processing_locations = ["EU"]
geographic_restrictions = "EU"
jurisdiction = "EU"
recipient_third_parties = []
withdrawal_method = "app"
privacy_rights = ["access", "withdrawal"]
"""

MAPPING = """schema = "cohortium.consent-import/1"
kind = "consent"
template = "template.toml"
purposes = {purposes}
validity_duration = "P60M"

[columns]
person = "customer_id"
time = "at"
state = "consent"

[states]
yes = "ConsentGiven"
no = "ConsentRefused"
"""


def write_files(folder: Path, people: int, now: datetime) -> None:
    """Template, mapping, and a line for every person: one in ten refused, on one of a thousand days."""
    template = HEAD + "".join(PROCESSING.format(purpose=purpose) for purpose in PURPOSES)
    (folder / "template.toml").write_text(template)
    (folder / "mapping.toml").write_text(MAPPING.format(purposes=json.dumps(PURPOSES)))
    days = [(now - timedelta(days=1 + day)).isoformat(timespec="seconds") for day in range(1000)]
    with (folder / "consents.csv").open("w") as out:
        out.write("customer_id,consent,at\n")
        for start in range(0, people, CHUNK):
            rows = range(start, min(start + CHUNK, people))
            out.writelines(f"c{i:09d},{'no' if i % 10 == 0 else 'yes'},{days[i % 1000]}\n" for i in rows)


def withdraw(store: ConsentStore, count: int, now: datetime) -> None:
    """So many people withdraw, spread over all tags."""
    signal = ConsentSignal(
        purposes=("Marketing",),
        state="ConsentWithdrawn",
        event_type="explicit",
        validity_duration="until-withdrawn",
        entity_id="data subject",
    )
    store.record_many([Entry(f"c{i:09d}", signal, int(now.timestamp())) for i in range(1, count + 1)])


def peak_gb() -> float:
    """The most resident memory that this process ever had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20


def measure(folder: Path, people: int) -> dict[str, Any]:
    """Every figure; times in seconds."""
    now = datetime.now(UTC)
    write_files(folder, people, now)
    clock = time.perf_counter()

    def lap() -> float:
        nonlocal clock
        before, clock = clock, time.perf_counter()
        return clock - before

    found: dict[str, Any] = {"people": people}
    store = ConsentStore(open_store(folder / "consent.sqlite"))
    lap()
    counts = import_signals(store, folder / "consents.csv", folder / "mapping.toml", folder / "rejects.csv")
    found["import"] = lap()
    if (counts.recorded, counts.rejected) != (people, 0):
        sys.exit("the import did not take every row")
    found["megabytes"] = (folder / "consent.sqlite").stat().st_size / 2**20
    ids = np.array([f"c{i:09d}" for i in range(people)])
    cohorts = [Cohort(purpose, "consent") for purpose in PURPOSES]
    lap()
    first = store.snapshot(cohorts[0])
    found["full"] = lap()
    allowed = int(first.allowed(ids).sum())
    found["ids"] = lap()
    for cohort in cohorts:
        store.snapshot(cohort).allowed(ids)
    found["again"] = lap()
    withdraw(store, min(WITHDRAWALS, people // 10), now)
    found["withdrawals"] = lap()
    second = store.snapshot(cohorts[0])
    left = int(second.allowed(ids).sum())
    found["incremental"] = lap()
    found["peak_gb"] = peak_gb()
    if second.root == first.root or not left < allowed:
        sys.exit("the withdrawals changed nothing")
    whole = ConsentStore(open_store(folder / "consent.sqlite")).snapshot(cohorts[0])
    found["full again"] = lap()
    found["same root"] = whole.root == second.root
    return found


def main() -> int:
    """Print every figure; 1 when a target is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--people", type=int, default=10**7)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cohortium-consent-") as name:
        found = measure(Path(name), asked.people)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")
    print(f"{found['people']:,} people, {len(PURPOSES)} purposes, {found['megabytes']:,.0f} MB on disk")
    print(f"import {found['import']:.0f} s; ids {found['ids']:.1f} s; all purposes again {found['again']:.1f} s")
    checks = {
        f"full snapshot {found['full']:.1f} s, wanted {MOST_FULL:g}": found["full"] <= MOST_FULL,
        f"incremental {found['incremental']:.2f} s, wanted {MOST_INCREMENTAL:g}": found["incremental"]
        <= MOST_INCREMENTAL,
        f"memory {found['peak_gb']:.2f} GB, wanted {MOST_MEMORY_GB:g}": found["peak_gb"] <= MOST_MEMORY_GB,
        f"the same root read anew, in {found['full again']:.1f} s": found["same root"],
    }
    for line, met in checks.items():
        print(f"{line}: {'met' if met else 'MISSED'}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
