"""Does the event loop that runs the jobs still move? It leaves a time once a second.

A loop that a handler blocks takes no job, answers none and hears of no cancel, while the process,
ComfyUI and Runpod's pings (a process of their own) look as ever.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable

from bootstrap.core.findings import Finding, error

CODES = {"worker.loop_stuck": "The worker's loop does not move: no job is taken or answered"}
_EVERY = 1.0
_ALLOWED = 10.0
_SECOND_CHANCE = 1.0


class LoopPulse:
    """Begun in the loop, asked from any other thread. One that was never begun has no fault."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None
        self._thread = 0
        self._moved = threading.Event()

    def begin(self) -> None:
        """To be called in the loop, which leaves its time from now on."""
        self._thread = threading.get_ident()
        self._beat(asyncio.get_running_loop())

    def fault(self) -> Finding | None:
        """What to tell of a loop that has stood for more than ten seconds. Blocks for a second at
        most: a worker that was frozen all that time (SIGSTOP, FlashBoot) moves at once."""
        last = self._last
        if last is None or self._clock() - last <= _ALLOWED:
            return None
        self._moved.clear()
        if self._last != last or self._moved.wait(_SECOND_CHANCE):
            return None
        return _stuck(self._clock() - last, _place_of(self._thread))

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._last = self._clock()
        self._moved.set()
        loop.call_later(_EVERY, self._beat, loop)


def _place_of(thread: int) -> str:
    """Where a thread is: `file:line in function`."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "nowhere: its thread has ended"
    (at,) = traceback.extract_stack(frame, limit=1)
    return f"{at.filename}:{at.lineno} in {at.name}"


def _stuck(seconds: float, place: str) -> Finding:
    return error(
        "worker.loop_stuck",
        f"The worker's loop has not moved for {seconds:.0f} s; it stands at {place}.",
        "Restart this worker (docker restart, or terminate it in Runpod's console), and report "
        "where it stands.",
        seconds=round(seconds),
        place=place,
    )
