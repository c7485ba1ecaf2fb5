"""Asking institutions and adding up what they release: who misbehaves leaves, who is missing is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cohortium.server import federation as module
from cohortium.server.federation import Federation, Gathering, OpenFederation, gather_federation
from cohortium.simulations.grid import run_in_process
from cohortium.study.charter import Charter
from cohortium.study.errors import RefusedError
from cohortium.study.plan import Plan
from cohortium.study.question import ACCEPTED, DECLINED, Question, QuestionHeader, Release, SumMessage, plain_reply

WIDTH = 5
RUN = "ab" * 16
QUESTION = Question(
    QuestionHeader(plan="sha256:" + "0" * 64, run="0" * 32, phase="p", step=0, attempt=1, kind="k"), {"a": np.ones(2)}
)
Answer = Callable[[Question], RecordDict]


def release(vector: NDArray[np.int64], question: str | None = None) -> Answer:
    return lambda asked: Release(question or asked.digest, vector, bytes(32)).to_record()


def fixed(content: RecordDict) -> Answer:
    return lambda _: content


def raising(_: Question) -> RecordDict:
    raise ValueError("customer 4711")


def institution(answer: Answer, accepts: Callable[[], RecordDict] = lambda: plain_reply(ACCEPTED)) -> ClientApp:
    app = ClientApp()

    @app.query("plan")
    def plan(message: Message, _: Context) -> Message:
        return Message(accepts(), reply_to=message)

    @app.query("answer")
    def give(message: Message, _: Context) -> Message:
        return Message(answer(Question.from_record(message.content)), reply_to=message)

    return app


def on_grid(apps: Sequence[ClientApp], use: Callable[[Grid], Any]) -> Any:
    """What `use` returns, called by a server app over these institutions."""
    results: list[Any] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, _: Context) -> None:
        results.append(use(grid))

    run_in_process(server, apps, nodes=len(apps))
    return results[0]


def asked(answers: Sequence[Answer], minimum: int = 1, times: int = 1) -> tuple[NDArray[np.int64], int]:
    def use(grid: Grid) -> tuple[NDArray[np.int64], int]:
        federation = OpenFederation(grid, list(grid.get_node_ids()), minimum, timeout=5.0)
        for _ in range(times - 1):
            federation.ask(QUESTION, WIDTH)
        return federation.ask(QUESTION, WIDTH)

    result: tuple[NDArray[np.int64], int] = on_grid([institution(answer) for answer in answers], use)
    return result


GOOD = release(np.arange(WIDTH, dtype=np.int64))


# --- sums ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=4))
@settings(max_examples=40)
def test_sums_are_exact_modulo_two_to_the_64(rows: list[list[int]]) -> None:
    total, answered = asked([release(np.array(row, dtype=np.int64)) for row in rows])
    expected = [(sum(column) + 2**63) % 2**64 - 2**63 for column in zip(*rows, strict=True)]
    assert total.tolist() == expected
    assert total.dtype == np.int64
    assert answered == len(rows)


# --- whoever misbehaves leaves ---------------------------------------------------------------------------------------


def extra(name: str, record: Any) -> Answer:
    def give(asked: Question) -> RecordDict:
        content = GOOD(asked)
        content[name] = record
        return content

    return give


def sum_record(array: Array) -> Answer:
    return extra("sum", ArrayRecord({"vector": array}))


HEADER: dict[str, Any] = {"question": QUESTION.digest, "seal": bytes(32), "note": b""}
BAD: dict[str, Answer] = {
    "declines": fixed(plain_reply(DECLINED)),
    "accepts instead of answering": fixed(plain_reply(ACCEPTED)),
    "raises": raising,
    "says nothing": fixed(RecordDict()),
    "too few words": release(np.zeros(WIDTH - 1, dtype=np.int64)),
    "too many words": release(np.zeros(WIDTH + 1, dtype=np.int64)),
    "no words": release(np.zeros(0, dtype=np.int64)),
    "another shape": release(np.zeros((WIDTH, 1), dtype=np.int64)),
    "floats": sum_record(Array(np.zeros(WIDTH))),
    "unsigned": sum_record(Array(np.zeros(WIDTH, dtype=np.uint64))),
    "a lie about the shape": sum_record(Array("int64", (WIDTH,), "numpy.ndarray", b"x" * 200)),
    "objects": sum_record(Array("object", (WIDTH,), "numpy.ndarray", b"cos\nsystem\n")),
    "another question": release(np.zeros(WIDTH, dtype=np.int64), "sha256:" + "9" * 64),
    "a metric more": extra("metrics", MetricRecord({"n": 1})),
    "a header of another kind": extra("release", MetricRecord({"question": 1})),
    "a header with more": extra("release", ConfigRecord({**HEADER, "n": 1})),
    "a header with less": extra("release", ConfigRecord({"question": QUESTION.digest, "seal": bytes(32)})),
    "a short seal": extra("release", ConfigRecord({**HEADER, "seal": b""})),
    "a note of another length": extra("release", ConfigRecord({**HEADER, "note": b"customer 4711"})),
    "a message of a secure sum": fixed(SumMessage(bytes(8 * WIDTH), bytes(32)).to_record()),
}


@pytest.mark.parametrize("bad", BAD)
def test_an_institution_that_does_not_answer_properly_leaves_and_the_others_go_on(bad: str) -> None:
    total, answered = asked([GOOD, BAD[bad], GOOD], minimum=2)
    assert answered == 2
    assert total.tolist() == [0, 2, 4, 6, 8]


def test_who_left_is_not_asked_again() -> None:
    calls: list[int] = []

    def once_bad(asked: Question) -> RecordDict:
        calls.append(1)
        return plain_reply(DECLINED) if len(calls) == 1 else GOOD(asked)

    total, answered = asked([GOOD, once_bad], times=3)
    assert (len(calls), answered) == (1, 1)
    assert total.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("bad", ["declines", "raises", "too few words"])
def test_with_too_few_institutions_left_the_run_stops(bad: str) -> None:
    with pytest.raises(RefusedError, match="only 1 institutions answered p step 0; the plan needs 2"):
        asked([GOOD, BAD[bad]], minimum=2)


# --- gathering -------------------------------------------------------------------------------------------------------


@pytest.fixture
def gathering(charter: Charter) -> Callable[..., Gathering]:
    def make(plan: Plan, expected: int, timeout: float = 5.0) -> Gathering:
        return Gathering(plan, charter, RUN, expected, timeout)

    return make


class NoStore:
    """Open sums need no memory of the coordinator's."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was used")


