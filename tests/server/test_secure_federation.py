"""Secure sums end to end: bit-exact over whoever is left, failed attempts paid and recorded, resumed as if unbroken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray
from scipy.stats import chisquare
from sqlalchemy import Engine

from cohortium.client.app import make_client_app
from cohortium.client.node import Node, open_node
from cohortium.governance.log import AuditLog
from cohortium.models.catalogue import build_query
from cohortium.models.marginals import Axis, MarginalsQuery
from cohortium.models.studies import phases
from cohortium.privacy.accounting import Spend, budget_for
from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.privacy.ledger import open_store
from cohortium.privacy.query import QuerySpec, bounded_total
from cohortium.privacy.secure_sum import SqlOnceStore, SumFailed
from cohortium.privacy.table import CustomerTable
from cohortium.server.app import StudyOrder, make_server_app
from cohortium.server.federation import Gathering, SecureFederation, gather_federation
from cohortium.server.study_run import Asked, run_study
from cohortium.simulations.grid import run_in_process
from cohortium.study.bundle import Bundle
from cohortium.study.contract import Contract
from cohortium.study.errors import RefusedError
from cohortium.study.plan import Plan
from cohortium.study.question import DECLINED, Question, QuestionHeader, Release, SumMessage, plain_reply

RUN = "ab" * 16
SECRET = "customer 4711"
ANSWER, CONSENT, UNMASK, WITNESS = "query.answer", "query.consent", "query.unmask", "query.witness"
QUERY = MarginalsQuery((Axis("visits", 0, 40, integer=True), Axis("score", -1, 1)))


class Died(BaseException):
    """The coordinator's process is gone."""


# --- a federation that can be disturbed ------------------------------------------------------------------------------


@dataclass
class Bank:
    """Institutions with seeded noise, the coordinator's store, and what is to go wrong.

    `faults` says what becomes of a message by its type and the institution's number; see `FaultyGrid`.
    """

    plan: Plan
    contract: Contract
    members: Any
    tables: list[CustomerTable]
    bits: list[Any]
    mirrors: Callable[[int], Any]
    coordinator: Engine
    log: AuditLog
    faults: dict[tuple[str, int], str] = field(default_factory=dict)
    sent: list[tuple[str, int, Message, Message | None]] = field(default_factory=list)
    broken: set[int] = field(default_factory=set)
    restarts: bool = False
    deaf_from: int = 99
    dies_after: Callable[[str, list[Message]], bool] = lambda *_: False

    @property
    def nodes(self) -> list[Node]:
        nodes: list[Node] = self.members.nodes
        return nodes

    @property
    def store(self) -> SqlOnceStore:
        return SqlOnceStore(self.coordinator)

    def open(self, context: Context) -> Node:
        index = int(context.node_config["partition-id"])
        if index in self.broken:
            raise ValueError(SECRET)
        return self.nodes[index]

    def restart(self) -> None:
        """Every institution's process ends and comes up again."""
        for index, node in enumerate(self.nodes):
            node.close()
            self.nodes[index] = open_node(self.members.folders[index], self.tables[index], self.bits[index])

    def on_grid(self, use: Callable[[Grid, Context], Any]) -> Any:
        results: list[Any] = []
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            results.append(use(FaultyGrid(grid, self), context))  # type: ignore[arg-type]

        run_in_process(server, make_client_app(self.open), nodes=len(self.nodes))
        return results[0]

    def study(self, said: list[Asked] | None = None) -> Bundle:
        """The whole study by the very apps."""
        delivered: list[Bundle] = []
        order = StudyOrder(self.plan, self.contract, self.members.charter, RUN, expected=len(self.nodes))
        progress = (lambda _: None) if said is None else said.append
        self.on_grid(make_server_app(order, self.store, self.log, delivered.append, progress))
        (bundle,) = delivered
        return bundle

    def asking(self, use: Callable[[SecureFederation], Any]) -> Any:
        """What `use` returns, given the gathered federation."""
        gathering = Gathering(self.plan, self.members.charter, RUN, len(self.nodes), 5.0)

        def gather(grid: Grid, _context: Context) -> Any:
            federation = gather_federation(grid, gathering, self.store, self.log)
            assert isinstance(federation, SecureFederation)
            return use(federation)

        return self.on_grid(gather)

    def vectors(self, questions: dict[str, Question]) -> list[dict[str, NDArray[np.int64]]]:
        """What every institution noised and never sent, by question: its sum and its share of the noise, anew."""
        made = []
        for index, node in enumerate(self.nodes):
            mirror, vectors = self.mirrors(index), {}
            for charge in node.ledger.charges():
                header = questions[charge.question].header
                query = build_query(
                    QuerySpec(header.kind, dict(header.scalars), dict(questions[charge.question].arrays))
                )
                own = charge.share.sigma_of(charge.sigma)
                assert charge.sigma <= own * charge.share.shares**0.5 < charge.sigma * 1.001
                noise = sample_discrete_gaussian(own, charge.width, mirror)
                vectors[charge.question] = bounded_total(query, self.tables[index]) + noise
            made.append(vectors)
        return made

    def answers(self, index: int) -> dict[str, Release]:
        """What the coordinator received from one institution, by question."""
        replies = [reply for kind, sender, _, reply in self.sent if (kind, sender) == (ANSWER, index)]
        releases = [Release.from_record(r.content) for r in replies if r is not None and "release" in r.content]
        return {release.question: release for release in releases}


