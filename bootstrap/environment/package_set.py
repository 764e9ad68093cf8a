"""The packages that ComfyUI and its custom nodes require and ComfyUI's Python lacks.

    volume/.comfyui-worker/packages/<name>.zip   made once for an interpreter and what is asked for
    work/packages/before, after                  unpacked on local disk
    work/packages-path/sitecustomize.py          puts these folders on ComfyUI's path

`prepare_packages` is the entry point. Nothing is installed into an interpreter. Packages that
replace another version come before the interpreter's own, added ones after them, where they hide
nothing. One of several workers builds a set; the others wait for it and need no network.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from bootstrap.core.concurrency import BoundedCaller, VolumeTimeout
from bootstrap.core.files import Disk
from bootstrap.core.findings import Finding
from bootstrap.core.redact import masked
from bootstrap.core.temp_files import BEAT, STALE, Lease
from bootstrap.core.text import pluralize
from bootstrap.environment import package_findings
from bootstrap.environment.build import Builder
from bootstrap.environment.imports import hard_imports
from bootstrap.environment.node_packs import Requirements, read_requirements
from bootstrap.environment.package_loading import Loading, write_hook
from bootstrap.environment.package_store import (
    AFTER,
    BEFORE,
    BadSet,
    Record,
    discard,
    keep,
    mark_used,
    read_record,
    sweep,
)
from bootstrap.environment.requirements import Judgement, RequirementState, judge
from bootstrap.environment.resolve import Unit, units_of
from bootstrap.environment.uv import Uv, UvFailed, find_uv
from bootstrap.volume.locate import OWN_FOLDER

_log = logging.getLogger(__name__)

INSTALL = "install"
_READ_SECONDS = 15.0
_LOOK_EVERY = 0.2
_FORMAT = 2
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]")
# ESTALE: a file on NFS was removed while it was read.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


@dataclass(frozen=True)
class PackageContext:
    """Where a ComfyUI and its packages are. `comfyui` is the folder whose requirements count; it is
    started with `arguments` and also reads custom nodes in `nodes`. `volume` keeps the set, `work`
    is on local disk. In seconds: `timeout` for everything, `beat` and `stale` for leases."""

    python: Path
    comfyui: Path
    volume: Path
    work: Path
    timeout: float
    arguments: Sequence[str] = ()
    nodes: str | None = None
    beat: float = BEAT
    stale: float = STALE


@dataclass(frozen=True)
class PackageSet:
    """The result. `path` is the PYTHONPATH, None if nothing is added; `programs` are folders for
    the end of PATH. `judgement` is without the set. `seconds` are the parts' durations; `note` is
    for the timeline. An error in `findings` means that this ComfyUI cannot start."""

    path: Path | None = None
    programs: tuple[Path, ...] = ()
    findings: tuple[Finding, ...] = ()
    judgement: Judgement | None = None
    record: Record = field(default_factory=Record)
    seconds: Mapping[str, float] = field(default_factory=dict)
    note: str = "nothing is missing"
    loading: Loading | None = None

    def late_findings(self) -> list[Finding]:
        """Later findings: a set that failed to load after ComfyUI had been started."""
        if self.loading is None or self.loading.failure is None:
            return []
        return [package_findings.broke_off(self.loading.failure)]

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """ComfyUI's environment with the packages on its path."""
        if self.path is None:
            return dict(env)
        path = ":".join([env.get("PATH", "/usr/bin:/bin"), *map(str, self.programs)])
        return {**env, "PYTHONPATH": str(self.path), "PATH": path}


def kept_set(volume: Path, judgement: Judgement) -> tuple[Record, Path] | None:
    """The set that a worker with this interpreter would use, and its file, if it exists."""
    if not judgement.unmet:
        return None
    path = set_path(volume, judgement)
    try:
        return read_record(path), path
    except (OSError, BadSet):
        return None


