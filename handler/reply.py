"""What came of a job -> the dict that Runpod gets."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from handler.errors import JobError

Reply = dict[str, Any]


def completed(results: list[dict[str, Any]], warnings: list[str], **more: Any) -> Reply:
    """The reply of a job that went well."""
    reply: Reply = {"status": "completed", "results": results, **more}
    if warnings:
        reply["warnings"] = warnings
    return reply


def failed(error: JobError) -> Reply:
    """The reply of a job that did not; the SDK turns `error`, a string, into FAILED."""
    reply: Reply = {"status": "failed", "error": str(error), "error_code": error.code}
    if error.fix:
        reply["fix"] = error.fix
    if error.details:
        reply["details"] = dict(error.details)
    return reply


def fitted(reply: Reply, max_mb: float) -> Reply:
    """`reply` within `max_mb` (1e6 bytes as JSON): the largest files are named, not sent.

    Over its limit the platform drops a reply whole and calls the job completed. Raises JobError
    when a file is too large and not on the volume either, or the rest is too large by itself.
    """
    limit = max_mb * 1e6
    size = len(json.dumps(reply))
    if size <= limit:
        return reply
    warnings = reply.setdefault("warnings", [])
    size = len(json.dumps(reply))
    for entry in sorted(reply.get("results", []), key=lambda e: -e.get("size", 0)):
        if size <= limit:
            break
        field = next((f for f in ("image", "data") if f in entry), None)
        if field is None:
            continue
        if "path" not in entry:
            raise _too_large(entry, size, max_mb)
        size -= len(entry.pop(field)) + len(f', "{field}": ""')
        warnings.append(
            f"{entry['filename']} ({entry['size']} bytes) is on the volume at {entry['path']}; "
            f"with it the reply would be larger than MAX_REPLY_MB={max_mb:g}"
        )
        size += len(json.dumps(warnings[-1])) + len(", ")
    if size > limit:
        raise _too_large_without_files(size, max_mb)
    return reply


def postable(value: Any) -> Any:
    """`value` as JSON that the SDK can post: no NaN, no lone surrogates, no foreign types.

    The SDK posts nothing at all for a reply that holds one of these.
    """
    if isinstance(value, str):
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


def _too_large(entry: Mapping[str, Any], size: int, max_mb: float) -> JobError:
    return JobError(
        "reply.too_large",
        f"With {entry['filename']} the reply has {size / 1e6:.1f} MB, more than "
        f"MAX_REPLY_MB={max_mb:g}, and there is no volume to keep the file on.",
        "Attach a network volume to the endpoint, or make the result smaller.",
        filename=entry["filename"],
        size=entry["size"],
    )


def _too_large_without_files(size: int, max_mb: float) -> JobError:
    return JobError(
        "reply.too_large",
        f"Without any file the reply still has {size / 1e6:.1f} MB, more than "
        f"MAX_REPLY_MB={max_mb:g}.",
        "Produce fewer results or shorter texts in one job.",
        size=size,
    )
