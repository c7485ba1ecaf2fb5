"""Roots and proofs against a second implementation, written from the text of RFC 6962 section 2.1 and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium.governance.log.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_ranges,
    inclusion_ranges,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)

MOST = 300
LEAVES = tuple(bytes([n % 256, n // 256]) for n in range(MOST))


@cache
def mth(start: int, stop: int) -> bytes:
    """MTH(D[start:stop]) as the RFC defines it, recursively."""
    if start == stop:
        return sha256().digest()
    if stop - start == 1:
        return sha256(b"\x00" + LEAVES[start]).digest()
    k = largest_power_below(stop - start)
    return sha256(b"\x01" + mth(start, start + k) + mth(start + k, stop)).digest()


def largest_power_below(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def path(m: int, start: int, stop: int) -> list[bytes]:
    """PATH(m, D[start:stop])."""
    n = stop - start
    if n == 1:
        return []
    k = largest_power_below(n)
    if m < k:
        return [*path(m, start, start + k), mth(start + k, stop)]
    return [*path(m - k, start + k, stop), mth(start, start + k)]


def subproof(m: int, start: int, stop: int, complete: bool) -> list[bytes]:
    """SUBPROOF(m, D[start:stop], b)."""
    n = stop - start
    if m == n:
        return [] if complete else [mth(start, stop)]
    k = largest_power_below(n)
    if m <= k:
        return [*subproof(m, start, start + k, complete), mth(start + k, stop)]
    return [*subproof(m - k, start + k, stop, False), mth(start, start + k)]


def hashes(ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    return [mth(start, stop) for start, stop in ranges]


def test_roots_of_all_sizes() -> None:
    frontier = Frontier()
    for size in range(MOST + 1):
        assert frontier.root() == mth(0, size), size
        assert Frontier().extended(map(leaf_hash, LEAVES[:size])) == frontier
        frontier = frontier.extended([leaf_hash(LEAVES[size])]) if size < MOST else frontier
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_the_known_tree_of_other_implementations() -> None:
    """The root of eight given leaves that the RFC's reference implementations test with."""
    leaves = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    root = Frontier().extended(leaf_hash(bytes.fromhex(leaf)) for leaf in leaves).root()
    assert root.hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def test_inclusion_proofs_of_all_sizes() -> None:
    for size in range(1, MOST + 1):
        root = mth(0, size)
        for index in range(size):
            proof = hashes(inclusion_ranges(index, size))
            assert proof == path(index, 0, size)
            assert verify_inclusion(mth(index, index + 1), index, size, proof, root)


def test_consistency_proofs_of_all_sizes() -> None:
    for new in range(1, MOST + 1):
        root = mth(0, new)
        for old in range(1, new + 1):
            proof = hashes(consistency_ranges(old, new))
            assert proof == subproof(old, 0, new, True)
            assert verify_consistency(old, new, proof, mth(0, old), root)


@given(st.data())
def test_a_proof_holds_for_nothing_else(data: st.DataObject) -> None:
    """Another index, size, leaf, root or proof is refused."""
    size = data.draw(st.integers(1, 120))
    index = data.draw(st.integers(0, size - 1))
    leaf, proof, root = mth(index, index + 1), path(index, 0, size), mth(0, size)
    other = data.draw(st.integers(-1, 130).filter(lambda n: n != index))
    assert not verify_inclusion(leaf, other, size, proof, root)
    assert not verify_inclusion(mth(MOST - 1, MOST), index, size, proof, root)
    assert not verify_inclusion(leaf, index, size, proof, mth(0, size + 1))
    for changed in altered(data, proof):
        assert not verify_inclusion(leaf, index, size, changed, root)


@given(st.data())
def test_a_consistency_proof_holds_for_nothing_else(data: st.DataObject) -> None:
    new = data.draw(st.integers(2, 120))
    old = data.draw(st.integers(1, new - 1))
    proof, before, after = subproof(old, 0, new, True), mth(0, old), mth(0, new)
    assert not verify_consistency(old, new, proof, mth(1, old + 1), after)
    assert not verify_consistency(old, new, proof, before, mth(1, new + 1))
    assert not verify_consistency(new, old, proof, after, before)
    for changed in altered(data, proof):
        assert not verify_consistency(old, new, changed, before, after)


def altered(data: st.DataObject, proof: list[bytes]) -> list[list[bytes]]:
    """The proof with a hash too many, one less, one that is too short, and one with another bit."""
    extra = data.draw(st.integers(0, len(proof)))
    made = [[*proof[:extra], bytes(32), *proof[extra:]]]
    if proof:
        at, bit = data.draw(st.integers(0, len(proof) - 1)), data.draw(st.integers(0, 255))
        flipped = (int.from_bytes(proof[at], "big") ^ (1 << bit)).to_bytes(32, "big")
        made += [[*proof[:at], *rest, *proof[at + 1 :]] for rest in ([], [flipped], [proof[at][:31]])]
    return made


def test_the_edges_of_consistency() -> None:
    one = mth(0, 1)
    assert verify_consistency(0, 0, [], EMPTY_ROOT, EMPTY_ROOT)
    assert verify_consistency(0, 7, [], EMPTY_ROOT, mth(0, 7))
    assert not verify_consistency(0, 7, [one], EMPTY_ROOT, mth(0, 7))
    assert not verify_consistency(0, 7, [], one, mth(0, 7))
    assert not verify_consistency(0, 0, [], one, one)
    assert not verify_consistency(7, 7, [], one, mth(0, 7))
    assert not verify_consistency(7, 7, [one], mth(0, 7), mth(0, 7))
    assert not verify_consistency(3, 7, [], mth(0, 3), mth(0, 7))
    assert not verify_consistency(4, 7, [], mth(0, 4), mth(0, 7))


def test_a_node_does_not_pass_as_a_leaf() -> None:
    left, right = mth(0, 1), mth(1, 2)
    assert node_hash(left, right) != leaf_hash(left + right)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (-1, 3), (3, 3)])
def test_there_is_no_proof_of_what_is_not_there(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="no such leaf"):
        inclusion_ranges(index, size)
    assert not verify_inclusion(bytes(32), index, size, [], bytes(32))


def test_a_frontier_holds_together_or_is_refused() -> None:
    with pytest.raises(ValueError, match="one hash"):
        Frontier(3, (bytes(32),))
    with pytest.raises(ValueError, match="shrink"):
        consistency_ranges(2, 1)


def test_a_frontier_stays_small() -> None:
    assert len(Frontier().extended(bytes(32) for _ in range(1023)).hashes) == 10
