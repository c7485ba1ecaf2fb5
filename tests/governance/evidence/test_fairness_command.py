"""`cohortium fairness` from the outside: models to be audited, a result in words, two results side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from cohortium.cli.fairness import app
from cohortium.client.node import NodeIdentity, create_node
from cohortium.governance.access import Role, create_accounts
from cohortium.study.contract import Contract
from cohortium.study.errors import CohortiumError, DataError
from cohortium.study.model import save_model

from .released import audit, campaign


@pytest.fixture
def run() -> Callable[..., tuple[int, str]]:
    def invoke(*words: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, list(map(str, words)))
        if isinstance(done.exception, CohortiumError):
            raise done.exception
        return done.exit_code, done.output

    return invoke


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A campaign's model, an audit of it that failed and one that passed."""
    model = campaign()
    save_model(model, Ed25519PrivateKey.generate(), tmp_path / "lookalike.safetensors")
    for name, unfair in (("failed", True), ("passed", False)):
        (tmp_path / f"{name}.json").write_bytes(audit(model.digest, unfair=unfair).to_bytes())
    return {path.stem: path for path in tmp_path.iterdir()}


def test_a_result_in_words_names_what_failed_and_its_exit_code(
    run: Callable[..., tuple[int, str]], files: dict[str, Path]
) -> None:
    code, told = run("show", files["failed"])
    assert code == 1
    assert told.startswith("FAIL: lookalike, level balanced, sha256:")
    assert any(line.startswith("fail") and "limit: at least 0.8" in line for line in told.splitlines())
    assert "not judged: reach" not in told
    code, whole = run("show", files["failed"], "--all")
    assert len(whole.splitlines()) > len(told.splitlines())
    assert "not judged: reach of" in whole
    assert json.loads(run("show", files["failed"], "--json")[1]) == json.loads(files["failed"].read_bytes())


def test_a_result_that_passed_exits_with_0(run: Callable[..., tuple[int, str]], files: dict[str, Path]) -> None:
    code, told = run("show", files["passed"])
    assert (code, told.split(":")[0]) == (0, "PASS")


def test_two_audits_side_by_side_say_whether_it_worked_and_at_which_cost(
    run: Callable[..., tuple[int, str]], files: dict[str, Path]
) -> None:
    both = (files["failed"], files["passed"], "--mitigation", "one feature left out")
    code, told = run("compare", *both)
    assert code == 0
    assert "one feature left out" in told
    assert "Verdict before: fail; after: pass." in told
    assert "lift" not in told
    model = files["lookalike"]
    _, told = run("compare", *both, "--before-model", model, "--after-model", model)
    assert "lift of the level 'balanced'" in told
    code, told = run("compare", files["passed"], files["failed"], "--mitigation", "worse", "--json")
    assert (code, json.loads(told)["after"]["verdict"]) == (1, "fail")


def test_models_that_the_audits_are_not_of_are_refused(
    run: Callable[..., tuple[int, str]], files: dict[str, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_bytes(audit("sha256:" + "0" * 64, unfair=False).to_bytes())
    both = (files["failed"], other, "--mitigation", "x")
    with pytest.raises(DataError, match="--after-model: is needed beside the other one"):
        run("compare", *both, "--before-model", files["lookalike"])
    with pytest.raises(DataError, match="is not what that audit is of"):
        run("compare", *both, "--before-model", files["lookalike"], "--after-model", files["lookalike"])


def test_a_model_is_added_by_its_digest_and_one_of_another_contract_is_not(
    run: Callable[..., tuple[int, str]], files: dict[str, Path], tmp_path: Path, small_contract: Contract
) -> None:
    create_node(tmp_path / "node", NodeIdentity(institution="north"), small_contract)
    create_accounts(tmp_path / "node", roles=frozenset(Role))
    with pytest.raises(DataError, match="was learnt under another contract"):
        run("add", tmp_path / "node", files["lookalike"])
    assert not list((tmp_path / "node").glob("models/*"))
    with pytest.raises(DataError, match="holds no node"):
        run("add", tmp_path / "nowhere", files["lookalike"])
