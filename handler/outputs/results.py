"""Pure: what a prompt produced, by its history, and each result on its way into a reply."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bootstrap.config.bucket import Bucket
from bootstrap.core.files import Stamp
from handler.common.errors import Deadline
from handler.request.fields import OutputOptions

NO_OUTPUT = "the workflow ran, but its nodes reported no output"
_MAX_DEPTH = 8
_TEXT_KEYS = frozenset(("text", "texts", "string", "strings"))
# Any other text may be a file name, under any key; each costs a disk access.
_LONGEST_NAME = 1024
_MOST_GUESSES = 1000


@dataclass(frozen=True)
class ProducedFile:
    """A file that a node reported; `type` is ComfyUI's: output, temp or input. Some nodes also
    report a `fullpath`. One that was only `guessed` from text is usually not a file: only the disk
    shows that."""

    node_id: str = field(compare=False)
    filename: str
    subfolder: str
    type: str
    fullpath: str | None = field(default=None, compare=False)
    guessed: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class ProducedText:
    """Text that a node reported."""

    node_id: str
    text: str


Produced = ProducedFile | ProducedText


def produced(
    outputs: Mapping[str, Any], include_temp: bool = False
) -> tuple[list[Produced], list[str]]:
    """Everything in a history entry's outputs, each file once per node, and warnings. Previews
    (type `temp`) count only if requested, or if there is certainly nothing else.
    """
    found = list(_once(_all(outputs)))
    if not found:
        return [], [NO_OUTPUT]
    results = [p for p in found if isinstance(p, ProducedText) or p.type != "temp"]
    if include_temp or len(results) == len(found):
        return found, []
    if any(isinstance(p, ProducedText) or not p.guessed for p in results):
        return results, []
    return found, ["only previews were produced; use SaveImage to keep results"]


def _once(items: Iterator[Produced]) -> Iterator[Produced]:
    """Each file once per node that reports it: ComfyUI answers a node that repeats another with
    that one's file. Texts may repeat. A certain name makes a guess unnecessary."""
    seen: set[tuple[str, ProducedFile]] = set()
    guesses = 0
    for item in items:
        if isinstance(item, ProducedFile):
            guesses += item.guessed
            if (item.node_id, item) in seen or (item.guessed and guesses > _MOST_GUESSES):
                continue
            seen.add((item.node_id, item))
        yield item


def _all(outputs: Mapping[str, Any]) -> Iterator[Produced]:
    for node_id, output in outputs.items():
        if isinstance(output, Mapping):
            for key, value in output.items():
                yield from _within(str(node_id), str(key), value, _MAX_DEPTH)


def _within(node_id: str, key: str, value: Any, depth: int) -> Iterator[Produced]:
    """A node's value under `key` in any shape: items, lists of them, nested objects."""
    if depth == 0:
        return
    if isinstance(value, Mapping):
        if isinstance(value.get("filename"), str):
            yield _file(node_id, value)
        else:
            for inner_key, inner in value.items():
                yield from _within(node_id, str(inner_key), inner, depth - 1)
    elif isinstance(value, (list, tuple)):
        for inner in ["".join(value)] if _is_torn(value) else value:
            yield from _within(node_id, key, inner, depth - 1)
    elif key in _TEXT_KEYS and value is not None:
        yield ProducedText(node_id, value if isinstance(value, str) else str(value))
    elif isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and "\n" not in value:
        yield _path(node_id, value)


def _is_torn(items: Sequence[Any]) -> bool:
    """ComfyUI treats a node's report as a list, so a string becomes a list of characters."""
    return len(items) > 1 and all(isinstance(item, str) and len(item) == 1 for item in items)


def _file(node_id: str, item: Mapping[str, Any]) -> ProducedFile:
    fullpath = item.get("fullpath")
    return ProducedFile(
        node_id,
        item["filename"],
        str(item.get("subfolder") or ""),
        str(item.get("type") or "output"),
        fullpath if isinstance(fullpath, str) else None,
    )


def _path(node_id: str, text: str) -> ProducedFile:
    """A path relative to the output folder, to ComfyUI's own, or absolute: only the disk shows
    which, and whether it is a file."""
    subfolder, name = posixpath.split(text.replace("\\", "/"))
    return ProducedFile(node_id, name, subfolder, "output", text, guessed=True)


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


class Content(str):
    """A file's content in base64, with a short repr: the SDK formats each whole result twice for
    its log, even if that is not written."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} characters>"


@dataclass
class Result:
    """A file or text that a job produced, and where it went: `path` on the volume, `url` in a
    bucket. `in_reply`: its content belongs into the reply, `encoded` if that is ready. A text gets
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
