"""What the institutions of a simulation decided, logged and had reviewed, for the report's section about it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from cohortium.client.governing import read_governance
from cohortium.client.lookalike import REVIEW_FILE, NodeRecords, open_records
from cohortium.client.witnessing import LOG_FILE
from cohortium.governance.log import LogReader, parse_checkpoint, parse_note, quorum_for
from cohortium.governance.report import (
    DecisionFacts,
    FairnessPage,
    GovernedInstitution,
    LogFacts,
    PackFacts,
    PolicyFacts,
    ReviewFacts,
)
from cohortium.governance.review import ReviewStore
from cohortium.privacy.stores import has_store, open_store
from cohortium.study.charter import Charter
from cohortium.study.plan import Plan

__all__ = ["governed_institutions", "with_outcome"]


def governed_institutions(folders: Mapping[str, Path], charter: Charter) -> tuple[GovernedInstitution, ...]:
    """Every institution's account, in order.

    Args:
        folders: state folders of the nodes by name.
        charter: of the federation, with its reviewers.
    """
    return tuple(_account(name, folder, charter) for name, folder in folders.items())


def with_outcome(page: FairnessPage, folders: Mapping[str, Path], plan: Plan, charter: Charter) -> FairnessPage:
    """The page of an audit with what institutions made of it: how its cases stand, and what rules said of its exports.

    Args:
        page: of the audit of a campaign's audience.
        folders: state folders of the nodes by name.
        plan, charter: of the campaign.
    """
    now, reviews, policies = datetime.now(UTC), list[ReviewFacts](), list[PolicyFacts]()
    for name, folder in folders.items():
        reviews += _reviews(folder, charter, now)
        declared = read_governance(folder)
        with open_records(folder) as records:
            decided = [one for one, _ in records.approvals.decisions(plan.digest) if one.stage == "activation"]
        packs = () if declared is None else declared[1]
        policies += [PolicyFacts.of(decision, packs, name) for decision in decided[-1:]]
    return page.model_copy(update={"reviews": tuple(reviews), "policies": tuple(policies)})


def _account(name: str, folder: Path, charter: Charter) -> GovernedInstitution:
    now = datetime.now(UTC)
    declared = read_governance(folder)
    with open_records(folder) as records:
        decisions = _decisions(records)
    return GovernedInstitution(
        institution=name,
        packs=() if declared is None else tuple(PackFacts.of(pack, now.date()) for pack in declared[1]),
        decisions=decisions,
        log=_log(folder, charter, name),
        reviews=_reviews(folder, charter, now),
    )


def _decisions(records: NodeRecords) -> tuple[DecisionFacts, ...]:
    found = []
    for digest in records.approvals.plans():
        approval = records.approvals.approved(digest)
        if approval is not None:
            kept = records.approvals.decisions(digest)
            found += [DecisionFacts.of(approval.plan.name, decision) for decision, _ in kept]
    return tuple(found)


def _log(folder: Path, charter: Charter, name: str) -> LogFacts:
    with ExitStack() as stack:
        engine = open_store(folder / LOG_FILE, create=False)
        stack.callback(engine.dispose)
        log = LogReader(engine)
        note, entries = log.cosigned(), log.size
    quorum = quorum_for(charter, name)
    checkpoint = None if note is None else parse_checkpoint(parse_note(note).text)
    return LogFacts(
        entries=entries,
        checkpoint=0 if checkpoint is None else checkpoint.size,
        root=None if checkpoint is None else checkpoint.root.hex(),
        cosigned=0 if note is None else len(quorum.cosigners(note)),
        needed=quorum.needed.witnesses,
    )


def _reviews(folder: Path, charter: Charter, now: datetime) -> tuple[ReviewFacts, ...]:
    path = folder / REVIEW_FILE
    if not has_store(path):
        return ()
    with ExitStack() as stack:
        engine = open_store(path, create=False)
        stack.callback(engine.dispose)
        store = ReviewStore(engine)
        return tuple(ReviewFacts.of(case, store.standing(case.name, charter, now)) for case in store.cases())
