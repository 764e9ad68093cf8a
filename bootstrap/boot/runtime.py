"""What a boot hands to those who take the jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bootstrap.boot.health import HealthMonitor
from bootstrap.boot.models import WantedModels
from bootstrap.boot.report import BootReport
from bootstrap.boot.schedule import Stage
from bootstrap.comfyui import ComfyUI, WorkDir, WriteBack
from bootstrap.config import Settings
from bootstrap.core.findings import Finding, errors_in
from bootstrap.models.prefetch import ReadAhead
from bootstrap.models.recent import Recent
from bootstrap.volume import Layout


@dataclass(frozen=True)
class Serving:
    """What jobs run with on one ComfyUI that was started. `recent` is the record of the models and
    the workflow of this endpoint's last jobs."""

    settings: Settings
    layout: Layout
    comfyui: ComfyUI
    work: WorkDir
    recent: Recent
    read_ahead: ReadAhead
    write_back: WriteBack


@dataclass(frozen=True)
class Runtime:
    """What came of a boot. `layout` is None where the volume was not found in time; `instances` has
    one for each ComfyUI, none where none was started: such a worker answers each job with what is
    wrong.
    `node_log` is what ComfyUI logged while it started, `python` the one it runs with, `wanted` the
    models of the manifest."""

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
        """What keeps jobs from running: the report's errors, but for models that came since.
        Reads the volume."""
        if self.wanted is None:
            return errors_in(self.report.findings)
        return self.wanted.faults_now(self.report.findings)


class WarmUp(Protocol):
    """What those who take the jobs can do before the first one."""

    def models(self, settings: Settings, layout: Layout, recent: Recent) -> Sequence[Path]:
        """Files it will need, to be read ahead."""
        ...

    def run(self, serving: Serving, row: Stage) -> Sequence[Finding]:
        """Run once ComfyUI is ready; what came of it."""
        ...
