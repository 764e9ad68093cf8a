"""A file on a server before it is fetched: how to ask for it, what is known of it, and what a
download works with: limits, the disk, and which addresses it may go to.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from bootstrap.core.files import Disk
from bootstrap.net import DownloadError, Stopped, WrongBytes, bad_answer, stalled
from bootstrap.net.addresses import AddressPolicy, shown
from bootstrap.net.http import Channel, Credential, Reply

T = TypeVar("T")
Explain = Callable[[Reply], DownloadError]
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)


@dataclass(frozen=True)
class Remote:
    """A located file. `identity` is stable across signed URLs; with a strong `etag` or a `sha256` a
    part can be resumed. `explain` translates the source's error responses."""

    url: str = field(repr=False)
    identity: str
    explain: Explain = field(repr=False, compare=False)
    size: int | None = None
    etag: str | None = None
    modified: str | None = None
    sha256: str | None = None
    ranges: bool = False
    credential: Credential | None = None
    text_is_fine: bool = False

    @property
    def stable(self) -> bool:
        """Can two responses be known to have the same bytes?"""
        return self.etag is not None or self.sha256 is not None


Locate = Callable[[Channel], Remote]


def content_range(reply: Reply) -> tuple[int, int, int | None]:
    """(first, end, total) of a 206, `end` exclusive. Raises DownloadError."""
    match = _CONTENT_RANGE.fullmatch(reply.headers.get("content-range", ""))
    if match is None:
        raise bad_answer(reply.host, "sent a part without saying which (no Content-Range)")
    first, last, total = match.groups()
    return int(first), int(last) + 1, None if total == "*" else int(total)


def probe(channel: Channel, remote: Remote) -> tuple[Remote, Reply]:
    """Request the first byte: gives size, validators, range support and the final URL. Not HEAD,
    which signed URLs and Civitai refuse. Raises DownloadError.
    """
    reply = channel.get(remote.url, remote.credential, {"Range": "bytes=0-0"})
    if reply.status == 416 and reply.headers.get("content-range", "").endswith("/0"):
        raise empty(reply)
    if reply.status not in (200, 206):
        raise remote.explain(reply)
    refuse_text(reply, remote)
    ranges = reply.status == 206
    size = content_range(reply)[2] if ranges else reply.length
    if size == 0:
        raise empty(reply)
    if ranges:
        reply.read_text(2)
    else:
        channel.close()
    known = Remote(
        url=reply.url,
        identity=remote.identity,
        explain=remote.explain,
        size=size if size is not None else remote.size,
        etag=reply.strong_etag,
        modified=reply.headers.get("last-modified"),
        sha256=remote.sha256,
        ranges=ranges and size is not None,
        credential=remote.credential,
        text_is_fine=remote.text_is_fine,
    )
    return known, reply


def refuse_text(reply: Reply, remote: Remote) -> None:
    """Raise DownloadError if the response is a page, not a model."""
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml", "application/json") and (
        not remote.text_is_fine
    ):
        raise WrongBytes(
            "download.not_a_model",
            f"{shown(reply.url)} answers with {kind} instead of the file.",
            "Open the URL in a browser: it may be a page about the file or ask for a login. "
            "Use the link of the file itself.",
        )
    encoding = reply.headers.get("content-encoding", "identity").lower()
    if encoding not in ("", "identity"):
        raise bad_answer(reply.host, f"compresses the file ({encoding}) though asked not to")


def empty(reply: Reply) -> DownloadError:
    """The file has no bytes at all."""
    return DownloadError(
        "download.empty",
        f"{shown(reply.url)} is an empty file (0 bytes).",
        "Use another link; this one holds no model.",
    )


class StallDetector:
    """Ends an answer that brings too few bytes, judged by windows of `window` seconds."""

    def __init__(self, host: str, window: float, slowest: int) -> None:
        self._host = host
        self._window = window
        self._least = slowest * window
        self._start = time.monotonic()
        self._bytes = 0

    def count(self, received: int) -> None:
        """`received` more bytes arrived. Raises DownloadError (transient) if they trickle."""
        self._bytes += received
        now = time.monotonic()
        if now - self._start < self._window:
            return
        if self._bytes < self._least:
            raise stalled(self._host, self._window)
        self._start, self._bytes = now, 0


class RateLimiter:
    """`bytes_per_second` None: no limit. Allows bursts of up to a quarter second."""

    def __init__(self, bytes_per_second: float | None = None) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def pass_through(self, count: int, stop: threading.Event) -> None:
        """Wait until `count` more bytes are within the limit, or `stop` is set."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - 0.25) + count / self._rate
            wait = self._free_at - now
        if wait > 0:
            stop.wait(wait)


@dataclass(frozen=True)
class DownloadOptions:
    """Times in seconds. `attempts` limits failures in a row without progress; a connection slower
    than `slowest` bytes per second over `stall` seconds counts as stalled."""

    policy: AddressPolicy = field(default_factory=AddressPolicy)
    disk: Disk = field(default_factory=Disk)
    rate_limiter: RateLimiter = field(default_factory=RateLimiter)
    connections: int = 16
    stall: float = 30.0
    slowest: int = 1024
    attempts: int = 5
    backoff: float = 1.0
    note_every: float = 5.0

    def channel(self) -> Channel:
        """A new channel, not yet connected."""
        return Channel(self.policy, self.stall)

    def ask(self, question: Callable[[Channel], T], stop: threading.Event | None = None) -> T:
        """The answer to a question, asked again up to `attempts` times while it fails transiently,
        each time on a new connection. Raises DownloadError and Stopped."""
        stop = stop or threading.Event()
        failures = 0
        while True:
            channel = self.channel()
            try:
                return question(channel)
            except DownloadError as problem:
                failures += 1
                if not problem.transient or failures > self.attempts:
                    raise
                wait = self.pause(failures, problem.retry_after)
            finally:
                channel.close()
            if stop.wait(wait):
                raise Stopped

    def pause(self, failures: int, asked: float | None = None) -> float:
        """Seconds to wait after `failures` failures in a row; a server may ask for up to 60."""
        if asked is not None:
            return min(asked, 60.0)
        return min(self.backoff * 2.0 ** (failures - 1), 30.0)
