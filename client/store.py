"""A node's own records beside the ledger: plans it approved and what it released. Durable, local, never sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, Engine, Integer, LargeBinary, MetaData, String, Table, insert, select

from cohortium.models.preflight import preflight
from cohortium.study.canonical import canonical_bytes
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.contract import Contract
from cohortium.study.errors import RefusedError
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan

__all__ = ["Approval", "NodeStore"]

_metadata = MetaData()

_approvals = Table(
    "approvals",
    _metadata,
    Column("plan", String, primary_key=True),
    Column("approved_at", String, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("charter", LargeBinary, nullable=False),
)

_events = Table(
    "events",
    _metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("recorded_at", String, nullable=False),
    Column("event", LargeBinary, nullable=False),
)


@dataclass(frozen=True)
class Approval:
    """A plan that an institution answers, and the federation in which it does."""

    plan: Plan
    charter: Charter


class NodeStore:
    """Approvals and the record of releases, in the database that also holds the ledger.

    The record of releases is append-only by convention and not yet tamper-evident.
    """

    def __init__(self, store: Engine) -> None:
        self._store = store
        self._read: dict[str, Approval] = {}  # approvals neither change nor go away
        _metadata.create_all(store)

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
            if row is None:
                return None
            plan, charter = parse_plan(json.loads(row.document)), parse_charter(json.loads(row.charter))
            self._read[digest] = Approval(plan, charter)
        return self._read[digest]

    def append(self, event: Mapping[str, str | int]) -> None:
        """Record an event durably (the door's audit sink)."""
        with self._store.begin() as connection:
            connection.execute(insert(_events).values(recorded_at=_now(), event=canonical_bytes(dict(event))))

    def events(self) -> list[dict[str, Any]]:
        """Every recorded event in order."""
        with self._store.begin() as connection:
            rows = connection.execute(select(_events.c.event).order_by(_events.c.sequence)).all()
        return [json.loads(row.event) for row in rows]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
