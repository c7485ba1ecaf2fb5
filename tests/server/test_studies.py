"""A coordinator's studies: proposals, approvals, the one run of each, and what a crash or an intruder leaves."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.governance.log import LogReader
from cohortium.privacy.ledger import open_store
from cohortium.privacy.randomness import fresh_key
from cohortium.server import studies as module
from cohortium.server.studies import Studies
from cohortium.server.study_run import Asked
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.contract import Contract
from cohortium.study.errors import DataError, Defect, OutputError, PlanError, RefusedError
from cohortium.study.lookalike_plan import EncoderPlan
from cohortium.study.model import EncoderModel, FrameFact, Model, array_facts, save_model
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan
from cohortium.study.proposal import Proposal, SignedApproval, parse_proposal, sign_approval
from cohortium.study.software import Software, installed_software

NOW = datetime.now(UTC)
OTHER = Software(version="0", code="sha256:" + "1" * 64, bundle="sha256:" + "2" * 64)


def private(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(name.ljust(32).encode())


KEY = private("coordinator")


@dataclass
class Office:
    """A coordinator's folder and what it proposes in it."""

    folder: Path
    charter: Charter
    contract: Contract
    make_plan: Callable[..., Plan]
    today: date

    @property
    def studies(self) -> Studies:
        return Studies(self.folder, lambda: self.today)

    def propose(self, software: Software | None = None, **plan: Any) -> Proposal:
        code = installed_software() if software is None else software
        return self.studies.propose(self.make_plan(**plan), self.contract, self.charter, None, code, KEY)

    def signed(self, proposal: Proposal, name: str, approver: str = "ada") -> SignedApproval:
        return sign_approval(proposal, name, approver, private(name), NOW)

    def approve(self, proposal: Proposal, *names: str) -> None:
        for name in names:
            self.studies.take_approval(self.signed(proposal, name).to_bytes())

    def ready(self) -> str:
        proposal = self.propose()
        self.approve(proposal, "north", "south")
        return proposal.plan.digest

    def amend(self, change: Callable[[dict[str, Any]], None]) -> None:
        document = self.charter.to_json()
        change(document)
        (self.folder / "charter.json").write_bytes(parse_charter(document).to_bytes())

    def place(self, plan: str) -> Path:
        return self.folder / "studies" / plan.removeprefix("sha256:")

    def logged(self) -> list[dict[str, Any]]:
        engine = open_store(self.folder / "log.sqlite", read_only=True)
        try:
            reader = LogReader(engine)
            return [dict(one.entry) for one in reader.entries(0, reader.size)]
        finally:
            engine.dispose()


@pytest.fixture
def office(tmp_path: Path, small_contract: Contract, charter: Charter, make_plan: Callable[..., Plan]) -> Office:
    folder = tmp_path / "coordinator"
    folder.mkdir()
    public = KEY.public_key().public_bytes_raw().hex()
    whole = parse_charter({**charter.to_json(), "coordinator": public})
    (folder / "charter.json").write_bytes(whole.to_bytes())
    return Office(folder, whole, small_contract, make_plan, NOW.date())


# --- proposing -------------------------------------------------------------------------------------------------------


def test_a_proposal_holds_the_plan_with_its_code_signed_and_logged(office: Office) -> None:
    proposal = office.propose()
    assert proposal.plan.software == installed_software()
    (data,) = office.studies.open_proposals()
    public = KEY.public_key().public_bytes_raw().hex()
    assert parse_proposal(data, "p", federation="small", coordinator=public).proposal == proposal
    assert office.studies.proposal(proposal.plan.digest) == proposal
    assert office.logged() == [
        {
            "event": "study-proposed",
            "plan": proposal.plan.digest,
            "charter": proposal.charter.digest,
            "proposal": proposal.digest,
        }
    ]
    folder = office.place(proposal.plan.digest)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())


