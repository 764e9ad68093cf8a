"""Reports -> text for people, or versioned JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bootstrap.core.findings import (
    OTHER,
    SECTIONS,
    Finding,
    Severity,
    findings_text,
    section_of,
    worst_first,
)
from bootstrap.core.text import size_text
from bootstrap.reports import BootReport, Report
from bootstrap.timeline import Stage

JSON_VERSION = 1
MOST_BYTES = 900_000
_BAR = 40  # characters for the whole boot


def report_text(report: Report, colour: bool = False, quiet: bool = False) -> str:
    """An examination as a person reads it: the sections with the worst findings first.

    `quiet` leaves out good news and information.
    """
    shown = [f for f in report.findings if not quiet or f.severity.rank >= Severity.WARNING.rank]
    sections: dict[str, list[Finding]] = {name: [] for name in (*SECTIONS, OTHER)}
    for finding in shown:
        sections[section_of(finding.code)].append(finding)
    ordered = sorted(sections.items(), key=lambda section: -_worst(section[1]))
    parts = [f"{name}\n{findings_text(found, colour)}\n" for name, found in ordered if found]
    return "\n".join([*parts, headline(report)])


def _worst(findings: list[Finding]) -> int:
    return max((finding.severity.rank for finding in findings), default=0)


def headline(report: Report) -> str:
    """The outcome in one line."""
    counts = {
        "error": sum(f.severity is Severity.ERROR for f in report.findings),
        "warning": sum(f.severity is Severity.WARNING for f in report.findings),
    }
    said = ", ".join(f"{n} {word}{'s' if n > 1 else ''}" for word, n in counts.items() if n)
    where = report.facts.layout.root if report.facts.layout else "?"
    return f"{where}: {said or 'all is well'} ({report.seconds:.1f} s)."


def report_json(report: Report) -> dict[str, Any]:
    """An examination as JSON-ready data; the schema is docs/report.schema.json."""
    return {
        "version": JSON_VERSION,
        "status": report.status,
        "at": report.at,
        "seconds": report.seconds,
        "findings": [finding.as_dict() for finding in worst_first(report.findings)],
        "facts": report.facts.as_dict(),
    }


def boot_text(report: BootReport) -> str:
    """The boot report as a person reads it in a log."""
    worth_saying = [f for f in report.noticed if f.severity.rank >= Severity.WARNING.rank]
    lines = [findings_text([*report.findings, *worth_saying])]
    lines += waterfall(report.timeline)
    lines.append(f"Boot: {report.outcome.value} after {report.seconds:.1f} s.")
    return "\n".join(lines)


def waterfall(timeline: Sequence[Stage]) -> list[str]:
    """The stages, a line each: how long it took, and when, as a bar."""
    total = max((s.start + s.seconds for s in timeline), default=0.0) or 1.0
    lines = []
    for stage in timeline:
        start = min(round(_BAR * stage.start / total), _BAR - 1)
        length = max(1, round(_BAR * stage.seconds / total))
        bar = (" " * start + "█" * length)[:_BAR].ljust(_BAR)
        said = [stage.note, size_text(stage.bytes) if stage.bytes else ""]
        said += [stage.outcome] if stage.outcome != "ok" else []
        note = ", ".join(part for part in said if part)
        lines.append(f"{stage.seconds:8.2f} s │{bar}│ {stage.name}{f' ({note})' if note else ''}")
    return lines


def boot_json(report: BootReport) -> dict[str, Any]:
    """The boot report as JSON-ready data."""
    return {
        "version": JSON_VERSION,
        "outcome": report.outcome.value,
        "seconds": report.seconds,
        "findings": [finding.as_dict() for finding in report.findings],
        "noticed": [finding.as_dict() for finding in report.noticed],
        "timeline": [stage.as_dict() for stage in report.timeline],
    }


def bounded(data: Mapping[str, Any], most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """`data` within `most_bytes` as JSON: lists and texts are cut, ever shorter, until it fits."""
    result: Any = dict(data)
    for longest in (1000, 200, 50, 10, 3):
        if len(json.dumps(result, default=str)) <= most_bytes:
            break
        result = _cut(data, longest)
    return dict(result)


def _cut(value: Any, longest: int) -> Any:
    if isinstance(value, Mapping):
        items = list(value.items())
        kept = {key: _cut(item, longest) for key, item in items[:longest]}
        return kept if len(items) <= longest else {**kept, "…": f"{len(items) - longest} more"}
    if isinstance(value, (list, tuple)):
        kept_items = [_cut(item, longest) for item in value[:longest]]
        return kept_items + ([f"… {len(value) - longest} more"] if len(value) > longest else [])
    if isinstance(value, str) and len(value) > 10 * longest:
        return value[: 10 * longest] + "…"
    return value
