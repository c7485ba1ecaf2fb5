"""What rules and reviewers say: findings and limits by article, standing of the cases, thresholds, mitigations."""

from __future__ import annotations

from collections.abc import Iterator

from cohortium.governance.report.fairness_page import FairnessPage, MitigationFacts
from cohortium.governance.report.markup import Child, Html, definitions, join, paragraph, table, tag
from cohortium.governance.report.policy_facts import MARKS, LimitFacts, PolicyFacts, QuotedRule
from cohortium.governance.report.sections.fairness.words import limit_text, metric_words
from cohortium.governance.report.sections.review_table import review_table
from cohortium.governance.report.wording import amount, label, number

__all__ = ["mitigations", "policy", "reviews", "thresholds"]

_NOT_ADVICE = (
    "The articles are quoted by number from packs of rules that people wrote; the mark says how "
    "surely each was read. Where it says unverified, look the article up before you rely on it."
)
_OUTCOMES = {"broken": "broken", "unknown": "unknown, which refuses"}


def policy(page: FairnessPage) -> Iterator[Html]:
    """Decisions with findings, limits and articles; the marks."""
    yield tag("p", tag("strong", "Not legal advice. "), _NOT_ADVICE, class_="banner")
    if not page.policies:
        yield paragraph("No decision of the rules was handed to this page, so it quotes none.")
    for decision in page.policies:
        yield from _decision(decision)
    yield definitions((f"Mark {mark}", meaning) for mark, meaning in MARKS)


def _decision(decision: PolicyFacts) -> Iterator[Html]:
    whose = "" if decision.institution is None else f" at {decision.institution}"
    yield tag("h3", f"{label(decision.stage).capitalize()}{whose}: {'admitted' if decision.admitted else 'declined'}")
    yield paragraph(
        f"Decided on {decision.day.isoformat()} by the packs {', '.join(decision.packs)}. Decision ",
        tag("code", decision.decision),
        ".",
    )
    if decision.findings:
        rows: list[tuple[Child, ...]] = [
            (
                _article(each.quoted),
                each.quoted.plain,
                each.quoted.confidence,
                _OUTCOMES[each.outcome],
                each.change,
            )
            for each in decision.findings
        ]
        heads = ("Article", "What it asks for", "Confidence", "Outcome", "What would change it")
        yield table(f"Findings of {decision.stage}{whose}", heads, rows)
    else:
        yield paragraph("No rule in force refused.")
    if decision.limits:
        heads = ("Fact", "Limit", "Article", "What it asks for", "Confidence")
        limits = [row for limit in decision.limits for row in _limit(limit)]
        yield table(f"Limits of {decision.stage}{whose}, the strictest of each", heads, limits, numeric=(1,))


def _limit(limit: LimitFacts) -> Iterator[tuple[Child, ...]]:
    words = f"{'at most' if limit.op == '<=' else 'at least'} {number(limit.number)}"
    for rule in limit.rules:
        yield (tag("code", limit.fact), words, _article(rule), rule.plain, rule.confidence)


def _article(quoted: QuotedRule) -> Html:
    return join((quoted.article, tag("br"), tag("small", quoted.rule)))


def reviews(page: FairnessPage) -> Iterator[Html]:
    """How cases stand."""
    if not page.reviews:
        yield paragraph("No case of review was handed to this page. That says nothing of whether somebody signed.")
        return
    yield paragraph(
        "An approval needs two people of two functions, privacy and risk or compliance, neither owner nor builder. "
        "They sign model card, audit, impact assessment and decision; any change voids it. Who they are "
        "stands in the case."
    )
    yield review_table([(None, case) for case in page.reviews])


def thresholds(page: FairnessPage) -> Iterator[Html]:
    """Every limit of the audit with its source."""
    used: dict[str, dict[str, None]] = {each.name: {} for each in page.result.thresholds}
    for metric in page.result.metrics:
        if metric.threshold is not None:
            used[metric.threshold][metric_words(metric.name).title] = None
    if not used:
        yield paragraph("Nothing was judged, so no limit was used.")
        return
    rows = [(each.name, limit_text(each), ", ".join(used[each.name]), each.source) for each in page.result.thresholds]
    yield table("Limits of the audit", ("Limit", "Passes", "Metrics", "Source"), rows)


def mitigations(page: FairnessPage) -> Iterator[Html]:
    """What can be asked for."""
    yield paragraph(
        "Whatever is chosen makes new tables and is audited again; the figures below are arithmetic on noisy tables, "
        "and promise nothing. Ratio: lowest over highest rate of the groups. Lift: how much commoner responses are "
        "among the chosen than among all."
    )
    rows = [_mitigation(each) for each in page.mitigations]
    heads = ("What", "Ratio now", "Ratio then", "Lift now", "Lift then", "Only if")
    yield table("What can be asked for", heads, rows, numeric=(1, 2, 3, 4))


def _mitigation(found: MitigationFacts) -> tuple[Child, ...]:
    figures = (found.ratio_before, found.ratio_after, found.lift_before, found.lift_after)
    shown = ("not known" if value is None else amount(value, 0.1) for value in figures)
    return (found.what, *shown, found.condition or "nothing more")