def set_path(volume: Path, judgement: Judgement) -> Path:
    """Where the set for this interpreter and these requirements is kept. Its name depends on
    everything that could change it: the interpreter, the C library, each installed version, and
    each unmet requirement."""
    unmet = judgement.unmet
    names = {v.name for v in unmet if v.state is RequirementState.WRONG}
    inputs = [
        _FORMAT,
        judgement.packages.version,
        judgement.packages.libc,
        sorted({(v.core, v.text) for v in unmet}),
        sorted({v.text for v in judgement.verdicts if v.name in names and not v.unmet}),
        sorted((n, v or "") for n, v in judgement.installed.items()),
    ]
    digest = hashlib.sha256(json.dumps(inputs).encode("utf-8", "backslashreplace")).hexdigest()
    torch = judgement.torch() or "none"
    machine = judgement.packages.markers.get("platform_machine", "")
    name = f"{judgement.packages.tag}-{machine}-torch{torch}-{digest[:16]}"
    return volume / OWN_FOLDER / "packages" / f"{_UNSAFE.sub('_', name)[-200:]}.zip"


def prepare_packages(
    context: PackageContext, env: Mapping[str, str], mode: str = INSTALL
) -> PackageSet:
    """Provide missing packages on local disk, from the volume or with uv. Never raises: ComfyUI
    starts without packages too, unless a finding says that it cannot. Mode `report` installs
    nothing.
    """
    start = time.monotonic()
    try:
        reading = BoundedCaller(_READ_SECONDS)
        asked = read_requirements(str(context.comfyui), reading, context.nodes, context.arguments)
    except VolumeTimeout:
        return PackageSet(note="requirements could not be read")
    judgement = judge(context.python, env, asked, context.arguments)
    if not judgement.packages.usable:
        return PackageSet(judgement=judgement, note="the interpreter cannot be used")
    seconds = {"judge": time.monotonic() - start}
    units = units_of(judgement.verdicts)
    uv = find_uv()
    if not units or mode != INSTALL or uv is None or judgement.judged_with is None:
        wanted = units if mode == INSTALL else ()
        findings = package_findings.not_ready(judgement, uv, wanted)
        findings += package_findings.cannot_start(judgement)
        note = "not installed" if units else "nothing is missing"
        return PackageSet(None, (), tuple(findings), judgement, seconds=seconds, note=note)
    preparation = _Preparation(context, asked, judgement, env, units, uv)
    try:
        record, problems = preparation.have()
    except (UvFailed, OSError) as failure:
        findings = [package_findings.failed(judgement, failure, context.timeout, preparation.tried)]
        findings += package_findings.cannot_start(judgement, str(failure))
        return PackageSet(None, (), tuple(findings), judgement, seconds=seconds, note="failed")
    seconds |= {preparation.way: time.monotonic() - start - seconds["judge"]}
    findings = [
        *package_findings.with_set(judgement, record, set_path(context.volume, judgement)),
        *problems,
    ]
    folder = context.work / "packages"
    prefix = judgement.packages.prefix
    return PackageSet(
        path=write_hook(context.work, prefix, preparation.loading) if record.installed else None,
        programs=tuple(p for n in (BEFORE, AFTER) if (p := folder / n / "bin").is_dir()),
        findings=tuple(findings),
        judgement=judgement,
        record=record,
        seconds=seconds,
        note=pluralize(len(record.installed), "package") if record.installed else "all refused",
        loading=preparation.loading,
    )


def _modules_in(folder: Path) -> set[str]:
    return {
        path.name.partition(".")[0]
        for part in (BEFORE, AFTER)
        for path in (folder / part).iterdir()
        if path.is_dir() or path.name.endswith((".py", ".so"))
    }


