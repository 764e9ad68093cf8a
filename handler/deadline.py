"""One time budget across many steps."""

from __future__ import annotations

import time
from collections.abc import Callable


class Deadline:
    """Runs out `seconds` after it is made, on a clock that nobody sets."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._start = clock()

    @property
    def elapsed(self) -> float:
        """Seconds since it was made."""
        return self._clock() - self._start

    @property
    def remaining(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.seconds - self.elapsed)

    @property
    def expired(self) -> bool:
        """Is nothing left?"""
        return self.remaining == 0.0
