"""The records that travel: questions to an institution, and its one of five possible replies.

Everything is parsed strictly: an unknown or missing field, a wrong type, dtype or shape is a `RefusedError` that
quotes nothing of the message. Arrays are named, of declared dtype and shape.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cohortium.study.arrays import ArrayError, from_array, to_record
from cohortium.study.canonical import canonical_bytes, digest_bytes, digest_json
from cohortium.study.errors import RefusedError

__all__ = [
    "ACCEPTED",
    "DECLINED",
    "LogMessage",
    "PlanQuestion",
    "Question",
    "QuestionHeader",
    "Release",
    "SumMessage",
    "digest_array",
    "parse_question_request",
    "plain_reply",
    "question_request",
    "reply_kind",
    "split_log",
    "with_log",
]

_DIGEST, _RUN = r"sha256:[0-9a-f]{64}", r"[0-9a-f]{32}"
Digest = Annotated[str, Field(pattern=f"^{_DIGEST}$")]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]

ACCEPTED: Final = "accepted"
"""The reply to a plan that an institution will answer questions of."""

DECLINED: Final = "declined"
"""The one constant a coordinator learns when an institution does not answer, whatever the reason."""

SUM: Final = "secure_sum"
"""Name of the record that carries a message of a secure sum."""

LOG: Final = "log"
"""Name of the record that carries a message about audit logs."""

_MAX_ARRAY_WORDS = 2**24
_MAX_MESSAGE_BYTES = 2**20
_Scalar = TypeVar("_Scalar", bound=np.generic)
_Record = TypeVar("_Record", bound=ConfigRecord | ArrayRecord)


class QuestionHeader(BaseModel):
    """What a question says about itself; the digest covers it and the arrays."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["cohortium.question/1"] = "cohortium.question/1"
    plan: Digest
    run: Annotated[str, Field(pattern=f"^{_RUN}$")]
    phase: Name
    step: Annotated[int, Field(ge=0, le=10_000)]
    attempt: Annotated[int, Field(ge=1, le=100)]
    kind: Name
    scalars: dict[str, Any] = {}


