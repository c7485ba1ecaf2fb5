"""The reports: self-contained HTML pages. They load nothing, run nothing and phone nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import resources

from cohortium.governance.report.fairness_page import FairnessPage
from cohortium.governance.report.governance_summary import GovernanceSummary
from cohortium.governance.report.lookalike_summary import LookalikeSummary
from cohortium.governance.report.markup import Html, section, tag
from cohortium.governance.report.sections.closing import comparison, footer, glossary, limits
from cohortium.governance.report.sections.fairness import metrics, policy, reading, unknown
from cohortium.governance.report.sections.fairness.header import fairness_header
from cohortium.governance.report.sections.governance import governance_section
from cohortium.governance.report.sections.header import header, navigation
from cohortium.governance.report.sections.institutions import institutions
from cohortium.governance.report.sections.lookalike import audience, budget, closing, quality, reach
from cohortium.governance.report.sections.lookalike.fragment import lookalike_section
from cohortium.governance.report.sections.lookalike.header import lookalike_header
from cohortium.governance.report.sections.privacy import left_out, privacy_account, releases
from cohortium.governance.report.sections.rfm import rfm_grid
from cohortium.governance.report.sections.run import what_ran
from cohortium.governance.report.sections.segments import choice_of_k, profiles, rules, segments
from cohortium.governance.report.summary import RunSummary

__all__ = [
    "FAIRNESS_SECTIONS",
    "LOOKALIKE_SECTIONS",
    "SECTIONS",
    "render_fairness_report",
    "render_lookalike_report",
    "render_report",
]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The page may load nothing at all; its one style sheet stands in it."""

SECTIONS: tuple[tuple[str, str, Callable[[RunSummary], Html]], ...] = (
    ("plan", "What ran", what_ran),
    ("institutions", "Institutions", institutions),
    ("segments", "Segments", segments),
    ("profiles", "Profiles", profiles),
    ("rules", "Rules", rules),
    ("rfm", "RFM grid", rfm_grid),
    ("k", "Number of segments", choice_of_k),
    ("privacy", "Privacy account", privacy_account),
    ("releases", "Releases", releases),
    ("left-out", "Left out", left_out),
    ("comparison", "Comparison", comparison),
    ("limits", "Limits", limits),
    ("glossary", "Glossary", lambda _: glossary()),
)
"""(anchor, short title, what draws it), in order."""

LOOKALIKE_SECTIONS: tuple[tuple[str, str, str, Callable[[LookalikeSummary], Iterator[Html]]], ...] = (
    ("reach", "Reach", "Reach and dilution", reach.reach),
    ("quality", "Quality", "How well seeds are found", quality.quality),
    ("audience", "Audience", "Who the audience is", audience.audience),
    ("ranker", "Ranker", "Which ranker won", quality.choice),
    ("institutions", "Institutions", "Institutions", budget.participants),
    ("privacy", "Privacy account", "Privacy account", budget.price),
    ("releases", "Releases", "Everything that was released", budget.releases),
    ("truth", "Truth", "Compared with the truth", closing.truth),
    ("limits", "Limits", "What this does not say", closing.limits),
    ("glossary", "Glossary", "Glossary", closing.glossary),
)
"""(anchor, short title, title, what draws its content), in order."""

FAIRNESS_SECTIONS: tuple[tuple[str, str, str, Callable[[FairnessPage], Iterator[Html]]], ...] = (
    ("judged", "Judged", "What is judged", metrics.judged),
    ("not-judged", "Not judged", "What could not be judged, and why", unknown.not_judged),
    ("reversals", "Reversals", "Directions that differ by institution", unknown.reversals),
    ("described", "Described", "What is described", metrics.described),
    ("policy", "Rules", "What the rules say", policy.policy),
    ("thresholds", "Limits", "Limits of the audit, and where they come from", policy.thresholds),
    ("reviews", "Review", "How reviewers stand", policy.reviews),
    ("mitigations", "Mitigations", "What can be asked for", policy.mitigations),
    ("reading", "How to read", "How to read this page", reading.reading),
    ("does-not-say", "What it does not say", "What this page does not say", reading.limits),
)
"""(anchor, short title, title, what draws its content), in order."""

