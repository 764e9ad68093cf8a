"""Unpacks a mirror of site-packages from its archive, and checks the volume for changes since.

In parallel, each mostly waiting: the archive is read and its files are written; what is not in it
is linked; and the volume is asked for the times of all folders and all files in the archive. A file
whose size or time differs is copied from the volume instead, a folder whose time differs is listed
again. The result is what a full walk would have made.
"""

from __future__ import annotations

import os
import random
import stat
import time
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

from bootstrap.core.concurrency import Task, WorkerPool
from bootstrap.core.files import write_new
from bootstrap.environment.venv_mirror.archive import Archive, Block, DamagedArchive
from bootstrap.environment.venv_mirror.deferred import make_links
from bootstrap.environment.venv_mirror.layout import BYTECODE, FileState, join
from bootstrap.environment.venv_mirror.walk import FullCopy

# Readers keep two processors busy; stat calls only wait.
_READERS, _ASKERS = 8, 32
_THREADS = 64
_CHUNK = 16

Item = TypeVar("Item")
# Stat calls for some paths.
_Chunk = list[tuple[Callable[[str], None], str]]


class Unpacking:
    """Unpacks an archive into the empty folder `place`. `changed` counts files and folders that
    differ from the record."""

    def __init__(self, path: Path, archive: Archive, source: str, place: str, tag: str) -> None:
        self.changed = 0
        self.tree = archive.tree
        self._path = path
        self._archive = archive
        self._source = source
        self._place = place
        self._tag = tag
        self._pool = WorkerPool(_THREADS)
        self._stale_files: set[str] = set()
        self._stale_folders: set[str] = set()

    def run(self, timeout: float) -> bool:
        """Fill `place`; False if `timeout` seconds were not enough. Raises DamagedArchive,
        OSError."""
        end = time.monotonic() + timeout
        self._make_folders()
        self.tree.copied.update({packed.path: packed.stamp for packed in self._archive.files})
        blocks, questions = deque(self._archive.blocks), deque(self._questions())
        tasks: list[Task] = [partial(self._unpack, blocks)] * min(_READERS, len(blocks))
        tasks += [partial(self._link_rest, end), *[partial(self._ask, questions)] * _ASKERS]
        if not self._pool.run(tasks, timeout):
            return False
        return self._follow_changes(end - time.monotonic())

    def _make_folders(self) -> None:
        for path in sorted(self.tree.folders):  # parents first
            if path:
                os.mkdir(os.path.join(self._place, path))

    def _questions(self) -> list[_Chunk]:
        """In an order spread over the folders: the kernel handles one name of a folder at a
        time."""
        asked: _Chunk = [(self._ask_file, p.path) for p in self._archive.files if p.checked]
        asked += [(self._ask_folder, p) for p, f in self.tree.folders.items() if f.mtime_ns]
        chunks = [asked[i : i + _CHUNK] for i in range(0, len(asked), _CHUNK)]
        random.shuffle(chunks)
        return chunks

    def _ask(self, questions: deque[_Chunk]) -> None:
        while questions and not self._pool.stopped:
            for chunk in _taken(questions):
                for ask, path in chunk:
                    ask(path)

    def _ask_file(self, path: str) -> None:
        found = self._look(path)
        if found is None or not stat.S_ISREG(found.st_mode):
            self._stale_folders.add(os.path.dirname(path))
        elif not FileState.of(found).same_content(self.tree.copied[path]):
            self._stale_files.add(path)

    def _ask_folder(self, path: str) -> None:
        found = self._look(path)
        if found is None or not stat.S_ISDIR(found.st_mode):
            self._stale_folders.add(os.path.dirname(path))
        elif found.st_mtime_ns != self.tree.folders[path].mtime_ns:
            self._stale_folders.add(path)

    def _look(self, path: str) -> os.stat_result | None:
        try:
            return os.lstat(os.path.join(self._source, path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _unpack(self, blocks: deque[Block]) -> None:
        with ExitStack() as stack:
            descriptor = _open(self._path)
            stack.callback(os.close, descriptor)
            while blocks and not self._pool.stopped:
                for block in _taken(blocks):
                    self._write(block, _read_block(descriptor, block))

    def _write(self, block: Block, data: memoryview) -> None:
        for packed in block.files:
            size, mtime_ns, mode = packed.stamp
            write_new(os.path.join(self._place, packed.path), [data[:size]], mode, mtime_ns)
            data = data[size:]

    def _link_rest(self, end: float) -> None:
        for parent, folder in self.tree.folders.items():
            for name, text in folder.links.items():
                os.symlink(text, os.path.join(self._place, join(parent, name)))
        for path in self.tree.deferred:
            os.symlink(os.path.join(self._source, path), os.path.join(self._place, path))
        make_links(
            list(self.tree.linked_files()), self._source, self._place, end - time.monotonic()
        )

    def _follow_changes(self, timeout: float) -> bool:
        """Follow what the stat calls showed. A changed folder's bytecode is listed too."""
        self.changed = len(self._stale_files) + len(self._stale_folders)
        if not self.changed:
            return True
        pool = WorkerPool(_THREADS)
        walk = FullCopy(self._source, self._place, self.tree, self._tag, pool)
        for path in self._stale_files:
            walk.drop_bytecode(path)
        bytecode = {join(path, BYTECODE) for path in self._stale_folders}
        folders = self._stale_folders | (bytecode & self.tree.folders.keys())
        return pool.run(
            [
                *(partial(walk.look_at, path) for path in sorted(folders)),
                *(partial(walk.copy_again, path) for path in self._stale_files),
            ],
            timeout,
        )


def _taken(items: deque[Item]) -> list[Item]:
    """The next one, if any is left."""
    try:
        return [items.popleft()]
    except IndexError:
        return []


def _open(path: Path) -> int:
    """Raises DamagedArchive."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as problem:
        raise DamagedArchive(problem.strerror or str(problem)) from problem


def _read_block(descriptor: int, block: Block) -> memoryview:
    """Raises DamagedArchive."""
    data = bytearray(block.size)
    view, position = memoryview(data), block.offset
    try:
        while view and (count := os.preadv(descriptor, [view], position)):
            view, position = view[count:], position + count
        # It is not read again, so its memory is freed for the rest.
        os.posix_fadvise(descriptor, block.offset, block.size, os.POSIX_FADV_DONTNEED)
    except OSError as problem:  # another kind of error than one of the local disk
        raise DamagedArchive(problem.strerror or str(problem)) from problem
    if view or zlib.crc32(data) != block.checksum:
        raise DamagedArchive("its content is damaged")
    return memoryview(data)
