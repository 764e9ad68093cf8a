"""One examination: gathers facts once, runs all checks; the report as text or JSON."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from bootstrap.config import Settings
from bootstrap.core.findings import Finding, Severity, docs_url, worst_first
from bootstrap.core.terminal import PLAIN, Style, findings_text
from bootstrap.core.text import pluralize, size_text
from bootstrap.doctor.checks import run_checks
from bootstrap.doctor.facts import Facts, Scope, gather
from bootstrap.doctor.facts.inventory import count_of, size_of
from bootstrap.doctor.fix import Repair, plan_fixes
from bootstrap.volume.args_file import with_args_file

JSON_VERSION = 1
MOST_BYTES = 900_000
# Prefixes of codes: of this machine; of its Python, if that is not on the volume; of an endpoint.
# Variable names are checked: the checker reads the same ones.
_MACHINE = (
    *("gpu.", "memory.", "disk.", "machine.", "host.", "volume.local"),
    *("env.token_", "manifest.no_yaml"),
)
_PYTHON = (
    *("python.", "packages.", "nodes.requirements", "nodes.torch", "comfyui.python_missing"),
    *("comfyui.requirement", "comfyui.front_end", "comfyui.torch_without_gpu"),
)
_ENDPOINT = (
    *("gpu.cpu_flag_missing", "gpu.unused", "env.alloc", "env.arena", "env.preload"),
    *("env.boot_timeout", "env.init_timeout", "env.gpu_contradiction"),
)
# Parts of an examination about the machine only.
_MACHINE_PARTS = frozenset(
    {"machine", "torch", "GPU", "GPU health", "memory", "allocator", "tokens", "environment"}
    | {"Runpod"}
)
# What could not be judged because this machine lacks something, for people.
_NOT_JUDGED = {
    "comfyui.python_missing": "The packages were not checked: no Python with torch was found here. "
    "Set COMFYUI_PYTHON to the one that runs ComfyUI.",
    "packages.not_judged": "The packages were not checked: ComfyUI's Python has neither packaging "
    "nor pip.",
    "manifest.no_yaml": "The manifest of models was not checked: this Python has no PyYAML.",
}
_APART = "this_machine"
# Said without -v too: they may be why a model is missing from a list.
_NOTED = frozenset({"models.folder_unknown"})


@dataclass(frozen=True)
class Report:
    """The result of an examination; `at` is its time (ISO 8601, UTC), `seconds` its duration."""

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
    """Examine everything in `scope`. Never raises: failures are findings. `node_log` is ComfyUI's
    log of its start, if it has started.
    """
    start = time.monotonic()
    facts = gather(settings, env, scope)
    facts.node_log = tuple(node_log)
    started_with = with_args_file(settings, facts.args)
    found = run_checks(facts, started_with)
    return Report(
        findings=(*facts.findings, *found),
        facts=facts,
        at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - start, 3),
    )


def of_volume(report: Report) -> Report:
    """The report about the volume where no worker runs, on a Pod or at home. Findings about this
    machine become information, marked `this_machine`; those about an endpoint's settings, which are
    not visible from here, are left out."""
    root = report.facts.layout.root if report.facts.layout else None
    python = report.facts.python
    own_python = root is not None and python is not None and python.is_relative_to(root)
    families = _MACHINE if own_python else (*_MACHINE, *_PYTHON)

    def apart(finding: Finding) -> bool:
        part = finding.details.get("part")
        return finding.code.startswith(families) or part in _MACHINE_PARTS

    found = (f for f in report.findings if not f.code.startswith(_ENDPOINT))
    return replace(report, findings=tuple(_of_machine(f) if apart(f) else f for f in found))


def not_judged(findings: Iterable[Mapping[str, Any]]) -> list[str]:
    """What could not be judged here, by findings as data that `of_volume` set apart."""
    codes = {f.get("code") for f in findings if (f.get("details") or {}).get(_APART)}
    return [text for code, text in _NOT_JUDGED.items() if code in codes]


def is_of_machine(finding: Finding) -> bool:
    """Did `of_volume` mark it as this machine's?"""
    return bool(finding.details.get(_APART))


