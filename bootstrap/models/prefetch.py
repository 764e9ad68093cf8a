"""Weights read into the page cache before ComfyUI asks for them, in large parallel blocks.

At boot: the files likely needed, while ComfyUI imports. On a hot worker: a job's own files, from
the moment it arrives; they go before all others. Never more than memory allows.

Which an endpoint used last is remembered on the volume, for its next cold start:

    .comfyui-worker/recent/<endpoint>.json   {"version": 1, "models": ["checkpoints/a.ckpt"]}

Several workers write it: each whole, by rename, the last one wins; it is advice, nothing more.
Paths are below `models/`, so that they mean the same on a Pod.
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
from bootstrap.core.files import write_whole
from bootstrap.core.page_cache import BLOCK, read_block, read_pages, residence_of
from bootstrap.core.text import counted, size_text
from bootstrap.models.weights_file import LoadOrder, load_order
from bootstrap.volume.locate import OWN_FOLDER

_NICE = 15
# A job waits: four streams get 700 MB/s of a usual volume, eight 1,000, sixteen 1,300. At boot
# ComfyUI's start comes first, where processors are few.
_THREADS, _THREADS_AT_BOOT = 16, 4
# ComfyUI copies what it loads: a model needs its size once more, beside what it always needs.
_COPIES = 2
_HEADROOM = 1536 * 1024 * 1024
# Of a record of what was used last.
_VERSION = 1
_MOST_MODELS = 32
_MOST_BYTES = 4 * 1024 * 1024


@dataclass
class Reading:
    """What became of one request. `cached` and `read` are bytes; `seconds` until it ended."""

    files: int = 0
    cached: int = 0
    read: int = 0
    left_out: int = 0
    seconds: float = 0.0
    problem: str = ""

    def as_dict(self) -> dict[str, object]:
        """JSON-ready data, without what is empty."""
        seconds = {"seconds": round(self.seconds, 3)}
        return {k: v for k, v in {**vars(self), **seconds}.items() if v not in (0, "")}

    def in_words(self) -> str:
        """For the log: `2 files, 4.2 GB read in 3.1 s, 0 B were cached`."""
        said = f"{counted(self.files, 'file')}, {size_text(self.read)} read in {self.seconds:.1f} s"
        if self.cached:
            said += f", {size_text(self.cached)} were cached"
        if self.left_out:
            said += f", {size_text(self.left_out)} left out for lack of memory"
        return f"{said}; {self.problem}" if self.problem else said


class Request:
    """One list of files being read; `reading` tells how far it is."""

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
        """Until all is read or given up; False when `seconds` were not enough."""
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
        """Queue the blocks that are not cached, as far as memory goes."""
        room = self._room()
        try:
            for path in self.files:
                if self._stopped.is_set():
                    return
                room -= self._queue(path, room)
        except OSError as problem:  # of the search for files
            self.reading.problem = problem.strerror or str(problem)

    def _queue(self, path: Path, room: int) -> int:
        """Queue what is missing of one file; the bytes it takes of `room`."""
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
        if starts:  # else no thread needs the file open before its first block of it
            self._starts.append((path, starts))
        self._blocks.extend((path, at, min(BLOCK, size - at)) for at in missing)
        return wanted

    def _read(self, number: int) -> None:
        """Take this thread's share of the pages that are touched first, for a job, which waits;
        then block after block, in the large pages that the kernel makes where none is there yet.
        Each thread has a file open for itself: a network file system reads ahead, and may be
        limited, for each open file."""
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
    """A file's size, the blocks that are not cached, those that are loaded first before the rest,
    and, with `starts_too`, the pages in them that its reader touches first; the file is opened
    once, which costs a round trip. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size, missing = residence_of(descriptor)
        order = load_order(descriptor, size) if missing else LoadOrder([], 0)
    finally:
        os.close(descriptor)
    absent = set(missing)
    starts = [at for at in order.starts if at // BLOCK * BLOCK in absent] if starts_too else []
    first = bisect_left(missing, order.first // BLOCK * BLOCK)
    return size, missing[first:] + missing[:first], starts


def _give_way() -> None:
    """This thread comes after whatever else needs a processor."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


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


class Recent:
    """The record of one endpoint (`default` where there is no id). Nothing here raises."""

    def __init__(self, root: Path, endpoint: str | None) -> None:
        name = re.sub(r"[^A-Za-z0-9_-]", "_", endpoint or "default")[:64]
        self._path = root / OWN_FOLDER / "recent" / f"{name}.json"
        self._written: Mapping[str, Any] | None = None

    def models(self) -> list[str]:
        """Paths below `models/`, the last used first."""
        models = self._read().get("models")
        named = models if isinstance(models, list) else []
        return [m for m in named if isinstance(m, str) and _is_below(m)][:_MOST_MODELS]

    def likely(self, wanted: str) -> list[str]:
        """What to read ahead, by the text of PREFETCH_MODELS: `last`, `none`, or paths below
        `models/`, separated by commas."""
        if wanted.lower() == "last":
            return self.models()
        listed = "" if wanted.lower() == "none" else wanted
        return [name.strip() for name in listed.split(",") if name.strip()]

    def workflow(self) -> Mapping[str, Any] | None:
        """The last workflow that succeeded, where one was kept."""
        workflow = self._read().get("workflow")
        return workflow if isinstance(workflow, Mapping) else None

    def note(self, models: Sequence[str], workflow: Mapping[str, Any] | None = None) -> None:
        """Remember a job's models, before those of earlier ones, and its workflow if given.

        Written only where it says something new.
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
            pass  # a volume that is full or gone is reported elsewhere

    def _read(self) -> Mapping[str, Any]:
        try:
            if os.stat(self._path).st_size > _MOST_BYTES:
                return {}
            record = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) and record.get("version") == _VERSION else {}


def _is_below(path: str) -> bool:
    """A relative path that stays where it begins."""
    return not path.startswith("/") and ".." not in path.split("/") and "\0" not in path
