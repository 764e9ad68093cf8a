"""Findings as cards, grouped by what they are about, worst first, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bootstrap.core.findings import OTHER, SECTIONS, Severity
from bootstrap.core.findings import section_of as section_of_code
from bootstrap.core.text import counted
from bootstrap.page.fix import Kind, Piece, pieces
from bootstrap.page.text import (
    breakable,
    escaped,
    items,
    mapping,
    mappings,
    number,
    plain,
    safe,
)

MOST_FINDINGS = 300
_MOST_MESSAGE, _MOST_FIX, _MOST_CODE = 1200, 3000, 80
_MOST_PATHS, _MOST_PATH, _FEW_PATHS = 20, 200, 5

MARKS: Mapping[Severity, tuple[str, str]] = {
    Severity.ERROR: ("✗", "Error"),
    Severity.WARNING: ("!", "Warning"),
    Severity.INFO: ("i", "Note"),
    Severity.OK: ("✓", "Fine"),
}


@dataclass(frozen=True)
class Shown:
    """One finding of the report and what it looks like."""

    severity: Severity
    section: str
    html: str


def severity_of(finding: Mapping[str, Any]) -> Severity:
    """The finding's severity; a note when the report has another word for it."""
    try:
        return Severity(finding.get("severity"))
    except ValueError:
        return Severity.INFO


def section_of(finding: Mapping[str, Any]) -> str:
    """The heading a finding stands under."""
    return section_of_code(plain(finding.get("code"), _MOST_CODE))


def findings_html(findings: object, most_bytes: int) -> str:
    """All sections that have findings. Beyond `most_bytes` the least important are left out."""
    ordered = sorted(mappings(findings), key=lambda f: -severity_of(f).rank)
    shown = _within_budget(ordered, most_bytes)
    sections = "".join(
        _section(name, [s for s in shown if s.section == name]) for name in (*SECTIONS, OTHER)
    )
    left_out = len(ordered) - len(shown)
    note = f"{counted(left_out, 'more finding')} not shown here; --json has all of them."
    return sections + (f'<p class="note">{note}</p>' if left_out else "")


def _within_budget(findings: Iterable[Mapping[str, Any]], left: int) -> list[Shown]:
    shown: list[Shown] = []
    for finding in findings:
        severity = severity_of(finding)
        item = Shown(severity, section_of(finding), _finding(finding, severity))
        left -= len(item.html.encode())
        if left < 0 or len(shown) == MOST_FINDINGS:
            break
        shown.append(item)
    return shown


def _section(name: str, found: Sequence[Shown]) -> str:
    if not found:
        return ""
    anchor = name.lower()
    notable = "".join(item.html for item in found if item.severity is not Severity.OK)
    good = [item.html for item in found if item.severity is Severity.OK]
    heading = f'<h2 id="{anchor}">{name}</h2>'
    start = f'<section class="card findings" aria-labelledby="{anchor}">'
    if not notable:
        return f"{start}{_folded(good, heading)}</section>\n"
    top = f'<div class="top">{heading}<p class="tally">{_tally(found)}</p></div>'
    return f"{start}{top}{notable}{_folded(good)}</section>\n"


def _folded(good: Sequence[str], heading: str = "") -> str:
    """Good news in one line; a section with nothing else has its heading in it."""
    if not good:
        return ""
    words = counted(len(good), "check is fine", "checks are fine")
    summary = f"{heading}{_mark(Severity.OK)}{words}"
    return f"<details><summary>{summary}</summary>{''.join(good)}</details>"


def _tally(found: Sequence[Shown]) -> str:
    """How many of each kind, the bad ones only: the fold says how many are good."""
    words = {Severity.ERROR: ("error", ""), Severity.WARNING: ("warning", "")}
    parts = []
    for severity, (one, many) in words.items():
        if count := sum(item.severity is severity for item in found):
            parts.append(f'<span class="{severity.value}">{counted(count, one, many)}</span>')
    return " ".join(parts)


def _mark(severity: Severity) -> str:
    """A sign besides the colour, with its name for those who see neither."""
    sign, name = MARKS[severity]
    return f'<span class="mark {severity.value}" role="img" aria-label="{name}">{sign}</span>'


def _finding(finding: Mapping[str, Any], severity: Severity) -> str:
    code = safe(finding.get("code"), _MOST_CODE)
    host = ""
    if finding.get("host_fault") is True:
        host = ' <span class="host">this machine’s fault</span>'
    return (
        f'<article class="finding {severity.value}">{_mark(severity)}<div class="said">'
        f'<p class="message" dir="auto">{_message(finding)}</p>{_fix(finding)}{_paths(finding)}'
        f'<p class="code"><code>{code}</code>{host}</p></div></article>\n'
    )


def _message(finding: Mapping[str, Any]) -> str:
    """The sentence; what stands between backticks is a value that it names."""
    spans = plain(finding.get("message"), _MOST_MESSAGE).split("`")
    if len(spans) % 2 == 0:  # a backtick that belongs to a name
        return breakable("`".join(spans))
    return "".join(
        f"<code>{breakable(span)}</code>" if index % 2 and span else breakable(span)
        for index, span in enumerate(spans)
    )


def _fix(finding: Mapping[str, Any]) -> str:
    given = finding.get("fix")
    fix = given.strip() if isinstance(given, str) else ""
    if not fix:
        return ""
    if len(fix) > _MOST_FIX:
        # A command that was cut must not look like one that can be typed.
        inner = (
            f"<p>{escaped(plain(fix, _MOST_FIX, keep_lines=True))}</p>"
            '<p class="note">Shortened here; --json has the whole of it.</p>'
        )
    else:
        inner = _pieces(pieces(fix))
    return f'<div class="fix"><h3>Fix</h3>{inner}</div>'


def _pieces(cut: Sequence[Piece]) -> str:
    """Prose and values run on in one paragraph; a command stands by itself."""
    html, open_paragraph = [], False
    for piece in cut:
        if piece.kind is Kind.COMMAND:
            html.append("</p>" if open_paragraph else "")
            html.append(
                f'<pre class="command" tabindex="0"><code>{escaped(piece.text)}</code></pre>'
            )
            open_paragraph = False
            continue
        # A command now stands by itself, so the full stop behind it goes.
        said = piece.text if open_paragraph else piece.text.lstrip(" .,;:")
        if not said:
            continue
        html.append("" if open_paragraph else "<p>")
        text = escaped(plain(said, _MOST_FIX * 10, keep_lines=True))
        html.append(f"<code>{text}</code>" if piece.kind is Kind.VALUE else text)
        open_paragraph = True
    return "".join(html) + ("</p>" if open_paragraph else "")


def _paths(finding: Mapping[str, Any]) -> str:
    """The paths of a finding that is about more than its sentence names."""
    details = mapping(finding.get("details"))
    paths = [path for path in items(details.get("paths")) if isinstance(path, str)]
    if len(paths) <= _FEW_PATHS:
        return ""
    rows = "".join(
        f"<li><bdi>{breakable(plain(path, _MOST_PATH))}</bdi></li>" for path in paths[:_MOST_PATHS]
    )
    count = max(int(number(details.get("count"))), len(paths))
    more = count - min(len(paths), _MOST_PATHS)
    rows += f"<li>and {more:,} more</li>" if more > 0 else ""
    return (
        f'<details class="paths"><summary>{counted(count, "path")}</summary><ul>{rows}</ul>'
        "</details>"
    )
