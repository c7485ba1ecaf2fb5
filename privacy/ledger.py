"""The budget ledger of one institution: every charge, for life, and the reply that each charge paid for.

A plan's budget is reserved before its first question. A charge comes out of its plan's reservation and is committed,
with the database's full synchronisation, before noise is drawn. Nothing removes a charge. Data windows are labels: the
people are the same, so there is no reset. The ledger refuses on the sum of mu^2 and of the total variation slack, once
against the plan's own budget and once against the institution's lifetime budget.

What is charged and what open reservations may still charge never passes the lifetime budget in mu^2, so that a run that
has begun can end. Total variation is not set aside, because a budget of larger epsilon allows less of it; every charge
is held against both budgets all the same.

Rows are linked by hashes: a charge's `link` covers its columns and the link before it; reservations and replies have
digests. That finds accidents and clumsy edits. It is no seal: the owner of the file could compute all of them anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    bindparam,
    func,
    insert,
    select,
    update,
)

from cohortium.privacy.accounting import Spend, price
from cohortium.privacy.sharing import ALONE, NoiseShare
from cohortium.privacy.store_forms import Form, keeps_last_number, last_number, open_form
from cohortium.privacy.stores import open_store
from cohortium.study.errors import BudgetError, DataError, Defect

__all__ = ["TABLES", "Charge", "Ledger", "Line", "Reservation", "Slot", "open_store"]

SCHEMA = "cohortium.ledger/2"
"""The form in which chains of charges begin."""

TABLES = MetaData()

_Units = BigInteger().with_variant(Integer, "sqlite")

_header = Table("ledger_header", TABLES, Column("schema", String, primary_key=True), Column("institution", String))

_reservations = Table(
    "reservations",
    TABLES,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("plan", String, nullable=False, unique=True),
    Column("run", String, nullable=False),
    Column("mu2", String, nullable=False),
    Column("tv", String, nullable=False),
    Column("expires", String, nullable=False),
    Column("reserved_at", String, nullable=False),
    Column("closed_at", String),
    Column("digest", String, nullable=False),
    sqlite_autoincrement=True,
)

_charges = Table(
    "charges",
    TABLES,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("charged_at", String, nullable=False),
    Column("plan", String, nullable=False, index=True),
    Column("run", String, nullable=False),
    Column("phase", String, nullable=False),
    Column("step", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("question", String, nullable=False),
    Column("mechanism", String, nullable=False),
    Column("contributions", Integer, nullable=False),
    Column("colluders", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("bound_squared", String, nullable=False),
    Column("sigma", String, nullable=False),
    Column("mu2", _Units, nullable=False),
    Column("tv", _Units, nullable=False),
    Column("link", String, nullable=False),
    UniqueConstraint("plan", "run", "phase", "step", "attempt"),
    sqlite_autoincrement=True,
)

_replies = Table(
    "replies",
    TABLES,
    Column("sequence", Integer, primary_key=True),
    Column("reply", LargeBinary, nullable=False),
    Column("digest", String, nullable=False),
)

keeps_last_number(_reservations)
keeps_last_number(_charges)

_FORM = Form(
    SCHEMA,
    "ledger",
    _header,
    TABLES,
    "point at the state folder of this institution, and use the version that wrote it",
    alone=False,
)

_MECHANISM_ALONE = "discrete-gaussian"
_MECHANISM_SHARE = "discrete-gaussian-share"
_MECHANISMS = (_MECHANISM_ALONE, _MECHANISM_SHARE)

_LINKED = tuple(column.name for column in _charges.columns if column.name != "link")
_DIGESTED = tuple(column.name for column in _reservations.columns if column.name != "digest")


@dataclass(frozen=True)
class Slot:
    """The place of a question in a run: at most one question may ever fill it."""

    plan: str
    run: str
    phase: str
    step: int
    attempt: int


_OF_SLOT = select(_charges).where(*(_charges.c[place.name] == bindparam(place.name) for place in fields(Slot)))
"""Made once: building a statement costs more than running it."""


@dataclass(frozen=True)
class Charge:
    """One committed charge, as it stands in the ledger."""

    sequence: int
    charged_at: str
    slot: Slot
    question: str
    mechanism: str
    share: NoiseShare
    width: int
    bound_squared: int
    sigma: int
    spend: Spend


@dataclass(frozen=True)
class Reservation:
    """What one run of one plan may charge in all.

    Args:
        plan, run: whose; a plan is run once.
        budget: the most that its charges may come to.
        expires: last day (UTC) on which it accepts charges and keeps its rest from others.
        reserved_at, closed_at: when; `closed_at` is None while it is open.
    """

    plan: str
    run: str
    budget: Spend
    expires: date
    reserved_at: str
    closed_at: str | None


@dataclass(frozen=True)
class Line:
    """The charges of one run's phase under one trust model, added up."""

    plan: str
    run: str
    phase: str
    share: NoiseShare
    charges: int
    spend: Spend


