"""The door: its order, its seal, its refusals, and what a crash at every stage leaves behind."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortium.models.catalogue import build_query
from cohortium.models.marginals import Axis, MarginalsQuery
from cohortium.privacy.accounting import MU2_UNIT, Spend, budget_for, price
from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.privacy.gate import Terms
from cohortium.privacy.ledger import Ledger, Slot, open_store
from cohortium.privacy.query import SCALE, Contribution, QuerySpec, SumQuery, bounded_total
from cohortium.privacy.release import MAX_WIDTH, MIN_SIGMA, Door, noise_scale
from cohortium.privacy.sharing import ALONE, NoiseShare
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import BudgetError, CohortiumError, Defect, PlanError, RefusedError
from cohortium.study.question import Question, QuestionHeader, Release

BUDGET = budget_for(1.0, 1e-6)
QUERY = MarginalsQuery((Axis("a", 0, 10, integer=True),))


def people(n: int = 50) -> CustomerTable:
    values = np.random.default_rng(0).integers(0, 11, (n, 1)).astype(np.float64)
    return CustomerTable(("a",), values, np.arange(n))


def question(query: SumQuery = QUERY, **changes: Any) -> Question:
    spec = query.spec()  # type: ignore[attr-defined]  # every product query has one
    header: dict[str, Any] = {"plan": "sha256:" + "0" * 64, "run": "0" * 32, "phase": "marginals", "step": 0}
    header.update(attempt=1, kind=spec.kind, scalars=spec.scalars)
    return Question(QuestionHeader(**{**header, **changes}), spec.arrays)


class Gate:
    def __init__(
        self,
        allotment: int | None = None,
        budget: Spend = BUDGET,
        error: Exception | None = None,
        share: NoiseShare = ALONE,
    ) -> None:
        self.terms, self.error, self.budget = Terms(allotment or BUDGET.mu2 // 4, share), error, budget

    def admit(self, _question: QuestionHeader) -> Terms:
        if self.error:
            raise self.error
        return self.terms


class All:
    def snapshot(self, table: CustomerTable) -> CustomerTable:
        return table


class Events(list[Mapping[str, Any]]):
    """An audit sink that remembers."""


class NoSums:
    """The secure sums of an institution that takes part in none."""

    def begin(self, *_: Any) -> Any:
        raise AssertionError("a secure sum was begun")


class Masking:
    """Adds one to every word, remembers what it masked, and signs with 64 bytes."""

    note = bytes(range(64))

    def __init__(self) -> None:
        self.begun: list[tuple[QuestionHeader, bytes, str]] = []
        self.unmasked: list[NDArray[np.int64]] = []

    def begin(self, question: QuestionHeader, request: bytes, digest: str) -> Masking:
        self.begun.append((question, request, digest))
        return self

    def apply(self, vector: NDArray[np.int64]) -> tuple[NDArray[np.int64], bytes]:
        self.unmasked.append(vector.copy())
        return vector + 1, self.note


def make_door(ledger: Ledger, bits: Any = None, **changes: Any) -> Door:
    parts: dict[str, Any] = {"gate": Gate(), "consent": All(), "audit": Events(), "build": build_query, "bits": bits}
    parts["sums"] = NoSums()
    table = changes.pop("people", None)
    gate = {**parts, **changes}["gate"]
    ledger.reserve("sha256:" + "0" * 64, "0" * 32, getattr(gate, "budget", BUDGET), date.max)
    return Door(lambda _plan: people() if table is None else table, ledger, **{**parts, **changes})


# --- what is released ------------------------------------------------------------------------------------------------


def test_a_release_is_the_sum_plus_noise_in_integers(ledger: Ledger, seeded_bits: Callable[[int], Any]) -> None:
    release = make_door(ledger, seeded_bits(1)).release(question())
    sigma = noise_scale(QUERY, BUDGET.mu2 // 4)
    expected = bounded_total(QUERY, people()) + sample_discrete_gaussian(sigma, QUERY.width, seeded_bits(1))
    assert release.vector.dtype == np.int64
    assert (release.vector == expected).all()


def test_releases_lie_on_the_unit_lattice(ledger: Ledger) -> None:
    """By the operating system's bits: integers whose last bits carry noise, not multiples of SCALE."""
    release = make_door(ledger).release(question())
    assert release.vector.dtype == np.int64
    low = release.vector & (2**10 - 1)
    assert len(set(low.tolist())) > 1


