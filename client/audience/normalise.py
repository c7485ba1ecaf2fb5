"""Identifiers as destinations want them: trimmed, in small letters, as E.164, as SHA-256.

A destination matches people by hashes of identifiers, so that one wrong character loses a person in silence. The rules
are therefore strict: what is not surely an e-mail address or a telephone number becomes no identifier, and is counted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cohortium.study.errors import DataError

__all__ = ["ID", "STEPS", "Column", "PhoneRules", "e164", "normaliser", "parse_column"]

ID = "id"
"""The source of a column that holds the customer's own id."""

STEPS = ("trim", "lower", "email", "e164", "digits", "sha256")
"""What a column's value may pass through, in the order in which it is written."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_EMAIL = re.compile(r"[^\s@\"(),:;<>\[\]\\]+@[^\s@.]+(\.[^\s@.]+)+")
_SEPARATORS = re.compile(r"[\s().\-/\u2010-\u2015\u2212]")
_DIGITS = re.compile(r"[0-9]+")
_CALLING_CODE = re.compile(r"[1-9][0-9]{0,2}")
_SHORTEST, _LONGEST = 7, 15
_NORTH_AMERICA = "1"
_ZERO_STAYS = ("39", "378", "379")


@dataclass(frozen=True)
class PhoneRules:
    """How national telephone numbers become international ones (ITU-T E.164).

    Args:
        calling_code: of numbers that are written without one, 1 to 3 digits, without the plus sign.
        trunk: digits that begin a national number and fall away abroad ("0" in most of Europe, "8" for calling code 7,
            "06" for 36); empty where there are none, as for 1, 34, 39 and 47. A number without it is no identifier.

    Raises:
        DataError: malformed digits, or a trunk that the calling code does not have.
    """

    calling_code: str
    trunk: str

    def __post_init__(self) -> None:
        if not _CALLING_CODE.fullmatch(self.calling_code):
            raise DataError("malformed calling code", place="telephone numbers", fix="give 1 to 3 digits, such as 44")
        if self.trunk and not (_DIGITS.fullmatch(self.trunk) and len(self.trunk) <= 2):
            raise DataError("malformed trunk prefix", place="telephone numbers", fix="give 0 to 2 digits, such as 0")
        if self.trunk and self.calling_code in (_NORTH_AMERICA, *_ZERO_STAYS):
            raise DataError(
                f"calling code {self.calling_code} has no trunk prefix", place="telephone numbers", fix="leave it empty"
            )


@dataclass(frozen=True)
class Column:
    """One column of an export.

    Args:
        name: what the destination calls it.
        source: column of the contacts file, or `id`.
        steps: of `STEPS`, in order; `sha256` can only be the last.

    Raises:
        DataError: a malformed name, an unknown step, a step after `sha256`, `e164` together with `email`.
    """

    name: str
    source: str
    steps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        place = f"column '{self.name}'"
        if not _NAME.fullmatch(self.name):
            raise DataError("malformed name of a column", place="destination", fix="use letters, digits and _ . -")
        unknown = [step for step in self.steps if step not in STEPS]
        if unknown:
            raise DataError(f"unknown step '{unknown[0]}'", place=place, fix=f"use {', '.join(STEPS)}")
        if "sha256" in self.steps[:-1]:
            raise DataError("a step follows sha256", place=place, fix="hash last, and once")
        if {"email", "e164"} <= set(self.steps):
            raise DataError("both an e-mail address and a telephone number", place=place, fix="keep one of the steps")


def parse_column(text: str) -> Column:
    """A column from `NAME`, `NAME=SOURCE`, `NAME:STEP,STEP` or `NAME=SOURCE:STEP,STEP`; `DataError` as `Column`."""
    left, _, steps = text.partition(":")
    name, _, source = left.partition("=")
    return Column(name, source or name, tuple(steps.split(",")) if steps else ())


def normaliser(column: Column, phones: PhoneRules | None) -> Callable[[str], str | None]:
    """The function from a cell to an identifier; it returns None for what is none.

    Args:
        column: which steps.
        phones: needed by `e164`.

    Raises:
        DataError: `e164` without rules.
    """
    steps = [_step(step, column, phones) for step in column.steps]
    return lambda value: _through(value, steps)


def _step(step: str, column: Column, phones: PhoneRules | None) -> Callable[[str], str | None]:
    if step != "e164":
        return _SIMPLE[step]
    if phones is None:
        raise DataError(
            "telephone numbers need a default calling code",
            place=f"column '{column.name}'",
            fix="give the calling code and trunk prefix of numbers that are written without one",
        )
    return lambda value: e164(value, phones)


def _through(value: str, steps: Sequence[Callable[[str], str | None]]) -> str | None:
    result: str | None = value
    for step in steps:
        if not result:  # the hash of nothing would look like an identifier
            return None
        result = step(result)
    return result or None


def e164(value: str, phones: PhoneRules) -> str | None:
    """A telephone number as `+`, calling code and national number, 7 to 15 digits; None when it is not surely one.

    Blanks, hyphens, dots, slashes and brackets fall away, and `(0)` within an international number. International
    numbers begin with `+` or `00`. All others are national ones: they begin with the trunk prefix, or have none to
    begin with; those of calling code 1 have ten digits, with or without a 1 before them. Letters, extensions and
    numbers that could be read in two ways give None.
    """
    text = value.strip()
    if text.startswith(("+", "00")):
        text = text.replace("(0)", "", 1)
    bare = _SEPARATORS.sub("", text)
    digits = bare.removeprefix("+")
    if not _DIGITS.fullmatch(digits):
        return None
    if bare.startswith("+"):
        return _whole(digits)
    if bare.startswith("00"):
        return _whole(digits[2:])
    national = _national(digits, phones)
    return None if national is None else _whole(phones.calling_code + national)


def _national(digits: str, phones: PhoneRules) -> str | None:
    if phones.calling_code == _NORTH_AMERICA:
        short = digits[1:] if len(digits) == 11 and digits[0] == "1" else digits
        return short if len(short) == 10 and short[0] > "1" else None
    if phones.trunk:
        rest = digits.removeprefix(phones.trunk)
        return rest if rest != digits and not rest.startswith("0") else None
    return None if digits.startswith(phones.calling_code) and len(digits) > 10 else digits


def _whole(digits: str) -> str | None:
    """North American numbers have a closed plan, so that a wrong length shows; all others have E.164's limits."""
    if digits.startswith(_NORTH_AMERICA) and not (len(digits) == 11 and digits[1] > "1"):
        return None
    return f"+{digits}" if _SHORTEST <= len(digits) <= _LONGEST and digits[0] != "0" else None


def _email(value: str) -> str | None:
    text = value.strip().lower()
    return text if _EMAIL.fullmatch(text) else None


def _digits_of(value: str) -> str | None:
    return "".join(_DIGITS.findall(value)) or None


def _sha256(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


_SIMPLE: dict[str, Callable[[str], str | None]] = {
    "trim": str.strip,
    "lower": str.lower,
    "email": _email,
    "digits": _digits_of,
    "sha256": _sha256,
}
