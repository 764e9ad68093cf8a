"""The doctor beside the boot: examinations in threads, waited for only as long as they matter."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from bootstrap.doctor import examine
from bootstrap.facts.everything import Facts, Scope
from bootstrap.findings import Finding
from bootstrap.log import say
from bootstrap.render import findings_text
from bootstrap.reports import Report
from bootstrap.settings import Settings
from bootstrap.timeline import Timeline

# Decides whether this machine is fit: always waited for. Its own probes are bounded.
MACHINE = frozenset({"machine", "environment"})
VOLUME = frozenset({"volume", "models", "comfyui"})


class Examination:
    """One examination in a thread of its own, as a stage of the timeline."""

    def __init__(
        self, name: str, sections: frozenset[str], settings: Settings, env: Mapping[str, str]
    ) -> None:
        self._name = name
        self._scope = Scope(sections=sections)
        self._settings = settings
        self._env = env
        self._thread: threading.Thread | None = None
        self._report: Report | None = None
        self._late = False
        self._lock = threading.Lock()

    def start(self, timeline: Timeline) -> None:
        """Begin; the thread is a daemon, since a dead volume can hold it for ever."""
        self._thread = threading.Thread(target=self._run, args=(timeline,), daemon=True)
        self._thread.start()

    def findings(self, seconds: float) -> tuple[Finding, ...]:
        """What was found, waiting up to `seconds`; what comes later is said in the log."""
        if self._thread is not None:
            self._thread.join(seconds)
        with self._lock:
            self._late = self._report is None
            return self._report.findings if self._report else ()

    @property
    def facts(self) -> Facts | None:
        """What was gathered; None while it is under way."""
        with self._lock:
            return self._report.facts if self._report else None

    def _run(self, timeline: Timeline) -> None:
        with timeline.stage(self._name):
            report = examine(self._settings, self._env, self._scope)
        with self._lock:
            self._report = report
            late = self._late
        if late:
            found = [f for f in report.findings if f.fix and f.severity.rank > 1]
            say(f"{self._name}, done after the boot:\n{findings_text(found) or 'all is well'}")
