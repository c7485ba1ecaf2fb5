"""Canonical bytes and digests (RFC 8785, SHA-256) of everything that parties agree on."""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785

__all__ = ["canonical_bytes", "digest_bytes", "digest_json"]


def canonical_bytes(value: Any) -> bytes:
    """The RFC 8785 canonical JSON of a value of JSON types; raises `rfc8785.CanonicalizationError` otherwise."""
    return rfc8785.dumps(value)


def digest_bytes(data: bytes) -> str:
    """`sha256:` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """Digest of the canonical JSON of a value of JSON types."""
    return digest_bytes(canonical_bytes(value))
