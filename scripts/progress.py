"""A line that shows a long scan goes on; tqdm where there is one, silent off a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

_QUIET_SECONDS = 1.0


def _tqdm(what: str) -> Any:
    """A bar without end, or None where tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(desc=what, unit=" files", leave=False, file=sys.stderr)


class Progress:
    """Counts things on standard error, from the second second on."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._start = time.monotonic()
        self._shown = False
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def update(self, count: int) -> None:
        """So many things have been looked at by now."""
        if not sys.stderr.isatty() or time.monotonic() - self._start < _QUIET_SECONDS:
            return
        if self._bar is None and not self._shown:
            self._bar = _tqdm(self._what)
        if self._bar is not None:
            self._bar.update(count - self._bar.n)
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
        if self._bar is not None:
            self._bar.close()
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
