"""The audit log: a Merkle log of what an institution or the coordinator did, checkpoints of it, witnesses of others.

May import `privacy` and `study`.
Must never happen here: an entry that is changed or removed, a customer's id or value in an entry.
"""

from cohortium.governance.log.checkpoint import Checkpoint, log_origin, open_checkpoint, parse_checkpoint
from cohortium.governance.log.leaf import Leaf, fresh_leaf, parse_leaf
from cohortium.governance.log.note import (
    Cosigner,
    CosignerVerifier,
    Ed25519Signer,
    Ed25519Verifier,
    Note,
    Signer,
    Verifier,
    parse_note,
    parse_signatures,
)
from cohortium.governance.log.store import AuditLog, LogEntry

__all__ = [
    "AuditLog",
    "Checkpoint",
    "Cosigner",
    "CosignerVerifier",
    "Ed25519Signer",
    "Ed25519Verifier",
    "Leaf",
    "LogEntry",
    "Note",
    "Signer",
    "Verifier",
    "fresh_leaf",
    "log_origin",
    "open_checkpoint",
    "parse_checkpoint",
    "parse_leaf",
    "parse_note",
    "parse_signatures",
]
