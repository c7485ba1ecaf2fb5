"""How much commoner a category is in an audience than among the eligible: an index, 100 for as common, by logarithm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cohortium.governance.report.charts.axis import LogAxis, log_axis_over
from cohortium.governance.report.markup import Html, tag
from cohortium.governance.report.wording import shortened

__all__ = ["IndexRow", "index_chart"]

_WIDTH, _ROW, _TOP = 640.0, 22.0, 8.0
_LABELS, _VALUES, _LONGEST = 260.0, 66.0, 36
_LEAST, _MOST = 5.0, 2000.0  # beyond them an index is drawn at the end of the axis


@dataclass(frozen=True)
class IndexRow:
    """One category.

    Args:
        name: for people.
        index: 100 times its share in the audience over its share among the eligible.
        low, high: the 95% interval; `high` may be infinite.
        words: index and interval in words.
    """

    name: str
    index: float
    low: float
    high: float
    words: str


def index_chart(rows: Sequence[IndexRow]) -> Html:
    """A dot for every index and a line for its interval; at least one row."""
    ends = [min(max(end, _LEAST), _MOST) for row in rows for end in (row.index, row.low, row.high)]
    axis = log_axis_over([*ends, 70.0, 140.0], _LABELS + 10, _WIDTH - _LABELS - _VALUES - 20)
    bottom = _TOP + _ROW * len(rows)
    return tag(
        "svg",
        *_grid(axis, bottom),
        *(_row(row, axis, _TOP + _ROW * (i + 0.5)) for i, row in enumerate(rows)),
        viewBox=f"0 0 {_WIDTH:.0f} {bottom + 40:.0f}",
        role="img",
        aria_label="Index of categories, 100 for as common as among the eligible. "
        + "; ".join(f"{row.name}: {row.words}" for row in rows),
        class_="index",
    )


def _grid(axis: LogAxis, bottom: float) -> Iterator[Html]:
    for tick in axis.ticks():
        x = axis.at(tick)
        yield tag("line", x1=x, x2=x, y1=_TOP, y2=bottom, class_="limit thin" if tick == 100 else "grid")
        yield tag("text", f"{tick:,.0f}", x=x, y=bottom + 15, text_anchor="middle", class_="tick")
    yield tag(
        "text", "100: as among the eligible", x=axis.at(100.0), y=bottom + 33, text_anchor="middle", class_="tick"
    )


def _row(row: IndexRow, axis: LogAxis, y: float) -> Html:
    return tag(
        "g",
        tag("text", shortened(row.name, _LONGEST), x=_LABELS, y=y + 4, text_anchor="end", class_="row"),
        tag("line", x1=axis.at(row.low), x2=axis.at(row.high), y1=y, y2=y, class_="range"),
        tag(
            "circle", tag("title", f"{row.name}: {row.words}"), cx=axis.at(row.index), cy=y, r=4.5, class_="mark recall"
        ),
        tag("text", f"{row.index:,.0f}", x=_WIDTH, y=y + 4, text_anchor="end", class_="row"),
    )
