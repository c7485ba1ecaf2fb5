"""Packs of a small governed run: what verification says of them, and of packs that an insider put together wrongly.

Whoever tampers here holds the coordinator's key, so that every altered pack is genuinely signed.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.client.evidence import node_part, of_node
from cohortium.client.node import read_contract
from cohortium.client.onboarding import parse_source
from cohortium.client.store import NodeStore
from cohortium.governance.evidence.pack import MANIFEST, MANIFEST_SIGNATURE, Manifest, Source, write_pack
from cohortium.governance.evidence.pack_container import layout
from cohortium.governance.evidence.pack_log import read_log
from cohortium.governance.evidence.verify import CHECKS, Findings, verify_packs
from cohortium.governance.fairness import FairnessResult
from cohortium.governance.log import (
    AuditLog,
    Checkpoint,
    Cosigner,
    Ed25519Signer,
    Note,
    log_origin,
    parse_note,
    quorum_for,
)
from cohortium.governance.review import ReviewStore, Terms, open_case, read_identity, sign_statement
from cohortium.governance.rules import Decision
from cohortium.privacy.accounting import Spend, budget_for, epsilon_spent, price
from cohortium.privacy.ledger import Ledger, Slot, open_store
from cohortium.privacy.sharing import NoiseShare
from cohortium.simulations.evidence import of_runs
from cohortium.simulations.governed import SimulatedGovernance
from cohortium.simulations.run_folder import SimulationOrder
from cohortium.simulations.sources import own_data
from cohortium.simulations.study import simulate
from cohortium.study.bundle import Bundle
from cohortium.study.canonical import canonical_bytes, digest_json
from cohortium.study.charter import Charter, enrol_reviewer, parse_charter, prove_possession
from cohortium.study.errors import DataError, RefusedError
from cohortium.study.plans import load_plan, parse_plan

NAMES = ("north", "south", "west")
NORTH = "parties/north/"
CONTRACT = """
schema = "cohortium.contract/1"
name = "small"
purposes = ["CustomerSegmentation"]
[window]
start = 2024-01-01
end = 2025-01-01
[[tables]]
name = "people"
kind = "customers"
customer = "id"
"""
FEATURE = """
[[features]]
name = "{0}"
table = "people"
kind = "numeric"
column = "{0}"
low = 0
high = 40
missing = 0
block = "behaviour"
"""
PLAN = """
schema = "cohortium.plan/1"
name = "small"
purpose = "CustomerSegmentation"
lawful_basis = "consent"
regions = ["EU"]
contract = "contract.toml"
expires = 2099-12-31
trust = "distributed"
epsilon = 1.0
delta = 1e-6
min_institutions = 3
min_cell = 50
[segments]
k = 2
[shares]
marginals = 20
clustering = 60
profiles = 20
rfm = 0
"""
Docs = dict[str, bytes]


@dataclass(frozen=True)
class Scene:
    """A run, its pack's documents, and the key that signed it."""

    out: Path
    charter: Charter
    docs: Docs
    key: Ed25519PrivateKey
    bundle: Bundle

    @property
    def plan(self) -> str:
        return self.bundle.plan.digest

    def verified(self, docs: Docs, place: Path, plans: list[str] | None = None) -> Findings:
        sources = [Source(name, data) for name, data in docs.items()]
        signer = log_origin(self.charter.name)
        wanted = plans if plans is not None else [self.plan]
        write_pack(place, sources, federation=self.charter.name, signer=signer, key=self.key, plans=wanted)
        return verify_packs([place], self.charter)


def failed(found: Findings) -> set[str]:
    return {one.check for one in found.findings if one.status == "failed"}


def messages(found: Findings) -> str:
    return "\n".join(f"{one.check} {one.about}: {one.message}" for one in found.findings)


def simulated(folder: Path) -> SimulationOrder:
    rng = np.random.default_rng(1)
    (folder / "contract.toml").write_text(CONTRACT + "".join(FEATURE.format(name) for name in ("visits", "spend")))
    (folder / "plan.toml").write_text(PLAN)
    rows = np.clip(rng.normal([[10, 30], [30, 10]], 3, (450, 2, 2)), 0, 40).reshape(-1, 2).round(2)
    lines = [f"someone-{at:04d},{NAMES[at % 3]},{row[0]},{row[1]}" for at, row in enumerate(rows)]
    (folder / "people.csv").write_text("\n".join(["id,region,visits,spend", *lines]) + "\n")
    plan, contract = load_plan(folder / "plan.toml")
    data = own_data({"people": parse_source(str(folder / "people.csv"))}, "region", contract)
    governance = SimulatedGovernance(regions=("EU", "EU", "UK"))
    return SimulationOrder(plan, contract, data, folder / "out", governance=governance, lifetime_epsilon=3.0)


