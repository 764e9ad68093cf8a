"""The blocking calls of one worker's jobs, each kind in its own pool.

Work on the volume is abandoned when the volume stops responding: a dead mount never answers. A
large file on a slow volume may take its time.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bootstrap.core.concurrency import BoundedCaller, VolumeTimeout
from bootstrap.core.findings import Finding, error
from bootstrap.volume import Layout
from handler.common.blocking import Background, Pool, TimeUp, result_within
from handler.common.errors import VOLUME_FIX, JobError, VolumeSilentError

T = TypeVar("T")
_LOOK_EVERY = 3.0
_RESPONSE_SECONDS = 2.0
# A volume may stall for a while, and the job has already cost something, so this many checks in a
# row, at least two seconds apart; answering them costs ComfyUI a little CPU time.
STALL_LOOKS, _ASKED_CPU_SECONDS = 8, 0.1
CODES = {
    "worker.threads_exhausted": "Too many calls of earlier jobs hang; no more jobs are taken",
    # volume.silent is the doctor's code
    "volume.gone": "The volume was there when the worker started, but no longer is",
}


class NoResponse(OSError):
    """The volume does not respond; `strerror` says so."""

    def __init__(self, root: Path) -> None:
        super().__init__(errno.ETIMEDOUT, f"the volume does not answer ({root})")


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
            await result_within(self._asked, self._asked_at + _RESPONSE_SECONDS - time.monotonic())
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


class VolumeStallDetector:
    """Detects a ComfyUI that waits for a volume that has stopped responding: a node that opens a
    model there hangs in the kernel, while ComfyUI's server answers and its log is quiet."""

    def __init__(self, cpu_seconds: Callable[[], float | None], volume: VolumeWatchdog) -> None:
        """`cpu_seconds` is what ComfyUI has used so far; None if unknown."""
        self._cpu_seconds = cpu_seconds
        self._volume = volume
        self._used: float | None = None
        self._seen = 0

    async def is_stalled(self) -> bool:
        """Call it every few seconds while a prompt runs: has ComfyUI computed nothing, and the
        volume not responded, for too long?"""
        used, before = self._cpu_seconds(), self._used
        self._used = used
        idle = used is not None and before is not None and used - before <= _ASKED_CPU_SECONDS
        waits = idle and not await self._volume.responds()
        self._seen = self._seen + 1 if waits else 0
        return self._seen >= STALL_LOOKS


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
            "Look at the log: behind most of these is a volume that does not answer, or a server "
            "that trickles. The worker ends when its jobs are answered, and Runpod starts another.",
            pool=full.name,
            hanging=full.hanging,
        )


def volume_fault(layout: Layout, cause: JobError) -> JobError | None:
    """The error to report instead of `cause` if the volume is gone or does not respond; None if it
    is there, or `cause` already says so. Blocks for at most two seconds."""
    if isinstance(cause, VolumeSilentError):
        return None
    probe = layout.root
    if layout.comfyui is not None and layout.comfyui_on_volume:
        probe = layout.comfyui / "main.py"  # a mount point remains after its mount is gone
    try:
        if BoundedCaller(_RESPONSE_SECONDS).one(lambda: os.path.exists(probe)):
            return None
    except VolumeTimeout:
        return VolumeSilentError(
            _message(f"does not answer ({probe}, {_RESPONSE_SECONDS:g} s)", cause),
            **_because(cause),
        )
    said = _message(f"is no longer there ({probe} is missing)", cause)
    return JobError("volume.gone", said, VOLUME_FIX, **_because(cause))


def _message(state: str, cause: JobError) -> str:
    return f"The volume {state}, and the job failed: {cause.message}"


def _because(cause: JobError) -> dict[str, Any]:
    return {"cause": cause.code, **cause.details}
