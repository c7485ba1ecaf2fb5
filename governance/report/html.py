"""The report: one self-contained HTML page. It loads nothing, runs nothing and phones nobody."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

from cohortium.governance.report.markup import Html, tag
from cohortium.governance.report.sections.closing import comparison, footer, glossary, limits
from cohortium.governance.report.sections.header import header, navigation
from cohortium.governance.report.sections.institutions import institutions
from cohortium.governance.report.sections.privacy import left_out, privacy_account, releases
from cohortium.governance.report.sections.rfm import rfm_grid
from cohortium.governance.report.sections.run import what_ran
from cohortium.governance.report.sections.segments import choice_of_k, profiles, rules, segments
from cohortium.governance.report.summary import RunSummary

__all__ = ["SECTIONS", "render_report"]

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

_OF_PROTECTED_RUNS = ("institutions", "privacy", "releases")
"""Sections that a run without noise has nothing to say in: nobody approved it, nothing was paid."""


def render_report(summary: RunSummary) -> str:
    """The whole page. The same summary gives the same bytes.

    Formal guarantee: every text of the summary is escaped, sizes appear as bands only, whatever is suppressed appears
    as the word, and the page refers to nothing outside itself.
    """
    unprotected = summary.bundle.plan.trust == "unsafe-none"
    drawn = [entry for entry in SECTIONS if not (unprotected and entry[0] in _OF_PROTECTED_RUNS)]
    page = tag(
        "html",
        tag("head", *_head(summary)),
        tag(
            "body",
            tag("a", "Skip to the results", href="#segments", class_="skip"),
            header(summary),
            navigation([(anchor, title) for anchor, title, _ in drawn]),
            tag("main", *(draw(summary) for _, _, draw in drawn)),
            footer(summary),
        ),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{page}\n"


def _head(summary: RunSummary) -> tuple[Html, ...]:
    style = resources.files("cohortium.governance.report").joinpath("report.css").read_text(encoding="utf-8")
    return (
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"cohortium: {summary.bundle.plan.name}"),
        tag("style", Html(style)),
    )
