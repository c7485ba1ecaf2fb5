"""How well the ranker tells seeds from others, by tenths of people, and how it was chosen."""

from __future__ import annotations

from collections.abc import Iterator

from cohortium.governance.report.charts.deciles import decile_chart
from cohortium.governance.report.lookalike_summary import LookalikeSummary
from cohortium.governance.report.markup import Child, Html, figure, paragraph, table
from cohortium.governance.report.sections.lookalike.reach import with_interval, with_percents
from cohortium.governance.report.wording import (
    measured_percent,
    measured_percents,
    percent,
    spread,
)
from cohortium.models.validation import LIFT_AT, RECALL_AT
from cohortium.study.reach import RankerChoice, RankerQuality

__all__ = ["choice", "quality"]

_RANKERS = {
    "features": "the features as the contract defines them",
    "embedding": "the encoder's summary of the features (the embedding)",
}
"""What a ranker scores on; an unknown one is shown by its name."""


def quality(summary: LookalikeSummary) -> Iterator[Html]:
    """AUC in words, recall and lift as a table, lift by tenths as bars."""
    found = summary.campaign.quality
    yield paragraph(_auc(found))
    yield paragraph(
        "All of this is measured on the very seeds that the ranker was learnt on; nobody was held out. Differential "
        "privacy bounds how much that can flatter it, as no single person may move the ranker far, but no figure here "
        "is corrected for it. It says how well the seeds are found, not how people will respond.",
    )
    if found.auc is None:
        return
    rows: list[tuple[Child, ...]] = [
        (f"Seeds among the top {share:.0%} of people", with_percents(value))
        for share, value in zip(RECALL_AT, found.recall, strict=True)
    ]
    rows += [
        (f"Lift among the top {share:.0%} of people", with_interval(value))
        for share, value in zip(LIFT_AT, found.lift, strict=True)
    ]
    yield table("Quality of the ranker, with 95% intervals", ("Measure", "Value"), rows, numeric=(1,))
    yield figure(
        decile_chart(found.deciles),
        "Lift by tenths of people: how much commoner seeds are in each tenth than among all, best tenth first. The "
        "line is the 95% interval; the dotted line is chance. A useful ranker falls from left to right.",
    )


def _auc(found: RankerQuality) -> str:
    if found.auc is None:
        return "How well the ranker tells seeds from others, the noise hides: the seeds are too few for this budget."
    known = found.auc_noise_std
    noise = "" if known is None else f" The noise in it has a standard deviation of {spread(100 * known)} points."
    return (
        f"Of a customer of the seed and another person, both drawn by lot, the one of the seed scores higher in "
        f"{measured_percent(found.auc)} of cases (AUC; 95% interval {measured_percents(found.auc)}). Guessing gives "
        f"50%.{noise}"
    )


def choice(summary: LookalikeSummary) -> Iterator[Html]:
    """Which ranker was taken, and by how much it won, without jargon."""
    plan, chosen = summary.campaign.plan, summary.campaign.choice
    yield paragraph(f"The released ranker scores on {_ranker(chosen.ranker)}.")
    if not plan.shares.contest:
        yield paragraph("The plan asks for this one alone, so nothing was compared and nothing chosen by data.")
        return
    yield paragraph(
        "Two rankers learnt from the seed under noise, and were compared on the seeds, which took "
        f"{plan.shares.contest}% of the campaign's budget. {_verdict(chosen)}"
    )
    yield paragraph(
        "The comparison begins with the belief, fixed in advance, that the first ranker is a little better and that "
        "rankers seldom differ by much; noisy evidence can overturn it. Looking at data to choose is itself a "
        "release: that is why it was paid for.",
        note=True,
    )


def _ranker(name: str) -> str:
    return _RANKERS.get(name, f"'{name}'")


def _verdict(chosen: RankerChoice) -> str:
    if chosen.rival is None or chosen.margin is None:
        return "The noise hid which is better, so the one that is believed better in advance was kept."
    noise = "" if chosen.margin_std is None else f" (noise \N{PLUS-MINUS SIGN}{_points(chosen.margin_std)})"
    rival = f"the one on {_ranker(chosen.rival)}"
    if chosen.margin < 0:
        led = (
            f"By the noisy figures {rival} was ahead by {_points(-chosen.margin)} points of AUC{noise}, too little to "
            "overturn the belief in the other one."
        )
    else:
        led = f"The one that was taken was ahead of {rival} by {_points(chosen.margin)} points of AUC{noise}."
    odds = (
        ""
        if chosen.probability is None
        else f" It is the better of the two with probability {percent(chosen.probability)}."
    )
    loss = (
        ""
        if chosen.regret is None
        else f" The AUC that may be lost by this choice is {_points(chosen.regret)} points on average."
    )
    return led + odds + loss


def _points(auc: float) -> str:
    """A difference of AUC in hundredths."""
    return f"{100 * auc:.2f}" if auc == 0 or abs(auc) >= 5e-5 else "less than 0.01"