class _Preparation:
    """Gets the set for one worker: use it, wait for it, or build it."""

    def __init__(
        self,
        context: PackageContext,
        asked: Requirements,
        judgement: Judgement,
        env: Mapping[str, str],
        units: Sequence[Unit],
        uv: Path,
    ) -> None:
        self._context = context
        self._asked = asked
        self._env = env
        self._units = units
        self._uv = uv
        self._kept = set_path(context.volume, judgement)
        self._folder = context.work / "packages"
        self._end = time.monotonic() + context.timeout
        self.way = "load"
        self.loading: Loading | None = None
        self.tried = "the set on the volume"

    def have(self) -> tuple[Record, list[Finding]]:
        """Fill the local folder. Raises UvFailed, OSError."""
        record = self._loaded()
        if record is not None:
            return record, []
        with contextlib.suppress(OSError):  # reported when the set cannot be kept
            self._kept.parent.mkdir(parents=True, exist_ok=True)
        context = self._context
        lease = Lease(self._kept.parent, self._kept.name, Disk(), context.beat, context.stale)
        self._wait_for(lease)
        try:
            record = self._loaded()
            if record is not None:
                return record, []
            with contextlib.suppress(OSError):  # the next worker tries again
                sweep(self._kept, now=lease.path.stat().st_mtime)
            return self._made()
        finally:
            lease.release()

    def _wait_for(self, lease: Lease) -> None:
        if lease.acquire():
            return
        self.tried = "waiting for another worker that installs them"
        _log.info("packages: %s", self.tried)
        if not lease.wait(self._end - time.monotonic(), _LOOK_EVERY):
            raise UvFailed("another worker is still installing them", True)

    def _loaded(self) -> Record | None:
        """Load it from the volume; a damaged set is removed, since no worker could use it."""
        try:
            with contextlib.suppress(OSError):  # a read-only volume
                mark_used(self._kept)
            left = max(1.0, self._end - time.monotonic())
            self.loading = Loading(self._kept, self._folder, left)
            return self.loading.record
        except BadSet as problem:
            _log.warning("%s cannot be used: %s", self._kept, problem)
            discard(self._kept)
            return None
        except OSError as problem:
            if problem.errno in _ABSENT:
                return None
            raise

    def _made(self) -> tuple[Record, list[Finding]]:
        self.way, self.tried = "build", "uv"
        start = time.monotonic()
        scratch = self._context.work / "uv"
        scratch.mkdir()
        _log.info("installing packages: %s", ", ".join(unit.text for unit in self._units))
        try:
            return self._build(scratch, start)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _build(self, scratch: Path, start: float) -> tuple[Record, list[Finding]]:
        context = self._context
        uv = Uv(self._uv, context.python, self._env, scratch, self._end)
        self.tried = f"uv with {uv.where}"
        before = judge(context.python, self._env, self._asked, context.arguments, needs=True)
        hard = hard_imports(self._asked.version, context.arguments)
        hook = partial(write_hook, context.work, before.packages.prefix)
        modules = {each.distribution: each.module for each in hard}
        plan = Builder(uv, before, self._folder, scratch, hook, modules).build(self._units)
        after = judge(
            *(context.python, self._env, self._asked, context.arguments),
            before=self._folder / BEFORE,
            after=self._folder / AFTER,
        )
        names = {*plan.adds, *plan.replaces}
        if lost := names - after.installed.keys():
            raise UvFailed(f"{', '.join(sorted(lost))} is not there after installing", True)
        record = Record(
            installed={name: after.installed[name] or "" for name in sorted(names)},
            replaced={name: before.installed[name] or "" for name in plan.replaces},
            modules=tuple(sorted(_modules_in(self._folder))),
            refused={masked(text): masked(reason) for text, reason in plan.refused.items()},
            unmet=tuple(replace(v, text=masked(v.text)) for v in after.verdicts if v.unmet),
            seconds=round(time.monotonic() - start, 1),
        )
        return record, self._keep(record, scratch)

    def _keep(self, record: Record, scratch: Path) -> list[Finding]:
        try:
            keep(self._folder, record, scratch, self._kept)
            return []
        except OSError as problem:
            return [package_findings.not_kept(self._kept, problem)]
