"""Checks of what a run left behind and what people made of it: contributions, releases, reviews, exports, audits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from cohortium.governance.evidence.pack_parts import LoggedEntry
from cohortium.governance.evidence.verify_content import ATTACK_AUDIT, Content, Party, ReleasedDocument, ReviewedCase
from cohortium.governance.evidence.verify_finding import NOT_THERE, Finding, NothingToCheckError, judged, nothing, wrong
from cohortium.governance.evidence.verify_logs import Logs, cosigned_at
from cohortium.governance.fairness import FAIRNESS_SCHEMA, FairnessResult
from cohortium.governance.log import COORDINATOR
from cohortium.governance.review import PARTS, document_digest, standing
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.bundle import Bundle, ReleaseRecord
from cohortium.study.charter import Charter
from cohortium.study.document import validated
from cohortium.study.errors import DataError
from cohortium.study.model import LookalikeModel

__all__ = ["check_papers", "time_of"]

_ATTACK_AUDIT = "cohortium.privacy-audit/1"
_MAX_TIME = 2**37  # seconds: somewhere in the year 6325
_SLOT = ("plan", "run", "phase", "step", "attempt", "question")


def check_papers(content: Content, charter: Charter, logs: Logs) -> Iterator[Finding]:
    """All findings about contributions, releases, reviews, exports and audits."""
    yield judged("contributions", "", partial(_contributions, content, logs))
    for name in sorted({*logs.stated, *logs.misstated}):
        yield judged("contributions", name, partial(_stated, name, logs))
    yield judged("released", "", partial(_released, content, logs))
    cases = [(party, case) for party in content.parties.values() for case in party.cases]
    if not cases:
        yield judged("reviews", "", nothing)
    now = time_of(content, charter)
    for party, case in cases:
        about = f"{party.name}: {case.file.case.name}"
        yield judged("reviews", about, partial(_case, party, case, charter, now))
    yield from _check_activations(content, charter, logs)
    yield from _check_fairness(content)
    yield judged("attack audit", ATTACK_AUDIT, partial(_attack_audit, content.attack_audit))


def time_of(content: Content, charter: Charter) -> datetime:
    """The newest time that a cosignature or a statement in a pack bears. UTC, whole seconds."""
    times = [0, *cosigned_at(content, charter)]
    for party in content.parties.values():
        times += [int(said.statement.at.timestamp()) for case in party.cases for said in case.file.statements]
        times += [int(case.file.case.opened_at.timestamp()) for case in party.cases]
    return datetime.fromtimestamp(min(max(times), _MAX_TIME), UTC)


def _contributions(content: Content, logs: Logs) -> str | None:
    """Every leaf that a question of the coordinator's log names is an entry of that institution, of that question.

    Where the institution's log is there, it is in that; else it is in what the institution stated to the coordinator.
    """
    asked = logs.of(COORDINATOR)
    if asked is None:
        return None
    found = absent = 0
    for one in asked.of_event("question"):
        for name, leaf, decision in _named(one):
            logs.of(name)  # refuses a log that does not hold
            shown = _shown(name, str(one.entry.get("plan")), content, logs)
            if shown is None:
                absent += 1
                continue
            entry = shown.get(leaf)
            if entry is None:
                raise wrong(f"question {one.index} names an entry of {name} that is not shown here")
            same = {key: entry.entry.get(key) for key in _SLOT} == {key: one.entry.get(key) for key in _SLOT}
            if not same or entry.entry.get("event") != "release" or entry.entry.get("decision") != decision:
                raise wrong(f"question {one.index} names entry {entry.index} of {name}, which is of something else")
            found += 1
    if not found:
        raise NothingToCheckError("no institution that contributed" if absent else "no question")
    said = f"{found} entries of institutions"
    return f"{said}; {absent} of institutions that are {NOT_THERE}" if absent else said


def _stated(name: str, logs: Logs) -> str:
    """What the institution stated to the coordinator is proven, and the coordinator says that it took it."""
    if name in logs.misstated:
        raise logs.misstated[name]
    stated, asked = logs.stated[name], logs.of(COORDINATOR)
    questions = asked.of_event("question") if asked is not None else ()
    taken = {leaf for one in questions for who, leaf, _ in _named(one) if who == name}
    if asked is not None and (strays := [one.index for leaf, one in stated.leaves.items() if leaf not in taken]):
        raise wrong(f"entry {strays[0]} was stated, and no question of the coordinator's log names it")
    return f"{len(stated.leaves)} entries as they were stated, {stated.cosigned} of them under what a quorum cosigned"


def _shown(name: str, plan: str, content: Content, logs: Logs) -> Mapping[str, LoggedEntry] | None:
    """An institution's entries by their leaves' hashes: its log's, where that shows a plan; else what it stated."""
    log, stated = logs.proven.get(name), logs.stated.get(name)
    if log is not None and content.parties[name].shows(plan):
        return log.leaves
    return None if stated is None else stated.leaves


