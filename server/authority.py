"""The federation's private certificate authority, and the coordinator's side of mutual TLS.

In the coordinator's folder:

    authority.pem, authority.crt   the CA: its key, encrypted, and its certificate
    authority.crl                  serials that it revoked
    server.pem, server.crt         key and certificate under which the coordinator answers

The CA vouches for one thing: that a transport key belongs to a member of this federation. Who is one, `members` says.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cohortium.privacy.keypairs import fresh_transport
from cohortium.privacy.randomness import fresh_below
from cohortium.study.enrolment import load_certificate, member_uri
from cohortium.study.errors import DataError
from cohortium.study.keys import encrypted_pem, read_transport_file, require_private_folder, write_whole

__all__ = [
    "AUTHORITY",
    "LIFETIME",
    "Authority",
    "create_authority",
    "create_server_certificate",
    "open_authority",
    "server_context",
    "write_revocations",
]

LIFETIME = timedelta(days=397)
"""Of the certificates of nodes and of the coordinator's server."""

AUTHORITY = "authority.crt"

_KEY, _REVOKED = "authority.pem", "authority.crl"
_SERVER_KEY, _SERVER = "server.pem", "server.crt"
_AUTHORITY_LIFETIME = timedelta(days=3653)
_BACKDATED = timedelta(minutes=5)  # for clocks that are behind
_RENEWED = timedelta(days=30)  # a server's certificate is renewed when no more is left
_SERIALS = 2**159
_ISSUES, _SERVES = "authority", "coordinator"  # units in subjects, so that no institution's name makes one of theirs


@dataclass(frozen=True)
class Authority:
    """An opened CA.

    Args:
        certificate: its own, which every member pins.
        key: its private key.
    """

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        """The certificate in PEM."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def issue_member(
        self, federation: str, institution: str, key: EllipticCurvePublicKey, now: datetime
    ) -> x509.Certificate:
        """A node's certificate: for TLS clients alone, 397 days, naming the institution and nothing else.

        Args:
            federation, institution: who its owner is.
            key: the node's transport key.
            now: from five minutes before which it is good.
        """
        subject = _name(institution, federation)
        owner = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(member_uri(federation, institution))])
        return self._issue(subject, owner, ExtendedKeyUsageOID.CLIENT_AUTH, key, now)

    def issue_server(
        self, federation: str, hosts: tuple[str, ...], key: EllipticCurvePublicKey, now: datetime
    ) -> x509.Certificate:
        """The coordinator's certificate: for TLS servers alone, 397 days, good under these names and IP addresses."""
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        return self._issue(_name(federation, federation, _SERVES), names, ExtendedKeyUsageOID.SERVER_AUTH, key, now)

    def revocations(self, revoked: Mapping[int, datetime], now: datetime) -> bytes:
        """The list of revoked serials, signed, PEM. It holds until the CA ends: it is kept here, not fetched."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - _BACKDATED)
            .next_update(max(self.certificate.not_valid_after_utc, now + _BACKDATED))
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
            .add_extension(self._issuer_id(), critical=False)
        )
        for serial, at in sorted(revoked.items()):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, SHA384()).public_bytes(Encoding.PEM)

    def _issue(
        self,
        subject: x509.Name,
        names: x509.SubjectAlternativeName,
        use: x509.ObjectIdentifier,
        key: EllipticCurvePublicKey,
        now: datetime,
    ) -> x509.Certificate:
        return (
            _builder(subject, self.certificate.subject, key, now, LIFETIME)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(names, critical=False)
            .add_extension(self._issuer_id(), critical=False)
            .sign(self.key, SHA384())
        )

    def _issuer_id(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())


def create_authority(folder: Path, federation: str, password: str, now: datetime) -> Authority:
    """Make a federation's CA in the coordinator's folder; one that is there already is opened.

    Raises:
        DataError: a password that is too short; or of what is there, as `open_authority`.
    """
    if not (folder / _KEY).exists():
        write_whole(folder / _KEY, encrypted_pem(fresh_transport(), password, str(folder / _KEY)))
    key = read_transport_file(folder / _KEY, password)
    if not (folder / AUTHORITY).exists():
        subject = _name(federation, federation, _ISSUES)
        certificate = (
            _builder(subject, subject, key.public_key(), now, _AUTHORITY_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .sign(key, SHA384())
        )
        write_whole(folder / AUTHORITY, certificate.public_bytes(Encoding.PEM))
    made = open_authority(folder, password)
    if made.certificate.subject != _name(federation, federation, _ISSUES):
        raise DataError(
            "was begun for a federation of another name", place=str(folder), fix="remove that folder, or use another"
        )
    return made


def open_authority(folder: Path, password: str) -> Authority:
    """The CA in the coordinator's folder.

    Raises:
        DataError: no CA there, files that others may read, another password, or a certificate of another key.
    """
    require_private_folder(folder)
    key = read_transport_file(folder / _KEY, password)
    certificate = _read_certificate(folder / AUTHORITY)
    if certificate.public_key() != key.public_key():
        raise DataError(
            "is the certificate of another key", place=str(folder / AUTHORITY), fix="put back the right file"
        )
    return Authority(certificate, key)


def create_server_certificate(
    folder: Path, authority: Authority, federation: str, hosts: tuple[str, ...], password: str, now: datetime
) -> None:
    """Make the coordinator's key, where there is none, and a certificate of it under these names."""
    if not (folder / _SERVER_KEY).exists():
        write_whole(folder / _SERVER_KEY, encrypted_pem(fresh_transport(), password, str(folder / _SERVER_KEY)))
    key = read_transport_file(folder / _SERVER_KEY, password)
    certificate = authority.issue_server(federation, hosts, key.public_key(), now)
    write_whole(folder / _SERVER, certificate.public_bytes(Encoding.PEM))


