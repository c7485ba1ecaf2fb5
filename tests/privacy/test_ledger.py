"""The ledger: what is charged stays charged, in one place, within the budgets, whoever charges and whatever crashes."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium.privacy.accounting import Spend, budget_for, price
from cohortium.privacy.ledger import Ledger, Slot, open_store
from cohortium.study.errors import BudgetError, DataError, Defect

PLAN = "sha256:" + "0" * 64
QUESTION = "sha256:" + "1" * 64
BUDGET = budget_for(1.0, 1e-6)


def slot(step: int = 0, **changes: Any) -> Slot:
    return Slot(**{"plan": PLAN, "run": "r", "phase": "p", "step": step, "attempt": 1, **changes})


def charge(ledger: Ledger, place: Slot | None = None, question: str = QUESTION, **changes: Any) -> Any:
    terms: dict[str, Any] = {"width": 3, "bound_squared": 1 << 48, "sigma": 1 << 30, "plan_budget": BUDGET}
    return ledger.charge(place or slot(), question, **{**terms, **changes})


# --- contract: any ledger in any store -------------------------------------------------------------------------------


class LedgerContract:
    """What the door relies on. An implementation gives `reopen`: the same ledger, as another process would open it."""

    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Callable[[], Ledger]:
        raise NotImplementedError

    def test_a_charge_is_priced_and_kept(self, reopen: Callable[[], Ledger]) -> None:
        made = charge(reopen())
        assert made.spend == price(1 << 48, 1 << 30, 3)
        assert (made.slot, made.question, made.width, made.sigma) == (slot(), QUESTION, 3, 1 << 30)
        again = reopen()
        assert again.find(slot()) == made
        assert list(again.charges()) == [made]
        assert again.spent() == again.spent(PLAN) == made.spend
        again.verify()

    def test_the_same_question_is_charged_once(self, reopen: Callable[[], Ledger]) -> None:
        made = charge(reopen())
        assert charge(reopen()) == made
        assert reopen().spent() == made.spend

    def test_another_question_cannot_have_a_filled_slot(self, reopen: Callable[[], Ledger]) -> None:
        made = charge(reopen())
        other = "sha256:" + "2" * 64
        for ask in (lambda: charge(reopen(), question=other), lambda: reopen().replay(slot(), other)):
            with pytest.raises(BudgetError):
                ask()
        assert list(reopen().charges()) == [made]

    @pytest.mark.parametrize(
        "other", [{"plan": "sha256:" + "9" * 64}, {"run": "s"}, {"phase": "q"}, {"step": 1}, {"attempt": 2}], ids=str
    )
    def test_every_part_of_a_slot_distinguishes_it(self, reopen: Callable[[], Ledger], other: dict[str, Any]) -> None:
        first, second = charge(reopen()), charge(reopen(), slot(**other))
        assert first.sequence != second.sequence
        assert reopen().spent() == first.spend + second.spend

    def test_a_reply_is_stored_once(self, reopen: Callable[[], Ledger]) -> None:
        made = charge(reopen())
        assert reopen().replay(slot(), QUESTION) is None
        assert reopen().settle(made, b"a" * 24) == b"a" * 24
        assert reopen().settle(made, b"b" * 24) == b"a" * 24
        assert reopen().replay(slot(), QUESTION) == b"a" * 24

    def test_an_empty_slot_has_no_reply(self, reopen: Callable[[], Ledger]) -> None:
        assert reopen().replay(slot(), QUESTION) is None
        assert reopen().find(slot()) is None
        assert reopen().spent() == Spend()

    @pytest.mark.parametrize("currency", ["mu2", "tv"])
    def test_a_plan_budget_is_not_passed_by_one_unit(self, reopen: Callable[[], Ledger], currency: str) -> None:
        cost = price(1 << 48, 1 << 30, 3)
        exact = cost + cost
        short = Spend(exact.mu2 - (currency == "mu2"), exact.tv - (currency == "tv"))
        charge(reopen(), plan_budget=short)
        before = list(reopen().charges())
        with pytest.raises(BudgetError, match="plan's"):
            charge(reopen(), slot(1), plan_budget=short)
        assert list(reopen().charges()) == before
        assert reopen().find(slot(1)) is None
        charge(reopen(), slot(1), plan_budget=exact)

    def test_plans_share_the_lifetime_budget(self, reopen: Callable[[], Ledger]) -> None:
        ledger = reopen()
        half = ledger.lifetime.mu2 // 2
        sigma = 1 << 20
        bound = half * sigma * sigma >> 48
        charge(ledger, slot(plan="a"), bound_squared=bound, sigma=sigma, plan_budget=ledger.lifetime)
        charge(ledger, slot(plan="b"), bound_squared=bound, sigma=sigma, plan_budget=ledger.lifetime)
        before = list(reopen().charges())
        with pytest.raises(BudgetError, match="lifetime"):
            charge(ledger, slot(plan="c"), bound_squared=bound, sigma=sigma, plan_budget=ledger.lifetime)
        assert list(reopen().charges()) == before
        assert reopen().spent().fits(ledger.lifetime)


class TestSqliteLedger(LedgerContract):
    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Callable[[], Ledger]:
        return lambda: Ledger(open_store(tmp_path / "node.sqlite"), "north bank", budget_for(3.0, 1e-6))


# --- the store -------------------------------------------------------------------------------------------------------


def test_commits_are_fully_synchronised(tmp_path: Path) -> None:
    with open_store(tmp_path / "s").connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30000


def test_a_transaction_locks_before_it_reads(tmp_path: Path) -> None:
    """Two who both read before they write could both find the budget sufficient."""
    store = open_store(tmp_path / "s")
    with store.begin():
        rival = sqlite3.connect(tmp_path / "s", timeout=0, isolation_level=None)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            rival.execute("BEGIN IMMEDIATE")
        rival.close()


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    charge(Ledger(open_store(path), "n", BUDGET))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["a?mode=memory", "b%20c", "c#d", "e f", ":memory:"])
def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    made = charge(Ledger(open_store(tmp_path / name), "n", BUDGET))
    assert (tmp_path / name).stat().st_size + (tmp_path / f"{name}-wal").stat().st_size > 0
    assert list(Ledger(open_store(tmp_path / name), "n", BUDGET).charges()) == [made]


def test_what_cannot_be_opened_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, and long enough to be read as a header of one" * 20)
    for path in (tmp_path / "text", tmp_path, tmp_path / "missing" / "s"):
        with pytest.raises(DataError):
            Ledger(open_store(path), "n", BUDGET)


def test_a_ledger_has_one_owner(tmp_path: Path) -> None:
    Ledger(open_store(tmp_path / "s"), "north", BUDGET)
    Ledger(open_store(tmp_path / "s"), "north", BUDGET)
    with pytest.raises(DataError, match="another institution"):
        Ledger(open_store(tmp_path / "s"), "south", BUDGET)


# --- verify ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE charges SET mu2 = mu2 - 1 WHERE sequence = 2",
        "UPDATE charges SET mu2 = 0",
        "UPDATE charges SET tv = tv + 1 WHERE sequence = 3",
        "UPDATE charges SET sigma = '1073741825' WHERE sequence = 1",
        "UPDATE charges SET bound_squared = '281474900000000' WHERE sequence = 1",
        "UPDATE charges SET width = 4 WHERE sequence = 1",
        "UPDATE charges SET mechanism = 'none' WHERE sequence = 1",
        "DELETE FROM charges WHERE sequence = 2",
        "DELETE FROM charges WHERE sequence = 3",
        "UPDATE replies SET reply = x'00' WHERE sequence = 1",
        "INSERT INTO replies VALUES (9, x'00')",
    ],
)
def test_verify_finds_altered_rows(tmp_path: Path, edit: str) -> None:
    path = tmp_path / "s"
    ledger = Ledger(open_store(path), "n", budget_for(3.0, 1e-6))
    for step in range(3):
        ledger.settle(charge(ledger, slot(step)), bytes(24))
    ledger.verify()
    raw = sqlite3.connect(path)
    with raw:
        raw.execute(edit)
    raw.close()
    with pytest.raises(DataError):
        ledger.verify()


# --- many at once ----------------------------------------------------------------------------------------------------


def _charge_until_refused(path: str, name: str, gate: Any, results: Any) -> None:
    ledger = Ledger(open_store(Path(path)), "n", budget_for(3.0, 1e-6))
    budget = price(1 << 48, 1 << 30, 3).times(25)
    gate.wait()
    made = 0
    for step in range(40):
        try:
            charge(ledger, slot(step, run=name), plan_budget=budget)
            made += 1
        except BudgetError:
            break
    results.put(made)


def test_processes_that_charge_at_once_never_pass_the_budget(tmp_path: Path) -> None:
    path, spawn = tmp_path / "s", multiprocessing.get_context("spawn")
    gate, results = spawn.Barrier(3), spawn.Queue()
    workers = [
        spawn.Process(target=_charge_until_refused, args=(str(path), f"run{i}", gate, results)) for i in range(3)
    ]
    for worker in workers:
        worker.start()
    counts = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    ledger = Ledger(open_store(path), "n", budget_for(3.0, 1e-6))
    assert sum(counts) == len(list(ledger.charges())) == 25
    assert ledger.spent() == price(1 << 48, 1 << 30, 3).times(25)
    ledger.verify()


# --- any sequence of charges -----------------------------------------------------------------------------------------

STEP = st.tuples(
    st.sampled_from(["a", "b"]), st.integers(0, 3), st.sampled_from(["x", "y"]), st.integers(1, 4), st.integers(1, 900)
)


@settings(max_examples=25)
@given(steps=st.lists(STEP, max_size=12))
def test_the_ledger_agrees_with_a_plain_model(tmp_path_factory: pytest.TempPathFactory, steps: Any) -> None:
    lifetime, plan_budget = Spend(2**40, 2**60), Spend(2**39, 2**60)
    ledger = Ledger(open_store(tmp_path_factory.mktemp("model") / "s"), "n", lifetime)
    model: dict[tuple[str, int], tuple[str, Spend]] = {}
    for plan, step, question, width, part in steps:
        terms: dict[str, Any] = {"width": width, "bound_squared": part * 2**20, "sigma": 2**20}
        spend = price(part * 2**20, 2**20, width)
        of_plan = sum((s for (p, _), (_, s) in model.items() if p == plan), Spend())
        total = sum((s for _, s in model.values()), Spend())
        known = model.get((plan, step))
        fits = (of_plan + spend).fits(plan_budget) and (total + spend).fits(lifetime)
        allowed = known[0] == question if known else fits
        if allowed:
            ledger.charge(slot(step, plan=plan), question, plan_budget=plan_budget, **terms)
            model.setdefault((plan, step), (question, spend))
        else:
            with pytest.raises(BudgetError):
                ledger.charge(slot(step, plan=plan), question, plan_budget=plan_budget, **terms)
        assert ledger.spent() == sum((s for _, s in model.values()), Spend())
        assert {(c.slot.plan, c.slot.step): (c.question, c.spend) for c in ledger.charges()} == model
    ledger.verify()


def test_a_charge_that_vanishes_is_a_defect(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "find", lambda _slot: None)
    with pytest.raises(Defect):
        charge(ledger)
