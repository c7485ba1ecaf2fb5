"""`cohortium account`, and that every command asks for authority or is known to need none."""

from __future__ import annotations

import ast
import inspect
import json
import sqlite3
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cohortium.cli.access import ACTS, PASSWORD_FILE, UNPRIVILEGED
from cohortium.cli.main import app
from cohortium.governance.access import FAILURES, PERMITTED, Act, Role, open_accounts, os_login, passwords
from cohortium.study.errors import CohortiumError

SECRET = "correct horse battery"
NODE = '{"format": "cohortium.node/1", "institution": "north", "simulation": false}'


class Outcome(NamedTuple):
    code: int
    out: str
    error: str


def run(*words: object) -> Outcome:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit | CohortiumError):
        raise done.exception
    return Outcome(
        2 if isinstance(done.exception, CohortiumError) else done.exit_code, done.stdout, str(done.exception)
    )


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "COST", 2)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with kim, who calls, and rolf, an auditor with a password."""
    folder = tmp_path / "north"
    folder.mkdir()
    (folder / "node.json").write_text(NODE)
    (tmp_path / "password").write_text(SECRET + "\n")
    monkeypatch.setenv(PASSWORD_FILE, str(tmp_path / "password"))
    assert run("account", "add", folder, "kim", "--first").code == 0
    words = ("--role", "auditor", "--password-file", tmp_path / "password")
    assert run("account", "add", folder, "rolf", *words).out == "added 'rolf': auditor; a password\n"
    return folder


# --- every command ---------------------------------------------------------------------------------------------------


def commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    for word, inner in command.commands.items():
        yield from commands(f"{name} {word}".strip(), inner)


COMMANDS = dict(commands("", get_command(app)))


def first_statement(callback: Callable[..., object]) -> ast.stmt:
    """Of a command, after its description."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(callback))))
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    return function.body[1]


def asked(name: str) -> set[Act] | None:
    """The acts that a command asks for before anything else; None where it asks nobody then."""
    callback = COMMANDS[name].callback
    assert callback is not None
    nodes = list(ast.walk(first_statement(callback)))
    called = [one.func.id for one in nodes if isinstance(one, ast.Call) and isinstance(one.func, ast.Name)]
    acts = {Act[one.attr] for one in nodes if isinstance(one, ast.Attribute) and ast.unparse(one.value) == "Act"}
    return acts if "authorised" in called else None


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_mapped_to_its_act_or_there_is_a_reason_why_it_asks_nobody(name: str) -> None:
    assert (name in ACTS) != (name in UNPRIVILEGED), "say in cli/access.py which act it is, or why it asks nobody"
    assert asked(name) == ACTS.get(name)


def test_every_act_is_asked_for_by_some_command_and_no_command_is_made_up() -> None:
    assert set().union(*ACTS.values()) == set(Act)
    assert all(UNPRIVILEGED.values())
    assert {*ACTS, *UNPRIVILEGED} == set(COMMANDS)


# --- the noun --------------------------------------------------------------------------------------------------------


def test_accounts_are_listed_and_disabled(node: Path) -> None:
    told = json.loads(run("account", "list", node, "--json").out)
    assert [(one["name"], one["roles"], one["os_user"], one["state"]) for one in told] == [
        ("kim", ["operator", "privacy-officer"], os_login(), "active"),
        ("rolf", ["auditor"], None, "active"),
    ]
    assert run("account", "disable", node, "rolf").code == 0
    assert "rolf  auditor" in run("account", "list", node).out
    assert "disabled" in run("account", "list", node).out
    assert "was disabled" in run("--account", "rolf", "account", "list", node).error
    assert "last privacy officer" in run("account", "disable", node, "kim").error


def test_a_node_without_accounts_refuses_and_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text(NODE)
    refused = run("ledger", "show", tmp_path)
    assert refused.code == 2
    assert f"cohortium account add {tmp_path} NAME --first" in refused.error
    assert run("account", "add", tmp_path, "kim", "--first", "--role", "auditor").code == 2
    assert run("account", "add", tmp_path, "kim", "--first").code == 0
    assert "there are accounts already" in run("account", "add", tmp_path, "eve", "--first").error
    assert "holds no ledger" not in run("ledger", "show", tmp_path).error


def test_a_simulation_has_no_accounts(tmp_path: Path) -> None:
    for words in (("list", tmp_path), ("disable", tmp_path, "kim"), ("log", tmp_path), ("password", tmp_path, "kim")):
        assert "a simulation asks nobody" in run("account", *words).error


