"""The coordinator's part in witnessing: nothing unwitnessed is taken, and nobody alone can stop the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from cohortium.governance.log import (
    AuditLog,
    Cosigner,
    Ed25519Signer,
    Note,
    log_origin,
    open_statement,
    parse_checkpoint,
    parse_note,
    quorum_for,
)
from cohortium.privacy.ledger import open_store
from cohortium.privacy.secure_sum import SqlOnceStore
from cohortium.server.witnesses import Contribution, KeptStatements, Witnesses
from cohortium.study.charter import parse_charter
from cohortium.study.errors import RefusedError
from cohortium.study.question import Question, QuestionHeader
from cohortium.study.witness import Growth, Statement, Witnessed, WitnessReply, WitnessRequest

PLAN, RUN = "sha256:" + "1" * 64, "ab" * 16
BANKS = ("bank 0", "bank 1", "bank 2", "bank 3")


def question(step: int, **changes: Any) -> Question:
    header = {"plan": PLAN, "run": RUN, "phase": "p", "step": step, "attempt": 1, "kind": "k", **changes}
    return Question(QuestionHeader(**header))


class Talk:
    """A coordinator and four institutions that answer it directly.

    `absent` hear nothing; `changed` says what becomes of an institution's reply about logs.
    """

    def __init__(self, fakes: Any, log: AuditLog, store: Engine) -> None:
        self.fakes, self.log, self.store = fakes, log, SqlOnceStore(store)
        self.banks = {bank.name: bank for bank in fakes.banks}
        self.absent: set[str] = set()
        self.changed: dict[str, Callable[[WitnessReply], WitnessReply]] = {}
        self.begin()

    def begin(self) -> None:
        """A coordinator that remembers nothing but its log greets everybody."""
        self.witnesses = Witnesses(PLAN, RUN, self.fakes.charter, self.log, self.store, self.ask)
        replies = self.ask(dict.fromkeys(self.banks, WitnessRequest(plan=PLAN)))
        for name, reply in replies.items():
            assert self.witnesses.who(reply) == name
        self.witnesses.members = tuple(replies)
        self.witnesses.exchange()
        for name in replies:
            self.witnesses.settle(name)

    def ask(self, requests: Mapping[str, WitnessRequest]) -> dict[str, WitnessReply]:
        there = {name: one for name, one in requests.items() if name not in self.absent}
        read = {name: WitnessRequest.from_bytes(one.to_bytes()) for name, one in there.items()}
        replies = {name: self.banks[name].log.answer(one) for name, one in read.items()}
        return {name: self.changed.get(name, lambda same: same)(reply) for name, reply in replies.items()}

    def statement(self, name: str, asked: Question) -> Statement:
        """What an honest institution says beside its answer, given what comes with the question."""
        bank, beside = self.banks[name], self.witnesses.request_for(name)
        if beside is not None:
            with suppress(RefusedError):  # a rewritten log does not take what others cosigned of the old one
                bank.log.take(WitnessRequest.from_bytes(beside.payload))
        said: Statement = bank.statement(asked)
        return said

    def round(self, asked: Question, says: Mapping[str, bytes] | None = None) -> list[str]:
        """One question to all who are there; whose contributions were taken."""
        said = {name: self.statement(name, asked).to_bytes() for name in self.banks if name not in self.absent}
        taken: list[Contribution] = []
        for name, statement in {**said, **(says or {})}.items():
            try:
                taken.append(self.witnesses.contribution(name, statement, asked))
            except RefusedError:
                continue
        self.witnesses.record(asked, taken)
        self.witnesses.exchange()
        return [one.institution for one in taken]

    def cosigners(self, name: str) -> set[str]:
        """Who cosigned the newest checkpoint of an institution's log that it was told of."""
        return set(quorum_for(self.fakes.charter, name).cosigners(self.statement(name, question(99)).cosigned or ""))

    def own_log(self, name: str) -> AuditLog:
        """An institution's log."""
        log, _ = self.banks[name].log._parts(self.fakes.charter)
        assert isinstance(log, AuditLog)
        return log


def witness_names(*names: str) -> set[str]:
    return {log_origin("fakes", name) for name in names}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Engine]:
    store = open_store(tmp_path / "coordinator.sqlite")
    yield store
    store.dispose()


