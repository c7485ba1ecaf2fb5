"""Retention: what is past its last day ends, what rules ask for on keeping is evaluated, and what is owed is told.

Safe to run at any time and to stop at any point: everything done is one of the product's own functions, each whole or
not at all, and a later run does what an earlier one left. Ended are audiences, seed lists that no plan in force names,
and what interrupted commands left. Ledgers, logs, consent and review stores, decisions, plans, customer tables, models
and files that were handed over are never touched.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from itertools import groupby
from pathlib import Path

from cohortium.client.audience import AudienceStore, ListedAudience, expire, list_audiences
from cohortium.client.audience.recovery import recover_audience
from cohortium.client.audience.work import SCRATCH
from cohortium.client.governing import NodeGovernance, open_consent, read_governance, refusal
from cohortium.client.lookalike import NodeRecords
from cohortium.client.node import read_key
from cohortium.client.seeds import SeedStore
from cohortium.client.store import Approval
from cohortium.client.witnessing import LOG_FILE, NodeLog
from cohortium.governance.consent import ConsentStore
from cohortium.governance.consent import Obligation as OwedToPerson
from cohortium.governance.obligations import (
    Obligation,
    ObligationRegister,
    Occurrence,
    Part,
    StandingDuty,
    State,
    one_line,
    parts_of,
    state_at,
)
from cohortium.governance.obligations.register import TABLES as OBLIGATION_TABLES
from cohortium.governance.rules import Duty, Pack
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.ledger import Ledger, Reservation
from cohortium.privacy.store_forms import copy_store
from cohortium.privacy.stores import has_store, open_store
from cohortium.study.bundle import load_bundle
from cohortium.study.errors import CohortiumError, DataError, OutputError, RefusedError
from cohortium.study.lookalike_plan import LookalikePlan
from cohortium.study.model import LookalikeModel, load_model

__all__ = [
    "LEFTOVER_HOURS",
    "OBLIGATIONS_FILE",
    "Owed",
    "Retained",
    "Step",
    "Waiting",
    "close",
    "extend",
    "owed",
    "record_event",
    "retain",
]

OBLIGATIONS_FILE = "obligations.sqlite"

LEFTOVER_HOURS = 24
"""What an interrupted command left is deleted when it is that old: a command at work writes more often."""

_AUDIENCES, _MODELS = "audiences", "models"
_EXPIRY = "model.expires_on"
_WHOLE = "House rule: an export is whole or not at all"
_SCRATCH_RULE = f"House limit: lists that spilled to disk go within {LEFTOVER_HOURS} hours"

_KEPT_BY_CONSENT = {
    "consent_signal": "consent import",
    "erasure": "consent erase",
    "opt_out": "consent object",
    "permission_withdrawn": "consent import",
    "withdrawal": "consent withdraw",
}
"""Events that the consent store records, and by which command."""

_ROUNDS, _RECIPIENTS, _ROWS = "leave-out-of-rounds", "tell-recipients", "delete-rows"
_TO_PEOPLE = {
    _ROUNDS: ("Leave the person out of the next question.", "House limit: 24 hours"),
    _RECIPIENTS: ("Tell recipients of the person's data.", "GDPR Art. 12(3), 19; house limit: 7 days"),
    _ROWS: ("Delete the person's rows, and finish the erasure.", "GDPR Art. 12(3), 17; house limit: 7 days"),
}
_ENDS = {
    _ROUNDS: "the next question ends it",
    _RECIPIENTS: "cohortium retention close",
    _ROWS: "cohortium consent erase --rows-deleted",
}
_PERSON_ID = re.compile(r"consent:([a-z-]+):(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Step:
    """One thing that was done, or could not be, and what asks for it: a rule with its article, or a house limit."""

    what: str
    why: str


@dataclass(frozen=True)
class Owed:
    """One line of what is owed.

    Args:
        id: of an obligation of the register; of people's obligations in the consent store; of an audience.
        state, due: by its clocks; `due` is None while they wait for the events in `before`.
        what: is to be done.
        rules: that ask for it, each with article and confidence, or house limits.
        since: when it began.
        count: how many people's it stands for; 1 for others.
        before: events without a date before which it is to be done.
        ends: how it is closed.
        obligation: in the register, if it is there.
    """

    id: str
    state: State
    due: datetime | None
    what: str
    rules: tuple[str, ...]
    since: datetime
    ends: str
    count: int = 1
    before: tuple[str, ...] = ()
    obligation: Obligation | None = None


@dataclass(frozen=True)
class Waiting:
    """Duties that stand and begin with an event, and the command that records it."""

    event: str
    rules: tuple[str, ...]
    recorded_by: str


@dataclass(frozen=True)
class Retained:
    """What one run of retention did and found.

    Args:
        done: in order; of a dry run, what it would have done.
        not_done: what it could not do, each with the reason and its fix.
        refused: plans of which the rules of retention refuse to be silent, each with rules, facts and changes.
        notes: what is over without anything being done.
        opened: ids of obligations that this run opened.
        owed, waiting: see `owed`.
    """

    done: tuple[Step, ...]
    not_done: tuple[Step, ...]
    refused: tuple[Step, ...]
    notes: tuple[str, ...]
    opened: tuple[str, ...]
    owed: tuple[Owed, ...]
    waiting: tuple[Waiting, ...]

    @property
    def in_order(self) -> bool:
        """Whether nothing is overdue, refused or left undone."""
        return not (self.not_done or self.refused or any(one.state == "overdue" for one in self.owed))


def retain(records: NodeRecords, now: datetime, *, dry_run: bool = False) -> Retained:
    """End what is past its last day, evaluate the rules of retention, open what events made due, and say what is owed.

    Args:
        records: of the node.
        now: the time (UTC).
        dry_run: change nothing; say what would be done and owed.

    Raises:
        DataError: `governance.toml` or a store in the node's folder does not hold together.
    """
    done: list[Step] = []
    not_done: list[Step] = []
    for step, act in _steps(records, now):
        try:
            if not dry_run:
                act()
        except CohortiumError as error:
            not_done.append(Step(step.what, str(error)))
        else:
            done.append(step)
    with ExitStack() as stack:
        register = stack.enter_context(_register(records.folder, now, dry_run=dry_run))
        known = {one.id for one in register.obligations()}
        refused, notes = _evaluate(records, register, now)
        consent = _consent(records.folder, stack)
        if consent is not None:
            told = [(_utc(at), f"consent event {event}") for event, at in consent.erasures()]
            register.record_found("erasure", told)
        opened = tuple(one.id for one in register.obligations() if one.id not in known)
        listed, waiting = _owed(records, register, consent, now)
    notes = (*notes, *_past_models(records.folder / _MODELS, now.date()))
    return Retained(tuple(done), tuple(not_done), tuple(refused), notes, opened, listed, waiting)


def owed(records: NodeRecords, now: datetime, *, closed: bool = False) -> tuple[tuple[Owed, ...], tuple[Waiting, ...]]:
    """What is owed by deadline, and the duties that wait for an event. Nothing is changed.

    That is what the register holds, what the consent store holds (people's obligations of one kind and state in one
    line), and removals of audiences that have ended.

    Args:
        records: of the node.
        now: the time (UTC).
        closed: the register's closed obligations too.
    """
    with ExitStack() as stack:
        register = stack.enter_context(_register(records.folder, now, dry_run=True))
        return _owed(records, register, _consent(records.folder, stack), now, closed=closed)


def record_event(
    records: NodeRecords, event: str, at: datetime, note: str, now: datetime
) -> tuple[Occurrence, tuple[str, ...]]:
    """Write down that something happened, or is planned; the event, and ids of the obligations that it opened.

    Raises:
        RefusedError: the consent store records such events; otherwise as `ObligationRegister.record`.
    """
    with _register(records.folder, now) as register, ExitStack() as stack:
        if event in _KEPT_BY_CONSENT and _consent(records.folder, stack) is not None:
            fix = f"record it by cohortium {_KEPT_BY_CONSENT[event]}"
            raise RefusedError("the consent store keeps such events and their clocks", place=event, fix=fix)
        for reservation in _begun(records):
            _owe_kept(records, register, reservation)
        return register.record(event, at, note)


def close(
    records: NodeRecords, id: str, by: str, how: str, evidence: str, now: datetime, at: datetime | None = None
) -> int:
    """Write down that an obligation was met, in the store that keeps it; how many were.

    Args:
        records: of the node.
        id: as `owed` gives it; of people's obligations also a part of the events, `consent:tell-recipients:5-9`.
        by, how, evidence: who says so, what was done, and where to find what shows it.
        now: the time (UTC).
        at: when it was done; now if left out.

    Raises:
        RefusedError: no such obligation, closed already, or one that something else ends.
        DataError: who, how or evidence is no line of text.
    """
    if id.startswith("aud-"):
        fix = f"cohortium audience export NODE {id} --removal"
        raise RefusedError("ends when the removal is exported", place=id, fix=fix)
    if id.startswith("consent:"):
        if at is not None:
            raise RefusedError("the consent store closes at the present time", place="time", fix="leave the time out")
        told = f"{one_line(how, 'how')} (by {one_line(by, 'by')}; evidence: {one_line(evidence, 'evidence')})"
        return _close_people(records.folder, id, told)
    with _register(records.folder, now) as register:
        register.close(id, by, how, evidence, at)
    return 1


def extend(records: NodeRecords, id: str, by: str, reason: str, now: datetime) -> Obligation:
    """Let an obligation take as much longer as its rule allows; errors as `ObligationRegister.extend`."""
    if not id.startswith("ob-"):
        raise RefusedError("no rule lets it take longer", place=id, fix="do it, and close it")
    with _register(records.folder, now) as register:
        return register.extend(id, by, reason)


# --- what ends -------------------------------------------------------------------------------------------------------


def _steps(records: NodeRecords, now: datetime) -> Iterator[tuple[Step, Callable[[], object]]]:
    """What is to be ended or cleared, each with the function that does it."""
    why = _expiry_rules(records.folder)
    if (records.folder / _AUDIENCES).is_dir():
        yield from _audience_steps(records.audiences(), why, now)
    for path in [*records.folder.glob(".seeds-*"), *(records.folder / _MODELS).glob(".*.partial")]:
        if _is_left(path, now):
            yield Step(f"delete what an interrupted command left: {path.name}", _SCRATCH_RULE), _deletion(path)
    yield from _seed_steps(records, why, now.date())


def _audience_steps(store: AudienceStore, why: str, now: datetime) -> Iterator[tuple[Step, Callable[[], object]]]:
    for audience in store.audiences():
        open_ = [record for record in store.exports(audience.id) if record.state != "done"]
        if open_:
            what = f"finish or undo an interrupted export of audience {audience.id} to {open_[0].destination}"
            yield Step(what, _WHOLE), _recovery(store, audience.id)
        if audience.state == "active" and store.is_expired(audience):
            what = f"end audience {audience.id} '{audience.name}' and delete its lists: last day {audience.expires}"
            yield Step(what, why), _ending(store, audience.id)
    if any(_is_left(path, now) for path in store.folder.glob(f"{SCRATCH}*")):
        yield Step("delete what interrupted commands on audiences left", _SCRATCH_RULE), _sweep(store)


def _seed_steps(records: NodeRecords, why: str, today: date) -> Iterator[tuple[Step, Callable[[], object]]]:
    """Lists that only plans of the past name. Of a list that no plan names nothing is known, and it stays."""
    last: dict[str, date] = {}
    for digest in records.approvals.plans():
        approval = records.approvals.approved(digest)
        if approval is not None and isinstance(approval.plan, LookalikePlan):
            name = approval.plan.lookalike.seed
            last[name] = max(last.get(name, date.min), approval.plan.expires)
    for listed in records.seeds.lists():
        if not listed.removed and listed.name in last and last[listed.name] < today:
            what = f"remove seed list '{listed.name}': the last plan that names it ended on {last[listed.name]}"
            yield Step(what, why), _removal(records.seeds, listed.name)


def _recovery(store: AudienceStore, audience: str) -> Callable[[], object]:
    def act() -> None:
        with store.locked():
            recover_audience(store, audience)

    return act


def _ending(store: AudienceStore, audience: str) -> Callable[[], object]:
    return lambda: expire(store, audience)


def _sweep(store: AudienceStore) -> Callable[[], object]:
    def act() -> None:
        with store.locked():
            pass  # it sweeps in the end

    return act


def _removal(seeds: SeedStore, name: str) -> Callable[[], object]:
    return lambda: seeds.remove(name)


def _deletion(path: Path) -> Callable[[], object]:
    def act() -> None:
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or "cannot be removed"
            raise OutputError(reason, place=str(path), fix="check permissions, and remove it") from error

    return act


def _is_left(path: Path, now: datetime) -> bool:
    """Whether nothing in it was written for so long that no command can be at work there."""
    try:
        newest = max(one.lstat().st_mtime for one in (path, *path.rglob("*")))
    except OSError:  # it goes as we look
        return False
    return now.timestamp() - newest > LEFTOVER_HOURS * 3600


def _expiry_rules(folder: Path) -> str:
    """The rules in force here that ask for a last day; the house's own word where none does."""
    packs: tuple[Pack, ...] = () if (declared := read_governance(folder)) is None else declared[1]
    found = [
        f"{rule.id} ({rule.article}; {rule.mark})" for pack in packs for rule in pack.rules if _EXPIRY in rule.reads
    ]
    return "; ".join(found) or "House limit: nothing outlives its last day"


