"""`cohortium study` from the outside: a plan's way from its proposal to what its run released, by files alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cohortium.cli import study as noun
from cohortium.cli.study import app
from cohortium.client.joining import Link
from cohortium.client.node import NodeIdentity, create_node, identity_key
from cohortium.client.proposals import add_proposal
from cohortium.client.reviewing import review
from cohortium.governance.access import create_accounts
from cohortium.server.founding import found_federation
from cohortium.server.studies import Studies
from cohortium.server.study_run import Asked
from cohortium.study.charter import parse_charter
from cohortium.study.contract import load_contract
from cohortium.study.errors import CohortiumError, RefusedError

NAMES = ("north", "south", "west")


@dataclass
class Fake:
    """A coordinator at work: it starts what it is told, and forgets it."""

    started: list[tuple[str, str]] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)
    closed: int = 0
    refuses: bool = False
    meanwhile: Callable[[str], None] = lambda plan: None

    def start(self, plan: str, run: str) -> int:
        if self.refuses:
            raise RefusedError("the SuperLink did not start the run")
        self.started.append((plan, run))
        self.meanwhile(plan)
        return 2**62 + len(self.started)

    def stop(self, flower_run: int) -> None:
        self.stopped.append(flower_run)

    def close(self) -> None:
        self.closed += 1


@dataclass(frozen=True)
class World:
    """A coordinator, three nodes of a simulation that joined it, and a plan's file."""

    folder: Path
    control: Fake

    @property
    def coordinator(self) -> Path:
        return self.folder / "coordinator"

    @property
    def studies(self) -> Studies:
        return Studies(self.coordinator)

    def call(self, verb: str, *words: object) -> Result:
        return CliRunner().invoke(app, [verb, *map(str, words)])

    def told(self, verb: str, *words: object, code: int = 0) -> Any:
        done = self.call(verb, *words, "--json")
        assert done.exit_code == code, done.output + repr(done.exception)
        return json.loads(done.stdout)

    def refused(self, verb: str, *words: object) -> str:
        done = self.call(verb, *words)
        assert isinstance(done.exception, CohortiumError), done.output
        return str(done.exception)

    def propose(self) -> str:
        told = self.told("propose", self.coordinator, self.folder / "study/plan.toml", "--out", self.folder / "p.json")
        return str(told["plan"])

    def approve(self, *names: str) -> None:
        for name in names:
            out = self.folder / f"{name}.approval.json"
            self.told("approve", self.folder / name, "--proposal", self.folder / "p.json", "--out", out)
            self.told("take", self.coordinator, out)

    def ready(self) -> str:
        plan = self.propose()
        self.approve("north", "south")
        return plan


@pytest.fixture
def world(tmp_path: Path, study_folder: Path, node_password: str, monkeypatch: pytest.MonkeyPatch) -> World:
    contract, control = load_contract(study_folder / "contract.toml"), Fake()
    identity = found_federation(
        tmp_path / "coordinator", "small", "127.0.0.1:9440", node_password, datetime.now(UTC)
    ).identity
    create_accounts(tmp_path / "coordinator")
    members = []
    for name in NAMES:
        create_node(tmp_path / name, NodeIdentity(institution=name, simulation=True), contract)
        link = Link(federation="small", institution=name, address="127.0.0.1:9440", coordinator=identity)
        (tmp_path / name / "link.json").write_bytes(link.to_bytes())
        members.append({"name": name, "region": "EU", "identity": identity_key(tmp_path / name)})
    document = {"schema": "cohortium.charter/1", "name": "small", "coordinator": identity, "institutions": members}
    (tmp_path / "coordinator" / "charter.json").write_bytes(parse_charter(document).to_bytes())
    monkeypatch.setattr("cohortium.server.control.connect", lambda _folder: control)
    monkeypatch.setattr(noun, "_LOOK_SECONDS", 0.0)
    return World(tmp_path, control)


