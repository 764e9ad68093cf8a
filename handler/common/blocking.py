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

Work on the volume is also abandoned when the volume stops responding: a dead mount never answers,
while a large file on a slow volume may take its time.

Threads are daemons: `concurrent.futures` and `asyncio.to_thread` join theirs when the interpreter
ends, and one call into a dead mount would keep the worker from ending.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from bootstrap.core.findings import Finding, error
from handler.common.errors import VolumeSilentError

T = TypeVar("T")
_IDLE_SECONDS = 30.0
_LOOK_EVERY = 3.0
# How long a volume that responds may take to answer.
RESPONSE_SECONDS = 2.0
CODES = {
    "worker.threads_exhausted": "Too many calls of earlier jobs hang; no more jobs are taken",
}
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
            try:
                threading.Thread(target=self._work, name=self.name, daemon=True).start()
            except RuntimeError:  # the system refuses a thread; the others take the call
                if not self._alive:
                    self._queue.clear()
                    raise
            else:
                self._alive += 1

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


class NoResponse(OSError):
    """The volume does not respond; `strerror` says so."""

    def __init__(self, root: Path) -> None:
        super().__init__(errno.ETIMEDOUT, f"the volume does not respond ({root})")


class VolumeWatchdog:
    """Checks whether the volume at `root` responds while jobs use it. One per worker."""

    def __init__(self, root: Path, pool: Pool) -> None:
        """Everything that touches the volume runs in `pool`."""
        self._root = root
        self.pool = pool
        self._asked: Future[bool] | None = None
        self._asked_at = 0.0

    async def responds(self) -> bool:
        """Does it respond within two seconds? While an earlier check is unanswered, the answer is
        no, without another check: each one occupies a thread as long as the volume hangs."""
        if self._asked is None or self._asked.done():
            self._asked_at = time.monotonic()
            self._asked = self.pool.submit(self._ask)
        try:
            await result_within(self._asked, self._asked_at + RESPONSE_SECONDS - time.monotonic())
        except TimeUp:
            return False
        return True

    async def call(self, work: Callable[[], T], seconds: float) -> T:
        """Run `work`, which uses the volume. Raises NoResponse if the volume does not respond, and
        TimeUp after `seconds`; `work` then continues when the volume responds again.
        """
        if self._asked is not None and not self._asked.done() and not await self.responds():
            raise NoResponse(self._root)
        working = self.pool.submit(work)
        end = time.monotonic() + seconds
        try:
            while True:
                left = end - time.monotonic()
                try:
                    return await result_within(working, min(_LOOK_EVERY, left))
                except TimeUp:
                    if left <= _LOOK_EVERY:
                        raise
                if not (await self.responds() or working.done()):
                    raise NoResponse(self._root)
        finally:
            if not working.done():
                self.pool.abandon(working)

    async def call_or_fail(self, work: Callable[[], T], seconds: float) -> T:
        """`call`, for a job that cannot continue without it. Raises JobError if the volume does not
        respond."""
        try:
            return await self.call(work, seconds)
        except NoResponse as problem:
            said = f"This job needs the volume, and {problem.strerror}."
            raise VolumeSilentError(said) from None

    def _ask(self) -> bool:
        """Stat a name that cannot be cached from an earlier check."""
        return os.path.lexists(self._root / f".{uuid.uuid4().hex}")


@dataclass(frozen=True)
class Calls:
    """The pools: `local` for disk and encoding, `network` for uploads and inputs, `control` for
    ComfyUI's process and diagnostics, `volume`; and background work."""

    volume: VolumeWatchdog
    local: Pool = field(default_factory=lambda: Pool("local", 8, 8))
    network: Pool = field(default_factory=lambda: Pool("network", 12, 12))
    control: Pool = field(default_factory=lambda: Pool("control", 6, 6))
    background: Background = field(default_factory=Background)

    @classmethod
    def on(cls, volume: Path) -> Calls:
        """For a worker whose volume is mounted there."""
        return cls(VolumeWatchdog(volume, Pool("volume", 12, 12)))

    @property
    def pools(self) -> tuple[Pool, ...]:
        """All of them."""
        return (self.local, self.network, self.control, self.volume.pool)

    def fault(self) -> Finding | None:
        """The finding about a pool without spare threads."""
        full = next((pool for pool in self.pools if pool.exhausted), None)
        if full is None:
            return None
        return error(
            "worker.threads_exhausted",
            f"{full.hanging} calls of earlier jobs hang in the pool {full.name!r}, so no further "
            "job is taken.",
            "Look at the log: usually the volume does not respond, or a server sends too slowly. "
            "The worker exits when its jobs are answered, and Runpod starts another.",
            pool=full.name,
            hanging=full.hanging,
        )
