"""The doctor beside the boot: examinations in threads, waited for only as long as they matter."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from bootstrap.config import Settings
from bootstrap.core.findings import Finding, findings_text
from bootstrap.core.log import say
from bootstrap.doctor import Facts, Report, Scope, examine
from bootstrap.timeline import Stage

# Decides whether this machine is fit: always waited for. Its own probes are bounded.
MACHINE = frozenset({"machine", "environment"})
VOLUME = frozenset({"volume", "models", "comfyui"})


class Examination:
    """One examination, a task of the boot's schedule."""

    def __init__(
        self, name: str, sections: frozenset[str], settings: Settings, env: Mapping[str, str]
    ) -> None:
        self.name = name
        self._scope = Scope(sections=sections)
        self._settings = settings
        self._env = env
        self._report: Report | None = None
        self._done = threading.Event()
        self._late = False
        self._lock = threading.Lock()

    def findings(self, seconds: float) -> tuple[Finding, ...]:
        """What was found, waiting up to `seconds`; what comes later is said in the log."""
        self._done.wait(seconds)
        with self._lock:
            self._late = self._report is None
            return self._report.findings if self._report else ()

    @property
    def facts(self) -> Facts | None:
        """What was gathered; None while it is under way."""
        with self._lock:
            return self._report.facts if self._report else None

    def run(self, _: Stage) -> None:
        """Examine; a dead volume can hold this for ever."""
        report = examine(self._settings, self._env, self._scope)
        with self._lock:
            self._report = report
            late = self._late
        self._done.set()
        if late:
            found = [f for f in report.findings if f.fix and f.severity.rank > 1]
            say(f"{self.name}, done after the boot:\n{findings_text(found) or 'all is well'}")
