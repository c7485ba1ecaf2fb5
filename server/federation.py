"""Asking institutions over a Flower grid, and adding up what they release: in the clear, or in a secure sum."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from cohortium.privacy.secure_sum import Aggregator, OnceStore, SumRound, SumRun
from cohortium.study.charter import Charter
from cohortium.study.errors import RefusedError
from cohortium.study.plan import Plan
from cohortium.study.question import PlanQuestion, Question, Release, SumMessage, question_request, reply_kind

__all__ = [
    "Federation",
    "Gathering",
    "OpenFederation",
    "SecureFederation",
    "SeparateFederation",
    "gather_federation",
]

_POLL_SECONDS = 0.2
_RUN = -1

_Answer = TypeVar("_Answer")


class Federation(Protocol):
    """The institutions that accepted a plan."""

    def ask(self, question: Question, width: int) -> tuple[NDArray[np.int64], int]:
        """The noised sum of their answers modulo 2**64, and how many institutions it is of.

        Raises:
            SumFailed: this attempt came to nothing; another may succeed.
            RefusedError: fewer institutions than the plan's minimum are left.
        """
        ...


class OpenFederation:
    """Institutions that add full noise each (`local`): their releases come in the clear and are added up.

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
        _require_enough(len(self.nodes), minimum, "accepted the plan")

    def ask(self, question: Question, width: int) -> tuple[NDArray[np.int64], int]:
        """See `Federation`. An institution that declines or does not answer leaves the run."""
        content = question_request(question, None)
        replies = _send(self._grid, "query.answer", dict.fromkeys(self.nodes, content), self._timeout)
        total = np.zeros(width, dtype=np.uint64)
        answered = []
        for node in self.nodes:
            release = _release(replies.get(node), question.digest, width)
            if release is not None:
                total += release.vector.view(np.uint64)
                answered.append(node)
        self.nodes = tuple(answered)
        _require_enough(len(answered), self._minimum, _answered(question))
        return total.view(np.int64), len(answered)


class SeparateFederation:
    """Institutions that add full noise each (`local`), asked one after the other: everyone's own answer is kept.

    Args:
        members: a federation of one for every institution, by the number of its node.
        minimum: with fewer left, the run stops.
    """

    def __init__(self, members: Mapping[str, Federation], minimum: int) -> None:
        self._members = dict(members)
        self._minimum = minimum
        self.parts: dict[str, NDArray[np.int64]] = {}
        """What everybody answered to the last question."""
        _require_enough(len(members), minimum, "accepted the plan")

    def ask(self, question: Question, width: int) -> tuple[NDArray[np.int64], int]:
        """See `Federation`. An institution that declines or does not answer leaves the run."""
        answers = {name: _tolerate(partial(member.ask, question, width)) for name, member in self._members.items()}
        self.parts = {name: answer[0] for name, answer in answers.items() if answer is not None}
        self._members = {name: self._members[name] for name in self.parts}
        _require_enough(len(self.parts), self._minimum, _answered(question))
        total = np.zeros(width, dtype=np.uint64)
        for part in self.parts.values():
            total += part.view(np.uint64)
        return total.view(np.int64), len(self.parts)


class SecureFederation:
    """Institutions that share the noise (`distributed`): the coordinator sees sums of at least t of them.

    An institution that misses a question is asked for new keys before the next one, and takes part again.

    Args:
        grid: reaches them.
        nodes: their node ids by their name in the charter.
        aggregator: knows all of them.
        store: the aggregator's, durable; a resumed run asks as the interrupted one did.
        timeout: seconds to wait for one wave.
    """

    def __init__(
        self, grid: Grid, nodes: Mapping[str, int], aggregator: Aggregator, store: OnceStore, timeout: float
    ) -> None:
        self._grid = grid
        self._aggregator = aggregator
        self._store = store
        self._timeout = timeout
        names = aggregator.close_roster()
        self._nodes = {party: nodes[name] for party, name in enumerate(names) if name in nodes}
        _require_enough(len(self._nodes), aggregator.terms.contributions, "accepted the plan")
        self._rounds = 0

    def ask(self, question: Question, width: int) -> tuple[NDArray[np.int64], int]:
        """See `Federation`."""
        number = self._round_of(question.digest)
        lacking = sorted(set(self._nodes) - set(self._aggregator.offered(number)))
        request = SumMessage(self._aggregator.share_request(number)).to_record()
        for party, payload in self._messages("query.share", dict.fromkeys(lacking, request)).items():
            _tolerate(partial(self._aggregator.take_offer, payload, party, number))
        attempt = self._aggregator.begin(number, question.digest)
        self._take_vectors(attempt, question, width)
        content = SumMessage(attempt.choose_survivors()).to_record()
        if attempt.waves == 3:
            replies = self._messages("query.consent", dict.fromkeys(attempt.contributors, content))
            for party, payload in replies.items():
                _tolerate(partial(attempt.take_consent, party, payload))
        content = SumMessage(attempt.unmask_request()).to_record()
        for party, payload in self._messages("query.unmask", dict.fromkeys(attempt.contributors, content)).items():
            _tolerate(partial(attempt.take_opened, party, payload))
        return attempt.total(), len(attempt.contributors)

    def _round_of(self, digest: str) -> int:
        """The round that serves a question: every attempt gets the next free one, for good."""
        run = self._aggregator.run.run
        known = self._store.find(run, _RUN, f"round of {digest}")
        if known is None:
            while self._store.find(run, _RUN, f"round {self._rounds}") is not None:
                self._rounds += 1
            self._store.keep(run, _RUN, f"round {self._rounds}", digest.encode())
            known = self._store.keep(run, _RUN, f"round of {digest}", str(self._rounds).encode())
        return int(known)

    def _take_vectors(self, attempt: SumRound, question: Question, width: int) -> None:
        """The input wave, and once more for those who did not answer: they send the very same bytes."""
        waiting = [party for party in attempt.parties if party in self._nodes]
        for _ in range(2):
            contents = {party: question_request(question, attempt.input_request(party)) for party in waiting}
            for party, reply in self._send("query.answer", contents).items():
                release = _release(reply, question.digest, width)
                if release is not None:
                    _tolerate(partial(attempt.take_vector, party, release.vector, release.note))
            waiting = [party for party in waiting if party not in attempt.contributors]
            if len(attempt.contributors) >= self._aggregator.terms.contributions:
                return

    def _messages(self, message_type: str, contents: Mapping[int, RecordDict]) -> dict[int, bytes]:
        """The payloads of a wave about keys, by party."""
        replies = self._send(message_type, contents)
        read = {party: _payload(reply) for party, reply in replies.items()}
        return {party: payload for party, payload in read.items() if payload is not None}

    def _send(self, message_type: str, contents: Mapping[int, RecordDict]) -> dict[int, Message]:
        reachable = {self._nodes[party]: content for party, content in contents.items() if party in self._nodes}
        replies = _send(self._grid, message_type, reachable, self._timeout)
        parties = {node: party for party, node in self._nodes.items()}
        return {parties[node]: reply for node, reply in replies.items() if node in parties}


