"""Ends jobs: by their reply, after their deadline, or at the worker's shutdown.

The platform sends SIGTERM, and later SIGKILL. In between, every job that the worker holds is
answered, so that its caller can send it again. The SDK alone would wait for running jobs, for
longer than the platform does."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from bootstrap.core.findings import Finding, error
from bootstrap.core.text import pluralize
from handler.common.errors import Deadline, JobError, timeout_error

_log = logging.getLogger(__name__)

CODES = {
    "worker.shutting_down": "The worker was stopped before the job was done",
    "worker.job_overdue": "A job is past its deadline but has no answer",
}
_FIX = "Send it again: another worker takes it."
# After its deadline a job has so long to stop ComfyUI and deliver what it has, and when stopped so
# long to clean up. Then it is answered without waiting for it.
_OVERDUE_SECONDS = 45.0
_TIDY_SECONDS = 15.0
_LOOK_EVERY = 1.0
# After the grace, a worker that has not ended is killed.
FORCE_SECONDS = 8.0
_SHUTDOWN_TIDY_SECONDS = 2.5
T = TypeVar("T")


class JobHandle:
    """One job in this worker. `is_queued`: it has not started, so it may be returned at once;
    `computed` is called when ComfyUI is done with it. `stage` completes the error of a job whose
    `deadline` passes."""

    def __init__(self, computed: Callable[[], None] = lambda: None) -> None:
        self.is_queued: Callable[[], bool] = _no
        self.computed = computed
        self.deadline: Deadline | None = None
        self.stage = "it was not started"
        self._task: asyncio.Task[Any] | None = None
        self._reason: JobError | None = None
        self._answer_by = float("inf")

    @asynccontextmanager
    async def waiting(self, is_queued: Callable[[], bool]) -> AsyncIterator[None]:
        """In this context, `is_queued` decides."""
        self.is_queued = is_queued
        try:
            yield
        finally:
            self.is_queued = _no

    @property
    def overdue(self) -> float:
        """Seconds since the deadline; 0 before it."""
        deadline = self.deadline
        return 0.0 if deadline is None else max(deadline.elapsed - deadline.seconds, 0.0)

    def end(self, reason: JobError, tidy: float) -> None:
        """Stop the job; `run` raises `reason` once it has cleaned up, or after `tidy` seconds."""
        if self._task is not None and self._reason is None:
            self._reason = reason
            self._answer_by = time.monotonic() + tidy
            self._task.cancel()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work`, even if it hangs: it is stopped if it is not done long after its deadline,
        and abandoned if it does not stop. Raises what it was stopped with, or CancelledError if
        cancelled.
        """
        self._task = task = asyncio.ensure_future(work)
        try:
            while not task.done() and (left := self._answer_by - time.monotonic()) > 0:
                await asyncio.wait({task}, timeout=min(_LOOK_EVERY, left))
                if self.overdue > _OVERDUE_SECONDS and self.deadline is not None:
                    self.end(timeout_error(self.deadline, self.stage), _TIDY_SECONDS)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task}, timeout=_TIDY_SECONDS)
            raise
        if not task.done():
            _log.error(
                "it did not end although it was cancelled (%s); answering it anyway", self.stage
            )
        if self._reason is not None and (not task.done() or task.cancelled()):
            raise self._reason
        return task.result()


class Shutdown:
    """Limits one worker's jobs, and ends them at shutdown. For one event loop; `fault` may be
    called from any thread."""

    def __init__(self, grace: float) -> None:
        """`grace`: seconds for running jobs after the signal."""
        self._grace = grace
        self._begun = False
        self._jobs: dict[JobHandle, None] = {}

    async def bounded(
        self,
        work: Callable[[JobHandle], Coroutine[Any, Any, T]],
        computed: Callable[[], None] = lambda: None,
    ) -> T:
        """Run `work`. Raises JobError if the worker ends and it has not started, or is not done in
        time; it is then cancelled and has cleaned up."""
        if self._begun:
            raise _not_begun()
        handle = JobHandle(computed)
        self._jobs[handle] = None
        try:
            return await handle.run(work(handle))
        finally:
            del self._jobs[handle]

    def begin(self) -> None:
        """Start no more jobs, return queued ones, and the others after the grace."""
        if self._begun:
            return
        self._begun = True
        running = pluralize(len(self._jobs), "job") if self._jobs else "no jobs"
        left = f"up to {self._grace:g} s to finish" if self._jobs else "exiting"
        _log.info("SIGTERM: %s running, %s", running, left)
        for handle in list(self._jobs):
            if handle.is_queued():
                handle.end(_not_begun(), _SHUTDOWN_TIDY_SECONDS)
        asyncio.get_running_loop().call_later(self._grace, self._end_all)

    def fault(self) -> Finding | None:
        """The finding about a job that should have been answered long ago."""
        late = max((handle.overdue for handle in list(self._jobs)), default=0.0)
        if late <= _OVERDUE_SECONDS + _TIDY_SECONDS:
            return None
        return error(
            "worker.job_overdue",
            f"A job is {late:.0f} s past its deadline and has not been answered.",
            "Restart this worker, and report it with the end of its log.",
            seconds=round(late),
        )

    def _end_all(self) -> None:
        for handle in list(self._jobs):
            handle.end(_not_done(self._grace), _SHUTDOWN_TIDY_SECONDS)


def force_end_after_sigterm(seconds: float) -> None:
    """Make this process end `seconds` after SIGTERM, whatever it is doing. Call it in the main
    thread. Python's signal handlers run only when the main thread returns to the interpreter; the
    wake-up descriptor is written by the C handler, and read by a thread here.
    """
    ours, woken = socket.socketpair()
    woken.setblocking(False)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)

    def wait() -> None:
        keep = woken  # if it were closed, its descriptor could be reused
        while signal.SIGTERM not in ours.recv(64):
            pass
        time.sleep(seconds)
        _log.error("still running %g s after SIGTERM; ending the process by force", seconds)
        del keep
        os._exit(1)  # the guard then ends ComfyUI

    threading.Thread(target=wait, name="force-end", daemon=True).start()


def _no() -> bool:
    return False


def _not_begun() -> JobError:
    return JobError(
        "worker.shutting_down",
        "This worker is being stopped and has not started the job.",
        _FIX,
        begun=False,
    )


def _not_done(grace: float) -> JobError:
    return JobError(
        "worker.shutting_down",
        f"This worker is being stopped and the job was not done within {grace:g} s.",
        f"{_FIX} If this happens often, raise SHUTDOWN_GRACE, as far as the platform waits.",
        begun=True,
        grace=grace,
    )
