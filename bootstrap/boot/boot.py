"""The boot: what is done before the first job, in which order, and what came of it.

    find volume ─┬─ copy code ───────────────┬─ start ComfyUI ─ ready ─ wait for models ─ warm-up
    local folder ┘  choose Python ─ ask flags┤
                                  └ packages ┤
                    read manifest ─ fetch ···│··················(beside)
                    link models ─────────────┴─ read ahead ·····(beside)
    check machine, check volume, after the copy (beside)

What ComfyUI and its custom nodes ask for is made ready while the code is copied ("packages").
`begin` starts it all and returns when ComfyUI has been started; `finish` waits for it. Between the
two the caller has some ten seconds for whatever else takes time, such as importing the SDK.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping

from bootstrap.boot.health import Health, HealthSocket, LoopPulse, health_of
from bootstrap.boot.preparation import Preparation, WarmUp
from bootstrap.boot.report import BootReport
from bootstrap.boot.schedule import Schedule, State
from bootstrap.comfyui import ComfyUI, wait_until_ready, with_cause
from bootstrap.config import Settings
from bootstrap.core.findings import Finding, errors_in, ok, outcome_of
from bootstrap.environment.imports import check_node_imports
from bootstrap.volume.search import unlink_other_mounts

_log = logging.getLogger(__name__)

CODES = {"comfyui.ready": "ComfyUI answers"}
_LAYOUT_FAULTS = {
    "volume.not_found",
    "comfyui.not_found",
    "volume.comfyui_several",
    "volume.comfyui_path_wrong",
}
# Seconds to wait for the doctor: its word on the machine decides; a slow volume must not hold up
# a worker that is ready; a worker that failed has time to say why.
_MACHINE_PATIENCE = 30.0
_READY_PATIENCE = 1.0
_FAILED_PATIENCE = 10.0
_STOP_SECONDS = 3.0


class Boot(Preparation):
    """One boot of one worker: the order of it, and what it came to."""

    def __init__(
        self,
        settings: Settings,
        problems: Iterable[Finding] = (),
        env: Mapping[str, str] = os.environ,
        warm_up: WarmUp | None = None,
    ) -> None:
        super().__init__(settings, env, warm_up)
        self._node_log: tuple[str, ...] = ()
        self._before = list(problems)
        self._after: list[Finding] = []
        tasks = self.examinations() if errors_in(self._before) else self.tasks()
        self._schedule = Schedule(self.timeline, tasks)
        self._report: BootReport | None = None
        self.loop_pulse = LoopPulse()
        self._watches: list[Callable[[], Finding | None]] = [self.loop_pulse.fault]
        self._health = HealthSocket(self.health)

    def begin(self) -> None:
        """Find the volume, copy its code, link its models, start ComfyUI; all else goes on."""
        self._health.open()
        self._schedule.start()
        if not errors_in(self._before):
            self._schedule.wait("start ComfyUI")

    def finish(self) -> BootReport:
        """Wait until ComfyUI answers or it is clear that it won't."""
        if self.comfyui is not None:
            self._wait(self.comfyui)
            self._after += self.late_package_findings()
        if self.comfyui is not None and not self._failed:
            self._prepare_jobs()
        patience = _FAILED_PATIENCE if self._failed else _READY_PATIENCE
        machine = self.machine_check.findings(_MACHINE_PATIENCE)
        # Where ComfyUI runs, reality has answered; only a machine that is broken outweighs it.
        volume = self.volume_check.findings(patience)
        own = [with_cause(finding, [*volume, *machine]) for finding in self.findings]
        decisive = [*self._exact(own, volume), *(f for f in machine if f.host_fault)]
        noticed = [*machine, *volume, *self._node_findings()]
        self._report = BootReport(
            outcome=outcome_of(decisive),
            findings=tuple(decisive),
            noticed=tuple(f for f in noticed if f not in decisive),
            timeline=self.timeline.stages,
            seconds=round(self.timeline.elapsed, 3),
        )
        return self._report

    def health(self) -> Health:
        """How this worker is now, for whoever asks on this machine."""
        stuck = next((found for look in self._watches if (found := look()) is not None), None)
        return health_of(self._report, self.comfyui, stuck)

    def watch(self, fault: Callable[[], Finding | None]) -> None:
        """Let `health` ask for the fault of what serves the jobs as well. Called in any thread."""
        self._watches.append(fault)

    def faults_now(self, report: BootReport) -> tuple[Finding, ...]:
        """What keeps jobs from running: the report's errors, but for models that came since."""
        if self.models is None:
            return errors_in(report.findings)
        return self.models.faults_now(report.findings)

    @property
    def findings(self) -> list[Finding]:
        """What was found so far, but for the doctor's word."""
        return [*self._before, *self._schedule.findings(), *self._after]

    @property
    def node_log(self) -> tuple[str, ...]:
        """What ComfyUI logged while it started."""
        return self._node_log

    def stop(self) -> None:
        """End ComfyUI, carry back what it wrote, and remove this worker's own folder. What waits
        for a volume that does not answer is left behind."""
        self._health.close()
        self.read_ahead.stop()
        if self.models is not None:
            self.models.stop(_STOP_SECONDS)
        if self.comfyui is not None:
            self.comfyui.stop()
        if self.write_back is not None:
            carrying = threading.Thread(target=self.write_back.now, daemon=True)
            carrying.start()
            carrying.join(_STOP_SECONDS)
        if self.layout is not None:
            unlink_other_mounts(self.mount_links, self.layout.root)
        if self.work is not None:
            self.work.remove()
            self.work = None

    @property
    def _failed(self) -> bool:
        return bool(errors_in(self.findings))

    def _wait(self, comfyui: ComfyUI) -> None:
        with self.timeline.stage("ComfyUI ready"):
            waited = wait_until_ready(comfyui, self.settings.boot_timeout)
        if waited.finding is not None:
            comfyui.stop()
            self._after.append(waited.finding)
            return
        self._after.append(
            ok(
                "comfyui.ready",
                f"ComfyUI answers on {comfyui.url} after {self.timeline.elapsed:.1f} s.",
            )
        )
        self._node_log = tuple(comfyui.log_tail(2000))
        _log.info("ComfyUI is ready after %.1f s", self.timeline.elapsed)

    def _prepare_jobs(self) -> None:
        """What is left to do when ComfyUI answers: models that are still coming, the warm-up."""
        assert self.models is not None
        if self._schedule.wait("fetch models") is State.GOOD and self.models.wanted:
            with self.timeline.stage("wait for models"):
                self._after += self.models.wait()
        if self.warm_up is not None and not self._failed:
            with self.timeline.stage("warm-up") as row:
                self._after += self.warm_up.run(self, row)
        if self.write_back is not None:
            self.write_back.soon()

    def _node_findings(self) -> list[Finding]:
        """Which custom nodes failed to import in this boot, and why."""
        facts = self.volume_check.facts
        home = self.comfyui.launch.home if self.comfyui else None
        packages = facts.packages if facts else None
        return check_node_imports(self._node_log, packages, str(home or ""))

    def _exact(self, own: list[Finding], volume: Iterable[Finding]) -> list[Finding]:
        """Our own findings; where the volume's layout is at fault, the doctor's word on it first,
        since it looks for what lies one level too deep or under another name."""
        if not {f.code for f in own} & _LAYOUT_FAULTS:
            return own
        told = [f for f in errors_in(volume) if f.code.startswith(("volume.", "comfyui."))]
        answered = _LAYOUT_FAULTS | {f.code for f in told} if told else set()
        return [*told, *(f for f in own if f.code not in answered)]