def _past_models(folder: Path, today: date) -> tuple[str, ...]:
    """Released models kept here whose last day has passed: nothing is done, they are admitted no more."""
    found = []
    for path in sorted(folder.glob("*")):
        try:
            plan = (
                load_bundle(path).plan
                if path.suffix == ".json"
                else load_model(path, LookalikeModel, signer=None).document.plan
            )
        except DataError:
            continue
        if plan.expires < today:
            found.append(f"model {path.stem[:12]}… is admitted no more: last day {plan.expires}")
    return tuple(found)


# --- what rules ask for ----------------------------------------------------------------------------------------------


def _evaluate(records: NodeRecords, register: ObligationRegister, now: datetime) -> tuple[list[Step], tuple[str, ...]]:
    """Let the duties of every plan that was run stand; plans of which the rules of retention refuse, and notes."""
    refused: list[Step] = []
    begun = _begun(records)
    if not begun:
        return [], ()
    if read_governance(records.folder) is None:
        if records.identity.simulation:
            return [], ("no rules are in force: a simulation's node needs none",)
        return [Step("no rules are in force", "what keeping asks for is unknown: name packs in governance.toml")], ()
    try:
        with _governance(records, now) as governance:
            for reservation in begun:
                refused += _evaluate_plan(records, register, governance, reservation)
    except DataError as error:
        refused.append(Step("the rules of retention were not asked", str(error)))
    return refused, ()


