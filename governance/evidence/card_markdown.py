"""A model card for people: Markdown, with the metadata block that model hubs read (Hugging Face's format)."""

from __future__ import annotations

from collections.abc import Iterator

from cohortium.governance.evidence.card import CardAudit, CardFigure, CardPrivacy, ModelCard
from cohortium.governance.evidence.markdown import bullets, plain, table, yaml_text
from cohortium.governance.fairness import Metric
from cohortium.governance.report.wording import amount, delta_text, number, percent, plural
from cohortium.study.contract import Contract, Feature
from cohortium.study.errors import DataError

__all__ = ["card_markdown", "figure_text", "metric_where"]

_HIDDEN = "suppressed, or hidden by noise"
_TRUST = {
    "distributed": "shared noise and a secure sum: {t} institutions or more, of which at most {c} collude",
    "local": "every institution adds all the noise, and trusts nobody",
    "unsafe-none": "none: there is no noise",
}


def card_markdown(card: ModelCard, contract: Contract | None = None) -> str:
    """The card as Markdown.

    Args:
        card: made by `model_card`.
        contract: of which the card names the digest, to show kind, block and bounds of every feature.

    Raises:
        DataError: another contract.
    """
    if contract is not None and contract.digest != card.contract:
        raise DataError("is not the contract of this card", place=contract.name, fix="give the one it was learnt under")
    lines = [*_front_matter(card), "", *_head(card), *_features(card, contract), *_privacy(card.privacy)]
    lines += [*_section("Quality, as released"), *_figures(card.figures), *_section("Fairness")]
    for index, audit in enumerate(card.audits):
        lines += [*([""] if index else []), *_audit(audit)]
    if not card.audits:
        lines += ["No audit is on this card: nothing is known of bias."]
    lines += [*_section("Limits"), *bullets(card.limits), *_section("Retraining and end"), plain(card.retraining)]
    return "\n".join([*lines, "", f"*{plain(card.notice)}*", ""])


def _section(title: str) -> list[str]:
    return ["", f"## {title}", ""]


def _front_matter(card: ModelCard) -> list[str]:
    auc = next((one for one in card.figures if one.name == "AUC" and one.value is not None), None)
    tags = ("tabular", "federated-learning", "differential-privacy", card.kind)
    lines = ["---", "license: unknown", "library_name: cohortium", "tags:", *(f"- {yaml_text(tag)}" for tag in tags)]
    if auc is not None and auc.value is not None:
        lines += [
            "metrics:",
            "- roc_auc",
            "model-index:",
            f"- name: {yaml_text(card.name)}",
            "  results:",
            "  - task:",
            "      type: tabular-classification",
            "    dataset:",
            "      type: private",
            f"      name: {yaml_text(f'customers of {card.institutions} institutions, never pooled')}",
            "    metrics:",
            "    - type: roc_auc",
            f"      value: {auc.value:.4f}",
            '      name: "AUC on the seeds it was learnt on"',
        ]
    return [*lines, "---"]


def _head(card: ModelCard) -> Iterator[str]:
    yield f"# {plain(card.name)}"
    yield ""
    yield plain(card.what)
    yield ""
    rows = [
        ("purpose", card.purpose),
        ("lawful basis, as declared", card.lawful_basis.replace("_", " ")),
        ("people in", ", ".join(card.regions)),
        ("institutions", str(card.institutions)),
        ("last day", card.expires.isoformat()),
        ("model", card.model),
        ("plan", card.plan),
        ("contract", card.contract),
        *((("encoder", card.encoder),) if card.encoder else ()),
        ("run", card.run),
        ("this card", card.digest),
    ]
    yield from table(("", ""), rows)
    yield from (*_section("For"), *bullets(card.intended), *_section("Not for"), *bullets(card.not_for))


def _features(card: ModelCard, contract: Contract | None) -> Iterator[str]:
    yield from _section("What it reads")
    if contract is not None:
        known = [(contract.feature(one.name), one) for one in card.features]
        rows = [(feature.block or "", one.name, feature.kind, _bounds(contract, feature)) for feature, one in known]
        yield from table(("block", "feature", "kind", "public bounds or values"), sorted(rows, key=lambda row: row[0]))
        return
    scaled = [
        (one.name, one.scale or "", "" if one.low is None or one.high is None else f"{one.low:g} to {one.high:g}")
        for one in card.features
    ]
    yield from table(("feature", "scale", "released range"), scaled)