def write_revocations(folder: Path, authority: Authority, revoked: Mapping[int, datetime], now: datetime) -> None:
    """Write the list of revoked serials anew."""
    write_whole(folder / _REVOKED, authority.revocations(revoked, now))


def server_context(folder: Path, password: str, now: datetime | None = None) -> ssl.SSLContext:
    """TLS 1.3 as the coordinator speaks it: it asks every client for a certificate of this CA that is not revoked.

    A certificate of its own with less than 30 days left is renewed first. A context knows the revocations as they stood
    when it was made; `members.active_keys` knows them at once.

    Args:
        folder: the coordinator's.
        password: of its keys.
        now: the time (UTC); a seam for tests of expiry.

    Raises:
        DataError: a file that is missing, that others may read, or under another password; keys that do not fit.
    """
    require_private_folder(folder)
    now = now or datetime.now(UTC)
    _renew_server_certificate(folder, password, now)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # whoever resumed a session would not show a certificate again
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF | ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(folder / AUTHORITY)
        context.load_verify_locations(folder / _REVOKED)
        context.load_cert_chain(folder / _SERVER, folder / _SERVER_KEY, lambda: password)
    except (OSError, ssl.SSLError) as error:
        raise DataError(
            "the files of its TLS do not fit together, or one is missing",
            place=str(folder),
            fix=f"put back {AUTHORITY}, {_REVOKED}, {_SERVER} and {_SERVER_KEY} from one backup",
        ) from error
    return context


def _renew_server_certificate(folder: Path, password: str, now: datetime) -> None:
    key = read_transport_file(folder / _SERVER_KEY, password)
    certificate = _read_certificate(folder / _SERVER)
    if certificate.not_valid_after_utc - now > _RENEWED:
        return
    federation = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = tuple(str(name.value) for name in names)
    renewed = open_authority(folder, password).issue_server(str(federation), hosts, key.public_key(), now)
    write_whole(folder / _SERVER, renewed.public_bytes(Encoding.PEM))


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return load_certificate(path.read_text(encoding="ascii"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no PEM"
        raise DataError(reason or "cannot be read", place=str(path), fix="put it back from a backup") from error


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(1 + fresh_below(_SERIALS - 1))
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common: str, organisation: str, unit: str | None = None) -> x509.Name:
    parts = {
        NameOID.COMMON_NAME: common,
        NameOID.ORGANIZATION_NAME: organisation,
        NameOID.ORGANIZATIONAL_UNIT_NAME: unit,
    }
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in parts.items() if value is not None])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
