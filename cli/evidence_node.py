"""What a node holds for records and assessments: approvals, declared facts, log entries, cases. No customer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cohortium.client.governing import read_governance
from cohortium.client.lookalike.activating import REVIEW_FILE
from cohortium.client.lookalike.records import open_records
from cohortium.client.store import Approval
from cohortium.client.witnessing import LOG_FILE
from cohortium.governance.log import LogReader
from cohortium.governance.review import Case, ReviewStore, Signed
from cohortium.governance.rules import Facts
from cohortium.privacy.stores import has_store, open_store
from cohortium.study.contract import Contract
from cohortium.study.errors import DataError, RefusedError
from cohortium.study.validation import suggestion

__all__ = ["NodeEvidence", "find_approval", "log_entries", "read_node", "review_cases"]


@dataclass(frozen=True)
class NodeEvidence:
    """What a node approved, and what its institution declares.

    Args:
        folder: the node's state folder.
        institution: its name.
        contract: that its table was made by.
        approvals: every plan with its charter, oldest first.
        declared: the facts in `governance.toml`; none without the file.
    """

    folder: Path
    institution: str
    contract: Contract
    approvals: tuple[Approval, ...]
    declared: Facts


def read_node(folder: Path) -> NodeEvidence:
    """Read a node's folder.

    Raises:
        DataError: no node there, or a `governance.toml` that does not hold together.
        RefusedError: no plan is approved there.
    """
    with open_records(folder) as records:
        known = (records.approvals.approved(digest) for digest in records.approvals.plans())
        approvals = tuple(one for one in known if one is not None)
        found = read_governance(folder)
        declared = Facts.of({}, "nobody") if found is None else Facts.of(found[0].facts, found[0].declared_by)
        node = NodeEvidence(folder, records.identity.institution, records.contract, approvals, declared)
    if not approvals:
        raise RefusedError("no plan is approved here", place=str(folder), fix="approve one, or name the node that did")
    return node


def find_approval(node: NodeEvidence, named: str) -> Approval:
    """The approval of a plan, by its digest, the beginning of it, or its name; the newest of a name.

    Raises:
        RefusedError: none of that name is approved here, or several begin like that.
    """
    if by_name := [one for one in node.approvals if one.plan.name == named]:
        return by_name[-1]
    digits = named.removeprefix("sha256:")
    begins = [one for one in node.approvals if digits and one.plan.digest.removeprefix("sha256:").startswith(digits)]
    if len(begins) == 1:
        return begins[0]
    if begins:
        raise RefusedError(f"{len(begins)} plans begin with '{named}'", place=str(node.folder), fix="give more of it")
    raise RefusedError(
        f"no plan '{named}' is approved here",
        place=str(node.folder),
        fix=suggestion(named, [one.plan.name for one in node.approvals]),
    )


def log_entries(node: NodeEvidence) -> list[Mapping[str, Any]]:
    """The entries of the node's audit log, oldest first; `DataError` for one that was altered."""
    path = node.folder / LOG_FILE
    if not has_store(path):
        raise DataError("holds no audit log", place=str(node.folder), fix="put the node's log back")
    engine = open_store(path, create=False, read_only=True)
    try:
        log = LogReader(engine)
        return [one.entry for one in log.entries(0, log.size)]
    finally:
        engine.dispose()


def review_cases(node: NodeEvidence) -> list[tuple[Case, tuple[Signed, ...]]]:
    """The node's cases, each with its statements; none where nothing was ever put before reviewers."""
    path = node.folder / REVIEW_FILE
    if not has_store(path):
        return []
    engine = open_store(path, create=False)
    try:
        store = ReviewStore(engine)
        return [(case, store.statements(case.name)) for case in store.cases()]
    finally:
        engine.dispose()
