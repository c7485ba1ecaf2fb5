"""`cohortium review` from the outside: enrolment, two signatures, what stops them, and a file anybody verifies."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cohortium.cli.review import PASSWORD, app
from cohortium.client.node import NodeIdentity, create_node, identity_key
from cohortium.governance.access import Role, create_accounts
from cohortium.simulations.starter import write_starter
from cohortium.study.charter import load_charter
from cohortium.study.errors import CohortiumError
from cohortium.study.plans import load_plan

SECRET = "four plain words here"
LATER = f"{datetime.now(UTC) + timedelta(days=100):%Y-%m-%d}"
FACTS = {
    "use.solely_automated": False,
    "use.significant_effect": False,
    "use.decision": "none",
    "features.special_category": 0,
    "features.special_inferred": False,
    "features.vulnerability_targeting": False,
    "features.prohibited_basis": 0,
    "data.partner_sourced": True,
    "data.record_linkage": False,
    "data.uses_ais": False,
    "data.uses_bureau": False,
    "data.uses_credit_data": False,
    "transfer.crosses_border": False,
}


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    error: str


@dataclass(frozen=True)
class Desk:
    """A node, a charter with two reviewers, and their keys."""

    folder: Path
    run: Callable[..., Outcome]

    def __call__(self, verb: str, *words: object, **keys: str) -> Outcome:
        named = [part for name, value in keys.items() for part in (f"--{name.replace('_', '-')}", value)]
        return self.run(verb, self.folder / "north", *words, *named)

    def open(self, name: str = "spring-1", version: int = 1, **changes: str) -> Outcome:
        documents: dict[str, Any] = {
            "card": {"schema": "card/1", "version": version},
            "audit": {"verdict": "pass", "metrics": [{"name": "impact-ratio", "low": 0.85, "high": 0.97}]},
            "dpia": {"outcome": "approve"},
            "decision": {"admitted": True},
            "facts": FACTS,
        }
        for part, document in documents.items():
            (self.folder / f"{part}.json").write_text(json.dumps(document))
        words = {
            "kind": "audience_export",
            "about": "spring offer",
            "purpose": "Marketing",
            "owner": "olga",
            "builder": "bert",
            **{part: str(self.folder / f"{part}.json") for part in documents},
            **changes,
        }
        return self("open", name, "--charter", self.charter, **words)

    @property
    def charter(self) -> Path:
        return self.folder / "charter.toml"

    def sign(self, verb: str, person: str, **words: str) -> Outcome:
        key = self.folder / f"{person}.pem"
        return self(verb, "spring-1", "--charter", self.charter, "--key", key, **words)


def run(*words: object) -> Outcome:
    done = CliRunner().invoke(app, [str(word) for word in words])
    error = str(done.exception) if isinstance(done.exception, CohortiumError) else ""
    if done.exception is not None and not isinstance(done.exception, CohortiumError | SystemExit):
        raise done.exception
    return Outcome(2 if error else done.exit_code, done.stdout, error + done.stderr)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node without cases, a charter with two reviewers, their keys."""
    folder = tmp_path_factory.mktemp("house")
    write_starter(folder)
    _, contract = load_plan(folder / "plan.toml")
    create_node(folder / "north", NodeIdentity(institution="north"), contract)
    create_accounts(folder / "north", roles=frozenset(Role))
    charter = folder / "charter.toml"
    key = identity_key(folder / "north")
    charter.write_text(
        'schema = "cohortium.charter/1"\nname = "one bank"\n\n[[institutions]]\n'
        f'name = "north"\nregion = "EU"\nidentity = "{key}"\n'
    )
    (folder / "password").write_text(SECRET + "\nsecond line\n")
    for person, function in (("priya", "privacy"), ("rolf", "risk")):
        enrol(folder, person, function)
    return folder


