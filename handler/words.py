"""Pure: values in a few words, and the refusals that need them."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence

from handler.errors import JobError

MAX_DEPTH = 100


def refuse_unreasonable(given: object, max_mb: float) -> None:
    """One walk, without recursion, over everything: depth, size, and what JSON cannot say."""
    size = 0
    pending: list[tuple[object, int]] = [(given, 0)]
    while pending:
        value, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise JobError(
                "request.too_deep",
                f"The request is nested more than {MAX_DEPTH} levels deep.",
                "A workflow in API format needs no more than five.",
            )
        size += len(value) if isinstance(value, str) else 8
        if isinstance(value, float) and not math.isfinite(value):
            raise JobError(
                "request.not_json", f"The request holds {value}.", "Send a finite number instead."
            )
        if isinstance(value, Mapping):
            size += sum(len(str(key)) for key in value)
            pending.extend((v, depth + 1) for v in value.values())
        elif isinstance(value, (list, tuple)):
            pending.extend((v, depth + 1) for v in value)
    if size > max_mb * 1_000_000:
        raise JobError(
            "request.too_large",
            f"The request has {size / 1e6:.1f} MB; this worker takes {max_mb:g} MB.",
            "Send smaller images, put large files on the volume in ComfyUI/input/ and name them, "
            "or raise MAX_REQUEST_MB (Runpod itself takes 10 MB for /run, 20 MB for /runsync).",
            bytes=size,
        )


def wrong_type(name: str, wanted: str, given: object) -> JobError:
    """The error for a field `name` that should be `wanted`."""
    return JobError(
        "request.wrong_type", f"{name} is {kind_of(given)}.", f"Send {wanted}.", field=name
    )


def kind_of(value: object) -> str:
    """A value in a few words: what it is, and what it says when that is short."""
    if value is None:
        return "null"
    names = {str: "the text", bool: "the value", int: "the number", float: "the number"}
    if type(value) in names:
        return f"{names[type(value)]} {short(value)}"
    return "a list" if isinstance(value, (list, tuple)) else "an object"


def short(value: object) -> str:
    """A value as JSON writes it, cut at 60 characters."""
    text = json.dumps(value) if isinstance(value, (str, bool)) else str(value)
    return text if len(text) <= 60 else text[:57] + '…"'


def nearest(wanted: str, known: Sequence[str]) -> list[str]:
    """Up to three of `known` that look like `wanted`, nearest first; case does not matter."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(wanted.lower(), list(by_lower), n=3, cutoff=0.5)
    return [by_lower[name] for name in close]
