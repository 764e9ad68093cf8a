"""Delivers results to the reply, a bucket and the volume, and nodes' unreported files to the
volume.

ComfyUI numbers its files by listing its output folder, so two workers that share one overwrite each
other's `ComfyUI_00001_.png`. So it writes to local disk, and each job's files are copied to
`ComfyUI/output/` on the volume under names with the job's tag.

A delivery is a coroutine; only its leaves (copy, encode or upload one file) run in threads, at most
four per job, so that neither many files nor many jobs block each other.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

from bootstrap.comfyui import WorkDir
from bootstrap.config import Settings
from bootstrap.core.files import Stamp
from bootstrap.net.addresses import AddressPolicy
from bootstrap.volume import Layout
from handler.common import reply
from handler.common.blocking import Calls, TimeUp, gather_all
from handler.common.errors import Deadline, JobError
from handler.outputs.job_outputs import (
    GRACE_SECONDS,
    DeliveryOptions,
    DeliveryPolicy,
    EagerDelivery,
    JobOutputs,
)
from handler.outputs.local_files import LocalFiles, encoded, stamp_of
from handler.outputs.produced import Produced, saved_as
from handler.outputs.results import (
    CollectedOutputs,
    Result,
    collect_outputs,
    deduplicate_names,
    rewrite,
    write_out,
    zipped,
)
from handler.outputs.uploads import NotUploaded, Upload
from handler.outputs.volume_store import NotSaved, VolumeStore

T = TypeVar("T")
_WRITING_SECONDS, _LOOK_EVERY = 5.0, 0.05
_ROOM_FOR_THE_REST = 100_000  # bytes of a reply besides the contents of files


class Delivery:
    """Delivers the results of one worker's jobs."""

    def __init__(self, settings: Settings, work: WorkDir, layout: Layout, calls: Calls) -> None:
        self.files = LocalFiles(work, layout)
        self._settings = settings
        self._calls = calls
        self._jobs: WeakSet[JobOutputs] = WeakSet()
        self._room = settings.max_reply_mb * 1e6 - _ROOM_FOR_THE_REST
        self._saver = VolumeStore(settings, layout, calls.volume)
        self._scratch = work.root / "rewritten"
        self._policy = AddressPolicy(allow_private=settings.allow_private_urls)

    def begin(self, options: DeliveryOptions) -> JobOutputs:
        """Call it when a job starts: its results may be delivered eagerly while it runs, and its
        files can be claimed."""
        policy = DeliveryPolicy.of(options, self._settings.keep_outputs, self._room)
        eager = EagerDelivery(policy, self.files, self._saver, self._calls.local)
        job = JobOutputs(options, eager, self._scratch / options.job_tag, alone=not self._jobs)
        for other in self._jobs:
            other.alone = False
        self._jobs.add(job)
        return job

    async def deliver(
        self,
        produced: Sequence[Produced],
        job: JobOutputs,
        warnings: Iterable[str] = (),
        **more: Any,
    ) -> dict[str, Any]:
        """The reply of a job with these results and claimed files, within the platform's limit, by
        the job's deadline or within ten seconds, whichever is later. Raises JobError if files were
        reported and none of them is on disk, or if a result can go nowhere. Such a result stays on
        local disk, and is kept with the next job's.
        """
        seconds = max(job.options.deadline.remaining, GRACE_SECONDS)
        job.upload_limit = Deadline(seconds)
        job.limit = Deadline(seconds + (GRACE_SECONDS if job.options.uploads else 0))
        found, answer = CollectedOutputs(), None
        try:
            unfinished = await self._wait_for_writers(job)
            found = await self._collect(produced, job)
            found.warnings[:0] = [*warnings, *unfinished]
            answer = await self._deliver(found, job, more)
            return answer
        except TimeUp:
            raise job.not_delivered(found.results) from None
        finally:
            await asyncio.shield(self._end(job, found, answered=answer is not None))

    async def keep_rest(self, job: JobOutputs) -> tuple[list[str], list[str]]:
        """After a failed job: keep what its nodes wrote; returns paths on the volume, and
        warnings."""
        job.limit = Deadline(GRACE_SECONDS)
        try:
            return await self._keep_rest(job.claim.rest, job)
        except TimeUp:
            return [], []
        finally:
            self._stop(job)
            self.files.release(job.claim)

    def _stop(self, job: JobOutputs) -> None:
        self._jobs.discard(job)
        job.eager.end(self._calls.background)
        self._calls.background.add(self._saver.flush_record())

    async def _wait_for_writers(self, job: JobOutputs) -> list[str]:
        """Wait a few seconds for reported files that a node's thread or process still writes;
        warnings about those that are not complete then."""
        limit, files = Deadline(_WRITING_SECONDS), job.claim.unfinished
        while files and not limit.expired:
            await asyncio.sleep(_LOOK_EVERY)
            files = await self._call(partial(self.files.look_again, job.claim), job)
        return [f"{path.name} was still being written" for path in files]

    async def _collect(self, produced: Sequence[Produced], job: JobOutputs) -> CollectedOutputs:
        def collect() -> CollectedOutputs:
            return collect_outputs(produced, self.files, job.options.job_tag)

        return await self._call(collect, job, self.files.may_be_on_volume(produced))

    async def _deliver(
        self, found: CollectedOutputs, job: JobOutputs, more: dict[str, Any]
    ) -> dict[str, Any]:
        await self._leave_to_others(found, job)
        reported = set(found.files)
        rest = [path for path in job.claim.rest if path not in reported]
        await self._rewrite(found.results, job)
        deduplicate_names(found.results)
        if job.options.output.zip:
            await self._zip(found, job)
        job.connect(found.results, self._policy)
        early = self._for_the_reply(found, job)
        encoding = [self._encode(result, job) for result in early]
        await gather_all([*encoding, *(self._place(result, job) for result in found.results)])
        await self._leave_to_others(found, job)
        kept, lost = await self._keep_rest(rest, job)
        found.warnings += lost
        if kept:
            more["also_kept"] = kept
        return await self._compose(found, more, job)

    async def _leave_to_others(self, found: CollectedOutputs, job: JobOutputs) -> None:
        """Drop results whose files other jobs have overwritten, with a warning; an error if none is
        left."""
        if job.alone:
            return
        changed = await self._call(partial(self.files.overwritten, job.claim), job)
        for result in found.drop(changed):
            if result.path is not None:
                await self._saver.delete(result.path)

    async def _rewrite(self, results: Sequence[Result], job: JobOutputs) -> None:
        async def one(result: Result) -> None:
            async with job.at_once:
                await self._call(
                    lambda: rewrite(result, job.options.output, job.options.job_tag, job.scratch),
                    job,
                )

        if job.options.output.changes_images:
            await gather_all(one(result) for result in results if result.kind == "image")

    def _for_the_reply(self, found: CollectedOutputs, job: JobOutputs) -> list[Result]:
        """Files that certainly fit into the reply: they are encoded while results are saved."""
        files = [result for result in found.results if result.local is not None]
        fits = sum(result.content_size for result in files) < self._room
        return files if fits and job.options.destination == "base64" else []

    async def _encode(self, result: Result, job: JobOutputs) -> None:
        if result.local is None or result.encoded is not None:
            return
        local, seconds = result.local, job.limit.remaining
        made = await job.eager.encoded(local, result.stamp, seconds)
        if made is None:
            async with job.at_once:
                made = await self._read(lambda: encoded(local), local, job)
        result.encoded = made
        size = len(made) // 4 * 3 - made[-2:].count("=")
        if size != result.size:
            result.size, result.stamp = size, None
            job.resized.append(result)

    async def _zip(self, found: CollectedOutputs, job: JobOutputs) -> None:
        """Replace all files by one zip; on the volume they are kept separately."""
        files = [result for result in found.results if result.local is not None]
        if not files:
            return
        keeps = self._settings.keep_outputs
        await gather_all(self._keep(r, job) for r in files if keeps and r.type == "output")
        tag, scratch = job.options.job_tag, job.scratch
        on_volume = any(r.local and self.files.place_on_volume(r.local) for r in files)
        try:
            made = await self._call(lambda: zipped(files, tag, scratch), job, on_volume)
        except OSError as problem:
            found.warnings.append(f"the results are not in one zip: {_no_file(problem)}")
            return
        made.warnings += [warning for result in files for warning in result.warnings]
        found.results = [made, *(result for result in found.results if result.local is None)]

    async def _place(self, result: Result, job: JobOutputs) -> None:
        """Deliver one result to its destination."""
        if result.local is None:
            result.in_reply = True
            return
        destination = job.options.destination
        if destination == "s3":
            await self._upload(result, job)
        keeps = self._settings.keep_outputs and result.type == "output" and not result.contains
        if destination == "volume" or keeps:
            await self._keep(result, job)
        there = result.url is not None or (destination == "volume" and result.path is not None)
        result.in_reply = not there

    async def _upload(self, result: Result, job: JobOutputs) -> bool:
        """Upload to the bucket; a warning if that fails."""
        if job.uploader is None or result.local is None or result.place in job.not_uploaded:
            return False
        uploader, upload = job.uploader, Upload(result.local, job.key(result), result.mime_type)
        try:
            async with job.at_once:
                result.url = await self._calls.network.run(
                    lambda: uploader.put(upload), job.upload_limit.remaining, uploader.abort
                )
            return True
        except (NotUploaded, TimeUp) as problem:
            why = str(problem) or uploader.too_slow
            job.not_uploaded.add(result.place)
            result.warnings.append(f"{result.filename} could not be uploaded: {why}")
            return False

    async def _keep(self, result: Result, job: JobOutputs) -> bool:
        """Keep it on the volume; a warning if that fails."""
        if result.path is not None:
            return True
        assert result.local is not None
        place = (result.subfolder, result.filename)
        try:
            path = await self._save(result.local, result.stamp, place, job)
        except NotSaved as problem:
            result.warnings.append(str(problem))
            return False
        result.path, result.filename = path, Path(path).name
        return True

    async def _keep_again(self, result: Result, job: JobOutputs) -> None:
        """Replace what was kept of a file that something still writes to."""
        assert result.local is not None
        if result.path is not None and self.files.place_on_volume(result.local) is None:
            earlier, result.path = result.path, None
            if await self._keep(result, job):
                await self._saver.delete(earlier)
            else:
                result.path = earlier

    async def _save(
        self, local: Path, stamp: Stamp | None, place: tuple[Path, str], job: JobOutputs
    ) -> str:
        """The file's path on the volume, saving it if necessary. Raises NotSaved."""
        path = await job.eager.kept_at(local, stamp, job.limit.remaining)
        if path is None:
            async with job.at_once:
                path = await self._saver.save(local, *place, job.limit.remaining)
        return path

    async def _keep_rest(
        self, rest: Sequence[Path], job: JobOutputs
    ) -> tuple[list[str], list[str]]:
        """Keep files that nodes wrote without reporting them (such as saved models). Those that
        fail are retried after the next job."""
        kept: list[str] = []
        lost: list[str] = []

        async def keep(local: Path, stamp: Stamp | None) -> None:
            place = saved_as(local, self.files.output, job.options.job_tag)
            try:
                kept.append(await self._save(local, stamp, place, job))
            except NotSaved as problem:
                lost.append(str(problem))
            else:
                with suppress(TimeUp):
                    removing = partial(self.files.remove, local, stamp)
                    await self._calls.local.run(removing, GRACE_SECONDS)

        if rest:
            stamps = await self._call(lambda: {path: stamp_of(path) for path in rest}, job)
            if not job.alone:  # what has changed may be another job's
                stamps = {p: s for p, s in stamps.items() if s == job.claim.versions[p]}
            await gather_all(keep(*file) for file in stamps.items())
        return sorted(kept), lost

    async def _compose(
        self, found: CollectedOutputs, more: dict[str, Any], job: JobOutputs
    ) -> dict[str, Any]:
        """The reply, with the contents that fit; the largest go elsewhere."""
        limit = self._settings.max_reply_mb * 1e6
        while True:
            await gather_all(self._keep_again(result, job) for result in job.resized)
            job.resized.clear()
            inside = [result for result in found.results if result.in_reply]
            head = reply.json_size(found.reply(more))
            for index in reply.to_leave_out([r.content_size for r in inside], limit - head):
                await self._leave_out(inside[index], job)
            answer = found.reply(more)
            size = reply.json_size(answer) + sum(r.content_size for r in inside if r.in_reply)
            if size > limit:
                raise reply.too_large(size, self._settings.max_reply_mb)
            await gather_all(self._encode(result, job) for result in inside if result.in_reply)
            if not job.resized:
                break
        for entry, (_, result) in zip(answer["results"], found.for_each_node(), strict=True):
            if result.in_reply:
                entry[result.content_field] = result.content()
        return answer

    async def _leave_out(self, result: Result, job: JobOutputs) -> None:
        """Move a result out of the reply, to bucket or volume, with a warning. Raises JobError."""
        limit = f"MAX_REPLY_MB={self._settings.max_reply_mb:g}"
        if result.text is not None:
            try:
                await self._call(lambda: write_out(result, job.scratch), job)
            except OSError as problem:
                size = len(result.text.encode("utf-8", "replace"))
                about = {"filename": result.filename, "size": size}
                raise reply.too_large_alone(about, [_no_file(problem)], limit) from None
        if await self._upload(result, job):
            where, advice = "was uploaded to its url", ""
        elif await self._keep(result, job):
            where = f"is on the volume at {result.path}"
            advice = "; with BUCKET_ENDPOINT_URL and the other BUCKET_ settings it would be a URL"
        else:
            raise reply.too_large_alone(result.entry(), result.warnings, limit)
        result.in_reply, result.text = False, None
        result.warnings.append(
            f"{result.filename} ({result.size} bytes) {where}; with it the reply would be larger "
            f"than {limit}{advice}"
        )

    async def _read(self, work: Callable[[], T], local: Path, job: JobOutputs) -> T:
        """Read a result's file, which may be on the volume. Raises JobError if it cannot be
        read."""
        try:
            return await self._call(work, job, self.files.place_on_volume(local) is not None)
        except OSError as problem:
            raise JobError(
                "job.result_missing",
                f"{local.name} was saved, but cannot be read: {problem.strerror or problem}.",
                "Send the job again; if it stays, a custom node removes or replaces what it saved.",
                files=[local.name],
            ) from None

    async def _call(self, work: Callable[[], T], job: JobOutputs, on_volume: bool = False) -> T:
        """What `work` returns, which reads local files, or some `on_volume`."""
        if on_volume:
            return await self._calls.volume.call_or_fail(work, job.limit.remaining)
        return await self._calls.local.run(work, job.limit.remaining)

    async def _end(self, job: JobOutputs, found: CollectedOutputs, answered: bool) -> None:
        """Release results that could not be delivered, so that the next job keeps them."""
        self._stop(job)
        left = [r for r in found.results if not (r.path or r.url or (answered and r.in_reply))]
        left += [inner for result in left for inner in result.contains if not inner.path]
        nowhere = {result.source for result in left}
        delivered = [path for path in found.files if path not in nowhere]

        def tidy() -> None:
            if job.uploader is not None:
                job.uploader.close()
            shutil.rmtree(job.scratch, ignore_errors=True)
            self.files.commit(job.claim, delivered)

        try:
            await self._calls.local.run(tidy, GRACE_SECONDS)
        except TimeUp:
            self.files.release(job.claim)


def _no_file(problem: OSError) -> str:
    return f"its file could not be created ({problem.strerror or problem})"
