"""The model card: a function of what was released and audited, with its numbers and no others."""

from __future__ import annotations

import json

import pytest

from cohortium.governance.evidence import CARD_SCHEMA, ModelCard, Released, model_card
from cohortium.study.errors import DataError

from .released import audit, bundle, campaign, encoder


@pytest.mark.parametrize("released", [bundle(), encoder(), campaign()], ids=["segments", "encoder", "lookalike"])
def test_a_card_is_rebuilt_from_its_bytes_and_made_again_with_the_same_digest(released: Released) -> None:
    card = model_card(released)
    again = ModelCard.model_validate(json.loads(card.to_bytes()))
    assert again == card
    assert again.digest == model_card(released).digest
    assert card.to_json()["schema"] == CARD_SCHEMA
    assert card.model == released.digest


def test_the_order_of_the_audits_does_not_matter_and_another_audit_does() -> None:
    digest = campaign().digest
    first, second = audit(digest, level="narrow"), audit(digest, level="broad")
    one, other = model_card(campaign(), (first, second)), model_card(campaign(), (second, first))
    assert one.digest == other.digest
    assert [each.level for each in one.audits] == ["broad", "narrow"]
    assert len({one.digest, model_card(campaign(), (first,)).digest, model_card(campaign()).digest}) == 3


def test_every_figure_of_a_campaign_is_the_one_released() -> None:
    model = campaign().document
    figures = {(one.name, one.of): one for one in model_card(campaign()).figures}
    assert any(level.point is None for level in model.curve.levels)
    assert any(level.point is not None for level in model.curve.levels)
    for level in model.curve.levels:
        for name in ("reach", "lift", "precision", "recall", "relevance"):
            shown = figures[name, level.name]
            found = level.point and getattr(level.point, "people" if name == "reach" else name)
            assert (shown.value, shown.low, shown.high) == (
                (found.value, found.low, found.high) if found else (None, None, None)
            )
    auc = model.quality.auc
    assert auc is not None
    shown = figures["AUC", f"the ranker on {model.quality.ranker}"]
    assert (shown.value, shown.low, shown.high) == (auc.value, auc.low, auc.high)
    assert figures["seeds", None].value == model.seeds
    assert figures["customers", None].value == model.customers


def test_figures_of_segments_and_what_is_suppressed() -> None:
    figures = [(one.name, one.of, one.value, one.std) for one in model_card(bundle()).figures]
    assert figures == [
        ("customers", None, 1200.5, None),
        ("variance explained", None, 0.63, None),
        ("silhouette", "k = 2", 0.41, None),
        ("size", "1: loyal", 1200.5, 41.0),
        ("size", "2: lapsed", None, 41.0),
    ]


def test_releases_are_shortened_by_phase_with_every_price_and_the_failed_ones() -> None:
    privacy = model_card(bundle()).privacy
    assert [(one.phase, one.questions, one.failed, one.institutions, one.mu2) for one in privacy.releases] == [
        ("marginals", 1, 0, 4, str(2**52)),
        ("lloyd", 2, 1, 4, str(3 * 2**52)),
    ]
    assert privacy.mu2 == str(4 * 2**52)  # above what a JSON number holds exactly
    assert privacy.tv == str(4 * 2**40)
    assert (privacy.trust, privacy.min_institutions, privacy.colluders) == ("distributed", 3, 1)


def test_features_have_what_was_released_about_them() -> None:
    first, second = model_card(bundle()).features
    assert (first.name, first.scale, first.low, first.high) == ("recency", "linear", 1.0, 366.0)
    assert (second.name, second.scale) == ("monetary", "log1p")
    assert [one.name for one in model_card(campaign()).features] == list(campaign().document.features)


def test_a_campaign_names_its_encoder_and_others_none() -> None:
    assert model_card(campaign()).encoder == campaign().document.plan.model
    assert model_card(encoder()).encoder is None
    assert model_card(bundle()).encoder is None


def test_an_audit_is_shown_from_its_worst_metric_on() -> None:
    result = audit(campaign().digest, groups=14)
    (shown,) = model_card(campaign(), (result,)).audits
    assert (shown.audit, shown.verdict, shown.level) == (result.digest, result.verdict, "balanced")
    poor = [one for one in result.metrics if one.verdict in ("fail", "inconclusive")]
    assert shown.verdict == "fail"
    assert len(poor) > 12
    assert len(shown.worst) == 12
    assert shown.more == len(poor) - 12
    verdicts = [one.verdict for one in shown.worst]
    assert set(verdicts) == {"fail", "inconclusive"}
    assert verdicts == sorted(verdicts)  # the failing ones first
    assert shown.insufficient == result.too_small
    assert shown.insufficient
    assert shown.judged == shown.passed + len(poor) + len(result.too_small)


def test_a_card_without_an_audit_says_so_and_one_with_an_audit_does_not() -> None:
    assert any("says nothing of bias" in text for text in model_card(campaign()).limits)
    audited = model_card(campaign(), (audit(campaign().digest),))
    assert not any("says nothing of bias" in text for text in audited.limits)


def test_a_release_without_noise_says_so_first() -> None:
    assert model_card(bundle(trust="unsafe-none")).limits[0].startswith("NO PRIVACY")
    assert not model_card(bundle()).limits[0].startswith("NO PRIVACY")


def test_an_audit_of_something_else_or_twice_is_refused() -> None:
    with pytest.raises(DataError, match="is of something else"):
        model_card(campaign(), (audit(bundle().digest),))
    result = audit(campaign().digest)
    with pytest.raises(DataError, match="given twice"):
        model_card(campaign(), (result, result))
