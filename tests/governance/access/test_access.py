"""Accounts: who is asked, who is refused, what stands in the log of it, and what attacks on it come to."""

from __future__ import annotations

import os
import pwd
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from cohortium.governance.access import (
    ACCESS_FILE,
    FAILURES,
    FIRST_ROLES,
    LOCKED_FOR,
    PERMITTED,
    AccountStore,
    Act,
    Person,
    Role,
    authorise,
    create_accounts,
    open_accounts,
    os_login,
    passwords,
)
from cohortium.privacy.stores import open_store
from cohortium.study.errors import CohortiumError, DataError, OutputError, RefusedError

LOGIN = pwd.getpwuid(os.geteuid()).pw_name
OTHER = next(entry.pw_name for entry in pwd.getpwall() if entry.pw_uid != os.geteuid())
SECRET, WRONG = "correct horse battery", "wrong horse battery!"
KIM = Person("kim", FIRST_ROLES)
NODE = '{"format": "cohortium.node/1", "institution": "north", "simulation": false}'

ADDS = """
import sys
from pathlib import Path
from cohortium.governance.access import Person, Role, open_accounts, passwords

passwords.COST = 2
folder, word = Path(sys.argv[1]), sys.argv[2]
sys.stdin.readline()
with open_accounts(folder) as store:
    for number in range(6):
        name = f"shared-{number}"
        try:
            store.add(name, [Role.AUDITOR], by=Person(word, frozenset()), password="of " + word * 16)
            print(name)
        except Exception as error:
            assert "was used before" in str(error), error
"""


@dataclass
class Clock:
    """A time that tests move."""

    time: datetime = field(default_factory=lambda: datetime(2026, 5, 1, tzinfo=UTC))

    def __call__(self) -> datetime:
        return self.time


@dataclass
class House:
    """A folder whose first account, kim, belongs to whoever runs the tests."""

    folder: Path
    clock: Clock
    store: AccountStore

    def entries(self) -> list[dict[str, Any]]:
        return [dict(one.entry) for one in self.store.log.entries(0, self.store.log.size)]

    def guess(self, password: str, name: str = "rolf", act: Act = Act.LOG_READ) -> Person:
        return self.store.admit(act, name, lambda: password)

    def edit(self, *statements: str) -> None:
        """What the owner of the file can do."""
        with closing(sqlite3.connect(self.folder / ACCESS_FILE)) as connection:
            for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                connection.execute(f"DROP TRIGGER {trigger}")
            for statement in statements:
                assert connection.execute(statement).rowcount
            connection.commit()


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "COST", 2)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    (tmp_path / "node.json").write_text(NODE)
    create_accounts(tmp_path, "kim")
    engine, clock = open_store(tmp_path / ACCESS_FILE), Clock()
    store = AccountStore(engine, now=clock)
    store.add("rolf", [Role.AUDITOR], by=KIM, password=SECRET)
    yield House(tmp_path, clock, store)
    engine.dispose()


# --- roles -----------------------------------------------------------------------------------------------------------


def test_every_act_has_roles_and_nothing_else_has() -> None:
    assert set(PERMITTED) == set(Act)
    assert all(roles and roles <= set(Role) for roles in PERMITTED.values())
    with pytest.raises(TypeError):
        PERMITTED[Act.LOG_READ] = frozenset(Role)  # type: ignore[index]


def test_duties_are_separate() -> None:
    may = {role: {act for act, roles in PERMITTED.items() if role in roles} for role in Role}
    decisions = {Act.STUDY_APPROVE, Act.CONSENT_CHANGE, Act.ACCOUNT_CHANGE, Act.REVIEW_SIGN, Act.REVIEWER_ENROL}
    assert not may[Role.OPERATOR] & decisions
    assert not may[Role.PRIVACY_OFFICER] & {Act.REVIEW_SIGN, Act.NODE_START, Act.STUDY_RUN, Act.AUDIENCE_EXPORT}
    assert may[Role.RESEARCHER] == {Act.SCORE, Act.PASSWORD_CHANGE}
    reads = {act for act in Act if act.value.endswith("-read")} | {Act.EVIDENCE_BUILD, Act.PASSWORD_CHANGE}
    assert may[Role.AUDITOR] <= reads
    assert {Act.LEDGER_READ, Act.LOG_READ, Act.EVIDENCE_BUILD} <= may[Role.AUDITOR]
    assert not may[Role.AUDITOR] & {Act.CONSENT_READ, Act.SEED_READ, Act.AUDIENCE_READ}


