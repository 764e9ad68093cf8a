"""What a download works with: limits, pace, the disk, and which addresses it may go to."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from bootstrap.core.files import Disk
from bootstrap.net.addresses import AddressPolicy
from bootstrap.net.errors import stalled
from bootstrap.net.http import Channel


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


@dataclass(frozen=True)
class Tools:
    """Times in seconds. `attempts` counts failures in a row without a byte of progress; a
    connection slower than `slowest` bytes per second over `stall` seconds counts as stalled."""

    policy: AddressPolicy = field(default_factory=AddressPolicy)
    disk: Disk = field(default_factory=Disk)
    throttle: Throttle = field(default_factory=Throttle)
    connections: int = 16
    stall: float = 30.0
    slowest: int = 1024
    attempts: int = 5
    backoff: float = 1.0
    note_every: float = 5.0

    def channel(self) -> Channel:
        """A new connection, not yet made."""
        return Channel(self.policy, self.stall)

    def pause(self, failures: int, asked: float | None = None) -> float:
        """Seconds to wait after `failures` failures in a row; a server may ask for up to 60."""
        if asked is not None:
            return min(asked, 60.0)
        return min(self.backoff * 2.0 ** (failures - 1), 30.0)
