"""What a boot came to, as frozen data; as text for a log, as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bootstrap.boot.schedule import Stage
from bootstrap.core.findings import (
    Finding,
    Outcome,
    Severity,
    findings_text,
)
from bootstrap.core.text import size_text
from bootstrap.doctor import JSON_VERSION

_BAR = 40  # characters for the whole boot


@dataclass(frozen=True)
class BootReport:
    """What a boot came to, as it was when it ended.

    `findings` decide the outcome; `noticed` is what else the doctor found, which does not.
    """

    outcome: Outcome
    findings: tuple[Finding, ...]
    noticed: tuple[Finding, ...]
    timeline: tuple[Stage, ...]
    seconds: float


def boot_text(report: BootReport) -> str:
    """The boot report as a person reads it in a log."""
    worth_saying = [f for f in report.noticed if f.severity.rank >= Severity.WARNING.rank]
    lines = [findings_text([*report.findings, *worth_saying])]
    lines += waterfall(report.timeline)
    lines.append(f"Boot: {report.outcome.value} after {report.seconds:.1f} s.")
    return "\n".join(lines)


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
