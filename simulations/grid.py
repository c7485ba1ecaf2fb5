"""The in-process grid: unmodified Flower apps of many institutions in one process, deterministically.

`run_in_process` gives a `ServerApp` a grid whose nodes are `ClientApp`s called directly. What an app may rely on is
what Flower's own runtimes give it: every message and every context is delivered as a copy of its own, state is kept
only when the message was answered, and an exception comes back as an error code. Arrays made with
`cohortium.study.arrays.to_array` are read-only and change hands without being copied or encoded.

What differs from a network, on purpose: nodes answer one after the other in the order in which messages were pushed,
replies come back in that order, nothing is ever late (`timeout` is never reached and a message outlives its ttl), and
message and node ids repeat from run to run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from itertools import count
from typing import Any

from flwr.app import Context, Error, Message, Metadata, RecordDict, UserConfig, UserConfigValue
from flwr.app.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from threadpoolctl import threadpool_limits

from cohortium.study.errors import CohortiumError, Defect

__all__ = ["InProcessGrid", "answer", "node_settings", "run_in_process"]

_FIRST_NODE_ID = 1001
_TASK_ID = 1

_log = logging.getLogger(__name__)
_one_run = threading.RLock()


@dataclass(frozen=True)
class _Node:
    app: ClientApp
    context: Context


class InProcessGrid(Grid):
    """A grid whose nodes live in this process.

    Args:
        client_apps: one app for all institutions, or one for each.
        nodes: how many institutions.
        run_config: what `context.run_config` holds at every node.
        node_configs: for each institution, what its `context.node_config` holds besides "partition-id" and
            "num-partitions".
        run_id: identifies the run in every message and context.

    Raises:
        CohortiumError: the numbers of institutions, apps and configurations disagree.
    """

    def __init__(
        self,
        client_apps: ClientApp | Sequence[ClientApp],
        *,
        nodes: int,
        run_config: Mapping[str, UserConfigValue] | None = None,
        node_configs: Sequence[Mapping[str, UserConfigValue]] | None = None,
        run_id: int = 1,
    ) -> None:
        apps = [client_apps] * nodes if isinstance(client_apps, ClientApp) else list(client_apps)
        if len(apps) != nodes:
            raise CohortiumError(
                f"{len(apps)} client apps for {nodes} institutions", fix="give one app, or one for each"
            )
        self._run = Run.create_empty(run_id)
        self._nodes: dict[int, _Node] = {}
        for partition, (app, settings) in enumerate(zip(apps, node_settings(nodes, node_configs), strict=True)):
            node_id = _FIRST_NODE_ID + partition
            context = Context(run_id, node_id, settings, RecordDict(), dict(run_config or {}))
            self._nodes[node_id] = _Node(app, context)
        self._replies: dict[str, Message] = {}
        self._message_ids = (f"{number:016x}" for number in count(1))

    def set_run(self, run: Run) -> None:
        """Refused for any run but the grid's own: contexts and messages carry its id."""
        if run.run_id != self._run.run_id:
            raise Defect("an in-process grid serves the one run it was made for")

    @property
    def run(self) -> Run:
        """The run this grid serves."""
        return copy(self._run)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As `Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)`, which apps should prefer."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """All nodes, by partition."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Lets each addressed node answer, in the order of the messages; `pull_messages` fetches the replies.

        A message to a node that does not exist is answered by the server's own side, as on a network: with the error
        code NODE_UNAVAILABLE and from no institution.

        Returns:
            The messages' ids, in their order.

        Raises:
            Defect: a message is not an instruction of this run; then no node has seen any of them.
        """
        pushed = list(messages)
        for message in pushed:
            self._check(message)
        return [self._push(message) for message in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to these messages, in the order in which the messages were pushed.

        A reply can be pulled once. After that, and for an id that was never given out, what comes is an error with the
        code MESSAGE_UNAVAILABLE, as on a network.
        """
        return [self._pull(message_id) for message_id in sorted(set(message_ids))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Pushes the messages and pulls their replies, one for each, in their order. `timeout` is never reached."""
        return self.pull_messages(self.push_messages(messages))

    def _check(self, message: Message) -> None:
        metadata = message.metadata
        if metadata.run_id != self._run.run_id or metadata.src_node_id != SUPERLINK_NODE_ID:
            raise Defect("a message pushed to the grid belongs to another run or sender")
        if metadata.reply_to_message_id or not message.has_content() or metadata.ttl <= 0:
            raise Defect("a message pushed to the grid is a reply, has no content or has no time to live")

    def _push(self, message: Message) -> str:
        message_id = next(self._message_ids)
        message.metadata.__dict__["_message_id"] = message_id
        node = self._nodes.get(message.metadata.dst_node_id)
        if node is None:
            reply = self._unavailable(message_id, ErrorCode.NODE_UNAVAILABLE)
        else:
            reply = answer(node.app, message, node.context)
        reply.metadata.__dict__["_message_id"] = next(self._message_ids)
        self._replies[message_id] = reply
        return message_id

    def _pull(self, message_id: str) -> Message:
        reply = self._replies.pop(message_id, None)
        return self._unavailable(message_id, ErrorCode.MESSAGE_UNAVAILABLE) if reply is None else reply

    def _unavailable(self, message_id: str, code: int) -> Message:
        metadata = Metadata(
            run_id=self._run.run_id,
            message_id="",
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=SUPERLINK_NODE_ID,
            reply_to_message_id=message_id,
            group_id="",
            created_at=time.time(),
            ttl=0.0,
            message_type=SYSTEM_MESSAGE_TYPE,
        )
        return make_message(metadata=metadata, error=Error(code))


def run_in_process(
    server_app: ServerApp,
    client_apps: ClientApp | Sequence[ClientApp],
    *,
    nodes: int,
    run_config: Mapping[str, UserConfigValue] | None = None,
    node_configs: Sequence[Mapping[str, UserConfigValue]] | None = None,
    run_id: int = 1,
) -> Context:
    """Runs a server app with the client apps of all institutions in this process.

    Flower keeps the identity of the running task in one place per process, so runs from several threads take turns.
    Linear algebra uses one thread meanwhile: on matrices of some thousand rows more threads mostly wait.

    Args:
        server_app: its main function gets an `InProcessGrid`.
        client_apps: one app for all institutions, or one for each.
        nodes: how many institutions.
        run_config: what `context.run_config` holds, at the server and at every node.
        node_configs: for each institution, what its `context.node_config` holds besides "partition-id" and
            "num-partitions".
        run_id: identifies the run; institutions that keep state on disk want another one for every run.

    Returns:
        The server app's context, with the state it left.

    Raises:
        CohortiumError: the numbers of institutions, apps and configurations disagree.
        Exception: whatever the server app raised, unchanged.
    """
    grid = InProcessGrid(client_apps, nodes=nodes, run_config=run_config, node_configs=node_configs, run_id=run_id)
    context = Context(run_id, SUPERLINK_NODE_ID, {}, RecordDict(), dict(run_config or {}))
    with _task_of(run_id), threadpool_limits(limits=1):
        server_app(grid, context)
    return context


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """One message answered by a client app, as on any engine: on copies, and with a code instead of an exception.

    Args:
        app: called with a copy of the message and of the context.
        message: the instruction, with its id.
        context: the node's memory; its state is replaced when the app has answered, and untouched when it raised.

    Returns:
        A copy of the app's reply, or an error reply that carries the code CLIENT_APP_RAISED_EXCEPTION and no text.
        The exception's type goes to this module's log, its traceback to the log at level DEBUG.
    """
    request = _delivered(message)
    working = _copy_of_context(context)
    try:
        reply = app(request, working)
        _check_reply(reply, message)
    except Exception as error:  # noqa: BLE001 - whatever an app raises must not reach the coordinator as text
        _log.warning(
            "a client app raised %s at partition %s", type(error).__name__, context.node_config.get("partition-id")
        )
        _log.debug("the client app's traceback", exc_info=error)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), reply_to=message)
    context.state = working.state
    return _delivered(reply)


def node_settings(nodes: int, extra: Sequence[Mapping[str, UserConfigValue]] | None) -> list[UserConfig]:
    """Each node's configuration: the extra one and its place, "partition-id" of "num-partitions".

    Raises:
        CohortiumError: no institutions, a number of configurations that differs from theirs, or one that sets its
            own place.
    """
    if nodes < 1:
        raise CohortiumError("a federation without institutions", fix="simulate at least one")
    extra = [{}] * nodes if extra is None else extra
    if len(extra) != nodes:
        raise CohortiumError(f"{len(extra)} node configurations for {nodes} institutions", fix="give one for each")
    if any(PARTITION_ID_KEY in settings or NUM_PARTITIONS_KEY in settings for settings in extra):
        raise CohortiumError("a node configuration sets its own partition", fix=f"leave out {PARTITION_ID_KEY}")
    return [{**settings, PARTITION_ID_KEY: i, NUM_PARTITIONS_KEY: nodes} for i, settings in enumerate(extra)]


def _check_reply(reply: Any, message: Message) -> None:
    if not isinstance(reply, Message):
        raise Defect("a client app returned something that is not a message")
    sent, got = message.metadata, reply.metadata
    if (got.reply_to_message_id, got.run_id) != (sent.message_id, sent.run_id):
        raise Defect("a client app returned a message that does not answer the one it got")
    if (got.src_node_id, got.dst_node_id) != (sent.dst_node_id, sent.src_node_id):
        raise Defect("a client app returned a message from or to somebody else")


def _delivered(message: Message) -> Message:
    """The message as its receiver gets it: nothing it changes is seen by the sender."""
    metadata = copy(message.metadata)
    if message.has_error():
        return make_message(metadata=metadata, error=copy(message.error))
    return make_message(metadata=metadata, content=_copy_of_records(message.content))


def _copy_of_context(context: Context) -> Context:
    state = _copy_of_records(context.state)
    return Context(context.run_id, context.node_id, dict(context.node_config), state, dict(context.run_config))


def _copy_of_records(records: RecordDict) -> RecordDict:
    """The same names and values in containers of their own. Bytes and read-only arrays are shared, not copied."""
    copied = RecordDict()
    for name, record in records.items():
        own: Any = record.copy()
        for key, value in record.items():
            own[key] = copy(value)
        copied[name] = own
    return copied


@contextmanager
def _task_of(run_id: int) -> Iterator[None]:
    """Flower's identity of the server's task while a run lasts: `Message` takes run and sender from it."""
    with _one_run:
        before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SUPERLINK_NODE_ID, _TASK_ID
        try:
            yield
        finally:
            TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before