def _named(question: LoggedEntry) -> list[tuple[str, str, str]]:
    """Institution, leaf and decision of every contribution that a question names."""
    given = question.entry.get("contributions")
    if not isinstance(given, dict) or not all(
        isinstance(one, dict) and {"leaf", "decision"} <= one.keys() for one in given.values()
    ):
        raise wrong(f"question {question.index} does not say whose contributions were taken")
    return [(name, str(one["leaf"]), str(one["decision"])) for name, one in given.items()]


def _released(content: Content, logs: Logs) -> str | None:
    """Digests are those of the coordinator's log, and every question behind a document was logged and paid."""
    asked = logs.of(COORDINATOR)
    if asked is None and not content.released:
        return None
    if asked is None:
        raise NothingToCheckError("the coordinator's log")
    entries = {str(one.entry.get("plan")): one for one in asked.of_event("released")}
    told = {digest: one for digest, one in content.released.items() if content.parties[COORDINATOR].shows(digest)}
    paid = []
    for digest, (place, document) in told.items():
        if digest not in entries:
            raise wrong("was not released by any run that the coordinator's log shows here", place)
        _same_release(place, document, entries[digest])
        paid.append(_paid(place, document, content, logs))
    if not told:
        raise NothingToCheckError("the documents that the log names")
    missing, said = len(set(entries) - set(told)), "; ".join(paid)
    return f"{said}; {missing} more that the log tells of {NOT_THERE}" if missing else said


def _same_release(place: str, document: ReleasedDocument, entry: LoggedEntry) -> None:
    said = (entry.entry.get("released"), entry.entry.get("run"))
    if said != (document.digest, document.run):
        raise wrong("is not what the coordinator's log says was released", place)


def _paid(place: str, document: ReleasedDocument, content: Content, logs: Logs) -> str:
    """Each question that came to a sum was asked, answered by as many, and cost each of them what is stated."""
    contributions: dict[str, dict[str, str]] = {}
    for one in logs.proven[COORDINATOR].of_event("question"):
        names = {name: leaf for name, leaf, _ in _named(one)}
        contributions.setdefault(str(one.entry.get("question")), {}).update(names)
    sums = charges = 0
    for record in document.releases:
        if record.institutions == 0:
            continue  # an attempt that came to nothing
        named = contributions.get(record.question, {})
        if len(named) < record.institutions:
            raise wrong(f"{record.phase} step {record.step} is of more institutions than the log names", place)
        sums += 1
        for name, leaf in named.items():
            shown = _shown(name, document.plan.digest, content, logs)
            entry = None if shown is None else shown.get(leaf)
            if entry is not None and not _costs(entry, record):
                raise wrong(f"{record.phase} step {record.step} did not cost {name} what is stated", place)
            charges += entry is not None
    return f"{place}: {sums} sums, {charges} log entries of what they cost"


def _costs(entry: LoggedEntry, record: ReleaseRecord) -> bool:
    return (entry.entry.get("mu2"), entry.entry.get("tv")) == (str(record.mu2), str(record.tv))


def _case(party: Party, case: ReviewedCase, charter: Charter, now: datetime) -> str:
    """The documents are those of the case, and its statements hold together."""
    file = case.file
    if file.case.institution != party.name:
        raise wrong("is a case of another institution")
    for part in PARTS:
        if part not in case.documents:
            raise wrong(f"the {part} is not there")
        if document_digest(case.documents[part]) != getattr(file.case.subject, part):
            raise wrong(f"the {part} is not the one that the case is about")
    found = file.standing(charter, now)
    if found.state == "invalid":
        raise wrong("; ".join(found.reasons))
    left = f"; {len(found.left_out)} statements do not count" if found.left_out else ""
    return f"{found.state} on {now:%Y-%m-%d}: {'; '.join(found.reasons)}{left}"


def _check_activations(content: Content, charter: Charter, logs: Logs) -> Iterator[Finding]:
    broken = sorted(set(logs.errors) - {COORDINATOR})
    for name in broken:
        yield judged("activations", name, partial(_broken, name, logs))
    exports = [(name, one) for name, log in logs.proven.items() for one in log.of_event("activation")]
    if not exports and not broken:
        yield judged("activations", "", nothing)
    for name, one in exports:
        about = f"{name}: entry {one.index}"
        yield judged("activations", about, partial(_activation, content, content.parties[name], one, charter))


def _broken(name: str, logs: Logs) -> None:
    logs.of(name)


