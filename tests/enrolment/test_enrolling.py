"""Requests and enrolments: what is refused, what is written, and that no private key is ever sent."""

from __future__ import annotations

import json
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from cohortium.client.joining import REQUEST, client_context, found_node, join, read_link, read_transport_key, rotate
from cohortium.client.node import NodeIdentity, read_key
from cohortium.governance.log import log_origin, log_origin_of
from cohortium.privacy.keypairs import fresh_identity, fresh_transport
from cohortium.privacy.stores import open_store
from cohortium.server.founding import found_federation, open_coordinator, read_coordinator
from cohortium.server.members import active_keys, add_reviewers, enrol, load_members
from cohortium.study.charter import Reviewer, enrol_reviewer, load_charter, prove_possession
from cohortium.study.contract import Contract
from cohortium.study.enrolment import (
    Enrolment,
    EnrolmentRequest,
    ask_enrolment,
    coordinator_fingerprint,
    file_name,
    load_enrolment,
    load_request,
    require_fingerprint,
)
from cohortium.study.errors import CohortiumError, DataError, OutputError, PlanError, RefusedError

from .house import NAME, PASSWORD, Found, House

YEAR = timedelta(days=398)


def signed_by(key: ed25519.Ed25519PrivateKey, asked: EnrolmentRequest) -> EnrolmentRequest:
    return asked.model_copy(update={"signature": key.sign(asked.signed_bytes()).hex()})


def refuses(house: House, asked: EnrolmentRequest | str, message: str) -> None:
    before = snapshot(house.coordinator)
    with pytest.raises(RefusedError, match=message) as caught:
        house.enrol(asked)
    assert caught.value.place
    assert caught.value.fix
    assert snapshot(house.coordinator) == before


def snapshot(folder: Path) -> dict[str, bytes]:
    """What of a coordinator's folder says who is a member."""
    kept = [*folder.glob("members/*"), folder / "charter.json", folder / "authority.crl"]
    return {path.name: path.read_bytes() for path in kept if path.exists()}


# --- enrolment -------------------------------------------------------------------------------------------------------


def test_an_institution_is_enrolled_and_joins(house: House) -> None:
    found = house.join("a")
    assert found.kind == "enrolled"
    transport = public_key_to_bytes(read_transport_key(house.node("a"), PASSWORD).public_key())
    assert active_keys(house.coordinator, house.now) == {transport: "a"}
    link = read_link(house.node("a"))
    assert (link.federation, link.institution, link.address) == (NAME, "a", "127.0.0.1:9443")
    assert link.coordinator == read_coordinator(house.coordinator).identity
    charter = load_charter(house.coordinator / "charter.json")
    (member,) = charter.institutions
    assert member.identity == read_key(house.node("a"), PASSWORD).public_key().public_bytes_raw().hex()
    assert (charter.name, charter.coordinator) == (NAME, link.coordinator)
    house.join("b")
    assert [one.name for one in load_charter(house.coordinator / "charter.json").institutions] == ["a", "b"]
    assert house.logged() == [("member-enrolled", "a"), ("member-enrolled", "b")]


def test_a_new_node_has_its_region_s_questions_and_keeps_answers_that_were_there(house: House, found: Found) -> None:
    assert 'packs = ["eu"]' in (house.node("a") / "governance.toml").read_text()
    (house.folder / "c").mkdir(mode=0o700)
    (house.folder / "c" / "governance.toml").write_text("answered")
    found(house.node("c"), "c")
    assert (house.node("c") / "governance.toml").read_text() == "answered"


