"""The ledger: what is charged stays charged, in one place, within the budgets, whoever charges and whatever crashes."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import DatabaseError

from cohortium.privacy.accounting import Spend, budget_for, price
from cohortium.privacy.ledger import Ledger, Slot, open_store
from cohortium.privacy.sharing import ALONE, NoiseShare
from cohortium.study.errors import BudgetError, DataError, Defect

PLAN = "sha256:" + "0" * 64
QUESTION = "sha256:" + "1" * 64
BUDGET = budget_for(1.0, 1e-6)
LATER = date.max
COST = price(1 << 48, 1 << 30, 3)


def slot(step: int = 0, **changes: Any) -> Slot:
    return Slot(**{"plan": PLAN, "run": "r", "phase": "p", "step": step, "attempt": 1, **changes})


def charge(
    ledger: Ledger, place: Slot | None = None, question: str = QUESTION, budget: Spend = BUDGET, **changes: Any
) -> Any:
    """A charge under a reservation, which is made when there is none."""
    place = place or slot()
    if ledger.reservation(place.plan) is None:
        ledger.reserve(place.plan, place.run, budget, LATER)
    terms: dict[str, Any] = {"width": 3, "bound_squared": 1 << 48, "sigma": 1 << 30}
    return ledger.charge(place, question, **{**terms, **changes})


# --- contract: any ledger in any store -------------------------------------------------------------------------------


class LedgerContract:
    """What the door relies on. An implementation gives `reopen`: the same ledger, as another process would open it.

    It takes another lifetime budget and another date of today.
    """

    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Callable[..., Ledger]:
        raise NotImplementedError

    def test_a_charge_is_priced_and_kept(self, reopen: Callable[..., Ledger]) -> None:
        made = charge(reopen())
        assert made.spend == price(1 << 48, 1 << 30, 3)
        assert (made.slot, made.question, made.width, made.sigma) == (slot(), QUESTION, 3, 1 << 30)
        again = reopen()
        assert again.find(slot()) == made
        assert list(again.charges()) == [made]
        assert again.spent() == again.spent(PLAN) == made.spend
        again.verify()

    def test_the_same_question_is_charged_once(self, reopen: Callable[..., Ledger]) -> None:
        made = charge(reopen())
        assert charge(reopen()) == made
        assert reopen().spent() == made.spend

    def test_another_question_cannot_have_a_filled_slot(self, reopen: Callable[..., Ledger]) -> None:
        made = charge(reopen())
        other = "sha256:" + "2" * 64
        for ask in (lambda: charge(reopen(), question=other), lambda: reopen().replay(slot(), other)):
            with pytest.raises(BudgetError):
                ask()
        assert list(reopen().charges()) == [made]

    @pytest.mark.parametrize(
        "other", [{"plan": "sha256:" + "9" * 64}, {"phase": "q"}, {"step": 1}, {"attempt": 2}], ids=str
    )
    def test_every_part_of_a_slot_distinguishes_it(self, reopen: Callable[..., Ledger], other: dict[str, Any]) -> None:
        first, second = charge(reopen()), charge(reopen(), slot(**other))
        assert first.sequence != second.sequence
        assert reopen().spent() == first.spend + second.spend

    def test_a_reply_is_stored_once(self, reopen: Callable[..., Ledger]) -> None:
        made = charge(reopen())
        assert reopen().replay(slot(), QUESTION) is None
        assert reopen().settle(made, b"a" * 24) == b"a" * 24
        assert reopen().settle(made, b"b" * 24) == b"a" * 24
        assert reopen().replay(slot(), QUESTION) == b"a" * 24

    def test_an_empty_slot_has_no_reply(self, reopen: Callable[..., Ledger]) -> None:
        assert reopen().replay(slot(), QUESTION) is None
        assert reopen().find(slot()) is None
        assert reopen().spent() == Spend()

    @pytest.mark.parametrize("currency", ["mu2", "tv"])
    def test_a_plan_budget_is_not_passed_by_one_unit(self, reopen: Callable[..., Ledger], currency: str) -> None:
        exact = COST + COST
        short = Spend(exact.mu2 - (currency == "mu2"), exact.tv - (currency == "tv"))
        charge(reopen(), budget=short)
        before = list(reopen().charges())
        with pytest.raises(BudgetError, match="plan's"):
            charge(reopen(), slot(1))
        assert list(reopen().charges()) == before
        assert reopen().find(slot(1)) is None
        charge(reopen(), slot(plan="another"), budget=exact)
        charge(reopen(), slot(1, plan="another"))
        assert reopen().spent("another") == exact

    @pytest.mark.parametrize("currency", ["mu2", "tv"])
    def test_plans_share_the_lifetime_budget(self, reopen: Callable[..., Ledger], currency: str) -> None:
        """Not passed by one unit of either currency, and reached to the unit."""
        lifetime = Spend(3 * COST.mu2 - (currency == "mu2"), 3 * COST.tv - (currency == "tv"))
        ledger = reopen(lifetime)
        for plan in ("a", "b"):
            charge(ledger, slot(plan=plan), budget=COST)
        before = list(reopen().charges())
        with pytest.raises(BudgetError, match="lifetime"):
            charge(ledger, slot(plan="c"), budget=COST)
        assert list(reopen().charges()) == before
        assert reopen().spent().fits(lifetime)
        charge(reopen(COST.times(3)), slot(plan="c"), budget=COST)
        assert reopen().spent() == COST.times(3)

    def test_a_charge_says_whose_noise_it_was(self, reopen: Callable[..., Ledger]) -> None:
        shared = NoiseShare(5, 2)
        made = [charge(reopen(), slot(0)), charge(reopen(), slot(1), share=shared), charge(reopen(), slot(2))]
        assert [entry.share for entry in made] == [ALONE, shared, ALONE]
        assert [entry.mechanism for entry in made] == [
            "discrete-gaussian",
            "discrete-gaussian-share",
            "discrete-gaussian",
        ]
        assert made[1].spend == COST + Spend(0, 1)
        assert list(reopen().charges()) == made
        assert reopen().spent_by_trust() == {ALONE: COST.times(2), shared: COST + Spend(0, 1)}
        assert [(line.phase, line.share, line.charges) for line in reopen().breakdown()] == [
            ("p", ALONE, 2),
            ("p", shared, 1),
        ]
        reopen().verify()

    @pytest.mark.parametrize("terms", [{"width": 0}, {"bound_squared": -1}, {"sigma": 0}, {"sigma": -5}], ids=str)
    def test_no_charge_gives_anything_back(self, reopen: Callable[..., Ledger], terms: dict[str, int]) -> None:
        with pytest.raises(Defect):
            charge(reopen(), **terms)
        assert reopen().spent() == Spend()

    # reservations

    def test_a_reservation_is_kept_and_made_once(self, reopen: Callable[..., Ledger]) -> None:
        made = reopen().reserve(PLAN, "r", BUDGET, LATER)
        assert (made.plan, made.run, made.budget, made.expires, made.closed_at) == (PLAN, "r", BUDGET, LATER, None)
        assert reopen().reserve(PLAN, "r", BUDGET, LATER) == made
        assert reopen().reservations() == [made]
        assert reopen().reservation(PLAN) == made
        assert reopen().reservation("another") is None
        assert reopen().held() == BUDGET
        assert reopen().available().mu2 == reopen().lifetime.mu2 - BUDGET.mu2

    def test_a_plan_is_run_once(self, reopen: Callable[..., Ledger]) -> None:
        charge(reopen())
        with pytest.raises(BudgetError, match="another run has begun"):
            reopen().reserve(PLAN, "s", BUDGET, LATER)
        with pytest.raises(BudgetError, match="no budget is reserved"):
            charge(reopen(), slot(run="s"))
        reopen().close_reservation(PLAN, "r")
        with pytest.raises(BudgetError, match="another run has begun"):
            reopen().reserve(PLAN, "s", BUDGET, LATER)

    @pytest.mark.parametrize("terms", [(Spend(BUDGET.mu2 - 1, BUDGET.tv), LATER), (BUDGET, date(9000, 1, 1))], ids=str)
    def test_a_reservation_does_not_change_its_terms(self, reopen: Callable[..., Ledger], terms: Any) -> None:
        made = reopen().reserve(PLAN, "r", BUDGET, LATER)
        with pytest.raises(BudgetError, match="other terms"):
            reopen().reserve(PLAN, "r", *terms)
        assert reopen().reservations() == [made]

    def test_nothing_is_charged_without_a_reservation(self, reopen: Callable[..., Ledger]) -> None:
        with pytest.raises(BudgetError, match="no budget is reserved"):
            reopen().charge(slot(), QUESTION, width=3, bound_squared=1 << 48, sigma=1 << 30)
        assert list(reopen().charges()) == []

    def test_what_others_may_still_charge_is_not_reserved_again(self, reopen: Callable[..., Ledger]) -> None:
        lifetime = COST.times(10)
        ledger = reopen(lifetime)
        ledger.reserve("a", "r", COST.times(6), LATER)
        charge(ledger, slot(plan="a"))  # out of what is reserved: nothing else changes
        with pytest.raises(BudgetError, match="does not cover"):
            ledger.reserve("b", "r", COST.times(4) + Spend(1, 0), LATER)
        assert reopen().reservation("b") is None
        ledger.reserve("b", "r", COST.times(4), LATER)
        assert ledger.available().mu2 == 0
        for step in range(6):
            charge(ledger, slot(step, plan="a"))
        for step in range(4):
            charge(ledger, slot(step, plan="b"))
        assert ledger.spent() == lifetime

    def test_a_closed_reservation_gives_its_rest_back_and_accepts_nothing(self, reopen: Callable[..., Ledger]) -> None:
        lifetime = COST.times(10)
        ledger = reopen(lifetime)
        first = charge(ledger, slot(plan="a"), budget=COST.times(10))
        with pytest.raises(BudgetError):
            ledger.close_reservation("a", "another run")
        with pytest.raises(BudgetError):
            ledger.close_reservation("another plan", "r")
        closed = ledger.close_reservation("a", "r")
        assert closed.closed_at is not None
        assert reopen(lifetime).close_reservation("a", "r") == closed
        assert ledger.available() == COST.times(9)
        assert ledger.held() == Spend()
        with pytest.raises(BudgetError, match="closed"):
            charge(ledger, slot(1, plan="a"))
        assert charge(ledger, slot(plan="a")) == first, "what was charged stays answerable"
        assert reopen(lifetime).reserve("a", "r", COST.times(10), LATER) == closed, "and is not opened again"
        with pytest.raises(BudgetError, match="closed"):
            charge(ledger, slot(1, plan="a"))
        ledger.reserve("b", "r", COST.times(9), LATER)
        ledger.verify()

    def test_an_expired_reservation_neither_blocks_nor_charges(self, reopen: Callable[..., Ledger]) -> None:
        lifetime, last = COST.times(10), date(2026, 6, 30)
        before = reopen(lifetime, last)
        before.reserve("a", "r", COST.times(10), last)
        charge(before, slot(plan="a"))
        after = reopen(lifetime, last + timedelta(days=1))
        assert after.held() == Spend()
        assert after.available() == COST.times(9)
        with pytest.raises(BudgetError, match="expired"):
            charge(after, slot(1, plan="a"))
        with pytest.raises(BudgetError, match="expired"):
            after.reserve("c", "r", COST, last)
        after.reserve("b", "r", COST.times(9), LATER)
        with pytest.raises(BudgetError, match="closed"):
            charge(before, slot(1, plan="a"))  # even by a clock that was set back
        assert reopen(lifetime).spent() == COST
        after.verify()


class TestSqliteLedger(LedgerContract):
    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Callable[..., Ledger]:
        def reopen(lifetime: Spend = budget_for(3.0, 1e-6), today: date | None = None) -> Ledger:  # noqa: B008 - frozen
            clock = None if today is None else lambda: today
            return Ledger(open_store(tmp_path / "node.sqlite"), "north bank", lifetime, clock)

        return reopen


class TestPostgresqlLedger(LedgerContract):
    @pytest.fixture
    def reopen(self, tmp_path: Path, in_postgresql: Callable[[Path], str]) -> Iterator[Callable[..., Ledger]]:
        in_postgresql(tmp_path)
        opened: list[Ledger] = []

        def reopen(lifetime: Spend = budget_for(3.0, 1e-6), today: date | None = None) -> Ledger:  # noqa: B008 - frozen
            clock = None if today is None else lambda: today
            opened.append(Ledger(open_store(tmp_path / "node.sqlite"), "north bank", lifetime, clock))
            return opened[-1]

        yield reopen
        for ledger in opened:
            ledger.close()


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
        "UPDATE replies SET reply = zeroblob(23) || x'01' WHERE sequence = 2",
        "UPDATE replies SET reply = 'text' WHERE sequence = 2",
        "INSERT INTO replies VALUES (9, x'00', '')",
        "UPDATE charges SET sigma = 'many' WHERE sequence = 1",
        "UPDATE charges SET contributions = 3, colluders = 1 WHERE sequence = 2",
        "UPDATE charges SET colluders = 9 WHERE sequence = 2",
        "UPDATE charges SET phase = 'q' WHERE sequence = 2",
        "UPDATE charges SET charged_at = '2026-01-01T00:00:00+00:00' WHERE sequence = 3",
        "DELETE FROM reservations",
        "UPDATE reservations SET closed_at = NULL",
        "UPDATE reservations SET tv = '99'",
    ],
)
def test_verify_finds_altered_rows(tmp_path: Path, edit: str) -> None:
    path = tmp_path / "s"
    ledger = Ledger(open_store(path), "n", budget_for(3.0, 1e-6))
    for step in range(3):
        ledger.settle(charge(ledger, slot(step)), bytes(24))
    ledger.close_reservation(PLAN, "r")
    ledger.verify()
    raw = sqlite3.connect(path)
    with raw:
        raw.execute(edit)
    raw.close()
    with pytest.raises(DataError):
        ledger.verify()


def test_a_charge_after_the_last_one_was_deleted_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    ledger = Ledger(open_store(path), "n", BUDGET)
    for step in range(2):
        charge(ledger, slot(step))
    edit(path, "DELETE FROM charges WHERE sequence = 2")
    with pytest.raises(DataError, match="entry 2: missing"):
        charge(ledger, slot(2))
    with pytest.raises(DataError, match="entry 2: missing"):
        ledger.verify()


def test_an_edited_reservation_accepts_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    ledger = Ledger(open_store(path), "n", BUDGET)
    ledger.reserve(PLAN, "r", COST, LATER)
    edit(path, "UPDATE reservations SET mu2 = '99999999999'")
    with pytest.raises(DataError, match="reservation 1: altered"):
        charge(ledger)


def test_an_accounting_event_that_is_not_known_stops_everything(tmp_path: Path) -> None:
    """A sum that leaves out what this version cannot price would be too small."""
    path = tmp_path / "s"
    ledger = Ledger(open_store(path), "n", BUDGET)
    charge(ledger)
    edit(path, "UPDATE charges SET mechanism = 'laplace'")
    for use in (
        ledger.spent,
        ledger.available,
        ledger.breakdown,
        ledger.spent_by_trust,
        ledger.verify,
        lambda: charge(ledger, slot(1)),
        lambda: ledger.reserve("another", "r", COST, LATER),
        lambda: Ledger(open_store(path), "n", BUDGET),
        lambda: Ledger(open_store(path, read_only=True), "n", BUDGET),
    ):
        with pytest.raises(DataError, match="unknown accounting event") as caught:
            use()
        assert "\n" not in str(caught.value)


def edit(path: Path, statement: str) -> None:
    raw = sqlite3.connect(path)
    with raw:
        raw.execute(statement)
    raw.close()


# --- opening what must be there ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"create": False}, {"read_only": True}], ids=str)
def test_a_ledger_that_is_missing_is_not_begun_anew(tmp_path: Path, how: dict[str, bool]) -> None:
    with pytest.raises(DataError, match="missing") as caught:
        open_store(tmp_path / "node.sqlite", **how)
    assert caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_an_existing_ledger_opens_without_being_created(tmp_path: Path) -> None:
    made = charge(Ledger(open_store(tmp_path / "s"), "n", BUDGET))
    assert list(Ledger(open_store(tmp_path / "s", create=False), "n", BUDGET).charges()) == [made]


@pytest.mark.parametrize("closed", [True, False])
def test_reading_changes_and_leaves_nothing(tmp_path: Path, closed: bool) -> None:
    """Whether the owner has the file open, so that a write-ahead log lies beside it, or not."""
    path = tmp_path / "a b?c#d.sqlite"
    owner = Ledger(open_store(path), "n", BUDGET)
    made = charge(owner)
    if closed:
        owner.close()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if not file.name.endswith("-shm")}
    names = sorted(file.name for file in tmp_path.iterdir())
    reader = Ledger(open_store(path, read_only=True), "n", BUDGET)
    assert list(reader.charges()) == [made]
    reader.verify()
    with pytest.raises(DatabaseError):
        charge(reader, slot(1))
    reader.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    charge(owner, slot(2))
    assert len(list(Ledger(open_store(path, read_only=True), "n", BUDGET).charges())) == 2


@pytest.mark.parametrize("content", [b"", b"this is no database, and long enough to be read as one" * 20])
def test_reading_what_is_no_ledger_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(DataError):
        Ledger(open_store(tmp_path / "s", read_only=True), "n", BUDGET)
    assert (tmp_path / "s").read_bytes() == content


def test_a_ledger_of_another_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    Ledger(open_store(path), "n", BUDGET).close()
    edit(path, "UPDATE ledger_header SET schema = 'cohortium.ledger/1'")
    edit(path, "DROP TABLE reservations")
    with pytest.raises(DataError, match="version"):
        Ledger(open_store(path), "n", BUDGET)
    with sqlite3.connect(path) as raw:
        assert ("reservations",) not in raw.execute("SELECT name FROM sqlite_master").fetchall()
    raw.close()


# --- many at once ----------------------------------------------------------------------------------------------------


def _charge_until_refused(path: str, name: str, gate: Any, results: Any) -> None:
    ledger = Ledger(open_store(Path(path)), "n", budget_for(3.0, 1e-6))
    ledger.reserve(PLAN, "r", COST.times(25), LATER)
    gate.wait()
    made = 0
    for step in range(40):
        try:
            charge(ledger, slot(step, phase=name))
            made += 1
        except BudgetError:
            break
    ledger.close()
    results.put(made)


def _reserve_until_refused(path: str, name: str, gate: Any, results: Any) -> None:
    ledger = Ledger(open_store(Path(path)), "n", COST.times(25))
    gate.wait()
    made = 0
    for number in range(20):
        try:
            ledger.reserve(f"{name}{number}", "r", COST.times(2), LATER)
            made += 1
        except BudgetError:
            break
    results.put(made)


def at_once(path: Path, work: Callable[..., None], processes: Any) -> list[int]:
    """What three processes that begin at the same moment report."""
    gate, results = processes.Barrier(3), processes.Queue()
    workers = [processes.Process(target=work, args=(str(path), f"p{i}", gate, results)) for i in range(3)]
    for worker in workers:
        worker.start()
    counts = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    return counts


def _charge_one_slot(path: str, name: str, gate: Any, results: Any) -> None:
    ledger = Ledger(open_store(Path(path)), "n", budget_for(3.0, 1e-6))
    gate.wait()
    try:
        charge(ledger, question=name)
        results.put(1)
    except BudgetError:
        results.put(0)
    ledger.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The path of a node's database, whichever it is."""
    if request.param == "postgresql":
        request.getfixturevalue("in_postgresql")(tmp_path)
    return tmp_path / "node.sqlite"


