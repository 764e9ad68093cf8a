"""Walks trees on a volume where every metadata call costs a round trip of 1.5 to 2 ms.

Such a call cannot be made faster, so many are kept in flight: a pool of threads lists folders and
stats files. `os.scandir` distinguishes folders, files and links without a further call if the file
system fills in d_type, as all that Runpod uses do.

A FUSE client may handle only one name of a folder at a time (FUSE_PARALLEL_DIROPS is off unless it
asks, Linux commit 5c672ab3f0ee; libfuse before 3.17 could not). So all folders are listed first,
and the threads then stat files in many folders rather than in one.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from bootstrap.core.concurrency import WorkerPool
from bootstrap.core.files import contains
from bootstrap.doctor.facts.volume_facts import LinkTarget
from bootstrap.volume.link_plan import EntryKind

# 64 in flight: 20,000 files at 1.5 ms take half a second, and more threads gain little.
THREADS = 64
# About 500 bytes per entry; a volume with more files than this is judged by its first part.
LIMIT = 200_000
MOST_PROBLEMS = 1000
# ComfyUI skips this in its own scans (folder_paths.py, recursive_search).
SKIPPED = frozenset({".git"})
# Files that one thread stats before others take some.
_CHUNK = 8
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclass(frozen=True)
class Entry:
    """One name in a tree.

    `path` is relative to `root`. `size` (bytes), `mtime` (seconds since 1970) and `inode` ((device,
    inode)) are a file's own, or those of a link's target; 0 and None for folders, which are not
    stat'ed. `link` is a link's text; `to_folder`: it leads to a folder, whose entries are then
    listed under the link's path, unless that would never end.
    """

    root: Path
    path: str
    kind: EntryKind
    size: int = 0
    mtime: float = 0.0
    inode: tuple[int, int] | None = None
    link: str | None = None
    target: LinkTarget | None = None
    to_folder: bool = False

    @property
    def full_path(self) -> str:
        """The path as the system opens it."""
        return os.path.join(self.root, self.path)

    @property
    def is_file(self) -> bool:
        """A regular file, or a link to one."""
        return self.inode is not None and self.kind in (EntryKind.FILE, EntryKind.LINK)


@dataclass(frozen=True)
class WalkProblem:
    """A path that could not be read, with the system's reason and error number."""

    path: str
    reason: str
    code: int | None = None


@dataclass(frozen=True)
class Walk:
    """Entries by root and path; problems by path, `problem_count` in all. `complete` is False if a
    limit in number or time ended the walk; `seconds` is the duration.
    """

    entries: tuple[Entry, ...]
    problems: tuple[WalkProblem, ...]
    problem_count: int
    complete: bool
    seconds: float


def walk(
    roots: Sequence[Path],
    progress: Callable[[int], None] | None = None,
    inside: Sequence[Path] | None = None,
    timeout: float | None = None,
    visit: Callable[[Entry], None] | None = None,
) -> Walk:
    """Everything under `roots`, following links to folders as ComfyUI does.

    A link to a folder that contains it is reported (`LinkTarget.LOOP`) and not followed; one that
    leads out of `inside` (default: the roots) is `OUTSIDE`, and followed. `progress` is called a
    few times a second with the number of entries so far. The walk ends at `LIMIT` entries or after
    `timeout` seconds, even if the file system hangs. `visit` is called with each file, from many
    threads, while the system has it cached, so opening it saves a round trip; it must not raise.
    Unreadable paths are among the problems; nothing is raised.
    """
    started = time.monotonic()
    trees = tuple(os.path.realpath(p) for p in inside or roots)
    walker = _Walker(THREADS, LIMIT, trees, visit)
    first = [
        partial(walker.list_entries, _Folder(root, "", os.path.realpath(root))) for root in roots
    ]
    tick = None if progress is None else (lambda: progress(walker.count))
    finished = walker.pool.run(first, timeout, tick)
    return walker.result(roots, finished, time.monotonic() - started)


@dataclass(frozen=True)
class _Folder:
    """A folder to list. `real` is its path without links, `came_from` the real paths of folders
    whose links were followed to reach it."""

    root: Path
    path: str
    real: str
    came_from: tuple[str, ...] = ()

    @property
    def full_path(self) -> str:
        return os.path.join(self.root, self.path)

    def path_of(self, name: str) -> str:
        return os.path.join(self.path, name)

    def folder(self, name: str) -> _Folder:
        real = os.path.join(self.real, name)
        return _Folder(self.root, self.path_of(name), real, self.came_from)

    def behind_link(self, name: str, real: str) -> _Folder | None:
        """The target folder of a link in this one; None if following it would never end."""
        passed = (*self.came_from, self.real)
        if any(contains(real, folder) for folder in passed):
            return None
        return _Folder(self.root, self.path_of(name), real, passed)


