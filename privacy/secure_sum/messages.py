"""The messages of a secure sum: canonical JSON (RFC 8785), parsed strictly, signed with Ed25519 (RFC 8032).

A message that its own serialisation would not have written, byte for byte, is refused: unknown and missing fields,
other number formats, other orders, trailing bytes. Parties are called by their place in the roster, from 0.

A signature covers the kind of message and everything else in it, so that none can serve as another.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cohortium.privacy.secure_sum.terms import MAX_PARTIES
from cohortium.study.canonical import digest_bytes
from cohortium.study.errors import RefusedError

__all__ = [
    "Consent",
    "Contributed",
    "Introduction",
    "Offer",
    "OfferHead",
    "OfferTo",
    "Opened",
    "Roster",
    "ShareRequest",
    "SumInput",
    "SurvivorSet",
    "UnmaskRequest",
    "Wire",
    "message_bytes",
    "sign",
    "verify",
    "verify_signable",
]

_MAX_BYTES = 2**20
_DOMAIN = b"cohortium.secure-sum/1 "
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Run = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Signature = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Share = Annotated[str, Field(pattern=r"^[0-9a-f]{66}$")]
Box = Annotated[str, Field(pattern=r"^[0-9a-f]{188}$")]
Name = Annotated[str, Field(min_length=1, max_length=128)]
Party = Annotated[int, Field(ge=0, lt=MAX_PARTIES)]
Round = Annotated[int, Field(ge=0, lt=2**31)]
Parties = Annotated[tuple[Party, ...], Field(max_length=MAX_PARTIES)]


class Wire(BaseModel):
    """A message."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    kind: ClassVar[bytes]

    def to_bytes(self) -> bytes:
        """The one serialisation."""
        return message_bytes(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: object) -> Self:
        """The inverse; `RefusedError` for anything that `to_bytes` would not have written."""
        if not isinstance(data, bytes) or len(data) > _MAX_BYTES:
            raise _malformed()
        try:
            message = cls.model_validate_json(data)
            canonical = message.to_bytes()
        except (ValidationError, ValueError, RecursionError):
            raise _malformed() from None
        if canonical != data:
            raise _malformed()
        return message

    @property
    def signable(self) -> bytes:
        """What a signature of this message covers: its kind and every field but the signature."""
        body = message_bytes(self.model_dump(mode="json", exclude={"signature"}))
        return _DOMAIN + self.kind + b"\0" + body

    @cached_property
    def digest(self) -> str:
        """Digest of the message."""
        return digest_bytes(self.to_bytes())


class Introduction(Wire):
    """A party's keys of one run, signed by the identity that the charter pins.

    Args:
        federation, plan, run: what the keys are for.
        institution: the party's name in the charter.
        channel_key: X25519, seals shares.
        signing_key: Ed25519, signs this run's messages.
        signature: of the identity.
    """

    kind: ClassVar[bytes] = b"introduction"
    federation: Digest
    plan: Digest
    run: Run
    institution: Name
    channel_key: Key
    signing_key: Key
    signature: Signature = "0" * 128


class Roster(Wire):
    """Who shares keys in a run, ordered by name."""

    kind: ClassVar[bytes] = b"roster"
    introductions: Annotated[tuple[Introduction, ...], Field(max_length=MAX_PARTIES)]


class OfferHead(Wire):
    """A party's public part of one round, signed by its key of the run.

    Args:
        roster: digest of the roster.
        round: attempts are numbered through a run; each round's keys serve one attempt of one question.
        party: whose.
        mask_key: X25519, fresh.
        commitment: SHA-256 of the self-mask seed, so that a wrong recovery is noticed.
        signature: of the party's signing key.
    """

    kind: ClassVar[bytes] = b"offer"
    roster: Digest
    round: Round
    party: Party
    mask_key: Key
    commitment: Digest
    signature: Signature = "0" * 128