# --- who is asked ----------------------------------------------------------------------------------------------------


def test_a_simulation_and_a_folder_of_nobody_ask_nobody(tmp_path: Path) -> None:
    assert authorise(tmp_path, Act.STUDY_APPROVE) is None
    assert authorise(tmp_path / "missing", Act.STUDY_APPROVE) is None
    (tmp_path / "node.json").write_text(NODE.replace("false", "true"))
    assert authorise(tmp_path, Act.STUDY_APPROVE) is None
    assert not (tmp_path / ACCESS_FILE).exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("node.json", NODE),
        ("node.json", NODE.replace("false", '"true"')),
        ("node.json", NODE.replace("false", "1")),
        ("node.json", '{"format": "cohortium.node/1", "institution": "north"}'),
        ("node.json", NODE.replace("node/1", "node/2").replace("false", "true")),
        ("node.json", "{"),
        ("node.json", "[]"),
        ("coordinator.json", "{}"),
    ],
)
def test_whatever_is_not_surely_a_simulation_refuses_without_accounts(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CohortiumError) as refused:
        authorise(tmp_path, Act.STUDY_APPROVE)
    assert refused.value.fix
    assert not (tmp_path / ACCESS_FILE).exists()


def test_a_coordinator_is_no_simulation_whatever_node_json_says(tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text(NODE.replace("false", "true"))
    (tmp_path / "coordinator.json").write_text("{}")
    with pytest.raises(RefusedError, match=r"privacy-officer, and there are no accounts here.*account add .* --first"):
        authorise(tmp_path, Act.STUDY_APPROVE)


def test_accounts_that_are_there_are_asked_in_a_simulation_too(house: House) -> None:
    (house.folder / "node.json").write_text(NODE.replace("false", "true"))
    with pytest.raises(RefusedError, match="takes the role reviewer"):
        authorise(house.folder, Act.REVIEW_SIGN)


@pytest.mark.parametrize("content", [b"", b"no database" * 100])
def test_a_store_that_is_empty_or_broken_allows_nothing(house: House, content: bytes) -> None:
    for path in house.folder.glob(f"{ACCESS_FILE}*"):
        path.unlink()
    (house.folder / ACCESS_FILE).write_bytes(content)
    with pytest.raises(CohortiumError):
        authorise(house.folder, Act.LOG_READ)
    assert (house.folder / ACCESS_FILE).stat().st_size < 8192, "nothing was begun in its place"


def test_the_first_account_is_the_callers_operator_and_privacy_officer(house: House) -> None:
    assert authorise(house.folder, Act.STUDY_APPROVE, subject="sha256:12") == KIM
    assert house.entries()[-1] | {"time": ""} == {
        "event": "study-approve",
        "account": "kim",
        "login": LOGIN,
        "outcome": "allowed",
        "subject": "sha256:12",
        "time": "",
    }
    with pytest.raises(RefusedError, match="there are accounts already"):
        create_accounts(house.folder, "eve")


def test_the_first_account_bears_the_os_users_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert create_accounts(tmp_path).name == LOGIN
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(pwd, "getpwuid", _no_such_user)
    made = create_accounts(tmp_path / "other")
    assert (made.name, made.login) == ("first", f"#{os.geteuid()}")


def _no_such_user(uid: int) -> Any:
    raise KeyError(uid)


def test_a_role_that_may_not_is_refused_with_the_roles_that_may_and_logged(house: House) -> None:
    with pytest.raises(RefusedError, match="review-sign takes the role reviewer: 'kim' has the roles operator, priv"):
        authorise(house.folder, Act.REVIEW_SIGN)
    assert house.entries()[-1]["outcome"] == "refused"
    assert house.entries()[-1]["reason"] == "role"


def test_an_os_user_without_an_account_is_refused_and_logged(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwuid", _no_such_user)
    with pytest.raises(RefusedError, match=r"has no account here.*cohortium account add FOLDER NAME --role auditor"):
        authorise(house.folder, Act.LOG_READ)
    last = house.entries()[-1]
    assert (last["login"], last["account"], last["reason"]) == (f"#{os.geteuid()}", None, "no account")


def test_an_account_of_another_os_user_is_nobodys_by_name(house: House) -> None:
    house.store.add("nina", [Role.AUDITOR], by=KIM, login=OTHER)
    with pytest.raises(RefusedError, match="belongs to another OS user"):
        house.guess("", "nina")
    assert house.guess("", "kim") == KIM


@pytest.mark.parametrize("variable", ["USER", "LOGNAME", "USERNAME", "SUDO_USER", "SUDO_UID", "HOME"])
def test_the_environment_says_nothing_about_who_calls(
    house: House, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    house.store.add("nina", [Role.REVIEWER], by=KIM, login=OTHER)
    monkeypatch.setenv(variable, OTHER)
    assert os_login() == LOGIN
    with pytest.raises(RefusedError):
        authorise(house.folder, Act.REVIEW_SIGN)


# --- passwords -------------------------------------------------------------------------------------------------------


def test_a_password_opens_its_account_and_no_other(house: House) -> None:
    house.store.add("nina", [Role.AUDITOR], by=KIM, password=SECRET + "2")
    assert house.guess(SECRET) == Person("rolf", frozenset({Role.AUDITOR}))
    with pytest.raises(RefusedError):
        house.guess(SECRET, "nina")
    assert not [path for path in house.folder.iterdir() if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "name",
    ["", "Rolf", "rolf ", "rolf\n", "rolf\x00", "../rolf", "rolf' OR 1=1 --", "%", "ro\u200blf", "\ud800", "x" * 999],
)
def test_odd_names_are_nobodys_and_are_not_written_down(house: House, name: str) -> None:
    with pytest.raises(RefusedError, match="there is no such account"):
        house.guess(SECRET, name)
    assert house.entries()[-1] | {"time": ""} == {
        "event": "log-read",
        "account": None,
        "login": LOGIN,
        "outcome": "refused",
        "reason": "password",
        "time": "",
    }
    with pytest.raises(DataError, match="is no name of an account"):
        house.store.add(name, [Role.AUDITOR], by=KIM, password=SECRET)


@pytest.mark.parametrize("name", ["rolf", "nobody", "nina"])
def test_a_wrong_password_costs_one_scrypt_whether_or_not_there_is_an_account(
    house: House, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    house.store.add("nina", [Role.AUDITOR], by=KIM, login=OTHER)
    derived: list[int] = []

    def counted(**options: Any) -> Scrypt:
        derived.append(options["n"])
        return Scrypt(**options)

    monkeypatch.setattr(passwords, "Scrypt", counted)
    with pytest.raises(RefusedError):
        house.guess(WRONG, name)
    assert derived == [2]


def test_what_is_kept_of_a_password_costs_what_it_is_meant_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert passwords.COST == 2**17
    kept = passwords.hash_password(SECRET, "here")
    assert kept.startswith("scrypt:131072:")
    assert passwords.is_password(SECRET, kept)


def test_five_wrong_passwords_lock_for_five_minutes_and_that_is_logged(house: House) -> None:
    for _ in range(FAILURES):
        with pytest.raises(RefusedError, match="another one"):
            house.guess(WRONG)
    assert [entry["event"] for entry in house.entries()[-2:]] == ["account-locked", "log-read"]
    house.clock.time += timedelta(seconds=LOCKED_FOR - 1)
    with pytest.raises(RefusedError, match=r"locked after 5 wrong passwords, until 00:05:00 UTC"):
        house.guess(SECRET)
    assert house.entries()[-1]["reason"] == "locked"
    assert [one.name for one in house.store.accounts() if one.locked_until] == ["rolf"]
    house.clock.time += timedelta(seconds=1)
    assert house.guess(SECRET).account == "rolf"
    assert (FAILURES, LOCKED_FOR) == (5, 300)


def test_only_failures_in_a_row_lock(house: House) -> None:
    for _ in range(2):
        for _ in range(FAILURES - 1):
            with pytest.raises(RefusedError):
                house.guess(WRONG)
        assert house.guess(SECRET).account == "rolf"


def test_guesses_at_the_same_time_are_no_more_than_five(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    tried, told = [], []
    everybody = threading.Barrier(12)

    def slow(password: str, kept: str | None) -> bool:
        tried.append(password)
        return False

    def guess() -> None:
        everybody.wait()
        with pytest.raises(RefusedError) as refused:
            house.guess(WRONG)
        told.append("locked" in str(refused.value))

    monkeypatch.setattr("cohortium.governance.access.accounts.is_password", slow)
    threads = [threading.Thread(target=guess) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(tried), told.count(True)) == (FAILURES, 12 - FAILURES)


def test_a_lock_of_a_clock_that_was_wrong_does_not_last(house: House) -> None:
    for _ in range(FAILURES):
        with pytest.raises(RefusedError):
            house.guess(WRONG)
    house.clock.time -= timedelta(days=400)
    assert house.guess(SECRET).account == "rolf"


def test_another_password_ends_the_lock(house: House) -> None:
    for _ in range(FAILURES):
        with pytest.raises(RefusedError):
            house.guess(WRONG)
    house.store.set_password("rolf", SECRET + "2", by=KIM)
    assert house.guess(SECRET + "2").account == "rolf"
    with pytest.raises(RefusedError):
        house.guess(SECRET)
    with pytest.raises(RefusedError, match="has no password"):
        house.store.set_password("kim", SECRET, by=KIM)
    with pytest.raises(DataError, match="fewer than 16"):
        house.store.set_password("rolf", "short", by=KIM)


# --- changes ---------------------------------------------------------------------------------------------------------


def test_a_disabled_account_does_nothing_and_its_name_is_not_used_again(house: House) -> None:
    house.store.disable("rolf", by=KIM)
    with pytest.raises(RefusedError, match="was disabled"):
        house.guess(SECRET)
    assert house.entries()[-1]["reason"] == "disabled"
    for again in (
        lambda: house.store.disable("rolf", by=KIM),
        lambda: house.store.set_password("rolf", SECRET, by=KIM),
    ):
        with pytest.raises(RefusedError, match="is no active account"):
            again()
    with pytest.raises(RefusedError, match="was used before"):
        house.store.add("rolf", [Role.AUDITOR], by=KIM, password=SECRET)


def test_an_account_that_is_disabled_while_its_password_is_typed_is_refused(house: House) -> None:
    def typed() -> str:
        house.store.disable("rolf", by=KIM)
        return SECRET

    with pytest.raises(RefusedError, match="was disabled"):
        house.store.admit(Act.LOG_READ, "rolf", typed)


def test_a_disabled_os_user_may_get_another_account(house: House) -> None:
    house.store.add("lea", [Role.PRIVACY_OFFICER], by=KIM, password=SECRET)
    house.store.disable("kim", by=KIM)
    with pytest.raises(RefusedError, match="'kim' was disabled"):
        authorise(house.folder, Act.LOG_READ)
    house.store.add("kim-2", [Role.OPERATOR], by=KIM, login=LOGIN)
    assert authorise(house.folder, Act.LOG_READ) == Person("kim-2", frozenset({Role.OPERATOR}))
    with pytest.raises(RefusedError, match="takes the role privacy-officer"):
        authorise(house.folder, Act.STUDY_APPROVE)


def test_the_last_privacy_officer_stays(house: House) -> None:
    with pytest.raises(RefusedError, match="last privacy officer"):
        house.store.disable("kim", by=KIM)
    house.store.add("lea", [Role.PRIVACY_OFFICER], by=KIM, password=SECRET)
    house.store.disable("lea", by=KIM)
    with pytest.raises(RefusedError, match="last privacy officer"):
        house.store.disable("kim", by=KIM)
    assert [one.state for one in house.store.accounts()] == ["active", "disabled", "active"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roles": [], "password": SECRET}, "needs a role"),
        ({"roles": [Role.AUDITOR]}, "an OS user or a password"),
        ({"roles": [Role.AUDITOR], "login": LOGIN, "password": SECRET}, "an OS user or a password"),
        ({"roles": [Role.AUDITOR], "password": "short"}, "fewer than 16"),
        ({"roles": [Role.AUDITOR], "login": "nobody-of-this-name"}, "is no OS user"),
        ({"roles": [Role.AUDITOR], "login": "a\x00b"}, "is no OS user"),
        ({"roles": [Role.AUDITOR], "login": ""}, "is no OS user"),
        ({"roles": [Role.AUDITOR], "login": LOGIN}, "has an account already"),
    ],
)
def test_an_account_that_does_not_hold_together_is_not_made(
    house: House, options: dict[str, Any], message: str
) -> None:
    before = house.entries()
    with pytest.raises(CohortiumError, match=message):
        house.store.add("nina", by=KIM, **options)
    assert house.entries() == before
    assert [one.name for one in house.store.accounts()] == ["kim", "rolf"]


def test_two_processes_add_accounts_at_once(house: House) -> None:
    words = [[sys.executable, "-c", ADDS, str(house.folder), word] for word in ("one", "two")]
    open_ = [subprocess.Popen(word, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for word in words]
    for process in open_:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    made = sorted(name for process in open_ for name in process.communicate()[0].split())
    assert [process.returncode for process in open_] == [0, 0]
    assert made == [f"shared-{number}" for number in range(6)]
    assert sorted(one.name for one in house.store.accounts())[2:] == made
    assert house.store.verify() == ()


def test_a_subject_of_an_odd_form_is_written_as_its_digest(house: House) -> None:
    authorise(house.folder, Act.SEED_READ, subject="vip 2026")
    authorise(house.folder, Act.SEED_READ, subject='{"id": "\ud800"}')
    plain, odd = (entry["subject"] for entry in house.entries()[-2:])
    assert plain == "vip 2026"
    assert odd.startswith("sha256:")


# --- the log ---------------------------------------------------------------------------------------------------------


def test_an_act_that_cannot_be_logged_is_not_allowed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(house.store.log, "append", full)
    with pytest.raises(OutputError):
        house.store.admit(Act.LOG_READ)


@pytest.mark.parametrize(
    ("statements", "finding"),
    [
        (["UPDATE log_entries SET leaf = CAST(replace(CAST(leaf AS TEXT), 'rolf', 'nina') AS BLOB)"], "was edited"),
        (["DELETE FROM log_entries WHERE position = 1"], "is missing"),
        (["DELETE FROM log_entries WHERE position = 0"], "is missing"),
        (
            ["UPDATE accounts SET roles = 'auditor privacy-officer' WHERE name = 'rolf'"],
            "the roles of the account 'rolf'",
        ),
        (["UPDATE accounts SET password = 'scrypt:2::' WHERE name = 'rolf'"], "the password of the account 'rolf'"),
        (["UPDATE accounts SET state = 'disabled' WHERE name = 'rolf'"], "the state of the account 'rolf'"),
        (["DELETE FROM accounts WHERE name = 'rolf'"], "'rolf' is gone"),
        (
            ["INSERT INTO accounts SELECT 'eve', roles, 'eve', NULL, state, 0, 0 FROM accounts LIMIT 1"],
            "'eve' is in no",
        ),
    ],
)
def test_what_is_altered_is_found(house: House, statements: list[str], finding: str) -> None:
    assert house.store.verify() == ()
    house.edit(*statements)
    assert finding in " ".join(one.message for one in house.store.verify())


def test_nothing_is_allowed_under_a_log_that_was_altered(house: House) -> None:
    house.edit("DELETE FROM log_entries WHERE position = 1")
    with open_accounts(house.folder) as store, pytest.raises(RefusedError, match="was altered"):
        store.admit(Act.LOG_READ)


def test_a_checkpoint_that_somebody_kept_finds_what_the_owner_rewrote(house: House, tmp_path: Path) -> None:
    """The owner begins everything anew: in its own file all agrees."""
    authorise(house.folder, Act.STUDY_APPROVE)
    kept = house.store.log.checkpoint()
    assert house.store.verify([kept]) == ()
    house.edit("DELETE FROM log_entries WHERE position = 2", "DELETE FROM log_checkpoints WHERE size > 2")
    with open_accounts(house.folder) as store:
        assert store.verify() == ()
        assert "missing" in store.verify([kept])[0].message
    (tmp_path / "anew").mkdir()
    create_accounts(tmp_path / "anew", "kim")
    with open_accounts(tmp_path / "anew") as store, pytest.raises(DataError, match="another log"):
        store.verify([kept])


def test_the_store_is_its_owners_alone(house: House) -> None:
    assert (house.folder / ACCESS_FILE).stat().st_mode & 0o077 == 0
