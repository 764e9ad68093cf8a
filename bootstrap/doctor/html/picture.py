"""The treemap: one area for each category, in it one for each of its largest files.

Text in a drawing that is scaled to a phone's width cannot be read, so there are two drawings, and
the style sheet shows the one that fits. Every label is measured against its tile.

The layout is a squarified treemap: rectangles with areas in proportion, as near to squares as they
get. After Bruls, Huizing and van Wijk, "Squarified Treemaps" (2000). Pure geometry.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bootstrap.core.text import counted
from bootstrap.doctor.html.text import escaped, mappings, number, plain, size

MOST_HOLDINGS = 60
# Longer ones say no more on a page; escaping can make one character six.
_MOST_NAME, _MOST_PATH = 60, 160
_MOST_FILES = 5
_MOST_LARGEST = 16
# What an inventory says of files nothing is wrong with.
_NO_TROUBLE = ("good", "unread", "")
HUES = 8
_MOST_TITLE = 80
# Categories with an area of their own; the others share one.
MOST_AREAS = 11
_FONT, _LINE, _MARGIN = 12.0, 15.0, 5.0
_HEAD = 19.0
_LEAST_LABEL = 4
_GAP = 1.0
# Widths of letters in parts of the font's size, on the safe side for common fonts.
_EM = 0.6
_EM_WIDE = 1.05
_BOLD = 1.17
_NARROW_LETTERS = frozenset("fijlrt.,:;'|!()[]/- 1")
_WIDE_LETTERS = frozenset("mwMWGOQDHNU@%&—…")


@dataclass(frozen=True)
class File:
    """One of the largest files; `trouble` is what is wrong with its contents, if anything."""

    path: str
    size: float
    trouble: str

    @property
    def name(self) -> str:
        """The path's last part."""
        return self.path.rpartition("/")[2] or self.path


@dataclass(frozen=True)
class Holding:
    """One category: sizes in bytes, the largest models, the number of all."""

    name: str
    count: int
    size: float
    other_count: int
    other_size: float
    largest: tuple[File, ...]

    @property
    def total(self) -> float:
        """Models and what lies beside them."""
        return self.size + self.other_size


def holdings_of(inventory: Mapping[str, Any]) -> list[Holding]:
    """Categories by falling size."""
    found = [_holding(said) for said in mappings(inventory.get("categories"))[:MOST_HOLDINGS]]
    return sorted(found, key=lambda h: (-h.total, h.name))


def largest_of(holdings: Sequence[Holding]) -> list[File]:
    """The largest files of all categories."""
    files = [
        File(f"{h.name}/{f.name}" if "/" not in f.path else f.path, f.size, f.trouble)
        for h in holdings
        for f in h.largest
    ]
    return sorted(files, key=lambda f: -f.size)[:_MOST_LARGEST]


def _holding(said: Mapping[str, Any]) -> Holding:
    files = [_file(f) for f in mappings(said.get("largest"))[:_MOST_FILES]]
    return Holding(
        name=plain(said.get("name"), _MOST_NAME) or "(straight under models)",
        count=int(number(said.get("count"))),
        size=number(said.get("size")),
        other_count=int(number(said.get("other_count"))),
        other_size=number(said.get("other_size")),
        largest=tuple(sorted((f for f in files if f.size), key=lambda f: -f.size)),
    )


def _file(said: Mapping[str, Any]) -> File:
    state = plain(said.get("state"), 40).replace("_", " ")
    return File(
        path=_tail(plain(said.get("path"), 4 * _MOST_PATH)),
        size=number(said.get("size")),
        trouble="" if state in _NO_TROUBLE else state,
    )


def _tail(path: str) -> str:
    """A long path's end, which has the file's name."""
    return path if len(path) <= _MOST_PATH else "…" + path[1 - _MOST_PATH :]


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


WIDE, NARROW = Rect(0, 0, 960, 420), Rect(0, 0, 328, 460)


@dataclass(frozen=True)
class Area:
    """A category as drawn; `parts` (label, bytes, trouble) fill it."""

    name: str
    hue: int
    total: float
    words: str
    parts: tuple[tuple[str, float, str], ...]


def picture_html(holdings: Sequence[Holding]) -> str:
    """Both drawings; nothing where there are no bytes to show."""
    areas = areas_of(holdings)
    if not areas:
        return ""
    spoken = ", ".join(f"{a.name} {size(a.total)}" for a in areas)
    label = escaped(f"Treemap of sizes: {spoken}. The tables below have the numbers.")
    drawings = "".join(
        f'<svg class="{name}" viewBox="0 0 {room.width:g} {room.height:g}" role="img" '
        f'aria-label="{label}">{"".join(_draw(areas, room))}</svg>'
        for name, room in (("wide", WIDE), ("narrow", NARROW))
    )
    return f'<figure class="treemap">{drawings}</figure>'


