"""The segment map: released centres in two dimensions, drawn as circles whose area follows the size band."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohortium.governance.report.charts.labels import Box, Circle, place_labels
from cohortium.governance.report.charts.projection import Projection, project
from cohortium.governance.report.markup import Html, join, tag
from cohortium.governance.report.wording import label, percent, plural, shortened

__all__ = ["COLOURS", "Place", "SegmentMap", "colour", "segment_map"]

COLOURS = 7
"""Colours of the palette; segments beyond take them again, and always carry their number."""

_WIDTH = 620.0
_MARGIN = 26.0
_LEAST_HEIGHT, _MOST_HEIGHT = 220.0, 460.0
_FONT = 14.0
_CHARACTER = 0.6 * _FONT
_NAMED = 14
"""Up to so many segments the map prints names beside numbers."""
_LINE_LENGTH, _LINES = 20, 2
_LINE_HEIGHT = _FONT + 2
_STRONG = 0.45


@dataclass(frozen=True)
class Place:
    """One segment to draw.

    Args:
        id, name: how it is called.
        centre: in the scaled space.
        weight: what the circle's area follows, positive: typical for the size band, or the same for all.
        size: its size in words.
    """

    id: int
    name: str
    centre: tuple[float, ...]
    weight: float
    size: str


@dataclass(frozen=True)
class SegmentMap:
    """The drawing, and the share of the spread between centres that it shows."""

    drawing: Html
    kept: float


def colour(segment: int) -> str:
    """The style class that colours a segment."""
    return f"c{(segment - 1) % COLOURS}"


def segment_map(places: Sequence[Place], axes: Sequence[str]) -> SegmentMap:
    """Draw the segments; at least one.

    Args:
        places: the segments.
        axes: names of the features behind the centres' coordinates, in order.
    """
    projection = project([place.centre for place in places], [place.weight for place in places])
    radii = _radii([place.weight for place in places])
    positions, height = _fit(projection.points, max(radii))
    circles = [Circle(float(x), float(y), r) for (x, y), r in zip(positions, radii, strict=True)]
    drawing = tag(
        "svg",
        tag("rect", x=0.5, y=0.5, width=_WIDTH - 1, height=height - 1, rx=6, class_="frame"),
        *(_circle(place, circle) for place, circle in sorted(zip(places, circles, strict=True), key=_by_radius)),
        _labels(places, circles, Box(4, 4, _WIDTH - 8, height - 8)),
        _directions(projection, axes, height),
        viewBox=f"0 0 {_WIDTH:.0f} {height + 44:.0f}",
        role="img",
        aria_label=f"Map of {plural(len(places), 'segment')}. {_described(projection, axes)}",
        class_="map",
    )
    return SegmentMap(drawing, projection.kept)


def _by_radius(drawn: tuple[Place, Circle]) -> float:
    return -drawn[1].radius


def _radii(sizes: Sequence[float]) -> list[float]:
    most = 36.0 * min(1.0, math.sqrt(9 / len(sizes)))
    return [max(5.0, most * math.sqrt(size / max(sizes))) for size in sizes]


def _fit(points: NDArray[np.float64], radius: float) -> tuple[NDArray[np.float64], float]:
    """Positions on the canvas, one scale for both directions, and the height that they need."""
    room = radius + _MARGIN
    low, high = points.min(axis=0), points.max(axis=0)
    wide, tall = np.maximum(high - low, 1e-9)
    scale = min((_WIDTH - 2 * room - 60) / wide, (_MOST_HEIGHT - 2 * room) / tall)
    if not (high - low).any():
        scale = 0.0
    height = max(_LEAST_HEIGHT, scale * tall + 2 * room)
    shifted = (points - (low + high) / 2) * np.array([scale, -scale])
    return shifted + np.array([_WIDTH / 2, height / 2]), height


def _circle(place: Place, circle: Circle) -> Html:
    return tag(
        "circle",
        tag("title", f"{place.id} {place.name}: {place.size}"),
        cx=circle.x,
        cy=circle.y,
        r=circle.radius,
        class_=f"dot {colour(place.id)}",
    )


def _labels(places: Sequence[Place], circles: Sequence[Circle], canvas: Box) -> Html:
    named = len(places) <= _NAMED
    texts = [_lines(_title(place)) if named else [str(place.id)] for place in places]
    boxes = place_labels(circles, [_extent(lines) for lines in texts], canvas)
    return join(_label(lines, box, circle) for lines, box, circle in zip(texts, boxes, circles, strict=True))


def _title(place: Place) -> str:
    """Number and name; a segment without a name of its own is already called by its number."""
    return place.name if place.name == f"segment {place.id}" else f"{place.id} {place.name}"


def _lines(words: str) -> list[str]:
    """The words on at most two lines."""
    lines = textwrap.wrap(words, _LINE_LENGTH, max_lines=_LINES, placeholder="\N{HORIZONTAL ELLIPSIS}")
    return [shortened(line, _LINE_LENGTH + 1) for line in lines]


def _extent(lines: Sequence[str]) -> tuple[float, float]:
    return _CHARACTER * max(map(len, lines)) + 8, _LINE_HEIGHT * len(lines)


def _label(lines: Sequence[str], box: Box, circle: Circle) -> Html:
    x = box.centre[0]
    rows = (tag("tspan", line, x=x, y=box.y + _LINE_HEIGHT * (i + 0.8)) for i, line in enumerate(lines))
    written = tag("text", *rows, text_anchor="middle", class_="name")
    end = (min(max(circle.x, box.x), box.x + box.width), min(max(circle.y, box.y), box.y + box.height))
    distance = math.dist(end, (circle.x, circle.y))
    if distance < circle.radius + 10:
        return written
    share = circle.radius / distance
    start = (circle.x + share * (end[0] - circle.x), circle.y + share * (end[1] - circle.y))
    return join((tag("line", x1=start[0], y1=start[1], x2=end[0], y2=end[1], class_="leader"), written))


def _directions(projection: Projection, axes: Sequence[str], height: float) -> Html:
    lines = []
    for index, arrow in enumerate(("To the right:", "Upwards:")):
        if words := _direction(projection.loadings[index], axes):
            y = height + 18 + 20 * index
            lines.append(tag("text", f"{arrow} {words}", x=4, y=y, class_="axis"))
    return join(lines)


def _direction(loadings: NDArray[np.float64], axes: Sequence[str]) -> str:
    """The features that a direction mostly stands for, at most three."""
    order = np.argsort(-np.abs(loadings), kind="stable")[:3]
    strong = [index for index in order if abs(loadings[index]) >= _STRONG] or [order[0]]
    words = [f"{'more' if loadings[i] > 0 else 'less'} {shortened(label(axes[i]), 24)}" for i in strong]
    return ", ".join(words) if loadings.any() else ""


def _described(projection: Projection, axes: Sequence[str]) -> str:
    words = [_direction(row, axes) for row in projection.loadings]
    right = f" To the right: {words[0]}." if words[0] else ""
    up = f" Upwards: {words[1]}." if words[1] else ""
    return f"The plane shows {percent(projection.kept)} of the spread between the centres.{right}{up}"
