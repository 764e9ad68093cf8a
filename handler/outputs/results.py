"""Turns what a job produced into results: found on disk, described, in the requested format, named,
and each with its entry in the reply."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bootstrap.core.files import Stamp, open_regular
from handler.common import reply
from handler.common.errors import JobError
from handler.common.media_types import HEAD_BYTES, kind_of, mime_type
from handler.outputs.local_files import Content, LocalFiles, stamp_from, stamp_of
from handler.outputs.pictures import NotWritten, rewritten
from handler.outputs.produced import (
    NO_OUTPUT,
    Produced,
    ProducedFile,
    ProducedText,
    as_text,
    saved_as,
    tagged,
)
from handler.request.fields import OutputOptions

_UNIQUE = "Let the workflow save under a name that no other job uses, as SaveImage does."
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the same results give the same file
_BLOCK = 1024 * 1024


@dataclass
class Result:
    """A file or text that a job produced, and where it went: `path` on the volume, `url` in a
    bucket. `in_reply`: its content belongs in the reply, `encoded` if that is ready. A text gets
    a file (`local`) only if it must leave the reply. `size` in bytes; `source` is the file that
    ComfyUI reported, of which `local` may be a converted copy; `stamp` is that of `local` when it
    was found. `repeats` are the nodes that also reported the file, with their `place` among all
    outputs, as for `node_id`. `contains` are the results in a zip."""

    node_id: str
    kind: str
    local: Path | None = None
    source: Path | None = None
    stamp: Stamp | None = None
    filename: str = ""
    subfolder: Path = field(default_factory=Path)
    type: str = "output"
    mime_type: str = ""
    size: int = 0
    text: str | None = None
    path: str | None = None
    url: str | None = None
    in_reply: bool = False
    encoded: Content | None = field(default=None, repr=False)
    warnings: list[str] = field(default_factory=list)
    place: int = 0
    repeats: list[tuple[int, str]] = field(default_factory=list)
    contains: list[Result] = field(default_factory=list)

    @property
    def content_field(self) -> str:
        """The reply's field for its content."""
        if self.text is not None:
            return "text"
        return "image" if self.kind == "image" else "data"

    @property
    def content_size(self) -> int:
        """Bytes that the content adds to the reply as JSON, computed without reading the file."""
        overhead = len(f', "{self.content_field}": ')
        if self.text is not None:
            return overhead + len(json.dumps(self.text))
        return (1 + len(self.repeats)) * (overhead + 2 + 4 * ((self.size + 2) // 3))

    def entry(self) -> dict[str, Any]:
        """Its entry in the reply, without its content."""
        entry: dict[str, Any] = {"node_id": self.node_id, "kind": self.kind}
        if self.local is not None:
            entry |= {
                "filename": self.filename,
                "type": self.type,
                "mime_type": self.mime_type,
                "size": self.size,
            }
        if self.path is not None:
            entry["path"] = self.path
        if self.url is not None:
            entry["url"] = self.url
        if self.contains:
            entry["files"] = [result.entry() for result in self.contains]
        return entry

    def content(self) -> str:
        """The content for the reply: text, or base64 that is ready."""
        content = self.text if self.text is not None else self.encoded
        assert content is not None
        return content


@dataclass
class CollectedOutputs:
    """Results, each file once, in the order of their nodes; the reported files; warnings about
    others."""

    results: list[Result] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def for_each_node(self) -> list[tuple[str, Result]]:
        """(node id, result) for all nodes in order; a file that two reported appears twice, as in
        worker-comfyui."""
        places = [(r.place, r.node_id, r) for r in self.results]
        places += [(place, node, r) for r in self.results for place, node in r.repeats]
        return [(node, r) for _, node, r in sorted(places, key=lambda item: item[0])]

    def reply(self, more: dict[str, Any]) -> dict[str, Any]:
        """The job's reply without the contents of files and texts. `url` is that of the first
        video, else picture, else file in a bucket, for clients that expect one result, such as
        comfy-gen's."""
        warnings = [*self.warnings, *(w for result in self.results for w in result.warnings)]
        entries = [{**result.entry(), "node_id": node} for node, result in self.for_each_node()]
        if linked := [result for result in self.results if result.url is not None]:
            rank = {"video": 0, "image": 1}
            more = {**more, "url": min(linked, key=lambda r: rank.get(r.kind, 2)).url}
        return reply.completed(entries, warnings, **more)

    def drop(self, overwritten: Set[Path]) -> Iterator[Result]:
        """Remove the results of these files, with a warning, and yield them. Raises JobError at the
        end if none is left."""
        dropped = [
            result
            for result in self.results
            if overwritten & {result.source, *(inner.source for inner in result.contains)}
        ]
        self.results = [result for result in self.results if result not in dropped]
        said = [f"{r.filename} was overwritten, perhaps by another job" for r in dropped]
        self.warnings += [f"{sentence}, before it was delivered" for sentence in said]
        yield from dropped
        if dropped and not self.results:
            names = [result.filename for result in dropped]
            raise JobError("job.result_missing", f"{said[0]}.", _UNIQUE, files=names)


def collect_outputs(
    produced: Iterable[Produced], files: LocalFiles, job_tag: str
) -> CollectedOutputs:
    """Find everything. Raises JobError if files were reported and none of them is on disk."""
    found = CollectedOutputs()
    by_file: dict[Path, Result] = {}
    missing: list[str] = []
    items = list(produced)
    for place, item in enumerate(items):
        if isinstance(item, ProducedText):
            found.results.append(_text(item, place, job_tag))
            continue
        local = files.find(item)
        if local is not None and local in by_file:
            _repeat(by_file[local], item.node_id, place)
            continue
        try:
            result = None if local is None else _result(item, local, files, job_tag)
        except OSError:  # removed, or replaced by something other than a file
            result = None
        if local is None or result is None:
            missing += [] if item.guessed else [item.filename]
        else:
            result.place = place
            by_file[local] = result
            found.results.append(result)
    found.files = list(by_file)
    if missing and not found.results:
        raise JobError(
            "job.result_missing",
            f"ComfyUI reported {', '.join(missing[:5])}, but no such file is on disk.",
            "Send the job again; if it stays, a custom node saves elsewhere than it reports.",
            files=missing,
        )
    found.warnings = [f"{name} was reported by ComfyUI but is not on disk" for name in missing]
    if items and not found.results:
        found.warnings.append(NO_OUTPUT)
    return found


def _repeat(result: Result, node_id: str, place: int) -> None:
    """A file that another node has reported; one that a node reports twice counts once."""
    if node_id not in (result.node_id, *(node for _, node in result.repeats)):
        result.repeats.append((place, node_id))


def rewrite(result: Result, options: OutputOptions, job_tag: str, scratch: Path) -> None:
    """Convert a picture, into a new file below `scratch`, where another may have its name."""
    assert result.local is not None
    folder = scratch / str(result.place)
    losses: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        changed = rewritten(result.local, folder, options, losses)
    except (NotWritten, OSError) as problem:
        result.warnings.append(f"{result.filename} is returned as it was saved: {problem}")
        return
    if changed is not None:
        result.filename = tagged(changed.name, job_tag)
        result.path = None
        result.warnings += [f"{result.filename} {loss}" for loss in losses]
        _describe(result, changed)


def write_out(result: Result, scratch: Path) -> None:
    """Write text into a file."""
    scratch.mkdir(parents=True, exist_ok=True)
    local = scratch / f"{result.place}.txt"
    local.write_text(result.text or "", "utf-8", "replace")
    result.mime_type, result.size, result.local = "text/plain", local.stat().st_size, local
    result.stamp = stamp_of(local)


def zipped(results: Sequence[Result], job_tag: str, scratch: Path) -> Result:
    """One file with all of them, uncompressed: pictures and video would hardly get smaller."""
    scratch.mkdir(parents=True, exist_ok=True)
    local = scratch / "results.zip"
    try:
        _pack(results, local)
    except OSError:
        local.unlink(missing_ok=True)  # the disk may be full
        raise
    made = Result(results[0].node_id, "file", filename=tagged(local.name, job_tag))
    made.place, made.contains = results[0].place, list(results)
    _describe(made, local)
    return made


def _pack(results: Sequence[Result], target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for result in results:
            assert result.local is not None
            place = zipfile.ZipInfo((result.subfolder / result.filename).as_posix(), _ZIP_DATE)
            with (
                open_regular(result.local) as source,
                archive.open(place, "w", force_zip64=True) as entry,
            ):
                shutil.copyfileobj(source, entry, _BLOCK)


def _text(item: ProducedText, place: int, job_tag: str) -> Result:
    """Its name is for the file that it becomes if it must leave the reply."""
    name = tagged(f"text_{item.node_id}.txt".replace("/", "_"), job_tag)
    return Result(item.node_id, "text", text=item.text, filename=name, place=place)


def _result(item: ProducedFile, local: Path, files: LocalFiles, job_tag: str) -> Result:
    subfolder, filename = Path(), tagged(local.name, job_tag)
    if local.is_relative_to(files.output):
        subfolder, filename = saved_as(local, files.output, job_tag)
    result = Result(
        item.node_id,
        "file",
        local,
        source=local,
        filename=filename,
        subfolder=subfolder,
        type="temp" if item.guessed and files.is_temp(local) else item.type,
        path=files.place_on_volume(local),
    )
    if result.path is not None:
        result.filename = as_text(local.name)
    _describe(result, local)
    return result


def _describe(result: Result, local: Path) -> None:
    """Set type, kind and size from the file itself. Raises OSError."""
    with open_regular(local) as file:
        head = file.read(HEAD_BYTES)
        status = os.fstat(file.fileno())
    result.mime_type = mime_type(head, local.name)
    result.kind = kind_of(result.mime_type)
    result.size, result.stamp = status.st_size, stamp_from(status)
    result.local = local


def deduplicate_names(results: Iterable[Result]) -> None:
    """Make the names unique: `a.png` and `a.webp` may both have become JPEG, and a node may report
    several texts."""
    seen: set[Path] = set()
    numbers: Counter[Path] = Counter()
    for result in results:
        name = result.subfolder / result.filename
        while result.subfolder / result.filename in seen:
            numbers[name] += 1
            result.filename = f"{name.stem}-{numbers[name] + 1}{name.suffix}"
        seen.add(result.subfolder / result.filename)
