"""What apps may rely on, on every engine; and what the in-process grid promises besides."""

from __future__ import annotations

import gc
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from cohortium.simulations.grid import InProcessGrid, run_in_process
from cohortium.simulations.ray_engine import run_on_ray
from cohortium.study.arrays import from_array, to_array, to_record
from cohortium.study.errors import CohortiumError, Defect

NODES = 3
RUN = {"question": "sum"}
CONFIGS = [{"state-dir": f"house-{i}"} for i in range(NODES)]

Main = Callable[[Grid, Context], None]


def institution_app() -> ClientApp:
    """An app that needs nothing of this module, so that it can travel to another process."""
    import numpy as np
    from flwr.app import ConfigRecord, Message, RecordDict
    from flwr.clientapp import ClientApp

    from cohortium.study.arrays import from_array, to_record

    def stamp(message: Message, context: Context, call: Any) -> Message:
        reply = call(message, context)
        if reply.has_content():
            reply.content["stamp"] = ConfigRecord({"by": int(context.node_config["partition-id"])})
        return reply

    app = ClientApp(mods=[stamp])

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        own = {"node-id": context.node_id, "run-id": context.run_id}
        content = {"node": ConfigRecord({**context.node_config, **own}), "run": ConfigRecord({**context.run_config})}
        return Message(RecordDict(content), reply_to=message)

    @app.train("add")
    def add(message: Message, context: Context) -> Message:
        vector = from_array(message.content["vector"]["v"], np.uint64, (4,))
        partition = np.uint64(context.node_config["partition-id"])
        return Message(RecordDict({"vector": to_record({"v": vector + partition})}), reply_to=message)

    @app.train("count")
    def count(message: Message, context: Context) -> Message:
        before = context.state["count"]["calls"] if "count" in context.state else 0
        context.state["count"] = ConfigRecord({"calls": before + 1})
        if message.content["ask"]["raise-at"] == context.node_config["partition-id"]:
            raise ValueError("balance of customer 4711 is 12345")
        return Message(RecordDict({"count": ConfigRecord({"calls": before + 1})}), reply_to=message)

    return app


def instruction(node: int, message_type: str, **records: Any) -> Message:
    return Message(RecordDict(records), node, message_type, group_id="7")


def asked(grid: Grid, message_type: str, **records: Any) -> dict[int, Message]:
    """One message to every node; the replies by node."""
    messages = [instruction(node, message_type, **records) for node in grid.get_node_ids()]
    return {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages)}


