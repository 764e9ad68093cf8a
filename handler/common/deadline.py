"""One time budget across many steps."""

from __future__ import annotations

import time
from collections.abc import Callable

from handler.common.errors import JobError, JobTimeout


class Deadline:
    """Expires `seconds` after it is made, on a monotonic clock; pauses do not count."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._start = clock()
        self._paused: float | None = None
        self._pauses = 0.0

    def pause(self) -> None:
        """Stop the clock, unless it is stopped."""
        if self._paused is None:
            self._paused = self._clock()

    def resume(self) -> None:
        """Start the clock again, if it is stopped."""
        if self._paused is not None:
            self._pauses += self._clock() - self._paused
            self._paused = None

    @property
    def elapsed(self) -> float:
        """Seconds since it was made, without pauses."""
        now = self._clock() if self._paused is None else self._paused
        return now - self._start - self._pauses

    @property
    def paused(self) -> float:
        """Seconds of all pauses that are over."""
        return self._pauses

    @property
    def remaining(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.seconds - self.elapsed)

    @property
    def expired(self) -> bool:
        """Is no time left?"""
        return self.remaining == 0.0


def timeout_error(deadline: Deadline, state: str) -> JobError:
    """The error for a job whose time is up; `state` says what it was doing."""
    return JobTimeout(
        "job.timeout",
        f"The job was stopped after {deadline.elapsed:.0f} s: {state}.",
        f"Allow more than {deadline.seconds:g} s with max_wait in the request or MAX_WAIT in the "
        "endpoint's environment, or make the workflow smaller.",
        max_wait=deadline.seconds,
    )
