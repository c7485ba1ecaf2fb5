"""What ran: the plan in plain words, the scale on which distances were measured, and how long it took."""

from __future__ import annotations

import math

from cohortium.governance.report.markup import Child, Html, definitions, paragraph, section, table, tag
from cohortium.governance.report.summary import RunSummary
from cohortium.governance.report.wording import delta_text, duration, label, number, percent, plural
from cohortium.study.bundle import AxisScale

__all__ = ["what_ran"]

_BASES = {
    "consent": "consent, Art. 6(1)(a) GDPR",
    "contract": "performance of a contract, Art. 6(1)(b) GDPR",
    "legal_obligation": "legal obligation, Art. 6(1)(c) GDPR",
    "vital_interests": "vital interests, Art. 6(1)(d) GDPR",
    "public_task": "public task, Art. 6(1)(e) GDPR",
    "legitimate_interests": "legitimate interests, Art. 6(1)(f) GDPR",
}

_TRUST = {
    "distributed": (
        "Distributed. Every institution adds a share of the noise and masks its answer; the coordinator sees only the "
        "sum, in which any {t} institutions less any {c} that collude carry the full noise."
    ),
    "local": (
        "Local. Every institution adds the full noise to its own answers, so neither the coordinator nor another "
        "institution has to be trusted with anything un-noised. The price is accuracy: noise adds up over institutions."
    ),
    "unsafe-none": "None. No noise was added and nothing was masked: a baseline, possible only in a simulation.",
}


_APPROVED = "This is the plan, as approved."
_APPROVAL = {"distributed": _APPROVED, "local": _APPROVED, "unsafe-none": "Nobody approved this one."}


def what_ran(summary: RunSummary) -> Html:
    """The section."""
    plan = summary.bundle.plan
    return section(
        "plan",
        "What ran",
        paragraph(
            f"Institutions approve a plan by its digest and answer nothing else. {_APPROVAL[plan.trust]} "
            "The lawful basis is what the plan states; nothing in this run examined it."
        ),
        definitions(_plan(summary)),
        _distances(summary),
        _stages(summary),
    )


def _plan(summary: RunSummary) -> list[tuple[str, Child]]:
    plan, contract = summary.bundle.plan, summary.contract
    return [
        ("Purpose", plan.purpose),
        ("Lawful basis", _BASES[plan.lawful_basis]),
        ("Regions", ", ".join(plan.regions)),
        ("Trust model", _TRUST[plan.trust].format(t=plan.min_institutions, c=plan.colluders)),
        (
            "Privacy budget",
            "none: nothing was noised and nothing was charged"
            if plan.trust == "unsafe-none"
            else f"epsilon {plan.epsilon:g} at delta {delta_text(plan.delta)}, for all questions of the plan together, "
            "per person at one institution, whatever the number of their rows",
        ),
        ("How the budget is divided", _shares(summary)),
        ("Smallest cell", f"{plan.min_cell:,} people by the noisy count; whatever is below is suppressed"),
        ("Institutions needed", f"at least {plan.min_institutions:,}"),
        ("Colluders tolerated", f"up to {plan.colluders:,}" if plan.trust == "distributed" else "does not apply"),
        ("Attempts per step", f"at most {plan.max_attempts}, each charged in full"),
        ("Answers until", plan.expires.isoformat()),
        ("Feature contract", f"{contract.name}, {_money(summary)}"),
        ("Window", f"{contract.start} up to, not including, {contract.end}"),
        ("Data set", f"{summary.dataset.name}: {summary.dataset.note}; licence: {summary.dataset.licence}"),
        ("Plan digest", tag("code", plan.digest)),
        ("Contract digest", tag("code", contract.digest)),
        ("Bundle digest", tag("code", summary.bundle.digest)),
    ]


def _money(summary: RunSummary) -> str:
    currency = summary.contract.currency
    return f"amounts in {currency}" if currency else "without amounts of money"


def _shares(summary: RunSummary) -> str:
    shares = summary.bundle.plan.shares
    return (
        f"distributions of the features {shares.marginals}%, finding segments {shares.clustering}%, "
        f"sizes and profiles {shares.profiles}%, RFM grid {shares.rfm}%"
    )


def _distances(summary: RunSummary) -> Html:
    rows = [
        (
            label(axis.feature),
            summary.contract.unit(axis.feature) or "none",
            "logarithmic, log(1 + x)" if axis.log else "linear",
            number(_in_units(axis, axis.low)),
            number(_in_units(axis, axis.high)),
        )
        for axis in summary.bundle.scaler
    ]
    count = plural(len(rows), "feature")
    return table(
        f"Distances between customers use {count}; values are clipped to this range",
        ("Feature", "Unit", "Scale", "From", "To"),
        rows,
        numeric=(3, 4),
    )


def _in_units(axis: AxisScale, end: float) -> float:
    """An end of an axis in the contract's unit; ends of logarithmic axes are released as log(1 + x)."""
    return math.expm1(end) if axis.log else end


def _stages(summary: RunSummary) -> Html:
    total = sum(stage.seconds for stage in summary.stages)
    if not total:
        return Html()
    rows = [(stage.stage, duration(stage.seconds), percent(stage.seconds / total)) for stage in summary.stages]
    return table("Time by stage", ("Stage", "Time", "Share"), rows, numeric=(1, 2))
