"""The guard over every reply: three possible replies, and nothing of an exception or a customer in them or in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohortium.client.app import make_client_app
from cohortium.client.node import Node
from cohortium.client.sums import NodeSums
from cohortium.models.marginals import Axis, MarginalsQuery
from cohortium.models.studies import phases
from cohortium.privacy.ledger import open_store
from cohortium.privacy.release import Door
from cohortium.privacy.secure_sum import Aggregator, SqlOnceStore, SumRun
from cohortium.privacy.table import CustomerTable
from cohortium.simulations.grid import run_in_process
from cohortium.study.errors import (
    BudgetError,
    CohortiumError,
    ContractError,
    DataError,
    Defect,
    OutputError,
    PlanError,
    RefusedError,
)
from cohortium.study.plan import Plan
from cohortium.study.question import (
    DECLINED,
    LogMessage,
    PlanQuestion,
    Question,
    QuestionHeader,
    Release,
    SumMessage,
    plain_reply,
    question_request,
    reply_kind,
    split_log,
    with_log,
)
from cohortium.study.witness import Growth, ToCosign, WitnessReply, WitnessRequest

Asker = Callable[..., Message]

QUERY = MarginalsQuery((Axis("visits", 0, 40, integer=True),))
SECRET = "customer 4711 spent 918273.55"
DECLINED_BYTES = plain_reply(DECLINED).deflate()


def question(of: Plan, **changes: Any) -> Question:
    spec = QUERY.spec()
    header: dict[str, Any] = {"plan": of.digest, "run": "0" * 32, "phase": "marginals", "step": 0, "attempt": 1}
    return Question(QuestionHeader(**{**header, "kind": spec.kind, "scalars": spec.scalars, **changes}), spec.arrays)


def plan_question(digest: str, run: str = "0" * 32) -> RecordDict:
    return PlanQuestion(digest, run, int(time.time())).to_record()


def asked(app: ClientApp, content: RecordDict, message_type: str = "query.answer") -> Message:
    """One message through a grid, as a coordinator sends it."""
    replies: list[Message] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, _context: Context) -> None:
        node = next(iter(grid.get_node_ids()))
        replies.extend(grid.send_and_receive([Message(content, node, message_type)]))

    run_in_process(server, app, nodes=1)
    return replies[0]


@pytest.fixture
def plan(make_plan: Callable[..., Plan]) -> Plan:
    return make_plan()


@pytest.fixture
def node(make_node: Callable[..., Node], make_people: Callable[..., CustomerTable], plan: Plan) -> Node:
    return make_node("north", make_people(), plan)


@pytest.fixture
def accepted(node: Node, plan: Plan) -> Node:
    """The institution once it accepted a run of the plan."""
    node.accept(PlanQuestion(plan.digest, "0" * 32, int(time.time())))
    return node


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG):
        yield caplog


def is_declined(reply: Message) -> bool:
    return not reply.has_error() and reply.content.deflate() == DECLINED_BYTES


def said(log: pytest.LogCaptureFixture) -> str:
    """Everything any logger said, tracebacks included."""
    return log.text + "".join(str(record.__dict__) for record in log.records)


# --- what is answered ------------------------------------------------------------------------------------------------


def test_an_approved_plan_is_accepted_and_another_declined(node: Node, plan: Plan) -> None:
    app = make_client_app(lambda _: node)
    yes = asked(app, plan_question(plan.digest), "query.plan")
    content, log = split_log(yes.content)
    assert reply_kind(content) == "accepted"
    assert log is not None
    assert node.door.has_sealed_message(log)
    for digest in ("sha256:" + "0" * 64, "", "x" * 1000):
        assert is_declined(asked(app, plan_question(digest), "query.plan"))


def test_a_replay_is_answered_with_the_same_bytes_and_charged_once(accepted: Node, plan: Plan) -> None:
    app = make_client_app(lambda _: accepted)
    content = question(plan).to_record()
    replies = [asked(app, content).content.deflate() for _ in range(3)]
    assert replies[0] == replies[1] == replies[2]
    assert len(list(accepted.ledger.charges())) == 1
    release = Release.from_record(asked(app, content).content, QUERY.width)
    assert accepted.door.has_sealed(release)
    assert release.question == question(plan).digest


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "unknown"},
        {"kind": "profiles"},
        {"phase": "unknown"},
        {"step": 1},
        {"attempt": 2},
        {"scalars": {}},
        {"scalars": {"features": ["no_such_column"]}},
        {"plan": "sha256:" + "1" * 64},
    ],
    ids=str,
)
def test_what_the_plan_does_not_foresee_is_declined_free_of_charge(
    changes: dict[str, Any], accepted: Node, plan: Plan
) -> None:
    assert is_declined(asked(make_client_app(lambda _: accepted), question(plan, **changes).to_record()))
    assert accepted.ledger.spent().mu2 == 0


def without(content: RecordDict, name: str) -> RecordDict:
    return RecordDict({key: content[key] for key in content if key != name})


def having(content: RecordDict, **records: Any) -> RecordDict:
    return RecordDict({**{key: content[key] for key in content}, **records})


BROKEN: dict[str, Callable[[RecordDict], RecordDict]] = {
    "nothing": lambda _: RecordDict(),
    "no question": lambda c: without(c, "question"),
    "no shapes": lambda c: without(c, "shapes"),
    "no arrays": lambda c: without(c, "arrays"),
    "a metric more": lambda c: having(c, extra=MetricRecord({"n": 1})),
    "a record of another kind": lambda c: having(c, question=MetricRecord({"json": 1})),
    "no json": lambda c: having(c, question=ConfigRecord({"json": "{"})),
    "another json": lambda c: having(c, question=ConfigRecord({"json": "[1]"})),
    "a number for json": lambda c: having(c, question=ConfigRecord({"json": 7})),
    "a very deep json": lambda c: having(c, question=ConfigRecord({"json": "[" * 100_000})),
    "other shapes": lambda c: having(c, shapes=ConfigRecord({"axes": [1, 5]})),
    "a shape that is a text": lambda c: having(c, shapes=ConfigRecord({"axes": "1,4"})),
    "another dtype": lambda c: having(c, arrays=ArrayRecord({"axes": Array(np.zeros((1, 4), np.float32))})),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_malformed_message_is_declined(name: str, accepted: Node, plan: Plan) -> None:
    reply = asked(make_client_app(lambda _: accepted), BROKEN[name](question(plan).to_record()))
    assert is_declined(reply)
    assert accepted.ledger.spent().mu2 == 0


GOOD_PLAN: dict[str, Any] = {"digest": "sha256:" + "0" * 64, "run": "0" * 32, "time": 1}


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"plan": ConfigRecord({})}),
        RecordDict({"plan": MetricRecord({"digest": 1})}),
        having(plan_question("sha256:" + "0" * 64), more=ConfigRecord({})),
        *(
            RecordDict({"plan": ConfigRecord({**GOOD_PLAN, **changes})})
            for changes in (
                {"digest": 7},
                {"digest": ["a"]},
                {"digest": GOOD_PLAN["digest"] + "\n"},
                {"run": 7},
                {"run": "0" * 31},
                {"run": "A" * 32},
                {"time": "now"},
                {"time": 1.5},
                {"time": True},
                {"more": 1},
            )
        ),
        *(
            RecordDict({"plan": ConfigRecord({k: v for k, v in GOOD_PLAN.items() if k != name})})
            for name in ("digest", "run", "time")
        ),
    ],
)
def test_a_malformed_plan_message_is_declined(
    content: RecordDict, node: Node, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """Before the node looks at it: as the node is asked nothing, approvals of other plans make no difference."""
    monkeypatch.setattr(Node, "accept", raising(AssertionError("the node was asked")))
    assert is_declined(asked(make_client_app(lambda _: node), content, "query.plan"))
    assert "AssertionError" not in said(log)
    assert node.ledger.reservations() == []


@pytest.mark.parametrize("kind", ["train", "evaluate", "query", "query.other", "train.answer"])
def test_no_other_message_reaches_a_handler(kind: str, node: Node, plan: Plan) -> None:
    reply = asked(make_client_app(lambda _: node), question(plan).to_record(), kind)
    assert reply.has_error()
    assert not reply.error.reason
    assert node.ledger.spent().mu2 == 0


# --- exceptions ------------------------------------------------------------------------------------------------------

OURS = (BudgetError, CohortiumError, ContractError, DataError, OutputError, PlanError, RefusedError)
OTHERS = (Defect, ValueError, KeyError, OSError, RuntimeError, MemoryError, ZeroDivisionError, AssertionError)


class HostileError(Exception):
    """An exception whose text, repr and arguments quote a customer, and whose text fails on top of it."""

    def __str__(self) -> str:
        raise ValueError(SECRET)

    def __repr__(self) -> str:
        return SECRET


@given(
    kind=st.sampled_from([*OTHERS, HostileError]),
    where=st.sampled_from(["release", "accept", "open"]),
    text=st.text(min_size=12, max_size=30, alphabet="äöüQXZ0123456789").map(lambda tail: SECRET + tail),
    chained=st.booleans(),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_exception_leaves_its_text_in_reply_or_log(
    kind: type[Exception],
    where: str,
    text: str,
    chained: bool,
    node: Node,
    plan: Plan,
    log: pytest.LogCaptureFixture,
) -> None:
    log.clear()
    error = kind(text)
    if chained:
        error.__cause__ = ValueError(text + " cause")
    with pytest.MonkeyPatch.context() as patch:
        if where == "release":
            patch.setattr(type(node.door), "release", raising(error))
        elif where == "accept":
            patch.setattr(type(node), "accept", raising(error))
        app = make_client_app(raising(error) if where == "open" else lambda _: node)
        content = question(plan).to_record()
        if where == "accept":
            content = plan_question(plan.digest)
        reply = asked(app, content, "query.plan" if where == "accept" else "query.answer")
    assert is_declined(reply)
    assert text not in said(log)
    assert SECRET not in said(log)
    assert kind.__name__ in log.text


@pytest.mark.parametrize("kind", OURS)
def test_our_own_refusals_stay_in_the_node_s_log(
    kind: type[CohortiumError],
    node: Node,
    plan: Plan,
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Our errors carry no customer value by construction, so the operator may read them; what caused them may."""
    error = kind("the reason", fix="the fix")
    error.__cause__ = ValueError(SECRET)
    monkeypatch.setattr(type(node.door), "release", raising(error))
    assert is_declined(asked(make_client_app(lambda _: node), question(plan).to_record()))
    assert "declined: the reason — fix: the fix" in log.text
    assert SECRET not in said(log)


