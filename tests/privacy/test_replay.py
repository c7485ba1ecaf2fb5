"""The replay finds what the ledger's rows cannot have become by charging, and agrees with the ledger otherwise."""

from __future__ import annotations

import ast
import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium.privacy import replay as replay_module
from cohortium.privacy.accounting import Spend, budget_for, epsilon_by_pld, epsilon_by_rdp, epsilon_spent, price
from cohortium.privacy.ledger import Ledger, Slot, open_store
from cohortium.privacy.outlook import differences, preview, statement
from cohortium.privacy.replay import Replay, replay
from cohortium.privacy.sharing import ALONE, NoiseShare
from cohortium.study.errors import DataError

NAME = "north bank"
BUDGET = budget_for(1.0, 1e-6)
LIFETIME = budget_for(3.0, 1e-6)
UNITS = (LIFETIME.mu2, LIFETIME.tv)
SHARED = NoiseShare(5, 2)
TERMS: dict[str, Any] = {"bound_squared": 1 << 48, "sigma": 1 << 27}
CLOCK = "2026-05-05T05:05:05+00:00"


def fill(path: Path) -> Ledger:
    """Two plans, of which one is closed; four charges, of which two were answered."""
    ledger = Ledger(open_store(path), NAME, LIFETIME)
    for plan in ("a", "b"):
        ledger.reserve(plan, "r", BUDGET, date.max)
    for step, share in enumerate((ALONE, SHARED)):
        for plan in ("a", "b"):
            made = ledger.charge(Slot(plan, "r", "p", step, 1), f"q{step}", width=3, share=share, **TERMS)
            if plan == "a":
                ledger.settle(made, bytes(range(24)))
    ledger.close_reservation("a", "r")
    return ledger


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filled ledger's file; read only."""
    path = tmp_path_factory.mktemp("filled") / "node.sqlite"
    fill(path).close()
    return path


def tampered(filled: Path, folder: Path, statement: str, *values: Any) -> Replay:
    path = folder / "node.sqlite"
    shutil.copy(filled, path)
    with closing(sqlite3.connect(path)) as raw, raw:
        assert raw.execute(statement, values).rowcount > 0
    return replay(path, NAME, UNITS)


# --- agreement -------------------------------------------------------------------------------------------------------


def test_an_untouched_ledger_is_replayed_to_the_unit(filled: Path) -> None:
    found = replay(filled, NAME, UNITS)
    ledger = Ledger(open_store(filled, read_only=True), NAME, LIFETIME)
    spent = ledger.spent()
    assert (found.findings, found.entries, Spend(found.mu2, found.tv)) == ((), 4, spent)
    assert found.epsilon(1e-6) == pytest.approx(epsilon_spent(spent, 1e-6), rel=1e-9)
    assert found.epsilon_by_pld(1e-6) == epsilon_by_pld(spent, 1e-6)
    assert found.epsilon_by_rdp(1e-6) == epsilon_by_rdp(spent, 1e-6)
    assert differences(ledger, found, 1e-6) == []


def test_differences_are_said(filled: Path) -> None:
    ledger = Ledger(open_store(filled, read_only=True), NAME, LIFETIME)
    found = differences(ledger, Replay(NAME, 4, 2**43, 0, ()), 1e-6)
    assert [line.split(":")[0] for line in found] == [
        "sums",
        "epsilon by closed form",
        "epsilon by PLD",
        "epsilon by RDP",
    ]


def test_the_replay_shares_no_arithmetic_with_the_ledger() -> None:
    tree = ast.parse(Path(replay_module.__file__).read_text(encoding="utf-8"))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name for name in names if name and name.startswith("cohortium")} == {"cohortium.study.errors"}
    assert not any(name and name.startswith("sqlalchemy") for name in names)


@settings(max_examples=40)
@given(mu2=st.integers(1, 2**51), tv=st.integers(0, 2**52), power=st.floats(-9, -3))
def test_both_closed_forms_tell_the_same_epsilon(mu2: int, tv: int, power: float) -> None:
    again, expected = Replay("n", 1, mu2, tv, ()).epsilon(10**power), epsilon_spent(Spend(mu2, tv), 10**power)
    assert again == pytest.approx(expected, rel=1e-6, abs=1e-6)


@settings(max_examples=60)
@given(
    bound=st.integers(1, 2**70),
    sigma=st.integers(1, 2**52),
    width=st.integers(1, 2**22),
    share=st.sampled_from([ALONE, SHARED]),
)
def test_both_prices_are_the_same(bound: int, sigma: int, width: int, share: NoiseShare) -> None:
    mechanism = "discrete-gaussian-share" if share.is_shared else "discrete-gaussian"
    row = {"bound_squared": str(bound), "sigma": str(sigma), "width": width, "mechanism": mechanism}
    row |= {"contributions": share.contributions, "colluders": share.colluders}
    cost = price(bound, sigma, width, share)
    assert replay_module._price(row) == (cost.mu2, cost.tv)


