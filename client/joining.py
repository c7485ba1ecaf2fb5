"""A node joins a federation: its keys, its request, and what it keeps of the coordinator's enrolment.

In the node's folder, besides what `node` says:

    governance.toml      what the institution declares: at first nothing
    request.json         what was asked for last
    transport.pem        private key of its TLS, encrypted
    transport.next.pem   the one that will take its place, from `rotate` until it is enrolled
    transport.crt        its certificate, by the federation's CA
    authority.crt        that CA
    link.json            the federation, the coordinator's address and identity key

The private keys are made here and never leave.
"""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID
from pydantic import Field

from cohortium.client.declaring import starter_governance
from cohortium.client.governing import GOVERNANCE_FILE
from cohortium.client.node import NodeIdentity, create_node, read_key
from cohortium.privacy.keypairs import fresh_identity, fresh_transport
from cohortium.privacy.stores import STORES_FILE
from cohortium.study.contract import Contract
from cohortium.study.document import Document, read_json, validated
from cohortium.study.enrolment import (
    FORMS,
    Address,
    Enrolment,
    EnrolmentRequest,
    Key,
    Name,
    ask_enrolment,
    coordinator_fingerprint,
    load_certificate,
    load_request,
    member_uri,
    require_fingerprint,
)
from cohortium.study.errors import DataError, OutputError, RefusedError
from cohortium.study.keys import check_password, encrypted_pem, read_transport_file, require_private_folder, write_whole

__all__ = [
    "REQUEST",
    "Link",
    "certificate_end",
    "client_context",
    "found_node",
    "join",
    "read_link",
    "read_transport_key",
    "rotate",
]

REQUEST = "request.json"

_TRANSPORT, _NEXT, _CERTIFICATE = "transport.pem", "transport.next.pem", "transport.crt"
_AUTHORITY, _LINK = "authority.crt", "link.json"


class Link(Document):
    """`link.json`: the federation that a node joined.

    Args:
        schema_id: `cohortium.link/1`; written `schema` on disk.
        federation: its name.
        institution: the node's own.
        address: where its coordinator answers.
        coordinator: the coordinator's Ed25519 public key.
    """

    schema_id: Annotated[Literal["cohortium.link/1"], Field(alias="schema")] = "cohortium.link/1"
    federation: Name
    institution: Name
    address: Address
    coordinator: Key


def found_node(
    folder: Path,
    identity: NodeIdentity,
    contract: Contract,
    password: str,
    *,
    federation: str,
    region: str,
    group: str | None = None,
) -> EnrolmentRequest:
    """Make a node's folder and keys, and its request to be enrolled. What was interrupted is finished by the same call.

    Args:
        folder: does not exist yet, or is empty but for `stores.toml` and `governance.toml`.
        identity: of the node.
        contract: its tables are read by.
        password: of its keys.
        federation: the one that it will join.
        region, group: where its customers are, and what group of companies it belongs to.

    Raises:
        OutputError: the folder holds something else, or a node already.
        DataError: a name or a password of the wrong form; a folder that is open to others.
    """
    check_password(password, "password")
    transport = fresh_transport()
    name = identity.institution
    ask_enrolment(federation, name, region, group, fresh_identity(), transport)  # refuses wrong names
    _claim(folder)
    create_node(folder, identity, contract, password)
    if not (folder / _TRANSPORT).exists():
        write_whole(folder / _TRANSPORT, encrypted_pem(transport, password, str(folder / _TRANSPORT)))
    transport = read_transport_key(folder, password)
    asked = ask_enrolment(federation, name, region, group, read_key(folder, password), transport)
    if not (folder / GOVERNANCE_FILE).exists():
        write_whole(folder / GOVERNANCE_FILE, starter_governance(region).encode())
    write_whole(folder / REQUEST, asked.to_bytes())  # last: a folder that has it has everything
    return asked