def test_every_reason_looks_the_same_to_the_coordinator(
    accepted: Node, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_client_app(lambda _: accepted)
    replies = [asked(app, question(plan, phase="unknown").to_record()), asked(app, RecordDict())]
    for error in (BudgetError("a"), ValueError("b")):
        monkeypatch.setattr(type(accepted.door), "release", raising(error))
        replies.append(asked(app, question(plan).to_record()))
    assert len({reply.content.deflate() for reply in replies}) == 1
    assert {frozenset(vars(reply.metadata)) for reply in replies} == {frozenset(vars(replies[0].metadata))}


# --- replies the door did not seal -----------------------------------------------------------------------------------


def leaking(accepted: Node, monkeypatch: pytest.MonkeyPatch, content: Callable[[Release], RecordDict]) -> ClientApp:
    """An app whose answer handler replies with something else than the door's release."""
    real = type(accepted.door).release

    class Reply:
        def __init__(self, release: Release) -> None:
            self.release = release

        def to_record(self) -> RecordDict:
            return content(self.release)

    monkeypatch.setattr(type(accepted.door), "release", lambda door, asked, _sum: Reply(real(door, asked)))
    return make_client_app(lambda _: accepted)


def extra(release: Release, name: str, record: Any) -> RecordDict:
    content = release.to_record()
    content[name] = record
    return content


def in_header(release: Release, **more: Any) -> RecordDict:
    content = release.to_record()
    header = {"question": release.question, "seal": release.seal, "note": release.note, "statement": release.statement}
    content["release"] = ConfigRecord({**header, **more})
    return content


LEAKS: dict[str, Callable[[Release], RecordDict]] = {
    "one word changed": lambda r: replace(r, vector=r.vector + np.eye(1, len(r.vector), dtype=np.int64)[0]).to_record(),
    "words left out": lambda r: replace(r, vector=r.vector[:-1].copy()).to_record(),
    "words in another order": lambda r: replace(r, vector=r.vector[::-1].copy()).to_record(),
    "another question": lambda r: replace(r, question="sha256:" + "2" * 64).to_record(),
    "another seal": lambda r: replace(r, seal=bytes(32)).to_record(),
    "a short seal": lambda r: replace(r, seal=r.seal[:16]).to_record(),
    "metrics beside it": lambda r: extra(r, "metrics", MetricRecord({"customers": 300})),
    "a configuration beside it": lambda r: extra(r, "notes", ConfigRecord({"text": SECRET})),
    "arrays beside it": lambda r: extra(r, "raw", ArrayRecord({"rows": Array(np.zeros(3))})),
    "a count in the header": lambda r: in_header(r, customers=300),
    "a time in the header": lambda r: in_header(r, seconds=0.3),
    "a note in the header": lambda r: in_header(r, note=SECRET.encode()),
    "a note of the right length": lambda r: in_header(r, note=SECRET.encode().ljust(64)),
    "no note in the header": lambda r: RecordDict(
        {**r.to_record(), "release": ConfigRecord({"question": r.question, "seal": r.seal, "statement": r.statement})}
    ),
    "another statement": lambda r: in_header(r, statement=SECRET.encode()),
    "a longer statement": lambda r: in_header(r, statement=r.statement + SECRET.encode()),
    "a statement cut short": lambda r: in_header(r, statement=r.statement[:-1]),
    "no statement": lambda r: in_header(r, statement=b""),
    "a statement in the note's place": lambda r: in_header(r, note=r.statement[:64], statement=r.statement[64:]),
    "a statement that is a text": lambda r: in_header(r, statement=SECRET),
    "a message about logs that is not sealed": lambda r: with_log(r.to_record(), LogMessage(SECRET.encode())),
    "a message about logs under the release's seal": lambda r: with_log(r.to_record(), LogMessage(b"{}", r.seal)),
    "words as a message of a secure sum": lambda r: SumMessage(r.vector.tobytes(), r.seal).to_record(),
    "words beside the constant": lambda r: having(plain_reply(DECLINED), sum=r.to_record()["sum"]),
    "nothing": lambda _: RecordDict(),
    "another word": lambda _: RecordDict({"reply": ConfigRecord({"word": "maybe"})}),
    "a word and more": lambda _: RecordDict({"reply": ConfigRecord({"word": DECLINED, "why": SECRET})}),
    "words as a list": lambda _: RecordDict({"reply": ConfigRecord({"word": [DECLINED]})}),
    "a metric as reply": lambda _: RecordDict({"reply": MetricRecord({"word": 1})}),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_reply_that_the_door_did_not_seal_is_stopped(
    leak: str, accepted: Node, plan: Plan, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    reply = asked(leaking(accepted, monkeypatch, LEAKS[leak]), question(plan).to_record())
    assert is_declined(reply)
    assert SECRET not in said(log)


def test_another_array_beside_the_vector_is_stopped(
    accepted: Node, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def more(release: Release) -> RecordDict:
        content = release.to_record()
        content["sum"] = ArrayRecord({"vector": Array(release.vector), "rows": Array(np.zeros(3))})
        return content

    assert is_declined(asked(leaking(accepted, monkeypatch, more), question(plan).to_record()))


def test_a_release_of_another_node_s_door_is_stopped(
    accepted: Node,
    plan: Plan,
    make_node: Callable[..., Node],
    make_people: Callable[..., CustomerTable],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    south = make_node("south", make_people(seed=1), plan)
    south.accept(PlanQuestion(plan.digest, "0" * 32, int(time.time())))
    foreign = south.door.release(question(plan)).to_record()
    assert is_declined(asked(leaking(accepted, monkeypatch, lambda _: foreign), question(plan).to_record()))


def test_the_leak_harness_lets_the_door_s_own_reply_pass(
    accepted: Node, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the tests above would prove nothing."""
    reply = asked(leaking(accepted, monkeypatch, Release.to_record), question(plan).to_record())
    assert reply_kind(reply.content) == "release"


# --- secure sums -----------------------------------------------------------------------------------------------------

KEY_WAVES = ("query.share", "query.consent", "query.unmask")


@dataclass(frozen=True)
class Summing:
    """An institution of a federation with a secure sum, and the coordinator's side up to the first input wave."""

    plan: Plan
    nodes: list[Node]
    aggregator: Aggregator
    app: ClientApp
    witness: Callable[[], None]

    @property
    def node(self) -> Node:
        return self.nodes[0]

    def requests(self) -> dict[str, bytes]:
        """What the coordinator asks the first institution in every wave about keys, once all of them contributed."""
        asked_for = question(self.plan)
        attempt = self.aggregator.begin(0, asked_for.digest)
        for party, node in enumerate(self.nodes):
            release = node.door.release(asked_for, attempt.input_request(party))
            attempt.take_vector(party, release.vector, release.note)
        chosen = attempt.choose_survivors()
        self.witness()
        return {
            "query.share": self.aggregator.share_request(0),
            "query.consent": chosen,
            "query.unmask": attempt.unmask_request(),
        }


@pytest.fixture
def summing(
    make_plan: Callable[..., Plan],
    make_people: Callable[..., CustomerTable],
    make_members: Callable[..., Any],
    exchange: Callable[..., None],
    tmp_path: Path,
) -> Iterator[Summing]:
    plan = make_plan(trust="distributed", min_institutions=3)
    members = make_members([make_people(100, seed) for seed in range(3)], plan)
    exchange(members.nodes, plan)
    database = open_store(tmp_path / "coordinator.sqlite")
    aggregator = Aggregator(SumRun.of(plan, members.charter, "0" * 32), SqlOnceStore(database))
    for node in members.nodes:
        aggregator.introduce(node.accept(PlanQuestion(plan.digest, "0" * 32, int(time.time()))).payload)
    aggregator.close_roster()
    for party, node in enumerate(members.nodes):
        aggregator.take_offer(node.sums.share(aggregator.share_request(0)), party, 0)
    exchange(members.nodes, plan)
    app = make_client_app(lambda _: members.nodes[0])
    yield Summing(plan, members.nodes, aggregator, app, lambda: exchange(members.nodes, plan))
    database.dispose()


def test_a_plan_with_a_secure_sum_is_accepted_with_signed_keys_and_always_the_same(summing: Summing) -> None:
    replies = [asked(summing.app, plan_question(summing.plan.digest), "query.plan").content for _ in range(2)]
    assert replies[0].deflate() == replies[1].deflate()
    content, log = split_log(replies[0])
    assert reply_kind(content) == "secure-sum"
    message = SumMessage.from_record(content)
    assert summing.node.door.has_sealed_message(message)
    assert log is not None
    assert summing.node.door.has_sealed_message(log)
    assert summing.aggregator.introduce(message.payload) == "bank 0"


def test_a_secure_sum_is_answered_masked_and_noted_and_always_the_same(summing: Summing) -> None:
    attempt = summing.aggregator.begin(0, question(summing.plan).digest)
    content = question_request(question(summing.plan), attempt.input_request(0))
    replies = [asked(summing.app, content).content for _ in range(2)]
    assert replies[0].deflate() == replies[1].deflate()
    release = Release.from_record(replies[0], QUERY.width)
    assert summing.node.door.has_sealed(release)
    attempt.take_vector(0, release.vector, release.note)
    assert attempt.contributors == (0,)
    assert len(list(summing.node.ledger.charges())) == 1


def test_a_secure_sum_is_not_answered_in_the_clear_nor_a_clear_sum_masked(
    summing: Summing, node: Node, plan: Plan
) -> None:
    attempt = summing.aggregator.begin(0, question(summing.plan).digest)
    assert is_declined(asked(summing.app, question(summing.plan).to_record()))
    content = question_request(question(plan), attempt.input_request(0))
    assert is_declined(asked(make_client_app(lambda _: node), content))
    assert summing.node.ledger.spent().mu2 == node.ledger.spent().mu2 == 0


def test_keys_are_shared_for_no_more_rounds_than_the_plan_has_attempts(summing: Summing) -> None:
    """A coordinator cannot fill an institution's disk with offers."""
    attempts = summing.plan.max_attempts * sum(phase.rounds for phase in phases(summing.plan))
    for number, declined in ((attempts - 1, False), (attempts, True), (2**31 - 1, True)):
        content = SumMessage(summing.aggregator.share_request(number)).to_record()
        assert is_declined(asked(summing.app, content, "query.share")) == declined


def test_a_run_that_is_refused_leaves_nothing_behind(summing: Summing) -> None:
    with pytest.raises(BudgetError, match="another run has begun"):
        summing.node.accept(PlanQuestion(summing.plan.digest, "f" * 32, int(time.time())))
    assert summing.node.sums._store.find("f" * 32, -1, "keys") is None
    summing.witness()
    assert is_declined(asked(summing.app, plan_question(summing.plan.digest, "e" * 32), "query.plan"))


def test_every_wave_about_keys_is_answered_with_one_sealed_message(summing: Summing) -> None:
    for wave, request in summing.requests().items():
        replies = [asked(summing.app, SumMessage(request).to_record(), wave).content for _ in range(2)]
        assert replies[0].deflate() == replies[1].deflate()
        assert summing.node.door.has_sealed_message(SumMessage.from_record(replies[0]))


SUM_LEAKS: dict[str, Callable[[SumMessage], RecordDict]] = {
    "another payload": lambda m: replace(m, payload=SECRET.encode()).to_record(),
    "a byte more": lambda m: replace(m, payload=m.payload + b" ").to_record(),
    "a byte less": lambda m: replace(m, payload=m.payload[:-1]).to_record(),
    "no payload": lambda m: replace(m, payload=b"").to_record(),
    "another seal": lambda m: replace(m, seal=bytes(32)).to_record(),
    "no seal": lambda m: replace(m, seal=b"").to_record(),
    "a record beside it": lambda m: having(m.to_record(), notes=ConfigRecord({"text": SECRET})),
    "a metric beside it": lambda m: having(m.to_record(), metrics=MetricRecord({"customers": 300})),
    "a field beside it": lambda m: RecordDict(
        {"secure_sum": ConfigRecord({"payload": m.payload, "seal": m.seal, "customers": 300})}
    ),
    "a text for bytes": lambda m: RecordDict({"secure_sum": ConfigRecord({"payload": SECRET, "seal": m.seal})}),
    "in a metric": lambda _: RecordDict({"secure_sum": MetricRecord({"payload": 1, "seal": 2})}),
    "sealed as a release": lambda m: Release("secure-sum", np.zeros(3, dtype=np.int64), m.seal).to_record(),
}


def sum_leaking(monkeypatch: pytest.MonkeyPatch, content: Callable[[SumMessage], RecordDict]) -> None:
    """From now on every door's messages of secure sums leave as something else."""
    real = Door.seal_message

    class Reply:
        def __init__(self, message: SumMessage) -> None:
            self.message = message

        def to_record(self) -> RecordDict:
            return content(self.message)

    def seal(door: Door, message: Any) -> Any:
        sealed = real(door, message)
        return Reply(sealed) if isinstance(message, SumMessage) else sealed

    monkeypatch.setattr(Door, "seal_message", seal)


def test_a_secure_sum_s_reply_that_the_door_did_not_seal_is_stopped(
    summing: Summing, log: pytest.LogCaptureFixture
) -> None:
    contents = {wave: SumMessage(request).to_record() for wave, request in summing.requests().items()}
    contents["query.plan"] = plan_question(summing.plan.digest)
    for wave, content in contents.items():
        for name, leak in SUM_LEAKS.items():
            with pytest.MonkeyPatch.context() as patch:
                sum_leaking(patch, leak)
                assert is_declined(asked(summing.app, content, wave)), (wave, name)
    assert SECRET not in said(log)


def test_the_sum_leak_harness_lets_the_door_s_own_message_pass(
    summing: Summing, monkeypatch: pytest.MonkeyPatch
) -> None:
    sum_leaking(monkeypatch, SumMessage.to_record)
    for wave, request in summing.requests().items():
        assert reply_kind(asked(summing.app, SumMessage(request).to_record(), wave).content) == "secure-sum"
    reply = asked(summing.app, plan_question(summing.plan.digest), "query.plan")
    assert reply_kind(split_log(reply.content)[0]) == "secure-sum"


def test_a_message_sealed_by_another_door_is_stopped(summing: Summing, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = summing.nodes[1].door.seal_message(SumMessage(b"keys")).to_record()
    sum_leaking(monkeypatch, lambda _: foreign)
    assert is_declined(asked(summing.app, plan_question(summing.plan.digest), "query.plan"))


GARBAGE: dict[str, RecordDict] = {
    "nothing": RecordDict(),
    "a reply": plain_reply(DECLINED),
    "no bytes": SumMessage(b"").to_record(),
    "no text": SumMessage(b"\xff\xfe" * 20).to_record(),
    "a text": SumMessage(SECRET.encode()).to_record(),
    "no object": SumMessage(b"[1,2]").to_record(),
    "an empty object": SumMessage(b"{}").to_record(),
    "a number for a name": SumMessage(b'{"run":1,"round":0,"roster":{"introductions":[]}}').to_record(),
    "very deep": SumMessage(b"[" * 100_000).to_record(),
    "too long": SumMessage(b" " * (2**20 + 1)).to_record(),
    "a text for bytes": RecordDict({"secure_sum": ConfigRecord({"payload": SECRET, "seal": b""})}),
    "a seal of another length": SumMessage(b"{}", b"x").to_record(),
    "another record": RecordDict({"secure_sum": MetricRecord({"payload": 1})}),
    "a record more": having(SumMessage(b"{}").to_record(), notes=ConfigRecord({"text": SECRET})),
}


def test_garbage_about_keys_is_declined(summing: Summing, log: pytest.LogCaptureFixture) -> None:
    for wave in KEY_WAVES:
        for name, content in GARBAGE.items():
            assert is_declined(asked(summing.app, content, wave)), (wave, name)
    assert SECRET not in said(log)
    assert "internal error" not in log.text, "refused, not broken down"


def test_garbage_beside_a_question_is_declined_free_of_charge(summing: Summing, log: pytest.LogCaptureFixture) -> None:
    for name, garbage in GARBAGE.items():
        content = having(question(summing.plan).to_record(), **{key: garbage[key] for key in garbage})
        assert is_declined(asked(summing.app, content)), name
    assert SECRET not in said(log)
    assert summing.node.ledger.spent().mu2 == 0


def elsewhere(requests: dict[str, bytes], wave: str) -> dict[str, bytes]:
    """The request of a wave, as it would be for another wave, run or round, or in other bytes."""
    request = requests[wave]
    changed = {
        "another wave's": requests[KEY_WAVES[KEY_WAVES.index(wave) - 1]],
        "another run's": request.replace(b'"run":"' + b"0" * 32, b'"run":"' + b"1" * 32),
        "another round's": request.replace(b'"round":0', b'"round":1'),
        "cut short": request[:-1],
        "with more": request[:-1] + b',"z":1}',
        "in other bytes": request.replace(b'":', b'": ', 1),
    }
    assert request not in changed.values()
    if wave == "query.share":  # as an institution that missed a question is asked for the next round's keys
        del changed["another round's"]
    return changed


def test_what_was_meant_for_elsewhere_is_declined(summing: Summing) -> None:
    requests = summing.requests()
    for wave in KEY_WAVES:
        for name, request in elsewhere(requests, wave).items():
            assert is_declined(asked(summing.app, SumMessage(request).to_record(), wave)), (wave, name)


def test_no_exception_of_a_secure_sum_leaves_its_text(summing: Summing, log: pytest.LogCaptureFixture) -> None:
    for wave in ("share", "consent", "unmask"):
        for kind in (*OTHERS, HostileError):
            log.clear()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(NodeSums, wave, raising(kind(SECRET)))
                assert is_declined(asked(summing.app, SumMessage(b"{}").to_record(), f"query.{wave}"))
            assert SECRET not in said(log)
            assert kind.__name__ in log.text


# --- messages about logs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Witnessing:
    """Three institutions that witness each other's logs, of which the first is asked; nothing is cosigned yet."""

    plan: Plan
    nodes: list[Node]
    app: ClientApp
    cosigned: Callable[[], str]

    @property
    def node(self) -> Node:
        return self.nodes[0]

    def beside(self, **changes: Any) -> LogMessage:
        """What the coordinator sends with a question: the institution's checkpoint, cosigned by the others."""
        request = WitnessRequest(plan=self.plan.digest, cosigned=self.cosigned())
        return LogMessage(request.model_copy(update=changes).to_bytes())


@pytest.fixture
def witnessing(
    make_plan: Callable[..., Plan],
    make_people: Callable[..., CustomerTable],
    make_members: Callable[..., Any],
    cosigned: Callable[..., str],
) -> Witnessing:
    plan = make_plan()
    nodes = make_members([make_people(50, seed) for seed in range(3)], plan).nodes
    app = make_client_app(lambda _: nodes[0])
    return Witnessing(plan, nodes, app, lambda: cosigned(nodes[0], nodes[1:], plan))


def test_a_cosigned_checkpoint_beside_a_question_is_what_makes_it_answerable(
    witnessing: Witnessing, log: pytest.LogCaptureFixture
) -> None:
    requests = {
        "query.plan": plan_question(witnessing.plan.digest),
        "query.answer": question(witnessing.plan).to_record(),
    }
    for wave, content in requests.items():
        log.clear()
        before = witnessing.node.ledger.reservations(), witnessing.node.ledger.spent()
        assert is_declined(asked(witnessing.app, content, wave))
        assert "audit log" in log.text
        assert (witnessing.node.ledger.reservations(), witnessing.node.ledger.spent()) == before
        reply = asked(witnessing.app, with_log(content, witnessing.beside()), wave).content
        assert reply_kind(split_log(reply)[0]) == ("accepted" if wave == "query.plan" else "release")


NOT_BESIDE: dict[str, Callable[[Witnessing], LogMessage]] = {
    "a seal": lambda w: replace(w.beside(), seal=bytes(32)),
    "another plan": lambda w: w.beside(plan="sha256:" + "0" * 64),
    "no checkpoint": lambda w: w.beside(cosigned=None),
    "sizes to prove": lambda w: w.beside(growth_from=(1,)),
    "others' checkpoints": lambda w: w.beside(
        to_cosign=(ToCosign(growth=Growth(old=0), checkpoint=w.nodes[1].log.answer(hello(w)).checkpoint),)
    ),
    "another's checkpoint": lambda w: w.beside(cosigned=w.nodes[1].log.answer(hello(w)).checkpoint),
    "no note": lambda w: w.beside(cosigned=SECRET),
    "no message": lambda _: LogMessage(SECRET.encode()),
    "a byte more": lambda w: LogMessage(w.beside().payload + b" "),
}


def hello(witnessing: Witnessing) -> WitnessRequest:
    return WitnessRequest(plan=witnessing.plan.digest)


@pytest.mark.parametrize("name", NOT_BESIDE)
def test_what_does_not_belong_beside_a_question_is_declined_free_of_charge(
    name: str, witnessing: Witnessing, log: pytest.LogCaptureFixture
) -> None:
    """Although the log was witnessed before: it is the message beside the question that is refused."""
    for wave, content in (
        ("query.plan", plan_question(witnessing.plan.digest)),
        ("query.answer", question(witnessing.plan).to_record()),
    ):
        witnessing.node.log.answer(WitnessRequest(plan=witnessing.plan.digest, cosigned=witnessing.cosigned()))
        broken = NOT_BESIDE[name](witnessing)
        if wave == "query.answer":
            witnessing.node.accept(PlanQuestion(witnessing.plan.digest, "0" * 32, int(time.time())))
            witnessing.node.log.answer(WitnessRequest(plan=witnessing.plan.digest, cosigned=witnessing.cosigned()))
        assert is_declined(asked(witnessing.app, with_log(content, broken), wave))
        assert witnessing.node.ledger.spent().mu2 == 0
        assert SECRET not in said(log)
        assert "internal error" not in log.text
    assert not is_declined(asked(witnessing.app, content))


def test_the_witness_wave_is_answered_with_one_sealed_message(witnessing: Witnessing) -> None:
    content = LogMessage(hello(witnessing).to_bytes()).to_record()
    reply = asked(witnessing.app, content, "query.witness").content
    assert reply_kind(reply) == "log"
    message = LogMessage.from_record(reply)
    assert witnessing.node.door.has_sealed_message(message)
    assert not witnessing.nodes[1].door.has_sealed_message(message)
    assert not witnessing.node.door.has_sealed_message(SumMessage(message.payload, message.seal))
    assert WitnessReply.from_bytes(message.payload) == witnessing.node.log.answer(hello(witnessing))


def test_the_witness_wave_declines_what_it_is_not_asked_for(
    witnessing: Witnessing, log: pytest.LogCaptureFixture
) -> None:
    payload = hello(witnessing).to_bytes()
    others = WitnessRequest(plan="sha256:" + "0" * 64)
    garbage = {name: record["secure_sum"] for name, record in GARBAGE.items() if "secure_sum" in record}
    contents = {
        "a sealed request": LogMessage(payload, bytes(32)).to_record(),
        "a plan that is not approved": LogMessage(others.to_bytes()).to_record(),
        "about keys": SumMessage(payload).to_record(),
        "a record beside it": having(LogMessage(payload).to_record(), notes=ConfigRecord({"text": SECRET})),
        **{name: RecordDict({"log": record}) for name, record in garbage.items()},
    }
    for name, content in contents.items():
        assert is_declined(asked(witnessing.app, content, "query.witness")), name
    assert SECRET not in said(log)
    assert "internal error" not in log.text


LOG_LEAKS: dict[str, Callable[[LogMessage], RecordDict]] = {
    "another payload": lambda m: replace(m, payload=SECRET.encode()).to_record(),
    "a byte more": lambda m: replace(m, payload=m.payload + b" ").to_record(),
    "no payload": lambda m: replace(m, payload=b"").to_record(),
    "another seal": lambda m: replace(m, seal=bytes(32)).to_record(),
    "no seal": lambda m: replace(m, seal=b"").to_record(),
    "a field beside it": lambda m: RecordDict({"log": ConfigRecord({"payload": m.payload, "seal": m.seal, "n": 300})}),
    "a text for bytes": lambda m: RecordDict({"log": ConfigRecord({"payload": SECRET, "seal": m.seal})}),
    "a record beside it": lambda m: having(m.to_record(), notes=ConfigRecord({"text": SECRET})),
    "a metric beside it": lambda m: having(m.to_record(), metrics=MetricRecord({"customers": 300})),
}


def log_leaking(monkeypatch: pytest.MonkeyPatch, content: Callable[[LogMessage], RecordDict]) -> None:
    """From now on every door's messages about logs leave as something else."""
    real = Door.seal_message

    class Reply:
        def __init__(self, message: LogMessage) -> None:
            self.message = message

        def to_record(self) -> RecordDict:
            return content(self.message)

    def seal(door: Door, message: Any) -> Any:
        sealed = real(door, message)
        return Reply(sealed) if isinstance(message, LogMessage) else sealed

    monkeypatch.setattr(Door, "seal_message", seal)


def log_requests(witnessing: Witnessing) -> dict[str, RecordDict]:
    """The two waves that are answered with news of logs; the plan is admitted as often as it is asked about."""
    return {
        "query.witness": LogMessage(hello(witnessing).to_bytes()).to_record(),
        "query.plan": with_log(plan_question(witnessing.plan.digest), witnessing.beside()),
    }


@pytest.mark.parametrize("leak", LOG_LEAKS)
def test_a_message_about_logs_that_the_door_did_not_seal_is_stopped(
    leak: str, witnessing: Witnessing, log: pytest.LogCaptureFixture
) -> None:
    """By itself, and beside the reply to a plan."""
    foreign = witnessing.nodes[1].door.seal_message(LogMessage(b"{}"))
    for make in (LOG_LEAKS[leak], lambda _: foreign.to_record()):
        for wave, content in log_requests(witnessing).items():
            with pytest.MonkeyPatch.context() as patch:
                log_leaking(patch, make)
                assert is_declined(asked(witnessing.app, content, wave)), wave
    assert SECRET not in said(log)


def test_the_log_leak_harness_lets_the_door_s_own_message_pass(
    witnessing: Witnessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_leaking(monkeypatch, LogMessage.to_record)
    for wave, content in log_requests(witnessing).items():
        reply = asked(witnessing.app, content, wave).content
        assert ("log" if wave == "query.witness" else "accepted") == reply_kind(split_log(reply)[0])


def test_no_exception_about_logs_leaves_its_text(witnessing: Witnessing, log: pytest.LogCaptureFixture) -> None:
    content = LogMessage(hello(witnessing).to_bytes()).to_record()
    for kind in (*OTHERS, HostileError):
        log.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(witnessing.node.log), "answer", raising(kind(SECRET)))
            assert is_declined(asked(witnessing.app, content, "query.witness"))
        assert SECRET not in said(log)
        assert kind.__name__ in log.text
