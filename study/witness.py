"""What travels about audit logs: checkpoints, proofs that logs only grow, and the cosignatures of witnesses.

Parsed strictly; `RefusedError` for anything that `to_bytes` would not have written. Checkpoints and cosignatures are
texts of `governance.log` (C2SP signed notes); here they are only carried.
"""

from __future__ import annotations

import json
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError

from cohortium.study.canonical import canonical_bytes
from cohortium.study.document import Agreed
from cohortium.study.errors import RefusedError

__all__ = ["Growth", "LogNews", "Statement", "ToCosign", "WitnessReply", "WitnessRequest", "Witnessed"]

_MAX_BYTES = 2**20
_Name = Annotated[str, Field(min_length=1, max_length=1024)]
_Note = Annotated[str, Field(min_length=1, max_length=2**16)]
_Line = Annotated[str, Field(min_length=1, max_length=2048)]
_Size = Annotated[int, Field(strict=True, ge=0, lt=2**53)]
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Proof = Annotated[tuple[_Hash, ...], Field(max_length=64)]
_Message = TypeVar("_Message", bound="_Carried")


class _Carried(Agreed):
    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_bytes(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls: type[_Message], data: bytes) -> _Message:
        """Parse strictly; `RefusedError` for anything that `to_bytes` would not have written."""
        try:
            if len(data) > _MAX_BYTES:
                raise ValueError
            message = cls.model_validate(json.loads(data))
            if message.to_bytes() != data:
                raise ValueError
        except (ValidationError, ValueError, RecursionError):
            raise RefusedError("malformed message", fix="run the same cohortium version on both sides") from None
        return message


class Growth(Agreed):
    """That a log of one size is the beginning of a larger one (RFC 9162, 2.1.4).

    Args:
        old: the smaller size.
        proof: hashes of the consistency proof, hexadecimal.
    """

    old: _Size
    proof: _Proof = ()


class LogNews(_Carried):
    """The newest checkpoint of a log.

    Args:
        checkpoint: signed by the log's owner.
        growth: how it follows from the sizes that were asked for and are not larger.
    """

    checkpoint: _Note
    growth: tuple[Growth, ...] = ()


class Statement(LogNews):
    """What goes with every contribution.

    Args:
        index: of the log entry of this very release; `checkpoint` covers it.
        entry: the leaf's bytes, hexadecimal: canonical JSON of the entry and its salt.
        inclusion: that the leaf is in the log of `checkpoint` (RFC 9162, 2.1.3).
        cosigned: the newest checkpoint that a quorum has cosigned; it covers everything before this question.
    """

    index: _Size
    entry: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){1,8192}$")]
    inclusion: _Proof
    cosigned: _Note | None


class ToCosign(Agreed):
    """A checkpoint of another's log, and how it follows from the one that the witness cosigned last."""

    growth: Growth
    checkpoint: _Note


class WitnessRequest(_Carried):
    """What the coordinator asks an institution about logs.

    Args:
        plan: digest of the plan under whose charter the logs are witnessed.
        growth_from: sizes of the institution's own log from which it is to prove its growth.
        cosigned: a checkpoint of the institution's own log with the cosignatures of others.
        to_cosign: others' checkpoints.
    """

    plan: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    growth_from: Annotated[tuple[_Size, ...], Field(max_length=1024)] = ()
    cosigned: _Note | None = None
    to_cosign: Annotated[tuple[ToCosign, ...], Field(max_length=1024)] = ()


class Witnessed(Agreed):
    """What a witness knows of one log.

    Args:
        log: its origin.
        size: of the newest checkpoint that the witness cosigned.
        line: its cosignature of the checkpoint that was just asked for; None when it did not cosign.
    """

    log: _Name
    size: _Size
    line: _Line | None = None


class WitnessReply(LogNews):
    """What an institution answers.

    Args:
        witnessed: of every log that it knows or was asked about.
    """

    witnessed: Annotated[tuple[Witnessed, ...], Field(max_length=2048)] = ()
