"""A server's answer: its headers, and its body as it comes."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from typing import Any

from bootstrap.fetch.addresses import Target
from bootstrap.fetch.errors import DownloadError, stalled, unreachable

#: How a connection shows that it is broken.
BROKEN = (http.client.HTTPException, ssl.SSLError, OSError)


class Response(http.client.HTTPResponse):
    """Fills one buffer again and again, where CPython makes a new one for each piece: these left
    holes in malloc's arenas, one for each thread (5 GB by 16 connections: 44 MB, now 25)."""

    def readinto1(self, buffer: Any) -> int:
        """As `readinto` (from which this is), but with what has arrived, as `read1`."""
        if self.fp is None or self.chunked:
            return super().readinto1(buffer)
        if self.length is not None:
            buffer = memoryview(buffer)[: self.length]
        count: int = self.fp.readinto1(buffer)
        if self.length is not None:
            self.length -= count
        # Python before 3.11.8 forgets this in `read1`, and then no connection is kept.
        if (not count and buffer) or self.length == 0:
            self.close()
        return count


class Reply:
    """A final answer (no redirect). `url` is where it came from in the end."""

    def __init__(self, target: Target, raw: http.client.HTTPResponse, timeout: float) -> None:
        self.url = target.url
        self.host = target.host
        self.status = raw.status
        self.headers: Mapping[str, str] = {k.lower(): v.strip() for k, v in raw.getheaders()}
        self.chunked = bool(raw.chunked)
        self._raw = raw
        self._timeout = timeout
        self._buffer = memoryview(b"")

    def read_some(self, limit: int) -> memoryview:
        """What has arrived of the body, at most `limit` bytes; nothing at its end. The next call
        overwrites it.

        Not until a buffer is full, for a server that trickles would never be found out. Raises
        DownloadError (transient) when the connection breaks or stalls.
        """
        if len(self._buffer) < limit:
            self._buffer = memoryview(bytearray(limit))
        try:
            return self._buffer[: self._raw.readinto1(self._buffer[:limit])]
        except BROKEN as problem:
            raise translate(problem, self.host, self._timeout) from None

    def read_text(self, limit: int = 1_000_000) -> str:
        """Up to `limit` bytes of the body as text; what cannot be read is left out."""
        try:
            return self._raw.read(limit).decode("utf-8", "replace")
        except BROKEN:
            return ""

    @property
    def length(self) -> int | None:
        """Content-Length of this body, in bytes."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isdecimal() and not self.chunked else None

    @property
    def strong_etag(self) -> str | None:
        """The ETag when two equal ones promise equal bytes."""
        etag = self.headers.get("etag", "")
        return etag if len(etag) > 2 and etag.startswith('"') else None


def translate(problem: BaseException, host: str, timeout: float) -> DownloadError:
    """A foreign exception of the network as ours."""
    if isinstance(problem, TimeoutError):
        return stalled(host, timeout)
    if isinstance(problem, http.client.IncompleteRead):
        return unreachable(host, "it was closed too early")
    return unreachable(host, str(problem) or type(problem).__name__)
