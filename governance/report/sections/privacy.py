"""The privacy account: gauge, people at several institutions, every release, what was left out."""

from __future__ import annotations

from collections.abc import Iterable

from cohortium.governance.report.charts.gauge import privacy_gauge
from cohortium.governance.report.markup import Child, Html, figure, items, join, paragraph, section, table, tag
from cohortium.governance.report.summary import LeftOut, PersonAt, RunSummary
from cohortium.governance.report.wording import delta_text, epsilon_text, label, percent, plural, short_delta, spread
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.query import SCALE
from cohortium.study.bundle import ReleaseRecord

__all__ = ["left_out", "privacy_account", "releases"]

_MEANINGS = {
    "marginals": "distributions of the features (histograms)",
    "moments": "means and covariances of the scaled features",
    "cells": "counts, means and covariances in cells of the scaled space",
    "lloyd": "counts and means around provisional centres",
    "profiles": "sizes and feature means of the segments",
    "rfm": "people in every cell of the RFM grid",
}
"""What the phases of a plan ask; an unknown one is shown by its kind."""


def privacy_account(summary: RunSummary) -> Html:
    """Gauge and the table for people at several institutions."""
    plan = summary.bundle.plan
    return section(
        "privacy",
        "Privacy account",
        paragraph(
            "Epsilon bounds how much more likely any conclusion about a person becomes because their data were in: at "
            f"most by the factor e to the power of epsilon, except with probability delta, {delta_text(plan.delta)}. "
            f"Smaller is better. It holds whatever anybody else knows{_CONDITION[plan.trust]}."
        ),
        figure(
            privacy_gauge(summary.institutions, budget_for(plan.epsilon, plan.delta)),
            join(
                (
                    tag("span", class_="key used"),
                    " spent by earlier plans ",
                    tag("span", class_="key spent"),
                    " spent on this plan ",
                    tag("span", class_="key budget"),
                    " left ",
                    tag("span", class_="key limit"),
                    f" limit of this plan (epsilon {plan.epsilon:g}). Each bar is the institution's lifetime budget in "
                    "mu squared, which adds up where epsilon does not.",
                )
            ),
        ),
        _person_table(summary),
        paragraph(
            f"Epsilons do not add up; mu squared does. {_SEVERAL[plan.trust]} The second number comes from an "
            "independent code path, the privacy loss distribution; no refusal ever relies on it.",
            note=True,
        ),
        *_collusion(summary),
    )


_CONDITION = {
    "distributed": ", as long as the secure sum holds and no more institutions collude than the plan tolerates",
    "local": "",
    "unsafe-none": "",
}

_SEVERAL = {
    "distributed": "At j institutions one sum moves by j contributions, and a person's mu squared is j times j times "
    "that at one (trust model distributed).",
    "local": "At j institutions a person's mu squared is the sum of theirs, because every institution draws its own "
    "noise (trust model local). Rows take the j institutions that spent most.",
    "unsafe-none": "Without noise there is no bound at all.",
}


def _collusion(summary: RunSummary) -> tuple[Html, ...]:
    """What the guarantee is worth when the trust model's assumption fails."""
    if not summary.collusion:
        return ()
    plan = summary.bundle.plan
    rows = [
        (
            plural(row.colluders, "institution") + (" (assumed)" if row.colluders == plan.colluders else ""),
            f"{row.shares:,}",
            epsilon_text(row.epsilon),
        )
        for row in summary.collusion
    ]
    return (
        table(
            "Privacy loss of a customer of one institution if institutions collude with the coordinator",
            ("Colluding", "Honest shares of noise left", "Epsilon (ledger)"),
            rows,
            numeric=(1, 2),
        ),
        paragraph(
            f"The plan counts on at most {plan.colluders} colluding. If more do, an institution's own share of the "
            "noise still protects its customers: the last row is the worst. If fewer than "
            f"{plan.min_institutions} institutions answer, nothing is unmasked; whoever answered has been charged all "
            "the same.",
            note=True,
        ),
    )


def _person_table(summary: RunSummary) -> Html:
    answered = summary.person_at[-1].institutions
    return table(
        f"Privacy loss of a customer of several institutions, at delta {short_delta(summary.bundle.plan.delta)}",
        ("A customer of", "Epsilon (ledger)", "Epsilon (cross-check)"),
        [_person_row(row, answered) for row in summary.person_at],
        numeric=(1, 2),
    )


def _person_row(row: PersonAt, answered: int) -> tuple[str, ...]:
    every = " (all)" if row.institutions == answered > 1 else ""
    return plural(row.institutions, "institution") + every, epsilon_text(row.epsilon), epsilon_text(row.epsilon_pld)


