"""An institution's own say: which runs the rules in force here admit, and who of its customers counts, day by day."""

from __future__ import annotations

import logging
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from cohortium.client.app import make_client_app
from cohortium.client.governing import CONSENT_FILE, GOVERNANCE_FILE
from cohortium.client.node import Node, NodeIdentity, create_node, identity_key, open_node
from cohortium.governance.consent import ConsentSignal, ConsentStore, Entry, ErasureSignal, FlagSignal, RecordTemplate
from cohortium.governance.log import parse_leaf
from cohortium.governance.rules import FactError, RuleError
from cohortium.models.marginals import Axis, MarginalsQuery
from cohortium.privacy.ledger import Slot, open_store
from cohortium.privacy.query import bounded_total
from cohortium.privacy.table import CustomerTable
from cohortium.simulations.grid import run_in_process
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.contract import Contract
from cohortium.study.errors import CohortiumError, DataError, RefusedError
from cohortium.study.plan import Plan
from cohortium.study.question import PlanQuestion, Question, QuestionHeader
from cohortium.study.software import installed_software
from cohortium.study.witness import Statement

QUERY = MarginalsQuery((Axis("visits", 0, 40, integer=True),))
RUN = "0" * 32
COLUMNS = ("visits", "spend", "score")
GIVEN = int(time.time()) - 1000


def packaged(name: str) -> str:
    return (resources.files("cohortium.simulations") / "plans" / name).read_text(encoding="utf-8")


DECLARED = packaged("demo.governance.toml").replace("packs = []", 'packs = ["eu"]')
TEMPLATE = packaged("demo.consent.toml")


def offer(plan: Plan, run: str = RUN) -> PlanQuestion:
    return PlanQuestion(plan.digest, run, int(time.time()))


def question(plan: Plan, attempt: int = 1) -> Question:
    spec = QUERY.spec()
    header = QuestionHeader(
        plan=plan.digest, run=RUN, phase="marginals", step=0, attempt=attempt, kind=spec.kind, scalars=spec.scalars
    )
    return Question(header, spec.arrays)


@dataclass(frozen=True)
class Bank:
    """A real institution, two others that witness its log, and what it says to a plan."""

    folder: Path
    node: Node
    plan: Plan
    people: CustomerTable
    exchange: Callable[..., None]
    others: list[Node]
    entries: Callable[[Path], list[dict[str, Any]]]

    def witness(self) -> None:
        self.exchange([self.node, *self.others], self.plan)

    def accept(self, run: str = RUN) -> Any:
        self.witness()
        return self.node.accept(offer(self.plan, run))

    def release(self, attempt: int = 1) -> Any:
        self.witness()
        return self.node.door.release(question(self.plan, attempt))

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in self.entries(self.folder) if entry["event"] == event]

    def refusal(self) -> RefusedError:
        with pytest.raises(RefusedError) as caught:
            self.accept()
        return caught.value

    def say(self, *said: tuple[str, Any], at: int | None = None) -> None:
        """Customers by id, and what they say, now or at a time."""
        store = self.node.governance.consent
        assert store is not None
        when = int(time.time()) if at is None else at
        for outcome in store.record_many([Entry(person, signal, when) for person, signal in said]):
            assert not hasattr(outcome, "reason"), outcome


def consents(state: Any = "ConsentGiven") -> ConsentSignal:
    template = RecordTemplate.model_validate(tomllib.loads(TEMPLATE))
    return ConsentSignal(
        template=template.digest,
        purposes=("Marketing",),
        state=state,
        event_type="explicit",
        validity_duration="P24M",
        entity_id="data subject",
    )