class Ledger:
    """One institution's ledger in a durable store.

    Args:
        store: from `open_store`; with a read-only one, whatever would write fails.
        institution: whose ledger it is; a store that belongs to another institution is refused.
        lifetime: the budget no sum of charges may pass, whatever the plans.
        today: today's date (UTC); a seam for tests of expiry.

    Raises:
        DataError: the store belongs to another institution, has another schema version, or holds an accounting event
            that this version does not know.
    """

    def __init__(
        self, store: Engine, institution: str, lifetime: Spend, today: Callable[[], date] | None = None
    ) -> None:
        self._store = store
        self.institution = institution
        self.lifetime = lifetime
        self._today = today if today is not None else _utc_today
        self._genesis = _sha256([SCHEMA, institution])
        with store.begin() as connection:
            open_form(connection, _FORM, str(store.url.database), institution=institution)
            if list(connection.scalars(select(_header.c.institution))) != [institution]:
                raise DataError(
                    "the ledger belongs to another institution",
                    place=str(store.url.database),
                    fix="point at the state folder of this institution",
                )
            self._sum(connection)

    def close(self) -> None:
        """Close the store's connections; the ledger must not be used afterwards."""
        self._store.dispose()

    def reserve(self, plan: str, run: str, budget: Spend, expires: date) -> Reservation:
        """Set a plan's budget aside for one run of it, durably; asked again, return what was reserved first.

        Expired reservations are closed on the way: what they did not charge becomes available, for good.

        Formal guarantee: the charges of all time and what open reservations may still charge together never pass the
        lifetime budget in mu^2, whoever reserves at the same time.

        Args:
            plan, run: for which. What was reserved for them earlier is returned even when it was closed since: it
                accepts no charge, and answers that were given stay available.
            budget: the most that the run's charges may come to.
            expires: last day (UTC) on which it accepts charges.

        Raises:
            BudgetError: another run has begun on the plan, the plan was reserved on other terms, it expired, or what is
                left of the lifetime budget does not cover it. Nothing is reserved.
        """
        with self._store.begin() as connection:
            self._close_expired(connection)
            earlier = self._reserved(connection, plan)
            if earlier is not None:
                return self._same_terms(earlier, run, budget, expires)
            if expires < self._today():
                raise self._refusal("the plan has expired", "agree on a new one")
            available = self._available(connection)
            if budget.mu2 > available.mu2 or min(budget.tv, 1) > available.tv:
                raise self._refusal(
                    "what is left of the lifetime budget does not cover this plan",
                    "lower the plan's epsilon, or close a run that will not go on; spent budget never comes back",
                )
            row = {
                "sequence": last_number(connection, _reservations) + 1,
                "plan": plan,
                "run": run,
                "mu2": str(budget.mu2),
                "tv": str(budget.tv),
                "expires": expires.isoformat(),
                "reserved_at": _now(),
                "closed_at": None,
            }
            connection.execute(insert(_reservations).values(**row, digest=self._digest(row)))
        return self._require_reservation(plan)

    def close_reservation(self, plan: str, run: str) -> Reservation:
        """End a run's reservation for ever: its uncharged rest becomes available, further charges are refused.

        Closing again changes nothing.

        Raises:
            BudgetError: nothing is reserved for that plan and run.
        """
        with self._store.begin() as connection:
            reservation = self._reserved(connection, plan)
            if reservation is None or reservation.run != run:
                raise self._refusal("nothing is reserved for that run", "name the run that began on the plan")
            if reservation.closed_at is None:
                self._close(connection, plan)
        return self._require_reservation(plan)

    def reservation(self, plan: str) -> Reservation | None:
        """What is or was reserved for a plan."""
        with self._store.begin() as connection:
            return self._reserved(connection, plan)

    def reservations(self) -> list[Reservation]:
        """Every reservation, open or closed, in the order of commitment."""
        with self._store.begin() as connection:
            rows = connection.execute(select(_reservations).order_by(_reservations.c.sequence)).all()
        return [_reservation(row) for row in rows]

    def is_open(self, reservation: Reservation) -> bool:
        """Whether a reservation, as it stood when it was read, accepts charges today."""
        return reservation.closed_at is None and reservation.expires >= self._today()

    def available(self) -> Spend:
        """What a further plan may reserve: the lifetime budget less all charges and, in mu^2, open reservations' rests.

        Negative where the lifetime budget was lowered below what was spent.
        """
        with self._store.begin() as connection:
            return self._available(connection)

    def held(self) -> Spend:
        """What open reservations may still charge, all together."""
        with self._store.begin() as connection:
            return self._held(connection)

    def charge(
        self, slot: Slot, question: str, *, width: int, bound_squared: int, sigma: int, share: NoiseShare = ALONE
    ) -> Charge:
        """Commit the price of a release, or return the charge that the very same question committed earlier.

        Formal guarantee: when this returns, the charge is on disk; the sum of all charges passes neither the plan's
        reserved budget nor the lifetime budget, in mu^2 and in total variation. No charge is ever given back.

        Args:
            slot: the question's place; its plan and run must hold a reservation.
            question: the question's digest.
            width, bound_squared, sigma, share: see `privacy.accounting.price`; sigma is the joint noise's.

        Raises:
            BudgetError: the slot was charged for another question, its run holds no open reservation, or a budget
                would be passed. Nothing is charged.
        """
        if width < 1 or bound_squared < 0 or sigma < 1:
            raise Defect("ledger: a release without width, bound or noise")
        spend = price(bound_squared, sigma, width, share)
        with self._store.begin() as connection:
            earlier = _find(connection, slot)
            if earlier is not None:
                return _same_question(earlier, question)
            self._refuse_over_budget(connection, slot, spend)
            sequence, link = self._last(connection)
            row = {
                "sequence": sequence + 1,
                "charged_at": _now(),
                "plan": slot.plan,
                "run": slot.run,
                "phase": slot.phase,
                "step": slot.step,
                "attempt": slot.attempt,
                "question": question,
                "mechanism": _mechanism(share),
                "contributions": share.contributions,
                "colluders": share.colluders,
                "width": width,
                "bound_squared": str(bound_squared),
                "sigma": str(sigma),
                "mu2": spend.mu2,
                "tv": spend.tv,
            }
            connection.execute(insert(_charges).values(**row, link=_sha256([link, *(row[name] for name in _LINKED)])))
        committed = self.find(slot)
        if committed is None:
            raise Defect("ledger: a committed charge is not there")
        return committed

    def settle(self, charge: Charge, reply: bytes) -> bytes:
        """Store the reply that a charge paid for; returns the reply stored first, whoever stored it.

        A reply is the charge's words, eight bytes each; what the door keeps beside them may follow.
        """
        with self._store.begin() as connection:
            stored = _reply(connection, charge.sequence)
            if stored is not None:
                return stored
            link = connection.execute(select(_charges.c.link).where(_charges.c.sequence == charge.sequence)).scalar()
            if link is None:
                raise Defect("ledger: a reply without a charge")
            digest = _reply_digest(link, reply)
            connection.execute(insert(_replies).values(sequence=charge.sequence, reply=reply, digest=digest))
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
        """The sum of all charges, or of one plan's.

        Raises:
            DataError: a charge is of a mechanism that this version does not know, so that nobody knows the sum.
        """
        with self._store.begin() as connection:
            return self._sum(connection, plan)

    def spent_by_trust(self) -> dict[NoiseShare, Spend]:
        """The sum of all charges by whose noise protects them; `ALONE` for the institution's own full noise."""
        found: dict[NoiseShare, Spend] = {}
        for line in self.breakdown():
            found[line.share] = found.get(line.share, Spend()) + line.spend
        return found

    def breakdown(self) -> list[Line]:
        """All charges added up by plan, run, phase and trust, in the order of their first charge."""
        keys = [_charges.c[name] for name in ("plan", "run", "phase", "mechanism", "contributions", "colluders")]
        sums: list[Any] = [func.count(), func.sum(_charges.c.mu2), func.sum(_charges.c.tv)]
        query = select(*keys, *sums).group_by(*keys)
        with self._store.begin() as connection:
            self._sum(connection)
            rows = connection.execute(query.order_by(func.min(_charges.c.sequence))).all()
        return [
            Line(plan, run, phase, _share(mechanism, t, c, phase), count, Spend(int(mu2), int(tv)))
            for plan, run, phase, mechanism, t, c, count, mu2, tv in rows
        ]

    def charges(self) -> Iterator[Charge]:
        """Every charge in the order of commitment."""
        with self._store.begin() as connection:
            rows = connection.execute(select(_charges).order_by(_charges.c.sequence)).all()
        return map(_charge, rows)

    def verify(self) -> None:
        """Recompute every price, sum, link and digest from the rows.

        Finds accidents and clumsy edits; an owner who rewrites rows consistently is not found out.
        `privacy.replay` does the same, and more, by a code path of its own.

        Raises:
            DataError: an entry is missing or altered, its mechanism is unknown, its stored price is not its price, it
                has no reservation or passes it, or a reply does not belong to its charge.
        """
        with self._store.begin() as connection:
            self._sum(connection)
            reservations = connection.execute(select(_reservations).order_by(_reservations.c.sequence)).all()
            charges = connection.execute(select(_charges).order_by(_charges.c.sequence)).all()
            replies = connection.execute(select(_replies)).all()
            tails = [last_number(connection, table) for table in (_reservations, _charges)]
        rests = self._verified_rests(reservations, tails[0])
        self._verify_charges(charges, tails[1], rests)
        paid = {row.sequence: (row.link, 8 * row.width) for row in charges}
        for row in replies:
            link, words = paid.get(row.sequence, ("", -1))
            more = len(row.reply) - words if isinstance(row.reply, bytes) and words >= 0 else -1
            if more < 0 or row.digest != _reply_digest(link, row.reply):
                raise self._altered(f"reply {row.sequence}: altered")

    def _verified_rests(self, rows: Any, tail: int) -> dict[tuple[str, str], Spend]:
        """What every reservation is of, by plan and run, once each is whole."""
        rests = {}
        for expected, row in enumerate(rows, start=1):
            if row.sequence != expected:
                raise self._altered(f"reservation {expected}: missing")
            if row.digest != self._digest(row._mapping):
                raise self._altered(f"reservation {row.sequence}: altered")
            rests[row.plan, row.run] = _reservation(row).budget
        if len(rows) != tail:
            raise self._altered(f"reservation {len(rows) + 1}: missing")
        return rests

    def _verify_charges(self, rows: Any, tail: int, rests: dict[tuple[str, str], Spend]) -> None:
        """Every charge against its price, its link and what is left of its reservation."""
        link = self._genesis
        for expected, row in enumerate(rows, start=1):
            if row.sequence != expected:
                raise self._altered(f"entry {expected}: missing")
            entry = _charge(row)
            if entry.spend != price(entry.bound_squared, entry.sigma, entry.width, entry.share):
                raise self._altered(f"entry {row.sequence}: price altered")
            link = _sha256([link, *(row._mapping[name] for name in _LINKED)])
            if row.link != link:
                raise self._altered(f"entry {row.sequence}: altered")
            rest = rests.get((row.plan, row.run), Spend(-1, -1)) - entry.spend
            if min(rest.mu2, rest.tv) < 0:
                raise self._altered(f"entry {row.sequence}: passes what its run reserved")
            rests[row.plan, row.run] = rest
        if len(rows) != tail:
            raise self._altered(f"entry {len(rows) + 1}: missing")

    def _altered(self, message: str) -> DataError:
        return DataError(message, place=str(self._store.url.database), fix="put back the newest copy of the ledger")

    def _refusal(self, message: str, fix: str) -> BudgetError:
        return BudgetError(message, place=self.institution, fix=fix)

    def _refuse_over_budget(self, connection: Connection, slot: Slot, spend: Spend) -> None:
        reservation = self._reserved(connection, slot.plan)
        if reservation is None or reservation.run != slot.run:
            raise self._refusal(
                "no budget is reserved for this run", "reserve the plan's budget first; a plan is run once"
            )
        if not self.is_open(reservation):
            raise self._refusal("the run's reservation is closed or has expired", "agree on a new plan")
        if not (self._sum(connection, slot.plan) + spend).fits(reservation.budget):
            raise self._refusal(
                "the plan's privacy budget is spent", "resume the run that spent it, or agree on a new plan"
            )
        if not (self._sum(connection) + spend).fits(self.lifetime):
            raise self._refusal(
                "the institution's lifetime privacy budget would be passed",
                "lower the plan's epsilon to what is left; spent budget never comes back",
            )

    def _same_terms(self, earlier: Reservation, run: str, budget: Spend, expires: date) -> Reservation:
        if earlier.run != run:
            raise self._refusal(
                "another run has begun on this plan's budget", "resume that run, or agree on a new plan"
            )
        if (earlier.budget, earlier.expires) != (budget, expires):
            raise self._refusal("the plan was reserved on other terms", "resume with the version that began the run")
        return earlier

    def _require_reservation(self, plan: str) -> Reservation:
        committed = self.reservation(plan)
        if committed is None:
            raise Defect("ledger: a committed reservation is not there")
        return committed

    def _reserved(self, connection: Connection, plan: str) -> Reservation | None:
        row = connection.execute(select(_reservations).where(_reservations.c.plan == plan)).first()
        if row is None:
            return None
        if row.digest != self._digest(row._mapping):
            raise self._altered(f"reservation {row.sequence}: altered")
        return _reservation(row)

    def _close_expired(self, connection: Connection) -> None:
        """Close, for good, what expired: a clock that is set back reopens nothing."""
        query = select(_reservations.c.plan).where(
            _reservations.c.closed_at.is_(None), _reservations.c.expires < self._today().isoformat()
        )
        for plan in connection.execute(query).scalars().all():
            self._close(connection, plan)

    def _close(self, connection: Connection, plan: str) -> None:
        self._reserved(connection, plan)  # whole, or refused
        here = _reservations.c.plan == plan
        row = {**connection.execute(select(_reservations).where(here)).one()._mapping, "closed_at": _now()}
        connection.execute(
            update(_reservations).where(here).values(closed_at=row["closed_at"], digest=self._digest(row))
        )

    def _available(self, connection: Connection) -> Spend:
        left = self.lifetime - self._sum(connection)
        return Spend(left.mu2 - self._held(connection).mu2, left.tv)

    def _held(self, connection: Connection) -> Spend:
        held = Spend()
        for row in connection.execute(select(_reservations).where(_reservations.c.closed_at.is_(None))).all():
            reservation = self._reserved(connection, row.plan)
            if reservation is not None and self.is_open(reservation):
                rest = reservation.budget - self._sum(connection, row.plan)
                held = held + Spend(max(rest.mu2, 0), max(rest.tv, 0))
        return held

    def _sum(self, connection: Connection, plan: str | None = None) -> Spend:
        """The sum of all charges or of one plan's, if this version knows the price of each."""
        query = select(_charges.c.mechanism, func.sum(_charges.c.mu2), func.sum(_charges.c.tv))
        if plan is not None:
            query = query.where(_charges.c.plan == plan)
        total = Spend()
        for mechanism, mu2, tv in connection.execute(query.group_by(_charges.c.mechanism)):
            if mechanism not in _MECHANISMS:
                raise DataError(
                    "the ledger holds an unknown accounting event",
                    place=str(self._store.url.database),
                    fix="use the version that wrote it",
                )
            total = total + Spend(int(mu2), int(tv))
        return total

    def _last(self, connection: Connection) -> tuple[int, str]:
        """Number and link of the last charge, if it is the last one ever made."""
        query = select(_charges.c.sequence, _charges.c.link).order_by(_charges.c.sequence.desc()).limit(1)
        row = connection.execute(query).first()
        last = (0, self._genesis) if row is None else (row.sequence, row.link)
        if last[0] != last_number(connection, _charges):
            raise self._altered(f"entry {last[0] + 1}: missing")
        return last

    def _digest(self, row: Any) -> str:
        return _sha256([self._genesis, *(row[name] for name in _DIGESTED)])