@pytest.fixture
def talk(make_fakes: Callable[..., Any], coordinator_log: Callable[[Engine, str], AuditLog], store: Engine) -> Talk:
    return Talk(make_fakes(4), coordinator_log(store, "fakes"), store)


@pytest.fixture(scope="module")
def lasting(
    make_lasting_fakes: Callable[..., Any],
    coordinator_log: Callable[[Engine, str], AuditLog],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Talk]:
    """A run that goes on from one test to the next; its last question was answered by all."""
    store = open_store(tmp_path_factory.mktemp("coordinator") / "coordinator.sqlite")
    talk = Talk(make_lasting_fakes(4), coordinator_log(store, "fakes"), store)
    assert talk.round(question(0)) == list(BANKS)
    yield talk
    store.dispose()


# --- what is taken ----------------------------------------------------------------------------------------------------


def test_honest_contributions_are_taken_question_after_question(talk: Talk) -> None:
    for step in range(4):
        assert talk.round(question(step)) == list(BANKS)
    entries = [one.entry for one in talk.log.entries(0, talk.log.size)]
    assert [(one["event"], one["question"]) for one in entries] == [
        ("question", question(step).digest) for step in range(4)
    ]
    assert set(entries[-1]["contributions"]) == set(BANKS)


def cosigned_by(talk: Talk, name: str, seconds: int, note: str) -> str:
    """A checkpoint with one more cosignature of that institution."""
    origin = log_origin("fakes", name)
    return parse_note(note).signed(Cosigner(origin, talk.banks[name].key, seconds)).to_text()


def bare(said: Statement) -> str:
    """The cosigned checkpoint without the cosignatures."""
    note = parse_note(said.cosigned or "")
    return replace(note, signatures=note.signatures[:1]).to_text()


def with_cosigned(note: Callable[[Talk, Statement, Question], str | None]) -> Callable[..., bytes]:
    return lambda talk, said, asked, **_: said.model_copy(update={"cosigned": note(talk, said, asked)}).to_bytes()


def with_entry(**changes: Any) -> Callable[..., bytes]:
    """The honest statement, of an entry that says something else."""

    def make(talk: Talk, said: Statement, asked: Question, **_: Any) -> bytes:
        lie: Statement = talk.banks["bank 0"].statement(asked, **changes)
        return lie.to_bytes()

    return make


def of_another_question(later: int = 0, **changes: Any) -> Callable[..., bytes]:
    return lambda talk, asked, **_: (
        talk.banks["bank 0"].statement(question(asked.header.step + later, **changes)).to_bytes()
    )


def forged(talk: Talk, said: Statement, **_: Any) -> bytes:
    """The checkpoint under a key of somebody else."""
    origin = log_origin("fakes", "bank 0")
    note = parse_note(said.checkpoint)
    other = replace(note, signatures=()).signed(Ed25519Signer(origin, talk.banks["bank 1"].key))
    return said.model_copy(update={"checkpoint": other.to_text()}).to_bytes()


def forked(talk: Talk, said: Statement, asked: Question, tmp_path: Path) -> bytes:
    """The entry in a log that others never saw, longer than the one they cosigned."""
    fork = talk.banks["bank 0"].another_log(tmp_path / "fork")
    for step in range(1000, 1000 + talk.own_log("bank 0").size + 1):
        talk.banks["bank 0"].statement(question(step), log=fork)
    lie: Statement = talk.banks["bank 0"].statement(asked, log=fork)
    fork.close()
    return lie.model_copy(update={"cosigned": said.cosigned, "growth": said.growth}).to_bytes()


def changed_hash(said: Statement, **_: Any) -> bytes:
    first = ("0" if said.inclusion[0][0] != "0" else "1") + said.inclusion[0][1:]
    return said.model_copy(update={"inclusion": (first, *said.inclusion[1:])}).to_bytes()


def other_index(said: Statement, **_: Any) -> bytes:
    return said.model_copy(update={"index": said.index - 1}).to_bytes()


def shorter_proof(said: Statement, **_: Any) -> bytes:
    return said.model_copy(update={"inclusion": said.inclusion[:-1]}).to_bytes()


def no_growth(said: Statement, **_: Any) -> bytes:
    return said.model_copy(update={"growth": ()}).to_bytes()


