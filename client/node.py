"""An institution's node: its table, its ledger, its approvals, and the door between them and the world.

A node's state folder:

    node.json        who it is and its lifetime budget
    identity.pem     its Ed25519 private key, whose public half the charter pins; encrypted, but in simulations
    node.sqlite      ledger, replies, approvals, decisions, state of secure sums
    log.sqlite       its audit log, and what it cosigned of others'
    consent.sqlite   what its customers agreed to, where it keeps consent here
    governance.toml  which rules are in force, and the facts that only people know
    customers/       the customer table, as `client.onboarding` wrote it
    models/          released models that may be audited here, by digest
    contract.json    the contract that table was made by
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine

from cohortium.client.governing import NodeGovernance, open_consent
from cohortium.client.onboarding.store import load_protected_table
from cohortium.client.people import AuditModels, PlanPeople
from cohortium.client.restored import require_confirmed, require_ledger_of_log
from cohortium.client.seeds import SeedStore
from cohortium.client.store import Approval, NodeStore
from cohortium.client.sums import NodeSums
from cohortium.client.witnessing import NodeLog
from cohortium.models.catalogue import build_query
from cohortium.models.studies import question_terms
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.gate import Terms
from cohortium.privacy.keypairs import fresh_identity
from cohortium.privacy.ledger import Ledger, open_store
from cohortium.privacy.randomness import BitSource
from cohortium.privacy.release import Door
from cohortium.privacy.secure_sum import SqlOnceStore
from cohortium.privacy.table import CustomerTable
from cohortium.study.contract import Contract
from cohortium.study.errors import BudgetError, DataError, OutputError, RefusedError
from cohortium.study.keys import (
    encrypted_pem,
    find_password,
    plain_pem,
    read_identity_file,
    read_plain_identity,
    require_private_folder,
    write_whole,
)
from cohortium.study.plan import MAX_EPSILON, Plan
from cohortium.study.question import PlanQuestion, QuestionHeader, SumMessage
from cohortium.study.software import installed_software

__all__ = [
    "MAX_CLOCK_SKEW",
    "MAX_LIFETIME_EPSILON",
    "MODELS",
    "Node",
    "NodeBooks",
    "NodeIdentity",
    "PlanGate",
    "check_software",
    "create_node",
    "identity_key",
    "open_books",
    "open_node",
    "read_contract",
    "read_key",
]


MAX_LIFETIME_EPSILON = 50.0
"""Beyond it a lifetime budget promises nothing."""

MODELS = "models"
"""Folder of released models that may be audited here."""

MAX_CLOCK_SKEW = 300
"""Seconds by which the coordinator's clock may differ: a plan's expiry must mean the same day to everybody."""

_DATABASE, _KEY, _CUSTOMERS = "node.sqlite", "identity.pem", "customers"


class NodeIdentity(BaseModel):
    """Who a node is, and the most that it will ever spend of one person's privacy.

    Args:
        institution: its name.
        lifetime_epsilon, lifetime_delta: the lifetime budget of the ledger.
        simulation: a node of a simulation: it may answer without rules in force.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["cohortium.node/1"] = "cohortium.node/1"
    institution: Annotated[str, Field(min_length=1, max_length=128)]
    lifetime_epsilon: Annotated[float, Field(gt=0, le=MAX_LIFETIME_EPSILON, allow_inf_nan=False)] = MAX_EPSILON
    lifetime_delta: Annotated[float, Field(gt=0, le=1e-4)] = 1e-6
    simulation: bool = False


class PlanGate:
    """Admits exactly the questions that an approved, unexpired plan foresees, in runs that the rules admitted.

    Args:
        store: where approvals are.
        simulation: whether plans are answered that do not say which code asks and answers.
        decision: id of the decision that admitted a run of a plan; None when none did.
        today: today's date (UTC); a seam for tests of expiry.
    """

    def __init__(
        self,
        store: NodeStore,
        decision: Callable[[str, str], str | None],
        today: Callable[[], date] | None = None,
        *,
        simulation: bool = False,
    ) -> None:
        self._store = store
        self._simulation = simulation
        self._decision = decision
        self._today = today if today is not None else _utc_today

    def admit(self, question: QuestionHeader) -> Terms:
        """The terms of a question.

        Raises:
            RefusedError: no approved plan foresees it, it is for other code, or the run was not admitted.
        """
        plan = self.approval(question.plan).plan
        check_software(plan, simulation=self._simulation)
        terms = question_terms(plan, question)
        decision = self._decision(question.plan, question.run)
        if decision is None:
            raise RefusedError("no rule has admitted this run", fix="ask for the plan first")
        return replace(terms, decision=decision)

    def approval(self, plan: str) -> Approval:
        """The approval of a plan by digest; `RefusedError` when there is none or the plan has expired."""
        approval = self._store.approved(plan)
        if approval is None:
            raise RefusedError("the plan is not approved here", fix="approve its digest after reading it")
        if approval.ended:
            raise RefusedError("the plan was approved before this node was restored", fix="agree on a new one")
        if self._today() > approval.plan.expires:
            raise RefusedError("the plan has expired", fix="agree on a new one")
        return approval


