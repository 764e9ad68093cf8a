"""The packages that ComfyUI and its custom nodes ask for and ComfyUI's Python lacks.

    volume/.comfyui-worker/packages/<name>.zip   made once for an interpreter and what is asked for
    work/packages/before, after                  unpacked on local disk
    work/packages-path/sitecustomize.py          puts these folders on ComfyUI's path

`prepare_packages` is the door. Nothing is installed into an interpreter. What replaces another
version stands ahead of the interpreter's packages, what is added behind them, where it hides
nothing. Of several workers one makes a set, the others wait for it and need no network.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from bootstrap.environment import package_report as report
from bootstrap.environment.hard_imports import HardImport, hard_imports
from bootstrap.environment.judgement import Judgement, State, judge
from bootstrap.environment.package_build import Builder
from bootstrap.environment.package_store import (
    AFTER,
    BEFORE,
    BadSet,
    Record,
    keep,
    load,
    mark_used,
    read_record,
    sweep,
)
from bootstrap.environment.requirement_files import RequirementFile, requirement_files
from bootstrap.environment.resolve import Unit, units_of
from bootstrap.environment.uv import Uv, UvFailed, find_uv
from bootstrap.facts.node_packs import gather_packs
from bootstrap.facts.together import SilentError, Together
from bootstrap.fetch.disk import Disk
from bootstrap.findings import Finding
from bootstrap.lease import BEAT, STALE, Lease
from bootstrap.log import say
from bootstrap.masking import masked
from bootstrap.recent import FOLDER

INSTALL, REPORT = "install", "report"
_READ_SECONDS = 15.0
_LOOK_EVERY = 0.2
_FORMAT = 2
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]")
# The last is a file on NFS that was removed while it was read.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_HOOK = '''"""Puts packages on ComfyUI's path; a worker writes it at each start."""
import importlib.machinery
import importlib.util
import os
import site
import sys

_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != _here]


def _add(folder, at):
    known = list(sys.path)
    site.addsitedir(folder)
    sys.path[:] = known[:at] + [p for p in sys.path if p not in known] + known[at:]


# Other interpreters that ComfyUI starts inherit PYTHONPATH, and their packages are their own.
if sys.prefix == {prefix!r}:
    _own = [i for i, path in enumerate(sys.path) if path.endswith("-packages")]
    _add({after!r}, len(sys.path))
    _add({before!r}, _own[0] if _own else len(sys.path))
# The interpreter's own file of this name, which this one hid.
_spec = importlib.machinery.PathFinder.find_spec("sitecustomize")
if _spec is not None and _spec.loader is not None:
    _spec.loader.exec_module(importlib.util.module_from_spec(_spec))
