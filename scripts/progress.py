"""A progress line for a long scan; silent if not on a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

_QUIET_SECONDS = 1.0


class Progress:
    """Counts things on standard error, after the first second."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._from = time.monotonic() + _QUIET_SECONDS
        self._shown = False

    def __enter__(self) -> Progress:
        return self

    def update(self, count: int) -> None:
        """Update the count."""
        if not sys.stderr.isatty() or time.monotonic() < self._from:
            return
        self._shown = True
        sys.stderr.write(f"\r{self._what}: {count:,} files and folders ")
        sys.stderr.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
