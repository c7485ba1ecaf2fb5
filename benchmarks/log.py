"""The audit log, measured: `make bench TARGET=log ARGS="[--entries 1000000] [--json OUT]"`.

*Appends*: entries like those of a question, a batch of `--batch` at a time, each batch durable when it returns. Target:
5,000 a second. *Verification*: every entry hashed again, checked to be canonical, and held against 20 checkpoints and
one that somebody else kept. Target: 60 seconds of processor time for a million entries; beside it wall time, which a
busy machine makes longer. Without a target: one entry at a time, an inclusion and a consistency proof, and a
checkpoint, at that size.

Exits with 1 when a target is missed. Needs 1 GB of disk for a million entries, which is deleted in the end.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.governance.log import AuditLog, Ed25519Signer, verify_log
from cohortium.privacy.ledger import open_store

ORIGIN = "cohortium/benchmark/north"
APPENDS_A_SECOND, SECONDS_A_MILLION = 5_000, 60.0
CHECKPOINTS, ONE_BY_ONE = 20, 200


def entry(number: int) -> dict[str, object]:
    """What the door logs of a question, about as long."""
    digest = f"sha256:{number:064x}"
    return {
        "event": "query.released",
        "plan": digest,
        "run": f"{number:032x}",
        "phase": "training",
        "step": number,
        "attempt": 1,
        "question": digest,
        "mu2": str(number << 20),
        "tv": "1",
        "decision": digest,
        "consent": digest,
    }


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> int:
    """Measure, print, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signer = Ed25519Signer(ORIGIN, Ed25519PrivateKey.generate())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.sqlite"
        log = AuditLog(open_store(path), ORIGIN, signer)
        appending, every = 0.0, max(1, options.entries // CHECKPOINTS // options.batch)
        for number, start in enumerate(range(0, options.entries, options.batch)):
            batch = [entry(n) for n in range(start, min(start + options.batch, options.entries))]
            appending += seconds(lambda batch=batch: log.append(batch))  # type: ignore[misc]
            if number % every == 0:
                log.checkpoint()
        held = log.checkpoint()
        size = log.size
        begin, cpu = time.perf_counter(), time.process_time()
        report = verify_log(path, signer.verifier, notes=[held])
        verifying, cpu = time.perf_counter() - begin, time.process_time() - cpu
        if report.findings or report.size != size:
            print("an honest log was not verified")
            return 1
        again = AuditLog(open_store(path), ORIGIN, signer)  # without what the first one has in memory
        figures = {
            "entries": size,
            "batch": options.batch,
            "appends_a_second": size / appending,
            "verify_wall_seconds": verifying,
            "verify_seconds_a_million": cpu / size * 1e6,
            "inclusion_ms": 1e3 * seconds(lambda: again.inclusion(size // 3, size)),
            "consistency_ms": 1e3 * seconds(lambda: again.consistency(size // 3, size)),
            "one_by_one_ms": 1e3 * seconds(lambda: [again.append([entry(n)]) for n in range(ONE_BY_ONE)]) / ONE_BY_ONE,
            "checkpoint_ms": 1e3 * seconds(again.checkpoint),
            "bytes_an_entry": path.stat().st_size / size,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    for name, value in figures.items():
        print(f"{name:26} {value:,.1f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    missed = [
        text
        for text, holds in (
            (f"{APPENDS_A_SECOND:,} appends a second", figures["appends_a_second"] >= APPENDS_A_SECOND),
            (
                f"{SECONDS_A_MILLION:g} s a million entries verified",
                figures["verify_seconds_a_million"] <= SECONDS_A_MILLION,
            ),
        )
        if not holds
    ]
    for text in missed:
        print(f"missed: {text}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
