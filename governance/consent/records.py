"""What people agreed to: ISO/IEC TS 27560:2023 consent records in terms of DPV 2.3, apart from who agreed.

A record has parts that thousands of people share (notice, parties, processings) and parts of one person's own (whose it
is, and the events). The shared parts are a `RecordTemplate`, stored once and named by digest; `full_record` puts a
person's record together. Fields that the standard asks for must be there; those that GDPR asks for must be there where
it applies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from cohortium.governance.consent.purposes import PURPOSES, purpose_term
from cohortium.study.document import Agreed, Document, read_toml, validated
from cohortium.study.errors import DataError, RefusedError
from cohortium.study.validation import first_repeat

__all__ = ["GDPR_REGIONS", "Notice", "Party", "PersonalData", "Processing", "RecordTemplate", "load_template"]

RECORD_STANDARD = "ISO/IEC TS 27560:2023"

_DIGEST = r"^sha256:[0-9a-f]{64}$"
_FORMS = {_DIGEST: "write sha256: and 64 hexadecimal digits"}

_MEMBERS = "AT BE BG HR CY CZ DK EE FI FR DE GR HU IS IE IT LV LI LT LU MT NL NO PL PT RO SK SI ES SE"
GDPR_REGIONS = frozenset({"EU", "EEA", "UK", "GB", *re.findall("..", _MEMBERS.replace(" ", ""))})
"""Jurisdictions in which the fields that GDPR asks for are mandatory."""

_Text = Annotated[str, StringConstraints(min_length=1, max_length=2000, strip_whitespace=True)]
_Texts = Annotated[tuple[_Text, ...], Field(min_length=1)]


def _known(label: str) -> str:
    try:
        return purpose_term(label)
    except RefusedError as error:
        raise ValueError(f"{error.message}; {error.fix}") from None


class Notice(Agreed):
    """What people were told.

    Args:
        version: of the text.
        text_digest: SHA-256 of the text.
        language: such as en or de-AT.
        profiling_disclosed: whether it names profiling.
    """

    version: _Text
    text_digest: Annotated[str, Field(pattern=_DIGEST)]
    language: Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$")]
    profiling_disclosed: bool = False


class Party(Agreed):
    """A controller, or another party to a record; `role` is asked for by GDPR."""

    party_id: _Text
    party_name: _Text
    party_address: _Text
    party_contact: _Text
    party_type: _Text
    role: _Text | None = None


class PersonalData(Agreed):
    """A kind of data that is processed; the last two are asked for by GDPR."""

    pii_type: _Text
    pii_optional: bool | None = None
    special_pii_category: bool | None = None


class Processing(Agreed):
    """What is done with the data for one purpose. Fields that may be left out are those the standard lets be optional.

    `jurisdiction` decides whether those that GDPR asks for may be: see `GDPR_REGIONS`.
    """

    purpose: Annotated[str, AfterValidator(_known)]
    purpose_type: _Text | None = None
    lawful_basis: _Text | None = None
    pii_information: Annotated[tuple[PersonalData, ...], Field(min_length=1)]
    pii_controllers: _Texts
    collection_method: _Text | None = None
    processing_method: _Text | None = None
    storage_locations: _Texts
    retention_period: _Text
    processing_locations: _Texts | None = None
    geographic_restrictions: _Text | None = None
    jurisdiction: _Text
    recipient_third_parties: tuple[_Text, ...]
    withdrawal_method: _Text
    privacy_rights: _Texts | None = None
    authority: _Text | None = None

    @property
    def is_under_gdpr(self) -> bool:
        """Whether the fields that GDPR asks for are mandatory."""
        return self.jurisdiction.upper() in GDPR_REGIONS

    @model_validator(mode="after")
    def _whole_under_gdpr(self) -> Processing:
        if self.is_under_gdpr and (missing := next(self._missing(), None)):
            raise ValueError(f"{missing} is missing, and mandatory where jurisdiction is {self.jurisdiction}; state it")
        return self

    def _missing(self) -> Iterator[str]:
        asked = (
            "lawful_basis",
            "collection_method",
            "processing_method",
            "processing_locations",
            "geographic_restrictions",
            "privacy_rights",
        )
        yield from (name for name in asked if getattr(self, name) is None)
        for data in self.pii_information:
            yield from (name for name in ("pii_optional", "special_pii_category") if getattr(data, name) is None)


class RecordTemplate(Document):
    """The parts of a consent record that do not depend on the person.

    Args:
        schema_id: `cohortium.consent-record/1`; written `schema` in TOML.
        schema_version: of the standard.
        privacy_notice: what people were told.
        parties: who is party to it; every controller of a processing is one of them.
        processings: one for each purpose.
    """

    schema_id: Annotated[Literal["cohortium.consent-record/1"], Field(alias="schema")]
    schema_version: Literal["ISO/IEC TS 27560:2023"]
    privacy_notice: Notice
    parties: Annotated[tuple[Party, ...], Field(min_length=1)]
    processings: Annotated[tuple[Processing, ...], Field(min_length=1)]

    @property
    def purposes(self) -> tuple[str, ...]:
        """The purposes that may be agreed to, in the order of `PURPOSES`."""
        return tuple(sorted((each.purpose for each in self.processings), key=PURPOSES.index))

    @model_validator(mode="after")
    def _holds_together(self) -> RecordTemplate:
        known = [party.party_id for party in self.parties]
        if repeat := first_repeat(known) or first_repeat(each.purpose for each in self.processings):
            raise ValueError(f"'{repeat}' occurs twice; state it once")
        for each in self.processings:
            if unknown := set(each.pii_controllers) - set(known):
                raise ValueError(f"controller '{min(unknown)}' is none of the parties; add it to them")
        if any(each.is_under_gdpr for each in self.processings) and any(party.role is None for party in self.parties):
            raise ValueError("role of a party is missing, and mandatory under GDPR; state it")
        return self

    def full_record(self, header: Mapping[str, str], events: list[dict[str, Any]]) -> dict[str, Any]:
        """A person's whole record: header, notice, processings, parties and events, as JSON types."""
        shared = self.model_dump(mode="json", exclude={"schema_id", "schema_version"}, exclude_none=True)
        return {"schema_version": self.schema_version, **header, **shared, "events": events}


def load_template(path: Path) -> RecordTemplate:
    """The record template of a TOML file.

    Raises:
        DataError: unreadable, or a mandatory field is missing; the field is named.
    """
    return validated(RecordTemplate, read_toml(path, DataError), str(path), _FORMS, DataError)
