"""The document: rebuilt strictly from its JSON, refused when a verdict does not follow from its interval."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohortium.governance.fairness import (
    CHOSEN,
    FAIRNESS_SCHEMA,
    REST,
    Audited,
    AuditTerms,
    FairnessResult,
    LookalikeTables,
    audit_lookalike,
    load_fairness,
)
from cohortium.models.group_table import GroupTable
from cohortium.study.errors import DataError


@pytest.fixture
def result() -> FairnessResult:
    counts = np.array([[1_000.0, 4_000.0], [600.0, 4_400.0], [20.0, 60.0]])
    audience = GroupTable(("sex",), (("f",), ("m",), ("unknown",)), (CHOSEN, REST), counts, 9.0)
    return audit_lookalike(
        [LookalikeTables(audience)],
        Audited("sha256:a", "sha256:p", 0.5, 1e-6, date(2026, 11, 23)),
        AuditTerms(minimum_cell=50),
    )


def test_a_result_is_rebuilt_from_its_file_with_the_same_digest(result: FairnessResult, tmp_path: Path) -> None:
    file = tmp_path / "fairness.json"
    file.write_bytes(result.to_bytes())
    again = load_fairness(file)
    assert again == result
    assert again.digest == result.digest
    assert json.loads(file.read_bytes())["schema"] == FAIRNESS_SCHEMA


def _first_verdict(raw: dict[str, Any], name: str, verdict: str) -> None:
    found = next(each for each in raw["metrics"] if each["name"] == name and each["verdict"])
    found["verdict"] = verdict


def _narrower(raw: dict[str, Any]) -> None:
    found = next(each for each in raw["metrics"] if each["verdict"] == "fail")
    found["high"] = 0.9


@pytest.mark.parametrize(
    "edit",
    [
        lambda raw: raw.update(verdict="pass"),
        lambda raw: raw.update(schema="cohortium.fairness/2"),
        lambda raw: raw.update(extra=1),
        lambda raw: _first_verdict(raw, "impact-ratio", "inconclusive"),
        lambda raw: _first_verdict(raw, "impact-ratio", "fail"),
        lambda raw: _first_verdict(raw, "impact-ratio", "insufficient"),
        _narrower,
        lambda raw: raw["thresholds"].pop(),
        lambda raw: raw["thresholds"].append(raw["thresholds"][0]),
        lambda raw: raw["metrics"][0].update(threshold=None),
        lambda raw: raw["metrics"][0].update(low=2.0),
        lambda raw: raw["metrics"][0].update(low=None),
        lambda raw: raw.update(epsilon=-1.0),
    ],
    ids=[
        "verdict", "schema", "extra", "inconclusive", "fail", "no-reason", "interval", "no-threshold", "repeat",
        "no-limit", "ends", "no-end", "epsilon",
    ],
)  # fmt: skip
def test_what_does_not_hold_together_is_refused(
    result: FairnessResult, tmp_path: Path, edit: Callable[[dict[str, Any]], None]
) -> None:
    raw = result.to_json()
    edit(raw)
    file = tmp_path / "fairness.json"
    file.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(DataError, match="is not a fairness result of this version"):
        load_fairness(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_fairness(tmp_path / "none.json")
