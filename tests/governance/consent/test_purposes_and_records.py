"""Purposes and their broader terms; record templates without a mandatory field are refused, the field named."""

from __future__ import annotations

import itertools
from datetime import date
from pathlib import Path

import pytest

from cohortium.governance.consent import PURPOSES, RecordTemplate, covers, extension_terms, load_template, purpose_term
from cohortium.governance.consent.purposes import is_advertising_across_contexts, is_marketing, narrower
from cohortium.governance.consent.signals import NEVER, consent_end
from cohortium.study.document import validated
from cohortium.study.errors import DataError, RefusedError

from .conftest import template_document


def test_the_chain_of_advertising_and_both_its_ends() -> None:
    chain = ("LookalikeModelling", "TargetedAdvertising", "PersonalisedAdvertising", "Advertising", "Marketing")
    for below, above in itertools.combinations(chain, 2):
        assert covers(above, below)
        assert not covers(below, above)
    assert covers("Personalisation", "TargetedAdvertising")
    assert not covers("Personalisation", "Advertising")
    assert covers("Marketing", "CustomerSegmentation")
    assert not covers("Personalisation", "CustomerSegmentation")


def test_covering_is_an_order() -> None:
    for term in PURPOSES:
        assert covers(term, term)
        assert term in narrower(term)
    for a, b in itertools.permutations(PURPOSES, 2):
        assert not (covers(a, b) and covers(b, a))
        assert all(covers(a, c) for c in narrower(b) if covers(a, b))


def test_labels_of_plans_are_terms_and_others_are_refused() -> None:
    assert purpose_term("CustomerSegmentation") == purpose_term("cohortium:CustomerSegmentation")
    assert purpose_term("dpv:TargetedAdvertising") == "TargetedAdvertising"
    for label in ("research", "customersegmentation", "dpv:CustomerSegmentation", "cohortium:Marketing", ""):
        with pytest.raises(RefusedError):
            purpose_term(label)


def test_our_terms_are_published_with_their_broader_ones() -> None:
    published = {each["skos:prefLabel"]: each for each in extension_terms()["@graph"]}
    assert set(published) == {"CustomerSegmentation", "LookalikeModelling"}
    assert published["LookalikeModelling"]["skos:broader"] == [{"@id": "https://w3id.org/dpv#TargetedAdvertising"}]


def test_what_objections_and_opt_outs_reach() -> None:
    assert {term for term in PURPOSES if is_advertising_across_contexts(term)} == {
        "TargetedAdvertising",
        "LookalikeModelling",
    }
    assert is_marketing("CustomerSegmentation")
    assert not is_marketing("CommercialResearch")


GDPR_FIELDS = (
    "lawful_basis",
    "collection_method",
    "processing_method",
    "processing_locations",
    "geographic_restrictions",
    "privacy_rights",
)
ALWAYS = (
    "pii_information",
    "pii_controllers",
    "storage_locations",
    "retention_period",
    "jurisdiction",
    "recipient_third_parties",
    "withdrawal_method",
)


def parse(document: object) -> RecordTemplate:
    return validated(RecordTemplate, document, "t", {}, DataError)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ALWAYS)
def test_a_mandatory_field_is_missed_everywhere(name: str) -> None:
    for jurisdiction in ("EU", "US"):
        changed = {"jurisdiction": jurisdiction, name: None}
        with pytest.raises(DataError, match=name):
            parse(template_document(**changed))


@pytest.mark.parametrize("name", GDPR_FIELDS)
def test_what_gdpr_asks_for_is_missed_where_it_applies(name: str) -> None:
    for jurisdiction in ("EU", "DE", "UK"):
        with pytest.raises(DataError, match=f"{name} is missing"):
            parse(template_document(**{"jurisdiction": jurisdiction, name: None}))
    parse(template_document(**{"jurisdiction": "US", name: None}))


@pytest.mark.parametrize("part", ["pii_optional", "special_pii_category"])
def test_what_gdpr_asks_of_data_is_missed(part: str) -> None:
    data = {"pii_type": "purchases", "pii_optional": True, "special_pii_category": False}
    del data[part]
    with pytest.raises(DataError, match=part):
        parse(template_document(pii_information=[data]))
    parse(template_document(pii_information=[data], jurisdiction="US"))


@pytest.mark.parametrize(
    "name", ["schema_version", "privacy_notice", "parties", "processings", "privacy_notice.language", "parties.role"]
)
def test_the_rest_of_a_record_is_missed(name: str) -> None:
    document = template_document()
    outer, _, inner = name.partition(".")
    if inner:
        part = document[outer][0] if isinstance(document[outer], list) else document[outer]
        del part[inner]
    else:
        del document[outer]
    with pytest.raises(DataError, match=inner or outer):
        parse(document)


def test_unknown_purposes_controllers_and_repeats_are_named() -> None:
    for change, word in (
        ({"purpose": "Spying"}, "no purpose"),
        ({"pii_controllers": ["other"]}, "none of the parties"),
    ):
        document = template_document()
        document["processings"][1] |= change
        with pytest.raises(DataError, match=word):
            parse(document)
    document = template_document()
    document["processings"].append(document["processings"][0])
    with pytest.raises(DataError, match="occurs twice"):
        parse(document)


def test_a_template_file_that_is_no_template(tmp_path: Path) -> None:
    file = tmp_path / "template.toml"
    file.write_text('schema = "cohortium.consent-record/1"\n')
    with pytest.raises(DataError, match=r"template\.toml"):
        load_template(file)


@pytest.mark.parametrize(
    ("given", "validity", "end"),
    [
        ("2026-01-31", "P1M", "2026-02-28"),
        ("2024-02-29", "P1Y", "2025-02-28"),
        ("2026-03-01", "P90D", "2026-05-30"),
        ("2026-03-01", "P2W1D", "2026-03-16"),
        ("2026-12-01", "P13M", "2028-01-01"),
    ],
)
def test_ends_of_consents(given: str, validity: str, end: str) -> None:
    assert consent_end(date.fromisoformat(given), validity) == (date.fromisoformat(end) - date(1970, 1, 1)).days


def test_consents_without_an_end_and_far_ends() -> None:
    assert consent_end(date(2026, 1, 1), "until-withdrawn") == NEVER
    assert consent_end(date(2026, 1, 1), "P900Y") == NEVER - 1
    assert consent_end(date(2148, 12, 31), "P99999D") == NEVER - 1
    for text in ("P", "PT5H", "1M", "P1.5M", ""):
        with pytest.raises(ValueError, match="duration"):
            consent_end(date(2026, 1, 1), text)
