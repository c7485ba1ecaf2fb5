"""The coordinator's evidence: what it proposed and asked, what institutions signed and stated, what was released."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.governance.evidence.gathering import Gathered, released_sources, study_sources
from cohortium.governance.evidence.pack import Source
from cohortium.governance.evidence.pack_log import HeldLog, read_log
from cohortium.governance.evidence.pack_parts import Stated, party_folder
from cohortium.governance.log import COORDINATOR, log_origin, quorum_for
from cohortium.privacy.secure_sum import SqlOnceStore
from cohortium.privacy.stores import has_store, open_store
from cohortium.server.founding import open_coordinator
from cohortium.server.studies import Studies
from cohortium.server.witnesses import KeptStatements
from cohortium.study.charter import Charter
from cohortium.study.errors import RefusedError
from cohortium.study.witness import Statement

__all__ = ["coordinator_part", "of_coordinator"]

_LOG, _JOURNAL = "log.sqlite", "coordinator.sqlite"


def of_coordinator(folder: Path, plans: Sequence[str] | None, password: str) -> Gathered:
    """A coordinator's documents, which it signs: of these plans, or of all that it proposed.

    Nothing in it is of one institution but what that signed or stated: approvals, log entries, checkpoints. A
    coordinator that runs meanwhile is not disturbed.

    Args:
        folder: from `cohortium federation init`.
        plans: digests of proposed plans; None for all.
        password: of its keys.

    Raises:
        DataError: no coordinator there, another password, or something that was altered.
        RefusedError: a plan that was not proposed, plans of charters with other members, or nothing to show yet.
    """
    _, key = open_coordinator(folder, password)
    studies = Studies(folder)
    proposals = [studies.proposal(plan) for plan in plans or studies.plans()]
    if not proposals:
        raise RefusedError("nothing was proposed here yet", place=str(folder), fix="build a pack after the first run")
    charter = max(proposals, key=lambda one: one.made).charter
    if any(_terms(one.charter) != _terms(charter) for one in proposals):
        raise RefusedError(
            "members, keys or quorum changed between these plans",
            place=str(folder),
            fix="give fewer with --plan",
        )
    gathered = Gathered(charter, log_origin(charter.name), key, everything=not plans)
    gathered.add(Source("charter.json", charter.to_bytes()))
    for proposal in proposals:
        plan = proposal.plan.digest
        gathered.add_plan(proposal.plan, proposal.contract)
        gathered.add_all(study_sources(proposal, studies.signed(plan), studies.signed_approvals(plan)))
        gathered.add_all(released_sources(plan, [(path.name, path) for path in studies.released_files(plan)]))
    journals = dict.fromkeys(gathered.plans, folder / _JOURNAL)
    gathered.add_all(coordinator_part(folder / _LOG, key, charter, plans, journals))
    return gathered


def coordinator_part(
    log: Path, key: Ed25519PrivateKey, charter: Charter, plans: Collection[str] | None, journals: Mapping[str, Path]
) -> tuple[Source, ...]:
    """What the coordinator holds of runs: its log, and what institutions stated to it.

    Args:
        log: its audit log, `log.sqlite`.
        key: signs the log's checkpoints.
        charter: of the federation.
        plans: digests of the plans that the pack is about; None for everything.
        journals: by plan, where what was stated in its run is kept.

    Raises:
        DataError, RefusedError: as `governance.evidence.pack_log.read_log`.
    """
    held = read_log(log, key)
    part = held.part(plans, quorum_for(charter, None))
    return Source(f"{party_folder(COORDINATOR)}log.json", part.to_bytes()), *_stated(held, journals)


def _stated(held: HeldLog, journals: Mapping[str, Path]) -> Iterator[Source]:
    """Of every institution what it stated beside what was taken of it, and its last checkpoints."""
    statements: dict[str, dict[int, Statement]] = {}
    closed: dict[str, list[str]] = {}
    with ExitStack() as stack:
        kept: dict[tuple[str, str], KeptStatements] = {}
        for one in held.entries:
            plan, run = str(one.entry.get("plan")), str(one.entry.get("run"))
            if one.entry.get("event") != "question" or plan not in journals or not has_store(journals[plan]):
                continue
            if (plan, run) not in kept:
                store = open_store(journals[plan], create=False, read_only=True)
                stack.callback(store.dispose)
                kept[plan, run] = KeptStatements(SqlOnceStore(store), run)
                for name, note in kept[plan, run].closed().items():
                    closed.setdefault(name, []).append(note)
            for name, said in kept[plan, run].of(one.entry["question"], one.entry["contributions"]).items():
                statements.setdefault(name, {}).setdefault(said.index, said)
    for name, by_index in statements.items():
        in_order = tuple(by_index[index] for index in sorted(by_index))
        made = Stated(institution=name, statements=in_order, closed=tuple(closed.get(name, ())))
        yield Source(f"{party_folder(name)}stated.json", made.to_bytes())


def _terms(charter: Charter) -> tuple[object, ...]:
    """What has to be the same for one pack."""
    return charter.name, charter.coordinator, charter.institutions, charter.quorum
