"""A node's own records beside the ledger: plans it approved, and what it decided of their runs. Local, never sent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import (
    Boolean,
    Column,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    func,
    insert,
    select,
    update,
)

from cohortium.governance.rules import Decision, Facts
from cohortium.models.preflight import preflight
from cohortium.privacy.store_forms import Form, open_form
from cohortium.study.canonical import canonical_bytes
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.contract import Contract
from cohortium.study.errors import RefusedError
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan

__all__ = ["TABLES", "Approval", "NodeStore", "Restored"]

TABLES = MetaData()

_header = Table("node_header", TABLES, Column("schema", String, primary_key=True))

_approvals = Table(
    "approvals",
    TABLES,
    Column("plan", String, primary_key=True),
    Column("approved_at", String, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("charter", LargeBinary, nullable=False),
)

_decisions = Table(
    "decisions",
    TABLES,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("recorded_at", String, nullable=False),
    Column("plan", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("decision", String, nullable=False),
    Column("admitted", Boolean, nullable=False),
    Column("document", LargeBinary),
    Column("facts", LargeBinary),
)

_ended = Table(
    "ended_plans", TABLES, Column("plan", String, primary_key=True), Column("ended_at", String, nullable=False)
)

_restores = Table(
    "restores",
    TABLES,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("restored_at", String, nullable=False),
    Column("made_at", String, nullable=False),
    Column("confirmed_at", String),
    Column("witnesses", String),
)

_FORM = Form(
    "cohortium.node-store/2",
    "node's database",
    _header,
    TABLES,
    "point at the state folder of a node",
    steps={1: ()},  # there was no header, and nobody was restored
    alone=False,
    headerless=1,
)


@dataclass(frozen=True)
class Approval:
    """A plan that an institution answers, and the federation in which it does.

    Args:
        plan, charter: what was approved.
        ended: whether it was approved before the node was restored from a backup: it is not answered any more.
    """

    plan: Plan
    charter: Charter
    ended: bool = False


@dataclass(frozen=True)
class Restored:
    """That a node was put back from a backup.

    Args:
        restored_at: when (UTC, ISO 8601).
        made_at: when the backup was made.
        confirmed_at: when others' checkpoints showed that nothing was lost; None before.
    """

    restored_at: str
    made_at: str
    confirmed_at: str | None


class NodeStore:
    """Approvals and decisions, in the database that also holds the ledger. Releases stand in the audit log."""

    def __init__(self, store: Engine) -> None:
        self._store = store
        self._read: dict[str, Approval] = {}  # approvals neither change nor go away
        with store.begin() as connection:
            open_form(connection, _FORM, str(store.url.database))

    def approve(self, plan: Plan, contract: Contract, charter: Charter) -> None:
        """Record that this institution answers questions of this very plan, within that very federation.

        Approving the same again changes nothing.

        Raises:
            PlanError: the plan does not fit the contract the institution's table was made by, or is not safe in this
                federation (`models.preflight`); the line to change is named.
            RefusedError: the plan was approved within another federation.
        """
        preflight(plan, contract, charter)
        row = {"document": canonical_bytes(plan.to_json()), "charter": charter.to_bytes()}
        with self._store.begin() as connection:
            known = connection.execute(select(_approvals).where(_approvals.c.plan == plan.digest)).first()
            if known is None:
                connection.execute(insert(_approvals).values(plan=plan.digest, approved_at=_now(), **row))
            elif known.charter != row["charter"]:
                raise RefusedError(
                    "the plan was approved within another charter", fix="agree on a new plan for the new charter"
                )

    def approved(self, digest: str) -> Approval | None:
        """The approval of the plan of that digest."""
        if digest not in self._read:
            with self._store.begin() as connection:
                row = connection.execute(select(_approvals).where(_approvals.c.plan == digest)).first()
                ended = connection.execute(select(_ended.c.plan).where(_ended.c.plan == digest)).first() is not None
            if row is None:
                return None
            plan, charter = parse_plan(json.loads(row.document)), parse_charter(json.loads(row.charter))
            self._read[digest] = Approval(plan, charter, ended)
        return self._read[digest]

    def plans(self) -> tuple[str, ...]:
        """Every plan that was approved, by digest, oldest first."""
        query = select(_approvals.c.plan).order_by(_approvals.c.approved_at, _approvals.c.plan)
        with self._store.begin() as connection:
            return tuple(connection.execute(query).scalars())

    def restored(self) -> Restored | None:
        """The last time that this node was put back from a backup; None when it never was."""
        columns = _restores.c.restored_at, _restores.c.made_at, _restores.c.confirmed_at
        with self._store.begin() as connection:
            row = connection.execute(select(*columns).order_by(_restores.c.sequence.desc()).limit(1)).first()
        return None if row is None else Restored(*row)

    def mark_restored(self, made_at: str) -> None:
        """Write down that the node was put back from a backup of that time, and end every plan that was approved.

        What a run had said and signed since the backup is forgotten, so that none of them can go on.
        """
        now = _now()
        with self._store.begin() as connection:
            sequence = connection.execute(select(func.count()).select_from(_restores)).scalar_one() + 1
            row = {"sequence": sequence, "restored_at": now, "made_at": made_at}
            connection.execute(insert(_restores).values(**row))
            going = select(_approvals.c.plan).where(_approvals.c.plan.not_in(select(_ended.c.plan)))
            for plan in connection.execute(going).scalars().all():
                connection.execute(insert(_ended).values(plan=plan, ended_at=now))
        self._read.clear()

    def confirm_restored(self, witnesses: tuple[str, ...]) -> None:
        """Write down that these witnesses know nothing of this node that it lacks."""
        with self._store.begin() as connection:
            open_ = _restores.c.confirmed_at.is_(None)
            said = {"confirmed_at": _now(), "witnesses": json.dumps(sorted(witnesses))}
            connection.execute(update(_restores).where(open_).values(**said))

    def keep_decision(
        self, plan: str, subject: str, decision: str, *, admitted: bool, documents: tuple[Decision, Facts] | None
    ) -> None:
        """Keep a decision with the facts it rests on: others see its digest alone.

        Args:
            plan: under which.
            subject: the run to be admitted, or the id of the audience to be activated.
            decision: its digest; `none` where no rules are in force.
            admitted: what it says.
            documents: the decision and its facts; None where no rules are in force.
        """
        kept = {} if documents is None else {"document": documents[0].to_bytes(), "facts": documents[1].to_bytes()}
        row = {"plan": plan, "subject": subject, "decision": decision, "admitted": admitted, "recorded_at": _now()}
        with self._store.begin() as connection:
            connection.execute(insert(_decisions).values(**row, **kept))

    def admitted(self, plan: str, run: str) -> str | None:
        """The decision that admitted a run: the newest about it, unless that one refused."""
        query = select(_decisions.c.decision, _decisions.c.admitted)
        query = query.where((_decisions.c.plan == plan) & (_decisions.c.subject == run))
        with self._store.begin() as connection:
            found = connection.execute(query.order_by(_decisions.c.sequence.desc()).limit(1)).first()
        return found.decision if found is not None and found.admitted else None

    def decisions(self, plan: str) -> list[tuple[Decision, Facts]]:
        """Every decision about a plan with its facts, oldest first."""
        query = select(_decisions.c.document, _decisions.c.facts)
        query = query.where((_decisions.c.plan == plan) & _decisions.c.document.is_not(None))
        with self._store.begin() as connection:
            rows = connection.execute(query.order_by(_decisions.c.sequence)).all()
        return [(Decision.model_validate_json(row.document), Facts.model_validate_json(row.facts)) for row in rows]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