def test_a_certificate_says_who_its_owner_is_and_nothing_more(house: House) -> None:
    found = house.enrol("a")
    certificate = x509.load_pem_x509_certificate(found.enrolment.certificate.encode())
    kinds = {type(one.value): one for one in certificate.extensions}
    names = kinds[x509.SubjectAlternativeName].value
    assert isinstance(names, x509.SubjectAlternativeName)
    assert [name.value for name in names] == ["urn:cohortium:north%20sea:a"]
    assert kinds[x509.ExtendedKeyUsage].value == x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    assert kinds[x509.BasicConstraints].value == x509.BasicConstraints(ca=False, path_length=None)
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "a"
    assert certificate.not_valid_before_utc == house.now - timedelta(minutes=5)
    assert certificate.not_valid_after_utc == house.now + timedelta(days=397)
    authority = x509.load_pem_x509_certificate(found.enrolment.authority.encode())
    extensions = authority.extensions
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)
    assert isinstance(authority.public_key(), ec.EllipticCurvePublicKey)


def test_nothing_of_a_certificate_request_is_copied(house: House) -> None:
    """An institution asks to be a CA, and to be another institution."""
    identity, transport = read_key(house.node("a"), PASSWORD), fresh_transport()
    csr = (
        x509.CertificateSigningRequestBuilder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "b")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier("urn:cohortium:x:b")]), False)
        .sign(transport, SHA384())
    )
    asked = house.request("a").model_copy(update={"csr": csr.public_bytes(Encoding.PEM).decode()})
    found = house.enrol(signed_by(identity, asked))
    certificate = x509.load_pem_x509_certificate(found.enrolment.certificate.encode())
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "a"
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["urn:cohortium:north%20sea:a"]


def test_a_request_and_an_enrolment_hold_against_a_change_of_any_byte(house: House, tmp_path: Path) -> None:
    found = house.enrol("a").enrolment
    for document, load in ((house.request("a"), load_request), (found, load_enrolment)):
        data, file = document.to_bytes(), tmp_path / "changed.json"
        file.write_bytes(data)
        assert load(file) == document
        for at in range(len(data)):
            file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises((DataError, RefusedError)):
                load(file)


@pytest.mark.parametrize("given", ["", "0" * 32, "0000 0000 0000 0000 0000 0000 0000 0000"])
def test_another_fingerprint_is_refused_on_both_sides(house: House, given: str) -> None:
    asked, before = house.request("a"), snapshot(house.coordinator)
    for wrong in (given, asked.fingerprint[:-1], asked.fingerprint + "0"):
        with pytest.raises(RefusedError, match="another fingerprint") as caught:
            enrol(house.coordinator, PASSWORD, asked, wrong, house.now, "a.json")
        assert asked.fingerprint not in str(caught.value)
    assert snapshot(house.coordinator) == before
    found = house.enrol("a").enrolment
    with pytest.raises(RefusedError, match="another fingerprint"):
        join(house.node("a"), found, given, PASSWORD, house.now)
    assert not (house.node("a") / "link.json").exists()


def test_the_coordinators_fingerprint_is_over_name_key_and_authority() -> None:
    told = ("north sea", "ab" * 32, "-----BEGIN CERTIFICATE-----")
    changed = [tuple(f"{part}0" if at == which else part for at, part in enumerate(told)) for which in range(3)]
    assert len({coordinator_fingerprint(*parts) for parts in (told, *changed)}) == 4


def test_what_is_signed_begins_with_what_it_is(house: House) -> None:
    """So that no signature of one kind of document is one of another kind."""
    found = house.join("a").enrolment
    assert house.request("a").signed_bytes().startswith(b'cohortium.enrolment-request/1\n{"csr"')
    assert found.signed_bytes().startswith(b'cohortium.enrolment/1\n{"address"')


def test_a_fingerprint_may_be_typed_as_it_was_heard() -> None:
    require_fingerprint(" ABCD-0123  4567\n", "abcd 0123 4567", "here")


def test_a_request_for_another_federation_is_refused(house: House, found: Found) -> None:
    refuses(house, found(house.node("c"), "c", "south sea"), "is for the federation 'south sea'")


def test_a_name_is_taken_once(house: House, found: Found) -> None:
    house.enrol("a")
    refuses(house, found(house.node("other"), "a"), "enrolled under another identity key")