def _evaluate_plan(
    records: NodeRecords, register: ObligationRegister, governance: NodeGovernance, reservation: Reservation
) -> list[Step]:
    """Of one plan that was run."""
    plan = reservation.plan
    approval = records.approvals.approved(plan)
    if approval is None:
        return []
    _owe_kept(records, register, reservation)
    try:
        decision, _ = governance.decide(approval.plan, approval.charter, "retention")
    except CohortiumError as error:
        return [Step(f"plan {plan[:19]}…", str(error))]
    register.owe(decision, plan, _first_day(reservation))
    return [] if decision.admitted else [Step(f"plan {plan[:19]}…", refusal(decision))]


def _owe_kept(records: NodeRecords, register: ObligationRegister, reservation: Reservation) -> None:
    """The duties of decisions that were carried out, each rule's as it was decided last."""
    seen: set[str] = set()
    for decision, _ in reversed(records.approvals.decisions(reservation.plan)):
        rules = {duty.rule for duty in decision.duties} - seen
        if decision.admitted and rules:
            register.owe(decision, reservation.plan, _first_day(reservation), rules)
            seen |= rules


def _begun(records: NodeRecords) -> list[Reservation]:
    """Every run that was begun here."""
    return _ledger(records).reservations()


def _first_day(reservation: Reservation) -> date:
    return date.fromisoformat(reservation.reserved_at[:10])


