"""Who took part and what it cost each."""

from __future__ import annotations

from cohortium.governance.report.markup import Html, paragraph, section, table
from cohortium.governance.report.summary import InstitutionFacts, RunSummary
from cohortium.governance.report.wording import epsilon_left_text, epsilon_text, plural, short_delta

__all__ = ["institutions"]


def institutions(summary: RunSummary) -> Html:
    """The section."""
    bundle = summary.bundle
    asked = len(summary.institutions)
    return section(
        "institutions",
        "Institutions",
        paragraph(
            f"{plural(asked, 'institution was', 'institutions were')} asked, "
            f"{sum(facts.accepted for facts in summary.institutions):,} accepted the plan, "
            f"{bundle.institutions:,} answered to the end. Privacy loss is per person, at delta "
            f"{short_delta(bundle.plan.delta)}; what is spent never comes back. Runs left: how many more runs at "
            "the price of this one the lifetime budget pays for."
        ),
        table(
            "Institutions and their privacy loss (epsilon)",
            (
                "Institution",
                "Plan",
                "Spent on this plan",
                "Spent in all",
                "Lifetime budget",
                "Left",
                "Runs left",
            ),
            [_row(facts) for facts in summary.institutions],
            numeric=(2, 3, 4, 5, 6),
        ),
    )


def _row(facts: InstitutionFacts) -> tuple[str, ...]:
    return (
        facts.name,
        "accepted" if facts.accepted else "declined",
        epsilon_text(facts.epsilon),
        epsilon_text(facts.lifetime_used),
        epsilon_text(facts.lifetime_epsilon),
        epsilon_left_text(facts.lifetime_left),
        "not known" if facts.runs_left is None else f"{facts.runs_left:,}",
    )
