"""The boot's stages as a waterfall: one row each, a bar from start to end, an axis in seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import floor, log10
from typing import Any

from bootstrap.core.text import counted
from bootstrap.page.text import mappings, number, plain, safe, seconds, size

MOST_STAGES = 40
_MOST_NAME, _MOST_OUTCOME, _MOST_NOTE = 60, 60, 120


def timeline_html(timeline: object) -> str:
    """The section, or nothing where no stage was recorded."""
    stages = sorted(mappings(timeline), key=lambda s: number(s.get("start")))
    if not stages:
        return ""
    total = max(number(s.get("start")) + number(s.get("seconds")) for s in stages) or 1.0
    rows = "".join(_row(stage, total) for stage in stages[:MOST_STAGES])
    more = len(stages) - MOST_STAGES
    note = f'<p class="note">{counted(more, "more stage")} not shown.</p>' if more > 0 else ""
    return (
        '<section class="card boot" aria-labelledby="boot"><div class="top">'
        f'<h2 id="boot">Boot</h2><p class="note">{seconds(total)} in all</p></div>'
        f"{_axis(total)}<ol>{rows}</ol>{note}</section>"
    )


def _row(stage: Mapping[str, Any], total: float) -> str:
    start, length = number(stage.get("start")), number(stage.get("seconds"))
    name, outcome = safe(stage.get("name"), _MOST_NAME), plain(stage.get("outcome"), _MOST_OUTCOME)
    good = outcome == "ok"
    kind, mark = ("ok", "✓") if good else ("error", "✗")
    said = "" if good else f' <span class="failed">{safe(outcome or "no outcome", 60)}</span>'
    title = f"from {seconds(start)} to {seconds(start + length)}{_more(stage)}"
    spoken = "ok" if good else "failed"
    return (
        f'<li><span class="stage"><span class="mark {kind}" role="img" aria-label="{spoken}">'
        f"{mark}</span> <bdi>{name}</bdi>{said}</span>"
        f'<span class="took">{seconds(length)}</span>'
        f'<svg class="bar" width="100%" height="14" aria-hidden="true"><title>{title}</title>'
        f'{_grid(total)}<rect class="{kind}" x="{100 * start / total:.2f}%" y="2" height="10" '
        f'rx="2" width="{max(100 * length / total, 0.4):.2f}%"/></svg></li>'
    )


def _more(stage: Mapping[str, Any]) -> str:
    """What it moved, and what else it says, for whoever points at the bar."""
    moved = size(stage.get("bytes")) if number(stage.get("bytes")) else ""
    return "".join(f"; {part}" for part in (moved, safe(stage.get("note"), _MOST_NOTE)) if part)


def _axis(total: float) -> str:
    """Times above the bars, as far to the right as they are late."""
    labels = "".join(
        f'<text x="{at:.2f}%" y="12" text-anchor="{_anchor(at)}">{value:g}{unit}</text>'
        for at, value, unit in _ticks(total)
    )
    return f'<svg class="axis" width="100%" height="16" aria-hidden="true">{labels}</svg>'


def _anchor(at: float) -> str:
    return "start" if at < 2 else "end" if at > 94 else "middle"


def _grid(total: float) -> str:
    return "".join(
        f'<line x1="{at:.2f}%" x2="{at:.2f}%" y1="0" y2="14"/>' for at, _, _ in _ticks(total)
    )


def _ticks(total: float) -> Iterator[tuple[float, float, str]]:
    """Round times from 0 to `total`, four to eight: place in percent, number, unit."""
    exponent = floor(log10(total / 4))
    steps = [factor * 10.0**exponent for factor in (1, 2, 5, 10)]
    step = max((s for s in steps if total / s >= 3.9), default=steps[0])
    index = 0
    while index * step <= total * 1.0001 and index < 12:
        value = round(index * step, 6)
        yield 100 * value / total, value, " s"
        index += 1
