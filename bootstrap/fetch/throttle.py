"""A limit on bytes per second that all connections of this process share."""

from __future__ import annotations

import threading
import time


class Throttle:
    """`bytes_per_second` None is no limit. Bursts of up to a quarter second are let through."""

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
