"""Governed simulations: rules admit, consents filter, logs witness each other; and what a withdrawal changes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cohortium.client.governing import CONSENT_FILE, GOVERNANCE_FILE
from cohortium.client.node import Node, open_node
from cohortium.client.onboarding import load_customer_table, parse_source
from cohortium.client.witnessing import LOG_FILE
from cohortium.governance.consent import ConsentStore
from cohortium.governance.log import AuditLog, Ed25519Signer, log_origin, log_verifier, quorum_for, verify_log
from cohortium.privacy.ledger import open_store
from cohortium.privacy.release import consent_opening
from cohortium.simulations.governed import SimulatedGovernance
from cohortium.simulations.run_folder import SimulationOrder, coordinator_key
from cohortium.simulations.sources import own_data
from cohortium.simulations.study import simulate
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.errors import RefusedError
from cohortium.study.plans import load_plan

NAMES = ("north", "south", "west")


def order(folder: Path, out: str = "out", name: str = "small", **changes: object) -> SimulationOrder:
    """The small study with shared noise; rules of the EU are in force everywhere, those of the UK at the third."""
    text = (folder / "plan.toml").read_text(encoding="utf-8")
    for old, new in (
        ('name = "small"', f'name = "{name}"'),
        ('trust = "local"', 'trust = "distributed"'),
        ("min_institutions = 2", "min_institutions = 3"),
        ('purpose = "research"', 'purpose = "CustomerSegmentation"'),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    contract = (folder / "contract.toml").read_text(encoding="utf-8")
    (folder / "contract.toml").write_text(contract.replace('"research"', '"CustomerSegmentation"'), encoding="utf-8")
    (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    plan, made = load_plan(folder / f"{name}.toml")
    data = own_data({"people": parse_source(str(folder / "people.csv"))}, "region", made)
    governance = SimulatedGovernance(regions=("EU", "EU", "UK"))
    built = SimulationOrder(plan, made, data, folder / out, governance=governance, lifetime_epsilon=3.0)
    return replace(built, **changes)  # type: ignore[arg-type]


def silent(_: str) -> None:
    pass


@contextmanager
def opened(made: SimulationOrder, name: str) -> Iterator[Node]:
    folder = made.state_folder / name
    node = open_node(folder, load_customer_table(folder / "customers", made.contract))
    try:
        yield node
    finally:
        node.close()


def charter_of(made: SimulationOrder) -> Charter:
    return parse_charter(json.loads((made.out / "charter.json").read_bytes()))


@contextmanager
def consents(made: SimulationOrder, name: str) -> Iterator[ConsentStore]:
    engine = open_store(made.state_folder / name / CONSENT_FILE)
    try:
        yield ConsentStore(engine)
    finally:
        engine.dispose()


def test_every_release_has_one_witnessed_entry_and_a_decision(study_folder: Path) -> None:
    made = order(study_folder)
    bundle = simulate(made, silent).bundle
    charter = charter_of(made)
    asked = [record.question for record in bundle.releases]
    for name in NAMES:
        store = open_store(made.state_folder / name / LOG_FILE)
        origin = log_origin(charter.name, name)
        with opened(made, name) as node:
            (decision, facts) = node.store.decisions(made.plan.digest)[0]
            charges = list(node.ledger.charges())
            replies = [node.ledger.replay(charge.slot, charge.question) or b"" for charge in charges]
        assert decision.admitted
        assert facts.facts["cohort.without_valid_consent"] == 0
        assert set(decision.packs) == ({"house", "eu"} if name != "west" else {"house", "eu", "uk"})
        try:
            key = load_pem_private_key((made.state_folder / name / "identity.pem").read_bytes(), None)
            log = AuditLog(store, origin, Ed25519Signer(origin, key))  # type: ignore[arg-type]
            entries = [one.entry for one in log.entries(0, log.size)]
            cosigned = log.cosigned()
            report = verify_log(store, log_verifier(charter, name))
        finally:
            store.dispose()
        assert [entry["event"] for entry in entries] == ["admission"] + ["release"] * len(asked)
        assert [entry["question"] for entry in entries[1:]] == asked
        assert {entry["decision"] for entry in entries} == {decision.id}
        assert report.findings == ()
        assert cosigned is not None
        assert quorum_for(charter, name).require(cosigned).size == len(entries), "the closing wave cosigned the last"
        assert len(quorum_for(charter, name).cosigners(cosigned)) == 2
        roots = {
            consent_opening(reply, charge.width)["consent_root"] for reply, charge in zip(replies, charges, strict=True)
        }
        assert len(roots) == 1
        assert len({entry["consent"] for entry in entries[1:]}) == len(asked)


def test_the_coordinator_s_log_names_every_contribution_and_is_cosigned(study_folder: Path) -> None:
    made = order(study_folder)
    bundle = simulate(made, silent).bundle
    charter = charter_of(made)
    store = open_store(made.state_folder / "coordinator" / LOG_FILE)
    try:
        origin = log_origin(charter.name)
        log = AuditLog(store, origin, Ed25519Signer(origin, coordinator_key(made)))
        entries = [one.entry for one in log.entries(0, log.size)]
        cosigned = log.cosigned()
    finally:
        store.dispose()
    assert [entry["event"] for entry in entries] == ["question"] * len(bundle.releases) + ["released"]
    assert all(set(entry["contributions"]) == set(NAMES) for entry in entries[:-1])
    assert entries[-1]["released"] == bundle.digest
    assert cosigned is not None
    assert quorum_for(charter, None).require(cosigned).size == len(entries)


def test_who_withdraws_between_two_runs_changes_the_second_alone(study_folder: Path) -> None:
    first = order(study_folder)
    simulate(first, silent)
    with opened(first, "north") as node:
        before = node.governance.counted(node.people, first.plan.digest)
    person = str(before.people.keys[0])
    with consents(first, "north") as store:
        store.withdraw(person)
    second = order(study_folder, "out2", "second", state=first.state_folder)
    simulate(second, silent)
    with opened(second, "north") as node:
        after = node.governance.counted(node.people, second.plan.digest)
        roots = {
            charge.slot.run: consent_opening(node.ledger.replay(charge.slot, charge.question) or b"", charge.width)
            for charge in node.ledger.charges()
        }
    assert set(before.people.keys) - set(after.people.keys) == {person}
    assert set(after.people.keys) <= set(before.people.keys)
    told = [one["consent_root"] for one in roots.values()]
    assert told == [before.root.hex(), after.root.hex()]
    assert before.root != after.root
    with consents(first, "north") as store:
        receipt = store.receipt(person)[-1]
    runs = list(roots)
    assert runs[1] in str(receipt)
    assert runs[0] not in str(receipt)


def test_a_missing_document_refuses_at_home_and_says_nothing_abroad(
    study_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = order(study_folder)
    simulate(first, silent)
    made = order(study_folder, "out2", "second", state=first.state_folder)
    path = made.state_folder / "south" / GOVERNANCE_FILE
    text = path.read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("docs.ropa_ref"))
    path.write_text(text.replace(line, ""), encoding="utf-8")
    caplog.set_level(logging.WARNING)
    with pytest.raises(RefusedError, match="only 2 institutions accepted the plan") as caught:
        simulate(made, silent)
    assert "ropa" not in str(caught.value)
    assert "EU-GDPR-30" in caplog.text
    assert "docs.ropa_ref is unknown" in caplog.text
    with opened(first, "south") as node:
        (decision, _) = node.store.decisions(made.plan.digest)[-1]
        assert not decision.admitted
        assert {charge.slot.plan for charge in node.ledger.charges()} == {first.plan.digest}
