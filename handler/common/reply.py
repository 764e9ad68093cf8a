"""Turns a job's outcome into the dict for Runpod."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bootstrap.core.findings import docs_url
from handler.common.errors import JobError

Reply = dict[str, Any]
# Bytes for a signed URL and the sentence about it.
_NOTE_BYTES = 2500


def completed(results: list[dict[str, Any]], warnings: list[str], **more: Any) -> Reply:
    """The reply of a job that succeeded."""
    reply: Reply = {"status": "completed", "results": results, **more}
    if warnings:
        reply["warnings"] = warnings
    return reply


def failed(error: JobError) -> Reply:
    """The reply of a job that failed; the SDK turns `error`, a string, into FAILED."""
    reply: Reply = {"status": "failed", "error": str(error), "error_code": error.code}
    reply["docs"] = docs_url(error.code)
    if error.fix:
        reply["fix"] = error.fix
    if error.details:
        reply["details"] = dict(error.details)
    return reply


def json_size(value: Any) -> int:
    """Bytes of `value` as ASCII JSON, at least as many as are sent."""
    return len(json.dumps(value))


def to_leave_out(sizes: Sequence[int], room: float) -> list[int]:
    """The indexes of contents to leave out of a reply with `room` bytes for all of them: the
    largest, so that the fewest are left out. For each the reply says where it went.
    """
    left_out: list[int] = []
    total = sum(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if total <= room:
            break
        if sizes[index] <= _NOTE_BYTES:
            break
        total -= sizes[index] - _NOTE_BYTES
        left_out.append(index)
    return left_out


def postable(value: Any) -> Any:
    """`value` as JSON that the SDK can post: no NaN, no lone surrogates, no foreign types. With one
    of these, the SDK would post nothing at all.
    """
    if isinstance(value, str):
        if value.isascii():  # contents are: no copy of megabytes
            return value
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, Mapping):
        return {postable(str(key)): postable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [postable(item) for item in value]
    return str(value)


def too_large_alone(entry: Mapping[str, Any], warnings: Sequence[str], limit: str) -> JobError:
    """The error for a result that is too large for a reply and can go nowhere else."""
    why = f" ({'; '.join(warnings)})" if warnings else ""
    return JobError(
        "reply.too_large",
        f"With {entry.get('filename')} ({entry.get('size')} bytes) the reply is larger than "
        f"{limit}, and it could be kept nowhere else{why}.",
        "Attach a network volume with room to the endpoint, set BUCKET_ENDPOINT_URL and the "
        "other BUCKET_ settings, or make the result smaller.",
        filename=entry.get("filename"),
        size=entry.get("size"),
    )


def too_large(size: int, max_mb: float) -> JobError:
    """The error for a reply that is too large even without all large contents."""
    return JobError(
        "reply.too_large",
        f"Without any large file the reply still has {size / 1e6:.1f} MB, more than "
        f"MAX_REPLY_MB={max_mb:g}.",
        "Produce fewer results in one job.",
        size=size,
    )
