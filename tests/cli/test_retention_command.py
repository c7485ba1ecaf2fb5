"""`cohortium retention` from the outside: exit codes for a timer, what is printed, and the page that explains it."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cohortium.cli import retention as noun
from cohortium.cli.retention import app
from cohortium.client.audience import Audience, Level
from cohortium.client.lookalike import open_records
from cohortium.client.node import NodeIdentity, create_node
from cohortium.governance.obligations import ObligationRegister
from cohortium.governance.rules import Facts, evaluate, load_packs
from cohortium.privacy.ledger import open_store
from cohortium.study.contract import Contract
from cohortium.study.errors import CohortiumError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "retention.md"
DIGEST = "sha256:" + "c" * 64
COMMANDS = ("run", "list", "event", "close", "extend")
PACKS = load_packs(["eu", "uk"])
CLEAN = Facts.of({name: value for pack in PACKS for name, value in pack.sheet.items()}, "the packs' sheets")
ASKED = ("event", "state/north", "rights_request", "--at", "2026-11-02T09:00:00Z", "--note", "case 7")
CLOSE = ("close", "state/north", "ob-1", "--by", "the office", "--how", "told the person", "--evidence", "case 7")


@pytest.fixture
def home(tmp_path: Path, small_contract: Contract, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a node at which decisions under EU and UK rules brought their duties."""
    folder = tmp_path / "state" / "north"
    create_node(folder, NodeIdentity(institution="north", simulation=True), small_contract)
    store = open_store(folder / "obligations.sqlite")
    register = ObligationRegister(store)
    for stage in ("admission", "activation", "retention"):
        register.owe(evaluate(PACKS, CLEAN, stage, date(2026, 11, 1)), DIGEST, date(2026, 11, 1))  # type: ignore[arg-type]
    store.dispose()
    monkeypatch.chdir(tmp_path)
    at(monkeypatch, datetime(2026, 11, 23, tzinfo=UTC))
    return tmp_path


def at(monkeypatch: pytest.MonkeyPatch, now: datetime) -> None:
    monkeypatch.setattr(noun, "_now", lambda: now)