def enrol(folder: Path, person: str, function: str) -> None:
    charter = folder / "charter.toml"
    who = ("--person", person, "--institution", "north", "--function", function)
    secret = ("--password-file", folder / "password")
    made = run("key", "new", folder / f"{person}.pem", "--charter", charter, *who, *secret)
    assert made.code == 0, made
    (folder / "request.json").write_text(made.out)
    vouched = run("key", "enrol", folder / "north", folder / "request.json", "--charter", charter)
    assert vouched.code == 0, vouched
    charter.write_text(charter.read_text() + vouched.out)


@pytest.fixture
def desk(house: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv(PASSWORD, SECRET)
    for name in ("review.sqlite", "review.sqlite-wal", "review.sqlite-shm"):
        (house / "north" / name).unlink(missing_ok=True)
    return Desk(house, run)


def test_enrolment_makes_a_charter_that_verifies(house: Path) -> None:
    charter = load_charter(house / "charter.toml")
    assert [(one.person, one.function) for one in charter.reviewers] == [("priya", "privacy"), ("rolf", "risk")]


def test_two_people_approve(desk: Desk) -> None:
    opened = desk.open()
    assert (opened.code, opened.out) == (
        0,
        "opened 'spring-1': risk medium\n  data of a partner (data.partner_sourced)\n",
    )
    first = desk.sign("approve", "priya", expires=LATER, condition="no phone calls")
    assert first.out == "signed as priya (privacy); the case is waiting\nwaits for risk or compliance\n"
    listed = desk("list", "--charter", desk.charter)
    assert "waiting" in listed.out
    assert "medium" in listed.out
    (row,) = json.loads(desk("list", "--charter", desk.charter, "--json").out)
    assert (row["state"], row["waiting_for"], row["owner"], row["age"]) == (
        "waiting",
        ["risk or compliance"],
        "olga",
        0,
    )
    assert "to be signed for risk or compliance, by rolf" in desk("show", "spring-1", "--charter", desk.charter).out
    second = desk.sign("approve", "rolf", expires="200d")
    assert second.out.startswith("signed as rolf (risk); the case is approved\n")
    page = desk("show", "spring-1", "--charter", desk.charter).out
    for words in ("no phone calls", "impact-ratio", "0.85", "nothing was approved before", f"approve to {LATER}"):
        assert words in page
    told = json.loads(desk("show", "spring-1", "--charter", desk.charter, "--json").out)
    assert (told["state"], told["approvers"], told["until"]) == ("approved", ["priya", "rolf"], LATER)


def test_one_person_alone_does_not_approve(desk: Desk) -> None:
    desk.open()
    for _ in range(2):
        again = desk.sign("approve", "priya", expires=LATER)
        assert "the case is waiting" in again.out


def test_return_reject_and_waive(desk: Desk) -> None:
    desk.open()
    waived = desk.sign("waive", "priya", reason="small group", task="audit again", expires=LATER)
    assert "the case is waiting" in waived.out
    assert desk.sign("return", "rolf", question="why?").out.endswith("rolf (risk) asks: why?\n")
    rejected = desk.sign("reject", "rolf", reason="proxies of age")
    assert "the case is rejected" in rejected.out
    assert "the case is rejected" in desk.sign("approve", "priya", expires=LATER).error
    assert "these very documents" in desk.open("spring-2").error
    assert desk.open("spring-2", version=2).code == 0


@pytest.mark.parametrize("role", ["owner", "builder"])
def test_owner_and_builder_cannot_sign(desk: Desk, role: str) -> None:
    desk.open(**{role: "priya"})
    refused = desk.sign("approve", "priya", expires=LATER)
    assert (refused.code, "the signature cannot count" in refused.error) == (2, True)


def test_a_case_file_is_verified_offline(desk: Desk, tmp_path: Path) -> None:
    desk.open()
    desk.sign("approve", "priya", expires=LATER)
    desk.sign("approve", "rolf", expires=LATER)
    file = tmp_path / "case.json"
    assert desk("export", "spring-1", out=str(file)).code == 0
    assert "File exists" in desk("export", "spring-1", out=str(file)).error
    audit = desk.folder / "audit.json"
    told = run("verify", file, "--charter", desk.charter, "--audit", audit)
    assert (told.code, told.out[:18]) == (0, "verified: approved")
    other = run("verify", file, "--charter", desk.charter, "--card", audit, "--json")
    assert (other.code, json.loads(other.out)["verified"]) == (1, False)
    edited = tmp_path / "edited.json"
    edited.write_bytes(file.read_bytes().replace(b'"olga"', b'"oleg"'))
    refused = run("verify", edited, "--charter", desk.charter)
    assert refused.code == 1
    assert refused.out.endswith("NOT verified\n")
    assert "the statement is of another case" in refused.out


def test_the_password_comes_from_file_environment_or_prompt(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.open()
    monkeypatch.setenv(PASSWORD, "another plain password")
    refused = desk.sign("approve", "priya", expires=LATER)
    assert "cannot be opened with this password" in refused.error
    assert "another plain" not in refused.error
    named = str(desk.folder / "password")
    assert desk.sign("approve", "priya", expires=LATER, password_file=named).code == 0
    monkeypatch.delenv(PASSWORD)
    words = ["approve", desk.folder / "north", "spring-1", "--charter", desk.charter]
    words += ["--key", desk.folder / "rolf.pem", "--expires", LATER]
    done = CliRunner().invoke(app, [str(word) for word in words], input=SECRET + "\n")
    assert "the case is approved" in done.stdout
    assert SECRET not in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--person", "Anna Smith", "--institution", "north"), "give an id, not a name"),
        (("--person", "anna", "--institution", "nroth"), "did you mean 'north'"),
    ],
)
def test_a_wrong_request_leaves_no_key(desk: Desk, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    refused = run("key", "new", tmp_path / "a.pem", "--charter", desk.charter, *words, "--function", "risk")
    assert (refused.code, message in refused.error) == (2, True)
    assert not list(tmp_path.iterdir())


def test_an_edited_or_foreign_request_is_not_vouched_for(desk: Desk, tmp_path: Path) -> None:
    who = ("--person", "anna", "--institution", "north", "--function", "risk")
    made = json.loads(run("key", "new", tmp_path / "a.pem", "--charter", desk.charter, *who).out)
    for change, message in (
        ({"person": "rolf"}, "not signed by the reviewer's own key"),
        ({"institution": "south"}, "the request is for 'south'"),
        ({"key": "x"}, "is no request"),
    ):
        (tmp_path / "request.json").write_text(json.dumps({**made, **change}))
        refused = desk.run("key", "enrol", desk.folder / "north", tmp_path / "request.json", "--charter", desk.charter)
        assert (refused.code, message in refused.error) == (2, True), refused
    taken = {**made, **json.loads((desk.folder / "request.json").read_text())}
    (tmp_path / "request.json").write_text(json.dumps(taken))
    twice = desk.run("key", "enrol", desk.folder / "north", tmp_path / "request.json", "--charter", desk.charter)
    assert "distinct keys" in twice.error


def test_a_key_that_is_not_enrolled_does_not_sign(desk: Desk, tmp_path: Path) -> None:
    desk.open()
    who = ("--person", "anna", "--institution", "north", "--function", "risk")
    run("key", "new", tmp_path / "a.pem", "--charter", desk.charter, *who)
    words = ("approve", desk.folder / "north", "spring-1", "--charter", desk.charter)
    refused = run(*words, "--key", tmp_path / "a.pem", "--expires", LATER)
    assert "is not the key of a reviewer of this charter" in refused.error


def test_mistakes_name_the_place(desk: Desk, tmp_path: Path) -> None:
    assert "no case was opened here" in desk("list", "--charter", desk.charter).error
    assert "holds no node" in run("list", tmp_path, "--charter", desk.charter).error
    desk.open()
    assert "there is no case 'autumn'" in desk("show", "autumn", "--charter", desk.charter).error
    for day in ("2020-01-01", "367d", "-1d"):
        assert "expires must be" in desk.sign("approve", "priya", expires=day).error
    for day in ("tomorrow", "d", "99999999999d"):
        assert "is no day" in desk.sign("approve", "priya", expires=day).error
    assert desk.open("other", version=2, link="nothing").error.startswith("--link")