class GridContract:
    """Holds on every engine."""

    def run(self, main: Main) -> Context:
        """The main function, with `institution_app` at every node, RUN and CONFIGS."""
        raise NotImplementedError

    def test_nodes_know_their_place_and_their_configuration(self) -> None:
        seen: dict[int, Any] = {}

        def main(grid: Grid, context: Context) -> None:
            assert context.run_config == RUN
            assert {info.node_id for info in grid.get_nodes()} == set(grid.get_node_ids())
            for node, reply in asked(grid, "query.describe").items():
                seen[node] = reply.content["node"], reply.content["run"]
                assert seen[node][0]["run-id"] == grid.run.run_id == context.run_id == reply.metadata.run_id

        self.run(main)
        assert {node: own["node-id"] for node, (own, _) in seen.items()} == {node: node for node in seen}
        assert {own["partition-id"]: own["state-dir"] for own, _ in seen.values()} == {
            i: config["state-dir"] for i, config in enumerate(CONFIGS)
        }
        assert all(own["num-partitions"] == NODES and dict(run) == RUN for own, run in seen.values())

    def test_arrays_are_exact_mods_are_honoured_and_replies_belong_to_their_messages(self) -> None:
        def main(grid: Grid, context: Context) -> None:
            big = np.array([0, 1, 2**63, 2**64 - 4], dtype=np.uint64)
            messages = [
                instruction(node, "train.add", vector=to_record({"v": big.copy()})) for node in grid.get_node_ids()
            ]
            replies = list(grid.send_and_receive(messages))
            by_id = {message.metadata.message_id: message.metadata for message in messages}
            assert len(by_id) == len(replies) == NODES
            for reply in replies:
                got, sent = reply.metadata, by_id.pop(reply.metadata.reply_to_message_id)
                assert (got.src_node_id, got.dst_node_id) == (sent.dst_node_id, sent.src_node_id)
                assert (got.group_id, got.message_type) == ("7", "train.add")
                assert got.message_id != sent.message_id
                assert 0 < got.ttl <= sent.ttl
                partition = np.uint64(reply.content["stamp"]["by"])
                assert (from_array(reply.content["vector"]["v"], np.uint64, (4,)) == big + partition).all()

        self.run(main)

    def test_an_exception_travels_as_a_code_and_undoes_the_state(self) -> None:
        def main(grid: Grid, context: Context) -> None:
            calls = []
            for raise_at in (-1, 1, -1):
                replies = asked(grid, "train.count", ask=ConfigRecord({"raise-at": raise_at})).values()
                failed = [reply for reply in replies if reply.has_error()]
                assert [reply.error.code for reply in failed] == [ErrorCode.CLIENT_APP_RAISED_EXCEPTION] * (
                    raise_at == 1
                )
                assert not any("4711" in repr(reply) or "ValueError" in repr(reply) for reply in failed)
                calls.append(sorted(r.content["count"]["calls"] for r in replies if r.has_content()))
            assert calls == [[1, 1, 1], [2, 2], [2, 3, 3]]

        self.run(main)

    def test_pushed_messages_are_pulled_once(self) -> None:
        def main(grid: Grid, context: Context) -> None:
            ids = list(grid.push_messages(instruction(node, "query.describe") for node in grid.get_node_ids()))
            waiting = set(ids)
            while waiting:
                for reply in grid.pull_messages(waiting):
                    assert reply.has_content()
                    waiting.remove(reply.metadata.reply_to_message_id)
            assert list(grid.pull_messages([])) == []
            for reply in grid.pull_messages([*ids, "never given out"]):
                assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
                waiting.add(reply.metadata.reply_to_message_id)
            assert waiting == {*ids, "never given out"}

        self.run(main)

    def test_the_server_apps_state_and_exception_reach_the_caller(self) -> None:
        error = KeyError("the very object")

        def main(grid: Grid, context: Context) -> None:
            context.state["result"] = MetricRecord({"total": 3})
            asked(grid, "query.describe")

        def failing(grid: Grid, context: Context) -> None:
            raise error

        assert self.run(main).state["result"]["total"] == 3  # type: ignore[index]
        with pytest.raises(KeyError) as caught:
            self.run(failing)
        assert caught.value is error


class TestInProcess(GridContract):
    def run(self, main: Main) -> Context:
        return run_in_process(server_of(main), institution_app(), nodes=NODES, run_config=RUN, node_configs=CONFIGS)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'cohortium[ray]'")
@pytest.mark.filterwarnings("ignore")  # Ray leaves files and processes to the garbage collector
class TestRay(GridContract):
    @pytest.fixture(autouse=True)
    def _collected_here(self) -> Iterator[None]:
        """What Ray leaves behind is collected while its warnings are ignored, and not within another test."""
        yield
        gc.collect()

    def run(self, main: Main) -> Context:
        return run_on_ray(server_of(main), institution_app(), nodes=NODES, run_config=RUN, node_configs=CONFIGS)

    def test_an_interrupt_stops_everything(self, tmp_path: Path) -> None:
        script = tmp_path / "endless.py"
        script.write_text(ENDLESS)
        process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert output.splitlines()[-1] == "interrupted, 0 threads left"