def _find(connection: Connection, slot: Slot) -> Charge | None:
    row = connection.execute(_OF_SLOT, vars(slot)).first()
    return None if row is None else _charge(row)


def _same_question(earlier: Charge, question: str) -> Charge:
    if earlier.question != question:
        raise BudgetError(
            f"{earlier.slot.phase} step {earlier.slot.step} was already charged for another question",
            fix="start a new run; an answered step cannot be asked anew",
        )
    return earlier


def _charge(row: Any) -> Charge:
    """The charge that a row of the table's columns, in their order, holds."""
    sequence, charged_at, plan, run, phase, step, attempt, question, mechanism, contributions, colluders, *rest = row
    width, bound, scale, mu2, tv, _ = rest
    try:
        bound_squared, sigma = int(bound), int(scale)
    except ValueError:
        bound_squared, sigma = -1, 0
    whole = type(step) is type(attempt) is type(width) is type(mu2) is type(tv) is int
    if not whole or bound_squared < 0 or sigma < 1 or width < 1:
        raise DataError(f"entry {sequence}: altered", fix="put back the newest copy of the ledger")
    share = _share(mechanism, contributions, colluders, f"entry {sequence}")
    slot, spend = Slot(plan, run, phase, step, attempt), Spend(mu2, tv)
    return Charge(sequence, charged_at, slot, question, mechanism, share, width, bound_squared, sigma, spend)


