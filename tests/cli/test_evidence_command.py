"""`cohortium evidence build` and `verify` from the outside: runs or a node in, one file out, checked by the charter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from cohortium.cli.evidence_pack import build, verify
from cohortium.client.onboarding import parse_source
from cohortium.governance.evidence.verify import CHECKS
from cohortium.simulations.governed import SimulatedGovernance
from cohortium.simulations.run_folder import SimulationOrder
from cohortium.simulations.sources import own_data
from cohortium.simulations.study import simulate
from cohortium.study.errors import CohortiumError, DataError, OutputError, PlanError, RefusedError
from cohortium.study.plans import load_plan

app = typer.Typer()
app.command("build")(build)
app.command("verify")(verify)


def evidence(*words: object) -> Result:
    """`cohortium evidence ...` in this process; what `main` would turn into exit code 2 is in `exception`."""
    return CliRunner().invoke(app, [str(word) for word in words])


def told(*words: object) -> Any:
    done = evidence("verify", *words, "--json")
    assert done.exit_code in (0, 1), done.exception
    return {**json.loads(done.output), "code": done.exit_code}


@pytest.fixture
def run(study_folder: Path) -> Path:
    """A small governed run."""
    for name, old, new in (
        ("contract.toml", '"research"', '"CustomerSegmentation"'),
        ("plan.toml", '"research"', '"CustomerSegmentation"'),
        ("plan.toml", '"local"', '"distributed"'),
        ("plan.toml", "min_institutions = 2", "min_institutions = 3"),
    ):
        text = (study_folder / name).read_text()
        assert old in text
        (study_folder / name).write_text(text.replace(old, new))
    plan, contract = load_plan(study_folder / "plan.toml")
    data = own_data({"people": parse_source(str(study_folder / "people.csv"))}, "region", contract)
    governance = SimulatedGovernance(regions=("EU", "EU", "UK"))
    out = study_folder / "out"
    simulate(SimulationOrder(plan, contract, data, out, governance=governance, lifetime_epsilon=3.0), lambda _: None)
    return out


def test_a_pack_is_built_from_runs_and_from_a_node_and_verified(run: Path, tmp_path: Path) -> None:
    charter, pack = run / "charter.json", tmp_path / "evidence.zip"
    for name in ("run.json", "plan.json", "contract.json", "charter.json", "bundle.json", "coordinator.sqlite"):
        (run / "again").mkdir(exist_ok=True)
        shutil.copy(run / name, run / "again" / name)  # a run inside of the folder, on its state
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    card = tmp_path / "card.md"
    card.write_text("# Card\n")
    done = evidence("build", run, "-o", pack, "--add", card)
    assert done.exit_code == 0, done.exception
    assert "documents about 'small', signed by cohortium/simulation/coordinator" in done.output
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    shown = evidence("verify", pack, "--charter", charter)
    assert shown.exit_code == 0, shown.output
    assert shown.output.splitlines()[-1] == "verified"
    assert [line[:14].strip() for line in shown.output.splitlines()[:-1]] == list(CHECKS)
    assert "cosignatures   passed  coordinator: the first 10 entries, by 3 others, and 3 more" in shown.output
    assert "reviews        -       not in this pack" in shown.output
    inner = tmp_path / "inner.zip"
    assert evidence("build", run / "again", "--out", inner, "--add", card).exit_code == 0
    assert inner.read_bytes() == pack.read_bytes()

    altered = bytearray(pack.read_bytes())
    at = altered.index(b"# Card")
    altered[at] ^= 1
    (tmp_path / "altered.zip").write_bytes(altered)
    report = told(tmp_path / "altered.zip", "--charter", charter)
    assert (report["code"], report["verified"], report["altered"]) == (1, False, "added/card.md")
    shown = evidence("verify", tmp_path / "altered.zip", "--charter", charter)
    assert shown.output.splitlines()[-1] == "NOT verified: the first altered byte lies in added/card.md"

    refused = evidence("build", run, "-o", pack)
    assert isinstance(refused.exception, OutputError)
    plan = json.loads((run / "run.json").read_bytes())["plan"]
    north = tmp_path / "north.zip"
    assert evidence("build", "--node", run / "institutions" / "north", "--plan", plan, "-o", north).exit_code == 0
    report = told(north, "--charter", charter)
    assert (report["code"], report["signers"]) == (0, ["cohortium/simulation/north"])
    statuses = {one["check"]: one["status"] for one in report["findings"]}
    assert (statuses["charges"], statuses["contributions"], statuses["released"]) == ("passed", "absent", "absent")
    unknown = evidence(
        "build", "--node", run / "institutions" / "north", "--plan", "sha256:0", "-o", tmp_path / "x.zip"
    )
    assert isinstance(unknown.exception, RefusedError)
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("build", "-o", "x.zip"), PlanError, "say of what"),
        (("build", "a", "--node", "b", "-o", "x.zip"), PlanError, "say of what"),
        (("build", "a", "--plan", "b", "-o", "x.zip"), PlanError, "plans are those of the runs"),
        (("build", "--node", "b", "--state", "c", "-o", "x.zip"), PlanError, "is its own state"),
        (("build", "nowhere", "-o", "x.zip"), DataError, "holds no run"),
        (("build", "--node", "nowhere", "-o", "x.zip"), DataError, "holds no node"),
        (("verify", "nowhere.zip", "--charter", "nowhere.json"), PlanError, "No such file"),
        (("verify", "nowhere.zip", "--charter", "nowhere.toml"), PlanError, "No such file"),
    ],
)
def test_mistakes_of_the_caller_are_named(
    words: tuple[str, ...], error: type[CohortiumError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = evidence(*words)
    assert isinstance(done.exception, error)
    assert message in str(done.exception)
    assert list(tmp_path.iterdir()) == []
