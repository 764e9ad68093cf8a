"""Pure: a prompt's history -> what it produced, and each of it on its way into a reply."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bootstrap.config.bucket import Bucket
from handler.common.deadline import Deadline
from handler.request.fields import OutputOptions

Stamp = tuple[int, int]
_MAX_DEPTH = 8
_TEXT_KEYS = frozenset(("text", "texts", "string", "strings"))
# A text in one of these places, or with one of these endings, is the path of a file.
_PATH_KEYS = frozenset("result model_file model_path video_path audio_path file_path path".split())
_PATH_ENDINGS = tuple(
    ".png .jpg .jpeg .webp .gif .avif .exr .tif .tiff .mp4 .webm .mkv .mov .avi .wav .mp3 .flac "
    ".ogg .opus .m4a .glb .gltf .obj .fbx .stl .ply .usdz .splat .spz .latent .safetensors .npz "
    ".json .txt .srt .csv .zip .pdf .svg".split()
)


@dataclass(frozen=True)
class ProducedFile:
    """A file that a node reported; `type` is ComfyUI's: output, temp or input. `fullpath` is what
    some nodes tell beside it. One that was only `guessed` from a text may turn out to be none."""

    node_id: str = field(compare=False)
    filename: str
    subfolder: str
    type: str
    fullpath: str | None = field(default=None, compare=False)
    guessed: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class ProducedText:
    """A text that a node reported."""

    node_id: str
    text: str


Produced = ProducedFile | ProducedText


def produced(
    outputs: Mapping[str, Any], include_temp: bool = False
) -> tuple[list[Produced], list[str]]:
    """Everything in a history entry's outputs, each file once, and warnings.

    Previews (type `temp`) count only when asked for, or when there is nothing else: then they are
    all one gets.
    """
    found = list(_once(_all(outputs)))
    if include_temp and found:
        return found, []
    kept = [p for p in found if isinstance(p, ProducedText) or p.type != "temp"]
    if kept or not found:
        return kept, [] if found else ["the workflow ran, but its nodes reported no output"]
    return found, ["only previews were produced; use SaveImage to keep results"]


def _once(items: Iterator[Produced]) -> Iterator[Produced]:
    """Each file once, however many nodes report it; texts may well be the same."""
    seen: set[ProducedFile] = set()
    for item in items:
        if isinstance(item, ProducedFile):
            if item in seen:
                continue
            seen.add(item)
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
    elif isinstance(value, str) and key in _PATH_KEYS and value.lower().endswith(_PATH_ENDINGS):
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
    """Relative to the output folder or absolute; which of them, the disk has to tell."""
    subfolder, name = posixpath.split(text.replace("\\", "/"))
    return ProducedFile(node_id, name, subfolder, "output", text, guessed=True)


@dataclass(frozen=True)
class DeliveryOptions:
    """`mark` is a word that only this job uses."""

    mark: str
    deadline: Deadline
    options: OutputOptions = field(default_factory=OutputOptions)
    bucket: Bucket | None = None

    @property
    def destination(self) -> str:
        """`base64`, `s3` or `volume`."""
        return self.options.delivery or ("s3" if self.bucket is not None else "base64")


class Content(str):
    """What a file holds, in base64. It is not for printing: the SDK makes a line of its log of each
    whole result, twice, also where that line is not written."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} characters>"


@dataclass
class Result:
    """A file or a text that a job produced, and what became of it: `path` on the volume, `url` in
    a bucket. `in_reply`: its content is to be in the reply itself, `encoded` if that was made
    already. A text gets a file (`local`) only when it has to leave the reply. `size` in bytes;
    `source` is the file that ComfyUI reported, of which
    `local` may be a rewritten copy; `stamp` as `local` looked when it was found."""

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
        return overhead + 2 + 4 * ((self.size + 2) // 3)

    def entry(self) -> dict[str, Any]:
        """What the reply says of it, without its content."""
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
        return entry

    def content(self) -> str:
        """The content as the reply holds it: text, or base64 that was made before."""
        content = self.text if self.text is not None else self.encoded
        assert content is not None
        return content
