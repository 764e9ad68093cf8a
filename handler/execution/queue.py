"""Prompts, and one ComfyUI's queue of them in the order of their jobs.

ComfyUI runs one prompt at a time. The next job's prompt is already in its queue, so that it never
waits for work; but only the head of our queue judges, stops or restarts ComfyUI. What happens to
ComfyUI is attributed to the head; the prompts behind it are lost without being at fault.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from handler.common.errors import Deadline, JobError
from handler.execution.history import HistoryEntry
from handler.execution.node_progress import ProgressUpdate
from handler.request.workflow import Workflow

# File times have the resolution of the kernel's tick.
_FILE_CLOCK_LAG = 0.011
_UNKNOWN = 0.0


@dataclass(frozen=True)
class Prompt:
    """What ComfyUI must run: only what `targets` need, if there are any, and the nodes `rerun` even
    if their results are cached. `extra_data` may contain secrets for nodes; it is sent to ComfyUI
    and nowhere else. `hints` explain faults that ComfyUI may find. `on_progress` is called with
    progress, `on_output` with each finished node's outputs in the history's form, `on_binary` with
    binary socket messages: previews."""

    workflow: Workflow
    extra_data: Mapping[str, Any] = field(default_factory=dict, repr=False)
    targets: tuple[str, ...] | None = None
    rerun: tuple[str, ...] = ()
    hints: Sequence[JobError] = ()
    on_progress: Callable[[ProgressUpdate], None] = lambda _: None
    on_output: Callable[[Mapping[str, Any]], None] = lambda _: None
    on_binary: Callable[[bytes], None] = lambda _: None


@dataclass(frozen=True)
class PromptResult:
    """A finished prompt: its history entry, warnings, and duration in `seconds`. ComfyUI started it
    at `started_at` (seconds since 1970) or later."""

    history: HistoryEntry
    warnings: list[str]
    started_at: float
    seconds: float


class PromptLost(Exception):
    """ComfyUI ended because of another prompt, or was not there: this one must run again."""


class EntryState(Enum):
    """The state of a prompt. RUNNING: ComfyUI has it and it is the head of our queue; QUEUED:
    ComfyUI has it, behind others; LOST: ComfyUI ended because of a prompt before it."""

    WAITING, QUEUED, RUNNING, ENDED, LOST = range(5)


_TRANSITIONS = {
    # To ENDED: ComfyUI had it, although its answer to the submission was lost.
    EntryState.WAITING: {
        EntryState.WAITING,
        EntryState.QUEUED,
        EntryState.RUNNING,
        EntryState.ENDED,
    },
    EntryState.QUEUED: {EntryState.WAITING, EntryState.RUNNING, EntryState.ENDED, EntryState.LOST},
    EntryState.RUNNING: {EntryState.WAITING, EntryState.ENDED},
    EntryState.ENDED: {EntryState.WAITING, EntryState.LOST},
    EntryState.LOST: {EntryState.WAITING, EntryState.LOST},
}


class QueueEntry:
    """One prompt in the queue."""

    def __init__(self, queue: PromptQueue, deadline: Deadline) -> None:
        self.deadline = deadline
        self._queue = queue
        self._state = EntryState.WAITING
        self._ended_at: float | None = None
        self._changed = asyncio.Event()

    @property
    def state(self) -> EntryState:
        """The prompt's state."""
        return self._state

    @property
    def is_head(self) -> bool:
        """Is it the first in the queue?"""
        return self._queue.predecessor(self) is None

    @property
    def has_successor(self) -> bool:
        """Does, or did, ComfyUI have a prompt behind this one?"""
        return any(other.state is not EntryState.WAITING for other in self._queue.behind(self))

    def submitted(self) -> None:
        """ComfyUI has the prompt; the next one may follow."""
        self._become(EntryState.RUNNING if self.is_head else EntryState.QUEUED)

    def ended(self, at: float | None) -> None:
        """It ended at `at` (seconds since 1970; None if ComfyUI does not say). One that was lost
        stays so: it was not its own fault."""
        self._ended_at = _UNKNOWN if at is None else at
        if self._state is not EntryState.LOST:
            self._become(EntryState.ENDED)

    def lost(self) -> None:
        """ComfyUI ended because of a prompt before this one."""
        self._become(EntryState.LOST)

    def at_head(self) -> None:
        """The prompts before it are gone."""
        if self._state is EntryState.QUEUED:
            self._become(EntryState.RUNNING)

    def retry(self) -> None:
        """It must be submitted again; files of an earlier attempt are not its output."""
        self._ended_at = None
        self._become(EntryState.WAITING)

    @property
    def output_cutoff(self) -> float | None:
        """Files that changed after this time (seconds since 1970) may be another prompt's and must
        not be taken for this one's; one of its own that is left out is only kept later. None if it
        did not finish."""
        if self._ended_at is None:
            return None
        if not self._queue.behind(self):
            return self._ended_at or time.time()
        return _UNKNOWN if self._ended_at == _UNKNOWN else self._ended_at - _FILE_CLOCK_LAG

    async def wait_until_head(self) -> None:
        """Wait until it is the first in the queue."""
        while not self.is_head:
            await self._change()

    async def wait_until_next(self) -> None:
        """Wait until it is the head, or ComfyUI has the prompt before it, so that none overtakes
        another. Behind a finished one it waits a moment, until that one's files are claimed."""
        taken = (EntryState.QUEUED, EntryState.RUNNING)
        while (before := self._queue.predecessor(self)) and before.state not in taken:
            await self._change()

    def wake(self) -> None:
        """The queue has changed."""
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _become(self, state: EntryState) -> None:
        """The one place where a state changes."""
        if state not in _TRANSITIONS[self._state]:
            raise RuntimeError(f"{self._state.name} to {state.name}")
        self._state = state
        self._queue.notify()


class PromptQueue:
    """The prompts of one ComfyUI. Used by one event loop at a time."""

    def __init__(self) -> None:
        self._entries: list[QueueEntry] = []

    @asynccontextmanager
    async def enter(self, deadline: Deadline) -> AsyncIterator[QueueEntry]:
        """Add an entry at the end; the clock of `deadline` stops until it is the head."""
        entry = QueueEntry(self, deadline)
        self._entries.append(entry)
        if not entry.is_head:
            deadline.pause()
        try:
            yield entry
        finally:
            self._entries.remove(entry)
            if self._entries:
                head = self._entries[0]
                head.deadline.resume()
                head.at_head()
            self.notify()

    def predecessor(self, entry: QueueEntry) -> QueueEntry | None:
        """The one right before it; None for the head."""
        index = self._entries.index(entry)
        return self._entries[index - 1] if index else None

    def behind(self, entry: QueueEntry) -> list[QueueEntry]:
        """Those behind it."""
        return self._entries[self._entries.index(entry) + 1 :]

    def mark_lost(self, entry: QueueEntry) -> None:
        """ComfyUI ended because of this entry, so the prompts behind it are lost."""
        for other in self.behind(entry):
            if other.state is not EntryState.WAITING:
                other.lost()

    def notify(self) -> None:
        """Wake all waiters."""
        for entry in self._entries:
            entry.wake()