def test_a_study_goes_from_proposal_to_release_by_files_that_are_handed_over(world: World) -> None:
    plan = world.propose()
    assert world.told("list", world.coordinator)[0]["state"] == "proposed"
    review = world.told("review", world.folder / "north", "--proposal", world.folder / "p.json")
    assert review["plan"] == plan
    assert review["problems"] == []
    world.approve("north", "south")
    assert world.told("list", world.coordinator)[0]["state"] == "ready"

    def works(asked: str) -> None:
        world.studies.note_progress(asked, Asked("marginals", 0, 1, 0, "too few answered"))
        world.studies.note_progress(asked, Asked("marginals", 0, 2, 3))
        world.studies.keep_released(asked, "bundle.json", b"{}")
        world.studies.note(asked, "released")

    world.control.meanwhile = works
    done = world.call("run", world.coordinator, plan[7:15], "--wait")
    assert done.exit_code == 0, done.output
    assert "marginals step 1, attempt 1: too few answered" in done.output
    assert "marginals step 1, attempt 2: 3 institutions" in done.output
    assert "released: bundle.json" in done.output
    (found,) = world.told("status", world.coordinator)
    assert (found["state"], found["released"], found["questions"]) == ("released", ["bundle.json"], 1)
    assert found["run"]["flower"] == [2**62 + 1]
    assert world.control.started == [(plan, found["run"]["run"])]
    assert world.control.closed == 1


def test_the_digest_that_is_approved_is_of_the_plan_with_the_code(world: World) -> None:
    plan = world.propose()
    proposal = world.studies.proposal(plan)
    assert proposal.plan.software is not None
    assert world.propose() == plan, "proposing again changes nothing"
    assert (world.folder / "p.json").read_bytes() == world.studies.open_proposals()[0]