def test_proposing_again_changes_nothing(office: Office) -> None:
    first = office.propose()
    assert office.propose() == first
    assert len(office.studies.open_proposals()) == len(office.logged()) == 1
    assert office.propose(name="second").plan.digest != first.plan.digest
    assert office.studies.plans() == tuple(
        sorted(office.studies.plans(), key=lambda plan: (office.studies.proposal(plan).made, plan))
    )


def test_a_plan_is_not_proposed_again_within_another_charter(office: Office) -> None:
    office.propose()
    office.charter = parse_charter({**office.charter.to_json(), "min_customers": 999})
    with pytest.raises(RefusedError, match="within another charter"):
        office.propose()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expires": "2020-01-01"}, "expired"),
        ({"trust": "unsafe-none"}, "protects nobody"),
        ({"epsilon": 3.5}, "above the charter"),
        ({"min_institutions": 4}, "above the 3 members"),
        ({"purpose": "other"}, "not one the contract allows"),
    ],
    ids=str,
)
def test_a_plan_that_may_not_begin_is_not_proposed(change: dict[str, Any], message: str, office: Office) -> None:
    with pytest.raises(PlanError, match=message):
        office.propose(**change)
    assert not (office.folder / "studies").exists()
    assert not (office.folder / "log.sqlite").exists()


def test_another_key_proposes_nothing(office: Office) -> None:
    with pytest.raises(RefusedError, match="names another key"):
        office.studies.propose(
            office.make_plan(), office.contract, office.charter, None, installed_software(), private("mallory")
        )
    assert not (office.folder / "studies").exists()


def test_a_campaign_is_proposed_with_the_model_it_stands_on(office: Office, tmp_path: Path) -> None:
    whole = office.make_plan().to_json()
    wanted = {name: value for name, value in whole.items() if name not in ("segments", "shares")}
    encoder = EncoderPlan.model_validate({**wanted, "study": "encoder"})
    frames = {"features": FrameFact(people=900.0, entry_std=0.1, mean_std=0.0)}
    weights = {"weights": np.ones((2, 2))}
    document = EncoderModel(
        plan=encoder,
        run="r",
        institutions=3,
        customers=900.0,
        features=("visits",),
        frames=frames,
        arrays=array_facts(weights),
        releases=(),
    )
    model, ours, theirs = Model(document, weights), tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    save_model(model, KEY, ours)
    save_model(model, private("mallory"), theirs)

    def propose(base: Path | None, digest: str) -> Proposal:
        campaign = parse_plan(
            {**wanted, "study": "lookalike", "model": digest, "lookalike": {"seed": "vip"}, "epsilon": 3.0}
        )
        return office.studies.propose(campaign, office.contract, office.charter, base, installed_software(), KEY)

    for base, digest in ((None, model.digest), (ours, "sha256:" + "a" * 64)):
        with pytest.raises(RefusedError, match="base is not the model"):
            propose(base, digest)
    with pytest.raises(DataError, match="sign"):
        propose(theirs, model.digest)
    assert office.studies.plans() == ()
    proposal = propose(ours, model.digest)
    kept = office.studies.base(proposal.plan.digest)
    assert proposal.base == model.digest
    assert kept is not None
    assert kept.read_bytes() == ours.read_bytes()
    assert office.studies.base(office.propose().plan.digest) is None


@pytest.mark.parametrize("attempt", ["log", "file"])
def test_a_coordinator_that_dies_while_it_proposes_can_propose_again(
    attempt: str, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Studies, "_record", dies) if attempt == "log" else patched.setattr(module, "_write", dies)
        with pytest.raises(KeyboardInterrupt):
            office.propose()
    assert office.studies.open_proposals() == []
    proposal = office.propose()
    assert [one["proposal"] for one in office.logged()][-1] == proposal.digest