def _activation(content: Content, party: Party, one: LoggedEntry, charter: Charter) -> str:
    """A decision on facts that are there let it out, and the case was approved by the statements that are named."""
    said = one.entry
    decisions = {held.decision.id: held for held in party.decisions.decisions} if party.decisions is not None else {}
    decided = decisions.get(str(said.get("decision")))
    if decided is None or decided.decision.stage != "activation" or decided.plan != said.get("plan"):
        raise wrong("names a decision that is not there or was altered")
    if str(decided.decision.admitted).lower() != said.get("admitted"):
        raise wrong("says something else than the decision")
    if not decided.decision.admitted:
        return "was refused: nothing went out"
    case = next((held for held in party.cases if held.file.case.digest == said.get("case")), None)
    if case is None:
        raise wrong("names a case that is not there")
    _same_model(content, case, said)
    admission = decisions.get(case.file.case.subject.decision)
    if admission is None or admission.decision.stage != "admission" or not admission.decision.admitted:
        raise wrong("the case is not about a decision to admit that is there")
    chain = list(case.file.statements)
    upto = next((place for place, held in enumerate(chain, 1) if held.digest == said.get("statement")), 0)
    if not upto:
        raise wrong("names a statement that the case does not have")
    found = standing(case.file.case, chain[:upto], charter, chain[upto - 1].statement.at)
    if found.state != "approved" or case.file.case.institution != party.name:
        raise wrong(f"the case was {found.state} by the statements up to the one that is named")
    return f"case '{case.file.case.name}' {found.reasons[0]}"


def _same_model(content: Content, case: ReviewedCase, said: Mapping[str, Any]) -> None:
    """Card and audit of the case are of what went out, and so is one of the released models, where they are there."""
    audit, card = case.documents.get("audit", {}), case.documents.get("card", {})
    if (audit.get("audited"), audit.get("level")) != (said.get("model"), said.get("level")):
        raise wrong("the case's audit is of another model or level")
    if card.get("model") != said.get("model"):
        raise wrong("the case's card is of another model")
    released = content.released.get(str(said.get("plan")))
    if released is not None and released[1].digest != said.get("model"):
        raise wrong("names another model than its plan released")


def _check_fairness(content: Content) -> Iterator[Finding]:
    """Results of their own, and those under review."""
    results: dict[str, FairnessResult | dict[str, Any]] = {**content.fairness}
    for party in content.parties.values():
        for case in party.cases:
            audit = case.documents.get("audit", {})
            if audit.get("schema") == FAIRNESS_SCHEMA:
                results[f"{case.place}audit.json"] = audit
    if not results:
        yield judged("fairness", "", nothing)
    for place, result in results.items():
        yield judged("fairness", place, partial(_fairness, result, content))


def _fairness(given: FairnessResult | dict[str, Any], content: Content) -> str:
    """The audited model is one that was released, of the kind that the result says."""
    result = given if isinstance(given, FairnessResult) else validated(FairnessResult, given, "audit", {}, DataError)
    models = {document.digest: document for _, document in content.released.values()}
    if not models or not result.audited.startswith("sha256:"):
        raise NothingToCheckError("what it audited")
    model = models.get(result.audited)
    if model is None:
        raise wrong("is of a model that is not among what was released")
    if not isinstance(model, LookalikeModel if result.subject == "lookalike" else Bundle):
        raise wrong("is of another kind of model than the one it names")
    asked = content.plans.get(result.plan)
    if asked is not None and (not isinstance(asked, AuditPlan) or asked.audit.model != result.audited):
        raise wrong("is of another model than the audit's plan names")
    if isinstance(model, LookalikeModel) and result.level not in {level.name for level in model.curve.levels}:
        raise wrong("is of a level that the model does not have")
    return f"{result.verdict}, of {result.audited[:19]}…"


def _attack_audit(report: dict[str, Any] | None) -> str | None:
    """The report is one of `cohortium privacy audit`, and nothing in it is flagged."""
    if report is None:
        return None
    if report.get("format") != _ATTACK_AUDIT:
        raise wrong("is no report of `cohortium privacy audit` of this version")
    claims, noise = _flags(report.get("claims"), "release"), _flags(report.get("noise"), "sigma")
    if flagged := [name for name, flag in (*claims, *noise) if flag]:
        raise wrong(f"refutes {', '.join(flagged)}")
    if not claims:
        raise NothingToCheckError("claims")
    return f"{len(claims)} claims and {len(noise)} scales of noise: none refuted"


def _flags(found: object, name: str) -> list[tuple[str, bool]]:
    """What was audited, and whether it is flagged."""
    if not isinstance(found, list) or not all(
        isinstance(one, dict) and name in one and type(one.get("flagged")) is bool for one in found
    ):
        raise wrong("does not hold together")
    return [(f"{name} {one[name]}", one["flagged"]) for one in found]
