"""A node's audit log: one entry for each release whatever happens, nothing unwitnessed, and no part in a fork."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cohortium.client.node import Node, open_node
from cohortium.governance.log import (
    AuditLog,
    Ed25519Signer,
    Note,
    leaf_hash,
    log_origin,
    open_checkpoint,
    parse_leaf,
    parse_note,
    quorum_for,
    verify_inclusion,
)
from cohortium.governance.log.merkle import verify_consistency
from cohortium.models.marginals import Axis, MarginalsQuery
from cohortium.privacy.ledger import open_store
from cohortium.privacy.release import consent_opening
from cohortium.privacy.table import CustomerTable
from cohortium.study.charter import Charter
from cohortium.study.contract import Contract
from cohortium.study.errors import DataError, OutputError, RefusedError
from cohortium.study.plan import Plan
from cohortium.study.question import PlanQuestion, Question, QuestionHeader, Release
from cohortium.study.witness import Growth, Statement, ToCosign, WitnessRequest

QUERY = MarginalsQuery((Axis("visits", 0, 40, integer=True),))
RUN = "0" * 32


def question(plan: Plan, attempt: int = 1) -> Question:
    spec = QUERY.spec()
    header = QuestionHeader(
        plan=plan.digest, run=RUN, phase="marginals", step=0, attempt=attempt, kind=spec.kind, scalars=spec.scalars
    )
    return Question(header, spec.arrays)


@dataclass(frozen=True)
class Club:
    """Three institutions, each of which needs both others as witnesses."""

    plan: Plan
    charter: Charter
    nodes: list[Node]
    folders: list[Path]
    tables: list[CustomerTable]
    cosigned: Callable[..., str]
    entries: Callable[[Path], list[dict[str, Any]]]

    @property
    def node(self) -> Node:
        return self.nodes[0]

    @property
    def origin(self) -> str:
        return log_origin(self.charter.name, self.node.identity.institution)

    def key(self) -> Ed25519PrivateKey:
        key = load_pem_private_key((self.folders[0] / "identity.pem").read_bytes(), None)
        assert isinstance(key, Ed25519PrivateKey)
        return key

    def hello(self, **changes: Any) -> WitnessRequest:
        return WitnessRequest(plan=self.plan.digest, **changes)

    def note(self, *others: int) -> str:
        """The first node's newest checkpoint, cosigned by some of the others."""
        return self.cosigned(self.node, [self.nodes[other] for other in others], self.plan)

    def witness(self) -> None:
        """Everybody cosigns the first node's log, which learns of it."""
        self.node.log.answer(self.hello(cosigned=self.note(1, 2)))

    def accept(self) -> None:
        self.node.accept(PlanQuestion(self.plan.digest, RUN, int(datetime.now(UTC).timestamp())))

    def begun(self) -> Club:
        """The first node accepted a run, and that was witnessed."""
        self.witness()
        self.accept()
        self.witness()
        return self

    def release(self, attempt: int = 1) -> Release:
        return self.node.door.release(question(self.plan, attempt))

    def logged(self, event: str = "release") -> list[dict[str, Any]]:
        """The entries of the first node's log about an event."""
        return [entry for entry in self.entries(self.folders[0]) if entry["event"] == event]


@pytest.fixture
def club(
    make_plan: Callable[..., Plan],
    make_people: Callable[..., CustomerTable],
    make_members: Callable[..., Any],
    cosigned: Callable[..., str],
    log_entries: Callable[[Path], list[dict[str, Any]]],
) -> Club:
    plan, tables = make_plan(max_attempts=3), [make_people(50, seed) for seed in range(3)]
    members = make_members(tables, plan)
    return Club(plan, members.charter, members.nodes, members.folders, tables, cosigned, log_entries)


# --- nothing unwitnessed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("witnesses", [None, (), (1,), (2,)], ids=str)
def test_without_a_quorum_nothing_is_accepted_or_reserved(witnesses: tuple[int, ...] | None, club: Club) -> None:
    if witnesses is not None:
        club.node.log.answer(club.hello(cosigned=club.note(*witnesses)))
    with pytest.raises(RefusedError, match="fewer than 2 others witness the audit log"):
        club.accept()
    assert club.node.ledger.reservations() == []
    assert club.node.store.admitted(club.plan.digest, RUN) is None
    club.witness()
    club.accept()


