"""The reach-dilution curve: the more people an audience reaches, the less they resemble the seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from cohortium.governance.report.bands import measured_band
from cohortium.governance.report.charts.axis import LinearAxis, LogAxis, log_axis_over
from cohortium.governance.report.markup import Html, tag
from cohortium.governance.report.wording import label, measured_percent, percent, plural, shortened
from cohortium.study.reach import CurvePoint, Measured, ReachCurve, ReachLevel

__all__ = ["reach_chart"]

_WIDTH, _PLOT = 700.0, 300.0
_LEFT, _RIGHT, _BOTTOM = 52.0, 130.0, 48.0
_LABEL_ROW, _LABEL_ROWS, _CHARACTER, _NAME_LENGTH = 17.0, 4, 8.4, 20
_TITLES = ("seeds reached", "relevance")
_LEAST_GAP = 16.0
_POINT_GAP = 6.0
"""Points of a curve that would lie closer to another are left out; the table of levels is whole."""


@dataclass(frozen=True)
class _Line:
    """One curve: its name, style class, whether it rises with reach, and a value for each of its points."""

    title: str
    style: str
    rises: bool
    points: tuple[tuple[CurvePoint, Measured], ...]


@dataclass(frozen=True)
class _Plot:
    """Where things lie."""

    x: LogAxis
    y: LinearAxis

    def place(self, share: float, value: float) -> str:
        """A pair of coordinates as paths write them."""
        return f"{self.x.at(share):.1f},{self.y.at(value):.1f}"


def reach_chart(curve: ReachCurve, chosen: str | None) -> Html:
    """Recall of the seeds and relevance over reach, with the levels.

    A ribbon holds the 95% interval of every value and of every reach: its edges run through the corners of their boxes.

    Args:
        curve: with at least one point.
        chosen: name of the level to stress.
    """
    shown = [(level, level.point) for level in curve.levels if level.point is not None]
    rows = _rows([(level.name, point.share) for level, point in shown], _axis(curve.points))
    top = 8 + _LABEL_ROW * (max((row for row in rows.values() if row is not None), default=0) + 1)
    plot = _Plot(_axis(curve.points), LinearAxis(0.0, 1.0, top + _PLOT, -_PLOT))
    lines = _lines(_spaced(curve.points, {point.cutoff for _, point in shown}, plot.x))
    return tag(
        "svg",
        *_grid(plot, top),
        _chance(plot),
        *(_ribbon(line, plot) for line in lines),
        *(_level(level, point, rows[level.name], plot, level.name == chosen) for level, point in shown),
        *(_curve(line, plot) for line in lines),
        *(marker for line in lines for marker in _markers(line, shown, plot, chosen)),
        *_names(lines, plot),
        viewBox=f"0 0 {_WIDTH:.0f} {top + _PLOT + _BOTTOM:.0f}",
        role="img",
        aria_label=_spoken(shown, chosen),
        class_="reach",
    )


def _axis(points: Sequence[CurvePoint]) -> LogAxis:
    """Over the shares reached, up to everybody at most."""
    shares = [point.share for point in points]
    return log_axis_over([*shares, *(max(_share(p, p.people.low), p.share / 2) for p in points)], _LEFT, _length())


def _spaced(points: Sequence[CurvePoint], kept: AbstractSet[float], axis: LogAxis) -> list[CurvePoint]:
    """The points to draw: the levels' (at the cut-offs `kept`), both ends, and others where there is room."""
    places = [axis.at(point.share) for point in points if point.cutoff in kept]
    result = []
    for index, point in enumerate(points):
        x = axis.at(point.share)
        if point.cutoff in kept or index == len(points) - 1 or all(abs(x - place) >= _POINT_GAP for place in places):
            result.append(point)
            places.append(x)
    return result


def _length() -> float:
    return _WIDTH - _LEFT - _RIGHT


def _share(point: CurvePoint, people: float) -> float:
    """A number of people near the point's as a share of the eligible."""
    return point.share * people / point.people.value


def _lines(points: Sequence[CurvePoint]) -> list[_Line]:
    recall = tuple((point, point.recall) for point in points if point.recall is not None)
    relevance = tuple((point, point.relevance) for point in points if point.relevance is not None)
    every = (_Line(_TITLES[0], "recall", True, recall), _Line(_TITLES[1], "relevance", False, relevance))
    return [line for line in every if line.points]


def _grid(plot: _Plot, top: float) -> Iterator[Html]:
    right, bottom = _WIDTH - _RIGHT, top + _PLOT
    for tick in plot.y.ticks(5):
        y = plot.y.at(tick)
        yield tag("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid")
        yield tag("text", f"{tick:.0%}", x=_LEFT - 6, y=y + 4, text_anchor="end", class_="tick")
    for tick in plot.x.ticks():
        x = plot.x.at(tick)
        yield tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 5, class_="grid")
        yield tag("text", f"{100 * tick:.4g}%", x=x, y=bottom + 19, text_anchor="middle", class_="tick")
    middle = (_LEFT + right) / 2
    yield tag("text", "reach, as a share of the eligible people", x=middle, y=bottom + 38, text_anchor="middle")


