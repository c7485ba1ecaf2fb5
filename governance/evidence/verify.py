"""Verification of evidence packs: offline, from files and a charter that was got from elsewhere, and nothing else.

First every byte of each file, then everything that the documents say of each other, across the files. A check that has
nothing to check says so. What a pass means, and what it does not, stands in docs/evidence.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from cohortium.governance.evidence.pack_reading import AlteredError, Pack, open_pack
from cohortium.governance.evidence.verify_approvals import check_approvals
from cohortium.governance.evidence.verify_charges import check_charges
from cohortium.governance.evidence.verify_content import Content, read_content
from cohortium.governance.evidence.verify_finding import (
    CHECKS,
    NOT_THERE,
    Finding,
    Findings,
    NothingToCheckError,
    judged,
    nothing,
    wrong,
)
from cohortium.governance.evidence.verify_logs import Logs, check_logs, read_logs
from cohortium.governance.evidence.verify_papers import check_papers
from cohortium.study.charter import Charter

__all__ = ["CHECKS", "Finding", "Findings", "verify_packs"]


def verify_packs(paths: Sequence[Path], charter: Charter) -> Findings:
    """Everything that can be found out about packs of one federation, the coordinator's and nodes' of a run, say.

    Args:
        paths: the files; a document that several of them hold has to be the same.
        charter: of the federation, from whoever the verifier trusts to have it; never from a pack.

    Raises:
        DataError: a file cannot be read.
    """
    packs = []
    for path in paths:
        try:
            packs.append(open_pack(path, charter))
        except AlteredError as error:
            where = error.where if len(paths) == 1 else f"{path}: {error.where}"
            return Findings((), 0, where, (Finding("every byte", where, "failed", error.message),))
    content, unreadable = read_content(packs, charter)
    logs = read_logs(content, charter)
    found = [*_check_packs(packs, content, unreadable, charter, logs)]
    found += check_approvals(content, charter, logs)
    found += check_logs(content, charter, logs)
    found += check_charges(content, logs)
    found += check_papers(content, charter, logs)
    order = {check: place for place, check in enumerate(CHECKS)}
    found.sort(key=lambda one: order[one.check])
    signers = tuple(pack.manifest.signer for pack in packs)
    return Findings(signers, sum(len(pack.names) for pack in packs), None, tuple(found))


def _check_packs(
    packs: Sequence[Pack], content: Content, unreadable: list[Finding], charter: Charter, logs: Logs
) -> Iterator[Finding]:
    for pack in packs:
        size, about = pack.path.stat().st_size, "" if len(packs) == 1 else str(pack.path)
        yield Finding("every byte", about, "passed", f"{size:,} bytes, signed by {pack.manifest.signer}")
    yield from unreadable
    if not unreadable:
        yield judged("documents", "", partial(_documents, packs, content))
    if not content.charters:
        yield judged("charter", "", nothing)
    for path, held in content.charters.items():
        yield judged("charter", "" if len(packs) == 1 else path, partial(_charter, held, charter))
    yield judged("plans", "", partial(_plans, packs, content, charter, logs))
    yield judged("contracts", "", partial(_contracts, content))


def _documents(packs: Sequence[Pack], content: Content) -> str | None:
    count = sum(len(pack.names) for pack in packs)
    if not count:
        return None
    others = f"; nothing is checked of {', '.join(content.others)} but the bytes" if content.others else ""
    return f"{count} documents{others}"


def _charter(held: Charter, charter: Charter) -> str:
    """Of a charter that changed since, such as by a reviewer who was enrolled, keys and quorum have to be the same."""
    if held.digest == charter.digest:
        return f"of '{charter.name}', the very charter that was given"
    same = (held.name, held.coordinator, held.institutions, held.quorum) == (
        charter.name,
        charter.coordinator,
        charter.institutions,
        charter.quorum,
    )
    if not same:
        raise wrong("the pack was built under another charter: members, keys or quorum differ")
    return f"another edition of '{charter.name}', with the same members, keys and quorum"


def _plans(packs: Sequence[Pack], content: Content, charter: Charter, logs: Logs) -> str | None:
    named = {str(one.entry["plan"]) for log in logs.proven.values() for one in log.entries if "plan" in one.entry}
    named |= {plan for pack in packs for plan in pack.manifest.plans or ()}
    if missing := sorted(named - set(content.plans)):
        raise wrong(f"plan {missing[0][:19]}… is named, and is not in this pack")
    for plan in content.plans.values():
        charter.check_plan(plan, f"plan '{plan.name}'")
    return ", ".join(f"'{plan.name}'" for plan in content.plans.values()) or None


def _contracts(content: Content) -> str | None:
    found = [plan for plan in content.plans.values() if plan.contract in content.contracts]
    for plan in found:
        plan.check_contract(content.contracts[plan.contract], f"plan '{plan.name}'")
    if strays := set(content.contracts) - {plan.contract for plan in found}:
        raise wrong(f"contract {min(strays)[:19]}… is of no plan in this pack")
    if not found:
        raise NothingToCheckError("the plans' contracts")
    rest = len(content.plans) - len(found)
    return f"of {len(found)} plans" + (f"; of {rest} more {NOT_THERE}" if rest else "")
