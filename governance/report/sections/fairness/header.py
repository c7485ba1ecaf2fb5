"""The head of the page: the verdict in one sentence, what decided it, and what was audited at which price."""

from __future__ import annotations

from collections.abc import Iterator

from cohortium.governance.fairness import Metric, Verdict
from cohortium.governance.report.fairness_page import FairnessPage
from cohortium.governance.report.markup import Child, Html, definitions, items, join, paragraph, tag
from cohortium.governance.report.sections.fairness.words import (
    decides,
    estimate_text,
    interval_text,
    limit_text,
    sentence_of,
)
from cohortium.governance.report.wording import delta_text, epsilon_text, number, percent, plural

__all__ = ["EXPORT_RULE", "fairness_header"]

EXPORT_RULE = "X-AUDIT-VERDICT"
"""The house rule that asks for a pass, or for two reviewers' waiver, before an export."""

_SHOWN = 8

_THING = {
    "segments": "an audience made of these segments",
    "audience": "this audience",
    "column": "an audience that rests on this outcome",
}
_SUBJECT = {
    "segments": "segments of customers",
    "audience": "the audience of a lookalike campaign",
    "column": "an outcome that the institutions recorded",
}
_TRUST = {
    "local": "added by each institution in full, before anything left it",
    "distributed": "shared: each institution adds a part of it, and masks its answer so that only the sum can be read",
    "unsafe-none": "NONE: a simulation's audit without noise",
}


def fairness_header(page: FairnessPage) -> Html:
    """Verdict, what decided it, key facts."""
    result = page.result
    return tag(
        "header",
        tag("p", "cohortium bias audit", class_="kicker"),
        tag("h1", page.name),
        tag("p", _sentence(page), class_=f"judgement {result.verdict}"),
        paragraph(_meaning(result.verdict)),
        *_marks(page),
        *_worst(page),
        _tiles(page),
        definitions(_facts(page)),
    )


def _sentence(page: FairnessPage) -> Html:
    verdict, thing = page.result.verdict, _THING[page.of]
    deciding = [metric for metric in page.result.metrics if decides(metric)]
    count, all_ = sum(metric.verdict == verdict for metric in deciding), plural(len(deciding), "comparison")
    said = {
        "pass": f"All {all_} that decide keep to their limits, noise and chance included: the audit does not stand in "
        f"the way of exporting {thing}.",
        "fail": f"{count:,} of {all_} {_verb(count)} shown to break the limit: {thing} may not be exported on this "
        "audit.",
        "inconclusive": f"Noise and chance leave open whether {count:,} of {all_} {_verb(count, 'keeps', 'keep')} to "
        f"the limit. That is not a pass: {thing} may not be exported on this audit.",
        "insufficient": f"{count:,} of {all_} {_verb(count)} of too few people to be judged. That is not a pass: "
        f"{thing} may not be exported on this audit.",
    }
    words = said[verdict] if deciding else f"Nothing could be judged. That is not a pass: {thing} may not be exported."
    return join((tag("strong", f"{verdict.capitalize()}. "), words))


def _verb(count: int, one: str = "is", many: str = "are") -> str:
    return one if count == 1 else many


def _meaning(verdict: Verdict) -> str:
    if verdict == "pass":
        return (
            "A pass is about the groups and metrics below, and nothing else. The export still needs everything else "
            "that is asked for: consent, the rules in force, and two reviewers of two functions."
        )
    return (
        f"By the house rule {EXPORT_RULE} (house: a limit of our own, set by no law) an audience goes out only if its "
        "audit passed, or if two reviewers of two functions waived the result for a stated time, with a task that "
        "remedies it."
    )


def _marks(page: FairnessPage) -> Iterator[Html]:
    if page.mode == "simulation":
        words = "All institutions ran on one machine. This page is no evidence of a deployment."
        yield tag("p", tag("strong", "Simulation. "), words, class_="banner")
    if page.trust == "unsafe-none":
        words = (
            "This audit added no noise: its numbers may reveal single customers. No institution approves such a plan. "
            "Intervals hold the chance of a sample alone."
        )
        yield tag("p", tag("strong", "NO PRIVACY. "), words, class_="banner")


def _worst(page: FairnessPage) -> Iterator[Html]:
    """The comparisons that have the overall verdict, unless that is a pass."""
    result = page.result
    found = [metric for metric in result.metrics if decides(metric) and metric.verdict == result.verdict]
    if result.verdict == "pass" or not found:
        return
    yield tag("h2", "What decided it")
    more = len(found) - _SHOWN
    lines: list[Child] = [_line(page, metric) for metric in found[:_SHOWN]]
    yield items([*lines, f"and {more:,} more, below"] if more > 0 else lines)


def _line(page: FairnessPage, metric: Metric) -> Html:
    words = sentence_of(metric)
    words = words[0].upper() + words[1:]
    if metric.why is not None:
        return join((tag("strong", words), f": {metric.why}."))
    threshold = next(each for each in page.result.thresholds if each.name == metric.threshold)
    figures = f"{estimate_text(metric)}, interval {interval_text(metric, threshold)}, limit {limit_text(threshold)}."
    return join((tag("strong", words), f": {figures}"))


def _tiles(page: FairnessPage) -> Html:
    verdicts = [metric.verdict for metric in page.result.metrics if metric.verdict is not None]
    counts = [(word, f"{verdicts.count(word):,}") for word in ("pass", "fail", "inconclusive", "insufficient")]
    facts = [("Comparisons judged", f"{len(verdicts):,}"), *((word.capitalize(), count) for word, count in counts)]
    return tag("dl", *(tag("div", tag("dt", term), tag("dd", value)) for term, value in facts), class_="tiles")


def _facts(page: FairnessPage) -> Iterator[tuple[str, Child]]:
    result = page.result
    yield "What was audited", _SUBJECT[page.of] + ("" if result.level is None else f", level '{result.level}'")
    yield "Purpose", page.purpose
    yield "Judged on", f"{result.made.isoformat()} (UTC)"
    yield "Institutions that answered", f"{page.institutions:,}"
    yield "Noise", _TRUST[page.trust]
    yield "Privacy loss of the audit", _price(page)
    yield "Smallest cell shown", f"{number(result.minimum_cell)} people"
    yield "Error of every family of verdicts", percent(result.alpha)
    yield "Digest of what was audited", tag("code", result.audited)
    yield "Digest of the audit's plan", tag("code", result.plan)


def _price(page: FairnessPage) -> str:
    result = page.result
    if result.epsilon is None:
        return "no bound: there is no noise"
    return (
        f"at most epsilon {epsilon_text(result.epsilon)} at delta {delta_text(result.delta)} for a person at one "
        "institution, on top of what training cost"
    )
