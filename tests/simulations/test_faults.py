"""One run of `cohortium simulate` killed at stage after stage: what was charged is counted, and paid once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cohortium.privacy.accounting import Spend, budget_for
from cohortium.privacy.ledger import Ledger, open_store
from cohortium.study.bundle import load_bundle

from .test_kill import REGIONS, RUNS, child, words

STAGES = ("onboarding", "federated study", "moments 1", "cells 3", "lloyd 3", "profiles 1", "scoring")
"""Lines of progress at which one run is killed, one after the other."""


def killed_at(study_folder: Path, line: str, *options: str) -> bool:
    """Whether a run lived to say the line; it is killed then."""
    with child(RUNS, *words(study_folder), *options) as (process, stderr):
        for said in stderr:
            if line in said:
                process.kill()
                process.join(60)
                return process.exitcode in (-signal.SIGKILL, 0)  # 0: it ended before the signal came
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
    command = [sys.executable, "-m", "cohortium.cli", *words(study_folder), "--resume", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert bundle_file.read_bytes() == written
    bundle = load_bundle(bundle_file)
    total = Spend(sum(r.mu2 for r in bundle.releases), sum(r.tv for r in bundle.releases))
    assert ledgers(study_folder) == {name: (total, len(bundle.releases)) for name in REGIONS}
    assert json.loads(ended.stdout)["bundle"] == bundle.to_json()
    left = [path.name for path in (study_folder / "out").rglob("*") if path.name.startswith((".", "new"))]
    assert left == []
