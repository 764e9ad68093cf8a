"""Blocking calls of jobs, in threads that never wait for each other.

A job is an asyncio task: it waits in the event loop, never in a thread. Blocking work (a disk, the
volume, a server) runs here as a *leaf*: a plain function that waits for no other call. So a pool
cannot fill up with callers that wait for calls queued behind them. This is enforced: a call from a
leaf raises RuntimeError, since these threads have no event loop.

    job's task ──awaits──▶ leaf in pool `local`    local disk, encoding
               ──awaits──▶ leaf in pool `volume`   files on the network volume, which may go silent
               ──awaits──▶ leaf in pool `network`  uploads, inputs by URL
               ──awaits──▶ leaf in pool `control`  ComfyUI's process, diagnostics

Every call has a limit in seconds. One that exceeds it is abandoned: its caller goes on, and its
thread, which may hang in the kernel forever, is replaced while there are spare ones. Without spare
threads the pool is `exhausted`: it still has its regular threads, but the worker takes no further
jobs (`handler/sdk/job_slots.py`) and its health check says why.

Threads are daemons: `concurrent.futures` and `asyncio.to_thread` join theirs when the interpreter
ends, and one call into a dead mount would keep the worker from ending.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_IDLE_SECONDS = 30.0
_in_a_leaf = threading.local()


class TimeUp(Exception):
    """A blocking call did not return within its limit."""


class _Call(Future, Generic[T]):  # type: ignore[type-arg]  # typeshed's Future takes one parameter
    """A call and its result. `abandoned`: its caller no longer waits."""

    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__()
        context = contextvars.copy_context()  # log lines are of the same job
        self.work: Callable[[], T] = lambda: context.run(work)
        self.abandoned = False


class Pool:
    """Runs calls in at most `threads` threads, plus one for each abandoned call that still hangs,
    up to `spare`. Usable by several event loops."""

    def __init__(self, name: str, threads: int, spare: int) -> None:
        self.name = name
        self._threads = threads
        self._spare = spare
        self._queue: deque[_Call[Any]] = deque()
        self._running: set[_Call[Any]] = set()
        self._alive = 0
        self._idle = 0
        self._changed = threading.Condition()

    async def run(
        self,
        work: Callable[[], T],
        seconds: float,
        on_abandon: Callable[[], None] | None = None,
    ) -> T:
        """Run `work`. Raises TimeUp after `seconds`, including time in the queue.

        If the caller is cancelled or the time is up, `on_abandon` is called (in the event loop; it
        must not block), to wake a call that waits for a connection. `work` itself is not
        interrupted, and its result is dropped.
        """
        call = self.submit(work)
        try:
            return await result_within(call, seconds)
        finally:
            if not call.done() and self.abandon(call) and on_abandon is not None:
                on_abandon()

    def submit(self, work: Callable[[], T]) -> _Call[T]:
        """Start `work`, for callers that check the result themselves; from the event loop only.
        Raises RuntimeError in a thread without an event loop, and in a leaf.
        """
        asyncio.get_running_loop()
        if getattr(_in_a_leaf, "now", False):
            raise RuntimeError("in a leaf: a blocking call must not wait for another one")
        call = _Call(work)
        with self._changed:
            self._queue.append(call)
            self._staff()
        return call

    def abandon(self, call: _Call[Any]) -> bool:
        """The caller no longer waits for the call; False if it has already ended."""
        with self._changed:
            call.abandoned = True
            if call.cancel() and call in self._queue:
                self._queue.remove(call)
            if self._queue:
                self._staff()
            return call in self._running or call.cancelled()

    @property
    def hanging(self) -> int:
        """Number of abandoned calls that have not returned."""
        with self._changed:
            return self._hanging()

    @property
    def exhausted(self) -> bool:
        """Are there no spare threads left?"""
        return self.hanging >= self._spare

    def _staff(self) -> None:
        """Make sure that a thread takes what was just queued."""
        if self._idle >= len(self._queue):
            self._changed.notify()
        elif self._alive < self._threads + min(self._hanging(), self._spare):
            self._alive += 1
            threading.Thread(target=self._work, name=self.name, daemon=True).start()

    def _hanging(self) -> int:
        return sum(call.abandoned for call in self._running)

    def _work(self) -> None:
        _in_a_leaf.now = True
        while (call := self._next()) is not None:
            try:
                call.set_result(call.work())
            except BaseException as problem:  # noqa: BLE001  # carried to the caller
                call.set_exception(problem)
            finally:
                with self._changed:
                    self._running.discard(call)

    def _next(self) -> _Call[Any] | None:
        """The next call; None when this thread is no longer needed."""
        with self._changed:
            while True:
                while self._queue:
                    call = self._queue.popleft()
                    if call.set_running_or_notify_cancel():
                        self._running.add(call)
                        return call
                self._idle += 1
                called = self._changed.wait(_IDLE_SECONDS)
                self._idle -= 1
                too_many = self._alive > self._threads + self._hanging()
                if (not called or too_many) and not self._queue:
                    self._alive -= 1
                    return None


class Background:
    """Work that a reply does not wait for, such as recording what was saved."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, work: Coroutine[Any, Any, None]) -> None:
        """Start it. It must have its own limit, and raise nothing."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, seconds: float) -> None:
        """Wait for all of it, at most `seconds`."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)


async def result_within(call: Future[T], seconds: float) -> T:
    """Wait for the call's result. Raises TimeUp after `seconds`; the call continues."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()

    def end() -> None:
        if not over.done():
            over.set_result(None)

    def wake(_: object) -> None:
        try:
            loop.call_soon_threadsafe(end)
        except RuntimeError:
            pass  # the loop is closed: there is no caller any more

    call.add_done_callback(wake)
    await asyncio.wait({over}, timeout=max(seconds, 0.0))
    if not call.done():
        raise TimeUp
    return call.result()


async def gather_all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results, in order. The first failure is raised, and cancels the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Is it set within so many seconds? A cancellation always ends this: until Python 3.12
    `asyncio.wait_for` loses one that arrives just when the result does."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        done, _ = await asyncio.wait({waiting}, timeout=seconds)
    finally:
        waiting.cancel()
    return bool(done)
