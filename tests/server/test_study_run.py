"""A whole study, bit for bit: the same answers give the same bundle, the sum is the sum of what the doors released."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine

from cohortium.client.app import make_client_app
from cohortium.client.governing import NodeGovernance
from cohortium.client.node import Node, NodeIdentity, create_node, identity_key, open_node
from cohortium.client.witnessing import LOG_FILE
from cohortium.governance.log import AuditLog, LogReader, parse_note
from cohortium.models.studies import phases
from cohortium.privacy.accounting import Spend, budget_for
from cohortium.privacy.gate import Counted
from cohortium.privacy.ledger import open_store
from cohortium.privacy.release import Door
from cohortium.privacy.secure_sum import SqlOnceStore
from cohortium.privacy.table import CustomerTable
from cohortium.server.app import StudyOrder, make_server_app
from cohortium.server.federation import OpenFederation, SeparateFederation
from cohortium.server.study_run import Asked, AuditAnswer, run_study
from cohortium.server.witnesses import Witnesses
from cohortium.simulations.grid import run_in_process
from cohortium.study.bundle import Bundle
from cohortium.study.charter import parse_charter
from cohortium.study.contract import Contract
from cohortium.study.errors import PlanError, RefusedError
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan
from cohortium.study.question import PlanQuestion, Question, QuestionHeader, Release
from cohortium.study.witness import WitnessReply, WitnessRequest

MakeNodes = Callable[..., list[Node]]
RUN = "ab" * 16


@pytest.fixture
def make_nodes(
    make_members: Callable[..., Any],
    make_people: Callable[..., CustomerTable],
    small_contract: Contract,
    seeded_bits: Callable[[int], Any],
) -> MakeNodes:
    """Three institutions with seeded noise, a federation of their own for every call; one witness is enough there."""

    def make(plan: Plan, sizes: Sequence[int] = (300, 200, 400), witnesses: int = 1) -> list[Node]:
        tables = [make_people(size, seed=i) for i, size in enumerate(sizes)]
        members = make_members(tables, bits=[seeded_bits(i) for i in range(len(sizes))])
        quorum = {"witnesses": min(witnesses, len(sizes) - 1)}
        charter = parse_charter({**members.charter.to_json(), "quorum": quorum})
        for node in members.nodes:
            node.store.approve(plan, small_contract, charter)
        nodes: list[Node] = members.nodes
        return nodes

    return make


Federated = Callable[..., Bundle]


@pytest.fixture
def federated(
    small_contract: Contract, coordinator_log: Callable[[Engine, str], AuditLog], tmp_path: Path
) -> Iterator[Federated]:
    """The study by the very apps, over the in-process grid; a coordinator named twice remembers."""
    opened: list[Engine] = []

    def run(
        plan: Plan, nodes: Sequence[Node], said: list[Asked] | None = None, coordinator: str | None = None
    ) -> Bundle:
        delivered: list[Bundle] = []
        charter = nodes[0].gate.approval(plan.digest).charter
        order = StudyOrder(plan, small_contract, charter, RUN, expected=len(nodes))
        progress = (lambda _: None) if said is None else said.append
        opened.append(open_store(tmp_path / f"coordinator-{coordinator or len(opened)}.sqlite"))
        log = coordinator_log(opened[-1], charter.name)
        server = make_server_app(order, SqlOnceStore(opened[-1]), log, delivered.append, progress)
        client = make_client_app(lambda context: nodes[int(context.node_config["partition-id"])])
        run_in_process(server, client, nodes=len(nodes))
        (bundle,) = delivered
        return bundle

    yield run
    for engine in opened:
        engine.dispose()


@pytest.fixture
def books(
    coordinator_log: Callable[[Engine, str], AuditLog], tmp_path: Path
) -> Iterator[tuple[AuditLog, SqlOnceStore]]:
    """Log and journal of a coordinator that asks without a grid."""
    store = open_store(tmp_path / "doors.sqlite")
    yield coordinator_log(store, "signing"), SqlOnceStore(store)
    store.dispose()


class Doors:
    """Respondents without a grid: every door asked directly, the vectors added."""

    def __init__(self, nodes: Sequence[Node], plan: Plan, log: AuditLog, store: SqlOnceStore) -> None:
        self.nodes, self.questions, self.totals = nodes, list[Question](), list[NDArray[np.int64]]()
        self._named = {node.identity.institution: node for node in nodes}
        charter = nodes[0].gate.approval(plan.digest).charter
        self._witnesses = Witnesses(plan.digest, RUN, charter, log, store, self._asked)
        self._witnesses.members = tuple(self._named)

    def _asked(self, requests: Mapping[str, WitnessRequest]) -> dict[str, WitnessReply]:
        return {name: self._named[name].log.answer(request) for name, request in requests.items()}

    def _witness(self, plan: str) -> None:
        """Everybody's log is witnessed by the others."""
        for reply in self._asked(dict.fromkeys(self._named, WitnessRequest(plan=plan))).values():
            self._witnesses.who(reply)
        self._witnesses.exchange()
        for name, node in self._named.items():
            request = self._witnesses.request_for(name)
            assert request is not None
            node.log.take(WitnessRequest.from_bytes(request.payload))

    def begin(self, question: Question) -> None:
        self._witness(question.header.plan)
        for node in self.nodes:
            node.accept(PlanQuestion(question.header.plan, question.header.run, int(time.time())))
        self._witness(question.header.plan)

    def ask(self, question: Question, width: int) -> tuple[NDArray[np.int64], int]:
        self.begin(question)
        vectors = [node.door.release(question).vector for node in self.nodes]
        assert all(vector.shape == (width,) for vector in vectors)
        total = np.array([sum(map(int, words)) for words in zip(*vectors, strict=True)], dtype=np.int64)
        self.questions.append(question)
        self.totals.append(total)
        return total, len(vectors)


