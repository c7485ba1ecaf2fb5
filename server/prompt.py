"""A Flower grid as a deployed coordinator uses it: messages are packed, and replies looked for as soon as can be.

Flower's own looks for replies once in three seconds, and moves every part of a message by a request of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from cohortium.study.errors import RefusedError
from cohortium.study.packing import packed, unpacked

__all__ = ["PromptGrid"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.25


class PromptGrid(Grid):
    """A grid of Flower's, asked more often.

    Args:
        grid: does the work.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

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
        return self._grid.push_messages([_with(message, packed(message.content)) for message in messages])

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid`. A reply that is not packed as it should be comes as one without content that can be used."""
        return [_opened(reply) for reply in self._grid.pull_messages(message_ids)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The replies that come within `timeout` seconds; who is gone is not waited for."""
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = {identity for identity in self.push_messages(list(messages)) if identity}
        replies: list[Message] = []
        pause = _FIRST_PAUSE
        while waiting:
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
            if not waiting or (deadline is not None and time.monotonic() >= deadline):
                break
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE)
        return replies


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