@pytest.fixture
def make_bank(
    tmp_path: Path,
    small_contract: Contract,
    charter: Charter,
    make_plan: Callable[..., Plan],
    make_people: Callable[..., CustomerTable],
    exchange: Callable[..., None],
    log_entries: Callable[[Path], list[dict[str, Any]]],
) -> Iterator[Callable[..., Bank]]:
    """A bank with that `governance.toml` and consents of all its customers; with None, without that file."""
    opened: list[Node] = []

    def make(
        declared: str | None,
        *,
        asked: bool = True,
        simulation: bool = False,
        keep: str = "bank",
        regions: tuple[str, ...] = (),
        **plan: Any,
    ) -> Bank:
        base = tmp_path / keep
        contract = small_contract.model_copy(update={"purposes": ("CustomerSegmentation",)})
        ids = np.array([f"person-{number:03d}" for number in range(60)])
        people = CustomerTable(COLUMNS, make_people(60).select(COLUMNS), ids)
        names = [member.name for member in charter.institutions]
        for name in names:
            identity = NodeIdentity(institution=name, simulation=simulation or name != names[0])
            create_node(base / name, identity, contract)
        if declared is not None:
            (base / names[0] / GOVERNANCE_FILE).write_text(declared, encoding="utf-8")
        if asked and not (base / names[0] / CONSENT_FILE).exists():
            fill(base / names[0] / CONSENT_FILE, ids)
        nodes = [open_node(base / name, people) for name in names]
        opened.extend(nodes)
        members = [
            {"name": name, "region": region, "identity": identity_key(base / name)}
            for name, region in zip(names, regions or ("EU",) * len(names), strict=True)
        ]
        federation = parse_charter({"schema": "cohortium.charter/1", "name": "real", "institutions": members})
        wanted = {"purpose": "CustomerSegmentation", "min_institutions": 3, "max_attempts": 3, **plan}
        wanted.setdefault("software", installed_software().model_dump())
        made = make_plan(contract=contract.digest, **wanted)
        for node in nodes:
            node.store.approve(made, contract, federation)
        return Bank(base / names[0], nodes[0], made, people, exchange, nodes[1:], log_entries)

    yield make
    for node in opened:
        node.close()


def fill(path: Path, ids: Any) -> None:
    store = ConsentStore(open_store(path))
    store.add_template(RecordTemplate.model_validate(tomllib.loads(TEMPLATE)))
    store.record_many([Entry(str(person), consents(), GIVEN) for person in ids])
    store.close()


HOUSE = DECLARED.replace('packs = ["eu"]', "packs = []")
LAWFUL: dict[str, Any] = {"trust": "distributed"}


# --- admission -------------------------------------------------------------------------------------------------------


def test_a_plan_is_admitted_by_house_and_eu_rules_and_the_decision_kept_and_logged(
    make_bank: Callable[..., Bank],
) -> None:
    bank = make_bank(DECLARED, **LAWFUL)
    assert bank.accept() is not None
    ((decision, facts),) = bank.node.store.decisions(bank.plan.digest)
    assert decision.admitted
    assert set(decision.packs) == {"house", "eu"}
    assert decision.facts == facts.digest
    assert bank.node.store.admitted(bank.plan.digest, RUN) == decision.id
    (entry,) = bank.logged("admission")
    assert entry == {
        "event": "admission",
        "plan": bank.plan.digest,
        "run": RUN,
        "decision": decision.id,
        "admitted": "true",
    }
    assert [r.plan for r in bank.node.ledger.reservations()] == [bank.plan.digest]


