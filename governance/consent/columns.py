"""Everybody's standing in memory, as columns, with a Merkle tree over them; a later state is reached by what changed.

A row is what the database holds of a person: tag and standing, 58 bytes. Rows are only appended, changed in place or
marked as gone, so that a row's number stays. The tree has 2^20 buckets, chosen by the first bits of the tag, which is a
keyed hash: after 10,000 withdrawals 10,000 buckets are hashed anew, of about ten people each.

    bucket = SHA-256(0x00 || its rows, in the order of tags)      an empty one: 32 zero bytes
    node   = SHA-256(0x01 || left || right)                       of two empty ones: 32 zero bytes
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from hashlib import blake2b, sha256

import numpy as np
from numpy.typing import NDArray

from cohortium.governance.consent.signals import SLOTS

__all__ = ["ROW", "STORED", "Columns", "Tree", "keyed_tags", "matching", "words"]

ROW = np.dtype([("tag", ">u8", (2,)), ("flags", ">u4"), ("until", ">u2", (SLOTS,)), ("bank", ">u2", (3,))])
"""A person's tag and standing, as hashed."""

STORED = np.dtype([("lookup", ">u8", (2,)), ("row", ROW)])
"""As read from the database: before the row, the keyed hash by which an id is found."""

_DEPTH = 20
_BLOCK = 1 << 14
_LAST = np.uint64((1 << (64 - _DEPTH)) - 1)
_NOTHING = bytes(64)

Words = NDArray[np.uint64]


def keyed_tags(key: bytes, ids: Sequence[str]) -> bytes:
    """A 16-byte keyed BLAKE2b tag (RFC 7693) of every id, joined."""
    return b"".join([blake2b(each.encode(), digest_size=16, key=key).digest() for each in ids])


def words(tags: bytes) -> Words:
    """Tags of 16 bytes as pairs of words, shape (n, 2)."""
    return np.frombuffer(tags, dtype=">u8").reshape(-1, 2).astype(np.uint64)


class Tree:
    """The Merkle tree over buckets of rows: the nodes that somebody is below, each level's in order."""

    def __init__(self) -> None:
        self._levels = [_Level() for _ in range(_DEPTH + 1)]

    @property
    def root(self) -> bytes:
        """32 bytes."""
        return bytes(self._levels[-1].of(np.zeros(1, dtype=np.int64)))

    def update(self, buckets: NDArray[np.int64], digests: NDArray[np.uint8]) -> None:
        """Take over the digests of these buckets, and hash every node above them anew.

        Args:
            buckets: numbers, ascending, each once; shape (n,).
            digests: see `bucket_digests`, shape (n, 32).
        """
        nodes = buckets
        self._levels[0].put(buckets, digests)
        for below, level in itertools.pairwise(self._levels):
            nodes = _distinct(nodes >> 1)
            data = below.of((nodes[:, None] * 2 + (0, 1)).reshape(-1)).tobytes()
            pairs = (data[at : at + 64] for at in range(0, len(data), 64))
            joined = b"".join([bytes(32) if pair == _NOTHING else sha256(b"\1" + pair).digest() for pair in pairs])
            level.put(nodes, np.frombuffer(joined, dtype=np.uint8).reshape(-1, 32))


