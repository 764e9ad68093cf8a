"""A venv on the network volume, started at local speed.

    work/python/                            a venv on local disk (layout.py)
    work/python/lib/…/site-packages         a mirror of the volume's: copies and links
    .comfyui-worker/python/<venv>.venv      what earlier starts opened, in one file (archive.py)

Python's start with torch opens thousands of files, one after another, each several round trips.
`mirror_venv` copies them to local disk first: those that the last start opened from one archive,
checked against the volume file by file (unpack.py), or without an archive everything that a start
may import (walk.py). Everything else is linked (deferred.py): folders that a start does not use at
first as a whole, and large libraries, which are read into memory meanwhile. When ComfyUI is ready,
`record_opened` makes the archive from what its processes have noted (audit_hook.py,
archive_writer.py).

The next start notices changes on the volume: changed files by size and time, new ones by their
folder's time. It does not notice a file that changed with neither, and a running worker notices
nothing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bootstrap.core.concurrency import BoundedCaller, VolumeTimeout, WorkerPool
from bootstrap.core.findings import Finding, warning
from bootstrap.core.text import pluralize, printable, size_text
from bootstrap.environment.venv_mirror.archive import Archive, DamagedArchive, read_archive
from bootstrap.environment.venv_mirror.archive_writer import ArchiveWriter, archive_at, read_opened
from bootstrap.environment.venv_mirror.deferred import DeferredFolders, LargeFiles
from bootstrap.environment.venv_mirror.layout import (
    LARGE,
    CannotMirror,
    MirroredVenv,
    MirrorTree,
    install_hook,
    join,
    look_at_venv,
    make_skeleton,
    settle_paths,
    source_of,
)
from bootstrap.environment.venv_mirror.unpack import Unpacking
from bootstrap.environment.venv_mirror.walk import FullCopy

_log = logging.getLogger(__name__)

__all__ = ["Mirror", "MirrorRequest", "mirror_venv", "record_opened"]

CODES = {"python.not_copied": "A venv was not copied to local disk and runs from the volume"}
_IN_IMAGE = "install ComfyUI's packages into the image."
_FIX_ROOM = (
    f"Give the endpoint a larger container disk (Edit Endpoint → Container Disk), or {_IN_IMAGE}"
)
_FIX_NOEXEC = "Set WORK_DIR to a folder on a disk that is not mounted noexec."
_FIX_UNREADABLE = (
    "Check that the venv is whole and can be read on a Pod with this volume; if it is, and this "
    f"happens at each start, {_IN_IMAGE}"
)
_THREADS = 64
# Bytes to leave free on the local disk, and what a link or the end of a file takes.
_HEADROOM = 256 << 20
_BORDER = 4096
# An archive that lacks no more than this is not rebuilt.
_RECORD_SECONDS = 120.0
_MOST_LACKING = 20


@dataclass(frozen=True)
class MirrorRequest:
    """A venv, a new folder `place` on local disk, and a folder `store` on the volume for archives.
    `timeout` is in seconds for everything, `room` the bytes of memory for large libraries.
    `interpreter`, of the same version, is used if the venv's own is not on this machine.
    """

    venv: Path
    place: Path
    store: Path
    timeout: float
    room: int
    interpreter: Path | None = None


@dataclass(frozen=True)
class Mirror:
    """A venv on local disk: `python` is its interpreter, `site` its site-packages. `note` says
    briefly how it was made, `bytes` how much was written in `seconds`. The rest is for
    `record_opened`: `deferred` ends when no folder is a link any more; `recorded` files were in the
    archive (None: no archive), of which `changed` differed.
    """

    python: Path
    site: Path
    note: str
    bytes: int
    seconds: float
    venv: MirroredVenv = field(repr=False)
    archive: Path = field(repr=False)
    tree: MirrorTree = field(repr=False)
    deferred: threading.Thread = field(repr=False)
    recorded: frozenset[str] | None = field(default=None, repr=False)
    changed: int = 0


def mirror_venv(request: MirrorRequest) -> Mirror | Finding:
    """Make the mirror, or a finding that says why not. Never raises: ComfyUI can run from the
    volume too."""
    build = _MirrorBuild(request)
    try:
        return build.make()
    except (CannotMirror, VolumeTimeout, OSError) as problem:
        build.clean_up()
        return _not_copied(request, problem)


def record_opened(mirror: Mirror) -> str:
    """Make an archive of what this mirror's Python has opened so far, if there is none or it lacks
    too much; returns what was done, briefly. Never raises: the next start also works without it."""
    source = mirror.venv.site
    mirror.deferred.join(_RECORD_SECONDS)
    try:
        opened = read_opened(_log_of(mirror.site), mirror.site, source)
        listed = [join(f, n) for f in opened.folders for n in sorted(mirror.tree.names_in(f))]
        small, large = _by_size(mirror, [*opened.mapped, *opened.files])
        small |= _by_size(mirror, listed)[0]
        if mirror.recorded is not None:
            lost = mirror.recorded - mirror.tree.copied.keys()
            lacking = small.keys() - mirror.recorded
            if mirror.changed + len(lost) + len(lacking) <= _MOST_LACKING:
                return "the archive is up to date"
        whole = mirror.tree
        tree = MirrorTree(dict(whole.folders), dict(whole.copied), large, set(whole.deferred))
        wanted = dict.fromkeys([*small, *(mirror.recorded or ())])
        writer = ArchiveWriter(source, mirror.site, tree)
        count = writer.write(wanted, mirror.archive, _RECORD_SECONDS)
    except OSError as problem:
        return f"no archive was made: {problem.strerror or problem}"
    return f"{pluralize(count, 'file')} archived" if count else "another worker made the archive"


class _MirrorBuild:
    """One way from a venv on the volume to a mirror."""

    def __init__(self, request: MirrorRequest) -> None:
        self._request = request
        self._began = time.monotonic()
        self._caller = BoundedCaller(request.timeout)
        self._places: list[Path] = []

    def make(self) -> Mirror:
        """Raises CannotMirror, VolumeTimeout, OSError."""
        request = self._request
        venv = self._caller.one(partial(look_at_venv, request.venv, request.interpreter))
        path = self._caller.one(partial(archive_at, request.store, request.venv, venv.tag))
        try:
            archive = self._caller.one(partial(_read_if_there, path))
            if archive is not None:
                return self._unpack(venv, path, archive)
        except DamagedArchive as problem:
            _log.warning("%s cannot be used: %s", path, problem)
        return self._walk(venv, path)

    def clean_up(self) -> None:
        """Remove an incomplete mirror in the background: threads may still be writing."""
        for place in self._places:
            threading.Thread(
                target=shutil.rmtree, args=(place, True), name="clean-up", daemon=True
            ).start()

    def _unpack(self, venv: MirroredVenv, path: Path, archive: Archive) -> Mirror:
        """Raises DamagedArchive besides."""
        self._places.append(self._request.place)
        python, site = self._begin(venv, self._request.place)
        self._check_room(archive.bytes, len(archive.files) + len(archive.tree.folders))
        self._read_large(venv, site, archive.tree)
        recorded = frozenset(packed.path for packed in archive.files)
        unpacking = Unpacking(path, archive, str(venv.site), str(site), venv.tag)
        if not unpacking.run(self._left):
            raise CannotMirror(self._too_slow, _FIX_UNREADABLE)
        with contextlib.suppress(OSError):  # a volume that is read-only
            os.utime(path)
        note = f"{pluralize(len(recorded), 'file')}, {size_text(archive.bytes)} from the archive"
        if unpacking.changed:
            note += f", {unpacking.changed} changed since"
        return self._mirror(
            python, site, note, venv, path, archive.tree, recorded, unpacking.changed
        )

    def _walk(self, venv: MirroredVenv, path: Path) -> Mirror:
        place = self._request.place
        if self._places:  # its threads may not have ended
            self.clean_up()
            place = place.with_name(f"{place.name}-walked")
        self._places.append(place)
        python, site = self._begin(venv, place)
        tree, pool = MirrorTree(), WorkerPool(_THREADS)
        walk = FullCopy(str(venv.site), str(site), tree, venv.tag, pool)
        if not pool.run([partial(walk.look_at, "")], self._left):
            raise CannotMirror(self._too_slow, _FIX_UNREADABLE)
        self._read_large(venv, site, tree)
        note = f"{pluralize(len(tree.copied), 'file')} copied, without an archive"
        return self._mirror(python, site, note, venv, path, tree)

    def _begin(self, venv: MirroredVenv, place: Path) -> tuple[Path, Path]:
        """Make everything around site-packages; returns the Python and the empty site-packages."""
        python = make_skeleton(venv, place)
        if os.statvfs(place).f_flag & os.ST_NOEXEC:
            why = f"programs cannot be run from {place}"
            raise CannotMirror(why, _FIX_NOEXEC)
        return python, place / "lib" / venv.library / "site-packages"

    def _mirror(
        self,
        python: Path,
        site: Path,
        note: str,
        venv: MirroredVenv,
        path: Path,
        tree: MirrorTree,
        recorded: frozenset[str] | None = None,
        changed: int = 0,
    ) -> Mirror:
        settle_paths(site, venv.site)
        install_hook(site, venv.site, _log_of(site))
        size = sum(stamp.size for stamp in tree.copied.values())
        seconds = time.monotonic() - self._began
        scratch = python.parent.parent / "deferred"
        deferred = DeferredFolders(venv.site, site, scratch, tree, venv.tag).start(
            self._request.timeout
        )
        return Mirror(
            python, site, note, size, seconds, venv, path, tree, deferred, recorded, changed
        )

    @property
    def _left(self) -> float:
        return max(0.0, self._began + self._request.timeout - time.monotonic())

    @property
    def _too_slow(self) -> str:
        return f"the volume did not hand it over within {self._request.timeout:g} s"

    def _check_room(self, size: int, entries: int) -> None:
        free = shutil.disk_usage(self._request.place).free
        if size + entries * _BORDER > free - _HEADROOM:
            why = f"the local disk has no space for {size_text(size)} more"
            raise CannotMirror(why, _FIX_ROOM)

    def _read_large(self, venv: MirroredVenv, site: Path, tree: MirrorTree) -> None:
        large = LargeFiles(str(venv.site), str(site), dict(tree.large), self._request.room)
        large.read_ahead(self._request.timeout)


def _log_of(site: Path) -> Path:
    """The log beside site-packages of what Python opens."""
    return site.with_name("opened.log")


def _read_if_there(path: Path) -> Archive | None:
    """Raises DamagedArchive."""
    try:
        return read_archive(path)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise DamagedArchive(problem.strerror or str(problem)) from problem


def _by_size(mirror: Mirror, paths: Iterable[str]) -> tuple[dict[str, int], dict[str, int]]:
    """The venv's files that are small enough for the archive, and the larger ones."""
    small: dict[str, int] = {}
    large: dict[str, int] = {}
    for path in dict.fromkeys(paths):
        if mirror.tree.holds(source_of(path) or path):
            with contextlib.suppress(OSError):
                size = os.stat(mirror.site / path).st_size
                (small if size < LARGE else large)[path] = size
    return small, large


def _not_copied(request: MirrorRequest, problem: Exception) -> Finding:
    reason, fix = str(problem), _FIX_UNREADABLE
    if isinstance(problem, OSError) and problem.strerror:
        place = f" ({printable(os.fsdecode(problem.filename))})" if problem.filename else ""
        reason = f"{problem.strerror}{place}"
        fix = _FIX_ROOM if problem.errno in (errno.ENOSPC, errno.EDQUOT) else _FIX_UNREADABLE
    elif isinstance(problem, CannotMirror):
        fix = problem.fix
    return warning(
        "python.not_copied",
        f"The venv {request.venv} was not copied to local disk: {reason}. ComfyUI runs from the "
        "volume, which makes its start slow.",
        fix,
    )
