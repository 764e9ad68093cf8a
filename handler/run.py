"""One prompt on ComfyUI: submit, watch, stop, in its turn and under one Deadline."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap.comfyui import ComfyUI
from bootstrap.exits import Exit
from bootstrap.log import say
from handler import failures, rejection, watch
from handler.comfy_client import ComfyClient, Refused, Unreachable, connect
from handler.deadline import Deadline
from handler.errors import JobError
from handler.headway import QUEUED, Headway, Step, position
from handler.line import Displaced, Turn
from handler.patience import look_at_history
from handler.preflight import KnownClasses
from handler.stopping import lets_go
from handler.workflow import Workflow

# Between looks at the history when the socket brings no news.
_POLL_SECONDS = 0.5
_QUEUE_EVERY = 4
_PROBE_SECONDS, _SOCKET_SECONDS = 2.0, 5.0
_REFUSALS = 3
_DEAD_GRACE_SECONDS = 1.0
Tell = Callable[[Step], None]


class NoSocket(Exception):
    """ComfyUI lives, but is not there for a socket."""


@dataclass(frozen=True)
class Ran:
    """A prompt that ran to its end; `began` (seconds since 1970) is not later than ComfyUI began
    with it, `seconds` what it took."""

    ended: watch.Ended
    warnings: list[str]
    began: float
    seconds: float


async def run_prompt(
    comfyui: ComfyUI,
    workflow: Workflow,
    turn: Turn,
    models: Path,
    known: KnownClasses,
    extra_data: Mapping[str, str] | None = None,
    tell: Tell = lambda _: None,
    probed: bool = True,
) -> Ran:
    """Run `workflow` to its end. Raises JobError and Displaced; whatever ends it, ComfyUI does not
    go on with it. Raises NoSocket before anything has happened when ComfyUI was not `probed` just
    now and does not take a socket either.

    `extra_data` may hold secrets for nodes; it is sent to ComfyUI and nowhere else. `tell` hears
    how far it is.
    """
    async with connect(comfyui.url) as client:
        headway = Headway(workflow)
        run = _Run(comfyui, client, turn, known, extra_data or {}, headway, tell)
        try:
            ran = await run.to_the_end(workflow, models, probed)
            turn.end(ran.ended.at)
            return ran
        except (asyncio.CancelledError, JobError) as problem:
            if turn.queued and turn.first:
                turn.end(time.time())
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
        turn: Turn,
        known: KnownClasses,
        extra_data: Mapping[str, str],
        headway: Headway,
        tell: Tell,
    ) -> None:
        self.headway = headway
        self.tell = tell
        self.known = known
        self.comfyui = comfyui
        self.life = comfyui.starts
        self.client = client
        self.turn = turn
        self.prompt_id = str(uuid.uuid4())
        self.extra_data = extra_data
        self.client_id = uuid.uuid4().hex
        self.news = asyncio.Event()
        self.heard_end = False
        self.ended_before = comfyui.prompts_ended
        self.refusals = 0
        self.listening: asyncio.Task[None] | None = None

    async def to_the_end(self, workflow: Workflow, models: Path, probed: bool) -> Ran:
        seconds = _SOCKET_SECONDS if probed else _PROBE_SECONDS
        messages = await self.client.listen(self.client_id, seconds)
        if messages is None and not probed:
            raise NoSocket
        listening = self.listening = asyncio.create_task(self._listen(messages))
        try:
            submitted, start = time.time(), time.monotonic()
            warnings = await self._submit(workflow, models)
            ended = await self._watch()
            seconds = ended.seconds(at_most=time.monotonic() - start)
            return Ran(ended, warnings, ended.began or submitted, seconds)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def stop(self) -> None:
        """See that this prompt, and no other, no longer runs. Where ComfyUI does not let go of it,
        ComfyUI is ended, unless another prompt runs there: then that one is waited for."""
        while not (self._process_is_gone() or await lets_go(self.client, self.prompt_id)):
            if self.turn.first:
                say(f"ComfyUI did not let go of job {self.prompt_id}; ending it")
                await asyncio.to_thread(self.comfyui.stop)
                return
            await self.turn.come()

    def _process_is_gone(self) -> bool:
        return self.comfyui.starts != self.life or self.comfyui.ended() is not None

    async def _submit(self, workflow: Workflow, models: Path) -> list[str]:
        early = not self.turn.first
        try:
            self.prompt_id, left_out = await self.client.submit(
                workflow, self.client_id, self.prompt_id, self.extra_data
            )
        except Refused as refusal:
            raise await self._refused(refusal, workflow, models) from None
        except Unreachable as problem:
            if early:
                await self.stop()  # it may have it all the same
                raise Displaced from None
            raise await self._unreachable(problem) from None
        self.turn.queue()
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
            await self._wait_for_news()
            self.news.clear()
            ended = await self._look()
            if ended is not None:
                return ended
            looks += 1
            if looks % _QUEUE_EVERY == 0:
                missed = 0 if await self._is_queued() else missed + 1
            if missed == 2 and self.turn.first:
                raise failures.lost()
            if self.turn.deadline.expired:
                raise failures.timeout(self.turn.deadline, "the workflow was still running")

    async def _look(self) -> watch.Ended | None:
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
            raise failures.unreadable(problem, self.headway, self.comfyui.log_tail()) from None
        return watch.ended(entry)

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
            self.tell(step)

    async def _unreachable(self, problem: Unreachable) -> JobError:
        """A cut connection is most often a process that just died: give it time to be seen."""
        limit = Deadline(_DEAD_GRACE_SECONDS)
        while not limit.expired:
            self._raise_if_displaced()
            died = self.comfyui.ended()
            if died is not None:
                return await self._died(died)
            await asyncio.sleep(0.05)
        return failures.unreachable(problem, self.headway, self.comfyui.log_tail())

    async def _died(self, died: Exit) -> JobError:
        """What the socket still holds tells which node ran. Raises Displaced when this prompt had
        ended by then, as socket or log say, and there is one behind it that ended ComfyUI."""
        if self.listening is not None:
            await asyncio.wait({self.listening}, timeout=_DEAD_GRACE_SECONDS)
        had_ended = self.heard_end or self.comfyui.prompts_ended > self.ended_before
        if had_ended and self.turn.followed:
            raise Displaced
        return failures.died(died, self.headway)

    async def _listen(self, messages: AsyncIterator[dict[str, Any]] | None) -> None:
        if messages is None:
            return
        async for message in messages:
            self._tell(self.headway.hear(message, self.prompt_id))
            if watch.is_news(message, self.prompt_id):
                self.heard_end = True
                self.news.set()

    async def _wait_for_news(self) -> None:
        try:
            seconds = min(_POLL_SECONDS, self.turn.deadline.remaining)
            await asyncio.wait_for(self.news.wait(), seconds)
        except asyncio.TimeoutError:
            pass