_OF_PROTECTED_RUNS = ("institutions", "privacy", "releases")
"""Sections that a run without noise has nothing to say in: nobody approved it, nothing was paid."""

_LIMITS = "limits"
"""The section that says what governance does not prove; governance stands before it."""

_BEFORE_LOOKALIKE = "k"
"""The last of the sections about segments."""

_Drawn = tuple[str, str, Html]
"""Anchor, short title and a section."""


def render_report(
    summary: RunSummary, lookalike: LookalikeSummary | None = None, governance: GovernanceSummary | None = None
) -> str:
    """The whole page. The same summary gives the same bytes.

    Formal guarantee: every text of the summary is escaped, sizes appear as bands only, whatever is suppressed appears
    as the word, and the page refers to nothing outside itself, but for links to the pages of bias audits beside it.

    Args:
        summary: of the segments.
        lookalike: of a campaign, whose section then follows the segments'.
        governance: rules, decisions, logs, review, audits and evidence, whose section then stands before the limits.
    """
    return _page(
        f"cohortium: {summary.bundle.plan.name}",
        "segments",
        header(summary),
        list(_sections(summary, lookalike, governance)),
        footer(summary),
    )


def render_lookalike_report(summary: LookalikeSummary) -> str:
    """The whole page of a lookalike campaign, under the same guarantee as `render_report`."""
    unprotected = summary.campaign.plan.trust == "unsafe-none"
    return _page(
        f"cohortium: {summary.campaign.plan.name}",
        "reach",
        lookalike_header(summary),
        [
            (anchor, short, section(anchor, title, *draw(summary)))
            for anchor, short, title, draw in LOOKALIKE_SECTIONS
            if not (unprotected and anchor in _OF_PROTECTED_RUNS)
        ],
        closing.lookalike_footer(summary),
    )


def render_fairness_report(page: FairnessPage) -> str:
    """The whole page of a bias audit, under the same guarantee as `render_report`; no value of a rule's fact is on it.

    The page shows mitigations only where there are any.
    """
    return _page(
        f"cohortium bias audit: {page.name}",
        "judged",
        fairness_header(page),
        [
            (anchor, short, section(anchor, title, *draw(page)))
            for anchor, short, title, draw in FAIRNESS_SECTIONS
            if page.mitigations or anchor != "mitigations"
        ],
        reading.fairness_footer(page),
    )


def _sections(
    summary: RunSummary, lookalike: LookalikeSummary | None, governance: GovernanceSummary | None
) -> Iterator[_Drawn]:
    unprotected = summary.bundle.plan.trust == "unsafe-none"
    for anchor, title, draw in SECTIONS:
        if governance is not None and anchor == _LIMITS:
            yield "governance", "Governance", governance_section(governance)
            yield anchor, title, limits(summary, governance)
        elif not (unprotected and anchor in _OF_PROTECTED_RUNS):
            yield anchor, title, draw(summary)
        if lookalike is not None and anchor == _BEFORE_LOOKALIKE:
            yield "lookalike", "Lookalike", lookalike_section(lookalike)


def _page(title: str, results: str, head: Html, drawn: Sequence[_Drawn], foot: Html) -> str:
    """A page whose first link skips to the section `results`."""
    page = tag(
        "html",
        tag("head", *_head(title)),
        tag(
            "body",
            tag("a", "Skip to the results", href=f"#{results}", class_="skip"),
            head,
            navigation([(anchor, short) for anchor, short, _ in drawn]),
            tag("main", *(drawing for _, _, drawing in drawn)),
            foot,
        ),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{page}\n"


def _head(title: str) -> tuple[Html, ...]:
    style = resources.files("cohortium.governance.report").joinpath("report.css").read_text(encoding="utf-8")
    return (
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(style)),
    )
