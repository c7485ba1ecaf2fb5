"""Every way of tampering: found in the file, or, when its owner computed everything anew, by what a witness holds."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from rfc8785 import CanonicalizationError

from cohortium.governance.log import (
    AuditLog,
    Checkpoint,
    ConsistencyProof,
    Ed25519Signer,
    Ed25519Verifier,
    InclusionProof,
    LogReport,
    Note,
    ProofFailedError,
    SizeConflictError,
    Witness,
    fresh_leaf,
    known_logs,
    load_proof,
    log_verifier,
    parse_leaf,
    parse_proof,
    prove_consistency,
    prove_inclusion,
    quorum_for,
    verify_log,
)
from cohortium.governance.log.merkle import Frontier, leaf_hash
from cohortium.governance.log.store import BLOCK
from cohortium.privacy.ledger import open_store
from cohortium.study.canonical import canonical_bytes
from cohortium.study.charter import Charter
from cohortium.study.errors import DataError

SIZE = BLOCK + 20
LATER = 3
"""Entries after the checkpoint that the witness cosigned."""


@dataclass(frozen=True)
class Scene:
    """A log with checkpoints of sizes 10 and SIZE, the larger of which a witness cosigned, and some entries more."""

    log: AuditLog
    signer: Ed25519Signer
    path: Path
    witness: Witness
    noted: str

    def edit(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.path)) as raw, raw:
            for statement in statements:
                raw.execute(statement)

    def drop_triggers(self) -> None:
        with closing(sqlite3.connect(self.path)) as raw:
            names = [name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]
        self.edit(*(f"DROP TRIGGER {name}" for name in names))

    def recompute(self) -> None:
        """Every stored hash, root and signed checkpoint anew: all that the owner of file and key can do."""
        with closing(sqlite3.connect(self.path)) as raw, raw:
            rows = raw.execute("SELECT position, leaf FROM log_entries ORDER BY position").fetchall()
            hashes = [leaf_hash(leaf) for _, leaf in rows]
            raw.executemany(
                "UPDATE log_entries SET hash = ? WHERE position = ?", zip(hashes, [p for p, _ in rows], strict=True)
            )
            raw.execute("DELETE FROM log_blocks")
            for block in range(len(hashes) // BLOCK):
                root = Frontier().extended(hashes[block * BLOCK : (block + 1) * BLOCK]).root()
                raw.execute("INSERT INTO log_blocks VALUES (?, ?)", (block, root))
            for (size,) in raw.execute("SELECT size FROM log_checkpoints").fetchall():
                raw.execute("DELETE FROM log_cosigned")
                if size > len(hashes):
                    raw.execute("DELETE FROM log_checkpoints WHERE size = ?", (size,))
                    continue
                made = Checkpoint(self.log.origin, size, Frontier().extended(hashes[:size]).root())
                note = Note(made.to_text()).signed(self.signer).to_text()
                raw.execute("UPDATE log_checkpoints SET note = ? WHERE size = ?", (note, size))

    def verify(self, *notes: str) -> LogReport:
        return verify_log(self.path, self.signer.verifier, notes=notes)


@pytest.fixture
def scene(make_log: Callable[..., Any], keys: dict[str, Ed25519PrivateKey]) -> Scene:
    kept = make_log(10)
    kept.log.checkpoint()
    kept.log.append([{"event": "query", "step": step} for step in range(10, SIZE)])
    note = kept.log.checkpoint()
    witness = Witness(make_log(0, "west").store, "w", keys["west"])
    witness.cosign(kept.log.origin, kept.signer.verifier, 0, [], note)
    kept.log.append([{"event": "later", "step": step} for step in range(LATER)])
    return Scene(kept.log, kept.signer, kept.path, witness, note)


def edited(entry: dict[str, Any]) -> str:
    return "x'" + fresh_leaf(entry).to_bytes().hex() + "'"


SWAP = (
    "UPDATE log_entries SET position = -1 WHERE position = 40",
    "UPDATE log_entries SET position = 40 WHERE position = 41",
    "UPDATE log_entries SET position = 41 WHERE position = -1",
)
MOVE_UP = (
    "UPDATE log_entries SET position = -position - 1 WHERE position > 40",
    "UPDATE log_entries SET position = -position - 2 WHERE position < 0",
)
TAMPERINGS = {
    "edited": ((f"UPDATE log_entries SET leaf = {edited({'event': 'forged'})} WHERE position = 40",), (40, 40)),
    "edited in the last block": ((f"UPDATE log_entries SET leaf = {edited({})} WHERE position = 260",), (260, 260)),
    "another salt": (
        (f"UPDATE log_entries SET leaf = {edited({'event': 'query', 'step': 3})} WHERE position = 3",),
        (3, 3),
    ),
    "reordered": (SWAP, (10, BLOCK - 1)),
    "truncated": ((f"DELETE FROM log_entries WHERE position >= {SIZE - 1}",), (SIZE - 1, SIZE - 1)),
    "emptied": (("DELETE FROM log_entries",), (0, 9)),
    "one removed": (("DELETE FROM log_entries WHERE position = 40",), (40, 40)),
    "one removed, the rest moved up": (("DELETE FROM log_entries WHERE position = 40", *MOVE_UP), (10, BLOCK - 1)),
    "the first removed": (("DELETE FROM log_entries WHERE position = 0",), (0, 0)),
    "not a leaf": (("UPDATE log_entries SET leaf = x'7b7d' WHERE position = 5",), (5, 5)),
    "not bytes": (("UPDATE log_entries SET leaf = 7 WHERE position = 5",), (5, 5)),
}
"""What is done to the file, and the entries that are named without any help from outside."""


def test_an_honest_log_has_no_findings(scene: Scene) -> None:
    report = scene.verify(scene.noted)
    assert report.findings == ()
    assert report.first_bad is None
    assert (report.size, report.root, report.checkpoints) == (SIZE + LATER, scene.log.root(), 3)
    assert scene.verify().checkpoints == 2


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_with_the_triggers_dropped_is_found_in_the_file(scene: Scene, name: str) -> None:
    statements, named = TAMPERINGS[name]
    scene.drop_triggers()
    scene.edit(*statements)
    bad = scene.verify().first_bad
    assert bad is not None
    assert (bad.first, bad.last) == named


@pytest.mark.parametrize(
    "name", [name for name in TAMPERINGS if name not in ("not bytes", "the first removed", "one removed")]
)
def test_tampering_with_everything_recomputed_is_found_by_a_witness(scene: Scene, name: str) -> None:
    """The owner rewrote entries, hashes, roots and signed checkpoints: alone, the file is in perfect order."""
    scene.drop_triggers()
    scene.edit(*TAMPERINGS[name][0])
    scene.recompute()
    alone = scene.verify()
    if name != "not a leaf":
        assert alone.findings == ()
    (known,) = known_logs(scene.witness._store)
    bad = scene.verify(known.note).first_bad
    assert bad is not None
    assert bad.first is not None
    assert bad.first < SIZE
    assert "others hold" in "".join(finding.message for finding in scene.verify(known.note).findings)
    log = AuditLog(open_store(scene.path), scene.log.origin, scene.signer)
    log.append([{"event": "more"}] * max(1, SIZE + 1 - log.size))
    proof = log.consistency(SIZE, log.size)
    with pytest.raises((ProofFailedError, SizeConflictError)):
        scene.witness.cosign(log.origin, scene.signer.verifier, SIZE, proof, log.checkpoint())


def test_a_fork_is_found_by_whoever_saw_the_other_branch(scene: Scene, make_log: Callable[..., Any]) -> None:
    fork = make_log(SIZE, file="fork.sqlite")
    report = verify_log(fork.path, fork.signer.verifier, notes=[scene.noted])
    assert report.first_bad is not None
    assert verify_log(fork.path, fork.signer.verifier).findings == ()


def test_the_first_bad_entry_is_bounded_by_the_checkpoints_that_agree(scene: Scene) -> None:
    """With everything recomputed after entry 10, the first checkpoint still holds and narrows the search."""
    at_ten = scene.log.checkpoint_at(10)
    scene.drop_triggers()
    scene.edit(f"UPDATE log_entries SET leaf = {edited({'event': 'forged'})} WHERE position = 12")
    scene.recompute()
    bad = scene.verify(at_ten, scene.noted).first_bad
    assert bad is not None
    assert (bad.first, bad.last) == (10, SIZE - 1)


def test_a_checkpoint_that_the_owner_signed_anew_vouches_for_nothing(scene: Scene) -> None:
    scene.drop_triggers()
    scene.edit(f"UPDATE log_entries SET leaf = {edited({'event': 'forged'})} WHERE position = 3")
    scene.recompute()
    bad = scene.verify(scene.noted).first_bad
    assert bad is not None
    assert (bad.first, bad.last) == (0, SIZE - 1)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE log_blocks SET root = x'00'",
        "DELETE FROM log_blocks",
        "UPDATE log_entries SET hash = x'00' WHERE position = 7",
        "UPDATE log_checkpoints SET note = 'x'",
        "UPDATE log_checkpoints SET note = replace(note, 'sea', 'lake')",
        "UPDATE log_checkpoints SET note = 7 WHERE size = 10",
    ],
)
def test_what_is_stored_beside_the_entries_is_checked(scene: Scene, statement: str) -> None:
    scene.drop_triggers()
    scene.edit(statement)
    assert scene.verify().findings


def test_a_note_that_proves_nothing_is_refused(scene: Scene, make_log: Callable[..., Any]) -> None:
    for note in ("x", make_log(3, "south").log.checkpoint(), scene.noted.replace(f"\n{SIZE}\n", "\n7\n")):
        with pytest.raises(DataError):
            scene.verify(note)
    with pytest.raises(DataError, match="another origin"):
        verify_log(scene.path, Ed25519Verifier("cohortium/sea/south", bytes(32)))
    with pytest.raises(DataError, match="missing"):
        verify_log(scene.path.with_name("none.sqlite"), scene.signer.verifier)
    other_key = Ed25519Verifier(scene.log.origin, bytes(32))
    assert verify_log(scene.path, other_key).findings  # the kept checkpoints are not of this key


def test_verifying_writes_nothing(scene: Scene) -> None:
    scene.log._store.dispose()
    before = {path.name: path.read_bytes() for path in scene.path.parent.glob("north*")}
    scene.verify(scene.noted)
    assert {path.name: path.read_bytes() for path in scene.path.parent.glob("north*")} == before


# --- proofs as files -------------------------------------------------------------------------------------------------


def test_proofs_are_checked_with_the_charter_alone(scene: Scene, federation: Charter, tmp_path: Path) -> None:
    verifier, file = log_verifier(federation, "north"), tmp_path / "proof.json"
    for index in (0, 10, SIZE - 1):
        file.write_bytes(prove_inclusion(scene.log, index, scene.noted).to_bytes())
        inclusion = load_proof(file)
        assert isinstance(inclusion, InclusionProof)
        assert inclusion.check(verifier).size == SIZE
        assert inclusion.entry == scene.log.entry(index).entry
    for old in (None, scene.log.checkpoint_at(10), scene.noted):
        file.write_bytes(prove_consistency(scene.log, old, scene.noted).to_bytes())
        consistency = load_proof(file)
        assert isinstance(consistency, ConsistencyProof)
        assert consistency.check(verifier).size == SIZE
    assert not quorum_for(federation, "north").satisfied(inclusion.note)
    with pytest.raises(DataError, match="not among the first"):
        prove_inclusion(scene.log, SIZE, scene.noted)


def test_a_proof_is_of_one_entry_at_one_place(scene: Scene, federation: Charter) -> None:
    verifier = log_verifier(federation, "north")
    proof = prove_inclusion(scene.log, 7, scene.noted).to_json()
    for changed in (
        {"index": 8},
        {"entry": {"event": "query", "step": 8}},
        {"salt": "0" * 64},
        {"proof": proof["proof"][1:]},
        {"proof": ["A" * 42 + "B=", *proof["proof"][1:]]},
        {"checkpoint": scene.log.checkpoint_at(10)},
        {"entry": {"event": float("inf")}},
    ):
        with pytest.raises(DataError):
            InclusionProof.model_validate({**proof, **changed}).check(verifier)
    with pytest.raises(DataError):
        InclusionProof.model_validate(proof).check(log_verifier(federation, "south"))
    grown = prove_consistency(scene.log, scene.log.checkpoint_at(10), scene.noted).to_json()
    for changed in ({"proof": grown["proof"][1:]}, {"old": None}, {"old": scene.noted}, {"new": grown["old"]}):
        with pytest.raises(DataError):
            ConsistencyProof.model_validate({**grown, **changed}).check(verifier)


# --- parsers under mutation ------------------------------------------------------------------------------------------

LEAF = canonical_bytes({"entry": {"event": "query", "n": [1, 2.5, None], "\u00e9": "x"}, "salt": "ab" * 32})
PIECES = (
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\\u0061",
    b"-0",
    b"1e999",
    b"null",
    b"9" * 17,
    b"\xff",
    b"\0",
    b" ",
)


@st.composite
def mutations(draw: st.DrawFn, seed: bytes) -> bytes:
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(seed)))
        upto = min(len(seed), at + draw(st.integers(0, 40)))
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=6))
        kept, after = draw(st.sampled_from([(at, at), (at, upto), (upto, at)]))
        seed = seed[:kept] + piece + seed[after:]
    return seed


@given(mutations(LEAF))
def test_a_leaf_is_read_as_its_own_bytes_or_refused(data: bytes) -> None:
    with contextlib.suppress(DataError):
        assert parse_leaf(data).to_bytes() == data


SCALARS = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=4)
ENTRIES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))


@given(st.dictionaries(st.text(max_size=3), ENTRIES, max_size=4), st.booleans())
def test_what_the_standard_library_writes_is_taken_only_where_it_is_canonical(entry: Any, ascii_only: bool) -> None:
    """Bytes that are nearly RFC 8785: sorted and dense, but with Python's floats, integers, order and escapes."""
    value = {"entry": entry, "salt": "ab" * 32}
    data = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=ascii_only).encode(errors="replace")
    try:
        canonical = canonical_bytes(json.loads(data)) == data
    except (CanonicalizationError, UnicodeError):
        canonical = False
    try:
        parse_leaf(data)
        taken = True
    except DataError:
        taken = False
    assert taken == canonical


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        LEAF + b" ",
        LEAF.replace(b'"entry"', b'"Entry"'),
        LEAF.replace(b"ab", b"AB"),
        LEAF.replace(b"abab", b"", 1),
        b'{"entry":[],"salt":"' + b"0" * 64 + b'"}',
        b'{"entry":{"a":1,"a":1},"salt":"' + b"0" * 64 + b'"}',
        b'{"entry":{"a":NaN},"salt":"' + b"0" * 64 + b'"}',
        b'{"entry":{"a":' + b"[" * 10**5 + b"]" * 10**5 + b'},"salt":"' + b"0" * 64 + b'"}',
        b'{"entry":{"a":' + b"[" * 800 + b"]" * 800 + b'},"salt":"' + b"g" * 64 + b'"}',
        b'{"entry":{"a":"' + b"x" * 2**20 + b'"},"salt":"' + b"0" * 64 + b'"}',
    ],
)
def test_a_malformed_leaf_is_refused(data: bytes) -> None:
    with pytest.raises(DataError):
        parse_leaf(data)


SIGNER = Ed25519Signer("cohortium/sea/north", Ed25519PrivateKey.from_private_bytes(bytes(32)))
NOTE = Note(Checkpoint(SIGNER.name, 1, leaf_hash(LEAF)).to_text()).signed(SIGNER).to_text()
PROOF = InclusionProof(index=0, entry=json.loads(LEAF)["entry"], salt="ab" * 32, proof=(), checkpoint=NOTE)


@given(mutations(PROOF.to_bytes()))
def test_a_mutated_proof_is_refused_or_says_the_same(data: bytes) -> None:
    with contextlib.suppress(DataError):
        read = parse_proof(data)
        assert read.check(SIGNER.verifier) == PROOF.check(SIGNER.verifier)
        assert isinstance(read, InclusionProof)
        assert canonical_bytes(read.entry) == canonical_bytes(PROOF.entry)