def test_keys_are_their_owners_alone(house: House) -> None:
    house.enrol("a")
    mine, theirs = read_key(house.node("a"), PASSWORD), read_transport_key(house.node("a"), PASSWORD)
    refuses(house, ask_enrolment(NAME, "b", "EU", None, mine, fresh_transport()), "has the identity key of 'a'")
    refuses(house, ask_enrolment(NAME, "b", "EU", None, fresh_identity(), theirs), "has the transport key of 'a'")
    house.revoke("a")
    refuses(house, ask_enrolment(NAME, "b", "EU", None, mine, fresh_transport()), "has the identity key of 'a'")


def test_a_granted_request_is_good_for_nothing_else(house: House) -> None:
    house.enrol("a")
    identity, transport = read_key(house.node("a"), PASSWORD), read_transport_key(house.node("a"), PASSWORD)
    for region, group in (("UK", None), ("EU", "holding")):
        refuses(house, ask_enrolment(NAME, "a", region, group, identity, transport), "another region or group")


def test_the_coordinator_is_no_member(house: House, found: Found) -> None:
    with pytest.raises(PlanError, match="coordinator"):
        house.enrol(found(house.node("c"), "coordinator"))
    assert not load_members(house.coordinator)


def test_a_revoked_member_comes_back_with_new_keys_alone(house: House, found: Found) -> None:
    house.enrol("a")
    house.revoke("a")
    old, transport = read_key(house.node("a"), PASSWORD), read_transport_key(house.node("a"), PASSWORD)
    refuses(house, "a", "that were revoked")
    refuses(house, ask_enrolment(NAME, "a", "EU", None, old, fresh_transport()), "that were revoked")
    refuses(house, ask_enrolment(NAME, "a", "EU", None, fresh_identity(), transport), "that were revoked")
    again = house.enrol(found(house.node("new"), "a"))
    assert again.kind == "enrolled"
    assert [one.state for one in again.member.issued] == ["revoked", "active"]
    assert list(active_keys(house.coordinator, house.now).values()) == ["a"]


@pytest.mark.parametrize(
    ("key", "message"),
    [(ec.generate_private_key(ec.SECP256R1()), "not on P-384"), (ed25519.Ed25519PrivateKey.generate(), "not on P-384")],
)
def test_only_p384_is_certified(house: House, key: Any, message: str) -> None:
    hashed = SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None
    csr = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hashed)
    asked = house.request("a").model_copy(update={"csr": csr.public_bytes(Encoding.PEM).decode()})
    refuses(house, signed_by(read_key(house.node("a"), PASSWORD), asked), message)


def test_whoever_asks_holds_the_transport_key(house: House) -> None:
    """A CSR over somebody else's public key, signed by one's own."""
    transport = read_transport_key(house.node("b"), PASSWORD)
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    theirs = builder.sign(transport, SHA384()).public_bytes(Encoding.DER)
    forged = bytearray(theirs)
    forged[-1] ^= 1
    pem = x509.load_der_x509_csr(bytes(forged)).public_bytes(Encoding.PEM).decode()
    for csr, message in ((pem, "not signed by its own key"), ("no PEM", "cannot be read")):
        asked = house.request("a").model_copy(update={"csr": csr})
        refuses(house, signed_by(read_key(house.node("a"), PASSWORD), asked), message)


@pytest.mark.parametrize("name", ["", " a", "a\nb", "a" * 65, "ü" * 33, "e\N{COMBINING ACUTE ACCENT}", "a\u200bb"])
def test_names_have_one_spelling_that_fits(name: str, tmp_path: Path, small_contract: Contract) -> None:
    identity = NodeIdentity.model_construct(institution=name)
    with pytest.raises(DataError, match=r"name|form"):
        found_node(tmp_path / "n", identity, small_contract, PASSWORD, federation=NAME, region="EU")
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("name", ["..", "../../etc", "a/b", ".hidden", "Bank ünïted, Ltd.", "%2e", "ж" * 32])
def test_any_name_has_a_file_of_its_own(name: str, house: House, found: Found) -> None:
    assert "/" not in file_name(name)
    house.enrol(found(house.node("c"), name))
    assert list(load_members(house.coordinator)) == [name]
    (file,) = (house.coordinator / "members").iterdir()
    assert file.parent == house.coordinator / "members"


