"""The tasks up to ComfyUI's start; each takes what others returned. The doctor runs in parallel: a
`BackgroundCheck` is waited for only as long as it matters.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bootstrap.boot.report import BackgroundCheck, log_place
from bootstrap.boot.runtime import (
    LocalPython,
    StagedCode,
    Volume,
    WantedModels,
    WarmUpHook,
    instance_failed,
)
from bootstrap.boot.task_runner import Stage, StageFailed, T, Task, value_or_fail
from bootstrap.comfyui import (
    INSTANCES,
    ComfyUI,
    Launch,
    Staged,
    WorkDir,
    WriteBack,
    check_queued,
    choose_allocator,
    copy_again,
    copy_user,
    folders_of,
    make_workdir,
    not_startable,
    stage_again,
    stage_code,
)
from bootstrap.comfyui.launch import arguments, count_instances, device_flag, flags_in, flags_of
from bootstrap.config import Settings
from bootstrap.core.findings import Finding, Severity
from bootstrap.core.redact import child_environment
from bootstrap.core.text import pluralize
from bootstrap.environment import (
    PROBE_SECONDS,
    Choice,
    PackageContext,
    PackageSet,
    ask_help,
    choose_python,
    prepare_packages,
    read_torch_build,
)
from bootstrap.models.manifest import Manifest
from bootstrap.models.manifest_file import wanted_here
from bootstrap.models.prefetch import ReadAhead, UsageRecord, memory_for_weights
from bootstrap.nodes.manifest import nodes_wanted_here
from bootstrap.volume import Layout, locate, volume_root
from bootstrap.volume.args_file import check_args_file, read_args_file, with_args_file
from bootstrap.volume.find_comfyui import link_other_mounts
from bootstrap.volume.links import link_models, with_view
from bootstrap.volume.locate import OWN_FOLDER

# Decides whether this machine is fit, so it is always waited for. Its probes have their own limits.
MACHINE = frozenset({"machine", "environment"})
VOLUME = frozenset({"volume", "models", "comfyui"})
_FIX_NO_ROOM = (
    "Give the endpoint a larger container disk (Edit Endpoint → Container Disk), or set "
    "COMFYUI_INSTANCES to fewer."
)
_VOLUME_HINT = (
    "The network volume is slow or its server does not answer: start the worker again; if it "
    "stays, raise VOLUME_TIMEOUT, or ask Runpod about the datacenter's storage."
)


class BootPlan:
    """The tasks of one boot, each with what it needs."""

    def __init__(
        self,
        settings: Settings,
        env: Mapping[str, str],
        warm_up: WarmUpHook | None,
        read_ahead: ReadAhead,
        on_first_line: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._env = env
        self._warm_up = warm_up
        self._read_ahead = read_ahead
        self._on_first_line = on_first_line
        self.machine_check = BackgroundCheck(MACHINE, settings, env)
        self.volume_check = BackgroundCheck(VOLUME, settings, env)
        timeout, probe = settings.volume_timeout, settings.volume_timeout + PROBE_SECONDS
        copying = settings.stage_timeout + timeout
        installing = settings.packages_timeout + timeout

        self.work = Task("local folder", self._make_workdir)
        self.volume = _bounded("find volume", self._find_volume, self.work, timeout)
        fetching = settings.nodes_timeout + timeout
        self.nodes = _bounded("fetch nodes", self._fetch_nodes, self.volume, fetching)
        self.code = Task("copy code", self._copy_code, [self.volume], after=[self.nodes])
        self.manifest = _bounded("read manifest", self._read_manifest, self.volume, timeout)
        self.links = _bounded("link models", self._link_models, self.volume, timeout)
        self.choice = _bounded("choose Python", self._choose_python, self.volume, probe)
        self.flags = _bounded("read flags", self._read_flags, self.choice, probe)
        self.python = _bounded("copy Python", self._copy_python, self.choice, copying)
        self.packages = Task(
            "packages",
            self._prepare_packages,
            [self.python],
            after=[self.nodes],
            budget=installing,
            timeout_hint=_VOLUME_HINT,
        )
        self.comfyui = Task(
            "start ComfyUI",
            self._start,
            [self.code, self.manifest, self.links, self.flags, self.packages],
        )
        self.wanted = Task("fetch models", self._fetch, [self.manifest, self.comfyui])
        self.weights = Task("read ahead", self._read_weights, [self.code, self.links])
        # ComfyUI's start waits for both, so other work must not slow them down.
        prepared: list[Task[Any]] = [self.code, self.packages]
        machine = partial(self._examine, self.machine_check)
        volume = partial(self._examine, self.volume_check)
        self.check_machine = Task("check machine", machine, after=prepared)
        self.check_volume = Task("check volume", volume, after=prepared)

    @property
    def tasks(self) -> tuple[Task[Any], ...]:
        """All tasks, in the order in which their findings are shown."""
        return (
            *(self.work, self.volume, self.nodes, self.code, self.check_machine, self.check_volume),
            *(self.manifest, self.links, self.choice, self.flags, self.python, self.packages),
            *(self.comfyui, self.wanted, self.weights),
        )

    @property
    def examinations(self) -> tuple[Task[Any], ...]:
        """The doctor alone, if nothing can be started."""
        return (
            Task("check machine", self.machine_check.run),
            Task("check volume", self.volume_check.run),
        )

    def _make_workdir(self, _: Stage) -> WorkDir:
        return value_or_fail(make_workdir(self._settings.work_dir))

    def _find_volume(self, row: Stage) -> Volume:
        links: list[Path] = []
        if self._settings.link_other_mount:
            links, linked = link_other_mounts(volume_root(self._settings))
            row.add(linked)
        layout = self._locate()
        log_place(layout, self._on_first_line)
        if not layout.complete:
            from bootstrap.doctor import check_layout

            row.add(check_layout(layout))
        args = read_args_file(layout)
        row.add(check_args_file(args))
        recent = UsageRecord(layout.root, self._env.get("RUNPOD_ENDPOINT_ID"))
        flags = with_args_file(self._settings, args).comfyui_args
        count = count_instances(self._settings, self._env, flags)
        return Volume(layout, tuple(links), flags, recent, count)

    def _fetch_nodes(self, row: Stage) -> Layout:
        """The layout with the packs that NODES_MANIFEST lists. ComfyUI also starts without them."""
        layout = self.volume.value.layout
        wanted = nodes_wanted_here(self._settings, layout)
        if wanted is None:
            row.note = "not needed"
            return layout
        from bootstrap.nodes.pull import pull, pull_context, summary

        context = pull_context(self._settings, layout)
        results = pull(wanted.packs, context, timeout=self._settings.nodes_timeout)
        row.add(_as_warnings(wanted.findings))
        row.add(summary(results))
        fetched = sum(result.state in ("fetched", "updated") for result in results)
        row.note = f"{fetched} of {len(results)} fetched"
        return self._locate() if fetched else layout

    def _locate(self) -> Layout:
        return with_view(locate(self._settings), self.work.value.view)

    @property
    def _layout(self) -> Layout:
        """With the fetched packs, if fetching succeeded."""
        return self.nodes.result or self.volume.value.layout

    def _copy_code(self, row: Stage) -> StagedCode:
        volume, work = self.volume.value, self.work.value
        layout = self._layout
        staged, findings = stage_code(self._settings, layout, work)
        user, more = copy_user(self._settings, volume.layout, work)
        place = staged[0].place if staged else volume.comfyui
        places, copies = [(place, work)], [*staged, *([user] if user is not None else [])]
        for number in range(1, volume.instances):
            try:
                other = work.further(number)
                again = stage_again(staged, work, other) if staged else []
                users = copy_again([user], work.user, other.user) if user is not None else []
            except OSError as problem:
                why = f"its folder on local disk cannot be made: {problem.strerror or problem}."
                row.add([instance_failed(number, why, _FIX_NO_ROOM)])
                break
            copies += [*again, *users]
            places.append((again[0].place if again else place, other))
        row.bytes = sum(copy.bytes for copy in copies)
        count = sum(len(copy.stamps) for copy in copies)
        row.note = pluralize(count, "file") if staged else "not needed"
        row.add([*findings, *more, *check_queued(copies)])
        write_back = _write_back(copies, volume.layout.root)
        return StagedCode(tuple(places), None if staged else layout.nodes, write_back)

    def _read_manifest(self, row: Stage) -> Manifest:
        manifest = wanted_here(self._settings, self.volume.value.layout)
        row.add(manifest.findings)
        return manifest

    def _link_models(self, row: Stage) -> None:
        row.add(link_models(self.volume.value.layout))

    def _fetch(self, _: Stage) -> WantedModels:
        layout, models = self.volume.value.layout, self.work.value.models
        wanted = WantedModels(self._settings, layout, self.manifest.value, models)
        wanted.begin()
        return wanted

    def _choose_python(self, row: Stage) -> Choice:
        choice = value_or_fail(choose_python(self._settings, self.volume.value.layout))
        row.add(choice.findings)
        return choice

    def _read_flags(self, _: Stage) -> frozenset[str]:
        """From the volume's own code, while it is being copied."""
        comfyui = self.volume.value.comfyui
        if flags := flags_of(comfyui, self.volume.value.args):
            return flags
        python = self.choice.value.python
        return flags_in(value_or_fail(ask_help(python, comfyui, self._child_env(python))))

    def _copy_python(self, row: Stage) -> LocalPython:
        """Copy a venv on the volume to local disk: what its start opens, the rest as links."""
        choice, root = self.choice.value, self.volume.value.layout.root
        venv = choice.venv_on(root)
        if venv is None or not self._settings.stage_comfyui:
            row.note = "not needed"
            return LocalPython(choice.python)
        from bootstrap.environment.venv_mirror import MirrorRequest, mirror_venv

        request = MirrorRequest(
            venv=venv,
            place=self.work.value.root / "python",
            store=root / OWN_FOLDER / "python",
            timeout=self._settings.stage_timeout,
            room=memory_for_weights(),
            interpreter=choice.interpreter,
        )
        made = mirror_venv(request)
        if isinstance(made, Finding):
            row.add([made])
            row.note = "runs from the volume"
            return LocalPython(choice.python)
        row.note, row.bytes = made.note, made.bytes
        return LocalPython(made.python, made)

    def _prepare_packages(self, row: Stage) -> PackageSet:
        """Install what ComfyUI and its nodes require, while the code is being copied."""
        volume = self.volume.value
        context = PackageContext(
            python=self.python.value.python,
            comfyui=volume.comfyui,
            volume=volume.layout.root,
            work=self.work.value.root,
            timeout=self._settings.packages_timeout,
            arguments=volume.args,
            nodes=None if self._layout.nodes is None else str(self._layout.nodes),
        )
        made = prepare_packages(context, self._env, self._settings.packages)
        row.note = made.note
        row.add(made.findings)
        return made

    def _examine(self, check: BackgroundCheck, row: Stage) -> None:
        """Run it with what is known of Python and its packages, which it need not examine again."""
        local, packages = self.python.result, self.packages.result
        judgement = packages.judgement if packages else None
        check.run(row, local.python if local else None, judgement)

    def _read_weights(self, row: Stage) -> None:
        """Read likely models into the page cache, until a job needs others."""
        files = self._likely_models()
        if not files:
            row.note = "nothing to read"
            return
        request = self._read_ahead.start(files)
        request.wait(self._settings.boot_timeout)
        row.bytes = request.reading.read
        row.note = request.reading.in_words()

    def _likely_models(self) -> list[Path]:
        """The warm-up's models, then those of PREFETCH_MODELS, each once."""
        layout, recent = self.volume.value.layout, self.volume.value.recent
        first: Sequence[Path] = ()
        if self._warm_up is not None:
            first = self._warm_up.models(layout, recent)
        names = recent.likely(self._settings.prefetch_models)
        return list(dict.fromkeys([*first, *(layout.models / name for name in names)]))

    def _start(self, row: Stage) -> tuple[ComfyUI, ...]:
        launches = self._launches()
        first = launches[0]
        known, extra = first.known_flags, first.extra_args
        row.add(arguments(known, first.folders, first.port, extra)[1])
        started: list[ComfyUI] = []
        for launch in launches:
            comfyui = ComfyUI(launch)
            try:
                comfyui.start()
            except OSError as problem:
                for other in started:
                    other.stop()
                raise StageFailed(not_startable(problem)) from None
            started.append(comfyui)
        return tuple(started)

    def _launches(self) -> list[Launch]:
        """One for each ComfyUI."""
        volume, code, flags = self.volume.value, self.code.value, self.flags.value
        python = self.python.value.python
        env, build = self._child_env(python), read_torch_build(python)
        chosen = choose_allocator(flags, volume.args, build.version if build else None, env)
        port, count = self._settings.comfyui_port, len(code.places)
        env = self.packages.value.environment({**env, **chosen.env, INSTANCES: str(count)})
        return [
            Launch(
                python,
                place,
                folders_of(work, volume.comfyui, code.nodes),
                flags,
                (*volume.args, *chosen.args, *device_flag(number, count, flags, volume.args)),
                env,
                port + number if port else 0,
                display_root=volume.comfyui,
                label=f"{number + 1}: " if count > 1 else "",
            )
            for number, (place, work) in enumerate(code.places)
        ]

    def _child_env(self, python: Path) -> dict[str, str]:
        return child_environment(self._env, self._settings.comfyui_env_pass, python)


def _bounded(name: str, run: Callable[[Stage], T], need: Task[Any], budget: float) -> Task[T]:
    """A task that touches the volume, which may block it forever."""
    return Task(name, run, [need], budget=budget, timeout_hint=_VOLUME_HINT)


def _as_warnings(findings: Sequence[Finding]) -> list[Finding]:
    """A missing pack must not keep jobs from running that do not need it."""
    return [
        replace(found, severity=Severity.WARNING) if found.severity is Severity.ERROR else found
        for found in findings
    ]


def _write_back(copies: Sequence[Staged], volume: Path) -> WriteBack:
    """Changes to an image's ComfyUI are not written back."""
    root = os.path.realpath(volume)
    return WriteBack([copy for copy in copies if copy.source.is_relative_to(root)])
