"""Pure: a file's type by its first bytes, or else by its name."""

from __future__ import annotations

import base64
import mimetypes
import posixpath

import filetype

# Enough of a file's beginning for every recognised format.
HEAD_BYTES = 8192
MEDIA = ("image", "video", "audio")
_UNKNOWN = "application/octet-stream"
# Python's own table lacks these in some versions.
_BY_EXTENSION = {
    ".webp": "image/webp",
    ".avif": "image/avif",
    ".exr": "image/x-exr",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".flac": "audio/flac",
    ".opus": "audio/ogg",
    ".glb": "model/gltf-binary",
    ".gltf": "model/gltf+json",
    ".obj": "model/obj",
    ".stl": "model/stl",
    ".ply": "model/ply",
    ".latent": _UNKNOWN,
    ".safetensors": _UNKNOWN,
}
_BETTER_NAMES = {"audio/x-flac": "audio/flac", "audio/x-wav": "audio/wav"}


def mime_type(head: bytes, name: str) -> str:
    """The MIME type of a file that begins with `head` and is called `name`.

    Content takes precedence over the name, except for containers, which hold sound as well as video
    (`.m4a` is MP4), and archives, which are named for their contents (`.npz` is ZIP).
    """
    by_name, by_content = _by_name(name), _by_content(head)
    if by_content is None:
        return by_name
    family, named_family = family_of(by_content), family_of(by_name)
    if {family, named_family} == {"audio", "video"}:
        return by_name
    if family == "application" and by_name != _UNKNOWN:
        return by_name
    return by_content


def kind_of(mime: str) -> str:
    """`image`, `video`, `audio`, `model` (3D) or `file`."""
    family = family_of(mime)
    return family if family in (*MEDIA, "model") else "file"


def extension_for(head: bytes) -> str:
    """The usual extension of a file that begins with `head`, with its dot; "" when unknown."""
    kind = filetype.guess(head)
    return "" if kind is None else f".{kind.extension}"


def extension_of_data(data: str) -> str:
    """The extension for a file sent as a data URI or base64; "" if unknown."""
    head, comma, rest = data[:200].partition(",")
    if comma and head.lower().startswith("data:"):
        by_type = mimetypes.guess_extension(head[5:].partition(";")[0].lower()) or ""
        rest = data[len(head) + 1 :][:1024]
    else:
        by_type, rest = "", data[:1024]
    try:
        return extension_for(base64.b64decode(rest[: len(rest) // 4 * 4])) or by_type
    except ValueError:
        return by_type


def wrong_content(head: bytes, name: str) -> str | None:
    """What a file really is, if its name says picture, video or sound and it is not. Unknown bytes
    pass: ComfyUI reads more formats than are recognised here.
    """
    if family_of(_by_name(name)) not in MEDIA:
        return None
    found = _by_content(head)
    if found is not None:
        return None if family_of(found) in MEDIA else found
    if not _is_text(head) or name.lower().endswith(".svg"):
        return None
    start = head.lstrip()[:200].lower()
    return "a web page" if start.startswith((b"<!doctype html", b"<html")) else "text"


def family_of(mime: str) -> str:
    """The part before the slash."""
    return mime.partition("/")[0]


def _by_content(head: bytes) -> str | None:
    if head.startswith(b"glTF"):
        return "model/gltf-binary"
    kind = filetype.guess(head) if head else None
    return None if kind is None else _BETTER_NAMES.get(kind.mime, str(kind.mime))


def _by_name(name: str) -> str:
    suffix = posixpath.splitext(name)[1].lower()
    return _BY_EXTENSION.get(suffix) or mimetypes.guess_type("x" + suffix)[0] or _UNKNOWN


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as problem:
        if problem.start < len(head) - 3:  # not merely cut within a character
            return False
        text = head[: problem.start].decode("utf-8")
    return not any(ord(c) < 32 and c not in "\t\n\r\f" for c in text)
