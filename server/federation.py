"""Asking institutions over a Flower grid and adding up what they release."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from cohortium.study.errors import RefusedError
from cohortium.study.plan import Plan
from cohortium.study.question import Question, Release, reply_kind

__all__ = ["Federation", "gather_federation"]

_POLL_SECONDS = 0.2


class Federation:
    """The institutions that accepted a plan and have answered every question so far.

    Args:
        grid: reaches them.
        nodes: their node ids.
        minimum: with fewer left, the run stops.
        timeout: seconds to wait for the answers to one question.
    """

    def __init__(self, grid: Grid, nodes: Sequence[int], minimum: int, timeout: float) -> None:
        self._grid = grid
        self._minimum = minimum
        self._timeout = timeout
        self.nodes = tuple(nodes)
        self._require_enough("accepted the plan")

    def ask(self, question: Question, width: int) -> tuple[NDArray[np.int64], int]:
        """The sum of all releases modulo 2**64, and how many institutions it is of.

        An institution that declines or does not answer leaves the run: later sums are without it.

        Raises:
            RefusedError: fewer institutions than the plan's minimum are left.
        """
        digest = question.digest
        replies = _send(self._grid, "query.answer", self.nodes, question.to_record(), self._timeout)
        total = np.zeros(width, dtype=np.uint64)
        answered = []
        for node in self.nodes:
            vector = _released(replies.get(node), digest, width)
            if vector is not None:
                total += vector.view(np.uint64)
                answered.append(node)
        self.nodes = tuple(answered)
        self._require_enough(f"answered {question.header.phase} step {question.header.step}")
        return total.view(np.int64), len(answered)

    def _require_enough(self, what: str) -> None:
        if len(self.nodes) < self._minimum:
            raise RefusedError(
                f"only {len(self.nodes)} institutions {what}; the plan needs {self._minimum}",
                fix="each institution's own log says why it declined",
            )


def gather_federation(grid: Grid, plan: Plan, expected: int, timeout: float) -> Federation:
    """Wait until the expected institutions are connected, and keep those that accept the plan.

    Args:
        grid: reaches the institutions.
        plan: what they are asked to accept, by digest.
        expected: how many to wait for before the first question: a run must not silently begin on a subset.
        timeout: seconds to wait, for them to connect and again for them to reply.

    Raises:
        RefusedError: fewer than expected connected in time, or fewer than the plan's minimum accepted.
    """
    deadline = time.monotonic() + timeout
    nodes = sorted(grid.get_node_ids())
    while len(nodes) < expected:
        if time.monotonic() > deadline:
            raise RefusedError(
                f"{len(nodes)} of {expected} institutions connected in {timeout:.0f} s",
                fix="start the missing nodes, or expect fewer",
            )
        time.sleep(_POLL_SECONDS)  # the grid offers no way to be told
        nodes = sorted(grid.get_node_ids())
    request = RecordDict({"plan": ConfigRecord({"digest": plan.digest})})
    replies = _send(grid, "query.plan", nodes, request, timeout)
    accepting = [node for node in nodes if _accepted(replies.get(node))]
    return Federation(grid, accepting, plan.min_institutions, timeout)


def _send(
    grid: Grid, message_type: str, nodes: Sequence[int], content: RecordDict, timeout: float
) -> dict[int, Message]:
    messages = [
        Message(content=content, dst_node_id=node, message_type=message_type, group_id=str(index))
        for index, node in enumerate(nodes)
    ]
    return {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages, timeout=timeout)}


def _accepted(reply: Message | None) -> bool:
    if reply is None or reply.has_error():
        return False
    try:
        return reply_kind(reply.content) == "accepted"
    except RefusedError:
        return False


def _released(reply: Message | None, question: str, width: int) -> NDArray[np.int64] | None:
    if reply is None or reply.has_error():
        return None
    try:
        if reply_kind(reply.content) != "release":
            return None
        release = Release.from_record(reply.content, width)
    except RefusedError:
        return None
    return release.vector if release.question == question else None
