"""The segments: map, sizes as bands, profiles with intervals, threshold rules, and how their number was chosen."""

from __future__ import annotations

from collections.abc import Sequence

from cohortium.governance.report.bands import SUPPRESSED, size_band, size_limits
from cohortium.governance.report.charts.profile import mean_of, profile_chart
from cohortium.governance.report.charts.segment_map import Place, colour, segment_map
from cohortium.governance.report.markup import Child, Html, figure, items, join, paragraph, section, table, tag
from cohortium.governance.report.summary import RunSummary
from cohortium.governance.report.wording import estimate, interval, label, percent, plural, spread
from cohortium.study.bundle import Bundle, KChoice, Segment

__all__ = ["choice_of_k", "profiles", "rules", "segments"]


def segments(summary: RunSummary) -> Html:
    """Map and table of the segments."""
    return section(
        "segments",
        "Segments",
        paragraph(
            "Names say by which features a segment differs most from the average customer; they describe, they do not "
            f"judge. {_about_sizes(summary.bundle)}"
        ),
        _map(summary),
        _table(summary),
    )


def _about_sizes(bundle: Bundle) -> str:
    if not bundle.plan.shares.profiles:
        return "The plan gives sizes and profiles no share of the budget, so neither was measured."
    return (
        "Sizes are bands wide enough for 95% of the noise. A suppressed segment is too small to be shown; that does "
        "not mean that it is empty."
    )


def _place(segment: Segment, bundle: Bundle) -> Place | None:
    """The segment as the map draws it: all alike when no size was measured, not at all when suppressed."""
    if not bundle.plan.shares.profiles:
        return Place(segment.id, label(segment.name), segment.centre, 1.0, "size not measured")
    band = size_limits(segment.size, segment.size_std)
    if band is None:
        return None
    return Place(segment.id, label(segment.name), segment.centre, band.typical, f"{band} people")


def _map(summary: RunSummary) -> Html:
    places = [place for segment in summary.bundle.segments if (place := _place(segment, summary.bundle))]
    if len(places) < 2:
        return paragraph(
            f"There is no map: {'one segment is' if places else 'no segment is large enough to be'} shown."
        )
    drawn = segment_map(places, [axis.feature for axis in summary.bundle.scaler])
    return figure(
        drawn.drawing,
        "Segment map: the released centres in the two directions in which they differ most (principal components, "
        f"weighted by size), showing {percent(drawn.kept)} of the spread between them. Near means alike; the area of "
        "a circle follows its size band, as far as sizes were measured. Suppressed segments are not drawn. Computed "
        "from released numbers, at no further cost.",
        class_="chart wide",
    )


def _table(summary: RunSummary) -> Html:
    plan = summary.bundle.plan
    rows = [_row(s, plan.min_cell) if plan.shares.profiles else _unmeasured(s) for s in summary.bundle.segments]
    return table(
        "Segments by size",
        ("Segment", "Size (people)", "Noise in the size (standard deviation)", "Shown"),
        rows,
        numeric=(1, 2),
    )


def _row(segment: Segment, min_cell: int) -> tuple[Child, ...]:
    shown = f"no: below {min_cell:,} people" if segment.suppressed else "yes"
    size = size_band(segment.size, segment.size_std)
    return _named(segment), size, f"\N{PLUS-MINUS SIGN}{spread(segment.size_std)}", shown


def _unmeasured(segment: Segment) -> tuple[Child, ...]:
    return _named(segment), "not measured", "not measured", "centre only"


def _named(segment: Segment) -> Html:
    return join((tag("span", segment.id, class_=f"chip {colour(segment.id)}"), " ", label(segment.name)))


