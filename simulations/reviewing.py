"""Review at simulated institutions: two reviewers each, with keys of their own. They and their judgement are made up.

A real reviewer reads the case's page first. These sign whatever is put before them. Where the audit did not pass, they
waive its verdict for a month and say what has to be done meanwhile: what a simulation shows is that nothing goes out
without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.client.governing import read_governance
from cohortium.client.lookalike import REVIEW_FILE, case_documents, open_records
from cohortium.governance.evidence import complete_dpia, dpia
from cohortium.governance.fairness import FairnessResult
from cohortium.governance.review import (
    Action,
    ReviewStore,
    Standing,
    Subject,
    Terms,
    document_digest,
    open_case,
    read_identity,
    read_reviewer_key,
    sign_statement,
    write_reviewer_key,
)
from cohortium.governance.rules import Facts
from cohortium.privacy.ledger import open_store
from cohortium.study.charter import Charter, Function, Reviewer, enrol_reviewer, prove_possession
from cohortium.study.contract import Contract
from cohortium.study.errors import Defect
from cohortium.study.plan import Plan

__all__ = ["REVIEWERS_PASSWORD", "enrolled", "review_audience"]

REVIEWERS_PASSWORD = "demo reviewers protect nothing"
"""Of simulated reviewers' keys, so that anybody can try `cohortium review` on what a simulation leaves."""

_FUNCTIONS: tuple[Function, ...] = ("privacy", "risk")
_OWNER, _BUILDER, _OFFICER = "campaign-owner", "model-builder", "privacy-officer"
_DAYS = 30


def enrolled(charter: Charter, folders: Mapping[str, Path]) -> Charter:
    """The charter with two reviewers of every institution, whose keys are made where there are none yet."""
    reviewers = []
    for name, folder in folders.items():
        identity = read_identity(folder / "identity.pem")
        for function in _FUNCTIONS:
            asked = prove_possession(charter.name, f"{function}-reviewer", name, function, _key(folder, function))
            reviewers.append(enrol_reviewer(charter.name, asked, identity))
    return charter.with_reviewers(reviewers)


def review_audience(
    folder: Path, institution: str, plan: Plan, contract: Contract, charter: Charter, result: FairnessResult
) -> Standing:
    """Put an audience before an institution's reviewers, and have them sign; what was signed before stays as it is.

    Args:
        folder: the node's state folder.
        institution: its name.
        plan, contract, charter: of the campaign.
        result: the audit of the audience.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    assessed = _assessed(folder, institution, plan, contract, charter)
    with open_records(folder) as records:
        documents, facts = case_documents(records.models, records.approvals, result, assessed)
    engine = open_store(folder / REVIEW_FILE)
    try:
        store = ReviewStore(engine)
        subject = Subject(**{part: document_digest(document) for part, document in documents.items()})
        case = store.find(subject, "audience_export", institution)
        if case is None:
            case = open_case(
                documents,
                facts.facts,
                name=f"{plan.name}-{subject.digest[7:15]}".lower(),
                federation=charter.name,
                institution=institution,
                kind="audience_export",
                about=plan.name,
                purpose=plan.purpose,
                owner=_OWNER,
                builders=(_BUILDER,),
                opened_at=now,
            )
            store.open(case, documents)
        for reviewer in (one for one in charter.reviewers if one.institution == institution):
            _sign(store, case.name, reviewer, _key(folder, reviewer.function), charter, result)
        return store.standing(case.name, charter, datetime.now(UTC))
    finally:
        engine.dispose()


def _sign(
    store: ReviewStore, name: str, reviewer: Reviewer, key: Ed25519PrivateKey, charter: Charter, result: FairnessResult
) -> None:
    """Approve; before that, waive a verdict that is no pass."""
    now = datetime.now(UTC).replace(microsecond=0)
    until = now.date() + timedelta(days=_DAYS)
    said: list[tuple[Action, Terms]] = [("approve", Terms(expires=until))]
    if result.verdict != "pass":
        reason = f"simulated: the audit came to '{result.verdict}', and a simulation harms nobody"
        task = "train without the features that tell most about the groups, and audit again"
        said.insert(0, ("waive", Terms(expires=until, reason=reason, task=task)))
    done = {(one.statement.person, one.statement.action) for one in store.statements(name)}
    case = store.case(name)
    for action, terms in said:
        if (reviewer.person, action) in done:
            continue
        statement = sign_statement(case, store.head(name), reviewer, key, action, terms, now)
        store.add(name, statement, charter, now)


def _assessed(folder: Path, institution: str, plan: Plan, contract: Contract, charter: Charter) -> Mapping[str, object]:
    """The impact assessment of a campaign, pre-filled and answered on behalf of nobody."""
    declared = read_governance(folder)
    if declared is None:
        raise Defect("a review at an institution without rules in force")
    facts = Facts.of(declared[0].facts, declared[0].declared_by)
    draft = dpia(institution, plan, charter, contract, facts)
    answers = {one.name: "made up for a simulation" for one in draft.questions if one.answer is None}
    day = datetime.now(UTC).date()
    return complete_dpia(draft, answers, "approve", by=(_OFFICER,), on=day).to_json()


def _key(folder: Path, function: Function) -> Ed25519PrivateKey:
    path = folder / "reviewers" / f"{function}.pem"
    if path.exists():
        return read_reviewer_key(path, REVIEWERS_PASSWORD)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    return write_reviewer_key(path, REVIEWERS_PASSWORD)
