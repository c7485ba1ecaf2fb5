"""One feature over all segments: a dot for the noised mean, a line for its 95% interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cohortium.governance.report.bands import SUPPRESSED
from cohortium.governance.report.charts.axis import LinearAxis, axis_over
from cohortium.governance.report.charts.segment_map import colour
from cohortium.governance.report.markup import Html, tag
from cohortium.governance.report.wording import estimate, interval, label
from cohortium.study.bundle import MeanEstimate, Segment

__all__ = ["mean_of", "profile_chart"]

_WIDTH, _ROW, _TOP = 340.0, 20.0, 6.0
_TICKS = 4
_LABELS, _VALUES = 24.0, 66.0


def profile_chart(feature: str, unit: str, segments: Sequence[Segment]) -> Html:
    """A row per segment, under its number; suppressed ones say so."""
    means = [mean_of(segment, feature) for segment in segments]
    ends = [end for mean in means if mean for end in (mean.low, mean.high)]
    axis = axis_over(ends, _LABELS + 6, _WIDTH - _LABELS - _VALUES - 12)
    bottom = _TOP + _ROW * len(segments)
    return tag(
        "svg",
        *_grid(axis, bottom),
        *(_row(s, m, axis, _TOP + _ROW * (i + 0.5)) for i, (s, m) in enumerate(zip(segments, means, strict=True))),
        viewBox=f"0 0 {_WIDTH:.0f} {bottom + 22:.0f}",
        role="img",
        aria_label=_spoken(feature, unit, segments),
        class_="profile",
    )


def mean_of(segment: Segment, feature: str) -> MeanEstimate | None:
    """The segment's mean of a feature; None when the segment is suppressed or the feature is not described."""
    return next((mean for mean in segment.means if mean.feature == feature), None)


def _grid(axis: LinearAxis, bottom: float) -> Iterator[Html]:
    for tick in axis.ticks(_TICKS):
        x = axis.at(tick)
        yield tag("line", x1=x, x2=x, y1=_TOP, y2=bottom, class_="grid")
        yield tag("text", axis.written(tick, _TICKS), x=x, y=bottom + 15, text_anchor="middle", class_="tick")


def _row(segment: Segment, mean: MeanEstimate | None, axis: LinearAxis, y: float) -> Html:
    name = tag("text", segment.id, x=_LABELS - 4, y=y + 4, text_anchor="end", class_="row")
    if mean is None:
        missing = tag("text", SUPPRESSED, x=axis.start, y=y + 4, class_="tick plain")
        return tag("g", name, missing)
    return tag(
        "g",
        name,
        tag("line", x1=axis.at(mean.low), x2=axis.at(mean.high), y1=y, y2=y, class_="range"),
        tag("circle", cx=axis.at(mean.mean), cy=y, r=4, class_=f"dot solid {colour(segment.id)}"),
        tag("text", estimate(mean), x=_WIDTH, y=y + 4, text_anchor="end", class_="row"),
    )


def _spoken(feature: str, unit: str, segments: Sequence[Segment]) -> str:
    parts = [f"{segment.id} {segment.name}: {_value(mean_of(segment, feature))}" for segment in segments]
    return f"{label(feature)}{f' in {unit}' if unit else ''}. " + "; ".join(parts)


def _value(mean: MeanEstimate | None) -> str:
    return SUPPRESSED if mean is None else f"{estimate(mean)}, 95% {interval(mean)}"