def _claim(folder: Path) -> None:
    begun = {"contract.json", "node.json", "identity.pem", _TRANSPORT, GOVERNANCE_FILE, STORES_FILE}
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        there = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise OutputError(error.strerror or "cannot be made", place=str(folder), fix="choose another") from error
    if REQUEST in there:
        raise OutputError("holds a node already", place=str(folder), fix="choose a new folder")
    strangers = [one for one in there - begun if not one.endswith(".partial") and not one.startswith("node.sqlite")]
    if strangers:
        raise OutputError(f"is not empty: it has '{min(strangers)}'", place=str(folder), fix="choose a new folder")
    require_private_folder(folder)


def rotate(folder: Path, password: str) -> EnrolmentRequest:
    """Make a new transport key beside the one in use, and the request for its certificate.

    The old key stays in use until the new one is enrolled and joined. Until then the same key is asked for again.

    Raises:
        RefusedError: the node has joined no federation.
        DataError: no node there, files that others may read, or another password.
    """
    require_private_folder(folder)
    read_link(folder)
    asked = load_request(folder / REQUEST)
    identity = read_key(folder, password)
    if not (folder / _NEXT).exists():
        write_whole(folder / _NEXT, encrypted_pem(fresh_transport(), password, str(folder / _NEXT)))
    transport = read_transport_file(folder / _NEXT, password)
    asked = ask_enrolment(asked.federation, asked.institution, asked.region, asked.group, identity, transport)
    write_whole(folder / REQUEST, asked.to_bytes())
    return asked


def join(
    folder: Path,
    enrolment: Enrolment,
    fingerprint: str,
    password: str,
    now: datetime | None = None,
    place: str = "enrolment",
) -> Link:
    """Take the coordinator's enrolment: from now on this node talks to that coordinator, under that certificate.

    The same call finishes what was interrupted.

    Args:
        folder: the node's.
        enrolment: from `study.enrolment.load_enrolment`, which verified its signature.
        fingerprint: the coordinator's, as it was confirmed.
        password: of the node's keys.
        now: the time (UTC); a seam for tests of expiry.
        place: name of the enrolment's file, for messages.

    Raises:
        RefusedError: another coordinator than the confirmed or the joined one, an enrolment of another institution or
            request, or a certificate of another key or CA, or one that is not in force.
        DataError: no node there, files that others may read, or another password.
    """
    require_private_folder(folder)
    asked = load_request(folder / REQUEST)
    told = coordinator_fingerprint(enrolment.federation, enrolment.coordinator, enrolment.authority)
    require_fingerprint(fingerprint, told, place)
    _require_asked(asked, enrolment, place)
    if (folder / _LINK).exists() and read_link(folder).coordinator != enrolment.coordinator:
        raise RefusedError(
            "this node has joined another coordinator",
            place=place,
            fix="join a new federation with a new node, or ask who sent this",
        )
    identity = read_key(folder, password).public_key().public_bytes_raw().hex()
    if identity != enrolment.identity:
        raise RefusedError("is for another identity key", place=place, fix="take the enrolment of this node")
    certificate = load_certificate(enrolment.certificate, f"{place}: certificate")
    authority = load_certificate(enrolment.authority, f"{place}: authority")
    _require_issued(certificate, authority, enrolment, now or datetime.now(UTC), place)
    key = _key_of(folder, certificate, password, place)
    link = Link(
        federation=enrolment.federation,
        institution=enrolment.institution,
        address=enrolment.address,
        coordinator=enrolment.coordinator,
    )
    write_whole(folder / _AUTHORITY, enrolment.authority.encode())
    write_whole(folder / _CERTIFICATE, enrolment.certificate.encode())
    if key == _NEXT:
        os.replace(folder / _NEXT, folder / _TRANSPORT)
    write_whole(folder / _LINK, link.to_bytes())
    return link


def _require_asked(asked: EnrolmentRequest, enrolment: Enrolment, place: str) -> None:
    for field in ("federation", "institution", "region", "group"):
        if getattr(asked, field) != getattr(enrolment, field):
            raise RefusedError(
                f"has another {field} than this node asked for",
                place=place,
                fix="take the enrolment of this node; ask the coordinator if it is this one's",
            )


