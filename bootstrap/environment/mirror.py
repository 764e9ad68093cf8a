"""A venv on the network volume, started at local speed.

    work/python/                            a venv on local disk: mirror_venv.py
    work/python/lib/…/site-packages         a mirror of the volume's: copies and links
    .comfyui-worker/python/<venv>.venv      what the last start opened, in one file

Python's start with torch opens thousands of files, one after another, each several round trips.
`mirror_venv` brings them to local disk before: those that the last start opened from one archive,
checked against the volume file by file (mirror_unpack.py); where there is no archive, all that a
start may import (mirror_walk.py). Everything else is linked, large libraries too, which are read
into memory beside (mirror_large.py). When ComfyUI is ready, `record_opened` makes the archive.

What changes on the volume is seen at the next start: a file by its size and time, a new one by its
folder's time. It is not seen that a file was changed with neither, or while a worker runs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bootstrap.environment.mirror_archive import BadArchive, read_archive
from bootstrap.environment.mirror_large import LargeFiles
from bootstrap.environment.mirror_record import Record, archive_at, read_opened
from bootstrap.environment.mirror_tree import LARGE, Tree, source_of
from bootstrap.environment.mirror_unpack import Unpacking
from bootstrap.environment.mirror_venv import (
    NotAVenv,
    Venv,
    look_at_venv,
    make_skeleton,
    note_opened,
    settle_paths,
)
from bootstrap.environment.mirror_walk import Walk
from bootstrap.facts.crew import Crew
from bootstrap.facts.together import SilentError, Together
from bootstrap.findings import Finding, warning
from bootstrap.log import say
from bootstrap.wording import counted, size_text

CODES = {"python.not_copied": "A venv on the volume was not copied to local disk, and runs from it"}
_THREADS = 64
# What must be left free on the local disk, in bytes, and what a link or the end of a file takes.
_HEADROOM = 256 << 20
_BORDER = 4096
# An archive that lacks no more than this is not made again.
_MOST_LACKING = 20
_LOG = "opened.log"


@dataclass(frozen=True)
class Mirror:
    """A venv on local disk. `python` is its interpreter, `site` its site-packages; `note` says in
    a few words how it came about, `bytes` what was copied for it in `seconds`."""

    python: Path
    site: Path
    note: str
    bytes: int
    seconds: float
    _made: _Made = field(repr=False)


@dataclass(frozen=True)
class Request:
    """Which venv, `place` on local disk (made anew), the folder `store` on the volume for archives.

    `timeout` in seconds is for all of it, `room` the bytes of memory that large libraries may
    take. `interpreter`, of the same version, is used where the venv's own is not on this machine.
    `progress` is called now and then with the number of files that are there.
    """

    venv: Path
    place: Path
    store: Path
    timeout: float
    room: int
    interpreter: Path | None = None
    progress: Callable[[int], None] | None = None


@dataclass(frozen=True)
class _Made:
    """What is known of a mirror for its archive. `recorded` files were in the one it came from,
    None where there was none; `changed` of them were not as recorded."""

    venv: Venv
    archive: Path
    log: Path
    tree: Tree
    recorded: frozenset[str] | None = None
    changed: int = 0


class _CannotMirror(Exception):
    """The message completes "… was not copied: …"."""


def mirror_venv(request: Request) -> Mirror | Finding:
    """Make the mirror, or a finding that says why there is none. Never raises: ComfyUI runs from
    the volume as well."""
    began = time.monotonic()
    try:
        made, python, note = _Making(request, began + request.timeout).make()
    except (NotAVenv, SilentError, OSError, _CannotMirror) as problem:
        threading.Thread(
            target=shutil.rmtree, args=(request.place, True), name="clean-up", daemon=True
        ).start()
        return _not_copied(request, problem)
    size = sum(stamp.size for stamp in made.tree.copied.values())
    site = python.parent.parent / "lib" / made.venv.library / "site-packages"
    return Mirror(python, site, note, size, time.monotonic() - began, made)


def record_opened(mirror: Mirror, timeout: float = 120) -> str:
    """Make an archive of what this mirror's Python has opened so far, if there is none or it lacks
    too much; what was done, in a few words. Never raises: the next start does without."""
    made = mirror._made
    try:
        opened = read_opened(made.log, mirror.site, made.venv.site)
        small, large = _by_size(mirror, (*opened.mapped, *opened.files))
        if made.recorded is not None:
            lacking = made.changed + len(small.keys() - made.recorded)
            if lacking <= _MOST_LACKING:
                return "the archive is up to date"
        made.tree.large.clear()
        made.tree.large.update(large)
        record = Record(made.venv.site, mirror.site, made.tree, made.venv.tag)
        wanted = dict.fromkeys([*opened.files, *small, *(made.recorded or ())])
        count = record.write(wanted, made.archive, timeout)
    except OSError as problem:
        return f"no archive was made: {problem.strerror or problem}"
    return f"{counted(count, 'file')} archived" if count else "another worker made the archive"


class _Making:
    """One way from a venv on the volume to a mirror. `end` is by the monotonic clock."""

    def __init__(self, request: Request, end: float) -> None:
        self._request = request
        self._end = end
        self._together = Together(request.timeout)

    def make(self) -> tuple[_Made, Path, str]:
        """What is known of it, its Python, and a note. Raises NotAVenv, SilentError, OSError,
        _CannotMirror."""
        request = self._request
        venv = self._together.one(partial(look_at_venv, request.venv, request.interpreter))
        archive = self._together.one(partial(archive_at, request.store, request.venv, venv.tag))
        shutil.rmtree(request.place, ignore_errors=True)
        python = make_skeleton(venv, request.place)
        if os.statvfs(request.place).f_flag & os.ST_NOEXEC:
            raise _CannotMirror(f"programs cannot be run from {request.place}")
        site = request.place / "lib" / venv.library / "site-packages"
        log = request.place / _LOG
        made, note = self._from_archive(venv, archive, log, site) or self._from_venv(
            venv, archive, log, site
        )
        settle_paths(site, venv.site)
        note_opened(site, log)
        return made, python, note

    def _from_archive(
        self, venv: Venv, path: Path, log: Path, site: Path
    ) -> tuple[_Made, str] | None:
        """None where there is no archive or it cannot be used."""
        try:
            archive = self._together.one(partial(read_archive, path))
            self._check_room(archive.bytes, len(archive.files) + len(archive.tree.folders))
            self._read_large(venv, site, archive.tree)
            unpacking = Unpacking(path, archive, str(venv.site), str(site), venv.tag)
            if not unpacking.run(self._left, self._tick(archive.tree)):
                raise _CannotMirror(self._late)
        except FileNotFoundError:
            return None
        except BadArchive as problem:
            say(f"{path} cannot be used: {problem}")
            shutil.rmtree(site)
            site.mkdir()
            return None
        with contextlib.suppress(OSError):  # a volume that is read-only
            os.utime(path)
        recorded = frozenset(packed.path for packed in archive.files)
        made = _Made(venv, path, log, archive.tree, recorded, unpacking.changed)
        note = f"{counted(len(recorded), 'file')}, {size_text(archive.bytes)} from the archive"
        if unpacking.changed:
            note += f", {unpacking.changed} changed since"
        return made, note

    def _from_venv(self, venv: Venv, archive: Path, log: Path, site: Path) -> tuple[_Made, str]:
        tree, crew = Tree(), Crew(_THREADS)
        walk = Walk(str(venv.site), str(site), tree, venv.tag, crew)
        if not crew.run([partial(walk.look_at, "")], self._left, self._tick(tree)):
            raise _CannotMirror(self._late)
        self._read_large(venv, site, tree)
        size = sum(stamp.size for stamp in tree.copied.values())
        note = f"{counted(len(tree.copied), 'file')}, {size_text(size)} copied, without an archive"
        return _Made(venv, archive, log, tree), note

    @property
    def _left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    @property
    def _late(self) -> str:
        return f"the volume did not hand it over within {self._request.timeout:g} s"

    def _tick(self, tree: Tree) -> Callable[[], None] | None:
        progress = self._request.progress
        return None if progress is None else lambda: progress(len(tree.copied))

    def _check_room(self, size: int, entries: int) -> None:
        free = shutil.disk_usage(self._request.place).free
        if size + entries * _BORDER > free - _HEADROOM:
            raise _CannotMirror(f"the local disk has no room for {size_text(size)} more")

    def _read_large(self, venv: Venv, site: Path, tree: Tree) -> None:
        large = LargeFiles(str(venv.site), str(site), dict(tree.large), self._request.room)
        large.read_ahead(self._request.timeout)


def _by_size(mirror: Mirror, paths: tuple[str, ...]) -> tuple[dict[str, int], dict[str, int]]:
    """Files of the venv that are small enough for the archive, and larger ones."""
    small: dict[str, int] = {}
    large: dict[str, int] = {}
    for path in dict.fromkeys(paths):
        if mirror._made.tree.holds(source_of(path) or path):
            with contextlib.suppress(OSError):
                size = os.stat(mirror.site / path).st_size
                (small if size < LARGE else large)[path] = size
    return small, large


def _not_copied(request: Request, problem: Exception) -> Finding:
    reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else problem
    return warning(
        "python.not_copied",
        f"The venv {request.venv} was not copied to local disk: {reason}. ComfyUI runs from the "
        "volume, which makes its start slow.",
        "Give the endpoint a larger container disk (Edit Endpoint → Container Disk), or install "
        "ComfyUI's packages into the image.",
    )
