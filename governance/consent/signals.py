"""What a person said, and what it makes of their standing.

A signal is everything of an event that is not a person's own: kind, state, purposes, validity. There are few distinct
ones, each stored once. A person's standing is 42 bytes:

    flags      4   objections, opt-outs, permissions, minor, erasure pending
    until     32   for every purpose the day (since 1970) from which its consent is no longer valid; 0: none
    bank       6   open banking: day the permission ends, day of last authentication, pulls in 24 hours

The newest signal that covers a purpose decides it: a consent also gives, and a withdrawal also takes, every narrower
purpose. Days are rounded against use: a consent is valid on the days before the one on which it ends.
"""

from __future__ import annotations

import calendar
import re
import struct
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, TypeAdapter

from cohortium.governance.consent.purposes import PURPOSES, narrower, purpose_term
from cohortium.study.document import Document

__all__ = [
    "CHANNELS",
    "EMPTY",
    "FLAGS",
    "NEVER",
    "OBJECTIONS",
    "SLOTS",
    "VALID_STATES",
    "AgeSignal",
    "AnySignal",
    "BankSignal",
    "ConsentSignal",
    "ConsentState",
    "ErasureSignal",
    "FlagKind",
    "FlagSignal",
    "consent_end",
    "day_of",
    "parse_signal",
    "unpack",
]

ConsentState = Literal[
    "ConsentGiven",
    "RenewedConsentGiven",
    "ConsentRequested",
    "ConsentRequestDeferred",
    "ConsentRefused",
    "ConsentWithdrawn",
    "ConsentRevoked",
    "ConsentExpired",
    "ConsentInvalidated",
    "ConsentUnknown",
]
"""DPV's states of a consent."""

VALID_STATES = frozenset({"ConsentGiven", "RenewedConsentGiven"})
"""The only states under which data may be processed."""

FlagKind = Literal[
    "marketing-objection",
    "interests-objection",
    "sharing-opt-out",
    "affiliate-opt-out",
    "gpc",
    "channel-email",
    "channel-phone",
    "channel-ads",
    "special-category-consent",
]

FLAGS: dict[str, int] = {
    "marketing-objection": 1 << 0,
    "interests-objection": 1 << 1,
    "sharing-opt-out": 1 << 2,
    "affiliate-opt-out": 1 << 3,
    "gpc": 1 << 4,
    "minor": 1 << 5,
    "erasure": 1 << 6,
    "channel-email": 1 << 8,
    "channel-phone": 1 << 9,
    "channel-ads": 1 << 10,
    "special-category-consent": 1 << 11,
}
"""Bits of a standing's flags: the upper line of them restricts, the lower permits."""

OBJECTIONS = sum(FLAGS[name] for name in list(FLAGS)[:5])
"""The flags that outlive an erasure, in the suppression list."""

CHANNELS = ("email", "phone", "ads")

SLOTS = 16
NEVER = 0xFFFF
_LAYOUT = struct.Struct(f">I{SLOTS}H3H")
EMPTY = bytes(_LAYOUT.size)
"""The standing of somebody who never said anything."""

_BANK = 1 << 63
_DURATION = re.compile(r"^P(?=\d)(?:(\d{1,3})Y)?(?:(\d{1,4})M)?(?:(\d{1,4})W)?(?:(\d{1,5})D)?$")
UNTIL_WITHDRAWN = "until-withdrawn"
_MINOR_BANDS = ("under-13", "13-17")


def consent_end(given: date, validity: str) -> int:
    """The day, counted from 1970-01-01, from which a consent of that validity is no longer valid; `NEVER` for none.

    Args:
        given: the day (UTC) of the consent.
        validity: ISO 8601 duration of whole days, such as P13M or P90D, or `until-withdrawn`.
    """
    if validity == UNTIL_WITHDRAWN:
        return NEVER
    years, months, weeks, days = (int(part or 0) for part in _parts(validity))
    month = given.month - 1 + months
    year = given.year + years + month // 12
    if year >= 2149:
        return NEVER - 1
    month = month % 12 + 1
    ordinal = date(year, month, min(given.day, calendar.monthrange(year, month)[1])).toordinal()
    return max(0, min(ordinal + 7 * weeks + days - date(1970, 1, 1).toordinal(), NEVER - 1))


def _parts(validity: str) -> tuple[str | None, ...]:
    found = _DURATION.match(validity)
    if found is None:
        raise ValueError("is no ISO 8601 duration of whole days; write such as P13M or P90D, or until-withdrawn")
    return found.groups()


def _duration(validity: str) -> str:
    if validity != UNTIL_WITHDRAWN:
        _parts(validity)
    return validity


def _terms(labels: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({purpose_term(label) for label in labels}, key=PURPOSES.index))


def unpack(state: bytes) -> tuple[int, list[int], list[int]]:
    """Flags, the day until which for each of `PURPOSES`, and the three numbers of open banking."""
    flags, *numbers = _LAYOUT.unpack(state)
    return flags, numbers[: len(PURPOSES)], numbers[SLOTS:]


