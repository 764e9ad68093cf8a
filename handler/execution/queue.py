"""What ComfyUI is to run, and the prompts of one ComfyUI in the order of their jobs.

ComfyUI runs one prompt at a time. The next job's prompt lies in its queue already, so that it never
waits for work; but only the first in the line judges, stops or restarts ComfyUI. What happens to
ComfyUI is its doing, and takes the prompts behind it away without their fault.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from handler.common.deadline import Deadline
from handler.common.errors import JobError
from handler.execution import history
from handler.execution.node_progress import Step
from handler.request.workflow import Workflow

# A file's time is that of the kernel's last tick.
_FILE_CLOCK_LAG = 0.011


@dataclass(frozen=True)
class Prompt:
    """What ComfyUI is to run; only what `targets` need, where there are any. `extra_data` may hold
    secrets for nodes; it is sent to ComfyUI and nowhere else. `hints` explain what ComfyUI may find
    wrong with it. `tell` hears how far it is, `saved` what a node reports that is through, in the
    form of the history's outputs."""

    workflow: Workflow
    extra_data: Mapping[str, Any] = field(default_factory=dict, repr=False)
    targets: tuple[str, ...] | None = None
    hints: Sequence[JobError] = ()
    tell: Callable[[Step], None] = lambda _: None
    saved: Callable[[Mapping[str, Any]], None] = lambda _: None


@dataclass(frozen=True)
class Ran:
    """A prompt that ran to its end; `began` (seconds since 1970) is not later than ComfyUI began
    with it, `seconds` what it took."""

    ended: history.Ended
    warnings: list[str]
    began: float
    seconds: float


class Displaced(Exception):
    """ComfyUI ended through another prompt's fault, and this one with it, or was not there for it:
    it has to run again."""


class Turn:
    """One prompt's place. `queued`: ComfyUI has it; `displaced`: ComfyUI lost it through another's
    fault; `ended`: it ran, and does no longer."""

    def __init__(self, line: Line, deadline: Deadline) -> None:
        self.deadline = deadline
        self.displaced = False
        self.ended = False
        self._ended_at: float | None = None
        self._line = line
        self.queued = False
        self.moved = asyncio.Event()

    @property
    def first(self) -> bool:
        """Is nobody before it?"""
        return self._line.ahead(self) is None

    @property
    def followed(self) -> bool:
        """Has ComfyUI a prompt behind it?"""
        return any(turn.queued for turn in self._line.behind(self))

    def queue(self) -> None:
        """ComfyUI has the prompt: the next one may follow."""
        self.queued = True
        self._line.move()

    def end(self, at: float | None) -> None:
        """It ended, in seconds since 1970; None where ComfyUI does not say when."""
        self.ended, self._ended_at = True, at

    @property
    def wrote_until(self) -> float:
        """Files that were changed later may be another prompt's: one is not to be taken for this
        one's, while one of this one's left out is only kept later. Seconds since 1970."""
        if not self._line.behind(self):
            return self._ended_at or time.time()
        return 0.0 if self._ended_at is None else self._ended_at - _FILE_CLOCK_LAG

    async def come(self) -> None:
        """Until it is the first."""
        while not self.first:
            await self._moves()

    async def near(self) -> None:
        """Until it is the first, or ComfyUI has the prompt before it, so that none overtakes.
        Behind one that ended it waits for a moment: what that wrote is told from others' files."""
        while (ahead := self._line.ahead(self)) is not None and (ahead.ended or not ahead.queued):
            await self._moves()

    async def _moves(self) -> None:
        self.moved.clear()
        await self.moved.wait()


class Line:
    """The turns of one ComfyUI. Used by one event loop at a time."""

    def __init__(self) -> None:
        self._turns: list[Turn] = []

    @asynccontextmanager
    async def turn(self, deadline: Deadline) -> AsyncIterator[Turn]:
        """A place at the end; the clock of `deadline` stands still until it is the first."""
        turn = Turn(self, deadline)
        self._turns.append(turn)
        if not turn.first:
            deadline.pause()
        try:
            yield turn
        finally:
            self._turns.remove(turn)
            if self._turns:
                self._turns[0].deadline.resume()
            self.move()

    def ahead(self, turn: Turn) -> Turn | None:
        """Who is right before it; None for the first."""
        place = self._turns.index(turn)
        return self._turns[place - 1] if place else None

    def behind(self, turn: Turn) -> list[Turn]:
        """Who is behind it."""
        return self._turns[self._turns.index(turn) + 1 :]

    def displace_others(self, turn: Turn) -> None:
        """ComfyUI ended through this turn: prompts behind it are gone."""
        for other in self.behind(turn):
            other.displaced = other.displaced or other.queued

    def move(self) -> None:
        """Let all look where they are."""
        for turn in self._turns:
            turn.moved.set()