def areas_of(holdings: Sequence[Holding]) -> list[Area]:
    """The largest categories, and one area for all others together."""
    filled = [h for h in holdings if h.total > 0]
    areas = [_area(h, min(i, HUES - 1)) for i, h in enumerate(filled[:MOST_AREAS])]
    if rest := filled[MOST_AREAS:]:
        total = sum(h.total for h in rest)
        parts = tuple((h.name, h.total, "") for h in rest)
        name = counted(len(rest), "more category", "more categories")
        areas.append(Area(name, HUES - 1, total, "", parts))
    return areas


def _area(holding: Holding, hue: int) -> Area:
    parts = [(f.name, f.size, f.trouble) for f in holding.largest]
    # Hard links make the files' sum larger than what they take; then there is no rest.
    rest = holding.size - sum(f.size for f in holding.largest)
    if rest > 0:
        left = max(holding.count - len(holding.largest), 0)
        parts.append((counted(left, "smaller model") if left else "the rest", rest, ""))
    if holding.other_size > 0:
        parts.append((counted(holding.other_count, "other file"), holding.other_size, ""))
    words = counted(holding.count, "model")
    return Area(holding.name, hue, holding.total, words, tuple(parts))


def _draw(areas: Sequence[Area], room: Rect) -> Iterator[str]:
    for area, place in zip(areas, squarify([a.total for a in areas], room), strict=True):
        yield from _draw_area(area, place)


def _draw_area(area: Area, place: Rect) -> Iterator[str]:
    inner = place.inset(_GAP)
    if inner.width < 1 or inner.height < 1:
        return
    title = f"{area.name}: {size(area.total)}" + (f", {area.words}" if area.words else "")
    headed = inner.height > 3 * _HEAD and bool(fitted(area.name, inner.width / _BOLD))
    yield f'<g class="h{area.hue}"><title>{escaped(title)}</title>'
    yield _box(inner, "ground")
    if headed:
        yield _heading(area, inner)
    room = inner.inset(2 * _GAP, _HEAD - 2 * _GAP if headed else 0.0)
    parts = sorted(area.parts, key=lambda part: -part[1])
    for part, tile in zip(parts, squarify([p[1] for p in parts], room), strict=True):
        yield from _draw_part(area, part, tile.inset(_GAP / 2))
    yield "</g>"


def _heading(area: Area, inner: Rect) -> str:
    """The category's name, and its size at the right where both fit."""
    amount = size(area.total)
    name = fitted(area.name, inner.width / _BOLD)
    text = _text(inner.x + _MARGIN, inner.y + 14, name, "name")
    if width_of(name) * _BOLD + width_of(amount) + 3 * _MARGIN < inner.width and name == area.name:
        right = inner.x + inner.width - _MARGIN
        text += _text(right, inner.y + 14, amount, "amount")
    return text


def _draw_part(area: Area, part: tuple[str, float, str], tile: Rect) -> Iterator[str]:
    if tile.width < 0.5 or tile.height < 0.5:
        return
    name, amount, trouble = part
    title = f"{plain(name, _MOST_TITLE)}: {size(amount)}" + (f", {trouble}" if trouble else "")
    yield f"<g><title>{escaped(title)}</title>{_box(tile, 'bad' if trouble else 'tile')}"
    label = fitted(f"✗ {name}" if trouble else name, tile.width)
    if label and tile.height > _LINE + 2:
        yield _text(tile.x + _MARGIN, tile.y + _LINE, label)
        if tile.height > 2 * _LINE + 4 and (second := fitted(size(amount), tile.width, whole=True)):
            yield _text(tile.x + _MARGIN, tile.y + 2 * _LINE, second, "size")
    yield "</g>"


def _box(place: Rect, kind: str) -> str:
    return (
        f'<rect class="{kind}" x="{place.x:.1f}" y="{place.y:.1f}" width="{place.width:.1f}" '
        f'height="{place.height:.1f}" rx="2"/>'
    )


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}">{escaped(text)}</text>'


def width_of(text: str) -> float:
    """About how wide a label is, rather too wide than too narrow."""
    return sum(map(_letter_width, text)) * _FONT


def _letter_width(letter: str) -> float:
    if unicodedata.east_asian_width(letter) in "WF":
        return _EM_WIDE
    if unicodedata.combining(letter):
        return 0.0
    if letter in _WIDE_LETTERS:
        return 0.95
    if letter in _NARROW_LETTERS:
        return 0.4
    return _EM if letter.isascii() else 0.9


def fitted(text: str, width: float, whole: bool = False) -> str:
    """As much of `text` as fits into a tile of `width`, "" where that says nothing."""
    room = width - 2 * _MARGIN
    if width_of(text) <= room:
        return text
    taken, used = "", width_of("…")
    for letter in text:
        used += _letter_width(letter) * _FONT
        if used > room:
            break
        taken += letter
    return "" if whole or len(taken) < _LEAST_LABEL else taken.rstrip() + "…"
