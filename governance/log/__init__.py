"""The audit log: a Merkle log of what an institution or the coordinator did, checkpoints of it, witnesses of others.

May import `privacy` and `study`.
Must never happen here: an entry that is changed or removed, a customer's id or value in an entry.
"""

from cohortium.governance.log.checkpoint import COORDINATOR, Checkpoint, log_origin, open_checkpoint, parse_checkpoint
from cohortium.governance.log.joined import JoinedStore
from cohortium.governance.log.leaf import Leaf, fresh_leaf, parse_leaf
from cohortium.governance.log.merkle import leaf_hash, verify_inclusion
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
from cohortium.governance.log.proof import (
    ConsistencyProof,
    InclusionProof,
    load_proof,
    parse_proof,
    prove_consistency,
    prove_inclusion,
)
from cohortium.governance.log.quorum import LogQuorum, log_verifier, log_verifiers, member_of, quorum_for
from cohortium.governance.log.statement import Stated, open_statement
from cohortium.governance.log.store import AuditLog, LogEntry, LogReader, log_origin_of
from cohortium.governance.log.verify import Finding, LogReport, verify_log
from cohortium.governance.log.witness import (
    Known,
    ProofFailedError,
    SizeConflictError,
    Witness,
    WitnessError,
    known_logs,
)

__all__ = [
    "COORDINATOR",
    "AuditLog",
    "Checkpoint",
    "ConsistencyProof",
    "Cosigner",
    "CosignerVerifier",
    "Ed25519Signer",
    "Ed25519Verifier",
    "Finding",
    "InclusionProof",
    "JoinedStore",
    "Known",
    "Leaf",
    "LogEntry",
    "LogQuorum",
    "LogReader",
    "LogReport",
    "Note",
    "ProofFailedError",
    "Signer",
    "SizeConflictError",
    "Stated",
    "Verifier",
    "Witness",
    "WitnessError",
    "fresh_leaf",
    "known_logs",
    "leaf_hash",
    "load_proof",
    "log_origin",
    "log_origin_of",
    "log_verifier",
    "log_verifiers",
    "member_of",
    "open_checkpoint",
    "open_statement",
    "parse_checkpoint",
    "parse_leaf",
    "parse_note",
    "parse_proof",
    "parse_signatures",
    "prove_consistency",
    "prove_inclusion",
    "quorum_for",
    "verify_inclusion",
    "verify_log",
]
