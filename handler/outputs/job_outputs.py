"""One job's outputs, from its start to their delivery: what is to be done with them, and what of it
is done while ComfyUI goes on with other nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bootstrap.config.bucket import Bucket
from bootstrap.core.files import Stamp
from bootstrap.net.addresses import AddressPolicy
from handler.common.blocking import Background, Pool, TimeUp, is_set_within
from handler.common.errors import Deadline, JobError
from handler.outputs.local_files import Content, LocalFiles, OutputClaim, encoded, stamp_of
from handler.outputs.produced import ProducedFile, produced, saved_as
from handler.outputs.results import Result
from handler.outputs.uploads import BucketUploader, PresignedUploader
from handler.outputs.volume_store import NotSaved, VolumeStore
from handler.request.fields import OutputOptions

T = TypeVar("T")
CODES = {"job.not_delivered": "The results of a job could not be delivered in time"}
# Extra time, so that results are not discarded because the job's time is up.
GRACE_SECONDS = 10.0
_LOOK_SECONDS = 30.0
# As much as a whole job may take by default; a delivery never waits longer than its own limit.
_WORK_SECONDS = 300.0
_AT_ONCE = 4


@dataclass(frozen=True)
class DeliveryOptions:
    """How a job's results are delivered. `job_tag` is unique to the job."""

    job_tag: str
    deadline: Deadline
    output: OutputOptions = field(default_factory=OutputOptions)
    bucket: Bucket | None = None

    @property
    def destination(self) -> str:
        """`base64`, `s3` or `volume`."""
        return self.output.delivery or ("s3" if self.uploads else "base64")

    @property
    def uploads(self) -> bool:
        """Can results be uploaded?"""
        return self.bucket is not None or bool(self.output.upload_urls)


@dataclass(frozen=True)
class DeliveryPolicy:
    """How files are delivered: `kept` on the volume under names with `job_tag`, and encoded, up to
    `room` bytes in total."""

    job_tag: str
    kept: bool
    room: float

    @classmethod
    def of(cls, options: DeliveryOptions, keep_outputs: bool, room: float) -> DeliveryPolicy:
        """For a job with these options; a reply has `room` bytes for contents."""
        as_saved = not options.output.changes_images
        kept = as_saved and (keep_outputs or options.destination == "volume")
        alone = as_saved and options.destination == "base64" and not options.output.zip
        return cls(options.job_tag, kept, room * 3 / 4 if alone else 0.0)


@dataclass
class _Pending:
    """A file whose delivery started with this `stamp`."""

    stamp: Stamp
    kept: asyncio.Task[str | None] | None
    content: asyncio.Task[Content | None] | None
    used: bool = False


