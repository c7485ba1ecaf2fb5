"""The folder of a simulated run: claimed, resumed, and what every kind of study does in it.

run.json            what is run; the same folder resumes it
plan.json, contract.json, charter.json
coordinator.sqlite  released sums and messages about keys: what an interrupted run goes on from
institutions/NAME/  one node each (see `client.node`) with its customer table
institutions/coordinator/
                    the simulated coordinator's key, which signs released models, and its audit log
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.serverapp import ServerApp
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cohortium.client.app import make_client_app
from cohortium.client.node import (
    MAX_LIFETIME_EPSILON,
    Node,
    NodeIdentity,
    create_node,
    identity_key,
    open_node,
)
from cohortium.client.onboarding import OnboardingReport, Source, load_customer_table, onboard
from cohortium.client.witnessing import LOG_FILE
from cohortium.governance.log import COORDINATOR, AuditLog, Ed25519Signer, log_origin
from cohortium.governance.report import InstitutionFacts, StageTime
from cohortium.models.preflight import preflight
from cohortium.models.studies import check_feasible
from cohortium.privacy.keypairs import fresh_identity
from cohortium.privacy.ledger import open_store
from cohortium.privacy.secure_sum import SqlOnceStore
from cohortium.server.app import StudyOrder, make_server_app
from cohortium.server.study_run import Asked, Released, run_study
from cohortium.simulations.governed import SimulatedGovernance
from cohortium.simulations.grid import run_in_process
from cohortium.simulations.nodes import STATE_FOLDER, ray_client_app
from cohortium.simulations.ray_engine import run_on_ray
from cohortium.simulations.reviewing import enrolled
from cohortium.simulations.sources import CustomerData
from cohortium.simulations.unsafe import PlainSums
from cohortium.study.charter import CHARTER_SCHEMA, SIMULATION, Charter, Institution, parse_charter
from cohortium.study.contract import Contract
from cohortium.study.errors import CohortiumError, DataError, Defect, OutputError, PlanError, RefusedError
from cohortium.study.keys import plain_pem, read_plain_identity, write_whole
from cohortium.study.model import EncoderModel, Model
from cohortium.study.plan import MAX_EPSILON, Plan

__all__ = [
    "Begun",
    "Clock",
    "Engine",
    "RunFile",
    "Say",
    "SimulationOrder",
    "begin_run",
    "coordinator_key",
    "institution_facts",
    "run_plan",
    "write_bytes",
    "write_json",
]

Engine = Literal["in-process", "ray"]
Say = Callable[[str], None]

_RUN_FILE, _WORK, _PARTIAL = "run.json", ".work", ".partial"
_LISTING_SCHEMA = "cohortium.institutions/1"


@dataclass(frozen=True)
class SimulationOrder:
    """What to simulate.

    Args:
        plan, contract: every simulated institution approves them.
        data: the customers.
        out: folder of the run.
        charter: thresholds and members; one is made of the data's institutions when left out.
        state: folder of the institutions' nodes; `out`/institutions when left out. Ledgers in it never reset, so that
            runs of several plans on one state add up.
        lifetime_epsilon, lifetime_delta: every institution's lifetime budget.
        engine: in this process, or on Flower's own simulation (Ray).
        resume: continue the run that `out` holds.
        base: for a campaign, the encoder's model that its plan names.
        governance: consent and rules of the institutions; without it no rule is in force and everybody counts.
        onboarded: names of institutions whose tables `state` has from an earlier run on the same data and contract;
            the data is not read again.
    """

    plan: Plan
    contract: Contract
    data: CustomerData
    out: Path
    charter: Charter | None = None
    state: Path | None = None
    lifetime_epsilon: float = MAX_EPSILON
    lifetime_delta: float = 1e-6
    engine: Engine = "in-process"
    resume: bool = False
    base: Model[EncoderModel] | None = None
    governance: SimulatedGovernance | None = None
    onboarded: tuple[str, ...] = ()

    @property
    def state_folder(self) -> Path:
        """Where the nodes are."""
        return self.state if self.state is not None else self.out / "institutions"


class RunFile(BaseModel):
    """What a run's folder holds, so that only the same run resumes in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_id: Annotated[Literal["cohortium.run/1"], Field(alias="schema")] = "cohortium.run/1"
    run: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    plan: str
    dataset: str
    split: str
    started: datetime


@dataclass
class Clock:
    """Wall time by stage."""

    say: Say
    stages: list[StageTime] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.say(f"{name} …")
        start = time.perf_counter()
        yield
        self.stages.append(StageTime(stage=name, seconds=round(time.perf_counter() - start, 3)))


