"""Signed notes (C2SP signed-note): a text and signature lines, and the two kinds of Ed25519 signatures that logs use.

    text, ending in a newline
    (an empty line)
    — key-name base64(key id || signature)

A log signs its checkpoints with a plain signature (type 0x01); a witness adds a timestamped cosignature (type 0x04,
C2SP tlog-cosignature). `Signer` and `Verifier` are the seam through which another algorithm would come.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cohortium.study.errors import DataError, Defect

__all__ = [
    "Cosigner",
    "CosignerVerifier",
    "Ed25519Signer",
    "Ed25519Verifier",
    "Note",
    "Signature",
    "Signer",
    "Verifier",
    "key_id",
    "parse_note",
    "parse_signatures",
]

_ED25519, _COSIGNATURE = 0x01, 0x04
_MAX_NOTE, _MAX_SIGNATURES = 2**20, 2048
_REMEMBERED, _LONGEST_REMEMBERED = 4096, 1024
_DASH = "\u2014 "
_LINE = re.compile(_DASH + r"([^ ]+) ([A-Za-z0-9+/]+={0,2})")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")  # but for the newline
_NAME = re.compile(r"[^\s+\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_MAX_TIME = 2**63 - 1
_COSIGNED = b"cosignature/v1\n"


class Verifier(Protocol):
    """Somebody's public key under a name."""

    @property
    def name(self) -> str:
        """The key's name: not empty, no spaces, no plus."""
        ...

    @property
    def key_id(self) -> bytes:
        """4 bytes that with the name tell which key and algorithm made a signature."""
        ...

    def is_valid(self, text: bytes, value: bytes) -> bool:
        """Whether a signature of this key was made over the note's text."""
        ...


class Signer(Protocol):
    """Somebody's private key under a name."""

    @property
    def verifier(self) -> Verifier:
        """Its public half."""
        ...

    def sign(self, text: bytes) -> bytes:
        """The signature over a note's text."""
        ...


@dataclass(frozen=True)
class Signature:
    """One signature line: who signed, which key, and the signature's bytes."""

    name: str
    key_id: bytes
    value: bytes

    def to_line(self) -> str:
        """The line, with its newline."""
        return f"{_DASH}{self.name} {base64.b64encode(self.key_id + self.value).decode()}\n"


@dataclass(frozen=True)
class Note:
    """A text and its signatures, verified or not: nobody may rely on the text before `signers` said who signed.

    Args:
        text: ends in a newline.
        signatures: in the note's order.
    """

    text: str
    signatures: tuple[Signature, ...] = ()

    def to_text(self) -> str:
        """The note as it is written to files and messages."""
        return self.text + "\n" + "".join(signature.to_line() for signature in self.signatures)

    def signed(self, signer: Signer) -> Note:
        """The note with one more signature at its end."""
        verifier = signer.verifier
        made = Signature(verifier.name, verifier.key_id, signer.sign(self.text.encode()))
        return self.with_signatures([made])

    def with_signatures(self, more: Iterable[Signature]) -> Note:
        """The note with further signatures at its end, each at most once. None of them is verified here."""
        return replace(self, signatures=tuple(dict.fromkeys([*self.signatures, *more])))

    def signers(self, verifiers: Sequence[Verifier]) -> frozenset[str]:
        """The names of those among `verifiers` who signed.

        Signatures of other keys are ignored, also when they go by a known name.

        Raises:
            DataError: a signature of a known key does not hold: the note was altered.
        """
        known = {(verifier.name, verifier.key_id): verifier for verifier in verifiers}
        if len(known) != len(verifiers):
            raise Defect("two verifiers of one name and key id")
        text, found = self.text.encode(), set()
        for signature in self.signatures:
            verifier = known.get((signature.name, signature.key_id))
            if verifier is None:
                continue
            if not verifier.is_valid(text, signature.value):
                raise DataError(
                    "a signature of a known key does not hold", place=signature.name, fix="get the note anew"
                )
            found.add(signature.name)
        return frozenset(found)


def parse_note(text: str) -> Note:
    """A note from its text.

    Raises:
        DataError: not of the form above: no newline at the end, control characters, no signature line or a malformed
            one, base64 that is not the only one for its bytes, or above 1 MiB or 2,048 signatures.
    """
    body, separator, lines = text.rpartition("\n\n")
    if len(text) > _MAX_NOTE or not separator or not body:
        raise _malformed()
    if _CONTROL.search(body):
        raise _malformed()
    try:
        body.encode()
    except UnicodeEncodeError as error:
        raise _malformed() from error
    return Note(body + "\n", parse_signatures(lines))


