"""Checkpoints (C2SP tlog-checkpoint): what a log commits to. Origin, number of entries, root in base64, a line each."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from urllib.parse import quote

from cohortium.governance.log.merkle import HASH_SIZE
from cohortium.governance.log.note import Note, Verifier, parse_note
from cohortium.study.errors import DataError, PlanError

__all__ = ["COORDINATOR", "Checkpoint", "log_origin", "open_checkpoint", "parse_checkpoint"]

COORDINATOR = "coordinator"
"""The last part of the origin of the coordinator's log; no institution may be called so."""

_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_MAX_SIZE = 2**63 - 1


@dataclass(frozen=True)
class Checkpoint:
    """A log at one of its sizes.

    Args:
        origin: which log.
        size: number of entries.
        root: the Merkle root of the first `size` entries, 32 bytes.
    """

    origin: str
    size: int
    root: bytes

    def to_text(self) -> str:
        """The text of the note that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def log_origin(charter: str, institution: str | None = None) -> str:
    """The name of a log and of the key that signs it: `cohortium/{charter}/{institution}`, parts escaped as in URLs.

    Args:
        charter: the charter's name.
        institution: whose log, and, as a witness, whose cosignatures; None for the coordinator.

    Raises:
        PlanError: an institution goes by the coordinator's name.
    """
    if institution == COORDINATOR:
        raise PlanError(f"no institution may be called '{COORDINATOR}'", place="charter", fix="rename it")
    return f"cohortium/{quote(charter, safe='')}/{quote(institution or COORDINATOR, safe='')}"


def parse_checkpoint(text: str) -> Checkpoint:
    """A checkpoint from the text of a note; `DataError` unless it is exactly its three lines.

    Further lines, which the format allows, are refused: no log here writes any, and nobody would check them.
    """
    lines = text.split("\n")
    if len(lines) != 4 or lines[3] or not lines[0] or not _SIZE.fullmatch(lines[1]) or int(lines[1]) > _MAX_SIZE:
        raise _malformed()
    try:
        root = base64.b64decode(lines[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed() from error
    checkpoint = Checkpoint(lines[0], int(lines[1]), root)
    if len(root) != HASH_SIZE or checkpoint.to_text() != text:
        raise _malformed()
    return checkpoint


def open_checkpoint(note: str, verifier: Verifier) -> tuple[Checkpoint, Note]:
    """The checkpoint in a note that the log of `verifier` signed.

    Raises:
        DataError: malformed, of another log, or not signed by the log's key.
    """
    opened = parse_note(note)
    checkpoint = parse_checkpoint(opened.text)
    if checkpoint.origin != verifier.name:
        raise DataError("is a checkpoint of another log", place=verifier.name, fix="give a checkpoint of this log")
    if not opened.signers([verifier]):
        raise DataError("is not signed by the log's key", place=verifier.name, fix="get the checkpoint from the log")
    return checkpoint, opened


def _malformed() -> DataError:
    return DataError("is not a checkpoint", place="note", fix="get the file again, byte for byte")
