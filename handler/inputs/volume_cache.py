"""Copies files and folders that jobs name from the volume to ComfyUI's own input folder.

ComfyUI's input folder is local, and since version 0.28 it refuses links that lead out of it. Copies
stay for the next job that names them, within limits: local disk is small. A result of an earlier
job (`name [output]`) becomes an input file as well: in ComfyUI's own output folder it would count
as a result of this job.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from bootstrap.core.concurrency import WorkerPool
from bootstrap.core.files import Stamp, replacing
from bootstrap.volume import Layout
from bootstrap.volume.find_comfyui import USUAL_ROOTS
from handler.common.blocking import VolumeWatchdog
from handler.common.errors import Deadline, JobError, short
from handler.request.references import NamedFile, is_folder_input, named_files, replace_texts
from handler.request.workflow import Workflow

ROOM_FIX = "Give the endpoint a larger container disk, or set WORK_DIR to a larger one."
# In the input folder, for results of earlier jobs.
_RESULTS = ".from-output"
_AT_ONCE = 8
_MOST_FILES = 20_000
# Limits for unused copies: seconds since their last use, and bytes in total.
_UNUSED_SECONDS = 3600.0
_UNUSED_BYTES = 1_000_000_000


@dataclass
class _Copy:
    """`stamp` of the file when copied, None before; `users` are the jobs that use it, `used_at` is
    when the last of them ended."""

    stamp: Stamp | None = None
    users: set[str] = field(default_factory=set)
    used_at: float = 0.0
    being_made: threading.Lock = field(default_factory=threading.Lock)


class VolumeInputs:
    """The copies of files on the volume, for one worker."""

    def __init__(self, layout: Layout, folder: Path, volume: VolumeWatchdog) -> None:
        """Copies go from the volume's folders, which need not exist, to `folder`. A workflow may
        name the volume by one of `USUAL_ROOTS`, a Pod's mount point."""
        self._layout = layout
        self._other_roots = tuple(root for root in USUAL_ROOTS if root != layout.root)
        self._volume = volume
        self._folder = folder
        self._copies: dict[Path, _Copy] = {}
        self._users: set[str] = set()
        self._lock = threading.Lock()

    async def ensure_copies(self, workflow: Workflow, user: str, deadline: Deadline) -> None:
        """Copy every file and folder on the volume that `workflow` names, until `release(user)`,
        and make it name the copies. Missing ones are reported elsewhere. Raises JobError if an
        upload loader names anything outside its folders, there is no space for a copy, or the
        volume does not respond; and TimeUp.
        """
        named = list(dict.fromkeys(map(self._from_mount, named_files(workflow))))
        for file in named:
            if file.by_loader and file.outside:
                raise _outside(file)
        if named:
            with self._lock:
                self._users.add(user)
            texts = await self._volume.call_or_fail(
                lambda: self._ensure_all(named, user), deadline.remaining
            )
            replace_texts(workflow, texts)

    def _from_mount(self, file: NamedFile) -> NamedFile:
        """A full path in the volume's input or output folder, by any mount point, in ComfyUI's
        form."""
        folders = (("input", self._layout.input), ("output", self._layout.output))
        for root in (self._layout.root, *self._other_roots):
            for folder, place in folders:
                home = f"{root / place.relative_to(self._layout.root)}/"
                if file.by_loader and file.path.startswith(home):
                    return replace(file, path=file.path[len(home) :], folder=folder)
        return file

    def _ensure_all(self, named: list[NamedFile], user: str) -> dict[str, str]:
        """The workflow's texts and their replacements."""
        texts: dict[str, str] = {}
        for file in named:
            new = self._translated(file) if file.outside else self._copied(file, user)
            if new is not None and new != file.text:
                texts[file.text] = new
        return texts

    def _translated(self, file: NamedFile) -> str | None:
        """A path through another mount point, translated to this one."""
        for other in self._other_roots:
            if file.path.startswith(f"{other}/") and not os.path.lexists(file.path):
                here = self._layout.root / file.path[len(f"{other}/") :]
                return str(here) if os.path.exists(here) else None
        return None

    def _copied(self, file: NamedFile, user: str) -> str | None:
        """ComfyUI's name for the copy; None if there is nothing to copy. Other names cost one call,
        a round trip to the volume."""
        if file.folder == "temp" or file.path in ("", "."):
            return None
        place = self._layout.input if file.folder == "input" else self._layout.output
        found = _kind_of(place / file.path)
        folders = is_folder_input(file.input) or not file.by_loader
        if found is None or (found == "folder" and not (folders and file.folder == "input")):
            return None
        root = Path(os.path.realpath(place))
        source = Path(os.path.realpath(root / file.path))
        if not source.is_relative_to(root) or source == root:
            return None
        name = file.path if file.folder == "input" else posixpath.join(_RESULTS, file.path)
        if found == "folder":
            files = dict(_files_below(source, root))
            self._ensure_folder(source, files, self._folder / name, user)
        else:
            self._ensure(source, self._folder / name, user)
        if "\\" not in file.text and not file.by_loader and file.folder == "input":
            return None  # its node may interpret the spelling further
        return name

    def _ensure_folder(self, source: Path, files: dict[str, int], target: Path, user: str) -> None:
        self._check_room(source, files)
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise _not_stored(source, target.parent, problem.strerror) from None
        self._forget_others(target, {target / path for path in files})
        WorkerPool(_AT_ONCE).run(
            [partial(self._ensure, source / path, target / path, user) for path in files]
        )

    def _check_room(self, source: Path, files: dict[str, int]) -> None:
        """Raises JobError if the folder does not fit on the local disk."""
        size = sum(files.values())
        if len(files) > _MOST_FILES:
            raise _not_stored(source, self._folder, f"it holds more than {_MOST_FILES:,} files")
        if size > shutil.disk_usage(self._folder).free:
            raise _not_stored(source, self._folder, f"there is no space for {size / 1e6:.0f} MB")

    def _forget_others(self, folder: Path, files: set[Path]) -> None:
        """Remove copies in a folder whose originals are gone from the volume, unless another job
        uses them."""
        with self._lock:
            for path in [p for p in self._copies if p.is_relative_to(folder) and p not in files]:
                if not self._copies[path].users:
                    self._remove(path)

    def _remove(self, path: Path) -> None:
        if Stamp.of(path) == self._copies.pop(path).stamp:  # otherwise a node has changed it
            path.unlink(missing_ok=True)

    def release(self, user: str) -> None:
        """The job has ended; remove copies beyond the limits. Blocks on local disk."""
        with self._lock:
            self._users.discard(user)
            for copy in self._copies.values():
                if user in copy.users:
                    copy.users.remove(user)
                    copy.used_at = time.monotonic()
            for path in self._excess():
                self._remove(path)

    def _ensure(self, source: Path, target: Path, user: str) -> None:
        """Make the copy, unless its job has ended meanwhile: the volume may have been silent."""
        with self._lock:
            if user not in self._users:
                return
            copy = self._copies.setdefault(target, _Copy())
            copy.users.add(user)
        with copy.being_made:  # one job at a time, so that none uses an incomplete copy
            stamp = Stamp.of(source)
            if stamp is not None and Stamp.of(target) != stamp:
                _copy(source, target)
            copy.stamp = stamp

    def _excess(self) -> list[Path]:
        """Unused copies that are too old or beyond the total size, least recently used first."""
        unused = [
            (copy.used_at, path, copy.stamp.size)
            for path, copy in self._copies.items()
            if copy.stamp is not None and not copy.users
        ]
        total, going = 0, []
        for used_at, path, size in sorted(unused, reverse=True):
            total += size
            if total > _UNUSED_BYTES or time.monotonic() - used_at > _UNUSED_SECONDS:
                going.append(path)
        return going


