"""Enrolment: the request that an institution sends, and the enrolment that the coordinator answers with.

One file each way, neither with a secret in it. Both are signed, and both have a fingerprint that people compare by
telephone: whoever only carries the files can change nothing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import AfterValidator, Field, StringConstraints

from cohortium.study.canonical import canonical_bytes
from cohortium.study.charter import has_signed, one_spelling
from cohortium.study.document import Document, read_json, validated
from cohortium.study.errors import DataError, RefusedError

__all__ = [
    "FORMS",
    "Address",
    "Enrolment",
    "EnrolmentRequest",
    "Key",
    "Name",
    "Pem",
    "ask_enrolment",
    "coordinator_fingerprint",
    "file_name",
    "host_of",
    "load_certificate",
    "load_enrolment",
    "load_request",
    "member_uri",
    "require_fingerprint",
    "transport_pem",
]

_NAME = r"^[^\s](.{0,62}[^\s])?$"
_KEY = r"^[0-9a-f]{64}$"
_SIGNATURE = r"^[0-9a-f]{128}$"
_ADDRESS = r"^([A-Za-z0-9.-]{1,253}|\[[0-9a-fA-F:]{2,39}\]):[0-9]{1,5}$"
_MAX_NAME = 64  # bytes; a certificate's common name holds no more characters, a file's name no more escapes
_DIGITS = 32

FORMS = {
    _NAME: "give a name of 1 to 64 characters on one line",
    _KEY: "give the Ed25519 public key as 64 hexadecimal digits",
    _SIGNATURE: "give the Ed25519 signature as 128 hexadecimal digits",
    _ADDRESS: "give HOST:PORT, such as 192.0.2.1:9440",
}
"""What the patterns of these documents ask for, in words."""


def _fits(name: str) -> str:
    """It fits in a certificate and a file's name."""
    if len(name.encode()) > _MAX_NAME:
        raise ValueError(f"a name has at most {_MAX_NAME} bytes of UTF-8; shorten it")
    return name


def _port_in_range(address: str) -> str:
    if not 0 < int(address.rpartition(":")[2]) < 2**16:
        raise ValueError("a port is between 1 and 65535; correct it")
    return address


Name = Annotated[str, StringConstraints(pattern=_NAME), AfterValidator(_fits), AfterValidator(one_spelling)]
"""Name of a federation, an institution, a region or a group."""

Key = Annotated[str, StringConstraints(pattern=_KEY)]
"""An Ed25519 public key in hexadecimal."""

Address = Annotated[str, StringConstraints(pattern=_ADDRESS), AfterValidator(_port_in_range)]
"""HOST:PORT; an IPv6 address in brackets."""

Pem = Annotated[str, Field(min_length=1, max_length=2**14)]
"""Something in PEM."""

_Signature = Annotated[str, StringConstraints(pattern=_SIGNATURE)]
_UNSIGNED = "0" * 128


class EnrolmentRequest(Document):
    """What an institution asks for when it joins a federation, or when it changes its transport key.

    Args:
        schema_id: `cohortium.enrolment-request/1`; written `schema` on disk.
        federation: the one that it joins; the request is good for no other.
        institution: its name.
        region: where its customers are.
        group: members of one group of companies share it.
        identity: its Ed25519 public key.
        csr: PKCS #10 request in PEM, signed by its transport key, which is on P-384.
        signature: by the identity key, of everything else here.
    """

    schema_id: Annotated[Literal["cohortium.enrolment-request/1"], Field(alias="schema")]
    federation: Name
    institution: Name
    region: Name
    group: Name | None = None
    identity: Key
    csr: Pem
    signature: _Signature

    @property
    def fingerprint(self) -> str:
        """What people compare: 128 bits of the SHA-256 of the whole request."""
        return _grouped(self.to_bytes())

    def signed_bytes(self) -> bytes:
        """What the signature covers."""
        return _labelled(self)

    def transport_key(self, place: str) -> EllipticCurvePublicKey:
        """The key of the certificate that is asked for, which signed the CSR. Nothing else of the CSR is used.

        Raises:
            RefusedError: no CSR, one that its key did not sign, or a key that is not on P-384.
        """
        fix = "make the request anew with `cohortium node init` or `cohortium node rotate`"
        try:
            asked = x509.load_pem_x509_csr(self.csr.encode())
            key, signed = asked.public_key(), asked.is_signature_valid
        except (ValueError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion) as error:
            raise RefusedError("the certificate request cannot be read", place=place, fix=fix) from error
        if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
            raise RefusedError("the transport key is not on P-384", place=place, fix=fix)
        if not signed:
            raise RefusedError("the certificate request is not signed by its own key", place=place, fix=fix)
        return key


