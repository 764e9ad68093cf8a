"""Keeps ComfyUI ready for the next job: frees memory when it runs short, restarts the process if it
ended, hangs or is broken.

Restarts are limited: if starts keep failing, jobs are refused at once with the reason, and the next
attempt waits longer each time.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence

from bootstrap.comfyui import (
    ComfyUI,
    StartFault,
    is_answering,
    not_startable,
    wait_until_ready,
)
from bootstrap.config import Settings
from bootstrap.core.container_limits import MemoryGauge
from bootstrap.core.findings import Finding
from handler.common.blocking import Pool, TimeUp
from handler.common.errors import Deadline, JobError, timeout_error
from handler.execution.comfy_client import Refused, Unreachable, connect
from handler.execution.prompt_run import STOP_SECONDS

_log = logging.getLogger(__name__)

_LOOKS, _LOOK_EVERY = 20, 0.25  # seconds
# If freeing did not help, it is retried only when this many percent more are in use.
_WORTH_RETRYING = 2.0
CODES = {"comfyui.keeps_failing": "ComfyUI failed to start several times in a row"}
# How long to wait for a ComfyUI that answered before and has no job.
_HUNG_SECONDS = 10.0
# Extra time for reading an ended process's log.
_READ_LOG_SECONDS = 3.0
# Failed starts in a row; then seconds of rest, doubled after each further one.
_FREE_FAILURES = 3
_FIRST_REST, _LONGEST_REST = 30.0, 300.0


class MemoryRelief:
    """Makes ComfyUI free memory at MEMORY_FREE_AT percent, and restart at MEMORY_RESTART_AT."""

    def __init__(self, settings: Settings, percent: Callable[[], float | None]) -> None:
        """`percent` of memory is in use; None without a limit."""
        self._free_at = settings.memory_free_at
        self._restart_at = settings.memory_restart_at
        self._read = percent
        self._stuck_at = 0.0

    def is_due(self) -> bool:
        """Is memory so short that some must be freed between jobs?"""
        used = self._percent()
        if used is None or used < min(self._free_at, self._restart_at):
            self._stuck_at = 0.0
            return False
        return used >= self._restart_at or used >= self._stuck_at + _WORTH_RETRYING

    async def ensure_memory(self, url: str) -> bool:
        """Free memory if it is short. False if only a restart of ComfyUI helps. Not while it
        works."""
        if not self.is_due():
            return True
        try:
            async with connect(url) as client:
                running, pending = await client.queued()
                if running or pending:
                    return True
                used = self._percent() or 0.0
                _log.warning(
                    "%.0f %% of the container's memory is in use; asking ComfyUI to free some", used
                )
                await client.free()
        except (Unreachable, Refused) as problem:
            _log.warning("ComfyUI could not be asked to free memory: %s", problem)
        left = await self._after_freeing()
        self._stuck_at = left if left >= self._free_at else 0.0
        if left < self._restart_at:
            return True
        _log.warning("%.0f %% of the container's memory is still in use; restarting ComfyUI", left)
        return False

    async def _after_freeing(self) -> float:
        used = 0.0
        for _ in range(_LOOKS):
            await asyncio.sleep(_LOOK_EVERY)
            used = self._percent() or 0.0
            if used < self._free_at:
                break
        return used

    def _percent(self) -> float | None:
        try:
            return self._read()
        except (OSError, ValueError):
            return None  # unknown: do nothing


def memory_gauge() -> Callable[[], float | None]:
    """How many percent of the container's memory are in use; None without a limit."""
    try:
        return MemoryGauge().percent
    except (OSError, ValueError):
        return lambda: None


