"""The diagnostics reply as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bootstrap.core.findings import Finding, Severity
from bootstrap.core.terminal import PLAIN, Style, findings_text
from scripts.printing import plain

if TYPE_CHECKING:  # the boot room is large, and a client that runs a workflow does not need it
    from bootstrap.boot import Stage


def diagnostics_text(diagnostics: Mapping[str, Any], style: Style = PLAIN) -> str:
    """Findings worst first, the boot's stages, ComfyUI's state, versions. A long reply may be cut:
    malformed parts are skipped."""
    parts = [findings_text(findings_in(diagnostics), style)]
    parts.append("\n".join(_boot(_object(diagnostics.get("boot")), style)))
    parts.append("\n".join(_comfyui(_object(diagnostics.get("comfyui")), style)))
    versions = _object(diagnostics.get("versions"))
    listed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    parts.append("\n".join(style.wrapped(plain(f"Versions: {listed}"), indent="  ")))
    return "\n\n".join(part for part in parts if part)


def findings_in(diagnostics: Mapping[str, Any]) -> list[Finding]:
    """A reply's findings."""
    found = []
    for given in _objects(diagnostics.get("findings")):
        try:
            severity = Severity(given.get("severity"))
        except ValueError:
            continue
        code, message, fix = (plain(str(given.get(n) or "")) for n in ("code", "message", "fix"))
        found.append(Finding(code, severity, message, fix))
    return found


def _boot(boot: Mapping[str, Any], style: Style) -> Iterator[str]:
    if not boot:
        return
    from bootstrap.boot import waterfall

    yield f"Boot: {plain(str(boot.get('outcome')))} after {_seconds(boot.get('seconds'))} s"
    stages = [_stage(given) for given in _objects(boot.get("timeline"))]
    yield from map(plain, waterfall(stages, style))


def _stage(given: Mapping[str, Any]) -> Stage:
    from bootstrap.boot import Stage

    name, outcome, note = (str(given.get(key) or "") for key in ("name", "outcome", "note"))
    start, took, moved = (_number(given.get(key)) for key in ("start", "seconds", "bytes"))
    return Stage(name, start, took, outcome, int(moved), note)


def _comfyui(comfyui: Mapping[str, Any], style: Style) -> Iterator[str]:
    if not comfyui:
        return
    state = "answers" if comfyui.get("answers") else "runs, but does not answer"
    yield f"ComfyUI: {state if comfyui.get('running') else 'does not run'}"
    for exit in _objects(comfyui.get("exits")):
        reason = _object(exit.get("reason"))
        said = plain(f"  ended with {exit.get('code')}: {reason.get('message')}")
        yield from style.wrapped(said, indent="    ")


def _number(value: Any) -> float:
    """A number between 0 and an exbibyte; 0 for anything else."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if real and 0 < value < 1 << 60 else 0.0


def _seconds(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, (int, float)) else "?"


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    yield from (item for item in (value if isinstance(value, list) else []) if _object(item))
