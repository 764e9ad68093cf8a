"""One examination: facts gathered once, every check run on them; the report as text or JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from bootstrap.config import Settings
from bootstrap.core.findings import (
    OTHER,
    SECTIONS,
    Finding,
    Severity,
    findings_text,
    section_of,
    worst_first,
)
from bootstrap.doctor.checks import run_checks
from bootstrap.doctor.facts import Facts, Scope, gather
from bootstrap.volume.args_file import with_args_file

JSON_VERSION = 1
MOST_BYTES = 900_000


@dataclass(frozen=True)
class Report:
    """What an examination came to; `at` is when (ISO 8601, UTC), `seconds` how long it took."""

    findings: tuple[Finding, ...]
    facts: Facts
    at: str
    seconds: float

    @property
    def status(self) -> str:
        """`error`, `warning` or `ok`: the worst of the findings (information is ok)."""
        worst = max((f.severity.rank for f in self.findings), default=0)
        if worst == Severity.ERROR.rank:
            return "error"
        return "warning" if worst == Severity.WARNING.rank else "ok"


def examine(
    settings: Settings, env: Mapping[str, str], scope: Scope, node_log: Sequence[str] = ()
) -> Report:
    """Look at everything in `scope` and judge it. Never raises: what fails is a finding.

    `node_log` is what ComfyUI logged while it started, where it has.
    """
    start = time.monotonic()
    facts = gather(settings, env, scope)
    facts.node_log = tuple(node_log)
    started_with = with_args_file(settings, facts.args)
    findings = [*facts.findings, *run_checks(facts, started_with)]
    return Report(
        findings=tuple(findings),
        facts=facts,
        at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - start, 3),
    )


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