class ComfyRecovery:
    """Keeps one ComfyUI ready for jobs."""

    def __init__(
        self,
        comfyui: ComfyUI,
        relief: MemoryRelief,
        control: Pool,
        faults: Sequence[Finding] = (),
    ) -> None:
        """`faults` are the boot's; a start that failed there counts."""
        self._comfyui = comfyui
        self._relief = relief
        self._control = control
        failed = (fault for fault in faults if isinstance(fault, StartFault))
        self._last: Finding | None = next(failed, None)
        self._failures = 0 if self._last is None else 1
        self._rest_until = 0.0 if self._last is None else time.monotonic() + _FIRST_REST

    async def ensure_ready(self, deadline: Deadline) -> None:
        """Provide a ComfyUI that answers and has memory. Raises JobError."""
        if await self._answers(deadline):
            if await self._relief.ensure_memory(self._comfyui.url):
                return
            await self._control.run(self._comfyui.stop, STOP_SECONDS)
        elif self._comfyui.was_ready and self._comfyui.ended() is None:
            _log.error("ComfyUI is running but does not answer; killing it")
            await self._control.run(self._comfyui.stop, STOP_SECONDS)
        await self._restart(deadline)

    def can_retry(self, faults: Sequence[Finding]) -> bool:
        """Can a job run in spite of the boot's faults? If ComfyUI only failed to start, it may
        start now: the volume was fixed, or the cause was temporary."""
        return all(isinstance(fault, StartFault) for fault in faults) and not self.resting

    @property
    def resting(self) -> bool:
        """Must the next start wait, because too many have failed?"""
        return time.monotonic() < self._rest_until

    def is_healthy(self) -> bool:
        """Is it alive, has it been ready, and is there memory? If not, `ensure_ready` is needed
        once it has no work."""
        alive = self._comfyui.was_ready and self._comfyui.ended() is None
        return alive and not self._relief.is_due()

    async def end(self, why: str) -> None:
        """Stop a ComfyUI that must not get another job."""
        _log.warning("%s; restarting ComfyUI", why)
        await self._control.run(self._comfyui.stop, STOP_SECONDS)

    def restart_in_background(self) -> None:
        """Restart ComfyUI if it ended, while the reply is sent; the next job waits for it."""
        if self._comfyui.ended() is not None and not self.resting:
            threading.Thread(target=self._start, name="comfyui-restart", daemon=True).start()

    async def _answers(self, deadline: Deadline) -> bool:
        """Retried for a while if it answered before, as it may only be busy."""
        limit = Deadline(min(_HUNG_SECONDS, deadline.remaining))
        while self._comfyui.ended() is None:
            if await self._is_answering(limit.remaining):
                return True
            if limit.expired or not self._comfyui.was_ready:
                break
            await asyncio.sleep(0.1)
        return False

    async def _is_answering(self, seconds: float) -> bool:
        try:
            return await self._control.run(
                lambda: is_answering(self._comfyui, seconds), seconds + _READ_LOG_SECONDS
            )
        except TimeUp:
            return False

    async def _restart(self, deadline: Deadline) -> None:
        if self._comfyui.ended() is not None and self.resting and self._last is not None:
            raise self._resting_error(self._last)
        started, fault = await self._start_and_wait(deadline)
        port_taken = isinstance(fault, StartFault) and fault.port_taken
        if fault and (port_taken or not started) and self._comfyui.ended() is not None:
            # It was dying when it was checked, or the port was taken while it started: judge the
            # next process, which gets another port.
            _, fault = await self._start_and_wait(deadline)
        if fault is None:
            self._failures = 0
            return
        if deadline.expired and self._comfyui.ended() is None:
            raise timeout_error(deadline, "ComfyUI did not answer yet", "send it again")
        raise self._failed(fault)

    def _start(self) -> bool | Finding:
        """Was it started now? A finding if the system refuses."""
        try:
            return self._comfyui.start()
        except OSError as problem:
            _log.error("ComfyUI could not be restarted: %s", problem)
            return not_startable(problem)

    async def _start_and_wait(self, deadline: Deadline) -> tuple[bool, Finding | None]:
        """Was it started now, and the fault if it failed (None: it is ready)?"""
        started = await self._control.run(self._start, STOP_SECONDS)
        if isinstance(started, Finding):
            return True, started
        seconds = deadline.remaining
        waited = await self._control.run(
            lambda: wait_until_ready(self._comfyui, seconds), seconds + _READ_LOG_SECONDS
        )
        return started, waited.finding

    def _failed(self, fault: Finding) -> JobError:
        """Count a failed start; returns the error for its job."""
        self._failures += 1
        self._last = fault
        further = self._failures - _FREE_FAILURES
        if further < 0:
            return JobError.from_finding(fault)
        rest = min(_FIRST_REST * 2**further, _LONGEST_REST)
        self._rest_until = time.monotonic() + rest
        _log.error(
            "ComfyUI failed to start %d times in a row; next attempt in %g s", self._failures, rest
        )
        return self._resting_error(fault)

    def _resting_error(self, last: Finding) -> JobError:
        rest = max(self._rest_until - time.monotonic(), 0.0)
        return JobError(
            "comfyui.keeps_failing",
            f"ComfyUI failed to start {self._failures} times in a row; the next attempt is in "
            f"{rest:.0f} s. The last time: {last.message}",
            last.fix,
            cause=last.code,
            failures=self._failures,
            retry_in=round(rest, 1),
            **last.details,
        )
