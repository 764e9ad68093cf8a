"""How the SDK's loop takes jobs: the next one while ComfyUI works, each alone, none after SIGTERM.

The SDK's own loop (runpod 1.12.0, serverless/modules/rp_scale.py) counts a job until its result has
been posted, looks for room once a second and at what it has taken every 0.1 s, takes several at
once where there is room for several, which leaves other workers without, and forgets a cancel that
comes in the moment of a take.
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

    async def _take(self, session: Any, _: int) -> None:
        """Take a job and begin with it. One that the open take brought after the end was begun is
        waited for: nobody else does any more."""
        if not await self._slots.room():
            return
        for job in await self._get_job(session, 1) or ():
            self._slots.take(job["id"])
            task = self._begin(session, job)
            if not self.is_alive():
                await asyncio.wait({task})

    def _begin(self, session: Any, job: dict[str, Any]) -> asyncio.Task[None]:
        """At once; what waits in the SDK's queue is looked at every 0.1 s only. The queue hears of
        the job all the same: it counts those that are done."""
        self.job_progress.add(job)
        self.jobs_queue.put_nowait(job)
        self.jobs_queue.get_nowait()
        task = asyncio.create_task(self.handle_job(session, job))
        task.add_done_callback(lambda _: self._slots.leave(job["id"]))
        self.jobs_tasks[job["id"]] = task
        return task

    async def run_jobs(self, _: Any) -> None:
        """Until no job will be taken any more, and none is here."""
        await self._slots.over()

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
