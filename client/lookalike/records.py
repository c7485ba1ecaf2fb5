"""A node's records without its table of customers: what commands on models, seeds and audiences work with.

`client.node.open_node` holds all customers in memory, as answering questions needs them. Nothing here does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from cohortium.client.audience.scores import ScoresOrigin
from cohortium.client.audience.store import AudienceStore
from cohortium.client.governing import cohort_of, open_consent, read_governance
from cohortium.client.lookalike.activating import GovernedActivation
from cohortium.client.node import MODELS, NodeBooks, NodeIdentity, PlanGate, open_books, read_contract, read_key
from cohortium.client.onboarding.store import CUSTOMERS_FILE, load_customer_table, load_report
from cohortium.client.people import AuditModels
from cohortium.client.seeds import SeedStore
from cohortium.client.store import NodeStore
from cohortium.privacy.ledger import open_store
from cohortium.privacy.table import CustomerTable
from cohortium.study.contract import Contract
from cohortium.study.errors import DataError, RefusedError

__all__ = ["NodeRecords", "open_records"]

_DATABASE, _CUSTOMERS, _AUDIENCES = "node.sqlite", "customers", "audiences"


@dataclass(frozen=True)
class NodeRecords:
    """An opened node without its customers.

    Args:
        folder: the node's state folder.
        identity: who it is.
        contract: that its table was made by.
        approvals: plans it approved, each with the charter.
        seeds: its seed lists.
        database: that holds all of these.
        closing: closes what was opened besides.
    """

    folder: Path
    identity: NodeIdentity
    contract: Contract
    approvals: NodeStore
    seeds: SeedStore
    database: Engine
    closing: ExitStack

    @property
    def customers(self) -> Path:
        """The folder that onboarding wrote."""
        return self.folder / _CUSTOMERS

    def audiences(self) -> AudienceStore:
        """Its audiences; `OutputError` when their folder cannot be made."""
        return AudienceStore(self.database, self.folder / _AUDIENCES, origin=self.origin)

    def activation(self, plan: str) -> GovernedActivation:
        """Who may be activated under a plan and what may go out, by consents, rules and review as they stand now.

        Args:
            plan: digest of a campaign's plan.

        Raises:
            RefusedError: the plan is not approved here or has expired, its purpose is none that people are asked about,
                or no consent is kept here and the node is not a simulation's.
        """
        approval = PlanGate(self.approvals, self.approvals.admitted).approval(plan)
        consent = open_consent(self.folder)
        if consent is None and not self.identity.simulation:
            raise RefusedError(
                "no consent is kept here", place=str(self.folder), fix="import it: cohortium consent import"
            )
        snapshot = None
        if consent is not None:
            self.closing.callback(consent.close)
            declared = read_governance(self.folder)
            cohort = cohort_of(approval.plan, None if declared is None else declared[0], "activation")
            snapshot = consent.snapshot(cohort)
        return GovernedActivation(self.folder, self.identity.institution, self._books, self.models, approval, snapshot)

    def _books(self) -> NodeBooks:
        books = open_books(self.folder, self.identity, self.database, read_key(self.folder))
        self.closing.callback(books.close)
        return books

    @property
    def models(self) -> AuditModels:
        """Released models that may be audited here."""
        return AuditModels(self.folder / MODELS, self.contract)

    def origin(self) -> ScoresOrigin:
        """The node and its customers as the last onboarding left them; errors as `load_report`."""
        return ScoresOrigin(self.identity.institution, load_report(self.customers).outputs.get(CUSTOMERS_FILE, ""))

    def people(self) -> CustomerTable:
        """All customers, in memory; errors as `load_customer_table`."""
        return load_customer_table(self.customers, self.contract)


@contextmanager
def open_records(folder: Path) -> Iterator[NodeRecords]:
    """Open a node's records while the block lasts.

    Args:
        folder: from `client.node.create_node`.

    Raises:
        DataError: no node there, one that this version cannot read, or one whose ledger is gone.
    """
    place = str(folder)
    try:
        identity = NodeIdentity.model_validate_json((folder / "node.json").read_bytes())
        contract = read_contract(folder)
    except OSError as error:
        raise DataError("holds no node", place=place, fix="name a node's state folder") from error
    except ValueError as error:  # pydantic's included
        raise DataError("holds a node of another version", place=place, fix="use the version it names") from error
    with ExitStack() as closing:
        database = open_store(folder / _DATABASE, create=False)
        closing.callback(database.dispose)
        yield NodeRecords(folder, identity, contract, NodeStore(database), SeedStore(database), database, closing)
