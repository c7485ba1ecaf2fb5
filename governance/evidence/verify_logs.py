"""Checks of the logs in a pack: checkpoints, entries, cosignatures, and what the parties witnessed of each other."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from cohortium.governance.evidence.pack_parts import LoggedEntry, PartyLog, Witnessed
from cohortium.governance.evidence.verify_content import Content, Party
from cohortium.governance.evidence.verify_finding import Check, Finding, NothingToCheckError, judged, nothing, wrong
from cohortium.governance.evidence.verify_stated import StatedLog, read_stated
from cohortium.governance.log import (
    COORDINATOR,
    Leaf,
    LogQuorum,
    Verifier,
    leaf_hash,
    log_verifier,
    log_verifiers,
    open_checkpoint,
    parse_checkpoint,
    parse_note,
    quorum_for,
    verify_inclusion,
)
from cohortium.governance.log.merkle import EMPTY_ROOT, verify_consistency
from cohortium.study.charter import Charter
from cohortium.study.errors import CohortiumError

__all__ = ["Logs", "ProvenLog", "check_logs", "cosigned_at", "read_logs"]

_OF_RUNS = ("admission", "release", "question", "released")
_OF_LOGS: tuple[Check, ...] = ("checkpoints", "log entries", "cosignatures")
_LAST = 2  # a node answers only what continues its cosigned log, and keeps a cosignature with the entry that follows


@dataclass(frozen=True)
class ProvenLog:
    """A log of which everything in the pack was proven.

    Args:
        size: of its last checkpoint.
        entries: the entries, in order.
        leaves: the same by their leaves' hashes, hexadecimal.
    """

    size: int
    entries: tuple[LoggedEntry, ...]
    leaves: Mapping[str, LoggedEntry]

    def of_event(self, event: str) -> Iterator[LoggedEntry]:
        """The entries of one kind."""
        return (one for one in self.entries if one.entry.get("event") == event)


@dataclass(frozen=True)
class Logs:
    """The logs of a pack, examined once.

    Args:
        roots: of the logs whose checkpoints hold, roots by size, by party.
        proven: of the logs that hold altogether, everything, by party.
        errors: why the others do not.
        stated: what institutions stated to the coordinator, by their names: entries by their leaves' hashes.
        misstated: why what the others stated does not hold.
    """

    roots: Mapping[str, Mapping[int, bytes]]
    proven: Mapping[str, ProvenLog]
    errors: Mapping[str, CohortiumError]
    stated: Mapping[str, StatedLog]
    misstated: Mapping[str, CohortiumError]

    def of(self, name: str) -> ProvenLog | None:
        """A party's log; None where it is not in the pack, `DataError` where it does not hold."""
        if name in self.errors:
            raise wrong(f"the log of {name} itself does not hold")
        return self.proven.get(name)

    def stated_by(self, name: str) -> StatedLog | None:
        """What an institution stated; None where that is not in the pack, `DataError` where it does not hold."""
        if name in self.misstated:
            raise wrong(f"what {name} stated itself does not hold")
        return self.stated.get(name)


def read_logs(content: Content, charter: Charter) -> Logs:
    """Every log's checkpoints and entries; the charter pins the keys."""
    roots: dict[str, dict[int, bytes]] = {}
    proven: dict[str, ProvenLog] = {}
    errors: dict[str, CohortiumError] = {}
    for party in content.parties.values():
        if party.log is None:
            continue
        try:
            roots[party.name] = _roots(party.log, log_verifier(charter, party.institution))
            proven[party.name] = _included(party.log, roots[party.name])
        except CohortiumError as error:
            errors[party.name] = error
    stated, misstated = read_stated(content, charter, roots)
    return Logs(roots, proven, errors, stated, misstated)


def _closed_runs(logs: Iterable[ProvenLog]) -> set[tuple[str, str]]:
    """Plan and run of what was released: the last exchange of cosignatures was part of it."""
    return {(str(one.entry.get("plan")), str(one.entry.get("run"))) for log in logs for one in log.of_event("released")}


def cosigned_at(content: Content, charter: Charter) -> Iterator[int]:
    """POSIX times of the cosignatures that hold."""
    for party in content.parties.values():
        if party.log is None or party.log.cosigned is None:
            continue
        with suppress(CohortiumError):
            quorum = quorum_for(charter, party.institution)
            quorum.cosigners(party.log.cosigned)  # whatever known keys signed holds, or this raises
            known = {(one.name, one.key_id) for one in quorum.witnesses.values()}
            for signature in parse_note(party.log.cosigned).signatures:
                if (signature.name, signature.key_id) in known:
                    yield int.from_bytes(signature.value[:8], "big")


def check_logs(content: Content, charter: Charter, logs: Logs) -> Iterator[Finding]:
    """All findings about logs.

    Args:
        content: of the pack.
        charter: pins keys and quorums.
        logs: from `read_logs`.
    """
    held = [(party, party.log) for party in content.parties.values() if party.log is not None]
    if not held:
        yield from (judged(check, "", nothing) for check in _OF_LOGS)
    for party, log in held:
        yield judged("checkpoints", party.name, partial(_checkpoints, party.name, logs))
        yield judged("log entries", party.name, partial(_entries, party, logs))
        yield judged("cosignatures", party.name, partial(_cosigned, party, log, charter, logs))
    yield from _check_witnesses(content, charter, logs)


