"""A report as one self-contained HTML page: page.html, filled with the report's JSON.

The page's script inserts the report only as text, never as markup; its policy allows only that
script and style sheet, by hash, so that nothing else is run, applied or fetched.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from bootstrap.core.findings import OTHER, SECTIONS, Severity, docs_url, section_of
from bootstrap.doctor.report import bounded, not_judged

TITLE = "ComfyUI volume report"
# Of the page's 300 KB the template takes 32, the stages up to 57, the text without a script 30.
_MOST_FINDINGS_BYTES, _MOST_TEXT = 100_000, 5_000
_MOST_BYTES = {"models": 50_000, "machine": 20_000, "volume": 2_000}
_MOST_FINDINGS, _MOST_STAGES, _MOST_PATHS = 300, 40, 20
_MOST_TITLE, _MOST_CODE, _MOST_MESSAGE, _MOST_FIX = 120, 80, 1200, 3000
_FLAT = frozenset("at name start seconds outcome bytes note".split())
_HOLE = re.compile(r"\{\{(\w+)\}\}")


def page(report: Mapping[str, Any], title: str = TITLE) -> str:
    """The report as one HTML document, always under 300 KB. `report` is from `report_json`, or a
    diagnostics reply's `diagnostics` (which also has the boot's timeline), or either read back from
    a file: missing, null or mistyped parts are not shown. Never raises, and escapes everything.
    """
    template = (files("bootstrap.doctor") / "page.html").read_text("utf-8")
    template = template.replace("{{codes}}", docs_url(""))
    filling = {
        "policy": _policy(template),
        "title": html.escape(_printable(title)[:_MOST_TITLE]) or TITLE,
        "report": _json(_data(report)),
        "text": html.escape(_text(report)),
    }
    return _HOLE.sub(lambda hole: filling[hole[1]], template)


def _policy(template: str) -> str:
    """The Content-Security-Policy: this style sheet, this script, nothing else."""
    own = {}
    for kind in ("style", "script"):
        text = template.partition(f"<{kind}>")[2].partition(f"</{kind}>")[0]
        own[kind] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{own['style']}'; "
        f"script-src 'sha256-{own['script']}'; base-uri 'none'; form-action 'none'"
    )


def _json(value: Any) -> str:
    """JSON that is safe in an HTML page."""
    return json.dumps(value).replace("<", "\\u003c")


def _data(report: Mapping[str, Any]) -> dict[str, Any]:
    """The data for the page's script, limited in size."""
    facts = _mapping(report.get("facts"))
    found = _findings(report)
    shown = _within([_cut(finding) for finding in found[:_MOST_FINDINGS]])
    stages = _mappings(report.get("timeline") or _mapping(report.get("boot")).get("timeline"))
    volume = _mapping(facts.get("volume"))
    shown_facts = {
        "volume": {"root": volume.get("root"), "space": volume.get("space")},
        "models": _mapping(facts.get("models")),
        "machine": _mapping(facts.get("machine")),
    }
    return {
        "status": _status(report, found),
        "not_judged": not_judged({**f, "details": _mapping(f.get("details"))} for f in found),
        "counts": Counter(str(finding["severity"]) for finding in found),
        "sections": [*SECTIONS, OTHER],
        "findings": shown,
        "findings_left_out": len(found) - len(shown),
        "stages_left_out": max(len(stages) - _MOST_STAGES, 0),
        "timeline": [_short(stage) for stage in stages[:_MOST_STAGES]],
        **_short({"at": report.get("at"), "seconds": report.get("seconds")}),
        **{name: _bounded(fact, _MOST_BYTES[name]) for name, fact in shown_facts.items()},
    }


def _findings(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All of a report's findings, worst first, each with a known severity."""
    known = {severity.value for severity in Severity}
    found = [
        {**said, "severity": said["severity"] if str(said.get("severity")) in known else "info"}
        for said in _mappings(report.get("findings"))
    ]
    return sorted(found, key=lambda finding: -Severity(finding["severity"]).rank)


def _status(report: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    """The report's status, or that of its findings if it is unknown."""
    said = report.get("status")
    worst = found[0]["severity"] if found else "ok"
    return str(said if said in ("error", "warning", "ok") else worst).replace("info", "ok")


def _cut(finding: Mapping[str, Any]) -> dict[str, Any]:
    """A finding limited in size; a cut fix is still visible."""
    code, details = str(finding.get("code") or "")[:_MOST_CODE], _mapping(finding.get("details"))
    paths = details.get("paths")
    named = list(paths)[:_MOST_PATHS] if isinstance(paths, (list, tuple)) else []
    return {
        "code": code,
        "severity": finding["severity"],
        "section": section_of(code),
        "message": str(finding.get("message") or "")[: _MOST_MESSAGE + 1],
        "fix": str(finding.get("fix") or "")[: _MOST_FIX + 1],
        "host_fault": finding.get("host_fault") is True,
        "details": _bounded({"paths": named, "count": details.get("count")}, _MOST_FIX * 2),
    }


def _short(said: Mapping[str, Any]) -> dict[str, Any]:
    """The texts and numbers of a flat part of the report."""
    flat: dict[str, Any] = {}
    for key in _FLAT & said.keys():
        value = said[key]
        if isinstance(value, str):
            flat[key] = value[:_MOST_CODE]
        elif isinstance(value, (int, float)) and 0 <= value < 1 << 60:
            flat[key] = value
    return flat


def _within(findings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first findings that fit the page."""
    shown, left = [], _MOST_FINDINGS_BYTES
    for finding in findings:
        left -= len(_json(finding))
        if left < 0:
            break
        shown.append(finding)
    return shown


def _bounded(value: Mapping[str, Any], most_bytes: int) -> dict[str, Any]:
    """Arbitrary data as JSON for a browser; empty if it cannot be made to fit."""
    for most in (most_bytes, most_bytes // 2, most_bytes // 6):  # a `<` takes six bytes
        cut = bounded(_finite(value), most)
        if len(_json(cut)) <= most_bytes:
            return cut
    return {}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, bool, int)) else str(value)


def _text(report: Mapping[str, Any]) -> str:
    """The findings for a browser that runs no script."""
    lines = []
    for finding in map(_cut, _findings(report)[:_MOST_FINDINGS]):
        lines.append(f"{finding['severity']} {finding['code']}: {finding['message']}")
        lines += [f"  fix: {finding['fix']}"] if finding["fix"] else []
    return _printable("\n".join(lines)[:_MOST_TEXT])


def _printable(text: str) -> str:
    """Text without invisible characters."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" for c in text)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: object) -> list[Mapping[str, Any]]:
    items = value if isinstance(value, (list, tuple)) else ()
    return [item for item in items if isinstance(item, Mapping)]
