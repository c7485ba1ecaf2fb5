"""Key files: a reviewer's Ed25519 key, encrypted under their password, and the institution's identity key."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from cohortium.privacy.randomness import fresh_key
from cohortium.study.errors import DataError, OutputError

__all__ = ["MIN_PASSWORD", "read_identity", "read_reviewer_key", "write_reviewer_key"]

MIN_PASSWORD = 16
"""Characters. The format derives its key from the password by 2,048 rounds of PBKDF2, which is few."""

_MAX_BYTES = 1023  # OpenSSL reads no more of a password
_MAX_FILE = 2**16


def write_reviewer_key(path: Path, password: str) -> Ed25519PrivateKey:
    """Make a key, and keep it as encrypted PKCS #8 in PEM, readable by its owner alone.

    Args:
        path: a file that does not exist yet.
        password: 16 characters or more.

    Raises:
        DataError: the password is too short or too long. Nothing is written.
        OutputError: the file exists already, or cannot be written.
    """
    if len(password) < MIN_PASSWORD or len(password.encode()) > _MAX_BYTES:
        raise DataError(
            f"the password has fewer than {MIN_PASSWORD} characters, or more than {_MAX_BYTES} bytes",
            place=str(path),
            fix="choose several words",
        )
    key = Ed25519PrivateKey.from_private_bytes(fresh_key())
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode()))
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise OutputError("exists already", place=str(path), fix="name a new file; no key is overwritten") from error
    except OSError as error:
        raise OutputError(error.strerror or "cannot be written", place=str(path), fix="check the path") from error
    return key


def read_reviewer_key(path: Path, password: str) -> Ed25519PrivateKey:
    """The key in a file of `write_reviewer_key`.

    Raises:
        DataError: unreadable, not encrypted, another password, or no Ed25519 key. The message quotes nothing of it.
    """
    data = _read(path)
    if b"-----BEGIN ENCRYPTED PRIVATE KEY-----" not in data:
        raise DataError("is no encrypted key", place=str(path), fix="make one with `cohortium review key new`")
    try:
        key = load_pem_private_key(data, password.encode()[:_MAX_BYTES])
    except (ValueError, TypeError) as error:
        raise DataError(
            "cannot be opened with this password", place=str(path), fix="give the password it was made with"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise DataError("holds no Ed25519 key", place=str(path), fix="make one with `cohortium review key new`")
    return key


def read_identity(path: Path) -> Ed25519PrivateKey:
    """An institution's identity key (`identity.pem` of its node, not encrypted); `DataError` when it cannot be read."""
    try:
        key = load_pem_private_key(_read(path), None)
    except (ValueError, TypeError) as error:
        raise DataError("holds no identity key", place=str(path), fix="name the node's identity.pem") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise DataError("holds no Ed25519 key", place=str(path), fix="name the node's identity.pem")
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE)
    except OSError as error:
        raise DataError(error.strerror or "cannot be read", place=str(path), fix="check the path") from error