def reviewed(out: Path, charter: Charter, bundle: Bundle, admission: Decision, activation: Decision) -> Charter:
    """North's two reviewers approve a case about the bundle, and an export is logged. The charter with the two."""
    home = out / "institutions" / "north"
    identity, now = read_identity(home / "identity.pem"), datetime.now(UTC).replace(microsecond=0)
    keys = {name: Ed25519PrivateKey.from_private_bytes(name.ljust(32).encode()) for name in ("privacy", "risk")}
    asked = [prove_possession(charter.name, f"p-{name}", "north", name, key) for name, key in keys.items()]  # type: ignore[arg-type]
    enrolled = charter.with_reviewers([enrol_reviewer(charter.name, one, identity) for one in asked])
    papers: Any = {
        "card": {"model": bundle.digest},
        "audit": {"audited": bundle.digest, "level": "wide"},
        "dpia": {"outcome": "approve"},
        "decision": admission.to_json(),
    }
    who = {"federation": charter.name, "institution": "north", "owner": "p-8", "builders": ["p-9"]}
    what = {"name": "spring-1", "kind": "audience_export", "about": "spring", "purpose": "Marketing"}
    case = open_case(papers, {}, **who, **what, opened_at=now)
    engine = open_store(home / "review.sqlite")
    store = ReviewStore(engine)
    store.open(case, papers)
    for one, key in zip(asked, keys.values(), strict=True):
        person = next(known for known in enrolled.reviewers if known.key == one.key)
        terms = Terms(expires=now.date() + timedelta(days=30))
        said = sign_statement(case, store.head(case.name), person, key, "approve", terms, now)
        store.add(case.name, said, enrolled, now)
    entry = {
        "event": "activation",
        "plan": bundle.plan.digest,
        "audience": "a-1",
        "model": bundle.digest,
        "level": "wide",
        "destination": "csv",
        "sequence": 0,
        "case": case.digest,
        "statement": store.head(case.name),
        "decision": activation.id,
        "admitted": "true",
    }
    engine.dispose()
    log_of(out, charter, "north").append([entry])
    return enrolled


def log_of(out: Path, charter: Charter, name: str) -> AuditLog:
    home, origin = out / "institutions" / name, log_origin(charter.name, name)
    key = read_identity(home / "identity.pem")
    return AuditLog(open_store(home / "log.sqlite"), origin, Ed25519Signer(origin, key))


def edited(docs: Docs, name: str, change: Callable[[Any], Any]) -> Docs:
    """The documents with one of them changed, and written as it has to be."""
    held = json.loads(docs[name])
    change(held)
    return {**docs, name: canonical_bytes(held)}


def with_activation(docs: Docs, plan: str, activation: Decision, facts: Any) -> Docs:
    """The log's entry is made by hand, and so is the decision that it names."""
    decided = {"plan": plan, "decision": activation.to_json(), "facts": facts}
    return edited(docs, f"{NORTH}decisions.json", lambda held: held["decisions"].append(decided))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("evidence")
    bundle = simulate(simulated(folder), lambda _: None).bundle
    out = folder / "out"
    charter = parse_charter(json.loads((out / "charter.json").read_bytes()))
    engine = open_store(out / "institutions" / "north" / "node.sqlite", read_only=True)
    ((admission, facts),) = NodeStore(engine).decisions(bundle.plan.digest)
    engine.dispose()
    activation = Decision.model_validate({**admission.to_json(), "stage": "activation"})
    enrolled = reviewed(out, charter, bundle, admission, activation)
    gathered = of_runs([out], None)
    docs = {name: content(one) for name, one in gathered.documents.items()}
    docs = with_activation(docs, bundle.plan.digest, activation, facts.to_json())
    return Scene(out, enrolled, docs, gathered.key, bundle)


def content(source: Source) -> bytes:
    return source.content if isinstance(source.content, bytes) else source.content.read_bytes()


def test_the_pack_of_a_run_is_verified(scene: Scene, tmp_path: Path) -> None:
    found = scene.verified(scene.docs, tmp_path / "pack.zip")
    assert found.passed, messages(found)
    absent = {one.check for one in found.findings if one.status == "absent"}
    assert absent == {"approvals", "fairness", "attack audit"}
    assert {one.check for one in found.findings} == set(CHECKS)
    assert all("not in this pack" in one.message for one in found.findings if one.status == "absent")
    said = messages(found)
    for part in (
        "charter : another edition of 'simulation', with the same members, keys and quorum",
        "cosignatures south: the first",
        "entries, by 2 others; the last 1 are signed by the log alone",
        "reviews north: spring-1: approved on",
        "decisions south: 1 decisions to admit",
        "witnesses west: 3 logs are as it saw them",
    ):
        assert part in said, said
    epsilon = next(one.message for one in found.findings if one.check == "epsilon")
    assert epsilon.startswith("epsilon small 0.99")


