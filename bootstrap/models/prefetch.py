"""Reads weights into the page cache before ComfyUI needs them, in large parallel blocks.

At boot: likely files, while ComfyUI imports. On a hot worker: a job's own files, from the moment it
arrives, before all others. Never more than memory allows.

The models that an endpoint used last are recorded on the volume, for its next cold start:

    .comfyui-worker/recent/<endpoint>.json   {"version": 1, "models": ["checkpoints/a.ckpt"]}

Several workers write it, each by rename, and the last one wins; it is only a hint. Paths are
relative to `models/`, so that they are the same on a Pod.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap.core.container_limits import gather_memory
from bootstrap.core.files import open_regular, read_regular, write_whole
from bootstrap.core.page_cache import BLOCK, read_block, read_pages, residence_of
from bootstrap.core.text import pluralize, size_text
from bootstrap.models.weights_file import LoadOrder, load_order
from bootstrap.volume.locate import OWN_FOLDER

_NICE = 15
# While a job waits: four streams get 700 MB/s from a typical volume, eight 1,000, sixteen 1,300. At
# boot, ComfyUI's start needs the processors more.
_THREADS, _THREADS_AT_BOOT = 16, 4
# ComfyUI copies what it loads: a model needs its size once more, beside ComfyUI's base memory.
_COPIES = 2
_HEADROOM = 1536 * 1024 * 1024
# Limits of the record of recent models.
_VERSION = 1
_MOST_MODELS = 32
_MOST_BYTES = 4 * 1024 * 1024


@dataclass
class Reading:
    """The outcome of one request. `cached` and `read` are bytes; `seconds` until it ended."""

    files: int = 0
    cached: int = 0
    read: int = 0
    left_out: int = 0
    seconds: float = 0.0
    problem: str = ""

    def as_dict(self) -> dict[str, object]:
        """JSON-ready data, without empty fields."""
        seconds = {"seconds": round(self.seconds, 3)}
        return {k: v for k, v in {**vars(self), **seconds}.items() if v not in (0, "")}

    def in_words(self) -> str:
        """For the log: `2 files, 4.2 GB read in 3.1 s, 0 B were cached`."""
        said = (
            f"{pluralize(self.files, 'file')}, {size_text(self.read)} read in {self.seconds:.1f} s"
        )
        if self.cached:
            said += f", {size_text(self.cached)} were cached"
        if self.left_out:
            said += f", {size_text(self.left_out)} left out for lack of memory"
        return f"{said}; {self.problem}" if self.problem else said


class Request:
    """One list of files being read; `reading` is its progress."""

    def __init__(
        self,
        files: Iterable[Path],
        room: Callable[[], int],
        threads: int,
        before: Request | None = None,
        in_turn: bool = False,
    ) -> None:
        self.reading = Reading()
        self.files = files
        self.in_turn = in_turn
        self._before = before
        self._room = room
        self._threads = threads
        self._starts: list[tuple[Path, list[int]]] = []
        self._blocks: deque[tuple[Path, int, int]] = deque()
        self._stopped = threading.Event()
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._began = time.monotonic()

    def start(self) -> None:
        """Begin; returns at once."""
        threading.Thread(target=self._run, name="read-ahead", daemon=True).start()

    def stop(self) -> None:
        """Read no further block."""
        self._stopped.set()

    def wait(self, seconds: float) -> bool:
        """Wait until everything is read or given up; False if `seconds` were not enough."""
        return self.ended.wait(seconds)

    def _run(self) -> None:
        try:
            self._wait_for_the_one_before()
            self._choose()
            threads = [
                threading.Thread(target=self._read, args=(number,), daemon=True)
                for number in range(self._threads if self._blocks else 0)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self.reading.seconds = time.monotonic() - self._began
            self.ended.set()

    def _wait_for_the_one_before(self) -> None:
        before, self._before = self._before, None
        if before is not None:
            before.ended.wait()
            self._began = time.monotonic()

    def _choose(self) -> None:
        """Queue the uncached blocks, as far as memory allows."""
        room = self._room()
        try:
            for path in self.files:
                if self._stopped.is_set():
                    return
                room -= self._queue(path, room)
        except OSError as problem:  # while searching for files
            self.reading.problem = problem.strerror or str(problem)

    def _queue(self, path: Path, room: int) -> int:
        """Queue the missing blocks of one file; returns the bytes used of `room`."""
        try:
            size, missing, starts = _look_at(path, self.in_turn)
        except OSError as problem:
            self.reading.problem = f"{path.name}: {problem.strerror or problem}"
            return 0
        wanted = min(len(missing) * BLOCK, size)
        self.reading.cached += size - wanted
        if wanted > room:
            self.reading.left_out += wanted
            return 0
        self.reading.files += 1
        if starts:  # otherwise threads open the file at their first block of it
            self._starts.append((path, starts))
        self._blocks.extend((path, at, min(BLOCK, size - at)) for at in missing)
        return wanted

    def _read(self, number: int) -> None:
        """For a waiting job, read this thread's share of the pages that are touched first; then
        block after block, which the kernel caches in large pages. Each thread opens the file
        itself: a network file system reads ahead, and may be limited, per open file."""
        if not self.in_turn:
            _give_way()
        with ExitStack() as stack:
            opened: dict[Path, int] = {}

            def descriptor(path: Path) -> int:
                if path not in opened:
                    file = stack.enter_context(open(path, "rb", buffering=0))
                    opened[path] = file.fileno()
                return opened[path]

            try:
                for path, starts in self._starts:
                    read_pages(descriptor(path), starts[number :: self._threads])
                while (block := self._next()) is not None:
                    path, offset, size = block
                    read_block(descriptor(path), offset, size)
                    with self._lock:
                        self.reading.read += size
            except OSError as problem:
                self.reading.problem = problem.strerror or str(problem)

    def _next(self) -> tuple[Path, int, int] | None:
        with self._lock:
            if self._stopped.is_set() or not self._blocks:
                return None
            return self._blocks.popleft()


def _look_at(path: Path, starts_too: bool) -> tuple[int, list[int], list[int]]:
    """A file's size, its uncached blocks in loading order, and, with `starts_too`, the pages that
    its reader touches first; the file is opened only once, which costs a round trip. Raises
    OSError."""
    with open_regular(path) as file:
        size, missing = residence_of(file.fileno())
        order = load_order(file.fileno(), size) if missing else LoadOrder([], 0)
    absent = set(missing)
    starts = [at for at in order.starts if at // BLOCK * BLOCK in absent] if starts_too else []
    first = bisect_left(missing, order.first // BLOCK * BLOCK)
    return size, missing[first:] + missing[:first], starts


def _give_way() -> None:
    """Give this thread low priority."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def memory_for_weights() -> int:
    """Bytes that may be read ahead: the container's free memory, less what ComfyUI needs."""
    try:
        return max(0, gather_memory().available - _HEADROOM) // _COPIES
    except (OSError, ValueError):
        return 0


