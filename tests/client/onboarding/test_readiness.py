"""The readiness check: what is missing, and what to do about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from cohortium.cli.data import app, named_sources
from cohortium.client.onboarding import Finding, assess, inspect_sources
from cohortium.study.contract import Contract
from cohortium.study.errors import DataError


def findings(contract: Contract, frame: pd.DataFrame) -> dict[str, Finding]:
    return {f.about: f for f in assess(contract, inspect_sources(contract, {"purchases": frame})).findings}


def lenient(contract: Contract, share: float) -> Contract:
    return Contract.model_validate(contract.to_json() | {"max_bad_share": share})


@pytest.mark.parametrize(("people", "level"), [(99, "blocks"), (100, "advice"), (499, "advice"), (500, "ok")])
def test_floors(people: int, level: str, contract: Contract, make_lines: Any) -> None:
    frame = make_lines(1, lines=people)
    frame = frame.assign(cid=[f"c{n}" for n in range(people)], amount=5.0, day=pd.Timestamp("2024-02-01"))
    assert findings(contract, frame)["customers"].level == level


def test_a_short_history_is_named(contract: Contract, make_lines: Any) -> None:
    frame = make_lines(2, lines=3000, people=300)
    assert findings(contract, frame)["purchases"].level == "ok"
    short = findings(contract, frame[frame["day"] < "2024-02-01"])["purchases"]
    assert (short.level, "31 of the window's 91 days" in short.text) == ("advice", True)


def test_bad_shares_block_and_poor_columns_are_advice(contract: Contract, make_lines: Any) -> None:
    frame = make_lines(3, lines=3000, people=300)
    found = findings(lenient(contract, 0.01), frame.assign(band=None, score=1e6))
    assert found["purchases, column 'amount'"].level == "blocks"
    assert "listed category" in found["band"].text
    assert "clipped" in found["score"].text
    assert "not from these rows" in found["score"].fix


def test_everything_in_order_is_ready(contract: Contract, make_lines: Any) -> None:
    readiness = assess(contract, inspect_sources(contract, {"purchases": make_lines(4, lines=4000, people=600)}))
    assert readiness.ready
    assert all(finding.fix for finding in readiness.findings if finding.level != "ok")


def test_sources_are_named_or_in_order(contract: Contract) -> None:
    assert named_sources(contract, ["a.csv"]) == {"purchases": Path("a.csv")}
    assert named_sources(contract, ["purchases=a=b.csv"]) == {"purchases": Path("a=b.csv")}
    for wrong in (["a.csv", "b.csv"], ["purchases=a.csv", "purchases=b.csv"], ["purchases=a.csv", "b.csv"]):
        with pytest.raises(DataError, match="fix: give purchases=SOURCE"):
            named_sources(contract, wrong)


@pytest.fixture
def contract_file(contract: Contract, tmp_path: Path) -> Path:
    """The contract as TOML: JSON scalars and arrays are TOML too."""
    data = contract.to_json()
    head = [f"{key} = {json.dumps(data[key])}" for key in ("schema", "name", "currency", "purposes", "max_bad_share")]
    parts = [*head, "[window]", *(f"{key} = {value}" for key, value in data["window"].items())]
    for kind in ("tables", "features"):
        for item in data[kind]:
            parts += [f"[[{kind}]]", *(f"{k} = {json.dumps(v)}" for k, v in item.items() if v is not None)]
    file = tmp_path / "contract.toml"
    file.write_text("\n".join(parts), encoding="utf-8")
    return file


def test_the_command_prints_and_exits_by_readiness(contract_file: Path, make_lines: Any, tmp_path: Path) -> None:
    make_lines(4, lines=4000, people=600).to_csv(tmp_path / "lines.csv", index=False)
    make_lines(4, lines=400, people=20).to_csv(tmp_path / "few.csv", index=False)
    runner = CliRunner()
    good = runner.invoke(app, ["check", str(contract_file), str(tmp_path / "lines.csv")])
    assert good.exit_code == 0
    assert good.stdout.strip().endswith("ready")
    few = runner.invoke(app, ["check", str(contract_file), f"purchases={tmp_path / 'few.csv'}", "--json"])
    assert few.exit_code == 1
    answer = json.loads(few.stdout)
    assert answer["ready"] is False
    assert answer["readiness"]["findings"][0]["level"] == "blocks"
    assert answer["report"]["people"] == 20


def test_mistakes_propagate_and_help_teaches(contract_file: Path) -> None:
    runner = CliRunner()
    wrong = runner.invoke(app, ["check", str(contract_file), "none.csv"])
    assert isinstance(wrong.exception, DataError)
    for command in ("check", "fetch", "list"):
        assert f"cohortium data {command}" in runner.invoke(app, [command, "--help"]).stdout
    assert "ta-feng" in runner.invoke(app, ["list"]).stdout
