"""One time budget across many steps."""

from __future__ import annotations

import time
from collections.abc import Callable

from handler.common.errors import JobError


class Deadline:
    """Runs out `seconds` after it is made, on a clock that nobody sets; pauses do not count."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._start = clock()
        self._paused: float | None = None
        self._pauses = 0.0

    def pause(self) -> None:
        """Let the clock stand still, if it does not yet."""
        if self._paused is None:
            self._paused = self._clock()

    def resume(self) -> None:
        """Let the clock go on, if it stands still."""
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
        """Is nothing left?"""
        return self.remaining == 0.0


def timeout_error(deadline: Deadline, state: str) -> JobError:
    """The job's time is over; `state` says what it was at."""
    return JobError(
        "job.timeout",
        f"The job was stopped after {deadline.elapsed:.0f} s: {state}.",
        f"Allow more than {deadline.seconds:g} s with max_wait in the request or MAX_WAIT in the "
        "endpoint's environment, or make the workflow smaller.",
        max_wait=deadline.seconds,
    )
