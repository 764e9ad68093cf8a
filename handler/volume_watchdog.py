"""Work on the volume that is given up when the volume goes silent: a dead mount never answers, and
no job waits that long. A large file on a slow volume may take its time."""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from handler.blocking import Pool, TimeUp, result_within
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


class VolumeWatchdog:
    """Checks whether the volume at `root` responds while jobs work on it. One for a worker."""

    def __init__(self, root: Path, pool: Pool) -> None:
        """All that touches the volume runs in `pool`."""
        self._root = root
        self.pool = pool
        self._asked: Future[bool] | None = None
        self._asked_at = 0.0

    async def responds(self) -> bool:
        """Does it respond within two seconds? While an earlier question has no answer, it does not,
        and is not asked again: each question costs a thread, for as long as the silence lasts."""
        if self._asked is None or self._asked.done():
            self._asked_at = time.monotonic()
            self._asked = self.pool.submit(self._ask)
        try:
            await result_within(self._asked, self._asked_at + _PATIENCE - time.monotonic())
        except TimeUp:
            return False
        return True

    async def call(self, work: Callable[[], T], seconds: float) -> T:
        """What `work`, which asks the volume, returns or raises.

        Raises VolumeSilent when the volume does not respond, and TimeUp after `seconds`; `work`
        then goes on when the volume does.
        """
        if self._asked is not None and not self._asked.done() and not await self.responds():
            raise VolumeSilent(self._root)
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
                    raise VolumeSilent(self._root)
        finally:
            if not working.done():
                self.pool.abandon(working)

    async def call_or_fail(self, work: Callable[[], T], seconds: float) -> T:
        """`call`, for a job that cannot go on without. Raises JobError for the silence."""
        try:
            return await self.call(work, seconds)
        except VolumeSilent as problem:
            said = f"This job needs the volume, and {problem.strerror}."
            raise JobError("volume.silent", said, VOLUME_FIX) from None

    def _ask(self) -> bool:
        """For a name that no cache can know from an earlier look."""
        return os.path.lexists(self._root / f".{uuid.uuid4().hex}")
