"""Lift by tenths of people, best first: a bar each, with its 95% interval and the line of chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cohortium.governance.report.bands import HIDDEN
from cohortium.governance.report.charts.axis import LinearAxis
from cohortium.governance.report.markup import Html, tag
from cohortium.governance.report.wording import amount, measured_interval
from cohortium.study.reach import Measured

__all__ = ["decile_chart"]

_WIDTH, _PLOT, _TOP, _BOTTOM = 640.0, 220.0, 24.0, 44.0
_LEFT, _RIGHT = 40.0, 60.0
_TICKS = 5


def decile_chart(deciles: Sequence[Measured | None]) -> Html:
    """Ten bars."""
    most = max((found.high for found in deciles if found is not None), default=1.0)
    axis = LinearAxis(0.0, 1.06 * max(most, 1.2), _TOP + _PLOT, -_PLOT)
    step = (_WIDTH - _LEFT - _RIGHT) / len(deciles)
    return tag(
        "svg",
        *_grid(axis),
        *(_bar(i + 1, found, axis, _LEFT + step * i, step) for i, found in enumerate(deciles)),
        *_chance(axis),
        viewBox=f"0 0 {_WIDTH:.0f} {_TOP + _PLOT + _BOTTOM:.0f}",
        role="img",
        aria_label=_spoken(deciles),
        class_="deciles",
    )


def _grid(axis: LinearAxis) -> Iterator[Html]:
    for tick in axis.ticks(_TICKS):
        y = axis.at(tick)
        yield tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid")
        yield tag("text", axis.written(tick, _TICKS), x=_LEFT - 6, y=y + 4, text_anchor="end", class_="tick")
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield tag("text", "tenths of people, by score, best first", x=middle, y=axis.start + 38, text_anchor="middle")


def _bar(number: int, found: Measured | None, axis: LinearAxis, left: float, step: float) -> Html:
    middle, zero = left + step / 2, axis.at(0.0)
    name = tag("text", number, x=middle, y=zero + 17, text_anchor="middle", class_="tick")
    if found is None:
        return tag("g", name, tag("text", "hidden", x=middle, y=zero - 6, text_anchor="middle", class_="tick"))
    top, high, low = (axis.at(value) for value in (found.value, found.high, found.low))
    title = tag("title", f"tenth {number}: {_written(found)}, 95% {measured_interval(found)}")
    return tag(
        "g",
        tag("rect", title, x=left + 0.18 * step, y=top, width=0.64 * step, height=zero - top, class_="spent"),
        tag("line", x1=middle, x2=middle, y1=low, y2=high, class_="range"),
        tag("text", _written(found), x=middle, y=high - 5, text_anchor="middle", class_="row plain"),
        name,
    )


def _chance(axis: LinearAxis) -> Iterator[Html]:
    y = axis.at(1.0)
    yield tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="chance")
    yield tag("text", "chance", x=_WIDTH - _RIGHT + 6, y=y + 4, class_="tick")


def _written(found: Measured) -> str:
    """A lift with the digits that its interval supports, two decimals at most."""
    return amount(found.value, max(found.high - found.value, found.value - found.low, 0.1))


def _spoken(deciles: Sequence[Measured | None]) -> str:
    words = (HIDDEN if found is None else f"{_written(found)}, 95% {measured_interval(found)}" for found in deciles)
    return "Lift by tenths of people, best first. " + "; ".join(f"{i}: {said}" for i, said in enumerate(words, start=1))