def test_an_account_is_called_by_option_or_environment(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = run("--account", "rolf", "consent", "status", node)
    assert "consent-read takes the role privacy-officer: 'rolf' has the roles auditor" in refused.error
    assert "consent store" in run("consent", "status", node).error
    monkeypatch.setenv("COHORTIUM_ACCOUNT", "rolf")
    assert "'rolf' has the roles auditor" in run("consent", "status", node).error
    assert run("account", "list", node).code == 0


def test_a_password_needs_a_file_or_a_terminal(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD_FILE)
    for _ in range(FAILURES + 1):
        refused = run("--account", "rolf", "account", "list", node)
        assert f"set {PASSWORD_FILE}" in refused.error
    monkeypatch.setenv(PASSWORD_FILE, str(node.parent / "password"))
    assert run("--account", "rolf", "account", "list", node).code == 0, "nothing was guessed"


def test_ones_own_password_and_an_officers_reset(node: Path, tmp_path: Path) -> None:
    (tmp_path / "new").write_text(SECRET + "2\n")
    new = ("--password-file", tmp_path / "new")
    assert run("--account", "rolf", "account", "password", node, "rolf", *new).code == 0
    assert run("--account", "rolf", "account", "list", node).code == 2
    assert run("account", "password", node, "rolf", "--password-file", tmp_path / "password").code == 0
    assert run("--account", "rolf", "account", "list", node).code == 0
    assert "account-change takes" in run("--account", "rolf", "account", "password", node, "kim", *new).error


def test_the_log_shows_who_did_what_and_is_verified(node: Path, tmp_path: Path) -> None:
    assert run("--account", "rolf", "seed", "remove", node, "vip").code == 2
    told = json.loads(run("account", "log", node, "--json", "--checkpoint", tmp_path / "kept").out)
    last = told["entries"][-2]["entry"]
    assert {part: last[part] for part in ("event", "account", "outcome", "reason", "subject")} == {
        "event": "seed-change",
        "account": "rolf",
        "outcome": "refused",
        "reason": "role",
        "subject": "vip",
    }
    assert (tmp_path / "kept").read_text() == told["checkpoint"]
    assert run("account", "log", node, "--checkpoint", tmp_path / "kept").code == 2
    assert '"event": "seed-change"' in run("account", "log", node).out
    assert (
        run("account", "verify", node, "--against", tmp_path / "kept").out == f"{told['size'] + 2} entries, verified\n"
    )
    with closing(sqlite3.connect(node / "access.sqlite", isolation_level=None)) as edited:
        edited.execute("UPDATE accounts SET roles = 'privacy-officer' WHERE name = 'rolf'")
    found = run("account", "verify", node, "--json")
    assert found.code == 1
    assert "the roles of the account 'rolf'" in json.loads(found.out)["findings"][0]


def test_permissions_are_those_of_the_roles() -> None:
    told = json.loads(run("account", "show-permissions", "--json").out)
    assert {one["act"]: set(one["roles"]) for one in told} == {
        act.value: set(roles) for act, roles in PERMITTED.items()
    }
    lines = run("account", "show-permissions", "--role", "researcher").out.splitlines()
    assert lines == [
        "score: operator, researcher (score)",
        f"password-change: {', '.join(sorted(Role))} (account password)",
    ]


# --- privileged commands ---------------------------------------------------------------------------------------------

PRIVILEGED = [
    (["consent", "withdraw", "NODE", "--person", "C00001"], Act.CONSENT_CHANGE),
    (["seed", "list", "NODE"], Act.SEED_READ),
    (["audience", "expire", "NODE", "aud-1"], Act.AUDIENCE_CREATE),
    (["retention", "run", "NODE"], Act.RETENTION_RUN),
    (["fairness", "add", "NODE", "model"], Act.MODEL_ADD),
    (["score", "NODE", "--model", "m", "--out", "o"], Act.SCORE),
    (["review", "key", "enrol", "NODE", "request", "--charter", "c"], Act.REVIEWER_ENROL),
]


@pytest.mark.parametrize(("words", "act"), PRIVILEGED)
def test_an_auditor_is_refused_before_anything_is_done_and_no_customer_is_logged(
    node: Path, words: list[str], act: Act
) -> None:
    before = {path.name: path.read_bytes() for path in node.iterdir() if not path.name.startswith("access.sqlite")}
    refused = run("--account", "rolf", *(str(node) if word == "NODE" else word for word in words))
    assert refused.code == 2
    assert refused.error.startswith(f"{node}/access.sqlite: {act.value} takes the role")
    assert {p.name: p.read_bytes() for p in node.iterdir() if not p.name.startswith("access.sqlite")} == before
    with open_accounts(node) as store:
        last = store.log.entry(store.log.size - 1).entry
    assert (last["event"], last["account"], last["outcome"]) == (act.value, "rolf", "refused")
    assert "C00001" not in json.dumps(last)