def test_a_question_is_answered_only_when_the_entry_before_it_was_witnessed(club: Club) -> None:
    club.witness()
    club.accept()
    for attempt in (1, 2):
        before = club.node.ledger.spent()
        with pytest.raises(RefusedError, match="newest entry"):
            club.release(attempt)
        assert club.node.ledger.spent() == before
        club.node.log.take(club.hello(cosigned=club.note(1, 2)))
        club.release(attempt)
        assert club.node.ledger.spent().mu2 > before.mu2
    assert len(club.logged()) == 2


def test_an_entry_of_another_process_has_to_be_witnessed_too(club: Club) -> None:
    """Two processes on one folder: neither relies on what it remembers of the log."""
    club.begun()
    twin = open_node(club.folders[0], club.tables[0])
    twin.log.require_witnessed(club.plan.digest)
    club.release()
    with pytest.raises(RefusedError, match="newest entry"):
        twin.door.release(question(club.plan, 2))
    assert len(list(twin.ledger.charges())) == 1
    twin.close()


def test_the_newest_entry_of_a_run_is_found_behind_any_number_of_others(
    club: Club, monkeypatch: pytest.MonkeyPatch
) -> None:
    club.begun()
    for number in range(40):
        club.node.log.record(f"note {number}", {"event": "note", "plan": club.plan.digest, "number": number})
    for page in (1, 7, 256):
        monkeypatch.setattr("cohortium.client.witnessing._PAGE", page)
        with_log = open_node(club.folders[0], club.tables[0])
        with_log.log.require_witnessed(club.plan.digest)
        with_log.close()
    club.release()
    again = open_node(club.folders[0], club.tables[0])
    with pytest.raises(RefusedError, match="newest entry"):
        again.log.require_witnessed(club.plan.digest)
    again.close()


def test_a_question_that_was_answered_is_answered_again_without_witnesses(club: Club) -> None:
    club.begun()
    first = club.release()
    again = club.release()
    assert (again.vector == first.vector).all()
    assert len(list(club.node.ledger.charges())) == 1


# --- cosignatures of the own log -------------------------------------------------------------------------------------


def other_text(note: str) -> str:
    """The note with another root under the same signatures."""
    text, lines = note.split("\n\n")
    origin, size, _root = text.split("\n")
    return "\n".join([origin, size, "A" * 43 + "="]) + "\n\n" + lines


def other_signature(note: str) -> str:
    """The note with one bit of its last cosignature changed."""
    parsed = parse_note(note)
    last = parsed.signatures[-1]
    changed = type(last)(last.name, last.key_id, last.value[:-1] + bytes([last.value[-1] ^ 1]))
    return Note(parsed.text, (*parsed.signatures[:-1], changed)).to_text()


FALSE_NOTES: dict[str, Callable[[Club], str]] = {
    "another's log": lambda club: club.cosigned(club.nodes[1], [club.nodes[0], club.nodes[2]], club.plan),
    "another root": lambda club: other_text(club.note(1, 2)),
    "a bad cosignature": lambda club: other_signature(club.note(1, 2)),
    "not signed by the log": lambda club: Note(
        parse_note(club.note(1, 2)).text, parse_note(club.note(1, 2)).signatures[1:]
    ).to_text(),
    "no note": lambda _: "customer 4711",
}


@pytest.mark.parametrize("name", FALSE_NOTES)
def test_a_note_that_does_not_hold_is_refused_and_counts_for_nothing(name: str, club: Club) -> None:
    for hand_in in (club.node.log.take, club.node.log.answer):
        with pytest.raises(DataError) as caught:
            hand_in(club.hello(cosigned=FALSE_NOTES[name](club)))
        assert "4711" not in str(caught.value)
        assert club.node.log.cosigners(club.plan.digest) == 0
        with pytest.raises(RefusedError, match="witness"):
            club.accept()


def test_cosignatures_of_strangers_do_not_count(club: Club) -> None:
    note = parse_note(club.note())
    for name in ("bank 1", "bank 2"):
        stranger = Ed25519Signer(log_origin(club.charter.name, name), Ed25519PrivateKey.generate())
        note = note.signed(stranger)
    club.node.log.answer(club.hello(cosigned=note.to_text()))
    assert club.node.log.cosigners(club.plan.digest) == 0
    with pytest.raises(RefusedError, match="fewer than 2"):
        club.accept()