def _roots(log: PartyLog, verifier: Verifier) -> dict[int, bytes]:
    """The roots of the log by size, once each checkpoint was shown to continue the one before."""
    if log.origin != verifier.name:
        raise wrong(f"is the log of {log.origin}")
    if not log.checkpoints:
        raise wrong("the log has no checkpoint")
    size, root, roots = 0, EMPTY_ROOT, {}
    for kept in log.checkpoints:
        checkpoint, _ = open_checkpoint(kept.note, verifier)
        if checkpoint.size in roots or not verify_consistency(
            size, checkpoint.size, _hashes(kept.proof), root, checkpoint.root
        ):
            raise wrong(f"the checkpoint of {checkpoint.size} entries does not continue the one of {size}")
        size, root = checkpoint.size, checkpoint.root
        roots[size] = root
    return roots


def _included(log: PartyLog, roots: Mapping[int, bytes]) -> ProvenLog:
    size, leaves = max(roots), {}
    before = -1
    for one in log.entries:
        leaf = leaf_hash(Leaf(one.entry, one.salt).to_bytes())
        if one.index <= before or not verify_inclusion(leaf, one.index, size, _hashes(one.proof), roots[size]):
            raise wrong(f"entry {one.index} is not in the log of {size} entries at this place")
        before, leaves[leaf.hex()] = one.index, one
    return ProvenLog(size, log.entries, leaves)


def _checkpoints(name: str, logs: Logs) -> str:
    if name not in logs.roots:
        raise logs.errors[name]
    return f"{len(logs.roots[name])} checkpoints, up to {max(logs.roots[name])} entries"


def _entries(party: Party, logs: Logs) -> str:
    """Of a pack that claims to be of everything no entry may be left out."""
    if party.name not in logs.proven:
        raise logs.errors[party.name]
    proven = logs.proven[party.name]
    if party.plans is None and len(proven.entries) < proven.size:
        indices = {one.index for one in proven.entries}
        missing = next(at for at in range(proven.size) if at not in indices)
        raise wrong(f"entry {missing} is left out, although the pack claims to be of everything")
    return f"{len(proven.entries)} of the log's {proven.size} entries"


def _cosigned(party: Party, log: PartyLog, charter: Charter, logs: Logs) -> str:
    if party.name not in logs.proven:
        raise logs.errors[party.name]
    quorum, proven = quorum_for(charter, party.institution), logs.proven[party.name]
    covered = _covered(log, quorum, logs.roots[party.name])
    bare = [one for one in proven.entries if one.index >= covered and one.entry.get("event") in _OF_RUNS]
    runs = Counter((str(one.entry.get("plan")), str(one.entry.get("run"))) for one in bare)
    closed = _closed_runs(logs.proven.values())
    for one in bare:
        run = (str(one.entry.get("plan")), str(one.entry.get("run")))
        if run in closed and one.entry.get("event") != "released":
            raise wrong(f"nobody cosigned entry {one.index}, of a run that was closed")
        if party.institution is not None and runs[run] > _LAST:
            raise wrong(f"nobody cosigned entry {one.index} and {runs[run] - 1} more of its run")
    others = len(quorum.cosigners(log.cosigned)) if log.cosigned is not None else 0
    said = f"the first {covered} entries, by {others} others"
    later = proven.size - covered
    return said if not later else f"{said}; the last {later} are signed by the log alone"


def _covered(log: PartyLog, quorum: LogQuorum, roots: Mapping[int, bytes]) -> int:
    """How many entries a quorum cosigned."""
    if log.cosigned is None:
        return max(roots) if quorum.needed.witnesses == 0 else 0
    checkpoint = quorum.require(log.cosigned)
    if roots.get(checkpoint.size) != checkpoint.root:
        raise wrong("what others cosigned is not among the log's checkpoints")
    return checkpoint.size


def _check_witnesses(content: Content, charter: Charter, logs: Logs) -> Iterator[Finding]:
    """One finding for every party that witnessed logs of others in the pack."""
    witnesses = [(party.name, party.witnessed) for party in content.parties.values() if party.witnessed is not None]
    if not witnesses:
        yield judged("witnesses", "", nothing)
    for name, witnessed in witnesses:
        yield judged("witnesses", name, partial(_seen, name, witnessed, charter, logs))


def _seen(witness: str, witnessed: Witnessed, charter: Charter, logs: Logs) -> str:
    """A log that showed its witness something else than this pack is a log with two histories."""
    verifiers = log_verifiers(charter)
    names = {log_verifier(charter, None if name == COORDINATOR else name).name: name for name in logs.roots}
    seen = 0
    for note in witnessed.checkpoints:
        origin = parse_checkpoint(parse_note(note).text).origin
        name = names.get(origin)
        if name is None or name == witness:
            continue
        checkpoint, _ = open_checkpoint(note, verifiers[origin])
        roots = logs.roots[name]
        if checkpoint.size not in roots:
            raise wrong(f"saw {checkpoint.size} entries of the log of {name}; its last checkpoint here is {max(roots)}")
        if roots[checkpoint.size] != checkpoint.root:
            raise wrong(f"saw another log of {name} at {checkpoint.size} entries")
        seen += 1
    if not seen:
        raise NothingToCheckError("a log that it witnessed")
    return f"{seen} logs are as it saw them"


def _hashes(proof: Sequence[str]) -> list[bytes]:
    return [base64.b64decode(text) for text in proof]
