"""The worker's end: whoever ends it sends SIGTERM, and kills a while later. In between every job
that it took gets an answer, so that its caller can send it again.

The SDK lets running jobs finish, however long they take; the platform does not wait for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from bootstrap.core.log import say
from bootstrap.core.text import counted
from handler.errors import JobError

CODES = {"worker.shutting_down": "The worker was stopped before the job was done"}
_FIX = "Send it again: another worker takes it."
T = TypeVar("T")


class Stay:
    """One job's time in the worker. `waits` tells whether it has not begun, so that it may be given
    back at once; `computed` is called when ComfyUI is done with it."""

    def __init__(self, computed: Callable[[], None] = lambda: None) -> None:
        self.waits: Callable[[], bool] = _no
        self.computed = computed
        self._task: asyncio.Task[Any] | None = None
        self._reason: JobError | None = None

    @asynccontextmanager
    async def waiting(self, waits: Callable[[], bool]) -> AsyncIterator[None]:
        """While this lasts, `waits` tells."""
        self.waits = waits
        try:
            yield
        finally:
            self.waits = _no

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

    async def bounded(
        self,
        work: Callable[[Stay], Coroutine[Any, Any, T]],
        computed: Callable[[], None] = lambda: None,
    ) -> T:
        """What `work` returns. Raises JobError when the worker ends and it has not begun, or
        does not end in time; it is cancelled then and has tidied up."""
        if self._begun:
            raise _not_begun()
        stay = Stay(computed)
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


def _no() -> bool:
    return False


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