def test_no_epsilon_pays_for_too_much_slack() -> None:
    found = Replay("n", 1, 2**40, 2**79, ())
    assert found.epsilon(1e-6) == found.epsilon_by_pld(1e-6) == found.epsilon_by_rdp(1e-6) == float("inf")
    assert Replay("n", 0, 0, 0, ()).epsilon(1e-6) == 0.0


# --- tampering -------------------------------------------------------------------------------------------------------


def columns() -> Iterator[tuple[str, str]]:
    for table, names in replay_module._COLUMNS.items():
        for name in names.split():
            yield table, name


def other(value: Any) -> list[Any]:
    """Values that a careless or a greedy hand would write instead."""
    if value is None:
        return [CLOCK]
    if isinstance(value, int):
        return [value + 1, max(value - 1, 0) if value else 7, "many"]
    if isinstance(value, bytes):
        return [value[:-1] + b"\xff", b"", "text"]
    if value.isdigit():
        return [str(int(value) + 1), "0", "many"]
    return [value + "0", "", "9999-12-30"]


@pytest.mark.parametrize(("table", "column"), list(columns()), ids=str)
def test_a_change_of_any_column_of_any_row_is_found(filled: Path, tmp_path: Path, table: str, column: str) -> None:
    with closing(sqlite3.connect(f"{filled.as_uri()}?immutable=1", uri=True)) as raw:
        rows = raw.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
    assert rows
    for rowid, value in rows:
        for changed in other(value):
            if changed == value:
                continue
            try:
                found = tampered(filled, tmp_path, f"UPDATE {table} SET {column} = ? WHERE rowid = ?", changed, rowid)
            except sqlite3.IntegrityError:
                continue  # the database itself refuses: a key that is taken, or no number
            assert found.findings, (table, column, rowid, changed)
            path = tmp_path / "node.sqlite"
            with pytest.raises(DataError):  # the ledger's own check finds it too
                Ledger(open_store(path, read_only=True), NAME, LIFETIME).verify()


@pytest.mark.parametrize("table", ["reservations", "charges"])
def test_a_row_that_is_missing_is_found_wherever_it_was(filled: Path, tmp_path: Path, table: str) -> None:
    with closing(sqlite3.connect(f"{filled.as_uri()}?immutable=1", uri=True)) as raw:
        count = raw.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    for sequence in range(1, count + 1):
        found = tampered(filled, tmp_path, f"DELETE FROM {table} WHERE sequence = ?", sequence)
        assert any(f"{sequence}: missing" in line for line in found.findings)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE charges SET mu2 = mu2 - 1 WHERE sequence = 3", "entry 3: costs"),
        ("UPDATE charges SET phase = 'z' WHERE sequence = 2", "entry 2: altered"),
        ("UPDATE charges SET mechanism = 'laplace' WHERE sequence = 4", "entry 4: unknown accounting event"),
        ("UPDATE charges SET contributions = 4 WHERE sequence = 3", "entry 3: altered"),
        ("UPDATE charges SET contributions = 2 WHERE sequence = 1", "entry 1: unknown accounting event"),
        ("UPDATE charges SET sigma = '0' WHERE sequence = 1", "entry 1: cannot be read"),
        ("UPDATE reservations SET closed_at = NULL WHERE plan = 'a'", "reservation 1: altered"),
        ("UPDATE reservations SET mu2 = '1' WHERE plan = 'b'", "entry 2: passes what its run reserved"),
        ("UPDATE replies SET reply = zeroblob(24) WHERE sequence = 3", "reply 3: altered"),
        ("UPDATE replies SET reply = zeroblob(16) WHERE sequence = 3", "reply 3: does not belong"),
        ("INSERT INTO replies VALUES (77, zeroblob(24), '')", "reply 77: does not belong"),
        ("UPDATE sqlite_sequence SET seq = 9 WHERE name = 'charges'", "entry 5: missing"),
        ("UPDATE sqlite_sequence SET seq = 3 WHERE name = 'charges'", "entry 4: was never numbered"),
        ("UPDATE sqlite_sequence SET seq = 'x' WHERE name = 'charges'", "the last number given is altered"),
        ("UPDATE ledger_header SET institution = 'south'", "header:"),
        ("DELETE FROM ledger_header", "header:"),
    ],
)
def test_a_finding_names_the_entry(filled: Path, tmp_path: Path, statement: str, said: str) -> None:
    findings = tampered(filled, tmp_path, statement).findings
    assert any(said in line for line in findings), findings
    assert all("\n" not in line for line in findings)


