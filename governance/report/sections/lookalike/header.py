"""The head of the report in plain words: who looked for whom, how many can be reached, how much better than chance."""

from __future__ import annotations

import math

from cohortium.governance.report.bands import HIDDEN, SUPPRESSED, Band, measured_band, measured_limits, size_limits
from cohortium.governance.report.lookalike_summary import LookalikeSummary
from cohortium.governance.report.markup import Html, join, paragraph, tag
from cohortium.governance.report.wording import (
    delta_text,
    epsilon_text,
    label,
    measured,
    measured_interval,
    measured_percent,
    moment,
    plural,
    short_delta,
)
from cohortium.models.seed_queries import SEED_COUNT, SeedSumQuery
from cohortium.privacy.query import SCALE
from cohortium.study.reach import Measured

__all__ = ["headline", "lookalike_header", "people_in_words", "seed_limits", "unprotected"]


def lookalike_header(summary: LookalikeSummary) -> Html:
    """Title, the result in a few sentences, the simulation mark, key facts."""
    return tag(
        "header",
        tag("p", "cohortium lookalike report", class_="kicker"),
        tag("h1", summary.campaign.plan.name),
        tag("p", headline(summary), class_="lead"),
        tag(
            "p",
            tag("strong", "Simulation. "),
            f"All institutions ran on one machine on the data set {summary.dataset.name} ({summary.dataset.note}). "
            "This report is no evidence of a deployment.",
            class_="banner",
        ),
        *unprotected(summary),
        _facts(summary),
    )


def unprotected(summary: LookalikeSummary) -> tuple[Html, ...]:
    """A warning where encoder or campaign added no noise."""
    plans = {"encoder": summary.encoder.plan, "campaign": summary.campaign.plan}
    bare = [name for name, plan in plans.items() if plan.trust == "unsafe-none"]
    if not bare:
        return ()
    warning = (
        f"The {' and the '.join(bare)} added no noise. Every number below may reveal single customers. It is a "
        "baseline for a simulation: no institution approved it, and no node answers such a plan."
    )
    return (tag("p", tag("strong", "NO PRIVACY. "), warning, class_="banner"),)


def headline(summary: LookalikeSummary) -> str:
    """The result in plain words."""
    said = (_who(summary), _how_many(summary), _how_good(summary), _price(summary))
    return " ".join(sentence for sentence in said if sentence)


def seed_limits(summary: LookalikeSummary) -> Band | None:
    """The noisy number of seeds as a band; its noise is that of the question that counted them."""
    campaign = summary.campaign
    counted = next((r for r in campaign.releases if r.kind == SeedSumQuery.kind and r.institutions), None)
    if counted is None:
        return size_limits(campaign.seeds)
    plan = campaign.plan
    shares = plan.min_institutions - plan.colluders if plan.trust == "distributed" else 1
    word = int(counted.sigma) / SCALE * math.sqrt(counted.institutions / shares)
    return size_limits(campaign.seeds, word / SEED_COUNT)


def people_in_words(band: Band | None, noun: str) -> str:
    """'500-1,000 customers', 'a suppressed number of customers'."""
    if band is None:
        return f"a {SUPPRESSED} number of {noun}"
    return f"a number of {noun} {HIDDEN}" if str(band) == HIDDEN else f"{band} {noun}"


def _who(summary: LookalikeSummary) -> str:
    campaign = summary.campaign
    seeds = people_in_words(seed_limits(summary), "customers")
    holders = sum(entry.role != "audience" and entry.facts.accepted for entry in summary.institutions)
    brought = f", which {holders:,} of them brought" if holders else ""
    together = plural(campaign.institutions, "institution")
    return f"{together} looked for people like the seed '{label(campaign.plan.lookalike.seed)}', {seeds}{brought}."


def _how_many(summary: LookalikeSummary) -> str:
    among = f"Among {people_in_words(measured_limits(summary.campaign.curve.eligible), 'others')},"
    level = summary.level
    if level is None or level.point is None:
        return f"{among} no audience is large enough to be shown."
    reached = people_in_words(measured_limits(level.point.people), "people")
    return f"{among} the audience '{label(level.name)}' reaches {reached}."


def _how_good(summary: LookalikeSummary) -> str:
    level = summary.level
    if level is None or level.point is None:
        return ""
    lift = level.point.lift
    if lift is None:
        return "How much better than chance that is, the noise hides."
    said = f"{measured(lift)} times as common there as among all (95% interval {measured_interval(lift)})"
    if lift.low <= 1.0 <= lift.high:
        return f"Customers of the seed are {said}: no better than chance, as far as noise lets see."
    return f"Customers of the seed are {said}."


def _price(summary: LookalikeSummary) -> str:
    if summary.campaign.plan.trust == "unsafe-none":
        return "It was done WITHOUT any protection of privacy: no noise was added."
    cost = summary.costs[0]
    if cost.campaign is None:
        return "No useful privacy bound holds at the plan's delta."
    delta = short_delta(summary.campaign.plan.delta)
    said = f"a privacy loss of at most epsilon {epsilon_text(cost.campaign)} (delta {delta}) per person and institution"
    if cost.both is None:
        return f"The campaign cost {said}."
    both = epsilon_text(cost.both)
    return f"The campaign cost {said}; together with the encoder, paid once for all campaigns, at most {both}."


def _facts(summary: LookalikeSummary) -> Html:
    campaign, point = summary.campaign, summary.level.point if summary.level is not None else None
    facts = (
        ("People reached", measured_band(point.people if point else None)),
        ("Lift over chance", _or_hidden(point.lift if point else None)),
        ("Seeds reached", _percent_or_hidden(point.recall if point else None)),
        ("Budget of the campaign", _budget(summary)),
        ("Smallest cell shown", f"{campaign.plan.min_cell:,} people"),
    )
    return join(
        (
            tag("dl", *(tag("div", tag("dt", term), tag("dd", value)) for term, value in facts), class_="tiles"),
            paragraph(
                f"Delta {delta_text(campaign.plan.delta)}. Run {campaign.run}, {moment(summary.started)} to "
                f"{moment(summary.finished)}. The audience may be used until {campaign.plan.expires}.",
                note=True,
            ),
        )
    )


def _budget(summary: LookalikeSummary) -> str:
    plan = summary.campaign.plan
    return "NONE" if plan.trust == "unsafe-none" else f"epsilon {plan.epsilon:g}"


def _or_hidden(found: Measured | None) -> str:
    return HIDDEN if found is None else measured(found)


def _percent_or_hidden(found: Measured | None) -> str:
    return HIDDEN if found is None else measured_percent(found)
