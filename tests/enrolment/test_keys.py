"""Keys on disk: encrypted, for their owner alone, and opened by a password that is never an argument."""

from __future__ import annotations

import base64
import contextlib
import errno
import getpass
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cohortium.client.joining import client_context, read_transport_key
from cohortium.client.node import read_key
from cohortium.privacy.keypairs import fresh_identity, fresh_transport
from cohortium.server.authority import open_authority, server_context
from cohortium.server.founding import open_coordinator
from cohortium.study.enrolment import load_certificate
from cohortium.study.errors import CohortiumError, DataError, OutputError, RefusedError
from cohortium.study.keys import (
    CREDENTIAL,
    PASSWORD_FILE,
    check_password,
    encrypted_pem,
    find_password,
    plain_pem,
    read_identity_file,
    read_plain_identity,
    read_transport_file,
    write_new_key,
    write_whole,
)

from .house import PASSWORD, House


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No password is set anywhere, and nobody is at the terminal."""
    monkeypatch.delenv(PASSWORD_FILE, raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO(PASSWORD + "\n"))
    return monkeypatch


def test_a_password_is_found_in_the_order_of_the_documents(nowhere: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        find_password()
    for source in ("--password-file", PASSWORD_FILE, CREDENTIAL):
        assert source in str(caught.value)
    (tmp_path / CREDENTIAL).write_text("of systemd\n")
    nowhere.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert find_password() == "of systemd"
    (tmp_path / "named").write_text("of the environment\r\nsecond line\n")
    nowhere.setenv(PASSWORD_FILE, str(tmp_path / "named"))
    assert find_password() == "of the environment"
    (tmp_path / "given").write_text("of the option")
    assert find_password(tmp_path / "given") == "of the option"
    (tmp_path / "given").write_bytes(b"\xff\xfe")
    for broken in (tmp_path / "given", tmp_path / "missing"):
        with pytest.raises(DataError, match=broken.name):
            find_password(broken)


def test_a_terminal_is_asked_twice_for_a_new_password(nowhere: pytest.MonkeyPatch) -> None:
    typed: list[str] = []
    nowhere.setattr("sys.stdin.isatty", lambda: True, raising=False)
    nowhere.setattr(getpass, "getpass", lambda _prompt: typed.pop(0))
    typed += [PASSWORD]
    assert find_password() == PASSWORD
    typed += [PASSWORD, PASSWORD]
    assert find_password(new=True) == PASSWORD
    typed += [PASSWORD, PASSWORD + "!"]
    with pytest.raises(DataError, match="differ") as caught:
        find_password(new=True)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("password", ["", "x" * 15, "x" * 1024, "ü" * 512])
def test_a_password_is_neither_short_nor_cut(password: str) -> None:
    with pytest.raises(DataError, match="password"):
        check_password(password, "here")


def test_a_key_comes_back_and_is_never_overwritten(tmp_path: Path) -> None:
    signing, transport = fresh_identity(), fresh_transport()
    for name, key in (("signing", signing), ("transport", transport)):
        write_new_key(tmp_path / name, key, PASSWORD)
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
        with pytest.raises(OutputError, match="exists already"):
            write_new_key(tmp_path / name, key, PASSWORD)
    assert read_identity_file(tmp_path / "signing", PASSWORD).private_bytes_raw() == signing.private_bytes_raw()
    assert read_transport_file(tmp_path / "transport", PASSWORD).private_numbers() == transport.private_numbers()
    with pytest.raises(DataError, match="no Ed25519 key"):
        read_identity_file(tmp_path / "transport", PASSWORD)
    with pytest.raises(DataError, match="no elliptic curve key"):
        read_transport_file(tmp_path / "signing", PASSWORD)
    with pytest.raises(DataError, match="holds no identity key"):
        read_plain_identity(tmp_path / "signing", fix="")
    write_whole(tmp_path / "plain", plain_pem(signing))
    with pytest.raises(DataError, match="is no encrypted key"):
        read_identity_file(tmp_path / "plain", PASSWORD)


def damaged(pem: str) -> Iterator[str]:
    """The same with one bit of one byte changed, of every byte."""
    head, *lines, tail = pem.strip().split("\n")
    data = base64.b64decode("".join(lines))
    for position in range(len(data)):
        edited = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        yield f"{head}\n{base64.encodebytes(edited).decode()}{tail}\n"


def test_damage_to_a_key_is_named_as_such_wherever_it_is(tmp_path: Path) -> None:
    """Where it is in the key itself another key comes out: the format has no seal. Charter and certificate pin it."""
    path, opened = tmp_path / "key", 0
    path.touch(mode=0o600)
    files = list(damaged(encrypted_pem(fresh_identity(), PASSWORD, "key").decode()))
    for text in files:
        path.write_text(text)
        with contextlib.suppress(DataError):
            opened += bool(read_identity_file(path, PASSWORD))
    assert opened < len(files) // 2


def test_a_damaged_request_or_certificate_is_refused_wherever_the_damage_is(house: House) -> None:
    asked, certificate = house.request("a"), house.join("a").enrolment.certificate
    for text in damaged(asked.csr):
        with contextlib.suppress(RefusedError):
            asked.model_copy(update={"csr": text}).transport_key("request")
    for text in damaged(certificate):
        with contextlib.suppress(RefusedError):
            load_certificate(text, "enrolment")


def test_a_full_disk_leaves_what_was_there_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_whole(tmp_path / "charter.json", b"before")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"charter\.json: No space left .* check the path, space"):
            write_whole(tmp_path / "charter.json", b"after")
    assert (tmp_path / "charter.json").read_bytes() == b"before"
    with pytest.raises(OutputError, match="No such file"):
        write_whole(tmp_path / "missing" / "charter.json", b"after")
    write_whole(tmp_path / "charter.json", b"after")
    assert (tmp_path / "charter.json").read_bytes() == b"after"


READS = {
    "a/identity.pem": lambda house: read_key(house.node("a"), PASSWORD),
    "a/transport.pem": lambda house: client_context(house.node("a"), PASSWORD),
    "coordinator/identity.pem": lambda house: open_coordinator(house.coordinator, PASSWORD),
    "coordinator/authority.pem": lambda house: open_authority(house.coordinator, PASSWORD),
    "coordinator/server.pem": lambda house: server_context(house.coordinator, PASSWORD),
}


@pytest.mark.parametrize("mode", [0o620, 0o604, 0o601])
@pytest.mark.parametrize("name", READS)
def test_a_key_that_others_may_reach_is_refused(house: House, name: str, mode: int) -> None:
    house.join("a")
    READS[name](house)
    (house.folder / name).chmod(mode)
    with pytest.raises(DataError, match=rf"{name}: others may read or change it: its mode is {mode:o}") as caught:
        READS[name](house)
    assert "chmod 600" in str(caught.value.fix)


@pytest.mark.parametrize("name", READS)
def test_a_folder_that_others_may_enter_is_refused(house: House, name: str) -> None:
    house.join("a")
    (house.folder / name).parent.chmod(0o711)
    with pytest.raises(DataError, match="its mode is 711") as caught:
        READS[name](house)
    assert "chmod 700" in str(caught.value.fix)


@pytest.mark.parametrize("name", READS)
def test_a_key_of_another_user_is_refused(house: House, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    house.join("a")
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(DataError, match="belongs to another user"):
        READS[name](house)


@pytest.mark.parametrize(
    "read",
    [
        lambda house, password: read_key(house.node("a"), password),
        lambda house, password: read_transport_key(house.node("a"), password),
        lambda house, password: client_context(house.node("a"), password),
        lambda house, password: open_coordinator(house.coordinator, password),
        lambda house, password: open_authority(house.coordinator, password),
        lambda house, password: server_context(house.coordinator, password),
    ],
)
def test_a_wrong_password_opens_nothing_and_is_not_repeated(house: House, read: object) -> None:
    house.join("a")
    wrong = PASSWORD + ", but another"
    with pytest.raises(CohortiumError, match="cannot be opened with this password") as caught:
        read(house, wrong)  # type: ignore[operator]
    assert wrong not in str(caught.value)


def test_an_unencrypted_key_serves_simulations_alone(house: House) -> None:
    key = read_key(house.node("a"), PASSWORD)
    write_whole(house.node("a") / "identity.pem", plain_pem(key))
    with pytest.raises(DataError, match="is no encrypted key"):
        read_key(house.node("a"), PASSWORD)
    node = house.node("a") / "node.json"
    write_whole(node, node.read_bytes().replace(b'"simulation": false', b'"simulation": true'))
    assert read_key(house.node("a")).private_bytes_raw() == key.private_bytes_raw()
