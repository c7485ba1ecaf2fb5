"""A dozen bad days on real processes: kills, cut and slow links, a full disk, clocks that are off."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).resolve().parents[2] / "benchmarks" / "faults.py"
FAULTS, SEED = 12, 45171
"""Of eight kinds, one of them the coordinator's death, by choice of the seed; `make bench TARGET=faults` does hundreds."""


@pytest.mark.slow
def test_bad_days_cost_no_charge_no_mask_and_no_process(tmp_path: Path) -> None:
    out = tmp_path / "faults.jsonl"
    command = [sys.executable, str(CAMPAIGN), "--faults", str(FAULTS), "--seed", str(SEED), "--institutions", "4"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    hit = [line for line in lines if "fault" in line]
    assert sorted(one["fault"] for one in hit) == list(range(FAULTS))
    assert {"kill", "kill-coordinator", "partition", "full-disk", "clock"} <= {one["kind"] for one in hit}
    studies = [line for line in lines if "problems" in line]
    assert studies[-1]["state"] == "end"
    assert "released" in [study["state"] for study in studies]
    assert all(study["problems"] == {} for study in studies)
