"""Passwords of accounts: scrypt (RFC 7914), with a fresh salt each; five wrong ones in a row lock an account."""

from __future__ import annotations

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from cohortium.privacy.randomness import fresh_key
from cohortium.study.keys import check_password

__all__ = ["COST", "FAILURES", "LOCKED_FOR", "hash_password", "is_password"]

COST = 2**17
"""The n of scrypt, with r = 8 and p = 1: 128 MiB and a third to two thirds of a second a try."""

FAILURES = 5
"""Wrong passwords in a row that lock an account."""

LOCKED_FOR = 300
"""Seconds for which it stays locked."""

_R, _P, _LENGTH = 8, 1, 32


def hash_password(password: str, place: str) -> str:
    """`scrypt:N:SALT:KEY`, salt and key in hexadecimal; `DataError` for a password shorter than 16 characters."""
    check_password(password, place)
    salt = fresh_key()
    return f"scrypt:{COST}:{salt.hex()}:{_scrypt(COST, salt).derive(password.encode()).hex()}"


def is_password(password: str, kept: str | None) -> bool:
    """Whether a password is the one that was kept; takes as long where none was."""
    if kept is None:
        _scrypt(COST, bytes(_LENGTH)).derive(password.encode())
        return False
    _, cost, salt, key = kept.split(":")
    try:
        _scrypt(int(cost), bytes.fromhex(salt)).verify(password.encode(), bytes.fromhex(key))
    except InvalidKey:
        return False
    return True


def _scrypt(cost: int, salt: bytes) -> Scrypt:
    return Scrypt(salt=salt, length=_LENGTH, n=cost, r=_R, p=_P)
