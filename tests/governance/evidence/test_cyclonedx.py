"""The card in CycloneDX: what the official schema allows, the released numbers, the same document every time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cohortium.governance.evidence import Released, card_cyclonedx, model_card

from .released import audit, bundle, campaign, encoder

RELEASED = pytest.mark.parametrize("released", [bundle(), encoder(), campaign()], ids=["segments", "encoder", "ranker"])


def _card(found: dict[str, Any]) -> dict[str, Any]:
    component = found["components"][0]
    assert component["type"] == "machine-learning-model"
    return dict(component["modelCard"])


@RELEASED
@pytest.mark.parametrize("audited", [False, True], ids=["without-audit", "with-audit"])
def test_the_official_schema_accepts_it(released: Released, audited: bool) -> None:
    """The schema is the one inside the published `cyclonedx-python-lib`."""
    pytest.importorskip("jsonschema", reason="the official schema needs jsonschema")
    schema = pytest.importorskip("cyclonedx.schema", reason="the official schema is in cyclonedx-python-lib")
    validation = pytest.importorskip("cyclonedx.validation.json")
    validator = validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    card = model_card(released, (audit(released.digest),) if audited else ())
    found = card_cyclonedx(card)
    assert validator.validate_str(json.dumps(found)) is None
    found["components"][0]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]["value"] = 1.0
    assert validator.validate_str(json.dumps(found)) is not None  # it does look


def test_the_serial_number_follows_from_the_card_alone() -> None:
    first, again = card_cyclonedx(model_card(campaign())), card_cyclonedx(model_card(campaign()))
    assert json.dumps(first) == json.dumps(again)
    other = card_cyclonedx(model_card(campaign(), (audit(campaign().digest),)))
    assert first["serialNumber"] != other["serialNumber"]
    assert first["serialNumber"].startswith("urn:uuid:")


def test_metrics_are_the_released_numbers_unrounded_with_their_intervals() -> None:
    metrics = _card(card_cyclonedx(model_card(campaign())))["quantitativeAnalysis"]["performanceMetrics"]
    auc = campaign().document.quality.auc
    assert auc is not None
    (found,) = [one for one in metrics if one["type"] == "AUC"]
    assert float(found["value"]) == auc.value
    interval = found["confidenceInterval"]
    assert (float(interval["lowerBound"]), float(interval["upperBound"])) == (auc.low, auc.high)
    hidden = [one for one in metrics if one.get("slice") == "narrow"]
    assert len(hidden) == 5
    assert {one["value"] for one in hidden} == {"suppressed, or hidden by noise"}
    assert all("confidenceInterval" not in one for one in hidden)


def test_what_did_not_pass_and_what_could_not_be_judged_is_assessed() -> None:
    result = audit(campaign().digest)
    card = _card(card_cyclonedx(model_card(campaign(), (result,))))
    assessed = card["considerations"]["fairnessAssessments"]
    wanted = [one for one in result.metrics if one.verdict not in (None, "pass")]
    assert len(assessed) == len(wanted) == 3
    assert assessed[0]["groupAtRisk"] == "level balanced, sex: w0"
    assert assessed[0]["harms"].startswith(f"impact-ratio: fail; audit {result.digest}")
    assert "fewer people expected" in assessed[-1]["harms"]
    slices = [one.get("slice") for one in card["quantitativeAnalysis"]["performanceMetrics"]]
    assert slices.count("level balanced, sex: w0") == 1


def test_without_an_audit_nothing_is_assessed_and_the_limits_say_so() -> None:
    considered = _card(card_cyclonedx(model_card(campaign())))["considerations"]
    assert considered["fairnessAssessments"] == []
    assert any("says nothing of bias" in text for text in considered["technicalLimitations"])


def test_a_campaign_depends_on_its_encoder() -> None:
    found = card_cyclonedx(model_card(campaign()))
    encoder_digest = campaign().document.plan.model
    assert [one["bom-ref"] for one in found["components"]] == [campaign().digest, encoder_digest]
    assert found["dependencies"] == [{"ref": campaign().digest, "dependsOn": [encoder_digest]}]
    assert len(card_cyclonedx(model_card(bundle()))["components"]) == 1


def test_a_release_without_noise_claims_none() -> None:
    noised, bare = (
        _card(card_cyclonedx(model_card(bundle(trust=trust))))["considerations"]["performanceTradeoffs"][0]
        for trust in ("local", "unsafe-none")
    )
    assert noised == "noise for epsilon 1.0 at delta 1e-06"
    assert "no privacy" in bare
