"""What a boot hands to the job loop, with the models that are being fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bootstrap.boot.health import HealthMonitor
from bootstrap.boot.report import BootReport
from bootstrap.boot.task_runner import Stage
from bootstrap.comfyui import ComfyUI, WorkDir, WriteBack
from bootstrap.config import Settings
from bootstrap.core.findings import Finding, errors_in, warning
from bootstrap.models.manifest import Manifest
from bootstrap.models.prefetch import ReadAhead, UsageRecord
from bootstrap.volume import Layout

if TYPE_CHECKING:
    from bootstrap.environment.venv_mirror import Mirror
    from bootstrap.models.provisioner import Provisioner

CODES = {
    "comfyui.instance_failed": "One of several ComfyUIs did not start; the others run its jobs",
}


class WantedModels:
    """The manifest's models, fetched in the background. `local_models` is for links to what the
    platform has cached on this host. The packages that downloads need are imported only if there is
    something to fetch.
    """

    def __init__(
        self, settings: Settings, layout: Layout, manifest: Manifest, local_models: Path
    ) -> None:
        self._settings = settings
        self._local_models = local_models
        self._reported: list[Finding] = []
        self._linked = False
        self._provisioning: Provisioner | None = None
        if manifest.models:
            from bootstrap.models.provisioner import Provisioner, provision_context

            self._provisioning = Provisioner(manifest.models, provision_context(settings, layout))

    def begin(self) -> None:
        """Start fetching the missing ones; returns at once."""
        if self._provisioning is not None:
            self._provisioning.start()

    @property
    def any(self) -> bool:
        """Is there anything to wait for?"""
        return self._provisioning is not None

    def wait(self) -> list[Finding]:
        """Wait for required models, up to DOWNLOAD_TIMEOUT, then link them."""
        if self._provisioning is None:
            return []
        self._provisioning.wait_for_required(self._settings.download_timeout)
        self._reported = self._provisioning.findings()
        return [*self._reported, *self._link_what_came(self._provisioning)]

    def faults_now(self, findings: Sequence[Finding]) -> tuple[Finding, ...]:
        """The errors among a boot's findings, with the models that are missing now."""
        faults = errors_in(findings)
        if self._provisioning is None or not errors_in(self._reported):
            return faults
        self._provisioning.look_again()
        if self._provisioning.ready and not self._linked:
            self._link_what_came(self._provisioning)
        lacking = errors_in(self._provisioning.findings())
        return (*(fault for fault in faults if fault not in self._reported), *lacking)

    def stop(self, timeout: float) -> None:
        """Stop fetching; partial downloads are resumed next time. Waits up to `timeout` seconds."""
        if self._provisioning is not None:
            self._provisioning.stop(timeout)

    def _link_what_came(self, provisioning: Provisioner) -> list[Finding]:
        from bootstrap.models.provisioner import show_to_comfyui

        self._linked = provisioning.ready
        return show_to_comfyui(self._settings, provisioning.results(), self._local_models)[1]


@dataclass(frozen=True)
class Volume:
    """The volume as it was found. `comfyui` is the folder of the ComfyUI that will run, `links`
    are names of the other mount that now lead to it, `args` the flags for ComfyUI: the endpoint's,
    then the volume's own, `instances` the number of ComfyUIs to start."""

    layout: Layout
    links: tuple[Path, ...]
    args: tuple[str, ...]
    recent: UsageRecord
    instances: int = 1

    @property
    def comfyui(self) -> Path:
        """Raises LookupError if there is none; the error that explains it is already a finding."""
        if self.layout.comfyui is None:
            raise LookupError("no ComfyUI was found")
        return self.layout.comfyui


@dataclass(frozen=True)
class StagedCode:
    """ComfyUI's code where it will run: for each ComfyUI its folder and its own files on local
    disk. `nodes` are custom nodes elsewhere that were not copied. `write_back` copies changes in
    the code to the volume."""

    places: tuple[tuple[Path, WorkDir], ...]
    nodes: Path | None
    write_back: WriteBack


@dataclass(frozen=True)
class LocalPython:
    """The Python that ComfyUI is started with; `mirror` if it is a venv's copy on local disk."""

    python: Path
    mirror: Mirror | None = None


@dataclass(frozen=True)
class Serving:
    """What jobs need on one started ComfyUI. `recent` records the models and the workflow of this
    endpoint's last jobs."""

    settings: Settings
    layout: Layout
    comfyui: ComfyUI
    work: WorkDir
    recent: UsageRecord
    read_ahead: ReadAhead
    write_back: WriteBack


@dataclass(frozen=True)
class Runtime:
    """The result of a boot. `layout` is None if the volume was not found in time; `instances` has
    one entry per ComfyUI, none if none was started: such a worker answers each job with what is
    wrong. `node_log` is ComfyUI's log of its start, `python` the one it runs with, `wanted` the
    manifest's models."""

    settings: Settings
    env: Mapping[str, str]
    report: BootReport
    health: HealthMonitor
    layout: Layout | None = None
    instances: tuple[Serving, ...] = ()
    wanted: WantedModels | None = field(default=None, repr=False)
    python: Path | None = None
    node_log: tuple[str, ...] = field(default=(), repr=False)

    @property
    def serving(self) -> Serving | None:
        """The first ComfyUI's."""
        return self.instances[0] if self.instances else None

    def faults_now(self) -> tuple[Finding, ...]:
        """What keeps jobs from running: the report's errors, except for models that have arrived
        since. Reads the volume."""
        if self.wanted is None:
            return errors_in(self.report.findings)
        return self.wanted.faults_now(self.report.findings)


class WarmUpHook(Protocol):
    """What the job loop can run before the first job."""

    def models(self, layout: Layout, recent: UsageRecord) -> Sequence[Path]:
        """Files it will need, to be read ahead."""
        ...

    def run(self, serving: Serving, row: Stage) -> Sequence[Finding]:
        """Run once ComfyUI is ready; the findings."""
        ...


def instance_failed(number: int, why: str, fix: str, /, **details: Any) -> Finding:
    """One of several ComfyUIs is left out: `number` from 0, `why` a sentence."""
    return warning(
        "comfyui.instance_failed",
        f"ComfyUI {number + 1} did not start, and the others take its jobs: {why}",
        fix,
        instance=number,
        **details,
    )
