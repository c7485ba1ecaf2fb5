"""Leaves of an audit log: an entry and a salt, as RFC 8785 canonical JSON.

The salt is fresh for every entry, so that a leaf's hash tells nothing about an entry that could be guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rfc8785 import CanonicalizationError

from cohortium.privacy.randomness import fresh_key
from cohortium.study.canonical import canonical_bytes
from cohortium.study.errors import DataError

__all__ = ["MAX_LEAF", "Leaf", "fresh_leaf", "parse_leaf"]

MAX_LEAF = 2**20
"""Bytes of the largest leaf."""

_SALT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Leaf:
    """An entry and its salt.

    Args:
        entry: an object of JSON types.
        salt: 32 bytes as 64 hexadecimal digits, lower case.
    """

    entry: Mapping[str, Any]
    salt: str

    def to_bytes(self) -> bytes:
        """What is hashed: the canonical JSON of `{"entry": ..., "salt": ...}`.

        Raises:
            DataError: the entry is not of JSON types, holds an integer beyond 2^53 or a number that is not finite, or
                the leaf is larger than `MAX_LEAF`.
        """
        try:
            data = canonical_bytes({"entry": dict(self.entry), "salt": self.salt})
        except (CanonicalizationError, RecursionError, UnicodeError) as error:
            raise DataError(
                "the entry has no canonical JSON", place="audit log", fix="use JSON types and integers below 2^53"
            ) from error
        if len(data) > MAX_LEAF:
            raise DataError(f"the entry is above {MAX_LEAF:,} bytes", place="audit log", fix="log a digest instead")
        return data


def fresh_leaf(entry: Mapping[str, Any]) -> Leaf:
    """An entry under a salt that was never used before."""
    return Leaf(entry, fresh_key().hex())


def parse_leaf(data: bytes) -> Leaf:
    """A leaf from its bytes; `DataError` unless they are, byte for byte, the leaf's canonical JSON."""
    try:
        raw = json.loads(data) if len(data) <= MAX_LEAF else None
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict) or raw.keys() != {"entry", "salt"} or not isinstance(raw["entry"], dict):
        raise _malformed()
    if not isinstance(raw["salt"], str) or not _SALT.fullmatch(raw["salt"]):
        raise _malformed()
    leaf = Leaf(raw["entry"], raw["salt"])
    if leaf.to_bytes() != data:
        raise _malformed()
    return leaf


def _malformed() -> DataError:
    return DataError("is not a leaf in canonical JSON", place="audit log", fix="get the log's own bytes again")
