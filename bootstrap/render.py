"""Findings -> text for people, or versioned JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bootstrap.boot import BootReport
from bootstrap.findings import Finding, Severity, worst_first

JSON_VERSION = 1
_MARKS = {
    Severity.OK: "ok     ",
    Severity.INFO: "info   ",
    Severity.WARNING: "WARNING",
    Severity.ERROR: "ERROR  ",
}


def findings_text(findings: Iterable[Finding]) -> str:
    """One line a finding, worst first, its fix indented below."""
    lines: list[str] = []
    for finding in worst_first(findings):
        lines.append(f"{_MARKS[finding.severity]} {finding.code}: {finding.message}")
        if finding.fix:
            lines.append(f"        fix: {finding.fix}")
    return "\n".join(lines)


def boot_text(report: BootReport) -> str:
    """The boot report as a person reads it in a log."""
    lines = [findings_text(report.findings)]
    for stage in report.timeline:
        note = "" if stage.outcome == "ok" else f"  ({stage.outcome})"
        lines.append(f"{stage.start:8.2f} s  {stage.seconds:7.2f} s  {stage.name}{note}")
    lines.append(f"Boot: {report.outcome.value} after {report.seconds:.1f} s.")
    return "\n".join(lines)


def boot_json(report: BootReport) -> dict[str, Any]:
    """The boot report as JSON-ready data."""
    return {
        "version": JSON_VERSION,
        "outcome": report.outcome.value,
        "seconds": report.seconds,
        "findings": [finding.as_dict() for finding in report.findings],
        "timeline": [vars(stage) for stage in report.timeline],
    }
