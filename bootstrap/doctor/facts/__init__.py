"""Facts about this machine, this volume and this ComfyUI, gathered in parallel.

Only these modules probe; checks use what they return. Each part has its own time limit, and a
failure becomes a finding. Nothing is cached: a worker can be frozen and thawed on another day, so
facts are gathered again each time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bootstrap.comfyui.launch import flags_of
from bootstrap.config import Settings
from bootstrap.core.concurrency import BoundedCaller
from bootstrap.core.findings import Finding, error, unexpected
from bootstrap.core.redact import masked_data
from bootstrap.doctor.facts.comfyui import (
    ComfyUIFacts,
    WantedNodes,
    gather_comfyui,
    gather_wanted_nodes,
)
from bootstrap.doctor.facts.inventory import Inventory, Progress, gather_models
from bootstrap.doctor.facts.machine import MachineFacts, gather_machine
from bootstrap.doctor.facts.throughput import (
    Throughput,
    large_files,
    measure_throughput,
    small_files,
)
from bootstrap.doctor.facts.volume_facts import VolumeFacts
from bootstrap.doctor.facts.volume_places import further_folders
from bootstrap.doctor.facts.volume_probe import TIMEOUT, gather_volume, mark_ours
from bootstrap.environment import (
    INSTALL,
    Judgement,
    PackagesFacts,
    Record,
    Requirements,
    choose_python,
    judge,
    kept_set,
    read_torch_build,
)
from bootstrap.models.manifest_file import wanted_here
from bootstrap.volume import MODELS, Layout, locate
from bootstrap.volume.args_file import ArgsFile, read_args_file, with_args_file
from bootstrap.volume.link_plan import LinkPlan
from bootstrap.volume.links import plan_for

CODES = {
    "doctor.part_failed": "One part of the examination failed",
    "doctor.part_slow": "One part of the examination exceeded its time limit",
}
_FAILED = "doctor.part_failed"
LIGHT_SECONDS = 20.0
DEEP_SECONDS = 300.0
# Keeps a light scan of 20,000 files within a tenth of a serial walk's time
# (benchmarks/check_volume_speed.py).
LIGHT_HEADERS = 4000


@dataclass(frozen=True)
class Scope:
    """What to examine. `deep` also reads from the volume to measure it. `comfyui_running`: our own
    ComfyUI uses the GPU, which is then queried but not used. `python` is ComfyUI's, if already
    chosen, `judgement` its packages, if already judged."""

    sections: frozenset[str] = frozenset()
    deep: bool = False
    comfyui_running: bool = False
    progress: Progress | None = None
    python: Path | None = None
    judgement: Judgement | None = None

    def includes(self, section: str) -> bool:
        """Is this section requested? All are, if none is named."""
        return not self.sections or section in self.sections


@dataclass
class Facts:
    """The facts; None for what was not requested or is unknown. `kept` is the package set that a
    worker with this Python uses, and its file. `node_log` is ComfyUI's log of its start; `findings`
    are about the gathering itself.
    """

    env: Mapping[str, str]
    layout: Layout | None = None
    volume: VolumeFacts | None = None
    models: Inventory | None = None
    comfyui: ComfyUIFacts | None = None
    wanted_nodes: WantedNodes | None = None
    args: ArgsFile | None = None
    flags: frozenset[str] = frozenset()
    python: Path | None = None
    judgement: Judgement | None = None
    kept: tuple[Record, Path] | None = None
    machine: MachineFacts | None = None
    throughput: Throughput | None = None
    node_log: tuple[str, ...] = ()
    link_plan: LinkPlan | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def packages(self) -> PackagesFacts | None:
        """ComfyUI's Python and its own packages."""
        return self.judgement.packages if self.judgement else None

    def as_dict(self) -> dict[str, Any]:
        """The facts as JSON-ready data, without the environment; secrets in addresses (such as a
        requirement's) are masked."""
        parts = {
            "volume": self.volume,
            "models": self.models,
            "comfyui": self.comfyui,
            "packages": self.packages,
            "machine": self.machine,
            "throughput": self.throughput,
        }
        data = {name: part.as_dict() for name, part in parts.items() if part is not None}
        return dict(masked_data(data))


def gather(settings: Settings, env: Mapping[str, str], scope: Scope) -> Facts:
    """Everything in `scope`; takes at most 20 s, or 300 s if deep, however the volume behaves."""
    return _Gatherer(settings, env, scope).gather()


