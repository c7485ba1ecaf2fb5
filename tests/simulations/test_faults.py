"""One run of `cohortium simulate` killed at stage after stage: what was charged is counted, and paid once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cohortium.privacy.accounting import Spend, budget_for
from cohortium.privacy.ledger import Ledger, open_store
from cohortium.study.bundle import load_bundle

REGIONS = ("north", "south", "west")
STAGES = ("onboarding", "federated study", "moments 1", "cells 3", "lloyd 3", "profiles 1", "scoring")
"""Lines of progress at which one run is killed, one after the other."""


@contextmanager
def running(study_folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`cohortium simulate` as a process of its own, killed at the end if it still runs."""
    arguments = ["simulate", "plan.toml", "--data", "people.csv", "--institutions", "region", "--out", "out", *options]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "cohortium.cli", *arguments],
        cwd=study_folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def killed_at(study_folder: Path, line: str, *options: str) -> bool:
    """Whether the process lived to say the line; it is killed then."""
    with running(study_folder, *options) as process:
        assert process.stderr is not None
        for said in process.stderr:
            if line in said:
                process.send_signal(signal.SIGKILL)
                return process.wait(60) in (-signal.SIGKILL, 0)  # 0: it ended before the signal came
        return False


def ledgers(study_folder: Path) -> dict[str, tuple[Spend, int]]:
    """What every ledger says and how many charges it has, verified; nothing for one that is not there yet."""
    found = {}
    for name in REGIONS:
        path = study_folder / "out" / "institutions" / name / "node.sqlite"
        if not path.exists():
            continue
        ledger = Ledger(open_store(path), name, budget_for(3.0, 1e-6))
        ledger.verify()
        charges = list(ledger.charges())
        assert ledger.spent() == Spend(sum(c.spend.mu2 for c in charges), sum(c.spend.tv for c in charges))
        assert ledger.spent().fits(budget_for(1.0, 1e-6))
        found[name] = (ledger.spent(), len(charges))
        ledger.close()
    return found


@pytest.mark.slow
def test_a_run_killed_again_and_again_pays_for_one_run(study_folder: Path) -> None:
    paid: dict[str, tuple[Spend, int]] = {}
    bundle_file = study_folder / "out" / "bundle.json"
    for line in STAGES:
        begun = (study_folder / "out" / "run.json").exists()
        assert killed_at(study_folder, line, *(["--resume"] if begun else []))
        now = ledgers(study_folder)
        for name, (spend, count) in paid.items():
            assert now[name][0].mu2 >= spend.mu2
            assert now[name][1] >= count, "a ledger forgot a charge"
        paid = now
    written = bundle_file.read_bytes() if bundle_file.exists() else None
    assert written is not None
    with running(study_folder, "--resume", "--json") as process:
        printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert bundle_file.read_bytes() == written
    bundle = load_bundle(bundle_file)
    total = Spend(sum(r.mu2 for r in bundle.releases), sum(r.tv for r in bundle.releases))
    assert ledgers(study_folder) == {name: (total, len(bundle.releases)) for name in REGIONS}
    assert json.loads(printed)["bundle"] == bundle.to_json()
    left = [path.name for path in (study_folder / "out").rglob("*") if path.name.startswith((".", "new"))]
    assert left == []
