"""Proposals in a node's folder, and what its institution said of each.

In the folder, by the 64 digits of a plan's digest:

    proposals/HEX.json   the proposal, as the coordinator signed it
    approvals/HEX.json   this institution's signed approval, which the node delivers
    declined/HEX.json    that it is not approved here, and why; never sent
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal

from cohortium.client.joining import Link, read_link
from cohortium.client.lookalike import NodeRecords, open_records
from cohortium.study.errors import CohortiumError, OutputError, RefusedError
from cohortium.study.keys import write_whole
from cohortium.study.plan import Plan
from cohortium.study.proposal import MAX_PROPOSAL, Proposal, parse_proposal

__all__ = [
    "APPROVALS",
    "DECLINED",
    "PROPOSALS",
    "Pending",
    "State",
    "add_proposal",
    "keep",
    "pending",
    "place_of",
    "read_kept",
    "read_proposal",
    "state_of",
]

PROPOSALS, APPROVALS, DECLINED = "proposals", "approvals", "declined"
"""Folders, by what is in them."""

_MOST_PROPOSALS = 1000
_log = logging.getLogger(__name__)

State = Literal["new", "approved", "declined", "expired"]
"""What an institution said of a proposal."""


@dataclass(frozen=True)
class Pending:
    """A proposal in a node's folder, and what this institution said of it."""

    proposal: Proposal
    state: State


def add_proposal(folder: Path, data: bytes) -> Proposal:
    """Keep a proposal, from the wire or from a file; the same again changes nothing.

    Args:
        folder: the node's; its `link.json` says who the coordinator is.
        data: the document.

    Raises:
        RefusedError: too large, malformed, of another federation, not signed by its coordinator, of a charter without
            this institution, or another proposal of a plan that was proposed before.
        OutputError: the folder cannot be written.
    """
    link = read_link(folder)
    proposal = _verified(data, "proposal", link)
    if link.institution not in {one.name for one in proposal.charter.institutions}:
        raise RefusedError("the charter does not name this institution", place="proposal", fix="have it enrolled")
    path = place_of(folder, PROPOSALS, proposal.plan.digest)
    if path.exists() and read_kept(path) == data:
        return proposal
    there = _known(path, link)
    if there is not None and there != proposal:
        raise RefusedError(
            "another proposal of this plan is here", place=str(path), fix="have the plan proposed under another name"
        )
    if there is None:
        if sum(1 for _ in path.parent.glob("*.json")) >= _MOST_PROPOSALS:
            raise RefusedError(
                f"there are {_MOST_PROPOSALS} proposals already", place=str(path.parent), fix="remove old ones"
            )
        keep(path, data)
    return proposal


def pending(folder: Path) -> tuple[Pending, ...]:
    """The proposals in a node's folder, oldest first. One that was altered is left out, logged."""
    link, found = read_link(folder), []
    with open_records(folder) as records:
        for path in sorted((folder / PROPOSALS).glob("*.json")):
            try:
                proposal = _verified(read_kept(path), str(path), link)
            except CohortiumError as error:
                _log.warning("left out: %s", error)
                continue
            found.append(Pending(proposal, state_of(folder, records, proposal.plan)))
    return tuple(sorted(found, key=lambda one: (one.proposal.made, one.proposal.plan.digest)))


def _known(path: Path, link: Link) -> Proposal | None:
    """The proposal in a file; None where there is none that verifies."""
    try:
        return _verified(read_kept(path), str(path), link)
    except CohortiumError:
        return None


def read_proposal(folder: Path, plan: str) -> Proposal:
    """The proposal of a plan by digest; `RefusedError` when there is none, or it was altered."""
    path = place_of(folder, PROPOSALS, plan)
    proposal = _verified(read_kept(path), str(path), read_link(folder))
    if proposal.plan.digest != plan:
        raise RefusedError("is a proposal of another plan", place=str(path), fix="get it from the coordinator anew")
    return proposal


def _verified(data: bytes, place: str, link: Link) -> Proposal:
    found = parse_proposal(data, place, federation=link.federation, coordinator=link.coordinator)
    return found.proposal


def state_of(folder: Path, records: NodeRecords, plan: Plan) -> State:
    """What this institution said of a plan."""
    if records.approvals.approved(plan.digest) is not None:
        return "approved"
    if place_of(folder, DECLINED, plan.digest).exists():
        return "declined"
    return "expired" if plan.expires < _today() else "new"


def place_of(folder: Path, kind: str, plan: str) -> Path:
    """Where something about a plan is kept; `RefusedError` for what is no plan's digest."""
    digits = plan.removeprefix("sha256:")
    if digits == plan or len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise RefusedError("is no plan's digest", place="plan", fix="give sha256: and 64 hexadecimal digits")
    return folder / kind / f"{digits}.json"


def read_kept(path: Path) -> bytes:
    """A file of these folders, no more of it than the largest has; `RefusedError` when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_PROPOSAL + 1)
    except OSError as error:
        raise RefusedError(
            "there is no such proposal", place=str(path), fix="`cohortium study list` names those there are"
        ) from error


def keep(path: Path, data: bytes) -> None:
    """Write a file into one of these folders, whole or not at all; `OutputError` when it cannot be written."""
    try:
        path.parent.mkdir(exist_ok=True, mode=0o700)
        write_whole(path, data)
    except OSError as error:
        raise OutputError(
            error.strerror or "cannot be written", place=str(path), fix="check space and permissions"
        ) from error


def _today() -> date:
    return datetime.now(UTC).date()
