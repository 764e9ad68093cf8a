"""Is this file what it should be? Size, first bytes, header; the hash is compared here too."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bootstrap.fetch.errors import DownloadError, Stopped, megabytes
from bootstrap.safetensors_header import EXTENSIONS, BadHeader, check_safetensors

BLOCK = 4 * 1024 * 1024
TEXT_EXTENSIONS = frozenset({".json", ".txt", ".yaml", ".yml", ".md", ".csv", ".xml"})
_FORBIDDEN_STARTS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "XML, perhaps a storage server's error"),
    (b'{"error', "an error message in JSON"),
)


@dataclass(frozen=True)
class Wanted:
    """What is known beforehand about the content of a file called `name`."""

    name: str
    size: int | None = None
    sha256: str | None = None

    @property
    def extension(self) -> str:
        """Lower case, with its dot."""
        return os.path.splitext(self.name)[1].lower()

    @property
    def text_is_fine(self) -> bool:
        """Is the file itself JSON or other text?"""
        return self.extension in TEXT_EXTENSIONS


def check_content(path: Path, wanted: Wanted) -> tuple[str, ...]:
    """What was checked of `path` without hashing it: `size` and `header` where they apply.

    Raises DownloadError when the file is not what it should be, OSError when it cannot be read.
    """
    checked = []
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0 and wanted.size != 0:
            raise DownloadError(
                "download.empty", "the file has 0 bytes.", "Delete it and pull again."
            )
        if wanted.size is not None:
            check_size(size, wanted.size)
            checked.append("size")
        if not wanted.text_is_fine:
            sniff(file.read(512))
        if wanted.extension in EXTENSIONS:
            try:
                check_safetensors(file, size)
            except BadHeader as problem:
                raise _bad_header(str(problem)) from None
            checked.append("header")
        elif wanted.extension == ".gguf":
            file.seek(0)
            if file.read(4) != b"GGUF":
                raise _bad_header("is no GGUF file")
            checked.append("header")
    return tuple(checked)


def sniff(start: bytes) -> None:
    """Raise DownloadError for first bytes that no model begins with."""
    text = start.lstrip().lower()
    for sign, what in _FORBIDDEN_STARTS:
        if text.startswith(sign.lower()):
            raise DownloadError(
                "download.not_a_model",
                f"the content is {what}.",
                "Use the link of the file itself; on Hugging Face the one of its "
                "download button (`/resolve/`).",
            )


def check_size(actual: int, wanted: int) -> None:
    """Raise DownloadError unless the sizes, in bytes, are equal."""
    if actual != wanted:
        raise DownloadError(
            "download.size_mismatch",
            f"it has {actual:,} bytes ({megabytes(actual)}) where {wanted:,} are expected.",
            "If the file was replaced at its source on purpose, correct `size` and `hash` in the "
            "manifest; else use another link.",
        )


def check_hash(actual: str, wanted: str | None) -> None:
    """Raise DownloadError unless the SHA-256 is the wanted one, or none is wanted."""
    if wanted is not None and actual != wanted:
        raise DownloadError(
            "download.hash_mismatch",
            f"its SHA-256 is {actual}, expected is {wanted}.",
            "If the file was replaced at its source on purpose, correct `hash` in the manifest; "
            "else do not use it.",
        )


def hash_file(
    path: Path,
    stop: threading.Event | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> str:
    """SHA-256 of a file, in memory-flat blocks. Raises OSError, and Stopped on `stop`."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BLOCK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            if stop is not None and stop.is_set():
                raise Stopped
            digest.update(buffer[:count])
            if on_bytes is not None:
                on_bytes(count)
    return digest.hexdigest()


def _bad_header(why: str) -> DownloadError:
    return DownloadError(
        "download.bad_header",
        f"the file {why}.",
        "Delete it and pull again; if that does not help, the source itself is broken.",
    )
