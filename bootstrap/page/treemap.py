"""Squarified treemaps: rectangles with areas in proportion, as near to squares as they get.

After Bruls, Huizing and van Wijk, "Squarified Treemaps" (2000). Pure geometry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rect:
    """A rectangle; `x` and `y` are its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def area(self) -> float:
        """Width times height."""
        return self.width * self.height

    def inset(self, margin: float, top: float = 0.0) -> Rect:
        """The rectangle without `margin` on all sides and `top` more above; empty if too small."""
        return Rect(
            self.x + margin,
            self.y + margin + top,
            max(self.width - 2 * margin, 0.0),
            max(self.height - 2 * margin - top, 0.0),
        )


def squarify(sizes: Sequence[float], room: Rect) -> list[Rect]:
    """Rectangles that fill `room`, one for each size, in order, areas in proportion.

    Sizes are positive; falling ones give the best shapes. No room or no sizes: empty rectangles.
    """
    total = sum(sizes)
    if not sizes or total <= 0 or room.area <= 0:
        return [Rect(room.x, room.y, 0.0, 0.0) for _ in sizes]
    areas = [size * (room.area / total) for size in sizes]
    placed: list[Rect] = []
    while len(placed) < len(areas):
        rest = areas[len(placed) :]
        count = _row_length(rest, min(room.width, room.height))
        row, room = _lay(rest[:count], room, is_last=count == len(rest))
        placed += row
    return placed


def _row_length(areas: Sequence[float], side: float) -> int:
    """How many go into the next row: as long as the worst of its shapes gets better."""
    count, total = 1, areas[0]
    worst = _worst(areas[0], areas[0], total, side)
    least = most = areas[0]
    for area in areas[1:]:
        least, most, total = min(least, area), max(most, area), total + area
        shape = _worst(least, most, total, side)
        if shape > worst:
            break
        count, worst = count + 1, shape
    return count


def _worst(least: float, most: float, total: float, side: float) -> float:
    """The longest shape in a row of `total` area along `side`: its length over its width."""
    thickness = total / side if side else 0.0
    if not (thickness and least):
        return float("inf")
    return max(most / thickness**2, thickness**2 / least)


def _lay(areas: Sequence[float], room: Rect, is_last: bool) -> tuple[list[Rect], Rect]:
    """A row along the shorter side of `room`, and what is left of the room."""
    upright = room.width >= room.height  # the row is a column at the left
    side, depth = (room.height, room.width) if upright else (room.width, room.height)
    total = sum(areas)
    # The last row takes what is left: sums of rounded numbers neither gap nor stick out.
    thickness = depth if is_last else min(total / side if side else 0.0, depth)
    row: list[Rect] = []
    done = 0.0
    for area in areas:
        start, done = done, done + area
        along, length = side * (start / total), side * (done / total) - side * (start / total)
        if upright:
            row.append(Rect(room.x, room.y + along, thickness, length))
        else:
            row.append(Rect(room.x + along, room.y, length, thickness))
    if upright:
        return row, Rect(room.x + thickness, room.y, room.width - thickness, room.height)
    return row, Rect(room.x, room.y + thickness, room.width, room.height - thickness)
