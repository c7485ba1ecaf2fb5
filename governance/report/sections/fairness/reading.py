"""How to read the page, what it does not say, and its imprint."""

from __future__ import annotations

from collections.abc import Iterator

from cohortium.governance.fairness.verdicts import NOISE_DEVIATIONS
from cohortium.governance.report.fairness_page import FairnessPage
from cohortium.governance.report.markup import Html, definitions, items, paragraph, tag
from cohortium.governance.report.wording import number, percent

__all__ = ["fairness_footer", "limits", "reading"]


def reading(page: FairnessPage) -> Iterator[Html]:
    """What intervals, verdicts, Holm's procedure and bands mean."""
    result = page.result
    error = percent(result.alpha)
    yield definitions(
        (
            (
                "Pass",
                "The whole interval is on the good side of the limit: the data show it, noise and chance included.",
            ),
            ("Fail", "The whole interval is on the bad side: the data show that, too."),
            ("Inconclusive", "The limit lies inside the interval. Nothing is shown: never a pass."),
            (
                "Insufficient",
                f"At everybody's rate fewer people would be counted than the minimum cell "
                f"({number(result.minimum_cell)}) or than {number(NOISE_DEVIATIONS)} standard deviations of the noise; "
                "or the noise leaves the interval without an end. Nobody chosen of a large group is a fail, "
                "not a lack of data.",
            ),
            ("Overall", "The worst of all: fail, then insufficient, then inconclusive, then pass."),
            (
                "Interval",
                "All values that the noisy counts allow. It holds two uncertainties: who happens to be a customer (the "
                "chance of a sample), and the noise that was added on purpose so that no single person can be told. "
                "Intervals that ignored the noise would be far too short for small groups. A number near a limit may "
                "move with the next draw of the noise; its interval says how far.",
            ),
            (
                "Several groups (Holm)",
                "All groups of one metric, attribute and institution are judged together, so that the probability of "
                f"any wrong pass or fail among them is at most {error}. Groups that are decided leave, and the next "
                "step has fewer. That is why levels differ from row to row: each interval holds at the level beside "
                "it, and they do not hold jointly.",
            ),
            (
                "Several metrics",
                "Are not corrected for each other. A wrong overall pass gets no likelier by that, as all must pass; a "
                f"wrong fail of one of many metrics gets likelier than {error}.",
            ),
            (
                "The best of the groups",
                "In noisy counts the group that looks best often had luck. So where no reference is named, the "
                "interval is of the ratio to the truly best group, whichever that is; the price is that a small group, "
                "which might be the best, leaves others inconclusive.",
            ),
            (
                "People",
                "Bands wide enough for 95% of the noise, never exact. Suppressed: fewer than the minimum cell by the "
                "noisy count, which does not mean nobody.",
            ),
            ("Unknown", "The group of people without a value of the attribute; judged like any other."),
        )
    )


def limits(page: FairnessPage) -> Iterator[Html]:
    """What this page does not say."""
    lines = [
        "Why rates differ, or whether a difference is justified.",
        "Anything about a single person: verdicts are about the rule that chose, seen through a sample.",
        "That a group that is in no table is treated well, or by a metric that could not be made.",
        "That institutions recorded the attributes rightly. Who is recorded wrongly is counted in the wrong group.",
        "That a pass lasts: customers and models change. The audit is of the day that it names.",
        "That anything here is lawful. This page is not legal advice.",
    ]
    if page.mode == "simulation":
        lines.insert(0, "Anything about a deployment: in a simulation one machine sees every institution's data.")
    yield items(lines)
    yield paragraph(
        "Whoever has the document that this page is drawn from can draw it again, byte for byte.", note=True
    )


def fairness_footer(page: FairnessPage) -> Html:
    """Version, schemas, digests."""
    result = page.result
    return tag(
        "footer",
        paragraph(f"cohortium {page.version}. Schemas: {page.schema_id}, {result.schema_id}. Not legal advice."),
        paragraph("Result ", tag("code", result.digest)),
        paragraph("Audited ", tag("code", result.audited)),
        paragraph("Plan of the audit ", tag("code", result.plan)),
    )
