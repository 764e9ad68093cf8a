"""All that is done up to ComfyUI's start, as tasks that fill in what they find out.

The doctor looks beside it: an `Examination` is waited for only as long as it matters.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from bootstrap.boot.models import BootModels
from bootstrap.boot.schedule import Stage, Task, Timeline
from bootstrap.comfyui import (
    ComfyUI,
    Launch,
    Staged,
    WorkDir,
    WriteBack,
    check_queued,
    choose_allocator,
    command,
    copy_user,
    folders_of,
    make_workdir,
    not_startable,
    stage_code,
)
from bootstrap.config import Settings
from bootstrap.core.findings import Finding, findings_text
from bootstrap.core.redact import child_environment
from bootstrap.doctor import Facts, Report, Scope, check_layout, examine
from bootstrap.environment import PackageSet, Place, ask_help, choose_python, prepare_packages
from bootstrap.environment.torch_build import read_torch_build
from bootstrap.models.prefetch import ReadAhead
from bootstrap.models.recent import Recent
from bootstrap.volume import Layout, locate, volume_root
from bootstrap.volume.args_file import check_args_file, read_args_file, with_args_file
from bootstrap.volume.links import with_view
from bootstrap.volume.search import link_other_mounts

_log = logging.getLogger(__name__)

# Decides whether this machine is fit: always waited for. Its own probes are bounded.
MACHINE = frozenset({"machine", "environment"})
VOLUME = frozenset({"volume", "models", "comfyui"})
_VOLUME_LATE = (
    "The network volume is slow or its server does not answer: start the worker again; if it "
    "stays, raise VOLUME_TIMEOUT, or ask Runpod about the datacenter's storage."
)


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
            said = findings_text(found) or "all is well"
            _log.info("%s, done after the boot:\n%s", self.name, said)


class WarmUp(Protocol):
    """What whoever takes the jobs can do before the first one."""

    def models(self, boot: Preparation) -> Sequence[Path]:
        """Files it will need, to be read ahead."""
        ...

    def run(self, boot: Preparation, row: Stage) -> Sequence[Finding]:
        """Run once ComfyUI is ready; what came of it."""
        ...


class Preparation:
    """What a boot finds out; `layout`, `work`, `comfyui` and their like are None until then."""

    def __init__(
        self, settings: Settings, env: Mapping[str, str] = os.environ, warm_up: WarmUp | None = None
    ) -> None:
        self.settings = settings
        self.env = env
        self.timeline = Timeline()
        self.read_ahead = ReadAhead()
        self.machine_check = Examination("check machine", MACHINE, settings, env)
        self.volume_check = Examination("check volume", VOLUME, settings, env)
        self.warm_up = warm_up
        self.layout: Layout | None = None
        self.work: WorkDir | None = None
        self.comfyui: ComfyUI | None = None
        self.recent: Recent | None = None
        self.models: BootModels | None = None
        self.write_back: WriteBack | None = None
        self.mount_links: list[Path] = []
        self._args = settings.comfyui_args
        self._code: Staged | None = None
        self._python: Path | None = None
        self._package_set = PackageSet()
        self._child_env: dict[str, str] = {}
        self._flags: frozenset[str] = frozenset()

    def examinations(self) -> tuple[Task, ...]:
        """The doctor alone, where nothing can be started."""
        return tuple(Task(e.name, e.run) for e in (self.machine_check, self.volume_check))

    def tasks(self) -> tuple[Task, ...]:
        """What to do, each with what it needs."""
        patience = self.settings.volume_timeout
        return (
            Task("local folder", self._make_workdir),
            Task(
                "find volume",
                self._locate,
                needs=("local folder",),
                budget=patience,
                late=_VOLUME_LATE,
            ),
            Task("copy code", self._copy_code, needs=("find volume",)),
            # The copy is what ComfyUI's start waits for; whoever can wait does not take its time.
            Task(self.machine_check.name, self.machine_check.run, after=("copy code",)),
            Task(self.volume_check.name, self.volume_check.run, after=("copy code", "packages")),
            Task("read manifest", self._read_manifest, needs=("find volume",)),
            Task(
                "link models",
                self._link,
                needs=("find volume",),
                budget=patience,
                late=_VOLUME_LATE,
            ),
            Task("choose Python", self._choose_python, needs=("find volume",)),
            Task("ask flags", self._ask_flags, needs=("choose Python",)),
            Task(
                "packages",
                self._prepare_packages,
                needs=("choose Python", "local folder"),
                budget=self.settings.packages_timeout + patience,
                late=_VOLUME_LATE,
            ),
            Task(
                "start ComfyUI",
                self._start,
                needs=("copy code", "read manifest", "link models", "ask flags", "packages"),
            ),
            Task("fetch models", self._fetch, needs=("read manifest", "start ComfyUI")),
            Task("read ahead", self._read_weights, needs=("copy code", "link models")),
        )

    def _locate(self, _: Stage) -> Sequence[Finding]:
        assert self.work is not None
        linked: list[Finding] = []
        if self.settings.link_other_mount:
            self.mount_links, linked = link_other_mounts(volume_root(self.settings))
        layout = with_view(locate(self.settings), self.work.view)
        self.layout = layout
        self.recent = Recent(layout.root, self.env.get("RUNPOD_ENDPOINT_ID"))
        self.models = BootModels(self.settings, layout)
        args = read_args_file(layout)
        self._args = with_args_file(self.settings, args).comfyui_args
        return [*check_layout(layout), *linked, *check_args_file(args)]

    def _make_workdir(self, _: Stage) -> Sequence[Finding]:
        work = make_workdir(self.settings.work_dir)
        if isinstance(work, Finding):
            return [work]
        self.work = work
        return []

    def _copy_code(self, row: Stage) -> Sequence[Finding]:
        assert self.layout is not None and self.work is not None
        staged, findings = stage_code(self.settings, self.layout, self.work)
        user, more = copy_user(self.settings, self.layout, self.work)
        copies = [*staged, *([user] if user is not None else [])]
        self._code = staged[0] if staged else None
        # An image's ComfyUI is nothing to carry changes back to.
        root = os.path.realpath(self.layout.root)
        self.write_back = WriteBack([c for c in copies if c.source.is_relative_to(root)])
        row.bytes = sum(copy.bytes for copy in copies)
        row.note = f"{sum(len(copy.stamps) for copy in copies)} files" if staged else "not needed"
        return [*findings, *more, *check_queued(copies)]

    def _read_manifest(self, _: Stage) -> Sequence[Finding]:
        assert self.models is not None
        return self.models.read_manifest()

    def _link(self, _: Stage) -> Sequence[Finding]:
        assert self.models is not None
        return self.models.link()

    def _fetch(self, _: Stage) -> None:
        assert self.models is not None and self.work is not None
        self.models.fetch(self.work.models)

    def _choose_python(self, _: Stage) -> Sequence[Finding]:
        assert self.layout is not None
        choice = choose_python(self.settings, self.layout)
        if isinstance(choice, Finding):
            return [choice]
        self._python = choice.python
        passed = self.settings.comfyui_env_pass
        self._child_env = child_environment(self.env, passed, choice.python)
        return choice.findings

    def _prepare_packages(self, row: Stage) -> Sequence[Finding]:
        """What ComfyUI and its nodes ask for, while the code is being copied."""
        assert self.layout is not None and self.layout.comfyui is not None
        assert self.work is not None and self._python is not None
        place = Place(
            python=self._python,
            comfyui=self.layout.comfyui,
            volume=self.layout.root,
            work=self.work.root,
            timeout=self.settings.packages_timeout,
            arguments=self._args,
            nodes=None if self.layout.nodes is None else str(self.layout.nodes),
        )
        made = prepare_packages(place, self.env, self.settings.packages)
        self._package_set = made
        row.note = made.note
        return made.findings

    def late_package_findings(self) -> Sequence[Finding]:
        """What went wrong with packages after ComfyUI was started."""
        return self._package_set.late_findings()

    def _ask_flags(self, _: Stage) -> Sequence[Finding]:
        """From the volume's own `main.py`, while the code is being copied."""
        assert self.layout is not None and self.layout.comfyui is not None and self._python
        text = ask_help(self._python, self.layout.comfyui, self._child_env)
        if isinstance(text, Finding):
            return [text]
        self._flags = command.flags_in(text)
        return []

    def _read_weights(self, row: Stage) -> None:
        """Read what is likely needed into the page cache, until it is there or a job wants else."""
        files = self._likely_models()
        if not files:
            row.note = "nothing to read"
            return
        request = self.read_ahead.start(files)
        request.wait(self.settings.boot_timeout)
        row.bytes = request.reading.read
        row.note = request.reading.in_words()

    def _likely_models(self) -> list[Path]:
        """The warm-up's, then those of PREFETCH_MODELS; each once."""
        assert self.layout is not None and self.layout.comfyui is not None and self.recent
        wanted = self.settings.prefetch_models
        if wanted.lower() == "last":
            names = self.recent.models()
        else:
            listed = "" if wanted.lower() == "none" else wanted
            names = [name.strip() for name in listed.split(",") if name.strip()]
        first = self.warm_up.models(self) if self.warm_up is not None else ()
        models = self.layout.models
        return list(dict.fromkeys([*first, *(models / name for name in names)]))

    def _start(self, _: Stage) -> Sequence[Finding]:
        assert self.layout is not None and self.layout.comfyui is not None
        assert self.work is not None and self._python is not None
        nodes = None if self._code is not None else self.layout.nodes
        folders = folders_of(self.work, self.layout.comfyui, nodes)
        extra = self._args
        port = self.settings.comfyui_port
        build = read_torch_build(self._python)
        chosen = choose_allocator(
            self._flags, extra, build.version if build else None, self._child_env
        )
        extra, env = (*extra, *chosen.args), {**self._child_env, **chosen.env}
        problems = command.arguments(self._flags, folders, port, extra)[1]
        home = self.layout.comfyui
        place = self._code.place if self._code is not None else home
        env = self._package_set.environment(self._child_env)
        comfyui = ComfyUI(
            Launch(self._python, place, folders, self._flags, extra, env, port, home=home)
        )
        try:
            comfyui.start()
        except OSError as problem:
            return [*problems, not_startable(problem)]
        self.comfyui = comfyui
        return problems
