"""One prompt on ComfyUI: submit, watch, stop, in its turn and under one Deadline."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from bootstrap.comfyui import ComfyUI, Exit
from handler.common.blocking import Calls, is_set_within
from handler.common.errors import (
    ComfyUnreachable,
    Deadline,
    JobError,
    JobTimeout,
    VolumeSilentError,
    timeout_error,
)
from handler.execution import history, refusal
from handler.execution.comfy_client import (
    ComfyClient,
    KnownClasses,
    Refused,
    Unreachable,
    VolumeStallDetector,
    connect,
    fetch_history,
    remove_prompts,
)
from handler.execution.node_progress import (
    QUEUED,
    NodeProgress,
    ProgressUpdate,
    announces_end,
    node_outputs,
    position,
)
from handler.execution.queue import EntryState, Prompt, PromptLost, PromptResult, QueueEntry

_log = logging.getLogger(__name__)

# Between polls of the history when the socket brings no news.
_POLL_SECONDS = 0.5
_QUEUE_EVERY = 4
# How long a ComfyUI that answered the last job may refuse socket and prompt.
_UNRESPONSIVE_SECONDS = 10.0
_REFUSALS = 3
# So many lists of allowed values are looked up for one error.
_MOST_LISTS = 5
_WARNING_SECONDS = 2.0
_DEAD_GRACE_SECONDS = 1.0
# By then ComfyUI's process is killed, wherever it hangs.
STOP_SECONDS = 20.0
# After these ComfyUI would continue with the prompt.
_GOES_ON = (JobTimeout, VolumeSilentError)


async def run_prompt(
    comfyui: ComfyUI,
    prompt: Prompt,
    entry: QueueEntry,
    models: Path,
    known: KnownClasses,
    calls: Calls,
    probed: bool = True,
    watch_volume: bool = True,
) -> PromptResult:
    """Run it to its end. Raises JobError and PromptLost; in any case ComfyUI does not continue with
    it. A ComfyUI that was not just `probed` may be gone, which also raises PromptLost. With
    `watch_volume`, a ComfyUI that waits for the volume is detected."""
    async with connect(comfyui.url) as client:
        stall = VolumeStallDetector(comfyui.cpu_seconds, calls.volume) if watch_volume else None
        run = _Run(comfyui, client, prompt, entry, models, known, calls, stall, probed)
        try:
            result = await run.to_end()
            entry.ended(result.history.ended_at)
            return result
        except PromptLost:
            raise
        except (asyncio.CancelledError, Exception) as problem:
            if entry.is_head and entry.state is not EntryState.WAITING:
                entry.ended(time.time())
            if not isinstance(problem, JobError) or isinstance(problem, _GOES_ON):
                await asyncio.shield(run.stop())
            elif isinstance(problem, ComfyUnreachable):
                await calls.control.run(comfyui.stop, STOP_SECONDS)
            raise


class _EndedUnnoticed(Exception):
    """ComfyUI had accepted the prompt, although it answered too late, and ran it successfully."""

    def __init__(self, ended: history.HistoryEntry) -> None:
        super().__init__()
        self.ended = ended


@dataclass
class _Run:
    comfyui: ComfyUI
    client: ComfyClient
    prompt: Prompt
    entry: QueueEntry
    models: Path
    known: KnownClasses
    calls: Calls
    stall: VolumeStallDetector | None
    reachable: bool

    def __post_init__(self) -> None:
        self.generation = self.comfyui.generation
        self.ended_before = self.comfyui.prompts_ended
        self.client_id = uuid.uuid4().hex
        self.prompt_id = str(uuid.uuid4())
        self.progress = NodeProgress(self.prompt.workflow)
        self.news = asyncio.Event()
        self.end_announced = False
        self.refusals = 0
        self.listening: asyncio.Task[None] | None = None
        self.behind: list[str] = []  # queued by its nodes

    async def to_end(self) -> PromptResult:
        submitted, start = time.time(), time.monotonic()
        # Open the socket before the prompt, so that no message is missed, but without waiting for
        # it.
        listening = self.listening = asyncio.create_task(self._listen())
        submitting = asyncio.create_task(self._submit())
        try:
            await asyncio.wait(
                {submitting}, timeout=None if self.reachable else _UNRESPONSIVE_SECONDS
            )
            if not (submitting.done() or self.reachable):
                submitting.cancel()
                await self._give_up()
            left_out = await submitting
            ended = await self._watch_all()
            warnings = await self._left_out_warnings(left_out)
        except _EndedUnnoticed as ran:
            warnings, ended = [], ran.ended
        finally:
            submitting.cancel()
            listening.cancel()
            _, problem = await asyncio.gather(submitting, listening, return_exceptions=True)
            if isinstance(problem, Exception):
                _log.error("progress was no longer reported", exc_info=problem)
        seconds = ended.seconds(at_most=time.monotonic() - start)
        warnings += ended.warnings
        return PromptResult(ended, warnings, ended.started_at or submitted, seconds)

    async def stop(self) -> None:
        """Stop this prompt and those that its nodes queued, and no other. If ComfyUI does not stop
        them, kill it, but not while another job's prompt runs there: wait for that one first."""
        ours = [*self.behind, self.prompt_id]
        while not (self._process_is_gone() or await remove_prompts(self.client, ours)):
            if self.entry.is_head:
                _log.warning("ComfyUI did not stop the prompt; killing it")
                await self.calls.control.run(self.comfyui.stop, STOP_SECONDS)
                return
            await self.entry.wait_until_head()

    def _process_is_gone(self) -> bool:
        return self.comfyui.generation != self.generation or self.comfyui.ended() is not None

    async def _submit(self) -> Mapping[str, Any]:
        """The errors of the nodes that ComfyUI leaves out. Raises the reason if it takes none."""
        early = not self.entry.is_head
        try:
            self.prompt_id, left_out = await self.client.submit(
                self.prompt.workflow,
                self.client_id,
                self.prompt_id,
                self.prompt.extra_data,
                self.prompt.targets,
                self.prompt.rerun,
            )
        except Refused as answer:
            raise await self._refused(answer) from None
        except Unreachable as problem:
            if early or not self.reachable:
                await self._give_up()
            raise await self._unreachable(problem) from None
        self.entry.submitted()
        if not self.progress.started:
            self.prompt.on_progress(ProgressUpdate(QUEUED))
        return left_out

    async def _left_out_warnings(self, left_out: Mapping[str, Any]) -> list[str]:
        if not left_out:
            return []
        filling = self._fill_in_choices({"node_errors": left_out})
        with suppress(asyncio.TimeoutError):  # the job is done, and must not wait for a warning
            await asyncio.wait_for(filling, _WARNING_SECONDS)
        return refusal.left_out_warnings(
            left_out, self.prompt.workflow, self.models, self.prompt.hints
        )

    async def _give_up(self) -> NoReturn:
        """Give up this attempt, unless ComfyUI had accepted the prompt and ran it."""
        await self.stop()
        try:
            entry = await self.client.history(self.prompt_id, _POLL_SECONDS)
        except (Unreachable, Refused):
            entry = None
        ended = history.read_entry(entry)
        if ended is not None and ended.failure is None:
            raise _EndedUnnoticed(ended)
        raise PromptLost

    async def _refused(self, answer: Refused) -> JobError:
        known: list[str] = []
        if refusal.unknown_class(answer.body) is not None:
            known = await self.known.names(self.client, self.comfyui.generation)
        await self._fill_in_choices(answer.body)
        return refusal.explain(
            answer.body, self.prompt.workflow, known, self.models, self.prompt.hints
        )

    async def _fill_in_choices(self, body: Any) -> None:
        """Put the lists into it that are too long for ComfyUI to report."""
        configs: dict[str, dict[str, Any]] = {}
        for class_type, extra in islice(refusal.without_choices(body), _MOST_LISTS):
            if class_type not in configs:
                configs[class_type] = await self.client.input_configs(class_type)
            extra["input_config"] = configs[class_type].get(str(extra.get("input_name")))

    async def _watch_all(self) -> history.HistoryEntry:
        """Watch the prompt to its end, and those that its nodes queue: they run right after it, and
        their outputs belong to this job."""
        ended = await self._watch()
        self.behind = list(ended.queued)
        if ended.failure is not None and self.behind:
            await self.stop()
            return ended
        while self.behind:
            self.prompt_id, self.end_announced = self.behind.pop(0), False
            follower = await self._watch()
            self.behind += follower.queued
            ended = ended.followed_by(follower, self.prompt_id)
        return ended

    async def _watch(self) -> history.HistoryEntry:
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
                watched = self.stall if self.entry.is_head else None
                if watched is not None and await watched.is_stalled():
                    raise history.volume_silent_error(self.progress)
            if missed == 2 and self.entry.is_head:
                raise history.lost_error()
            if self.entry.deadline.expired:
                raise timeout_error(self.entry.deadline, "the workflow was still running")

    async def _look(self) -> history.HistoryEntry | None:
        self._raise_if_lost()
        if not self.entry.is_head:
            self.ended_before = self.comfyui.prompts_ended
        died = self.comfyui.ended()
        if died is not None and self.entry.is_head:
            raise await self._died(died)
        try:
            found = await fetch_history(
                self.comfyui, self.client, self.prompt_id, self.entry.deadline
            )
        except (Unreachable, Refused) as problem:
            if not self.entry.is_head:
                return None  # those before it will find out what is wrong
            self._raise_if_lost()
            if isinstance(problem, Unreachable):
                raise await self._unreachable(problem) from None
            self.refusals += 1
            if self.refusals < _REFUSALS:
                return None
            raise history.unreadable_error(
                problem, self.progress, self.comfyui.log_tail()
            ) from None
        return history.read_entry(found)

    def _raise_if_lost(self) -> None:
        if self.entry.state is EntryState.LOST or self.comfyui.generation != self.generation:
            raise PromptLost

    async def _is_queued(self) -> bool:
        try:
            running, pending = await self.client.queued()
        except (Unreachable, Refused):
            return True  # the next look at the history says more
        runs, ahead = position(self.prompt_id, running, pending)
        if runs or self.prompt_id in pending:
            self._report(self.progress.on_queue(runs, ahead))
        return runs or self.prompt_id in pending

    def _report(self, update: ProgressUpdate | None) -> None:
        if update is not None:
            self.prompt.on_progress(update)

    async def _unreachable(self, problem: Unreachable) -> JobError:
        """A broken connection usually means that the process just died: wait until that shows."""
        limit = Deadline(_DEAD_GRACE_SECONDS)
        while not limit.expired:
            self._raise_if_lost()
            died = self.comfyui.ended()
            if died is not None:
                return await self._died(died)
            await asyncio.sleep(0.05)
        return history.unreachable_error(problem, self.progress, self.comfyui.log_tail())

    async def _died(self, died: Exit) -> JobError:
        """The socket's remaining messages show which node ran. Raises PromptLost if, by socket or
        log, this prompt had ended before and one behind it took ComfyUI down."""
        if self.listening is not None:
            await asyncio.wait({self.listening}, timeout=_DEAD_GRACE_SECONDS)
        had_ended = self.end_announced or self.comfyui.prompts_ended > self.ended_before
        if had_ended and self.entry.has_successor:
            raise PromptLost
        return history.died_error(died, self.progress)

    async def _listen(self) -> None:
        messages = await self.client.listen(self.client_id)
        if messages is None:
            return
        self.reachable = True
        if self.entry.state is not EntryState.WAITING:
            self.news.set()  # it may have ended unnoticed
        async for message in messages:
            if isinstance(message, bytes):
                self.prompt.on_binary(message)
                continue
            self._report(self.progress.on_message(message, self.prompt_id))
            if outputs := node_outputs(message, self.prompt_id):
                self.prompt.on_output(outputs)
            if announces_end(message, self.prompt_id):
                self.end_announced = True
                self.news.set()

    async def _wait_for_news(self) -> None:
        if not self.news.is_set():
            await is_set_within(self.news, min(_POLL_SECONDS, self.entry.deadline.remaining))
