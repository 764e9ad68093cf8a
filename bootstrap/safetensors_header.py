"""Is a .safetensors file whole? Answered from its header alone, with the standard library.

Format: https://huggingface.co/docs/safetensors - 8 bytes little-endian length n, n bytes of JSON,
then the tensors, whose `data_offsets` count from the end of the JSON. The reference reader takes
n up to 100 MB. Catches truncation, HTML and other formats; a zero-filled tail passes.
"""

from __future__ import annotations

import json
from typing import Any, BinaryIO

LENGTH_BYTES = 8
MAX_HEADER = 100_000_000
EXTENSIONS = frozenset({".safetensors", ".sft"})


class BadHeader(ValueError):
    """The file is no whole safetensors file; the text completes "the file ..."."""


def check_safetensors(file: BinaryIO, size: int) -> int:
    """Number of tensors in `file` of `size` bytes, read from its start.

    Raises BadHeader when the file is truncated, has bytes too many, or is something else, and
    OSError when it cannot be read.
    """
    if size < LENGTH_BYTES:
        raise BadHeader(f"has only {size} bytes")
    file.seek(0)
    start = file.read(LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    if not 0 < length <= MAX_HEADER:
        raise BadHeader(f"is no safetensors file (it starts with {start!r})")
    if LENGTH_BYTES + length > size:
        raise BadHeader(f"ends inside its header, at {size:,} bytes")
    tensors = _tensors(file.read(length))
    expected = LENGTH_BYTES + length + _end_of(tensors)
    if expected != size:
        which = "truncated" if size < expected else "followed by other bytes"
        raise BadHeader(f"is {which}: it has {size:,} bytes, its header tells of {expected:,}")
    return len(tensors)


def _tensors(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise BadHeader("is no safetensors file (its header is no JSON)") from None
    if not isinstance(header, dict):
        raise BadHeader("is no safetensors file (its header is no JSON object)")
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _end_of(tensors: dict[str, Any]) -> int:
    """Where the last tensor ends, in bytes after the header."""
    end = 0
    for name, entry in tensors.items():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not (
            isinstance(offsets, list)
            and len(offsets) == 2
            and all(type(o) is int for o in offsets)
            and 0 <= offsets[0] <= offsets[1]
        ):
            raise BadHeader(f"has a header in which tensor {name[:80]!r} has no valid offsets")
        end = max(end, offsets[1])
    return end
