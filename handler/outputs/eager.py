"""What a node has saved is kept on the volume and encoded for the reply at once, while ComfyUI goes
on with other nodes: little is left to do when the job ends, and a worker that is killed before has
lost nothing of it."""

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
from handler.outputs.volume_store import NotSaved, VolumeStore, place_of

T = TypeVar("T")
_LOOK_SECONDS = 30.0
# As much as a whole job may take by default; the delivery waits for no longer than it has itself.
_WORK_SECONDS = 300.0
_AT_ONCE = 4


@dataclass(frozen=True)
class DeliveryPolicy:
    """What is to become of files: `kept` on the volume under names that carry `mark`, and encoded,
    as long as they are not more than `room` bytes together."""

    mark: str
    kept: bool
    room: float


@dataclass
class _Pending:
    """A file that was taken up when it looked like `stamp`."""

    stamp: Stamp
    kept: asyncio.Task[str | None] | None
    content: asyncio.Task[Content | None] | None
    used: bool = False


class EagerDelivery:
    """The files of one job. What was done with one counts as long as it has not changed since.
    For one event loop; nothing here blocks."""

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

    def saved(self, outputs: Mapping[str, Any]) -> None:
        """Nodes report these outputs, in the form of the history's."""
        if self._policy.kept or self._policy.room:
            self._looks.add(asyncio.ensure_future(self._begin(outputs)))

    async def kept_at(self, local: Path, stamp: Stamp | None, seconds: float) -> str | None:
        """Where on the volume the file is kept as it is with this `stamp`; None where it is not,
        or is not within `seconds`."""
        pending = await self._current(local, stamp, seconds)
        if pending is None or pending.kept is None:
            return None
        path = await _within(pending.kept, seconds)
        pending.used = path is not None
        return path

    async def encoded(self, local: Path, stamp: Stamp | None, seconds: float) -> Content | None:
        """The file in base64 as it is with this `stamp`; None where that was not made."""
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
            return  # looked at once more when the job ends
        for local, stamp in found:
            if local in self._pending:
                continue
            kept = content = None
            if self._policy.kept:
                place = place_of(local, self._files.output, self._policy.mark)
                kept = self._attempt(self._store.save(local, *place, _WORK_SECONDS))
            if stamp[0] <= self._room:
                self._room -= stamp[0]
                reading = self._local.run(partial(encoded, local), _WORK_SECONDS)
                content = self._attempt(reading)
            self._pending[local] = _Pending(stamp, kept, content)

    def _attempt(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T | None]:
        """None for what fails: it is tried again when the job ends."""

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
        """Files that were surely saved as results, in the folder for them."""
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
