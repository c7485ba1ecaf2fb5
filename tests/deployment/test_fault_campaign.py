"""A dozen bad days on real processes: kills, cut and slow links, a full disk, clocks that are off."""

from __future__ import annotations

import hashlib
import importlib
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.governance.log import AuditLog, Ed25519Signer, leaf_hash
from cohortium.privacy.accounting import Spend, budget_for
from cohortium.privacy.ledger import Ledger, Slot, open_store

CAMPAIGN = Path(__file__).resolve().parents[2] / "benchmarks" / "faults.py"
SEED = "56791"
KINDS = [
    *("kill", "kill-coordinator", "full-disk", "clock", "partition", "slow-node"),
    *("reset", "slow-link", "partition", "slow-node", "reset", "slow-link"),
]


@pytest.mark.slow
def test_bad_days_cost_no_charge_no_mask_and_no_process(tmp_path: Path) -> None:
    out = tmp_path / "faults.jsonl"
    command = [sys.executable, str(CAMPAIGN), "--faults", str(len(KINDS)), "--seed", SEED, "--institutions", "4"]
    command += ["--wave", "20", "--out", str(out), "--kinds", *KINDS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    hit = [line for line in lines if "fault" in line]
    assert [one["kind"] for one in sorted(hit, key=lambda one: int(one["fault"]))] == KINDS
    studies = [line for line in lines if "problems" in line]
    assert studies[-1]["state"] == "end"
    assert "released" in [study["state"] for study in studies]
    assert all(study["problems"] == {} for study in studies)


@dataclass
class Folders:
    """What the campaign's books read of a federation."""

    root: Path
    institutions: tuple[str, ...] = ("north",)

    @property
    def coordinator(self) -> Path:
        return self.root / "coordinator"

    def node(self, name: str) -> Path:
        return self.root / name


SLOT = Slot("sha256:" + "0" * 64, "1" * 32, "cells", 0, 1)
BODY, NOTE = bytes(range(24)), b"a note"


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """One answer of one node: charged, stored, logged, and taken by the coordinator."""
    found, origin = Folders(tmp_path), "cohortium/loopback/"
    (tmp_path / "north").mkdir()
    found.coordinator.mkdir()
    ledger = Ledger(open_store(tmp_path / "north" / "node.sqlite"), "north", budget_for(3.0, 1e-6))
    with closing(ledger):
        ledger.reserve(SLOT.plan, SLOT.run, Spend(1 << 40, 1 << 40), date.max)
        charge = ledger.charge(SLOT, "asked", width=3, bound_squared=1 << 48, sigma=1 << 32)
        ledger.settle(charge, BODY + NOTE)
    said = {"event": "release", "question": "asked", "run": SLOT.run}
    leaf = leaf_hash(appended(tmp_path / "north" / "log.sqlite", origin + "north", said)).hex()
    taken = {"event": "question", **vars(SLOT), "question": "asked", "contributions": {"north": {"leaf": leaf}}}
    appended(found.coordinator / "log.sqlite", origin + "coordinator", taken)
    return found


def appended(path: Path, origin: str, entry: dict[str, Any]) -> bytes:
    store = open_store(path)
    log = AuditLog(store, origin, Ed25519Signer(origin, Ed25519PrivateKey.from_private_bytes(bytes(32))))
    (index,) = log.append([entry])
    leaf = log.entry(index).leaf.to_bytes()
    store.dispose()
    return leaf


def left(body: bytes, charge: int | None = 1) -> dict[str, Any]:
    """What a node tells before it sends."""
    words = hashlib.sha256(body).hexdigest()
    said = {"node": "north", "moment": "leaving", "wave": "answer", "reply": "release", "question": "asked"}
    return {**said, **vars(SLOT), "body": hashlib.sha256(body + NOTE).hexdigest(), "words": words, "charge": charge}


def problems(folders: Folders, *events: dict[str, Any]) -> dict[str, int]:
    sys.path.insert(0, str(CAMPAIGN.parent))
    try:
        books = importlib.import_module("fault_books").Books(folders, 3.0)
    finally:
        sys.path.remove(str(CAMPAIGN.parent))
    books.check(SLOT.run, list(events))
    return {name: len(found) for name, found in books.problems.items() if found}


def test_the_campaign_finds_nothing_where_nothing_is_wrong(folders: Folders) -> None:
    assert problems(folders, left(BODY), left(BODY)) == {}


def test_the_campaign_finds_a_second_body_and_one_that_was_not_stored(folders: Folders) -> None:
    assert problems(folders, left(BODY), left(bytes(24))) == {"re-masked": 2}


def test_the_campaign_finds_an_answer_that_left_before_its_charge(folders: Folders) -> None:
    assert problems(folders, left(BODY, charge=None)) == {"uncharged": 1}


def test_the_campaign_finds_an_answer_that_was_taken_without_a_charge_or_entry(folders: Folders) -> None:
    taken = {"event": "question", **vars(SLOT), "step": 1, "question": "else", "contributions": {"north": {"leaf": ""}}}
    appended(folders.coordinator / "log.sqlite", "cohortium/loopback/coordinator", taken)
    assert problems(folders, left(BODY)) == {"uncharged": 1}


def test_the_campaign_finds_a_charge_that_is_gone(folders: Folders) -> None:
    with closing(sqlite3.connect(folders.node("north") / "node.sqlite", isolation_level=None)) as file:
        file.execute("PRAGMA foreign_keys = OFF")
        file.execute("DELETE FROM replies")
        file.execute("DELETE FROM charges")
    assert problems(folders, left(BODY)).keys() == {"lost", "uncharged"}