def _chance(plot: _Plot) -> Html:
    """Recall of an audience drawn by lot: it reaches as many of the seeds as of anybody."""
    steps = 40
    shares = [plot.x.low * (plot.x.high / plot.x.low) ** (i / steps) for i in range(steps + 1)]
    return tag("polyline", points=" ".join(plot.place(share, min(share, 1.0)) for share in shares), class_="chance")


def _ribbon(line: _Line, plot: _Plot) -> Html:
    upper = [(_share(p, p.people.low if line.rises else p.people.high), found.high) for p, found in line.points]
    lower = [(_share(p, p.people.high if line.rises else p.people.low), found.low) for p, found in line.points]
    places = " ".join(plot.place(*corner) for corner in [*upper, *reversed(lower)])
    return tag("polygon", points=places, class_=f"ribbon {line.style}")


def _curve(line: _Line, plot: _Plot) -> Html:
    places = " ".join(plot.place(point.share, found.value) for point, found in line.points)
    return tag("polyline", points=places, class_=f"curve {line.style}")


def _level(level: ReachLevel, point: CurvePoint, row: int | None, plot: _Plot, is_chosen: bool) -> Html:
    """A line where the level stands, under its name; where its name has no room, the line alone."""
    x, bottom = plot.x.at(point.share), plot.y.at(0.0)
    top = plot.y.at(1.0) if row is None else _LABEL_ROW * (row + 1)
    line = tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="level chosen" if is_chosen else "level")
    if row is None:
        return line
    name = tag("text", _name(level.name), x=x, y=top - 3, text_anchor="middle", class_="name" if is_chosen else "row")
    return tag("g", line, name)


def _name(name: str) -> str:
    return shortened(label(name), _NAME_LENGTH)


def _is_bin(name: str) -> bool:
    """Whether a level is one of many bins, which are drawn as lines alone."""
    return name.startswith("bin-")


def _rows(levels: Sequence[tuple[str, float]], axis: LogAxis) -> dict[str, int | None]:
    """The row of each level's name, so that none cover each other; None where all rows are taken."""
    ends = [-1e9] * _LABEL_ROWS
    result: dict[str, int | None] = {}
    for name, share in sorted(levels, key=lambda level: level[1]):
        half = _CHARACTER * len(_name(name)) / 2 + 4
        x = axis.at(share)
        free = [] if _is_bin(name) else [row for row, end in enumerate(ends) if x - half >= end]
        result[name] = free[0] if free else None
        if free:
            ends[free[0]] = x + half
    return result


def _markers(
    line: _Line, shown: Sequence[tuple[ReachLevel, CurvePoint]], plot: _Plot, chosen: str | None
) -> Iterator[Html]:
    """A circle or a square where a curve meets a level, with the interval of its value."""
    values = {point.cutoff: found for point, found in line.points}
    for level, point in shown:
        found = values.get(point.cutoff)
        if found is None or (_is_bin(level.name) and level.name != chosen):
            continue
        x, y = plot.x.at(point.share), plot.y.at(found.value)
        size = 6.0 if level.name == chosen else 4.0
        words = f"{label(level.name)}: {measured_band(point.people)} people, {line.title} {measured_percent(found)}"
        yield tag("line", x1=x, x2=x, y1=plot.y.at(found.low), y2=plot.y.at(found.high), class_="range")
        if line.rises:
            yield tag("circle", tag("title", words), cx=x, cy=y, r=size, class_=f"mark {line.style}")
        else:
            place = {"x": x - size, "y": y - size, "width": 2 * size, "height": 2 * size}
            yield tag("rect", tag("title", words), class_=f"mark {line.style}", **place)


def _names(lines: Sequence[_Line], plot: _Plot) -> Iterator[Html]:
    """The curves' names at their right ends, kept apart."""
    ends = sorted(((plot.y.at(line.points[-1][1].value), line) for line in lines), key=lambda end: end[0])
    last = -1e9
    for y, line in ends:
        last = max(y + 4, last + _LEAST_GAP)
        x = plot.x.at(line.points[-1][0].share) + 8
        yield tag("text", line.title, x=x, y=last, class_=f"curve-name {line.style}")


def _spoken(shown: Sequence[tuple[ReachLevel, CurvePoint]], chosen: str | None) -> str:
    parts = [f"{label(level.name)}{' (chosen)' if level.name == chosen else ''}: {_said(p)}" for level, p in shown]
    return f"Reach and dilution of {plural(len(shown), 'level')}. " + "; ".join(parts)


def _said(point: CurvePoint) -> str:
    words = [f"{percent(point.share)} of the eligible"]
    for title, found in zip(_TITLES, (point.recall, point.relevance), strict=True):
        words.append(f"{title} {measured_percent(found)}" if found is not None else f"{title} hidden by the noise")
    return ", ".join(words)