def _ledger(records: NodeRecords) -> Ledger:
    lifetime = budget_for(records.identity.lifetime_epsilon, records.identity.lifetime_delta)
    return Ledger(records.database, records.identity.institution, lifetime)


@contextmanager
def _governance(records: NodeRecords, now: datetime) -> Iterator[NodeGovernance]:
    """The node's own say; of plans past their last day too."""

    def approved(plan: str) -> Approval:
        found = records.approvals.approved(plan)
        if found is None:
            raise RefusedError("the plan is not approved here", fix="approve its digest after reading it")
        return found

    if not has_store(records.folder / LOG_FILE):
        raise DataError(
            "the audit log is missing", place=str(records.folder / LOG_FILE), fix="put back the newest copy"
        )
    identity = records.identity
    with ExitStack() as stack:
        log = NodeLog(records.folder, identity.institution, read_key(records.folder), approved)
        stack.callback(log.close)
        yield NodeGovernance(
            records.folder,
            identity.institution,
            records.approvals,
            approved,
            _ledger(records),
            log,
            _consent(records.folder, stack),
            simulation=identity.simulation,
            today=now.date,
        )


# --- what is owed ----------------------------------------------------------------------------------------------------


def _owed(
    records: NodeRecords,
    register: ObligationRegister,
    consent: ConsentStore | None,
    now: datetime,
    *,
    closed: bool = False,
) -> tuple[tuple[Owed, ...], tuple[Waiting, ...]]:
    standing = register.standing()
    found = [_of_register(one, now) for one in register.obligations() if closed or one.closure is None]
    if consent is not None:
        found += _of_people(consent.open_obligations(now), standing, now)
    if (records.folder / _AUDIENCES).is_dir():
        why = _expiry_rules(records.folder)
        found += [_of_audience(one, why, now) for one in list_audiences(records.audiences()) if one.removal_due]
    listed = sorted(found, key=lambda one: (one.state == "closed", one.due is None, one.due or one.since, one.id))
    return tuple(listed), _waiting(standing, kept=consent is not None)