@pytest.fixture(scope="module")
def kept() -> dict[str, Bundle]:
    """Filled by the first test of a worker that asks for `whole`."""
    return {}


@pytest.fixture
def whole(
    kept: dict[str, Bundle], make_nodes: MakeNodes, make_plan: Callable[..., Plan], federated: Federated
) -> Bundle:
    """Of the small plan and three institutions with the bits that all have here, disturbed by nothing."""
    if "bundle" not in kept:
        plan = make_plan()
        kept["bundle"] = federated(plan, make_nodes(plan))
    return kept["bundle"]


# --- bit for bit -----------------------------------------------------------------------------------------------------


def test_the_same_bits_give_the_same_bundle(
    make_nodes: MakeNodes, make_plan: Callable[..., Plan], federated: Federated, whole: Bundle
) -> None:
    plan = make_plan()
    assert federated(plan, make_nodes(plan)).to_bytes() == whole.to_bytes()


def test_the_federation_releases_exactly_the_sum_of_its_doors(
    make_nodes: MakeNodes,
    make_plan: Callable[..., Plan],
    small_contract: Contract,
    monkeypatch: pytest.MonkeyPatch,
    federated: Federated,
    books: tuple[AuditLog, SqlOnceStore],
) -> None:
    plan = make_plan()
    doors = Doors(make_nodes(plan), plan, *books)
    direct = run_study(plan, small_contract, RUN, doors, lambda _: None)
    totals: list[tuple[str, list[int]]] = []
    real = OpenFederation.ask

    def ask(self: OpenFederation, question: Question, width: int) -> tuple[NDArray[np.int64], int]:
        total, answered = real(self, question, width)
        totals.append((question.digest, total.tolist()))
        return total, answered

    monkeypatch.setattr(OpenFederation, "ask", ask)
    over_grid = federated(plan, make_nodes(plan))
    assert totals == [(q.digest, t.tolist()) for q, t in zip(doors.questions, doors.totals, strict=True)]
    assert over_grid.to_bytes() == direct.to_bytes()