def test_a_log_that_was_put_back_from_an_old_copy_answers_nothing(club: Club) -> None:
    """Others witnessed more than it holds; it says so before anything is charged."""
    club.begun()
    club.node.log.close()
    path = club.folders[0] / "log.sqlite"
    copy = path.read_bytes()
    club.release()
    note = club.note(1, 2)
    club.node.close()
    for file in club.folders[0].glob("log.sqlite*"):
        file.unlink()
    path.write_bytes(copy)
    node = open_node(club.folders[0], club.tables[0])
    spent = node.ledger.spent()
    for hand_in in (node.log.take, node.log.answer):
        with pytest.raises((RefusedError, DataError)):
            hand_in(club.hello(cosigned=note))
    assert node.ledger.spent() == spent
    node.close()


def test_cosignatures_are_kept_for_the_next_start(club: Club) -> None:
    club.begun()
    club.node.close()
    again = open_node(club.folders[0], club.tables[0])
    assert again.log.cosigners(club.plan.digest) == 2
    again.door.release(question(club.plan))
    again.close()


def test_cosignatures_beside_a_question_are_kept_with_its_entry(club: Club) -> None:
    club.witness()
    club.accept()
    club.node.log.take(club.hello(cosigned=club.note(1, 2)))
    club.release()
    club.node.close()
    log = AuditLog(open_store(club.folders[0] / "log.sqlite"), club.origin, Ed25519Signer(club.origin, club.key()))
    kept = log.cosigned()
    assert kept is not None
    quorum = quorum_for(club.charter, "bank 0")
    assert quorum.require(kept).size == 1
    assert len(quorum.cosigners(kept)) == 2


def test_another_federation_s_plan_is_not_logged_here(
    club: Club, make_plan: Callable[..., Plan], small_contract: Contract
) -> None:
    club.begun()
    plan, charter = make_plan(name="elsewhere"), club.charter.model_copy(update={"name": "elsewhere"})
    club.node.store.approve(plan, small_contract, charter)
    elsewhere = WitnessRequest(plan=plan.digest)
    for act in (
        lambda: club.node.log.answer(elsewhere),
        lambda: club.node.log.require_witnessed(plan.digest),
        lambda: club.node.log.record("k", {"plan": plan.digest}),
        lambda: club.node.log.cosigners(plan.digest),
    ):
        with pytest.raises((RefusedError, DataError), match="another"):
            act()
    club.release()
    assert len(club.logged()) == 1


# --- cosigning others' logs ------------------------------------------------------------------------------------------


def ask(club: Club, checkpoint: str, old: int = 0, proof: tuple[str, ...] = ()) -> WitnessRequest:
    return club.hello(to_cosign=(ToCosign(growth=Growth(old=old, proof=proof), checkpoint=checkpoint),))


def line_of(club: Club, witness: Node, request: WitnessRequest) -> tuple[int, str | None]:
    """What a witness knows of the first node's log, and its line."""
    (found,) = [one for one in witness.log.answer(request).witnessed if one.log == club.origin]
    return found.size, found.line


@pytest.fixture
def fork(club: Club, tmp_path: Path) -> Iterator[AuditLog]:
    """A log that the first node's own key signs, with other entries than its log has."""
    engine = open_store(tmp_path / "fork.sqlite")
    log = AuditLog(engine, club.origin, Ed25519Signer(club.origin, club.key()))
    log.append([{"event": "release", "charge": 0}])
    yield log
    engine.dispose()


def test_a_fork_is_not_cosigned(club: Club, fork: AuditLog, caplog: pytest.LogCaptureFixture) -> None:
    club.begun()
    witness, true = club.nodes[1], club.node.log.answer(club.hello()).checkpoint
    assert line_of(club, witness, ask(club, true, 1))[1] is not None
    with caplog.at_level(logging.WARNING):
        same_size = line_of(club, witness, ask(club, fork.checkpoint(), 1))
        fork.append([{"event": "release", "charge": 1}])
        proof = tuple(part.hex() for part in fork.consistency(1, 2))
        larger = line_of(club, witness, ask(club, fork.checkpoint(), 1, proof))
        from_nothing = line_of(club, witness, ask(club, fork.checkpoint(), 0))
    assert same_size == larger == from_nothing == (1, None)
    assert caplog.text.count("not cosigned") == 3
    assert line_of(club, witness, ask(club, true, 1))[1] is not None, "the true log goes on"


