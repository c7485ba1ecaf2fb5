"""What an obligation is: a duty of a rule, the event that started its clocks, and by when it is to be done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Literal

from cohortium.governance.rules import Clock, Duty

__all__ = [
    "SOON",
    "Closure",
    "Extension",
    "Obligation",
    "Occurrence",
    "Part",
    "StandingDuty",
    "State",
    "deadline",
    "end_of",
    "parts_of",
    "state_at",
]

SOON = timedelta(days=7)
"""An obligation is due soon when no more than this is left. A choice of this project; no law sets it."""

State = Literal["open", "due soon", "overdue", "closed"]


@dataclass(frozen=True)
class Part:
    """The clocks of one duty that begin with one event and are for one act; the first to end is the deadline.

    Args:
        duty: as a decision states it.
        event: what starts the clocks.
        act: what they are for, where the duty has several.
        clocks: at least one.
    """

    duty: Duty
    event: str
    act: str | None
    clocks: tuple[Clock, ...]

    @property
    def may_take_longer(self) -> int:
        """By how many units the rule lets it be extended, 0 if not at all."""
        return max(clock.extendable or 0 for clock in self.clocks)


@dataclass(frozen=True)
class StandingDuty:
    """A duty that decisions brought about.

    Args:
        duty: as the newest of them states it.
        since: the first day (UTC) of which events count.
        plans: whose decisions, by digest.
        decisions: their ids.
    """

    duty: Duty
    since: date
    plans: tuple[str, ...]
    decisions: tuple[str, ...]


@dataclass(frozen=True)
class Occurrence:
    """Something that happened, or is planned, and starts clocks or ends them.

    Args:
        number: 1, 2, …
        kind: `rights_request`, `audit`, …
        at: when.
        note: what people wrote down; nobody is named in it.
        source: who told: `declared`, or the entry of another store that it was found in.
        recorded_at: when it was written down.
    """

    number: int
    kind: str
    at: datetime
    note: str
    source: str
    recorded_at: datetime


@dataclass(frozen=True)
class Extension:
    """Why an obligation takes longer: by how many units of its clock, who said so, when, and why."""

    units: int
    by: str
    reason: str
    at: datetime


@dataclass(frozen=True)
class Closure:
    """How an obligation was met: by whom, when, how, where the evidence is, and when that was written down."""

    by: str
    at: datetime
    how: str
    evidence: str
    recorded_at: datetime


@dataclass(frozen=True)
class Obligation:
    """One duty that an event made due.

    Args:
        id: `ob-1`, `ob-2`, …
        part: of which duty.
        plans: that brought the duty, by digest.
        event: what started it.
        due: the last moment; None while every clock waits for an event that has no date.
        before: events without a date, before which it is to be done.
        extension, closure: None while there is none.
    """

    id: str
    part: Part
    plans: tuple[str, ...]
    event: Occurrence
    due: datetime | None
    before: tuple[str, ...]
    extension: Extension | None
    closure: Closure | None

    @property
    def dates_itself(self) -> bool:
        """Whether it is due with the very event that starts it, such as an offer, and may be met before."""
        return any(clock.before == self.event.kind for clock in self.part.clocks)

    @property
    def was_late(self) -> bool:
        """Whether it was met after its last moment."""
        return self.closure is not None and self.due is not None and self.closure.at > self.due

    def state(self, now: datetime) -> State:
        """By its clocks, or `closed`."""
        return "closed" if self.closure is not None else state_at(self.due, now)


def state_at(due: datetime | None, now: datetime) -> State:
    """Where an obligation stands that is not closed: its last moment is still in time."""
    if due is None:
        return "open"
    if now > due:
        return "overdue"
    return "due soon" if due - now <= SOON else "open"


def parts_of(duty: Duty) -> tuple[Part, ...]:
    """A duty's clocks by event and act, in the order in which the rule names them."""
    found: dict[tuple[str, str | None], list[Clock]] = {}
    for clock in duty.clocks:
        found.setdefault((clock.since, clock.act), []).append(clock)
    return tuple(Part(duty, event, act, tuple(clocks)) for (event, act), clocks in found.items())


def deadline(
    part: Part, event: str, since: datetime, others: Sequence[Occurrence], longer: int = 0
) -> tuple[datetime | None, tuple[str, ...]]:
    """The last moment of a part by its rule's own clocks, and the events without a date that it waits for.

    Args:
        part: whose.
        event, since: what started it, and when.
        others: everything that happened; what clocks end before is looked up in it.
        longer: units by which clocks that the rule lets be extended take longer.
    """
    ends: list[datetime] = []
    waits: list[str] = []
    for clock in part.clocks:
        before = None if clock.before is None else _next(clock.before, event, since, others)
        end = _extended(clock, longer).due(since, before)
        if end is not None:
            ends.append(end)
        elif clock.before is not None:
            waits.append(clock.before)
    return min(ends, default=None), tuple(waits)


def end_of(before: str) -> str:
    """The kind of event that a clock ends before: `next_audit` is the next `audit`."""
    return before.removeprefix("next_")


def _next(before: str, event: str, since: datetime, others: Iterable[Occurrence]) -> datetime | None:
    """When the event is before which a clock ends; an event that starts and ends the same clock dates itself."""
    kind = end_of(before)
    if kind == before == event:
        return since
    return min((one.at for one in others if one.kind == kind and one.at > since), default=None)


def _extended(clock: Clock, longer: int) -> Clock:
    if not longer or clock.amount is None or clock.extendable is None:
        return clock
    return clock.model_copy(update={"amount": clock.amount + longer})
