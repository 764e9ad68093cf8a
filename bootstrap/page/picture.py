"""The treemap: one area for each category, in it one for each of its largest files.

Text in a drawing that is scaled to a phone's width cannot be read, so there are two drawings, and
the style sheet shows the one that fits. Every label is measured against its tile.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bootstrap.core.text import counted
from bootstrap.page.holdings import Holding
from bootstrap.page.text import escaped, plain, size
from bootstrap.page.treemap import Rect, squarify

HUES = 8
_MOST_TITLE = 80
WIDE, NARROW = Rect(0, 0, 960, 420), Rect(0, 0, 328, 460)
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