def profiles(summary: RunSummary) -> Html:
    """Small multiples, one per described feature, and the same numbers as a table."""
    shown = summary.bundle.segments
    described = list(dict.fromkeys(mean.feature for segment in shown for mean in segment.means))
    if not described:
        return section(
            "profiles", "Profiles", paragraph("No segment is described: all are suppressed or not measured.")
        )
    charts = [_profile(summary, feature) for feature in described]
    return section(
        "profiles",
        "Profiles",
        paragraph(
            "The dot is the noised mean of a segment, the line its 95% interval for the noise. Extreme values count as "
            "no more than the feature's released 99% quantile and no less than its 1% quantile."
        ),
        tag("p", *(tag("span", _named(segment), class_="entry") for segment in shown), class_="legend"),
        tag("div", *charts, class_="multiples"),
        tag("details", tag("summary", "The same numbers as a table"), _numbers(summary, described)),
    )


def _profile(summary: RunSummary, feature: str) -> Html:
    unit = summary.contract.unit(feature)
    title = join((tag("strong", label(feature)), f" ({unit})" if unit else ""))
    drawing = profile_chart(feature, unit, summary.bundle.segments)
    return tag("figure", tag("figcaption", title), drawing, class_="multiple")


def _numbers(summary: RunSummary, described: Sequence[str]) -> Html:
    units = [summary.contract.unit(feature) for feature in described]
    heads = [f"{label(f)} ({unit})" if unit else label(f) for f, unit in zip(described, units, strict=True)]
    rows = [(_named(s), *(_cell(s, feature) for feature in described)) for s in summary.bundle.segments]
    columns = tuple(range(1, len(heads) + 1))
    return table("Noised means with their 95% intervals", ("Segment", *heads), rows, numeric=columns)


def _cell(segment: Segment, feature: str) -> Child:
    mean = mean_of(segment, feature)
    if mean is None:
        return SUPPRESSED
    return join((estimate(mean), tag("br"), tag("small", interval(mean))))


def rules(summary: RunSummary) -> Html:
    """Threshold rules in the contract's units."""
    listed = [segment for segment in summary.bundle.segments if segment.rules]
    if not listed:
        return section("rules", "Rules", paragraph("The run released no threshold rules."))
    cards = (
        tag("div", tag("h3", _named(segment)), items(map(_readable, segment.rules)), class_="card")
        for segment in listed
    )
    return section(
        "rules",
        "Rules",
        paragraph(
            "Thresholds that describe most of a segment, found in released numbers. They explain; whether a customer "
            "belongs to a segment is decided by the nearest centre."
        ),
        tag("div", *cards, class_="cards"),
    )


def _readable(rule: str) -> str:
    return label(rule).replace("<=", "\N{LESS-THAN OR EQUAL TO}").replace(">=", "\N{GREATER-THAN OR EQUAL TO}")


def choice_of_k(summary: RunSummary) -> Html:
    """How the number of segments came about."""
    bundle = summary.bundle
    least, most = bundle.plan.segments.k_range
    asked = plural(least, "segment") if least == most else f"{least} to {most} segments"
    judged = (
        "Nothing was chosen by data."
        if least == most
        else "Candidates were judged on numbers that were released anyway, so the choice cost no further budget."
    )
    dropped = (
        " Centres with too few people by the noisy count were left out; their customers go to the nearest other one."
        if len(bundle.segments) < least
        else ""
    )
    words = f"The plan asks for {asked}; the run released {plural(len(bundle.segments), 'segment')}. {judged}{dropped}"
    return section("k", "Number of segments", paragraph(words), _choices(bundle.k_choices, len(bundle.segments)))


def _choices(choices: Sequence[KChoice], found: int) -> Html:
    if not choices:
        return Html()
    dearest = max(choice.cost for choice in choices)
    rows = [
        (
            f"{choice.k} (released)" if choice.k == found else choice.k,
            "not computed" if choice.silhouette is None else f"{choice.silhouette:.3f}",
            percent(choice.cost / dearest) if dearest > 0 else "0.0%",
        )
        for choice in choices
    ]
    heads = ("Segments", "Simplified silhouette (higher is better)", "Cost, of the dearest candidate (lower is better)")
    return table("Candidates", heads, rows, numeric=(1, 2))
