"""Is a connection still worth keeping? Bytes that trickle are as bad as none."""

from __future__ import annotations

import time

from bootstrap.net.errors import stalled


class Pace:
    """Judges one answer by windows of `window` seconds."""

    def __init__(self, host: str, window: float, slowest: int) -> None:
        self._host = host
        self._window = window
        self._least = slowest * window
        self._start = time.monotonic()
        self._bytes = 0

    def count(self, received: int) -> None:
        """`received` more bytes came. Raises DownloadError (transient) when they trickle."""
        self._bytes += received
        now = time.monotonic()
        if now - self._start < self._window:
            return
        if self._bytes < self._least:
            raise stalled(self._host, self._window)
        self._start, self._bytes = now, 0
