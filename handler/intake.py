"""How the SDK's loop takes jobs: the next one while ComfyUI works, each alone, none after SIGTERM.

The SDK's own loop (runpod 1.12.0, serverless/modules/rp_scale.py) counts a job until its result has
been posted, looks for room once a second, takes several at once where there is room for several,
which leaves other workers without, and forgets a cancel that comes in the moment of a take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from runpod.serverless.modules import rp_scale

from handler.slots import Slots

_SLOTS, _AT_THE_START, _AT_THE_END = "slots", "at_the_start", "at_the_end"


class Intake(rp_scale.JobScaler):  # type: ignore[misc]  # the SDK is not typed
    """The SDK's loop, with `Slots` to say when a job is taken."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._slots: Slots = config[_SLOTS]
        self._at_the_start: Callable[[], None] = config[_AT_THE_START]
        self._at_the_end: Callable[[], None] = config[_AT_THE_END]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._get_job: Any = self.jobs_fetcher  # type: ignore[has-type]
        self.jobs_fetcher = self._take

    async def run(self) -> None:
        """Take and run jobs until the worker is told to end."""
        self._loop = asyncio.get_running_loop()
        self._at_the_start()
        await super().run()

    async def _take(self, session: Any, _: int) -> list[dict[str, Any]] | None:
        if not await self._slots.room():
            return None
        jobs: list[dict[str, Any]] | None = await self._get_job(session, 1)
        for job in jobs or ():
            self._slots.take(job["id"])
        if jobs and not self.is_alive():
            await asyncio.gather(*(self._answer_late(session, job) for job in jobs))
            return None
        return jobs

    async def _answer_late(self, session: Any, job: dict[str, Any]) -> None:
        """A job that the open take brought after the end was begun: nobody looks at the queue any
        more, so it is answered here."""
        self.job_progress.add(job)
        self.jobs_queue.put_nowait(job)
        self.jobs_queue.get_nowait()
        await self.handle_job(session, job)

    async def handle_job(self, session: Any, job: dict[str, Any]) -> None:
        """Run one job and post its result."""
        try:
            await super().handle_job(session, job)
        finally:
            self._slots.leave(job["id"])

    async def stop_job(self, job_id: str) -> bool:
        """Stop a job that runs; remember one that is not known yet."""
        found: bool = await super().stop_job(job_id)
        if not found:
            self._slots.cancel_early(job_id)
        return found

    def kill_worker(self) -> None:
        """Take no further job; what becomes of those that are here is decided elsewhere. Called by
        a signal, in between whatever the loop is at."""
        super().kill_worker()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._slots.close)
            self._loop.call_soon_threadsafe(self._at_the_end)


def with_slots(
    config: dict[str, Any],
    slots: Slots,
    at_the_start: Callable[[], None],
    at_the_end: Callable[[], None],
) -> dict[str, Any]:
    """The SDK's configuration for a worker whose jobs `slots` counts; `at_the_start` is called in
    the loop when it begins, `at_the_end` when it is told to end. The SDK then uses our loop: it has
    no setting for that."""
    rp_scale.JobScaler = Intake
    # What the SDK itself counts never runs out: it counts a job twice for a moment.
    most = 2 * slots.most + 1
    return {
        **config,
        _SLOTS: slots,
        _AT_THE_START: at_the_start,
        _AT_THE_END: at_the_end,
        "concurrency_modifier": lambda _: most,
    }
