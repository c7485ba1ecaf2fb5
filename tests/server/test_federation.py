"""Asking institutions and adding up what they release: who misbehaves leaves, who is missing is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sqlalchemy import Engine

from cohortium.governance.log import AuditLog
from cohortium.privacy.ledger import open_store
from cohortium.privacy.secure_sum import SqlOnceStore
from cohortium.server import federation as module
from cohortium.server.federation import Gathering, OpenFederation, gather_federation
from cohortium.simulations.grid import run_in_process
from cohortium.study.errors import RefusedError
from cohortium.study.plan import Plan
from cohortium.study.question import (
    ACCEPTED,
    DECLINED,
    Question,
    QuestionHeader,
    Release,
    SumMessage,
    plain_reply,
    split_log,
)
from cohortium.study.witness import WitnessRequest

WIDTH = 5
RUN = "ab" * 16
QUESTION = Question(
    QuestionHeader(plan="sha256:" + "0" * 64, run="0" * 32, phase="p", step=0, attempt=1, kind="k"), {"a": np.ones(2)}
)
Answer = Callable[[Question, bytes], RecordDict]


def release(vector: NDArray[np.int64], question: str | None = None) -> Answer:
    return lambda asked, said: Release(question or asked.digest, vector, bytes(32), statement=said).to_record()


def fixed(content: RecordDict) -> Answer:
    return lambda *_: content


def raising(*_: Any) -> RecordDict:
    raise ValueError("customer 4711")


def accepting() -> RecordDict:
    return plain_reply(ACCEPTED)


def on_grid(apps: Sequence[ClientApp], use: Callable[[Grid], Any]) -> Any:
    """What `use` returns, called by a server app over these institutions."""
    results: list[Any] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, _: Context) -> None:
        results.append(use(grid))

    run_in_process(server, apps, nodes=len(apps))
    return results[0]


@pytest.fixture
def log(coordinator_log: Callable[[Engine, str], AuditLog], tmp_path: Path) -> Iterator[AuditLog]:
    store = open_store(tmp_path / "coordinator.sqlite")
    yield coordinator_log(store, "fakes")
    store.dispose()


Asked = Callable[..., tuple[NDArray[np.int64], int]]


def new_store() -> SqlOnceStore:
    """A coordinator's memory, which ends with the test."""
    return SqlOnceStore(sa.create_engine("sqlite://", poolclass=sa.StaticPool))


@pytest.fixture
def asked(make_fakes: Callable[..., Any], make_plan: Callable[..., Plan], log: AuditLog) -> Asked:
    """What a federation of these institutions answers to the question, asked so many times."""
    federations: dict[int, Any] = {}

    def ask(
        answers: Sequence[Answer], minimum: int = 1, times: int = 1, reach: Callable[[Grid], Grid] = lambda grid: grid
    ) -> tuple[NDArray[np.int64], int]:
        if len(answers) not in federations:
            federations[len(answers)] = make_fakes(len(answers))
        fakes = federations[len(answers)]
        apps = [bank.app(answer, accepting) for bank, answer in zip(fakes.banks, answers, strict=True)]
        gathering = Gathering(make_plan(min_institutions=minimum), fakes.charter, RUN, len(apps), timeout=5.0)

        def use(grid: Grid) -> tuple[NDArray[np.int64], int]:
            federation = gather_federation(reach(grid), gathering, new_store(), log)
            for _ in range(times - 1):
                federation.ask(QUESTION, WIDTH)
            return federation.ask(QUESTION, WIDTH)

        result: tuple[NDArray[np.int64], int] = on_grid(apps, use)
        return result

    return ask


GOOD = release(np.arange(WIDTH, dtype=np.int64))


# --- sums ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=4))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sums_are_exact_modulo_two_to_the_64(asked: Asked, rows: list[list[int]]) -> None:
    total, answered = asked([release(np.array(row, dtype=np.int64)) for row in rows])
    expected = [(sum(column) + 2**63) % 2**64 - 2**63 for column in zip(*rows, strict=True)]
    assert total.tolist() == expected
    assert total.dtype == np.int64
    assert answered == len(rows)


# --- whoever misbehaves leaves ---------------------------------------------------------------------------------------


def extra(name: str, record: Any) -> Answer:
    def give(asked: Question, said: bytes) -> RecordDict:
        content = GOOD(asked, said)
        content[name] = record
        return content

    return give


def sum_record(array: Array) -> Answer:
    return extra("sum", ArrayRecord({"vector": array}))


HEADER: dict[str, Any] = {"question": QUESTION.digest, "seal": bytes(32), "note": b"", "statement": b""}
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
def test_an_institution_that_does_not_answer_properly_leaves_and_the_others_go_on(bad: str, asked: Asked) -> None:
    total, answered = asked([GOOD, BAD[bad], GOOD], minimum=2)
    assert answered == 2
    assert total.tolist() == [0, 2, 4, 6, 8]


def test_who_left_is_not_asked_again(asked: Asked) -> None:
    calls: list[int] = []

    def once_bad(asked: Question, said: bytes) -> RecordDict:
        calls.append(1)
        return plain_reply(DECLINED) if len(calls) == 1 else GOOD(asked, said)

    total, answered = asked([GOOD, once_bad], times=3)
    assert (len(calls), answered) == (1, 1)
    assert total.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("bad", ["declines", "raises", "too few words"])