@dataclass(frozen=True)
class Begun:
    """A run whose institutions have approved the plan.

    Args:
        file: identifies the run.
        folders: every institution's state folder by name.
        nodes: every institution's node by name.
        charter: of the run.
    """

    file: RunFile
    folders: Mapping[str, Path]
    nodes: Mapping[str, Node]
    charter: Charter


def begin_run(
    order: SimulationOrder, say: Say, clock: Clock, stack: ExitStack, ready: Callable[[Mapping[str, Node]], None]
) -> Begun:
    """Claim or resume the folder, onboard, open the nodes, and have every institution approve the plan.

    Args:
        order: what to simulate.
        say: called with one line of progress at a time.
        clock: takes the time of every stage.
        stack: closes the nodes.
        ready: called with the nodes before anybody approves; what it raises frees the folder again.
    """
    _check_order(order)
    with _claimed(order) as run:
        write_json(order.out / "plan.json", order.plan.to_json())
        write_json(order.out / "contract.json", order.contract.to_json())
        with clock.stage("onboarding"):
            folders = _onboarded(order, say)
        nodes = _open_nodes(order, folders, stack)
        ready(nodes)
        charter = _charter_of(order, folders)
        if order.governance is not None:
            charter = enrolled(charter, folders)
        write_json(order.out / "charter.json", charter.to_json())
        if order.plan.trust != "unsafe-none":
            _approve(order, charter, run, nodes)
    return Begun(run, folders, nodes, charter)


@contextmanager
def _claimed(order: SimulationOrder) -> Iterator[RunFile]:
    """The run of the folder, claimed or resumed; a mistake found before the first question frees a new claim again."""
    path = order.out / _RUN_FILE
    if path.exists():
        yield _resumable(order, path)
        return
    there = order.out.is_dir()
    run = _begin(order)
    try:
        yield run
    except CohortiumError:  # nothing was asked, so nothing was charged: the mended command finds the folder as it was
        for made in order.out.iterdir():
            shutil.rmtree(made) if made.is_dir() else made.unlink()
        if not there:
            order.out.rmdir()
        raise


def _begin(order: SimulationOrder) -> RunFile:
    """Claim the folder for a new run."""
    if order.resume:
        raise OutputError("holds no run to resume", place=str(order.out), fix="leave out --resume")
    begun = {f"{_RUN_FILE}{_PARTIAL}"}  # a process killed while it claimed the folder did nothing else in it
    if order.out.is_dir() and {path.name for path in order.out.iterdir()} - begun:
        raise OutputError("is not empty", place=str(order.out), fix="choose a new folder")
    try:
        order.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(error.strerror or "cannot be made", place=str(order.out), fix="choose another") from error
    file = RunFile(
        run=uuid4().hex,
        plan=order.plan.digest,
        dataset=order.data.facts.name,
        split=order.data.split,
        started=datetime.now(UTC),
    )
    write_json(order.out / _RUN_FILE, file.model_dump(mode="json", by_alias=True))
    return file


def _resumable(order: SimulationOrder, path: Path) -> RunFile:
    if not order.resume:
        raise OutputError(
            "holds a run already", place=str(order.out), fix="add --resume to continue it, or choose a new folder"
        )
    try:
        file = RunFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise OutputError("is of another version", place=str(path), fix="choose a new folder") from error
    if file.plan != order.plan.digest:
        raise RefusedError(
            "the plan's digest is not the one that this run's institutions approved",
            place=str(path),
            fix="restore the plan and contract, or run the changed plan in a new folder",
        )
    if file.dataset != order.data.facts.name:
        raise OutputError(f"is a run on '{file.dataset}'", place=str(path), fix="give the same --data")
    if file.split != order.data.split:
        raise OutputError(f"is a run by {file.split}", place=str(path), fix="give the same --institutions")
    return file


