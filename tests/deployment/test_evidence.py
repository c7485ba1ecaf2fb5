"""Packs of a coordinator and of a node, put together by people who hold the keys: what is altered is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.client.evidence import of_node
from cohortium.governance.evidence.gathering import Gathered
from cohortium.governance.evidence.pack import Source, write_pack
from cohortium.governance.evidence.pack_log import read_log
from cohortium.governance.evidence.verify import CHECKS, Findings, verify_packs
from cohortium.governance.log import (
    AuditLog,
    Checkpoint,
    Cosigner,
    Ed25519Signer,
    LogReader,
    Note,
    log_origin,
    parse_note,
    quorum_for,
)
from cohortium.privacy.ledger import open_store
from cohortium.server.evidence import of_coordinator
from cohortium.simulations.loopback import PASSWORD, Deployment
from cohortium.study.canonical import canonical_bytes
from cohortium.study.charter import load_charter, parse_charter
from cohortium.study.contract import Contract
from cohortium.study.errors import DataError, RefusedError
from cohortium.study.keys import read_identity_file
from cohortium.study.plans import parse_plan
from cohortium.study.proposal import Proposal, parse_approval, sign_approval, sign_proposal

REGIONS = dict.fromkeys(("north", "south", "west"), "EU")
NOW = datetime.now(UTC)
Docs = dict[str, bytes]


class People:
    """Two hundred customers in each of three institutions."""

    def tables(self, contract: Contract, work: Path) -> dict[str, dict[str, Any]]:
        work.mkdir()
        for name in REGIONS:
            rows = [f"{name}-{at:03d},{3 + 12 * (at % 3)},{50 + 600 * (at % 3)},{at % 3 - 1}" for at in range(200)]
            (work / f"{name}.csv").write_text("\n".join(["id,visits,spend,score", *rows]) + "\n")
        return {name: {"people": work / f"{name}.csv"} for name in REGIONS}


@dataclass(frozen=True)
class Scene:
    """A federation that ran a plan, and the documents of two packs about it."""

    federation: Deployment
    plan: str
    coordinator: Gathered
    north: Gathered
    docs: Docs
    own: Docs
    """North's."""

    @property
    def proposal(self) -> Proposal:
        found: Proposal = self.federation.studies.proposal(self.plan)
        return found

    def verified(self, folder: Path, docs: Docs | None = None, own: Docs | None = None) -> Findings:
        """Both packs, signed by those whose they are."""
        charter = load_charter(self.federation.coordinator / "charter.json")
        paths = [folder / "coordinator.zip", folder / "north.zip"]
        given = (docs or self.docs, own or self.own)
        for path, held, whose in zip(paths, given, (self.coordinator, self.north), strict=True):
            sources = [Source(name, data) for name, data in held.items()]
            signer = {"federation": charter.name, "signer": whose.signer, "key": whose.key}
            write_pack(path, sources, **signer, plans=[self.plan])
        return verify_packs(paths, charter)


def documents(gathered: Gathered) -> Docs:
    return {name: one.content for name, one in gathered.documents.items() if isinstance(one.content, bytes)}


