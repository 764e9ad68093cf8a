"""The bar chart of cold starts, drawn from the tables of docs/benchmarks.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

LANGUAGES = {"en": "", "ru": ".ru"}
# The rows of the table "Times" to draw, by group, with the index of their labels.
_ROWS = (
    (
        ("ours, volume, 2 GB", 0),
        ("ours, all local, 2 GB", 1),
        ("worker-comfyui's sequence, 2 GB", 2),
        ("ComfyUI run from the volume by the first job, 2 GB", 3),
    ),
    (("ours, volume, 7 GB", 0), ("worker-comfyui's sequence, 7 GB", 2)),
    (("copied to local disk, later start", 0), ("run from the volume", 3)),
)
_WORDS = {
    "en": (
        ("2 GB model", "7 GB model", "a venv on the volume, until ComfyUI answers"),
        (
            "this worker",
            "… all on local disk",
            "worker-comfyui's start sequence",
            "ComfyUI run from the volume",
        ),
    ),
    "ru": (
        ("модель 2 ГБ", "модель 7 ГБ", "venv на томе, до ответа ComfyUI"),
        (
            "этот воркер",
            "… всё на локальном диске",
            "порядок запуска worker-comfyui",
            "ComfyUI прямо с тома",
        ),
    ),
}
_WIDTH, _LABELS, _ROW, _BAR = 760, 250, 26, 18
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #57606a }
  .title { font-weight: 600; fill: #24292f }
  .ours { fill: #4051b5 } .other { fill: #9aa3ad }
  @media (prefers-color-scheme: dark) {
    text { fill: #9aa3ad } .title { fill: #e6edf3 } .ours { fill: #7a8cf0 } .other { fill: #57606a }
  }
"""


def cold_starts(benchmarks: str, language: str) -> str:
    """An SVG with the median seconds of each cold start. Raises KeyError if a row is missing."""
    titles, labels = _WORDS[language]
    seconds = {row: _seconds(benchmarks, row) for rows in _ROWS for row, _ in rows}
    scale = (_WIDTH - _LABELS - 70) / max(seconds.values())
    lines: list[str] = []
    y = 4
    for title, rows in zip(titles, _ROWS, strict=True):
        lines.append(f'<text class="title" x="0" y="{y + 14}">{escape(title)}</text>')
        for row, label in rows:
            y += _ROW
            lines += _bar(labels[label], seconds[row], scale, y, "ours" if label < 2 else "other")
            lines.append(_figure(seconds[row], scale, y, language))
        y += _ROW + 8
    return _svg(lines, y)


def _bar(label: str, seconds: float, scale: float, y: int, kind: str) -> Sequence[str]:
    size = f'width="{seconds * scale:.0f}" height="{_BAR}"'
    return (
        f'<text x="{_LABELS - 10}" y="{y + 14}" text-anchor="end">{escape(label)}</text>',
        f'<rect class="{kind}" x="{_LABELS}" y="{y}" rx="3" {size}/>',
    )


def _figure(seconds: float, scale: float, y: int, language: str) -> str:
    shown = f"{seconds + 1e-9:.1f}"  # 22.45 is 22.5, as people round
    label = f"{shown.replace('.', ',')} с" if language == "ru" else f"{shown} s"
    return f'<text x="{_LABELS + seconds * scale + 8:.0f}" y="{y + 14}">{label}</text>'


def _svg(lines: Sequence[str], height: int) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">'
    return "\n".join([head, f"<style>{_STYLE}</style>", *lines, "</svg>", ""])


def _seconds(benchmarks: str, row: str) -> float:
    found = re.search(rf"^\| {re.escape(row)} \| ([\d.]+) s \|", benchmarks, re.MULTILINE)
    if found is None:
        raise KeyError(row)
    return float(found[1])
