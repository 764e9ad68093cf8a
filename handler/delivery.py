"""Produced files and texts -> results in the reply, in a bucket, on the volume.

ComfyUI numbers its files by listing its output folder, so two workers that share one overwrite
each other's `ComfyUI_00001_.png`. It therefore writes to local disk; each job's files are copied
to `ComfyUI/output/` on the volume under names that carry the job's mark.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bootstrap.bucket import Bucket
from bootstrap.fetch.addresses import AddressPolicy
from bootstrap.settings import Settings
from bootstrap.volume import Layout
from bootstrap.workdir import WorkDir
from handler import reply
from handler.content import HEAD_BYTES, kind_of, mime_type
from handler.deadline import Deadline
from handler.errors import JobError
from handler.keeper import Keeper, NotKept, marked
from handler.local_files import LocalFiles
from handler.output_options import OutputOptions
from handler.outputs import Produced, ProducedFile, ProducedText
from handler.pictures import NotWritten, rewritten
from handler.result import Result
from handler.s3 import NotUploaded, Store, Upload

_AT_ONCE = 4
# What was computed is not thrown away because the job's time is up now.
_LEAST_SECONDS = 60.0


@dataclass(frozen=True)
class Order:
    """How one job's results are wanted. `mark` is a word that only this job uses; `ended` is when
    ComfyUI was done with it, in seconds since 1970: what is written later is another job's."""

    mark: str
    deadline: Deadline
    options: OutputOptions = field(default_factory=OutputOptions)
    bucket: Bucket | None = None
    ended: float | None = None

    @property
    def way(self) -> str:
        """`base64`, `s3` or `volume`."""
        return self.options.delivery or ("s3" if self.bucket is not None else "base64")

    @property
    def until(self) -> float:
        """Files written later are another job's."""
        return time.time() if self.ended is None else self.ended


class Delivery:
    """Delivers the results of one worker's jobs. Calls block; use them in a thread."""

    def __init__(self, settings: Settings, work: WorkDir, layout: Layout) -> None:
        self.files = LocalFiles(work, layout)
        self._settings = settings
        self._keeper = Keeper(settings, layout)
        self._scratch = work.root / "rewritten"
        self._policy = AddressPolicy(allow_private=settings.allow_private_urls)

    def deliver(
        self,
        produced: Iterable[Produced],
        order: Order,
        warnings: Iterable[str] = (),
        **more: Any,
    ) -> dict[str, Any]:
        """The reply of a job that produced this, within the platform's limit.

        Raises JobError when files were reported and not one of them is on disk, or when a result
        is too large for the reply and can go nowhere else.
        """
        job = _Job(order, self._store(order), self._scratch / order.mark)
        try:
            results, missing, locals_ = self._gathered(produced, order.mark)
            with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="deliver") as pool:
                list(pool.map(lambda result: _rewrite(result, job), results))
                _tell_apart(results)
                list(pool.map(lambda result: self._place(result, job), results))
            kept, lost = self._keep_rest(order, locals_)
            if kept:
                more["also_kept"] = kept
            answer = self._composed(results, [*warnings, *missing, *lost], more, job)
            self._keeper.write_down()
            self.files.settle(locals_, order.until)
            return answer
        finally:
            shutil.rmtree(job.scratch, ignore_errors=True)

    def keep_rest(self, order: Order) -> tuple[list[str], list[str]]:
        """After a job that failed: keep what its nodes wrote. Paths on the volume, and warnings."""
        kept, lost = self._keep_rest(order, [])
        self._keeper.write_down()
        return kept, lost

    def _store(self, order: Order) -> Store | None:
        if order.bucket is None:
            return None
        seconds = max(order.deadline.remaining, _LEAST_SECONDS)
        return Store(order.bucket, self._policy, Deadline(seconds))

    def _gathered(
        self, produced: Iterable[Produced], mark: str
    ) -> tuple[list[Result], list[str], list[Path]]:
        """Results in order, warnings for what is not there, and the local files that are."""
        results: list[Result] = []
        missing: list[str] = []
        found: list[Path] = []
        for item in produced:
            if isinstance(item, ProducedText):
                results.append(Result(item.node_id, "text", text=item.text))
                continue
            local = self.files.find(item)
            if local is None:
                missing += [] if item.guessed else [item.filename]
            elif local not in found:
                found.append(local)
                results.append(self._result(item, local, mark))
        if missing and not results:
            raise _missing(missing)
        told = [f"{name} was reported by ComfyUI but is not on disk" for name in missing]
        return results, told, found

    def _result(self, item: ProducedFile, local: Path, mark: str) -> Result:
        inside = local.is_relative_to(self.files.output)
        result = Result(
            item.node_id,
            "file",
            local,
            filename=marked(local.name, mark),
            subfolder=local.parent.relative_to(self.files.output) if inside else Path(),
            type=item.type,
        )
        if self.files.is_volumes(local):
            result.filename, result.path = local.name, self._keeper.place_of(local)
        return _described(result, local)

    def _place(self, result: Result, job: _Job) -> None:
        """Take one result where it is wanted."""
        if result.local is None:
            result.in_reply = True
            return
        way = job.order.way
        if way == "s3":
            self._upload(result, job)
        if way == "volume" or (self._settings.keep_outputs and result.type == "output"):
            self._keep(result)
        there = result.url is not None or (way == "volume" and result.path is not None)
        result.in_reply = not there

    def _upload(self, result: Result, job: _Job) -> bool:
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

    def _keep(self, result: Result) -> bool:
        """On the volume; a warning when that fails."""
        if result.path is not None:
            return True
        assert result.local is not None
        try:
            path = self._keeper.keep(result.local, result.subfolder, result.filename)
        except NotKept as problem:
            result.warnings.append(str(problem))
            return False
        result.path, result.filename = path, Path(path).name
        return True

    def _keep_rest(self, order: Order, reported: Sequence[Path]) -> tuple[list[str], list[str]]:
        """Files that nodes wrote without reporting them (saved models, say)."""
        kept: list[str] = []
        lost: list[str] = []
        for local in self.files.unreported(reported, order.until):
            if not self._settings.keep_outputs:
                self.files.done_with(local)
                continue
            subfolder = local.parent.relative_to(self.files.output)
            try:
                kept.append(self._keeper.keep(local, subfolder, marked(local.name, order.mark)))
                self.files.done_with(local)
            except NotKept as problem:
                lost.append(str(problem))
        return kept, lost

    def _composed(
        self, results: list[Result], warnings: list[str], more: dict[str, Any], job: _Job
    ) -> dict[str, Any]:
        """The reply, with the contents that fit; the largest of the others go elsewhere."""
        limit = self._settings.max_reply_mb * 1e6
        inside = [result for result in results if result.in_reply]
        head = reply.json_size(_without_contents(results, warnings, more))
        for index in reply.to_leave_out([r.content_size for r in inside], limit - head):
            self._leave_out(inside[index], job)
        answer = _without_contents(results, warnings, more)
        size = reply.json_size(answer) + sum(r.content_size for r in results if r.in_reply)
        if size > limit:
            raise reply.too_large(size, self._settings.max_reply_mb)
        for entry, result in zip(answer["results"], results, strict=True):
            if result.in_reply:
                entry[result.content_field] = result.content()
        return answer

    def _leave_out(self, result: Result, job: _Job) -> None:
        """Take a result out of the reply, to somewhere else, and say so. Raises JobError."""
        limit = f"MAX_REPLY_MB={self._settings.max_reply_mb:g}"
        if result.text is not None:
            _write_out(result, job)
        if self._upload(result, job):
            where, advice = "was uploaded to its url", ""
        elif self._keep(result):
            where = f"is on the volume at {result.path}"
            advice = "; with BUCKET_ENDPOINT_URL and its fellows set it would come as a URL"
        else:
            raise reply.too_large_alone(result.entry(), result.warnings, limit)
        result.in_reply, result.text = False, None
        result.warnings.append(
            f"{result.filename} ({result.size} bytes) {where}; with it the reply would be larger "
            f"than {limit}{advice}"
        )