@dataclass(frozen=True)
class Gathering:
    """What a federation is gathered for.

    Args:
        plan, charter: agreed.
        run: 32 hexadecimal digits.
        expected: how many institutions to wait for before the first question: no run silently begins on a subset.
        timeout: seconds to wait, for them to connect and for every wave of messages.
    """

    plan: Plan
    charter: Charter
    run: str
    expected: int
    timeout: float = 600.0


def gather_federation(grid: Grid, gathering: Gathering, store: OnceStore) -> Federation:
    """Wait until the expected institutions are connected, and keep those that accept the plan.

    Args:
        grid: reaches the institutions.
        gathering: what for.
        store: the coordinator's own, durable.

    Raises:
        RefusedError: fewer than expected connected in time, or fewer than the plan's minimum accepted.
        PlanError: the plan's numbers are not safe for those that accepted.
    """
    plan = gathering.plan
    nodes = _connected(grid, gathering)
    request = PlanQuestion(plan.digest, gathering.run, int(time.time())).to_record()
    replies = _send(grid, "query.plan", dict.fromkeys(nodes, request), gathering.timeout)
    if plan.trust != "distributed":
        accepting = [node for node in nodes if _accepted(replies.get(node))]
        return OpenFederation(grid, accepting, plan.min_institutions, gathering.timeout)
    aggregator = Aggregator(SumRun.of(plan, gathering.charter, gathering.run), store)
    named: dict[str, int] = {}
    for node in nodes:
        payload = _payload(replies.get(node))
        if payload is not None:
            name = _tolerate(partial(aggregator.introduce, payload))
            if name is not None:
                named[name] = node
    _require_enough(len(named), plan.min_institutions, "accepted the plan")
    return SecureFederation(grid, named, aggregator, store, gathering.timeout)


def _connected(grid: Grid, gathering: Gathering) -> list[int]:
    deadline = time.monotonic() + gathering.timeout
    nodes = sorted(grid.get_node_ids())
    while len(nodes) < gathering.expected:
        if time.monotonic() > deadline:
            raise RefusedError(
                f"{len(nodes)} of {gathering.expected} institutions connected in {gathering.timeout:.0f} s",
                fix="start the missing nodes, or expect fewer",
            )
        time.sleep(_POLL_SECONDS)  # the grid offers no way to be told
        nodes = sorted(grid.get_node_ids())
    return nodes


def _require_enough(count: int, minimum: int, what: str) -> None:
    if count < minimum:
        raise RefusedError(
            f"only {count} institutions {what}; the plan needs {minimum}",
            fix="each institution's own log says why it declined",
        )


def _answered(question: Question) -> str:
    return f"answered {question.header.phase} step {question.header.step}"


def _send(grid: Grid, message_type: str, contents: Mapping[int, RecordDict], timeout: float) -> dict[int, Message]:
    messages = [
        Message(content=content, dst_node_id=node, message_type=message_type, group_id=str(index))
        for index, (node, content) in enumerate(contents.items())
    ]
    if not messages:
        return {}
    return {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages, timeout=timeout)}


def _tolerate(take: Callable[[], _Answer]) -> _Answer | None:
    """What an institution sent, if it can be used; one whose message cannot be used did not answer."""
    try:
        return take()
    except RefusedError:
        return None


def _accepted(reply: Message | None) -> bool:
    return _tolerate(lambda: reply_kind(_content(reply))) == "accepted"


def _payload(reply: Message | None) -> bytes | None:
    message = _tolerate(lambda: SumMessage.from_record(_content(reply)))
    return None if message is None else message.payload


def _release(reply: Message | None, question: str, width: int) -> Release | None:
    def read() -> Release | None:
        content = _content(reply)
        return Release.from_record(content, width) if reply_kind(content) == "release" else None

    release = _tolerate(read)
    return release if release is not None and release.question == question else None


def _content(reply: Message | None) -> RecordDict:
    if reply is None or reply.has_error():
        raise RefusedError("no answer")
    return reply.content