def releases(summary: RunSummary) -> Html:
    """Every question, what it was, its noise and its share of the plan's budget."""
    bundle = summary.bundle
    budget = budget_for(bundle.plan.epsilon, bundle.plan.delta).mu2
    spent = sum(release.mu2 for release in bundle.releases)
    plan = bundle.plan
    shares = plan.min_institutions - plan.colluders if plan.trust == "distributed" else 1
    rows = [_release_row(number, release, budget, shares) for number, release in enumerate(bundle.releases, start=1)]
    return section(
        "releases",
        "Everything that was released",
        paragraph(
            f"{plural(len(rows), 'question')} went to every institution; together they cost each "
            f"{percent(spent / budget)} of the plan's budget (in mu squared, which adds up). "
            "Nothing else about customers entered the results above."
        ),
        table(
            "Releases in order",
            ("Step", "What was asked", "Numbers", "Answers", "Noise each", "Noise in sum", "Of budget", "Question"),
            rows,
            numeric=(2, 3, 4, 5, 6),
            class_="data roomy",
        ),
        paragraph(
            "Noise is the standard deviation of the discrete Gaussian noise in every number: what each institution "
            "adds, and what the sum over institutions carries. 1 is the weight of a person in one bar of a histogram. "
            "A question with 0 answers was an attempt that came to nothing; it was paid for all the same.",
            note=True,
        ),
    )


def _release_row(number: int, release: ReleaseRecord, budget: int, shares: int) -> tuple[Child, ...]:
    attempt = f", attempt {release.attempt}" if release.attempt > 1 else ""
    noise, divisor = int(release.sigma) / SCALE, shares**0.5
    return (
        f"{number}. {label(release.phase)}, step {release.step + 1}{attempt}",
        _MEANINGS.get(release.phase, release.kind),
        f"{release.width:,}",
        f"{release.institutions:,}",
        spread(noise / divisor),
        spread(noise / divisor * release.institutions**0.5),
        percent(release.mu2 / budget),
        tag("code", release.question.removeprefix("sha256:")[:12]),
    )


def left_out(summary: RunSummary) -> Html:
    """What is not in the results, and why."""
    listed = items(_reasons(summary))
    return section("left-out", "What was left out, and why", listed, _onboarding(summary.left_out))


def _reasons(summary: RunSummary) -> Iterable[Child]:
    bundle, plan = summary.bundle, summary.bundle.plan
    declined = [facts.name for facts in summary.institutions if not facts.accepted]
    small = sum(segment.suppressed for segment in bundle.segments)
    cells = sum(cell.size is None for cell in bundle.rfm.cells) if bundle.rfm else 0
    protected = [label(feature.name) for feature in summary.contract.features if feature.protected]
    used = {axis.feature for axis in bundle.scaler}
    idle = [label(f.name) for f in summary.contract.features if not f.protected and f.name not in used]
    reason = f"fewer than {plan.min_cell:,} people by the noisy count"
    if plan.shares.profiles:
        yield f"{plural(small, 'segment')} suppressed: {reason}." if small else "No segment was suppressed."
    else:
        yield "Sizes and profiles of the segments: the plan gives them no share of the budget."
    if bundle.rfm:
        yield f"{plural(cells, 'RFM cell')} suppressed: {reason}." if cells else "No RFM cell was suppressed."
    if declined:
        yield f"Customers of institutions that declined the plan: {', '.join(declined)}. Their reasons stay with them."
    if protected:
        yield f"Protected features, kept for fairness audits and in no distance: {', '.join(protected)}."
    if idle:
        yield f"Features of the contract that no distance uses: {', '.join(idle)}."


def _onboarding(entries: tuple[LeftOut, ...]) -> Html:
    if not entries:
        return Html()
    heads = ("Institution", "Lines", "Unused", "Repeated (kept)", "Bad cells", "Clipped values", "Unknown values")
    return join(
        (
            table(
                "Onboarding counts: exact, possible only in simulation; in a deployment they stay at the institution",
                heads,
                [_counts(entry) for entry in entries],
                numeric=tuple(range(1, len(heads))),
            ),
            paragraph(
                "Unused: outside the window, unusable, or of people outside the customer set. Clipped: outside the "
                "contract's public bounds and set to the bound. Unknown: missing or not listed, filled with the "
                "contract's public value.",
                note=True,
            ),
        )
    )


def _counts(entry: LeftOut) -> tuple[str, ...]:
    duplicates = "not counted" if entry.duplicates is None else f"{entry.duplicates:,}"
    others = (entry.bad_cells, entry.clipped, entry.unknown)
    return (entry.institution, f"{entry.lines:,}", f"{entry.unused:,}", duplicates, *(f"{n:,}" for n in others))