def test_the_own_log_and_unknown_logs_are_never_cosigned(club: Club, fork: AuditLog, tmp_path: Path) -> None:
    engine = open_store(tmp_path / "unknown.sqlite")
    unknown = log_origin(club.charter.name, "bank 9")
    strangers = AuditLog(engine, unknown, Ed25519Signer(unknown, Ed25519PrivateKey.generate()))
    own = club.node.log.answer(club.hello()).checkpoint
    for checkpoint in (own, fork.checkpoint(), strangers.checkpoint()):
        with pytest.raises(RefusedError, match="not to be witnessed here"):
            club.node.log.answer(ask(club, checkpoint))
    engine.dispose()


def test_a_request_is_answered_whole_or_not_at_all(club: Club) -> None:
    """The checkpoint that comes before a refused one is not known afterwards: one commit for all of them."""
    theirs = club.nodes[1].log.answer(club.hello()).checkpoint
    own = club.node.log.answer(club.hello()).checkpoint
    both = (ToCosign(growth=Growth(old=0), checkpoint=theirs), ToCosign(growth=Growth(old=0), checkpoint=own))
    note = club.note(1, 2)
    with pytest.raises(RefusedError, match="not to be witnessed here"):
        club.node.log.answer(club.hello(cosigned=note, to_cosign=both))
    assert club.node.log.cosigners(club.plan.digest) == 0
    reply = club.node.log.answer(club.hello(cosigned=note, to_cosign=both[:1]))
    assert [one.line is not None for one in reply.witnessed] == [True, False]
    assert club.node.log.cosigners(club.plan.digest) == 2


def test_growth_is_proven_from_every_size_that_is_asked_for(club: Club) -> None:
    club.begun()
    for attempt in (1, 2, 3):
        club.release(attempt)
        club.witness()
    verifier = quorum_for(club.charter, "bank 0").verifier
    reply = club.node.log.answer(club.hello(growth_from=(0, 1, 2, 3, 9)))
    newest, _ = open_checkpoint(reply.checkpoint, verifier)
    assert newest.size == 4
    assert [one.old for one in reply.growth] == [1, 2, 3, 4]
    engine = open_store(club.folders[0] / "log.sqlite", read_only=True)
    log = AuditLog(engine, club.origin, Ed25519Signer(club.origin, club.key()))
    for one in reply.growth:
        proof = [bytes.fromhex(part) for part in one.proof]
        assert verify_consistency(one.old, newest.size, proof, log.root(one.old), newest.root)
    engine.dispose()


# --- one entry for each release --------------------------------------------------------------------------------------


def test_asked_again_and_after_a_restart_there_is_one_entry(club: Club) -> None:
    club.begun()
    statements = [club.release().statement for _ in range(3)]
    club.node.close()
    again = open_node(club.folders[0], club.tables[0])
    statements.append(again.door.release(question(club.plan)).statement)
    again.close()
    assert len(set(statements)) == 1
    assert len(club.logged()) == 1


KILLED = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
from cohortium.client.node import open_node
from cohortium.client.witnessing import NodeLog
from cohortium.privacy.table import CustomerTable
from cohortium.study.question import Question, QuestionHeader

folder, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
arrays = dict(np.load(folder / "asked.npz"))
values = arrays.pop("people")
node = open_node(folder, CustomerTable(tuple(asked["columns"]), values, np.arange(len(values))))
NodeLog.record = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
node.door.release(Question(QuestionHeader(**asked["header"]), arrays))
"""


def test_killed_between_reply_and_entry_the_entry_comes_before_the_reply_leaves(club: Club) -> None:
    club.begun()
    club.node.close()
    asked = question(club.plan)
    names = ("visits", "spend", "score")
    np.savez(club.folders[0] / "asked.npz", people=club.tables[0].select(names), **asked.arrays)
    header = {"columns": names, "header": asked.header.model_dump()}
    command = [sys.executable, "-c", KILLED, str(club.folders[0]), json.dumps(header)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert club.logged() == []
    again = open_node(club.folders[0], club.tables[0])
    (charge,) = again.ledger.charges()
    first, second = again.door.release(asked), again.door.release(asked)
    assert (first.vector == second.vector).all()
    assert list(again.ledger.charges()) == [charge]
    (entry,) = club.logged()
    assert (entry["charge"], entry["question"]) == (charge.sequence, asked.digest)
    again.close()


@pytest.mark.parametrize("step", ["keep_cosigned", "append", "checkpoint", "inclusion", "consistency"])
def test_a_failure_in_the_middle_leaves_neither_entry_nor_cosignature(
    step: str, club: Club, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the log usable: the question asked again gets its reply and its entry, for the same charge."""
    club.witness()
    club.accept()
    club.node.log.take(club.hello(cosigned=club.note(1, 2)))
    before = club.entries(club.folders[0])
    real = getattr(AuditLog, step)

    def fails(log: AuditLog, *arguments: Any, **more: Any) -> Any:
        real(log, *arguments, **more)
        raise OutputError("the disk is full", place="log", fix="make room")

    monkeypatch.setattr(AuditLog, step, fails)
    with pytest.raises(OutputError, match="disk is full"):
        club.release()
    monkeypatch.undo()
    assert club.entries(club.folders[0]) == before
    engine = open_store(club.folders[0] / "log.sqlite", read_only=True)
    kept = AuditLog(engine, club.origin, Ed25519Signer(club.origin, club.key())).cosigned()
    engine.dispose()
    assert kept is not None
    assert quorum_for(club.charter, "bank 0").require(kept).size == 0
    (charge,) = club.node.ledger.charges()
    statement = Statement.from_bytes(club.release().statement)
    assert statement.index == 1
    assert list(club.node.ledger.charges()) == [charge]
    assert len(club.logged()) == 1
    club.witness()
    club.release(2)


