"""Is a file what it should be? Checks size, first bytes, header and hash."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from bootstrap.core.concurrency import ByteSemaphore, threaded
from bootstrap.core.files import Disk
from bootstrap.core.text import size_text
from bootstrap.models.download.transfer import Blocks
from bootstrap.models.weights_file import MOST_HEADER, SAFETENSORS, Examined, WeightsState, examine
from bootstrap.net import DownloadError, Stopped, WrongBytes
from bootstrap.volume.categories import GGUF

_BLOCK = 1024 * 1024
BLOCK = 4 * 1024 * 1024
TEXT_EXTENSIONS = frozenset({".json", ".txt", ".yaml", ".yml", ".md", ".csv", ".xml"})
# Responses that are not weights.
_ANSWERS = {
    WeightsState.PAGE: "a web page",
    WeightsState.JSON: "JSON, perhaps an error message",
    WeightsState.TEXT: "plain text",
    WeightsState.POINTER: "a Git LFS pointer, not the file it points to",
}
_FAULTS = {
    WeightsState.TRUNCATED: "is truncated",
    WeightsState.TOO_LONG: "is followed by other bytes",
    WeightsState.DAMAGED: "is damaged",
    WeightsState.MISLABELLED: "has the wrong extension",
}
_GOOD_ENOUGH = (WeightsState.GOOD, WeightsState.UNREAD)


class StreamingHasher:
    """Hashes the file behind `descriptor` while it is written, in order, in its own thread."""

    def __init__(self, descriptor: int, blocks: Blocks, disk: Disk) -> None:
        self._descriptor = descriptor
        self._blocks = blocks
        self._disk = disk
        self._digest = hashlib.sha256()
        self._stop = threading.Event()
        self._problem: OSError | None = None
        self._position = 0
        self._thread = threaded(self._follow, "model-hash")
        self._thread.start()

    def result(self) -> str:
        """The hash of the whole file; waits for it. Raises OSError if reading failed."""
        self._thread.join()
        if self._problem is not None:
            raise self._problem
        return self._digest.hexdigest()

    def stop(self) -> None:
        """Stop, and release the descriptor."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        buffer = memoryview(bytearray(_BLOCK))
        try:
            while self._position < self._blocks.size and not self._stop.is_set():
                contiguous_end = self._blocks.wait_beyond(self._position, 0.2)
                while self._position < contiguous_end and not self._stop.is_set():
                    self._hash_up_to(contiguous_end, buffer)
        except OSError as problem:
            self._problem = problem

    def _hash_up_to(self, contiguous_end: int, buffer: memoryview) -> None:
        view = buffer[: min(_BLOCK, contiguous_end - self._position)]
        count = self._disk.read_at(self._descriptor, [view], self._position)
        if count == 0:
            raise OSError(5, "the part became shorter while it was read")
        self._digest.update(view[:count])
        self._position += count


@dataclass(frozen=True)
class Wanted:
    """What is known in advance about the content of a file called `name`. `weights`: it is a model
    unless its name says otherwise; other content is not checked."""

    name: str
    size: int | None = None
    sha256: str | None = None
    weights: bool = True

    @property
    def extension(self) -> str:
        """Lower case, with its dot."""
        return os.path.splitext(self.name)[1].lower()

    @property
    def text_is_fine(self) -> bool:
        """Is the file itself JSON or other text?"""
        return self.extension in TEXT_EXTENSIONS


def check_content(path: Path, wanted: Wanted) -> tuple[str, ...]:
    """Check `path` without hashing; returns what was checked: `size` and `header` if they apply.
    Raises DownloadError if the file is wrong, OSError if it cannot be read.
    """
    size = path.stat().st_size
    if size == 0:
        raise DownloadError("download.empty", "the file has 0 bytes.", "Delete it and pull again.")
    checked = []
    if wanted.size is not None:
        check_size(size, wanted.size)
        checked.append("size")
    if wanted.text_is_fine or not wanted.weights:
        return tuple(checked)
    _judge(examine(str(path), size, ByteSemaphore(MOST_HEADER), wanted.extension), size)
    if wanted.extension in (*SAFETENSORS, GGUF):
        checked.append("header")
    return tuple(checked)


def _judge(seen: Examined, size: int) -> None:
    """Raise DownloadError if it is not a model, OSError if it could not be read."""
    if seen.state in _GOOD_ENOUGH:
        return
    if seen.state is WeightsState.UNREADABLE:
        raise OSError(errno.EIO, seen.detail)
    if seen.state in _ANSWERS:
        raise WrongBytes(
            "download.not_a_model",
            f"the content is {_ANSWERS[seen.state]}.",
            "Use the link of the file itself; on Hugging Face the one of its download button "
            "(`/resolve/`).",
        )
    detail = f" ({seen.detail})" if seen.detail else ""
    sizes = (
        f"; it has {size:,} bytes, its header announces {seen.expected:,}" if seen.expected else ""
    )
    raise WrongBytes(
        "download.bad_header",
        f"the file {_FAULTS.get(seen.state, 'is not a model')}{detail}{sizes}.",
        "Delete it and pull again; if that does not help, the source itself is broken.",
    )


def check_size(actual: int, wanted: int) -> None:
    """Raise DownloadError unless the sizes, in bytes, are equal."""
    if actual != wanted:
        raise DownloadError(
            "download.size_mismatch",
            f"it has {actual:,} bytes ({size_text(actual)}) where {wanted:,} are expected.",
            "If the file was replaced at its source on purpose, correct `size` and `hash` in the "
            "manifest; else use another link.",
        )


def check_hash(actual: str, wanted: str | None) -> None:
    """Raise DownloadError unless the SHA-256 is as expected, or none is."""
    if wanted is not None and actual != wanted:
        raise WrongBytes(
            "download.hash_mismatch",
            f"its SHA-256 is {actual}, expected is {wanted}.",
            "If the file was replaced at its source on purpose, correct `hash` in the manifest; "
            "else do not use it.",
        )


def hash_file(path: Path, stop: threading.Event | None = None) -> str:
    """SHA-256 of a file, in constant memory. Raises OSError, and Stopped on `stop`."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BLOCK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            if stop is not None and stop.is_set():
                raise Stopped
            digest.update(buffer[:count])
    return digest.hexdigest()