class FaultyGrid:
    """A grid on which messages go wrong.

    deaf: the message never arrives; mute: the reply never does; error: an error comes instead; declines: the constant;
    raises: the institution breaks down; malformed: something else of the right kind; garbage: of no kind.
    """

    def __init__(self, grid: Grid, bank: Bank) -> None:
        self._grid, self._bank = grid, bank
        self._first = min(grid.get_node_ids())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        bank, replies = self._bank, list[Message]()
        if bank.restarts:
            bank.restart()
        asked = list(messages)
        for message in asked:
            index, kind = message.metadata.dst_node_id - self._first, message.metadata.message_type
            how = bank.faults.get((kind, index), "deaf" if kind == ANSWER and index >= bank.deaf_from else "")
            bank.broken = {index} if how == "raises" else set()
            answered = list(self._grid.send_and_receive([message], timeout=timeout)) if how != "deaf" else []
            bank.broken = set()
            kept = [self._changed(message, reply, how) for reply in answered if how != "mute"]
            bank.sent.append((kind, index, message, kept[0] if kept else None))
            replies.extend(kept)
        if asked and bank.dies_after(asked[0].metadata.message_type, asked):
            raise Died
        return replies

    def _changed(self, message: Message, reply: Message, how: str) -> Message:
        if how == "raises":
            assert reply.content.deflate() == plain_reply(DECLINED).deflate()
        elif how == "error":
            return Message(Error(code=0), reply_to=message)
        elif how == "declines":
            return Message(plain_reply(DECLINED), reply_to=message)
        elif how == "garbage":
            return Message(RecordDict({"notes": ConfigRecord({"text": SECRET})}), reply_to=message)
        elif how == "malformed":
            return Message(malformed(reply), reply_to=message)
        return reply


HOWS = {
    ANSWER: ("deaf", "mute", "raises", "declines", "malformed"),
    CONSENT: ("mute", "error", "raises", "garbage", "malformed"),
    UNMASK: ("deaf", "declines", "raises", "garbage", "malformed"),
}


def malformed(reply: Message) -> RecordDict:
    """Something that parses and is not of this sum."""
    if reply.metadata.message_type == ANSWER:
        release = Release.from_record(reply.content)
        return Release(release.question, release.vector, release.seal, bytes(64)).to_record()
    message = SumMessage.from_record(reply.content)
    return SumMessage(message.payload[:-1], message.seal).to_record()


@pytest.fixture
def make_bank(
    make_members: Callable[..., Any],
    make_plan: Callable[..., Plan],
    make_people: Callable[..., CustomerTable],
    small_contract: Contract,
    seeded_bits: Callable[[int], Any],
    coordinator_log: Callable[[Engine, str], AuditLog],
    tmp_path: Path,
) -> Iterator[Callable[..., Bank]]:
    """n institutions with seeded noise, a plan with a secure sum of at least t."""
    opened: list[Engine] = []

    def make(n: int, t: int, **changes: Any) -> Bank:
        plan = make_plan(**{"trust": "distributed", "min_institutions": t, **changes})
        tables = [make_people(150 + 20 * index, seed=index) for index in range(n)]
        bits = [seeded_bits(index) for index in range(n)]
        opened.append(open_store(tmp_path / f"coordinator-{len(opened)}.sqlite"))
        members = make_members(tables, plan, bits=bits)
        log = coordinator_log(opened[-1], members.charter.name)
        return Bank(plan, small_contract, members, tables, bits, seeded_bits, opened[-1], log)

    yield make
    for engine in opened:
        engine.dispose()


