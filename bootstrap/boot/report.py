"""The outcome of a boot as frozen data, and as log lines, terminal text and JSON."""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bootstrap
from bootstrap.boot.task_runner import Stage
from bootstrap.config import Settings
from bootstrap.core.concurrency import BoundedCaller, VolumeTimeout
from bootstrap.core.findings import (
    Finding,
    Outcome,
    Severity,
    docs_url,
    errors_in,
    worst_first,
)
from bootstrap.core.terminal import PLAIN, Style, findings_text
from bootstrap.core.text import pluralize
from bootstrap.environment import Judgement
from bootstrap.environment.node_packs import read_version
from bootstrap.volume import Layout

if TYPE_CHECKING:
    from bootstrap.doctor import Facts, Report

_log = logging.getLogger(__name__)

_BAR = 40  # characters for the whole boot
_VERSION_SECONDS = 2.0
_DRIVER = Path("/proc/driver/nvidia")
_GOOD = Severity.OK
_WARNING = Severity.WARNING.rank
_LEVELS = {
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.ERROR: logging.ERROR,
}


@dataclass(frozen=True)
class BootReport:
    """The outcome of a boot when it ended. `findings` decide the outcome; `noticed` are the
    doctor's other findings, which do not.
    """

    outcome: Outcome
    findings: tuple[Finding, ...]
    noticed: tuple[Finding, ...]
    timeline: tuple[Stage, ...]
    seconds: float

    @property
    def worth_reading(self) -> list[Finding]:
        """The findings that decided the outcome, and warnings, worst first."""
        warnings = [f for f in self.noticed if f.severity.rank >= Severity.WARNING.rank]
        return [f for f in worst_first([*self.findings, *warnings]) if f.severity is not _GOOD]

    @property
    def verdict(self) -> str:
        """The outcome in one sentence, the first error in it."""
        first = next(iter(errors_in(self.findings)), None)
        if first is None:
            return f"Boot: {self.outcome.value} after {self.seconds:.1f} s."
        return f"Boot: {self.outcome.value}: {_sentence(first)}"


class BackgroundCheck:
    """One examination by the doctor."""

    def __init__(
        self, sections: frozenset[str], settings: Settings, env: Mapping[str, str]
    ) -> None:
        self._sections = sections
        self._settings = settings
        self._env = env
        self._report: Report | None = None
        self._done = threading.Event()
        self._late = False
        self._lock = threading.Lock()

    def findings(self, seconds: float) -> tuple[Finding, ...]:
        """The findings, waiting up to `seconds`; later ones are logged."""
        self._done.wait(seconds)
        with self._lock:
            self._late = self._report is None
            return self._report.findings if self._report else ()

    @property
    def facts(self) -> Facts | None:
        """The facts gathered; None while it still runs."""
        with self._lock:
            return self._report.facts if self._report else None

    def run(
        self, row: Stage, python: Path | None = None, judgement: Judgement | None = None
    ) -> None:
        """Run the checks, with the Python already chosen and what is known of its packages; a dead
        volume can block this forever."""
        # Imported here, beside ComfyUI's start, which need not wait for it.
        from bootstrap.doctor import Scope, examine

        scope = Scope(self._sections, python=python, judgement=judgement)
        report = examine(self._settings, self._env, scope)
        with self._lock:
            self._report = report
            late = self._late
        self._done.set()
        if late:
            log_late(row.name, report.findings)


def log_first_line(*parts: str) -> None:
    """The worker's version, and where it is."""
    gpus = Counter(_gpus())
    named = [f"{count} × {name}" if count > 1 else name for name, count in gpus.items()]
    what = ", ".join((*parts, *named)) if named else ", ".join(parts)
    _log.info("comfyui-volume-worker %s: %s", bootstrap.__version__, what)


def log_place(layout: Layout, then: Callable[[], None]) -> None:
    """The first line of a worker that found its volume; the version is read in parallel. `then` is
    called when it is out."""
    volume = f"volume {layout.root}" if layout.root_exists else f"no volume at {layout.root}"
    comfyui = layout.comfyui
    if comfyui is None:
        log_first_line(volume, "no ComfyUI")
        then()
        return

    def log() -> None:
        log_first_line(volume, f"ComfyUI {_version_of(comfyui)} in {comfyui}")
        then()

    threading.Thread(target=log, name="first line", daemon=True).start()


def _version_of(comfyui: Path) -> str:
    try:
        version = read_version(str(comfyui), BoundedCaller(_VERSION_SECONDS))[0]
    except (VolumeTimeout, OSError):
        version = None
    return version or "of unknown version"


def _gpus() -> list[str]:
    """From the driver's files: asking the driver would delay the first line too long."""
    found = []
    for file in sorted(_DRIVER.glob("gpus/*/information")):
        try:
            model = re.search(r"^Model:\s*(\S.*)", file.read_text("utf-8", "replace"), re.MULTILINE)
        except OSError:
            continue
        found += [model[1].strip()] if model else []
    return found


def log_report(report: BootReport) -> None:
    """A line for the verdict, with the link to its explanation, and one for each finding worth
    reading."""
    first = next(iter(errors_in(report.findings)), None)
    if first is None:
        _log.info("%s", report.verdict)
    else:
        _log.error("%s (%s)", report.verdict, docs_url(first.code))
    for finding in report.worth_reading:
        if finding is not first:
            _log.log(_LEVELS[finding.severity], "%s", _sentence(finding))


def log_late(stage: str, findings: Sequence[Finding]) -> None:
    """Findings of a check that the boot did not wait for."""
    found = [f for f in worst_first(findings) if f.fix and f.severity.rank >= _WARNING]
    _log.info("%s, done after the boot: %s", stage, pluralize(len(found), "finding"))
    for finding in found:
        _log.log(_LEVELS[finding.severity], "%s", _sentence(finding))


def _sentence(finding: Finding) -> str:
    return f"{finding.code}: {finding.message} {finding.fix}".rstrip()


def boot_text(report: BootReport, style: Style = PLAIN) -> str:
    """The boot report for a terminal."""
    lines = [f"Boot: {report.outcome.value} after {report.seconds:.1f} s."]
    lines += [findings_text(report.worth_reading, style)] if report.worth_reading else []
    return "\n".join([*lines, *waterfall(report.timeline, style)])


def boot_json(report: BootReport) -> dict[str, Any]:
    """The boot report as JSON-ready data."""
    from bootstrap.doctor import JSON_VERSION

    return {
        "version": JSON_VERSION,
        "outcome": report.outcome.value,
        "seconds": report.seconds,
        "findings": [finding.as_dict() for finding in report.findings],
        "noticed": [finding.as_dict() for finding in report.noticed],
        "timeline": [stage.as_dict() for stage in report.timeline],
    }


def waterfall(timeline: Sequence[Stage], style: Style = PLAIN) -> list[str]:
    """The stages that took time or failed, a line each with duration and a bar for when."""
    total = max((s.start + s.seconds for s in timeline), default=0.0) or 1.0
    lines = []
    for stage in timeline:
        if not stage.is_worth_showing:
            continue
        start = min(round(_BAR * stage.start / total), _BAR - 1)
        length = max(1, round(_BAR * stage.seconds / total))
        bar = (" " * start + "█" * length)[:_BAR].ljust(_BAR)
        row = f"{stage.seconds:8.2f} s │{bar}│ {stage.name}{stage.remark}"
        lines += style.wrapped(row, indent=" " * 12)
    return lines