class Offer(Wire):
    """A head, and the shares of mask key and seed, sealed to every party in the roster's order, oneself included."""

    kind: ClassVar[bytes] = b"offer with boxes"
    head: OfferHead
    boxes: Annotated[tuple[Box, ...], Field(max_length=MAX_PARTIES)]


class OfferTo(Wire):
    """An offer as one recipient gets it: the head and its own box."""

    kind: ClassVar[bytes] = b"offer to one"
    head: OfferHead
    box: Box


class SumInput(Wire):
    """Asks for a masked vector: who takes part in this round, by their offers, ordered by party."""

    kind: ClassVar[bytes] = b"input"
    run: Run
    round: Round
    offers: Annotated[tuple[OfferTo, ...], Field(max_length=MAX_PARTIES)]


class Contributed(Wire):
    """What a party signs with its masked vector: that it masked it against these parties, for this question."""

    kind: ClassVar[bytes] = b"contributed"
    roster: Digest
    round: Round
    party: Party
    question: Digest
    asked: Digest


class SurvivorSet(Wire):
    """Names the parties whose vectors are to be added up, with their notes: asks for a signature.

    Args:
        run, round, question: of which sum.
        asked: digest of the heads of all who were asked.
        survivors, dropped: a partition of those who were asked, both ascending.
        notes: signature of `Contributed` by every survivor, in their order.
    """

    kind: ClassVar[bytes] = b"survivors"
    run: Run
    round: Round
    question: Digest
    asked: Digest
    survivors: Parties
    dropped: Parties
    notes: Annotated[tuple[Signature, ...], Field(max_length=MAX_PARTIES)]


class Consent(Wire):
    """A party's signature of a survivor set, the only one it signs in a round."""

    kind: ClassVar[bytes] = b"consent"
    party: Party
    signature: Signature


class UnmaskRequest(Wire):
    """A survivor set and who signed it; nobody did where two waves suffice."""

    kind: ClassVar[bytes] = b"unmask"
    survivor_set: SurvivorSet
    consents: Annotated[tuple[Consent, ...], Field(max_length=MAX_PARTIES)]


class Opened(Wire):
    """Shares of the survivors' seeds and of the dropped parties' mask keys, and an offer for the next round.

    Args:
        run, round, party: whose answer to which sum.
        survivor_set: digest of the set.
        seeds: one for each survivor, in the set's order.
        keys: one for each dropped party, in the set's order.
        next_offer: of round + 1.
    """

    kind: ClassVar[bytes] = b"opened"
    run: Run
    round: Round
    party: Party
    survivor_set: Digest
    seeds: Annotated[tuple[Share, ...], Field(max_length=MAX_PARTIES)]
    keys: Annotated[tuple[Share, ...], Field(max_length=MAX_PARTIES)]
    next_offer: Offer


class ShareRequest(Wire):
    """Asks for an offer: at the start of a run, and of a party that missed the last wave of the previous attempt."""

    kind: ClassVar[bytes] = b"share"
    format: Literal["cohortium.secure-sum/1"] = "cohortium.secure-sum/1"
    run: Run
    round: Round
    roster: Roster


def message_bytes(document: dict[str, Any]) -> bytes:
    """The RFC 8785 canonical JSON of strings, integers below 2**53, and lists and objects of them with ASCII names.

    For these the standard library's encoder writes just that, ten times faster than one for all of JSON.
    """
    return _ENCODER.encode(document).encode()


def sign(key: Ed25519PrivateKey, message: Wire) -> str:
    """The signature of a message, in hexadecimal."""
    return key.sign(message.signable).hex()


def verify(public: bytes, signature: str, message: Wire) -> bool:
    """Whether that public key signed that message."""
    return verify_signable(public, signature, message.signable)


def verify_signable(public: bytes, signature: str, signable: bytes) -> bool:
    """Whether that public key signed the message with that `signable`: for many signatures of one message."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(bytes.fromhex(signature), signable)
    except (InvalidSignature, ValueError):
        return False
    return True


def _malformed() -> RefusedError:
    return RefusedError("malformed message", fix="run the same cohortium version on both sides")
