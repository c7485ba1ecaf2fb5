"""What is fuzzed is what is read today: every target accepts the bytes that it begins with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGINS = """
import sys
from targets import TARGETS

for name, target in TARGETS.items():
    seeds = target.seeds()
    if not seeds or not all(target.feed(seed) for seed in seeds):
        sys.exit(f"{name}: a seed is not accepted")
"""


def test_every_target_accepts_its_seeds() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BEGINS], cwd=ROOT / "fuzz", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
