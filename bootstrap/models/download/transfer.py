"""Several connections fetch ranges of one file into a part.

Blocks are handed out from the start of the file, large at first (fewer requests), small at the end
(all connections finish together), so that hashing can follow closely. When nothing is left, an idle
connection takes half of what the slowest one still has to fetch.

Every response must be a 206 for exactly the requested range, with the same size and ETag; any sign
of a changed file ends the attempt (`RemoteChanged`). A failed connection retries; one that keeps
failing leaves the work to the others, and the last one reports the error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from bootstrap.core.concurrency import threaded
from bootstrap.models.download.part import Part
from bootstrap.models.download.remote import (
    DownloadOptions,
    Locate,
    Remote,
    StallDetector,
    content_range,
    refuse_text,
)
from bootstrap.net import DownloadError, RemoteChanged, Stopped, bad_answer, unreachable
from bootstrap.net.http import Channel, Reply

SMALLEST = 4 * 1024 * 1024
LARGEST = 64 * 1024 * 1024
_STEAL_FROM = 2 * 1024 * 1024
_AT_ONCE = 64 * 1024  # each connection's buffer; larger ones are not faster
_PROGRESS = 512 * 1024  # bytes that reset the failure count; fewer are a stall in disguise
_RELOCATIONS = 3  # in a row without progress; a signed URL may expire often


class ByteRange:
    """A range being fetched, from `position` to `end`, which may shrink."""

    __slots__ = ("end", "position")

    def __init__(self, position: int, end: int) -> None:
        self.position = position
        self.end = end


class Blocks:
    """The ranges of a file of `size` bytes, with `done` already there. Thread-safe."""

    def __init__(
        self, size: int, done: Sequence[tuple[int, int]] = (), connections: int = 1
    ) -> None:
        self.size = size
        self.changed = threading.Condition()
        self._connections = connections
        self._gaps = _gaps(size, done)
        self._active: list[ByteRange] = []

    def take(self) -> ByteRange | None:
        """The next range to fetch; None if all are taken."""
        with self.changed:
            if not self._gaps:
                return self._steal()
            first, end = self._gaps[0]
            left = sum(b - a for a, b in self._gaps)
            length = min(max(left // (self._connections * 4), SMALLEST), LARGEST)
            if end - first <= length + SMALLEST // 2:
                self._gaps.pop(0)
            else:
                end = first + length
                self._gaps[0] = (end, self._gaps[0][1])
            return self._begin(first, end)

    def advance(self, span: ByteRange, count: int) -> int:
        """`count` bytes of `span` were written; returns how many are left of it."""
        with self.changed:
            span.position = min(span.position + count, span.end)
            self.changed.notify_all()
            return span.end - span.position

    def finish(self, span: ByteRange) -> None:
        """The fetcher of `span` is done with it; what is missing can be taken again."""
        with self.changed:
            self._active.remove(span)
            if span.position < span.end:
                self._gaps.append((span.position, span.end))
                self._gaps.sort()
            self.changed.notify_all()

    def wait_beyond(self, position: int, timeout: float) -> int:
        """The contiguous end of the bytes that are there, once it is past `position`, or after
        `timeout` seconds."""
        with self.changed:
            self.changed.wait_for(lambda: self._frontier() > position, timeout)
            return self._frontier()

    @property
    def missing(self) -> int:
        """The number of missing bytes."""
        with self.changed:
            return sum(end - first for first, end in self._missing())

    def done_ranges(self) -> list[tuple[int, int]]:
        """The ranges that are there, in order, joined."""
        with self.changed:
            return _gaps(self.size, self._missing())

    def _missing(self) -> list[tuple[int, int]]:
        active = [(s.position, s.end) for s in self._active if s.position < s.end]
        return sorted(self._gaps + active)

    def _frontier(self) -> int:
        first = min((s.position for s in self._active if s.position < s.end), default=self.size)
        return min(first, self._gaps[0][0]) if self._gaps else first

    def _steal(self) -> ByteRange | None:
        victim = max(self._active, key=lambda s: s.end - s.position, default=None)
        if victim is None or victim.end - victim.position < _STEAL_FROM:
            return None
        middle = (victim.position + victim.end) // 2
        end, victim.end = victim.end, middle
        return self._begin(middle, end)

    def _begin(self, first: int, end: int) -> ByteRange:
        span = ByteRange(first, end)
        self._active.append(span)
        return span


def _gaps(size: int, done: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The gaps between ordered, disjoint ranges in 0..size."""
    gaps, position = [], 0
    for first, end in done:
        if first > position:
            gaps.append((position, first))
        position = max(position, end)
    if position < size:
        gaps.append((position, size))
    return gaps