def test_facts_are_gathered_from_where_they_are_known(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank(DECLARED, **LAWFUL)
    bank.accept()
    ((_, facts),) = bank.node.store.decisions(bank.plan.digest)
    told = {name: (value, facts.provenance[name].split()[0]) for name, value in facts.facts.items()}
    assert told["log.cosigners"] == (2, "audit")
    assert told["privacy.secure_aggregation"] == (True, "plan")
    charter = bank.node.gate.approval(bank.plan.digest).charter
    assert told["privacy.delta_times_n"] == (1e-6 * charter.min_customers, "charter"), "nobody's presence changes it"
    assert 0.99 < told["privacy.epsilon"][0] <= 1.0
    assert told["cohort.without_valid_consent"] == (0, "consent")
    assert told["transfer.crosses_border"] == (False, "charter")
    assert told["docs.dpia_ref"][1] == "made"
    assert "cohort.objectors_unresolved" not in told, "not looked at for consent: unknown, and not 0"


MISSING = {
    "docs.dpia_ref": "EU-GDPR-35",
    "docs.ropa_ref": "EU-GDPR-30",
    "notice.profiling_disclosed": "EU-GDPR-13-14",
    "features.vulnerability_targeting": "EU-AIA-5-B",
}


def test_a_resumed_run_is_judged_by_its_whole_budget_and_not_by_what_it_charged_so_far(
    make_bank: Callable[..., Bank],
) -> None:
    bank = make_bank(DECLARED, **LAWFUL)
    bank.accept()
    slot = Slot(bank.plan.digest, RUN, "marginals", 0, 1)
    bank.node.ledger.charge(slot, "sha256:" + "0" * 64, width=1, bound_squared=2**40, sigma=2**23)
    bank.accept()
    first, second = (facts.facts["privacy.epsilon"] for _, facts in bank.node.store.decisions(bank.plan.digest))
    assert first == second


@pytest.mark.parametrize("fact", MISSING)
def test_an_unknown_fact_refuses_and_says_which(fact: str, make_bank: Callable[..., Bank]) -> None:
    bank = make_bank(without(fact), **LAWFUL)
    error = bank.refusal()
    ((decision, _),) = bank.node.store.decisions(bank.plan.digest)
    (finding,) = decision.findings
    assert (finding.rule, finding.outcome) == (MISSING[fact], "unknown")
    for said in (finding.rule, finding.article, finding.plain, f"{fact} is unknown", finding.change):
        assert said in error.message
    assert not decision.admitted
    (entry,) = bank.logged("admission")
    assert (entry["decision"], entry["admitted"]) == (decision.id, "false")
    assert bank.node.store.admitted(bank.plan.digest, RUN) is None
    assert bank.node.ledger.reservations() == []


def without(fact: str) -> str:
    kept = [line for line in DECLARED.splitlines() if not line.startswith(f"{fact} ")]
    assert len(kept) == len(DECLARED.splitlines()) - 1
    return "\n".join(kept) + "\n"


def test_a_broken_rule_names_the_value_that_breaks_it(make_bank: Callable[..., Bank]) -> None:
    said = make_bank(DECLARED).refusal().message
    assert "EU-GDPR-25" in said
    assert "privacy.secure_aggregation is False" in said


def in_2027(bank: Bank) -> Bank:
    """When India's limit on how long logs are kept, a year, is in force."""
    bank.node.governance._today = lambda: date(2027, 6, 1)
    return bank


def test_the_strictest_limit_of_any_institutions_region_holds_for_all(make_bank: Callable[..., Bank]) -> None:
    regions = ("EU", "IN", "EU")
    short, long = (f"{DECLARED}\nlog.retention_days = {days}\n" for days in (364, 365))
    refused = in_2027(make_bank(short, regions=regions, keep="short", **LAWFUL))
    said = str(refused.refusal())
    assert "limit of another institution" in said
    assert "log.retention_days is 364" in said
    ((decision, _),) = refused.node.store.decisions(refused.plan.digest)
    assert [finding.pack for finding in decision.findings] == ["agreed"]
    assert set(decision.packs) == {"house", "eu"}
    assert in_2027(make_bank(long, regions=regions, keep="long", **LAWFUL)).accept() is not None
    assert in_2027(make_bank(short, keep="alone", **LAWFUL)).accept() is not None


def test_a_limit_of_another_region_that_cannot_be_told_refuses(make_bank: Callable[..., Bank]) -> None:
    said = str(in_2027(make_bank(DECLARED, regions=("EU", "IN", "EU"), **LAWFUL)).refusal())
    assert "log.retention_days is unknown" in said


def test_the_coordinator_sees_only_declined(make_bank: Callable[..., Bank], caplog: pytest.LogCaptureFixture) -> None:
    bank = make_bank(without("docs.dpia_ref"), **LAWFUL)
    bank.witness()
    app = make_client_app(lambda _: bank.node)
    with caplog.at_level(logging.WARNING):
        reply = asked(app, offer(bank.plan).to_record())
    assert {name: dict(record) for name, record in reply.content.items()} == {"reply": {"word": "declined"}}
    assert "EU-GDPR-35" in caplog.text
    bank.witness()
    with pytest.raises(RefusedError, match="no rule has admitted"):
        bank.node.door.release(question(bank.plan))


def asked(app: ClientApp, content: RecordDict) -> Message:
    """What the coordinator gets to its question for a plan."""
    replies: list[Message] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, _context: Context) -> None:
        replies.extend(grid.send_and_receive([Message(content, next(iter(grid.get_node_ids())), "query.plan")]))

    run_in_process(server, app, nodes=1)
    return replies[0]


def test_without_rules_in_force_a_real_node_refuses_and_a_simulated_one_answers(
    make_bank: Callable[..., Bank],
) -> None:
    real = make_bank(None)
    error = real.refusal()
    assert "no rules are in force" in str(error)
    assert str(real.folder / GOVERNANCE_FILE) in str(error)
    assert real.node.ledger.reservations() == []
    simulated = make_bank(None, simulation=True, keep="simulated")
    simulated.accept()
    assert simulated.node.store.admitted(simulated.plan.digest, RUN) == "none"
    assert simulated.node.store.decisions(simulated.plan.digest) == []


