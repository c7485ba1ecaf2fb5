"""Estimates with their intervals, beside the limit that they are judged by: a dot and a line for every row.

A verdict is told by the shape of the mark, and by the word beside it; colour only repeats it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cohortium.governance.report.charts.axis import LinearAxis
from cohortium.governance.report.markup import Html, join, tag
from cohortium.governance.report.wording import number, shortened

__all__ = ["IntervalRow", "IntervalScale", "Mark", "interval_chart", "interval_scale"]

_WIDTH, _ROW, _TOP = 680.0, 22.0, 20.0
_LABELS, _VALUES, _LONGEST, _INDENT = 216.0, 142.0, 30, 14.0
_START, _LENGTH = _LABELS + 12, _WIDTH - _LABELS - _VALUES - 26
_TICKS, _FAR, _LEAST, _SIZE = 6, 2.5, 0.05, 5.0

Mark = Literal["pass", "fail", "inconclusive", "insufficient", "described", "reference", "suppressed"]
"""What a row's mark says: a verdict, no verdict, that others are compared with it, or that it is not shown."""


@dataclass(frozen=True)
class IntervalRow:
    """One number.

    Args:
        name: what it is of.
        mark: how it is drawn.
        words: number and verdict, short, at the right end.
        spoken: the whole of it in words.
        estimate, low, high: the number and its interval; None where there is none, `high` also where it has no end.
        inner: whether it is one institution's, under the row of all.
    """

    name: str
    mark: Mark
    words: str
    spoken: str
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    inner: bool = False


@dataclass(frozen=True)
class IntervalScale:
    """What the rows of one metric share.

    Args:
        axis: of the values. What lies beyond is drawn as an arrow at its end.
        limit: the threshold; None for what is not judged.
        side: whether passing means at least or at most that.
        even: the value at which groups fare alike; None where there is none.
    """

    axis: LinearAxis
    limit: float | None
    side: Literal["at least", "at most"]
    even: float | None


def interval_scale(
    rows: Sequence[IntervalRow], limit: float | None, side: Literal["at least", "at most"], even: float | None
) -> IntervalScale:
    """A scale that holds 0, the limit, every estimate that can be judged, and intervals as far as they can be read."""
    marks = [value for value in (limit, even) if value is not None]
    marks += [
        row.estimate for row in rows if row.estimate is not None and row.mark not in ("insufficient", "suppressed")
    ]
    far = _FAR * max([_LEAST, *map(abs, marks)])
    ends = [end for row in rows for end in (row.low, row.high) if end is not None and row.mark != "suppressed"]
    within = [min(max(end, -far), far) for end in (0.0, *marks, *ends)]
    low, high = min(within), max(*within, _LEAST)
    room = 0.04 * (high - low)
    return IntervalScale(LinearAxis(low - room if low < 0 else low, high + room, _START, _LENGTH), limit, side, even)


def interval_chart(title: str, rows: Sequence[IntervalRow], scale: IntervalScale) -> Html:
    """A row for every number, the limit as a line, the side on which it fails shaded; at least one row."""
    bottom = _TOP + _ROW * len(rows)
    return tag(
        "svg",
        *_beyond(scale, bottom),
        *_grid(scale.axis, bottom),
        *_lines(scale, bottom),
        *(_row(row, scale.axis, _TOP + _ROW * (i + 0.5)) for i, row in enumerate(rows)),
        viewBox=f"0 0 {_WIDTH:.0f} {bottom + 20:.0f}",
        role="img",
        aria_label=f"{title}. {_limit_words(scale)}" + "; ".join(row.spoken for row in rows),
        class_="interval",
    )


def _limit_words(scale: IntervalScale) -> str:
    return "" if scale.limit is None else f"Limit: {scale.side} {number(scale.limit)}. "


def _beyond(scale: IntervalScale, bottom: float) -> Iterator[Html]:
    if scale.limit is None:
        return
    axis = scale.axis
    ends = (axis.low, scale.limit) if scale.side == "at least" else (scale.limit, axis.high)
    left, right = (axis.at(end) for end in ends)
    yield tag("rect", x=left, y=_TOP, width=right - left, height=bottom - _TOP, class_="beyond")


def _grid(axis: LinearAxis, bottom: float) -> Iterator[Html]:
    for tick in axis.ticks(_TICKS):
        x = axis.at(tick)
        yield tag("line", x1=x, x2=x, y1=_TOP, y2=bottom, class_="grid")
        yield tag("text", axis.written(tick, _TICKS), x=x, y=bottom + 15, text_anchor="middle", class_="tick")


def _lines(scale: IntervalScale, bottom: float) -> Iterator[Html]:
    if scale.even is not None:
        x = scale.axis.at(scale.even)
        yield tag("line", x1=x, x2=x, y1=_TOP, y2=bottom, class_="chance")
    if scale.limit is not None:
        x = scale.axis.at(scale.limit)
        yield tag("line", x1=x, x2=x, y1=_TOP - 4, y2=bottom, class_="limit thin")
        words = f"limit: {scale.side} {number(scale.limit)}"
        yield tag("text", words, x=x, y=_TOP - 8, text_anchor=_anchor(x), class_="tick")


def _anchor(x: float) -> str:
    """So that a label at x stays within the drawing."""
    share = (x - _START) / _LENGTH
    return "start" if share < 0.2 else "end" if share > 0.8 else "middle"


def _row(row: IntervalRow, axis: LinearAxis, y: float) -> Html:
    indent, class_ = (_INDENT, "row inner") if row.inner else (0.0, "row")
    return tag(
        "g",
        tag("title", row.spoken),
        tag("text", shortened(row.name, _LONGEST), x=2.0 + indent, y=y + 4, class_=class_),
        *_range(row, axis, y),
        *_mark(row, axis, y),
        tag("text", row.words, x=_WIDTH - 2, y=y + 4, text_anchor="end", class_=class_),
    )


def _range(row: IntervalRow, axis: LinearAxis, y: float) -> Iterator[Html]:
    if row.low is None or row.mark in ("suppressed", "reference"):
        return
    high = axis.high if row.high is None else row.high
    left, right = (axis.at(min(max(end, axis.low), axis.high)) for end in (row.low, high))
    yield tag("line", x1=left, x2=right, y1=y, y2=y, class_=f"range {row.mark}")
    if row.high is None or row.high > axis.high:
        yield _arrow(right, y, 1)
    if row.low < axis.low:
        yield _arrow(left, y, -1)


def _arrow(x: float, y: float, way: int) -> Html:
    return tag("polygon", points=_points((x, y - 4), (x + 7 * way, y), (x, y + 4)), class_="tip")


def _mark(row: IntervalRow, axis: LinearAxis, y: float) -> Iterator[Html]:
    if row.estimate is None or row.mark == "suppressed" or not axis.low <= row.estimate <= axis.high:
        return
    x, class_ = axis.at(row.estimate), f"verdict {row.mark}"
    match row.mark:
        case "fail":
            corners = (x, y - 6.5), (x + 6.5, y), (x, y + 6.5), (x - 6.5, y)
            yield tag("polygon", points=_points(*corners), class_=class_)
        case "insufficient":
            yield join(
                tag("line", x1=x - 4, x2=x + 4, y1=y - 4 * way, y2=y + 4 * way, class_=class_) for way in (1, -1)
            )
        case "reference":
            yield tag("rect", x=x - 4.5, y=y - 4.5, width=9, height=9, class_=class_)
        case _:
            yield tag("circle", cx=x, cy=y, r=_SIZE, class_=class_)


def _points(*corners: tuple[float, float]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in corners)
