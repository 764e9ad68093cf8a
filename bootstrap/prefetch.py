"""Weights read into the page cache before ComfyUI asks for them, in large parallel blocks.

At boot: the files likely needed, while ComfyUI imports. On a hot worker: a job's own files, from
the moment it arrives; they go before all others. Never more than memory allows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from bootstrap.core.memory import gather_memory
from bootstrap.reading import Request

# A job waits: four streams get 700 MB/s of a usual volume, eight 1,000, sixteen 1,300. At boot
# ComfyUI's start comes first, where processors are few.
_THREADS, _THREADS_AT_BOOT = 16, 4
# ComfyUI copies what it loads: a model needs its size once more, beside what it always needs.
_COPIES = 2
_HEADROOM = 1536 * 1024 * 1024


def memory_for_weights() -> int:
    """Bytes that may be read ahead: what the container can still take, less what ComfyUI needs."""
    try:
        return max(0, gather_memory().available - _HEADROOM) // _COPIES
    except (OSError, ValueError):
        return 0


class ReadAhead:
    """Reads files in the order asked for. A new request takes the place of what is left of the
    last one, or comes after it where both are a job's (`in_turn`). What jobs interrupted is read
    on when the last of them has ended: the next may want it. `room` tells how many bytes may be
    read (see `memory_for_weights`).

    Its threads end when there is nothing to read, so that a worker at rest holds none.
    """

    def __init__(
        self, room: Callable[[], int] = memory_for_weights, threads: int = _THREADS
    ) -> None:
        self._room = room
        self._threads = threads
        self._lock = threading.Lock()
        self._current: Request | None = None
        self._jobs: set[Request] = set()
        self._interrupted: Iterable[Path] = ()

    def start(self, files: Iterable[Path], in_turn: bool = False) -> Request:
        """Read `files` in the background, in this order.

        `files` is gone through in the background as well: it may look for them (of one that jobs
        interrupt, again). A job tells with `end` that it has ended.
        """
        with self._lock:
            return self._start_for_a_job(files) if in_turn else self._start_likely(files)

    def end(self, request: Request) -> None:
        """A job has ended: read no more for it."""
        request.stop()
        with self._lock:
            self._jobs.discard(request)
            if self._interrupted and not self._jobs:
                self._start_likely(self._interrupted)

    def stop(self) -> None:
        """Read no more, whoever asked for it."""
        with self._lock:
            self._interrupted = ()
            self._stop_current()

    def _start_for_a_job(self, files: Iterable[Path]) -> Request:
        before = self._current
        if before is not None and not before.in_turn:
            if not before.ended.is_set():
                self._interrupted = before.files
            self._stop_current()
        request = Request(files, self._room, self._threads, self._current, in_turn=True)
        self._jobs.add(request)
        return self._begin(request)

    def _start_likely(self, files: Iterable[Path]) -> Request:
        self._interrupted = ()
        self._stop_current()
        threads = min(self._threads, _THREADS_AT_BOOT)
        return self._begin(Request(files, self._room, threads))

    def _begin(self, request: Request) -> Request:
        self._current = request
        request.start()
        return request

    def _stop_current(self) -> None:
        if self._current is not None:
            self._current.stop()
        self._current = None
