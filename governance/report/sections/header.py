"""The head of the report: one sentence, and what kind of run this was."""

from __future__ import annotations

import math

from cohortium.governance.report.bands import size_limits
from cohortium.governance.report.markup import Html, join, paragraph, tag
from cohortium.governance.report.summary import RunSummary
from cohortium.governance.report.wording import delta_text, duration, epsilon_text, moment, percent, plural, short_delta

__all__ = ["header", "navigation"]


def header(summary: RunSummary) -> Html:
    """Title, the result in one sentence, the simulation mark, key facts."""
    plan = summary.bundle.plan
    return tag(
        "header",
        tag("p", "cohortium run report", class_="kicker"),
        tag("h1", plan.name),
        tag("p", _result(summary), class_="lead"),
        tag(
            "p",
            tag("strong", "Simulation. "),
            f"All institutions ran on one machine on the data set {summary.dataset.name} ({summary.dataset.note}). "
            "This report is no evidence of a deployment.",
            class_="banner",
        ),
        *_unprotected(summary),
        _facts(summary),
    )


def _unprotected(summary: RunSummary) -> tuple[Html, ...]:
    if summary.bundle.plan.trust != "unsafe-none":
        return ()
    warning = tag("strong", "NO PRIVACY. ")
    return (
        tag(
            "p",
            warning,
            "This run added no noise. Every number below may reveal single customers. It is a baseline for "
            "a simulation: no institution approved it, and no node answers such a plan.",
            class_="banner",
        ),
    )


def navigation(sections: list[tuple[str, str]]) -> Html:
    """Links to the sections, (anchor, title) each."""
    return tag("nav", *(tag("a", title, href=f"#{anchor}") for anchor, title in sections), aria_label="Sections")


def _result(summary: RunSummary) -> str:
    bundle = summary.bundle
    measured = bundle.plan.shares.profiles > 0
    shown = sum(not (measured and segment.suppressed) for segment in bundle.segments)
    dropped = len(bundle.segments) - shown
    also = f" ({dropped} more suppressed: too few people)" if dropped and shown else ""
    found = f"{plural(shown, 'customer segment')}{also}" if shown else "no customer segment large enough to be shown"
    together = "found" if bundle.institutions == 1 else "together found"
    protection = _protection(summary)
    return f"{plural(bundle.institutions, 'institution')} {together} {found}{_people(summary)}, {protection}"


def _people(summary: RunSummary) -> str:
    bundle = summary.bundle
    noise = math.sqrt(sum(segment.size_std**2 for segment in bundle.segments))
    band = size_limits(bundle.customers, noise) if bundle.plan.shares.profiles else None
    return "" if band is None else f" among {band} customers"


def _protection(summary: RunSummary) -> str:
    plan = summary.bundle.plan
    if plan.trust == "unsafe-none":
        return "WITHOUT any protection of privacy: no noise was added."
    epsilon = summary.person_at[0].epsilon
    if epsilon is None:
        return "and no useful privacy bound holds at the plan's delta."
    bound = f"epsilon {epsilon_text(epsilon)} (delta {short_delta(plan.delta)})"
    return f"at a privacy loss of at most {bound} per person and institution."


def _facts(summary: RunSummary) -> Html:
    bundle, plan = summary.bundle, summary.bundle.plan
    explained = "hidden by the noise" if bundle.explained is None else f"about {percent(bundle.explained)}"
    facts = (
        ("Privacy budget of the plan", "NONE" if plan.trust == "unsafe-none" else f"epsilon {plan.epsilon:g}"),
        ("Smallest cell shown", f"{plan.min_cell:,} people"),
        ("Variance explained", explained),
        ("Run time", duration((summary.finished - summary.started).total_seconds())),
    )
    tiles = (tag("div", tag("dt", term), tag("dd", value)) for term, value in facts)
    return join(
        (
            tag("dl", *tiles, class_="tiles"),
            paragraph(
                f"Delta {delta_text(plan.delta)}. Run {bundle.run}, {moment(summary.started)} to "
                f"{moment(summary.finished)}.",
                note=True,
            ),
        )
    )