def question(plan: Plan, attempt: int) -> Question:
    spec = QUERY.spec()
    header = {"plan": plan.digest, "run": RUN, "phase": "marginals", "step": 0, "attempt": attempt}
    return Question(QuestionHeader(**header, kind=spec.kind, scalars=spec.scalars), spec.arrays)


def plain(vectors: Sequence[NDArray[np.int64]]) -> list[int]:
    """Their sum modulo 2**64, by Python's integers."""
    return [(sum(map(int, words)) + 2**63) % 2**64 - 2**63 for words in zip(*vectors, strict=True)]


class Recorded:
    """Every question of a run with the sum that it gave."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.questions: dict[str, Question] = {}
        self.totals: dict[str, tuple[list[int], int]] = {}
        real = SecureFederation.ask

        def ask(federation: SecureFederation, asked: Question, width: int) -> tuple[NDArray[np.int64], int]:
            self.questions[asked.digest] = asked
            total, institutions = real(federation, asked, width)
            self.totals[asked.digest] = (total.tolist(), institutions)
            return total, institutions

        patch.setattr(SecureFederation, "ask", ask)


# --- a whole study ---------------------------------------------------------------------------------------------------


def test_a_study_releases_exactly_the_sums_of_what_nobody_saw(
    make_bank: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, said, seen = make_bank(4, 3), list[Asked](), Recorded(monkeypatch)
    bundle = bank.study(said)
    asked = [(phase.name, step) for phase in phases(bank.plan) for step in range(phase.rounds)]
    assert [(line.phase, line.step, line.attempt, line.institutions) for line in said] == [(*a, 1, 4) for a in asked]
    vectors = bank.vectors(seen.questions)
    assert len(seen.questions) == len(bundle.releases) == len(asked)
    for digest, (total, institutions) in seen.totals.items():
        assert (total, institutions) == (plain([own[digest] for own in vectors]), 4)

    class Adding:
        def ask(self, asked: Question, width: int) -> tuple[NDArray[np.int64], int]:
            return np.array(plain([own[asked.digest] for own in vectors]), dtype=np.int64), 4

    assert run_study(bank.plan, bank.contract, RUN, Adding(), lambda _: None).to_bytes() == bundle.to_bytes()
    total = Spend(sum(r.mu2 for r in bundle.releases), sum(r.tv for r in bundle.releases))
    assert {node.ledger.spent() for node in bank.nodes} == {total}
    assert total.fits(budget_for(bank.plan.epsilon, bank.plan.delta))
    for node in bank.nodes:
        node.ledger.verify()

    # what the coordinator received is no vector, nor any two institutions' together: its words look uniform
    received = [bank.answers(index) for index in range(4)]
    for parties in ((0,), (1,), (0, 1), (0, 1, 2)):
        words = np.concatenate([sum(received[p][d].vector.view(np.uint64) for p in parties) for d in seen.questions])
        assert not any((received[parties[0]][d].vector == vectors[parties[0]][d]).any() for d in seen.questions)
        assert chisquare(np.bincount(words.view(np.uint8), minlength=256)).pvalue > 1e-9
    clear = np.concatenate([vectors[0][d] for d in seen.questions])
    assert chisquare(np.bincount(clear.view(np.uint8), minlength=256)).pvalue < 1e-9, "the test can tell"


class Nothing:
    """Four institutions whose answers are all zeros."""

    def ask(self, _asked: Question, width: int) -> tuple[NDArray[np.int64], int]:
        return np.zeros(width, dtype=np.int64), 4


def test_the_bundle_says_how_much_noise_a_sum_carries(make_plan: Callable[..., Plan], small_contract: Contract) -> None:
    """n shares of variance sigma^2 / (t - c) each; with `local`, n times sigma^2."""
    bundles = [
        run_study(make_plan(trust=trust, min_institutions=3), small_contract, RUN, Nothing(), lambda _: None)
        for trust in ("local", "distributed")
    ]
    local, shared = (bundle.segments[0].size_std for bundle in bundles)
    assert shared == pytest.approx(local / 2**0.5, rel=1e-6)
    first, second = ([(r.sigma, r.mu2) for r in bundle.releases] for bundle in bundles)
    assert first == second, "for the same price"


# --- institutions that fail ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wave", [ANSWER, CONSENT, UNMASK])
def test_whoever_fails_in_a_wave_the_sum_is_exact(
    wave: str, make_bank: Callable[..., Bank], caplog: pytest.LogCaptureFixture
) -> None:
    """Two of six fail, in every way, one way after the other; both take part again in the next question."""
    bank, hows = make_bank(6, 4, max_attempts=5), HOWS[wave]
    questions = [question(bank.plan, attempt) for attempt in range(1, len(hows) + 1)]

    def ask_all(federation: SecureFederation) -> list[tuple[list[int], int]]:
        totals = []
        for how, asked in zip(hows, questions, strict=True):
            bank.faults = {(wave, 4): how, (wave, 5): how}
            total, institutions = federation.ask(asked, QUERY.width)
            totals.append((total.tolist(), institutions))
        return totals

    totals = bank.asking(ask_all)
    vectors = bank.vectors({asked.digest: asked for asked in questions})
    for asked, how, total in zip(questions, hows, totals, strict=True):
        survivors = range(4) if wave == ANSWER else range(6)
        assert total == (plain([vectors[i][asked.digest] for i in survivors]), len(survivors)), how
        reached = wave != ANSWER or how not in ("deaf", "raises")
        assert (asked.digest in vectors[4]) == (asked.digest in vectors[5]) == reached, "whoever was reached has paid"
    assert SECRET not in caplog.text


def test_different_institutions_fail_in_every_wave_of_one_question(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank(6, 4, max_attempts=2)
    first, second = question(bank.plan, 1), question(bank.plan, 2)

    def ask(federation: SecureFederation) -> Any:
        bank.faults = {(ANSWER, 0): "deaf", (CONSENT, 3): "mute", (UNMASK, 5): "declines"}
        one = federation.ask(first, QUERY.width)
        bank.faults = {}
        return one, federation.ask(second, QUERY.width)

    (one, few), (two, all_of_them) = bank.asking(ask)
    vectors = bank.vectors({first.digest: first, second.digest: second})
    assert (one.tolist(), few) == (plain([vectors[i][first.digest] for i in (1, 2, 3, 4, 5)]), 5)
    assert (two.tolist(), all_of_them) == (plain([own[second.digest] for own in vectors]), 6)
    assert first.digest not in vectors[0]


@pytest.mark.parametrize("wave", ["query.plan", "query.share"])
def test_whoever_misses_the_beginning(wave: str, make_bank: Callable[..., Bank]) -> None:
    """Without keys of the run an institution is no part of it; without keys of the round it is asked for them again."""
    bank = make_bank(5, 4, max_attempts=2)
    first, second = question(bank.plan, 1), question(bank.plan, 2)
    bank.faults = {(wave, 2): "declines"}

    def ask(federation: SecureFederation) -> Any:
        one = federation.ask(first, QUERY.width)
        bank.faults = {}
        return one, federation.ask(second, QUERY.width)

    (one, _), (two, _) = bank.asking(ask)
    vectors = bank.vectors({first.digest: first, second.digest: second})
    assert one.tolist() == plain([vectors[i][first.digest] for i in (0, 1, 3, 4)])
    assert vectors[2].keys() == (set() if wave == "query.plan" else {second.digest})
    assert two.tolist() == plain([own[second.digest] for own in vectors if second.digest in own])


def test_an_institution_that_answers_late_sends_the_very_same_bytes(make_bank: Callable[..., Bank]) -> None:
    """With too few vectors the missing are asked once more, under the same charge."""
    bank = make_bank(4, 3)
    asked = question(bank.plan, 1)
    calls: list[int] = []

    def heals(kind: str, _: list[Message]) -> bool:
        if kind == ANSWER:
            calls.append(1)
            bank.faults = {}
        return False

    bank.faults, bank.dies_after = {(ANSWER, 0): "mute", (ANSWER, 1): "mute"}, heals
    total, institutions = bank.asking(lambda federation: federation.ask(asked, QUERY.width))
    vectors = bank.vectors({asked.digest: asked})
    assert (total.tolist(), institutions, len(calls)) == (plain([own[asked.digest] for own in vectors]), 4, 2)
    assert {len(list(node.ledger.charges())) for node in bank.nodes} == {1}


@pytest.mark.parametrize("wave", [ANSWER, CONSENT, UNMASK])
def test_too_few_in_any_wave_give_no_sum(wave: str, make_bank: Callable[..., Bank]) -> None:
    bank = make_bank(6, 4, max_attempts=2)
    first, second = question(bank.plan, 1), question(bank.plan, 2)

    def ask(federation: SecureFederation) -> Any:
        bank.faults = {(wave, index): "mute" for index in (0, 1, 2)}
        with pytest.raises(SumFailed, match="only 3 institutions"):
            federation.ask(first, QUERY.width)
        bank.faults = {}
        return federation.ask(second, QUERY.width)

    total, institutions = bank.asking(ask)
    vectors = bank.vectors({first.digest: first, second.digest: second})
    assert (total.tolist(), institutions) == (plain([own[second.digest] for own in vectors]), 6)
    assert {len(own) for own in vectors} == {2}, "both attempts are paid"


def test_a_share_that_was_changed_gives_no_sum_rather_than_a_wrong_one(
    make_bank: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = make_bank(4, 3, max_attempts=2)

    def altered(reply: Message) -> RecordDict:
        message = SumMessage.from_record(reply.content)
        head, _, tail = message.payload.partition(b'"seeds":["')
        digit = b"1" if tail[10:11] != b"1" else b"2"
        return SumMessage(head + b'"seeds":["' + tail[:10] + digit + tail[11:], message.seal).to_record()

    monkeypatch.setattr(f"{__name__}.malformed", altered)
    bank.faults = {(UNMASK, 0): "malformed"}

    def ask(federation: SecureFederation) -> None:
        with pytest.raises(SumFailed, match="opened"):
            federation.ask(question(bank.plan, 1), QUERY.width)

    bank.asking(ask)


# --- attempts --------------------------------------------------------------------------------------------------------


class Fails:
    """Two institutions of four do not answer the first so many attempts at a phase."""

    def __init__(self, bank: Bank, phase: str, attempts: int) -> None:
        self.honest = real = SecureFederation.ask
        self.bank, self.phase, self.attempts = bank, phase, attempts

        def ask(federation: SecureFederation, asked: Question, width: int) -> Any:
            fails = asked.header.phase == self.phase and asked.header.attempt <= self.attempts
            bank.faults = {(ANSWER, 1): "mute", (ANSWER, 3): "declines"} if fails else {}
            return real(federation, asked, width)

        self.ask = ask


def test_a_failed_attempt_is_asked_again_with_fresh_noise_and_charged_in_full(
    make_bank: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, said = make_bank(4, 3, max_attempts=3), list[Asked]()
    monkeypatch.setattr(SecureFederation, "ask", Fails(bank, "profiles", 2).ask)
    seen = Recorded(monkeypatch)
    bundle = bank.study(said)
    tried = [record for record in bundle.releases if record.phase == "profiles"]
    assert [(record.attempt, record.institutions) for record in tried] == [(1, 0), (2, 0), (3, 4)]
    assert {record.institutions for record in bundle.releases if record.phase != "profiles"} == {4}
    assert len({(record.mu2, record.tv, record.sigma) for record in tried}) == 1
    assert len({record.question for record in tried}) == 3
    assert [(a.attempt, a.institutions, a.problem is None) for a in said if a.phase == "profiles"] == [
        (1, 0, False),
        (2, 0, False),
        (3, 4, True),
    ]
    total = Spend(sum(r.mu2 for r in bundle.releases), sum(r.tv for r in bundle.releases))
    assert {node.ledger.spent() for node in bank.nodes} == {total}, "every attempt is paid, whoever's answer was lost"
    assert total.fits(budget_for(bank.plan.epsilon, bank.plan.delta))
    vectors = bank.vectors(seen.questions)
    for own in vectors:
        one, two, three = (own[record.question] for record in tried)
        assert (one != two).any()
        assert (two != three).any()
    digest = tried[2].question
    assert seen.totals[digest] == (plain([own[digest] for own in vectors]), 4)
    masked = [bank.answers(0)[record.question].vector for record in tried]
    differences = masked[0] - masked[1], masked[1] - masked[2]
    assert all((np.abs(d.astype(np.float64)) > 2.0**40).mean() > 0.9 for d in differences), "no mask serves twice"


def test_after_the_last_attempt_the_run_stops_with_one_clear_refusal_and_resumes(
    make_bank: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, said = make_bank(4, 3, max_attempts=2), list[Asked]()
    fails = Fails(bank, "marginals", 2)
    monkeypatch.setattr(SecureFederation, "ask", fails.ask)
    with pytest.raises(RefusedError, match="no sum of marginals step 0 after attempt 2, the last") as caught:
        bank.study(said)
    assert caught.value.place == "plan: max_attempts"
    assert "bring the missing institutions back" in str(caught.value.fix)
    assert "\n" not in str(caught.value)
    assert [(a.attempt, a.institutions, a.problem is None) for a in said] == [(1, 0, False), (2, 0, False)]
    assert {len(list(node.ledger.charges())) for node in bank.nodes} == {2}
    monkeypatch.setattr(SecureFederation, "ask", fails.honest)
    bank.faults = {}
    bundle = bank.study()
    assert [(r.attempt, r.institutions) for r in bundle.releases[:3]] == [(1, 0), (2, 4), (1, 4)]
    total = Spend(sum(r.mu2 for r in bundle.releases), sum(r.tv for r in bundle.releases))
    assert {node.ledger.spent() for node in bank.nodes} == {total}


def test_too_few_that_accept_ask_nothing(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank(4, 3)
    bank.faults = {("query.plan", 0): "declines", ("query.plan", 1): "garbage"}
    with pytest.raises(RefusedError, match="only 2 institutions accepted the plan; the plan needs 3"):
        bank.study()
    assert all(node.ledger.spent() == Spend() for node in bank.nodes)


# --- resumed ---------------------------------------------------------------------------------------------------------


def test_a_coordinator_that_dies_after_every_wave_ends_as_if_it_had_not(make_bank: Callable[..., Bank]) -> None:
    """Once after every wave of every question, always resumed on its store; the same bytes, nothing charged twice.

    Every institution restarts whenever the coordinator does. One of four never shares keys, so that there are three
    waves a question and all of the others are needed in each. Of the waves about logs, it dies after ten.
    """
    whole, bank = make_bank(4, 3), make_bank(4, 3)
    whole.faults = bank.faults = {("query.share", 3): "mute"}
    expected = whole.study()
    assert expected.institutions == 3
    died: set[tuple[str, str]] = set()

    def once(kind: str, messages: list[Message]) -> bool:
        asked = {str(m.content["question"]["json"]) for m in messages if "question" in m.content}
        record = "log" if kind == WITNESS else "secure_sum"
        payload = messages[0].content.get(record, {}).get("payload", b"") if not asked else b""
        where = (kind, "".join(asked) or payload.hex())
        if where in died or (kind == WITNESS and sum(before == WITNESS for before, _ in died) == 10):
            return False
        died.add(where)
        return True

    bank.dies_after = once
    for _ in range(100):
        try:
            bundle = bank.study()
            break
        except Died:
            bank.restart()
    assert len(died) >= 12 + 3 * len(expected.releases)
    assert {kind for kind, _ in died} == {"query.plan", "query.share", ANSWER, CONSENT, UNMASK, WITNESS}
    assert bundle.to_bytes() == expected.to_bytes()
    assert [node.ledger.spent() for node in bank.nodes] == [node.ledger.spent() for node in whole.nodes]
    counts = [len(list(node.ledger.charges())) for node in bank.nodes]
    assert counts == [len(expected.releases)] * 3 + [0]


def test_institutions_that_restart_between_any_two_messages_answer_the_same(
    make_bank: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, seen = make_bank(4, 3), Recorded(monkeypatch)
    bank.restarts = True
    bundle = bank.study()
    vectors = bank.vectors(seen.questions)
    assert len(seen.totals) == len(bundle.releases)
    for digest, total in seen.totals.items():
        assert total == (plain([own[digest] for own in vectors]), 4)
    assert {len(list(node.ledger.charges())) for node in bank.nodes} == {len(bundle.releases)}


@pytest.mark.parametrize("reached", [1, 4])
def test_a_resumed_run_does_not_go_back_to_an_attempt_that_failed(
    reached: int, make_bank: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its institutions are back and it might succeed now, but they have paid for the next one, which is on record.

    The coordinator dies when the second attempt reached one institution only, or all of them.
    """
    bank, said = make_bank(4, 3, max_attempts=2), list[Asked]()
    fails = Fails(bank, "marginals", 1)
    monkeypatch.setattr(SecureFederation, "ask", fails.ask)

    def dies(kind: str, messages: list[Message]) -> bool:
        if kind != ANSWER:
            return False
        header = str(messages[0].content["question"]["json"])
        if '"attempt":1' in header and reached == 1:  # the last ones are not reached by what comes next
            bank.deaf_from = reached
        return '"attempt":2' in header

    bank.dies_after = dies
    with pytest.raises(Died):
        bank.study()
    monkeypatch.setattr(SecureFederation, "ask", fails.honest)
    bank.faults, bank.dies_after, bank.deaf_from = {}, lambda *_: False, 99
    assert [len(list(node.ledger.charges())) for node in bank.nodes] == [2] * reached + [1] * (4 - reached)
    bundle = bank.study(said)
    assert [(r.phase, r.attempt, r.institutions) for r in bundle.releases[:2]] == [
        ("marginals", 1, 0),
        ("marginals", 2, 4),
    ]
    assert [(a.attempt, a.institutions) for a in said[:2]] == [(1, 0), (2, 4)]
    total = Spend(sum(r.mu2 for r in bundle.releases), sum(r.tv for r in bundle.releases))
    assert {node.ledger.spent() for node in bank.nodes} == {total}


