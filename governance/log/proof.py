"""Proofs as files: an entry in a log, and a log that only grew. Whoever has the charter checks them offline.

JSON documents. Hashes are base64; checkpoints are the signed notes as they are.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from cohortium.governance.log.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint
from cohortium.governance.log.leaf import Leaf
from cohortium.governance.log.merkle import EMPTY_ROOT, leaf_hash, verify_consistency, verify_inclusion
from cohortium.governance.log.note import Verifier, parse_note
from cohortium.governance.log.store import LogReader
from cohortium.study.document import Document, validated
from cohortium.study.errors import DataError

__all__ = [
    "ConsistencyProof",
    "InclusionProof",
    "load_proof",
    "parse_proof",
    "prove_consistency",
    "prove_inclusion",
]

_Hash = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{43}=$")]
_Path = Annotated[tuple[_Hash, ...], Field(max_length=63)]
_MAX_FILE = 2**23


class InclusionProof(Document):
    """That an entry stands in a log.

    Args:
        schema_id: `cohortium.log-inclusion/1`; written `schema`.
        index: the entry's place, from 0.
        entry: the entry.
        salt: of its leaf, 64 hexadecimal digits.
        proof: Merkle inclusion proof, from the leaf upwards.
        checkpoint: signed note of a checkpoint that covers the entry.
    """

    schema_id: Annotated[Literal["cohortium.log-inclusion/1"], Field(alias="schema")] = "cohortium.log-inclusion/1"
    index: Annotated[int, Field(strict=True, ge=0, lt=2**53)]
    entry: dict[str, Any]
    salt: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    proof: _Path
    checkpoint: str

    @property
    def note(self) -> str:
        """The checkpoint that the proof ends at."""
        return self.checkpoint

    def check(self, verifier: Verifier) -> Checkpoint:
        """The log's checkpoint that the entry is proven under. Whether witnesses saw it is for a quorum to say.

        Raises:
            DataError: the checkpoint is not the log's, or the proof does not hold for this entry at this place.
        """
        checkpoint, _ = open_checkpoint(self.checkpoint, verifier)
        leaf = leaf_hash(Leaf(self.entry, self.salt).to_bytes())
        if not verify_inclusion(leaf, self.index, checkpoint.size, _hashes(self.proof), checkpoint.root):
            raise DataError(
                f"the proof does not show this entry at place {self.index}", place=checkpoint.origin, fix=_FIX
            )
        return checkpoint


class ConsistencyProof(Document):
    """That a log at a later time begins with all that it held at an earlier one: what a witness needs.

    Args:
        schema_id: `cohortium.log-consistency/1`; written `schema`.
        old: signed note of the earlier checkpoint; None for the empty log.
        new: signed note of the later one.
        proof: Merkle consistency proof.
    """

    schema_id: Annotated[Literal["cohortium.log-consistency/1"], Field(alias="schema")] = "cohortium.log-consistency/1"
    old: str | None
    new: str
    proof: _Path

    @property
    def note(self) -> str:
        """The checkpoint that the proof ends at."""
        return self.new

    @property
    def hashes(self) -> list[bytes]:
        """The proof's hashes."""
        return _hashes(self.proof)

    def old_size(self, verifier: Verifier) -> int:
        """Number of entries at the earlier time; `DataError` when that checkpoint is not the log's."""
        return 0 if self.old is None else open_checkpoint(self.old, verifier)[0].size

    def check(self, verifier: Verifier) -> Checkpoint:
        """The later checkpoint, if it continues the earlier one.

        Raises:
            DataError: a checkpoint is not the log's, or the proof does not hold.
        """
        new, _ = open_checkpoint(self.new, verifier)
        old = Checkpoint(new.origin, 0, EMPTY_ROOT) if self.old is None else open_checkpoint(self.old, verifier)[0]
        if not verify_consistency(old.size, new.size, self.hashes, old.root, new.root):
            raise DataError(
                f"the log of size {new.size} does not begin with the one of size {old.size}",
                place=new.origin,
                fix=_FIX,
            )
        return new


_FIX = "get the proof from the log again; if it still fails, the log was rewritten"


def prove_inclusion(log: LogReader, index: int, note: str) -> InclusionProof:
    """A proof that entry `index` is under a checkpoint of the log; `DataError` where the checkpoint is smaller."""
    size = parse_checkpoint(parse_note(note).text).size
    entry, proof = log.entry(index), log.inclusion(index, size)
    return InclusionProof(index=index, entry=dict(entry.entry), salt=entry.salt, proof=_texts(proof), checkpoint=note)


def prove_consistency(log: LogReader, old: str | None, new: str) -> ConsistencyProof:
    """A proof that a checkpoint of the log continues an earlier one; None is the empty log. `DataError` otherwise."""
    before, after = (0 if note is None else parse_checkpoint(parse_note(note).text).size for note in (old, new))
    return ConsistencyProof(old=old, new=new, proof=_texts(log.consistency(before, after)))


def parse_proof(text: str | bytes, place: str = "proof") -> InclusionProof | ConsistencyProof:
    """A proof of either kind from JSON; `DataError` in one line otherwise."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError("is not JSON", place=place, fix="get the file again") from error
    name = raw.get("schema") if isinstance(raw, dict) else None
    if name == "cohortium.log-inclusion/1":
        return validated(InclusionProof, raw, place, {}, DataError)
    if name == "cohortium.log-consistency/1":
        return validated(ConsistencyProof, raw, place, {}, DataError)
    raise DataError("is no proof of this version", place=place, fix="make it with `cohortium log prove`")


def load_proof(path: Path) -> InclusionProof | ConsistencyProof:
    """A proof of either kind from a file; `DataError` in one line otherwise."""
    try:
        if path.stat().st_size > _MAX_FILE:
            raise DataError("is too large for a proof", place=str(path), fix="get the file again")
        return parse_proof(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError("cannot be read", place=str(path), fix="check the path") from error


def _hashes(proof: Sequence[str]) -> list[bytes]:
    found = [base64.b64decode(text) for text in proof]
    if _texts(found) != tuple(proof):
        raise DataError("a hash of the proof is not base64", place="proof", fix=_FIX)
    return found


def _texts(proof: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(base64.b64encode(value).decode() for value in proof)
