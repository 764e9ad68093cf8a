"""Takes jobs in the SDK's loop: the next one while ComfyUI works, one by one, none after SIGTERM.

The SDK's own loop (runpod 1.12.0, serverless/modules/rp_scale.py) counts a job until its result has
been posted, checks for a free slot once a second and its queue every 0.1 s, takes several jobs at
once if several slots are free, which leaves other workers idle, and loses a cancellation that
arrives while the job is being taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from runpod.serverless.modules import rp_scale

from handler.sdk.job_slots import JobSlots

_log = logging.getLogger(__name__)

_HOOKS = "hooks"
_POLL_SECONDS = 90.0
_EXHAUSTED_SECONDS = 30
# After the grace: time to answer the jobs that were stopped.
_ANSWER_SECONDS = 3.5


@dataclass(frozen=True)
class Hooks:
    """Called by the loop, in the event loop: `at_start` when it starts, `at_end` when the worker
    must end (running jobs then have `grace` seconds), `finish` at the very end."""

    slots: JobSlots
    at_start: Callable[[], None]
    at_end: Callable[[], None]
    finish: Callable[[], Awaitable[None]]
    grace: float


class JobLoop(rp_scale.JobScaler):  # type: ignore[misc]  # the SDK is not typed
    """The SDK's loop, with `JobSlots` deciding when a job is taken."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._hooks: Hooks = config[_HOOKS]
        self._slots = self._hooks.slots
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: asyncio.Future[None] | None = None
        self._get_job: Any = self.jobs_fetcher  # type: ignore[has-type]
        self.jobs_fetcher = self._take
        # For a poll only, not for the wait for a slot before it: cutting a poll short could lose
        # the job that it returns.
        self.jobs_fetcher_timeout = None

    async def run(self) -> None:
        """Take and run jobs until the worker must end."""
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
        """Once a second; ends a worker that can take no more jobs, so that another one takes
        them."""
        exhausted = 0
        while True:
            await asyncio.sleep(1.0)
            self._slots.tick()
            exhausted = exhausted + 1 if self._slots.exhausted and not self._slots.busy else 0
            if exhausted == _EXHAUSTED_SECONDS:
                _log.error("calls of earlier jobs hang, so no more can be taken; the worker exits")
                self.kill_worker()

    async def _take(self, session: Any, _: int) -> None:
        """Take a job and start it. A job that an open poll returns after shutdown has begun is
        awaited here, since the SDK's loop no longer does that."""
        self._slots.polled()
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
        """At once: the SDK checks its queue only every 0.1 s. The job still passes through that
        queue, which counts finished jobs."""
        self.job_progress.add(job)
        self.jobs_queue.put_nowait(job)
        self.jobs_queue.get_nowait()
        task = asyncio.create_task(self.handle_job(session, job))
        task.add_done_callback(lambda _: self._slots.release(job["id"]))
        self.jobs_tasks[job["id"]] = task
        return task

    async def run_jobs(self, _: Any) -> None:
        """Until no more jobs are taken, and none is here."""
        await self._slots.wait_closed()

    async def stop_job(self, job_id: str) -> bool:
        """Stop a running job; remember the cancellation of one that is not known yet."""
        found: bool = await super().stop_job(job_id)
        if not found:
            self._slots.cancel_early(job_id)
        return found

    def kill_worker(self) -> None:
        """Take no further jobs; `Shutdown` ends those that are here. Called by a signal handler,
        between any two steps of the loop."""
        super().kill_worker()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._close)

    def _close(self) -> None:
        """Polls stay open for 90 s: they are cut once every job has had its time."""
        self._slots.close()
        self._hooks.at_end()
        if self._loop is not None and self._running is not None:
            self._loop.call_later(self._hooks.grace + _ANSWER_SECONDS, self._running.cancel)


def with_slots(config: dict[str, Any], hooks: Hooks) -> dict[str, Any]:
    """The SDK's configuration for a worker with job slots. It makes the SDK use our loop, for which
    it has no setting."""
    rp_scale.JobScaler = JobLoop
    # The SDK's own count must never limit: it briefly counts a job twice.
    most = 2 * hooks.slots.most + 1
    return {**config, _HOOKS: hooks, "concurrency_modifier": lambda _: most}