def test_with_too_few_institutions_left_the_run_stops(bad: str, asked: Asked) -> None:
    with pytest.raises(RefusedError, match="only 1 institutions answered p step 0; the plan needs 2"):
        asked([GOOD, BAD[bad]], minimum=2)


# --- gathering -------------------------------------------------------------------------------------------------------


Gathered = Callable[..., OpenFederation]


@pytest.fixture
def gathered(make_fakes: Callable[..., Any], make_plan: Callable[..., Plan], log: AuditLog) -> Gathered:
    """The federation of institutions that reply to the plan as they do here."""

    def gather(
        *replies: Callable[[], RecordDict],
        minimum: int,
        expected: int | None = None,
        timeout: float = 5.0,
        reach: Callable[[Grid], Any] = lambda grid: grid,
    ) -> OpenFederation:
        fakes = make_fakes(len(replies))
        apps = [bank.app(GOOD, reply) for bank, reply in zip(fakes.banks, replies, strict=True)]
        plan = make_plan(min_institutions=minimum)
        gathering = Gathering(plan, fakes.charter, RUN, len(apps) if expected is None else expected, timeout)
        use = lambda grid: gather_federation(reach(grid), gathering, new_store(), log)  # noqa: E731
        federation = on_grid(apps, use)
        assert isinstance(federation, OpenFederation)
        return federation

    return gather


def odd() -> RecordDict:
    return RecordDict({"reply": ConfigRecord({"word": "yes"})})


def failing() -> RecordDict:
    raise ValueError("customer 4711")


def with_keys() -> RecordDict:
    """What an institution of a plan with a secure sum replies."""
    return SumMessage(b"{}", bytes(32)).to_record()


@pytest.mark.parametrize("reply", [lambda: plain_reply(DECLINED), odd, RecordDict, failing, with_keys])
def test_only_those_that_accept_the_plan_take_part(reply: Callable[[], RecordDict], gathered: Gathered) -> None:
    assert list(gathered(accepting, reply, accepting, minimum=2).nodes) == ["bank 0", "bank 2"]
    with pytest.raises(RefusedError, match="only 2 institutions accepted the plan; the plan needs 3"):
        gathered(accepting, reply, accepting, minimum=3)


class Watched:
    """A grid that remembers the requests of one type."""

    def __init__(self, grid: Grid, kind: str) -> None:
        self._grid, self._kind, self.seen = grid, kind, list[RecordDict]()

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        asked = list(messages)
        self.seen += [message.content for message in asked if message.metadata.message_type == self._kind]
        return list(self._grid.send_and_receive(asked, timeout=timeout))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)


@pytest.mark.parametrize("institutions", [1, 3])
def test_institutions_are_asked_for_the_digest_the_run_and_the_time_alone(
    institutions: int, make_plan: Callable[..., Plan], gathered: Gathered
) -> None:
    """Beside it there is nothing but what the others cosigned of their own logs."""
    watched: list[Watched] = []

    def watch(grid: Grid) -> Watched:
        watched.append(Watched(grid, "query.plan"))
        return watched[0]

    before = int(time.time())
    gathered(*[accepting] * institutions, minimum=1, reach=watch)
    plan = make_plan(min_institutions=1).digest
    assert len(watched[0].seen) == institutions
    for index, record in enumerate(watched[0].seen):
        content, beside = split_log(record)
        (asked,) = content.values()
        fields = dict(asked)
        asked_at = fields.pop("time")
        assert (set(content), fields) == ({"plan"}, {"digest": plan, "run": RUN})
        assert before <= asked_at <= time.time()
        assert (beside is None) == (institutions == 1)
        if beside is not None:
            request = WitnessRequest.from_bytes(beside.payload)
            assert request == WitnessRequest(plan=plan, cosigned=request.cosigned)
            assert str(request.cosigned).startswith(f"cohortium/fakes/bank%20{index}\n")


def test_a_run_does_not_begin_on_a_subset(gathered: Gathered) -> None:
    with pytest.raises(RefusedError, match="1 of 2 institutions connected in 0 s"):
        gathered(accepting, minimum=1, expected=2, timeout=0.0)


class LateGrid:
    """A grid whose second node connects at the third look."""

    def __init__(self, grid: Grid) -> None:
        self._grid, self.looks = grid, 0

    def get_node_ids(self) -> list[int]:
        self.looks += 1
        return list(self._grid.get_node_ids())[: 2 if self.looks >= 3 else 1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)


def test_the_expected_institutions_are_waited_for(gathered: Gathered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.0)
    late: list[LateGrid] = []

    def reach(grid: Grid) -> LateGrid:
        late.append(LateGrid(grid))
        return late[0]

    assert len(gathered(accepting, accepting, minimum=2, timeout=60.0, reach=reach).nodes) == 2
    assert late[0].looks == 3


class DeafGrid(LateGrid):
    """A grid on which the first node's answer never arrives."""

    def get_node_ids(self) -> list[int]:
        return list(self._grid.get_node_ids())

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        asked = list(messages)
        lost = int(asked[0].metadata.message_type == "query.answer")
        return list(self._grid.send_and_receive(asked, timeout=timeout))[lost:]


def test_a_reply_that_never_arrives_counts_as_none(asked: Asked) -> None:
    total, answered = asked([GOOD, GOOD], reach=DeafGrid)
    assert (total.tolist(), answered) == ([0, 1, 2, 3, 4], 1)