def parse_signatures(lines: str) -> tuple[Signature, ...]:
    """One or more signature lines, each ending in a newline; `DataError` as in `parse_note`."""
    parts = lines.split("\n")
    if parts.pop() or not 1 <= len(parts) <= _MAX_SIGNATURES:
        raise _malformed()
    return tuple(_signature(part) for part in parts)


def _signature(line: str) -> Signature:
    found = _LINE.fullmatch(line)
    if found is None or not _is_name(found[1]):
        raise _malformed()
    try:
        data = base64.b64decode(found[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed() from error
    if len(data) < 5 or base64.b64encode(data).decode() != found[2]:
        raise _malformed()
    return Signature(found[1], data[:4], data[4:])


def _is_name(name: str) -> bool:
    """Not empty, nothing that is a space to Unicode, no plus, no control character, no surrogate."""
    return _NAME.fullmatch(name) is not None


def _malformed() -> DataError:
    return DataError("is not a signed note", place="note", fix="get the file again, byte for byte")


def key_id(name: str, kind: int, public: bytes) -> bytes:
    """The first 4 bytes of SHA-256(name, newline, type byte, public key)."""
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]


def _is_signed(public: bytes, message: bytes, value: bytes) -> bool:
    """Whether the key signed these very bytes.

    What was verified is remembered by all three, byte for byte: a run sees each checkpoint many times.
    """
    if len(value) != 64:
        return False
    check = _remembered if len(message) <= _LONGEST_REMEMBERED else _verify
    return check(public, message, value)


def _verify(public: bytes, message: bytes, value: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(value, message)
    except (InvalidSignature, ValueError):
        return False
    return True


_remembered = lru_cache(maxsize=_REMEMBERED)(_verify)


@dataclass(frozen=True)
class Ed25519Verifier:
    """A log's key: plain Ed25519 signatures over the text (type 0x01).

    Args:
        name: the key's name; a log's is its origin.
        public: 32 bytes.
    """

    name: str
    public: bytes

    def __post_init__(self) -> None:
        _check(self.name, self.public)

    @property
    def key_id(self) -> bytes:
        """See `Verifier`."""
        return key_id(self.name, _ED25519, self.public)

    def is_valid(self, text: bytes, value: bytes) -> bool:
        """See `Verifier`."""
        return _is_signed(self.public, text, value)


@dataclass(frozen=True)
class Ed25519Signer:
    """Signs a log's checkpoints; refuses, as our bug, a text that could pass for a cosignature's message."""

    name: str
    key: Ed25519PrivateKey

    @property
    def verifier(self) -> Ed25519Verifier:
        """See `Signer`."""
        return Ed25519Verifier(self.name, self.key.public_key().public_bytes_raw())

    def sign(self, text: bytes) -> bytes:
        """See `Signer`."""
        if text.startswith(_COSIGNED):
            raise Defect("a note that reads as a cosignature's message")
        return self.key.sign(text)


@dataclass(frozen=True)
class CosignerVerifier:
    """A witness's key: an 8-byte time in seconds, and an Ed25519 signature over header, time and text (type 0x04).

    Args:
        name: the witness's name.
        public: 32 bytes.
    """

    name: str
    public: bytes

    def __post_init__(self) -> None:
        _check(self.name, self.public)

    @property
    def key_id(self) -> bytes:
        """See `Verifier`."""
        return key_id(self.name, _COSIGNATURE, self.public)

    def is_valid(self, text: bytes, value: bytes) -> bool:
        """See `Verifier`."""
        seconds = int.from_bytes(value[:8], "big")
        return len(value) == 72 and seconds <= _MAX_TIME and _is_signed(self.public, _timed(seconds, text), value[8:])


@dataclass(frozen=True)
class Cosigner:
    """Cosigns a checkpoint as of a time.

    Args:
        name: the witness's name.
        key: its private key; of one witness alone, because the signed message does not name it.
        seconds: POSIX time of the cosignature.
    """

    name: str
    key: Ed25519PrivateKey
    seconds: int

    @property
    def verifier(self) -> CosignerVerifier:
        """See `Signer`."""
        return CosignerVerifier(self.name, self.key.public_key().public_bytes_raw())

    def sign(self, text: bytes) -> bytes:
        """See `Signer`."""
        if not 0 <= self.seconds <= _MAX_TIME:
            raise Defect("a cosignature outside of time")
        return self.seconds.to_bytes(8, "big") + self.key.sign(_timed(self.seconds, text))


def _timed(seconds: int, text: bytes) -> bytes:
    return _COSIGNED + b"time %d\n" % seconds + text


def _check(name: str, public: bytes) -> None:
    if not _is_name(name) or len(public) != 32:
        raise Defect("a key name with spaces, or a key that is not one of Ed25519")
