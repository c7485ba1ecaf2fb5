"""What the audit does not know: groups too small to judge, metrics without a table, directions that differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cohortium.governance.fairness import NotJudged
from cohortium.governance.report.fairness_page import FairnessPage
from cohortium.governance.report.markup import Child, Html, join, paragraph, table, tag
from cohortium.governance.report.sections.fairness.words import (
    attributes_text,
    decides,
    metric_words,
    name_of,
    people_text,
    where,
)
from cohortium.governance.report.wording import amount

__all__ = ["not_judged", "reversals"]


def not_judged(page: FairnessPage) -> Iterator[Html]:
    """What was too small, and what could not be made, each with its reason."""
    small, missing = page.result.too_small, page.result.not_judged
    if not small and not missing:
        yield paragraph("Nothing: every metric of every group could be judged or described.")
        return
    if small:
        yield paragraph(
            "Too small: a group is judged only if so many of its people would be counted at everybody's rate that "
            "neither the minimum cell nor the noise hides them. Too few people without a value (unknown) alone keep "
            "nothing from passing; any other group that is too small does. Groups can be folded, an audit can spend "
            "more, or two reviewers can waive the result."
        )
        yield table(
            "Too small to judge",
            ("Group", "Metric", "Attribute", "Where", "People", "Why", "Keeps from passing"),
            [
                (
                    name_of(metric),
                    metric_words(metric.name).title,
                    attributes_text(metric.attributes),
                    where(metric.institution),
                    people_text(metric),
                    metric.why or "",
                    "yes" if decides(metric) else "no: unknown",
                )
                for metric in small
            ],
            numeric=(4,),
        )
    if missing:
        yield paragraph(
            "Not made: the audit was not given what these metrics need. They take no part in the verdict; which ones a "
            "study needs is what its plan and the rules say."
        )
        rows = [(metric_words(name).title, why, _by(found), _places(found)) for (name, why), found in _alike(missing)]
        yield table("Metrics that could not be made", ("Metric", "Why", "Attributes", "Where"), rows)


def _alike(missing: Sequence[NotJudged]) -> Iterable[tuple[tuple[str, str], list[NotJudged]]]:
    """By metric and reason, in order."""
    found: dict[tuple[str, str], list[NotJudged]] = {}
    for each in missing:
        found.setdefault((each.metric, each.why), []).append(each)
    return found.items()


def _by(found: Sequence[NotJudged]) -> str:
    return ", ".join(dict.fromkeys(attributes_text(each.attributes) for each in found))


def _places(found: Sequence[NotJudged]) -> str:
    return ", ".join(dict.fromkeys(where(each.institution) for each in found))


def reversals(page: FairnessPage) -> Iterator[Html]:
    """Groups whose direction differs between all institutions together and one of them."""
    result = page.result
    if not any(metric.institution is not None for metric in result.metrics):
        yield paragraph(
            "No institution released tables of its own to this audit, so nobody can tell whether a group fares "
            "differently at one of them (Simpson's paradox)."
        )
        return
    if not result.reversals:
        yield paragraph(
            "No reversal is shown: no group fares worse than the reference over all institutions and better at one of "
            "them, or the reverse, by more than noise and chance explain."
        )
        return
    yield paragraph(
        "These groups fare worse than the reference over all institutions together and better at one of them, or the "
        "reverse (Simpson's paradox). Both intervals leave 1 out, so it is not noise. Look at the institution before "
        "any remedy: what mends the whole may do harm there."
    )
    rows: list[tuple[Child, ...]] = [
        (
            " and ".join(each.group),
            attributes_text(each.attributes),
            " and ".join(each.reference),
            each.institution,
            _ratio(each.pooled),
            _ratio(each.local),
        )
        for each in result.reversals
    ]
    heads = ("Group", "Attribute", "Compared with", "Institution", "Ratio over all", "Ratio there")
    yield table("Directions that differ", heads, rows, numeric=(4, 5))


def _ratio(value: float) -> Html:
    """A ratio, and which side of 1 it is on."""
    return join((amount(value, 0.1), tag("br"), tag("small", "worse" if value < 1 else "better")))
