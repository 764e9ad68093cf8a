"""Composes the page. Pure: the report goes in, HTML comes out, nothing else is looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bootstrap.core.findings import Severity
from bootstrap.core.text import counted
from bootstrap.doctor.html.findings import MARKS, findings_html, severity_of
from bootstrap.doctor.html.inventory import inventory_html
from bootstrap.doctor.html.sections import machine_html, timeline_html
from bootstrap.doctor.html.style import SCRIPT, STYLE, policy
from bootstrap.doctor.html.text import mapping, mappings, number, safe, seconds

TITLE = "ComfyUI volume report"
# Of 300 KB, without style sheet, script and headline.
_MOST_BYTES, _LEAST_FOR_FINDINGS = 270_000, 60_000
_MOST_TITLE, _MOST_PATH = 120, 200
_STATUSES = {s.value: s for s in (Severity.ERROR, Severity.WARNING, Severity.OK)}


def page(report: Mapping[str, Any], title: str = TITLE) -> str:
    """The report as one HTML document that needs nothing else, under 300 KB whatever it holds.

    `report` is what `render.report_json` makes, a diagnostics reply's `diagnostics` (which has the
    boot's timeline as well), or either read back from a file: parts that are
    missing, null or of another type do not show. No error is raised and nothing is left
    unescaped.
    """
    facts = mapping(report.get("facts"))
    name = safe(title, _MOST_TITLE) or TITLE
    parts = (
        inventory_html(facts.get("models"), facts.get("volume")),
        timeline_html(report.get("timeline") or mapping(report.get("boot")).get("timeline")),
        machine_html(facts.get("machine")),
    )
    # Those are bounded by number and length; the findings may have what room they leave.
    room = max(_MOST_BYTES - len("".join(parts).encode()), _LEAST_FOR_FINDINGS)
    findings = findings_html(report.get("findings"), room)
    body = (_headline(report, facts, name), findings, *parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy()}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        # Without one a browser asks a web server for favicon.ico.
        f'<link rel="icon" href="data:,">\n<title>{name}</title>\n'
        f"<style>{STYLE}</style></head>\n<body><main>\n{''.join(body)}\n</main>\n"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _headline(report: Mapping[str, Any], facts: Mapping[str, Any], title: str) -> str:
    counts = Counter(severity_of(f) for f in mappings(report.get("findings")))
    status = _status(report, counts)
    sign, _ = MARKS[status]
    return (
        f'<header class="{status.value}"><p class="title">{title}</p>'
        f'<h1><span class="mark {status.value}" aria-hidden="true">{sign}</span>'
        f"{_verdict(status, counts)}</h1>"
        f'<p class="counts">{_counts(counts)}</p>{_circumstances(report, facts)}</header>\n'
    )


def _status(report: Mapping[str, Any], counts: Mapping[Severity, int]) -> Severity:
    """What the report says, or what its findings come to where it says nothing we know."""
    said = report.get("status")
    if isinstance(said, str) and said in _STATUSES:
        return _STATUSES[said]
    worst = max((s for s in counts if counts[s]), key=lambda s: s.rank, default=Severity.OK)
    return Severity.OK if worst is Severity.INFO else worst


def _verdict(status: Severity, counts: Mapping[Severity, int]) -> str:
    """The report in one sentence."""
    if status is Severity.ERROR:
        errors = counts.get(Severity.ERROR, 0)
        if not errors:
            return "Jobs cannot run"
        return f"{counted(errors, 'error keeps', 'errors keep')} jobs from running"
    if status is Severity.WARNING:
        warnings = counts.get(Severity.WARNING, 0)
        return f"Jobs run, with {counted(warnings, 'warning')}" if warnings else "Jobs run"
    return "All is well" if sum(counts.values()) else "Nothing was found"


def _counts(counts: Mapping[Severity, int]) -> str:
    words = (
        (Severity.ERROR, "error", "errors"),
        (Severity.WARNING, "warning", "warnings"),
        (Severity.INFO, "note", "notes"),
        (Severity.OK, "fine", "fine"),
    )
    return " ".join(
        f'<span class="{severity.value}"><span class="sign" aria-hidden="true">'
        f"{MARKS[severity][0]}</span> {counted(counts.get(severity, 0), one, many)}</span>"
        for severity, one, many in words
        if counts.get(severity, 0)
    )


def _circumstances(report: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Which volume, when, how long it took."""
    volume = mapping(facts.get("volume"))
    parts = []
    if root := safe(volume.get("root"), _MOST_PATH):
        parts.append(f"<code><bdi>{root}</bdi></code>")
    if at := safe(report.get("at"), 40):
        parts.append(f"<time>{at}</time>")
    if took := number(report.get("seconds")):
        parts.append(f"looked at in {seconds(took)}")
    return f'<p class="note">{" · ".join(parts)}</p>' if parts else ""
