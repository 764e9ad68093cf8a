"""Several connections fetch ranges of one file into a part.

Every answer must be a 206 for exactly the range asked, of a file of the same size and ETag; any
sign that the file is another one ends the attempt (`Changed`). A connection that fails tries
again; one that keeps failing leaves the work to the others, and the last one reports.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from bootstrap.fetch.blocks import SMALLEST, Blocks, Span
from bootstrap.fetch.pace import Pace
from bootstrap.fetch.part import Part
from bootstrap.fetch.remote import Locate, Remote, content_range, refuse_text
from bootstrap.fetch.tools import Tools
from bootstrap.net.errors import Changed, DownloadError, Stopped, bad_answer, unreachable
from bootstrap.net.http import Channel, Reply

_AT_ONCE = 64 * 1024  # each connection's buffer; larger ones made nothing faster
_PROGRESS = 512 * 1024  # bytes that make a failure forgotten; fewer are a stall in disguise
_RELOCATIONS = 3  # without a byte in between; a signed URL may expire any number of times with


class RangeFetch:
    """One attempt. `on_bytes` is told every count of bytes that were written."""

    def __init__(
        self,
        remote: Remote,
        locate: Locate,
        part: Part,
        blocks: Blocks,
        tools: Tools,
        on_bytes: Callable[[int], None],
    ) -> None:
        self._remote = remote
        self._locate = locate
        self._part = part
        self._blocks = blocks
        self._tools = tools
        self._on_bytes = on_bytes
        self._halt = threading.Event()
        self._lock = threading.Lock()
        self._problem: BaseException | None = None
        self._channels: list[Channel] = []
        self._working = 0
        self._relocations = 0

    def run(self, stop: threading.Event) -> None:
        """Fetch what is missing. Raises DownloadError, Changed, Lost, and Stopped on `stop`;
        what was fetched is noted beside the part whatever happens, if the disk lets it."""
        threads = [
            threading.Thread(target=self._work, name=f"model-range-{n}", daemon=True)
            for n in range(self._connections_worth())
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
            raise Stopped

    def _connections_worth(self) -> int:
        blocks = -(-self._blocks.missing // SMALLEST)
        return max(1, min(self._tools.connections, blocks))

    def _watch(self, stop: threading.Event) -> None:
        """Note progress now and then, until the threads are through or we are asked to stop."""
        noted = time.monotonic()
        while self._working:
            with self._blocks.changed:
                self._blocks.changed.wait_for(lambda: not self._working, 0.2)
            if stop.is_set():
                return
            if time.monotonic() - noted >= self._tools.note_every:
                self._part.look()
                self._part.note(self._remote, self._blocks.done_ranges())
                noted = time.monotonic()

    def _work(self) -> None:
        channel = self._tools.channel()
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
        """All is taken: False when it is also there, else wait, for somebody may give back."""
        if not self._blocks.missing:
            return False
        with self._blocks.changed:
            self._blocks.changed.wait(0.2)
        return True

    def _try(self, channel: Channel, span: Span) -> DownloadError | None:
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
        """Should this connection try again after `problem`?"""
        if not problem.transient:
            self._end(problem)
            return False
        too_many_of_us = problem.status in (429, 503)
        with self._lock:
            alone = self._working == 1
        if too_many_of_us and not alone:
            return False
        if failures > self._tools.attempts:
            if alone:
                self._end(problem)
            return False
        self._halt.wait(self._tools.pause(failures, problem.retry_after))
        return True

    def _end(self, problem: BaseException) -> None:
        """The attempt is over; the first reason counts."""
        with self._lock:
            if self._problem is None and not self._halt.is_set():
                self._problem = problem
        self._halt.set()

    def _fetch(self, channel: Channel, span: Span) -> None:
        remote, asked_end = self._remote, span.end
        headers = {"Range": f"bytes={span.position}-{asked_end - 1}"}
        if remote.etag is not None:
            headers["If-Range"] = remote.etag
        reply = channel.get(remote.url, remote.credential, headers)
        if reply.status in (401, 403):
            self._relocate(channel, remote, reply)
            return
        given_end = _check_part(reply, span.position, asked_end, remote)
        pace = Pace(reply.host, self._tools.stall, self._tools.slowest)
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
            pace.count(count)
            self._tools.throttle.pass_through(count, self._halt)
        if span.position != given_end:  # stolen from, or stopped: the rest is not for us
            channel.close()

    def _relocate(self, channel: Channel, used: Remote, reply: Reply) -> None:
        """A signed URL may have expired: ask the source for a new one, once for all of us."""
        with self._lock:
            if self._remote is not used:
                return
            if self._relocations >= _RELOCATIONS:
                raise used.explain(reply)
            self._relocations += 1
            channel.close()
            fresh = self._locate(channel)
            if not is_same_file(used, fresh):
                raise Changed
            self._remote = fresh


def is_same_file(one: Remote, other: Remote) -> bool:
    """Do two locations lead to the same bytes, as far as they say?"""
    if one.size != other.size:
        return False
    if one.sha256 is not None and other.sha256 is not None:
        return one.sha256 == other.sha256
    return one.etag == other.etag and one.modified == other.modified


def _check_part(reply: Reply, first: int, end: int, remote: Remote) -> int:
    """Where the part that `reply` brings ends. Raises DownloadError, or Changed."""
    if reply.status in (200, 416):
        raise Changed
    if reply.status != 206:
        raise remote.explain(reply)
    refuse_text(reply, remote)
    given_first, given_end, total = content_range(reply)
    if total is not None and total != remote.size:
        raise Changed
    etag = reply.strong_etag
    if etag is not None and remote.etag is not None and etag != remote.etag:
        raise Changed
    modified = reply.headers.get("last-modified")
    if etag is None and modified != remote.modified and modified and remote.modified:
        raise Changed
    if given_first != first or not first < given_end <= end:
        raise bad_answer(reply.host, f"sent bytes {given_first}-{given_end - 1}, not those asked")
    if reply.length is not None and reply.length != given_end - given_first:
        raise bad_answer(reply.host, "sent a part of another length than it says")
    return given_end
