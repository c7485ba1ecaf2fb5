"""`cohortium federation` and `cohortium node`: the whole exchange by its commands, one file each way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cohortium.cli import log
from cohortium.cli.main import app
from cohortium.client.joining import client_context
from cohortium.client.node import identity_key, read_key
from cohortium.governance.access import ACCESS_FILE
from cohortium.privacy.keypairs import fresh_identity
from cohortium.server.authority import server_context
from cohortium.simulations.starter import write_starter
from cohortium.study.charter import load_charter
from cohortium.study.enrolment import load_request
from cohortium.study.errors import CohortiumError
from cohortium.study.keys import PASSWORD_FILE, plain_pem, write_new_key, write_whole

from .house import NAME, PASSWORD

Run = Callable[..., str]


def run(*words: object) -> str:
    """What a command prints; its error where it fails."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(done.exception, CohortiumError):
        return f"error: {done.exception}"
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def told(*words: object) -> dict[str, Any]:
    return dict(json.loads(run(*words, "--json")))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a contract and a password."""
    monkeypatch.chdir(tmp_path)
    write_starter(tmp_path / "study")
    (tmp_path / "password").write_text(PASSWORD + "\n")
    monkeypatch.setenv(PASSWORD_FILE, str(tmp_path / "password"))
    return tmp_path


FOUND = ("federation", "init", "coordinator", "--name", NAME, "--address", "127.0.0.1:9440")
ASK = (
    *("node", "init", "state", "--institution", "bank a", "--federation", NAME, "--region", "EU"),
    *("--contract", "study/contract.toml"),
)


def test_the_whole_exchange(desk: Path) -> None:
    founded, asked = told(*FOUND), told(*ASK)
    assert (asked["institution"], asked["file"]) == ("bank a", "bank%20a.request.json")
    assert len(asked["fingerprint"].split()) == 8
    answered = told("federation", "enrol", "coordinator", asked["file"], "--fingerprint", asked["fingerprint"])
    assert (answered["outcome"], answered["file"]) == ("enrolled", "bank%20a.enrolment.json")
    assert answered["fingerprint"] == founded["fingerprint"]
    joined = told("node", "join", "state", answered["file"], "--fingerprint", answered["fingerprint"])
    assert joined == {"federation": NAME, "institution": "bank a", "address": "127.0.0.1:9440"}
    client_context(desk / "state", PASSWORD)
    server_context(desk / "coordinator", PASSWORD)
    for folder in ("state", "coordinator"):
        assert (desk / folder / ACCESS_FILE).is_file()
    listed = run("federation", "members", "coordinator")
    assert "bank a" in listed
    assert "active" in listed
    renewed = told("node", "rotate", "state", "--out", "again.json")
    again = ("federation", "enrol", "coordinator", "again.json", "--fingerprint", renewed["fingerprint"])
    assert "the one before is revoked" in run(*again)
    assert "nothing changed" in run(*again)
    run("node", "join", "state", "bank%20a.enrolment.json", "--fingerprint", founded["fingerprint"])
    client_context(desk / "state", PASSWORD)
    ended = told("federation", "revoke", "coordinator", "bank a", "--reason", "left")
    assert (ended["institution"], ended["reason"]) == ("bank a", "left")
    (member,) = told("federation", "members", "coordinator")["members"]
    assert (member["institution"], member["state"], member["reason"]) == ("bank a", "revoked", "left")


def test_a_member_that_moves_with_its_new_key_is_seen_by_who_enrols_it(desk: Path) -> None:
    """The region decides which rules apply, the group who may witness; both may change with a new key, not unseen."""
    founded, asked = told(*FOUND), told(*ASK)
    first = run("federation", "enrol", "coordinator", asked["file"], "--fingerprint", asked["fingerprint"])
    assert "region EU, no group" in first
    assert "CHANGED" not in first
    run("node", "join", "state", "bank%20a.enrolment.json", "--fingerprint", founded["fingerprint"])
    run("node", "rotate", "state", "--out", "again.json")
    honest, key = load_request(desk / "again.json"), read_key(desk / "state", PASSWORD)
    moved = honest.model_copy(update={"region": "US", "group": "holding"})
    (desk / "moved.json").write_bytes(
        moved.model_copy(update={"signature": key.sign(moved.signed_bytes()).hex()}).to_bytes()
    )
    heard = load_request(desk / "moved.json").fingerprint
    said = run("federation", "enrol", "coordinator", "moved.json", "--fingerprint", heard)
    assert "region US, group holding" in said
    assert "CHANGED region from EU to US" in said
    assert "CHANGED group from none to holding" in said


def test_people_read_what_to_do_next(desk: Path) -> None:
    said = run(*FOUND)
    fingerprint = said.split("fingerprint: ")[1].splitlines()[0]
    assert "edit coordinator/federation.toml now" in said
    said = run(*ASK)
    assert "send bank%20a.request.json to the coordinator" in said
    heard = said.split("telephone: ")[1].strip()
    said = run("federation", "enrol", "coordinator", "bank%20a.request.json", "--fingerprint", heard)
    assert f"send back bank%20a.enrolment.json; fingerprint to read out: {fingerprint}" in said
    said = run("node", "join", "state", "bank%20a.enrolment.json", "--fingerprint", fingerprint)
    assert said == f"'bank a' has joined '{NAME}' at 127.0.0.1:9440\n"


def test_reviewers_are_added_from_what_their_institution_printed(desk: Path) -> None:
    run(*FOUND)
    asked = told(*ASK)
    run("federation", "enrol", "coordinator", asked["file"], "--fingerprint", asked["fingerprint"])
    charter, who = "coordinator/charter.json", ("--person", "p-17", "--institution", "bank a", "--function", "risk")
    made = run("review", "key", "new", "p.pem", "--charter", charter, *who, "--password-file", "password")
    (desk / "p.request.json").write_text(made)
    vouched = run("review", "key", "enrol", "state", "p.request.json", "--charter", charter, "--json")
    (desk / "p.json").write_text(vouched)
    said = run("federation", "reviewer", "coordinator", "p.json")
    assert said == "coordinator/charter.json has reviewers p-17 of bank a\n"
    assert [one.person for one in load_charter(desk / charter).reviewers] == ["p-17"]
    (desk / "q.json").write_text(made)
    assert "is not vouched for" in run("federation", "reviewer", "coordinator", "q.json")
    (desk / "q.json").write_text("{}")
    assert "q.json" in run("federation", "reviewer", "coordinator", "q.json")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--institution", " a"), "give a name of 1 to 64 characters"),
        (("--lifetime-epsilon", "51"), "lifetime_epsilon"),
        (("--lifetime-delta", "0.5"), "lifetime_delta"),
        (("--contract", "nowhere.toml"), "nowhere.toml"),
        (("--federation", "a\nb"), "give a name of 1 to 64 characters"),
        (("--region", "x" * 65), "give a name of 1 to 64 characters"),
        (("--password-file", "nowhere"), "nowhere"),
        (("--password-file", "short"), "fewer than 16 characters"),
    ],
)
def test_a_mistake_leaves_nothing(desk: Path, words: tuple[str, str], message: str) -> None:
    (desk / "short").write_text("too short\n")
    said = run(*ASK, *words)
    assert said.startswith("error: ")
    assert message in said
    assert " — fix: " in said
    assert "too short" not in said
    assert not (desk / "state").exists()
    assert not list(desk.glob("*.json"))


def test_refusals_are_one_line_with_place_and_fix(desk: Path) -> None:
    run(*FOUND)
    asked = told(*ASK)
    wrong = "0000 " * 8
    refused = {
        FOUND: "coordinator: holds a coordinator already",
        ASK: "state: holds a node already",
        ("federation", "enrol", "coordinator", asked["file"], "--fingerprint", wrong): "another fingerprint",
        ("federation", "enrol", "coordinator", "study/plan.toml", "--fingerprint", wrong): "is no JSON document",
        ("federation", "enrol", "state", asked["file"], "--fingerprint", wrong): "holds no coordinator",
        ("federation", "revoke", "coordinator", "nobody", "--reason", "x"): "nobody called 'nobody'",
        ("node", "rotate", "state"): "has joined no federation",
        ("node", "join", "state", asked["file"], "--fingerprint", wrong): "bank%20a.request.json",
        ("node", "join", "coordinator", asked["file"], "--fingerprint", wrong): "bank%20a.request.json",
    }
    for words, message in refused.items():
        said = run(*words)
        assert said.startswith("error: "), words
        assert message in said
        assert " — fix: " in said
        assert "\n" not in said
        assert asked["fingerprint"] not in said
    (desk / "wrong").write_text("another password of five words\n")
    command = ("federation", "enrol", "coordinator", asked["file"], "--fingerprint", asked["fingerprint"])
    assert "cannot be opened with this password" in run(*command, "--password-file", "wrong")
    write_new_key(desk / "other.pem", fresh_identity(), PASSWORD)
    (desk / "other.pem").replace(desk / "coordinator" / "identity.pem")
    assert "is not the coordinator's key" in run(*command)


@pytest.mark.parametrize("noun", ["federation", "node"])
def test_every_command_teaches_by_an_example(noun: str) -> None:
    words = ["init", "enrol", "revoke", "reviewer", "members"] if noun == "federation" else ["init", "join", "rotate"]
    for word in words:
        said = run(noun, word, "--help")
        assert f"cohortium {noun} {word}" in said
        assert "Example" in said


def test_the_log_signs_with_encrypted_keys(desk: Path) -> None:
    """Of a coordinator and of a node; neither has one that is not encrypted."""
    founded = told(*FOUND)
    run(*ASK)
    assert log._key(desk / "coordinator").public_key().public_bytes_raw().hex() == founded["identity"]
    assert log._key(desk / "state").public_key().public_bytes_raw().hex() == identity_key(desk / "state")
    for folder in ("coordinator", "state"):
        write_whole(desk / folder / "identity.pem", plain_pem(fresh_identity()))
        with pytest.raises(CohortiumError, match="is no encrypted key"):
            log._key(desk / folder)
