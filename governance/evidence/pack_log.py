"""A party's audit log, read for an evidence pack: entries of some plans with their proofs, and every checkpoint."""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.governance.evidence.pack_parts import KeptCheckpoint, LoggedEntry, PartyLog
from cohortium.governance.log import (
    AuditLog,
    Ed25519Signer,
    LogEntry,
    LogQuorum,
    LogReader,
    known_logs,
    leaf_hash,
    parse_checkpoint,
    parse_note,
)
from cohortium.governance.log.merkle import EMPTY_ROOT, consistency_ranges, inclusion_ranges, node_hash
from cohortium.governance.log.store import kept_rows
from cohortium.privacy.stores import has_store, open_store
from cohortium.study.errors import DataError

__all__ = ["HeldLog", "read_log"]

_PAGE = 4096


@dataclass(frozen=True)
class HeldLog:
    """A log as it was read for a pack.

    Args:
        origin: its name.
        checkpoints: every one that was kept, by size.
        cosigned: those that others cosigned, by size.
        entries: all under the last checkpoint.
        witnessed: the newest checkpoints of other logs that were cosigned in the same file.
    """

    origin: str
    checkpoints: tuple[str, ...]
    cosigned: tuple[str, ...]
    entries: tuple[LogEntry, ...]
    witnessed: tuple[str, ...]

    @property
    def plans(self) -> tuple[str, ...]:
        """The plans that entries name, in the order in which they first do."""
        return tuple(dict.fromkeys(str(one.entry["plan"]) for one in self.entries if "plan" in one.entry))

    def part(self, plans: Collection[str] | None, quorum: LogQuorum) -> PartyLog:
        """The entries of these plans, or all, with their proofs; entries that name no plan go with every part.

        Args:
            plans: digests; None for all entries.
            quorum: of the log: the largest checkpoint that it is content with is the cosigned one.

        Raises:
            DataError: the entries are not those that the newest checkpoint committed to.
        """
        tree = _Tree([leaf_hash(one.leaf.to_bytes()) for one in self.entries])
        sizes = [_size(note) for note in self.checkpoints]
        if tree.root(0, len(self.entries)) != parse_checkpoint(parse_note(self.checkpoints[-1]).text).root:
            raise DataError(
                "the audit log was altered", place=self.origin, fix="`cohortium log verify` says where; put back a copy"
            )
        checkpoints = [
            KeptCheckpoint(note=note, proof=tree.proof(consistency_ranges(before, size)))
            for note, before, size in zip(self.checkpoints, [0, *sizes], sizes, strict=False)
        ]
        entries = [
            LoggedEntry(
                index=one.index,
                entry=dict(one.entry),
                salt=one.salt,
                proof=tree.proof(inclusion_ranges(one.index, len(self.entries))),
            )
            for one in self.entries
            if plans is None or one.entry.get("plan") is None or one.entry["plan"] in plans
        ]
        return PartyLog(
            origin=self.origin,
            checkpoints=tuple(checkpoints),
            cosigned=next((note for note in reversed(self.cosigned) if quorum.satisfied(note)), None),
            entries=tuple(entries),
        )


def read_log(path: Path, key: Ed25519PrivateKey) -> HeldLog:
    """The log in a file.

    Nothing is written, unless the newest entries have no checkpoint yet: then the log signs one and keeps it.

    Args:
        path: `log.sqlite`.
        key: the log's.

    Raises:
        DataError: there is no log, or it was altered.
        RefusedError: it no longer holds what an earlier checkpoint committed to.
    """
    if not has_store(path):
        raise DataError("holds no audit log", place=str(path), fix="give the folder of a party that took part in a run")
    store = open_store(path, create=False, read_only=True)
    try:
        reader = LogReader(store)
        if reader.newest() is None or _size(reader.newest()) < reader.size:
            _sign(path, reader.origin, key)
        rows, others = kept_rows(store), known_logs(store)
        notes = {_size(note): note for note in (*rows.cosigned, *rows.checkpoints)}
        last = max(notes)
        pages = (reader.entries(start, min(start + _PAGE, last)) for start in range(0, last, _PAGE))
        return HeldLog(
            origin=reader.origin,
            checkpoints=tuple(notes[size] for size in sorted(notes)),
            cosigned=rows.cosigned,
            entries=tuple(one for page in pages for one in page),
            witnessed=tuple(known.note for known in others),
        )
    finally:
        store.dispose()


def _sign(path: Path, origin: str, key: Ed25519PrivateKey) -> None:
    store = open_store(path, create=False)
    try:
        AuditLog(store, origin, Ed25519Signer(origin, key)).checkpoint()
    finally:
        store.dispose()


def _size(note: str | None) -> int:
    return 0 if note is None else parse_checkpoint(parse_note(note).text).size


class _Tree:
    """The Merkle tree over leaves of these hashes; every subtree is hashed once."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._leaves = leaves
        self._known: dict[tuple[int, int], bytes] = {}

    def root(self, start: int, stop: int) -> bytes:
        """Of the leaves [start, stop), split as RFC 6962 does."""
        if stop - start < 2:
            return self._leaves[start] if stop > start else EMPTY_ROOT
        found = self._known.get((start, stop))
        if found is None:
            middle = start + (1 << ((stop - start - 1).bit_length() - 1))
            found = node_hash(self.root(start, middle), self.root(middle, stop))
            self._known[start, stop] = found
        return found

    def proof(self, ranges: Sequence[tuple[int, int]]) -> tuple[str, ...]:
        """The roots of these ranges, base64."""
        return tuple(base64.b64encode(self.root(start, stop)).decode() for start, stop in ranges)