@dataclass(frozen=True)
class Node:
    """An opened node."""

    identity: NodeIdentity
    contract: Contract
    people: CustomerTable
    asked_about: PlanPeople
    models: AuditModels
    store: NodeStore
    seeds: SeedStore
    ledger: Ledger
    gate: PlanGate
    sums: NodeSums
    log: NodeLog
    governance: NodeGovernance
    door: Door

    def accept(self, asked: PlanQuestion) -> SumMessage | None:
        """Promise to answer all of a plan in this run: the rules admit it, and its budget is reserved, durably.

        Returns:
            This node's signed keys of the run, where the plan has a secure sum.

        Raises:
            RefusedError: the plan is not approved here or has expired, the coordinator's clock is off, others have not
                witnessed the audit log, or a rule in force here does not admit the run.
            RefusedError, DataError: an audit of a model that this node does not hold, or without protected features.
            BudgetError: what is left of the lifetime budget does not cover the plan, or another run has begun on it.
        """
        plan = self.gate.approval(asked.plan).plan
        check_software(plan, simulation=self.identity.simulation)
        if abs(asked.time - datetime.now(UTC).timestamp()) > MAX_CLOCK_SKEW:
            raise RefusedError(
                "the coordinator's clock and this machine's differ by more than five minutes", fix="set both by NTP"
            )
        self.asked_about.check(plan)
        if plan.trust == "distributed":
            self.sums.check(plan.digest, asked.run)
        self.log.require_witnessed(plan.digest)
        self.governance.admit(plan.digest, asked.run)
        self.ledger.reserve(plan.digest, asked.run, budget_for(plan.epsilon, plan.delta), plan.expires)
        if plan.trust != "distributed":
            return None
        return self.door.seal_message(SumMessage(self.sums.introduce(plan.digest, asked.run)))

    def check_terms(self, plan: Plan, run: str) -> None:
        """Whether a plan, approved or not, could be answered to its end in this run. Reserves nothing.

        Raises:
            RefusedError, BudgetError: as `accept`.
        """
        place = self.identity.institution
        if _utc_today() > plan.expires:
            raise RefusedError("the plan has expired", place=place, fix="agree on a new one")
        check_software(plan, simulation=self.identity.simulation)
        self.asked_about.check(plan)
        reserved = self.ledger.reservation(plan.digest)
        if reserved is not None and reserved.run != run:
            raise BudgetError(
                "another run has begun on this plan's budget",
                place=place,
                fix="resume that run, or agree on a new plan",
            )
        if reserved is None and budget_for(plan.epsilon, plan.delta).mu2 > self.ledger.available().mu2:
            raise BudgetError(
                "what is left of the lifetime budget does not cover this plan",
                place=place,
                fix="lower the plan's epsilon; spent budget never comes back",
            )

    def close(self) -> None:
        """Close the node's database files."""
        self.ledger.close()
        self.log.close()
        if self.governance.consent is not None:
            self.governance.consent.close()


def check_software(plan: Plan, *, simulation: bool) -> None:
    """Whether the code installed here is the one that a plan was proposed with.

    Raises:
        RefusedError: it is another one, or the plan does not say and this is no simulation.
    """
    if plan.software is None:
        if simulation:
            return
        raise RefusedError(
            "the plan does not say which code asks and answers", place="plan: software", fix="have it proposed again"
        )
    installed = installed_software()
    if plan.software != installed:
        raise RefusedError(
            f"the plan is for cohortium {plan.software.version}, code {plan.software.code[7:23]}…; installed here is "
            f"{installed.version}, code {installed.code[7:23]}…",
            place="plan: software",
            fix="install the version that it names, or have the plan proposed again",
        )


