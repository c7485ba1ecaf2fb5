"""Who took part, what encoder and campaign cost each institution and each person, and everything that was released."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from cohortium.governance.report.bands import SUPPRESSED
from cohortium.governance.report.charts.gauge import privacy_gauge
from cohortium.governance.report.facts import CollusionRow
from cohortium.governance.report.lookalike_summary import CampaignCost, LookalikeSummary, Participant
from cohortium.governance.report.markup import Child, Html, figure, join, paragraph, table, tag
from cohortium.governance.report.wording import (
    epsilon_left_text,
    epsilon_text,
    label,
    percent,
    plural,
    short_delta,
)
from cohortium.privacy.accounting import budget_for
from cohortium.study.bundle import ReleaseRecord
from cohortium.study.plan import Plan

__all__ = ["campaigns_left", "participants", "price", "releases"]

_ROLES = {"seeds": "holds seeds", "audience": "receives an audience", "both": "holds seeds, receives an audience"}

_MEANINGS = {
    "marginals": "distributions of the features (histograms)",
    "row-moments": "how the features, or the encoder's outputs, vary together",
    "encoder-gradient": "one step of the encoder's training",
    "frame-sum": "mean values of the features and of the encoder's outputs",
    "seed-sum": "the seeds' number and their mean values",
    "seed-gradient": "one step in learning the ranker",
    "ranker-contest": "which ranker finds the seeds better",
    "score-curve": "seeds and others by score",
    "audience-profile": "who the audience is",
}
"""What the kinds of questions ask; an unknown one is shown by its kind."""

_SEVERAL = {
    "distributed": "with shared noise one sum moves by j contributions, and mu squared is j times j times that at one",
    "local": "with every institution's own noise the mu squared of the j institutions that spent most are added",
    "unsafe-none": "without noise there is no bound at all",
}


def participants(summary: LookalikeSummary) -> Iterator[Html]:
    """Who took part, and in which part."""
    asked = summary.institutions
    yield paragraph(
        f"{plural(len(asked), 'institution was', 'institutions were')} asked, "
        f"{sum(entry.facts.accepted for entry in asked):,} accepted the campaign, "
        f"{summary.campaign.institutions:,} answered to the end. No institution learns another's seeds: they enter "
        "noised sums alone, and every institution scores its own customers in its own house."
    )
    rows = [
        (
            entry.facts.name,
            _ROLES[entry.role],
            "accepted" if entry.facts.accepted else "declined",
            _exported(entry),
        )
        for entry in asked
    ]
    yield table("Institutions", ("Institution", "Part", "Campaign", "People exported"), rows, numeric=(3,))
    yield paragraph(
        "Parts and exports are known in a simulation alone; in a deployment each institution knows its own. Exported "
        "rows never leave it through the federation. Exports are shown as bands of exact counts, without noise.",
        note=True,
    )


def _exported(entry: Participant) -> str:
    if not entry.exports:
        return "none"
    return SUPPRESSED if entry.exported is None else str(entry.exported.band)


def price(summary: LookalikeSummary) -> Iterator[Html]:
    """What was paid, what is left, and what it costs a person at several institutions."""
    plan = summary.campaign.plan
    if plan.trust == "unsafe-none":
        yield paragraph("The campaign added no noise: nothing was charged, and there is no bound on anybody's loss.")
        return
    yield paragraph(
        "The encoder is paid once and serves every campaign; each campaign is paid anew. What is spent never comes "
        f"back. {campaigns_left(summary)}"
    )
    yield _institutions(summary)
    yield _gauge(summary)
    yield _persons(summary)
    yield from _collusion(summary)


def campaigns_left(summary: LookalikeSummary) -> str:
    """What is left, in campaigns like this one."""
    left = [entry.facts.runs_left for entry in summary.institutions if entry.facts.accepted]
    known = [count for count in left if count is not None]
    if not known:
        return "How many more campaigns like this one can be paid for is not known: this one cost nothing."
    least, most = min(known), max(known)
    if least == most:
        more = plural(least, "more campaign")
        return f"What is left of every institution's lifetime budget pays for {more} like this one."
    return (
        f"What is left of the lifetime budgets pays for {least:,} to {most:,} more campaigns like this one, depending "
        "on the institution."
    )


def _institutions(summary: LookalikeSummary) -> Html:
    heads = (
        "Institution",
        "Encoder, once",
        "This campaign",
        "Spent in all",
        "Lifetime budget",
        "Left",
        "Campaigns left",
    )
    rows = [
        (
            entry.facts.name,
            epsilon_text(entry.encoder_epsilon),
            epsilon_text(entry.facts.epsilon),
            epsilon_text(entry.facts.lifetime_used),
            epsilon_text(entry.facts.lifetime_epsilon),
            epsilon_left_text(entry.facts.lifetime_left),
            "not known" if entry.facts.runs_left is None else f"{entry.facts.runs_left:,}",
        )
        for entry in summary.institutions
    ]
    return table("Privacy loss (epsilon) per person, by institution", heads, rows, numeric=tuple(range(1, 7)))


def _gauge(summary: LookalikeSummary) -> Html:
    plan = summary.campaign.plan
    return figure(
        privacy_gauge([entry.facts for entry in summary.institutions], budget_for(plan.epsilon, plan.delta)),
        join(
            (
                tag("span", class_="key used"),
                " spent before, on the encoder and on other plans ",
                tag("span", class_="key spent"),
                " spent on this campaign ",
                tag("span", class_="key budget"),
                " left ",
                tag("span", class_="key limit"),
                f" limit of this campaign (epsilon {plan.epsilon:g}). Each bar is the institution's lifetime budget in "
                "mu squared, which adds up where epsilon does not.",
            )
        ),
    )


def _persons(summary: LookalikeSummary) -> Html:
    encoder, campaign = summary.encoder.plan, summary.campaign.plan
    most = summary.costs[-1].institutions
    several = (
        f"Encoder and campaign: {_SEVERAL[campaign.trust]}."
        if encoder.trust == campaign.trust
        else f"Encoder: {_SEVERAL[encoder.trust]}. Campaign: {_SEVERAL[campaign.trust]}."
    )
    return join(
        (
            table(
                f"Privacy loss of a customer of several institutions, at delta {short_delta(campaign.delta)}",
                ("A customer of", "Encoder, once", "This campaign", "Both", "Both (cross-check)"),
                [_person(row, most) for row in summary.costs],
                numeric=(1, 2, 3, 4),
            ),
            paragraph(
                f"Epsilons do not add up; mu squared does. {several} The cross-check comes from an independent code "
                f"path, the privacy loss distribution. The encoder's column is at its own delta "
                f"{short_delta(encoder.delta)}.",
                note=True,
            ),
        )
    )


def _person(row: CampaignCost, most: int) -> tuple[str, ...]:
    every = " (all)" if row.institutions == most > 1 else ""
    costs = (row.encoder, row.campaign, row.both, row.both_pld)
    return (plural(row.institutions, "institution") + every, *map(epsilon_text, costs))


def _collusion(summary: LookalikeSummary) -> Iterator[Html]:
    """What the guarantees are worth when more collude than the plans tolerate."""
    rows = [
        *_colluding("encoder", summary.encoder_collusion, summary.encoder.plan),
        *_colluding("campaign", summary.collusion, summary.campaign.plan),
    ]
    if rows:
        yield table(
            "Privacy loss of a customer of one institution if institutions collude with the coordinator",
            ("Colluding", "Plan", "Honest shares of noise left", "Epsilon (ledger)"),
            rows,
            numeric=(2, 3),
        )


def _colluding(name: str, rows: Sequence[CollusionRow], plan: Plan) -> Iterator[tuple[str, ...]]:
    for row in rows:
        assumed = " (assumed)" if row.colluders == plan.colluders else ""
        yield plural(row.colluders, "institution") + assumed, name, f"{row.shares:,}", epsilon_text(row.epsilon)


def releases(summary: LookalikeSummary) -> Iterator[Html]:
    """Every question of encoder and campaign, by phase, and its share of its plan's budget."""
    yield paragraph(
        "Nothing else about customers entered this report, apart from what is marked as possible only in a simulation. "
        "Everything after these sums is arithmetic on noised numbers and costs nothing. The models' documents name "
        "every question by its digest."
    )
    heads = ("Phase", "What was asked", "Questions", "Numbers each", "Answers", "Of the plan's budget")
    for title, document in (("Encoder, once", summary.encoder), ("Campaign", summary.campaign)):
        budget = budget_for(document.plan.epsilon, document.plan.delta).mu2
        phases = groupby(document.releases, key=lambda record: (record.phase, record.kind))
        rows = [_phase(phase, kind, list(records), budget) for (phase, kind), records in phases]
        yield table(f"{title}: releases in order", heads, rows, numeric=(2, 3, 4, 5), class_="data roomy")
    yield paragraph(
        "A question with 0 answers was an attempt that came to nothing; it was paid for all the same.", note=True
    )


def _phase(phase: str, kind: str, records: Sequence[ReleaseRecord], budget: int) -> tuple[Child, ...]:
    return (
        label(phase).replace("-", " "),
        _MEANINGS.get(kind, kind),
        f"{len(records):,}",
        _span([record.width for record in records]),
        _span([record.institutions for record in records]),
        percent(sum(record.mu2 for record in records) / budget),
    )


def _span(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
