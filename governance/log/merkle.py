"""Merkle trees of RFC 6962 (the same in RFC 9162, section 2.1): roots, inclusion proofs, consistency proofs.

Pure functions of bytes. A tree is never held: a `Frontier` is all that appending needs, and a proof is a list of ranges
of leaves whose hashes whoever holds the leaves looks up. Hashes are SHA-256, 32 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "EMPTY_ROOT",
    "HASH_SIZE",
    "Frontier",
    "consistency_ranges",
    "inclusion_ranges",
    "leaf_hash",
    "node_hash",
    "verify_consistency",
    "verify_inclusion",
]

HASH_SIZE = 32
"""Bytes of a hash."""

EMPTY_ROOT = hashlib.sha256().digest()
"""Root of the tree without leaves."""


def leaf_hash(leaf: bytes) -> bytes:
    """Hash of one leaf's bytes."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of the node above two hashes; its first byte differs from a leaf's, so neither passes as the other."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True)
class Frontier:
    """What of a tree has to be known to append to it: the roots of its whole subtrees, from left to right.

    Args:
        size: number of leaves.
        hashes: one hash for every one in the binary digits of `size`, that of the largest subtree first.

    Raises:
        ValueError: sizes and hashes do not belong together.
    """

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 0 or len(self.hashes) != self.size.bit_count():
            raise ValueError("a frontier has one hash for every binary one of its size")

    def extended(self, leaves: Iterable[bytes]) -> Frontier:
        """The frontier after appending leaves of these hashes, in amortised constant time for each."""
        size, hashes = self.size, list(self.hashes)
        for node in leaves:
            size += 1
            above = size
            while not above & 1:
                node = node_hash(hashes.pop(), node)
                above >>= 1
            hashes.append(node)
        return Frontier(size, tuple(hashes))

    def root(self) -> bytes:
        """The tree's root."""
        if not self.hashes:
            return EMPTY_ROOT
        node = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            node = node_hash(left, node)
        return node


def inclusion_ranges(index: int, size: int) -> list[tuple[int, int]]:
    """The ranges [start, stop) of leaves whose roots prove that leaf `index` is in the tree of `size` leaves.

    In the order of the proof: from the leaf upwards.

    Raises:
        ValueError: there is no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError("there is no such leaf")
    ranges, start, stop = [], 0, size
    while stop - start > 1:
        middle = _middle(start, stop)
        if index < middle:
            ranges.append((middle, stop))
            stop = middle
        else:
            ranges.append((start, middle))
            start = middle
    return ranges[::-1]


def consistency_ranges(old: int, new: int) -> list[tuple[int, int]]:
    """The ranges [start, stop) of leaves whose roots prove that the tree of `new` leaves begins with that of `old`.

    Empty where nothing has to be proven: from the empty tree, and between equal sizes.

    Raises:
        ValueError: sizes that shrink.
    """
    if not 0 <= old <= new:
        raise ValueError("a tree does not shrink")
    if old == 0:
        return []
    ranges, start, stop, known = [], 0, new, True
    while old != stop:
        middle = _middle(start, stop)
        if old <= middle:
            ranges.append((middle, stop))
            stop = middle
        else:
            ranges.append((start, middle))
            start, known = middle, False
    if not known:
        ranges.append((start, stop))
    return ranges[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether a proof shows a leaf of this hash at this place of the tree with this root (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size or not _are_hashes([leaf, root, *proof]):
        return False
    place, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            node = node_hash(sibling, node)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and node == root


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> bool:
    """Whether a proof shows that the tree of `new` leaves begins with the one of `old` (RFC 9162, 2.1.4.2)."""
    if not 0 <= old <= new or not _are_hashes([old_root, new_root, *proof]):
        return False
    if old == new:
        return not proof and old_root == new_root and (old > 0 or old_root == EMPTY_ROOT)
    if old == 0:
        return not proof and old_root == EMPTY_ROOT
    path = list(proof) if old & (old - 1) else [old_root, *proof]
    if not path:
        return False
    place, last = old - 1, new - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    of_old = of_new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            of_old, of_new = node_hash(sibling, of_old), node_hash(sibling, of_new)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            of_new = node_hash(of_new, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and of_old == old_root and of_new == new_root


def _middle(start: int, stop: int) -> int:
    """Where the tree over [start, stop) is split: after the largest power of two below its size."""
    return start + (1 << ((stop - start - 1).bit_length() - 1))


def _are_hashes(values: Iterable[bytes]) -> bool:
    return all(len(value) == HASH_SIZE for value in values)
