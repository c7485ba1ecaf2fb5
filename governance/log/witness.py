"""Witnesses: an institution that cosigns the checkpoints of others, as long as each log only grows.

The rules are those of C2SP tlog-witness, `add-checkpoint`; its status codes are kept as `WitnessError.status`. What a
witness has cosigned is durable before the cosignature is given out, so that no crash makes it cosign two histories.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, bindparam, func, insert, inspect, select

from cohortium.governance.log.checkpoint import Checkpoint, parse_checkpoint
from cohortium.governance.log.joined import LogFile
from cohortium.governance.log.merkle import EMPTY_ROOT, verify_consistency
from cohortium.governance.log.note import Cosigner, CosignerVerifier, Note, Signature, Verifier, parse_note
from cohortium.governance.log.store import database_errors
from cohortium.privacy.store_forms import append_only
from cohortium.study.errors import DataError, RefusedError

__all__ = ["TABLES", "Known", "ProofFailedError", "SizeConflictError", "Witness", "WitnessError", "known_logs"]

_MAX_PROOF = 63

TABLES = MetaData()

_seen = Table(
    "witness_checkpoints",
    TABLES,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("origin", String, nullable=False, index=True),
    Column("size", Integer, nullable=False),
    Column("note", String, nullable=False),
)

append_only(
    _seen,
    "NEW.sequence <> (SELECT COALESCE(MAX(sequence) + 1, 0) FROM witness_checkpoints) "
    "OR EXISTS (SELECT 1 FROM witness_checkpoints WHERE origin = NEW.origin AND size >= NEW.size)",
)


# made once: SQLAlchemy takes longer to build such a statement than SQLite to answer it
_NEWEST = select(_seen.c.note).where(_seen.c.origin == bindparam("origin")).order_by(_seen.c.size.desc()).limit(1)
_NEXT = select(func.coalesce(func.max(_seen.c.sequence) + 1, 0))


class WitnessError(RefusedError):
    """A checkpoint that a witness does not cosign.

    Args:
        status: 400 malformed or shrinking, 403 not signed by the log, 404 of another log, 409 or 422 below.
        origin: of which log.
        message: what is wrong.
        fix: what to do about it.
    """

    def __init__(self, status: int, origin: str, message: str, fix: str) -> None:
        super().__init__(message, place=origin, fix=fix)
        self.status = status
        self.origin = origin


class SizeConflictError(WitnessError):
    """409: the proof does not begin where the witness stands, or the log signed two roots of one size.

    Args:
        origin: of which log.
        known_size: of the checkpoint that this witness cosigned last; 0 before the first.
        message: what is wrong.
        fix: what to do about it.
    """

    def __init__(self, origin: str, known_size: int, message: str, fix: str) -> None:
        super().__init__(409, origin, message, fix)
        self.known_size = known_size


class ProofFailedError(WitnessError):
    """422: the checkpoint does not continue the one that this witness cosigned: the log was rewritten or forked."""

    def __init__(self, origin: str) -> None:
        super().__init__(
            422, origin, "the new checkpoint does not continue the known one", "find out who rewrote the log"
        )


@dataclass(frozen=True)
class Known:
    """The newest checkpoint of a log that a witness cosigned.

    Args:
        checkpoint: origin, size and root.
        note: as the log signed it.
    """

    checkpoint: Checkpoint
    note: str


class Witness:
    """Cosigns the checkpoints of any number of logs.

    Args:
        store: from `privacy.ledger.open_store`, such as that of the institution's own log.
        name: the witness's name (`checkpoint.log_origin` of the institution).
        key: its private key.
        seconds: POSIX time; a seam for tests.
    """

    def __init__(
        self, store: LogFile, name: str, key: Ed25519PrivateKey, seconds: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._key = key
        self._seconds = seconds
        self.name = name
        with database_errors(store), store.begin() as connection:
            TABLES.create_all(connection)

    @property
    def verifier(self) -> CosignerVerifier:
        """The public half of the key that cosigns."""
        return CosignerVerifier(self.name, self._key.public_key().public_bytes_raw())

    def cosign(self, origin: str, verifier: Verifier, old_size: int, proof: Sequence[bytes], note: str) -> str:
        """The signature line with which this witness cosigns a checkpoint.

        Formal guarantee: any two checkpoints of a log that one witness ever cosigned are consistent, whatever crashes
        and whoever asks at the same time: the later one's entries begin with the earlier one's.

        Args:
            origin: the log's.
            verifier: the log's key, from the charter.
            old_size: size of the checkpoint that the witness is thought to know; 0 where it knows none.
            proof: consistency of that size with the new one; empty from 0, and between equal sizes.
            note: the new checkpoint. Cosigned again where it is the known one.

        Raises:
            SizeConflictError: the witness knows another size than `old_size`, or another root of the same size.
            ProofFailedError: the proof does not hold.
            WitnessError: malformed, shrinking, of another log or not signed by it. Nothing is recorded in any case.
        """
        opened, new = self._opened(origin, verifier, note)
        if not 0 <= old_size <= new.size:
            raise WitnessError(400, origin, "the old size is above the checkpoint's", "a log never shrinks")
        with database_errors(self._store), self._store.begin() as connection:
            known = _newest(connection, origin)
            self._check(origin, known, old_size, proof, new)
            if known is None or known.checkpoint != new:
                sequence = connection.execute(_NEXT).scalar_one()
                row = {"sequence": sequence, "origin": origin, "size": new.size, "note": note}
                connection.execute(insert(_seen).values(row))
        # committed: from here on the checkpoint is known, whether or not the cosignature arrives
        cosigner = Cosigner(self.name, self._key, int(self._seconds()))
        made = Signature(self.name, cosigner.verifier.key_id, cosigner.sign(opened.text.encode()))
        return made.to_line()

    def known(self, origin: str) -> Known | None:
        """The newest checkpoint of a log that this witness cosigned."""
        with database_errors(self._store), self._store.begin() as connection:
            return _newest(connection, origin)

    def _opened(self, origin: str, verifier: Verifier, note: str) -> tuple[Note, Checkpoint]:
        try:
            opened = parse_note(note)
            new = parse_checkpoint(opened.text)
        except DataError as error:
            raise WitnessError(400, origin, error.message, "send the log's checkpoint") from error
        if new.origin != origin or verifier.name != origin:
            raise WitnessError(404, origin, "the checkpoint is of another log", "send the log's own")
        try:
            signed = bool(opened.signers([verifier]))
        except DataError:
            signed = False
        if not signed:
            raise WitnessError(403, origin, "the checkpoint is not signed by the log", "send the log's own")
        return opened, new

    @staticmethod
    def _check(origin: str, known: Known | None, old_size: int, proof: Sequence[bytes], new: Checkpoint) -> None:
        before = known.checkpoint if known is not None else Checkpoint(origin, 0, EMPTY_ROOT)
        if before.size != old_size:
            fix = f"prove the consistency from size {before.size}"
            raise SizeConflictError(origin, before.size, f"size {before.size} is known here, not {old_size}", fix)
        if new.size == before.size and new.root != before.root:
            fix = "keep both checkpoints as evidence"
            raise SizeConflictError(origin, before.size, "the log signed another root of the same size", fix)
        too_long = len(proof) > _MAX_PROOF
        if too_long or not verify_consistency(before.size, new.size, proof, before.root, new.root):
            raise ProofFailedError(origin)


def known_logs(store: LogFile) -> tuple[Known, ...]:
    """The newest checkpoint of every log that the witness of a store cosigned, by origin."""
    with database_errors(store), store.begin() as connection:
        if _seen.name not in inspect(connection).get_table_names():
            return ()
        origins = connection.execute(select(_seen.c.origin).distinct().order_by(_seen.c.origin)).scalars().all()
        newest = [_newest(connection, origin) for origin in origins]
    return tuple(known for known in newest if known is not None)


def _newest(connection: Connection, origin: str) -> Known | None:
    note = connection.execute(_NEWEST, {"origin": origin}).scalar()
    return None if note is None else Known(parse_checkpoint(parse_note(note).text), note)
