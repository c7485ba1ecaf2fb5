"""How many people can be reached, and how like the seed they are: the curve, and the levels as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cohortium.governance.report.bands import HIDDEN, SUPPRESSED, measured_band
from cohortium.governance.report.charts.reach import reach_chart
from cohortium.governance.report.lookalike_summary import LookalikeSummary
from cohortium.governance.report.markup import Child, Html, figure, join, paragraph, table, tag
from cohortium.governance.report.wording import (
    label,
    measured,
    measured_interval,
    measured_percent,
    measured_percents,
    number,
    percent,
)
from cohortium.models.levels import PROTECTION, why_suppressed
from cohortium.study.reach import CurvePoint, LevelTarget, Lock, Measured, ReachLevel

__all__ = ["reach", "with_interval", "with_percents"]

_HEADS: tuple[str, ...] = (
    "Level",
    "Asked for",
    "People",
    "Share of the eligible",
    "Cut-off",
    "Seeds reached (recall)",
    "Lift",
    "Relevance",
)


def reach(summary: LookalikeSummary) -> Iterator[Html]:
    """The curve and the table of the levels."""
    curve, min_cell = summary.campaign.curve, summary.campaign.plan.min_cell
    yield paragraph(
        "The further an audience reaches, the less its people are like the seed. Everybody gets a score; an audience "
        "is everybody who scores at least its cut-off, so that every level holds the smaller ones. Seeds themselves "
        "are never part of it."
    )
    if curve.points:
        yield figure(reach_chart(curve, _chosen(summary)), _caption(summary), class_="chart wide")
    else:
        yield paragraph(
            f"There is no curve: no audience of at least {min_cell:,} people can be told apart from everybody."
        )
    yield _levels(summary)
    yield paragraph(
        "People are bands wide enough for 95% of the noise. Small figures are 95% intervals: for the noise, and for "
        "the chance of who the seeds are. Recall: share of the seeds that score so high. Lift: how much commoner "
        "seeds are there than among all; 1 is chance. Relevance: share of seeds there if seeds and others were equally "
        "many; 50% is chance. A suppressed level has fewer people than the smallest cell by the noisy count, or cannot "
        f"be told apart from another level; that does not mean that it is empty.{_about_refit(summary)}",
        note=True,
    )


def _about_refit(summary: LookalikeSummary) -> str:
    if not _is_refit(summary):
        return ""
    low, high = PROTECTION
    return (
        f" Since the refit: the change in reach. A level is kept within {low:g} to {high:g} of its reach before where "
        "that can be; 'not surely' means that its interval reaches beyond."
    )


def _is_refit(summary: LookalikeSummary) -> bool:
    return any(level.change is not None for level in summary.campaign.curve.levels)


def _chosen(summary: LookalikeSummary) -> str | None:
    return None if summary.level is None else summary.level.name


def _caption(summary: LookalikeSummary) -> Html:
    named = _chosen(summary)
    stressed = "" if named is None else f" The stressed line is the level '{label(named)}'."
    return join(
        (
            "Full line and circles: the share of the seeds reached. Dashed line and squares: relevance. Dotted: the "
            "seeds that an audience drawn by lot would reach. Ribbons hold the 95% intervals of the values and of the "
            f"reach. Upright lines are the levels.{stressed} Both axes count people in shares; the table has bands. "
            "Quality is measured on the seeds themselves. Where points lie close together, some are not drawn.",
        )
    )


def _levels(summary: LookalikeSummary) -> Html:
    campaign = summary.campaign
    targets = {target.name: target for target in campaign.plan.lookalike.targets}
    refitted = _is_refit(summary)
    chosen = _chosen(summary)
    rows = [
        (
            _named(level, level.name == chosen),
            _asked(targets.get(level.name)),
            *(_suppressed(summary, level) if level.point is None else _figures(level.point)),
            *((_change(level),) if refitted else ()),
        )
        for level in campaign.curve.levels
    ]
    if not rows:
        return paragraph("The campaign released no levels.")
    heads = (*_HEADS, "Since the refit") if refitted else _HEADS
    return table("Levels, from the narrowest", heads, rows, numeric=tuple(range(2, len(heads))))


def _named(level: ReachLevel, is_chosen: bool) -> Child:
    return join((tag("strong", label(level.name)), " (chosen)")) if is_chosen else label(level.name)


def _asked(target: LevelTarget | None) -> str:
    """What the plan asks of a level."""
    if target is None:
        return "not stated"
    parts = [] if target.share is None else [percent(target.share)]
    return "; ".join([*parts, *map(_lock, target.locks)])


def _lock(lock: Lock) -> str:
    word, bound = ("at least", lock.at_least) if lock.at_least is not None else ("at most", lock.at_most)
    written = percent(bound or 0.0) if lock.measure in ("share", "relevance", "precision", "recall") else None
    return f"{lock.measure} {word} {written or number(bound or 0.0)}"


def _suppressed(summary: LookalikeSummary, level: ReachLevel) -> Sequence[Child]:
    campaign = summary.campaign
    target = next((target for target in campaign.plan.lookalike.targets if target.name == level.name), None)
    why = why_suppressed(campaign.curve, target, campaign.plan.min_cell)
    return join((SUPPRESSED, tag("br"), tag("small", why))), *(SUPPRESSED,) * 5


def _figures(point: CurvePoint) -> Sequence[Child]:
    return (
        measured_band(point.people),
        percent(point.share),
        number(point.cutoff),
        with_percents(point.recall),
        with_interval(point.lift),
        with_percents(point.relevance),
    )


def _change(level: ReachLevel) -> Child:
    if level.change is None:
        return "new" if level.point is not None else SUPPRESSED
    low, high = PROTECTION
    band = f"{low:g}\N{EN DASH}{high:g}"
    kept = f"in {band}" if level.protected else f"not surely in {band}"
    return join((f"{level.change:+.0%}", tag("br"), tag("small", kept)))


def with_interval(found: Measured | None) -> Child:
    """A value over its interval, or the words for what noise hides."""
    if found is None:
        return HIDDEN
    return join((measured(found), tag("br"), tag("small", measured_interval(found))))


def with_percents(found: Measured | None) -> Child:
    """The same for a share of 1."""
    if found is None:
        return HIDDEN
    return join((measured_percent(found), tag("br"), tag("small", measured_percents(found))))