def test_no_private_key_is_in_any_file_that_is_sent(house: House) -> None:
    """Nor outside the one file that it belongs to, nor there unencrypted."""
    first = house.join("a").enrolment
    asked, again = house.request("a"), rotate(house.node("a"), PASSWORD)
    second = house.enrol(again).enrolment
    sent = [one.to_bytes() for one in (asked, first, again, second)]
    sent.append((house.coordinator / "charter.json").read_bytes())
    for pem in sorted([*house.node("a").glob("*.pem"), *house.coordinator.glob("*.pem")]):
        assert pem.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
        secret = secret_of(pem)
        for data in [*sent, *(path.read_bytes() for path in house.folder.rglob("*") if path.is_file())]:
            assert secret not in data
            assert secret.hex().encode() not in data
    for data in sent:
        assert b"PRIVATE" not in data


def secret_of(pem: Path) -> bytes:
    key = load_pem_private_key(pem.read_bytes(), PASSWORD.encode())
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.private_bytes_raw()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.private_numbers().private_value.to_bytes(48, "big")


# --- joining ---------------------------------------------------------------------------------------------------------


def resigned(house: House, found: Enrolment, **changes: Any) -> Enrolment:
    """An enrolment with changes that the coordinator itself signed."""
    return found.model_copy(update=changes).signed(open_coordinator(house.coordinator, PASSWORD)[1])


def declines(house: House, found: Enrolment, message: str, **more: Any) -> None:
    node = house.node("a")
    before = {path.name: path.read_bytes() for path in node.iterdir()}
    with pytest.raises(RefusedError, match=message) as caught:
        join(node, found, house.fingerprint, PASSWORD, more.get("now", house.now))
    assert caught.value.fix
    assert {path.name: path.read_bytes() for path in node.iterdir()} == before


def test_an_enrolment_of_somebody_else_is_not_joined(house: House) -> None:
    mine, theirs = house.enrol("a").enrolment, house.enrol("b").enrolment
    declines(house, theirs, "another institution")
    declines(house, resigned(house, mine, region="UK"), "another region")
    declines(house, resigned(house, mine, identity=theirs.identity), "another identity key")
    declines(house, resigned(house, mine, certificate=theirs.certificate), "names another institution")


def test_swapped_keys_are_not_joined(house: House) -> None:
    """The certificate names the institution, but is of a key that it does not hold."""
    found = house.enrol("a").enrolment
    shutil.copy(house.node("b") / "transport.pem", house.node("a") / "transport.pem")
    declines(house, found, "another transport key")


def test_a_certificate_of_another_authority_is_not_joined(house: House, tmp_path: Path, found: Found) -> None:
    found_federation(tmp_path / "fake", NAME, "127.0.0.1:9443", PASSWORD, house.now)
    asked = house.request("a")
    fake = enrol(tmp_path / "fake", PASSWORD, asked, asked.fingerprint, house.now).enrolment
    declines(house, fake, "another fingerprint")
    mine = house.enrol("a").enrolment
    declines(house, resigned(house, mine, certificate=fake.certificate), "not one of the federation's CA")
    server = (house.coordinator / "server.crt").read_text()
    declines(house, resigned(house, mine, certificate=server), "not one for nodes")
    declines(house, resigned(house, mine, certificate="no PEM"), "no certificate that can be read")
    join(house.node("a"), mine, house.fingerprint, PASSWORD, house.now)
    other = read_coordinator(tmp_path / "fake").fingerprint(tmp_path / "fake")
    with pytest.raises(RefusedError, match="joined another coordinator"):
        join(house.node("a"), fake, other, PASSWORD, house.now)