def _onboarded(order: SimulationOrder, say: Say) -> dict[str, Path]:
    """Every institution's state folder by name, with its customer table in it."""
    listing = order.out / "institutions.json"
    if listing.exists() or order.onboarded:
        folders = {name: order.state_folder / name for name in order.onboarded or _listed(listing)}
        for folder in folders.values():
            if not (folder / "customers" / "onboarding.json").exists():
                raise OutputError(
                    "held this run's institution and is gone",
                    place=str(folder),
                    fix="put it back: its ledger is the only record of what was spent",
                )
        say("customer tables are there already")
        write_json(listing, {"schema": _LISTING_SCHEMA, "institutions": list(folders)})
        return folders
    work = order.out / _WORK
    shutil.rmtree(work, ignore_errors=True)
    try:
        tables = order.data.tables(order.contract, work)
        if not tables:
            raise DataError("the data has no lines", place=order.data.facts.name, fix="give tables with customers")
        folders = {}
        for name, sources in tables.items():
            folders[name] = order.state_folder / name
            _make_folder(folders[name])
            report = _onboard_one(order.contract, name, sources, folders[name])
            say(f"  {name}: {_lines(report):,} lines of {report.people:,} customers")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    write_json(listing, {"schema": _LISTING_SCHEMA, "institutions": list(folders)})
    return folders


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise OutputError(error.strerror or "cannot be made", place=str(folder), fix="choose another") from error


def _listed(listing: Path) -> list[str]:
    """The names in `institutions.json`."""
    try:
        document = json.loads(listing.read_bytes())
        names = document["institutions"]
        if document["schema"] == _LISTING_SCHEMA and all(isinstance(name, str) for name in names):
            return list(names)
    except (ValueError, KeyError, TypeError):
        pass
    raise OutputError("is of another version", place=str(listing), fix="choose a new folder")


def _onboard_one(contract: Contract, name: str, sources: Mapping[str, Source], folder: Path) -> OnboardingReport:
    try:
        return onboard(contract, sources, folder / "customers")
    except DataError as error:
        raise DataError(error.message, place=f"{name}: {error.place}", fix=error.fix) from error


def _lines(report: OnboardingReport) -> int:
    return sum(table.lines for table in report.tables)


def _charter_of(order: SimulationOrder, folders: Mapping[str, Path]) -> Charter:
    """The charter of the run, with the keys of the simulated institutions in it."""
    keys = {name: identity_key(folder) for name, folder in folders.items()}
    coordinator = coordinator_key(order).public_key().public_bytes_raw().hex()
    given = order.charter
    if given is None:
        members = tuple(
            Institution(name=name, region=_region(order, index), identity=key)
            for index, (name, key) in enumerate(keys.items())
        )
        return parse_charter(
            {
                "schema": CHARTER_SCHEMA,
                "name": SIMULATION,
                "institutions": members,
                "coordinator": coordinator,
            }
        )
    known = {institution.name for institution in given.institutions}
    strangers = sorted(set(folders) - known)
    if strangers:
        raise PlanError(
            f"the data has an institution '{strangers[0]}' that the charter does not name",
            place="charter: institutions",
            fix=f"add it, or one of {', '.join(sorted(known - set(folders))) or 'them'} under its name in the data",
        )
    members = tuple(_with_key(institution, keys.get(institution.name)) for institution in given.institutions)
    return given.model_copy(update={"institutions": members, "coordinator": given.coordinator or coordinator})


def _region(order: SimulationOrder, index: int) -> str:
    return SIMULATION if order.governance is None else order.governance.region(index)


def _with_key(institution: Institution, key: str | None) -> Institution:
    """The member with its simulated key; a key that the charter pins already has to be that very one."""
    if key is None or institution.identity == key:
        return institution
    if institution.identity is not None:
        raise PlanError(
            f"'{institution.name}' signs with a key that this simulation does not have",
            place="charter: institutions.identity",
            fix="leave it out: a simulation makes keys of its own",
        )
    return institution.model_copy(update={"identity": key})


def _check_order(order: SimulationOrder) -> None:
    """What can be refused before any table is read."""
    if order.plan.trust == "unsafe-none" and order.state is not None:
        raise PlanError(
            "a run without noise on institutions that keep their ledgers",
            place="plan: trust",
            fix='leave out --state, or set trust = "distributed" or "local"',
        )
    check_feasible(order.plan, order.contract)
    if not (0 < order.lifetime_epsilon <= MAX_LIFETIME_EPSILON and 0 < order.lifetime_delta <= 1e-4):
        raise PlanError(
            f"a lifetime budget of epsilon {order.lifetime_epsilon:g} is out of range",
            place="lifetime epsilon",
            fix=f"give one above 0 and at most {MAX_LIFETIME_EPSILON:g}",
        )
    if order.charter is not None:
        order.charter.check_plan(order.plan)


