"""Workflows run on one ComfyUI in turn: it is made fit before, and mended after what broke it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from bootstrap.comfyui import ComfyUI
from bootstrap.core.log import say
from handler.common.blocking import TimeUp
from handler.common.calls import Calls
from handler.common.deadline import Deadline
from handler.common.errors import JobError
from handler.execution import history
from handler.execution.comfy_client import KnownClasses, Refused, Unreachable, connect
from handler.execution.prompt_run import run_prompt
from handler.execution.queue import Displaced, Line, Prompt, Ran, Turn
from handler.execution.recovery import Revival
from handler.sdk.shutdown import JobHandle

_OUT_OF_MEMORY = "job.out_of_memory"
# After these no other job can be trusted to the same process.
_POISONED = {"job.cuda_failed", "comfyui.history_unreadable", "comfyui.unreachable"}
_FREEING_SECONDS = 1.0
_END_SECONDS = 10.0
# A job that another one's fault took along is run anew; it may be unlucky twice.
_MOST_RUNS = 3
# Told what ran (None: it failed) and until when it wrote, before the next job's end is looked at.
AtEnd = Callable[[Ran | None, float], None]


class Prompts:
    """Runs the workflows of one worker's jobs, however many ask at once."""

    def __init__(
        self,
        comfyui: ComfyUI,
        revival: Revival,
        models: Path,
        known: KnownClasses,
        calls: Calls,
    ) -> None:
        self._comfyui = comfyui
        self._revival = revival
        self._models = models
        self._known = known
        self._calls = calls
        self._line = Line()

    async def run(
        self,
        prompt: Prompt,
        deadline: Deadline,
        handle: JobHandle,
        at_end: AtEnd,
        retry: bool = False,
    ) -> Ran:
        """Run it to its end, and with `retry` once more when memory was short. Raises JobError.
        `at_end` is called in a thread."""
        once = partial(self._in_turn, prompt, deadline, handle, at_end)
        try:
            return await once()
        except JobError as error:
            if error.code != _OUT_OF_MEMORY or not retry:
                raise
            # ComfyUI frees when it next looks for work, and tells nobody when it has: a prompt
            # that comes first would run first.
            await asyncio.sleep(_FREEING_SECONDS)
            ran = await once()
            note = f"ran twice: {error.message} It was freed, and the second run went well"
            return replace(ran, warnings=[*ran.warnings, note])

    async def _in_turn(
        self, prompt: Prompt, deadline: Deadline, handle: JobHandle, at_end: AtEnd
    ) -> Ran:
        ran: Ran | None = None
        async with self._line.turn(deadline) as turn, handle.waiting(lambda: not turn.first):
            try:
                ran = await self._to_the_end(prompt, turn)
                if ran.ended.failure is not None:
                    raise ran.ended.failure
                return ran
            except JobError as error:
                ran = None
                if turn.first:
                    await self._mend(error)
                raise
            finally:
                if self._comfyui.ended() is not None:
                    self._line.displace_others(turn)
                    if turn.first:
                        self._revival.soon()
                if turn.ended:
                    until = turn.wrote_until
                    with suppress(TimeUp):
                        looking = self._calls.local.run(lambda: at_end(ran, until), _END_SECONDS)
                        await asyncio.shield(looking)

    async def _to_the_end(self, prompt: Prompt, turn: Turn) -> Ran:
        surely = False
        for _ in range(_MOST_RUNS):
            await self._make_ready(turn, surely)
            life = self._comfyui.starts
            try:
                ran = await run_prompt(
                    self._comfyui, prompt, turn, self._models, self._known, self._calls, surely
                )
                await turn.come()  # so that what was before it is over and mended
                displaced = turn.displaced or self._comfyui.starts != life
                if ran.ended.failure is None or not displaced:
                    return ran
            except Displaced:
                pass
            await turn.come()
            say("ComfyUI ended, or was not there, before it came to a job; the job is run anew")
            turn.queued = turn.displaced = turn.ended = False
            surely = True
        raise history.lost()

    async def _make_ready(self, turn: Turn, surely: bool) -> None:
        """Have a ComfyUI that takes the prompt. One that was ready once and lives is asked only
        when it has to be `surely` so: the prompt tells the same. Where memory is short, nobody may
        be before it."""
        fit = self._revival.seems_fit()
        if not fit:
            await turn.come()
        await turn.near()
        if turn.first and (surely or not fit):
            await self._revival.ready(turn.deadline)

    async def _mend(self, error: JobError) -> None:
        """What ComfyUI needs after a job that failed, before the next one."""
        if error.code in _POISONED:
            await self._revival.end(error.message)
        elif error.code == _OUT_OF_MEMORY:
            await self._free_gpu()

    async def _free_gpu(self) -> None:
        try:
            async with connect(self._comfyui.url) as client:
                await client.free()
        except (Unreachable, Refused):
            pass  # the next job finds out what is wrong with it