'''


@dataclass(frozen=True)
class Place:
    """`comfyui` is the folder whose requirements count, of version `version` (None if unknown) and
    started with `arguments`; `volume` keeps the set, `work` is on local disk. Times in seconds:
    `timeout` for all of it, `beat` and `stale` of leases."""

    python: Path
    comfyui: Path
    volume: Path
    work: Path
    timeout: float
    version: str | None = None
    arguments: Sequence[str] = ()
    beat: float = BEAT
    stale: float = STALE


@dataclass(frozen=True)
class PackageSet:
    """What came of it. `path` is what PYTHONPATH must be, None where nothing is added; `programs`
    are folders for the end of PATH. `judgement` is as it is with the set in place, `absent` what
    ComfyUI cannot start without and does not have. `asked_by` says who asked for an installed
    package. `seconds` are of the parts, by name; `note` is for the timeline."""

    path: Path | None = None
    programs: tuple[Path, ...] = ()
    findings: tuple[Finding, ...] = ()
    judgement: Judgement | None = None
    record: Record = field(default_factory=Record)
    absent: tuple[HardImport, ...] = ()
    asked_by: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    note: str = "nothing is missing"

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """ComfyUI's environment with the packages on its path."""
        if self.path is None:
            return dict(env)
        path = ":".join([env.get("PATH", "/usr/bin:/bin"), *map(str, self.programs)])
        return {**env, "PYTHONPATH": str(self.path), "PATH": path}


def look(place: Place, env: Mapping[str, str], *, needs: bool = False) -> Judgement:
    """What ComfyUI and its nodes ask for, judged; with `needs`, what is installed as well.

    Raises SilentError where the volume does not answer.
    """
    return _Look(place).judged(env, needs=needs)


def kept_set(place: Place, judgement: Judgement) -> Record | None:
    """The set that a worker with this interpreter would use, if it is on the volume already."""
    if not judgement.unmet:
        return None
    try:
        return read_record(set_path(place.volume, judgement))
    except (OSError, BadSet):
        return None


def set_path(volume: Path, judgement: Judgement) -> Path:
    """Where the set for this interpreter and these requirements is kept. All that could make it
    another one is in its name: the interpreter, the C library, each installed version, and each
    requirement on what is not as it should be."""
    unmet = judgement.unmet
    names = {v.name for v in unmet if v.state is State.WRONG}
    told = [
        _FORMAT,
        judgement.version,
        judgement.libc,
        sorted({(v.core, v.text) for v in unmet}),
        sorted({v.text for v in judgement.verdicts if v.name in names and not v.unmet}),
        sorted((n, v or "") for n, v in judgement.installed.items()),
    ]
    digest = hashlib.sha256(json.dumps(told).encode("utf-8", "backslashreplace")).hexdigest()
    torch = judgement.torch() or "none"
    name = f"{judgement.tag}-{judgement.machine}-torch{torch}-{digest[:16]}"
    return volume / FOLDER / "packages" / f"{_UNSAFE.sub('_', name)[-200:]}.zip"


def prepare_packages(
    place: Place, env: Mapping[str, str], mode: str = INSTALL, uv: Path | None = None
) -> PackageSet:
    """Have what is missing on local disk, from the volume or by `uv` (found where it is None).

    Never raises: ComfyUI starts without packages as well, unless `absent` says that it cannot. With
    mode `report` nothing is installed.
    """
    start = time.monotonic()
    try:
        judgement = look(place, env)
    except SilentError:
        return PackageSet(note="requirements could not be read")
    seconds = {"judge": time.monotonic() - start}
    absent = _absent(place, judgement)
    if judgement.failure is not None:
        return PackageSet(judgement=judgement, note="the interpreter does not answer")
    units = units_of(judgement.verdicts)
    problem = report.not_ready(judgement, uv or find_uv(), mode, units)
    if problem is not None or not units or mode != INSTALL:
        note = "not installed" if units else "nothing is missing"
        findings = [
            *([problem] if problem else []),
            *report.cannot_start(place.version, judgement, absent),
        ]
        return PackageSet(None, (), tuple(findings), judgement, absent=absent, note=note)
    making = _Making(place, judgement, env, units, uv or find_uv() or Path("uv"))
    try:
        record, findings = making.have()
    except (UvFailed, OSError) as failure:
        told = [report.failed(judgement, failure, place.timeout, making.tried)]
        told += report.cannot_start(place.version, judgement, absent, str(failure))
        return PackageSet(None, (), tuple(told), judgement, absent=absent, note="failed")
    seconds |= {making.way: time.monotonic() - start - seconds["judge"]}
    return _as_set(place, judgement, record, findings, units, absent, seconds)


def _as_set(
    place: Place,
    judgement: Judgement,
    record: Record,
    findings: Sequence[Finding],
    units: Sequence[Unit],
    absent: Sequence[HardImport],
    seconds: Mapping[str, float],
) -> PackageSet:
    folder = place.work / "packages"
    after = judgement.with_packages(record.installed, record.unmet)
    absent = tuple(each for each in absent if not _brings(folder, each.module))
    told = [
        *report.installed(after, record, units, set_path(place.volume, judgement)),
        *findings,
        *report.conflicts(after, record, set_path(place.volume, judgement)),
        *report.cannot_start(place.version, after, absent, "; ".join(record.refused.values())),
    ]
    return PackageSet(
        path=_hook(place.work, judgement.prefix) if record.installed else None,
        programs=tuple(p for n in (BEFORE, AFTER) if (p := folder / n / "bin").is_dir()),
        findings=tuple(told),
        judgement=after,
        record=record,
        absent=absent,
        asked_by={unit.name: unit.owners for unit in units if unit.name in record.installed},
        seconds=seconds,
        note=f"{len(record.installed)} packages" if record.installed else "all refused",
    )


def _absent(place: Place, judgement: Judgement) -> tuple[HardImport, ...]:
    wanted = hard_imports(place.version, place.arguments)
    return tuple(each for each in wanted if each.module in judgement.absent)


def _brings(folder: Path, module: str) -> bool:
    return any(
        (folder / part / module).is_dir() or any((folder / part).glob(f"{module}.*"))
        for part in (BEFORE, AFTER)
    )


def _hook(work: Path, prefix: str) -> Path:
    path = work / "packages-path"
    path.mkdir(exist_ok=True)
    folder = work / "packages"
    text = _HOOK.format(prefix=prefix, before=str(folder / BEFORE), after=str(folder / AFTER))
    (path / "sitecustomize.py").write_text(text, encoding="utf-8")
    return path


class _Look:
    """Requirements as the volume has them, read once for several questions."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.hard = hard_imports(place.version, place.arguments)
        together = Together(_READ_SECONDS)
        packs = gather_packs(str(place.comfyui), together)
        self.files: tuple[RequirementFile, ...] = requirement_files(
            str(place.comfyui), packs, together
        )

    def judged(
        self, env: Mapping[str, str], *, needs: bool = False, folder: Path | None = None
    ) -> Judgement:
        modules = [each.module for each in self.hard]
        return judge(
            self._place.python,
            env,
            self.files,
            modules,
            needs=needs,
            before=folder / BEFORE if folder else None,
            after=folder / AFTER if folder else None,
        )


class _Making:
    """One worker's way to the set: use it, wait for it, or make it."""

    def __init__(
        self,
        place: Place,
        judgement: Judgement,
        env: Mapping[str, str],
        units: Sequence[Unit],
        uv: Path,
    ) -> None:
        self._place = place
        self._env = env
        self._units = units
        self._uv = uv
        self._kept = set_path(place.volume, judgement)
        self._folder = place.work / "packages"
        self._end = time.monotonic() + place.timeout
        self.way = "load"
        self.tried = "the set on the volume"

    def have(self) -> tuple[Record, list[Finding]]:
        """Fill the local folder. Raises UvFailed, OSError."""
        record = self._loaded()
        if record is not None:
            return record, []
        with contextlib.suppress(OSError):  # reported when the set cannot be kept
            self._kept.parent.mkdir(parents=True, exist_ok=True)
        place = self._place
        lease = Lease(self._kept.parent, self._kept.name, Disk(), place.beat, place.stale)
        self._wait_for(lease)
        try:
            record = self._loaded()
            if record is not None:
                return record, []
            with contextlib.suppress(OSError):  # the next one tries again
                sweep(self._kept, now=lease.path.stat().st_mtime)
            return self._made()
        finally:
            lease.release()

    def _wait_for(self, lease: Lease) -> None:
        said = False
        while not lease.acquire():
            self.tried = "waiting for another worker that installs them"
            if not said:
                say(f"packages: {self.tried}")
                said = True
            if time.monotonic() >= self._end:
                raise UvFailed("another worker is still installing them", True)
            time.sleep(_LOOK_EVERY)
            if lease.look() is not None:
                lease.break_stale()

    def _loaded(self) -> Record | None:
        """From the volume; a set that is damaged is put away, since no worker could use it."""
        try:
            with contextlib.suppress(OSError):  # a volume that is read-only
                mark_used(self._kept)
            return load(self._kept, self._folder, max(1.0, self._end - time.monotonic()))
        except BadSet as problem:
            say(f"{self._kept} cannot be used: {problem}")
            self._kept.unlink(missing_ok=True)
            return None
        except OSError as problem:
            if problem.errno in _ABSENT:
                return None
            raise

    def _made(self) -> tuple[Record, list[Finding]]:
        self.way, self.tried = "build", "uv"
        start = time.monotonic()
        scratch = self._place.work / "uv"
        scratch.mkdir()
        say(f"installing packages: {', '.join(unit.text for unit in self._units)}")
        try:
            return self._build(scratch, start)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _build(self, scratch: Path, start: float) -> tuple[Record, list[Finding]]:
        looked = _Look(self._place)
        uv = Uv(self._uv, self._place.python, self._env, scratch, self._end)
        self.tried = f"uv with {uv.where}"
        judgement = looked.judged(self._env, needs=True)
        modules = {each.distribution: each.module for each in looked.hard}
        hook = partial(_hook, self._place.work, judgement.prefix)
        builder = Builder(uv, judgement, self._folder, scratch, hook, modules)
        plan = builder.build(self._units)
        after = looked.judged(self._env, folder=self._folder)
        names = {*plan.adds, *plan.replaces}
        if lost := names - after.installed.keys():
            raise UvFailed(f"{', '.join(sorted(lost))} is not there after installing", True)
        record = Record(
            installed={name: after.installed[name] or "" for name in sorted(names)},
            replaced={name: judgement.installed[name] or "" for name in plan.replaces},
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
            return [report.not_kept(self._kept, problem)]
