"""One node's part of an evidence pack: approvals, log, ledger, decisions, consent roots, review, of some plans or all.

Reads the node's folder, and never its customer table or consent records. What goes out is named in docs/evidence.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from cohortium.client.approving import signed_study
from cohortium.client.lookalike.activating import REVIEW_FILE
from cohortium.client.node import NodeIdentity, read_contract, read_key
from cohortium.client.store import Approval, NodeStore
from cohortium.client.witnessing import LOG_FILE
from cohortium.governance.evidence.gathering import Gathered, released_sources, study_sources
from cohortium.governance.evidence.pack import Source
from cohortium.governance.evidence.pack_log import HeldLog, read_log
from cohortium.governance.evidence.pack_parts import (
    ConsentOpening,
    ConsentOpenings,
    Decided,
    Decisions,
    Witnessed,
    ledger_extract,
    party_folder,
)
from cohortium.governance.log import LogQuorum, log_origin, quorum_for
from cohortium.governance.review import PARTS, ReviewStore, export_case
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.ledger import Ledger
from cohortium.privacy.release import consent_opening
from cohortium.privacy.stores import has_store, open_store
from cohortium.study.canonical import canonical_bytes
from cohortium.study.charter import Charter
from cohortium.study.errors import DataError, RefusedError
from cohortium.study.plan import Plan

__all__ = ["NodePart", "node_part", "of_node"]

_DATABASE, _RELEASED = "node.sqlite", "released"


@dataclass(frozen=True)
class NodePart:
    """What a node brings.

    Args:
        institution: its name.
        charter: of the newest of its plans.
        plans: the plans, by digest.
        documents: its own; plans, contracts and charter are not among them.
        key: its identity key.
    """

    institution: str
    charter: Charter
    plans: dict[str, Plan]
    documents: tuple[Source, ...]
    key: Ed25519PrivateKey


def of_node(folder: Path, plans: Sequence[str] | None, password: str | None = None) -> Gathered:
    """One node's documents, which it signs: of these plans, or of all that it holds; the rest is as for `node_part`."""
    part = node_part(folder, plans or None, password)
    gathered = Gathered(part.charter, log_origin(part.charter.name, part.institution), part.key, everything=not plans)
    contract = read_contract(folder)
    gathered.add(Source("charter.json", part.charter.to_bytes()))
    for plan in part.plans.values():
        gathered.add_plan(plan, contract)
    gathered.add_all(part.documents)
    return gathered