def _of_register(one: Obligation, now: datetime) -> Owed:
    duty, act = one.part.duty, one.part.act
    return Owed(
        id=one.id,
        state=one.state(now),
        due=one.due,
        what=duty.obligation if act is None else f"{duty.obligation} ({act})",
        rules=(_cited(duty),),
        since=one.event.at,
        ends="cohortium retention close",
        before=one.before,
        obligation=one,
    )


def _of_people(people: Iterable[OwedToPerson], standing: Iterable[StandingDuty], now: datetime) -> Iterator[Owed]:
    """People's obligations, those of one kind and state in one line.

    Each is due by the consent store's own limits, or by the shortest clock of the duties that it stands for. Which
    signal a person gave is not asked: the shortest clock holds for all of them.
    """
    parts = [part for duty in standing for part in parts_of(duty.duty) if part.event in _KEPT_BY_CONSENT]
    clocks = {kind: [part for part in parts if _met_by(part) == kind] for kind in (_ROUNDS, _RECIPIENTS)}
    timed = [(one, _due(one, clocks.get(one.duty, []))) for one in people]
    by_kind = sorted(timed, key=lambda pair: (pair[0].duty, pair[0].sequence))
    for (duty, state), group in groupby(by_kind, key=lambda pair: (pair[0].duty, state_at(pair[1], now))):
        members = list(group)
        first, last = members[0][0], members[-1][0]
        what, limit = _TO_PEOPLE[duty]
        rules = dict.fromkeys(_cited(part.duty) for part in clocks.get(duty, []))
        span = str(first.sequence) if len(members) == 1 else f"{first.sequence}-{last.sequence}"
        yield Owed(
            id=f"consent:{duty}:{span}",
            state=state,
            due=min(due for _, due in members),
            what=what,
            rules=(limit, *rules),
            since=_utc(first.opened_at),
            ends=_ENDS[duty],
            count=len(members),
        )


