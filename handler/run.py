"""One prompt on ComfyUI: submit, watch, stop, under one Deadline."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap.comfyui import ComfyUI
from bootstrap.log import say
from handler import failures, rejection, watch
from handler.comfy_client import ComfyClient, Refused, Unreachable, connect
from handler.deadline import Deadline
from handler.errors import JobError
from handler.headway import QUEUED, Headway, Step, position
from handler.preflight import KnownClasses
from handler.workflow import Workflow

# Between looks at the history when the socket brings no news.
_POLL_SECONDS = 0.5
_QUEUE_EVERY = 4
# A prompt that was cancelled has so long to go; the rest of two seconds is for ending ComfyUI.
_STOP_SECONDS = 1.5
_REFUSALS = 3
_DEAD_GRACE_SECONDS = 1.0
# Without an answer in so many seconds, and with less CPU time used meanwhile, nothing goes on in
# there; seen several times in a row, since a host or a volume can stall for a while. Where it
# computes, each look gets twice the time.
_LOOK_SECONDS, _IDLE_CPU_SECONDS, _IDLE_LOOKS = 3.0, 0.05, 3
_PATIENT_LOOKS, _LONGEST_LOOK = 6, 30.0
Tell = Callable[[Step], None]


@dataclass(frozen=True)
class Ran:
    """A prompt that ran to its end."""

    ended: watch.Ended
    warnings: list[str]
    seconds: float


async def run_prompt(
    comfyui: ComfyUI,
    workflow: Workflow,
    deadline: Deadline,
    models: Path,
    known: KnownClasses,
    extra_data: Mapping[str, str] | None = None,
    tell: Tell = lambda _: None,
) -> Ran:
    """Run `workflow` to its end. Raises JobError; whatever ends it, ComfyUI does not go on.

    `extra_data` may hold secrets for nodes; it is sent to ComfyUI and nowhere else. `tell` hears
    how far it is.
    """
    prompt_id = str(uuid.uuid4())
    async with connect(comfyui.url) as client:
        headway = Headway(workflow)
        run = _Run(comfyui, client, deadline, prompt_id, known, extra_data or {}, headway, tell)
        try:
            return await run.to_the_end(workflow, models)
        except (asyncio.CancelledError, JobError) as problem:
            if not isinstance(problem, JobError) or problem.code == "job.timeout":
                await asyncio.shield(run.stop())
            elif problem.code == "comfyui.unreachable":
                await asyncio.to_thread(comfyui.stop)
            raise


class _Run:
    def __init__(
        self,
        comfyui: ComfyUI,
        client: ComfyClient,
        deadline: Deadline,
        prompt_id: str,
        known: KnownClasses,
        extra_data: Mapping[str, str],
        headway: Headway,
        tell: Tell,
    ) -> None:
        self.headway = headway
        self.tell = tell
        self.known = known
        self.comfyui = comfyui
        self.client = client
        self.deadline = deadline
        self.prompt_id = prompt_id
        self.extra_data = extra_data
        self.client_id = uuid.uuid4().hex
        self.news = asyncio.Event()
        self.refusals = 0

    async def to_the_end(self, workflow: Workflow, models: Path) -> Ran:
        messages = await self.client.listen(self.client_id)
        listening = asyncio.create_task(self._listen(messages))
        try:
            start = time.monotonic()
            warnings = await self._submit(workflow, models)
            ended = await self._watch()
            return Ran(ended, warnings, time.monotonic() - start)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def stop(self) -> None:
        """See that this prompt, and no other, no longer runs; else end ComfyUI."""
        try:
            await asyncio.wait_for(self._let_go(), _STOP_SECONDS)
        except (Unreachable, Refused, asyncio.TimeoutError):
            say(f"ComfyUI did not let go of job {self.prompt_id} in {_STOP_SECONDS:g} s; ending it")
            await asyncio.to_thread(self.comfyui.stop)

    async def _let_go(self) -> None:
        """Ask until the prompt is gone; a node looks at the interrupt flag only now and then."""
        while True:
            running, pending = await self.client.queued()
            if self.prompt_id in pending:
                await self.client.remove_pending(self.prompt_id)
            elif self.prompt_id in running:
                await self.client.interrupt(self.prompt_id)
            else:
                return
            await asyncio.sleep(0.1)

    async def _submit(self, workflow: Workflow, models: Path) -> list[str]:
        try:
            self.prompt_id, left_out = await self.client.submit(
                workflow, self.client_id, self.prompt_id, self.extra_data
            )
        except Refused as refusal:
            raise await self._refused(refusal, workflow, models) from None
        except Unreachable as problem:
            raise await self._unreachable(problem) from None
        if not self.headway.started:
            self.tell(Step(QUEUED))
        return rejection.partial(left_out, workflow, models)

    async def _refused(self, refusal: Refused, workflow: Workflow, models: Path) -> JobError:
        known: list[str] = []
        if rejection.unknown_class(refusal.body) is not None:
            known = await self.known.names(self.client, self.comfyui.starts)
        return rejection.explain(refusal.body, workflow, known, models)

    async def _watch(self) -> watch.Ended:
        looks = 0
        missed = 0
        while True:
            self.news.clear()
            ended = await self._look()
            if ended is not None:
                return ended
            looks += 1
            if looks % _QUEUE_EVERY == 0:
                missed = 0 if await self._is_queued() else missed + 1
            if missed == 2:
                raise failures.lost()
            if self.deadline.expired:
                raise failures.timeout(self.deadline, "the workflow was still running")
            await self._wait_for_news()

    async def _look(self) -> watch.Ended | None:
        died = self.comfyui.ended()
        if died is not None:
            raise failures.died(died, self.headway)
        try:
            entry = await self._history()
        except Unreachable as problem:
            raise await self._unreachable(problem) from None
        except Refused as refusal:
            self.refusals += 1
            if self.refusals < _REFUSALS:
                return None
            raise failures.unreadable(refusal, self.headway, self.comfyui.log_tail()) from None
        return watch.ended(entry)

    async def _history(self) -> Any | None:
        """The prompt's entry. A ComfyUI that does not answer is frozen when it does nothing
        else either; one that computes may hold Python's lock, and has more time."""
        seconds, idle = _LOOK_SECONDS, 0
        for last in (False,) * (_PATIENT_LOOKS - 1) + (True,):
            before = self.comfyui.cpu_seconds()
            try:
                limit = min(seconds, max(self.deadline.remaining, 1.0))
                return await self.client.history(self.prompt_id, limit)
            except Unreachable:
                if self.deadline.expired:
                    return None
                after = self.comfyui.cpu_seconds()
                works = before is None or after is None or after - before > _IDLE_CPU_SECONDS
                idle = 0 if works else idle + 1
                if last or idle == _IDLE_LOOKS:
                    raise
                seconds = min(2 * seconds, _LONGEST_LOOK) if works else seconds
        raise AssertionError("the last look returns or raises")

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
            self.tell(step)

    async def _unreachable(self, problem: Unreachable) -> JobError:
        """A cut connection is most often a process that just died: give it time to be seen."""
        limit = Deadline(_DEAD_GRACE_SECONDS)
        while not limit.expired:
            died = self.comfyui.ended()
            if died is not None:
                return failures.died(died, self.headway)
            await asyncio.sleep(0.05)
        return JobError(
            "comfyui.unreachable",
            f"ComfyUI lives but does not answer ({problem}).",
            "It is restarted before the next job; send this one again.",
            **self.headway.where(),
            log=self.comfyui.log_tail(),
        )

    async def _listen(self, messages: AsyncIterator[dict[str, Any]]) -> None:
        async for message in messages:
            self._tell(self.headway.hear(message, self.prompt_id))
            if watch.is_news(message, self.prompt_id):
                self.news.set()

    async def _wait_for_news(self) -> None:
        try:
            seconds = min(_POLL_SECONDS, self.deadline.remaining)
            await asyncio.wait_for(self.news.wait(), seconds)
        except asyncio.TimeoutError:
            pass
