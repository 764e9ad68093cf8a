"""Which jobs a worker holds (running, queued, being delivered), and when it may take another."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from bootstrap.core.findings import Finding, error
from handler.common.blocking import is_set_within

CODES = {"worker.take_stuck": "The worker has room for a job but does not ask for one"}
# Results are delivered while ComfyUI works; if they pile up, no further job is taken.
_DELIVERIES = 2
_REMEMBERED = 100
_ALLOWED_TICKS = 240  # a poll for a job takes up to 90 s
_LOOK_EVERY = 1.0


class JobSlots:
    """At most one job per ComfyUI and `prefetch` more that are not computed, and `_DELIVERIES` that
    are; with a `prefetch` of 0 one job at a time for each. For one event loop; `waits` from any
    thread."""

    def __init__(
        self, prefetch: int, exhausted: Callable[[], bool] = lambda: False, running: int = 1
    ) -> None:
        """No job is taken while the worker is `exhausted`; `running` ComfyUIs work in parallel."""
        self._is_exhausted = exhausted
        self.waits = False
        self._idle_ticks = 0
        self._uncomputed_most = running + prefetch
        self.most = running if prefetch == 0 else running + prefetch + _DELIVERIES
        self._jobs: dict[str, bool] = {}  # id -> is it computed?
        self._cancelled: deque[str] = deque(maxlen=_REMEMBERED)
        self._closed = False
        self._changed = asyncio.Event()

    def free(self) -> bool:
        """May another job be taken?"""
        uncomputed = sum(not computed for computed in self._jobs.values())
        return len(self._jobs) < self.most and uncomputed < self._uncomputed_most

    async def wait_for_slot(self) -> bool:
        """Wait until another job may be taken; False if no more are taken."""
        self.waits = True
        while not (self._closed or (self.free() and not self.exhausted)):
            self._changed.clear()
            if self.free():
                await is_set_within(self._changed, _LOOK_EVERY)
            else:
                await self._changed.wait()
        self.waits = False
        return not self._closed

    async def wait_closed(self) -> None:
        """Until no more are taken, and none is here."""
        while self._jobs or not self._closed:
            self._changed.clear()
            await self._changed.wait()

    def polled(self) -> None:
        """Called by the loop that takes jobs, to show that it moves."""
        self._idle_ticks = 0

    def tick(self) -> None:
        """A second has passed. Seconds are counted here, so that a worker that was frozen
        (FlashBoot) does not look stuck."""
        self._idle_ticks = 0 if self.waits or self._closed else self._idle_ticks + 1

    def fault(self) -> Finding | None:
        """The finding about a loop that no longer asks for jobs."""
        if self._idle_ticks <= _ALLOWED_TICKS:
            return None
        return error(
            "worker.take_stuck",
            f"The worker has room for a job and has not asked for one for {self._idle_ticks} s.",
            "Restart this worker, and report it with the end of its log.",
            seconds=self._idle_ticks,
        )

    @property
    def exhausted(self) -> bool:
        """Are no jobs taken because threads are used up?"""
        return self._is_exhausted()

    @property
    def busy(self) -> bool:
        """Is a job here?"""
        return bool(self._jobs)

    def take(self, job: str) -> None:
        """This job was taken."""
        self._jobs[job] = False

    def computed(self, job: str) -> None:
        """ComfyUI is done with it."""
        if job in self._jobs:
            self._jobs[job] = True
            self._changed.set()

    def release(self, job: str) -> None:
        """Its result has been posted, or never will be."""
        self._jobs.pop(job, None)
        self._changed.set()

    def close(self) -> None:
        """Take no further job."""
        self._closed = True
        self._changed.set()

    def cancel_early(self, job: str) -> None:
        """Remember a cancellation for a job that is not here, perhaps because it is just being
        taken."""
        self._cancelled.append(job)

    def is_cancelled(self, job: str) -> bool:
        """Did a cancellation arrive before the job?"""
        return job in self._cancelled