def call(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def told(*words: str, code: int = 0) -> Any:
    done = call(*words, "--json")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


# --- run -------------------------------------------------------------------------------------------------------------


def test_a_timer_sees_whether_something_is_overdue(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("run", "state/north").exit_code == 0
    assert told(*ASKED) == {"event": "rights_request", "at": "2026-11-02T09:00:00+00:00", "opened": ["ob-1", "ob-2"]}
    assert told("run", "state/north")["in_order"] is True
    at(monkeypatch, datetime(2026, 12, 2, 9, tzinfo=UTC))
    assert call("run", "state/north").exit_code == 0
    at(monkeypatch, datetime(2026, 12, 2, 9, 0, 1, tzinfo=UTC))
    late = call("run", "state/north", "--dry-run")
    assert late.exit_code == noun.NOT_IN_ORDER == 1
    assert "overdue  2026-12-02T09:00:00+00:00  ob-1  Tell the person what was done.\n" in late.stdout
    assert "  EU-GDPR-12-3 (GDPR Art. 12(3); C, unverified); since 2026-11-02T09:00:00+00:00; ends by:" in late.stdout
    assert late.stdout.endswith("2 overdue, 0 due soon, 0 open\n")
    assert told("run", "state/north", code=1)["in_order"] is False
    for id in ("ob-1", "ob-2"):
        assert call("close", "state/north", id, *CLOSE[3:]).exit_code == 0
    assert call("run", "state/north").stdout.endswith("0 overdue, 0 due soon, 0 open\n")


def test_every_thing_done_is_a_line_with_what_asks_for_it(home: Path) -> None:
    with open_records(home / "state" / "north") as records:
        made = Audience(
            id="aud-0123",
            name="spring",
            reason=None,
            model=DIGEST,
            plan=DIGEST,
            level=Level("broad", 0.5, 0.1),
            min_cell=50,
            created="2026-01-01T00:00:00+00:00",
            expires=datetime.now(UTC).date() - timedelta(days=1),
            state="active",
            replaced_by=None,
            revision=1,
            scores=DIGEST,
            members=100,
            members_digest=DIGEST,
            suppressed_digest=DIGEST,
        )
        records.audiences().add(made, None)
    line = f"end audience aud-0123 'spring' and delete its lists: last day {made.expires}"
    why = "House limit: nothing outlives its last day"
    assert call("run", "state/north", "--dry-run").stdout.startswith(f"would: {line}\n  {why}\n")
    assert told("run", "state/north")["done"] == [{"what": line, "why": why}]
    assert told("run", "state/north")["done"] == []


# --- list, event, close, extend --------------------------------------------------------------------------------------


def test_the_list_has_what_is_owed_what_is_waited_for_and_who_closed_what(home: Path) -> None:
    call(*ASKED)
    call("event", "state/north", "audit", "--at", "2026-11-20T00:00:00Z", "--note", "audit of November")
    shown = call("list", "state/north").stdout
    assert (
        "open  before next_audit  ob-3  Report outcomes by group; explain and mend the worse ones. (report by" in shown
    )
    assert "waits for complaint (cohortium retention event): UK-DUAA-COMPLAINT (" in shown
    assert shown.endswith("0 overdue, 0 due soon, 3 open\n")
    assert told("extend", *CLOSE[1:5], "--reason", "eleven systems")["due"] == "2027-02-02T09:00:00+00:00"
    assert told(*CLOSE) == {"id": "ob-1", "closed": 1}
    assert [one["id"] for one in told("list", "state/north")["owed"]] == ["ob-2", "ob-3"]
    (closed,) = [one for one in told("list", "state/north", "--closed")["owed"] if one["state"] == "closed"]
    assert (closed["event"], closed["deadline"]) == (
        {"kind": "rights_request", "note": "case 7", "source": "declared"},
        "1 month, 2 more if the person is told why",
    )
    assert closed["extension"]["reason"] == "eleven systems"
    assert (closed["closure"]["evidence"], closed["closure"]["late"]) == ("case 7", False)
    text = call("list", "state/north", "--closed").stdout
    assert "closed by the office, 2026-11-23T00:00:00+00:00: told the person (case 7)" in text


def test_what_is_done_too_late_shows_as_late(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(*ASKED)
    at(monkeypatch, datetime(2027, 1, 1, tzinfo=UTC))
    call(*CLOSE)
    assert "closed by the office, 2027-01-01T00:00:00+00:00, late:" in call("list", "state/north", "--closed").stdout
    call("close", "state/north", "ob-2", *CLOSE[3:], "--at", "2026-11-30T00:00:00Z")
    closed = {one["id"]: one["closure"]["late"] for one in told("list", "state/north", "--closed")["owed"]}
    assert closed == {"ob-1": True, "ob-2": False}


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (("run", "state"), "holds no node"),
        (("event", "state/north", "breach", *ASKED[3:]), "no duty here begins or ends with such an event"),
        ((*ASKED[:4], "yesterday", *ASKED[5:]), "no ISO 8601 time"),
        ((*ASKED[:4], "2026-11-02T09:00:00", *ASKED[5:]), "has no time zone"),
        ((*ASKED[:4], "2999-11-02T09:00:00Z", *ASKED[5:]), "lies in the future"),
        (CLOSE, "there is no such obligation"),
        ((*CLOSE, "--at", "2026-13-01"), "no ISO 8601 time"),
        (("extend", *CLOSE[1:5], "--reason", "busy"), "there is no such obligation"),
    ],
)
def test_mistakes_are_named_with_their_fix(home: Path, words: tuple[str, ...], word: str) -> None:
    done = call(*words)
    assert isinstance(done.exception, CohortiumError)  # the root command prints it and ends with 2
    assert word in str(done.exception)
    assert " — fix: " in str(done.exception)
    assert done.stdout == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(command: str) -> None:
    shown = call(command, "--help")
    assert shown.exit_code == 0
    _, example, rest = shown.stdout.partition("Example")
    assert example
    assert f"cohortium retention {command} state/north" in rest


# --- the page --------------------------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_page_s_commands_run_in_order(home: Path) -> None:
    lines = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    assert {words[2] for words in lines} == set(COMMANDS)
    for words in lines:
        assert words[:2] == ["cohortium", "retention"]
        done = call(*words[2:])
        assert done.exit_code == 0, (words, done.output, done.exception)


def unit(number: int) -> configparser.ConfigParser:
    """A unit file of the page, read strictly: no key or section twice, nothing outside of sections."""
    parser = configparser.ConfigParser(strict=True, interpolation=None, delimiters=("=",), comment_prefixes=("#", ";"))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(blocks("ini")[number])
    return parser


def test_the_units_are_of_systemd_and_call_a_command_that_exists(home: Path) -> None:
    service, timer = unit(0), unit(1)
    assert {name: set(service[name]) for name in service.sections()} == {
        "Unit": {"Description", "OnFailure"},
        "Service": {
            *("Type", "User", "UMask", "StateDirectory", "StateDirectoryMode", "ExecStart"),
            *("NoNewPrivileges", "PrivateTmp", "ProtectSystem"),
        },
    }
    assert {name: set(timer[name]) for name in timer.sections()} == {
        "Unit": {"Description"},
        "Timer": {"OnCalendar", "RandomizedDelaySec", "Persistent"},
        "Install": {"WantedBy"},
    }
    assert service["Service"]["Type"] == "oneshot"
    program, group, command, folder = shlex.split(service["Service"]["ExecStart"])
    assert (program, group) == ("cohortium", "retention")
    assert call(command, folder, "--help").exit_code == 0
    assert folder.startswith(f"%S/{service['Service']['StateDirectory']}/")
    assert re.fullmatch(r"\*-\*-\* ([01]\d|2[0-3]):[0-5]\d:[0-5]\d", timer["Timer"]["OnCalendar"])
    assert re.fullmatch(r"\d+(s|min|h)", timer["Timer"]["RandomizedDelaySec"])
    assert timer["Install"]["WantedBy"] == "timers.target"
