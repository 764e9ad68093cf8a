"""Saves a node's files to the volume and encodes them for the reply at once, while ComfyUI runs
other nodes: little is left to do when the job ends, and a worker that is killed before loses
nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from handler.common.blocking import Background, Pool, TimeUp
from handler.outputs.local_files import LocalFiles, encoded, stamp_of
from handler.outputs.results import Content, ProducedFile, Stamp, produced
from handler.outputs.volume_store import NotSaved, VolumeStore, saved_as

T = TypeVar("T")
_LOOK_SECONDS = 30.0
# As much as a whole job may take by default; the delivery waits for no longer than it has itself.
_WORK_SECONDS = 300.0
_AT_ONCE = 4


@dataclass(frozen=True)
class DeliveryPolicy:
    """How files are delivered: `kept` on the volume under names that carry `job_tag`, and encoded,
    up to `room` bytes in total."""

    job_tag: str
    kept: bool
    room: float


@dataclass
class _Pending:
    """A file whose delivery began when it had this `stamp`."""

    stamp: Stamp
    kept: asyncio.Task[str | None] | None
    content: asyncio.Task[Content | None] | None
    used: bool = False


class EagerDelivery:
    """The files of one job. A delivery counts as long as its file has not changed since. For one
    event loop; nothing here blocks."""

    def __init__(
        self, policy: DeliveryPolicy, files: LocalFiles, store: VolumeStore, local: Pool
    ) -> None:
        self._policy = policy
        self._files = files
        self._store = store
        self._local = local
        self._room = policy.room
        self._pending: dict[Path, _Pending] = {}
        self._looks: set[asyncio.Task[None]] = set()
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    def on_output(self, outputs: Mapping[str, Any]) -> None:
        """A node reports these outputs, in the form of the history's."""
        if self._policy.kept or self._policy.room:
            self._looks.add(asyncio.ensure_future(self._begin(outputs)))

    async def kept_at(self, local: Path, stamp: Stamp | None, seconds: float) -> str | None:
        """Where the file with this `stamp` is on the volume; None where it is not, or not within
        `seconds`."""
        pending = await self._current(local, stamp, seconds)
        if pending is None or pending.kept is None:
            return None
        path = await _within(pending.kept, seconds)
        pending.used = path is not None
        return path

    async def encoded(self, local: Path, stamp: Stamp | None, seconds: float) -> Content | None:
        """The file with this `stamp` in base64; None where it was not encoded."""
        pending = await self._current(local, stamp, seconds)
        if pending is None or pending.content is None:
            return None
        return await _within(pending.content, seconds)

    def end(self, background: Background) -> None:
        """Delete, in the background, what was kept of files that were changed or removed since."""
        for look in self._looks:
            look.cancel()
        for pending in self._pending.values():
            if pending.content is not None:
                pending.content.cancel()
            if not pending.used and pending.kept is not None:
                background.add(self._delete(pending.kept))

    async def _delete(self, kept: asyncio.Task[str | None]) -> None:
        path = await _within(kept, _WORK_SECONDS)
        if path is not None:
            await self._store.delete(path)

    async def _begin(self, outputs: Mapping[str, Any]) -> None:
        try:
            found = await self._local.run(lambda: self._find(outputs), _LOOK_SECONDS)
        except (TimeUp, OSError):
            return  # tried again when the job ends
        for local, stamp in found:
            if local in self._pending:
                continue
            kept = content = None
            if self._policy.kept:
                place = saved_as(local, self._files.output, self._policy.job_tag)
                kept = self._attempt(self._store.save(local, *place, _WORK_SECONDS))
            if stamp[0] <= self._room:
                self._room -= stamp[0]
                reading = self._local.run(partial(encoded, local), _WORK_SECONDS)
                content = self._attempt(reading)
            self._pending[local] = _Pending(stamp, kept, content)

    def _attempt(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T | None]:
        """None when it fails: it is tried again when the job ends."""

        async def attempt() -> T | None:
            try:
                async with self._at_once:
                    return await work
            except (NotSaved, TimeUp, OSError):
                return None
            finally:
                work.close()

        return asyncio.ensure_future(attempt())

    def _find(self, outputs: Mapping[str, Any]) -> list[tuple[Path, Stamp]]:
        """Files that are certainly results, in ComfyUI's output folder."""
        found: list[tuple[Path, Stamp]] = []
        for item in produced(outputs)[0]:
            if isinstance(item, ProducedFile) and not item.guessed:
                local = self._files.find(item)
                if local is not None and local.is_relative_to(self._files.output):
                    stamp = stamp_of(local)
                    found += [] if stamp is None else [(local, stamp)]
        return found

    async def _current(self, local: Path, stamp: Stamp | None, seconds: float) -> _Pending | None:
        if self._looks:
            await asyncio.wait(set(self._looks), timeout=seconds)
        pending = self._pending.get(local)
        return pending if pending is not None and stamp == pending.stamp else None


async def _within(task: asyncio.Task[T | None], seconds: float) -> T | None:
    done, _ = await asyncio.wait({task}, timeout=seconds)
    return task.result() if done and not task.cancelled() else None