def gathered(apps: Sequence[ClientApp], gathering: Gathering) -> OpenFederation:
    federation = on_grid(apps, lambda grid: gather_federation(grid, gathering, NoStore()))  # type: ignore[arg-type]
    assert isinstance(federation, OpenFederation)
    return federation


def odd() -> RecordDict:
    return RecordDict({"reply": ConfigRecord({"word": "yes"})})


def failing() -> RecordDict:
    raise ValueError("customer 4711")


def with_keys() -> RecordDict:
    """What an institution of a plan with a secure sum replies."""
    return SumMessage(b"{}", bytes(32)).to_record()


@pytest.mark.parametrize("reply", [lambda: plain_reply(DECLINED), odd, RecordDict, failing, with_keys])
def test_only_those_that_accept_the_plan_take_part(
    reply: Callable[[], RecordDict], make_plan: Callable[..., Plan], gathering: Callable[..., Gathering]
) -> None:
    apps = [institution(GOOD), institution(GOOD, reply), institution(GOOD)]
    assert len(gathered(apps, gathering(make_plan(min_institutions=2), 3)).nodes) == 2
    with pytest.raises(RefusedError, match="only 2 institutions accepted the plan; the plan needs 3"):
        gathered(apps, gathering(make_plan(min_institutions=3), 3))


def test_institutions_are_asked_for_the_digest_the_run_and_the_time_alone(
    make_plan: Callable[..., Plan], gathering: Callable[..., Gathering]
) -> None:
    plan, seen = make_plan(min_institutions=1), []
    app = ClientApp()

    @app.query("plan")
    def look(message: Message, _: Context) -> Message:
        seen.append({name: dict(record) for name, record in message.content.items()})
        return Message(plain_reply(ACCEPTED), reply_to=message)

    before = int(time.time())
    gathered([app], gathering(plan, 1))
    (content,) = seen
    asked_at = content["plan"].pop("time")
    assert content == {"plan": {"digest": plan.digest, "run": RUN}}
    assert before <= asked_at <= time.time()


def test_a_run_does_not_begin_on_a_subset(make_plan: Callable[..., Plan], gathering: Callable[..., Gathering]) -> None:
    with pytest.raises(RefusedError, match="1 of 2 institutions connected in 0 s"):
        gathered([institution(GOOD)], gathering(make_plan(min_institutions=1), expected=2, timeout=0.0))


class LateGrid:
    """A grid whose second node connects at the third look."""

    def __init__(self, grid: Grid) -> None:
        self._grid, self.looks = grid, 0

    def get_node_ids(self) -> list[int]:
        self.looks += 1
        return list(self._grid.get_node_ids())[: 2 if self.looks >= 3 else 1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)


def test_the_expected_institutions_are_waited_for(
    make_plan: Callable[..., Plan], gathering: Callable[..., Gathering], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.0)
    late: list[LateGrid] = []

    def use(grid: Grid) -> Federation:
        late.append(LateGrid(grid))
        return gather_federation(late[0], gathering(make_plan(), 2, 60.0), NoStore())  # type: ignore[arg-type]

    federation = on_grid([institution(GOOD), institution(GOOD)], use)
    assert len(federation.nodes) == 2
    assert late[0].looks == 3


class DeafGrid(LateGrid):
    """A grid on which the first node's reply never arrives."""

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        return list(self._grid.send_and_receive(messages, timeout=timeout))[1:]


def test_a_reply_that_never_arrives_counts_as_none() -> None:
    def use(grid: Grid) -> tuple[NDArray[np.int64], int]:
        nodes = list(grid.get_node_ids())
        return OpenFederation(DeafGrid(grid), nodes, 1, timeout=1.0).ask(QUESTION, WIDTH)  # type: ignore[arg-type]

    total, answered = on_grid([institution(GOOD), institution(GOOD)], use)
    assert (total.tolist(), answered) == ([0, 1, 2, 3, 4], 1)
