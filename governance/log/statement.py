"""What an institution's log says of one contribution, proven: before it is taken, and by auditors after."""

from __future__ import annotations

from dataclasses import dataclass

from cohortium.governance.log.checkpoint import Checkpoint, open_checkpoint
from cohortium.governance.log.leaf import Leaf, parse_leaf
from cohortium.governance.log.merkle import leaf_hash, verify_consistency, verify_inclusion
from cohortium.governance.log.quorum import LogQuorum
from cohortium.study.errors import DataError
from cohortium.study.witness import Statement

__all__ = ["Stated", "open_statement"]


@dataclass(frozen=True)
class Stated:
    """A statement of which everything was proven.

    Args:
        index: of the entry in its log.
        leaf: the entry with its salt.
        hash: of the leaf, hexadecimal.
        checkpoint: the log's own, which covers the entry.
        covered: what a quorum had cosigned; None where the charter asks for no witnesses.
    """

    index: int
    leaf: Leaf
    hash: str
    checkpoint: Checkpoint
    covered: Checkpoint | None


def open_statement(statement: Statement, quorum: LogQuorum) -> Stated:
    """The entry that a statement proves.

    Formal guarantee: the log of `quorum` signed a checkpoint with the entry under it, and that checkpoint continues one
    that a quorum cosigned.

    Raises:
        DataError: a checkpoint that the log did not sign, no quorum, a log that does not continue what was witnessed,
            or no such entry in it.
    """
    checkpoint, _ = open_checkpoint(statement.checkpoint, quorum.verifier)
    covered = quorum.require(statement.cosigned or "") if quorum.needed.witnesses else None
    if covered is not None:
        _require_growth(covered, checkpoint, statement)
    data = bytes.fromhex(statement.entry)
    proof = [bytes.fromhex(part) for part in statement.inclusion]
    if not verify_inclusion(leaf_hash(data), statement.index, checkpoint.size, proof, checkpoint.root):
        raise DataError("a log entry that is not in the log", place=checkpoint.origin)
    return Stated(statement.index, parse_leaf(data), leaf_hash(data).hex(), checkpoint, covered)


def _require_growth(covered: Checkpoint, checkpoint: Checkpoint, statement: Statement) -> None:
    proofs = [[bytes.fromhex(part) for part in one.proof] for one in statement.growth if one.old == covered.size]
    sizes, roots = (covered.size, checkpoint.size), (covered.root, checkpoint.root)
    if covered.size and not any(verify_consistency(*sizes, proof, *roots) for proof in proofs):
        raise DataError("a log that does not continue what was witnessed", place=checkpoint.origin)
