"""How the SDK's loop takes jobs: the next one while ComfyUI works, each alone, none after SIGTERM.

The SDK's own loop (runpod 1.12.0, serverless/modules/rp_scale.py) counts a job until its result has
been posted, looks for room once a second and at what it has taken every 0.1 s, takes several at
once where there is room for several, which leaves other workers without, and forgets a cancel that
comes in the moment of a take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from runpod.serverless.modules import rp_scale

from bootstrap.core.log import say
from handler.sdk.job_slots import JobSlots

_HOOKS = "hooks"
_POLL_SECONDS = 90.0
_EXHAUSTED_SECONDS = 30
# What is left of the way out after the grace: jobs that were ended are answered.
_ANSWER_SECONDS = 3.5


@dataclass(frozen=True)
class Hooks:
    """What the loop tells the worker: in the loop `at_start` when it begins, `at_end` when it is
    told to end, and `finish` at the very end. `grace` in seconds is what running jobs have then."""

    slots: JobSlots
    at_start: Callable[[], None]
    at_end: Callable[[], None]
    finish: Callable[[], Awaitable[None]]
    grace: float


class JobLoop(rp_scale.JobScaler):  # type: ignore[misc]  # the SDK is not typed
    """The SDK's loop, with `JobSlots` to say when a job is taken."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._hooks: Hooks = config[_HOOKS]
        self._slots = self._hooks.slots
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: asyncio.Future[None] | None = None
        self._get_job: Any = self.jobs_fetcher  # type: ignore[has-type]
        self.jobs_fetcher = self._take
        # Of a poll only, not of the wait for a slot before it: a poll that is cut short just
        # then could lose the job that it brings.
        self.jobs_fetcher_timeout = None

    async def run(self) -> None:
        """Take and run jobs until the worker is told to end."""
        self._loop = asyncio.get_running_loop()
        self._hooks.at_start()
        watching = asyncio.ensure_future(self._watch())
        self._running = asyncio.ensure_future(super().run())
        try:
            await self._running
        except asyncio.CancelledError:
            pass  # the open polls were cut
        finally:
            watching.cancel()
            await self._hooks.finish()

    async def _watch(self) -> None:
        """Once a second; ends a worker that can take no job any more, so that another one can."""
        exhausted = 0
        while True:
            await asyncio.sleep(1.0)
            self._slots.beat()
            exhausted = exhausted + 1 if self._slots.exhausted and not self._slots.busy else 0
            if exhausted == _EXHAUSTED_SECONDS:
                say("no more jobs can be taken, since calls of earlier ones hang; the worker ends")
                self.kill_worker()

    async def _take(self, session: Any, _: int) -> None:
        """Take a job and begin with it. One that the open take brought after the end was begun is
        waited for: the SDK's loop no longer waits for it."""
        self._slots.looked()
        if not await self._slots.wait_for_slot():
            return
        jobs = None
        with suppress(asyncio.TimeoutError):
            jobs = await asyncio.wait_for(self._get_job(session, 1), _POLL_SECONDS)
        for job in jobs or ():
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
        task.add_done_callback(lambda _: self._slots.release(job["id"]))
        self.jobs_tasks[job["id"]] = task
        return task

    async def run_jobs(self, _: Any) -> None:
        """Until no job will be taken any more, and none is here."""
        await self._slots.wait_closed()

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
            self._loop.call_soon_threadsafe(self._close)

    def _close(self) -> None:
        """Polls are open for 90 s: they are cut when every job has had its time."""
        self._slots.close()
        self._hooks.at_end()
        if self._loop is not None and self._running is not None:
            self._loop.call_later(self._hooks.grace + _ANSWER_SECONDS, self._running.cancel)


def with_slots(config: dict[str, Any], hooks: Hooks) -> dict[str, Any]:
    """The SDK's configuration for a worker whose jobs are counted. The SDK then uses our loop: it
    has no setting for that."""
    rp_scale.JobScaler = JobLoop
    # What the SDK itself counts never runs out: it counts a job twice for a moment.
    most = 2 * hooks.slots.most + 1
    return {**config, _HOOKS: hooks, "concurrency_modifier": lambda _: most}
