"""One prompt on ComfyUI: submit, watch, stop, under one Deadline."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap.comfyui import ComfyUI
from bootstrap.exits import Exit, explain_exit
from bootstrap.log import say
from bootstrap.readiness import is_answering, wait_until_ready
from handler import rejection, watch
from handler.comfy_client import ComfyClient, Refused, Unreachable, connect
from handler.deadline import Deadline
from handler.errors import JobError
from handler.preflight import KnownClasses
from handler.workflow import Workflow

# Between looks at the history when the socket brings no news.
_POLL_SECONDS = 0.5
_QUEUE_EVERY = 4
_STOP_SECONDS = 2.0
_REFUSALS = 3
# A ComfyUI that answered before and has no job: nothing keeps it from answering for so long.
_HUNG_SECONDS = 10.0
_DEAD_GRACE_SECONDS = 1.0


@dataclass(frozen=True)
class Ran:
    """A prompt that ran to its end."""

    ended: watch.Ended
    warnings: list[str]
    seconds: float


async def ensure_ready(comfyui: ComfyUI, deadline: Deadline) -> None:
    """Have a ComfyUI that answers, restarting one that ended or hangs. Raises JobError."""
    if await _answers(comfyui, deadline):
        return
    if comfyui.was_ready and comfyui.ended() is None:
        say("ComfyUI lives but does not answer; ending it")
        await asyncio.to_thread(comfyui.stop)
    started = await asyncio.to_thread(comfyui.start)
    waited = await asyncio.to_thread(wait_until_ready, comfyui, deadline.remaining)
    if waited.finding and not started and comfyui.ended() is not None:
        # It was dying when it was looked at; the next process is ours to judge.
        await asyncio.to_thread(comfyui.start)
        waited = await asyncio.to_thread(wait_until_ready, comfyui, deadline.remaining)
    if waited.finding is None:
        return
    if deadline.expired:
        raise _timeout(deadline, "ComfyUI did not answer yet")
    raise JobError.from_finding(waited.finding)


async def _answers(comfyui: ComfyUI, deadline: Deadline) -> bool:
    """Asked again for a while where it answered before: it may only be busy."""
    patience = Deadline(min(_HUNG_SECONDS, deadline.remaining))
    while comfyui.ended() is None:
        if await asyncio.to_thread(is_answering, comfyui, patience.remaining):
            return True
        if patience.expired or not comfyui.was_ready:
            break
        await asyncio.sleep(0.1)
    return False


async def run_prompt(
    comfyui: ComfyUI,
    workflow: Workflow,
    deadline: Deadline,
    models: Path,
    known: KnownClasses,
    extra_data: Mapping[str, str] | None = None,
) -> Ran:
    """Run `workflow` to its end. Raises JobError; whatever ends it, ComfyUI does not go on.

    `extra_data` may hold secrets for nodes; it is sent to ComfyUI and nowhere else.
    """
    prompt_id = str(uuid.uuid4())
    async with connect(comfyui.url) as client:
        run = _Run(comfyui, client, deadline, prompt_id, known, extra_data or {})
        try:
            return await run.to_the_end(workflow, models)
        except (asyncio.CancelledError, JobError) as problem:
            if not isinstance(problem, JobError) or problem.code in _STILL_RUNNING:
                await asyncio.shield(run.stop())
            raise


_STILL_RUNNING = ("job.timeout", "comfyui.unreachable")


class _Run:
    def __init__(
        self,
        comfyui: ComfyUI,
        client: ComfyClient,
        deadline: Deadline,
        prompt_id: str,
        known: KnownClasses,
        extra_data: Mapping[str, str],
    ) -> None:
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
        limit = Deadline(_STOP_SECONDS)
        try:
            while not limit.expired:
                running, pending = await asyncio.wait_for(self.client.queued(), limit.remaining)
                if self.prompt_id in pending:
                    await self.client.remove_pending(self.prompt_id)
                elif self.prompt_id in running:
                    await self.client.interrupt(self.prompt_id)
                else:
                    return
                await asyncio.sleep(0.1)
        except (Unreachable, Refused, asyncio.TimeoutError):
            pass
        say(f"ComfyUI did not let go of job {self.prompt_id} in {_STOP_SECONDS:g} s; ending it")
        await asyncio.to_thread(self.comfyui.stop)

    async def _submit(self, workflow: Workflow, models: Path) -> list[str]:
        try:
            self.prompt_id, left_out = await self.client.submit(
                workflow, self.client_id, self.prompt_id, self.extra_data
            )
        except Refused as refusal:
            raise await self._refused(refusal, workflow, models) from None
        except Unreachable as problem:
            raise await self._unreachable(problem) from None
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
                raise _lost()
            if self.deadline.expired:
                raise _timeout(self.deadline, "the workflow was still running")
            await self._wait_for_news()

    async def _look(self) -> watch.Ended | None:
        died = self.comfyui.ended()
        if died is not None:
            raise _died(died)
        try:
            entry = await self.client.history(self.prompt_id)
        except Unreachable as problem:
            raise await self._unreachable(problem) from None
        except Refused as refusal:
            self.refusals += 1
            if self.refusals < _REFUSALS:
                return None
            raise _unreadable(refusal) from None
        return watch.ended(entry)

    async def _is_queued(self) -> bool:
        try:
            running, pending = await self.client.queued()
        except (Unreachable, Refused):
            return True  # the next look at the history says more
        return self.prompt_id in running | pending

    async def _unreachable(self, problem: Unreachable) -> JobError:
        """A cut connection is most often a process that just died: give it time to be seen."""
        limit = Deadline(_DEAD_GRACE_SECONDS)
        while not limit.expired:
            died = self.comfyui.ended()
            if died is not None:
                return _died(died)
            await asyncio.sleep(0.05)
        return JobError(
            "comfyui.unreachable",
            f"ComfyUI lives but does not answer ({problem}).",
            "It is restarted before the next job; send this one again.",
            log=self.comfyui.log_tail(),
        )

    async def _listen(self, messages: AsyncIterator[dict[str, Any]]) -> None:
        async for message in messages:
            if watch.is_news(message, self.prompt_id):
                self.news.set()

    async def _wait_for_news(self) -> None:
        try:
            seconds = min(_POLL_SECONDS, self.deadline.remaining)
            await asyncio.wait_for(self.news.wait(), seconds)
        except asyncio.TimeoutError:
            pass


def _died(exit: Exit) -> JobError:
    cause = explain_exit(exit)
    return JobError(
        "comfyui.died",
        f"ComfyUI ended while the job ran. {cause.message}",
        f"{cause.fix} ComfyUI is being restarted for the next job.",
        cause=cause.code,
        **cause.details,
    )


def _timeout(deadline: Deadline, state: str) -> JobError:
    return JobError(
        "job.timeout",
        f"The job was stopped after {deadline.elapsed:.0f} s: {state}.",
        f"Allow more than {deadline.seconds:g} s with max_wait in the request or MAX_WAIT in the "
        "endpoint's environment, or make the workflow smaller.",
        max_wait=deadline.seconds,
    )


def _lost() -> JobError:
    return JobError(
        "job.lost",
        "ComfyUI has the job neither in its queue nor in its history.",
        "Send it again; if it stays, a custom node clears the queue or the history.",
    )


def _unreadable(refusal: Refused) -> JobError:
    return JobError(
        "comfyui.unreachable",
        f"ComfyUI cannot tell what came of the job ({refusal}).",
        "A custom node most likely returned something that is not JSON; see ComfyUI's log.",
    )