def test_noise_is_fresh_for_every_slot(ledger: Ledger) -> None:
    door = make_door(ledger)
    first, second = door.release(question()), door.release(question(attempt=2))
    assert (first.vector != second.vector).any()


def test_overflow_wraps_modulo_64_bits(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = np.full(QUERY.width, 2**63 - 1, dtype=np.int64)
    monkeypatch.setattr("cohortium.privacy.release.sample_discrete_gaussian", lambda *_: np.ones_like(huge))
    monkeypatch.setattr("cohortium.privacy.release.bounded_total", lambda *_: huge)
    assert (make_door(ledger).release(question()).vector == -(2**63)).all()


# --- order -----------------------------------------------------------------------------------------------------------


class Recorder:
    """Everything the door touches, in the order in which it is touched."""

    def __init__(self, ledger: Ledger, bits: Any) -> None:
        self.steps: list[str] = []
        self._ledger, self._bits = ledger, bits

    def admit(self, _question: QuestionHeader) -> Terms:
        self.steps.append("gate")
        return Gate().terms

    def snapshot(self, table: CustomerTable) -> CustomerTable:
        self.steps.append("consent")
        return table

    def build(self, spec: QuerySpec) -> SumQuery:
        self.steps.append("build")
        return build_query(spec)

    def words(self, count: int) -> NDArray[np.uint64]:
        charged = [entry.question for entry in self._ledger.charges()]
        self.steps.append("noise" if charged == [question().digest] else "noise before charge")
        return self._bits.words(count)  # type: ignore[no-any-return]

    def append(self, event: Mapping[str, Any]) -> None:
        (entry,) = self._ledger.charges()
        stored = self._ledger.replay(entry.slot, event["question"])
        self.steps.append("audit" if stored is None else "audit after reply")


def test_the_order_of_the_door(ledger: Ledger, seeded_bits: Callable[[int], Any]) -> None:
    seen = Recorder(ledger, seeded_bits(0))
    door = make_door(ledger, seen, gate=seen, consent=seen, build=seen.build, audit=seen)
    door.release(question())
    assert seen.steps == ["gate", "build", "consent", "noise", "audit"]


def test_no_noise_without_the_charge_on_disk(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoBits:
        def words(self, _count: int) -> NDArray[np.uint64]:
            raise AssertionError("noise was drawn")

    real = ledger.charge

    def forged(*args: Any, **terms: Any) -> Any:
        return dataclasses.replace(real(*args, **terms), sequence=99)

    monkeypatch.setattr(ledger, "charge", forged)
    with pytest.raises(Defect, match="before a durable charge"):
        make_door(ledger, NoBits()).release(question())


def test_an_old_charge_of_another_price_is_not_used(ledger: Ledger) -> None:
    asked = question()
    header = asked.header
    place = Slot(header.plan, header.run, header.phase, header.step, header.attempt)
    ledger.reserve(place.plan, place.run, BUDGET, date.max)
    ledger.charge(place, asked.digest, width=QUERY.width, bound_squared=1, sigma=2**30)
    with pytest.raises(Defect, match="differently"):
        make_door(ledger).release(asked)


def test_the_audit_event_says_what_was_charged_and_nothing_of_the_answer(ledger: Ledger) -> None:
    events = Events()
    make_door(ledger, audit=events).release(question())
    (entry,) = ledger.charges()
    assert events == [
        {
            "event": "release",
            "charge": entry.sequence,
            "plan": entry.slot.plan,
            "run": entry.slot.run,
            "phase": entry.slot.phase,
            "step": 0,
            "attempt": 1,
            "question": question().digest,
            "mu2": entry.spend.mu2,
            "tv": entry.spend.tv,
        }
    ]


# --- asked again, or otherwise ---------------------------------------------------------------------------------------


def test_a_question_asked_again_gets_the_same_bytes_free_of_charge(ledger: Ledger) -> None:
    events, table = Events(), people()
    first = make_door(ledger, audit=events, people=table).release(question())
    spent = ledger.spent()
    later = make_door(ledger, audit=events, people=people(7))  # even after the table changed
    second = later.release(question())
    assert (first.vector == second.vector).all()
    assert ledger.spent() == spent
    assert len(events) == 1


def test_another_question_in_the_same_slot_is_refused(ledger: Ledger) -> None:
    door = make_door(ledger)
    door.release(question())
    spent = ledger.spent()
    with pytest.raises(BudgetError):
        door.release(question(MarginalsQuery((Axis("a", 0, 9, integer=True),))))
    assert ledger.spent() == spent


def test_budgets_stop_the_door_before_noise(ledger: Ledger, seeded_bits: Callable[[int], Any]) -> None:
    bits = seeded_bits(0)
    door = make_door(ledger, bits, gate=Gate(budget=Spend(BUDGET.mu2 // 2, BUDGET.tv)))
    door.release(question(step=0))
    door.release(question(step=1))
    drawn, spent = bits.drawn, ledger.spent()
    with pytest.raises(BudgetError):
        door.release(question(step=2))
    assert (bits.drawn, ledger.spent()) == (drawn, spent)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RefusedError("no"), PlanError("no"), RuntimeError("bug in a gate")])
def test_what_the_gate_refuses_touches_nothing(ledger: Ledger, error: Exception) -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} was used")

    door = make_door(ledger, Untouchable(), gate=Gate(error=error), consent=Untouchable(), audit=Untouchable())
    with pytest.raises(type(error)):
        door.release(question())
    assert list(ledger.charges()) == []


@pytest.mark.parametrize("n", [0, 1, 50])
def test_an_unanswerable_question_is_refused_whoever_is_there(ledger: Ledger, n: int) -> None:
    asked = [question(MarginalsQuery((Axis("zz", 0, 1),))), question(kind="unknown"), question(scalars={})]
    for candidate in asked:
        with pytest.raises((CohortiumError, Defect)):
            make_door(ledger, people=people(n)).release(candidate)
    assert list(ledger.charges()) == []


def test_an_empty_table_answers(ledger: Ledger) -> None:
    assert len(make_door(ledger, people=people(0)).release(question()).vector) == QUERY.width


@dataclasses.dataclass(frozen=True)
class Shaped:
    width: int
    bound_squared: int = SCALE**2
    words_per_person: int = 1

    def contribute(self, table: CustomerTable) -> Contribution:
        raise AssertionError("looked at data")


def test_noise_scales_that_cannot_be_safe_are_refused() -> None:
    allotment = BUDGET.mu2 // 10
    sigma = noise_scale(Shaped(1), allotment)
    assert price(SCALE**2, sigma, 1).mu2 <= allotment
    assert (SCALE / sigma) ** 2 == pytest.approx(float(allotment * MU2_UNIT), rel=1e-6)
    noise_scale(Shaped(MAX_WIDTH), allotment)
    for shape in (Shaped(0), Shaped(-1), Shaped(MAX_WIDTH + 1), Shaped(1, 2**64), Shaped(1, 2**80)):
        with pytest.raises(RefusedError):
            noise_scale(shape, allotment)
    for shape, terms in ((Shaped(1, 0), allotment), (Shaped(1, MIN_SIGMA**2 // 2), 2**48)):
        with pytest.raises(PlanError):
            noise_scale(shape, terms)
    with pytest.raises(CohortiumError):
        noise_scale(Shaped(1), 0)


# --- the seal --------------------------------------------------------------------------------------------------------


def test_only_the_very_release_is_sealed(ledger: Ledger, tmp_path: Path) -> None:
    door = make_door(ledger)
    release = door.release(question())
    assert door.has_sealed(release)
    assert door.has_sealed(Release.from_record(release.to_record()))
    changed = release.vector.copy()
    changed[0] += 1
    forgeries = [
        Release(release.question, changed, release.seal),
        Release(release.question, release.vector[:-1], release.seal),
        Release(question(step=1).digest, release.vector, release.seal),
        Release(release.question, release.vector, bytes(32)),
        Release(release.question, release.vector, b""),
    ]
    assert not any(door.has_sealed(forgery) for forgery in forgeries)
    other = make_door(Ledger(open_store(tmp_path / "other"), "n", BUDGET))
    assert not other.has_sealed(release)


# --- crashes ---------------------------------------------------------------------------------------------------------

STAGES = ["before charge", "after charge", "after noise", "after audit", "after settle"]


def _release_and_die(path: str, stage: str, said: Any) -> None:
    """A child that answers a question and is killed by SIGKILL at a stage: no clean-up, no flush, no goodbye."""

    def die(where: str) -> None:
        if where == stage:
            said.send(where)
            os.kill(os.getpid(), signal.SIGKILL)

    class DyingBits:
        def words(self, count: int) -> NDArray[np.uint64]:
            die("after charge")
            return np.frombuffer(os.urandom(8 * count), dtype=np.uint64)

    class DyingAudit:
        def append(self, event: Mapping[str, Any]) -> None:
            die("after noise")
            with (Path(path).parent / "audit").open("a") as log:
                log.write(f"{event['charge']}\n")
            die("after audit")

    class DyingConsent:
        def snapshot(self, table: CustomerTable) -> CustomerTable:
            die("before charge")
            return table

    ledger = Ledger(open_store(Path(path)), "north bank", budget_for(3.0, 1e-6))
    door = make_door(ledger, DyingBits(), audit=DyingAudit(), consent=DyingConsent())
    release = door.release(question())
    said.send(release.vector.tobytes())
    die("after settle")


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_at_any_stage_leaves_what_was_charged(tmp_path: Path, stage: str) -> None:
    path, spawn = tmp_path / "node.sqlite", multiprocessing.get_context("spawn")
    heard, said = spawn.Pipe(duplex=False)
    child = spawn.Process(target=_release_and_die, args=(str(path), stage, said))
    child.start()
    said.close()
    messages = []
    while not messages or messages[-1] != stage:
        messages.append(heard.recv())
    child.join(60)
    assert child.exitcode == -signal.SIGKILL

    ledger = Ledger(open_store(path), "north bank", budget_for(3.0, 1e-6))
    expected = [] if stage == "before charge" else [question().digest]
    assert [entry.question for entry in ledger.charges()] == expected
    events = Events()
    release = make_door(ledger, audit=events).release(question())
    assert len(list(ledger.charges())) == 1, "the resumed door charged a second time"
    assert make_door(ledger, audit=events).release(question()).vector.tobytes() == release.vector.tobytes()
    if stage == "after settle":
        assert release.vector.tobytes() == messages[0]
        assert events == []
    else:  # at least one audit event for the release, and every event names its charge
        assert [event["charge"] for event in events] == [1]
    ledger.verify()


def _answer(path: str, gate: Any, replies: Any) -> None:
    ledger = Ledger(open_store(Path(path)), "north bank", budget_for(3.0, 1e-6))
    door = make_door(ledger)
    gate.wait()
    replies.put(door.release(question()).vector.tobytes())


def test_two_processes_that_answer_at_once_give_one_reply(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    gate, replies = spawn.Barrier(2), spawn.Queue()
    workers = [spawn.Process(target=_answer, args=(str(tmp_path / "s"), gate, replies)) for _ in range(2)]
    for worker in workers:
        worker.start()
    first, second = (replies.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(60)
    assert first == second
    assert len(list(Ledger(open_store(tmp_path / "s"), "north bank", BUDGET).charges())) == 1
