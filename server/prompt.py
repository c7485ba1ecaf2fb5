"""A Flower grid as a deployed coordinator uses it: messages are packed, and replies looked for when they have come.

Flower's own looks for replies once in three seconds, and moves every part of a message by a request of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from cohortium.server.bell import GATE, RUN, Bell, ring
from cohortium.study.errors import RefusedError
from cohortium.study.packing import packed, unpacked

__all__ = ["PromptGrid"]

_LOOK_SECONDS = 0.5
"""Between two looks for replies while some have not come."""


class PromptGrid(Grid):
    """A grid of Flower's that knows when to look, from construction until `close`.

    Args:
        grid: does the work.
        folder: of the coordinator, for the bells.
    """

    def __init__(self, grid: Grid, folder: Path) -> None:
        self._grid, self._folder = grid, folder
        self._bell = Bell(folder, RUN)

    def close(self) -> None:
        """Take the bell down."""
        self._bell.close()

    @property
    def inner(self) -> Grid:
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

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid`. A reply that is not packed as it should be comes as one without content that can be used."""
        return [_opened(reply) for reply in self._grid.pull_messages(message_ids)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The replies that come within `timeout` seconds; who is gone is not waited for."""
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = {identity for identity in self.push_messages(list(messages)) if identity}
        replies: list[Message] = []
        while waiting:
            self._await(len(waiting), deadline)
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
            if deadline is not None and time.monotonic() >= deadline:
                break
        return replies

    def _await(self, replies: int, deadline: float | None) -> None:
        """Until so many replies have come, or it is time to look what has come so far."""
        until = time.monotonic() + _LOOK_SECONDS
        until = until if deadline is None else min(until, deadline)
        while replies > 0 and (left := until - time.monotonic()) > 0:
            replies -= self._bell.wait(left)


def _with(message: Message, content: RecordDict) -> Message:
    message.content = content
    return message


def _opened(reply: Message) -> Message:
    if reply.has_error():
        return reply
    try:
        return _with(reply, unpacked(reply.content))
    except RefusedError:
        return _with(reply, RecordDict())
