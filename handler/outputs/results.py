"""Pure: a prompt's history -> what it produced, and each result on its way into a reply."""

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
# Any other text may be the name of a file, whatever it stands under; each costs a look at the disk.
_LONGEST_NAME = 1024
_MOST_GUESSES = 1000


@dataclass(frozen=True)
class ProducedFile:
    """A file that a node reported; `type` is ComfyUI's: output, temp or input. `fullpath` is
    reported by some nodes beside it. One that was only `guessed` from text is most often not a
    file: only the disk shows that."""

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
    """Everything in a history entry's outputs, each file once for each node, and warnings.

    Previews (type `temp`) count only when asked for, or when there is nothing else for sure: then
    they are all one gets.
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
    """Each file once for each node that reports it: ComfyUI answers a node that repeats another
    with that one's file. Texts may well be the same. A name that is certain makes a guess idle."""
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
    """What a node put under `key`, whatever its shape: items, lists of them, objects of objects."""
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
    """ComfyUI takes what a node reports for a list: of a text it makes a list of characters."""
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
    """Relative to the output folder, to ComfyUI's own, or absolute: only the disk shows which,
    and whether it is a file at all."""
    subfolder, name = posixpath.split(text.replace("\\", "/"))
    return ProducedFile(node_id, name, subfolder, "output", text, guessed=True)


@dataclass(frozen=True)
class DeliveryOptions:
    """How the results of a job are delivered. `job_tag` is a word that only this job uses."""

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
        """Is there somewhere to upload results to?"""
        return self.bucket is not None or bool(self.output.upload_urls)


class Content(str):
    """A file's content in base64. It is not printed: the SDK formats each whole result for its log,
    twice, even where that line is not written."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} characters>"


@dataclass
class Result:
    """A file or a text that a job produced, and what became of it: `path` on the volume, `url` in
    a bucket. `in_reply`: its content is to be in the reply itself, `encoded` if that was made
    already. A text gets a file (`local`) only when it has to leave the reply. `size` in bytes;
    `source` is the file that ComfyUI reported, of which
    `local` may be a rewritten copy; `stamp` as `local` looked when it was found. `repeats` are
    the nodes that also reported the same file; like `node_id` at its `place` among all that was
    produced. `contains` are the results in a zip."""

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
        """Where the reply holds its content."""
        if self.text is not None:
            return "text"
        return "image" if self.kind == "image" else "data"

    @property
    def content_size(self) -> int:
        """Bytes that the content adds to the reply as JSON; the file is not read for it."""
        overhead = len(f', "{self.content_field}": ')
        if self.text is not None:
            return overhead + len(json.dumps(self.text))
        return (1 + len(self.repeats)) * (overhead + 2 + 4 * ((self.size + 2) // 3))

    def entry(self) -> dict[str, Any]:
        """What the reply says about it, without its content."""
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
        """The content for the reply: text, or base64 that was made before."""
        content = self.text if self.text is not None else self.encoded
        assert content is not None
        return content
