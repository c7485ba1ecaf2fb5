"""`cohortium consent` from the outside: import, withdraw, object, erase, and what is told of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cohortium.cli.consent import app
from cohortium.study.errors import CohortiumError

MAPPING = """
schema = "cohortium.consent-import/1"
kind = "marketing-objection"
state = "set"

[columns]
person = "id"
time = "at"
"""


@pytest.fixture
def node(tmp_path: Path) -> Path:
    (tmp_path / "node").mkdir()
    (tmp_path / "mapping.toml").write_text(MAPPING)
    (tmp_path / "o.csv").write_text("id,at\nC1,2026-02-01T00:00:00Z\nC2,yesterday\n")
    return tmp_path / "node"


def call(*words: object, typed: str = "") -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], input=io.BytesIO(typed.encode()))


def told(*words: object, typed: str = "") -> Any:
    done = call(*words, "--json", typed=typed)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def filled(node: Path) -> Path:
    files = (node.parent / "o.csv", "--mapping", node.parent / "mapping.toml", "--rejects", node.parent / "r.csv")
    assert told("import", node, *files, "--quiet")["recorded"] == 1
    return node


def test_import_tells_what_it_rejected(node: Path) -> None:
    files = (node.parent / "o.csv", "--mapping", node.parent / "mapping.toml", "--rejects", node.parent / "r.csv")
    done = call("import", node, *files)
    assert done.exit_code == 0
    assert "1 recorded, 0 known before, 1 rejected" in done.stdout
    assert (node.parent / "r.csv").read_text() == "2,time,is no ISO 8601 time with a zone\n"


def test_a_person_from_objection_to_erasure(filled: Path) -> None:
    standing = told("status", filled, "--person", "-", typed="C1\n")
    assert standing["flags"] == ["marketing-objection"]
    cleared = told("object", filled, "--person", "C1", "--cleared")
    assert cleared["what"] == {"kind": "marketing-objection", "state": "cleared"}
    assert told("object", filled, "--person", "C1", "--to", "gpc")["sequence"] == 3
    withdrawn = told("withdraw", filled, "--person", "C1", "--purpose", "TargetedAdvertising")
    assert withdrawn["what"]["purposes"] == ["TargetedAdvertising"]
    assert [each["sequence"] for each in told("receipt", filled, "--person", "C1")] == [1, 2, 3, 4]
    told("erase", filled, "--person", "C1")
    status = told("status", filled)
    assert status["events"] == 5
    assert status["open_obligations"]["delete-rows"] == 1
    counted = told("snapshot", filled, "--purpose", "CustomerSegmentation", "--basis", "contract")
    assert (counted["people"], counted["allowed"], counted["erasure_pending"]) == (1, 0, 1)
    assert told("erase", filled, "--person", "C1", "--rows-deleted")["sequence"] == 6
    assert told("receipt", filled, "--person", "C1") == []
    assert "no record" in call("receipt", filled, "--person", "C1").stdout


def test_text_names_what_was_recorded(filled: Path) -> None:
    out = call("object", filled, "--person", "C9", "--to", "interests").stdout
    assert "interests-objection: set" in out
    assert "no question was answered since" in out
    assert "C9" not in out
    assert "open obligations: leave-out-of-rounds: 2, tell-recipients: 2" in call("status", filled).stdout
    assert "root: sha256:" in call("snapshot", filled, "--purpose", "Marketing").stdout


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (("status", "{node}", "--person", "C77"), "no record of this customer"),
        (("withdraw", "{node}", "--person", "C1", "--purpose", "Spying"), "no purpose"),
        (("withdraw", "{node}", "--person", "C1", "--at", "yesterday"), "no ISO 8601 time"),
        (("withdraw", "{node}", "--person", "C1", "--at", "2026-01-01T00:00:00"), "time zone"),
        (("object", "{node}", "--person", "C1", "--at", "2999-01-01T00:00:00Z"), "future"),
        (("erase", "{node}", "--person", "C1", "--rows-deleted"), "no erasure"),
        (("snapshot", "{node}", "--purpose", "Marketing", "--basis", "whim"), "no lawful basis"),
        (("status", "{node}/none"), "no folder"),
    ],
)
def test_mistakes_are_named_without_the_person(filled: Path, words: tuple[str, ...], word: str) -> None:
    done = call(*(each.replace("{node}", str(filled)) for each in words))
    assert isinstance(done.exception, CohortiumError)  # the root command prints it and ends with 2
    assert word in str(done.exception)
    assert "C77" not in str(done.exception)


def test_a_missing_store_is_not_made_anew(node: Path) -> None:
    done = call("object", node, "--person", "C1")
    assert "no consent store" in str(done.exception)
    assert not (node / "consent.sqlite").exists()