@dataclass
class _Job:
    order: Order
    store: Store | None
    scratch: Path
    not_uploaded: list[Result] = field(default_factory=list)


def _without_contents(
    results: Iterable[Result], warnings: Iterable[str], more: dict[str, Any]
) -> dict[str, Any]:
    """The reply but for what files and texts hold."""
    results = list(results)
    told = [*warnings, *(warning for result in results for warning in result.warnings)]
    return reply.completed([result.entry() for result in results], told, **more)


def _described(result: Result, local: Path) -> Result:
    """What only the file can tell: type, kind and size."""
    with open(local, "rb") as file:
        head = file.read(HEAD_BYTES)
    result.mime_type = mime_type(head, local.name)
    result.kind = kind_of(result.mime_type)
    result.size = local.stat().st_size
    result.local = local
    return result


def _rewrite(result: Result, job: _Job) -> None:
    """Give a picture the form that is wanted, in a file of its own; a warning when that fails."""
    if result.kind != "image" or result.local is None or not job.order.options.changes_images:
        return
    folder = job.scratch / result.subfolder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        changed = rewritten(result.local, folder, job.order.options)
    except NotWritten as problem:
        result.warnings.append(f"{result.filename} comes as it was saved: {problem}")
        return
    if changed is not None:
        result.filename = marked(changed.name, job.order.mark)
        result.path = None
        _described(result, changed)


def _tell_apart(results: Iterable[Result]) -> None:
    """No two results of a job have one name, such as `a.png` and `a.webp` once both are JPEG."""
    seen: set[Path] = set()
    for result in results:
        name, number = Path(result.filename), 1
        while result.local is not None and result.subfolder / result.filename in seen:
            number += 1
            result.filename = f"{name.stem}-{number}{name.suffix}"
        seen.add(result.subfolder / result.filename)


def _write_out(result: Result, job: _Job) -> None:
    """A text becomes a file."""
    job.scratch.mkdir(parents=True, exist_ok=True)
    name = f"text_{result.node_id}.txt".replace("/", "_")[-100:]
    local = job.scratch / name
    local.write_text(result.text or "", "utf-8", "replace")
    result.filename = marked(name, job.order.mark)
    result.mime_type, result.size, result.local = "text/plain", local.stat().st_size, local


def _missing(names: list[str]) -> JobError:
    return JobError(
        "job.result_missing",
        f"ComfyUI reported {', '.join(names[:5])}, but no such file is on disk.",
        "Send the job again; if it stays, a custom node saves somewhere else than it says.",
        files=names,
    )
