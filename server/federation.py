"""Asking institutions over a Flower grid, and adding up what they release: in the clear, or in a secure sum.

Nobody's contribution is taken without what its audit log has to say of it (`server.witnesses`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from cohortium.governance.log import AuditLog
from cohortium.privacy.secure_sum import Aggregator, OnceStore, SumRound, SumRun
from cohortium.server.witnesses import Contribution, Witnesses
from cohortium.study.charter import Charter
from cohortium.study.errors import RefusedError
from cohortium.study.plan import Plan
from cohortium.study.question import (
    LogMessage,
    PlanQuestion,
    Question,
    Release,
    SumMessage,
    question_request,
    reply_kind,
    split_log,
    with_log,
)
from cohortium.study.witness import WitnessReply, WitnessRequest

__all__ = [
    "Federation",
    "Gathering",
    "OpenFederation",
    "SecureFederation",
    "SeparateFederation",
    "WitnessedFederation",
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


class WitnessedFederation(Federation, Protocol):
    """Institutions whose audit logs witness each other."""

    def close(self, released: str) -> None:
        """Have the logs' last entries cosigned; `released` is the digest of what the run made known."""
        ...


class OpenFederation:
    """Institutions that add full noise each (`local`): their releases come in the clear and are added up.

    Args:
        grid: reaches them.
        nodes: their node ids by their name in the charter.
        witnesses: of their logs.
        minimum: with fewer left, the run stops.
        timeout: seconds to wait for the answers to one question.
    """

    def __init__(
        self, grid: Grid, nodes: Mapping[str, int], witnesses: Witnesses, minimum: int, timeout: float
    ) -> None:
        self._grid = grid
        self._witnesses = witnesses
        self._minimum = minimum
        self._timeout = timeout
        self.nodes = dict(nodes)
        _require_enough(len(self.nodes), minimum, "accepted the plan")

    def ask(self, question: Question, width: int) -> tuple[NDArray[np.int64], int]:
        """See `Federation`. An institution that declines or does not answer leaves the run."""
        _require_witnessed(self._witnesses, self.nodes, self._minimum)
        contents = {
            node: with_log(question_request(question, None), self._witnesses.request_for(name))
            for name, node in self.nodes.items()
        }
        replies = _send(self._grid, "query.answer", contents, self._timeout)
        total = np.zeros(width, dtype=np.uint64)
        answered, contributions = {}, []
        for name, node in self.nodes.items():
            release = _release(replies.get(node), question.digest, width)
            said = _contribution(self._witnesses, release, question, name)
            if release is not None and said is not None:
                total += release.vector.view(np.uint64)
                answered[name] = node
                contributions.append(said)
        self.nodes = answered
        _require_enough(len(answered), self._minimum, _answered(question))
        self._witnesses.record(question, contributions)
        self._witnesses.exchange()
        return total.view(np.int64), len(answered)

    def alone(self, name: str) -> OpenFederation:
        """The federation of one of them, by the same witnesses."""
        return OpenFederation(self._grid, {name: self.nodes[name]}, self._witnesses, 1, self._timeout)

    def close(self, released: str) -> None:
        """See `WitnessedFederation`."""
        self._witnesses.close(released)


class SeparateFederation:
    """Institutions that add full noise each (`local`), asked one after the other: everyone's own answer is kept.

    Args:
        members: a federation of one for every institution, by its name in the charter; all of one run.
        minimum: with fewer left, the run stops.
    """

    def __init__(self, members: Mapping[str, WitnessedFederation], minimum: int) -> None:
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

    def close(self, released: str) -> None:
        """See `WitnessedFederation`. Members share their witnesses: one closes for all."""
        next(iter(self._members.values())).close(released)


