"""The coordinator's part in witnessing: it carries checkpoints between institutions, and takes nothing unwitnessed.

After every question each institution's log has one more entry. Its new checkpoint goes to the others, with the proof
that the log only grew; what they cosign goes back with the next question. A contribution is taken only with a
checkpoint that a quorum cosigned and that covers everything up to the question before, and with the entry that it says
was made for this very contribution. A last exchange cosigns the last entries.

The coordinator can hold a cosignature back, which stops the run. It can make none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from cohortium.governance.log import (
    AuditLog,
    Checkpoint,
    CosignerVerifier,
    Note,
    Verifier,
    log_origin,
    log_verifiers,
    open_checkpoint,
    open_statement,
    parse_checkpoint,
    parse_note,
    parse_signatures,
    quorum_for,
)
from cohortium.privacy.secure_sum import OnceStore
from cohortium.study.canonical import canonical_bytes, digest_json
from cohortium.study.charter import Charter
from cohortium.study.errors import DataError, RefusedError
from cohortium.study.question import LogMessage, Question
from cohortium.study.witness import Growth, LogNews, Statement, ToCosign, WitnessReply, WitnessRequest

__all__ = ["Contribution", "KeptStatements", "Witnesses"]

_TRIES, _RUN = 3, -1
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Contribution:
    """What an institution's log says of one contribution.

    Args:
        institution: whose.
        leaf: hash of the log entry, hexadecimal.
        decision: digest of the decision to admit the run.
        statement: that proves it.
    """

    institution: str
    leaf: str
    decision: str
    statement: Statement


@dataclass(frozen=True)
class KeptStatements:
    """What the coordinator keeps of one run for evidence: statements beside contributions, and the last cosignatures.

    Args:
        store: the coordinator's own, durable.
        run: 32 hexadecimal digits.
    """

    store: OnceStore
    run: str

    def keep(self, question: str, contributions: Sequence[Contribution]) -> None:
        """Keep the statements of a question's contributions, whatever is kept of it for others."""
        said = {one.institution: one.statement.model_dump(mode="json") for one in contributions}
        self.store.keep(self.run, _RUN, self._item(question, said), canonical_bytes(said))

    def of(self, question: str, institutions: Collection[str]) -> dict[str, Statement]:
        """The statements of these institutions' contributions to a question; none where they were not kept."""
        found = self.store.find(self.run, _RUN, self._item(question, institutions))
        said = {} if found is None else json.loads(found)
        return {name: Statement.model_validate(one) for name, one in said.items()}

    def keep_closed(self, cosigned: Mapping[str, str]) -> None:
        """Keep every institution's last checkpoint of the run, with its cosignatures."""
        self.store.keep(self.run, _RUN, "closed", canonical_bytes(dict(cosigned)))

    def closed(self) -> dict[str, str]:
        """Those checkpoints, by institution; none before the run was closed."""
        found = self.store.find(self.run, _RUN, "closed")
        return {} if found is None else json.loads(found)

    @staticmethod
    def _item(question: str, institutions: Iterable[str]) -> str:
        return f"statements {question} of {digest_json(sorted(institutions))}"


@dataclass
class _Log:
    """The newest of one log that the coordinator was given.

    Args:
        verifier: of its checkpoints.
        checkpoint, note: None before the first news.
        growth: proofs from earlier sizes to this checkpoint.
        known: by witness, the size that it cosigned last.
        lines: by witness, its cosignature of this checkpoint.
        floor: what the next contribution's cosigned checkpoint has to cover.
    """

    verifier: Verifier
    checkpoint: Checkpoint | None = None
    note: str = ""
    growth: dict[int, tuple[str, ...]] = field(default_factory=dict)
    known: dict[str, int] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    floor: int = 0