def test_of_processes_that_charge_one_slot_for_different_questions_one_does(house: Path, processes: Any) -> None:
    assert sorted(at_once(house, _charge_one_slot, processes)) == [0, 0, 1]
    with closing(Ledger(open_store(house), "n", budget_for(3.0, 1e-6))) as ledger:
        assert len(list(ledger.charges())) == 1
        ledger.verify()


def test_processes_that_charge_at_once_never_pass_the_budget(house: Path, processes: Any) -> None:
    counts = at_once(house, _charge_until_refused, processes)
    ledger = Ledger(open_store(house), "n", budget_for(3.0, 1e-6))
    assert sum(counts) == len(list(ledger.charges())) == 25
    assert ledger.spent() == COST.times(25)
    ledger.verify()
    ledger.close()


def test_processes_that_reserve_at_once_never_pass_the_lifetime(house: Path, processes: Any) -> None:
    counts = at_once(house, _reserve_until_refused, processes)
    ledger = Ledger(open_store(house), "n", COST.times(25))
    assert sum(counts) == len(ledger.reservations()) == 12
    assert ledger.available().mu2 == COST.mu2
    ledger.verify()
    ledger.close()


# --- any sequence of charges -----------------------------------------------------------------------------------------

PLANS = st.sampled_from(["a", "b", "c"])
STEP = st.one_of(
    st.tuples(
        st.just("charge"), PLANS, st.integers(0, 3), st.sampled_from("xy"), st.integers(1, 4), st.integers(1, 900)
    ),
    st.tuples(st.just("reserve"), PLANS, st.sampled_from("rs"), st.integers(1, 2**39), st.integers(0, 3)),
    st.tuples(st.just("close"), PLANS, st.sampled_from("rs")),
    st.tuples(st.just("tomorrow")),
)


