"""Canonical JSON: byte for byte what the library for RFC 8785 writes, and refused where that refuses."""

from __future__ import annotations

import math
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from cohortium.study.canonical import canonical_bytes

FLOATS = (0.0, -0.0, 1.0, -1.5, 1e-4, 9.999e-5, 1e-7, 5e-324, 9007199254740993.0, 1e16, 1e20, 1e21, -1.7e308, 0.1 + 0.2)
TEXTS = st.text(max_size=6) | st.text(st.characters(max_codepoint=0x7F), max_size=6) | st.just("\ud800")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**53 - 2, 2**53 + 2).flatmap(lambda size: st.sampled_from([size, -size]))
    | st.floats()
    | st.sampled_from(FLOATS)
    | TEXTS
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8
)


class Word(StrEnum):
    """A word."""

    SOME = "some"


class Number(IntEnum):
    """A number."""

    ONE = 1


def outcome(write: Any, value: Any) -> tuple[type, Any]:
    """The bytes, or how it was refused."""
    try:
        return bytes, write(value)
    except ValueError as error:
        return type(error), str(error)


@given(VALUES)
@example({"\U0001f600": 1, "\ufb33": 2, "a": 3})
@example({"b": [], "a": {}, '\x7f\x1f"\\/': "\u2028\b\f\n\r\t\x00"})
@example({"kept": [1, {"deep": "\ud800"}]})
@example([{"\ud800": 1}])
@example(["\ud800", 2**53])
def test_it_is_what_the_library_writes(value: Any) -> None:
    assert outcome(canonical_bytes, value) == outcome(rfc8785.dumps, value)


@pytest.mark.parametrize(
    "value",
    [
        (1, (2.0,)),
        [Word.SOME, Number.ONE, True],
        {Word.SOME: 1, "a": Word.SOME},
        np.float64(1e-5),
        [np.float64(2.5)],
        (),
    ],
    ids=str,
)
def test_subtypes_are_written_as_what_they_are(value: Any) -> None:
    assert canonical_bytes(value) == rfc8785.dumps(value)


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, 2**53, -(2**53), "\ud800", {1: 2}, {"a": 1, 2: 3}, {"a": {1.5}}, [b"a"], [np.int64(1)]],
    ids=ascii,
)
def test_what_is_no_json_is_refused_in_the_librarys_words(value: Any) -> None:
    kind, words = outcome(canonical_bytes, value)
    assert issubclass(kind, rfc8785.CanonicalizationError)
    assert (kind, words) == outcome(rfc8785.dumps, value)


def test_numbers_round_trip_as_ecmascript_writes_them() -> None:
    small = b"0,0,1,-1.5,0.0001,0.00009999,1e-7,5e-324"
    large = b"9007199254740992,10000000000000000,100000000000000000000,1e+21,-1.7e+308,0.30000000000000004"
    assert canonical_bytes(FLOATS) == b"[" + small + b"," + large + b"]"