def _met_by(part: Part) -> str | None:
    """The kind of a person's obligation that meets a part of a duty: what counts in hours or rounds is about rounds."""
    if part.event == "erasure":
        return None  # kept in the register: it is about models
    soon = any(clock.unit == "hours" or clock.before == "next_round" for clock in part.clocks)
    return _ROUNDS if soon else _RECIPIENTS


def _due(one: OwedToPerson, parts: Iterable[Part]) -> datetime:
    opened = _utc(one.opened_at)
    ends = [clock.due(opened) for part in parts for clock in part.clocks]
    limits = [_utc(one.house_by), *([] if one.law_by is None else [_utc(one.law_by)])]
    return min([*limits, *(end for end in ends if end is not None)])


def _of_audience(listed: ListedAudience, why: str, now: datetime) -> Owed:
    """The removal of an audience that has ended: due on the last day that its manifests tell recipients."""
    audience = listed.audience
    due = datetime.combine(audience.expires, time(23, 59, 59), UTC)
    return Owed(
        id=audience.id,
        state=state_at(due, now),
        due=due,
        what=f"Hand over the removal of '{audience.name}' to {', '.join(listed.removal_due)}.",
        rules=(why,),
        since=datetime.fromisoformat(audience.created),
        ends="cohortium audience export --removal",
        count=len(listed.removal_due),
    )


def _waiting(standing: Iterable[StandingDuty], *, kept: bool) -> tuple[Waiting, ...]:
    found: dict[str, list[str]] = {}
    for duty in standing:
        for part in parts_of(duty.duty):
            rules = found.setdefault(part.event, [])
            if (cited := _cited(part.duty)) not in rules:
                rules.append(cited)
    return tuple(
        Waiting(
            event, tuple(rules), _KEPT_BY_CONSENT[event] if kept and event in _KEPT_BY_CONSENT else "retention event"
        )
        for event, rules in sorted(found.items())
    )


def _cited(duty: Duty) -> str:
    return f"{duty.rule} ({duty.article}; {duty.confidence})"


# --- stores ----------------------------------------------------------------------------------------------------------


@contextmanager
def _register(folder: Path, now: datetime, *, dry_run: bool = False) -> Iterator[ObligationRegister]:
    """The node's register; of a dry run a copy of it, which goes when the block ends."""
    path = folder / OBLIGATIONS_FILE
    with ExitStack() as stack:
        if dry_run:
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cohortium-"))) / OBLIGATIONS_FILE
            if has_store(path):
                copy_store(path, copy, OBLIGATION_TABLES.sorted_tables)
            path = copy
        engine = open_store(path)
        stack.callback(engine.dispose)
        yield ObligationRegister(engine, lambda: now)


def _consent(folder: Path, stack: ExitStack) -> ConsentStore | None:
    store = open_consent(folder)
    if store is not None:
        stack.callback(store.close)
    return store


def _close_people(folder: Path, id: str, how: str) -> int:
    found = _PERSON_ID.fullmatch(id)
    if found is None or found[1] not in _TO_PEOPLE:
        raise RefusedError("there is no such obligation", place=id, fix="cohortium retention list has the ids")
    if found[1] == _ROWS:
        raise RefusedError("ends when the erasure is finished", place=id, fix=_ENDS[_ROWS])
    first = int(found[2])
    with ExitStack() as stack:
        store = _consent(folder, stack)
        closed = (
            0 if store is None else store.close_obligations(found[1], range(first, int(found[3] or first) + 1), how)
        )
    if not closed:
        raise RefusedError("nothing of it is open", place=id, fix="cohortium retention list has what is")
    return closed


def _utc(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
