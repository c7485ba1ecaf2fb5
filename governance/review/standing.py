"""What the signatures of a case amount to, on one day: a pure function of case, statements, charter and time.

Statements form a chain: each names the one before it. Whatever order they are given in, they are read in the chain's. A
record in which anything does not hold (a signature, a link, a date, a statement of another case) counts for nothing at
all: what is missing from it could be a rejection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Literal

from cohortium.governance.review.case import Case
from cohortium.governance.review.statement import Action, Signed, Statement
from cohortium.study.charter import Charter, Reviewer

__all__ = [
    "CLOCK_SKEW",
    "Standing",
    "State",
    "is_approved",
    "not_counted",
    "possible_reviewers",
    "problems_of",
    "review_facts",
    "standing",
]

CLOCK_SKEW = timedelta(minutes=5)
"""By how much a reviewer's clock may be ahead."""

State = Literal["approved", "waiting", "returned", "rejected", "expired", "invalid"]

_PRIVACY, _OTHER = "privacy", "risk or compliance"


@dataclass(frozen=True)
class Standing:
    """How a case stands.

    Args:
        state: `approved`; `waiting` for signatures; `returned` with questions; `rejected`, for these documents for
            good; `expired`; or `invalid`: the record does not hold together.
        reasons: why, one line each.
        waiting_for: functions that have still to sign.
        approvers: person ids whose approval (of a waiver, in a case of that kind) counts today.
        independent: two of them are different persons of the two functions, neither owner nor builder.
        waived: two such persons signed a waiver of the audit's verdict that holds today.
        conditions: of approvals and waivers that count.
        tasks: that remedy what is waived.
        until: last day on which the state `approved` holds.
        left_out: statements that do not count, and why.
    """

    state: State
    reasons: tuple[str, ...]
    waiting_for: tuple[str, ...] = ()
    approvers: tuple[str, ...] = ()
    independent: bool = False
    waived: bool = False
    conditions: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    until: date | None = None
    left_out: tuple[str, ...] = ()


def standing(case: Case, statements: Iterable[Signed], charter: Charter, now: datetime) -> Standing:
    """How the case stands at a time, whatever the order in which its statements are given.

    Formal guarantee: `approved` means that two different persons, one enrolled for `privacy` and one for `risk` or
    `compliance` at the case's institution, neither its owner nor among its builders, each signed this very case and
    subject after the last return, that neither signature has expired, and that nobody who may sign rejected it.

    Args:
        case: which.
        statements: all that are kept of it.
        charter: who is enrolled.
        now: in UTC.
    """
    given = list(statements)
    if broken := problems_of(case, given, charter, now):
        return Standing("invalid", broken)
    chain = _chain(case, given)
    left_out = tuple(why for signed in chain if (why := not_counted(case, signed.statement, charter)))
    counted = [signed.statement for signed in chain if not_counted(case, signed.statement, charter) is None]
    if rejection := next((said for said in counted if said.action == "reject"), None):
        return Standing("rejected", (f"{_who(rejection)} rejected it: {rejection.reason}",), left_out=left_out)
    return _weighed(case, counted, now.date(), left_out)


def is_approved(case: Case, statements: Iterable[Signed], charter: Charter, now: datetime) -> bool:
    """Whether the case is approved at that time; see `standing`."""
    return standing(case, statements, charter, now).state == "approved"


def review_facts(found: Standing) -> dict[str, int | bool | str]:
    """Facts for the rules: `review.approvers`, `review.independent`; `audit.verdict` where two people waived it."""
    facts: dict[str, int | bool | str] = {
        "review.approvers": len(found.approvers),
        "review.independent": found.independent,
    }
    return {**facts, "audit.verdict": "waived_four_eyes"} if found.waived else facts


def possible_reviewers(case: Case, charter: Charter, function: str | None = None) -> tuple[Reviewer, ...]:
    """Who may sign the case, for one of `Standing.waiting_for` or in all."""
    return tuple(
        one
        for one in charter.reviewers
        if one.institution == case.institution
        and one.person not in (case.owner, *case.builders)
        and (function is None or _side(one.function) == function)
    )


def problems_of(case: Case, statements: Iterable[Signed], charter: Charter, now: datetime) -> tuple[str, ...]:
    """What does not hold in a record, one line each: it is then no ground for anything."""
    given = list(statements)
    found = [f"the case is of the federation '{case.federation}'"] if case.federation != charter.name else []
    if now + CLOCK_SKEW < case.opened_at:
        found.append("the case is dated in the future")
    found += [f"{_who(one.statement)}: {why}" for one in given for why in _own_problems(case, one, now)]
    for digest, times in Counter(one.statement.previous for one in given).items():
        if times > 1:
            found.append(f"{times} statements follow {digest[:19]}…: repeated, or forked")
    chain = _chain(case, given)
    if len(chain) < len(set(map(_identity, given))) and not found:
        found.append(f"{len(given) - len(chain)} statements do not follow the others: something is missing")
    found += _order_problems(chain)
    return tuple(sorted(set(found)))


