"""What only a simulation can show, what the report does not say, its words, and its imprint."""

from __future__ import annotations

from collections.abc import Iterator

from cohortium.governance.report.lookalike_summary import HeldOut, LookalikeSummary
from cohortium.governance.report.markup import Html, definitions, items, paragraph, table, tag
from cohortium.governance.report.summary import SIMULATION_NOTE
from cohortium.governance.report.wording import epsilon_text, moment, percent
from cohortium.models.validation import LIFT_AT, RECALL_AT

__all__ = ["glossary", "limits", "lookalike_footer", "truth"]

_GLOSSARY = (
    ("Audience", "Everybody eligible whose score is at least the cut-off of a level."),
    ("AUC", "How often a customer of the seed scores above another person; 50% is guessing."),
    ("Campaign", "One search for people like a seed; each is a plan of its own, approved and paid for anew."),
    ("Cut-off", "The least score of an audience."),
    ("Delta", "The small probability with which the bound epsilon may fail."),
    ("Eligible", "People who could be reached: customers who are no seeds."),
    ("Embedding", "The encoder's short summary of a customer's features."),
    ("Encoder", "A model of what customers look like, trained once without any seed, on which campaigns stand."),
    ("Epsilon", "The bound on the privacy loss of one person; smaller is better."),
    ("Index", "A share in the audience over the share among the eligible, times 100."),
    ("Lift", "How much commoner seeds are in a group than among all; 1 is chance."),
    ("mu squared", "The additive currency behind epsilon (Gaussian differential privacy)."),
    ("Noisy", "With discrete Gaussian noise added before the number left the institution."),
    ("Ranker", "What gives everybody a score for being like the seed."),
    ("Reach", "How many people an audience holds."),
    ("Recall", "The share of the seeds that score at least the cut-off."),
    ("Relevance", "The share of seeds in a group if seeds and others were equally many; 50% is chance."),
    ("Seed", "Customers whom their institution values and who give the pattern."),
    ("Suppressed", "Below the smallest cell by the noisy count; not shown, and not the same as empty."),
)


def truth(summary: LookalikeSummary) -> Iterator[Html]:
    """The true quality among people who are no seeds; it says so when that was not computed."""
    found = summary.truth
    if found is None:
        yield paragraph("Not computed in this run. A deployment can never compute it.")
        return
    yield tag(
        "p",
        tag("strong", f"{SIMULATION_NOTE.capitalize()}. "),
        f"The simulation knows who is truly like the seed: {found.concept}. The figures are exact, and for people whom "
        "no seed list names; a ranker's name says which. Its scores may have been learnt with them among the others.",
        class_="banner",
    )
    heads = (
        "Ranker",
        "AUC",
        *(f"Lift at {share:.0%}" for share in LIFT_AT),
        *(f"Recall at {s:.0%}" for s in RECALL_AT),
    )
    rows = [_held_out(entry) for entry in (found.campaign, *found.others)]
    yield table("Found among people who are no seeds (higher is better)", heads, rows, numeric=tuple(range(1, 8)))


def _held_out(found: HeldOut) -> tuple[str, ...]:
    lifts, recalls = (f"{lift:.2f}" for lift in found.lift), (percent(recall) for recall in found.recall)
    return (found.ranker, f"{found.auc:.3f}", *lifts, *recalls)


def limits(summary: LookalikeSummary) -> Iterator[Html]:
    """What this report does not say."""
    yield items(_limits(summary))


def _limits(summary: LookalikeSummary) -> Iterator[str]:
    plan, last = summary.campaign.plan, summary.costs[-1]
    yield "Nothing about a deployment: in a simulation one machine sees every institution's data."
    yield (
        "How well the ranker finds people whom it has not learnt from: quality is measured on the seeds themselves. "
        "Privacy bounds how much that flatters it, and does not remove it."
    )
    yield "That the audience will respond, buy or stay: it resembles the seed, no more."
    yield (
        "That the seed is typical. Seeds are what their institutions chose; where one institution brings most of them, "
        "the audience resembles that institution's customers, at every institution."
    )
    yield (
        "Anything about a lookalike of this audience: a seed made of people whom a model has chosen teaches the model, "
        "not the customers. Such seeds are refused where an institution can tell."
    )
    yield (
        "That the audience treats groups of people fairly: this report shows no fairness audit; an audit has a page of "
        "its own. Features may stand for protected ones; the profile above shows only what the contract allows in a "
        "model."
    )
    yield (
        "That consent was checked, a rule evaluated, a log witnessed, or that anybody signed: the report of the "
        "segments has a section about governance where there was any."
    )
    yield "That the lawful basis holds or the purpose is fair: the plan states both. This report is no legal advice."
    if plan.trust == "distributed":
        yield (
            f"That no more than {plan.colluders} of the institutions collude, or that the secure sum's cryptography "
            "holds: epsilon rests on both."
        )
    if last.institutions > 1 and plan.trust != "unsafe-none":
        yield (
            "That a person at several institutions is as well protected as one at a single institution: at all "
            f"{last.institutions} encoder and campaign together have the bound {epsilon_text(last.both)}."
        )
    yield "That ids are people: somebody with two ids at one institution is protected as two people would be."
    yield "That an institution told the truth about its own customers: only the influence of each person is bounded."
    yield "That the code is free of errors: the bound is mathematics about the mechanism; no attack tested this run."


def glossary(_: LookalikeSummary) -> Iterator[Html]:
    """The words of the report."""
    yield definitions(_GLOSSARY)


def lookalike_footer(summary: LookalikeSummary) -> Html:
    """Versions, digests, schemas."""
    encoder, campaign = summary.encoder, summary.campaign
    return tag(
        "footer",
        paragraph(
            f"cohortium {summary.version}. Schemas: {summary.schema_id}, {campaign.schema_id}, {encoder.schema_id}, "
            f"{campaign.plan.schema_id}. Finished {moment(summary.finished)}."
        ),
        paragraph("Campaign's model ", tag("code", campaign.digest)),
        paragraph("Campaign's plan ", tag("code", campaign.plan.digest)),
        paragraph("Encoder's model ", tag("code", encoder.digest)),
        paragraph("Encoder's plan ", tag("code", encoder.plan.digest)),
        paragraph("Contract ", tag("code", summary.contract.digest)),
    )