@pytest.mark.parametrize("coordinator", ["one", None], ids=["that remembers", "that forgot"])
def test_a_run_again_is_free_and_gives_the_same_bytes(
    coordinator: str | None,
    make_nodes: MakeNodes,
    make_plan: Callable[..., Plan],
    federated: Federated,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A coordinator with its journal asks nobody; one without asks everybody, who answer what they stored."""
    plan = make_plan()
    nodes = make_nodes(plan)
    first = federated(plan, nodes, coordinator="one")
    spent = [node.ledger.spent() for node in nodes]
    real, calls = Door.release, list[str]()

    def release(door: Door, question: Question, sum_request: bytes | None = None) -> Release:
        calls.append(question.digest)
        return real(door, question, sum_request)

    monkeypatch.setattr(Door, "release", release)
    assert federated(plan, nodes, coordinator=coordinator).to_bytes() == first.to_bytes()
    assert [node.ledger.spent() for node in nodes] == spent
    assert calls == ([] if coordinator else [r.question for r in first.releases for _ in nodes])


def test_a_journal_is_read_although_nobody_is_there_but_the_plan_s_minimum(
    make_nodes: MakeNodes, make_plan: Callable[..., Plan], federated: Federated
) -> None:
    """Released sums are of the institutions that answered then, whoever is there now."""
    plan = make_plan(min_institutions=2)
    nodes = make_nodes(plan)
    first = federated(plan, nodes, coordinator="one")
    again = federated(plan, nodes[:2], coordinator="one")
    assert again.to_bytes() == first.to_bytes()
    assert again.institutions == 3


@pytest.mark.parametrize("answered", [0, 1, 3, 6])
def test_a_run_cut_short_anywhere_ends_as_if_it_had_not_been(
    answered: int,
    make_nodes: MakeNodes,
    make_plan: Callable[..., Plan],
    small_contract: Contract,
    federated: Federated,
    books: tuple[AuditLog, SqlOnceStore],
    whole: Bundle,
) -> None:
    """Cut between the second and the third institution's answer to a question."""
    plan = make_plan()
    nodes = make_nodes(plan)

    class CutShort(Doors):
        def ask(self, question: Question, width: int) -> tuple[NDArray[np.int64], int]:
            if len(self.questions) < answered:
                return super().ask(question, width)
            self.begin(question)
            for node in self.nodes[:2]:
                node.door.release(question)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(plan, small_contract, RUN, CutShort(nodes, plan, *books), lambda _: None)
    assert len(list(nodes[0].ledger.charges())) == answered + 1
    assert federated(plan, nodes).to_bytes() == whole.to_bytes()
    assert len(list(nodes[0].ledger.charges())) == len(whole.releases)


# --- what it says and costs ------------------------------------------------------------------------------------------


def test_the_bundle_lists_what_every_ledger_charged(
    make_nodes: MakeNodes, make_plan: Callable[..., Plan], federated: Federated
) -> None:
    plan, said = make_plan(), list[Asked]()
    nodes = make_nodes(plan)
    bundle = federated(plan, nodes, said)
    asked = [(phase.name, step) for phase in phases(plan) for step in range(phase.rounds)]
    assert [(record.phase, record.step) for record in bundle.releases] == asked
    assert [(line.phase, line.step, line.institutions) for line in said] == [(*slot, 3) for slot in asked]
    for node in nodes:
        node.ledger.verify()
        for record, charge in zip(bundle.releases, node.ledger.charges(), strict=True):
            assert (record.question, record.width) == (charge.question, charge.width)
            assert (int(record.sigma), record.mu2, record.tv) == (charge.sigma, charge.spend.mu2, charge.spend.tv)
        total = Spend(sum(r.mu2 for r in bundle.releases), sum(r.tv for r in bundle.releases))
        assert node.ledger.spent() == total
        assert total.fits(budget_for(plan.epsilon, plan.delta))
    assert (bundle.institutions, bundle.run, bundle.plan) == (3, RUN, plan)
    assert bundle.customers == pytest.approx(900, abs=400)


def test_noise_grows_with_the_institutions(
    make_nodes: MakeNodes, make_plan: Callable[..., Plan], federated: Federated
) -> None:
    """Every institution adds full noise, so the sum's standard deviation is sqrt(n) times that of one."""
    plan = make_plan(min_institutions=1)
    three = federated(plan, make_nodes(plan))
    one = federated(plan, make_nodes(plan, (900,)))
    assert three.segments[0].size_std == pytest.approx(one.segments[0].size_std * 3**0.5, rel=1e-9)


def test_an_institution_that_declines_midway_leaves_the_rest_to_finish(
    make_nodes: MakeNodes, make_plan: Callable[..., Plan], federated: Federated
) -> None:
    plan = make_plan(min_institutions=2)
    nodes = make_nodes(plan)
    real, calls = nodes[1].door.release, list[Question]()

    def release(question: Question, sum_request: bytes | None = None) -> Any:
        calls.append(question)
        return real(question, sum_request) if len(calls) <= 3 else {}["gone"]

    nodes[1].door.release = release  # type: ignore[method-assign]
    bundle = federated(plan, nodes)
    assert bundle.institutions == 2
    assert [record.institutions for record in bundle.releases] == [3] * 3 + [2] * (len(bundle.releases) - 3)
    assert len(calls) == 4
    assert len(list(nodes[1].ledger.charges())) == 3


def test_nothing_is_asked_when_too_few_accept(
    make_nodes: MakeNodes, make_plan: Callable[..., Plan], federated: Federated
) -> None:
    plan = make_plan(min_institutions=3)
    nodes = [*make_nodes(plan)[:2], *make_nodes(make_plan(epsilon=0.5))[:1]]
    with pytest.raises(RefusedError, match="only 2 institutions accepted"):
        federated(plan, nodes)
    assert all(node.ledger.spent() == Spend() for node in nodes)


def test_a_plan_that_would_fail_half_way_asks_nothing(
    make_nodes: MakeNodes,
    make_plan: Callable[..., Plan],
    federated: Federated,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The coordinator looks for itself, whatever the institutions approved."""
    plan = make_plan(epsilon=1e-15, delta=1e-15)
    with pytest.raises(PlanError, match=r"wider bounds|nothing to spend"):
        make_nodes(plan)
    with monkeypatch.context() as patch:
        patch.setattr("cohortium.client.store.preflight", lambda *_: None)
        nodes = make_nodes(plan)
    with pytest.raises(PlanError, match=r"wider bounds|nothing to spend"):
        federated(plan, nodes)
    assert all(node.ledger.spent() == Spend() for node in nodes)
    assert all(node.ledger.reservations() == [] for node in nodes)


# --- audit logs -------------------------------------------------------------------------------------------------------


def test_with_too_few_witnesses_a_run_pauses_before_anything_is_charged_and_resumes(
    make_nodes: MakeNodes, make_plan: Callable[..., Plan], federated: Federated, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan()
    whole = federated(plan, make_nodes(plan, witnesses=2))
    nodes, said = make_nodes(plan, witnesses=2), list[Asked]()
    real, calls = nodes[2].log.answer, list[Question]()

    def gone(_request: WitnessRequest) -> WitnessReply:
        raise RefusedError("no answer")

    honest = OpenFederation.ask

    def ask(self: OpenFederation, question: Question, width: int) -> tuple[NDArray[np.int64], int]:
        calls.append(question)
        if len(calls) == 2:
            nodes[2].log.answer = gone  # type: ignore[method-assign]
        return honest(self, question, width)

    monkeypatch.setattr(OpenFederation, "ask", ask)
    with pytest.raises(RefusedError, match="have no quorum of witnesses; nothing was asked or charged") as caught:
        federated(plan, nodes, said, coordinator="one")
    assert "bring the missing institutions back and resume" in str(caught.value)
    assert len(said) == 2, "the second question was answered, its entries were not witnessed"
    assert [len(list(node.ledger.charges())) for node in nodes] == [2, 2, 2]
    with pytest.raises(RefusedError, match="only 0 institutions accepted the plan"):
        federated(plan, nodes, coordinator="one")
    assert [len(list(node.ledger.charges())) for node in nodes] == [2, 2, 2]
    nodes[2].log.answer = real  # type: ignore[method-assign]
    assert federated(plan, nodes, coordinator="one").to_bytes() == whole.to_bytes()
    assert {len(list(node.ledger.charges())) for node in nodes} == {len(whole.releases)}


def test_every_question_makes_one_entry_however_consent_changed(
    make_nodes: MakeNodes,
    make_plan: Callable[..., Plan],
    federated: Federated,
    log_entries: Callable[[Path], list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where people have to be counted anew, and where a run is asked again."""
    plan = make_plan()
    nodes = make_nodes(plan)
    real, counts = NodeGovernance.counted, list[int]()

    def counted(self: NodeGovernance, people: CustomerTable, asked: str) -> Counted:
        if self is not nodes[1].governance:
            return real(self, people, asked)
        counts.append(1)
        return Counted(people, bytes([len(counts) // 2 % 256]) * 32, len(counts))

    monkeypatch.setattr(NodeGovernance, "counted", counted)
    bundle = federated(plan, nodes)
    federated(plan, nodes)
    assert len(counts) > 2 * len(bundle.releases), "consent changed while it was counted"
    logs = [log_entries(folder / LOG_FILE) for folder in sorted((tmp_path / "federation-0").iterdir())]
    for entries in logs:
        assert [entry["event"] for entry in entries] == ["admission"] + ["release"] * len(bundle.releases)
        assert [entry["question"] for entry in entries[1:]] == [record.question for record in bundle.releases]
        assert [(entry["mu2"], entry["tv"]) for entry in entries[1:]] == [
            (str(record.mu2), str(record.tv)) for record in bundle.releases
        ]
    commitments = [entry["consent"] for entries in logs for entry in entries[1:]]
    assert len(set(commitments)) == len(commitments), "equal states of consent give unequal commitments"


# --- audits: everybody's own tables, asked one by one and kept one by one ---------------------------------------------

AUDITED = Contract.model_validate(
    {
        "schema": "cohortium.contract/1",
        "name": "audited",
        "purposes": ["research"],
        "window": {"start": "2024-01-01", "end": "2025-01-01"},
        "tables": [{"name": "people", "kind": "customers", "customer": "id"}],
        "features": [
            {**feature, "table": "people", "column": feature["name"]}
            for feature in (
                {"name": "visits", "kind": "numeric", "low": 0, "high": 1, "missing": 0, "block": "value"},
                {"name": "sex", "kind": "category", "categories": ["f", "m"], "protected": True},
                {"name": "treated", "kind": "category", "categories": ["yes", "no"], "protected": True},
            )
        ],
    }
)
AUDIT = {
    "schema": "cohortium.plan/1",
    "study": "audit",
    "name": "audit",
    "purpose": "research",
    "lawful_basis": "consent",
    "regions": ["EU"],
    "contract": AUDITED.digest,
    "expires": "2098-12-31",
    "trust": "local",
    "epsilon": 1.0,
    "delta": 1e-6,
    "min_institutions": 2,
    "audit": {"of": "column", "column": "treated", "attributes": ["sex"], "intersections": []},
}


@pytest.fixture
def auditees(tmp_path: Path, seeded_bits: Callable[[int], Any]) -> Iterator[list[Node]]:
    """Three institutions with protected features, which approved the audit."""
    opened, plan, members = [], parse_plan(AUDIT), []
    for index in range(3):
        rng, keys = np.random.default_rng(index), np.arange(600)
        protected = CustomerTable(("sex", "treated"), rng.integers(0, 3, (600, 2)).astype(float), keys)
        people = CustomerTable(("visits",), np.zeros((600, 1)), keys)
        folder, name = tmp_path / f"auditee-{index}", f"bank {index}"
        create_node(folder, NodeIdentity(institution=name, simulation=True), AUDITED)
        members.append({"name": name, "region": "EU", "identity": identity_key(folder)})
        opened.append(open_node(folder, people, seeded_bits(index), protected=partial(_same, protected)))
    charter = parse_charter({"schema": "cohortium.charter/1", "name": "audited", "institutions": members})
    for node in opened:
        node.store.approve(plan, AUDITED, charter)
    yield opened
    for node in opened:
        node.close()


def _same(table: CustomerTable) -> CustomerTable:
    return table


@pytest.fixture
def audited(
    auditees: list[Node], coordinator_log: Callable[[Engine, str], AuditLog], tmp_path: Path
) -> Callable[..., AuditAnswer]:
    """The audit by the very apps, of the first so many institutions, under a coordinator of that name."""

    def run(coordinator: str, nodes: Sequence[Node] = auditees) -> AuditAnswer:
        delivered: list[Any] = []
        plan = parse_plan(AUDIT)
        charter = nodes[0].gate.approval(plan.digest).charter
        order = StudyOrder(plan, AUDITED, charter, RUN, expected=len(nodes))
        database = open_store(tmp_path / f"{coordinator}.sqlite")
        log = coordinator_log(database, charter.name)
        server = make_server_app(order, SqlOnceStore(database), log, delivered.append, lambda _: None)
        client = make_client_app(lambda context: nodes[int(context.node_config["partition-id"])])
        run_in_process(server, client, nodes=len(nodes))
        database.dispose()
        (answer,) = delivered
        assert isinstance(answer, AuditAnswer)
        return answer

    return run


def test_an_institution_s_own_tables_are_its_part_of_the_very_same_charged_answers(
    auditees: list[Node],
    audited: Callable[..., AuditAnswer],
    log_entries: Callable[[Path], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    answer = audited("coordinator")
    (pooled,) = answer.pooled
    assert sorted(answer.own) == ["bank 0", "bank 1", "bank 2"]
    parts = [answers[0].outcomes for answers in answer.own.values()]
    np.testing.assert_allclose(sum(part.counts for part in parts), pooled.outcomes.counts, atol=1e-6)
    assert pooled.outcomes.std == pytest.approx(parts[0].std * np.sqrt(3))
    (record,) = answer.document.releases
    for node in auditees:
        assert node.ledger.spent() == Spend(record.mu2, record.tv), "one charge pays for pooled and own tables"
    for folder in sorted(tmp_path.glob("auditee-*")):
        entries = log_entries(folder / LOG_FILE)
        store = open_store(folder / LOG_FILE, read_only=True)
        kept = LogReader(store).cosigned()
        store.dispose()
        assert kept is not None
        assert parse_note(kept).text.split("\n")[1] == str(len(entries)), "one exchange of witnesses served all"
        assert [entry["question"] for entry in entries if entry["event"] == "release"] == [record.question]


@pytest.mark.parametrize("coordinator", ["one", "two"], ids=["that remembers", "that forgot"])
def test_an_audit_again_is_free_and_gives_the_same_bytes(
    coordinator: str,
    auditees: list[Node],
    audited: Callable[..., AuditAnswer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = audited("one")
    spent = [node.ledger.spent() for node in auditees]
    real, calls = Door.release, list[str]()

    def release(door: Door, question: Question, sum_request: bytes | None = None) -> Release:
        calls.append(question.digest)
        return real(door, question, sum_request)

    monkeypatch.setattr(Door, "release", release)
    again = audited(coordinator)
    assert again.document.to_bytes() == first.document.to_bytes()
    assert [node.ledger.spent() for node in auditees] == spent
    assert len(calls) == (0 if coordinator == "one" else 3)


def test_an_institution_that_cannot_answer_leaves_the_audit_and_the_others_go_on(
    auditees: list[Node], audited: Callable[..., AuditAnswer], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, broken = Door.release, auditees[1].door

    def release(door: Door, question: Question, sum_request: bytes | None = None) -> Release:
        if door is broken:
            raise RefusedError("out of order")
        return real(door, question, sum_request)

    monkeypatch.setattr(Door, "release", release)
    answer = audited("coordinator")
    assert sorted(answer.own) == ["bank 0", "bank 2"]
    assert answer.document.institutions == 2
    with pytest.raises(RefusedError, match="the plan needs 2"):
        audited("another", auditees[:1])


class Member:
    """An institution that answers a number, and fails at some questions."""

    def __init__(self, answer: int, *failing: int) -> None:
        self.answer, self.failing, self.asked, self.closed = answer, failing, 0, list[str]()

    def ask(self, question: Question, width: int) -> tuple[NDArray[np.int64], int]:
        self.asked += 1
        if self.asked in self.failing:
            raise RefusedError("no answer")
        return np.full(width, self.answer, dtype=np.int64), 1

    def close(self, released: str) -> None:
        self.closed.append(released)


def test_whoever_missed_a_question_is_not_asked_again_and_sums_wrap_as_elsewhere() -> None:
    members = {"1": Member(2**62), "2": Member(2**62, 1), "3": Member(2**62)}
    federation = SeparateFederation(members, minimum=2)
    question = Question(QuestionHeader(plan=AUDITED.digest, run=RUN, phase="outcomes", step=0, attempt=1, kind="k"))
    for _ in range(2):
        total, answered = federation.ask(question, 3)
        assert (total.tolist(), answered, sorted(federation.parts)) == ([-(2**63)] * 3, 2, ["1", "3"])
    assert [member.asked for member in members.values()] == [2, 1, 2]
    federation.close("sha256:0")
    assert [member.closed for member in members.values()] == [["sha256:0"], [], []], "one closes for all"
    with pytest.raises(RefusedError, match="needs 4"):
        SeparateFederation(members, minimum=4)
