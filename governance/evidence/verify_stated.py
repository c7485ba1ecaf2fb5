"""What institutions stated to the coordinator of their logs, read: every entry proven, all of them of one history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cohortium.governance.evidence.pack_parts import LoggedEntry, Stated
from cohortium.governance.evidence.verify_content import Content
from cohortium.governance.evidence.verify_finding import wrong
from cohortium.governance.log import Checkpoint, LogQuorum, open_statement, quorum_for
from cohortium.study.charter import Charter
from cohortium.study.errors import CohortiumError

__all__ = ["StatedLog", "read_stated"]


@dataclass(frozen=True)
class StatedLog:
    """What an institution stated.

    Args:
        leaves: its entries by their leaves' hashes, hexadecimal, in order.
        cosigned: how many of them, from the first, a quorum of others is shown to have cosigned.
    """

    leaves: Mapping[str, LoggedEntry]
    cosigned: int


def read_stated(
    content: Content, charter: Charter, roots: Mapping[str, Mapping[int, bytes]]
) -> tuple[dict[str, StatedLog], dict[str, CohortiumError]]:
    """What every institution stated, and why that of the others does not hold.

    Args:
        content: of the packs.
        charter: pins keys and quorums.
        roots: of the logs that are there themselves, by size, by party.
    """
    found: dict[str, StatedLog] = {}
    errors: dict[str, CohortiumError] = {}
    for party in content.parties.values():
        if party.stated is None:
            continue
        try:
            if party.institution is None:
                raise wrong("the coordinator states nothing to itself")
            found[party.name] = _read(party.stated, quorum_for(charter, party.institution), roots.get(party.name))
        except CohortiumError as error:
            errors[party.name] = error
    return found, errors


def _read(stated: Stated, quorum: LogQuorum, roots: Mapping[int, bytes] | None) -> StatedLog:
    leaves: dict[str, LoggedEntry] = {}
    seen: dict[int, bytes] = {}
    before = covered = -1
    for statement in stated.statements:
        one = open_statement(statement, quorum)
        if one.index <= before:
            raise wrong(f"entry {one.index} does not come after entry {before}")
        if one.covered is not None and one.covered.size <= before:
            raise wrong(f"entry {one.index} was stated when nobody had witnessed entry {before}")
        _one_history(seen, [one.checkpoint, *([] if one.covered is None else [one.covered])])
        before, covered = one.index, max(covered, one.index if one.covered is None else one.covered.size - 1)
        leaves[one.hash] = LoggedEntry(index=one.index, entry=dict(one.leaf.entry), salt=one.leaf.salt, proof=())
    closed = [quorum.require(note) for note in stated.closed]
    linked = [one.size - 1 for one in closed if one.size in seen]
    _one_history(seen, closed)
    if roots is not None:
        _same_history(seen, roots)
    cosigned = max([covered, *linked])
    return StatedLog(leaves, sum(entry.index <= cosigned for entry in leaves.values()))


def _one_history(seen: dict[int, bytes], checkpoints: list[Checkpoint]) -> None:
    for one in checkpoints:
        if seen.setdefault(one.size, one.root) != one.root:
            raise wrong(f"two logs were shown at {one.size} entries")


def _same_history(seen: Mapping[int, bytes], roots: Mapping[int, bytes]) -> None:
    """Of the log that is here: it kept every checkpoint that it signed."""
    for size, root in seen.items():
        if size not in roots:
            raise wrong(f"{size} entries were shown; the last checkpoint of the log here is of {max(roots)}")
        if roots[size] != root:
            raise wrong(f"another log was shown at {size} entries than is here")
