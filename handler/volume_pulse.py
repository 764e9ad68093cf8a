"""Work on the volume that is given up when the volume falls silent: a dead mount answers nothing,
for ever, and no job waits that long. A large file on a slow volume may take its time."""

from __future__ import annotations

import errno
import os
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout  # its own class before Python 3.11
from pathlib import Path
from typing import TypeVar

from handler.errors import JobError

T = TypeVar("T")
_LOOK_EVERY = 3.0
_PATIENCE = 2.0
VOLUME_FIX = (
    "Send the job again, which another worker may take; if it stays, restart the endpoint's "
    "workers and look at the volume in the Runpod console (Storage)."
)


class VolumeSilent(OSError):
    """The volume does not answer; `strerror` says so."""

    def __init__(self, root: Path) -> None:
        super().__init__(errno.ETIMEDOUT, f"the volume does not answer ({root})")


class Pulse:
    """Feels whether the volume below `root` answers. May be used by several threads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._asked: Future[bool] | None = None
        self._asked_at = 0.0

    def beats(self) -> bool:
        """Does it answer within two seconds? While an earlier question has no answer, it does not,
        and is not asked again: each question costs a thread, for as long as the silence lasts."""
        with self._lock:
            if self._asked is None or self._asked.done():
                self._asked_at = time.monotonic()
                self._asked = _in_a_thread(self._ask)
            asked, left = self._asked, self._asked_at + _PATIENCE - time.monotonic()
        try:
            asked.result(max(left, 0.0))
        except FutureTimeout:
            return False
        return True

    def attended(self, work: Callable[[], T]) -> T:
        """What `work`, which asks the volume, returns or raises, however long it takes.

        Raises VolumeSilent when the volume falls silent meanwhile, or is; `work` then goes on when
        the volume does.
        """
        if self._asked is not None and not self._asked.done() and not self.beats():
            raise VolumeSilent(self._root)
        working = _in_a_thread(work)
        while True:
            try:
                return working.result(_LOOK_EVERY)
            except FutureTimeout:
                if working.done():
                    return working.result()
                if not self.beats():
                    raise VolumeSilent(self._root) from None

    def needed(self, work: Callable[[], T]) -> T:
        """`attended`, for a job that cannot go on without. Raises JobError for the silence."""
        try:
            return self.attended(work)
        except VolumeSilent as problem:
            said = f"This job needs the volume, and {problem.strerror}."
            raise JobError("volume.silent", said, VOLUME_FIX) from None

    def _ask(self) -> bool:
        """For a name that nobody can remember from an earlier look."""
        return os.path.lexists(self._root / f".{uuid.uuid4().hex}")


def _in_a_thread(work: Callable[[], T]) -> Future[T]:
    """A daemon's, which keeps no process from ending; pools join theirs."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as problem:  # noqa: BLE001  # carried to whoever waits
            future.set_exception(problem)

    threading.Thread(target=run, name="volume", daemon=True).start()
    return future