def not_counted(case: Case, said: Statement, charter: Charter) -> str | None:
    """Why a genuine statement does not count: its signer may not sign this case. None when it counts."""
    if said.person == case.owner:
        return f"{_who(said)} owns the case"
    if said.person in case.builders:
        return f"{_who(said)} built what is reviewed"
    if said.institution != case.institution:
        return f"{_who(said)} is enrolled elsewhere: '{case.institution}' decides"
    enrolled = {(one.person, one.institution, one.function, one.key) for one in charter.reviewers}
    if (said.person, said.institution, said.function, said.key) not in enrolled:
        return f"{_who(said)} is not enrolled with this key and function"
    return None


def _own_problems(case: Case, signed: Signed, now: datetime) -> Iterable[str]:
    said = signed.statement
    if not signed.is_genuine():
        yield "the signature is not of this statement"
    if said.case != case.digest:
        yield "the statement is of another case"
    if said.subject != case.subject.digest:
        yield "the statement is of another subject"
    if said.at < case.opened_at:
        yield "the statement is dated before the case was opened"
    if said.at > now + CLOCK_SKEW:
        yield "the statement is dated in the future"
    if case.kind == "waiver" and said.action == "approve":
        yield "a case for a waiver is waived, not approved"


def _order_problems(chain: list[Signed]) -> Iterable[str]:
    for earlier, later in pairwise(chain):
        if later.statement.at < earlier.statement.at:
            yield f"{_who(later.statement)}: the statement is dated before the one it follows"


def _chain(case: Case, statements: list[Signed]) -> list[Signed]:
    """The statements that follow each other from the case on."""
    following = {one.statement.previous: one for one in statements}
    chain: list[Signed] = []
    last = case.digest
    while last in following and len(chain) < len(statements):
        chain.append(following[last])
        last = chain[-1].digest
    return chain


def _weighed(case: Case, counted: list[Statement], today: date, left_out: tuple[str, ...]) -> Standing:
    """What the statements that count come to, where nobody rejected."""
    returned = max((place for place, said in enumerate(counted) if said.action == "return"), default=None)
    since = counted if returned is None else counted[returned + 1 :]
    latest = {action: _latest(since, action) for action in ("approve", "waive")}
    live = {action: {who: said for who, said in them.items() if _lasts(said, today)} for action, them in latest.items()}
    wanted: Action = "waive" if case.kind == "waiver" else "approve"
    signed, waived = live[wanted], _missing(live["waive"]) == ()
    counts = [*signed.values(), *(live["waive"].values() if waived and wanted != "waive" else ())]
    missing = _missing(signed)
    found = Standing(
        "waiting",
        (f"waits for {' and '.join(missing)}",),
        waiting_for=missing,
        approvers=tuple(sorted(signed)),
        independent=not missing,
        waived=waived,
        conditions=tuple(condition for said in counts for condition in said.conditions),
        tasks=tuple(said.task for said in counts if said.task),
        left_out=left_out,
    )
    if not missing:
        until = _until(signed)
        names = " and ".join(_who(said) for said in signed.values())
        return replace(found, state="approved", reasons=(f"signed by {names}, until {until}",), until=until)
    if returned is not None and not signed:
        said = counted[returned]
        return replace(found, state="returned", reasons=tuple(f"{_who(said)} asks: {one}" for one in said.questions))
    if not _missing(latest[wanted]):
        lapsed = [said for person, said in latest[wanted].items() if person not in signed]
        reasons = tuple(f"{_who(said)}: expired on {said.expires}" for said in lapsed)
        return replace(found, state="expired", reasons=reasons)
    return found


def _latest(statements: list[Statement], action: str) -> dict[str, Statement]:
    """The last statement of that action by every person."""
    return {said.person: said for said in statements if said.action == action}


def _lasts(said: Statement, today: date) -> bool:
    return said.expires is not None and said.expires >= today


def _missing(signed: Mapping[str, Statement]) -> tuple[str, ...]:
    """Functions that lack a signature; one person stands for one function."""
    sides = {_side(said.function) for said in signed.values()}
    return tuple(side for side in (_PRIVACY, _OTHER) if side not in sides)


def _until(signed: Mapping[str, Statement]) -> date:
    """The last day on which both functions are still there."""
    ends: dict[str, date] = {}
    for said in signed.values():
        if said.expires is not None:
            side = _side(said.function)
            ends[side] = max(said.expires, ends.get(side, said.expires))
    return min(ends.values())


def _side(function: str) -> str:
    return _PRIVACY if function == _PRIVACY else _OTHER


def _who(said: Statement) -> str:
    return f"{said.person} ({said.function})"


def _identity(signed: Signed) -> tuple[str, str]:
    return signed.digest, signed.signature