class SecureFederation:
    """Institutions that share the noise (`distributed`): the coordinator sees sums of at least t of them.

    An institution that misses a question is asked for new keys before the next one, and takes part again.

    Args:
        grid: reaches them.
        nodes: their node ids by their name in the charter.
        aggregator: knows all of them.
        witnesses: of their logs.
        store: the aggregator's, durable; a resumed run asks as the interrupted one did.
        timeout: seconds to wait for one wave.
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Mapping[str, int],
        aggregator: Aggregator,
        witnesses: Witnesses,
        store: OnceStore,
        timeout: float,
    ) -> None:
        self._grid = grid
        self._witnesses = witnesses
        self._aggregator = aggregator
        self._store = store
        self._timeout = timeout
        names = aggregator.close_roster()
        self._names = dict(enumerate(names))
        self._nodes = {party: nodes[name] for party, name in enumerate(names) if name in nodes}
        _require_enough(len(self._nodes), aggregator.terms.contributions, "accepted the plan")
        self._rounds = 0

    def ask(self, question: Question, width: int) -> tuple[NDArray[np.int64], int]:
        """See `Federation`."""
        parties = [self._names[party] for party in self._nodes]
        _require_witnessed(self._witnesses, parties, self._aggregator.terms.contributions)
        number = self._round_of(question.digest)
        lacking = sorted(set(self._nodes) - set(self._aggregator.offered(number)))
        request = SumMessage(self._aggregator.share_request(number)).to_record()
        for party, payload in self._messages("query.share", dict.fromkeys(lacking, request)).items():
            _tolerate(partial(self._aggregator.take_offer, payload, party, number))
        attempt = self._aggregator.begin(number, question.digest)
        contributions = self._take_vectors(attempt, question, width)
        content = SumMessage(attempt.choose_survivors()).to_record()
        if attempt.waves == 3:
            replies = self._messages("query.consent", dict.fromkeys(attempt.contributors, content))
            for party, payload in replies.items():
                _tolerate(partial(attempt.take_consent, party, payload))
        content = SumMessage(attempt.unmask_request()).to_record()
        for party, payload in self._messages("query.unmask", dict.fromkeys(attempt.contributors, content)).items():
            _tolerate(partial(attempt.take_opened, party, payload))
        total = attempt.total()
        self._witnesses.record(question, contributions)
        self._witnesses.exchange()
        return total, len(attempt.contributors)

    def close(self, released: str) -> None:
        """See `WitnessedFederation`."""
        self._witnesses.close(released)

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

    def _take_vectors(self, attempt: SumRound, question: Question, width: int) -> list[Contribution]:
        """The input wave, and once more for those who did not answer: they send the very same bytes."""
        waiting = [party for party in attempt.parties if party in self._nodes]
        contributions: list[Contribution] = []
        for _ in range(2):
            contents = {
                party: with_log(
                    question_request(question, attempt.input_request(party)),
                    self._witnesses.request_for(self._names[party]),
                )
                for party in waiting
            }
            for party, reply in self._send("query.answer", contents).items():
                release = _release(reply, question.digest, width)
                said = _contribution(self._witnesses, release, question, self._names[party])
                if release is not None and said is not None:
                    _tolerate(partial(attempt.take_vector, party, release.vector, release.note))
                    contributions.append(said)
            waiting = [party for party in waiting if party not in attempt.contributors]
            if len(attempt.contributors) >= self._aggregator.terms.contributions:
                break
        taken = {self._names[party] for party in attempt.contributors}
        return [one for one in contributions if one.institution in taken]

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
        members: which institution is at which node, as the transport has authenticated them; None where it does not, in
            simulations.
    """

    plan: Plan
    charter: Charter
    run: str
    expected: int
    timeout: float = 600.0
    members: Callable[[], Mapping[int, str]] | None = None