ENDLESS = """
import threading
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from cohortium.simulations.ray_engine import run_on_ray

client, server = ClientApp(), ServerApp()

@client.query()
def echo(message, context):
    return Message(message.content, reply_to=message)

@server.main()
def main(grid, context):
    while True:
        grid.send_and_receive([Message(RecordDict(), node, "query") for node in grid.get_node_ids()])
        if not context.state:
            context.state["said"] = __import__("flwr.app").app.ConfigRecord()
            print("working", flush=True)

try:
    run_on_ray(server, client, nodes=2)
except KeyboardInterrupt:
    left = [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    print(f"interrupted, {len(left)} threads left", flush=True)
"""


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_engine_says_what_to_install() -> None:
    with pytest.raises(CohortiumError, match=r"pip install 'cohortium\[ray\]'"):
        run_on_ray(ServerApp(), ClientApp(), nodes=2)


def server_of(main: Main) -> ServerApp:
    app = ServerApp()
    app.main()(main)
    return app


def client_of(handler: Callable[[Message, Context], Any]) -> ClientApp:
    app = ClientApp()
    app.query()(handler)
    return app


def echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


@pytest.fixture
def task() -> Iterator[None]:
    """Lets a test make messages without running a server app."""
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


@pytest.mark.usefixtures("task")
class TestInProcessGrid:
    """What only the in-process grid promises."""

    def test_replies_come_in_the_order_of_the_messages(self) -> None:
        grid = InProcessGrid(client_of(echo), nodes=5)
        order = [grid.get_node_ids()[i] for i in (3, 0, 4, 0, 2)]
        replies = grid.send_and_receive([instruction(node, "query") for node in order])
        assert [reply.metadata.src_node_id for reply in replies] == order

    def test_pulling_ignores_the_order_of_the_ids(self) -> None:
        grid = InProcessGrid(client_of(echo), nodes=4)
        ids = grid.push_messages([instruction(node, "query") for node in grid.get_node_ids()])
        pulled = grid.pull_messages(reversed(ids))
        assert [reply.metadata.reply_to_message_id for reply in pulled] == ids

    def test_nodes_answer_one_after_the_other_in_the_order_of_the_messages(self) -> None:
        seen: list[int] = []

        def handler(message: Message, context: Context) -> Message:
            seen.append(int(context.node_config["partition-id"]))
            return echo(message, context)

        grid = InProcessGrid(client_of(handler), nodes=4)
        grid.push_messages([instruction(node, "query") for node in reversed(grid.get_node_ids())])
        assert seen == [3, 2, 1, 0]

    def test_an_unknown_node_is_unavailable_and_the_others_answer(self) -> None:
        grid = InProcessGrid(client_of(echo), nodes=1)
        nodes = [404, *grid.get_node_ids()]
        missing, answered = grid.send_and_receive([instruction(node, "query") for node in nodes])
        assert missing.error.code == ErrorCode.NODE_UNAVAILABLE
        assert missing.metadata.src_node_id not in nodes
        assert answered.has_content()

    def test_a_message_that_is_not_an_instruction_of_this_run_reaches_nobody(self) -> None:
        calls: list[int] = []

        def handler(message: Message, context: Context) -> Message:
            calls.append(1)
            return echo(message, context)

        grid = InProcessGrid(client_of(handler), nodes=1)
        (node,) = grid.get_node_ids()
        good = instruction(node, "query")
        (reply,) = InProcessGrid(client_of(echo), nodes=1).send_and_receive([instruction(node, "query")])
        TaskIdentity.run_id = 2
        foreign = instruction(node, "query")
        timeless = instruction(node, "query")
        timeless.metadata.ttl = -1.0
        failed = Message(Error(1), reply_to=good)
        for bad in (reply, foreign, timeless, failed):
            with pytest.raises(Defect):
                grid.push_messages([good, bad])
        assert calls == []

    @pytest.mark.parametrize("returned", [None, "reply to another", "to somebody else"])
    def test_a_client_that_returns_no_proper_reply_has_failed(self, returned: str | None) -> None:
        def handler(message: Message, context: Context) -> Message | None:
            reply = echo(message, context)
            if returned == "reply to another":
                reply.metadata.__dict__["_reply_to_message_id"] = "another"
            reply.metadata.dst_node_id += returned == "to somebody else"
            return reply if returned else None

        grid = InProcessGrid(client_of(handler), nodes=1)
        (reply,) = grid.send_and_receive([instruction(grid.get_node_ids()[0], "query")])
        assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION

    def test_an_action_nobody_registered_is_a_failure_of_the_client(self) -> None:
        grid = InProcessGrid(client_of(echo), nodes=1)
        (reply,) = grid.send_and_receive([instruction(grid.get_node_ids()[0], "train.unheard_of")])
        assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION

    def test_the_log_names_the_exception_and_not_its_text(self, caplog: pytest.LogCaptureFixture) -> None:
        def handler(message: Message, context: Context) -> Message:
            raise ValueError("customer 4711")

        grid = InProcessGrid(client_of(handler), nodes=1)
        with caplog.at_level(logging.INFO):
            (reply,) = grid.send_and_receive([instruction(grid.get_node_ids()[0], "query")])
        assert reply.error.reason is None
        assert "ValueError at partition 0" in caplog.text
        assert "4711" not in caplog.text

    def test_an_interrupt_is_not_an_answer(self) -> None:
        def handler(message: Message, context: Context) -> Message:
            raise KeyboardInterrupt

        grid = InProcessGrid(client_of(handler), nodes=1)
        with pytest.raises(KeyboardInterrupt):
            grid.push_messages([instruction(grid.get_node_ids()[0], "query")])

    def test_each_institution_may_have_an_app_of_its_own(self) -> None:
        def says(word: str) -> ClientApp:
            return client_of(lambda message, context: Message(RecordDict({word: ConfigRecord()}), reply_to=message))

        grid = InProcessGrid([says("a"), says("b")], nodes=2)
        replies = grid.send_and_receive([instruction(node, "query") for node in grid.get_node_ids()])
        assert [list(reply.content) for reply in replies] == [["a"], ["b"]]

    def test_arrays_are_shared_both_ways_and_never_encoded(self) -> None:
        inside: list[Any] = []

        def handler(message: Message, context: Context) -> Message:
            inside.append(from_array(message.content["r"]["v"], np.float64, (9,)))  # type: ignore[arg-type]
            return echo(message, context)

        grid = InProcessGrid(client_of(handler), nodes=2)
        values = np.arange(9.0)
        messages = [instruction(node, "query", r=to_record({"v": values})) for node in grid.get_node_ids()]
        arrays = [reply.content["r"]["v"] for reply in grid.send_and_receive(messages)]
        assert all(seen is values for seen in inside)
        assert all(from_array(array, np.float64, (9,)) is values for array in arrays)  # type: ignore[arg-type]
        assert not any("_plain" in array.__dict__ for array in arrays)

    def test_nobody_sees_what_another_changes(self) -> None:
        kept: list[Message] = []

        def handler(message: Message, context: Context) -> Message:
            assert message.content["c"] == {"list": [1], "n": 1}
            message.content["c"]["list"].append(2)  # type: ignore[union-attr]
            message.content["c"]["n"] = 2
            message.content["a"]["v"].data = b"changed"  # type: ignore[union-attr]
            message.content["more"] = MetricRecord({"m": 1})
            context.node_config["partition-id"] = 99
            context.run_config["more"] = 1
            kept.append(echo(message, context))
            return kept[-1]

        grid = InProcessGrid(client_of(handler), nodes=2, run_config={"x": 1})
        record = ArrayRecord({"v": Array(np.arange(2))})
        content = RecordDict({"c": ConfigRecord({"list": [1], "n": 1}), "a": record})
        for _ in range(2):
            replies = grid.send_and_receive([Message(content, node, "query") for node in grid.get_node_ids()])
            assert [reply.has_error() for reply in replies] == [False, False]
        assert content["c"] == {"list": [1], "n": 1}
        assert list(content) == ["c", "a"]
        assert (record["v"].numpy() == np.arange(2)).all()
        kept[-1].content["c"]["n"] = 3
        assert replies[-1].content["c"]["n"] == 2

    def test_state_is_a_nodes_own_and_holds_arrays(self) -> None:
        def handler(message: Message, context: Context) -> Message:
            own = context.state.setdefault("seen", ArrayRecord())
            own[f"{len(own)}"] = to_array(np.full(2, context.node_id))  # type: ignore[index, assignment]
            return Message(RecordDict({"seen": own}), reply_to=message)  # type: ignore[dict-item]

        grid = InProcessGrid(client_of(handler), nodes=2)
        first, second = grid.get_node_ids()
        grid.push_messages([instruction(first, "query"), instruction(first, "query")])
        replies = grid.send_and_receive([instruction(first, "query"), instruction(second, "query")])
        assert [[int(array.numpy()[0]) for array in reply.content["seen"].values()] for reply in replies] == [
            [first] * 3,
            [second],
        ]

    def test_the_run_is_the_grids_own(self) -> None:
        grid = InProcessGrid(client_of(echo), nodes=1, run_id=5)
        grid.set_run(Run.create_empty(5))
        with pytest.raises(Defect):
            grid.set_run(Run.create_empty(6))
        assert grid.run.run_id == 5

    def test_create_message_makes_what_the_constructor_makes(self) -> None:
        message = InProcessGrid(client_of(echo), nodes=1).create_message(RecordDict(), "query.x", 9, "g", 5.0)
        metadata = message.metadata
        assert (metadata.message_type, metadata.dst_node_id, metadata.group_id, metadata.ttl) == (
            "query.x",
            9,
            "g",
            5.0,
        )


