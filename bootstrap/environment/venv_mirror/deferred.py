"""Work that goes on while ComfyUI starts: folders of links, and reading large libraries ahead.

Folders of site-packages that a start does not use are single links at first, so that tens of
thousands of files in them need not be listed and linked before ComfyUI starts. But pip would write
and delete through such a link, on the volume. So while ComfyUI starts, each is listed, built beside
as a folder of links, and exchanged for the link in one step. A link takes the kernel about 25 µs;
making tens of thousands in threads would block other threads at the GIL, so separate processes make
them.

Large libraries stay on the volume and are read into memory before the loader maps them and touches
them page by page, each a round trip. Large parallel reads get the volume's full speed, and the
kernel keeps the pages. If the volume's file system drops pages between two openings of a file, the
libraries are copied instead.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bootstrap.core.concurrency import WorkerPool
from bootstrap.core.page_cache import BLOCK, read_block, residence_of
from bootstrap.environment.venv_mirror.layout import MirrorTree
from bootstrap.environment.venv_mirror.walk import FullCopy

_THREADS = 16
_NICE = 10
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h


class DeferredFolders:
    """The deferred folders of `tree`, a mirror of `source` at `place`; built in the new folder
    `scratch` on the same disk. A folder that cannot be built stays a link."""

    def __init__(
        self, source: Path, place: Path, scratch: Path, tree: MirrorTree, tag: str
    ) -> None:
        self._source = str(source)
        self._place = str(place)
        self._scratch = str(scratch)
        self._tree = tree
        self._tag = tag

    def start(self, timeout: float) -> threading.Thread:
        """Build them in the background, within `timeout` seconds. Raises nothing."""
        thread = threading.Thread(
            target=self._make, args=(timeout,), name="deferred-folders", daemon=True
        )
        thread.start()
        return thread

    def _make(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        with suppress(OSError):
            made = self._listed(timeout)
            left = end - time.monotonic()
            links = list(made.linked_files()) if made is not None else []
            if made is not None and make_links(
                links, self._source, self._scratch, max(0.0, left), _NICE
            ):
                for path in sorted(self._tree.deferred & made.folders.keys()):
                    self._put(path, made)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _listed(self, timeout: float) -> MirrorTree | None:
        """List the folders and create them in `scratch`, without files; None if time ran out."""
        made, pool = MirrorTree(), WorkerPool(_THREADS)
        walk = FullCopy(self._source, self._scratch, made, self._tag, pool, names_only=True)
        for path in self._tree.deferred:
            os.makedirs(os.path.join(self._scratch, path))
        tasks = [partial(walk.look_at, path) for path in sorted(self._tree.deferred)]
        return made if pool.run(tasks, timeout) else None

    def _put(self, path: str, made: MirrorTree) -> None:
        with suppress(OSError):
            _exchange(os.path.join(self._scratch, path), os.path.join(self._place, path))
            self._tree.folders.update({p: made.folders[p] for p in (path, *made.below(path))})
            self._tree.deferred.discard(path)


def _exchange(folder: str, link: str) -> None:
    """Replace a link by a folder. If the file system cannot exchange two names (renameat2(2)),
    neither exists for some microseconds."""
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = _AT_FDCWD, os.fsencode(folder), _AT_FDCWD, os.fsencode(link)
    if not hasattr(libc, "renameat2") or libc.renameat2(*arguments, _RENAME_EXCHANGE) != 0:
        if ctypes.get_errno() not in (0, errno.EINVAL, errno.ENOSYS):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), link)
        if os.path.islink(link):
            os.unlink(link)
            os.rename(folder, link)


_MOST_PROCESSES = 4
# Below this, starting a process takes longer.
_WORTH_A_PROCESS = 2000
# Ends with the error's number, if any, and its path.
_PROGRAM = """
import os, sys
source, place = map(os.fsencode, sys.argv[1:3])
os.nice(int(sys.argv[3]))
for path in sys.stdin.buffer.read().split(b"\\0"):
    try:
        os.symlink(source + path, place + path)
    except OSError as problem:
        print(problem.errno)
        break