class ReadAhead:
    """Reads files in the requested order. A new request replaces the rest of the previous one, or
    follows it if both are jobs' (`in_turn`). A request that jobs interrupted continues when the
    last of them has ended, since the next may need it. `room` returns how many bytes may be read
    (see `memory_for_weights`). Threads end when there is nothing to read, so an idle worker has
    none.
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
        """Read `files` in the background, in this order. `files` is also iterated in the
        background, since it may search for them (again, if jobs interrupt it). A job calls `end`
        when it has ended.
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
        """Read no more, for any request."""
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


class UsageRecord:
    """The record of one endpoint (`default` without an id). Nothing here raises."""

    def __init__(self, root: Path, endpoint: str | None) -> None:
        name = re.sub(r"[^A-Za-z0-9_-]", "_", endpoint or "default")[:64]
        self._path = root / OWN_FOLDER / "recent" / f"{name}.json"
        self._written: Mapping[str, Any] | None = None

    def models(self) -> list[str]:
        """Paths below `models/`, most recently used first."""
        models = self._read().get("models")
        named = models if isinstance(models, list) else []
        return [m for m in named if isinstance(m, str) and _is_below(m)][:_MOST_MODELS]

    def likely(self, wanted: str) -> list[str]:
        """What to read ahead by PREFETCH_MODELS: `last`, `none`, or paths below `models/`,
        separated by commas."""
        if wanted.lower() == "last":
            return self.models()
        listed = "" if wanted.lower() == "none" else wanted
        return [name.strip() for name in listed.split(",") if name.strip()]

    def workflow(self) -> Mapping[str, Any] | None:
        """The last workflow that succeeded, if one was kept."""
        workflow = self._read().get("workflow")
        return workflow if isinstance(workflow, Mapping) else None

    def note(self, models: Sequence[str], workflow: Mapping[str, Any] | None = None) -> None:
        """Record a job's models, before those of earlier ones, and its workflow if given. Written
        only if something is new.
        """
        merged = list(dict.fromkeys([*models, *self.models()]))[:_MOST_MODELS]
        record: dict[str, Any] = {"version": _VERSION, "models": merged}
        if workflow is not None:
            record["workflow"] = workflow
        if record == (self._written or self._read()):
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, json.dumps(record))
            self._written = record
        except (OSError, ValueError):
            pass  # a full or missing volume is reported elsewhere

    def _read(self) -> Mapping[str, Any]:
        try:
            record = json.loads(read_regular(self._path, _MOST_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) and record.get("version") == _VERSION else {}


def _is_below(path: str) -> bool:
    """Is it a relative path without `..`?"""
    return not path.startswith("/") and ".." not in path.split("/") and "\0" not in path
