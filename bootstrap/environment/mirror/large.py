"""Large libraries of a venv: they stay on the volume, and are read into memory ahead of the loader.

The loader maps them and touches them page by page, each time a round trip. Read in large blocks
side by side they come at the volume's full speed, and the kernel keeps the pages. Where the
volume's file system lets go of them from one opening of a file to the next, they are copied.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from bootstrap.core.concurrency import Crew
from bootstrap.core.page_cache import BLOCK, read_block, residence_of

_THREADS = 8
# What copies must leave free on the local disk, in bytes.
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
        """Read them in the background, for at most `timeout` seconds. Nothing is raised: what is
        not read ahead is read when it is needed."""
        thread = threading.Thread(target=self._read, args=(timeout,), name="libraries", daemon=True)
        thread.start()
        return thread

    def _read(self, timeout: float) -> None:
        with suppress(OSError):
            pieces = self._pieces()
            if not pieces:
                return
            use = _into_memory if self._pages_stay(pieces[0]) else self._copier(pieces)
            crew = Crew(_THREADS)
            crew.run([partial(self._work_off, pieces, use, crew)] * _THREADS, timeout)

    def _pieces(self) -> deque[_Piece]:
        pieces: deque[_Piece] = deque()
        room = self.room
        for path, size in self.sizes.items():
            if size <= room:
                room -= size
                pieces += [_Piece(path, at, min(BLOCK, size - at)) for at in range(0, size, BLOCK)]
        return pieces

    def _pages_stay(self, piece: _Piece) -> bool:
        """Are pages that were read through one opening of a file there for the next?"""
        full = os.path.join(self.source, piece.path)
        with open(full, "rb", buffering=0) as file:
            read_block(file.fileno(), piece.offset, piece.size)
        with open(full, "rb", buffering=0) as file:
            return piece.offset not in residence_of(file.fileno()).missing

    def _work_off(
        self, pieces: deque[_Piece], use: Callable[[int, _Piece], None], crew: Crew
    ) -> None:
        """Each thread has a file open for itself: a network file system may be limited for each."""
        with ExitStack() as stack:
            opened: dict[str, int] = {}
            while pieces and not crew.stopped:
                with suppress(IndexError):  # another thread took the last one
                    piece = pieces.popleft()
                    if piece.path not in opened:
                        full = os.path.join(self.source, piece.path)
                        file = stack.enter_context(open(full, "rb", buffering=0))
                        opened[piece.path] = file.fileno()
                    use(opened[piece.path], piece)

    def _copier(self, pieces: deque[_Piece]) -> Callable[[int, _Piece], None]:
        """Copies pieces, if the disk has room; a link is replaced when its file is complete."""
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