class Model:
    """The ledger's promises as plain sums: charges by slot, and run, budget, expiry and openness by plan."""

    def __init__(self, lifetime: Spend) -> None:
        self.lifetime, self.today = lifetime, date(2026, 1, 1)
        self.charges: dict[tuple[str, int], tuple[str, Spend]] = {}
        self.plans: dict[str, tuple[str, Spend, date]] = {}
        self.closed: set[str] = set()

    def spent(self, plan: str | None = None) -> Spend:
        return sum((s for (p, _), (_, s) in self.charges.items() if plan in (None, p)), Spend())

    def open(self, plan: str) -> bool:
        return plan in self.plans and plan not in self.closed and self.plans[plan][2] >= self.today

    def held(self) -> int:
        return sum(self.plans[plan][1].mu2 - self.spent(plan).mu2 for plan in self.plans if self.open(plan))

    def charge(self, plan: str, step: int, question: str, spend: Spend) -> bool:
        known = self.charges.get((plan, step))
        if known is not None:
            return known[0] == question
        if not self.open(plan) or self.plans[plan][0] != "r":
            return False
        fits = (self.spent(plan) + spend).fits(self.plans[plan][1]) and (self.spent() + spend).fits(self.lifetime)
        if fits:
            self.charges[plan, step] = (question, spend)
        return fits

    def reserve(self, plan: str, run: str, budget: Spend, expires: date) -> bool:
        self.closed |= {other for other in self.plans if not self.open(other)}
        if plan in self.plans:
            return self.plans[plan] == (run, budget, expires)
        covered = self.spent().mu2 + self.held() + budget.mu2 <= self.lifetime.mu2
        if expires >= self.today and covered:
            self.plans[plan] = (run, budget, expires)
            return True
        return False

    def close(self, plan: str, run: str) -> bool:
        if plan not in self.plans or self.plans[plan][0] != run:
            return False
        self.closed.add(plan)
        return True


