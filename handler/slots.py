"""Which jobs a worker holds, and when it may take another: the one ComfyUI works for, those that
wait behind it, and those whose results are on their way."""

from __future__ import annotations

import asyncio
from collections import deque

# Results travel while ComfyUI works; where they pile up, no further job is taken.
_DELIVERIES = 2
_REMEMBERED = 100


class Slots:
    """At most 1 + `prefetch` jobs that are not computed, and `_DELIVERIES` more that are; with a
    `prefetch` of 0 one job at a time. Used by one event loop."""

    def __init__(self, prefetch: int) -> None:
        self._uncomputed_most = 1 + prefetch
        self.most = 1 if prefetch == 0 else 1 + prefetch + _DELIVERIES
        self._jobs: dict[str, bool] = {}  # id -> is it computed?
        self._cancelled: deque[str] = deque(maxlen=_REMEMBERED)
        self._closed = False
        self._changed = asyncio.Event()

    def free(self) -> bool:
        """May another job be taken?"""
        uncomputed = sum(not computed for computed in self._jobs.values())
        return len(self._jobs) < self.most and uncomputed < self._uncomputed_most

    async def room(self) -> bool:
        """Until another job may be taken; False when none will be taken any more."""
        while not (self.free() or self._closed):
            self._changed.clear()
            await self._changed.wait()
        return not self._closed

    async def over(self) -> None:
        """Until none will be taken any more, and none is here."""
        while self._jobs or not self._closed:
            self._changed.clear()
            await self._changed.wait()

    def take(self, job: str) -> None:
        """This job has come."""
        self._jobs[job] = False

    def computed(self, job: str) -> None:
        """ComfyUI is done with it."""
        if job in self._jobs:
            self._jobs[job] = True
            self._changed.set()

    def leave(self, job: str) -> None:
        """Its result has been posted, or never will be."""
        self._jobs.pop(job, None)
        self._changed.set()

    def close(self) -> None:
        """Take no further job."""
        self._closed = True
        self._changed.set()

    def cancel_early(self, job: str) -> None:
        """A cancel came for a job that has not begun here, maybe since it is about to come."""
        self._cancelled.append(job)

    def is_cancelled(self, job: str) -> bool:
        """Did a cancel come before the job?"""
        return job in self._cancelled