class _Walker:
    def __init__(
        self,
        threads: int,
        limit: int,
        inside: tuple[str, ...],
        visit: Callable[[Entry], None] | None,
    ) -> None:
        self.pool = WorkerPool(threads)
        self._limit = limit
        self._inside = inside
        self._visit = visit
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._problems: list[WalkProblem] = []
        self._problem_count = 0
        self._full = False

    @property
    def count(self) -> int:
        return len(self._entries)

    def result(self, roots: Sequence[Path], finished: bool, seconds: float) -> Walk:
        order = {root: i for i, root in enumerate(roots)}
        with self._lock:
            entries = tuple(sorted(self._entries, key=lambda e: (order[e.root], e.path)))
            problems = tuple(sorted(self._problems, key=lambda p: p.path))
            complete = finished and not self._full
        return Walk(entries, problems, self._problem_count, complete, seconds)

    def list_entries(self, folder: _Folder) -> None:
        try:
            with os.scandir(folder.full_path) as names:
                found = list(islice(names, self._limit + 1 - self.count))
        except OSError as problem:
            self._note(folder.full_path, problem)
            return
        folders = [name.name for name in found if _is_folder(name) and name.name not in SKIPPED]
        self.pool.add(partial(self.list_entries, folder.folder(name)) for name in folders)
        self._keep([Entry(folder.root, folder.path_of(name), EntryKind.FOLDER) for name in folders])
        others = [name for name in found if not _is_folder(name)]
        chunks = [others[i : i + _CHUNK] for i in range(0, len(others), _CHUNK)]
        self.pool.add((partial(self._look_at, folder, chunk) for chunk in chunks), later=True)

    def _look_at(self, folder: _Folder, found: list[os.DirEntry[str]]) -> None:
        entries = []
        for name in found:
            if self.pool.stopped:
                break
            try:
                entry = self._described(folder, name)
            except OSError as problem:
                self._note(os.path.join(folder.full_path, name.name), problem)
                continue
            entries.append(entry)
            if self._visit is not None and entry.is_file:
                self._visit(entry)
        self._keep(entries)

    def _described(self, folder: _Folder, name: os.DirEntry[str]) -> Entry:
        if name.is_symlink():
            return self._described_link(folder, name)
        own = name.stat(follow_symlinks=False)
        kind = EntryKind.FILE if stat.S_ISREG(own.st_mode) else EntryKind.OTHER
        inode = (own.st_dev, own.st_ino)
        path = folder.path_of(name.name)
        return Entry(folder.root, path, kind, own.st_size, own.st_mtime, inode)

    def _described_link(self, folder: _Folder, name: os.DirEntry[str]) -> Entry:
        path = os.path.join(folder.full_path, name.name)
        entry = Entry(
            folder.root, folder.path_of(name.name), EntryKind.LINK, link=os.readlink(path)
        )
        try:
            found = os.stat(path)
        except OSError as problem:
            if problem.errno not in _ABSENT:
                self._note(path, problem)
            if problem.errno in (errno.EACCES, errno.EPERM):  # something may be there
                return entry
            loops = problem.errno == errno.ELOOP
            return replace(entry, target=LinkTarget.LOOP if loops else LinkTarget.BROKEN)
        to_folder = stat.S_ISDIR(found.st_mode)
        target = self._target(folder, name.name, os.path.realpath(path), to_folder)
        entry = replace(entry, target=target, to_folder=to_folder)
        if not stat.S_ISREG(found.st_mode):
            return entry
        inode = (found.st_dev, found.st_ino)
        return replace(entry, size=found.st_size, mtime=found.st_mtime, inode=inode)

    def _target(self, folder: _Folder, name: str, real: str, to_folder: bool) -> LinkTarget:
        if to_folder:
            behind = folder.behind_link(name, real)
            if behind is None:
                return LinkTarget.LOOP
            self.pool.add([partial(self.list_entries, behind)])
        inside = any(contains(tree, real) for tree in self._inside)
        return LinkTarget.OK if inside else LinkTarget.OUTSIDE

    def _keep(self, entries: list[Entry]) -> None:
        with self._lock:
            left = self._limit - len(self._entries)
            self._entries.extend(entries[:left])
            self._full = self._full or len(entries) > left
        if self._full:
            self.pool.stop()

    def _note(self, path: str, problem: OSError) -> None:
        reason = problem.strerror or str(problem)
        with self._lock:
            self._problem_count += 1
            if len(self._problems) < MOST_PROBLEMS:
                self._problems.append(WalkProblem(path, reason, problem.errno))


def _is_folder(name: os.DirEntry[str]) -> bool:
    try:
        return name.is_dir(follow_symlinks=False)
    except OSError:  # a stat only if d_type is missing
        return False