def gather_federation(grid: Grid, gathering: Gathering, store: OnceStore, log: AuditLog) -> WitnessedFederation:
    """Wait until the expected institutions are connected, and keep those that accept the plan.

    Args:
        grid: reaches the institutions.
        gathering: what for.
        store: the coordinator's own, durable.
        log: the coordinator's audit log.

    Raises:
        RefusedError: fewer than expected connected in time, or fewer than the plan's minimum accepted.
        PlanError: the plan's numbers are not safe for those that accepted.
    """
    plan, timeout = gathering.plan, gathering.timeout
    nodes = _connected(grid, gathering)
    known = None if gathering.members is None else gathering.members()
    named: dict[str, int] = {}

    def ask(requests: Mapping[str, WitnessRequest]) -> dict[str, WitnessReply]:
        contents = {named[name]: LogMessage(one.to_bytes()).to_record() for name, one in requests.items()}
        replies = _send(grid, "query.witness", contents, timeout)
        read = {name: _log_reply(replies.get(named[name])) for name in requests}
        return {name: reply for name, reply in read.items() if reply is not None}

    witnesses = Witnesses(plan.digest, gathering.run, gathering.charter, log, store, ask)
    hello = LogMessage(WitnessRequest(plan=plan.digest).to_bytes()).to_record()
    for node, reply in _send(grid, "query.witness", dict.fromkeys(nodes, hello), timeout).items():
        news = _log_reply(reply)
        name = None if news is None else _tolerate(partial(witnesses.who, news))
        if name is not None and (known is None or known.get(node) == name):
            named[name] = node
    witnesses.members = tuple(named)
    witnesses.exchange()
    request = PlanQuestion(plan.digest, gathering.run, int(time.time()))
    contents = {node: with_log(request.to_record(), witnesses.request_for(name)) for name, node in named.items()}
    replies = _send(grid, "query.plan", contents, timeout)
    if plan.trust != "distributed":
        accepting = {name: node for name, node in named.items() if _accepted(replies.get(node), witnesses, name)}
        witnesses.exchange()
        return OpenFederation(grid, accepting, witnesses, plan.min_institutions, timeout)
    aggregator = Aggregator(SumRun.of(plan, gathering.charter, gathering.run), store)
    introduced: dict[str, int] = {}
    for name, node in named.items():
        payload = _introduction(replies.get(node), witnesses, name)
        if payload is not None and _tolerate(partial(aggregator.introduce, payload)) == name:
            introduced[name] = node
    _require_enough(len(introduced), plan.min_institutions, "accepted the plan")
    witnesses.exchange()
    return SecureFederation(grid, introduced, aggregator, witnesses, store, timeout)


def _connected(grid: Grid, gathering: Gathering) -> list[int]:
    def connected() -> list[int]:
        here = sorted(grid.get_node_ids())
        return here if gathering.members is None else sorted(set(here) & set(gathering.members()))

    deadline = time.monotonic() + gathering.timeout
    nodes = connected()
    while len(nodes) < gathering.expected:
        if time.monotonic() > deadline:
            raise RefusedError(
                f"{len(nodes)} of {gathering.expected} institutions connected in {gathering.timeout:.0f} s",
                fix="start the missing nodes, or expect fewer",
            )
        time.sleep(_POLL_SECONDS)  # the grid offers no way to be told
        nodes = connected()
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


def _accepted(reply: Message | None, witnesses: Witnesses, name: str) -> bool:
    """Whether an institution accepted the plan, and its log tells so."""
    return _tolerate(lambda: reply_kind(_with_news(reply, witnesses, name))) == "accepted"


def _introduction(reply: Message | None, witnesses: Witnesses, name: str) -> bytes | None:
    """An institution's keys of a run, when its log tells that it accepted the plan."""
    message = _tolerate(lambda: SumMessage.from_record(_with_news(reply, witnesses, name)))
    return None if message is None else message.payload


def _with_news(reply: Message | None, witnesses: Witnesses, name: str) -> RecordDict:
    """The answer to a plan; what is new in the institution's log is taken from beside it."""
    content, log = split_log(_content(reply))
    if log is None:
        raise RefusedError("an answer without news of the log")
    witnesses.take(name, WitnessReply.from_bytes(log.payload))
    witnesses.settle(name)
    return content


def _log_reply(reply: Message | None) -> WitnessReply | None:
    return _tolerate(lambda: WitnessReply.from_bytes(LogMessage.from_record(_content(reply)).payload))


def _contribution(witnesses: Witnesses, release: Release | None, question: Question, name: str) -> Contribution | None:
    """What the log says of a release; None for one that is not to be taken."""
    if release is None:
        return None
    return _tolerate(lambda: witnesses.contribution(name, release.statement, question))


def _require_witnessed(witnesses: Witnesses, names: Collection[str], minimum: int) -> None:
    """Nobody is asked, and so nobody charged, while fewer than the minimum would answer."""
    if witnesses.lacking(names):
        witnesses.exchange()
    lacking = witnesses.lacking(names)
    if len(names) - len(lacking) < minimum:
        raise RefusedError(
            f"the audit logs of {len(lacking)} institutions have no quorum of witnesses; nothing was asked or charged",
            fix="bring the missing institutions back and resume",
        )


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
