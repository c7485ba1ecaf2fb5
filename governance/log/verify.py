"""Verification of a whole log: every entry is hashed again and held against every checkpoint that anybody kept.

Who owns the file can drop its triggers, rewrite entries and compute every stored hash and signature anew. What then
still tells is a checkpoint that somebody else holds: give those as `notes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from cohortium.governance.log.checkpoint import Checkpoint, open_checkpoint
from cohortium.governance.log.leaf import parse_leaf
from cohortium.governance.log.merkle import Frontier, leaf_hash
from cohortium.governance.log.note import Verifier
from cohortium.governance.log.store import BLOCK, KeptRows, kept_rows
from cohortium.privacy.stores import has_store, open_store
from cohortium.study.errors import DataError

__all__ = ["Finding", "LogReport", "verify_log"]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was.

    Args:
        first: the first entry that can be meant; None where no entry is.
        last: the last one that can; equal to `first` where it is certain.
        message: in words.
    """

    first: int | None
    last: int | None
    message: str


@dataclass(frozen=True)
class LogReport:
    """What verification found.

    Args:
        origin: which log.
        size: entries that were hashed: up to the first gap.
        root: their root.
        checkpoints: how many checkpoints they were held against, those of others included.
        findings: in the order of entries; none where everything agrees.
    """

    origin: str
    size: int
    root: bytes
    checkpoints: int
    findings: tuple[Finding, ...]

    @property
    def first_bad(self) -> Finding | None:
        """The finding that names the first bad entry most narrowly: up to its `last`, one is certainly bad."""
        about = [finding for finding in self.findings if finding.first is not None]
        return min(about, key=lambda finding: (finding.last, -(finding.first or 0)), default=None)


def verify_log(log: Engine | Path, verifier: Verifier, *, notes: Sequence[str] = ()) -> LogReport:
    """Hash every entry of a log again and compare with all checkpoints; nothing is written.

    Formal guarantee: with no findings, the entries are exactly those that each checkpoint of `notes` committed to when
    it was signed, in their order, and what came after the largest of them agrees with the checkpoints in the file.
    Without `notes` that holds against everybody but the owner of file and key. Reads rows in pieces.

    Args:
        log: the file, or its store.
        verifier: the log's key, from the charter; its name is the log's origin.
        notes: checkpoints of this log that others hold, such as witnesses.

    Raises:
        DataError: there is no log, or a note that was given is not a checkpoint that this log signed.
    """
    held = [open_checkpoint(note, verifier)[0] for note in notes]
    if isinstance(log, Engine):
        return _verified(kept_rows(log), verifier, held)
    if not has_store(log):
        raise DataError("the audit log is missing", place=str(log), fix="put back the newest copy")
    store = open_store(log, read_only=True)
    try:
        return _verified(kept_rows(store), verifier, held)
    finally:
        store.dispose()


def _verified(rows: KeptRows, verifier: Verifier, held: Sequence[Checkpoint]) -> LogReport:
    findings: list[Finding] = []
    if rows.origin != verifier.name:
        raise DataError("is the log of another origin", place=rows.origin, fix=f"give the log of {verifier.name}")
    known = [(checkpoint, "that others hold") for checkpoint in held]
    for note in (*rows.checkpoints, *rows.cosigned):
        try:
            known.append((open_checkpoint(note, verifier)[0], "in the file"))
        except DataError as error:
            findings.append(Finding(None, None, f"a checkpoint in the file {error.message}"))
    roots, blocks, size, root = _roots(rows, {checkpoint.size for checkpoint, _ in known}, findings)
    trusted = held or [checkpoint for checkpoint, _ in known]  # the owner could have signed those in the file anew
    good = sorted(checkpoint.size for checkpoint in trusted if roots.get(checkpoint.size) == checkpoint.root)
    for first, last in blocks:
        first = max(first, _below(good, last + 1))
        findings.append(Finding(first, last, f"{_some(first, last)} not what its stored root was made of"))
    findings.extend(_compared(known, roots, size, good))
    findings.sort(key=lambda finding: (-1, -1) if finding.first is None else (finding.first, finding.last or 0))
    return LogReport(rows.origin, size, root, len(known), tuple(findings))


def _roots(
    rows: KeptRows, sizes: set[int], findings: list[Finding]
) -> tuple[dict[int, bytes], list[tuple[int, int]], int, bytes]:
    """The recomputed roots of these sizes, the blocks whose stored root is another, entries up to a gap, their root."""
    frontier, block, stored = Frontier(), Frontier(), rows.blocks()
    roots, blocks = {0: frontier.root()}, []
    for position, data, written in rows.leaves():
        if position != frontier.size:
            last = position - 1
            findings.append(Finding(frontier.size, last, f"{_entries(frontier.size, last)} missing from the log"))
            break
        computed = leaf_hash(data)
        if computed != written:
            findings.append(Finding(position, position, f"entry {position} was edited: its stored hash is another"))
        elif not _is_leaf(data):
            findings.append(Finding(position, position, f"entry {position} is not a leaf in canonical JSON"))
        frontier, block = frontier.extended([computed]), block.extended([computed])
        if frontier.size in sizes:
            roots[frontier.size] = frontier.root()
        if block.size == BLOCK:
            if stored.get(position // BLOCK) != block.root():
                blocks.append((position + 1 - BLOCK, position))
            block = Frontier()
    return roots, blocks, frontier.size, frontier.root()


def _compared(
    known: Sequence[tuple[Checkpoint, str]], roots: dict[int, bytes], size: int, good: Sequence[int]
) -> Iterator[Finding]:
    """What the checkpoints say: entries up to one that agrees are good, those up to one that does not are doubtful."""
    for checkpoint, whose in dict.fromkeys(known):
        text, last = f"the checkpoint of size {checkpoint.size} {whose}", checkpoint.size - 1
        if checkpoint.size > size:
            yield Finding(size, last, f"{_entries(size, last)} missing; {text} has them")
        elif roots[checkpoint.size] != checkpoint.root:
            first = min(_below(good, checkpoint.size), max(last, 0))
            yield Finding(first, max(last, 0), f"{_some(first, last)} not what {text} committed to")


def _below(good: Sequence[int], size: int) -> int:
    """The largest of the sizes that are good and below this one; 0 where there is none."""
    return max((some for some in good if some < size), default=0)


def _some(first: int, last: int) -> str:
    return f"entry {first} is" if first >= last else f"one of the entries {first} to {last} is"


def _entries(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"


def _is_leaf(data: bytes) -> bool:
    try:
        parse_leaf(data)
    except DataError:
        return False
    return True
