"""What custom nodes require and ComfyUI's Python lacks, for NODE_REQUIREMENTS=install.

    volume/.comfyui-worker/packages/<name>.zip   made once for an image and a set of requirements
    work/packages/                               unpacked on local disk
    work/packages-path/sitecustomize.py          puts that folder at the end of ComfyUI's path

Nothing is installed into an interpreter, and nothing that is installed is hidden: what the image or
the venv has comes first. Of several workers one makes the archive, the others wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bootstrap.core.concurrency import SilentError, Together
from bootstrap.core.files import Disk, publish_new
from bootstrap.core.findings import Finding, ok, warning
from bootstrap.core.lease import BEAT, STALE, Lease
from bootstrap.core.log import say
from bootstrap.core.text import named
from bootstrap.environment.archive import (
    BadArchive,
    Record,
    archive_at,
    mark_used,
    pack,
    sweep,
    unpack,
)
from bootstrap.environment.build import Builder
from bootstrap.environment.judge import Wanted, constraints, wanted_by
from bootstrap.environment.packs import gather_packs
from bootstrap.environment.pip import Pip, PipFailed
from bootstrap.environment.site_packages import PackagesFacts

CODES = {
    "nodes.packages_added": "Packages that node packs require were added to ComfyUI's path.",
    "nodes.packages_refused": "Packages that node packs require were not installed.",
    "nodes.packages_failed": "Node packs' requirements could not be installed.",
    "nodes.packages_not_kept": "Installed packages could not be kept on the volume.",
}
_LOOK_SECONDS = 15.0
_LOOK_EVERY = 0.5
# The last is a file on NFS that was removed while it was read.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_HOOK = '''"""Adds packages of custom nodes behind all others; a worker writes it at each start."""
import importlib.machinery
import importlib.util
import os
import site
import sys

_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != _here]
site.addsitedir({folder!r})
# The interpreter's own file of this name, which this one hid.
_spec = importlib.machinery.PathFinder.find_spec("sitecustomize")
if _spec is not None and _spec.loader is not None:
    _spec.loader.exec_module(importlib.util.module_from_spec(_spec))
'''


def added(record: Record, archive: Path) -> Finding:
    """What is there now, and from where."""
    names = [f"{name} {version}" for name, version in sorted(record.installed.items())]
    return ok(
        "nodes.packages_added",
        f"For node packs, behind what ComfyUI's Python has: {named(names, 8)}.",
        archive=str(archive),
        packages=dict(record.installed),
    )


def refused(wanted: Wanted, record: Record, archive: Path | None) -> list[Finding]:
    """What is not installed and why; nothing where all was."""
    reasons = {**dict.fromkeys(wanted.wrong, "nothing is installed over it"), **record.refused}
    if not reasons:
        return []
    told = "; ".join(f"{text}: {reason}" for text, reason in list(reasons.items())[:5])
    again = f" To try again with the same files, remove {archive}." if record.refused else ""
    return [
        warning(
            "nodes.packages_refused",
            f"Not installed for node packs, which may fail to import: {told}.",
            "Update the pack, or build an image that has what it needs; what is installed is never "
            f"replaced.{again}",
            refused=reasons,
        )
    ]


def failed(wanted: Wanted, problem: Exception, timeout: float) -> Finding:
    """Nothing was installed; another start may do better."""
    return warning(
        "nodes.packages_failed",
        f"What node packs require ({named(wanted.missing, 8)}) was not installed: {problem}.",
        "pip's lines in the worker's log say more. If it was too slow, raise "
        f"NODE_REQUIREMENTS_TIMEOUT ({timeout:g} s), and with it RUNPOD_INIT_TIMEOUT; if the index "
        "was not reached, look at PIP_INDEX_URL. The next start tries again.",
        requirements=list(wanted.missing),
    )


def not_kept(archive: Path, problem: OSError) -> Finding:
    """Installed for this start only."""
    return warning(
        "nodes.packages_not_kept",
        f"Packages for node packs could not be kept as {archive}: {problem.strerror or problem}.",
        "This worker has them; each start installs them anew until the volume can be written to "
        "and has room.",
    )


@dataclass(frozen=True)
class Place:
    """`comfyui` has the node packs, `volume` keeps the archive, `work` is on local disk. Times in
    seconds: `timeout` for all of it, `beat` and `stale` of leases."""

    python: Path
    comfyui: Path
    volume: Path
    work: Path
    timeout: float
    beat: float = BEAT
    stale: float = STALE


@dataclass(frozen=True)
class Added:
    """`path` is what PYTHONPATH must be, None where nothing is added; `note` for the timeline."""

    path: Path | None
    findings: list[Finding]
    note: str = "nothing is missing"


def add_packages(place: Place, packages: PackagesFacts, env: Mapping[str, str]) -> Added:
    """Have what is missing on local disk, from the volume or from pip. Never raises: a worker
    starts without packages as well, and says which nodes that costs."""
    if not packages.usable:
        return Added(None, [], "the interpreter does not answer")
    try:
        packs = gather_packs(str(place.comfyui), Together(_LOOK_SECONDS))
    except SilentError:
        return Added(None, [], "the node packs could not be read")
    wanted = wanted_by(packs, packages)
    if not wanted.missing:
        return Added(None, refused(wanted, Record(), None))
    archive = archive_at(place.volume, wanted, packages)
    try:
        record, findings = _Making(place, packages, env, wanted, archive).have()
    except (PipFailed, OSError) as problem:
        return Added(None, [failed(wanted, problem, place.timeout)], "failed")
    refusals = refused(wanted, record, archive)
    if not record.installed:
        return Added(None, [*findings, *refusals], "all refused")
    note = f"{len(record.installed)} packages"
    path = _hook(place.work)
    return Added(path, [added(record, archive), *findings, *refusals], note)


class _Making:
    """One worker's way to the archive: use it, wait for it, or make it."""

    def __init__(
        self,
        place: Place,
        packages: PackagesFacts,
        env: Mapping[str, str],
        wanted: Wanted,
        archive: Path,
    ) -> None:
        self._place = place
        self._packages = packages
        self._env = env
        self._wanted = wanted
        self._archive = archive
        self._folder = place.work / "packages"
        self._end = time.monotonic() + place.timeout

    def have(self) -> tuple[Record, list[Finding]]:
        """Fill the local folder. Raises PipFailed, OSError."""
        record = self._unpacked()
        if record is not None:
            return record, []
        with contextlib.suppress(OSError):  # told when the archive cannot be kept
            self._archive.parent.mkdir(parents=True, exist_ok=True)
        place = self._place
        lease = Lease(self._archive.parent, self._archive.name, Disk(), place.beat, place.stale)
        told = False
        while not lease.acquire():
            if not told:
                say("waiting for another worker that installs what node packs require")
                told = True
            if time.monotonic() >= self._end:
                raise PipFailed("another worker is still installing them", True)
            time.sleep(_LOOK_EVERY)
            if lease.look() is not None:
                lease.break_stale()
        try:
            record = self._unpacked()
            if record is not None:
                return record, []
            with contextlib.suppress(OSError):  # the next one tries again
                sweep(self._archive, now=lease.path.stat().st_mtime)
            return self._made()
        finally:
            lease.release()

    def _unpacked(self) -> Record | None:
        """From the archive; one that is damaged is put away, since nobody could ever use it."""
        try:
            with contextlib.suppress(OSError):  # a volume that is read-only
                mark_used(self._archive)
            left = max(1.0, self._end - time.monotonic())
            return unpack(self._archive, self._folder, left)
        except BadArchive as problem:
            say(f"{self._archive} cannot be used: {problem}")
            self._archive.unlink(missing_ok=True)
            return None
        except OSError as problem:
            if problem.errno in _ABSENT:
                return None
            raise

    def _made(self) -> tuple[Record, list[Finding]]:
        scratch = self._place.work / "pip"
        scratch.mkdir()
        say(f"installing what node packs require: {', '.join(self._wanted.missing)}")
        try:
            pip = Pip(self._place.python, self._env, scratch, self._end)
            pins = constraints(self._packages)
            record = Builder(pip, pins, self._folder, scratch).build(self._wanted.missing)
            return record, self._kept(record, scratch)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _kept(self, record: Record, scratch: Path) -> list[Finding]:
        """Put the archive on the volume, where another worker's may be by now."""
        try:
            pack(self._folder, record, scratch / "packed.zip")
            publish_new(scratch / "packed.zip", self._archive)
            return []
        except OSError as problem:
            return [not_kept(self._archive, problem)]


def _hook(work: Path) -> Path:
    path = work / "packages-path"
    path.mkdir()
    text = _HOOK.format(folder=str(work / "packages"))
    (path / "sitecustomize.py").write_text(text, encoding="utf-8")
    return path