def create_node(folder: Path, identity: NodeIdentity, contract: Contract, password: str | None = None) -> None:
    """Make a node's state folder, readable by its owner alone; a folder that already has a node is left as it is.

    Args:
        folder: where.
        identity: of the node.
        contract: its tables are read by.
        password: of its identity key; found by `study.keys.find_password` when left out. A simulation's node has none.

    Raises:
        OutputError: the folder belongs to a node of another name, budget or contract.
        DataError: no password, or one that is too short.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    begun = (folder / "node.json").exists()
    documents = {
        "contract.json": json.dumps(contract.to_json(), indent=2, ensure_ascii=False) + "\n",
        "node.json": identity.model_dump_json(indent=2) + "\n",
    }
    for name, text in documents.items():
        path = folder / name
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise OutputError(
                f"holds a node with another {name}",
                place=str(folder),
                fix="use another folder; a ledger cannot change its owner, budget or contract",
            )
    if begun:
        return
    # node.json comes last: a folder that has one has everything, and a ledger that is gone is missed, not made anew
    if not (folder / _KEY).exists():
        key = fresh_identity()
        if identity.simulation:
            write_whole(folder / _KEY, plain_pem(key))
        else:
            write_whole(folder / _KEY, encrypted_pem(key, password or find_password(new=True), str(folder / _KEY)))
    database = open_store(folder / _DATABASE)
    Ledger(database, identity.institution, budget_for(identity.lifetime_epsilon, identity.lifetime_delta)).close()
    for name, text in documents.items():
        write_whole(folder / name, text.encode())


def open_node(
    folder: Path,
    people: CustomerTable,
    bits: BitSource | None = None,
    protected: Callable[[], CustomerTable] | None = None,
    password: str | None = None,
) -> Node:
    """Open a node on its customer table.

    Args:
        folder: from `create_node`.
        people: the institution's customer table.
        bits: source of noise; the operating system's CSPRNG by default.
        protected: reads the protected features, for audits alone; from the folder's own file by default.
        password: of its identity key, as `read_key`.

    Raises:
        DataError: no node there, one that this version cannot read, or one whose ledger is gone.
        RefusedError: the node was restored and is not confirmed, or its ledger is behind its audit log.
    """
    try:
        identity = NodeIdentity.model_validate_json((folder / "node.json").read_bytes())
        contract = read_contract(folder)
        key = read_key(folder, password)
    except OSError as error:
        raise DataError("holds no node", place=str(folder), fix="create it first") from error
    except ValueError as error:  # pydantic's included
        raise DataError("holds a node of another version", place=str(folder), fix="use the version it names") from error
    database = open_store(folder / _DATABASE, create=False)
    books, seeds = open_books(folder, identity, database, key), SeedStore(database)
    models = AuditModels(folder / MODELS, contract)
    protected = protected or partial(load_protected_table, folder / _CUSTOMERS, contract)
    asked_about = PlanPeople(people, seeds, contract, protected, models)
    gate, ledger, log, governance = books.gate, books.ledger, books.log, books.governance
    sums = NodeSums(identity.institution, key, gate.approval, SqlOnceStore(database))
    door = Door(
        lambda plan: asked_about.of(gate.approval(plan).plan),
        ledger,
        gate=gate,
        consent=governance,
        audit=log,
        sums=sums,
        build=build_query,
        bits=bits,
    )
    return Node(
        identity, contract, people, asked_about, models, books.store, seeds, ledger, gate, sums, log, governance, door
    )


@dataclass(frozen=True)
class NodeBooks:
    """What a node approved, spent, logged and decides: all of it but its customers."""

    store: NodeStore
    gate: PlanGate
    ledger: Ledger
    log: NodeLog
    governance: NodeGovernance

    def close(self) -> None:
        """Close the database files."""
        self.ledger.close()
        self.log.close()
        if self.governance.consent is not None:
            self.governance.consent.close()


def open_books(folder: Path, identity: NodeIdentity, database: Engine, key: Ed25519PrivateKey) -> NodeBooks:
    """Open the books of the node in that folder.

    Args:
        folder: from `create_node`.
        identity: of the node.
        database: its own.
        key: its identity key.

    Raises:
        DataError: a book that this version cannot read, or a ledger that is gone.
        RefusedError: the node was restored and is not confirmed, or its ledger is behind its audit log.
    """
    try:
        store = NodeStore(database)
        require_confirmed(store, folder)
        lifetime = budget_for(identity.lifetime_epsilon, identity.lifetime_delta)
        ledger = Ledger(database, identity.institution, lifetime)
        require_ledger_of_log(folder, ledger)
    except BaseException:
        database.dispose()
        raise
    gate = PlanGate(store, store.admitted, simulation=identity.simulation)
    log = NodeLog(folder, identity.institution, key, gate.approval)
    governance = NodeGovernance(
        folder,
        identity.institution,
        store,
        gate.approval,
        ledger,
        log,
        open_consent(folder),
        simulation=identity.simulation,
        today=_utc_today,
    )
    return NodeBooks(store, gate, ledger, log, governance)


def identity_key(folder: Path, password: str | None = None) -> str:
    """The Ed25519 public key of the node in that folder, in hexadecimal: what a charter pins; errors as `read_key`."""
    return read_key(folder, password).public_key().public_bytes_raw().hex()


def read_key(folder: Path, password: str | None = None) -> Ed25519PrivateKey:
    """The identity key of the node in that folder.

    Args:
        folder: from `create_node`.
        password: of the key; found by `study.keys.find_password` when left out. A simulation's is not encrypted.

    Raises:
        OSError, ValueError: no node there, or one of another version.
        DataError: a key or a folder that others may read, another password, or no key there.
    """
    simulation = NodeIdentity.model_validate_json((folder / "node.json").read_bytes()).simulation
    place = folder / _KEY
    if not place.is_file():
        raise DataError("holds no node: its key is missing", place=str(place), fix="put it back from a backup")
    if simulation:
        return read_plain_identity(place, fix="use a new folder")
    require_private_folder(folder)
    return read_identity_file(place, password or find_password())


def read_contract(folder: Path) -> Contract:
    """The contract of the node in that folder; the errors of reading and validating it."""
    return Contract.model_validate_json((folder / "contract.json").read_bytes())


def _utc_today() -> date:
    return datetime.now(UTC).date()