class EagerDelivery:
    """Delivers one job's files early. A delivery is valid while its file has not changed since. For
    one event loop; nothing here blocks."""

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
        self._looked = asyncio.Event()
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    def on_output(self, outputs: Mapping[str, Any]) -> None:
        """A node reports these outputs, in the history's form."""
        if self._policy.kept or self._policy.room:
            look = asyncio.ensure_future(self._begin(outputs))
            self._looks.add(look)
            look.add_done_callback(self._end_look)

    async def kept_at(self, local: Path, stamp: Stamp | None, seconds: float) -> str | None:
        """The path on the volume of the file with this `stamp`; None if it is not there within
        `seconds`."""
        pending = await self._current(local, stamp, seconds)
        if pending is None or pending.kept is None:
            return None
        path = await _within(pending.kept, seconds)
        pending.used = path is not None
        return path

    async def encoded(self, local: Path, stamp: Stamp | None, seconds: float) -> Content | None:
        """The file with this `stamp` in base64; None if it was not encoded."""
        pending = await self._current(local, stamp, seconds)
        if pending is None or pending.content is None:
            return None
        return await _within(pending.content, seconds)

    def end(self, background: Background) -> None:
        """Delete, in the background, kept copies of files that were changed or removed since."""
        for look in list(self._looks):
            look.cancel()
        for pending in self._pending.values():
            if pending.content is not None:
                pending.content.cancel()
            if not pending.used and pending.kept is not None:
                background.add(self._delete(pending.kept))

    def _end_look(self, look: asyncio.Task[None]) -> None:
        self._looks.discard(look)
        if not self._looks:
            self._looked.set()

    async def _delete(self, kept: asyncio.Task[str | None]) -> None:
        path = await _within(kept, _WORK_SECONDS)
        if path is not None:
            await self._store.delete(path)

    async def _begin(self, outputs: Mapping[str, Any]) -> None:
        try:
            found = await self._local.run(lambda: self._find(outputs), _LOOK_SECONDS)
        except (TimeUp, OSError):
            return  # retried when the job ends
        for local, stamp in found:
            if local in self._pending:
                continue
            kept = content = None
            if self._policy.kept:
                place = saved_as(local, self._files.output, self._policy.job_tag)
                kept = self._attempt(partial(self._store.save, local, *place, _WORK_SECONDS))
            if stamp.size <= self._room:
                self._room -= stamp.size
                reading = partial(encoded, local)
                content = self._attempt(partial(self._local.run, reading, _WORK_SECONDS))
            self._pending[local] = _Pending(stamp, kept, content)

    def _attempt(self, work: Callable[[], Awaitable[T]]) -> asyncio.Task[T | None]:
        """None if it fails: it is retried when the job ends."""

        async def attempt() -> T | None:
            try:
                async with self._at_once:
                    return await work()
            except (NotSaved, TimeUp, OSError):
                return None

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
            self._looked.clear()
            await is_set_within(self._looked, seconds)
        pending = self._pending.get(local)
        return pending if pending is not None and stamp == pending.stamp else None


async def _within(task: asyncio.Task[T | None], seconds: float) -> T | None:
    done, _ = await asyncio.wait({task}, timeout=seconds)
    return task.result() if done and not task.cancelled() else None


@dataclass(eq=False)
class JobOutputs:
    """The results of one job, from its start to their delivery. `alone`: no other job was here
    meanwhile, whose nodes might write files of the same names. `limit` starts when the job has
    been computed or has failed; uploads must end by `upload_limit`, which leaves time for another
    way if they fail."""

    options: DeliveryOptions
    eager: EagerDelivery
    scratch: Path
    claim: OutputClaim = field(default_factory=OutputClaim)
    alone: bool = True
    limit: Deadline = field(default_factory=lambda: Deadline(GRACE_SECONDS))
    upload_limit: Deadline = field(default_factory=lambda: Deadline(GRACE_SECONDS))
    uploader: BucketUploader | PresignedUploader | None = None
    # Their size has changed since they were found; `size` is the new one.
    resized: list[Result] = field(default_factory=list)
    not_uploaded: set[int] = field(default_factory=set)  # places of results
    at_once: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    def key(self, result: Result) -> str:
        """The result's name in a bucket."""
        prefix = self.options.bucket.prefix if self.options.bucket else ""
        return (Path(prefix) / result.subfolder / result.filename).as_posix()

    def connect(self, results: Sequence[Result], policy: AddressPolicy) -> None:
        """Provide the uploader of the results, if they can be uploaded."""
        if self.options.output.upload_urls:
            keys = [self.key(result) for result in results if result.local is not None]
            addresses = dict(zip(keys, self.options.output.upload_urls, strict=False))
            self.uploader = PresignedUploader(addresses, policy, self.upload_limit)
        elif self.options.bucket is not None:
            self.uploader = BucketUploader(self.options.bucket, policy, self.upload_limit)

    def not_delivered(self, results: Sequence[Result]) -> JobError:
        """The error for results whose time is up."""
        left = [r for r in results if r.local is not None and not (r.path or r.url)]
        kept = [r.path for r in results if r.path]
        names = ", ".join(r.filename for r in left[:5]) or "The results"
        return JobError(
            "job.not_delivered",
            f"The workflow ran, but {names} could not be delivered within "
            f"{self.limit.seconds:.0f} s.",
            "What was kept is named in `kept`; the other files are kept on the volume with the "
            "next job of this worker. Allow more time with max_wait, or look at the volume.",
            kept=kept,
            files=[r.filename for r in left],
        )
