"""What a new node declares: nothing, and every question that its rules ask of people."""

from __future__ import annotations

import json
import re
import tomllib
from datetime import date
from pathlib import Path

import pytest

from cohortium.client.declaring import starter_governance
from cohortium.client.governing import GOVERNANCE_FILE, is_found, read_governance
from cohortium.governance.rules import Facts, evaluate
from cohortium.study.errors import DataError

TODAY = date(2026, 11, 23)
QUESTION = re.compile(r"^# ([a-z]+\.[a-z0-9_]+) = (.+)$", re.MULTILINE)


def written(folder: Path, text: str) -> Path:
    (folder / GOVERNANCE_FILE).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("region", ["EU", "UK", "US-NY", "BR"])
def test_it_asks_all_that_rules_read_and_the_node_does_not_find(region: str, tmp_path: Path) -> None:
    """Unanswered it refuses; answered as the packs' own sheets answer, beside what the node finds, it admits."""
    found = read_governance(written(tmp_path, starter_governance(region)))
    assert found is not None
    declared, packs = found
    assert declared.facts == {}
    sheets = {name: value for pack in packs for name, value in pack.sheet.items()}
    known = Facts.of({name: value for name, value in sheets.items() if is_found(name)}, "the node")
    assert not evaluate(packs, known, "admission", TODAY).admitted

    def answered(question: re.Match[str]) -> str:
        value = sheets[question[1]]
        told = str(value) if isinstance(value, date) else json.dumps(value)
        return f"{question[1]} = {told}"

    read = read_governance(written(tmp_path, QUESTION.sub(answered, starter_governance(region))))
    assert read is not None
    assert read[0].facts
    stated = Facts.of(read[0].facts, "people")
    for stage in ("admission", "activation", "retention"):
        decision = evaluate(packs, Facts.merged(known, stated), stage, TODAY)
        assert decision.admitted, decision.findings


def test_no_question_is_an_answer() -> None:
    for name, choices in QUESTION.findall(starter_governance("UK")):
        with pytest.raises(tomllib.TOMLDecodeError):
            tomllib.loads(f"{name} = {choices}")


def test_a_region_without_a_pack_has_to_name_those_that_hold_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="packs"):
        read_governance(written(tmp_path, starter_governance("Elsewhere")))
    packs = {region: tomllib.loads(starter_governance(region))["packs"] for region in ("EU", "UK", "US-NY")}
    assert packs == {"EU": ["eu"], "UK": ["eu", "uk"], "US-NY": ["us", "us-ny"]}