"""


def make_links(
    paths: Sequence[str], source: str, place: str, timeout: float, nice: int = 0
) -> bool:
    """Link each path below `place` to the same below `source`; False if `timeout` seconds were not
    enough. The processes run with `nice` lower priority. Raises OSError."""
    most = min(_MOST_PROCESSES, len(os.sched_getaffinity(0)))
    count = max(1, min(most, len(paths) // _WORTH_A_PROCESS))
    shares = [paths[i::count] for i in range(count)]
    tasks = [partial(_make_share, share, source, place, timeout, nice) for share in shares if share]
    return WorkerPool(count).run(tasks, timeout)


def _make_share(paths: Sequence[str], source: str, place: str, timeout: float, nice: int) -> None:
    if len(paths) < _WORTH_A_PROCESS:
        for path in paths:
            os.symlink(f"{source}/{path}", f"{place}/{path}")
        return
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, f"{source}/", f"{place}/", str(nice)],
            input=b"\0".join(map(os.fsencode, paths)),
            stdout=subprocess.PIPE,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return  # the caller waiting for this share has noticed
    code = int(done.stdout) if done.stdout.strip().isdigit() else 0
    if code or done.returncode:
        raise OSError(code or errno.EIO, os.strerror(code or errno.EIO), place)


_READERS = 8
# Bytes that copies must leave free on the local disk.
_HEADROOM = 1 << 30


class _Piece(NamedTuple):
    path: str
    offset: int
    size: int


@dataclass(frozen=True)
class LargeFiles:
    """Sizes in bytes by path below `source`, in the order in which they are needed; `place` is the
    mirror that links to them. At most `room` bytes are read."""

    source: str
    place: str
    sizes: Mapping[str, int]
    room: int

    def read_ahead(self, timeout: float) -> threading.Thread:
        """Read them in the background, for at most `timeout` seconds. Raises nothing: the rest is
        read when it is needed."""
        thread = threading.Thread(target=self._read, args=(timeout,), name="libraries", daemon=True)
        thread.start()
        return thread

    def _read(self, timeout: float) -> None:
        with suppress(OSError):
            pieces = self._pieces()
            if not pieces:
                return
            use = _into_memory if self._pages_stay(pieces[0]) else self._copier(pieces)
            pool = WorkerPool(_READERS)
            pool.run([partial(self._work_off, pieces, use, pool)] * _READERS, timeout)

    def _pieces(self) -> deque[_Piece]:
        pieces: deque[_Piece] = deque()
        room = self.room
        for path, size in self.sizes.items():
            if size <= room:
                room -= size
                pieces += [_Piece(path, at, min(BLOCK, size - at)) for at in range(0, size, BLOCK)]
        return pieces

    def _pages_stay(self, piece: _Piece) -> bool:
        """Do pages read through one opening of a file stay for the next?"""
        full = os.path.join(self.source, piece.path)
        with open(full, "rb", buffering=0) as file:
            read_block(file.fileno(), piece.offset, piece.size)
        with open(full, "rb", buffering=0) as file:
            return piece.offset not in residence_of(file.fileno()).missing

    def _work_off(
        self, pieces: deque[_Piece], use: Callable[[int, _Piece], None], pool: WorkerPool
    ) -> None:
        """Each thread opens the file itself: a network file system may limit each open file."""
        with ExitStack() as stack:
            opened: dict[str, int] = {}
            while pieces and not pool.stopped:
                with suppress(IndexError):  # another thread took the last one
                    piece = pieces.popleft()
                    if piece.path not in opened:
                        full = os.path.join(self.source, piece.path)
                        file = stack.enter_context(open(full, "rb", buffering=0))
                        opened[piece.path] = file.fileno()
                    use(opened[piece.path], piece)

    def _copier(self, pieces: deque[_Piece]) -> Callable[[int, _Piece], None]:
        """Copies pieces, if the disk has space; a link is replaced once its file is complete."""
        free = shutil.disk_usage(self.place).free - _HEADROOM
        if free < sum(piece.size for piece in pieces):
            pieces.clear()
        left = Counter(piece.path for piece in pieces)
        lock = threading.Lock()

        def copy(descriptor: int, piece: _Piece) -> None:
            place = os.path.join(self.place, piece.path)
            part = f"{place}.part"
            _copy_piece(descriptor, part, piece)
            with lock:
                left[piece.path] -= 1
                complete = not left[piece.path]
            if complete:
                _finish(descriptor, part, place)

        return copy


def _into_memory(descriptor: int, piece: _Piece) -> None:
    read_block(descriptor, piece.offset, piece.size)


def _copy_piece(descriptor: int, part: str, piece: _Piece) -> None:
    target = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o755)
    try:
        data = memoryview(os.pread(descriptor, piece.size, piece.offset))
        position = piece.offset
        while data:
            count = os.pwrite(target, data, position)
            data, position = data[count:], position + count
    finally:
        os.close(target)


def _finish(descriptor: int, part: str, place: str) -> None:
    """A file that has changed since its size was recorded stays a link."""
    found = os.fstat(descriptor)
    if os.stat(part).st_size != found.st_size:
        os.unlink(part)
        return
    os.utime(part, ns=(found.st_mtime_ns, found.st_mtime_ns))
    os.replace(part, place)
