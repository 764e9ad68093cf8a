"""The worker's end: whoever ends it sends SIGTERM, and kills a while later. In between every job
that it took gets an answer, so that its caller can send it again.

The SDK lets running jobs finish, however long they take; the platform does not wait for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, TypeVar

from bootstrap.log import say
from bootstrap.wording import counted
from handler.errors import JobError

CODES = {"worker.shutting_down": "The worker was stopped before the job was done"}
_FIX = "Send it again: another worker takes it."
T = TypeVar("T")


class Stay:
    """One job's time in the worker. `waits`: has it not begun, so that it is given back at once?"""

    def __init__(self) -> None:
        self.waits: Callable[[], bool] = lambda: False
        self._task: asyncio.Task[Any] | None = None
        self._reason: JobError | None = None

    def end(self, reason: JobError) -> None:
        """Stop the job; `bounded` raises `reason` when it has tidied up."""
        if self._task is not None and self._reason is None:
            self._reason = reason
            self._task.cancel()

    async def of(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns. Raises what it was ended with, or CancelledError when cancelled."""
        self._task = asyncio.ensure_future(work)
        try:
            result: T = await self._task
        except asyncio.CancelledError:
            if self._reason is None:
                raise
            raise self._reason from None
        return result


class Shutdown:
    """Bounds the jobs of one worker once it is told to end. For one event loop."""

    def __init__(self, grace: float) -> None:
        """`grace`: seconds that running jobs have from the signal on."""
        self._grace = grace
        self._begun = False
        self._stays: set[Stay] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def heed_signals(self) -> None:
        """Notice SIGTERM and SIGINT from now on, besides who handles them already.

        Call it in the jobs' event loop. Not before the SDK has set its own handlers: its ping
        process, forked earlier, would inherit these, and not end when it is asked to.
        """
        if self._loop is None and threading.current_thread() is threading.main_thread():
            self._loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                self._heed(number)

    async def bounded(self, work: Callable[[Stay], Coroutine[Any, Any, T]]) -> T:
        """What `work` returns. Raises JobError when the worker ends and it has not begun, or
        does not end in time; it is cancelled then and has tidied up."""
        if self._begun:
            raise _not_begun()
        stay = Stay()
        self._stays.add(stay)
        try:
            return await stay.of(work(stay))
        finally:
            self._stays.discard(stay)

    def begin(self) -> None:
        """Take up no job any more, give back those that wait, and the others after the grace."""
        if self._begun:
            return
        self._begun = True
        say(f"asked to end: {counted(len(self._stays), 'job')} here, {self._grace:g} s for them")
        for stay in list(self._stays):
            if stay.waits():
                stay.end(_not_begun())
        asyncio.get_running_loop().call_later(self._grace, self._end_all)

    def _end_all(self) -> None:
        for stay in list(self._stays):
            stay.end(_not_done(self._grace))

    def _heed(self, number: int) -> None:
        loop, before = self._loop, signal.getsignal(number)
        assert loop is not None

        def heard(number: int, frame: FrameType | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: no job is left
                loop.call_soon_threadsafe(self.begin)
            if callable(before):
                before(number, frame)

        signal.signal(number, heard)


def _not_begun() -> JobError:
    return JobError(
        "worker.shutting_down",
        "This worker is being stopped and has not begun the job.",
        _FIX,
        begun=False,
    )


def _not_done(grace: float) -> JobError:
    return JobError(
        "worker.shutting_down",
        f"This worker is being stopped and the job was not done within {grace:g} s.",
        f"{_FIX} If this happens often, raise SHUTDOWN_GRACE, as far as the platform waits.",
        begun=True,
        grace=grace,
    )