@settings(max_examples=25)
@given(steps=st.lists(STEP, max_size=16))
def test_the_ledger_agrees_with_a_plain_model(tmp_path_factory: pytest.TempPathFactory, steps: Any) -> None:
    model = Model(Spend(2**39, 2**60))
    store = open_store(tmp_path_factory.mktemp("model") / "s")
    ledger = Ledger(store, "n", model.lifetime, lambda: model.today)
    for kind, *rest in [("reserve", "a", "r", 2**38, 2), *steps]:
        if kind == "tomorrow":
            model.today += timedelta(days=1)
            continue
        if kind == "charge":
            plan, step, question, width, part = rest
            terms: dict[str, Any] = {"width": width, "bound_squared": part * 2**20, "sigma": 2**20}
            allowed = model.charge(plan, step, question, price(part * 2**20, 2**20, width))
            act: Callable[[], Any] = lambda: ledger.charge(slot(step, plan=plan), question, **terms)  # noqa: E731, B023
        elif kind == "reserve":
            plan, run, mu2, days = rest
            order = (plan, run, Spend(mu2, 2**59), date(2026, 1, 1) + timedelta(days=days))
            allowed = model.reserve(*order)
            act = lambda: ledger.reserve(*order)  # noqa: E731, B023
        else:
            allowed = model.close(*rest)
            act = lambda: ledger.close_reservation(*rest)  # noqa: E731, B023
        if allowed:
            act()
        else:
            with pytest.raises(BudgetError):
                act()
        assert ledger.spent() == model.spent()
        assert ledger.held().mu2 == model.held()
        assert ledger.spent().mu2 + ledger.held().mu2 <= model.lifetime.mu2
        assert {(c.slot.plan, c.slot.step): (c.question, c.spend) for c in ledger.charges()} == model.charges
    ledger.verify()
    store.dispose()


def test_a_charge_that_vanishes_is_a_defect(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "find", lambda _slot: None)
    with pytest.raises(Defect):
        charge(ledger)