class Enrolment(Document):
    """What the coordinator answers: the institution's certificate, and whom to talk to from now on.

    Args:
        schema_id: `cohortium.enrolment/1`; written `schema` on disk.
        federation: its name.
        institution, region, group, identity: the member, as it asked.
        address: where nodes connect to.
        coordinator: the coordinator's Ed25519 public key.
        authority: certificate of the federation's private CA, PEM.
        certificate: the member's, PEM.
        signature: by the coordinator's identity key, of everything else here.
    """

    schema_id: Annotated[Literal["cohortium.enrolment/1"], Field(alias="schema")] = "cohortium.enrolment/1"
    federation: Name
    institution: Name
    region: Name
    group: Name | None = None
    identity: Key
    address: Address
    coordinator: Key
    authority: Pem
    certificate: Pem
    signature: _Signature = _UNSIGNED

    def signed_bytes(self) -> bytes:
        """What the signature covers."""
        return _labelled(self)

    def signed(self, coordinator: Ed25519PrivateKey) -> Enrolment:
        """The enrolment under the coordinator's signature."""
        return self.model_copy(update={"signature": coordinator.sign(self.signed_bytes()).hex()})


def ask_enrolment(
    federation: str,
    institution: str,
    region: str,
    group: str | None,
    identity: Ed25519PrivateKey,
    transport: EllipticCurvePrivateKey,
) -> EnrolmentRequest:
    """An institution's request, signed by both of its keys. `DataError` for a name of the wrong form."""
    subject = x509.Name([])  # the coordinator writes the names into the certificate; a CSR's own are not looked at
    csr = x509.CertificateSigningRequestBuilder(subject).sign(transport, SHA384())
    document = {
        "schema": "cohortium.enrolment-request/1",
        "federation": federation,
        "institution": institution,
        "region": region,
        "group": group,
        "identity": identity.public_key().public_bytes_raw().hex(),
        "csr": csr.public_bytes(Encoding.PEM).decode(),
        "signature": _UNSIGNED,
    }
    asked = validated(EnrolmentRequest, document, "request", FORMS, DataError)
    return asked.model_copy(update={"signature": identity.sign(asked.signed_bytes()).hex()})


def load_request(path: Path) -> EnrolmentRequest:
    """Read a request, signed by the identity key that it names.

    Raises:
        DataError: it cannot be read, or is no request.
        RefusedError: it was altered: the identity key did not sign this.
    """
    asked = validated(EnrolmentRequest, read_json(path, DataError), str(path), FORMS, DataError)
    _require_signed(asked.identity, asked.signature, asked.signed_bytes(), path)
    return asked


def load_enrolment(path: Path) -> Enrolment:
    """Read an enrolment, signed by the coordinator that it names; errors as `load_request`.

    That it is the right coordinator, people confirm: `coordinator_fingerprint`.
    """
    found = validated(Enrolment, read_json(path, DataError), str(path), FORMS, DataError)
    _require_signed(found.coordinator, found.signature, found.signed_bytes(), path)
    return found


def _require_signed(key: str, signature: str, data: bytes, path: Path) -> None:
    if not has_signed(key, signature, data):
        raise RefusedError(
            "was altered: its signature does not fit", place=str(path), fix="have it sent again, by another way"
        )


def require_fingerprint(given: str, right: str, place: str) -> None:
    """`RefusedError` unless somebody confirmed this very fingerprint; blanks and capitals do not matter."""
    digits = "".join(given.split()).replace("-", "").lower()
    if digits != right.replace(" ", ""):
        raise RefusedError(
            "has another fingerprint than the one that was confirmed",
            place=place,
            fix="ask its sender by telephone, at a number that is not from the file's message; use nothing of it",
        )


def coordinator_fingerprint(federation: str, coordinator: str, authority: str) -> str:
    """What institutions compare before they join: over the federation's name, the coordinator's key and its CA.

    Args:
        federation: its name.
        coordinator: the coordinator's Ed25519 public key in hexadecimal.
        authority: the CA's certificate, PEM.
    """
    told = {"federation": federation, "coordinator": coordinator, "authority": authority}
    return _grouped(canonical_bytes(told))


def load_certificate(text: str, place: str) -> x509.Certificate:
    """A certificate in PEM; `RefusedError` when there is none."""
    try:
        return x509.load_pem_x509_certificate(text.encode())
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise RefusedError("holds no certificate that can be read", place=place, fix="have it sent again") from error


def member_uri(federation: str, institution: str) -> str:
    """The name by which a node's certificate names its owner."""
    return f"urn:cohortium:{quote(federation, safe='')}:{quote(institution, safe='')}"


def transport_pem(key: EllipticCurvePublicKey) -> bytes:
    """A transport key's public half in PEM, exactly as Flower sends it."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def file_name(name: str) -> str:
    """An institution's name as part of a file's name: percent-encoded, one for each name."""
    return quote(name, safe="")


def host_of(address: str) -> str:
    """The host in HOST:PORT, without brackets."""
    return address.rpartition(":")[0].strip("[]")


def _labelled(document: Document) -> bytes:
    body = document.to_json()
    del body["signature"]
    return f"{body['schema']}\n".encode() + canonical_bytes(body)


def _grouped(data: bytes) -> str:
    digits = hashlib.sha256(data).hexdigest()[:_DIGITS]
    return " ".join(digits[at : at + 4] for at in range(0, _DIGITS, 4))