@dataclass(frozen=True)
class Question:
    """One sum query in its slot of a run.

    Args:
        header: plan, run, phase, step, attempt, kind and JSON parameters.
        arrays: float64 parameters by name, such as centres; public values, chosen by the coordinator.
    """

    header: QuestionHeader
    arrays: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of header and arrays: what is charged, answered and never answered differently."""
        arrays = {name: digest_array(values) for name, values in self.arrays.items()}
        return digest_json({"header": self.header.model_dump(), "arrays": arrays})

    def to_record(self) -> RecordDict:
        """The message content; `from_record` is its inverse."""
        content = RecordDict({"question": ConfigRecord({"json": canonical_bytes(self.header.model_dump()).decode()})})
        content["shapes"] = ConfigRecord({name: list(values.shape) for name, values in self.arrays.items()})
        content["arrays"] = to_record({name: np.asarray(v, np.float64) for name, v in self.arrays.items()})
        return content

    @classmethod
    def from_record(cls, content: RecordDict) -> Question:
        """Parse strictly; `RefusedError` for anything that `to_record` would not have written."""
        if set(content) != {"question", "shapes", "arrays"}:
            raise _malformed()
        header = _record(content, "question", ConfigRecord)
        shapes = _record(content, "shapes", ConfigRecord)
        arrays = _record(content, "arrays", ArrayRecord)
        if set(header) != {"json"} or set(shapes) != set(arrays):
            raise _malformed()
        return cls(
            header=_parse_header(header["json"]),
            arrays={name: _array(arrays[name], np.float64, _shape(shapes[name])) for name in arrays},
        )


@dataclass(frozen=True)
class Release:
    """What left through the door: the answer to one question, and the door's seal over both.

    Args:
        question: digest of the question.
        vector: int64, the noised sum modulo 2**64.
        seal: 32 bytes; only the door that made the release can make it.
        note: with a masked vector, its institution's signature of the sum it was masked for: 64 bytes, or none.
        statement: of the institution's audit log, see `study.witness.Statement`.
    """

    question: str
    vector: NDArray[np.int64]
    seal: bytes
    note: bytes = b""
    statement: bytes = b""

    def to_record(self) -> RecordDict:
        """The message content; `from_record` is its inverse."""
        header = ConfigRecord({"question": self.question, "seal": self.seal, "note": self.note})
        header["statement"] = self.statement
        content = RecordDict({"release": header})
        content["sum"] = to_record({"vector": self.vector})
        return content

    @classmethod
    def from_record(cls, content: RecordDict, width: int | None = None) -> Release:
        """Parse strictly; with `width` the vector must have that many words."""
        if set(content) != {"release", "sum"}:
            raise _malformed()
        header = _record(content, "release", ConfigRecord)
        arrays = _record(content, "sum", ArrayRecord)
        if set(header) != {"question", "seal", "note", "statement"} or set(arrays) != {"vector"}:
            raise _malformed()
        question, seal, note, statement = (header[name] for name in ("question", "seal", "note", "statement"))
        if not isinstance(question, str) or not isinstance(seal, bytes) or len(seal) != 32:
            raise _malformed()
        if not isinstance(note, bytes) or len(note) not in (0, 64):
            raise _malformed()
        if not isinstance(statement, bytes) or len(statement) > _MAX_MESSAGE_BYTES:
            raise _malformed()
        declared = _shape(list(arrays["vector"].shape)) if width is None else (width,)
        if len(declared) != 1:
            raise _malformed()
        return cls(question, _array(arrays["vector"], np.int64, declared), seal, note, statement)


@dataclass(frozen=True)
class SumMessage:
    """A message of a secure sum, as `privacy.secure_sum` writes and reads it. Derived from keys, never from customers.

    Args:
        payload: at most 2**20 bytes.
        seal: of the door in an institution's reply: 32 bytes; empty in what the coordinator sends.
    """

    payload: bytes
    seal: bytes = b""

    def to_record(self) -> RecordDict:
        """The message content; `from_record` is its inverse."""
        return RecordDict({SUM: _to_sealed(self.payload, self.seal)})

    @classmethod
    def from_record(cls, content: RecordDict) -> SumMessage:
        """Parse strictly; `RefusedError` for anything that `to_record` would not have written."""
        return cls(*_from_sealed(content, SUM))


@dataclass(frozen=True)
class LogMessage:
    """A message about audit logs, as `study.witness` writes and reads it. It holds hashes and signatures.

    Args:
        payload: at most 2**20 bytes.
        seal: as of a `SumMessage`.
    """

    payload: bytes
    seal: bytes = b""

    def to_record(self) -> RecordDict:
        """The message content; `from_record` is its inverse."""
        return RecordDict({LOG: _to_sealed(self.payload, self.seal)})

    @classmethod
    def from_record(cls, content: RecordDict) -> LogMessage:
        """Parse strictly; `RefusedError` for anything that `to_record` would not have written."""
        return cls(*_from_sealed(content, LOG))


@dataclass(frozen=True)
class PlanQuestion:
    """Asks whether an institution answers a plan.

    Args:
        plan: its digest.
        run: 32 hexadecimal digits.
        time: the coordinator's clock, seconds since 1970 UTC: clocks that differ would disagree on the plan's expiry.
    """

    plan: str
    run: str
    time: int

    def to_record(self) -> RecordDict:
        """The message content; `from_record` is its inverse."""
        return RecordDict({"plan": ConfigRecord({"digest": self.plan, "run": self.run, "time": self.time})})

    @classmethod
    def from_record(cls, content: RecordDict) -> PlanQuestion:
        """Parse strictly; `RefusedError` for anything that `to_record` would not have written."""
        if set(content) != {"plan"}:
            raise _malformed()
        fields = _record(content, "plan", ConfigRecord)
        if set(fields) != {"digest", "run", "time"}:
            raise _malformed()
        digest, run, time = fields["digest"], fields["run"], fields["time"]
        if not isinstance(digest, str) or not re.fullmatch(_DIGEST, digest):
            raise _malformed()
        if not isinstance(run, str) or not re.fullmatch(_RUN, run) or type(time) is not int:
            raise _malformed()
        return cls(digest, run, time)


def question_request(question: Question, sum_input: bytes | None) -> RecordDict:
    """The content that asks an institution a question, with what a secure sum needs beside it."""
    content = question.to_record()
    if sum_input is not None:
        content[SUM] = ConfigRecord({"payload": sum_input, "seal": b""})
    return content


def parse_question_request(content: RecordDict) -> tuple[Question, bytes | None]:
    """The inverse of `question_request`; `RefusedError` for anything it would not have written."""
    if SUM not in content:
        return Question.from_record(content), None
    rest = RecordDict({name: record for name, record in content.items() if name != SUM})
    message = SumMessage.from_record(RecordDict({SUM: content[SUM]}))
    if message.seal:
        raise _malformed()
    return Question.from_record(rest), message.payload


def with_log(content: RecordDict, message: LogMessage | None) -> RecordDict:
    """The content, with a message about logs beside it."""
    return content if message is None else RecordDict({**content, **message.to_record()})


def split_log(content: RecordDict) -> tuple[RecordDict, LogMessage | None]:
    """The inverse of `with_log`; a content that is nothing but a message about logs stays whole."""
    if LOG not in content or len(content) == 1:
        return content, None
    rest = RecordDict({name: record for name, record in content.items() if name != LOG})
    return rest, LogMessage.from_record(RecordDict({LOG: content[LOG]}))


def plain_reply(word: Literal["accepted", "declined"]) -> RecordDict:
    """A reply that carries one of two constants and nothing else."""
    return RecordDict({"reply": ConfigRecord({"word": word})})


def reply_kind(content: RecordDict) -> Literal["accepted", "declined", "release", "secure-sum", "log"]:
    """Which of the five possible replies this is; `RefusedError` for any other content."""
    if set(content) == {"release", "sum"}:
        return "release"
    if set(content) == {LOG}:
        return "log"
    if set(content) == {SUM}:
        return "secure-sum"
    if set(content) == {"reply"}:
        word = dict(_record(content, "reply", ConfigRecord))
        if word == {"word": ACCEPTED}:
            return "accepted"
        if word == {"word": DECLINED}:
            return "declined"
    raise _malformed()


def digest_array(values: NDArray[Any]) -> str:
    """Digest of dtype, shape and little-endian bytes of an array."""
    plain = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)
    frame = canonical_bytes({"dtype": plain.dtype.str, "shape": list(plain.shape)})
    return digest_bytes(frame + b"\0" + plain.tobytes())


def _to_sealed(payload: bytes, seal: bytes) -> ConfigRecord:
    return ConfigRecord({"payload": payload, "seal": seal})


def _from_sealed(content: RecordDict, name: str) -> tuple[bytes, bytes]:
    """Payload and seal of the one record of that name."""
    if set(content) != {name}:
        raise _malformed()
    fields = _record(content, name, ConfigRecord)
    if set(fields) != {"payload", "seal"}:
        raise _malformed()
    payload, seal = fields["payload"], fields["seal"]
    if not isinstance(payload, bytes) or not isinstance(seal, bytes) or len(seal) not in (0, 32):
        raise _malformed()
    if len(payload) > _MAX_MESSAGE_BYTES:
        raise _malformed()
    return payload, seal


def _record(content: RecordDict, name: str, kind: type[_Record]) -> _Record:
    record = content[name]
    if not isinstance(record, kind):
        raise _malformed()
    return record


def _array(array: Array, dtype: type[_Scalar], shape: tuple[int, ...]) -> NDArray[_Scalar]:
    try:
        return from_array(array, dtype, shape)
    except ArrayError:
        raise _malformed() from None


def _parse_header(text: object) -> QuestionHeader:
    if not isinstance(text, str):
        raise _malformed()
    try:
        header = QuestionHeader.model_validate(json.loads(text))
        canonical = canonical_bytes(header.model_dump()).decode()
    except (ValidationError, ValueError, RecursionError):
        raise _malformed() from None
    if canonical != text:  # duplicate keys, other number formats, white space, defaults left out
        raise _malformed()
    return header


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 3:
        raise _malformed()
    if not all(type(size) is int and 0 <= size <= _MAX_ARRAY_WORDS for size in value):  # type: a bool is no size
        raise _malformed()
    if math.prod(value) > _MAX_ARRAY_WORDS:
        raise _malformed()
    return tuple(value)


def _malformed() -> RefusedError:
    return RefusedError("malformed message", fix="run the same cohortium version on both sides")
