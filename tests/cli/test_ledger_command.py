"""`cohortium ledger` from the outside: what it says of a node, that it changes nothing, and what a mistake leaves."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from cohortium.cli.main import main
from cohortium.client.node import NodeIdentity, create_node
from cohortium.privacy.accounting import Spend, budget_for, epsilon_spent, person_at, price
from cohortium.privacy.ledger import Ledger, Slot, open_store
from cohortium.privacy.sharing import ALONE, NoiseShare
from cohortium.simulations.starter import write_starter
from cohortium.study.plans import load_plan

IDENTITY = NodeIdentity(institution="north", lifetime_epsilon=3.0, simulation=True)
LIFETIME = budget_for(3.0, 1e-6)
BUDGET = budget_for(1.0, 1e-6)
SHARED = NoiseShare(4, 1)
TERMS: dict[str, Any] = {"width": 3, "bound_squared": 1 << 48, "sigma": 1 << 27}
LOCAL, DISTRIBUTED = price(1 << 48, 1 << 27, 3), price(1 << 48, 1 << 27, 3, SHARED)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def cohortium(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Exit code and prints of `cohortium ledger ...` in this process."""

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["cohortium", "ledger", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        printed = capsys.readouterr()
        return Outcome(int(left.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A starter plan beside a node that charged one question under its own noise and one under a share."""
    write_starter(tmp_path)
    _plan, contract = load_plan(tmp_path / "plan.toml")
    create_node(tmp_path / "node", IDENTITY, contract)
    ledger = Ledger(open_store(tmp_path / "node" / "node.sqlite"), "north", LIFETIME)
    ledger.reserve("an earlier plan", "r", BUDGET, date.max)
    for step, share in enumerate((ALONE, SHARED)):
        made = ledger.charge(Slot("an earlier plan", "r", "marginals", step, 1), f"q{step}", share=share, **TERMS)
        ledger.settle(made, bytes(24))
    ledger.close_reservation("an earlier plan", "r")
    ledger.close()
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit(home: Path, statement: str) -> None:
    with closing(sqlite3.connect(home / "node" / "node.sqlite")) as raw, raw:
        raw.execute(statement)


def test_show_tells_what_was_spent(cohortium: Callable[..., Outcome], home: Path) -> None:
    before = contents(home / "node")
    told = cohortium("show", home / "node")
    assert (told.code, told.err) == (0, "")
    epsilon = epsilon_spent(LOCAL + DISTRIBUTED, 1e-6)
    for text in ("north", f"epsilon {epsilon:.4f} of 3", "marginals", "local", "t 4, c 1", "3 institutions"):
        assert text in told.out
    assert "if all others colluded" in told.out
    assert contents(home / "node") == before


def test_show_as_json_is_complete(cohortium: Callable[..., Outcome], home: Path) -> None:
    told = json.loads(cohortium("show", home / "node", "--json", "--institutions", 8).out)
    spent = LOCAL + DISTRIBUTED
    assert told["spent"] == {"mu2": spent.mu2, "tv": spent.tv}
    assert told["available"]["mu2"] == LIFETIME.mu2 - spent.mu2
    assert told["held"] == {"mu2": 0, "tv": 0}
    assert (told["institution"], told["delta"], told["lifetime_epsilon"]) == ("north", 1e-6, 3.0)
    assert list(told["person_at"]) == ["1", "2", "3", "8"]
    for count, row in told["person_at"].items():
        assert row["closed_form"] == epsilon_spent(person_at(LOCAL, DISTRIBUTED, int(count)), 1e-6)
        assert row["closed_form"] <= row["pld"] * (1 + 1e-6)
        assert row["pld"] <= row["rdp"]
    assert told["epsilon"] == told["person_at"]["1"]
    assert [(line["trust"], line["contributions"], line["colluders"], line["charges"]) for line in told["charges"]] == [
        ("local", 1, 0, 1),
        ("distributed", 4, 1, 1),
    ]
    worst = LOCAL + DISTRIBUTED.times(3)
    assert told["all_others_collude"] == epsilon_spent(worst, 1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_show_ends_the_table_with_the_institutions_there_are(
    cohortium: Callable[..., Outcome], home: Path, count: int
) -> None:
    told = json.loads(cohortium("show", home / "node", "--json", "--institutions", count).out)
    assert list(told["person_at"]) == [str(n) for n in range(1, count + 1)]


def test_preview_tells_how_many_runs_fit(cohortium: Callable[..., Outcome], home: Path) -> None:
    before = contents(home / "node")
    plan, _ = load_plan(home / "plan.toml")
    budget, spent = budget_for(plan.epsilon, plan.delta), LOCAL + DISTRIBUTED
    told = json.loads(cohortium("preview", home / "node", "--plan", home / "plan.toml", "--json").out)
    left = (LIFETIME.mu2 - spent.mu2) // budget.mu2
    assert left >= 1
    assert told["runs_left"] == left
    assert (told["epsilon_now"], told["begun"]) == (epsilon_spent(spent, 1e-6), False)
    assert told["epsilon_held"] == told["epsilon_now"]
    assert len(told["epsilon_after"]) == min(left, 10)
    assert sorted({told["epsilon_now"], *told["epsilon_after"]}) == [told["epsilon_now"], *told["epsilon_after"]]
    assert told["epsilon_after"][0] >= epsilon_spent(Spend(spent.mu2 + budget.mu2, 0), 1e-6)
    assert told["epsilon_after"][-1] <= 3.0
    said = cohortium("preview", home / "node", "--plan", home / "plan.toml")
    assert said.code == 0
    assert f"north: {left} further run" in said.out
    assert f"after 1 more: {told['epsilon_after'][0]:.4f}" in said.out
    assert contents(home / "node") == before


def test_the_runs_that_preview_promises_can_be_reserved_and_no_more(
    cohortium: Callable[..., Outcome], home: Path
) -> None:
    plan, _ = load_plan(home / "plan.toml")
    budget = budget_for(plan.epsilon, plan.delta)
    promised = json.loads(cohortium("preview", home / "node", "--plan", home / "plan.toml", "--json").out)["runs_left"]
    ledger = Ledger(open_store(home / "node" / "node.sqlite"), "north", LIFETIME)
    ledger.reserve(plan.digest, "r", budget, date.max)
    for number in range(1, promised):
        ledger.reserve(f"plan {number}", "r", budget, date.max)
    ledger.close()
    told = json.loads(cohortium("preview", home / "node", "--plan", home / "plan.toml", "--json").out)
    assert (told["runs_left"], told["begun"], told["epsilon_after"]) == (0, True, [])
    assert told["epsilon_now"] < told["epsilon_held"] <= 3.0
    said = cohortium("preview", home / "node", "--plan", home / "plan.toml").out
    assert "begun here" in said
    assert "open runs" in said


def test_verify_says_that_both_code_paths_agree(cohortium: Callable[..., Outcome], home: Path) -> None:
    before = contents(home / "node")
    said = cohortium("verify", home / "node")
    assert (said.code, said.err) == (0, "")
    epsilon = epsilon_spent(LOCAL + DISTRIBUTED, 1e-6)
    assert said.out == f"2 charges, verified: epsilon {epsilon:.4f} at delta 1e-06\n"
    told = json.loads(cohortium("verify", home / "node", "--json").out)
    assert told["verified"] is True
    assert told["findings"] == []
    assert told["epsilon"] == pytest.approx(epsilon, rel=1e-9)
    assert contents(home / "node") == before


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE charges SET mu2 = mu2 / 2 WHERE sequence = 2", "entry 2: costs"),
        ("UPDATE charges SET phase = 'z' WHERE sequence = 1", "entry 1: altered"),
        ("UPDATE charges SET mechanism = 'laplace' WHERE sequence = 2", "entry 2: unknown accounting event"),
        ("DELETE FROM charges WHERE sequence = 2", "entry 2: missing"),
    ],
)
def test_verify_names_the_entry_that_does_not_hold(
    cohortium: Callable[..., Outcome], home: Path, statement: str, said: str
) -> None:
    edit(home, statement)
    outcome = cohortium("verify", home / "node")
    assert outcome.code == 1
    assert any(line.startswith(said) for line in outcome.out.splitlines())
    assert "NOT verified" in outcome.out
    told = cohortium("verify", home / "node", "--json")
    assert told.code == 1
    assert json.loads(told.out)["verified"] is False


def test_an_unknown_event_is_neither_shown_nor_previewed(cohortium: Callable[..., Outcome], home: Path) -> None:
    edit(home, "UPDATE charges SET mechanism = 'laplace' WHERE sequence = 2")
    for words in (["show", home / "node"], ["preview", home / "node", "--plan", home / "plan.toml"]):
        outcome = cohortium(*words)
        assert (outcome.code, outcome.out) == (2, "")
        assert "unknown accounting event" in outcome.err
        assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("command", ["show", "preview", "verify"])
@pytest.mark.parametrize("lost", ["node.sqlite", "node.json"])
def test_what_is_missing_is_a_mistake_and_is_not_made_anew(
    cohortium: Callable[..., Outcome], home: Path, command: str, lost: str
) -> None:
    (home / "node" / lost).unlink()
    words = [command, home / "node", *(["--plan", home / "plan.toml"] if command == "preview" else [])]
    outcome = cohortium(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")
    assert "fix: " in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (home / "node" / lost).exists()


@pytest.mark.parametrize("command", ["show", "preview", "verify"])
def test_help_shows_an_example(cohortium: Callable[..., Outcome], command: str) -> None:
    outcome = cohortium(command, "--help")
    assert outcome.code == 0
    assert f"cohortium ledger {command}" in outcome.out


def test_a_node_of_another_version_is_a_mistake(cohortium: Callable[..., Outcome], home: Path) -> None:
    (home / "node" / "node.json").write_text('{"format": "cohortium.node/9"}', encoding="utf-8")
    outcome = cohortium("show", home / "node")
    assert outcome.code == 2
    assert "another version" in outcome.err
