"""Who the audience is: categories as an index against everybody eligible, numbers in their units."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from cohortium.governance.report.bands import SUPPRESSED
from cohortium.governance.report.charts.index import IndexRow, index_chart
from cohortium.governance.report.lookalike_summary import LookalikeSummary
from cohortium.governance.report.markup import Child, Html, figure, join, paragraph, table, tag
from cohortium.governance.report.sections.lookalike.reach import with_interval, with_percents
from cohortium.governance.report.wording import label, plural
from cohortium.study.model import AudienceShare
from cohortium.study.reach import Measured

__all__ = ["audience"]

_CHARTED = 12
_Z95 = 1.959963984540054
_WITHIN = "within the noise"
_LARGEST = 700.0  # what an exponential still takes


@dataclass(frozen=True)
class _Category:
    """A category that may be shown.

    Args:
        name: feature and category.
        row: its shares.
        index: of the share in the audience over that of the eligible, times 100; None where the latter may be none.
        surely: by how much the index surely differs from 100, in logarithms; 0 within the noise.
    """

    name: str
    row: AudienceShare
    index: IndexRow | None
    surely: float


def audience(summary: LookalikeSummary) -> Iterator[Html]:
    """The profile of one level beside everybody eligible."""
    profile, level = summary.campaign.profile, summary.campaign.level
    if not profile or level is None:
        yield paragraph(_why_none(summary))
        return
    yield paragraph(
        f"The level '{label(level)}' beside everybody eligible (who may be reached and is no seed; the audience is "
        "among them). Intervals are for the noise: the figures are about these very people, not about a sample. A "
        f"difference counts as one only where all {len(profile):,} figures taken together leave no room for chance "
        f"(95%); the others are marked '{_WITHIN}'."
    )
    wide = _widening(len(profile))
    told = [_category(summary, row, wide) for row in profile if row.level is not None]
    categories = [*told, *_left_out(summary)]
    numbers = [row for row in profile if row.level is None]
    if categories:
        yield from _categories([found for found in categories if isinstance(found, _Category)], categories)
        yield paragraph(
            f"A suppressed category has fewer than {summary.campaign.plan.min_cell:,} people by the noisy count, in "
            "the audience or among the eligible; that does not mean that it is empty. Every share has noise of its "
            "own: those of a feature need not add up to 100%, and what they leave is not the share of a suppressed "
            "category.",
            note=True,
        )
    if numbers:
        yield _numbers(summary, numbers, wide)
        yield paragraph(
            "Means of the contract's numbers. Extreme values count as no more than the released 99% quantile and no "
            "less than the 1% quantile. Where the contract takes logarithms it is the mean of those, turned back: a "
            "typical value, not an average.",
            note=True,
        )


def _why_none(summary: LookalikeSummary) -> str:
    if not summary.campaign.plan.shares.profile:
        return "The plan gives the description of the audience no share of the budget, so it was not measured."
    return (
        "The audience is not described: it, or the rest of the eligible people, are fewer than "
        f"{summary.campaign.plan.min_cell:,} by the noisy count."
    )


def _widening(figures: int) -> float:
    """How much wider an interval must be for all to hold at once with probability 95% (Bonferroni)."""
    return NormalDist().inv_cdf(1 - 0.025 / figures) / _Z95


def _differs(row: AudienceShare, wide: float) -> int:
    """1 when the audience's figure is surely above that of the eligible, -1 when surely below, else 0."""
    (low, high), (least, most) = _ends(row.audience, wide), _ends(row.eligible, wide)
    return (low > most) - (high < least)


def _ends(found: Measured, wide: float) -> tuple[float, float]:
    """A wider interval, each side by its own length.

    The upper side of an interval that was turned back from logarithms grows faster than in proportion: by the ratio of
    its ends, which is never too narrow. An end that was cut off at a bound ends at that bound or beyond it.
    """
    low, high = found.value - wide * (found.value - found.low), found.value + wide * (found.high - found.value)
    if found.value > 0:
        growth = wide * math.log(found.high / found.value)
        high = max(high, found.value * math.exp(min(growth, _LARGEST)))
    return low, high