def _of_machine(finding: Finding) -> Finding:
    """As information, without advice for an endpoint, which a Pod cannot give."""
    graver = finding.severity.rank > Severity.INFO.rank
    return replace(
        finding,
        severity=Severity.INFO if graver else finding.severity,
        fix="",
        host_fault=False,
        details={**finding.details, _APART: True},
    )


def report_text(
    report: Report, style: Style = PLAIN, *, quiet: bool = False, verbose: bool = False
) -> str:
    """The report for people: the volume, findings worst first, the outcome. `verbose` also shows
    what is fine, `quiet` only warnings and errors.
    """
    root = str(report.facts.layout.root) if report.facts.layout else ""
    least = Severity.OK.rank if verbose else Severity.WARNING.rank
    machine = [f for f in report.findings if is_of_machine(f)]
    shown = [
        f
        for f in report.findings
        if (f.severity.rank >= least or (f.code in _NOTED and not quiet)) and f not in machine
    ]
    repaired = {code for repair in repairs_of(report) for code in repair.codes}
    blocks = [] if quiet else ["\n".join(_heading(report, style))]
    blocks += [findings_text(shown, style, root, repaired)]
    if machine and verbose and not quiet:
        title = style.bold("This machine") + " (does not concern the volume)"
        blocks.append(f"{title}\n{findings_text(machine, style, root)}")
    last = style.wrapped(_summary(report, shown, repaired, verbose))
    left_out = [] if quiet else not_judged(f.as_dict() for f in machine)
    blocks.append("\n".join(line for text in left_out for line in style.wrapped(text)))
    if shown and not quiet:
        # On a terminal each code is a link, and the line has to fit.
        address = docs_url("CODE") if style.width is None else docs_url("").rstrip("/#")
        last[:0] = map(style.dim, style.wrapped(f"Codes: {address}"))
    blocks.append("\n".join(last))
    return "\n\n".join(block for block in blocks if block)


def _heading(report: Report, style: Style) -> list[str]:
    """The volume, and what is on it."""
    facts = report.facts
    if facts.layout is None:
        return []
    lines = [f"Volume {style.bold(str(facts.layout.root))}"]
    said = []
    if facts.comfyui is not None:
        home = os.path.relpath(facts.comfyui.path, facts.layout.root)
        said.append(f"ComfyUI {facts.comfyui.version or 'of unknown version'} in {home}")
    if facts.models is not None and facts.models.roots:
        weights = facts.models.present
        said.append(f"{pluralize(count_of(weights), 'model')}, {size_text(size_of(weights))}")
    # An empty folder's room is this machine's.
    if facts.volume and facts.volume.space and (said or facts.volume.mounted):
        said.append(f"{size_text(facts.volume.space.free)} free")
    return [*lines, *style.wrapped("; ".join(said))] if said else lines


def _summary(
    report: Report, shown: Sequence[Finding], repaired: Collection[str], verbose: bool
) -> str:
    counts = [
        pluralize(n, word)
        for word, severity in (("error", Severity.ERROR), ("warning", Severity.WARNING))
        if (n := sum(f.severity is severity for f in report.findings))
    ]
    text = f"{', '.join(counts) or 'No problems found'} ({report.seconds:.1f} s)."
    count = sum(f.code in repaired for f in shown)
    if count:
        what = f"{count} of these" if count < len(shown) or count > 1 else "this"
        return f"{text} Run with --fix to repair {what}."
    return text if counts or verbose else f"{text} -v shows everything that was checked."


def repairs_of(report: Report) -> list[Repair]:
    """What `--fix` would do about them."""
    facts = report.facts
    if facts.layout is None or facts.volume is None:
        return []
    return plan_fixes(facts.layout, facts.volume, facts.models)


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
    """`data` within `most_bytes` as JSON: lists and texts are shortened until it fits."""
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