def _bounds(contract: Contract, feature: Feature) -> str:
    if feature.is_category:
        return ", ".join(feature.categories)
    low, high = feature.bounds
    return f"{number(low)} to {number(high)} {contract.unit_of(feature)}".rstrip()


def _privacy(privacy: CardPrivacy) -> Iterator[str]:
    yield from _section("Privacy")
    trust = _TRUST[privacy.trust].format(t=privacy.min_institutions, c=privacy.colluders)
    if privacy.trust == "unsafe-none":
        yield f"**No privacy.** Noise: {trust}."
    else:
        yield (
            f"Epsilon {number(privacy.epsilon)} at delta {delta_text(privacy.delta)} for everything that was released. "
            f"Unit: {privacy.unit}; {privacy.adjacency}. Noise: {trust}."
        )
    yield f"Fewer than {privacy.min_cell:,} (noisy) people are suppressed. What every question cost:"
    yield ""
    total = int(privacy.mu2)
    rows = [
        (
            one.phase,
            one.kind,
            str(one.questions) + (f", and {plural(one.failed, 'attempt')} that came to nothing" if one.failed else ""),
            "" if one.institutions is None else str(one.institutions),
            percent(int(one.mu2) / total) if total else "nothing",
        )
        for one in privacy.releases
    ]
    yield from table(("phase", "kind", "questions", "institutions, at least", "share of the cost (mu²)"), rows)


def _figures(figures: tuple[CardFigure, ...]) -> list[str]:
    rows = [(one.name, one.of or "", *figure_text(one)) for one in figures]
    return table(("figure", "of", "value", "95% interval, or noise"), rows)


def figure_text(figure: CardFigure) -> tuple[str, str]:
    """The value of a figure and its uncertainty, in words, with the digits that its noise supports."""
    unit = " people" if figure.unit == "people" else ""
    if figure.value is None:
        return _HIDDEN, ""
    if figure.low is not None and figure.high is not None:
        half = max(figure.high - figure.value, figure.value - figure.low)
        found = f"{amount(figure.low, half)} to {amount(figure.high, half)}"
        return amount(figure.value, half) + unit, found
    if figure.std is not None:
        return amount(figure.value, figure.std) + unit, f"standard deviation {amount(figure.std, figure.std)}"
    return number(figure.value) + unit, "not stated"


def metric_where(metric: Metric) -> str:
    """Which groups a metric of an audit is about, in words."""
    attributes = " and ".join(metric.attributes)
    group = "" if metric.group is None else ": " + ", ".join(metric.group)
    against = "" if metric.reference is None else " against " + ", ".join(metric.reference)
    outcome = "" if metric.outcome is None else f", {metric.outcome}"
    where = "" if metric.institution is None else f", at {metric.institution}"
    return f"{attributes}{group}{against}{outcome}{where}"


def _audit(audit: CardAudit) -> Iterator[str]:
    level = "" if audit.level is None else f", level {plain(audit.level)}"
    cost = "without noise" if audit.epsilon is None else f"epsilon {number(audit.epsilon)} besides"
    yield (
        f"**{audit.verdict}**{level}: {audit.passed} of {plural(audit.judged, 'metric')} pass; judged {audit.made}, "
        f"{cost}. Audit {audit.audit}."
    )
    if audit.worst:
        rows = [(one.verdict or "", one.name, metric_where(one), *_interval(one)) for one in audit.worst]
        yield from ("", *table(("verdict", "metric", "of", "value", "interval"), rows))
    if audit.more:
        yield from ("", f"And {audit.more} more that do not pass.")
    gaps = [f"{one.name} ({metric_where(one)}): {one.why}" for one in audit.insufficient]
    gaps += [f"{one.metric} ({' and '.join(one.attributes)}): {one.why}" for one in audit.not_judged]
    if gaps:
        yield from ("", "Not judged:", "", *bullets(gaps))
    if audit.reversals:
        yield from ("", f"At {plural(audit.reversals, 'comparison')} an institution's direction is not the pooled one.")


def _interval(metric: Metric) -> tuple[str, str]:
    if metric.estimate is None or metric.low is None:
        return "", ""
    return f"{metric.estimate:.3f}", f"{metric.low:.3f} to " + (
        "no end" if metric.high is None else f"{metric.high:.3f}"
    )
