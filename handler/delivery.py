"""Results -> the reply, a bucket, the volume; and what nobody reported -> the volume.

ComfyUI numbers its files by listing its output folder, so two workers that share one overwrite
each other's `ComfyUI_00001_.png`. It therefore writes to local disk; each job's files are copied
to `ComfyUI/output/` on the volume under names that carry the job's mark.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bootstrap.comfyui import WorkDir
from bootstrap.config import Settings
from bootstrap.net.addresses import AddressPolicy
from bootstrap.volume import Layout
from handler import reply
from handler.ahead import Ahead, Wishes
from handler.deadline import Deadline
from handler.gather import Gathered, gather, rewrite, write_out
from handler.keeper import Keeper, NotKept, place_of
from handler.local_files import Claim, LocalFiles
from handler.order import Order
from handler.outputs import Produced
from handler.result import Result
from handler.s3 import NotUploaded, Store, Upload

_AT_ONCE = 4
# What was computed is not thrown away because the job's time is up now.
_LEAST_SECONDS = 60.0
_ROOM_FOR_THE_REST = 100_000  # bytes of a reply beside the contents of files


@dataclass
class Parcel:
    """The results of one job, from its start until they are delivered."""

    order: Order
    ahead: Ahead
    scratch: Path
    claim: Claim = field(default_factory=Claim)
    store: Store | None = None
    not_uploaded: list[Result] = field(default_factory=list)


class Delivery:
    """Delivers the results of one worker's jobs. Calls block; use them in a thread."""

    def __init__(self, settings: Settings, work: WorkDir, layout: Layout) -> None:
        self.files = LocalFiles(work, layout)
        self._settings = settings
        self._room = settings.max_reply_mb * 1e6 - _ROOM_FOR_THE_REST
        self._keeper = Keeper(settings, layout)
        self._scratch = work.root / "rewritten"
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="deliver")
        self._policy = AddressPolicy(allow_private=settings.allow_private_urls)

    def begin(self, order: Order) -> Parcel:
        """For a job that begins: what it saves may be delivered ahead while it runs, and what it
        leaves can be claimed for it."""
        as_saved = not order.options.changes_images
        keeps = as_saved and (self._settings.keep_outputs or order.way == "volume")
        room = self._room * 3 / 4 if as_saved and order.way == "base64" else 0.0
        ahead = Ahead(Wishes(order.mark, keeps, room), self.files, self._keeper, self._pool)
        return Parcel(order, ahead, self._scratch / order.mark)

    def deliver(
        self,
        produced: Iterable[Produced],
        job: Parcel,
        warnings: Iterable[str] = (),
        **more: Any,
    ) -> dict[str, Any]:
        """The reply of a job that produced this and left what is claimed, within the platform's
        limit.

        Raises JobError when files were reported and not one of them is on disk, or when a result
        is too large for the reply and can go nowhere else.
        """
        found = gather(produced, self.files, job.order.mark)
        found.warnings[:0] = warnings
        rest = [path for path in job.claim.rest if path not in found.files]
        job.store = self._store(job.order)
        try:
            return self._delivered(found, rest, job, more)
        finally:
            shutil.rmtree(job.scratch, ignore_errors=True)
            job.ahead.end()
            self._pool.submit(self._keeper.write_down)  # the reply does not wait for it
            self.files.settle(job.claim, found.files)

    def keep_rest(self, job: Parcel) -> tuple[list[str], list[str]]:
        """After a job that failed: keep what its nodes wrote. Paths on the volume, and warnings."""
        try:
            return self._keep_rest(job.claim.rest, job)
        finally:
            job.ahead.end()
            self._pool.submit(self._keeper.write_down)
            self.files.release(job.claim)

    def _delivered(
        self, found: Gathered, rest: Sequence[Path], job: Parcel, more: dict[str, Any]
    ) -> dict[str, Any]:
        rewrite(found.results, job.order, job.scratch, self._pool)
        encoded = [
            self._pool.submit(_encode, result, job) for result in self._for_the_reply(found, job)
        ]
        list(self._pool.map(lambda result: self._place(result, job), found.results))
        for each in encoded:
            each.result()
        kept, lost = self._keep_rest(rest, job)
        found.warnings += lost
        if kept:
            more["also_kept"] = kept
        return self._composed(found, more, job)

    def _for_the_reply(self, found: Gathered, job: Parcel) -> list[Result]:
        """Files whose contents the reply will hold, as far as that is sure before they are kept:
        base64 is made of them meanwhile."""
        files = [result for result in found.results if result.local is not None]
        fits = sum(result.content_size for result in files) < self._room
        return files if fits and job.order.way == "base64" else []

    def _store(self, order: Order) -> Store | None:
        if order.bucket is None:
            return None
        seconds = max(order.deadline.remaining, _LEAST_SECONDS)
        return Store(order.bucket, self._policy, Deadline(seconds))

    def _place(self, result: Result, job: Parcel) -> None:
        """Take one result where it is wanted."""
        if result.local is None:
            result.in_reply = True
            return
        way = job.order.way
        if way == "s3":
            self._upload(result, job)
        if way == "volume" or (self._settings.keep_outputs and result.type == "output"):
            self._keep(result, job)
        there = result.url is not None or (way == "volume" and result.path is not None)
        result.in_reply = not there

    def _upload(self, result: Result, job: Parcel) -> bool:
        """To the bucket; a warning when that fails."""
        if job.store is None or result.local is None or result in job.not_uploaded:
            return False
        prefix = job.order.bucket.prefix if job.order.bucket else ""
        key = (Path(prefix) / result.subfolder / result.filename).as_posix()
        try:
            result.url = job.store.put(Upload(result.local, key, result.mime_type))
            return True
        except NotUploaded as problem:
            job.not_uploaded.append(result)
            result.warnings.append(f"{result.filename} could not be uploaded: {problem}")
            return False

    def _keep(self, result: Result, job: Parcel) -> bool:
        """On the volume; a warning when that fails."""
        if result.path is not None:
            return True
        assert result.local is not None
        try:
            path = job.ahead.kept_at(result.local) or self._keeper.keep(
                result.local, result.subfolder, result.filename
            )
        except NotKept as problem:
            result.warnings.append(str(problem))
            return False
        result.path, result.filename = path, Path(path).name
        return True

    def _keep_rest(self, rest: Iterable[Path], job: Parcel) -> tuple[list[str], list[str]]:
        """Files that nodes wrote without reporting them (saved models, say). Those that cannot be
        kept are tried again after the next job."""
        kept: list[str] = []
        lost: list[str] = []
        for local in rest:
            place = place_of(local, self.files.output, job.order.mark)
            try:
                if self._settings.keep_outputs:
                    kept.append(job.ahead.kept_at(local) or self._keeper.keep(local, *place))
                local.unlink(missing_ok=True)
            except NotKept as problem:
                lost.append(str(problem))
        return kept, lost

    def _composed(self, found: Gathered, more: dict[str, Any], job: Parcel) -> dict[str, Any]:
        """The reply, with the contents that fit; the largest of the others go elsewhere."""
        limit = self._settings.max_reply_mb * 1e6
        inside = [result for result in found.results if result.in_reply]
        head = reply.json_size(_without_contents(found, more))
        for index in reply.to_leave_out([r.content_size for r in inside], limit - head):
            self._leave_out(inside[index], job)
        answer = _without_contents(found, more)
        size = reply.json_size(answer) + sum(r.content_size for r in inside if r.in_reply)
        if size > limit:
            raise reply.too_large(size, self._settings.max_reply_mb)
        for entry, result in zip(answer["results"], found.results, strict=True):
            if result.in_reply:
                entry[result.content_field] = result.content()
        return answer

    def _leave_out(self, result: Result, job: Parcel) -> None:
        """Take a result out of the reply, to somewhere else, and say so. Raises JobError."""
        limit = f"MAX_REPLY_MB={self._settings.max_reply_mb:g}"
        if result.text is not None:
            write_out(result, job.order.mark, job.scratch)
        if self._upload(result, job):
            where, advice = "was uploaded to its url", ""
        elif self._keep(result, job):
            where = f"is on the volume at {result.path}"
            advice = "; with BUCKET_ENDPOINT_URL and its fellows set it would come as a URL"
        else:
            raise reply.too_large_alone(result.entry(), result.warnings, limit)
        result.in_reply, result.text = False, None
        result.warnings.append(
            f"{result.filename} ({result.size} bytes) {where}; with it the reply would be larger "
            f"than {limit}{advice}"
        )


def _without_contents(found: Gathered, more: dict[str, Any]) -> dict[str, Any]:
    """The reply but for what files and texts hold."""
    told = [*found.warnings, *(w for result in found.results for w in result.warnings)]
    return reply.completed([result.entry() for result in found.results], told, **more)


def _encode(result: Result, job: Parcel) -> None:
    if result.local is not None:
        result.encoded = job.ahead.encoded(result.local)
    result.encode()
