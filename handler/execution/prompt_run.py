"""One prompt on ComfyUI: submit, watch, stop, in its turn and under one Deadline."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from bootstrap.comfyui import ComfyUI, Exit
from bootstrap.core.log import say
from handler.common.blocking import is_set_within
from handler.common.calls import Calls, VolumeWatchdog
from handler.common.deadline import Deadline, timeout_error
from handler.common.errors import JobError
from handler.execution import history, validation
from handler.execution.comfy_client import (
    ComfyClient,
    KnownClasses,
    Refused,
    Unreachable,
    connect,
    lets_go,
    look_at_history,
)
from handler.execution.node_progress import QUEUED, Headway, Step, position
from handler.execution.queue import Displaced, Prompt, Ran, Turn

# Between looks at the history when the socket brings no news.
_POLL_SECONDS = 0.5
_QUEUE_EVERY = 4
# One that was there a job ago neither opens a socket nor takes a prompt for so long.
_DEAF_SECONDS = 10.0
_REFUSALS = 3
_DEAD_GRACE_SECONDS = 1.0
# ComfyUI's process is killed by then, wherever it hangs.
STOP_SECONDS = 20.0
# After these ComfyUI would go on with the prompt.
_GOES_ON = {"job.timeout", "volume.silent"}
# So many looks in a row, two seconds or more apart. A volume can stall for a while, and the job has
# cost something already.
_LOOKS = 8
# What ComfyUI uses between two looks for the questions it is asked.
_IDLE_CPU_SECONDS = 0.1


async def run_prompt(
    comfyui: ComfyUI,
    prompt: Prompt,
    turn: Turn,
    models: Path,
    known: KnownClasses,
    calls: Calls,
    probed: bool = True,
    watch_volume: bool = True,
) -> Ran:
    """Run it to its end. Raises JobError and Displaced; whatever ends it, ComfyUI does not go on
    with it. A ComfyUI that was not `probed` just now may turn out not to be there: that is
    Displaced too. With `watch_volume` a ComfyUI that waits for it is noticed."""
    async with connect(comfyui.url) as client:
        stall = VolumeStallDetector(comfyui, calls.volume) if watch_volume else None
        run = _Run(comfyui, client, prompt, turn, models, known, calls, stall, probed)
        try:
            ran = await run.to_the_end()
            turn.end(ran.ended.at)
            return ran
        except (asyncio.CancelledError, JobError) as problem:
            if turn.queued and turn.first:
                turn.end(time.time())
            if not isinstance(problem, JobError) or problem.code in _GOES_ON:
                await asyncio.shield(run.stop())
            elif problem.code == "comfyui.unreachable":
                await calls.control.run(comfyui.stop, STOP_SECONDS)
            raise


class _RanUnheard(Exception):
    """ComfyUI, too slow to say so in time, had the prompt and ran it to a good end."""

    def __init__(self, ended: history.Ended) -> None:
        super().__init__()
        self.ended = ended


@dataclass
class _Run:
    comfyui: ComfyUI
    client: ComfyClient
    prompt: Prompt
    turn: Turn
    models: Path
    known: KnownClasses
    calls: Calls
    stall: VolumeStallDetector | None
    is_there: bool

    def __post_init__(self) -> None:
        self.life = self.comfyui.starts
        self.ended_before = self.comfyui.prompts_ended
        self.client_id = uuid.uuid4().hex
        self.prompt_id = str(uuid.uuid4())
        self.headway = Headway(self.prompt.workflow)
        self.news = asyncio.Event()
        self.heard_end = False
        self.refusals = 0
        self.listening: asyncio.Task[None] | None = None

    async def to_the_end(self) -> Ran:
        submitted, start = time.time(), time.monotonic()
        # Its socket before the prompt, so that it hears all, but without waiting for it.
        listening = self.listening = asyncio.create_task(self._listen())
        submitting = asyncio.create_task(self._submit())
        try:
            await asyncio.wait({submitting}, timeout=None if self.is_there else _DEAF_SECONDS)
            if not (submitting.done() or self.is_there):
                submitting.cancel()
                await self._displace()
            warnings = await submitting
            ended = await self._watch()
        except _RanUnheard as ran:
            warnings, ended = [], ran.ended
        finally:
            submitting.cancel()
            listening.cancel()
            await asyncio.gather(submitting, listening, return_exceptions=True)
        seconds = ended.seconds(at_most=time.monotonic() - start)
        return Ran(ended, warnings, ended.began or submitted, seconds)

    async def stop(self) -> None:
        """See that this prompt, and no other, no longer runs. Where ComfyUI does not let go of it,
        ComfyUI is ended, unless another prompt runs there: then that one is waited for."""
        while not (self._process_is_gone() or await lets_go(self.client, self.prompt_id)):
            if self.turn.first:
                say(f"ComfyUI did not let go of job {self.prompt_id}; ending it")
                await self.calls.control.run(self.comfyui.stop, STOP_SECONDS)
                return
            await self.turn.come()

    def _process_is_gone(self) -> bool:
        return self.comfyui.starts != self.life or self.comfyui.ended() is not None

    async def _submit(self) -> list[str]:
        early = not self.turn.first
        try:
            self.prompt_id, left_out = await self.client.submit(
                self.prompt.workflow,
                self.client_id,
                self.prompt_id,
                self.prompt.extra_data,
                self.prompt.targets,
            )
        except Refused as refusal:
            raise await self._refused(refusal) from None
        except Unreachable as problem:
            if early or not self.is_there:
                await self._displace()
            raise await self._unreachable(problem) from None
        self.turn.queue()
        if not self.headway.started:
            self.prompt.tell(Step(QUEUED))
        return validation.partial(left_out, self.prompt.workflow, self.models, self.prompt.hints)

    async def _displace(self) -> NoReturn:
        """Give it up here, to be run again; unless ComfyUI had it all the same, and ran it."""
        await self.stop()
        try:
            entry = await self.client.history(self.prompt_id, _POLL_SECONDS)
        except (Unreachable, Refused):
            entry = None
        ended = history.ended(entry)
        if ended is not None and ended.failure is None:
            raise _RanUnheard(ended)
        raise Displaced

    async def _refused(self, refusal: Refused) -> JobError:
        known: list[str] = []
        if validation.unknown_class(refusal.body) is not None:
            known = await self.known.names(self.client, self.comfyui.starts)
        return validation.explain(
            refusal.body, self.prompt.workflow, known, self.models, self.prompt.hints
        )

    async def _watch(self) -> history.Ended:
        looks = 0
        missed = 0
        while True:
            await self._wait_for_news()
            self.news.clear()
            ended = await self._look()
            if ended is not None:
                return ended
            looks += 1
            if looks % _QUEUE_EVERY == 0:
                missed = 0 if await self._is_queued() else missed + 1
                if self.stall is not None and self.turn.first:
                    await self.stall.look(self.headway)
            if missed == 2 and self.turn.first:
                raise history.lost()
            if self.turn.deadline.expired:
                raise timeout_error(self.turn.deadline, "the workflow was still running")

    async def _look(self) -> history.Ended | None:
        self._raise_if_displaced()
        if not self.turn.first:
            self.ended_before = self.comfyui.prompts_ended
        died = self.comfyui.ended()
        if died is not None and self.turn.first:
            raise await self._died(died)
        try:
            entry = await look_at_history(
                self.comfyui, self.client, self.prompt_id, self.turn.deadline
            )
        except (Unreachable, Refused) as problem:
            if not self.turn.first:
                return None  # those before it find out what is the matter
            self._raise_if_displaced()
            if isinstance(problem, Unreachable):
                raise await self._unreachable(problem) from None
            self.refusals += 1
            if self.refusals < _REFUSALS:
                return None
            raise history.unreadable(problem, self.headway, self.comfyui.log_tail()) from None
        return history.ended(entry)

    def _raise_if_displaced(self) -> None:
        if self.turn.displaced or self.comfyui.starts != self.life:
            raise Displaced

    async def _is_queued(self) -> bool:
        try:
            running, pending = await self.client.queued()
        except (Unreachable, Refused):
            return True  # the next look at the history says more
        runs, ahead = position(self.prompt_id, running, pending)
        if runs or self.prompt_id in pending:
            self._tell(self.headway.queue(runs, ahead))
        return runs or self.prompt_id in pending

    def _tell(self, step: Step | None) -> None:
        if step is not None:
            self.prompt.tell(step)

    async def _unreachable(self, problem: Unreachable) -> JobError:
        """A cut connection is most often a process that just died: give it time to be seen."""
        limit = Deadline(_DEAD_GRACE_SECONDS)
        while not limit.expired:
            self._raise_if_displaced()
            died = self.comfyui.ended()
            if died is not None:
                return await self._died(died)
            await asyncio.sleep(0.05)
        return history.unreachable(problem, self.headway, self.comfyui.log_tail())

    async def _died(self, died: Exit) -> JobError:
        """What the socket still holds tells which node ran. Raises Displaced when this prompt had
        ended by then, as socket or log say, and there is one behind it that ended ComfyUI."""
        if self.listening is not None:
            await asyncio.wait({self.listening}, timeout=_DEAD_GRACE_SECONDS)
        had_ended = self.heard_end or self.comfyui.prompts_ended > self.ended_before
        if had_ended and self.turn.followed:
            raise Displaced
        return history.died(died, self.headway)

    async def _listen(self) -> None:
        messages = await self.client.listen(self.client_id)
        if messages is None:
            return
        self.is_there = True
        if self.turn.queued:
            self.news.set()  # it may have ended unheard
        async for message in messages:
            self._tell(self.headway.hear(message, self.prompt_id))
            if outputs := history.reported(message, self.prompt_id):
                self.prompt.saved(outputs)
            if history.is_news(message, self.prompt_id):
                self.heard_end = True
                self.news.set()

    async def _wait_for_news(self) -> None:
        if not self.news.is_set():
            await is_set_within(self.news, min(_POLL_SECONDS, self.turn.deadline.remaining))


class VolumeStallDetector:
    """What was seen of one prompt."""

    def __init__(self, comfyui: ComfyUI, volume: VolumeWatchdog) -> None:
        self._comfyui = comfyui
        self._volume = volume
        self._used: float | None = None
        self._seen = 0

    async def look(self, headway: Headway) -> None:
        """To be called every few seconds while the prompt runs. Raises JobError when ComfyUI has
        computed nothing for long, and the volume has not answered all the while."""
        used, before = self._comfyui.cpu_seconds(), self._used
        self._used = used
        idle = used is not None and before is not None and used - before <= _IDLE_CPU_SECONDS
        waits = idle and not await self._volume.responds()
        self._seen = self._seen + 1 if waits else 0
        if self._seen == _LOOKS:
            raise history.volume_silent(headway)
