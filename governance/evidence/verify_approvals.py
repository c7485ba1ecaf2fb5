"""Checks of what was agreed on before anything was asked: proposals, and every institution's approval under its key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from cohortium.governance.evidence.pack_parts import LoggedEntry
from cohortium.governance.evidence.verify_content import Content
from cohortium.governance.evidence.verify_finding import Finding, judged, nothing, wrong
from cohortium.governance.evidence.verify_logs import Logs, ProvenLog
from cohortium.governance.log import COORDINATOR
from cohortium.study.charter import Charter
from cohortium.study.plan import Plan
from cohortium.study.proposal import Proposal, SignedApproval, check_approval

__all__ = ["check_approvals"]

_ASKED = ("question",)
_ANSWERED = ("admission", "release")


def check_approvals(content: Content, charter: Charter, logs: Logs) -> Iterator[Finding]:
    """One finding for every plan that names its code, as every proposed one does, and a simulation's does not."""
    proposed = {one.plan.digest for one in content.proposals.values()}
    plans = [plan for plan in content.plans.values() if plan.software is not None or plan.digest in proposed]
    if not plans and not content.approvals:
        yield judged("approvals", "", nothing)
    for plan in plans:
        yield judged("approvals", f"'{plan.name}'", partial(_approved, plan, content, charter, logs))
    for digest, signed in content.approvals.items():
        if signed.approval.proposal not in content.proposals:
            yield judged("approvals", f"{digest[:19]}…", _of_nothing)


def _of_nothing() -> None:
    raise wrong("is of a proposal that is not there")


def _approved(plan: Plan, content: Content, charter: Charter, logs: Logs) -> str:
    proposals = [one for one in content.proposals.values() if one.plan.digest == plan.digest]
    if len(proposals) != 1:
        raise wrong(f"there are {len(proposals)} proposals of the plan")
    (proposal,) = proposals
    approvals: dict[str, SignedApproval] = {}
    for signed in content.approvals.values():
        if signed.approval.proposal == proposal.digest:
            _genuine(signed, proposal, charter)
            approvals[signed.approval.institution] = signed
    asked, answered = logs.of(COORDINATOR), _answered(plan, content, logs)
    if missing := sorted(answered - set(approvals)):
        raise wrong(f"{_names(missing)} answered, and no approval by {_names(missing)} is there")
    if asked is not None and content.parties[COORDINATOR].shows(plan.digest):
        entries: list[Mapping[str, str]] = [{"event": "study-proposed", "proposal": proposal.digest}]
        entries += [_logged(approvals[name], institution=name) for name in sorted(answered)]
        _before(asked, plan, entries, _ASKED, "the coordinator")
    for name in sorted(answered):
        log = logs.of(name)
        if log is not None and content.parties[name].shows(plan.digest):
            _before(log, plan, [_logged(approvals[name])], _ANSWERED, name)
    return f"{_names(sorted(approvals)) or 'nobody'} approved it; {_names(sorted(answered)) or 'nobody'} answered"


def _genuine(signed: SignedApproval, proposal: Proposal, charter: Charter) -> None:
    """Signed for this very proposal, under the key that the verifier's charter pins and no other."""
    name = signed.approval.institution
    then, now = (
        next((one.identity for one in each.institutions if one.name == name), None)
        for each in (proposal.charter, charter)
    )
    if then != now:
        raise wrong(f"was proposed within a charter that has another key of '{name}' than the charter that was given")
    check_approval(signed, proposal, f"approval of '{name}'")


def _answered(plan: Plan, content: Content, logs: Logs) -> set[str]:
    """Whoever contributed by the coordinator's log, and whoever's own log says so."""
    asked, found = logs.of(COORDINATOR), set[str]()
    for one in asked.of_event("question") if asked is not None else ():
        given = one.entry.get("contributions")
        if one.entry.get("plan") == plan.digest and isinstance(given, dict):
            found |= set(given)
    for name in content.parties:
        log = logs.of(name) if name != COORDINATOR else None
        if log is not None and any(one.entry.get("plan") == plan.digest for one in log.of_event("release")):
            found.add(name)
    return found


def _logged(signed: SignedApproval, **more: str) -> Mapping[str, str]:
    return {"event": "study-approved", "approval": signed.approval.digest, **more}


def _before(log: ProvenLog, plan: Plan, wanted: list[Mapping[str, str]], events: tuple[str, ...], whose: str) -> None:
    """The log has such entries of the plan before its first of these events."""
    of_plan = [one for one in log.entries if one.entry.get("plan") == plan.digest]
    first = min((one.index for one in of_plan if one.entry.get("event") in events), default=log.size)
    for one in wanted:
        if not any(entry.index < first and _has(entry, one) for entry in of_plan):
            who = f" by '{one['institution']}'" if "institution" in one else ""
            what = one["event"].removeprefix("study-")
            raise wrong(f"the log of {whose} does not say, before its first question, that it was {what}{who}")


def _has(entry: LoggedEntry, wanted: Mapping[str, str]) -> bool:
    return all(entry.entry.get(key) == value for key, value in wanted.items())


def _names(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
