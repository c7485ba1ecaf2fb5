"""A model card in CycloneDX 1.6: one component of type `machine-learning-model` with its `modelCard`.

Nothing in it changes from one making to the next: no timestamp, and a serial number that follows from the card.
"""

from __future__ import annotations

from typing import Any
from uuid import NAMESPACE_OID, uuid5

from cohortium.governance.evidence.card import CardAudit, CardFeature, CardFigure, CardPrivacy, ModelCard
from cohortium.governance.evidence.card_markdown import figure_text, metric_where
from cohortium.governance.fairness import Metric
from cohortium.study.plan import StudyKind

__all__ = ["card_cyclonedx"]

_HOW: dict[StudyKind, tuple[str, str, str, str]] = {
    "segments": ("unsupervised", "clustering", "k-means", "k-means centres on noisy federated sums"),
    "encoder": ("self-supervised", "representation learning", "neural network", "encoder of two hidden layers"),
    "lookalike": ("supervised", "ranking", "linear ranker", "discriminant of seeds, refined by gradients"),
}
_OUTPUT: dict[StudyKind, str] = {
    "segments": "number of the nearest segment",
    "encoder": "vector of an embedding",
    "lookalike": "score; a level says from which score on",
}


def card_cyclonedx(card: ModelCard) -> dict[str, Any]:
    """The card as a CycloneDX 1.6 document of JSON types."""
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid5(NAMESPACE_OID, card.digest)}",
        "version": 1,
        "components": [_component(card), *_encoder(card)],
        "dependencies": [{"ref": card.model, "dependsOn": [card.encoder] if card.encoder else []}],
    }


def _component(card: ModelCard) -> dict[str, Any]:
    return {
        "type": "machine-learning-model",
        "bom-ref": card.model,
        "name": card.name,
        "version": card.run,
        "description": card.what,
        "modelCard": {
            "modelParameters": _parameters(card),
            "quantitativeAnalysis": {"performanceMetrics": [*map(_figure, card.figures), *_metrics(card)]},
            "considerations": _considerations(card),
        },
        "properties": [{"name": f"cohortium:{name}", "value": value} for name, value in _properties(card).items()],
    }


def _encoder(card: ModelCard) -> list[dict[str, Any]]:
    if card.encoder is None:
        return []
    return [{"type": "machine-learning-model", "bom-ref": card.encoder, "name": "encoder", "version": card.encoder}]


def _properties(card: ModelCard) -> dict[str, str]:
    privacy = card.privacy
    return {
        "card": card.digest,
        "model": card.model,
        "plan": card.plan,
        "contract": card.contract,
        "purpose": card.purpose,
        "lawful-basis": card.lawful_basis,
        "institutions": str(card.institutions),
        "expires": card.expires.isoformat(),
        "privacy:epsilon": repr(privacy.epsilon),
        "privacy:delta": repr(privacy.delta),
        "privacy:unit": privacy.unit,
        "privacy:adjacency": privacy.adjacency,
        "privacy:trust": privacy.trust,
        "privacy:minimum-cell": str(privacy.min_cell),
        "privacy:mu2-units": privacy.mu2,
        "privacy:tv-units": privacy.tv,
        "retraining": card.retraining,
        "notice": card.notice,
    }


def _parameters(card: ModelCard) -> dict[str, Any]:
    approach, task, family, architecture = _HOW[card.kind]
    return {
        "approach": {"type": approach},
        "task": task,
        "architectureFamily": family,
        "modelArchitecture": architecture,
        "datasets": [
            {
                "type": "dataset",
                "name": "customers",
                "classification": "personal data",
                "description": f"customers of {card.institutions} institutions; no row left any of them",
            }
        ],
        "inputs": [{"format": _input(one)} for one in card.features],
        "outputs": [{"format": _OUTPUT[card.kind]}],
    }


def _input(feature: CardFeature) -> str:
    if feature.low is None or feature.high is None:
        return feature.name
    return f"{feature.name}: {feature.scale}, {feature.low!r} to {feature.high!r}"


def _figure(figure: CardFigure) -> dict[str, Any]:
    """A metric with the released numbers, unrounded; what is hidden says so in its place."""
    shown: dict[str, Any] = {"type": figure.name, "value": figure_text(figure)[0]}
    if figure.value is not None:
        shown["value"] = repr(figure.value)
    if figure.of is not None:
        shown["slice"] = figure.of
    if figure.low is not None and figure.high is not None:
        shown["confidenceInterval"] = {"lowerBound": repr(figure.low), "upperBound": repr(figure.high)}
    return shown


def _metrics(card: ModelCard) -> list[dict[str, Any]]:
    """What did not pass an audit, as metrics of the groups."""
    return [_metric(audit, one) for audit in card.audits for one in audit.worst if one.estimate is not None]


def _metric(audit: CardAudit, metric: Metric) -> dict[str, Any]:
    bounds = {"lowerBound": metric.low, "upperBound": metric.high}
    return {
        "type": metric.name,
        "value": repr(metric.estimate),
        "slice": f"{_level(audit)}{metric_where(metric)}",
        "confidenceInterval": {name: repr(value) for name, value in bounds.items() if value is not None},
    }


def _considerations(card: ModelCard) -> dict[str, Any]:
    return {
        "users": ["institutions that took part, each for its own customers"],
        "useCases": list(card.intended),
        "technicalLimitations": list(card.limits),
        "performanceTradeoffs": [_noise(card.privacy), f"cells below {card.privacy.min_cell} people are suppressed"],
        "ethicalConsiderations": [
            {"name": f"not for {text}", "mitigationStrategy": "rules, consent and review at every institution"}
            for text in card.not_for
        ],
        "fairnessAssessments": [
            _assessment(audit, one) for audit in card.audits for one in (*audit.worst, *audit.insufficient)
        ],
    }


def _noise(privacy: CardPrivacy) -> str:
    if privacy.trust == "unsafe-none":
        return "no noise, and so no privacy: for simulations alone"
    return f"noise for epsilon {privacy.epsilon!r} at delta {privacy.delta!r}"


def _assessment(audit: CardAudit, metric: Metric) -> dict[str, Any]:
    found = f"{metric.name}: {metric.verdict}" + (f" ({metric.why})" if metric.why else "")
    return {
        "groupAtRisk": f"{_level(audit)}{metric_where(metric)}",
        "harms": f"{found}; audit {audit.audit}, overall {audit.verdict}, judged {audit.made}",
        "mitigationStrategy": "no export without two signatures, which see the audit",
    }


def _level(audit: CardAudit) -> str:
    return "" if audit.level is None else f"level {audit.level}, "