def _reservation(row: Any) -> Reservation:
    return Reservation(
        plan=row.plan,
        run=row.run,
        budget=Spend(int(row.mu2), int(row.tv)),
        expires=date.fromisoformat(row.expires),
        reserved_at=row.reserved_at,
        closed_at=row.closed_at,
    )


def _mechanism(share: NoiseShare) -> str:
    return _MECHANISM_SHARE if share.is_shared else _MECHANISM_ALONE


def _share(mechanism: str, contributions: int, colluders: int, place: str) -> NoiseShare:
    """Whose noise it is, if mechanism and share belong together."""
    share = _known_share(mechanism, contributions, colluders)
    if share is None:
        raise DataError("mechanism and share do not belong together", place=place, fix="put back the newest copy")
    return share


@lru_cache(maxsize=64, typed=True)
def _known_share(mechanism: str, contributions: int, colluders: int) -> NoiseShare | None:
    try:
        share = NoiseShare(contributions, colluders)
    except (TypeError, ValueError):
        return None
    return share if _mechanism(share) == mechanism else None


def _sha256(values: list[Any]) -> str:
    return "sha256:" + hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()


def _reply_digest(link: str, reply: bytes) -> str:
    return "sha256:" + hashlib.sha256(link.encode() + b"\0" + reply).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _utc_today() -> date:
    return datetime.now(UTC).date()


def _reply(connection: Connection, sequence: int) -> bytes | None:
    stored = connection.execute(select(_replies.c.reply).where(_replies.c.sequence == sequence)).scalar_one_or_none()
    return None if stored is None else bytes(stored)