def spaced(said: Statement, **_: Any) -> bytes:
    return json.dumps(json.loads(said.to_bytes())).encode()


LIES: dict[str, Callable[..., bytes]] = {
    "no statement": lambda **_: b"",
    "no JSON": lambda **_: b"customer 4711",
    "half a statement": lambda said, **_: said.to_bytes()[:-1],
    "not canonical": spaced,
    "an object": lambda **_: b"{}",
    "no cosigned checkpoint": with_cosigned(lambda *_: None),
    "no note": with_cosigned(lambda *_: "customer 4711"),
    "cosigned by nobody": with_cosigned(lambda _, said, __: bare(said)),
    "cosigned by one": with_cosigned(lambda talk, said, _: cosigned_by(talk, "bank 1", 7, bare(said))),
    "cosigned twice by one": with_cosigned(
        lambda talk, said, _: cosigned_by(talk, "bank 1", 8, cosigned_by(talk, "bank 1", 7, bare(said)))
    ),
    "cosigned by one and itself": with_cosigned(
        lambda talk, said, _: cosigned_by(talk, "bank 0", 8, cosigned_by(talk, "bank 1", 7, bare(said)))
    ),
    "a cosignature of something else": with_cosigned(
        lambda talk, said, asked: replace(
            parse_note(bare(said)),
            signatures=(
                *parse_note(bare(said)).signatures,
                *parse_note(talk.statement("bank 1", asked).cosigned or "").signatures,
            ),
        ).to_text()
    ),
    "another's cosigned checkpoint": with_cosigned(lambda talk, _, asked: talk.statement("bank 1", asked).cosigned),
    "a checkpoint of a wrong key": forged,
    "another's log": lambda talk, asked, **_: talk.statement("bank 1", asked).to_bytes(),
    "a log that others never saw": forked,
    "without the proof of growth": no_growth,
    "a wrong inclusion proof": changed_hash,
    "an inclusion proof that is too short": shorter_proof,
    "another place in the log": other_index,
    "the question before": of_another_question(-1),
    "the next attempt": of_another_question(attempt=2),
    "another run": of_another_question(run="cd" * 16),
    "another plan": of_another_question(plan="sha256:" + "2" * 64),
    "another phase": with_entry(phase="q"),
    "another event": with_entry(event="admission"),
    "another digest": with_entry(question=question(999).digest),
    "more than it should say": with_entry(customer="4711"),
    "a decision that is none": with_entry(decision=1),
    "no commitment": with_entry(consent=""),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_contribution_that_its_log_does_not_bear_out_is_not_taken_and_the_others_go_on(
    lie: str, lasting: Talk, tmp_path: Path
) -> None:
    talk, step = lasting, lasting.log.size
    asked = question(step)
    said = talk.statement("bank 0", asked)
    made = LIES[lie](talk=talk, said=said, asked=asked, tmp_path=tmp_path)
    assert made != said.to_bytes()
    assert talk.round(asked, {"bank 0": made}) == list(BANKS[1:])
    assert set(talk.log.entry(step).entry["contributions"]) == set(BANKS[1:])
    later = question(step + 1)
    with pytest.raises(RefusedError):  # nor is it taken later
        talk.witnesses.contribution("bank 0", made, later)
    assert talk.round(later) == list(BANKS), "what was never taken is no reason to leave"


def test_a_contribution_whose_log_was_last_witnessed_before_the_question_before_is_not_taken(talk: Talk) -> None:
    """Everything else about it holds: a quorum cosigned the older checkpoint, and the log continues it."""
    talk.round(question(0))
    before = talk.statement("bank 0", question(1)).cosigned
    talk.round(question(1))
    said = talk.statement("bank 0", question(2))
    own = talk.own_log("bank 0")
    proof = tuple(part.hex() for part in own.consistency(1, own.size))
    late = said.model_copy(update={"cosigned": before, "growth": (Growth(old=1, proof=proof),)})
    assert talk.round(question(2), {"bank 0": late.to_bytes()}) == list(BANKS[1:])
    talk.witnesses._logs[log_origin("fakes", "bank 0")].floor = 1
    assert talk.witnesses.contribution("bank 0", late.to_bytes(), question(2)).institution == "bank 0", "but for that"


# --- logs that shrink or fork -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [1, 2, 6], ids=["shrunk", "of the same size", "forked"])
def test_an_institution_that_rewrote_its_log_is_out_and_the_others_go_on(
    entries: int, talk: Talk, tmp_path: Path
) -> None:
    for step in range(2):
        talk.round(question(step))
    liar = talk.banks["bank 0"]
    kept = talk.statement("bank 0", question(9)).cosigned
    liar.log = liar.another_log(tmp_path / "fork")
    for step in range(10, 10 + entries):
        liar.statement(question(step))
    for step in range(2, 5):
        lie = liar.statement(question(step)).model_copy(update={"cosigned": kept})
        assert talk.round(question(step), {"bank 0": lie.to_bytes()}) == list(BANKS[1:])
    assert talk.witnesses.lacking(BANKS[1:]) == []
    talk.begin()
    assert talk.witnesses.lacking(BANKS) == ["bank 0"], "nor does another coordinator take it"
    assert talk.round(question(5)) == list(BANKS[1:])


# --- nobody alone can stop the others ---------------------------------------------------------------------------------


def garbage(talk: Talk, name: str) -> str:
    """A cosignature line of an institution's key, over something else."""
    cosigner = Cosigner(log_origin("fakes", name), talk.banks[name].key, 7)
    return Note("something else\n").signed(cosigner).signatures[0].to_line()


def test_a_cosignature_that_carries_another_s_forged_one_counts_for_nothing(talk: Talk) -> None:
    def smuggle(reply: WitnessReply) -> WitnessReply:
        lines = [
            one if one.line is None else Witnessed(log=one.log, size=one.size, line=one.line + garbage(talk, "bank 2"))
            for one in reply.witnessed
        ]
        return reply.model_copy(update={"witnessed": tuple(lines)})

    talk.changed = {"bank 1": smuggle}
    for step in range(3):
        assert talk.round(question(step)) == list(BANKS)
    assert talk.cosigners("bank 0") == witness_names("bank 2", "bank 3")


def test_a_checkpoint_that_carries_another_s_forged_cosignature_harms_nobody(talk: Talk) -> None:
    def decorate(reply: WitnessReply) -> WitnessReply:
        return reply.model_copy(update={"checkpoint": reply.checkpoint + garbage(talk, "bank 2")})

    talk.changed = {"bank 0": decorate}
    talk.begin()
    for step in range(3):
        assert talk.round(question(step)) == list(BANKS)
    assert talk.witnesses.lacking(BANKS) == []


def test_an_institution_cannot_spoil_another_s_contribution_with_its_statement(talk: Talk) -> None:
    asked = question(0)
    said = talk.statement("bank 1", asked).to_bytes()
    for _ in range(2):
        with pytest.raises(RefusedError):
            talk.witnesses.contribution("bank 0", said, asked)
    assert talk.witnesses.contribution("bank 1", said, asked).institution == "bank 1"


def test_a_log_of_nobody_s_is_refused(talk: Talk, tmp_path: Path) -> None:
    stranger = talk.log.checkpoint()
    with pytest.raises(RefusedError, match="does not name"):
        talk.witnesses.who(WitnessReply(checkpoint=stranger))
    members = talk.fakes.charter.to_json()
    members["institutions"][0]["identity"] = None
    charter = parse_charter(members)
    witnesses = Witnesses(PLAN, RUN, charter, talk.log, talk.store, talk.ask)
    with pytest.raises(RefusedError, match="does not name"):
        witnesses.who(talk.banks["bank 0"].log.answer(WitnessRequest(plan=PLAN)))


# --- who was away, and who forgot -------------------------------------------------------------------------------------


def test_a_witness_that_was_away_catches_up_from_what_it_knew(talk: Talk) -> None:
    talk.round(question(0))
    talk.absent = {"bank 3"}
    for step in range(1, 4):
        assert talk.round(question(step)) == list(BANKS[:3])
        assert talk.cosigners("bank 0") <= witness_names("bank 1", "bank 2", "bank 3")
    talk.absent = set()
    origin = log_origin("fakes", "bank 0")
    asked: list[int] = []
    real = talk.ask

    def ask(requests: Mapping[str, WitnessRequest]) -> dict[str, WitnessReply]:
        given = requests.get("bank 3")
        asked.extend(one.growth.old for one in (given.to_cosign if given else ()) if one.checkpoint.startswith(origin))
        return real(requests)

    talk.witnesses._ask = ask
    talk.witnesses.exchange()
    assert asked == [1], "once, from the size that it cosigned last"
    assert talk.round(question(4)) == list(BANKS)
    assert talk.cosigners("bank 0") == witness_names("bank 1", "bank 2", "bank 3")


@pytest.mark.parametrize("recorded", [False, True], ids=["before the exchange", "after it"])
def test_a_coordinator_that_lost_its_memory_goes_on(recorded: bool, talk: Talk) -> None:
    talk.round(question(0))
    said = {name: talk.statement(name, question(1)).to_bytes() for name in BANKS}
    if recorded:
        assert talk.round(question(1), said) == list(BANKS)
    talk.begin()
    assert talk.witnesses.lacking(BANKS) == []
    again = {name: talk.statement(name, question(1)) for name in BANKS}
    assert talk.round(question(1)) == list(BANKS)
    assert {name: one.entry for name, one in again.items()} == {
        name: Statement.from_bytes(one).entry for name, one in said.items()
    }
    assert talk.round(question(2)) == list(BANKS)
    assert [talk.own_log(name).size for name in BANKS] == [3] * 4, "one entry for each question, asked twice or not"


@pytest.mark.parametrize("lost", BANKS)
def test_a_log_that_grew_unseen_is_cosigned_in_the_same_exchange(lost: str, talk: Talk) -> None:
    """Its answer never arrived: the others cosign what it says that it has now."""
    rest = [name for name in BANKS if name != lost]
    for step in range(0, 4, 2):
        assert talk.round(question(step), {lost: b""}) == rest
        assert talk.witnesses.lacking(BANKS) == []
        assert talk.round(question(step + 1)) == list(BANKS)


# --- the end ----------------------------------------------------------------------------------------------------------


def test_the_last_exchange_covers_the_last_entries_and_the_coordinator_s_own(talk: Talk) -> None:
    for step in range(3):
        talk.round(question(step))
    assert talk.log.cosigned() is None
    talk.witnesses.close("sha256:" + "9" * 64)
    for name in BANKS:
        own = talk.own_log(name)
        kept = own.cosigned()
        assert kept is not None
        assert (parse_checkpoint(parse_note(kept).text).size, own.size) == (3, 3)
        assert quorum_for(talk.fakes.charter, name).satisfied(kept)
    kept = talk.log.cosigned()
    assert kept is not None
    assert parse_checkpoint(parse_note(kept).text).size == talk.log.size == 4
    assert quorum_for(talk.fakes.charter, None).cosigners(kept) == witness_names(*BANKS)
    assert talk.log.entry(3).entry == {
        "event": "released",
        "plan": PLAN,
        "run": RUN,
        "released": "sha256:" + "9" * 64,
    }
    talk.witnesses.close("sha256:" + "9" * 64)
    assert talk.log.size == 4, "a resumed run ends once"


# --- what is kept for evidence ----------------------------------------------------------------------------------------


def test_statements_and_last_cosignatures_are_kept_for_evidence(talk: Talk) -> None:
    """Of those alone whose contributions were taken; of the last cosignatures the first that were kept."""
    kept = KeptStatements(talk.store, RUN)
    assert kept.closed() == {}
    talk.round(question(0))
    talk.round(question(1), {"bank 2": b"{}"})
    taken = ("bank 0", "bank 1", "bank 3")
    assert kept.of(question(1).digest, BANKS) == {}
    said = kept.of(question(1).digest, taken)
    assert set(said) == set(taken)
    for name, statement in said.items():
        stated = open_statement(statement, quorum_for(talk.fakes.charter, name))
        assert stated.leaf.entry["question"] == question(1).digest
    talk.witnesses.close("sha256:" + "2" * 64)
    closed = kept.closed()
    assert set(closed) == set(BANKS)
    for name, note in closed.items():
        assert quorum_for(talk.fakes.charter, name).require(note).size == talk.own_log(name).size
    talk.statement("bank 0", question(2))
    talk.begin()
    talk.witnesses.close("sha256:" + "2" * 64)
    assert kept.closed() == closed
