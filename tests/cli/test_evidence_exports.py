"""`cohortium evidence card | ropa | dpia | prov` from the outside: a node's folder and released files."""

from __future__ import annotations

import csv
import io
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from cohortium.cli.evidence import app
from cohortium.client.node import NodeIdentity, create_node
from cohortium.client.store import NodeStore
from cohortium.governance.access import Role, create_accounts
from cohortium.governance.evidence import Dpia, load_dpia, model_card
from cohortium.governance.log import AuditLog, Ed25519Signer, log_origin
from cohortium.privacy.ledger import open_store
from cohortium.study.charter import Charter
from cohortium.study.errors import CohortiumError
from cohortium.study.model import save_model

from ..governance.evidence.released import (  # noqa: TID252 - tests are no installed package
    audit,
    bundle,
    campaign,
    charter,
    contract,
    encoder,
    segment_plan,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x01")
GOVERNANCE = """schema = "cohortium.governance/1"
packs = ["eu"]
declared_by = "privacy office, 2026-11-23"
[facts]
use.activation = "own_channels"
use.decision = "none"
docs.joint_controller_ref = "arrangement-7"
"""


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    error: str


def run(*words: object) -> Said:
    done = CliRunner().invoke(app, [str(word) for word in words])
    error = str(done.exception) if isinstance(done.exception, CohortiumError) else ""
    if done.exception is not None and not isinstance(done.exception, CohortiumError | SystemExit):
        raise done.exception
    return Said(2 if error else done.exit_code, done.stdout, error + done.stderr)


def agreed() -> Charter:
    return charter().model_copy(update={"coordinator": KEY.public_key().public_bytes_raw().hex()})


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node that approved a plan, declared facts and logged an admission; released files beside it."""
    folder = tmp_path_factory.mktemp("house")
    node = folder / "north"
    create_node(node, NodeIdentity(institution="north"), contract())
    create_accounts(node, roles=frozenset(Role))
    database = open_store(node / "node.sqlite")
    NodeStore(database).approve(segment_plan(), contract(), agreed())
    database.dispose()
    (node / "governance.toml").write_text(GOVERNANCE)
    origin = log_origin("group", "north")
    engine = open_store(node / "log.sqlite")
    entry = {
        "event": "admission",
        "plan": segment_plan().digest,
        "run": "0" * 32,
        "decision": "sha256:" + "d" * 64,
        "admitted": "true",
    }
    AuditLog(engine, origin, Ed25519Signer(origin, KEY)).append([entry])
    engine.dispose()
    (folder / "bundle.json").write_bytes(bundle().to_bytes())
    (folder / "charter.json").write_bytes(agreed().to_bytes())
    (folder / "contract.json").write_bytes(contract().to_bytes())
    (folder / "fairness.json").write_bytes(audit(campaign().digest).to_bytes())
    save_model(campaign(), KEY, folder / "lookalike.safetensors")
    save_model(encoder(), KEY, folder / "encoder.safetensors")
    return folder


# --- card ------------------------------------------------------------------------------------------------------------


def test_a_card_of_every_kind_of_release_is_the_one_that_a_node_makes(house: Path) -> None:
    for name, released in (("bundle.json", bundle()), ("encoder.safetensors", encoder())):
        assert json.loads(run("card", house / name).out) == model_card(released).to_json()
    result = audit(campaign().digest)
    said = run("card", house / "lookalike.safetensors", "--fairness", house / "fairness.json")
    assert json.loads(said.out) == model_card(campaign(), (result,)).to_json()
    assert "signature was not checked" in said.error


def test_a_signature_is_checked_with_the_charter(house: Path, tmp_path: Path) -> None:
    said = run("card", house / "lookalike.safetensors", "--charter", house / "charter.json")
    assert (said.code, "not checked" in said.error) == (0, False)
    other = Ed25519PrivateKey.generate()
    save_model(encoder(), other, tmp_path / "encoder.safetensors")
    save_model(campaign(), other, tmp_path / "lookalike.safetensors")
    for forged in ("encoder.safetensors", "lookalike.safetensors"):
        refused = run("card", tmp_path / forged, "--charter", house / "charter.json")
        assert "not signed by this federation's coordinator" in refused.error
    (tmp_path / "charter.json").write_bytes(charter().to_bytes())
    unpinned = run("card", house / "lookalike.safetensors", "--charter", tmp_path / "charter.json")
    assert "pins no key of a coordinator" in unpinned.error
    assert "a bundle has no signature" in run("card", house / "bundle.json", "--charter", house / "charter.json").error


def test_a_card_in_markdown_and_in_cyclonedx(house: Path) -> None:
    said = run("card", house / "bundle.json", "--format", "markdown", "--contract", house / "contract.json")
    assert yaml.safe_load(said.out.split("---\n")[1])["library_name"] == "cohortium"
    assert "0 to 50,000 EUR" in said.out
    found = json.loads(run("card", house / "bundle.json", "--format", "cyclonedx").out)
    assert found["specVersion"] == "1.6"
    refused = run("card", house / "bundle.json", "--contract", house / "contract.json")
    assert "is shown in Markdown alone" in refused.error


def test_a_file_is_written_once(house: Path, tmp_path: Path) -> None:
    first = run("card", house / "bundle.json", "-o", tmp_path / "card.json")
    assert (first.code, first.out) == (0, "")
    assert model_card(bundle()).digest in first.error
    assert json.loads((tmp_path / "card.json").read_bytes()) == model_card(bundle()).to_json()
    again = run("card", house / "bundle.json", "-o", tmp_path / "card.json")
    assert (again.code, "name a new file" in again.error) == (2, True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("contract.json", "is not a bundle of this version"),
        ("north/log.sqlite", "is not a model file"),
        ("nothing.json", "cannot be read"),
    ],
)
def test_what_is_no_release_is_refused(house: Path, name: str, message: str) -> None:
    said = run("card", house / name)
    assert (said.code, message in said.error) == (2, True)


# --- record of processing --------------------------------------------------------------------------------------------


def test_the_record_has_an_entry_for_every_approved_plan(house: Path) -> None:
    said = run("ropa", house / "north")
    (row,) = csv.DictReader(io.StringIO(said.out))
    assert (row["controller"], row["joint controllers"], row["plan"]) == ("north", "west; south", segment_plan().digest)
    assert row["declared by"] == "privacy office, 2026-11-23"
    assert "things are to be stated" in said.error
    (process,) = json.loads(run("ropa", house / "north", "--format", "jsonld").out)["dpv:hasProcess"]
    assert process["dpv:hasLegalBasis"] == {"@id": "eu-gdpr:A6-1-f"}
    (entry,) = json.loads(run("ropa", house / "north", "--format", "json").out)
    assert entry["schema"] == "cohortium.ropa/1"


def test_a_folder_that_is_no_node_or_approved_nothing_is_refused(house: Path, tmp_path: Path) -> None:
    assert "holds no node" in run("ropa", tmp_path).error
    create_node(tmp_path / "new", NodeIdentity(institution="north"), contract())
    create_accounts(tmp_path / "new", roles=frozenset(Role))
    assert "no plan is approved here" in run("ropa", tmp_path / "new").error


# --- impact assessment -----------------------------------------------------------------------------------------------


def test_a_draft_is_completed_by_answers(house: Path, tmp_path: Path) -> None:
    node, questions = house / "north", tmp_path / "answers.toml"
    draft = Dpia.model_validate_json(run("dpia", node, "spring-segments").out)
    assert run("dpia", node, "spring-segments", "--questions", "-o", questions).code == 0
    asked = tomllib.loads(questions.read_text())
    assert asked == {one.name: "" for one in draft.open}
    assert '# use = "use.activation is' in questions.read_text()
    refused = run("dpia", node, "spring-segments", "--answers", questions, "--outcome", "approve", "--by", "priya")
    assert (refused.code, f"{len(draft.open)} open questions: contacts, " in refused.error) == (2, True)
    questions.write_text(questions.read_text().replace('= ""', '= "as the office judged"'))
    out = tmp_path / "dpia.json"
    words = ("--answers", questions, "--outcome", "approve", "--by", "priya", "--by", "rolf", "-o", out)
    done = run("dpia", node, segment_plan().digest[:20], *words)
    found = load_dpia(out)
    assert (found.state, found.by, found.draft) == ("approve", ("priya", "rolf"), draft.digest)
    assert f'docs.dpia_ref = "{found.digest}"' in done.error
    assert 'docs.dpia_outcome = "approved"' in done.error


def test_the_draft_in_markdown(house: Path) -> None:
    said = run("dpia", house / "north", "spring-segments", "--markdown")
    assert said.out.startswith("# Impact assessment: spring-segments")
    assert "TO BE ANSWERED" in said.out


def test_a_plan_is_named_by_what_begins_its_digest_or_refused(house: Path) -> None:
    digest = segment_plan().digest
    for named in (digest, digest[:20], digest.removeprefix("sha256:")[:9]):
        assert json.loads(run("dpia", house / "north", named).out)["plan"] == digest
    for named in ("spring-segment", "sha256:", "0" * 64):
        said = run("dpia", house / "north", named)
        assert (said.code, "is approved here" in said.error, "spring-segments" in said.error) == (2, True, True)


def test_a_beginning_that_several_plans_share_is_refused(tmp_path: Path) -> None:
    node = tmp_path / "north"
    create_node(node, NodeIdentity(institution="north"), contract())
    create_accounts(node, roles=frozenset(Role))
    plans = [segment_plan(name=f"plan-{index}") for index in range(17)]  # two of them begin with the same digit
    database = open_store(node / "node.sqlite")
    for plan in plans:
        NodeStore(database).approve(plan, contract(), agreed())
    database.dispose()
    first = [plan.digest[7] for plan in plans]
    shared = next(digit for digit in first if first.count(digit) > 1)
    assert f"{first.count(shared)} plans begin with '{shared}'" in run("dpia", node, shared).error
    assert json.loads(run("dpia", node, "plan-3").out)["plan"] == plans[3].digest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--by", "priya"), "only an outcome has these"),
        (("--questions", "--outcome", "reject"), "the questions come before"),
    ],
)
def test_options_that_do_not_go_together_are_refused(house: Path, words: tuple[str, ...], message: str) -> None:
    assert message in run("dpia", house / "north", "spring-segments", *words).error


def test_answers_are_texts(house: Path, tmp_path: Path) -> None:
    (tmp_path / "answers.toml").write_text("contacts = 7\n")
    words = ("--answers", tmp_path / "answers.toml", "--outcome", "reject", "--by", "priya")
    assert "contacts: is no text" in run("dpia", house / "north", "spring-segments", *words).error


# --- provenance ------------------------------------------------------------------------------------------------------


def test_provenance_joins_approvals_log_and_what_was_released(house: Path) -> None:
    found = json.loads(run("prov", house / "north", house / "bundle.json").out)
    entities = set(found["entity"])
    assert f"coh:plan-{segment_plan().digest[7:]}" in entities
    assert "coh:decision-" + "d" * 64 in entities
    assert f"coh:released-{bundle().digest[7:]}" in entities
    used = {(one["prov:activity"], one["prov:entity"]) for one in found["used"].values()}
    assert ("coh:run-" + "0" * 32, "coh:decision-" + "d" * 64) in used


def test_a_release_of_another_plan_is_no_part_of_it(house: Path) -> None:
    said = run("prov", house / "north", house / "lookalike.safetensors")
    assert (said.code, "a plan that is not approved here" in said.error) == (2, True)


def test_help_teaches_by_example() -> None:
    for verb in ("card", "ropa", "dpia", "prov"):
        text = run(verb, "--help").out
        assert f"cohortium evidence {verb} " in text
