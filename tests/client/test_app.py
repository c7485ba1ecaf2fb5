"""The guard over every reply: three possible replies, and nothing of an exception or a customer in them or in a log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
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
from cohortium.models.marginals import Axis, MarginalsQuery
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
from cohortium.study.question import DECLINED, Question, QuestionHeader, Release, plain_reply, reply_kind

Asker = Callable[..., Message]

QUERY = MarginalsQuery((Axis("visits", 0, 40, integer=True),))
SECRET = "customer 4711 spent 918273.55"
DECLINED_BYTES = plain_reply(DECLINED).deflate()


def question(of: Plan, **changes: Any) -> Question:
    spec = QUERY.spec()
    header: dict[str, Any] = {"plan": of.digest, "run": "0" * 32, "phase": "marginals", "step": 0, "attempt": 1}
    return Question(QuestionHeader(**{**header, "kind": spec.kind, "scalars": spec.scalars, **changes}), spec.arrays)


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
    yes = asked(app, RecordDict({"plan": ConfigRecord({"digest": plan.digest})}), "query.plan")
    assert reply_kind(yes.content) == "accepted"
    for digest in ("sha256:" + "0" * 64, "", "x" * 1000):
        assert is_declined(asked(app, RecordDict({"plan": ConfigRecord({"digest": digest})}), "query.plan"))


def test_a_replay_is_answered_with_the_same_bytes_and_charged_once(node: Node, plan: Plan) -> None:
    app = make_client_app(lambda _: node)
    content = question(plan).to_record()
    replies = [asked(app, content).content.deflate() for _ in range(3)]
    assert replies[0] == replies[1] == replies[2]
    assert len(list(node.ledger.charges())) == 1
    release = Release.from_record(asked(app, content).content, QUERY.width)
    assert node.door.has_sealed(release)
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
    changes: dict[str, Any], node: Node, plan: Plan
) -> None:
    assert is_declined(asked(make_client_app(lambda _: node), question(plan, **changes).to_record()))
    assert node.ledger.spent().mu2 == 0


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
def test_a_malformed_message_is_declined(name: str, node: Node, plan: Plan) -> None:
    reply = asked(make_client_app(lambda _: node), BROKEN[name](question(plan).to_record()))
    assert is_declined(reply)
    assert node.ledger.spent().mu2 == 0


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"plan": ConfigRecord({})}),
        RecordDict({"plan": ConfigRecord({"digest": 7})}),
        RecordDict({"plan": ConfigRecord({"digest": ["a"]})}),
        RecordDict({"plan": ConfigRecord({"digest": "a", "more": 1})}),
        RecordDict({"plan": MetricRecord({"digest": 1})}),
    ],
)
def test_a_malformed_plan_message_is_declined(content: RecordDict, node: Node) -> None:
    assert is_declined(asked(make_client_app(lambda _: node), content, "query.plan"))


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


def raising(error: BaseException) -> Callable[[Any], Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


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
            content = RecordDict({"plan": ConfigRecord({"digest": plan.digest})})
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
    node: Node, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_client_app(lambda _: node)
    replies = [asked(app, question(plan, phase="unknown").to_record()), asked(app, RecordDict())]
    for error in (BudgetError("a"), ValueError("b")):
        monkeypatch.setattr(type(node.door), "release", raising(error))
        replies.append(asked(app, question(plan).to_record()))
    assert len({reply.content.deflate() for reply in replies}) == 1
    assert {frozenset(vars(reply.metadata)) for reply in replies} == {frozenset(vars(replies[0].metadata))}


# --- replies the door did not seal -----------------------------------------------------------------------------------


def leaking(node: Node, monkeypatch: pytest.MonkeyPatch, content: Callable[[Release], RecordDict]) -> ClientApp:
    """An app whose answer handler replies with something else than the door's release."""
    real = type(node.door).release

    class Reply:
        def __init__(self, release: Release) -> None:
            self.release = release

        def to_record(self) -> RecordDict:
            return content(self.release)

    monkeypatch.setattr(type(node.door), "release", lambda door, asked: Reply(real(door, asked)))
    return make_client_app(lambda _: node)


def extra(release: Release, name: str, record: Any) -> RecordDict:
    content = release.to_record()
    content[name] = record
    return content


def in_header(release: Release, **more: Any) -> RecordDict:
    content = release.to_record()
    content["release"] = ConfigRecord({"question": release.question, "seal": release.seal, **more})
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
    "nothing": lambda _: RecordDict(),
    "another word": lambda _: RecordDict({"reply": ConfigRecord({"word": "maybe"})}),
    "a word and more": lambda _: RecordDict({"reply": ConfigRecord({"word": DECLINED, "why": SECRET})}),
    "words as a list": lambda _: RecordDict({"reply": ConfigRecord({"word": [DECLINED]})}),
    "a metric as reply": lambda _: RecordDict({"reply": MetricRecord({"word": 1})}),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_reply_that_the_door_did_not_seal_is_stopped(
    leak: str, node: Node, plan: Plan, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    reply = asked(leaking(node, monkeypatch, LEAKS[leak]), question(plan).to_record())
    assert is_declined(reply)
    assert SECRET not in said(log)


def test_another_array_beside_the_vector_is_stopped(node: Node, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def more(release: Release) -> RecordDict:
        content = release.to_record()
        content["sum"] = ArrayRecord({"vector": Array(release.vector), "rows": Array(np.zeros(3))})
        return content

    assert is_declined(asked(leaking(node, monkeypatch, more), question(plan).to_record()))


def test_a_release_of_another_node_s_door_is_stopped(
    node: Node,
    plan: Plan,
    make_node: Callable[..., Node],
    make_people: Callable[..., CustomerTable],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    foreign = make_node("south", make_people(seed=1), plan).door.release(question(plan)).to_record()
    assert is_declined(asked(leaking(node, monkeypatch, lambda _: foreign), question(plan).to_record()))


def test_the_leak_harness_lets_the_door_s_own_reply_pass(
    node: Node, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the tests above would prove nothing."""
    reply = asked(leaking(node, monkeypatch, Release.to_record), question(plan).to_record())
    assert reply_kind(reply.content) == "release"