class _Gatherer:
    """Its threads are daemons: a dead network mount may block one forever, and nothing waits for
    it."""

    def __init__(self, settings: Settings, env: Mapping[str, str], scope: Scope) -> None:
        self._settings = settings
        self._scope = scope
        self._facts = Facts(env)
        self._end = time.monotonic() + (DEEP_SECONDS if scope.deep else LIGHT_SECONDS)

    def gather(self) -> Facts:
        self._side_by_side({"layout": self._layout, "machine": self._machine})
        layout = self._facts.layout
        if layout is not None:
            self._side_by_side(
                {
                    "volume": lambda: self._volume(layout),
                    "models": lambda: self._models(layout),
                    "comfyui": lambda: self._comfyui(layout),
                    "Python": lambda: self._python(layout),
                    "links": lambda: self._links(layout),
                    "the manifest of models": lambda: self._manifest(layout),
                    "wanted nodes": lambda: self._wanted_nodes(layout),
                }
            )
            self._side_by_side(
                {
                    "torch": self._torch,
                    "our links": self._mark_ours,
                    "throughput": lambda: self._throughput(layout),
                    "packages": lambda: self._judge(layout),
                }
            )
        return self._facts

    def _layout(self) -> None:
        layout = locate(self._settings)
        self._facts.layout, self._facts.args = layout, read_args_file(layout)
        if layout.comfyui is not None:
            self._facts.flags = flags_of(layout.comfyui, ())

    def _volume(self, layout: Layout) -> None:
        if self._scope.includes("volume"):
            self._facts.volume = gather_volume(layout, self._settings)

    def _models(self, layout: Layout) -> None:
        roots = list(layout.model_roots)
        if layout.comfyui is not None and os.path.isdir(layout.comfyui / MODELS):
            roots.append(layout.comfyui / MODELS)
        if self._scope.includes("models"):
            left = self._end - time.monotonic()
            self._facts.models = gather_models(
                roots,
                inside=[layout.root],
                progress=self._scope.progress,
                timeout=left,
                most_headers=None if self._scope.deep else LIGHT_HEADERS,
                extra_roots=further_folders(layout.comfyui) if layout.comfyui else None,
            )

    def _links(self, layout: Layout) -> None:
        """Only in a full examination: a boot plans its links itself, and reports the same."""
        if not self._scope.sections:
            self._facts.link_plan = plan_for(layout)

    def _mark_ours(self) -> None:
        """The volume's top levels are marked already; these are deeper among the models."""
        models, plan = self._facts.models, self._facts.link_plan
        if models is not None and plan is not None:
            links = mark_ours(models.links, plan, BoundedCaller(TIMEOUT))
            self._facts.models = replace(models, links=links)

    def _manifest(self, layout: Layout) -> None:
        """As with links: a boot reads it itself."""
        if not self._scope.sections:
            self._facts.findings += wanted_here(self._settings, layout).findings

    @property
    def _arguments(self) -> tuple[str, ...]:
        """ComfyUI's arguments: the endpoint's flags, and the volume's."""
        return with_args_file(self._settings, self._facts.args).comfyui_args

    def _wanted_nodes(self, layout: Layout) -> None:
        """Only in a full examination: a boot fetches them, and reports the outcome."""
        if not self._scope.sections:
            self._facts.wanted_nodes = gather_wanted_nodes(self._settings, layout)

    def _comfyui(self, layout: Layout) -> None:
        if self._scope.includes("comfyui") and layout.comfyui is not None:
            self._facts.comfyui = gather_comfyui(layout.comfyui, layout.nodes, self._arguments)

    def _python(self, layout: Layout) -> None:
        if not self._scope.includes("comfyui") or layout.comfyui is None:
            return
        if self._scope.python is not None:
            self._facts.python = self._scope.python
            return
        choice = choose_python(self._settings, layout)
        if isinstance(choice, Finding):
            self._facts.findings.append(choice)
        else:
            self._facts.findings += choice.findings
            self._facts.python = choice.python

    def _judge(self, layout: Layout) -> None:
        """Requirements are read while the Python is chosen."""
        facts = self._facts
        if facts.python is None:
            return
        asked = facts.comfyui.asked if facts.comfyui else Requirements()
        known = self._scope.judgement
        facts.judgement = known or judge(facts.python, facts.env, asked, self._arguments)
        if self._settings.packages == INSTALL:
            facts.kept = kept_set(layout.root, facts.judgement)

    def _machine(self) -> None:
        if not (self._scope.includes("machine") or self._scope.includes("environment")):
            return
        self._facts.machine = gather_machine(
            env=self._facts.env,
            work_dir=self._settings.work_dir,
            comfyui_running=self._scope.comfyui_running,
        )

    def _torch(self) -> None:
        """The torch is known only once ComfyUI's interpreter has been found."""
        if self._facts.machine is None:
            return
        python = self._facts.python or self._scope.python
        if python is None and self._facts.layout is not None:
            chosen = choose_python(self._settings, self._facts.layout)
            python = None if isinstance(chosen, Finding) else chosen.python
        if python is not None:
            build = read_torch_build(python)
            self._facts.machine = replace(self._facts.machine, torch=build)

    def _throughput(self, layout: Layout) -> None:
        if self._scope.deep and self._scope.includes("volume") and self._facts.models is not None:
            models = self._facts.models
            self._facts.throughput = measure_throughput(large_files(models), small_files(models))

    def _side_by_side(self, parts: Mapping[str, Callable[[], None]]) -> None:
        threads = {
            name: threading.Thread(target=self._attempt, args=(name, part), daemon=True)
            for name, part in parts.items()
        }
        for thread in threads.values():
            thread.start()
        for name, thread in threads.items():
            thread.join(max(0.0, self._end - time.monotonic()))
            if thread.is_alive():
                self._facts.findings.append(_slow(name))

    def _attempt(self, name: str, part: Callable[[], None]) -> None:
        try:
            part()
        except Exception as problem:  # noqa: BLE001  # one broken part must not spoil the others
            what = f"Looking at {name}"
            self._facts.findings.append(unexpected(_FAILED, what, problem, part=name))


def _slow(part: str) -> Finding:
    return error(
        "doctor.part_slow",
        f"Looking at {part} took too long and was abandoned; the volume may be slow or gone.",
        "Try again; if it stays, look at the volume's findings first, or ask for single sections.",
        part=part,
    )