def test_a_run_needs_approvals_and_a_coordinator_at_work(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = world.propose()
    world.approve("north")
    assert "1 of the 2" in world.refused("run", world.coordinator, plan)
    world.approve("south")

    def nobody(_folder: Path) -> None:
        raise RefusedError("no coordinator runs here")

    with monkeypatch.context() as patched:
        patched.setattr("cohortium.server.control.connect", nobody)
        assert "no coordinator runs here" in world.refused("run", world.coordinator, plan)
    assert world.studies.run(plan) is None, "nothing was begun that cannot be started"


def test_a_run_is_stopped_and_resumed_under_its_number(world: World) -> None:
    plan = world.ready()
    first = world.told("run", world.coordinator, plan)["run"]["run"]
    assert world.told("stop", world.coordinator, plan)["state"] == "stopped"
    assert world.control.stopped == [2**62 + 1]
    assert world.told("stop", world.coordinator, plan)["state"] == "stopped"
    found = world.told("resume", world.coordinator, plan)
    assert (found["run"]["run"], found["run"]["flower"]) == (first, [2**62 + 1, 2**62 + 2])
    assert world.control.started == [(plan, first), (plan, first)]


def test_waiting_ends_with_one_when_the_run_failed(world: World) -> None:
    plan = world.ready()
    world.control.meanwhile = lambda asked: world.studies.note(asked, "failed", "no sum of marginals") and None
    done = world.call("run", world.coordinator, plan, "--wait", "--quiet")
    assert done.exit_code == noun.NOT_READY
    assert "failed" in done.stdout
    assert "no sum of marginals" in done.stdout


def test_a_run_that_was_not_started_has_failed_and_can_be_resumed(world: World) -> None:
    plan = world.ready()
    world.control.refuses = True
    assert "did not start" in world.refused("run", world.coordinator, plan)
    run = world.studies.run(plan)
    assert run is not None
    assert (run.state, run.flower) == ("failed", ())
    world.control.refuses = False
    assert world.told("resume", world.coordinator, plan)["state"] == "running"


def test_a_coordinator_cannot_hide_lines_of_a_review(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.propose()
    plan = add_proposal(world.folder / "north", (world.folder / "p.json").read_bytes()).plan.digest
    told = review(world.folder / "north", plan)
    hidden = "0\x1b[8m\u202e"
    noun._print_review(replace(told, software=(hidden, "sha256:1"), problems=(f"is for {hidden}",)))
    shown = capsys.readouterr().out
    assert shown.count("0\\x1b[8m\\u202e") == 2
    assert all(line.isprintable() for line in shown.splitlines())
    assert str(RefusedError(hidden)).isprintable()


def test_a_review_is_in_plain_words_and_ends_with_one_when_something_is_in_the_way(world: World) -> None:
    world.propose()
    north = world.folder / "north"
    done = world.call("review", north, "--proposal", world.folder / "p.json")
    assert done.exit_code == 0, done.output
    for words in (
        "small (segments) in small",
        "for research, on the basis of consent; people in EU",
        "how many customers lie in each of many intervals of every number feature",
        "customer of 3 institutions: epsilon",
        "here, for life: 0.0000 spent",
        "as installed here",
        "no plan of this name was approved here before",
        "share_threshold: null",
        "charter.max_epsilon: 3.0",
        "nothing stands in its way",
    ):
        assert words in done.stdout, words
    plan = world.told("list", north)[0]["plan"]
    world.told("decline", north, plan, "--reason", "not ours")
    done = world.call("review", north, plan)
    assert done.exit_code == noun.NOT_READY
    assert "in its way: " in done.stdout
    assert "declined here" in done.stdout
    assert world.told("list", north)[0]["state"] == "declined"
    assert "declined here" in world.refused("approve", north, plan)


def test_a_node_tells_what_was_delivered_and_what_came_back(world: World) -> None:
    plan = world.propose()
    north, digits = world.folder / "north", plan.removeprefix("sha256:")
    world.told("approve", north, "--proposal", world.folder / "p.json")
    assert "was not yet delivered" in world.call("status", north).stdout
    (north / "approvals" / f"{digits}.taken").write_bytes(b"")
    (north / "released" / digits).mkdir(parents=True)
    (north / "released" / digits / "bundle.json").write_bytes(b"{}")
    text = world.call("status", north, plan).stdout
    assert "was delivered" in text
    next((north / "approvals").glob("*.taken")).write_bytes(b"refused")
    assert "was refused by the coordinator" in world.call("status", north).stdout
    assert world.told("status", north)[0]["delivered"] is False
    assert "released: bundle.json" in text


def test_what_is_handed_over_is_verified(world: World) -> None:
    plan = world.propose()
    path = world.folder / "p.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"epsilon":1', b'"epsilon":2'))
    assert "not signed by the coordinator" in world.refused("approve", world.folder / "north", "--proposal", path)
    path.write_bytes(whole)
    out = world.folder / "a.json"
    world.told("approve", world.folder / "north", "--proposal", path, "--out", out)
    out.write_bytes(out.read_bytes().replace(b'"north"', b'"south"'))
    assert "not signed by the identity key of 'south'" in world.refused("take", world.coordinator, out)
    assert world.told("status", world.coordinator, plan)[0]["approved"] == []


def test_plans_are_named_by_enough_digits(world: World) -> None:
    plan = world.ready()
    north = world.folder / "north"
    for name in (plan, plan[7:], plan[7:13]):
        assert world.told("status", world.coordinator, name)[0]["plan"] == plan
    assert "too short" in world.refused("status", world.coordinator, plan[7:12])
    assert "no plan that was proposed" in world.refused("run", world.coordinator, "0" * 64)
    assert "name one plan" in world.refused("review", north)
    assert "name one plan" in world.refused("approve", north, plan, "--proposal", world.folder / "p.json")
    assert "neither a node nor a coordinator" in world.refused("list", world.folder)


def test_who_has_no_account_does_nothing(world: World, study_folder: Path) -> None:
    real = world.folder / "real"
    create_node(real, NodeIdentity(institution="real"), load_contract(study_folder / "contract.toml"))
    some = "0" * 64
    for words in (
        ("review", real, some),
        ("approve", real, some),
        ("decline", real, some, "--reason", "no"),
        ("list", real),
        ("status", real),
    ):
        assert "there are no accounts here" in world.refused(*words)
    (world.coordinator / "access.sqlite").unlink()
    for words in (
        ("propose", world.coordinator, study_folder / "plan.toml"),
        ("take", world.coordinator, study_folder / "plan.toml"),
        ("run", world.coordinator, some),
        ("resume", world.coordinator, some),
        ("stop", world.coordinator, some),
        ("list", world.coordinator),
        ("status", world.coordinator),
    ):
        assert "there are no accounts here" in world.refused(*words)


def test_digits_that_begin_several_plans_name_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = world.propose()
    twin = plan[:-1] + ("0" if plan[-1] != "0" else "1")
    monkeypatch.setattr(Studies, "plans", lambda _self: (plan, twin))
    assert "begins several plans" in world.refused("status", world.coordinator, plan[7:15])
    assert world.told("status", world.coordinator, plan)[0]["plan"] == plan
