"""Where labels go so that they cover neither each other nor, as far as possible, the circles they name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Box", "Circle", "place_labels"]

_ANGLES = tuple(math.radians(degrees) for degrees in (0, 180, 270, 90, 315, 225, 45, 135, 338, 202, 22, 158))
_GAPS = (3.0, 12.0, 24.0, 38.0, 54.0, 72.0, 92.0, 114.0, 140.0, 170.0, 210.0)
_MARGIN = 1.5


@dataclass(frozen=True)
class Circle:
    """A circle to be labelled."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Box:
    """A label's rectangle; `x`, `y` is its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def centre(self) -> tuple[float, float]:
        """Its middle."""
        return self.x + self.width / 2, self.y + self.height / 2

    def overlap(self, other: Box) -> float:
        """Area covered by both."""
        wide = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        high = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        return max(wide, 0.0) * max(high, 0.0)

    def grown(self, margin: float) -> Box:
        """The box with a margin around it."""
        return Box(self.x - margin, self.y - margin, self.width + 2 * margin, self.height + 2 * margin)

    def inside(self, other: Box) -> bool:
        """Whether it lies within the other."""
        return (
            self.x >= other.x
            and self.y >= other.y
            and self.x + self.width <= other.x + other.width
            and self.y + self.height <= other.y + other.height
        )


def place_labels(circles: Sequence[Circle], sizes: Sequence[tuple[float, float]], canvas: Box) -> tuple[Box, ...]:
    """A box for the label of every circle, within the canvas, greedily in the given order.

    Each label takes the cheapest of a fixed set of places: inside its circle if it fits, else around it, ever further
    away. Covering an earlier label costs most, covering circles next, distance least.

    Args:
        circles: what to label.
        sizes: width and height of each label.
        canvas: where labels may lie; larger than any label.
    """
    placed: list[Box] = []
    for index, size in enumerate(sizes):
        placed.append(_cheapest(index, size, circles, placed, canvas))
    return tuple(placed)


def _cheapest(
    index: int, size: tuple[float, float], circles: Sequence[Circle], placed: Sequence[Box], canvas: Box
) -> Box:
    """The first of the cheapest places; those further away than the cheapest so far costs are not looked at."""
    least, found = math.inf, canvas
    for gap, box in _places(circles[index], size, canvas):
        if gap >= least:
            break
        cost = _cost(box, gap, index, circles, placed, least)
        if cost < least:
            least, found = cost, box
    return found


def _places(circle: Circle, size: tuple[float, float], canvas: Box) -> Iterator[tuple[float, Box]]:
    width, height = size
    if math.hypot(width, height) <= 2 * circle.radius:
        yield 0.0, Box(circle.x - width / 2, circle.y - height / 2, width, height)
    for gap in _GAPS:
        for angle in _ANGLES:
            reach = circle.radius + gap
            x = circle.x + math.cos(angle) * (reach + width / 2) - width / 2
            y = circle.y + math.sin(angle) * (reach + height / 2) - height / 2
            yield gap, _pushed(Box(x, y, width, height), canvas)


def _pushed(box: Box, canvas: Box) -> Box:
    """The box moved into the canvas."""
    x = min(max(box.x, canvas.x), canvas.x + canvas.width - box.width)
    y = min(max(box.y, canvas.y), canvas.y + canvas.height - box.height)
    return Box(x, y, box.width, box.height)


def _cost(box: Box, gap: float, index: int, circles: Sequence[Circle], placed: Sequence[Box], least: float) -> float:
    """What a place costs, or something from `least` up where it costs that at least."""
    grown = box.grown(_MARGIN)
    labels = sum(grown.overlap(other) for other in placed)
    if (cost := 1e4 * labels + gap) >= least:
        return cost
    own = 0.0 if gap == 0.0 else _covered(box, circles[index])
    others = sum(_covered(box, circle) for at, circle in enumerate(circles) if at != index)
    return 1e4 * labels + 4.0 * (own + others) + gap


def _covered(box: Box, circle: Circle) -> float:
    """About the area of a circle that the box covers: how deep it reaches in, times how wide it can be there."""
    x = min(max(circle.x, box.x), box.x + box.width)
    y = min(max(circle.y, box.y), box.y + box.height)
    depth = circle.radius - math.hypot(x - circle.x, y - circle.y)
    return max(depth, 0.0) * min(box.width, 2 * circle.radius)
