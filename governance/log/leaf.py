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

_MAX_INTEGER = 2**53 - 1
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
        raw, plain = _decoded(data) if len(data) <= MAX_LEAF else (None, False)
    except (ValueError, RecursionError):
        raise _malformed() from None
    if not isinstance(raw, dict) or raw.keys() != {"entry", "salt"} or not isinstance(raw["entry"], dict):
        raise _malformed()
    if not isinstance(raw["salt"], str) or not _SALT.fullmatch(raw["salt"]):
        raise _malformed()
    leaf = Leaf(raw["entry"], raw["salt"])
    if not plain and leaf.to_bytes() != data:
        raise _malformed()
    return leaf


def _decoded(data: bytes) -> tuple[Any, bool]:
    """What the bytes say, and whether they are seen to be canonical without RFC 8785's own serialisation.

    Where all is ASCII and every number a small integer, canonical JSON is what the standard library writes with sorted
    keys: a fifth of the time, for the entries that there are most of.
    """
    if data.isascii():
        try:
            raw = _PLAIN.decode(data.decode())
            return raw, _WRITTEN.encode(raw).encode() == data
        except _NotPlainError:
            pass
    return json.loads(data), False


class _NotPlainError(Exception):
    """A number whose canonical form takes more than its digits."""


def _small(digits: str) -> int:
    number = int(digits)
    if abs(number) > _MAX_INTEGER:
        raise _NotPlainError
    return number


def _not_plain(_digits: str) -> float:
    raise _NotPlainError


_PLAIN = json.JSONDecoder(parse_int=_small, parse_float=_not_plain, parse_constant=_not_plain)
_WRITTEN = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _malformed() -> DataError:
    return DataError("is not a leaf in canonical JSON", place="audit log", fix="get the log's own bytes again")
