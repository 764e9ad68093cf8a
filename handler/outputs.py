"""Pure: a prompt's history -> what it produced."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Python's own table lacks these in some versions.
_MIME = {
    ".webp": "image/webp",
    ".avif": "image/avif",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".flac": "audio/flac",
    ".opus": "audio/ogg",
    ".glb": "model/gltf-binary",
    ".latent": "application/octet-stream",
    ".safetensors": "application/octet-stream",
}


@dataclass(frozen=True)
class ProducedFile:
    """A file that a node reported; `type` is ComfyUI's: output, temp or input."""

    node_id: str
    filename: str
    subfolder: str
    type: str

    @property
    def mime_type(self) -> str:
        """By extension, since ComfyUI calls videos `images` too."""
        suffix = "." + self.filename.rpartition(".")[2].lower()
        guess = _MIME.get(suffix) or mimetypes.guess_type(self.filename)[0]
        return guess or "application/octet-stream"

    @property
    def kind(self) -> str:
        """`image`, `video`, `audio`, `model` (3D) or `file`."""
        family = self.mime_type.partition("/")[0]
        return family if family in ("image", "video", "audio", "model") else "file"


@dataclass(frozen=True)
class ProducedText:
    """A text that a node reported."""

    node_id: str
    text: str


Produced = ProducedFile | ProducedText


def produced(outputs: Mapping[str, Any]) -> tuple[list[Produced], list[str]]:
    """Everything in a history entry's outputs, each file once, and warnings.

    Previews (type `temp`) count only when there is nothing else: then they are all one gets.
    """
    found = list(dict.fromkeys(_all(outputs)))
    kept = [p for p in found if isinstance(p, ProducedText) or p.type != "temp"]
    if kept or not found:
        return kept, [] if found else ["the workflow ran, but its nodes reported no output"]
    return found, ["only previews were produced; use SaveImage to keep results"]


def _all(outputs: Mapping[str, Any]) -> Iterator[Produced]:
    for node_id, output in outputs.items():
        if not isinstance(output, Mapping):
            continue
        for key, items in output.items():
            for item in items if isinstance(items, (list, tuple)) else [items]:
                if isinstance(item, Mapping) and isinstance(item.get("filename"), str):
                    yield _file(str(node_id), item)
                elif key == "text" and isinstance(item, str):
                    yield ProducedText(str(node_id), item)


def _file(node_id: str, item: Mapping[str, Any]) -> ProducedFile:
    return ProducedFile(
        node_id,
        item["filename"],
        str(item.get("subfolder") or ""),
        str(item.get("type") or "output"),
    )