def _category(summary: LookalikeSummary, row: AudienceShare, wide: float) -> _Category | str:
    """What may be told about a category; its name alone when it stands for too few people."""
    name = _name(summary, row.feature, row.level or 0)
    curve, min_cell = summary.campaign.curve, summary.campaign.plan.min_cell
    point = next(level.point for level in curve.levels if level.name == summary.campaign.level)
    people = 0.0 if point is None else point.people.value
    eligible = 0.0 if curve.eligible is None else curve.eligible.value
    if row.audience.value * people < min_cell or row.eligible.value * eligible < min_cell:
        return name
    index = _index(name, row)
    side = _differs(row, wide)
    surely = 0.0
    if index is not None and side:
        nearest = index.low if side > 0 else index.high
        surely = abs(math.log(max(nearest, 1e-9) / 100))
    return _Category(name, row, index, surely)


def _left_out(summary: LookalikeSummary) -> Iterator[str]:
    """Names of the categories that the campaign measured and released no share of."""
    released = {(row.feature, row.level) for row in summary.campaign.profile}
    for feature in summary.campaign.features:
        categories = summary.contract.feature(feature).categories
        for level in range(len(categories) + 1 if categories else 0):
            if (feature, level) not in released:
                yield _name(summary, feature, level)


def _name(summary: LookalikeSummary, feature: str, level: int) -> str:
    categories = summary.contract.feature(feature).categories
    return f"{label(feature)}: {categories[level] if level < len(categories) else 'not known'}"


def _index(name: str, row: AudienceShare) -> IndexRow | None:
    if row.eligible.value <= 0:
        return None
    index = 100 * row.audience.value / row.eligible.value
    low = 100 * row.audience.low / row.eligible.high
    high = 100 * row.audience.high / row.eligible.low if row.eligible.low > 0 else math.inf
    return IndexRow(name, index, low, high, f"{index:,.0f} ({_range(low, high)})")


def _range(low: float, high: float) -> str:
    return f"{low:,.0f} to {high:,.0f}" if math.isfinite(high) else f"at least {low:,.0f}"


def _categories(shown: Sequence[_Category], every: Sequence[_Category | str]) -> Iterator[Html]:
    different = sorted((found for found in shown if found.surely > 0), key=lambda found: -found.surely)
    rows = [found.index for found in different[:_CHARTED] if found.index is not None]
    if rows:
        rest = (
            f" {plural(len(different) - len(rows), 'more is', 'more are')} in the table."
            if len(different) > len(rows)
            else ""
        )
        yield figure(
            index_chart(rows),
            "What is surely different: the share of a category in the audience as an index, 100 being its share among "
            "the eligible. 200 means twice as common, 50 half as common. The line is the 95% interval, the scale is "
            f"logarithmic; those that surely differ most come first.{rest}",
        )
    else:
        yield paragraph("No category differs by more than the noise.")
    ordered = [*different, *(found for found in shown if found.surely == 0)]
    listed = [_listed(found) for found in ordered]
    listed += [(name, *(SUPPRESSED,) * 3) for name in every if isinstance(name, str)]
    heads = ("Category", "In the audience", "Among the eligible", "Index (100 = eligible)")
    yield tag(
        "details",
        tag("summary", "All categories as a table"),
        table("Shares of people with their 95% intervals", heads, listed, numeric=(1, 2, 3)),
    )


def _listed(found: _Category) -> tuple[Child, ...]:
    shares = (with_percents(found.row.audience), with_percents(found.row.eligible))
    if found.surely == 0 or found.index is None:
        return found.name, *shares, tag("span", _WITHIN, class_="faint")
    index = found.index
    return found.name, *shares, join((f"{index.index:,.0f}", tag("br"), tag("small", _range(index.low, index.high))))


def _numbers(summary: LookalikeSummary, rows: Sequence[AudienceShare], wide: float) -> Html:
    listed = [
        (
            _with_unit(summary, row.feature),
            with_interval(row.audience),
            with_interval(row.eligible),
            _difference(_differs(row, wide)),
        )
        for row in sorted(rows, key=lambda row: _differs(row, wide) == 0)
    ]
    heads = ("Feature", "In the audience", "Among the eligible", "Difference")
    return table("Typical values with their 95% intervals", heads, listed, numeric=(1, 2))


def _with_unit(summary: LookalikeSummary, feature: str) -> str:
    unit = summary.contract.unit(feature)
    return f"{label(feature)} ({unit})" if unit else label(feature)


def _difference(side: int) -> Child:
    return ("higher", "lower")[side < 0] if side else tag("span", _WITHIN, class_="faint")
