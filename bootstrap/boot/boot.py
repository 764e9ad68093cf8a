"""The boot: everything before the first job, its order and its outcome.

    find volume ─┬─ copy code ───────────────────┬─ start ComfyUI ─ ready ─ models ─ warm-up
    local folder ┘  choose Python ┬─ read flags ─┤
                                  └ copy Python ─┴ packages
                    read manifest ─ fetch ·······│··················(beside)
                    link models ─────────────────┴─ read ahead ·····(beside)
    check machine, check volume, after copy and packages (beside)

"packages" prepares what ComfyUI and its custom nodes require while the code is copied. `begin`
starts everything and returns when ComfyUI has been started; `finish` waits for it and returns what
jobs run with. In between the caller has about ten seconds for other work, such as importing the
SDK.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping

from bootstrap.boot.health import HealthMonitor
from bootstrap.boot.report import BootReport, log_first_line
from bootstrap.boot.runtime import Runtime, Serving, WarmUpHook, instance_failed
from bootstrap.boot.task_runner import Schedule, TaskState, Timeline
from bootstrap.boot.tasks import BootPlan
from bootstrap.comfyui import ComfyUI, wait_until_ready, with_cause
from bootstrap.config import Settings
from bootstrap.core.findings import Finding, errors_in, ok, outcome_of
from bootstrap.environment.imports import check_node_imports
from bootstrap.models.prefetch import ReadAhead
from bootstrap.volume.find_comfyui import unlink_other_mounts

_log = logging.getLogger(__name__)

CODES = {"comfyui.ready": "ComfyUI answers"}
_LAYOUT_FAULTS = {
    "volume.not_found",
    "comfyui.not_found",
    "volume.comfyui_several",
    "volume.comfyui_path_wrong",
}
# Seconds to wait for the doctor: its machine findings decide the outcome; a slow volume must not
# delay a worker that is ready; a worker that failed has time to say why.
_MACHINE_SECONDS = 30.0
_READY_SECONDS = 1.0
_FAILED_SECONDS = 10.0
_STOP_SECONDS = 3.0


class Boot:
    """One boot of one worker: its order and its outcome."""

    def __init__(
        self,
        settings: Settings,
        problems: Iterable[Finding],
        env: Mapping[str, str],
        warm_up: WarmUpHook | None = None,
    ) -> None:
        self.timeline = Timeline(held=True)
        self.health = HealthMonitor()
        self._settings = settings
        self._env = env
        self._warm_up = warm_up
        self._read_ahead = ReadAhead()
        self._before = list(problems)
        self._plan = BootPlan(settings, env, warm_up, self._read_ahead, self.timeline.release)
        tasks = self._plan.examinations if errors_in(self._before) else self._plan.tasks
        self._schedule = Schedule(self.timeline, tasks)
        self._stopped = threading.Event()

    def begin(self) -> None:
        """Find the volume, copy its code, link its models and start ComfyUI; other tasks go on."""
        if errors_in(self._before):
            log_first_line("the settings have errors, so ComfyUI is not started")
            self.timeline.release()
        self.health.open()
        self._schedule.start()
        if not errors_in(self._before):
            self._schedule.wait(self._plan.comfyui)
            self.health.comfyuis = self._plan.comfyui.result or ()

    def finish(self) -> Runtime:
        """The outcome, once ComfyUI answers or cannot answer."""
        found, running = self._wait_for(self._started())
        node_log: tuple[str, ...] = ()
        if running:
            found += self._plan.packages.value.late_findings()
        if running and not errors_in([*self._findings, *found]):
            node_log = tuple(running[0].comfyui.log_tail(2000))
            found += self._prepare_jobs(running)
        report = self._report([*self._findings, *found], node_log)
        self.health.report = report
        volume, python = self._plan.volume.result, self._plan.python.result
        return Runtime(
            self._settings,
            self._env,
            report,
            self.health,
            layout=volume.layout if volume else None,
            instances=running,
            wanted=self._plan.wanted.result,
            python=python.python if python else None,
            node_log=node_log,
        )

    def stop(self) -> None:
        """Stop ComfyUI, write its changes back, and remove this worker's own folder. Threads that
        hang on the volume are abandoned. May be called repeatedly."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        plan = self._plan
        self.health.close()
        self._read_ahead.stop()
        if (wanted := plan.wanted.result) is not None:
            wanted.stop(_STOP_SECONDS)
        for comfyui in plan.comfyui.result or ():
            comfyui.stop()
        if (code := plan.code.result) is not None:
            carrying = threading.Thread(target=code.write_back.now, daemon=True)
            carrying.start()
            carrying.join(_STOP_SECONDS)
        if (volume := plan.volume.result) is not None:
            unlink_other_mounts(volume.links, volume.layout.root)
        if (work := plan.work.result) is not None:
            work.remove()

    @property
    def _findings(self) -> list[Finding]:
        """The findings so far, without the doctor's."""
        return [*self._before, *self._schedule.findings()]

    def _started(self) -> tuple[Serving, ...]:
        plan = self._plan
        if plan.comfyui.result is None:
            return ()
        volume, code = plan.volume.value, plan.code.value
        return tuple(
            Serving(
                *(self._settings, volume.layout, comfyui, work, volume.recent),
                read_ahead=self._read_ahead,
                write_back=code.write_back,
            )
            for comfyui, (_, work) in zip(plan.comfyui.value, code.places, strict=True)
        )

    def _wait_for(self, started: tuple[Serving, ...]) -> tuple[list[Finding], tuple[Serving, ...]]:
        """The finding, if any, and the ComfyUIs that answer, or all of them if none does."""
        waited = [self._wait(serving.comfyui, n) for n, serving in enumerate(started)]
        failed = {n for n, finding in enumerate(waited) if errors_in([finding])}
        if len(failed) == len(started):
            return waited[:1], started
        running = tuple(serving for n, serving in enumerate(started) if n not in failed)
        return [
            instance_failed(n, f.message, f.fix, cause=f.code) if n in failed else f
            for n, f in enumerate(waited)
        ], running

    def _wait(self, comfyui: ComfyUI, number: int) -> Finding:
        name = f"ComfyUI {number + 1} ready" if number else "ComfyUI ready"
        since = comfyui.started_at  # several are waited for in turn, but were started together
        with self.timeline.stage(name, since=since):
            waited = wait_until_ready(comfyui, self._settings.boot_timeout, since)
        if waited.finding is not None:
            comfyui.stop()
            return waited.finding
        return ok(
            "comfyui.ready",
            f"ComfyUI answers on {comfyui.url} after {self.timeline.elapsed:.1f} s.",
        )

    def _prepare_jobs(self, running: tuple[Serving, ...]) -> list[Finding]:
        """The rest, once ComfyUI answers: models that are still being fetched, the warm-up."""
        found: list[Finding] = []
        fetching = self._schedule.wait(self._plan.wanted)
        if fetching is TaskState.OK and self._plan.wanted.value.any:
            with self.timeline.stage("wait for models"):
                found += self._plan.wanted.value.wait()
        if self._warm_up is not None and not errors_in(found):
            with self.timeline.stage("warm-up") as row:
                found += [f for serving in running for f in self._warm_up.run(serving, row)]
        running[0].write_back.soon()
        self._record_python()
        return found

    def _record_python(self) -> None:
        """Record which of a venv's files ComfyUI has opened, for the next worker's start."""
        mirror = self._plan.python.value.mirror
        if mirror is not None:
            from bootstrap.environment.venv_mirror import record_opened

            def record() -> None:
                _log.info("venv: %s", record_opened(mirror))

            threading.Thread(target=record, name="venv", daemon=True).start()

    def _report(self, own: list[Finding], node_log: tuple[str, ...]) -> BootReport:
        seconds = _FAILED_SECONDS if errors_in(own) else _READY_SECONDS
        machine = self._plan.machine_check.findings(_MACHINE_SECONDS)
        # If ComfyUI runs, that settles it; only a broken machine outweighs it.
        volume = self._plan.volume_check.findings(seconds)
        own = [with_cause(finding, [*volume, *machine]) for finding in own]
        decisive = [*_exact(own, volume), *(f for f in machine if f.host_fault)]
        noticed = [*machine, *volume, *self._node_findings(node_log)]
        return BootReport(
            outcome=outcome_of(decisive),
            findings=tuple(decisive),
            noticed=tuple(f for f in noticed if f not in decisive),
            timeline=self.timeline.stages,
            seconds=round(self.timeline.elapsed, 3),
        )

    def _node_findings(self, log: tuple[str, ...]) -> list[Finding]:
        """Which custom nodes failed to import in this boot, and why."""
        facts, volume = self._plan.volume_check.facts, self._plan.volume.result
        home = volume.layout.comfyui if volume else None
        return check_node_imports(log, facts.packages if facts else None, str(home or ""))


def _exact(own: list[Finding], volume: Iterable[Finding]) -> list[Finding]:
    """Our own findings, and before those about the volume's layout the doctor's, which also look
    one level deeper and for other names."""
    if not {f.code for f in own} & _LAYOUT_FAULTS:
        return own
    said = [f for f in errors_in(volume) if f.code.startswith(("volume.", "comfyui."))]
    answered = _LAYOUT_FAULTS | {f.code for f in said} if said else set()
    return [*said, *(f for f in own if f.code not in answered)]
