"""What ComfyUI is to run, and the prompts of one ComfyUI in the order of their jobs.

ComfyUI runs one prompt at a time. The next job's prompt lies in its queue already, so that it never
waits for work; but only the head of our queue judges, stops or restarts ComfyUI. What happens to
ComfyUI is the head's doing, and takes the prompts behind it away though they are not at fault.
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

# A file's time is that of the kernel's last tick.
_FILE_CLOCK_LAG = 0.011
_UNKNOWN = 0.0


@dataclass(frozen=True)
class Prompt:
    """What ComfyUI is to run; only what `targets` need, where there are any, and the nodes `rerun`
    even if it has their results in its cache. `extra_data` may hold secrets for nodes; it is sent
    to ComfyUI and nowhere else. `hints` explain what ComfyUI may find
    wrong with it. `on_progress` is called as it advances, `on_output` with what each node that has
    finished reports, in the form of the history's outputs, `on_binary` with what the socket brings
    that is not text: previews."""

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
    """A prompt that ran to its end: what the history says, warnings, and the `seconds` it took.
    ComfyUI began with it at `started_at` (seconds since 1970) or later."""

    history: HistoryEntry
    warnings: list[str]
    started_at: float
    seconds: float


class PromptLost(Exception):
    """ComfyUI ended because of another prompt, and lost this one, or was not there for it: it has
    to run again."""


class EntryState(Enum):
    """Where a prompt is. RUNNING: ComfyUI has it and it is the head of our queue; QUEUED: ComfyUI
    has it, behind others; LOST: ComfyUI ended because of a prompt before it."""

    WAITING, QUEUED, RUNNING, ENDED, LOST = range(5)


_TRANSITIONS = {
    # To ENDED: ComfyUI had it although its answer to the submission was lost.
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
        """Where the prompt is."""
        return self._state

    @property
    def is_head(self) -> bool:
        """Is it the first of the queue?"""
        return self._queue.predecessor(self) is None

    @property
    def has_successor(self) -> bool:
        """Does, or did, ComfyUI have a prompt behind this one?"""
        return any(other.state is not EntryState.WAITING for other in self._queue.behind(self))

    def submitted(self) -> None:
        """ComfyUI has the prompt: the next one may follow."""
        self._become(EntryState.RUNNING if self.is_head else EntryState.QUEUED)

    def ended(self, at: float | None) -> None:
        """It no longer runs, since `at` in seconds since 1970; None where ComfyUI does not say. One
        that was lost meanwhile stays so: how it ended was not its own doing."""
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
        """It is to be submitted again; what an earlier attempt wrote is not its output."""
        self._ended_at = None
        self._become(EntryState.WAITING)

    @property
    def output_cutoff(self) -> float | None:
        """Files changed later, in seconds since 1970, may be another prompt's: such a file must not
        be taken for this prompt's, while one of its own that is left out is only kept later. None
        when it did not run to an end."""
        if self._ended_at is None:
            return None
        if not self._queue.behind(self):
            return self._ended_at or time.time()
        return _UNKNOWN if self._ended_at == _UNKNOWN else self._ended_at - _FILE_CLOCK_LAG

    async def wait_until_head(self) -> None:
        """Until it is the first of the queue."""
        while not self.is_head:
            await self._change()

    async def wait_until_next(self) -> None:
        """Until it is the head, or ComfyUI has the prompt before it, so that none overtakes.
        Behind one that has ended it waits a moment, until that one's files are claimed."""
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
        assert state in _TRANSITIONS[self._state], f"{self._state.name} to {state.name}"
        self._state = state
        self._queue.notify()


class PromptQueue:
    """The prompts of one ComfyUI. Used by one event loop at a time."""

    def __init__(self) -> None:
        self._entries: list[QueueEntry] = []

    @asynccontextmanager
    async def enter(self, deadline: Deadline) -> AsyncIterator[QueueEntry]:
        """An entry at the end; the clock of `deadline` stands still until it is the head."""
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
        """ComfyUI ended because of this entry: it lost the prompts behind it."""
        for other in self.behind(entry):
            if other.state is not EntryState.WAITING:
                other.lost()

    def notify(self) -> None:
        """Wake all waiters."""
        for entry in self._entries:
            entry.wake()