def test_the_first_and_the_last_byte_of_every_document_are_covered(scene: Scene, tmp_path: Path) -> None:
    assert scene.verified(scene.docs, tmp_path / "pack.zip").passed
    good, altered = (tmp_path / "pack.zip").read_bytes(), tmp_path / "altered.zip"
    with zipfile.ZipFile(tmp_path / "pack.zip") as archive:
        manifest, signature = archive.read(MANIFEST), archive.read(MANIFEST_SIGNATURE)
    regions = list(layout(Manifest.model_validate_json(manifest).entries(manifest, signature)))
    assert set(scene.docs) < {region.where for region in regions}
    for region in regions:
        for at in (region.offset, region.offset + region.size - 1):
            altered.write_bytes(good[:at] + bytes([good[at] ^ 0x20]) + good[at + 1 :])
            found = verify_packs([altered], scene.charter)
            assert (found.passed, found.altered) == (False, region.where), at
    altered.write_bytes(good[:-30])
    assert verify_packs([altered], scene.charter).altered == "the container (directory)"
    altered.write_bytes(good + good[-22:])
    assert verify_packs([altered], scene.charter).altered == "the container (after its end)"


def charge(at: int, **changes: Any) -> Callable[[Any], None]:
    return lambda held: held["charges"][at].update(changes)


def entry(at: int, **changes: Any) -> Callable[[Any], None]:
    return lambda held: held["entries"][at]["entry"].update(changes)


def unsigned(held: Any) -> None:
    """The cosigned checkpoint with the log's own signature and one other."""
    note = parse_note(held["cosigned"])
    held["cosigned"] = replace(note, signatures=note.signatures[:2]).to_text()


def flipped(held: Any) -> None:
    held["entries"][2], held["entries"][3] = (
        {**held["entries"][3], "index": held["entries"][2]["index"]},
        {**held["entries"][2], "index": held["entries"][3]["index"]},
    )


def another_epsilon(held: Any) -> None:
    held["spent"][0]["epsilon"] -= 0.001


def at_another_sigma(held: Any, times: Fraction) -> None:
    """Charges, sums and epsilon that agree with each other, and with no log."""
    total = Spend()
    for one in held["charges"]:
        sigma, share = int(int(one["sigma"]) * times), NoiseShare(one["contributions"], one["colluders"])
        cost = price(int(one["bound_squared"]), sigma, one["width"], share)
        one.update(sigma=str(sigma), mu2=str(cost.mu2), tv=str(cost.tv))
        total = total + cost
    (stated,) = held["spent"]
    stated.update(mu2=str(total.mu2), tv=str(total.tv), epsilon=epsilon_spent(total, stated["delta"]))


OF_NO_LOG = {"cosignatures", "charges", "decisions", "consent", "contributions", "activations"}
"""Checks of an institution that fail when its log does not hold."""

