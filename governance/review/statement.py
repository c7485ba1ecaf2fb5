"""Statements: what one reviewer says of one case, signed with their own key.

A signature covers a label and the canonical JSON (RFC 8785) of everything in the statement: case, subject, who says it,
what, on which conditions, until when, and the digest of the statement before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, StringConstraints, model_validator

from cohortium.governance.review.case import FORMS, Case, Digest, Line
from cohortium.study.charter import Function, PersonId, Reviewer, has_signed
from cohortium.study.document import Agreed, Document, Moment, validated
from cohortium.study.errors import DataError

__all__ = [
    "MAX_APPROVAL_DAYS",
    "STATEMENT_SCHEMA",
    "Action",
    "Signed",
    "Statement",
    "Terms",
    "parse_signed",
    "sign_statement",
]

STATEMENT_SCHEMA = "cohortium.review/1"
"""The schema of a statement; another one is refused."""

MAX_APPROVAL_DAYS = 366
"""An approval or waiver lasts at most so long: our own limit."""

Action = Literal["approve", "return", "reject", "waive"]

_LABEL = f"{STATEMENT_SCHEMA}\n".encode()
_KEY = r"^[0-9a-f]{64}$"
_SIGNATURE = r"^[0-9a-f]{128}$"
_Lines = Annotated[tuple[Line, ...], Field(max_length=50)]

_NEEDS: dict[Action, set[str]] = {
    "approve": {"expires"},
    "return": {"questions"},
    "reject": {"reason"},
    "waive": {"reason", "expires", "task"},
}
_MAY = {action: needed | ({"conditions"} if "expires" in needed else set()) for action, needed in _NEEDS.items()}
_TERMS = ("conditions", "questions", "reason", "task", "expires")


class Statement(Document):
    """What a reviewer says of a case.

    Args:
        schema_id: `cohortium.review/1`; written `schema`.
        case: digest of the case.
        subject: digest of its subject.
        person, institution, function, key: the reviewer, as the charter enrols them.
        action: approve, return, reject or waive.
        conditions: on which an approval or a waiver stands.
        questions: with which a case is returned.
        reason: of a rejection or a waiver.
        task: what remedies what is waived.
        expires: last day (UTC) of an approval or a waiver, at most 366 days ahead.
        previous: digest of the statement before it; of the case, for the first.
        at: when, in UTC.
    """

    schema_id: Annotated[Literal["cohortium.review/1"], Field(alias="schema")] = "cohortium.review/1"
    case: Digest
    subject: Digest
    person: PersonId
    institution: Line
    function: Function
    key: Annotated[str, StringConstraints(pattern=_KEY)]
    action: Action
    conditions: _Lines = ()
    questions: _Lines = ()
    reason: Line | None = None
    task: Line | None = None
    expires: date | None = None
    previous: Digest
    at: Moment

    @model_validator(mode="after")
    def _of_its_kind(self) -> Statement:
        given = {name for name in _TERMS if getattr(self, name)}
        for missing in sorted(_NEEDS[self.action] - given):
            raise ValueError(f"'{self.action}' needs {missing}; give it")
        for needless in sorted(given - _MAY[self.action]):
            raise ValueError(f"'{self.action}' has no {needless}; leave it out")
        if self.expires is not None:
            first = self.at.date()
            if not first <= self.expires <= first + timedelta(days=MAX_APPROVAL_DAYS):
                raise ValueError(f"expires must be at most {MAX_APPROVAL_DAYS} days ahead, and not past; choose a day")
        return self

    def signable(self) -> bytes:
        """What a signature covers."""
        return _LABEL + self.to_bytes()


class Signed(Agreed):
    """A statement with its signature in hexadecimal."""

    statement: Statement
    signature: Annotated[str, StringConstraints(pattern=_SIGNATURE)]

    @property
    def digest(self) -> str:
        """The statement's digest: what the next one names."""
        return self.statement.digest

    def is_genuine(self) -> bool:
        """Whether the key that the statement names signed it."""
        return has_signed(self.statement.key, self.signature, self.statement.signable())


@dataclass(frozen=True)
class Terms:
    """What goes with an action; see `Statement`."""

    conditions: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    reason: str | None = None
    task: str | None = None
    expires: date | None = None


def sign_statement(
    case: Case, previous: str, reviewer: Reviewer, key: Ed25519PrivateKey, action: Action, terms: Terms, now: datetime
) -> Signed:
    """A statement of that reviewer on that case, signed.

    Args:
        case: which.
        previous: digest of the last statement on it (`ReviewStore.head`), or of the case.
        reviewer: who signs, as enrolled.
        key: theirs.
        action, terms: what they say.
        now: the time; its fraction of a second is cut.

    Raises:
        DataError: the key is not the reviewer's, or something is missing or needless for this action.
    """
    if key.public_key().public_bytes_raw().hex() != reviewer.key:
        raise DataError("is not the key of this reviewer", place="key", fix="use the key that the charter enrols")
    document = {
        "schema": STATEMENT_SCHEMA,
        "case": case.digest,
        "subject": case.subject.digest,
        "person": reviewer.person,
        "institution": reviewer.institution,
        "function": reviewer.function,
        "key": reviewer.key,
        "action": action,
        **{name: getattr(terms, name) for name in _TERMS},
        "previous": previous,
        "at": now.replace(microsecond=0),
    }
    statement = validated(Statement, document, action, FORMS, DataError)
    return Signed(statement=statement, signature=key.sign(statement.signable()).hex())


def parse_signed(document: Mapping[str, Any], place: str) -> Signed:
    """A signed statement of JSON types, form alone; `DataError` in one line otherwise."""
    return validated(Signed, document, place, FORMS, DataError)
