"""Private keys on disk: encrypted PKCS #8, one way to their password, and who may read the file.

A key file is readable by its owner alone, and so is the state folder that it stands in: both are checked whenever a key
is read. Fresh keys come from `privacy.keypairs`.
"""

from __future__ import annotations

import getpass
import os
import stat
import sys
from pathlib import Path

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cohortium.study.errors import DataError, OutputError

__all__ = [
    "CREDENTIAL",
    "MIN_PASSWORD",
    "PASSWORD_FILE",
    "check_password",
    "encrypted_pem",
    "find_password",
    "password_in",
    "plain_pem",
    "read_identity_file",
    "read_plain_identity",
    "read_transport_file",
    "require_private_folder",
    "write_new_key",
    "write_whole",
]

MIN_PASSWORD = 16
"""Characters. The format derives its key from the password by 2,048 rounds of PBKDF2, which is few."""

PASSWORD_FILE = "COHORTIUM_PASSWORD_FILE"
"""Environment variable with the path of a file whose first line is the password."""

CREDENTIAL = "cohortium-password"
"""Name of the systemd credential with the password."""

_MAX_BYTES = 1023  # OpenSSL reads no more of a password
_MAX_FILE = 2**16
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"

_PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey


# --- passwords -------------------------------------------------------------------------------------------------------


def find_password(file: Path | None = None, *, new: bool = False) -> str:
    """The password of a state folder's keys, never from an argument, which other users of the machine could see.

    The first of: the given file, the file that `COHORTIUM_PASSWORD_FILE` names, systemd's credential
    `cohortium-password`, a prompt where there is a terminal.

    Args:
        file: whose first line it is.
        new: it is chosen now: a prompt asks twice.

    Raises:
        DataError: none of them is there, or the file cannot be read.
    """
    if file is not None:
        return password_in(file)
    if named := os.environ.get(PASSWORD_FILE):
        return password_in(Path(named))
    if (folder := os.environ.get("CREDENTIALS_DIRECTORY")) and (Path(folder) / CREDENTIAL).is_file():
        return password_in(Path(folder) / CREDENTIAL)
    if sys.stdin is not None and sys.stdin.isatty():
        return _asked(new)
    raise DataError(
        "the keys need their password, and nobody is there to be asked",
        fix=f"give --password-file, set {PASSWORD_FILE}, or load the systemd credential {CREDENTIAL}",
    )


def password_in(file: Path) -> str:
    """The first line of a file; `DataError` when it cannot be read."""
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_FILE)
        return data.decode().partition("\n")[0].removesuffix("\r")
    except OSError as error:
        raise DataError(error.strerror or "cannot be read", place=str(file), fix="check the path") from error
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text", place=str(file), fix="write the password on its first line") from error


def _asked(new: bool) -> str:
    password = getpass.getpass("password: ")
    if new and getpass.getpass("the same again: ") != password:
        raise DataError("the two passwords differ", fix="type the same one twice")
    return password


def check_password(password: str, place: str) -> None:
    """`DataError` for a password that is too short, or so long that it would be cut."""
    if len(password) < MIN_PASSWORD or len(password.encode()) > _MAX_BYTES:
        raise DataError(
            f"the password has fewer than {MIN_PASSWORD} characters, or more than {_MAX_BYTES} bytes",
            place=place,
            fix="choose several words",
        )


# --- writing ---------------------------------------------------------------------------------------------------------


def encrypted_pem(key: _PrivateKey, password: str, place: str) -> bytes:
    """The key as encrypted PKCS #8 in PEM; `DataError` as `check_password`."""
    check_password(password, place)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode()))


def plain_pem(key: _PrivateKey) -> bytes:
    """The key as PKCS #8 in PEM, not encrypted: for simulations alone."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write_new_key(path: Path, key: _PrivateKey, password: str) -> None:
    """Write a key to a file that does not exist yet, encrypted, for its owner alone.

    Raises:
        DataError: the password is too short or too long. Nothing is written.
        OutputError: the file exists already, or cannot be written.
    """
    data = encrypted_pem(key, password, str(path))
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise OutputError("exists already", place=str(path), fix="name a new file; no key is overwritten") from error
    except OSError as error:
        raise OutputError(error.strerror or "cannot be written", place=str(path), fix="check the path") from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file for its owner alone, whole or not at all, durably: neither a kill nor a power cut leaves half.

    Raises:
        OutputError: it cannot be written; what was there before still is.
    """
    try:
        _write_whole(path, data)
    except OSError as error:
        raise OutputError(
            error.strerror or "cannot be written", place=str(path), fix="check the path, space and permissions"
        ) from error


def _write_whole(path: Path, data: bytes) -> None:
    staged = path.with_name(f".{path.name}.partial")
    staged.unlink(missing_ok=True)
    with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_identity_file(path: Path, password: str, *, fix: str = "put back the right file") -> Ed25519PrivateKey:
    """The Ed25519 key in an encrypted file.

    Args:
        path: the file.
        password: its password.
        fix: what to do about a file that holds none.

    Raises:
        DataError: unreadable, open to others, not encrypted, another password, or another kind of key. The message
            quotes nothing of it.
    """
    key = _opened(path, password, fix)
    if not isinstance(key, Ed25519PrivateKey):
        raise DataError("holds no Ed25519 key", place=str(path), fix=fix)
    return key


def read_transport_file(path: Path, password: str, *, fix: str = "put back the right file") -> EllipticCurvePrivateKey:
    """The elliptic curve key in an encrypted file; as `read_identity_file`."""
    key = _opened(path, password, fix)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise DataError("holds no elliptic curve key", place=str(path), fix=fix)
    return key


def read_plain_identity(path: Path, *, fix: str) -> Ed25519PrivateKey:
    """The Ed25519 key in a file that is not encrypted, as simulations keep it; `DataError` when there is none."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise DataError(error.strerror or "cannot be read", place=str(path), fix="check the path") from error
    except (ValueError, TypeError) as error:
        raise DataError("holds no identity key", place=str(path), fix=fix) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise DataError("holds no Ed25519 key", place=str(path), fix=fix)
    return key


def _opened(path: Path, password: str, fix: str) -> PrivateKeyTypes:
    data = _read_private(path)
    if _ENCRYPTED not in data:
        raise DataError("is no encrypted key", place=str(path), fix=fix)
    try:
        return load_pem_private_key(data, password.encode()[:_MAX_BYTES])
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:  # the last two: of a damaged file
        raise DataError(
            "cannot be opened with this password", place=str(path), fix="give the password it was made with"
        ) from error


def require_private_folder(folder: Path) -> None:
    """`DataError` unless a state folder is the caller's own and closed to everybody else."""
    try:
        _require_private(folder, folder.stat(), "700")
    except OSError as error:
        raise DataError(error.strerror or "cannot be read", place=str(folder), fix="check the path") from error


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            _require_private(path, os.fstat(file.fileno()), "600")
            return file.read(_MAX_FILE)
    except OSError as error:
        raise DataError(error.strerror or "cannot be read", place=str(path), fix="check the path") from error


def _require_private(path: Path, found: os.stat_result, mode: str) -> None:
    if found.st_uid != os.geteuid():
        raise DataError("belongs to another user", place=str(path), fix="run this as the user whose key it is")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise DataError(
            f"others may read or change it: its mode is {stat.S_IMODE(found.st_mode):o}",
            place=str(path),
            fix=f"chmod {mode}, and find out who has read it",
        )
