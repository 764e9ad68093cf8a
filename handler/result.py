"""One result on its way into a reply."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pybase64

from bootstrap.core.files import open_regular
from handler.local_files import Stamp


class Content(str):
    """What a file holds, in base64. It is not for printing: the SDK makes a line of its log of each
    whole result, twice, also where that line is not written."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} characters>"


def encoded(local: Path) -> Content:
    """A file's content. Raises OSError."""
    with open_regular(local) as file:
        return Content(pybase64.b64encode_as_string(file.read()))


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
