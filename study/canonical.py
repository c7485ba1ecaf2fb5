"""Canonical bytes and digests (RFC 8785, SHA-256) of everything that parties agree on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Any

import rfc8785

__all__ = ["canonical_bytes", "digest_bytes", "digest_json"]

_SAFE = 2**53
_NAMES = {None: "null", True: "true", False: "false"}


def canonical_bytes(value: Any) -> bytes:
    """The RFC 8785 canonical JSON of a value of JSON types; raises `rfc8785.CanonicalizationError` otherwise.

    What is plain is written here, at a quarter of the time; whatever is not is left to `rfc8785`, which refuses too.
    """
    parts: list[str] = []
    try:
        _write(value, parts.append)
        return "".join(parts).encode()
    except (UnicodeEncodeError, rfc8785.CanonicalizationError):  # of two faults the library names its own first
        return rfc8785.dumps(value)


def digest_bytes(data: bytes) -> str:
    """`sha256:` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """Digest of the canonical JSON of a value of JSON types."""
    return digest_bytes(canonical_bytes(value))


def _write(value: Any, put: Callable[[str], None]) -> None:
    kind = type(value)
    if kind is str:
        put(encode_basestring(value))
    elif kind is dict and _is_plain(value):
        before = "{"
        for key in sorted(value):
            put(f"{before}{encode_basestring(key)}:")
            _write(value[key], put)
            before = ","
        put("}" if value else "{}")
    elif kind is list or kind is tuple:
        before = "["
        for each in value:
            put(before)
            _write(each, put)
            before = ","
        put("]" if value else "[]")
    elif kind is float and (value == 0 or 1e-4 <= abs(value) < 1e16):  # Python's shortest digits, without an exponent
        put(repr(value).removesuffix(".0") if value else "0")
    elif kind is int and -_SAFE < value < _SAFE:
        put(str(value))
    elif value is None or kind is bool:
        put(_NAMES[value])
    else:
        put(rfc8785.dumps(value).decode())


def _is_plain(value: dict[Any, Any]) -> bool:
    """Whether all keys are ASCII: then their order is that of UTF-16."""
    try:
        return "".join(value).isascii()
    except TypeError:
        return False