@pytest.mark.parametrize(
    ("nodes", "apps", "configs"),
    [(0, 0, None), (2, 1, None), (2, 2, [{}]), (1, 1, [{"partition-id": 4}]), (1, 1, [{"num-partitions": 4}])],
)
def test_numbers_that_disagree_are_the_callers_mistake(nodes: int, apps: int, configs: Any) -> None:
    with pytest.raises(CohortiumError, match="fix:"):
        run_in_process(ServerApp(), [ClientApp()] * apps, nodes=nodes, node_configs=configs)


def test_two_runs_are_the_same_run() -> None:
    def transcript() -> list[Any]:
        lines: list[Any] = []

        def main(grid: Grid, context: Context) -> None:
            for _ in range(3):
                for reply in asked(grid, "query.describe").values():
                    metadata = reply.metadata
                    lines.append((metadata.message_id, metadata.reply_to_message_id, dict(reply.content["node"])))

        run_in_process(server_of(main), institution_app(), nodes=4, run_id=9)
        return lines

    assert transcript() == transcript()


def test_the_task_identity_is_put_back() -> None:
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)

    def main(grid: Grid, context: Context) -> None:
        run_in_process(server_of(lambda inner, _: None), ClientApp(), nodes=1, run_id=8)
        assert TaskIdentity.run_id == 7
        raise ValueError("from the server")

    with pytest.raises(ValueError, match="from the server"):
        run_in_process(server_of(main), ClientApp(), nodes=1, run_id=7)
    assert before == (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)


def test_runs_of_several_threads_take_turns() -> None:
    failed: list[BaseException] = []

    def main(grid: Grid, context: Context) -> None:
        for _ in range(20):
            assert all(reply.metadata.run_id == context.run_id for reply in asked(grid, "query").values())
            time.sleep(0.001)

    def work(run_id: int) -> None:
        try:
            run_in_process(server_of(main), client_of(echo), nodes=2, run_id=run_id)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failed.append(error)

    threads = [threading.Thread(target=work, args=(run_id,)) for run_id in (11, 12, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
