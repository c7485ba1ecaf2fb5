"""The budget ledger of one institution: every charge, for life, and the reply that each charge paid for.

A charge is committed, with the database's full synchronisation, before noise is drawn; nothing removes one. Data
windows are labels: the people are the same, so there is no reset. The ledger refuses on the sum of mu^2 (and of the
total variation slack), once against the plan's own budget and once against the institution's lifetime budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    event,
    func,
    insert,
    select,
)
from sqlalchemy.exc import DatabaseError

from cohortium.privacy.accounting import Spend, price
from cohortium.study.errors import BudgetError, DataError, Defect

__all__ = ["Charge", "Ledger", "Slot", "open_store"]

SCHEMA = "cohortium.ledger/1"

_metadata = MetaData()

_header = Table("ledger_header", _metadata, Column("schema", String, primary_key=True), Column("institution", String))

_charges = Table(
    "charges",
    _metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("charged_at", String, nullable=False),
    Column("plan", String, nullable=False, index=True),
    Column("run", String, nullable=False),
    Column("phase", String, nullable=False),
    Column("step", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("question", String, nullable=False),
    Column("mechanism", String, nullable=False),
    Column("width", Integer, nullable=False),
    Column("bound_squared", String, nullable=False),
    Column("sigma", String, nullable=False),
    Column("mu2", Integer, nullable=False),
    Column("tv", Integer, nullable=False),
    UniqueConstraint("plan", "run", "phase", "step", "attempt"),
)

_replies = Table(
    "replies",
    _metadata,
    Column("sequence", Integer, primary_key=True),
    Column("reply", LargeBinary, nullable=False),
)

MECHANISM = "discrete-gaussian"


@dataclass(frozen=True)
class Slot:
    """The place of a question in a run: at most one question may ever fill it."""

    plan: str
    run: str
    phase: str
    step: int
    attempt: int


@dataclass(frozen=True)
class Charge:
    """One committed charge, as it stands in the ledger."""

    sequence: int
    charged_at: str
    slot: Slot
    question: str
    mechanism: str
    width: int
    bound_squared: int
    sigma: int
    spend: Spend


def open_store(path: Path) -> Engine:
    """An SQLite file whose commits survive a crash and a power cut; created for its owner alone when missing.

    Raises:
        DataError: the file is there but is no database, or cannot be opened.
    """
    try:
        path.touch(mode=0o600)
    except OSError as error:
        raise DataError("cannot be opened", place=str(path), fix="check the path and its permissions") from error
    engine = create_engine(URL.create("sqlite", database=str(path)))

    @event.listens_for(engine, "connect")
    def _durable(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions are begun below, explicitly
        connection.execute("PRAGMA busy_timeout=30000")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def _lock(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    try:
        with engine.connect():
            pass
    except DatabaseError as error:
        raise DataError("not a usable SQLite file", place=str(path), fix="put back the newest copy") from error
    return engine


class Ledger:
    """One institution's ledger in a durable store.

    Args:
        store: from `open_store`.
        institution: whose ledger it is; a store that belongs to another institution is refused.
        lifetime: the budget no sum of charges may pass, whatever the plans.

    Raises:
        DataError: the store belongs to another institution or has another schema version.
    """

    def __init__(self, store: Engine, institution: str, lifetime: Spend) -> None:
        self._store = store
        self.institution = institution
        self.lifetime = lifetime
        _metadata.create_all(store)
        with store.begin() as connection:
            header = connection.execute(select(_header)).first()
            if header is None:
                connection.execute(insert(_header).values(schema=SCHEMA, institution=institution))
            elif tuple(header) != (SCHEMA, institution):
                raise DataError(
                    "the ledger belongs to another institution or version",
                    place=str(store.url.database),
                    fix="point at the state folder of this institution",
                )

    def close(self) -> None:
        """Close the store's connections; the ledger must not be used afterwards."""
        self._store.dispose()

    def charge(
        self, slot: Slot, question: str, *, width: int, bound_squared: int, sigma: int, plan_budget: Spend
    ) -> Charge:
        """Commit the price of a release, or return the charge that the very same question committed earlier.

        Formal guarantee: when this returns, the charge is on disk; the sum of all charges passes neither the plan's
        nor the lifetime budget, in mu^2 and in total variation.

        Raises:
            BudgetError: the slot was charged for another question, or a budget would be passed. Nothing is charged.
        """
        spend = price(bound_squared, sigma, width)
        with self._store.begin() as connection:
            earlier = _find(connection, slot)
            if earlier is not None:
                return _same_question(earlier, question)
            self._refuse_over_budget(connection, slot.plan, spend, plan_budget)
            connection.execute(
                insert(_charges).values(
                    charged_at=datetime.now(UTC).isoformat(timespec="seconds"),
                    plan=slot.plan,
                    run=slot.run,
                    phase=slot.phase,
                    step=slot.step,
                    attempt=slot.attempt,
                    question=question,
                    mechanism=MECHANISM,
                    width=width,
                    bound_squared=str(bound_squared),
                    sigma=str(sigma),
                    mu2=spend.mu2,
                    tv=spend.tv,
                )
            )
        committed = self.find(slot)
        if committed is None:
            raise Defect("ledger: a committed charge is not there")
        return committed

    def settle(self, charge: Charge, reply: bytes) -> bytes:
        """Store the reply that a charge paid for; returns the reply stored first, whoever stored it."""
        with self._store.begin() as connection:
            stored = _reply(connection, charge.sequence)
            if stored is not None:
                return stored
            connection.execute(insert(_replies).values(sequence=charge.sequence, reply=reply))
            return reply

    def replay(self, slot: Slot, question: str) -> bytes | None:
        """The stored reply of a slot that this very question filled; None when there is none yet.

        Raises:
            BudgetError: the slot was charged for another question.
        """
        with self._store.begin() as connection:
            earlier = _find(connection, slot)
            if earlier is None:
                return None
            return _reply(connection, _same_question(earlier, question).sequence)

    def find(self, slot: Slot) -> Charge | None:
        """The charge of a slot."""
        with self._store.begin() as connection:
            return _find(connection, slot)

    def spent(self, plan: str | None = None) -> Spend:
        """The sum of all charges, or of one plan's."""
        with self._store.begin() as connection:
            return _spent(connection, plan)

    def charges(self) -> Iterator[Charge]:
        """Every charge in the order of commitment."""
        with self._store.begin() as connection:
            rows = connection.execute(select(_charges).order_by(_charges.c.sequence)).all()
        return map(_charge, rows)

    def verify(self) -> None:
        """Recompute every charge from its bound, sigma and width, and hold every reply against its charge.

        Finds accidents and clumsy edits; an owner who rewrites rows consistently is not found out.

        Raises:
            DataError: an entry is missing before the last one, its mechanism is unknown, its stored price is not its
                price, or a reply does not belong to a charge of its width.
        """
        widths = {}
        for expected, entry in enumerate(self.charges(), start=1):
            widths[entry.sequence] = entry.width
            if entry.sequence != expected:
                raise DataError(f"entry {expected}: missing", place=str(self._store.url.database))
            if entry.mechanism != MECHANISM:
                raise DataError(f"entry {entry.sequence}: unknown mechanism", place=str(self._store.url.database))
            if entry.spend != price(entry.bound_squared, entry.sigma, entry.width):
                raise DataError(f"entry {entry.sequence}: price altered", place=str(self._store.url.database))
        with self._store.begin() as connection:
            replies = connection.execute(select(_replies.c.sequence, func.length(_replies.c.reply))).all()
        for sequence, length in replies:
            if length != 8 * widths.get(sequence, -1):
                raise DataError(f"reply {sequence}: altered", place=str(self._store.url.database))

    def _refuse_over_budget(self, connection: Connection, plan: str, spend: Spend, plan_budget: Spend) -> None:
        if not (_spent(connection, plan) + spend).fits(plan_budget):
            raise BudgetError(
                f"{self.institution}: the plan's privacy budget is spent",
                fix="resume the run that spent it, or agree on a new plan",
            )
        if not (_spent(connection, None) + spend).fits(self.lifetime):
            raise BudgetError(
                f"{self.institution}: the institution's lifetime privacy budget would be passed",
                fix="lower the plan's epsilon to what is left; spent budget never comes back",
            )


