"""Key files: a reviewer's Ed25519 key, encrypted under their password, and the identity keys of simulations."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.privacy.keypairs import fresh_identity
from cohortium.study.keys import read_identity_file, read_plain_identity, write_new_key

__all__ = ["read_identity", "read_reviewer_key", "write_reviewer_key"]

_FIX = "make one with `cohortium review key new`"


def write_reviewer_key(path: Path, password: str) -> Ed25519PrivateKey:
    """Make a key, and keep it as encrypted PKCS #8 in PEM, readable by its owner alone.

    Args:
        path: a file that does not exist yet.
        password: 16 characters or more.

    Raises:
        DataError: the password is too short or too long. Nothing is written.
        OutputError: the file exists already, or cannot be written.
    """
    key = fresh_identity()
    write_new_key(path, key, password)
    return key


def read_reviewer_key(path: Path, password: str) -> Ed25519PrivateKey:
    """The key in a file of `write_reviewer_key`.

    Raises:
        DataError: unreadable, open to others, not encrypted, another password, or no Ed25519 key. The message quotes
            nothing of it.
    """
    return read_identity_file(path, password, fix=_FIX)


def read_identity(path: Path) -> Ed25519PrivateKey:
    """The identity key of a simulation, which is not encrypted; `DataError` when it cannot be read.

    A node's own key is read by `client.node.read_key`.
    """
    return read_plain_identity(path, fix="name the node's identity.pem")