TAMPERED: dict[str, tuple[str, Callable[[Any], Any], set[str]]] = {
    "epsilon": ("ledger.json", another_epsilon, {"epsilon"}),
    "charge's price": ("ledger.json", charge(1, mu2="1"), {"charges", "epsilon"}),
    "charge's sigma": ("ledger.json", charge(1, sigma="999999999"), {"charges"}),
    "charge's question": ("ledger.json", charge(0, question="sha256:" + "0" * 64), {"charges"}),
    "charge's number": ("ledger.json", charge(0, sequence=77), {"charges"}),
    "charge's noise": ("ledger.json", charge(0, mechanism="discrete-gaussian"), {"charges"}),
    "charge removed": ("ledger.json", lambda held: held["charges"].pop(), {"charges", "epsilon"}),
    "charge twice": ("ledger.json", lambda held: held["charges"].append(held["charges"][0]), {"charges", "epsilon"}),
    "cheaper charges": ("ledger.json", lambda held: at_another_sigma(held, Fraction(2)), {"charges"}),
    "dearer charges": ("ledger.json", lambda held: at_another_sigma(held, Fraction(1, 2)), {"charges", "epsilon"}),
    "charges in another order": ("ledger.json", lambda held: held["charges"].reverse(), {"charges"}),
    "sum removed": ("ledger.json", lambda held: held["spent"].clear(), {"epsilon"}),
    "decision": (
        "decisions.json",
        lambda held: held["decisions"][0]["decision"].update(today="2020-01-01"),
        {"decisions", "activations"},
    ),
    "decision refused": (
        "decisions.json",
        lambda held: held["decisions"][0]["decision"].update(admitted=False),
        {"decisions", "activations"},
    ),
    "decision's fact": (
        "decisions.json",
        lambda held: held["decisions"][0]["facts"]["facts"].update({"privacy.min_cell": 1}),
        {"decisions"},
    ),
    "decision's plan": (
        "decisions.json",
        lambda held: held["decisions"][0].update(plan="sha256:" + "0" * 64),
        {"decisions"},
    ),
    "decisions removed": ("decisions.json", lambda held: held["decisions"].clear(), {"decisions", "activations"}),
    "activation's decision": ("decisions.json", lambda held: held["decisions"].pop(), {"activations"}),
    "consent's salt": ("consent.json", lambda held: held["openings"][0].update(salt="0" * 64), {"consent"}),
    "consent's root": ("consent.json", lambda held: held["openings"][1].update(root="0" * 64), {"consent"}),
    "opening removed": ("consent.json", lambda held: held["openings"].pop(), {"consent"}),
    "opening twice": ("consent.json", lambda held: held["openings"].append(held["openings"][0]), {"consent"}),
    "openings in another order": ("consent.json", lambda held: held["openings"].reverse(), {"consent"}),
    "opening of nothing": (
        "consent.json",
        lambda held: held["openings"].append({**held["openings"][0], "charge": 99}),
        {"consent"},
    ),
    "log entry": ("log.json", entry(2, mu2="1"), {"log entries", *OF_NO_LOG}),
    "log entry removed": ("log.json", lambda held: held["entries"].pop(3), {"charges", "consent", "contributions"}),
    "log entries swapped": ("log.json", flipped, {"log entries", *OF_NO_LOG}),
    "admission removed": ("log.json", lambda held: held["entries"].pop(0), {"decisions"}),
    "cosignature removed": ("log.json", unsigned, {"cosignatures"}),
    "cosigned removed": ("log.json", lambda held: held.update(cosigned=None), {"cosignatures"}),
    "checkpoint removed": (
        "log.json",
        lambda held: held["checkpoints"].pop(2),
        {"checkpoints", "log entries", *OF_NO_LOG},
    ),
    "witness of another log": (
        "witnessed.json",
        lambda held: held["checkpoints"].__setitem__(0, held["checkpoints"][1].replace("A", "B")),
        {"witnesses"},
    ),
    "another institution's": ("consent.json", lambda held: held.update(institution="south"), {"documents", "consent"}),
    "unknown field": ("consent.json", lambda held: held.update(more=1), {"documents", "consent"}),
    "case's audit": (
        "reviews/spring-1/audit.json",
        lambda held: held.update(level="narrow"),
        {"reviews", "activations"},
    ),
    "case's card": (
        "reviews/spring-1/card.json",
        lambda held: held.update(model="sha256:" + "0" * 64),
        {"reviews", "activations"},
    ),
    "case's statement removed": ("reviews/spring-1/case.json", lambda held: held["statements"].pop(), {"activations"}),
    "case's first statement removed": (
        "reviews/spring-1/case.json",
        lambda held: held["statements"].pop(0),
        {"reviews", "activations"},
    ),
    "case's owner": (
        "reviews/spring-1/case.json",
        lambda held: held["case"].update(owner="p-7"),
        {"reviews", "activations"},
    ),
    "statement's condition": (
        "reviews/spring-1/case.json",
        lambda held: held["statements"][0]["statement"].update(conditions=["none"]),
        {"reviews", "activations"},
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_an_insider_changes_in_an_institution_s_documents_is_found(
    what: str, scene: Scene, tmp_path: Path
) -> None:
    name, change, checks = TAMPERED[what]
    found = scene.verified(edited(scene.docs, NORTH + name, change), tmp_path / "pack.zip")
    assert failed(found) == checks, messages(found)
    assert not found.passed


def question(held: Any) -> None:
    held["entries"][0]["entry"]["contributions"]["north"]["leaf"] = "0" * 64


@pytest.mark.parametrize(
    ("name", "change", "checks"),
    [
        (
            "parties/coordinator/log.json",
            question,
            {"log entries", "cosignatures", "contributions", "released"},
        ),
        ("charter.json", lambda held: held.update(quorum={"witnesses": 1, "outside_group": 0}), {"charter"}),
        ("charter.json", lambda held: held["institutions"][0].update(region="US"), {"charter"}),
    ],
)
def test_what_an_insider_changes_elsewhere_is_found(
    name: str, change: Callable[[Any], Any], checks: set[str], scene: Scene, tmp_path: Path
) -> None:
    found = scene.verified(edited(scene.docs, name, change), tmp_path / "pack.zip")
    assert failed(found) == checks, messages(found)


def named(scene: Scene, folder: str) -> str:
    return next(name for name in scene.docs if name.startswith(folder))


def test_another_release_is_found(scene: Scene, tmp_path: Path) -> None:
    place = named(scene, "released/")
    other = edited(scene.docs, place, lambda held: held.update(customers=held["customers"] + 1))
    found = scene.verified(other, tmp_path / "other.zip")
    assert failed(found) == {"released", "activations"}, messages(found)
    cheaper = edited(scene.docs, place, lambda held: held["releases"][0].update(mu2=1))
    assert failed(scene.verified(cheaper, tmp_path / "cheaper.zip")) == {"released", "activations"}
    longer = edited(scene.docs, place, lambda held: held["plan"].update(name="other"))
    assert "was released under another plan" in messages(scene.verified(longer, tmp_path / "longer.zip"))


def test_a_plan_that_is_not_there_or_another_is_found(scene: Scene, tmp_path: Path) -> None:
    place = named(scene, "plans/")
    without = {name: data for name, data in scene.docs.items() if name != place}
    assert {"plans", "charges", "epsilon"} <= failed(scene.verified(without, tmp_path / "without.zip"))
    other = edited(scene.docs, place, lambda held: held.update(epsilon=2.0))
    assert "is not of the digest that its name says" in messages(scene.verified(other, tmp_path / "other.zip"))


@pytest.mark.parametrize(
    "name", ["notes.txt", "parties/nobody/log.json", "parties/north/other.json", "released/x.json", "plans/plan.json"]
)
def test_a_document_without_a_place_is_found(name: str, scene: Scene, tmp_path: Path) -> None:
    found = scene.verified({**scene.docs, name: b"{}"}, tmp_path / "pack.zip")
    assert failed(found) == {"documents"}
    assert name in messages(found)


def test_a_party_has_one_place(scene: Scene, tmp_path: Path) -> None:
    """Its name escaped in another way would be a second place for the same institution."""
    docs = {**scene.docs, "parties/nor%74h/consent.json": scene.docs[f"{NORTH}consent.json"]}
    found = scene.verified(docs, tmp_path / "pack.zip")
    assert failed(found) == {"documents"}
    assert "parties/nor%74h/consent.json: is of nobody whom the charter names" in messages(found)


def test_a_document_has_one_way_to_be_written(scene: Scene, tmp_path: Path) -> None:
    name = f"{NORTH}consent.json"
    spaced = json.dumps(json.loads(scene.docs[name]), indent=1).encode()
    found = scene.verified({**scene.docs, name: spaced}, tmp_path / "pack.zip")
    assert failed(found) == {"documents", "consent"}
    assert f"documents {name}: is not canonical JSON" in messages(found)


def fairness(scene: Scene, **changes: Any) -> bytes:
    made = {
        "subject": "segments",
        "audited": scene.bundle.digest,
        "plan": "sha256:" + "1" * 64,
        "made": date(2026, 1, 1),
        "alpha": 0.05,
        "minimum_cell": 50.0,
        "epsilon": 1.0,
        "delta": 1e-6,
        "thresholds": (),
        "metrics": (),
        "verdict": "insufficient",
    }
    return FairnessResult.model_validate({**made, **changes}).to_bytes()


def test_fairness_and_attack_audits_are_checked(scene: Scene, tmp_path: Path) -> None:
    claim = {"release": "histogram", "plan_epsilon": 1.0, "flagged": False}
    audit: dict[str, Any] = {"format": "cohortium.privacy-audit/1", "claims": [claim], "noise": []}
    more = {"fairness/segments.json": fairness(scene), "attack-audit.json": json.dumps(audit).encode()}
    found = scene.verified({**scene.docs, **more, "added/card.md": b"# Card"}, tmp_path / "good.zip")
    assert found.passed, messages(found)
    assert "nothing is checked of added/card.md but the bytes" in messages(found)
    assert {one.check for one in found.findings if one.status == "absent"} == {"approvals"}
    audit["claims"] = [{**claim, "flagged": True}]
    for number, (changes, message) in enumerate(
        (
            ({"audited": "sha256:" + "0" * 64}, "is of a model that is not among what was released"),
            ({"subject": "lookalike"}, "is of another kind of model than the one it names"),
            ({"plan": scene.plan}, "is of another model than the audit's plan names"),
        )
    ):
        docs = {**scene.docs, "fairness/segments.json": fairness(scene, **changes)}
        found = scene.verified(docs, tmp_path / f"{number}.zip")
        assert failed(found) == {"fairness"}
        assert message in messages(found)
    refuted = {**scene.docs, "attack-audit.json": json.dumps(audit).encode()}
    assert failed(scene.verified(refuted, tmp_path / "refuted.zip")) == {"attack audit"}


def test_an_owner_who_rewrites_the_log_is_found_by_what_others_saw(scene: Scene, tmp_path: Path) -> None:
    """North computes a log anew under its own key, with one entry changed; nobody cosigned that one."""
    held = json.loads(scene.docs[f"{NORTH}log.json"])
    origin = log_origin(scene.charter.name, "north")
    key = read_identity(scene.out / "institutions" / "north" / "identity.pem")
    log = AuditLog(open_store(tmp_path / "log.sqlite"), origin, Ed25519Signer(origin, key))
    for one in held["entries"]:
        log.append([{**one["entry"], "level": "all"} if one["entry"]["event"] == "activation" else one["entry"]])
        log.checkpoint()
    made = read_log(tmp_path / "log.sqlite", key).part(None, quorum_for(scene.charter, "north"))
    found = scene.verified({**scene.docs, f"{NORTH}log.json": made.to_bytes()}, tmp_path / "pack.zip")
    assert failed(found) == {"cosignatures", "witnesses", "contributions", "activations"}, messages(found)


def relogged(scene: Scene, name: str, change: Callable[[list[Any]], Any], place: Path) -> bytes:
    """A party's log as if it had been another from the start, cosigned by everybody."""
    institution = None if name == "coordinator" else name
    home, origin = scene.out / "institutions" / name, log_origin(scene.charter.name, institution)
    key = read_identity(home / ("coordinator.pem" if institution is None else "identity.pem"))
    entries = [one["entry"] for one in json.loads(scene.docs[f"parties/{name}/log.json"])["entries"]]
    change(entries)
    log = AuditLog(open_store(place), origin, Ed25519Signer(origin, key))
    log.append(entries)
    note = parse_note(log.checkpoint())
    for other in set(NAMES) - {name}:
        witness = read_identity(scene.out / "institutions" / other / "identity.pem")
        note = note.signed(Cosigner(log_origin(scene.charter.name, other), witness, 1_772_000_000))
    log.keep_cosigned(note.to_text())
    return read_log(place, key).part(None, quorum_for(scene.charter, institution)).to_bytes()


def later(entries: list[Any]) -> None:
    """The run was admitted after its first release."""
    entries[0], entries[1] = entries[1], entries[0]


def other_leaf(entries: list[Any]) -> None:
    entries[0]["contributions"]["north"] = entries[1]["contributions"]["north"]


CONSPIRED: dict[str, tuple[str, Callable[[list[Any]], Any], str]] = {
    "a question of another entry": ("coordinator", other_leaf, "contributions : question 0 names entry 2 of north"),
    "another decision taken": (
        "coordinator",
        lambda entries: entries[0]["contributions"]["north"].update(decision="none"),
        "contributions : question 0 names entry 1 of north, which is of something else",
    ),
    "no contributions": (
        "coordinator",
        lambda entries: entries[0].pop("contributions"),
        "contributions : question 0 does not say whose contributions were taken",
    ),
    "another release": (
        "coordinator",
        lambda entries: entries[-1].update(released="sha256:" + "0" * 64),
        "is not what the coordinator's log says was released",
    ),
    "admitted afterwards": ("north", later, "decisions north: log entry 0 is of a run that decision"),
    "admitted by no rule": (
        "north",
        lambda entries: entries[0].update(admitted="false"),
        "decisions north: log entry 1 is of a run that decision",
    ),
    "logged twice": (
        "north",
        lambda entries: entries.insert(2, entries[1]),
        "charges north: log entry 2 is of no charge, or of one that an earlier entry is of",
    ),
    "cheaper in the log": (
        "north",
        lambda entries: entries[1].update(mu2="1"),
        "charges north: charge 1 and log entry 1 do not agree: mu2",
    ),
    "another total variation in the log": (
        "north",
        lambda entries: entries[1].update(tv="1"),
        "charges north: charge 1 and log entry 1 do not agree: tv",
    ),
    "an export of another model": (
        "north",
        lambda entries: entries[-1].update(model="sha256:" + "0" * 64),
        "activations north: entry 10: the case's audit is of another model or level",
    ),
    "an export that was refused": (
        "north",
        lambda entries: entries[-1].update(admitted="false"),
        "activations north: entry 10: says something else than the decision",
    ),
}


@pytest.mark.parametrize("what", CONSPIRED)
def test_logs_that_all_cosigned_still_have_to_agree_with_each_other(what: str, scene: Scene, tmp_path: Path) -> None:
    name, change, message = CONSPIRED[what]
    docs = {**scene.docs, f"parties/{name}/log.json": relogged(scene, name, change, tmp_path / "log.sqlite")}
    docs = {place: data for place, data in docs.items() if not place.endswith("witnessed.json")}
    found = scene.verified(docs, tmp_path / "pack.zip")
    assert message in messages(found), messages(found)
    assert not found.passed
    assert not failed(found) & {"checkpoints", "log entries", "cosignatures", "documents"}


def test_an_export_on_one_signature_or_on_another_decision_is_found(scene: Scene, tmp_path: Path) -> None:
    case = json.loads(scene.docs[f"{NORTH}reviews/spring-1/case.json"])
    for number, (changes, message) in enumerate(
        (
            ({"statement": digest_json(case["statements"][0]["statement"])}, "the case was waiting by the statements"),
            ({"decision": case["case"]["subject"]["decision"]}, "names a decision that is not there or was altered"),
        )
    ):
        log = relogged(scene, "north", lambda held, changes=changes: held[-1].update(changes), tmp_path / f"{number}")
        found = scene.verified({**scene.docs, f"{NORTH}log.json": log}, tmp_path / f"{number}.zip")
        assert f"activations north: entry 10: {message}" in messages(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu2": 1}, "step 0 did not cost north what is stated"),
        ({"institutions": 4}, "step 0 is of more institutions than the log names"),
        ({"question": "sha256:" + "0" * 64}, "step 0 is of more institutions than the log names"),
    ],
)
def test_a_release_that_was_not_paid_for_as_it_says_is_found(
    changes: dict[str, Any], message: str, scene: Scene, tmp_path: Path
) -> None:
    place = named(scene, "released/")
    docs = edited(scene.docs, place, lambda held: held["releases"][0].update(changes))
    digest = Bundle.model_validate_json(docs[place]).digest
    log = relogged(scene, "coordinator", lambda entries: entries[-1].update(released=digest), tmp_path / "log.sqlite")
    found = scene.verified({**docs, "parties/coordinator/log.json": log}, tmp_path / "pack.zip")
    assert message in messages(found), messages(found)


def test_a_log_that_was_altered_is_not_packed(scene: Scene, tmp_path: Path) -> None:
    home = scene.out / "institutions" / "west"
    shutil.copy(home / "log.sqlite", tmp_path / "log.sqlite")
    with closing(sqlite3.connect(tmp_path / "log.sqlite")) as raw, raw:
        raw.execute("DROP TRIGGER log_entries_no_update")
        (leaf,) = raw.execute("SELECT leaf FROM log_entries WHERE position = 3").fetchone()
        raw.execute("UPDATE log_entries SET leaf = ? WHERE position = 3", (leaf.replace(b'"step":', b'"stap":'),))
    held = read_log(tmp_path / "log.sqlite", read_identity(home / "identity.pem"))
    with pytest.raises(DataError, match="the audit log was altered"):
        held.part(None, quorum_for(scene.charter, "west"))


def trimmed(scene: Scene, name: str, entries: int, cosigned: int) -> bytes:
    """A party's log as it was when the run had not ended."""
    home = scene.out / "institutions" / name
    institution = None if name == "coordinator" else name
    key = read_identity(home / ("coordinator.pem" if institution is None else "identity.pem"))
    held = read_log(home / "log.sqlite", key)
    quorum = quorum_for(scene.charter, institution)
    upto = tuple(note for note in held.checkpoints if int(note.split("\n")[1]) <= entries)
    seen = tuple(note for note in held.cosigned if int(note.split("\n")[1]) <= cosigned)
    return replace(held, entries=held.entries[:entries], checkpoints=upto, cosigned=seen).part(None, quorum).to_bytes()


def test_the_last_entries_of_a_run_that_was_not_closed_may_lack_cosignatures(scene: Scene, tmp_path: Path) -> None:
    questions = len(scene.bundle.releases)
    parts = ("plans/", "contracts/", "charter.json", "parties/south/")
    docs = {name: data for name, data in scene.docs.items() if name.startswith(parts)}
    docs["parties/coordinator/log.json"] = trimmed(scene, "coordinator", questions, 0)
    docs["parties/south/log.json"] = trimmed(scene, "south", questions + 1, questions)
    docs = {name: data for name, data in docs.items() if not name.endswith("witnessed.json")}
    found = scene.verified(docs, tmp_path / "open.zip")
    assert found.passed, messages(found)
    assert f"cosignatures south: the first {questions} entries, by 2 others; the last 1 are signed" in messages(found)
    assert f"cosignatures coordinator: the first 0 entries, by 0 others; the last {questions} are" in messages(found)
    docs["parties/south/log.json"] = trimmed(scene, "south", questions + 1, questions - 2)
    assert failed(scene.verified(docs, tmp_path / "more.zip")) == {"cosignatures"}


def test_the_last_entry_of_a_closed_run_has_to_be_cosigned(scene: Scene, tmp_path: Path) -> None:
    questions = len(scene.bundle.releases)
    log = trimmed(scene, "south", questions + 1, questions)
    found = scene.verified({**scene.docs, "parties/south/log.json": log}, tmp_path / "pack.zip")
    assert failed(found) == {"cosignatures"}, messages(found)
    assert f"nobody cosigned entry {questions}, of a run that was closed" in messages(found)


def test_a_log_that_was_cut_off_is_found_by_what_others_saw(scene: Scene, tmp_path: Path) -> None:
    questions = len(scene.bundle.releases)
    log = trimmed(scene, "south", questions, questions)
    found = scene.verified({**scene.docs, "parties/south/log.json": log}, tmp_path / "pack.zip")
    assert failed(found) == {"witnesses", "charges", "consent", "contributions"}, messages(found)
    assert f"north: saw {questions + 1} entries of the log of south; its last checkpoint here is {questions}" in (
        messages(found)
    )


def test_a_cosigned_checkpoint_of_another_history_is_found(scene: Scene, tmp_path: Path) -> None:
    """All others cosign what the log does not show here: the log had two histories, and they all knew."""
    keys = {name: read_identity(scene.out / "institutions" / name / "identity.pem") for name in NAMES}
    origins = {name: log_origin(scene.charter.name, name) for name in NAMES}
    note = Note(Checkpoint(origins["south"], 5, bytes(32)).to_text())
    note = note.signed(Ed25519Signer(origins["south"], keys["south"]))
    for name in ("north", "west"):
        note = note.signed(Cosigner(origins[name], keys[name], 1_772_000_000))
    docs = edited(scene.docs, "parties/south/log.json", lambda held: held.update(cosigned=note.to_text()))
    found = scene.verified(docs, tmp_path / "pack.zip")
    assert failed(found) == {"cosignatures"}
    assert "what others cosigned is not among the log's checkpoints" in messages(found)


def test_a_node_s_own_pack_says_what_it_cannot_show(scene: Scene, tmp_path: Path) -> None:
    def verified(docs: Docs, place: Path) -> Findings:
        sources = [Source(name, data) for name, data in docs.items()]
        signer = log_origin(scene.charter.name, "south")
        write_pack(place, sources, federation=scene.charter.name, signer=signer, key=gathered.key, plans=None)
        return verify_packs([place], scene.charter)

    gathered = of_node(scene.out / "institutions" / "south", None)
    assert gathered.everything
    docs = {name: content(one) for name, one in gathered.documents.items()}
    found = verified(docs, tmp_path / "south.zip")
    assert found.passed, messages(found)
    assert found.signers == ("cohortium/simulation/south",)
    absent = {one.check for one in found.findings if one.status == "absent"}
    assert {"contributions", "released", "witnesses", "reviews", "fairness", "attack audit"} <= absent
    for party in ("log", "ledger", "consent"):
        assert f"parties/south/{party}.json" in docs

    def forgotten(held: Any) -> None:
        held["entries"].pop()

    def uncharged(held: Any) -> None:
        held["charges"].pop()

    less = edited(docs, "parties/south/log.json", forgotten)
    assert "log entries" in failed(verified(less, tmp_path / "less.zip"))
    assert failed(verified(edited(docs, "parties/south/ledger.json", uncharged), tmp_path / "uncharged.zip")) == {
        "charges",
        "epsilon",
    }


def test_a_pack_of_one_plan_tells_nothing_of_another(scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "north"
    shutil.copytree(scene.out / "institutions" / "north", folder)
    other = parse_plan({**scene.bundle.plan.to_json(), "name": "other"})
    database = open_store(folder / "node.sqlite")
    store = NodeStore(database)
    store.approve(other, read_contract(folder), scene.charter)
    ((admission, facts),) = store.decisions(scene.plan)
    decision = Decision.model_validate({**admission.to_json(), "salt": "0" * 64})
    store.keep_decision(other.digest, "1" * 32, decision.id, admitted=True, documents=(decision, facts))
    ledger = Ledger(database, "north", budget_for(3.0, 1e-6))
    ledger.reserve(other.digest, "1" * 32, budget_for(1.0, 1e-6), other.expires)
    slot, share = Slot(other.digest, "1" * 32, "marginals", 0, 1), NoiseShare(3, 1)
    ledger.charge(slot, "sha256:" + "7" * 64, width=1, bound_squared=2**60, sigma=2**40, share=share)
    database.dispose()
    key, origin = read_identity(folder / "identity.pem"), log_origin(scene.charter.name, "north")
    log = AuditLog(open_store(folder / "log.sqlite"), origin, Ed25519Signer(origin, key))
    log.append([{"event": "admission", "plan": other.digest, "decision": decision.id}, {"event": "of no plan"}])
    both = {one.name: content(one) for one in node_part(folder).documents}
    one = {one.name: content(one) for one in node_part(folder, [scene.plan]).documents}
    assert set(one) == set(both)
    for told in (other.digest, decision.id, "sha256:" + "7" * 64):
        assert told.encode() in b"".join(both.values())
        assert told.encode() not in b"".join(one.values())
    assert b"of no plan" in one[f"{NORTH}log.json"]
    with pytest.raises(RefusedError, match="no run of this plan was begun here"):
        node_part(folder, ["sha256:" + "0" * 64])


def test_nothing_of_a_customer_is_in_a_pack(scene: Scene) -> None:
    whole = b"".join(scene.docs.values())
    assert b"someone-" not in whole
    assert len(whole) > 10_000
    ids = {line.split(",")[0] for line in (scene.out.parent / "people.csv").read_text().splitlines()[1:]}
    assert not any(one.encode() in whole for one in ids)
    consent = json.loads(scene.docs[f"{NORTH}consent.json"])
    assert set(consent) == {"schema", "institution", "openings"}
    assert {key for one in consent["openings"] for key in one} == {"charge", "root", "salt"}
    stated = json.loads(scene.docs[f"{NORTH}stated.json"])
    entries = [json.loads(bytes.fromhex(one["entry"]))["entry"] for one in stated["statements"]]
    of_question = {"event", "plan", "run", "phase", "step", "attempt", "question", "charge"}
    assert {key for one in entries for key in one} == of_question | {"decision", "consent", "mu2", "tv"}
    known = {"log", "ledger", "decisions", "consent", "witnessed", "stated"}
    own = {name.split("/")[-1].removesuffix(".json") for name in scene.docs if name.startswith("parties/south/")}
    assert own == known
