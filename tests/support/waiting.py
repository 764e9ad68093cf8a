"""Wait for what a test caused in another process or thread: poll a condition, never just sleep. And
time that a test lets pass, for what would come only after a while."""

from __future__ import annotations

import asyncio
import selectors
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

T = TypeVar("T")


class Clock:
    """The monotonic clock, which a test moves on by setting `ahead`. Takes the place of a clock
    function, or of the `time` of a module that asks it for nothing else."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead

    monotonic = __call__
    thread_time = staticmethod(time.thread_time)


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> float:
    """Poll `condition` until it holds; the seconds that took. AssertionError if it never does."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"condition not met within {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - start


async def until(condition: Callable[[], bool]) -> None:
    """The same in a task, which its caller limits."""
    while not condition():  # noqa: ASYNC110 - what it waits for is not in the loop
        await asyncio.sleep(0.01)


class Hang:
    """A blocking call of this loop that hangs until `over`; a minute passes once it has begun and
    the loop waits for it. `clock` is the loop's from now on."""

    def __init__(self, over: threading.Event, clock: Clock | None = None) -> None:
        self._over, self._clock = over, clock or Clock()
        self._loop = asyncio.get_running_loop()
        self._loop.time = self._clock  # type: ignore[method-assign]

    def __call__(self) -> None:
        self._loop.call_soon_threadsafe(self._pass_a_minute)
        self._over.wait(30)

    def _pass_a_minute(self) -> None:
        self._clock.ahead += 60.0


class _Jumps(selectors.DefaultSelector):
    """Waits for no timer: its clock jumps there instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None:
            self.now += max(timeout, 0.0)
            timeout = 0.0
        return super().select(timeout)


def run_at_once(main: Coroutine[Any, Any, T], *modules: ModuleType) -> T:
    """`asyncio.run`, except that time passes only while all tasks wait, and then at once; also in
    the `modules` that ask `time`. For tasks that wait for each other and for timers, not for
    threads."""
    selector = _Jumps()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    with ExitStack() as patches:
        for module in modules:
            clock = SimpleNamespace(monotonic=loop.time)
            patches.enter_context(patch.object(module, "time", clock))
        try:
            return loop.run_until_complete(main)
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