def test_rules_bind_a_simulated_node_that_has_some(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank(without("docs.dpia_ref"), simulation=True, **LAWFUL)
    assert "EU-GDPR-35" in bank.refusal().message


def test_a_refusal_after_an_admission_ends_the_run(make_bank: Callable[..., Bank]) -> None:
    """The newest decision counts: what was admitted under other facts is not answered on."""
    bank = make_bank(HOUSE)
    bank.accept()
    bank.release()
    bank.node.close()
    (bank.folder / GOVERNANCE_FILE).write_text(without("docs.dpia_ref"), encoding="utf-8")
    node = open_node(bank.folder, bank.people)
    bank.exchange([node, *bank.others], bank.plan)
    with pytest.raises(RefusedError, match="EU-GDPR"):
        node.accept(offer(bank.plan))
    bank.exchange([node, *bank.others], bank.plan)
    with pytest.raises(RefusedError, match="no rule has admitted"):
        node.door.release(question(bank.plan, 2))
    assert len(list(node.ledger.charges())) == 1
    node.close()


def test_every_release_names_the_decision_that_admitted_its_run(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank(HOUSE)
    bank.accept()
    ((decision, _),) = bank.node.store.decisions(bank.plan.digest)
    statement = Statement.from_bytes(bank.release().statement)
    assert parse_leaf(bytes.fromhex(statement.entry)).entry["decision"] == decision.id


TYPOS: dict[str, tuple[str, str, type[CohortiumError], str]] = {
    "a key": ('packs = ["eu"]', 'pacts = ["eu"]', DataError, "pac"),
    "a pack": ('packs = ["eu"]', 'packs = ["eo"]', RuleError, "eo"),
    "a fact": ("docs.ropa_ref", "docs.ropa_red", FactError, "docs.ropa_ref"),
    "a fact's type": ("use.human_review = true", "use.human_review = 1", FactError, "use.human_review"),
    "a choice": ('use.decision = "none"', 'use.decision = "non"', FactError, "use.decision"),
    "a count": (
        'use.decision = "none"',
        'use.decision = "none"\ncohort.minors = 0',
        DataError,
        "cohort.minors is not to",
    ),
    "a root": (
        'use.decision = "none"',
        'use.decision = "none"\ndocs.consent_snapshot_root = "sha256:0"',
        DataError,
        "docs.consent_snapshot_root is not to be declared",
    ),
    "the schema": ("cohortium.governance/1", "cohortium.governance/2", DataError, "schema"),
    "no TOML": ("declared_by =", "declared_by", DataError, "line"),
    "nobody": ("declared_by = ", 'declared_by = "" # ', DataError, "declared_by"),
    "a text for a switch": ("declared_by = ", 'sharing = "no"\ndeclared_by = ', DataError, "sharing"),
}


@pytest.mark.parametrize("name", TYPOS)
def test_a_typo_in_what_is_declared_is_named_and_the_node_not_opened(name: str, make_bank: Callable[..., Bank]) -> None:
    right, wrong, kind, said = TYPOS[name]
    assert right in DECLARED
    with pytest.raises(kind) as caught:
        make_bank(DECLARED.replace(right, wrong))
    assert said in str(caught.value)


def test_an_own_pack_binds_like_any_other(make_bank: Callable[..., Bank], tmp_path: Path) -> None:
    (tmp_path / "bank" / "north").mkdir(parents=True, mode=0o700)
    (tmp_path / "bank" / "north" / "own.toml").write_text(OWN_PACK, encoding="utf-8")
    bank = make_bank(HOUSE.replace("packs = []", 'packs = []\nown_packs = ["own.toml"]'))
    assert "NORTH-EPS" in bank.refusal().message


OWN_PACK = """
schema = "cohortium.rules/1"
name = "north"
title = "North Bank"
as_of = 2026-11-23
disclaimer = "not legal advice"

[sheet]
privacy.epsilon = 0.1

[[rules]]
id = "NORTH-EPS"
article = "Board decision 12"
plain = "One person's epsilon stays at or below a half."
stage = "admission"
effect = "limit"
limit = { fact = "privacy.epsilon", op = "<=", number = 0.5 }
status = "house"
confidence = "house"
passing = { facts = { privacy.epsilon = 0.5 } }
failing = { facts = { privacy.epsilon = 1.1 } }
"""


# --- who is counted --------------------------------------------------------------------------------------------------


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """No noise, so that a contribution shows whom it counted."""
    monkeypatch.setattr(
        "cohortium.privacy.release.sample_discrete_gaussian", lambda _sigma, width, _bits: np.zeros(width, np.int64)
    )


def total(bank: Bank, *left_out: str) -> list[int]:
    kept = ~np.isin(bank.people.keys, left_out)
    return list(bounded_total(QUERY, bank.people.take(kept)))


def counted(bank: Bank) -> Any:
    return bank.node.governance.counted(bank.people, bank.plan.digest)


def test_people_without_valid_consent_are_left_out(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank(HOUSE)
    everybody = counted(bank)
    assert list(everybody.people.keys) == list(bank.people.keys)
    bank.say(
        ("person-003", consents("ConsentWithdrawn")),
        ("person-010", FlagSignal(kind="marketing-objection", state="set")),
        ("person-044", ErasureSignal(state="accepted")),
    )
    now = counted(bank)
    assert set(bank.people.keys) - set(now.people.keys) == {"person-003", "person-010", "person-044"}
    assert (now.people.select(COLUMNS) == bank.people.select(COLUMNS)[np.isin(bank.people.keys, now.people.keys)]).all()
    assert bank.accept() is None, "filtered people are no reason to refuse"


def test_the_root_changes_if_and_only_if_somebody_s_standing_does(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank(HOUSE)
    first = counted(bank)
    assert len(first.root) == 32
    assert counted(bank).root == first.root
    bank.accept()
    bank.release()
    assert counted(bank).root == first.root, "questions change nobody's standing"
    bank.say(("person-003", consents("ConsentWithdrawn")))
    second = counted(bank)
    assert second.root != first.root
    assert counted(bank).root == second.root


def test_a_withdrawal_between_two_questions_changes_the_next_contribution_only(
    make_bank: Callable[..., Bank], exact: None
) -> None:
    bank = make_bank(HOUSE)
    bank.accept()
    first = bank.release(1)
    assert list(first.vector) == total(bank)
    bank.say(("person-003", consents("ConsentWithdrawn")))
    second = bank.release(2)
    assert list(second.vector) == total(bank, "person-003") != total(bank)
    assert list(bank.release(1).vector) == total(bank), "an answer is never made anew"
    bank.say(("person-003", consents()))
    assert list(bank.release(3).vector) == total(bank)
    assert len(bank.logged("release")) == 3
    assert len({entry["consent"] for entry in bank.logged("release")}) == 3


def test_a_withdrawal_while_the_answer_is_made_still_counts(
    make_bank: Callable[..., Bank], exact: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the reply is stored: the sum is made again without the person, under the same charge."""
    bank = make_bank(HOUSE)
    bank.accept()
    charge = type(bank.node.ledger).charge

    def withdrawing(*arguments: Any, **more: Any) -> Any:
        made = charge(*arguments, **more)
        bank.say(("person-003", consents("ConsentWithdrawn")))
        return made

    monkeypatch.setattr(type(bank.node.ledger), "charge", withdrawing)
    assert list(bank.release().vector) == total(bank, "person-003")
    assert len(list(bank.node.ledger.charges())) == 1


def test_a_receipt_names_the_first_question_without_the_person(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank(HOUSE)
    bank.accept()
    bank.release(1)
    bank.say(("person-003", consents("ConsentWithdrawn")))
    store = bank.node.governance.consent
    assert store is not None
    assert any(one.duty == "leave-out-of-rounds" for one in store.open_obligations())
    bank.release(2)
    assert not any(one.duty == "leave-out-of-rounds" for one in store.open_obligations())
    assert question(bank.plan, 2).digest in str(store.receipt("person-003")[-1])
    assert question(bank.plan, 1).digest in str(store.receipt("person-003")[0])


def test_nothing_of_who_was_left_out_leaves(make_bank: Callable[..., Bank]) -> None:
    """Neither in log entries nor in statements: ids, counts and roots stay."""
    bank = make_bank(HOUSE)
    bank.say(("person-003", consents("ConsentWithdrawn")))
    bank.accept()
    statement = bank.release().statement.decode()
    entry = bytes.fromhex(Statement.from_bytes(statement.encode()).entry).decode()
    for secret in ("person-003", counted(bank).root.hex()):
        assert secret not in statement
        assert secret not in entry
        assert secret not in str(bank.entries(bank.folder))
