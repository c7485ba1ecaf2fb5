"""Verification of an evidence pack: offline, from the file and a charter that was got from elsewhere, and nothing else.

First every byte of the file, then everything that the documents say of each other. A check that has nothing to check
says so. What a pass means, and what it does not, stands in docs/evidence.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cohortium.governance.evidence.pack_reading import AlteredError, Pack, open_pack
from cohortium.governance.evidence.verify_charges import check_charges
from cohortium.governance.evidence.verify_content import Content, read_content
from cohortium.governance.evidence.verify_finding import (
    CHECKS,
    NOT_THERE,
    Finding,
    Findings,
    NothingToCheckError,
    judged,
    wrong,
)
from cohortium.governance.evidence.verify_logs import Logs, check_logs, read_logs
from cohortium.governance.evidence.verify_papers import check_papers
from cohortium.study.charter import Charter

__all__ = ["CHECKS", "Finding", "Findings", "verify_pack"]


def verify_pack(path: Path, charter: Charter) -> Findings:
    """Everything that can be found out about a pack.

    Args:
        path: the file.
        charter: of the federation, from whoever the verifier trusts to have it; never from the pack.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        pack = open_pack(path, charter)
    except AlteredError as error:
        finding = Finding("every byte", error.where, "failed", error.message)
        return Findings(None, 0, error.where, (finding,))
    content, unreadable = read_content(pack, charter)
    logs = read_logs(content, charter)
    found = [*_check_pack(pack, content, unreadable, charter, logs)]
    found += check_logs(content, charter, logs, everything=pack.manifest.plans is None)
    found += check_charges(content, logs)
    found += check_papers(content, charter, logs)
    order = {check: place for place, check in enumerate(CHECKS)}
    found.sort(key=lambda one: order[one.check])
    return Findings(pack.manifest.signer, len(pack.names), None, tuple(found))


def _check_pack(
    pack: Pack, content: Content, unreadable: list[Finding], charter: Charter, logs: Logs
) -> Iterator[Finding]:
    size, signer = pack.path.stat().st_size, pack.manifest.signer
    yield Finding("every byte", "", "passed", f"{size:,} bytes, signed by {signer}")
    yield from unreadable
    if not unreadable:
        yield judged("documents", "", partial(_documents, pack, content))
    yield judged("charter", "", partial(_charter, content, charter))
    yield judged("plans", "", partial(_plans, pack, content, charter, logs))
    yield judged("contracts", "", partial(_contracts, content))


def _documents(pack: Pack, content: Content) -> str | None:
    if not pack.names:
        return None
    others = f"; nothing is checked of {', '.join(content.others)} but the bytes" if content.others else ""
    return f"{len(pack.names)} documents{others}"


def _charter(content: Content, charter: Charter) -> str | None:
    """Of a charter that changed since, such as by a reviewer who was enrolled, keys and quorum have to be the same."""
    held = content.charter
    if held is None:
        return None
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


def _plans(pack: Pack, content: Content, charter: Charter, logs: Logs) -> str | None:
    named = {str(one.entry["plan"]) for log in logs.proven.values() for one in log.entries if "plan" in one.entry}
    named |= set(pack.manifest.plans or ())
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
