"""Daemon threads for I/O that is mostly waiting, and calls under one deadline.

`WorkerPool` is not `concurrent.futures`: that joins its threads when the interpreter ends, so one
call into a network file system that has gone away would keep the whole worker from ending. These
are daemons, and a waiting caller can give up. `BoundedCaller` makes many calls to a volume in
parallel, since each costs a round trip, and a dead network mount never answers.
"""

from __future__ import annotations

import contextvars
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

Task = Callable[[], None]
TICK_SECONDS = 0.2
Given = TypeVar("Given")
Answer = TypeVar("Answer")
# A round trip takes 1.5 to 2 ms; 16 in flight make 100 of them 12 ms.
_THREADS = 16
_FIRST_THREADS = 2
_GROWTH = 4
_IN_A_ROW = 8
_LOOK_SECONDS = 0.003
_BUSY = 0.5  # of a processor: all that Python's lock leaves them is one


def threaded(work: Callable[[], None], name: str | None = None) -> threading.Thread:
    """A daemon thread, not yet started, in this context: its log lines belong to the current job.
    A thread that outlives its job (a restart of ComfyUI, the clean-up) takes `threading.Thread`.
    """
    run = contextvars.copy_context().run
    return threading.Thread(target=run, args=(work,), name=name, daemon=True)


class WorkerPool:
    """For one use: `run` the first tasks, which may `add` others, until none is left. The newest
    task is taken first, those added for `later` when there is no other, in no order.

    Two threads begin; more are started, at most `threads`, while those leave the processor idle:
    from memory, a pool that begins with four takes twice as long, waiting for Python's lock.
    """

    def __init__(self, threads: int) -> None:
        lock = threading.Lock()
        self._task_there = threading.Condition(lock)
        self._runner = threading.Condition(lock)
        self._most_threads = max(1, threads)
        self._threads = 0
        self._idle = 0
        self._stack: list[Task] = []
        self._later: list[Task] = []
        self._unfinished = 0
        self._computed = 0.0
        self._stopped = False
        self._failure: BaseException | None = None

    @property
    def stopped(self) -> bool:
        """True when nothing waits for the tasks any more; long tasks check it."""
        return self._stopped

    def add(self, tasks: Iterable[Task], later: bool = False) -> None:
        """Push tasks, the first to be taken first; does nothing once stopped."""
        added = list(tasks)[::-1]
        with self._task_there:
            if self._stopped:
                return
            (self._later if later else self._stack).extend(added)
            self._unfinished += len(added)
            self._task_there.notify(len(added))
            self._start(_FIRST_THREADS)
            if self._short_of_threads:
                self._runner.notify()

    def add_each(self, act: Callable[[Given], None], items: Sequence[Given]) -> None:
        """Call `act` with each item, later; a few short calls are one task."""
        rows = (items[i : i + _IN_A_ROW] for i in range(0, len(items), _IN_A_ROW))
        self.add((partial(self._each, act, row) for row in rows), later=True)

    def _each(self, act: Callable[[Given], None], items: Sequence[Given]) -> None:
        for item in items:
            if self._stopped:
                return
            act(item)

    def run(
        self,
        tasks: Iterable[Task],
        timeout: float | None = None,
        tick: Callable[[], None] | None = None,
    ) -> bool:
        """Run all tasks; False if `timeout` seconds were not enough or `stop` was called.

        `tick` is called from this thread every 0.2 s and once at the end. A task's exception is
        raised here.
        """
        end = None if timeout is None else time.monotonic() + timeout
        try:
            self.add(tasks)
            while not self._wait(end):
                if tick is not None:
                    tick()
        finally:
            finished = not self._unfinished
            self.stop()
        if self._failure is not None:
            raise self._failure
        if tick is not None:
            tick()
        return finished

    def stop(self) -> None:
        """Drop tasks that have not started. Running ones end by themselves; nothing waits for
        them."""
        with self._task_there:
            self._stopped = True
            self._stack.clear()
            self._later.clear()
            self._task_there.notify_all()
            self._runner.notify_all()

    def _wait(self, end: float | None) -> bool:
        """Wait for one tick; True when there is nothing more to wait for."""
        ticked = time.monotonic() + TICK_SECONDS
        until = ticked if end is None else min(ticked, end)
        with self._runner:
            while not self._ended() and (left := until - time.monotonic()) > 0:
                if not self._short_of_threads:
                    self._runner.wait(left)
                    continue
                before, start = self._computed, time.monotonic()
                self._runner.wait_for(self._ended, min(left, _LOOK_SECONDS))
                if self._computed - before < _BUSY * (time.monotonic() - start):
                    self._start(_GROWTH * self._threads)
            late = end is not None and time.monotonic() >= end
            return self._ended() or late

    def _ended(self) -> bool:
        return not self._unfinished or self._stopped

    @property
    def _short_of_threads(self) -> bool:
        """May there be more, and would they find something to do?"""
        return self._threads < self._most_threads and bool(self._stack or self._later)

    def _start(self, threads: int) -> None:
        """Start threads for tasks that wait for one, until there are `threads` in all."""
        waiting = len(self._stack) + len(self._later) - self._idle
        allowed = min(threads, self._most_threads) - self._threads
        for _ in range(max(0, min(waiting, allowed))):
            self._threads += 1
            threaded(self._work).start()

    def _work(self) -> None:
        while True:
            task = self._next()
            if task is None:
                return
            start = time.thread_time()
            try:
                task()
            except BaseException as failure:  # noqa: BLE001 - carried to the caller
                self._failure = self._failure or failure
                self.stop()
            finally:
                self._finish_one(time.thread_time() - start)

    def _next(self) -> Task | None:
        with self._task_there:
            self._idle += 1
            while not (self._stack or self._later or self._stopped) and self._unfinished:
                self._task_there.wait()
            self._idle -= 1
            if self._stack:
                return self._stack.pop()
            return self._any_later()

    def _any_later(self) -> Task | None:
        if not self._later:
            return None
        chosen = random.randrange(len(self._later))
        self._later[chosen], self._later[-1] = self._later[-1], self._later[chosen]
        return self._later.pop()

    def _finish_one(self, computed: float) -> None:
        with self._task_there:
            self._unfinished -= 1
            self._computed += computed
            if not self._unfinished:
                self._task_there.notify_all()
                self._runner.notify_all()


