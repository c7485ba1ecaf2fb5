"""Cases: what is to be decided, about which documents, for whom, and how much is at stake."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, StringConstraints, model_validator

from cohortium.study.canonical import canonical_bytes, digest_bytes, digest_json
from cohortium.study.charter import PersonId
from cohortium.study.document import Agreed, Document, Moment, parse_json, validated
from cohortium.study.errors import DataError
from cohortium.study.validation import first_repeat

__all__ = [
    "CASE_SCHEMA",
    "FORMS",
    "PARTS",
    "Case",
    "Digest",
    "Kind",
    "Line",
    "Part",
    "Risk",
    "Subject",
    "changed_parts",
    "document_digest",
    "open_case",
    "read_document",
    "risk_of",
]

CASE_SCHEMA = "cohortium.review-case/1"
"""The schema of a case; another one is refused."""

Kind = Literal["model_release", "audience_export", "waiver"]
"""What is asked for: to release a model, to export an audience, or to let a failed audit stand for a while."""

Part = Literal["card", "audit", "dpia", "decision"]
"""The documents under a signature: model card, fairness audit, data protection impact assessment, policy decision."""

PARTS: tuple[Part, ...] = get_args(Part)

_SUBJECT_LABEL = b"cohortium.review-subject/1\n"

_DIGEST = r"^sha256:[0-9a-f]{64}$"
_LINE = r"^[^\s\x00-\x1f\x7f]([^\x00-\x1f\x7f]{0,498}[^\s\x00-\x1f\x7f])?$"
_NAME = r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"
FORMS = {
    _DIGEST: "give a digest, sha256: and 64 hexadecimal digits",
    _LINE: "give one line of 1 to 500 characters",
    _NAME: "give 1 to 64 small letters, digits, '.', '-' and '_'",
}
"""What the patterns of cases and statements ask for, in words."""


Digest = Annotated[str, StringConstraints(pattern=_DIGEST)]
Line = Annotated[str, StringConstraints(pattern=_LINE)]


class Subject(Agreed):
    """The digests of the documents that a case is about; approval holds for exactly these.

    Args:
        card: of the model card.
        audit: of the fairness audit's result.
        dpia: of the data protection impact assessment.
        decision: of the policy decision.
    """

    card: Digest
    audit: Digest
    dpia: Digest
    decision: Digest

    @property
    def digest(self) -> str:
        """`sha256:…` of a label and the canonical JSON (RFC 8785) of the four."""
        return digest_bytes(_SUBJECT_LABEL + canonical_bytes(self.model_dump(mode="json")))


class Risk(Agreed):
    """How much is at stake, and the declared facts that say so."""

    tier: Literal["high", "medium", "low"]
    reasons: tuple[Line, ...]


class Case(Document):
    """What two people are asked to decide. Statements name its digest, so nothing in it changes under a signature.

    Args:
        schema_id: `cohortium.review-case/1`; written `schema`.
        name: how people refer to it, distinct within a store.
        federation: the charter's name.
        institution: whose reviewers decide.
        kind: what is asked for.
        about: the model or campaign, the same word from one version to the next.
        purpose: what it is for.
        owner: person id of who wants it and answers for it.
        builders: person ids of who built what is reviewed. Neither owner nor builders may sign.
        risk: tier with reasons.
        opened_at: UTC, whole seconds.
        subject: digests of the documents.
        links: where more stands, by name.
    """

    schema_id: Annotated[Literal["cohortium.review-case/1"], Field(alias="schema")] = "cohortium.review-case/1"
    name: Annotated[str, StringConstraints(pattern=_NAME)]
    federation: Line
    institution: Line
    kind: Kind
    about: Line
    purpose: Line
    owner: PersonId
    builders: Annotated[tuple[PersonId, ...], Field(min_length=1, max_length=100)]
    risk: Risk
    opened_at: Moment
    subject: Subject
    links: Annotated[dict[Line, Line], Field(default_factory=dict)]

    @model_validator(mode="after")
    def _distinct(self) -> Case:
        if repeated := first_repeat(self.builders):
            raise ValueError(f"builder '{repeated}' is named twice; name each once")
        return self

    def age(self, now: datetime) -> int:
        """Whole days since it was opened."""
        return (now - self.opened_at).days


def read_document(text: bytes, place: str) -> dict[str, Any]:
    """A document of JSON types; `DataError` when it is no JSON object, or holds what canonical JSON cannot (NaN)."""
    return parse_json(text, place, DataError)


def document_digest(document: Mapping[str, Any]) -> str:
    """`sha256:…` of the canonical JSON: the same as the digest of the document it was written from."""
    return digest_json(dict(document))


def open_case(documents: Mapping[Part, Mapping[str, Any]], facts: Mapping[str, Any], **fields: Any) -> Case:
    """The case about these documents.

    Args:
        documents: all four, as JSON types.
        facts: declared facts by name, from which the risk tier follows (`risk_of`).
        fields: of `Case`: name, federation, institution, kind, about, purpose, owner, builders, opened_at, links.

    Raises:
        DataError: a document is missing, or a field is missing or of the wrong form.
    """
    for part in PARTS:
        if part not in documents:
            raise DataError(f"the {part} is missing", place="case", fix=f"give the {part} as a JSON file")
    subject = {part: document_digest(documents[part]) for part in PARTS}
    whole = {"schema": CASE_SCHEMA, **fields, "subject": subject, "risk": risk_of(facts).model_dump(mode="json")}
    return validated(Case, whole, "case", FORMS, DataError)


def changed_parts(earlier: Subject | None, now: Subject) -> tuple[Part, ...]:
    """Which documents differ from those of an earlier subject; all of them without one."""
    return tuple(part for part in PARTS if earlier is None or getattr(earlier, part) != getattr(now, part))


_HIGH = {
    "use.solely_automated": "no person takes part in the decision",
    "use.significant_effect": "legal or similarly significant effects",
    "use.decision": "decides about prices, eligibility or credit",
    "features.special_category": "special categories of data",
    "features.special_inferred": "features reveal special categories",
    "features.vulnerability_targeting": "singles people out for age, disability or hardship",
    "features.prohibited_basis": "features on which credit may not be decided",
}
_MEDIUM = {
    "data.partner_sourced": "data of a partner",
    "data.record_linkage": "records of institutions are linked",
    "data.uses_ais": "account-information data",
    "data.uses_bureau": "data of a credit bureau",
    "data.uses_credit_data": "credit data",
    "transfer.crosses_border": "personal data crosses a border",
}
_HARMLESS = (False, 0, "none")


def risk_of(facts: Mapping[str, Any]) -> Risk:
    """The risk tier that declared facts come to (names of `governance.rules`). A fact that is not declared counts.

    High when any of these is so or unknown: a decision without a person, of significant effect, or about prices,
    eligibility or credit; special categories, vulnerable people or prohibited bases among the features. Medium:
    data of partners, bureaus, accounts or credit, linked records, a border crossed. Low: none of them.
    """
    high, medium = _reasons(_HIGH, facts), _reasons(_MEDIUM, facts)
    return Risk(tier="high" if high else "medium" if medium else "low", reasons=(*high, *medium))


def _reasons(table: Mapping[str, str], facts: Mapping[str, Any]) -> list[str]:
    known = [f"{words} ({name})" for name, words in table.items() if name in facts and facts[name] not in _HARMLESS]
    return known + [f"not declared: {name}" for name in table if name not in facts]