class ConsentSignal(Document):
    """Consent given, renewed, refused, withdrawn and so on, for some purposes.

    Args:
        template: digest of the record template; needed where consent is given.
        purposes: what it is about; the narrower ones follow.
        state: DPV's state of the consent from now on.
        event_type: how it was said.
        validity_duration: for how long; see `consent_end`.
        entity_id: who brought it about.
    """

    kind: Literal["consent"] = "consent"
    template: str | None = None
    purposes: Annotated[tuple[str, ...], AfterValidator(_terms), Field(min_length=1)]
    state: ConsentState
    event_type: Literal["implied", "expressed", "explicit"]
    validity_duration: Annotated[str, AfterValidator(_duration)]
    entity_id: Annotated[str, Field(min_length=1)]

    @property
    def is_restrictive(self) -> bool:
        """Whether it takes rather than gives."""
        return self.state not in VALID_STATES

    @property
    def fields(self) -> int:
        """Which parts of a standing it decides, as bits."""
        return sum(1 << (32 + PURPOSES.index(term)) for term in self._covered())

    def apply(self, state: bytes, day: date) -> bytes:
        """The standing after it, said on that day (UTC)."""
        numbers = list(_LAYOUT.unpack(state))
        end = 0 if self.is_restrictive else consent_end(day, self.validity_duration)
        for term in self._covered():
            numbers[1 + PURPOSES.index(term)] = end
        return _LAYOUT.pack(*numbers)

    def _covered(self) -> set[str]:
        return {term for purpose in self.purposes for term in narrower(purpose)}


class FlagSignal(Document):
    """An objection, an opt-out, a channel permission or the consent to special categories, set or cleared."""

    kind: FlagKind
    state: Literal["set", "cleared"]

    @property
    def is_restrictive(self) -> bool:
        """Whether it takes rather than gives: objections when set, permissions when cleared."""
        return (FLAGS[self.kind] & OBJECTIONS != 0) == (self.state == "set")

    @property
    def fields(self) -> int:
        """Which parts of a standing it decides, as bits."""
        return FLAGS[self.kind]

    def apply(self, state: bytes, day: date) -> bytes:
        """The standing after it."""
        return _with_flag(state, FLAGS[self.kind], self.state == "set")


class AgeSignal(Document):
    """A person's age band."""

    kind: Literal["age-band"] = "age-band"
    state: Literal["under-13", "13-17", "18-24", "25-34", "35-44", "45-54", "55-64", "65-plus", "adult"]

    @property
    def is_restrictive(self) -> bool:
        """Whether it takes rather than gives."""
        return self.state in _MINOR_BANDS

    @property
    def fields(self) -> int:
        """Which parts of a standing it decides, as bits."""
        return FLAGS["minor"]

    def apply(self, state: bytes, day: date) -> bytes:
        """The standing after it."""
        return _with_flag(state, FLAGS["minor"], self.is_restrictive)


class BankSignal(Document):
    """An open-banking permission: until when, last strong authentication, pulls in 24 hours without the person."""

    kind: Literal["open-banking"] = "open-banking"
    state: Literal["authorised", "revoked"]
    valid_until: date | None = None
    last_authentication: date | None = None
    pulls_24h: Annotated[int, Field(ge=0, le=10_000)] = 0

    @property
    def is_restrictive(self) -> bool:
        """Whether it takes rather than gives."""
        return self.state == "revoked"

    @property
    def fields(self) -> int:
        """Which parts of a standing it decides, as bits."""
        return _BANK

    def apply(self, state: bytes, day: date) -> bytes:
        """The standing after it. A permission without its dates permits nothing."""
        numbers = list(_LAYOUT.unpack(state))
        whole = self.state == "authorised" and self.valid_until is not None and self.last_authentication is not None
        ends, seen = _day(self.valid_until), _day(self.last_authentication)
        numbers[1 + SLOTS :] = [ends, seen, self.pulls_24h] if whole else [0, 0, 0]
        return _LAYOUT.pack(*numbers)


class ErasureSignal(Document):
    """An erasure that was accepted, or that is done: the rows are deleted, and the person's key with them."""

    kind: Literal["erasure"] = "erasure"
    state: Literal["accepted", "completed"]

    @property
    def is_restrictive(self) -> bool:
        """It takes."""
        return True

    @property
    def fields(self) -> int:
        """Which parts of a standing it decides, as bits."""
        return FLAGS["erasure"]

    def apply(self, state: bytes, day: date) -> bytes:
        """The standing after it."""
        return _with_flag(state, FLAGS["erasure"], on=True)


AnySignal: TypeAlias = ConsentSignal | FlagSignal | AgeSignal | BankSignal | ErasureSignal

_signal: TypeAdapter[AnySignal] = TypeAdapter(Annotated[AnySignal, Field(discriminator="kind")])


def parse_signal(raw: dict[str, Any]) -> AnySignal:
    """The signal of JSON types."""
    return _signal.validate_python(raw)


def _with_flag(state: bytes, flag: int, on: bool) -> bytes:
    flags, *numbers = _LAYOUT.unpack(state)
    return _LAYOUT.pack(flags | flag if on else flags & ~flag, *numbers)


def _day(day: date | None) -> int:
    return 0 if day is None else max(0, min((day - date(1970, 1, 1)).days, NEVER - 1))


def day_of(time: int) -> date:
    """The day (UTC) of a time in seconds since 1970."""
    return datetime.fromtimestamp(time, UTC).date()