class ByteSemaphore:
    """Limits the bytes that threads hold together; a request for more waits."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._most = most
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes (at most the whole limit) are free, and hold them."""
        taken = min(size, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= taken)
            self._left -= taken
        try:
            yield
        finally:
            with self._changed:
                self._left += taken
                self._changed.notify_all()


class VolumeTimeout(Exception):
    """The file system did not answer before the deadline."""


class BoundedCaller:
    """Makes calls in parallel, in several batches, within `timeout` seconds in all."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._end = time.monotonic() + timeout

    def each(self, ask: Callable[[Given], Answer], items: Iterable[Given]) -> list[Answer]:
        """`ask` for every item, in order. What `ask` raises is raised here.

        Raises VolumeTimeout when the deadline passes first.
        """
        given = list(items)
        answers: dict[int, Answer] = {}

        def task(index: int) -> Callable[[], None]:
            return lambda: answers.__setitem__(index, ask(given[index]))

        left = max(0.0, self._end - time.monotonic())
        finished = WorkerPool(_THREADS).run([task(i) for i in range(len(given))], left)
        if not finished:
            raise VolumeTimeout(f"no answer in {self.timeout:g} s")
        return [answers[i] for i in range(len(given))]

    def one(self, ask: Callable[[], Answer]) -> Answer:
        """A single call; as `each`."""
        return self.each(lambda _: ask(), [None])[0]