def test_a_certificate_that_is_not_in_force_is_not_joined(house: House) -> None:
    found = house.enrol("a").enrolment
    declines(house, found, "has expired", now=house.now + YEAR)
    declines(house, found, "not in force yet", now=house.now - timedelta(minutes=6))


def test_folders_are_made_once(house: House, found: Found) -> None:
    before = {path: path.read_bytes() for path in house.folder.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match="holds a node already"):
        found(house.node("a"), "a")
    with pytest.raises(OutputError, match="holds a coordinator already"):
        found_federation(house.coordinator, NAME, "127.0.0.1:9443", PASSWORD, house.now)
    foreign = house.folder / "foreign"
    foreign.mkdir(mode=0o700)
    (foreign / "letters.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"is not empty: it has 'letters\.txt'"):
        found(foreign, "a")
    with pytest.raises(OutputError, match=r"is not empty: it has 'letters\.txt'"):
        found_federation(foreign, NAME, "127.0.0.1:9443", PASSWORD, house.now)
    (foreign / "letters.txt").unlink()
    foreign.chmod(0o755)
    with pytest.raises(DataError, match="its mode is 755"):
        found(foreign, "a")
    foreign.rmdir()
    assert {path: path.read_bytes() for path in house.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("address", "names", "name"),
    [
        ("127.0.0.1", (), NAME),
        ("host:0", (), NAME),
        ("host:65536", (), NAME),
        ("ho st:1", (), NAME),
        ("host:1", ("ho st",), NAME),
        ("host:1", (), "n" * 65),
    ],
)
def test_a_federation_of_the_wrong_form_leaves_nothing(
    tmp_path: Path, house: House, address: str, names: tuple[str, ...], name: str
) -> None:
    with pytest.raises(DataError):
        found_federation(tmp_path / "c", name, address, PASSWORD, house.now, names)
    with pytest.raises(DataError, match="password"):
        found_federation(tmp_path / "c", NAME, "host:1", "too short", house.now)
    assert not (tmp_path / "c").exists()


# --- rotation and revocation -----------------------------------------------------------------------------------------


def test_a_key_is_rotated_and_the_old_one_is_refused(house: House) -> None:
    with pytest.raises(RefusedError, match="has joined no federation"):
        rotate(house.node("a"), PASSWORD)
    first = house.join("a")
    old = house.request("a")
    asked = rotate(house.node("a"), PASSWORD)
    key = read_transport_key(house.node("a"), PASSWORD)  # still the old one
    assert active_keys(house.coordinator, house.now) == {public_key_to_bytes(key.public_key()): "a"}
    again = rotate(house.node("a"), PASSWORD)  # the same key, until it is enrolled
    assert again.transport_key("").public_numbers() == asked.transport_key("").public_numbers()
    second = house.join("a")
    assert second.kind == "rotated"
    renewed = read_transport_key(house.node("a"), PASSWORD)
    assert renewed.public_key() == asked.transport_key("")
    assert active_keys(house.coordinator, house.now) == {public_key_to_bytes(renewed.public_key()): "a"}
    assert not (house.node("a") / "transport.next.pem").exists()
    assert revoked_serials(house) == {int(first.member.current.serial, 16)}
    refuses(house, old, "transport key that was replaced")
    declines(house, first.enrolment, "another transport key")
    assert house.logged() == [("member-enrolled", "a"), ("member-rotated", "a")]
    charter = load_charter(house.coordinator / "charter.json")
    assert [one.name for one in charter.institutions] == ["a"]


def revoked_serials(house: House) -> set[int]:
    listed = x509.load_pem_x509_crl((house.coordinator / "authority.crl").read_bytes())
    authority = x509.load_pem_x509_certificate((house.coordinator / "authority.crt").read_bytes())
    assert listed.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    return {one.serial_number for one in listed}


def test_a_revoked_member_is_in_no_charter_and_has_no_key(house: House) -> None:
    serial = int(house.enrol("a").member.current.serial, 16)
    house.enrol("b")
    assert revoked_serials(house) == set()
    member = house.revoke("a", "left the federation")
    assert (member.current.state, member.current.reason) == ("revoked", "left the federation")
    assert revoked_serials(house) == {serial}
    assert list(active_keys(house.coordinator, house.now).values()) == ["b"]
    assert [one.name for one in load_charter(house.coordinator / "charter.json").institutions] == ["b"]
    assert house.revoke("a", "again").current.reason == "left the federation"
    house.revoke("b")
    assert not (house.coordinator / "charter.json").exists()
    assert [event for event in house.logged() if event[0] == "member-revoked"] == [
        ("member-revoked", "a"),
        ("member-revoked", "b"),
    ]
    with pytest.raises(RefusedError, match="nobody called 'A' was enrolled — fix: use one of a, b"):
        house.revoke("A")


def test_an_expired_certificate_opens_nothing_and_is_not_handed_out_again(house: House) -> None:
    house.enrol("a")
    later = house.now + YEAR
    assert active_keys(house.coordinator, house.now + timedelta(days=396))
    assert active_keys(house.coordinator, later) == {}
    with pytest.raises(RefusedError, match="has expired"):
        house.enrol("a", later)


def test_the_members_are_read_again_when_a_file_changed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.enrol("a")
    assert len(load_members(house.coordinator)) == 1
    with monkeypatch.context() as patch:
        patch.setattr("cohortium.server.members.read_json", lambda *_: pytest.fail("read again"))
        assert len(active_keys(house.coordinator, house.now)) == 1
    house.enrol("b")
    assert len(active_keys(house.coordinator, house.now)) == 2
    file = house.coordinator / "members" / "a.json"
    text = file.read_text()
    for broken in ("{}", text.replace('"a"', '"b"')):
        file.write_text(broken)
        with pytest.raises(DataError, match=r"a\.json"):
            active_keys(house.coordinator, house.now)
    shutil.rmtree(house.coordinator / "members")
    with pytest.raises(DataError, match="members"):
        active_keys(house.coordinator, house.now)


# --- thresholds and reviewers ----------------------------------------------------------------------------------------


def test_thresholds_are_fixed_with_the_first_enrolment(house: House) -> None:
    file = house.coordinator / "federation.toml"
    text = file.read_text().replace("max_epsilon = 3.0", "max_epsilon = 2.0")
    file.write_text(text.replace("# [quorum]\n# witnesses = 2\n# outside_group = 1", "[quorum]\nwitnesses = 1"))
    house.enrol("a")
    charter = load_charter(house.coordinator / "charter.json")
    assert (charter.max_epsilon, charter.quorum.witnesses) == (2.0, 0)
    file.write_text(text)
    refuses(house, "b", "was changed after the first enrolment")
    with pytest.raises(RefusedError, match="was changed after"):
        house.revoke("a")
    assert active_keys(house.coordinator, house.now) == {}  # a revocation is never held up
    assert revoked_serials(house)
    for wrong, error in (("name = 1", PlanError), (text.replace(NAME, "south"), RefusedError)):
        file.write_text(wrong)
        with pytest.raises(error, match=r"federation\.toml"):
            house.enrol("b")


@pytest.mark.parametrize(
    ("quorum", "groups", "expected"),
    [
        ("witnesses = 3\noutside_group = 2", (None, None, None), [(0, 0), (1, 1), (2, 2)]),
        ("witnesses = 1\noutside_group = 1", ("x", "x", "x"), [(0, 0), (1, 0), (1, 0)]),
        ("outside_group = 2", ("x", "x", None), [(None, 0), (None, 0), (None, 1)]),
    ],
)
def test_a_charter_asks_for_no_more_witnesses_than_there_are(
    house: House, found: Found, quorum: str, groups: tuple[str | None, ...], expected: list[tuple[int, int]]
) -> None:
    file = house.coordinator / "federation.toml"
    file.write_text(file.read_text() + f"\n[quorum]\n{quorum}\n")
    for index, group in enumerate(groups):
        house.enrol(found(house.node(f"n{index}"), f"n{index}", group=group))
        asked = load_charter(house.coordinator / "charter.json").quorum
        assert (asked.witnesses, asked.outside_group) == expected[index]


def test_a_federation_keeps_its_name(house: House) -> None:
    file = house.coordinator / "federation.toml"
    file.write_text(file.read_text().replace(NAME, "south sea"))
    refuses(house, "a", "was founded as 'north sea'")


def test_the_authoritys_certificate_is_of_its_key(house: House) -> None:
    shutil.copy(house.coordinator / "server.crt", house.coordinator / "authority.crt")
    with pytest.raises(DataError, match="is the certificate of another key"):
        house.enrol("a")
    assert not load_members(house.coordinator)


def reviewer(house: House, name: str, person: str) -> Reviewer:
    asked = prove_possession(NAME, person, name, "risk", fresh_identity())
    return enrol_reviewer(NAME, asked, read_key(house.node(name), PASSWORD))


def test_reviewers_stay_with_their_institution(house: House) -> None:
    with pytest.raises(RefusedError, match="has no members"):
        add_reviewers(house.coordinator, PASSWORD, [reviewer(house, "a", "anna")], house.now)
    house.join("a")
    anna, bert = reviewer(house, "a", "anna"), reviewer(house, "b", "bert")
    for _ in range(2):
        charter = add_reviewers(house.coordinator, PASSWORD, [anna], house.now)
        assert charter.reviewers == (anna,)
    with pytest.raises(PlanError, match="no member"):
        add_reviewers(house.coordinator, PASSWORD, [bert], house.now)
    house.enrol("b")
    add_reviewers(house.coordinator, PASSWORD, [bert], house.now)
    forged = anna.model_copy(update={"person": "otto"})
    with pytest.raises(PlanError, match="did not sign"):
        add_reviewers(house.coordinator, PASSWORD, [forged], house.now)
    rotate(house.node("a"), PASSWORD)
    house.join("a")
    assert load_charter(house.coordinator / "charter.json").reviewers == (anna, bert)
    house.revoke("a")
    assert load_charter(house.coordinator / "charter.json").reviewers == (bert,)
    assert [name for event, name in house.logged() if event == "reviewer-enrolled"] == ["a", "b"]


def test_the_log_is_the_coordinators(house: House) -> None:
    house.enrol("a")
    engine = open_store(house.coordinator / "log.sqlite", read_only=True)
    try:
        assert log_origin_of(engine) == log_origin(NAME)
    finally:
        engine.dispose()


# --- crashes ---------------------------------------------------------------------------------------------------------


class KilledError(BaseException):
    pass


def killed(*_: object, **__: object) -> None:
    raise KilledError


def kill_at(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    """The process ends before the file of that name is put in place for the count-th time from now."""
    rename, left = os.replace, [count]

    def dies(source: Path, target: Path) -> None:
        if Path(target).name == name:
            left[0] -= 1
            if not left[0]:
                raise KilledError
        rename(source, target)

    monkeypatch.setattr("os.replace", dies)


@pytest.mark.parametrize("file", ["a.json", "authority.crl", "charter.json", "log"])
def test_an_enrolment_that_was_killed_is_done_again(house: House, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    with monkeypatch.context() as patch:
        if file == "log":
            patch.setattr("cohortium.server.members.AuditLog.append", killed)
        else:
            kill_at(patch, file, 1)
        with pytest.raises(KilledError):
            house.enrol("a")
    held = active_keys(house.coordinator, house.now)
    assert len(held) == (0 if file == "a.json" else 1)
    found = house.join("a")
    assert len(found.member.issued) == 1
    assert list(active_keys(house.coordinator, house.now).values()) == ["a"]
    assert house.logged() == [("member-enrolled", "a")]
    assert load_charter(house.coordinator / "charter.json").institutions[0].name == "a"


@pytest.mark.parametrize("file", ["a.json", "authority.crl", "charter.json"])
def test_a_revocation_that_was_killed_is_done_again(house: House, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    serial = int(house.enrol("a").member.current.serial, 16)
    house.enrol("b")
    with monkeypatch.context() as patch:
        kill_at(patch, file, 1)
        with pytest.raises(KilledError):
            house.revoke("a")
    house.revoke("a")
    assert list(active_keys(house.coordinator, house.now).values()) == ["b"]
    assert revoked_serials(house) == {serial}
    assert house.logged().count(("member-revoked", "a")) == 1
    assert [one.name for one in load_charter(house.coordinator / "charter.json").institutions] == ["b"]


def test_reviewers_of_former_keys_are_left_out_though_a_revocation_was_killed(
    house: House, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The charter of before is still there, with a reviewer whom the institution's new identity did not vouch for."""
    house.enrol("a")
    add_reviewers(house.coordinator, PASSWORD, [reviewer(house, "a", "anna")], house.now)
    with monkeypatch.context() as patch:
        kill_at(patch, "authority.crl", 1)
        with pytest.raises(KilledError):
            house.revoke("a")
    house.enrol(found(house.node("new"), "a"))
    charter = load_charter(house.coordinator / "charter.json")
    assert ([one.name for one in charter.institutions], charter.reviewers) == (["a"], ())


@pytest.mark.parametrize("file", ["authority.crt", "transport.crt", "transport.pem", "link.json"])
def test_a_rotation_that_was_killed_while_it_joined_is_joined_again(
    house: House, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    house.join("a")
    rotate(house.node("a"), PASSWORD)
    found = house.enrol("a").enrolment
    with monkeypatch.context() as patch:
        kill_at(patch, file, 1)
        with pytest.raises(KilledError):
            join(house.node("a"), found, house.fingerprint, PASSWORD, house.now)
    if file == "transport.pem":
        with pytest.raises(CohortiumError, match="do not fit together"):
            client_context(house.node("a"), PASSWORD)
    join(house.node("a"), found, house.fingerprint, PASSWORD, house.now)
    client_context(house.node("a"), PASSWORD)
    assert read_transport_key(house.node("a"), PASSWORD).public_key() == house.request("a").transport_key("")


NODE_FILES = ["identity.pem", "contract.json", "node.json", "transport.pem", REQUEST]


@pytest.mark.parametrize("file", NODE_FILES)
def test_a_node_that_was_killed_while_it_was_made_is_finished(
    house: House, found: Found, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, file, 1)
        with pytest.raises(KilledError):
            found(house.node("c"), "c")
    found(house.node("c"), "c")
    assert house.join("c").kind == "enrolled"


FOUNDED = ["identity.pem", "authority.pem", "authority.crt", "server.pem", "server.crt", "authority.crl"]


@pytest.mark.parametrize("file", [*FOUNDED, "federation.toml", "coordinator.json"])
def test_a_federation_that_was_killed_while_it_was_founded_is_finished(
    house: House, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    folder = house.folder / "other"
    with monkeypatch.context() as patch:
        kill_at(patch, file, 1)
        with pytest.raises(KilledError):
            found_federation(folder, NAME, "127.0.0.1:1", PASSWORD, house.now)
    if file not in FOUNDED[:3]:
        with pytest.raises(DataError, match="another name"):
            found_federation(folder, "other", "127.0.0.1:1", PASSWORD, house.now)
    made = found_federation(folder, NAME, "127.0.0.1:1", PASSWORD, house.now)
    assert read_coordinator(folder) == made
    asked = house.request("a")
    assert enrol(folder, PASSWORD, asked, asked.fingerprint, house.now).kind == "enrolled"
    assert json.loads((folder / "coordinator.json").read_bytes())["federation"] == NAME
