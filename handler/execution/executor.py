"""Runs the workflows of all jobs on one ComfyUI in turn, and restarts it when it is broken."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from bootstrap.comfyui import ComfyUI
from handler.common.blocking import Calls, TimeUp
from handler.common.errors import ComfyBroken, Deadline, JobError, OutOfMemory
from handler.execution.comfy_client import KnownClasses, Refused, Unreachable, connect
from handler.execution.history import lost_error
from handler.execution.prompt_run import run_prompt
from handler.execution.queue import (
    EntryState,
    Prompt,
    PromptLost,
    PromptQueue,
    PromptResult,
    QueueEntry,
)
from handler.execution.restarts import ComfyRecovery
from handler.sdk.shutdown import JobHandle

_log = logging.getLogger(__name__)

_FREEING_SECONDS = 1.0
_END_SECONDS = 10.0
# Retries a job lost to another job's crash, at most twice.
_MAX_ATTEMPTS = 3
# Called with the result (None: failed) and the time until which files may be this prompt's, before
# the next job's end is handled.
AtEnd = Callable[[PromptResult | None, float], None]


class PromptExecutor:
    """Runs the workflows of one worker's jobs; any number may ask at once."""

    def __init__(
        self,
        comfyui: ComfyUI,
        recovery: ComfyRecovery,
        models: Path,
        known: KnownClasses,
        calls: Calls,
    ) -> None:
        self._comfyui = comfyui
        self._recovery = recovery
        self._models = models
        self._known = known
        self._calls = calls
        self._queue = PromptQueue()

    async def run(
        self,
        prompt: Prompt,
        deadline: Deadline,
        handle: JobHandle,
        at_end: AtEnd,
        retry: bool = False,
    ) -> PromptResult:
        """Run it to its end, with `retry` once more if memory was short. Raises JobError. `at_end`
        is called in a thread."""
        once = partial(self._run_in_turn, prompt, deadline, handle, at_end)
        try:
            return await once()
        except OutOfMemory as error:
            if not retry:
                raise
            # ComfyUI frees memory when it next looks for work, and does not report it: a prompt
            # submitted before would run first.
            await asyncio.sleep(_FREEING_SECONDS)
            result = await once()
            note = f"ran twice: {error.message} It was freed, and the second run succeeded"
            return replace(result, warnings=[*result.warnings, note])

    async def _run_in_turn(
        self, prompt: Prompt, deadline: Deadline, handle: JobHandle, at_end: AtEnd
    ) -> PromptResult:
        result: PromptResult | None = None
        async with self._queue.enter(deadline) as entry, handle.waiting(lambda: not entry.is_head):
            try:
                result = await self._run_to_end(prompt, entry)
                if result.history.failure is not None:
                    raise result.history.failure
                return result
            except JobError as error:
                result = None
                if entry.is_head:
                    await self._clean_up_after(error)
                raise
            finally:
                if self._comfyui.ended() is not None:
                    self._queue.mark_lost(entry)
                    if entry.is_head:
                        self._recovery.restart_in_background()
                cutoff = entry.output_cutoff
                if cutoff is not None:
                    with suppress(TimeUp):
                        ending = self._calls.local.run(
                            partial(at_end, result, cutoff), _END_SECONDS
                        )
                        await asyncio.shield(ending)

    async def _run_to_end(self, prompt: Prompt, entry: QueueEntry) -> PromptResult:
        probe = False
        for _ in range(_MAX_ATTEMPTS):
            await self._prepare(entry, probe)
            generation = self._comfyui.generation
            try:
                result = await run_prompt(
                    self._comfyui, prompt, entry, self._models, self._known, self._calls, probe
                )
                await entry.wait_until_head()  # so that earlier ones are cleaned up
                lost = entry.state is EntryState.LOST or self._comfyui.generation != generation
                if result.history.failure is None or not lost:
                    return result
            except PromptLost:
                pass
            await entry.wait_until_head()
            _log.warning("ComfyUI ended, or was not there, before it came to the job; retrying it")
            entry.retry()
            probe = True
        raise lost_error()

    async def _prepare(self, entry: QueueEntry, probe: bool) -> None:
        """Provide a ComfyUI that accepts the prompt. Without `probe`, one that has been ready and
        is alive is not asked: the prompt will show it. If memory is short, it waits until no job is
        before it."""
        healthy = self._recovery.is_healthy()
        if not healthy:
            await entry.wait_until_head()
        await entry.wait_until_next()
        if entry.is_head and (probe or not healthy):
            await self._recovery.ensure_ready(entry.deadline)

    async def _clean_up_after(self, error: JobError) -> None:
        """Clean up ComfyUI after a failed job, before the next one."""
        if isinstance(error, ComfyBroken):
            await self._recovery.end(error.message)
        elif isinstance(error, OutOfMemory):
            await self._free_gpu()

    async def _free_gpu(self) -> None:
        try:
            async with connect(self._comfyui.url) as client:
                await client.free()
        except (Unreachable, Refused):
            pass  # the next job will find out what is wrong
