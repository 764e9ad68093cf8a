"""Progress of downloads: bars on a terminal, else a line per file every few seconds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from bootstrap.core.text import size_text

EVERY = 5.0  # seconds between two lines about one file


class FileMeter:
    """Counts one file's bytes; `tell` gets (done, total) at each change. Thread-safe."""

    def __init__(self, what: str, tell: Callable[[int, int], None] | None) -> None:
        self.what = what
        self.done = 0
        self.total: int | None = None
        self._tell = tell
        self._lock = threading.Lock()
        self._begun = time.monotonic()
        self._begun_at = 0

    def begin(self, done: int, total: int | None) -> None:
        """See download.Meter."""
        with self._lock:
            self.done, self.total = done, total
            self._begun, self._begun_at = time.monotonic(), done
        self.show(force=True)

    def add(self, count: int) -> None:
        """See download.Meter."""
        with self._lock:
            self.done += count
        if self._tell is not None:
            self._tell(self.done, self.total or 0)
        self.show()

    def show(self, force: bool = False) -> None:
        """Update the display, if it is due."""

    def end(self, note: str) -> None:
        """The file is done; `note` completes "FILE: ..."."""

    @property
    def speed(self) -> float:
        """Bytes per second since it began."""
        return (self.done - self._begun_at) / max(time.monotonic() - self._begun, 0.001)

    def line(self) -> str:
        """Percent, speed and time left in words."""
        rate = f"{self.speed / 1e6:.1f} MB/s"
        if not self.total:
            return f"{size_text(self.done)} at {rate}"
        share = f"{100 * self.done // self.total} % of {size_text(self.total)}"
        if self.done == self._begun_at:
            return share
        return f"{share}, {rate}, {clock((self.total - self.done) / self.speed)} left"


class LogMeter(FileMeter):
    """Lines for a log, at most one every `EVERY` seconds."""

    log = logging.getLogger("models")

    def __init__(self, what: str, tell: Callable[[int, int], None] | None) -> None:
        super().__init__(what, tell)
        self._shown = 0.0

    def show(self, force: bool = False) -> None:
        """Log the progress."""
        now = time.monotonic()
        with self._lock:
            if not force and now - self._shown < EVERY:
                return
            self._shown = now
        self.log.info("%s: %s", self.what, self.line())

    def end(self, note: str) -> None:
        """Log how it ended."""
        self.log.info("%s: %s", self.what, note)


class BarMeter(FileMeter):
    """A tqdm bar."""

    def __init__(self, what: str, tell: Callable[[int, int], None] | None, stream: TextIO) -> None:
        super().__init__(what, tell)
        from tqdm import tqdm

        self._stream = stream
        self._make: Any = tqdm
        self._bar: Any = None

    def begin(self, done: int, total: int | None) -> None:
        """See download.Meter."""
        self._close()
        self._bar = self._make(
            desc=self.what[-40:],
            total=total,
            initial=done,
            unit="B",
            unit_scale=True,
            file=self._stream,
            leave=False,
            mininterval=0.2,
        )
        super().begin(done, total)

    def show(self, force: bool = False) -> None:
        """Move the bar."""
        with self._lock:
            if self._bar is not None:
                self._bar.update(self.done - self._bar.n)

    def end(self, note: str) -> None:
        """Replace the bar by a line."""
        self._close()
        self._stream.write(f"{self.what}: {note}\n")
        self._stream.flush()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


MakeMeter = Callable[[str, Callable[[int, int], None] | None], FileMeter]


def meters_for(stream: TextIO, lines: MakeMeter = LogMeter) -> MakeMeter:
    """Bars if `stream` is a terminal and tqdm is installed, else
    `lines`."""
    if stream.isatty():
        try:
            import tqdm as _  # noqa: F401
        except ImportError:
            return lines
        return lambda what, tell: BarMeter(what, tell, stream)
    return lines


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as `1:02:03` or `2:03`."""
    whole = max(int(seconds + 0.5), 0)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
