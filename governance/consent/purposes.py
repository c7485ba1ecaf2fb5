"""Purposes: terms of the W3C Data Privacy Vocabulary (DPV 2.3), two of our own, and which is narrower than which.

A consent covers its own purpose and every narrower one. DPV has no purpose for segmentation or for lookalike models;
`extension_terms` publishes ours with their broader terms. Both lead to marketing, so that whoever objected to direct
marketing, profiling included, is in neither.
"""

from __future__ import annotations

from typing import Any

from cohortium.study.errors import RefusedError
from cohortium.study.validation import suggestion

__all__ = [
    "PURPOSES",
    "covers",
    "extension_terms",
    "is_advertising_across_contexts",
    "is_marketing",
    "narrower",
    "purpose_term",
]

DPV = "https://w3id.org/dpv#"
EXTENSION = "urn:cohortium:purpose:"

_BROADER: dict[str, tuple[str, ...]] = {
    "Marketing": (),
    "Advertising": ("Marketing",),
    "DirectMarketing": ("Marketing",),
    "PersonalisedAdvertising": ("Advertising", "Personalisation"),
    "TargetedAdvertising": ("PersonalisedAdvertising",),
    "Personalisation": (),
    "ServiceProvision": (),
    "ServicePersonalisation": ("Personalisation", "ServiceProvision"),
    "CustomerManagement": (),
    "CustomerRelationshipManagement": ("CustomerManagement",),
    "ResearchAndDevelopment": (),
    "CommercialResearch": ("ResearchAndDevelopment",),
    "AcademicResearch": ("ResearchAndDevelopment",),
    "CustomerSegmentation": ("Marketing",),
    "LookalikeModelling": ("TargetedAdvertising",),
}

_DEFINED = {
    "CustomerSegmentation": "Grouping customers by behaviour and value, to market to each group what suits it.",
    "LookalikeModelling": "Finding customers who resemble others that are valued, to advertise to them.",
}

PURPOSES = tuple(_BROADER)
"""Every purpose that a consent or a plan may name. The order is that of stored standings: only ever appended to."""


def _closure(term: str) -> frozenset[str]:
    return frozenset({term}.union(*(_closure(broader) for broader in _BROADER[term])))


_COVERING = {term: _closure(term) for term in PURPOSES}


def purpose_term(label: str) -> str:
    """The term that a plan's or a record's label stands for; `dpv:` and `cohortium:` may stand before it.

    Raises:
        RefusedError: no such purpose. What nobody could have agreed to is not run.
    """
    term = label.removeprefix("cohortium:") if label.removeprefix("cohortium:") in _DEFINED else label
    term = term.removeprefix("dpv:") if term.removeprefix("dpv:") not in _DEFINED else term
    if term not in _BROADER:
        raise RefusedError(f"'{label}' is no purpose that people are asked about", fix=suggestion(term, PURPOSES))
    return term


def covers(consented: str, purpose: str) -> bool:
    """Whether a consent to one term is a consent to the other: the same, or a narrower one."""
    return consented in _COVERING[purpose]


def narrower(term: str) -> tuple[str, ...]:
    """The term and every narrower one, in the order of `PURPOSES`."""
    return tuple(purpose for purpose in PURPOSES if covers(term, purpose))


def is_marketing(term: str) -> bool:
    """Whether an objection to direct marketing, profiling included, reaches it (GDPR Art. 21(2))."""
    return covers("Marketing", term)


def is_advertising_across_contexts(term: str) -> bool:
    """Whether an opt-out of sharing or Global Privacy Control reaches it by itself (CCPA 1798.140(ah))."""
    return covers("TargetedAdvertising", term)


def extension_terms() -> dict[str, Any]:
    """Our two terms as SKOS concepts in JSON-LD, with their broader terms in DPV."""
    concepts = [
        {
            "@id": EXTENSION + name,
            "@type": ["skos:Concept", "dpv:Purpose"],
            "skos:prefLabel": name,
            "skos:definition": words,
            "skos:broader": [{"@id": DPV + broader} for broader in _BROADER[name]],
        }
        for name, words in sorted(_DEFINED.items())
    ]
    context = {"dpv": DPV, "skos": "http://www.w3.org/2004/02/skos/core#"}
    return {"@context": context, "@graph": concepts}