class Witnesses:
    """The logs of one run, and the exchange of cosignatures.

    Args:
        plan: digest of the run's plan.
        run: 32 hexadecimal digits.
        charter: names the logs and their quorums.
        own: the coordinator's own log, cosigned by the institutions like the others.
        store: the coordinator's own, durable; statements are kept in it.
        ask: sends requests to institutions by name; gives the answers of those who answered.
    """

    def __init__(
        self,
        plan: str,
        run: str,
        charter: Charter,
        own: AuditLog,
        store: OnceStore,
        ask: Callable[[Mapping[str, WitnessRequest]], Mapping[str, WitnessReply]],
    ) -> None:
        self._plan, self._run, self._own, self._ask = plan, run, own, ask
        self._kept = KeptStatements(store, run)
        self._logs = {origin: _Log(verifier) for origin, verifier in log_verifiers(charter).items()}
        self._origins = {member.name: log_origin(charter.name, member.name) for member in charter.institutions}
        self._names = {self._origins[one.name]: one.name for one in charter.institutions if one.identity}
        self._quorums = {one.name: quorum_for(charter, one.name) for one in charter.institutions if one.identity}
        self._cosigners = {
            one.name: CosignerVerifier(log_origin(charter.name, one.name), bytes.fromhex(one.identity))
            for one in charter.institutions
            if one.identity is not None
        }
        self.members: tuple[str, ...] = ()

    def who(self, reply: WitnessReply) -> str:
        """The institution whose log signed a reply's checkpoint; `RefusedError` for one that the charter lacks."""
        name = self._names.get(_origin(reply.checkpoint))
        if name is None:
            raise RefusedError("a checkpoint of a log that the charter does not name")
        self.take(name, reply)
        return name

    def take(self, institution: str, news: LogNews) -> None:
        """Remember the newest checkpoint of an institution's log.

        Raises:
            RefusedError: of another log, not signed by its key, or of a log that shrank or forked.
        """
        self._take(self._logs[self._origins[institution]], news)
        if isinstance(news, WitnessReply):
            for one in news.witnessed:
                if one.log in self._logs:
                    self._logs[one.log].known[institution] = one.size

    def exchange(self) -> None:
        """Have every log's newest checkpoint cosigned by all members that answer."""
        own = self._own_log()
        if own is not None:
            self._take(own, self._own_news())
        for _ in range(_TRIES):
            if not (self._prove() | self._cosign()):
                return

    def request_for(self, institution: str) -> LogMessage | None:
        """What goes to an institution with the next question: its checkpoint with the cosignatures that came."""
        log = self._logs[self._origins[institution]]
        if not log.lines:
            return None
        return LogMessage(WitnessRequest(plan=self._plan, cosigned=self._cosigned(log)).to_bytes())

    def settle(self, institution: str) -> None:
        """From now on a contribution needs a cosigned checkpoint that covers what the log holds now."""
        log = self._logs[self._origins[institution]]
        log.floor = log.checkpoint.size if log.checkpoint is not None else 0

    def lacking(self, institutions: Iterable[str]) -> list[str]:
        """Those whose newest checkpoint has no quorum: they would not answer."""
        return [
            name
            for name in institutions
            if not self._quorums[name].satisfied(self._cosigned(self._logs[self._origins[name]]))
        ]

    def contribution(self, institution: str, data: bytes, question: Question) -> Contribution:
        """What the statement beside an institution's contribution proves.

        Raises:
            RefusedError: no cosigned checkpoint that covers the question before, no quorum, a log that does not
                continue that checkpoint, or no entry of this question in the log.
        """
        statement = Statement.from_bytes(data)
        return _refusing(lambda: self._proven(institution, statement, question))

    def _proven(self, name: str, statement: Statement, question: Question) -> Contribution:
        log, stated = self._logs[self._origins[name]], open_statement(statement, self._quorums[name])
        if stated.covered is not None and stated.covered.size < log.floor:
            raise RefusedError("a contribution whose log was not witnessed up to the question before")
        decision = _decision(stated.leaf.entry, question)
        self.take(name, statement)
        self.settle(name)
        return Contribution(name, stated.hash, decision, statement)

    def record(self, question: Question, contributions: Sequence[Contribution]) -> None:
        """Write a question and whose contributions were taken into the coordinator's own log; keep their statements."""
        self._kept.keep(question.digest, contributions)
        header = question.header
        entry = {
            "event": "question",
            "plan": header.plan,
            "run": header.run,
            "phase": header.phase,
            "step": header.step,
            "attempt": header.attempt,
            "question": question.digest,
            "contributions": {one.institution: {"leaf": one.leaf, "decision": one.decision} for one in contributions},
        }
        names = digest_json(sorted(one.institution for one in contributions))
        self._own.append([entry], keys=[f"question {question.digest} of {names}"])

    def close(self, released: str) -> None:
        """The last exchange: the last entries are cosigned, and every institution is told."""
        entry = {"event": "released", "plan": self._plan, "run": self._run, "released": released}
        self._own.append([entry], keys=[f"released {self._run}"])
        self.exchange()
        told = {
            name: WitnessRequest(plan=self._plan, cosigned=self._cosigned(self._logs[self._origins[name]]))
            for name in self.members
            if self._logs[self._origins[name]].lines
        }
        self._ask(told)
        if told:
            self._kept.keep_closed({name: str(request.cosigned) for name, request in told.items()})
        own = self._own_log()
        if own is not None and own.lines:
            self._own.keep_cosigned(self._cosigned(own))

    def _prove(self) -> bool:
        """Ask for the proofs from the sizes that witnesses know; whether any was asked for."""
        wanted: dict[str, set[int]] = {}
        for origin, log in self._logs.items():
            if log.checkpoint is None:
                continue
            sizes = {log.known.get(witness, 0) for witness in self.members if self._origins[witness] != origin}
            missing = {size for size in sizes - set(log.growth) if 0 < size < log.checkpoint.size}
            if missing and origin == self._own.origin:
                self._take(log, self._own_news(missing))
            elif missing:
                wanted[self._names[origin]] = missing
        requests = {
            name: WitnessRequest(plan=self._plan, growth_from=tuple(sorted(sizes))) for name, sizes in wanted.items()
        }
        for name, reply in self._ask(requests).items():
            self._try_take(name, reply)
        return bool(wanted)

    def _cosign(self) -> bool:
        """Have the newest checkpoints cosigned where a witness has not yet.

        Returns:
            Whether there is more to cosign: a witness knew another size, or told of a log that grew meanwhile.
        """
        requests, surprised = {}, False
        before = {origin: log.note for origin, log in self._logs.items()}
        for witness in self.members:
            asked = tuple(
                ToCosign(growth=Growth(old=old, proof=log.growth.get(old, ())), checkpoint=log.note)
                for origin, log in self._logs.items()
                if log.checkpoint is not None and origin != self._origins[witness] and witness not in log.lines
                for old in (log.known.get(witness, 0),)
                if old in (0, log.checkpoint.size) or old in log.growth
            )
            if asked:
                requests[witness] = WitnessRequest(plan=self._plan, to_cosign=asked)
        for witness, reply in self._ask(requests).items():
            for one in reply.witnessed:
                log = self._logs.get(one.log)
                if log is None:
                    continue
                log.known[witness] = one.size
                if one.line is not None and self._holds(log, witness, one.line):
                    log.lines[witness] = one.line
                surprised |= one.line is None and log.checkpoint is not None and one.size < log.checkpoint.size
            self._try_take(witness, reply)
        return surprised or any(log.note != before[origin] for origin, log in self._logs.items())

    def _try_take(self, institution: str, reply: WitnessReply) -> None:
        """An institution whose log shrank or forked is not heard: what it contributes next is not taken."""
        with suppress(RefusedError):
            self.take(institution, reply)

    def _holds(self, log: _Log, witness: str, line: str) -> bool:
        """Whether a line is one cosignature of the newest checkpoint, and nothing besides."""
        try:
            made = parse_signatures(line)
            return len(made) == 1 and bool(Note(parse_note(log.note).text, made).signers([self._cosigners[witness]]))
        except DataError:
            return False

    def _take(self, log: _Log, news: LogNews) -> None:
        checkpoint, opened = _refusing(lambda: open_checkpoint(news.checkpoint, log.verifier))
        before = log.checkpoint
        if before is not None and (
            checkpoint.size < before.size or (checkpoint.size == before.size and checkpoint.root != before.root)
        ):
            raise RefusedError("an audit log that shrank or forked", place=checkpoint.origin)
        growth = {one.old: one.proof for one in news.growth}
        if before is not None and checkpoint.size == before.size:
            log.growth |= growth
            return
        key = log.verifier.name, log.verifier.key_id
        own = tuple(one for one in opened.signatures if (one.name, one.key_id) == key)  # others' were not verified
        log.checkpoint, log.note, log.growth, log.lines = checkpoint, Note(opened.text, own).to_text(), growth, {}

    def _own_log(self) -> _Log | None:
        """The coordinator's log, where the charter pins its key."""
        return self._logs.get(self._own.origin)

    def _own_news(self, sizes: Collection[int] = ()) -> LogNews:
        note = self._own.checkpoint()
        size = _size(note)
        growth = tuple(
            Growth(old=old, proof=tuple(part.hex() for part in self._own.consistency(old, size)))
            for old in sorted(sizes)
        )
        return LogNews(checkpoint=note, growth=growth)

    def _cosigned(self, log: _Log) -> str:
        """The newest checkpoint with the cosignatures that came."""
        note = parse_note(log.note)
        return note.with_signatures(part for line in log.lines.values() for part in parse_signatures(line)).to_text()


