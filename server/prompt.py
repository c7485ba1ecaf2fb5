"""A Flower grid as a deployed coordinator uses it: messages are packed, and replies looked for when they have come.

Flower's own looks for replies once in three seconds, moves every part of a message by a request of its own, and waits
for the parts of a reply that was announced whatever time-out was given: for minutes, if its node died in between.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.run import Run
from flwr.superlink.grid import HttpGrid

from cohortium.server.bell import GATE, RUN, Bell, ring
from cohortium.study.errors import RefusedError
from cohortium.study.packing import PARTS, packed, unpacked, whole_message

__all__ = ["PromptGrid"]

_LOOK_SECONDS = 0.5
"""Between two looks for replies while some have not come."""


@dataclass
class _Announced:
    """A reply whose parts are on their way.

    Args:
        identity: of the reply.
        node: that sent it, as the SuperLink has authenticated it.
        missing: parts that have not come.
        contents: those that have.
    """

    identity: str
    node: int
    missing: list[str]
    contents: dict[str, bytes] = field(default_factory=dict)


class PromptGrid(Grid):
    """A grid of Flower's that knows when to look, from construction until `close`.

    Args:
        grid: does the work.
        folder: of the coordinator, for the bells.
    """

    def __init__(self, grid: HttpGrid, folder: Path) -> None:
        self._grid, self._folder = grid, folder
        self._bell = Bell(folder, RUN)
        self._coming: dict[str, _Announced] = {}

    def close(self) -> None:
        """Take the bell down."""
        self._bell.close()

    @property
    def inner(self) -> HttpGrid:
        """The grid that does the work."""
        return self._grid

    def set_run(self, run: Run) -> None:
        """See `Grid`."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """See `Grid`."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """See `Grid`."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """See `Grid`."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid`. What they say is packed."""
        pushed = list(self._grid.push_messages([_with(message, packed(message.content)) for message in messages]))
        ring(self._folder, GATE)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """See `Grid`: the replies that are whole now and can be used."""
        return [reply for reply in self._look(list(message_ids)).values() if reply is not None]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The replies that come within `timeout` seconds; who is gone is not waited for."""
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = {identity for identity in self.push_messages(list(messages)) if identity}
        replies: list[Message] = []
        while waiting:
            self._await(len(waiting), deadline)
            answered = self._look(sorted(waiting))
            waiting -= answered.keys()
            replies += [reply for reply in answered.values() if reply is not None]
            if deadline is not None and time.monotonic() >= deadline:
                break
        for identity in waiting:
            self._coming.pop(identity, None)
        return replies

    def _await(self, replies: int, deadline: float | None) -> None:
        """Until so many replies have come, or it is time to look what has come so far."""
        until = time.monotonic() + _LOOK_SECONDS
        until = until if deadline is None else min(until, deadline)
        while replies > 0 and (left := until - time.monotonic()) > 0:
            replies -= self._bell.wait(left)

    def _look(self, asked: list[str]) -> dict[str, Message | None]:
        """The messages whose replies are whole now, with these; None for one that cannot be used."""
        self._hear_of([identity for identity in asked if identity not in self._coming])
        whole = [identity for identity in asked if identity in self._coming and self._fetch(self._coming[identity])]
        return {identity: _opened(self._coming.pop(identity), identity) for identity in whole}

    def _hear_of(self, message_ids: list[str]) -> None:
        """Learn which messages are being answered; the SuperLink tells of a reply once."""
        if not message_ids:
            return
        told = self._grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        for reply, tree in zip(told.messages_list, told.message_object_trees, strict=True):
            parts = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
            parts = parts if len(parts) == PARTS else []  # of another number it cannot be used; nothing is fetched
            said = reply.metadata
            self._coming[said.reply_to_message_id] = _Announced(said.message_id, said.src_node_id, parts)

    def _fetch(self, reply: _Announced) -> bool:
        """Fetch the parts of a reply that are here; whether it is whole now."""
        client, node, run = self._grid._runtime_client, self._grid.node, self._grid.run.run_id
        while reply.missing:
            answer = client.PullObject(PullObjectRequest(node=node, run_id=run, object_id=reply.missing[0]))
            if not answer.object_found:
                return True  # and never will be; what there is cannot be used
            if not answer.object_available:
                return False
            reply.contents[reply.missing.pop(0)] = answer.object_content
        confirmed = ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=reply.identity)
        client.ConfirmMessageReceived(confirmed)
        return True


def _with(message: Message, content: RecordDict) -> Message:
    message.content = content
    return message


def _opened(announced: _Announced, asked: str) -> Message | None:
    """What was replied; None when that cannot be used. The bytes are a member's: others go on whatever they are."""
    try:
        reply = whole_message(announced.identity, announced.contents)
    except RefusedError:
        return None
    said = reply.metadata
    if (said.src_node_id, said.reply_to_message_id) != (announced.node, asked) or reply.has_error():
        return None
    try:
        return _with(reply, unpacked(reply.content))
    except RefusedError:
        return None