def _find(connection: Connection, slot: Slot) -> Charge | None:
    row = connection.execute(
        select(_charges).where(
            _charges.c.plan == slot.plan,
            _charges.c.run == slot.run,
            _charges.c.phase == slot.phase,
            _charges.c.step == slot.step,
            _charges.c.attempt == slot.attempt,
        )
    ).first()
    return None if row is None else _charge(row)


def _same_question(earlier: Charge, question: str) -> Charge:
    if earlier.question != question:
        raise BudgetError(
            f"{earlier.slot.phase} step {earlier.slot.step} was already charged for another question",
            fix="start a new run; an answered step cannot be asked anew",
        )
    return earlier


def _charge(row: Any) -> Charge:
    return Charge(
        sequence=row.sequence,
        charged_at=row.charged_at,
        slot=Slot(row.plan, row.run, row.phase, row.step, row.attempt),
        question=row.question,
        mechanism=row.mechanism,
        width=row.width,
        bound_squared=int(row.bound_squared),
        sigma=int(row.sigma),
        spend=Spend(row.mu2, row.tv),
    )


def _spent(connection: Connection, plan: str | None) -> Spend:
    query = select(func.coalesce(func.sum(_charges.c.mu2), 0), func.coalesce(func.sum(_charges.c.tv), 0))
    if plan is not None:
        query = query.where(_charges.c.plan == plan)
    mu2, tv = connection.execute(query).one()
    return Spend(int(mu2), int(tv))


def _reply(connection: Connection, sequence: int) -> bytes | None:
    stored = connection.execute(select(_replies.c.reply).where(_replies.c.sequence == sequence)).scalar_one_or_none()
    return None if stored is None else bytes(stored)