# --- statements ------------------------------------------------------------------------------------------------------


def test_the_statement_proves_the_entry_of_its_release(club: Club) -> None:
    club.begun()
    quorum = quorum_for(club.charter, "bank 0")
    for attempt in (1, 2, 3):
        statement = Statement.from_bytes(club.release(attempt).statement)
        checkpoint, _ = open_checkpoint(statement.checkpoint, quorum.verifier)
        leaf = bytes.fromhex(statement.entry)
        proof = [bytes.fromhex(part) for part in statement.inclusion]
        assert verify_inclusion(leaf_hash(leaf), statement.index, checkpoint.size, proof, checkpoint.root)
        assert not verify_inclusion(leaf_hash(leaf + b" "), statement.index, checkpoint.size, proof, checkpoint.root)
        assert parse_leaf(leaf).entry == club.logged()[attempt - 1]
        assert parse_leaf(leaf).entry["question"] == question(club.plan, attempt).digest
        assert statement.cosigned is not None
        covered = quorum.require(statement.cosigned)
        assert covered.size == statement.index == attempt
        (growth,) = [one for one in statement.growth if one.old == covered.size]
        parts = [bytes.fromhex(part) for part in growth.proof]
        assert verify_consistency(covered.size, checkpoint.size, parts, covered.root, checkpoint.root)
        club.witness()


def test_statement_and_entry_hold_nothing_of_customers(club: Club) -> None:
    """Every field is known to whoever knows question and charge, but for a commitment that the salt keeps closed."""
    club.begun()
    commitments = set()
    for attempt in (1, 2):
        statement = Statement.from_bytes(club.release(attempt).statement)
        *_, charge = club.node.ledger.charges()
        entry = dict(parse_leaf(bytes.fromhex(statement.entry)).entry)
        reply = club.node.ledger.replay(charge.slot, charge.question)
        assert reply is not None
        opening = consent_opening(reply, QUERY.width)
        opened = bytes.fromhex(opening["salt"]) + bytes.fromhex(opening["consent_root"])
        assert entry["consent"] == hashlib.sha256(b"cohortium.consent-root/1\0" + opened).hexdigest()
        assert opening["consent_root"] == bytes(32).hex()
        assert opening["salt"] not in statement.to_bytes().decode()
        commitments.add(entry.pop("consent"))
        assert entry == {
            "event": "release",
            "charge": charge.sequence,
            "plan": club.plan.digest,
            "run": RUN,
            "phase": "marginals",
            "step": 0,
            "attempt": attempt,
            "question": question(club.plan, attempt).digest,
            "decision": "none",
            "mu2": str(charge.spend.mu2),
            "tv": str(charge.spend.tv),
        }
        club.witness()
    assert len(commitments) == 2, "equal roots give unequal commitments"


def test_an_entry_is_never_rewritten(club: Club) -> None:
    club.begun()
    club.release()
    entry = club.logged()[0]
    key = f"charge {entry['charge']}"
    club.node.log.record(key, entry)
    with pytest.raises(RefusedError, match="another entry was logged under this key"):
        club.node.log.record(key, {**entry, "tv": "1"})
    club.release()
    assert club.logged() == [entry]