def _open_nodes(order: SimulationOrder, folders: Mapping[str, Path], stack: ExitStack) -> dict[str, Node]:
    """Every institution's node."""
    nodes = {}
    for index, (name, folder) in enumerate(folders.items()):
        identity = NodeIdentity(
            institution=name,
            lifetime_epsilon=order.lifetime_epsilon,
            lifetime_delta=order.lifetime_delta,
            simulation=True,
        )
        create_node(folder, identity, order.contract)
        people = load_customer_table(folder / "customers", order.contract)
        if order.governance is not None:
            order.governance.prepare(folder, index, people.keys.tolist())
        node = open_node(folder, people)
        stack.callback(node.close)
        nodes[name] = node
    return nodes


def _approve(order: SimulationOrder, charter: Charter, file: RunFile, nodes: Mapping[str, Node]) -> None:
    """The plan is approved on behalf of the simulated institutions: by all of them, or by none."""
    preflight(order.plan, order.contract, charter)
    for node in nodes.values():
        node.check_terms(order.plan, file.run)
    for node in nodes.values():
        node.store.approve(order.plan, order.contract, charter)


def run_plan(
    order: SimulationOrder, begun: Begun, say: Say, after: Callable[[Asked], None] = lambda _asked: None
) -> Released:
    """Have the institutions answer the plan, by the apps that run deployed; `after` is called after every question."""
    run, nodes = begun.file.run, begun.nodes

    def progress(asked: Asked) -> None:
        say(_asked(asked))
        after(asked)

    if order.plan.trust == "unsafe-none":
        say("  NO NOISE: this run protects nobody")
        plain = PlainSums([node.asked_about.of(order.plan) for node in nodes.values()])
        return run_study(order.plan, order.contract, run, plain, progress, order.base)
    delivered: list[Released] = []
    study = StudyOrder(order.plan, order.contract, begun.charter, run=run, expected=len(nodes), base=order.base)
    database = open_store(order.out / "coordinator.sqlite")
    try:
        with coordinator_log(order, begun.charter) as log:
            store = SqlOnceStore(database)
            server = make_server_app(study, store, log, delivered.append, progress)
            _run_apps(order, server, nodes)
    finally:
        database.dispose()
    if len(delivered) != 1:
        raise Defect("the server app ended without a result")
    return delivered[0]


def _run_apps(order: SimulationOrder, server: ServerApp, nodes: Mapping[str, Node]) -> None:
    opened = list(nodes.values())
    if order.engine == "ray":
        folders = [{STATE_FOLDER: str((order.state_folder / name).resolve())} for name in nodes]
        run_on_ray(server, ray_client_app, nodes=len(nodes), node_configs=folders)
    else:
        client = make_client_app(lambda context: opened[int(context.node_config["partition-id"])])
        run_in_process(server, client, nodes=len(nodes))


def _asked(asked: Asked) -> str:
    again = f", attempt {asked.attempt}" if asked.attempt > 1 else ""
    outcome = f"{asked.institutions} institutions answered" if asked.problem is None else asked.problem
    return f"  {asked.phase} {asked.step + 1}{again}: {outcome}"


def institution_facts(plan: Plan, name: str, node: Node) -> InstitutionFacts:
    """What an institution spent, for reports."""
    return InstitutionFacts.of(
        name,
        accepted=True,
        spent=node.ledger.spent(plan.digest),
        lifetime=node.ledger.lifetime,
        lifetime_spent=node.ledger.spent(),
        plan=plan,
    )


def write_json(path: Path, document: Any) -> None:
    """Write a document whole or not at all, for people to read too."""
    write_bytes(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; `OutputError` when it cannot be."""
    staged = path.with_name(path.name + _PARTIAL)
    try:
        staged.write_bytes(data)
        os.replace(staged, path)
    except OSError as error:
        raise OutputError(
            error.strerror or "cannot be written", place=str(path), fix="check space and permissions"
        ) from error


def coordinator_key(order: SimulationOrder) -> Ed25519PrivateKey:
    """The simulated coordinator's key, made when there is none; with `state` it stays the same from run to run."""
    folder = order.state_folder / COORDINATOR
    _make_folder(folder)
    path = folder / "coordinator.pem"
    if not path.exists():
        write_whole(path, plain_pem(fresh_identity()))
    return read_plain_identity(path, fix="choose a new folder")


@contextmanager
def coordinator_log(order: SimulationOrder, charter: Charter) -> Iterator[AuditLog]:
    """The simulated coordinator's audit log."""
    origin = log_origin(charter.name)
    engine = open_store(order.state_folder / COORDINATOR / LOG_FILE)
    try:
        yield AuditLog(engine, origin, Ed25519Signer(origin, coordinator_key(order)))
    finally:
        engine.dispose()