def _refusing(read: Callable[[], _Read]) -> _Read:
    """What an institution sent, refused when it cannot be read: the coordinator goes on without it."""
    try:
        return read()
    except DataError as error:
        raise RefusedError(error.message, place=error.place, fix=error.fix) from error


def _origin(note: str) -> str:
    return _refusing(lambda: parse_checkpoint(parse_note(note).text)).origin


def _size(note: str) -> int:
    return parse_checkpoint(parse_note(note).text).size


def _decision(entry: Mapping[str, object], question: Question) -> str:
    """The decision in a log entry that says what it has to say of this question; `RefusedError` otherwise."""
    header = question.header
    said = {
        "event": "release",
        "plan": header.plan,
        "run": header.run,
        "phase": header.phase,
        "step": header.step,
        "attempt": header.attempt,
        "question": question.digest,
    }
    rest = {name: value for name, value in entry.items() if name not in said}
    if {name: entry.get(name) for name in said} != said or set(rest) != {"charge", "decision", "consent", "mu2", "tv"}:
        raise RefusedError("a log entry that is not of this contribution")
    decision = rest["decision"]
    if not isinstance(decision, str) or not isinstance(rest["consent"], str) or len(rest["consent"]) != 64:
        raise RefusedError("a log entry without a decision or a commitment")
    return decision
