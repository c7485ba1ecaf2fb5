"""Mutual TLS on loopback: an enrolled node gets in, and nobody else; a node talks to its own coordinator alone."""

from __future__ import annotations

import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from cohortium.client.joining import client_context, join, rotate
from cohortium.server.authority import server_context
from cohortium.server.founding import found_federation, read_coordinator
from cohortium.server.members import enrol
from cohortium.study.errors import DataError, RefusedError
from cohortium.study.keys import write_whole

from .house import NAME, PASSWORD, House

YEAR = timedelta(days=398)


@contextmanager
def serving(context: ssl.SSLContext) -> Iterator[int]:
    """A server that tells every client whom its certificate names."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with suppress(OSError), connection, context.wrap_socket(connection, server_side=True) as opened:
                    opened.sendall(str(opened.getpeercert()).encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


def ask(port: int, context: ssl.SSLContext, name: str = "127.0.0.1") -> str:
    """What the server says; `OSError` when either side refuses the other."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as connection,
        context.wrap_socket(connection, server_hostname=name) as opened,
    ):
        assert opened.version() == "TLSv1.3"
        said = opened.recv(4096)
        if not said:
            raise ConnectionError("hung up")
        return said.decode()


def test_an_enrolled_node_gets_in_and_nobody_else(house: House) -> None:
    house.join("a")
    with serving(server_context(house.coordinator, PASSWORD)) as port:
        node = client_context(house.node("a"), PASSWORD)
        for name in ("127.0.0.1", "localhost"):
            assert "urn:cohortium:north%20sea:a" in ask(port, node, name)
        anonymous = ssl.create_default_context(cafile=house.coordinator / "authority.crt")
        with pytest.raises(OSError, match=r"(?i)certificate required|reset|hung up"):
            ask(port, anonymous)
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            ask(port, node, "example.org")
        assert "a" in ask(port, node)  # and still serves


def test_a_node_of_another_authority_is_refused_and_refuses(house: House, tmp_path: Path) -> None:
    """Both sides: a stranger at the coordinator, and a man in the middle before the node."""
    found_federation(tmp_path / "fake", NAME, "127.0.0.1:9443", PASSWORD, house.now)
    asked = house.request("b")
    fake = enrol(tmp_path / "fake", PASSWORD, asked, asked.fingerprint, house.now).enrolment
    join(house.node("b"), fake, read_coordinator(tmp_path / "fake").fingerprint(tmp_path / "fake"), PASSWORD)
    house.join("a")
    stranger = client_context(house.node("b"), PASSWORD)
    with serving(server_context(house.coordinator, PASSWORD)) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(port, stranger)
        stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
        with pytest.raises(OSError, match=r"(?i)unknown ca|reset|hung up"):
            ask(port, stranger)
    with (
        serving(server_context(tmp_path / "fake", PASSWORD)) as port,
        pytest.raises(ssl.SSLCertVerificationError, match="verify failed"),
    ):
        ask(port, client_context(house.node("a"), PASSWORD))


def test_a_member_is_no_server(house: House) -> None:
    """Another member's certificate is of the same authority, and still does not make it the coordinator."""
    house.join("a")
    house.join("b")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = house.node("b") / "transport.crt", house.node("b") / "transport.pem"
    context.load_cert_chain(*files, lambda: PASSWORD)
    node = client_context(house.node("a"), PASSWORD)
    node.check_hostname = False  # its purpose alone has to stop it
    with serving(context) as port, pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        ask(port, node)


def test_an_expired_certificate_is_refused_on_both_sides(house: House) -> None:
    """A federation of more than a year, whose node never rotated."""
    shutil.rmtree(house.coordinator)
    found_federation(house.coordinator, NAME, "127.0.0.1:9443", PASSWORD, house.now - YEAR)
    house.join("a", house.now - YEAR)
    with pytest.raises(RefusedError, match="has expired") as caught:
        client_context(house.node("a"), PASSWORD)
    assert "node rotate" in str(caught.value.fix)
    expired = client_context(house.node("a"), PASSWORD, house.now - YEAR)
    with (
        serving(server_context(house.coordinator, PASSWORD)) as port,
        pytest.raises(OSError, match=r"(?i)certificate expired|reset|hung up"),
    ):
        ask(port, expired)


def test_a_revoked_and_a_replaced_certificate_are_refused(house: House, tmp_path: Path) -> None:
    house.join("a")
    house.join("b")
    shutil.copytree(house.node("a"), tmp_path / "old")
    rotate(house.node("a"), PASSWORD)
    house.join("a")
    house.revoke("b")
    with serving(server_context(house.coordinator, PASSWORD)) as port:
        assert "north%20sea:a" in ask(port, client_context(house.node("a"), PASSWORD))
        for refused in (tmp_path / "old", house.node("b")):
            with pytest.raises(OSError, match=r"(?i)certificate revoked|reset|hung up"):
                ask(port, client_context(refused, PASSWORD))


def test_without_its_list_of_revocations_the_coordinator_does_not_serve(house: House) -> None:
    (house.coordinator / "authority.crl").unlink()
    with pytest.raises(DataError, match="do not fit together"):
        server_context(house.coordinator, PASSWORD)


@pytest.mark.parametrize("name", ["transport.crt", "authority.crt"])
def test_a_node_whose_files_do_not_fit_has_no_link(house: House, name: str) -> None:
    house.join("a")
    house.join("b")
    for damage in (b"no PEM", None, (house.node("b") / "transport.crt").read_bytes()):
        (house.node("a") / name).unlink(missing_ok=True)
        if damage is not None:
            write_whole(house.node("a") / name, damage)
        if damage and name == "authority.crt" and b"BEGIN" in damage:
            continue  # a certificate, though not an authority's: no server is believed under it
        with pytest.raises((DataError, RefusedError), match=r"do not fit together|no certificate that can be read"):
            client_context(house.node("a"), PASSWORD)


def test_the_coordinators_certificate_renews_itself(house: House) -> None:
    file = house.coordinator / "server.crt"
    first = x509.load_pem_x509_certificate(file.read_bytes())
    server_context(house.coordinator, PASSWORD, house.now + timedelta(days=366))
    assert x509.load_pem_x509_certificate(file.read_bytes()) == first
    later = house.now + timedelta(days=368)
    server_context(house.coordinator, PASSWORD, later)
    second = x509.load_pem_x509_certificate(file.read_bytes())
    assert second.not_valid_after_utc == later + timedelta(days=397)
    assert second.public_key() == first.public_key()
    assert second.subject == first.subject
    kind = x509.SubjectAlternativeName
    named = [one.extensions.get_extension_for_class(kind).value for one in (first, second)]
    assert named[0] == named[1]