@pytest.fixture(scope="module")
def scene(run_here: Any, small_contract: Contract, make_plan: Any, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A run as it is deployed, but in this process: approvals and results are handed over as nodes do it."""
    found = Deployment(tmp_path_factory.mktemp("federation"))
    contract = small_contract.model_copy(update={"purposes": ("CustomerSegmentation",)})
    found.found(contract, People(), REGIONS)
    sums = {"trust": "distributed", "min_institutions": 3, "colluders": 1, "epsilon": 2.0}
    plan = found.propose(make_plan(contract=contract.digest, purpose="CustomerSegmentation", **sums))
    found.approve(plan)
    for name in REGIONS:
        found.studies.take_approval((found.node(name) / "approvals" / f"{plan[7:]}.json").read_bytes())
    released = run_here(found, plan, found.studies.begin(plan).run)
    found.studies.keep_released(plan, "bundle.json", released)
    found.studies.note(plan, "released")
    came = found.node("north") / "released" / plan[7:]
    came.mkdir(parents=True)
    (came / "bundle.json").write_bytes(released)
    packs = (
        of_coordinator(found.coordinator, [plan], PASSWORD),
        of_node(found.node("north"), [plan], PASSWORD),
    )
    return Scene(found, plan, *packs, *map(documents, packs))


def failed(found: Findings) -> set[str]:
    return {one.check for one in found.findings if one.status == "failed"}


def messages(found: Findings) -> str:
    return "\n".join(f"{one.check} {one.about}: {one.message}" for one in found.findings)


def test_a_coordinator_s_pack_and_a_node_s_are_verified_together(scene: Scene, tmp_path: Path) -> None:
    found = scene.verified(tmp_path)
    assert found.passed, messages(found)
    assert found.signers == ("cohortium/loopback/coordinator", "cohortium/loopback/north")
    said = messages(found)
    everybody = "'north', 'south', 'west'"
    for part in (
        f"approvals 'small': {everybody} approved it; {everybody} answered",
        "contributions : 27 entries of institutions",
        "contributions south: 9 entries as they were stated, 9 of them under what a quorum cosigned",
        f"released : released/{scene.plan[7:]}/bundle.json: 9 sums, 27 log entries of what they cost",
        "witnesses north: 1 logs are as it saw them",
        "decisions north: 1 decisions to admit",
        "charges north: 9 charges, each with its one log entry",
    ):
        assert part in said, said
    held = {one.check for one in found.findings if one.status == "passed"}
    assert set(CHECKS) - held == {"reviews", "activations", "fairness", "attack audit"}


@pytest.mark.parametrize("whose", ["coordinator", "north"])
def test_each_pack_alone_is_verified_and_says_what_it_lacks(whose: str, scene: Scene, tmp_path: Path) -> None:
    scene.verified(tmp_path)
    charter = load_charter(scene.federation.coordinator / "charter.json")
    found = verify_packs([tmp_path / f"{whose}.zip"], charter)
    assert found.passed, messages(found)
    absent = {one.check for one in found.findings if one.status == "absent"} - {"reviews", "activations"}
    lacks = {
        "coordinator": {"charges", "epsilon", "decisions", "consent", "witnesses"},
        "north": {"contributions", "released", "witnesses"},
    }
    assert absent - {"fairness", "attack audit"} == lacks[whose]


def test_a_coordinator_s_pack_holds_what_came_to_it_and_no_more(scene: Scene) -> None:
    plan, proposal = scene.plan[7:], scene.proposal.digest[7:]
    approvals = {name for name in scene.docs if name.startswith("approvals/")}
    assert len(approvals) == 3
    assert set(scene.docs) - approvals == {
        "charter.json",
        f"plans/{plan}.json",
        f"contracts/{scene.proposal.contract.digest[7:]}.json",
        f"proposals/{proposal}.json",
        f"released/{plan}/bundle.json",
        "parties/coordinator/log.json",
        *(f"parties/{name}/stated.json" for name in REGIONS),
    }
    whole = b"".join((*scene.docs.values(), *scene.own.values()))
    assert not any(f"{name}-{at:03d}".encode() in whole for name in REGIONS for at in range(200))


def edited(docs: Docs, name: str, change: Callable[[Any], Any]) -> Docs:
    held = json.loads(docs[name])
    change(held)
    return {**docs, name: canonical_bytes(held)}


def approval_of(docs: Docs, institution: str) -> str:
    """Where an institution's approval lies."""
    found = {name for name in docs if name.startswith("approvals/") and f'"{institution}"'.encode() in docs[name]}
    (place,) = found
    return place


def without(name: str) -> Callable[[Any], None]:
    """A log without the entries of an institution's approval."""

    def change(held: Any) -> None:
        held["entries"] = [one for one in held["entries"] if one["entry"].get("institution") != name]

    return change


def last_question(held: Any) -> None:
    """A log without it."""
    index = max(at for at, one in enumerate(held["entries"]) if one["entry"]["event"] == "question")
    held["entries"].pop(index)


STATED, LOG, LEDGER = "parties/south/stated.json", "parties/north/log.json", "parties/north/ledger.json"
ASKED = "parties/coordinator/log.json"


@pytest.mark.parametrize(
    ("name", "change", "checks", "message"),
    [
        (LEDGER, lambda held: held["charges"].pop(), {"charges", "epsilon"}, "which is not in the ledger extract"),
        (LOG, lambda held: held["entries"].pop(), {"charges", "consent", "contributions"}, "has no log entry"),
        (STATED, lambda held: held["statements"].pop(), {"contributions"}, "names an entry of south that is not shown"),
        (STATED, lambda held: held["statements"].reverse(), {"contributions"}, "does not come after entry"),
        (
            STATED,
            lambda held: held["statements"][3].update(index=1),
            {"contributions"},
            "a log entry that is not in the log",
        ),
        (
            STATED,
            lambda held: held["statements"][3].update(cosigned=None),
            {"contributions"},
            "contributions south: ",
        ),
        (
            STATED,
            lambda held: held["statements"][3].update(growth=[]),
            {"contributions"},
            "a log that does not continue what was witnessed",
        ),
        (ASKED, without("south"), {"approvals"}, "that it was approved by 'south'"),
        (ASKED, last_question, {"contributions", "released"}, "and no question of the coordinator's log names it"),
    ],
)
def test_what_is_left_out_or_put_elsewhere_is_found(
    name: str, change: Callable[[Any], Any], checks: set[str], message: str, scene: Scene, tmp_path: Path
) -> None:
    docs = edited(scene.docs, name, change) if name in scene.docs else None
    own = edited(scene.own, name, change) if name in scene.own else None
    found = scene.verified(tmp_path, docs, own)
    assert failed(found) == checks, messages(found)
    assert message in messages(found), messages(found)


def test_another_release_is_found_in_one_pack_and_in_both(scene: Scene, tmp_path: Path) -> None:
    place = f"released/{scene.plan[7:]}/bundle.json"
    docs, own = (edited(each, place, lambda held: held.update(customers=1)) for each in (scene.docs, scene.own))
    (tmp_path / "one").mkdir()
    found = scene.verified(tmp_path / "one", own=own)
    assert failed(found) == {"documents"}
    assert f"documents {place}: is not the same in " in messages(found)
    found = scene.verified(tmp_path, docs, own)
    assert failed(found) == {"released"}
    assert "is not what the coordinator's log says was released" in messages(found)


def approved_by(scene: Scene, docs: Docs, institution: str, key: Ed25519PrivateKey) -> Docs:
    """The documents with that institution's approval signed by a key."""
    place = approval_of(docs, institution)
    said = parse_approval(docs[place], "approval").approval
    signed = {"approval": said.to_json(), "signature": key.sign(said.signable()).hex()}
    return {**docs, place: canonical_bytes(signed)}


def test_an_approval_by_another_key_is_found(scene: Scene, tmp_path: Path) -> None:
    docs = approved_by(scene, scene.docs, "south", scene.coordinator.key)
    found = scene.verified(tmp_path, docs)
    assert failed(found) == {"approvals"}
    assert "approval of 'south': is not signed by the identity key of 'south'" in messages(found)


def test_an_answer_without_an_approval_is_found(scene: Scene, tmp_path: Path) -> None:
    docs = {name: data for name, data in scene.docs.items() if name != approval_of(scene.docs, "west")}
    found = scene.verified(tmp_path, docs)
    assert failed(found) == {"approvals"}
    assert "'west' answered, and no approval by 'west' is there" in messages(found)


def test_a_run_without_a_proposal_is_found(scene: Scene, tmp_path: Path) -> None:
    docs, own = (
        {name: data for name, data in each.items() if not name.startswith(("proposals/", "approvals/"))}
        for each in (scene.docs, scene.own)
    )
    found = scene.verified(tmp_path, docs, own)
    assert failed(found) == {"approvals"}
    assert "there are 0 proposals of the plan" in messages(found)
    strays = {name: data for name, data in scene.own.items() if not name.startswith("proposals/")}
    (tmp_path / "strays").mkdir()
    found = scene.verified(tmp_path / "strays", docs, strays)
    assert "is of a proposal that is not there" in messages(found)


def test_a_coordinator_that_speaks_for_an_institution_is_found(scene: Scene, tmp_path: Path) -> None:
    """It proposes within a charter that has a key of its own as south's, and approves for south."""
    key = Ed25519PrivateKey.generate()
    members = scene.proposal.charter.to_json()
    for one in members["institutions"]:
        if one["name"] == "south":
            one["identity"] = key.public_key().public_bytes_raw().hex()
    forged = scene.proposal.model_copy(update={"charter": parse_charter(members)})
    signed = sign_proposal(forged, scene.coordinator.key)
    keys = {"south": key, "north": scene.north.key}
    approvals = [sign_approval(forged, name, "tester", one, NOW) for name, one in keys.items()]
    docs = {name: data for name, data in scene.docs.items() if not name.startswith(("proposals/", "approvals/"))}
    docs[f"proposals/{forged.digest[7:]}.json"] = signed.to_bytes()
    docs |= {f"approvals/{one.approval.digest[7:]}.json": one.to_bytes() for one in approvals}
    found = scene.verified(tmp_path, docs)
    assert failed(found) == {"approvals"}
    assert "there are 2 proposals of the plan" in messages(found)
    charter = load_charter(scene.federation.coordinator / "charter.json")
    found = verify_packs([tmp_path / "coordinator.zip"], charter)
    assert failed(found) == {"approvals"}
    assert "a charter that has another key of 'south' than the charter that was given" in messages(found)
    stranger = sign_proposal(scene.proposal, scene.coordinator.key).model_copy(update={"signature": "0" * 128})
    docs = {**scene.docs, f"proposals/{scene.proposal.digest[7:]}.json": stranger.to_bytes()}
    (tmp_path / "stranger").mkdir()
    found = scene.verified(tmp_path / "stranger", docs, docs)
    assert "is not signed by the coordinator of this federation" in messages(found)


def test_an_approval_that_came_after_the_first_question_is_found(scene: Scene, tmp_path: Path) -> None:
    """The coordinator's log as if south had approved last, cosigned by everybody."""
    held = json.loads(scene.docs[ASKED])
    entries = [one["entry"] for one in held["entries"]]
    entries.sort(key=lambda one: one.get("institution") == "south")
    origin = log_origin("loopback")
    store = open_store(tmp_path / "log.sqlite")
    log = AuditLog(store, origin, Ed25519Signer(origin, scene.coordinator.key))
    log.append(entries)
    note = parse_note(log.checkpoint())
    for name in REGIONS:
        note = note.signed(Cosigner(log_origin("loopback", name), key_of(scene, name), 1_772_000_000))
    log.keep_cosigned(note.to_text())
    store.dispose()
    made = read_log(tmp_path / "log.sqlite", scene.coordinator.key).part(None, quorum_for(scene.proposal.charter, None))
    found = scene.verified(tmp_path, {**scene.docs, ASKED: made.to_bytes()})
    assert failed(found) == {"approvals", "witnesses"}
    said = "the log of the coordinator does not say, before its first question, that it was approved by 'south'"
    assert said in messages(found)


def other_log(scene: Scene, name: str, place: Path) -> str:
    """A checkpoint of as many entries, by that institution's key, of a log that nobody was shown."""
    origin = log_origin("loopback", name)
    store = open_store(place)
    log = AuditLog(store, origin, Ed25519Signer(origin, scene.north.key))
    log.append([{"event": "of another log", "number": number} for number in range(4)])
    note = log.checkpoint()
    store.dispose()
    return note


def test_a_checkpoint_of_another_log_is_found(scene: Scene, tmp_path: Path) -> None:
    """Of another institution's log, which is under another key; and of another history of the own."""
    others = json.loads(scene.docs["parties/west/stated.json"])["statements"][3]["checkpoint"]
    swap = edited(scene.docs, STATED, lambda held: held["statements"][3].update(checkpoint=others))
    found = scene.verified(tmp_path, swap)
    assert failed(found) == {"contributions"}
    assert "contributions south: " in messages(found)
    forked = other_log(scene, "north", tmp_path / "log.sqlite")
    change = {"note": forked}
    own = edited(scene.own, LOG, lambda held: held["checkpoints"][3].update(change))
    (tmp_path / "own").mkdir()
    found = scene.verified(tmp_path / "own", own=own)
    assert "checkpoints" in failed(found)
    assert "does not continue the one of" in messages(found)


def test_a_log_that_showed_the_coordinator_something_else_is_found(scene: Scene, tmp_path: Path) -> None:
    """North's pack ends before what it had shown the coordinator."""
    less = edited(scene.own, LOG, lambda held: held["checkpoints"].pop())
    shown = json.loads(scene.docs["parties/north/stated.json"])["statements"][-1]["checkpoint"]
    assert shown.splitlines()[1] == str(
        max(int(one["note"].splitlines()[1]) for one in json.loads(scene.own[LOG])["checkpoints"])
    )
    found = scene.verified(tmp_path, own=less)
    assert {"contributions", "log entries"} <= failed(found)
    assert "entries were shown; the last checkpoint of the log here is of" in messages(found)


def key_of(scene: Scene, name: str) -> Ed25519PrivateKey:
    return read_identity_file(scene.federation.node(name) / "identity.pem", PASSWORD)


def conspired(scene: Scene, name: str, size: int) -> str:
    """A checkpoint of a log that nobody has, signed by its owner and cosigned by all others."""
    origin = log_origin("loopback", name)
    note = Note(Checkpoint(origin, size, bytes(32)).to_text()).signed(Ed25519Signer(origin, key_of(scene, name)))
    for other in set(REGIONS) - {name}:
        note = note.signed(Cosigner(log_origin("loopback", other), key_of(scene, other), 1_772_000_000))
    return note.to_text()


def test_a_log_with_two_histories_is_found_even_if_others_cosigned_both(scene: Scene, tmp_path: Path) -> None:
    last = int(json.loads(scene.docs[STATED])["closed"][0].splitlines()[1])
    forged = conspired(scene, "south", last)
    docs = edited(scene.docs, STATED, lambda held: held["closed"].append(forged))
    found = scene.verified(tmp_path, docs)
    assert failed(found) == {"contributions"}
    assert f"contributions south: two logs were shown at {last} entries" in messages(found)
    shown = {"statements": [], "closed": [conspired(scene, "north", last)]}
    docs = edited(scene.docs, "parties/north/stated.json", lambda held: held.update(shown))
    (tmp_path / "north").mkdir()
    found = scene.verified(tmp_path / "north", docs)
    assert failed(found) == {"contributions"}
    assert f"contributions north: another log was shown at {last} entries than is here" in messages(found)


def test_a_statement_on_an_older_cosigned_checkpoint_is_found(scene: Scene, tmp_path: Path) -> None:
    """It was taken when nobody had witnessed the question before."""
    statements = json.loads(scene.docs[STATED])["statements"]
    old, new = (int(note.splitlines()[1]) for note in (statements[1]["cosigned"], statements[3]["checkpoint"]))
    store = open_store(scene.federation.node("south") / "log.sqlite", read_only=True)
    proof = [part.hex() for part in LogReader(store).consistency(old, new)]
    store.dispose()
    older = {"cosigned": statements[1]["cosigned"], "growth": [{"old": old, "proof": proof}]}
    found = scene.verified(tmp_path, edited(scene.docs, STATED, lambda held: held["statements"][3].update(older)))
    assert failed(found) == {"contributions"}
    before = statements[2]["index"]
    assert f"entry {before + 1} was stated when nobody had witnessed entry {before}" in messages(found)


def test_a_node_s_pack_of_another_plan_says_nothing_of_this_one(scene: Scene, tmp_path: Path) -> None:
    """What it stated to the coordinator is looked at in its place."""
    other = parse_plan({**scene.proposal.plan.to_json(), "name": "other", "software": None})
    kept = (LOG, "charter.json", f"contracts/{scene.proposal.contract.digest[7:]}.json")
    own = {name: scene.own[name] for name in kept} | {f"plans/{other.digest[7:]}.json": other.to_bytes()}
    scene.verified(tmp_path)
    held = json.loads(own[LOG])
    own[LOG] = canonical_bytes({**held, "entries": [one for one in held["entries"] if "plan" not in one["entry"]]})
    path = tmp_path / "other.zip"
    signer = {"federation": "loopback", "signer": scene.north.signer, "key": scene.north.key}
    write_pack(path, [Source(name, data) for name, data in own.items()], **signer, plans=[other.digest])
    charter = load_charter(scene.federation.coordinator / "charter.json")
    found = verify_packs([tmp_path / "coordinator.zip", path], charter)
    assert found.passed, messages(found)
    assert "contributions : 27 entries of institutions" in messages(found)


def test_what_was_not_run_or_cannot_be_opened_is_refused(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened with this password"):
        of_coordinator(scene.federation.coordinator, None, "another password altogether")
    with pytest.raises(RefusedError, match="no such proposal"):
        of_coordinator(scene.federation.coordinator, ["sha256:" + "0" * 64], PASSWORD)
    with pytest.raises(DataError, match="holds no coordinator"):
        of_coordinator(tmp_path, None, PASSWORD)
    kept = scene.federation.node("north") / "approvals" / f"{scene.plan[7:]}.json"
    data = kept.read_bytes()
    kept.write_bytes(data.replace(b'"tester"', b'"rester"'))
    try:
        with pytest.raises(RefusedError, match="is not signed by the identity key of 'north'"):
            of_node(scene.federation.node("north"), None, PASSWORD)
    finally:
        kept.write_bytes(data)
    folder = scene.federation.coordinator
    charter = (folder / "charter.json").read_bytes()
    members = json.loads(charter)
    members["institutions"].pop()
    (folder / "charter.json").write_bytes(parse_charter(members).to_bytes())
    try:
        smaller = {"name": "other", "trust": "local", "min_institutions": 1}
        plan = scene.federation.propose(scene.proposal.plan.model_copy(update=smaller))
    finally:
        (folder / "charter.json").write_bytes(charter)
    with pytest.raises(RefusedError, match="members, keys or quorum changed between these plans"):
        of_coordinator(folder, None, PASSWORD)
    assert of_coordinator(folder, [scene.plan], PASSWORD).charter == scene.proposal.charter
    assert set(of_coordinator(folder, [plan], PASSWORD).plans) == {plan}
