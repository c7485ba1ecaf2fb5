"""The record of processing: one entry a plan, nothing guessed, and terms that the vocabulary has."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from cohortium.governance.consent.purposes import DPV, EXTENSION
from cohortium.governance.evidence import RopaEntry, ropa, ropa_csv, ropa_jsonld
from cohortium.study.charter import parse_charter
from cohortium.study.errors import PlanError

from .released import audit_plan, charter, contract, facts, lookalike_plan, segment_plan

STATED = {
    "docs__joint_controller_ref": "arrangement-7",
    "docs__processor_contract_ref": "contract-3",
    "docs__tia_ref": "tia-1",
    "features__special_category": 0,
    "features__special_inferred": False,
    "log__retention_days": 400,
    "transfer__tool": "adequacy",
    "use__activation": "advertising",
}
DPV_TERMS = {  # of DPV 2.1, modules process, entities, personal data, TOM, storage, purposes
    *("Process", "ROPA", "hasProcess", "hasPurpose", "hasLegalBasis", "Purpose"),
    *("DataController", "hasDataController", "JointDataControllers", "hasJointDataControllers"),
    *("Customer", "hasDataSubject", "PersonalData", "hasPersonalData", "Recipient", "hasRecipient"),
    *("StorageDuration", "hasStorageCondition", "hasTechnicalOrganisationalMeasure", "TechnicalMeasure"),
    *("OrganisationalMeasure", "DifferentialPrivacy", "SecureMultiPartyComputation", "LoggingPolicy"),
    "CryptographicAuthentication",
}
EU_GDPR_TERMS = {f"A6-1-{letter}" for letter in "abcdef"}


def entry(**stated: object) -> RopaEntry:
    (found,) = ropa("north", [(segment_plan(), charter())], contract(), facts(**stated))
    return found


def test_one_entry_for_every_plan_in_order() -> None:
    plans = (segment_plan(), lookalike_plan(), audit_plan())
    found = ropa("north", [(plan, charter()) for plan in plans], contract(), facts(**STATED))
    assert [one.plan for one in found] == [plan.digest for plan in plans]
    assert [one.activity.split(":")[0] for one in found] == ["spring-segments", "spring-funds", "spring-segments"]
    assert {one.controller for one in found} == {"north"}
    assert found[0].expires == segment_plan().expires


def test_an_audit_reads_protected_features_and_others_do_not() -> None:
    plans = (segment_plan(), lookalike_plan(), audit_plan())
    segments, campaign, audited = ropa("north", [(plan, charter()) for plan in plans], contract(), facts())
    assert [one.name for one in segments.data] == ["recency", "monetary", "main_product", "home_region"]
    assert not any(one.protected for one in (*segments.data, *campaign.data))
    assert any("valued customers" in one.name for one in campaign.data)
    assert [one.name for one in audited.data if one.protected] == ["age_group"]
    assert "recency" not in [one.name for one in audited.data]


def test_what_a_plan_leaves_out_is_no_data_of_it() -> None:
    less = segment_plan().model_copy(update={"without": ("monetary", "home_region")})
    (found,) = ropa("north", [(less, charter())], contract(), facts())
    assert [one.name for one in found.data] == ["recency", "main_product"]


def test_what_nobody_stated_is_open_and_not_guessed() -> None:
    empty, stated = entry(), entry(**STATED)
    assert empty.joint_controllers == ()
    assert stated.joint_controllers == ("west", "south")
    assert "to be stated" in empty.special
    assert stated.special == "declared: 0 features of special categories; revealed by others: no"
    assert any("instrument: to be stated" in text for text in empty.transfers)
    assert any("instrument: adequacy; transfer impact assessment: tia-1" in text for text in stated.transfers)
    names = ("docs.joint_controller_ref", "docs.processor_contract_ref", "transfer.tool", "features.special_category")
    for name in names:
        assert any(f"(declare {name})" in text for text in empty.open)
        assert not any(name in text for text in stated.open)
    assert len(stated.open) == 2  # contacts and the institution's own schedule: no fact says them
    assert (empty.declared_by, stated.declared_by) == ("nobody", "privacy office, 2026-11-23")


def test_within_one_region_nothing_is_transferred() -> None:
    (found,) = ropa("north", [(segment_plan(), charter("EU", "EU", "EU"))], contract(), facts())
    assert found.transfers == ("none within the federation: every institution is in EU",)
    assert not any("transfer" in text for text in found.open)


def test_recipients_and_measures_follow_from_the_trust_of_the_plan() -> None:
    told = {}
    for trust in ("distributed", "local", "unsafe-none"):
        (found,) = ropa("north", [(segment_plan(trust=trust), charter())], contract(), facts())
        told[trust] = (found.recipients[0], found.security[0].text, [one.term for one in found.security])
    assert "no institution's own" in told["distributed"][0]
    assert "this institution's sums" in told["local"][0]
    assert "exact sums" in told["unsafe-none"][0]
    assert "epsilon 1 at delta 1e-06" in told["distributed"][1]
    assert told["unsafe-none"][1] == "NO NOISE: for simulations alone"
    assert "dpv:SecureMultiPartyComputation" in told["distributed"][2]
    assert "dpv:SecureMultiPartyComputation" not in told["local"][2]


def test_only_a_campaign_has_destinations_of_audiences() -> None:
    found = ropa("north", [(segment_plan(), charter()), (lookalike_plan(), charter())], contract(), facts(**STATED))
    assert ["destinations" in " ".join(one.recipients) for one in found] == [False, True]
    assert "advertising" in found[1].recipients[-1]


def test_a_plan_of_another_contract_is_refused() -> None:
    other = segment_plan(contract="sha256:" + "0" * 64)
    with pytest.raises(PlanError, match="another contract"):
        ropa("north", [(other, charter())], contract(), facts())


def test_csv_is_read_back_with_every_column_of_art_30_and_no_formula() -> None:
    members = [{"name": name, "region": "EU"} for name in ("=cmd()", "west", "south")]
    hostile = parse_charter({"schema": "cohortium.charter/1", "name": "group", "institutions": members})
    (made,) = ropa("=cmd()", [(segment_plan(), hostile)], contract(), facts())
    rows = list(csv.DictReader(io.StringIO(ropa_csv([made, entry(**STATED)]))))
    assert len(rows) == 2
    assert rows[0]["controller"] == "'=cmd()"
    assert rows[1]["controller"] == "north"
    assert rows[1]["joint controllers"] == "west; south"
    assert rows[1]["lawful basis (declared)"] == "legitimate_interests (GDPR Art. 6(1)(f))"
    assert "recency: numeric (days), behaviour" in rows[1]["categories of personal data"]
    assert all(value for row in rows[1:] for value in row.values())
    assert "not legal advice" in rows[1]["notice"].lower()


def _terms(found: Any) -> set[str]:
    """Everything that is a key, a type or an id, wherever it stands."""
    if isinstance(found, list):
        return {term for each in found for term in _terms(each)}
    if not isinstance(found, dict):
        return set()
    named = {found[key] for key in ("@id", "@type") if key in found}
    return named | set(found) | {term for value in found.values() for term in _terms(value)}


def test_the_linked_data_uses_terms_that_the_vocabulary_has() -> None:
    plans = (segment_plan(), lookalike_plan(), segment_plan(purpose="Marketing", lawful_basis="consent"))
    allowed = contract().model_copy(update={"purposes": (*contract().purposes, "Marketing")})
    renewed = [plan.model_copy(update={"contract": allowed.digest}) for plan in plans]
    record = ropa_jsonld(ropa("north", [(plan, charter()) for plan in renewed], allowed, facts(**STATED)))
    context = record.pop("@context")
    terms = _terms(record)
    dpv = {term.removeprefix("dpv:") for term in terms if term.startswith("dpv:")}
    assert dpv - {"Marketing"} == DPV_TERMS
    assert {term.removeprefix("eu-gdpr:") for term in terms if term.startswith("eu-gdpr:")} <= EU_GDPR_TERMS
    prefixes = {term.split(":")[0] for term in terms if ":" in term and not term.startswith("urn:")}
    assert prefixes == set(context)
    assert context["dpv"] == DPV
    assert context["cohortium"] == EXTENSION
    first, second, third = record["dpv:hasProcess"]
    assert first["dpv:hasPurpose"] == {"@id": "cohortium:CustomerSegmentation"}
    assert second["dpv:hasPurpose"] == {"@type": "dpv:Purpose", "dct:title": "Lookalike"}  # no term of that name
    assert (third["dpv:hasPurpose"], third["dpv:hasLegalBasis"]) == (
        {"@id": "dpv:Marketing"},
        {"@id": "eu-gdpr:A6-1-a"},
    )
    assert json.loads(json.dumps(record)) == record


def test_a_purpose_without_a_term_is_open() -> None:
    (found,) = ropa("north", [(lookalike_plan(), charter())], contract(), facts(**STATED))
    assert found.purpose_term is None
    assert any("which purpose of DPV 'Lookalike' is" in text for text in found.open)
