"""The door: its order, its seal, its refusals, and what a crash at every stage leaves behind."""

from __future__ import annotations

import dataclasses
import hashlib
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
from cohortium.privacy.gate import Counted, Terms
from cohortium.privacy.ledger import Ledger, Slot, open_store
from cohortium.privacy.query import SCALE, Contribution, QuerySpec, SumQuery, bounded_total
from cohortium.privacy.release import MAX_WIDTH, MIN_SIGMA, Door, consent_opening, noise_scale
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
        decision: str = "",
    ) -> None:
        self.terms, self.error, self.budget = Terms(allotment or BUDGET.mu2 // 4, share, decision), error, budget

    def admit(self, _question: QuestionHeader) -> Terms:
        if self.error:
            raise self.error
        return self.terms


class All:
    """Consent of everybody, in the states that are given, one for every look and the last one for ever."""

    def __init__(self, *states: tuple[bytes, CustomerTable]) -> None:
        self.states = list(states)
        self.noted: list[bytes] = []

    def counted(self, table: CustomerTable, _plan: str) -> Counted:
        if not self.states:
            return Counted(table, bytes(32))
        root, people = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return Counted(people, root)

    def answered(self, counted: Counted, run: str, asked: str) -> None:
        assert (run, asked) == ("0" * 32, question().digest) or counted.root == bytes(32)
        self.noted.append(counted.root)


class Events(list[Mapping[str, Any]]):
    """An audit log that remembers, an entry for each key."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []

    def require_witnessed(self, _plan: str) -> None:
        pass

    def record(self, key: str, entry: Mapping[str, Any]) -> bytes:
        if key not in self.keys:
            self.append(entry)
            self.keys.append(key)
        return f"entry {self.keys.index(key)}".encode()


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

    def counted(self, table: CustomerTable, _plan: str) -> Counted:
        self.steps.append("consent")
        return Counted(table, bytes(32))

    def answered(self, *_: Any) -> None:
        self.steps.append("answered")

    def require_witnessed(self, _plan: str) -> None:
        self.steps.append("witnesses")

    def build(self, spec: QuerySpec) -> SumQuery:
        self.steps.append("build")
        return build_query(spec)

    def words(self, count: int) -> NDArray[np.uint64]:
        charged = [entry.question for entry in self._ledger.charges()]
        self.steps.append("noise" if charged == [question().digest] else "noise before charge")
        return self._bits.words(count)  # type: ignore[no-any-return]

    def record(self, _key: str, entry: Mapping[str, Any]) -> bytes:
        (charge,) = self._ledger.charges()
        stored = self._ledger.replay(charge.slot, entry["question"])
        self.steps.append("audit before reply" if stored is None else "audit")
        return b""


def test_the_order_of_the_door(ledger: Ledger, seeded_bits: Callable[[int], Any]) -> None:
    seen = Recorder(ledger, seeded_bits(0))
    door = make_door(ledger, seen, gate=seen, consent=seen, build=seen.build, audit=seen)
    door.release(question())
    answered = ["gate", "build", "witnesses", "consent", "noise", "consent", "answered", "audit"]
    assert seen.steps == answered
    door.release(question())
    assert seen.steps == [*answered, "gate", "build", "audit"], "asked again: no look at anybody"


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


def test_the_log_entry_says_what_was_charged_and_nothing_of_the_answer(ledger: Ledger) -> None:
    events, root = Events(), bytes(range(32))
    gate = Gate(decision="sha256:" + "d" * 64)
    release = make_door(ledger, audit=events, gate=gate, consent=All((root, people()))).release(question())
    (charge,) = ledger.charges()
    (entry,), (opening,) = events, openings(ledger)
    commitment = hashlib.sha256(b"cohortium.consent-root/1\0" + bytes.fromhex(opening["salt"]) + root).hexdigest()
    assert entry == {
        "event": "release",
        "charge": charge.sequence,
        "plan": charge.slot.plan,
        "run": charge.slot.run,
        "phase": charge.slot.phase,
        "step": 0,
        "attempt": 1,
        "question": question().digest,
        "decision": "sha256:" + "d" * 64,
        "consent": commitment,
        "mu2": str(charge.spend.mu2),
        "tv": str(charge.spend.tv),
    }
    assert opening["consent_root"] == root.hex()
    assert events.keys == ["charge 1"]
    assert release.statement == b"entry 0"


def openings(ledger: Ledger) -> list[Mapping[str, str]]:
    """What opens the commitments of all charges, from the replies that the ledger keeps."""
    charges = list(ledger.charges())
    stored = [ledger.replay(charge.slot, charge.question) for charge in charges]
    return [consent_opening(reply or b"", charge.width) for reply, charge in zip(stored, charges, strict=True)]


def test_equal_states_of_consent_are_committed_to_unequally(ledger: Ledger) -> None:
    events = Events()
    door = make_door(ledger, audit=events)
    door.release(question(step=0))
    door.release(question(step=1))
    first, second = openings(ledger)
    assert first["consent_root"] == second["consent_root"]
    assert events[0]["consent"] != events[1]["consent"]


def test_without_witnesses_nothing_is_charged_or_counted(ledger: Ledger) -> None:
    class Alone(Events):
        def require_witnessed(self, plan: str) -> None:
            raise RefusedError(f"no quorum for {plan}")

    class Nobody:
        def counted(self, *_: Any) -> Any:
            raise AssertionError("people were counted")

    with pytest.raises(RefusedError, match="no quorum for sha256:0000"):
        make_door(ledger, audit=Alone(), consent=Nobody()).release(question())
    assert list(ledger.charges()) == []


# --- consent that changes --------------------------------------------------------------------------------------------


def test_who_withdraws_while_a_question_is_answered_is_not_in_the_answer(
    ledger: Ledger, seeded_bits: Callable[[int], Any]
) -> None:
    """Counted twice under one charge; what leaves is the second count, with noise of its own."""
    events, before, after = Events(), people(50), people(49)
    consent = All((b"a" * 32, before), (b"b" * 32, after))
    release = make_door(ledger, seeded_bits(1), consent=consent, audit=events).release(question())
    bits, sigma = seeded_bits(1), noise_scale(QUERY, BUDGET.mu2 // 4)
    unused, noise = (sample_discrete_gaussian(sigma, QUERY.width, bits) for _ in range(2))
    assert (release.vector == bounded_total(QUERY, after) + noise).all()
    assert (unused != noise).any()
    assert len(list(ledger.charges())) == 1
    assert [opening["consent_root"] for opening in openings(ledger)] == [(b"b" * 32).hex()]
    assert consent.noted == [b"b" * 32], "what was counted in the end, once"


def test_consent_that_never_holds_still_is_not_answered_and_not_charged_twice(ledger: Ledger) -> None:
    restless = All(*((bytes([n]) * 32, people()) for n in range(20)))
    events = Events()
    with pytest.raises(RefusedError, match="faster than it can be counted"):
        make_door(ledger, consent=restless, audit=events).release(question())
    assert events == []
    release = make_door(ledger, audit=events).release(question())
    assert len(list(ledger.charges())) == len(events) == 1
    assert release.statement == b"entry 0"


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
        dataclasses.replace(release, note=bytes(64)),
        dataclasses.replace(release, statement=b"entry 1"),
        dataclasses.replace(release, statement=b"", note=release.statement),
    ]
    assert not any(door.has_sealed(forgery) for forgery in forgeries)
    other = make_door(Ledger(open_store(tmp_path / "other"), "n", BUDGET))
    assert not other.has_sealed(release)


# --- crashes ---------------------------------------------------------------------------------------------------------

STAGES = ["before charge", "after charge", "after noise", "after settle", "after audit", "answered"]


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

    class DyingAudit(Events):
        def record(self, key: str, entry: Mapping[str, Any]) -> bytes:
            die("after settle")
            statement = super().record(key, entry)
            die("after audit")
            return statement

    class DyingConsent:
        looks = 0

        def counted(self, table: CustomerTable, _plan: str) -> Counted:
            self.looks += 1
            die("before charge" if self.looks == 1 else "after noise")
            return Counted(table, bytes(32))

        def answered(self, *_: Any) -> None:
            pass

    ledger = Ledger(open_store(Path(path)), "north bank", budget_for(3.0, 1e-6))
    door = make_door(ledger, DyingBits(), audit=DyingAudit(), consent=DyingConsent())
    release = door.release(question())
    said.send(release.vector.tobytes())
    die("answered")


@pytest.mark.parametrize(
    ("stage", "database"), [*((stage, "sqlite") for stage in STAGES), ("after noise", "postgresql")]
)
def test_a_kill_at_any_stage_leaves_what_was_charged(
    tmp_path: Path, stage: str, database: str, request: pytest.FixtureRequest, processes: Any
) -> None:
    if database == "postgresql":
        request.getfixturevalue("in_postgresql")(tmp_path)
    path = tmp_path / "node.sqlite"
    heard, said = processes.Pipe(duplex=False)
    child = processes.Process(target=_release_and_die, args=(str(path), stage, said))
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
    if stage == "answered":
        assert release.vector.tobytes() == messages[0]
    assert [entry["charge"] for entry in events] == [1], "the log is asked for the release's entry again, by its key"
    assert events.keys == ["charge 1"]
    ledger.verify()
    ledger.close()


def _answer(path: str, gate: Any, replies: Any) -> None:
    ledger = Ledger(open_store(Path(path)), "north bank", budget_for(3.0, 1e-6))
    door = make_door(ledger)
    gate.wait()
    replies.put(door.release(question()).vector.tobytes())


def test_two_processes_that_answer_at_once_give_one_reply(tmp_path: Path, processes: Any) -> None:
    gate, replies = processes.Barrier(2), processes.Queue()
    workers = [processes.Process(target=_answer, args=(str(tmp_path / "s"), gate, replies)) for _ in range(2)]
    for worker in workers:
        worker.start()
    first, second = (replies.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(60)
    assert first == second
    assert len(list(Ledger(open_store(tmp_path / "s"), "north bank", BUDGET).charges())) == 1