def _kind_of(path: Path) -> str | None:
    """`file` or `folder`; None for anything else, or if it does not exist."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # ValueError: not a name in this system's encoding
        return None
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else None


def _files_below(folder: Path, root: Path) -> Iterator[tuple[str, int]]:
    """(path, bytes) of a folder's files, at most one more than may be copied. A link counts if it
    leads to a file below `root`; links to folders could form loops."""
    pending, count = [os.fspath(folder)], 0
    while pending:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # removed meanwhile, or a link to itself
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.is_file() and (
                        not entry.is_symlink() or Path(os.path.realpath(entry)).is_relative_to(root)
                    ):
                        yield os.path.relpath(entry.path, folder), entry.stat().st_size
                        count += 1
                if count > _MOST_FILES:
                    return


def _copy(source: Path, target: Path) -> None:
    """Copy atomically: a job that has opened the old copy keeps reading it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as part:
            shutil.copy2(source, part)
    except OSError as problem:
        raise _not_stored(source, target.parent, problem.strerror) from None


def _not_stored(source: Path, folder: Path, why: str | None) -> JobError:
    return JobError(
        "image.not_stored", f"{source} could not be copied to {folder}: {why}.", ROOM_FIX
    )


def _outside(file: NamedFile) -> JobError:
    """Does not reveal whether the file exists."""
    return JobError(
        "input.outside",
        f"{file.where} names {short(file.text)}, which is outside the folders that this loader "
        "reads.",
        'Send the file in "images" or "files", or put it into ComfyUI/input/ on the volume and '
        "name it from there; a result of an earlier job is named `file.png [output]`.",
        **file.details,
    )