def test_sums_above_the_lifetime_budget_are_found(filled: Path) -> None:
    spent = replay(filled, NAME).mu2
    assert replay(filled, NAME, (spent + BUDGET.mu2, LIFETIME.tv)).findings == ()
    assert "entry 4: passes the lifetime budget" in replay(filled, NAME, (spent - 1, LIFETIME.tv)).findings
    assert "entry 1: passes the lifetime budget" in replay(filled, NAME, (LIFETIME.mu2, 0)).findings
    holding = ("reservations: they hold more than what is left of the lifetime budget",)
    assert replay(filled, NAME, (spent + 1, LIFETIME.tv)).findings == holding
    assert replay(filled, "south bank", UNITS).findings[0].startswith("header:")


def test_what_has_expired_holds_nothing(tmp_path: Path) -> None:
    path, last = tmp_path / "s", date(2026, 6, 30)
    Ledger(open_store(path), NAME, LIFETIME, lambda: last).reserve("a", "r", BUDGET, last)
    assert replay(path, NAME, (1, 1), today=last).findings != ()
    assert replay(path, NAME, (1, 1), today=date(2026, 7, 1)).findings == ()


@pytest.mark.parametrize("share", [ALONE, SHARED])
@pytest.mark.parametrize(("length", "whole"), [(24, True), (88, True), (23, False), (16, False)])
def test_a_reply_holds_all_its_words(tmp_path: Path, share: NoiseShare, length: int, whole: bool) -> None:
    ledger = Ledger(open_store(tmp_path / "s"), NAME, LIFETIME)
    ledger.reserve("a", "r", BUDGET, date.max)
    ledger.settle(ledger.charge(Slot("a", "r", "p", 0, 1), "q", width=3, share=share, **TERMS), bytes(length))
    found = replay(tmp_path / "s", NAME, UNITS).findings
    if whole:
        assert found == ()
        ledger.verify()
        return
    assert found == ("reply 1: does not belong to its charge",)
    with pytest.raises(DataError, match="reply 1"):
        ledger.verify()


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("open_elsewhere", [True, False])
def test_reading_leaves_the_folder_as_it_was(tmp_path: Path, open_elsewhere: bool) -> None:
    ledger = fill(tmp_path / "node.sqlite")
    if not open_elsewhere:
        ledger.close()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if not file.name.endswith("-shm")}
    names = sorted(file.name for file in tmp_path.iterdir())
    assert replay(tmp_path / "node.sqlite", NAME, UNITS).entries == 4
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    ledger.close()


def test_what_is_no_ledger_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, and long enough to be read as a header of one" * 20)
    (tmp_path / "empty").touch()
    for name in ("text", "empty", "missing"):
        with pytest.raises(DataError):
            replay(tmp_path / name, NAME)
    assert not (tmp_path / "missing").exists()


# --- ten thousand charges --------------------------------------------------------------------------------------------


def many(path: Path, count: int) -> Spend:
    """A ledger of so many charges, written row by row without the door's synchronisation."""
    lifetime = budget_for(10.0, 1e-6)
    ledger = Ledger(open_store(path), NAME, lifetime)
    ledger.reserve("a", "r", lifetime, date.max)
    ledger.close()
    cost, link, rows = price(1 << 48, 1 << 31, 3, SHARED), replay_module._hashed(["cohortium.ledger/2", NAME]), []
    for number in range(1, count + 1):
        row: list[Any] = [number, CLOCK, "a", "r", "p", number, 1, f"q{number}", "discrete-gaussian-share", 5, 2]
        row += [3, str(1 << 48), str(1 << 31), cost.mu2, cost.tv]
        link = replay_module._hashed([link, *row])
        rows.append([*row, link])
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.executemany(f"INSERT INTO charges VALUES ({', '.join('?' * 17)})", rows)
    return cost.times(count)


def test_ten_thousand_charges_load_and_preview_within_a_second(tmp_path: Path) -> None:
    spent = many(tmp_path / "s", 10_000)
    lifetime = budget_for(10.0, 1e-6)
    begin = time.perf_counter()
    ledger = Ledger(open_store(tmp_path / "s", create=False), NAME, lifetime)
    assert len(list(ledger.charges())) == 10_000
    told = preview(ledger, budget_for(0.1, 1e-6), 1e-6)
    elapsed = time.perf_counter() - begin
    assert elapsed < 1.0
    assert ledger.spent() == spent
    assert told.epsilon_now == epsilon_spent(spent, 1e-6)
    ledger.verify()
    assert json.loads(json.dumps(statement(ledger, 1e-6).to_json()))["spent"] == {"mu2": spent.mu2, "tv": spent.tv}
    found = replay(tmp_path / "s", NAME, (lifetime.mu2, lifetime.tv))
    assert (found.findings, found.mu2, found.tv) == ((), spent.mu2, spent.tv)
    ledger.close()