class _Level:
    """Digests of a level's nodes: what stands here, and 32 zero bytes for all others."""

    def __init__(self) -> None:
        self._nodes = np.zeros(0, dtype=np.int64)
        self._digests = np.zeros((0, 32), dtype=np.uint8)

    def of(self, nodes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Digests of nodes, shape (len(nodes), 32)."""
        out = np.zeros((len(nodes), 32), dtype=np.uint8)
        at, here = self._places(nodes)
        out[here] = self._digests[at[here]]
        return out

    def put(self, nodes: NDArray[np.int64], digests: NDArray[np.uint8]) -> None:
        """Set digests of nodes, which ascend and are distinct."""
        at, here = self._places(nodes)
        self._digests[at[here]] = digests[here]
        if not here.all():
            self._nodes = np.insert(self._nodes, at[~here], nodes[~here])
            self._digests = np.insert(self._digests, at[~here], digests[~here], axis=0)

    def _places(self, nodes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where nodes stand or would stand, and which do."""
        at = np.searchsorted(self._nodes, nodes)
        here = at < len(self._nodes)
        here[here] = self._nodes[at[here]] == nodes[here]
        return at, here


def bucket_digests(rows: NDArray[np.void], starts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Digests of buckets, shape (buckets, 32).

    Args:
        rows: in the order of buckets and tags, dtype `ROW`.
        starts: where each bucket's rows begin, and where the last one's end; shape (buckets + 1,).
    """
    data, ends = memoryview(rows.tobytes()), (starts * ROW.itemsize).tolist()
    digests = [sha256(b"\0" + data[a:b]).digest() if b > a else bytes(32) for a, b in itertools.pairwise(ends)]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32)


class Columns:
    """Everybody's standing up to `sequence`.

    Args:
        stored: rows of `STORED`, one for each person, in any order.
        sequence: the last event that they cover.
    """

    def __init__(self, stored: NDArray[np.void], sequence: int) -> None:
        self.sequence = sequence
        self.rows: NDArray[np.void] = np.ascontiguousarray(stored["row"], dtype=ROW)
        self.lookups: Words = stored["lookup"].astype(np.uint64)
        self.alive: NDArray[np.bool_] = np.ones(len(stored), dtype=np.bool_)
        self.gone = 0
        self._order, self._first = _sorted(self.rows["tag"].astype(np.uint64))
        self._tree = Tree()
        self._hash_all()

    @property
    def root(self) -> bytes:
        """Root of the tree over everybody's standing, 32 bytes."""
        return self._tree.root

    def advance(self, changed: NDArray[np.void], gone: Words, sequence: int) -> None:
        """Take over what events up to `sequence` changed.

        Args:
            changed: rows of `STORED` of people who are new or whose standing changed.
            gone: tags of people who were erased, shape (n, 2).
        """
        tags = changed["row"]["tag"].astype(np.uint64)
        where = self._find(tags)
        known, new = where >= 0, np.flatnonzero(where < 0)
        self.rows[where[known]] = changed["row"][known]
        if len(new):
            self._append(changed[new], tags[new])
        left = self._find(gone)
        if (left >= 0).any():
            self._forget(left[left >= 0])
        touched = np.concatenate([tags[:, 0], gone[:, 0]])
        self._rehash(_distinct(np.sort((touched >> np.uint64(64 - _DEPTH)).astype(np.int64))))
        self.sequence = sequence

    def _append(self, stored: NDArray[np.void], tags: Words) -> None:
        numbers = np.arange(len(self.rows), len(self.rows) + len(stored), dtype=np.int64)
        rows = np.empty(len(self.rows) + len(stored), dtype=ROW)  # concatenate would change the order of bytes
        rows[: len(self.rows)], rows[len(self.rows) :] = self.rows, stored["row"]
        self.rows = rows
        self.lookups = np.concatenate([self.lookups, stored["lookup"].astype(np.uint64)])
        self.alive = np.concatenate([self.alive, np.ones(len(stored), dtype=np.bool_)])
        inner, first = _sorted(tags)
        places = np.searchsorted(self._first, first)
        self._order = np.insert(self._order, places, numbers[inner])
        self._first = np.insert(self._first, places, first)
        if (self._first[1:] == self._first[:-1]).any():  # the second words decide
            inner, self._first = _sorted(self.rows["tag"][self._order].astype(np.uint64))
            self._order = self._order[inner]

    def _forget(self, numbers: NDArray[np.int64]) -> None:
        self.alive[numbers] = False
        self.gone += len(numbers)
        self.lookups[numbers] = 0
        kept = self.alive[self._order]
        self._order, self._first = self._order[kept], self._first[kept]
        self.rows[numbers] = np.zeros(1, dtype=ROW)

    def _find(self, tags: Words) -> NDArray[np.int64]:
        """Row numbers of tags, -1 where there is none."""
        return _match(self._first, self._order, self.rows["tag"], tags)

    def _rehash(self, buckets: NDArray[np.int64]) -> None:
        low = np.searchsorted(self._first, buckets.astype(np.uint64) << np.uint64(64 - _DEPTH))
        high = np.searchsorted(self._first, (buckets.astype(np.uint64) << np.uint64(64 - _DEPTH)) | _LAST, side="right")
        sizes = high - low
        starts = np.concatenate([[0], np.cumsum(sizes)])
        inside = np.arange(starts[-1]) - np.repeat(starts[:-1], sizes) + np.repeat(low, sizes)
        self._tree.update(buckets, bucket_digests(self.rows[self._order[inside]], starts))

    def _hash_all(self) -> None:
        used = _distinct((self._first >> np.uint64(64 - _DEPTH)).astype(np.int64))
        starts = np.searchsorted(self._first, used.astype(np.uint64) << np.uint64(64 - _DEPTH))
        ends = np.append(starts, len(self._first))
        digests = np.empty((len(used), 32), dtype=np.uint8)
        for at in range(0, len(used), _BLOCK):
            cut = ends[at : at + _BLOCK + 1]
            digests[at : at + _BLOCK] = bucket_digests(self.rows[self._order[cut[0] : cut[-1]]], cut - cut[0])
        self._tree.update(used, digests)


def _distinct(ascending: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each value once: `np.unique` hashes what is in order already, and takes ten times as long."""
    first = np.append(True, ascending[1:] != ascending[:-1])[: len(ascending)]
    return np.asarray(ascending[first])


def _sorted(tags: Words) -> tuple[NDArray[np.int64], Words]:
    """The order of tags, and their first words in it."""
    order = np.argsort(tags[:, 0])
    first = tags[order, 0]
    if (first[1:] == first[:-1]).any():  # two of 2^64 alike: the second word decides
        order = np.lexsort((tags[:, 1], tags[:, 0]))
        first = tags[order, 0]
    return order, first


def matching(tags: Words, wanted: Words) -> NDArray[np.int64]:
    """Which of these tags, shape (n, 2), each wanted one is, shape (m, 2); -1 where it is none."""
    order, first = _sorted(tags)
    return _match(first, order, tags, wanted)


def _match(first: Words, order: NDArray[np.int64], tags: NDArray[np.generic], wanted: Words) -> NDArray[np.int64]:
    """Which of `tags` each wanted one is, -1 where it is none.

    Args:
        first: first words of the tags, ascending.
        order: which tag each of them is of.
        tags: shape (n, 2).
        wanted: shape (m, 2).
    """
    found = np.full(len(wanted), -1, dtype=np.int64)
    if not len(first) or not len(wanted):
        return found
    queue = np.argsort(wanted[:, 0])
    at = np.searchsorted(first, wanted[queue, 0])
    open_ = np.flatnonzero(at < len(first))
    while len(open_):
        here = order[at[open_]]
        same = first[at[open_]] == wanted[queue[open_], 0]
        hit = same & (tags[here, 1] == wanted[queue[open_], 1])
        found[queue[open_[hit]]] = here[hit]
        at[open_] += 1
        open_ = open_[same & ~hit & (at[open_] < len(first))]
    return found