def test_an_expired_or_altered_proposal_is_not_handed_out(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    kept, edited = office.propose(name="kept"), office.propose(name="edited")
    path = office.place(edited.plan.digest) / "proposal.json"
    path.write_bytes(path.read_bytes().replace(b'"epsilon":1', b'"epsilon":2'))
    moved = office.folder / "studies" / ("0" * 64)
    moved.mkdir()
    (moved / "proposal.json").write_bytes((office.place(kept.plan.digest) / "proposal.json").read_bytes())
    with caplog.at_level(logging.WARNING):
        assert len(office.studies.open_proposals()) == 1
    assert "left out" in caplog.text
    with pytest.raises(RefusedError, match="not signed"):
        office.studies.proposal(edited.plan.digest)
    office.today = date(2100, 1, 1)
    assert office.studies.open_proposals() == []


@pytest.mark.parametrize("plan", ["", "../../etc", "sha256:" + "0" * 63, "sha256:" + "g" * 64, "sha256:" + "0" * 65])
def test_a_plan_is_named_by_its_digest_alone(plan: str, office: Office) -> None:
    with pytest.raises(RefusedError, match="no plan's digest"):
        office.studies.proposal(plan)


# --- approvals -------------------------------------------------------------------------------------------------------


def test_an_approval_is_taken_once_and_logged(office: Office) -> None:
    proposal = office.propose()
    for approver in ("ada", "ada", "bob"):
        office.studies.take_approval(office.signed(proposal, "north", approver).to_bytes())
    assert {name: one.approver for name, one in office.studies.approvals(proposal.plan.digest).items()} == {
        "north": "ada"
    }
    signed = office.signed(proposal, "north")
    assert office.logged()[1:] == [
        {
            "event": "study-approved",
            "plan": proposal.plan.digest,
            "charter": proposal.charter.digest,
            "proposal": proposal.digest,
            "institution": "north",
            "approval": signed.approval.digest,
        }
    ]


def test_an_approval_is_not_replayed_for_another_plan(office: Office) -> None:
    first, second = office.propose(), office.propose(name="second")
    data = json.loads(office.signed(first, "north").to_bytes())
    data["approval"]["plan"] = second.plan.digest
    with pytest.raises(RefusedError, match="approves another proposal"):
        office.studies.take_approval(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())
    data["approval"]["proposal"] = second.digest
    with pytest.raises(RefusedError, match="not signed by the identity key of 'north'"):
        office.studies.take_approval(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())
    assert office.studies.approvals(second.plan.digest) == {}
    assert len(office.logged()) == 2


def test_an_approval_of_an_unknown_or_expired_plan_is_refused(office: Office) -> None:
    proposal = office.propose()
    unknown = proposal.model_copy(update={"plan": proposal.plan.model_copy(update={"name": "unknown"})})
    with pytest.raises(RefusedError, match="no such proposal"):
        office.studies.take_approval(office.signed(unknown, "north").to_bytes())
    office.today = date(2100, 1, 1)
    with pytest.raises(RefusedError, match="expired"):
        office.approve(proposal, "north")


def test_a_member_that_was_revoked_neither_approves_nor_counts(office: Office) -> None:
    proposal = office.propose()
    office.approve(proposal, "west", "south")
    assert set(office.studies.approvals(proposal.plan.digest)) == {"west", "south"}
    office.amend(lambda charter: charter["institutions"].pop())
    assert set(office.studies.approvals(proposal.plan.digest)) == {"south"}
    with pytest.raises(RefusedError, match="1 of the 2"):
        office.studies.begin(proposal.plan.digest)
    (office.place(proposal.plan.digest) / "approvals" / "west.json").unlink()
    with pytest.raises(RefusedError, match="'west' does not take part any more"):
        office.approve(proposal, "west")


def test_a_member_with_a_new_identity_key_has_not_approved(office: Office) -> None:
    proposal = office.propose()
    office.approve(proposal, "north")

    def renew(charter: dict[str, Any]) -> None:
        charter["institutions"][0]["identity"] = private("new").public_key().public_bytes_raw().hex()

    office.amend(renew)
    assert office.studies.approvals(proposal.plan.digest) == {}


def test_an_approval_that_was_altered_on_disk_does_not_count_and_can_be_given_again(office: Office) -> None:
    proposal = office.propose()
    office.approve(proposal, "north", "south")
    path = office.place(proposal.plan.digest) / "approvals" / "north.json"
    path.write_bytes(path.read_bytes().replace(b"ada", b"bob"))
    assert set(office.studies.approvals(proposal.plan.digest)) == {"south"}
    office.approve(proposal, "north")
    assert set(office.studies.approvals(proposal.plan.digest)) == {"north", "south"}


def test_names_of_institutions_are_no_paths(office: Office) -> None:
    name = "../../../b & c"

    def rename(charter: dict[str, Any]) -> None:
        charter["institutions"][0] = {"name": name, "region": "EU", "identity": public_of(name)}

    office.amend(rename)
    office.charter = parse_charter(json.loads((office.folder / "charter.json").read_bytes()))
    proposal = office.propose()
    office.approve(proposal, name)
    assert set(office.studies.approvals(proposal.plan.digest)) == {name}
    assert [one.name for one in (office.place(proposal.plan.digest) / "approvals").iterdir()] == [
        "..%2F..%2F..%2Fb%20%26%20c.json"
    ]


def public_of(name: str) -> str:
    return private(name).public_key().public_bytes_raw().hex()


# --- the run ---------------------------------------------------------------------------------------------------------


def test_a_run_begins_once_with_enough_approvals(office: Office) -> None:
    proposal = office.propose()
    plan = proposal.plan.digest
    office.approve(proposal, "north")
    with pytest.raises(RefusedError, match="1 of the 2 institutions"):
        office.studies.begin(plan)
    assert office.studies.run(plan) is None
    office.approve(proposal, "south")
    run = office.studies.begin(plan)
    assert (run.state, run.flower, run.problem) == ("running", (), None)
    assert office.studies.run(plan) == run
    with pytest.raises(RefusedError, match="was begun and is running"):
        office.studies.begin(plan)
    with pytest.raises(RefusedError, match="is running"):
        office.studies.resume(plan)


def test_of_two_that_begin_at_once_one_does(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, together = office.ready(), Barrier(2)

    def meet() -> bytes:
        """Where both would be, were there no lock."""
        with contextlib.suppress(BrokenBarrierError):
            together.wait(0.2)
        return fresh_key()

    def begins(_: int) -> str | None:
        try:
            return office.studies.begin(plan).run
        except RefusedError:
            return None

    monkeypatch.setattr(module, "fresh_key", meet)
    with ThreadPoolExecutor(2) as pool:
        begun = [run for run in pool.map(begins, range(2)) if run is not None]
    found = office.studies.run(plan)
    assert found is not None
    assert begun == [found.run]


def test_a_run_keeps_its_number_through_stop_and_failure(office: Office) -> None:
    plan = office.ready()
    first = office.studies.begin(plan)
    assert office.studies.started(plan, 2**63 + 1).flower == (2**63 + 1,)
    assert office.studies.note(plan, "stopped").state == "stopped"
    with pytest.raises(RefusedError, match="resume it"):
        office.studies.begin(plan)
    assert office.studies.resume(plan).state == "running"
    assert office.studies.started(plan, 7).flower == (2**63 + 1, 7)
    assert office.studies.note(plan, "stopped").state == "stopped"
    assert office.studies.note(plan, "failed", "ended by the stop").state == "stopped"
    office.studies.resume(plan)
    failed = office.studies.note(plan, "failed", "two\nlines " + "x" * 600)
    assert failed.problem is not None
    assert failed.problem.startswith("two lines x")
    assert len(failed.problem) == 500
    resumed = office.studies.resume(plan)
    assert (resumed.run, resumed.state, resumed.problem) == (first.run, "running", None)


def test_what_is_released_stays_released(office: Office) -> None:
    plan = office.ready()
    office.studies.begin(plan)
    office.studies.keep_released(plan, "bundle.json", b"{}")
    assert office.studies.released(plan) == [], "the run has not said that it is whole"
    office.studies.note(plan, "stopped")
    office.studies.note(plan, "released")
    assert office.studies.note(plan, "failed", "too late").state == "released"
    with pytest.raises(RefusedError, match="is released"):
        office.studies.resume(plan)
    assert office.studies.released(plan) == [("bundle.json", b"{}")]
    with pytest.raises(Defect):
        office.studies.keep_released(plan, "../bundle.json", b"{}")
    with pytest.raises(Defect):
        office.studies.note(plan, "running")


def test_a_plan_for_other_code_or_past_its_last_day_does_not_run(office: Office) -> None:
    proposal = office.propose(OTHER)
    office.approve(proposal, "north", "south")
    with pytest.raises(RefusedError, match="other code"):
        office.studies.begin(proposal.plan.digest)
    plan = office.ready()
    office.studies.begin(plan)
    office.studies.note(plan, "stopped")
    office.today = date(2100, 1, 1)
    with pytest.raises(RefusedError, match="expired"):
        office.studies.resume(plan)


def test_nothing_is_noted_of_a_run_that_was_not_begun(office: Office) -> None:
    plan = office.ready()
    for act in (office.studies.resume, lambda plan: office.studies.note(plan, "failed")):
        with pytest.raises(RefusedError, match="not begun"):
            act(plan)
    with pytest.raises(RefusedError, match="no such study"):
        office.studies.note_progress("sha256:" + "0" * 64, Asked("a", 0, 1, 2))


def test_progress_is_a_line_for_every_attempt_and_survives_half_a_line(office: Office) -> None:
    plan = office.ready()
    office.studies.note_progress(plan, Asked("marginals", 0, 1, 0, "too few"))
    path = office.place(plan) / "progress.jsonl"
    path.write_bytes(path.read_bytes() + b'{"time": "2026-')
    assert len(office.studies.progress(plan)) == 1
    office.studies.note_progress(plan, Asked("marginals", 0, 2, 3))
    found = office.studies.progress(plan)
    assert [(one.phase, one.step, one.attempt, one.institutions, one.problem) for one in found] == [
        ("marginals", 0, 1, 0, "too few"),
        ("marginals", 0, 2, 3, None),
    ]
    path.write_bytes(path.read_bytes() + b"{}\n")
    with pytest.raises(DataError, match="none of progress"):
        office.studies.progress(plan)


def test_a_run_file_that_is_none_is_not_taken_for_no_run(office: Office) -> None:
    plan = office.ready()
    office.studies.begin(plan)
    path = office.place(plan) / "run.json"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="no run of this version"):
        office.studies.begin(plan)


def test_a_full_disk_leaves_what_was_there(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = office.ready()
    office.studies.begin(plan)
    before = (office.place(plan) / "run.json").read_bytes()

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            office.studies.note(plan, "stopped")
    assert (office.place(plan) / "run.json").read_bytes() == before
    assert office.studies.note(plan, "stopped").state == "stopped"


def test_status_says_who_is_missing_and_how_far_it_is(office: Office) -> None:
    proposal = office.propose()
    plan = proposal.plan.digest
    office.approve(proposal, "south")
    (found,) = office.studies.status()
    assert (found.plan, found.needed, found.approved, found.missing) == (plan, 2, ("south",), ("north", "west"))
    assert (found.run, found.questions, found.last, found.expired) == (None, 0, None, False)
    office.approve(proposal, "north")
    office.studies.begin(plan)
    for asked in (Asked("marginals", 0, 1, 0, "too few"), Asked("marginals", 0, 2, 3)):
        office.studies.note_progress(plan, asked)
    office.studies.keep_released(plan, "bundle.json", b"{}")
    office.studies.note(plan, "released")
    found = office.studies.status_of(plan)
    assert found.run is not None
    assert found.last is not None
    assert (found.questions, found.last.attempt, found.released) == (1, 2, ("bundle.json",))