def _require_issued(
    certificate: x509.Certificate, authority: x509.Certificate, enrolment: Enrolment, now: datetime, place: str
) -> None:
    """The CA issued this certificate to this institution, for nodes, and it is in force."""
    fix = "have the coordinator enrol this node again"
    try:
        authority.verify_directly_issued_by(authority)
        certificate.verify_directly_issued_by(authority)
        may_issue = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
        raise RefusedError("its certificate is not one of the federation's CA", place=place, fix=fix) from error
    if not may_issue or ExtendedKeyUsageOID.CLIENT_AUTH not in uses:
        raise RefusedError("its certificate is not one for nodes", place=place, fix=fix)
    owner = member_uri(enrolment.federation, enrolment.institution)
    if names.get_values_for_type(x509.UniformResourceIdentifier) != [owner]:
        raise RefusedError("its certificate names another institution", place=place, fix=fix)
    for one in (certificate, authority):
        if now > one.not_valid_after_utc:
            raise RefusedError("its certificate has expired", place=place, fix="make a new request: node rotate")
        if now < one.not_valid_before_utc:
            raise RefusedError(
                "its certificate is not in force yet", place=place, fix="set this machine's clock by NTP"
            )


def _key_of(folder: Path, certificate: x509.Certificate, password: str, place: str) -> str:
    """Name of the file with the transport key that a certificate is of."""
    for name in (_NEXT, _TRANSPORT):
        if (folder / name).exists():
            key = read_transport_file(folder / name, password)
            if key.public_key() == certificate.public_key():
                return name
    raise RefusedError(
        "its certificate is of another transport key",
        place=place,
        fix="take the answer to this node's newest request",
    )


def read_link(folder: Path) -> Link:
    """The federation that a node joined; `RefusedError` when it has joined none."""
    place = folder / _LINK
    if not place.is_file():
        raise RefusedError("has joined no federation", place=str(folder), fix="cohortium node join")
    return validated(Link, read_json(place, DataError), str(place), FORMS, DataError)


def read_transport_key(folder: Path, password: str) -> EllipticCurvePrivateKey:
    """The node's transport key, with which Flower's messages are signed; errors as `study.keys.read_transport_file`."""
    require_private_folder(folder)
    return read_transport_file(folder / _TRANSPORT, password)


def certificate_end(folder: Path) -> datetime:
    """When the certificate of a node that joined ends (UTC); `DataError` where it cannot be read."""
    place = folder / _CERTIFICATE
    try:
        return load_certificate(place.read_text(encoding="ascii"), str(place)).not_valid_after_utc
    except (OSError, UnicodeDecodeError) as error:
        raise _unfit(folder) from error


def client_context(folder: Path, password: str, now: datetime | None = None) -> ssl.SSLContext:
    """TLS 1.3 as a node speaks it: it shows its certificate, and believes in its federation's CA and no other.

    Args:
        folder: the node's.
        password: of its keys.
        now: the time (UTC); a seam for tests of expiry.

    Raises:
        RefusedError: the node has joined no federation, or its certificate has expired.
        DataError: a file that is missing, that others may read, or under another password; keys that do not fit.
    """
    read_link(folder)
    read_transport_key(folder, password)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    end = certificate_end(folder)
    try:
        context.load_verify_locations(folder / _AUTHORITY)
        context.load_cert_chain(folder / _CERTIFICATE, folder / _TRANSPORT, lambda: password)
    except OSError as error:  # ssl.SSLError included
        raise _unfit(folder) from error
    if (now or datetime.now(UTC)) > end:
        raise RefusedError(
            "the node's certificate has expired", place=str(folder / _CERTIFICATE), fix="cohortium node rotate"
        )
    return context


def _unfit(folder: Path) -> DataError:
    return DataError(
        "the files of its TLS do not fit together, or one is missing",
        place=str(folder),
        fix="join again: cohortium node join",
    )