def node_part(folder: Path, wanted: Collection[str] | None = None, password: str | None = None) -> NodePart:
    """A node's documents.

    Args:
        folder: its state folder; a node that runs meanwhile is not disturbed.
        wanted: digests of plans that it approved; None for all that it spent anything on or decided about.
        password: of its key; found by `study.keys.find_password` when left out.

    Raises:
        DataError: there is no node, no log, no key by that password, or something in them was altered.
        RefusedError: a plan that the node did not approve, plans of several federations, or nothing to show yet.
    """
    try:
        identity = NodeIdentity.model_validate_json((folder / "node.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError("holds no node of this version", place=str(folder), fix="name a node's state folder") from error
    key = read_key(folder, password)
    with ExitStack() as stack:
        database = open_store(folder / _DATABASE, read_only=True)
        stack.callback(database.dispose)
        store = NodeStore(database)
        ledger = Ledger(database, identity.institution, budget_for(identity.lifetime_epsilon, identity.lifetime_delta))
        log = read_log(folder / LOG_FILE, key)
        approvals = _approvals(store, ledger, log, wanted)
        charter = list(approvals.values())[-1].charter
        plans = {digest: approval.plan for digest, approval in approvals.items()}
        scope = None if wanted is None else set(plans)
        decided = _decided(store, plans)
        documents = [
            *_study_documents(folder, plans, simulation=identity.simulation),
            *_log_documents(log, quorum_for(charter, identity.institution), identity.institution, scope),
            *_ledger_documents(ledger, identity.institution, plans),
            *_decision_documents(identity.institution, decided),
            *_review_documents(folder, identity.institution, None if scope is None else decided, stack),
        ]
    return NodePart(identity.institution, charter, plans, tuple(documents), key)


def _approvals(store: NodeStore, ledger: Ledger, log: HeldLog, wanted: Collection[str] | None) -> dict[str, Approval]:
    """The approvals of the plans, in the order in which the log first names them."""
    begun = dict.fromkeys([*log.plans, *(charge.slot.plan for charge in ledger.charges())])
    found: dict[str, Approval] = {}
    for digest in begun if wanted is None else wanted:
        approval = store.approved(digest)
        if approval is None or digest not in begun:
            raise RefusedError("no run of this plan was begun here", place=digest, fix="name a plan that was run here")
        found[digest] = approval
    if not found:
        raise RefusedError("nothing was run here yet", place=log.origin, fix="build a pack after the first run")
    if len({approval.charter.name for approval in found.values()}) > 1:
        raise RefusedError("plans of several federations", place=log.origin, fix="give those of one with --plan")
    return found


def _study_documents(folder: Path, plans: Collection[str], *, simulation: bool) -> list[Source]:
    """Proposals, the own approvals of them, and what came of them; simulated nodes approve without a proposal."""
    made = []
    for plan in plans:
        signed = signed_study(folder, plan, simulation=simulation)
        if signed is not None:
            made += study_sources(signed.proposal, signed.proposed, [signed.approved])
        came = sorted((folder / _RELEASED / plan.removeprefix("sha256:")).glob("[!.]*"))
        made += released_sources(plan, [(path.name, path) for path in came])
    return made


def _decided(store: NodeStore, plans: dict[str, Plan]) -> tuple[Decided, ...]:
    return tuple(
        Decided(plan=digest, decision=decision, facts=facts)
        for digest in plans
        for decision, facts in store.decisions(digest)
    )


def _log_documents(log: HeldLog, quorum: LogQuorum, institution: str, plans: Collection[str] | None) -> list[Source]:
    witnessed = Witnessed(institution=institution, checkpoints=log.witnessed)
    return [
        _made(institution, "log", log.part(plans, quorum).to_bytes()),
        _made(institution, "witnessed", witnessed.to_bytes()),
    ]


def _ledger_documents(ledger: Ledger, institution: str, plans: dict[str, Plan]) -> list[Source]:
    ledger.verify()
    charges = [charge for charge in ledger.charges() if charge.slot.plan in plans]
    openings = []
    for charge in charges:
        reply = ledger.replay(charge.slot, charge.question)
        if reply is not None:
            opening = consent_opening(reply, charge.width)
            openings.append(ConsentOpening(charge=charge.sequence, root=opening["consent_root"], salt=opening["salt"]))
    consent = ConsentOpenings(institution=institution, openings=tuple(openings))
    extract = ledger_extract(institution, charges, plans)
    return [_made(institution, "ledger", extract.to_bytes()), _made(institution, "consent", consent.to_bytes())]


def _decision_documents(institution: str, decided: tuple[Decided, ...]) -> list[Source]:
    made = Decisions(institution=institution, decisions=decided)
    return [_made(institution, "decisions", made.to_bytes())] if decided else []


def _review_documents(
    folder: Path, institution: str, about: tuple[Decided, ...] | None, stack: ExitStack
) -> list[Source]:
    """Cases with their statements and the four documents that they are about: all, or those about some decisions."""
    path = folder / REVIEW_FILE
    if not has_store(path):
        return []
    engine = open_store(path, read_only=True)
    stack.callback(engine.dispose)
    store = ReviewStore(engine)
    decisions = None if about is None else {one.decision.id for one in about}
    made = []
    for case in store.cases():
        if decisions is not None and case.subject.decision not in decisions:
            continue
        place = f"reviews/{case.name}/"
        made.append(_made(institution, f"{place}case", export_case(case, store.statements(case.name))))
        made += [_made(institution, f"{place}{part}", canonical_bytes(store.document(case, part))) for part in PARTS]
    return made


def _made(institution: str, name: str, data: bytes) -> Source:
    return Source(f"{party_folder(institution)}{name}.json", data)
