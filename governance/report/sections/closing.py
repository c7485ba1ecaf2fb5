"""What only a simulation can show, what the report does not prove, the words it uses, and its imprint."""

from __future__ import annotations

from collections.abc import Iterator

from cohortium.governance.report.governance_summary import GovernanceSummary
from cohortium.governance.report.markup import Html, definitions, items, paragraph, section, table, tag
from cohortium.governance.report.sections.governance import governance_limits
from cohortium.governance.report.summary import SIMULATION_NOTE, Comparison, RunSummary
from cohortium.governance.report.wording import epsilon_text, moment

__all__ = ["comparison", "footer", "glossary", "limits"]

_GLOSSARY = (
    ("Bundle", "Everything a run makes known, as one document with a digest."),
    ("Centre", "The middle of a segment in the scaled space; a customer belongs to the nearest one."),
    ("Delta", "The small probability with which the bound epsilon may fail."),
    ("Digest", "A fingerprint (SHA-256) of a document; any change gives another."),
    ("Epsilon", "The bound on the privacy loss of one person; smaller is better."),
    ("Feature contract", "What the institutions agreed that a customer's row means, with public bounds."),
    ("Frequency", "Number of distinct baskets, or of purchase days where the table names no baskets."),
    ("Ledger", "An institution's durable account of every release it paid for, for life."),
    ("Monetary", "Sum of the amounts in the window."),
    ("mu squared", "The additive currency behind epsilon (Gaussian differential privacy)."),
    ("Noisy", "With discrete Gaussian noise added before the number left the institution."),
    ("Recency", "Days from the last purchase to the end of the window."),
    ("Suppressed", "Below the smallest cell by the noisy count; not shown, and not the same as empty."),
)


def comparison(summary: RunSummary) -> Html:
    """Against non-private clustering; it says so when that was not computed."""
    title = "Compared with clustering without privacy"
    if summary.comparison is None:
        return section("comparison", title, paragraph("Not computed in this run."))
    return section("comparison", title, *_compared(summary.comparison, summary.bundle.plan.trust == "unsafe-none"))


def _compared(found: Comparison, unprotected: bool) -> Iterator[Html]:
    yield tag("p", tag("strong", f"{SIMULATION_NOTE.capitalize()}. "), _verdict(found), class_="banner")
    rows = [
        ("All customers in one place, without privacy", "1.000"),
        (f"This run (federated{'' if unprotected else ', private'})", f"{found.federated_ratio:.3f}"),
        *((f"{name} alone, without privacy", f"{ratio:.3f}") for name, ratio in found.alone_ratios),
    ]
    yield table(
        "Cost as a multiple of the central one (lower is better)",
        ("Segments found by", "Cost ratio"),
        rows,
        numeric=(1,),
    )
    yield paragraph(
        "Cost is the mean squared distance of all institutions' customers to the nearest centre, in the scaled space. "
        f"Central cost: {found.central_cost:.4g}. Central k-means is a heuristic too: ratios a little below 1 occur.",
        note=True,
    )


def _verdict(found: Comparison) -> str:
    ratio = f"The federated segments cost {found.federated_ratio:.3f} times the central, non-private ones."
    if not found.alone:
        return ratio
    worse = sum(alone > found.federated_ratio for _, alone in found.alone_ratios)
    return f"{ratio} {worse} of {len(found.alone)} institutions would have done worse alone."


def limits(summary: RunSummary, governance: GovernanceSummary | None = None) -> Html:
    """What this report does not prove."""
    return section("limits", "What this does not prove", items(_limits(summary, governance)))


def _limits(summary: RunSummary, governance: GovernanceSummary | None) -> Iterator[str]:
    last = summary.person_at[-1]
    yield "Nothing about a deployment: in a simulation one machine sees every institution's data."
    if governance is None:
        yield (
            "That consent was checked, a rule evaluated, a log witnessed, or that anybody signed: this report is "
            "without a section about governance and shows nothing of it."
        )
    else:
        yield from governance_limits(governance)
    plan = summary.bundle.plan
    if plan.trust == "distributed":
        yield (
            f"That no more than {plan.colluders} of the institutions collude, or that the secure sum's cryptography "
            "holds: epsilon rests on both. The table under Privacy account says what it is otherwise."
        )
    yield "That the lawful basis holds or the purpose is fair: the plan states both. This report is no legal advice."
    if governance is None or not governance.audits:
        yield "That segments treat groups of people fairly: no fairness audit ran."
    if last.institutions > 1:
        yield (
            "That a person at several institutions is as well protected as one at a single institution: at all "
            f"{last.institutions} the bound is {epsilon_text(last.epsilon)}."
        )
    yield "That ids are people: somebody with two ids at one institution is protected as two people would be."
    yield "That an institution told the truth about its own customers: only the influence of each person is bounded."
    yield "That intervals cover more than the noise: sampling error and clipping are not in them."
    yield "That segments are useful for a decision, or stay the same at the next run."
    yield "That the code is free of errors: the bound is mathematics about the mechanism; no attack tested this run."


def glossary() -> Html:
    """The words of the report."""
    return section("glossary", "Glossary", definitions(_GLOSSARY))


def footer(summary: RunSummary) -> Html:
    """Versions, digests, schemas."""
    return tag(
        "footer",
        paragraph(
            f"cohortium {summary.version}. Schemas: {summary.schema_id}, {summary.bundle.schema_id}, "
            f"{summary.bundle.plan.schema_id}. Finished {moment(summary.finished)}."
        ),
        paragraph("Bundle ", tag("code", summary.bundle.digest)),
        paragraph("Plan ", tag("code", summary.bundle.plan.digest)),
        paragraph("Contract ", tag("code", summary.contract.digest)),
    )
