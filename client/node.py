"""An institution's node: its table, its ledger, its approvals, and the door between them and the world.

A node's state folder:

    node.json        who it is and its lifetime budget
    node.sqlite      ledger, replies, approvals, record of releases
    customers/       the customer table, as `client.onboarding` wrote it
    contract.json    the contract that table was made by
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cohortium.client.store import NodeStore
from cohortium.models.catalogue import build_query
from cohortium.models.segmentation import question_terms
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.gate import Terms
from cohortium.privacy.ledger import Ledger, open_store
from cohortium.privacy.randomness import BitSource
from cohortium.privacy.release import Door
from cohortium.privacy.table import CustomerTable
from cohortium.study.contract import Contract
from cohortium.study.errors import BudgetError, DataError, OutputError, RefusedError
from cohortium.study.plan import MAX_EPSILON, Plan
from cohortium.study.question import QuestionHeader

__all__ = [
    "MAX_LIFETIME_EPSILON",
    "Everybody",
    "Node",
    "NodeIdentity",
    "PlanGate",
    "create_node",
    "open_node",
    "read_contract",
]


MAX_LIFETIME_EPSILON = 50.0
"""Beyond it a lifetime budget promises nothing."""


class NodeIdentity(BaseModel):
    """Who a node is, and the most that it will ever spend of one person's privacy.

    Args:
        institution: its name.
        lifetime_epsilon, lifetime_delta: the lifetime budget of the ledger.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["cohortium.node/1"] = "cohortium.node/1"
    institution: Annotated[str, Field(min_length=1, max_length=128)]
    lifetime_epsilon: Annotated[float, Field(gt=0, le=MAX_LIFETIME_EPSILON, allow_inf_nan=False)] = MAX_EPSILON
    lifetime_delta: Annotated[float, Field(gt=0, le=1e-4)] = 1e-6


class Everybody:
    """The consent view of a node without a consent store: everybody in the table counts. Consent is not built yet."""

    def snapshot(self, people: CustomerTable) -> CustomerTable:
        """All people."""
        return people


class PlanGate:
    """Admits exactly the questions that an approved, unexpired plan foresees.

    Args:
        store: where approvals are.
        today: today's date (UTC); a seam for tests of expiry.
    """

    def __init__(self, store: NodeStore, today: Callable[[], date] | None = None) -> None:
        self._store = store
        self._today = today if today is not None else _utc_today

    def admit(self, question: QuestionHeader) -> Terms:
        """The terms of a question; `RefusedError` when no approved plan foresees it."""
        plan = self._store.approved(question.plan)
        if plan is None:
            raise RefusedError("the plan is not approved here", fix="approve its digest after reading it")
        if self._today() > plan.expires:
            raise RefusedError("the plan has expired", fix="agree on a new one")
        return question_terms(plan, question)


@dataclass(frozen=True)
class Node:
    """An opened node."""

    identity: NodeIdentity
    contract: Contract
    people: CustomerTable
    store: NodeStore
    ledger: Ledger
    door: Door

    def accept(self, digest: str) -> Plan:
        """The plan of that digest, if this institution would answer all of it now.

        Raises:
            RefusedError: the plan is not approved here, or has expired.
            BudgetError: what is left of the lifetime budget, in mu^2, does not cover what is left to ask.
        """
        plan = self.store.approved(digest)
        if plan is None:
            raise RefusedError(
                "the plan is not approved here", place=self.identity.institution, fix="approve its digest first"
            )
        self.check_terms(plan)
        return plan

    def check_terms(self, plan: Plan, run: str | None = None) -> None:
        """Whether a plan, approved or not, could be answered to its end now.

        Args:
            plan: which.
            run: the run that is to be answered, when it is known: what another run spent of the plan is then missing.

        Raises:
            RefusedError, BudgetError: as `accept`; BudgetError also when another run has begun on the plan's budget.
        """
        if run is not None and any(c.slot.plan == plan.digest and c.slot.run != run for c in self.ledger.charges()):
            raise BudgetError(
                "another run has begun on this plan's budget",
                place=self.identity.institution,
                fix="resume that run, or agree on a new plan",
            )
        if _utc_today() > plan.expires:
            raise RefusedError("the plan has expired", place=self.identity.institution, fix="agree on a new one")
        still_to_ask = budget_for(plan.epsilon, plan.delta).mu2 - self.ledger.spent(plan.digest).mu2
        if self.ledger.spent().mu2 + still_to_ask > self.ledger.lifetime.mu2:
            raise BudgetError(
                "what is left of the lifetime budget does not cover this plan",
                place=self.identity.institution,
                fix="lower the plan's epsilon; spent budget never comes back",
            )

    def close(self) -> None:
        """Close the node's database files."""
        self.ledger.close()


def create_node(folder: Path, identity: NodeIdentity, contract: Contract) -> None:
    """Make a node's state folder, readable by its owner alone; a folder that already has a node is left as it is.

    Raises:
        OutputError: the folder belongs to a node of another name, budget or contract.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    documents = {
        "node.json": identity.model_dump_json(indent=2) + "\n",
        "contract.json": json.dumps(contract.to_json(), indent=2, ensure_ascii=False) + "\n",
    }
    for name, text in documents.items():
        path = folder / name
        if not path.exists():
            staged = folder / f".{name}.partial"
            staged.write_text(text, encoding="utf-8")
            os.replace(staged, path)  # whole or not at all: a killed process leaves no half of a node
        elif path.read_text(encoding="utf-8") != text:
            raise OutputError(
                f"holds a node with another {name}",
                place=str(folder),
                fix="use another folder; a ledger cannot change its owner, budget or contract",
            )


def open_node(folder: Path, people: CustomerTable, bits: BitSource | None = None) -> Node:
    """Open a node on its customer table.

    Args:
        folder: from `create_node`.
        people: the institution's customer table.
        bits: source of noise; the operating system's CSPRNG by default.

    Raises:
        DataError: no node there, or one that this version cannot read.
    """
    try:
        identity = NodeIdentity.model_validate_json((folder / "node.json").read_bytes())
        contract = read_contract(folder)
    except OSError as error:
        raise DataError("holds no node", place=str(folder), fix="create it first") from error
    except ValidationError as error:
        raise DataError("holds a node of another version", place=str(folder), fix="use the version it names") from error
    database = open_store(folder / "node.sqlite")
    store = NodeStore(database)
    lifetime = budget_for(identity.lifetime_epsilon, identity.lifetime_delta)
    ledger = Ledger(database, identity.institution, lifetime)
    door = Door(
        people,
        ledger,
        gate=PlanGate(store),
        consent=Everybody(),
        audit=store,
        build=build_query,
        bits=bits,
    )
    return Node(identity, contract, people, store, ledger, door)


def read_contract(folder: Path) -> Contract:
    """The contract of the node in that folder; the errors of reading and validating it."""
    return Contract.model_validate_json((folder / "contract.json").read_bytes())


def _utc_today() -> date:
    return datetime.now(UTC).date()