def test_an_attempt_whose_keys_stayed_closed_is_not_opened_by_a_resumed_run(
    make_bank: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every vector was there, too few opened shares; the second attempt's sum is the one that later steps used."""
    bank, first, second = make_bank(4, 3, max_attempts=2), list[Asked](), list[Asked]()
    real = SecureFederation.ask

    def ask(self: SecureFederation, asked: Question, width: int) -> tuple[NDArray[np.int64], int]:
        fails = asked.header.phase == "marginals" and asked.header.attempt == 1
        bank.faults = {(UNMASK, 1): "mute", (UNMASK, 3): "mute"} if fails else {}
        return real(self, asked, width)

    def dies(kind: str, messages: list[Message]) -> bool:
        return kind == ANSWER and '"phase":"marginals"' not in str(messages[0].content["question"]["json"])

    monkeypatch.setattr(SecureFederation, "ask", ask)
    bank.dies_after = dies
    with pytest.raises(Died):
        bank.study(first)
    assert [(a.attempt, a.institutions) for a in first] == [(1, 0), (2, 4)]
    monkeypatch.setattr(SecureFederation, "ask", real)
    bank.faults, bank.dies_after = {}, lambda *_: False
    bundle = bank.study(second)
    assert [(a.attempt, a.institutions) for a in second[:2]] == [(1, 0), (2, 4)]
    assert len(bundle.releases) == len(second)
    assert all(len(list(node.ledger.charges())) == len(bundle.releases) for node in bank.nodes)


def test_a_coordinator_that_lost_its_memory_cannot_ask_for_another_sum(
    make_bank: Callable[..., Bank], tmp_path: Path
) -> None:
    """Rounds and survivors chosen anew could be of other institutions: each keeps to what it answered first."""
    bank = make_bank(4, 3)
    asked = question(bank.plan, 1)
    bank.asking(lambda federation: federation.ask(asked, QUERY.width))
    spent = [node.ledger.spent() for node in bank.nodes]
    remembers, bank.coordinator = bank.coordinator, open_store(tmp_path / "forgetful.sqlite")

    def again(federation: SecureFederation) -> None:
        bank.faults = {(ANSWER, 3): "deaf"}
        with pytest.raises(SumFailed):
            federation.ask(asked, QUERY.width)

    bank.asking(again)
    bank.coordinator.dispose()
    bank.coordinator = remembers
    assert [node.ledger.spent() for node in bank.nodes] == spent


# --- without a secure sum --------------------------------------------------------------------------------------------


def test_a_local_plan_sends_no_message_of_a_secure_sum(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank(3, 2, trust="local")
    bundle = bank.study()
    assert {kind for kind, *_ in bank.sent} == {"query.plan", ANSWER, WITNESS}
    assert all("secure_sum" not in message.content for _, _, message, _ in bank.sent)
    assert all(release.note == b"" for index in range(3) for release in bank.answers(index).values())
    assert {record.institutions for record in bundle.releases} == {3}
