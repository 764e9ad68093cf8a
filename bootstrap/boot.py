"""The boot: what is done before the first job, in which order, and what came of it.

`begin` does all that is quick and starts ComfyUI; `finish` waits for it. Between the two the
caller has some ten seconds for whatever else takes time, such as importing the SDK.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bootstrap import command
from bootstrap.apply import link_models
from bootstrap.checks.volume import check_layout
from bootstrap.comfyui import ComfyUI, Launch
from bootstrap.examination import MACHINE, VOLUME, Examination
from bootstrap.findings import Finding, errors_in, host_error, ok, outcome_of
from bootstrap.interpreter import ask_help, choose_python
from bootstrap.local_models import describe_local_models
from bootstrap.log import say
from bootstrap.manifest_file import find_manifest
from bootstrap.node_imports import check_node_imports
from bootstrap.readiness import wait_until_ready
from bootstrap.reports import BootReport
from bootstrap.settings import Settings
from bootstrap.timeline import Timeline
from bootstrap.volume import Layout, locate
from bootstrap.workdir import WorkDir, make_workdir

if TYPE_CHECKING:
    from bootstrap.provisioning import Provisioning

CODES = {
    "comfyui.ready": "ComfyUI answers",
    "comfyui.not_startable": "The operating system refused to start ComfyUI",
}

_LAYOUT_FAULTS = {"volume.not_found", "comfyui.not_found"}
# Seconds to wait for the doctor: its word on the machine decides; a slow volume must not hold up
# a worker that is ready; a worker that failed has time to say why.
_MACHINE_PATIENCE = 30.0
_READY_PATIENCE = 1.0
_FAILED_PATIENCE = 10.0


class Boot:
    """One boot of one worker. `comfyui`, `layout` and `work` are None until they are known."""

    def __init__(
        self,
        settings: Settings,
        problems: Iterable[Finding] = (),
        env: Mapping[str, str] = os.environ,
    ) -> None:
        self.settings = settings
        self.findings: list[Finding] = list(problems)
        self.timeline = Timeline()
        self.layout: Layout | None = None
        self.work: WorkDir | None = None
        self.comfyui: ComfyUI | None = None
        self.env = env
        self._machine = Examination("check machine", MACHINE, settings, env)
        self._volume = Examination("check volume", VOLUME, settings, env)
        self._provisioning: Provisioning | None = None
        self._came_late = False
        self._node_log: tuple[str, ...] = ()

    def begin(self) -> None:
        """Find the volume, link the models, start ComfyUI. Stops at the first error.

        The doctor looks at machine and volume meanwhile.
        """
        self._machine.start(self.timeline)
        self._volume.start(self.timeline)
        if not self._failed:
            self._locate()
        if not self._failed:
            self._provision()
        if not self._failed:
            self._link()
        if not self._failed:
            self._start()

    def finish(self) -> BootReport:
        """Wait until ComfyUI answers or it is clear that it won't."""
        if self.comfyui is not None and not self._failed:
            self._wait(self.comfyui)
        if self._provisioning is not None and not self._failed:
            self._wait_for_models(self._provisioning)
        patience = _FAILED_PATIENCE if self._failed else _READY_PATIENCE
        machine = self._machine.findings(_MACHINE_PATIENCE)
        # Where ComfyUI runs, reality has answered; only a machine that is broken outweighs it.
        volume = self._volume.findings(patience)
        decisive = [*self._exact(volume), *(f for f in machine if f.host_fault)]
        noticed = [*machine, *volume, *self._node_findings()]
        return BootReport(
            outcome=outcome_of(decisive),
            findings=tuple(decisive),
            noticed=tuple(f for f in noticed if f not in decisive),
            timeline=self.timeline.stages,
            seconds=round(self.timeline.elapsed, 3),
        )

    def _node_findings(self) -> list[Finding]:
        """Which custom nodes failed to import in this boot, and why."""
        facts = self._volume.facts
        comfyui = self.comfyui.launch.comfyui if self.comfyui else ""
        return check_node_imports(self._node_log, facts.packages if facts else None, str(comfyui))

    def _exact(self, volume: Iterable[Finding]) -> list[Finding]:
        """Our own findings; where the volume's layout is at fault, the doctor's word on it first,
        since it looks for what lies one level too deep or under another name."""
        if not {f.code for f in self.findings} & _LAYOUT_FAULTS:
            return self.findings
        told = [f for f in errors_in(volume) if f.code.startswith(("volume.", "comfyui."))]
        codes = {f.code for f in told}
        return [*told, *(f for f in self.findings if f.code not in codes)]

    @property
    def node_log(self) -> tuple[str, ...]:
        """What ComfyUI logged while it started."""
        return self._node_log

    def stop(self) -> None:
        """End ComfyUI and remove this worker's own folder."""
        if self._provisioning is not None:
            self._provisioning.stop()
        if self.comfyui is not None:
            self.comfyui.stop()
        if self.work is not None:
            self.work.remove()
            self.work = None

    @property
    def _failed(self) -> bool:
        return bool(errors_in(self.findings))

    def _locate(self) -> None:
        with self.timeline.stage("find volume"):
            self.layout = locate(self.settings)
            self.findings += check_layout(self.layout)

    def _provision(self) -> None:
        """Begin to fetch the wanted models that are missing; ComfyUI starts meanwhile.

        The packages that downloads need are imported only where something is wanted.
        """
        assert self.layout is not None
        if find_manifest(self.settings.models_manifest, self.layout.root) is None:
            return
        from bootstrap.provisioning import Provisioning, wanted_here, workplace_for

        manifest = wanted_here(self.settings, self.layout)
        self.findings += manifest.findings
        if manifest.models and not self._failed:
            workplace = workplace_for(self.settings, self.layout)
            self._provisioning = Provisioning(manifest.models, workplace)
            self._provisioning.start()

    def _wait_for_models(self, provisioning: Provisioning) -> None:
        """Required models hold back the first job, up to DOWNLOAD_TIMEOUT; then they are linked."""
        assert self.layout is not None
        with self.timeline.stage("wait for models"):
            provisioning.wait_for_required(self.settings.download_timeout)
        self.findings += provisioning.findings()
        self._link_what_came(provisioning)

    def _link_what_came(self, provisioning: Provisioning) -> None:
        from bootstrap.provisioning import show_to_comfyui

        assert self.work is not None
        self.layout, linked = show_to_comfyui(
            self.settings, provisioning.results(), self.work.models
        )
        self.findings += [f for f in linked if f not in self.findings]

    def faults_now(self, report: BootReport) -> tuple[Finding, ...]:
        """What keeps jobs from running: the report's errors, but for models that came since."""
        faults = errors_in(report.findings)
        pending = tuple(f for f in faults if f.code == "provision.pending")
        if not pending or self._provisioning is None or not self._provisioning.ready:
            return faults
        if not self._came_late:
            self._came_late = True
            self._link_what_came(self._provisioning)
        return tuple(f for f in faults if f not in pending)

    def _link(self) -> None:
        assert self.layout is not None
        with self.timeline.stage("link models"):
            self.findings += link_models(self.layout)

    def _start(self) -> None:
        with self.timeline.stage("start ComfyUI"):
            launch = self._prepare()
            if launch is None:
                return
            comfyui = ComfyUI(launch)
            try:
                comfyui.start()
            except OSError as problem:
                self.findings.append(_not_startable(problem))
                return
            self.comfyui = comfyui

    def _prepare(self) -> Launch | None:
        """Everything ComfyUI's start needs; None when a finding says why it cannot start."""
        assert self.layout is not None and self.layout.comfyui is not None
        python = choose_python(self.settings, self.layout)
        if isinstance(python, Finding):
            self.findings.append(python)
            return None
        env = command.environment(self.env, self.settings.comfyui_env_pass, python)
        help_text = ask_help(python, self.layout.comfyui, env)
        if isinstance(help_text, Finding):
            self.findings.append(help_text)
            return None
        work = make_workdir(self.settings.work_dir)
        if isinstance(work, Finding):
            self.findings.append(work)
            return None
        self.work = work
        return self._launch(python, self.layout.comfyui, command.flags_in(help_text), env, work)

    def _launch(
        self, python: Path, comfyui: Path, known: frozenset[str], env: dict[str, str], work: WorkDir
    ) -> Launch:
        folders = command.Folders(
            input=work.input,
            output=work.output,
            user=work.user,
            temp_parent=work.temp_parent,
            front_end=work.front_end,
            database=work.database,
            model_paths=describe_local_models(comfyui, work.models, work.model_paths),
        )
        extra, port = self.settings.comfyui_args, self.settings.comfyui_port
        _, problems = command.arguments(known, folders, port, extra)
        self.findings += problems
        return Launch(python, comfyui, folders, known, extra, env, port)

    def _wait(self, comfyui: ComfyUI) -> None:
        with self.timeline.stage("ComfyUI ready"):
            waited = wait_until_ready(comfyui, self.settings.boot_timeout)
        if waited.finding is not None:
            comfyui.stop()
            self.findings.append(waited.finding)
            return
        self.findings.append(
            ok(
                "comfyui.ready",
                f"ComfyUI answers on {comfyui.url} after {self.timeline.elapsed:.1f} s.",
            )
        )
        self._node_log = tuple(comfyui.log_tail(2000))
        say(f"ComfyUI is ready after {self.timeline.elapsed:.1f} s")


def _not_startable(problem: OSError) -> Finding:
    return host_error(
        "comfyui.not_startable",
        f"ComfyUI could not be started: {problem}.",
        "Nothing to do where Runpod takes another machine; if it stays, choose a larger worker.",
    )