class RangeFetch:
    """One attempt. `on_bytes` gets the count of each write."""

    def __init__(
        self,
        remote: Remote,
        locate: Locate,
        part: Part,
        blocks: Blocks,
        options: DownloadOptions,
        on_bytes: Callable[[int], None],
    ) -> None:
        self._remote = remote
        self._locate = locate
        self._part = part
        self._blocks = blocks
        self._options = options
        self._on_bytes = on_bytes
        self._halt = threading.Event()
        self._lock = threading.Lock()
        self._problem: BaseException | None = None
        self._given_up: DownloadError | None = None
        self._channels: list[Channel] = []
        self._working = 0
        self._relocations = 0

    def run(self, stop: threading.Event) -> None:
        """Fetch what is missing. Raises DownloadError, RemoteChanged, OwnershipLost, and Stopped on
        `stop`; in any case the state is saved, if the disk allows."""
        threads = [
            threaded(self._work, f"model-range-{n}") for n in range(self._connections_worth())
        ]
        self._working = len(threads)
        for thread in threads:
            thread.start()
        try:
            self._watch(stop)
        finally:
            self._halt.set()
            for channel in self._channels:
                channel.abort()
            for thread in threads:
                thread.join()
        if self._problem is not None:
            raise self._problem
        if self._blocks.missing:
            # The last connections may have given up at once, each expecting another to go on.
            raise Stopped if stop.is_set() else self._given_up or Stopped

    def _connections_worth(self) -> int:
        blocks = -(-self._blocks.missing // SMALLEST)
        return max(1, min(self._options.connections, blocks))

    def _watch(self, stop: threading.Event) -> None:
        """Save the state now and then, until the threads are done or `stop` is set."""
        noted = time.monotonic()
        while self._working:
            with self._blocks.changed:
                self._blocks.changed.wait_for(lambda: not self._working, 0.2)
            if stop.is_set():
                return
            if time.monotonic() - noted >= self._options.note_every:
                self._part.check_ownership()
                self._part.save_state(self._remote, self._blocks.done_ranges())
                noted = time.monotonic()

    def _work(self) -> None:
        channel = self._options.channel()
        self._channels.append(channel)
        failures = 0
        try:
            while not self._halt.is_set():
                span = self._blocks.take()
                if span is None:
                    if not self._await_leftovers():
                        return
                    continue
                before = span.position
                problem = self._try(channel, span)
                failures = 0 if span.position - before >= _PROGRESS else failures
                if problem is not None:
                    failures += 1
                    if not self._goes_on(problem, failures):
                        return
        finally:
            channel.close()
            with self._lock:
                self._working -= 1
            with self._blocks.changed:
                self._blocks.changed.notify_all()

    def _await_leftovers(self) -> bool:
        """Everything is taken: False if it is also there, else wait, since a range may be
        returned."""
        if not self._blocks.missing:
            return False
        with self._blocks.changed:
            self._blocks.changed.wait(0.2)
        return True

    def _try(self, channel: Channel, span: ByteRange) -> DownloadError | None:
        try:
            self._fetch(channel, span)
        except DownloadError as problem:
            channel.close()
            return problem
        except BaseException as end:  # noqa: BLE001 - `run` raises it in the caller's thread
            self._end(end)
        finally:
            self._blocks.finish(span)
        return None

    def _goes_on(self, problem: DownloadError, failures: int) -> bool:
        """Should this connection retry after `problem`?"""
        if not problem.transient:
            self._end(problem)
            return False
        too_many_of_us = problem.status in (429, 503)
        with self._lock:
            alone = self._working == 1
            self._given_up = problem
        if too_many_of_us and not alone:
            return False
        if failures > self._options.attempts:
            if alone:
                self._end(problem)
            return False
        self._halt.wait(self._options.pause(failures, problem.retry_after))
        return True

    def _end(self, problem: BaseException) -> None:
        """End the attempt; the first reason counts."""
        with self._lock:
            if self._problem is None and not self._halt.is_set():
                self._problem = problem
        self._halt.set()

    def _fetch(self, channel: Channel, span: ByteRange) -> None:
        remote, asked_end = self._remote, span.end
        headers = {"Range": f"bytes={span.position}-{asked_end - 1}"}
        if remote.etag is not None:
            headers["If-Range"] = remote.etag
        reply = channel.get(remote.url, remote.credential, headers)
        if reply.status in (401, 403):
            self._relocate(channel, remote, reply)
            return
        given_end = _check_part(reply, span.position, asked_end, remote)
        stall = StallDetector(reply.host, self._options.stall, self._options.slowest)
        while not self._halt.is_set():
            wanted = min(_AT_ONCE, min(span.end, given_end) - span.position)
            if wanted <= 0:
                break
            data = reply.read_some(wanted)
            count = len(data)
            if count == 0:
                raise unreachable(reply.host, "it was closed too early")
            self._part.write_at(data, span.position)
            self._blocks.advance(span, count)
            self._relocations = 0
            self._on_bytes(count)
            stall.count(count)
            self._options.rate_limiter.pass_through(count, self._halt)
        if span.position != given_end:  # the rest was taken, or we are stopped
            channel.close()

    def _relocate(self, channel: Channel, used: Remote, reply: Reply) -> None:
        """A signed URL may have expired: ask the source for a new one, once for all connections."""
        with self._lock:
            if self._remote is not used:
                return
            if self._relocations >= _RELOCATIONS:
                raise used.explain(reply)
            self._relocations += 1
            channel.close()
            fresh = self._locate(channel)
            if not is_same_file(used, fresh):
                raise RemoteChanged
            self._remote = fresh


def is_same_file(one: Remote, other: Remote) -> bool:
    """Do two locations have the same bytes, as far as they say?"""
    if one.size != other.size:
        return False
    if one.sha256 is not None and other.sha256 is not None:
        return one.sha256 == other.sha256
    return one.etag == other.etag and one.modified == other.modified


def _check_part(reply: Reply, first: int, end: int, remote: Remote) -> int:
    """The end of the range in `reply`. Raises DownloadError, or RemoteChanged."""
    if reply.status in (200, 416):
        raise RemoteChanged
    if reply.status != 206:
        raise remote.explain(reply)
    refuse_text(reply, remote)
    given_first, given_end, total = content_range(reply)
    if total is not None and total != remote.size:
        raise RemoteChanged
    etag = reply.strong_etag
    if etag is not None and remote.etag is not None and etag != remote.etag:
        raise RemoteChanged
    modified = reply.headers.get("last-modified")
    if etag is None and modified != remote.modified and modified and remote.modified:
        raise RemoteChanged
    if given_first != first or not first < given_end <= end:
        raise bad_answer(reply.host, f"sent bytes {given_first}-{given_end - 1}, not those asked")
    if reply.length is not None and reply.length != given_end - given_first:
        raise bad_answer(reply.host, "sent a part of another length than it says")
    return given_end
