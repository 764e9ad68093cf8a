"""Errors of jobs: one exception with a stable code, a sentence and a fix; short descriptions of
values for these sentences; and a job's deadline.
"""

from __future__ import annotations

import difflib
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bootstrap.core.findings import Fault, Finding
from bootstrap.core.redact import masked, masked_data
from bootstrap.core.text import joined

CODES = {
    "request.no_input": "The job has no `input`",
    "request.unknown_type": "The request has a type that does not exist",
    "request.wrong_type": "A field of the request has the wrong type or value",
    "request.not_json": "The request has a value that JSON cannot represent, such as NaN",
    "request.too_large": "The request is larger than `MAX_REQUEST_MB`",
    "request.too_deep": "The request is nested too deeply",
    "request.download_off": "Jobs may not fetch models on this endpoint",
    "request.model_host": "`MODEL_HOSTS` does not allow the host of a model's URL",
    "workflow.missing": "The request has no workflow",
    "workflow.not_json": "The workflow is a string that is not valid JSON",
    "workflow.not_an_object": "The workflow is not an object",
    "workflow.empty": "The workflow has no nodes",
    "workflow.ui_format": "The workflow was saved in the editor's own format",
    "workflow.bad_node": "An entry of the workflow is not a node",
    "workflow.bad_link": "A node is linked to a node that does not exist",
    "workflow.too_deep": "More nodes follow one another in the workflow than ComfyUI can check",
    "workflow.no_output": "The workflow has no output node",
    "workflow.name_unknown": "There is no workflow of that name on the volume",
    "workflow.unknown_node": "A node class is not installed in this ComfyUI",
    "workflow.missing_model": "A model file is not where ComfyUI looks",
    "workflow.value_not_allowed": "An input has a value that is not in the node's list",
    "workflow.value_out_of_range": "A number is too small or too large for its input",
    "workflow.input_missing": "A node lacks a required input",
    "workflow.invalid": "ComfyUI rejected the workflow for another reason",
    "overrides.unknown_node": "An override names a node that the workflow does not have",
    "image.no_name": "An input file has no name",
    "image.no_data": "An input file has no data",
    "image.bad_name": "The name of an input file is not a plain file name",
    "image.bad_base64": "An input file is not valid base64",
    "image.not_stored": "An input file could not be written to local disk",
    "input.named_twice": "Two input files have the same name",
    "input.wrong_content": "The content of an input file does not match its name",
    "input.url_refused": "The URL of an input file may not be fetched",
    "input.not_fetched": "The input file could not be fetched from its URL",
    "input.too_large": "An input file is larger than `MAX_INPUT_MB`",
    "input.bad_archive": "A zip file to unpack is damaged or has entries that are never unpacked",
    "input.bucket_refused": "An `s3://` address names a bucket that this job may not read",
    "input.outside": "A loader names a file outside the folders that it reads",
    "input.missing": "A file that a loader names was not sent and is not on the volume",
    "output.no_bucket": "Results should go to a bucket, but none is configured",
    "output.bad_address": "An upload address for results may not be used",
    "output.bad_bucket": "The bucket sent with the job cannot be used",
    "job.timeout": "The job exceeded its time limit",
    "job.node_failed": "A node raised an error",
    "job.out_of_memory": "A node ran out of GPU memory",
    "job.cuda_failed": "CUDA failed in a way that only a restart of ComfyUI clears",
    "job.no_gpu_code": "A package that a node uses has no code for this GPU",
    "job.interrupted": "A node stopped the workflow, not this worker",
    "job.lost": "ComfyUI no longer knows the job",
    "job.result_missing": "A file that ComfyUI reported is not on disk",
    "comfyui.died": "ComfyUI exited while the job ran",
    "comfyui.history_unreadable": "ComfyUI cannot show the outcome of a job",
    "comfyui.unreachable": "ComfyUI is running but does not respond as it should",
    "reply.too_large": "A result is too large for the reply and cannot be kept anywhere",
    "worker.internal": "A bug in the worker itself",
}
VOLUME_FIX = (
    "Send the job again, as another worker may take it; if it stays, restart the endpoint's "
    "workers and look at the volume in the Runpod console (Storage)."
)
MAX_DEPTH = 100
# An error quotes so many characters and list items of what a client sent.
_MOST_BITS = 14_000  # about 4200 digits; Python writes no more than 4300
_LISTED = 5
_MOST_SENTENCE, _MOST_TEXT, _MOST_ITEMS, _MOST_DETAILS = 4000, 4000, 500, 200_000


class JobError(Fault):
    """A job failed. `str()` is the sentence with its fix; secrets in quoted addresses are
    masked."""

    def __init__(self, code: str, message: str, fix: str = "", /, **details: Any) -> None:
        sentence, advice = (masked(cut(text, _MOST_SENTENCE)) for text in (message, fix))
        super().__init__(code, sentence, advice, **masked_data(bounded(details)))

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()

    @classmethod
    def from_finding(cls, finding: Finding) -> JobError:
        """The error for a job that a fault of the worker prevents."""
        return cls(finding.code, finding.message, finding.fix, **finding.details)


class JobTimeout(JobError):
    """The job's time is up."""


class VolumeSilentError(JobError):
    """The job needs the volume, which does not respond."""

    def __init__(self, message: str, /, **details: Any) -> None:
        super().__init__("volume.silent", message, VOLUME_FIX, **details)


class NodeFailed(JobError):
    """A node raised an error."""


class OutOfMemory(JobError):
    """A node ran out of GPU memory, which ComfyUI must free before the next job."""


class ComfyBroken(JobError):
    """After this the ComfyUI process must not run another job."""


class ComfyUnreachable(ComfyBroken):
    """ComfyUI runs but does not answer."""


class Deadline:
    """Expires `seconds` after its creation, on a monotonic clock; pauses do not count."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._start = time.monotonic()
        self._paused: float | None = None
        self._pauses = 0.0

    def pause(self) -> None:
        """Stop the clock, if it runs."""
        if self._paused is None:
            self._paused = time.monotonic()

    def resume(self) -> None:
        """Start the clock again, if it is stopped."""
        if self._paused is not None:
            self._pauses += time.monotonic() - self._paused
            self._paused = None

    @property
    def elapsed(self) -> float:
        """Seconds since its creation, without pauses."""
        now = time.monotonic() if self._paused is None else self._paused
        return now - self._start - self._pauses

    @property
    def paused(self) -> float:
        """Seconds of all finished pauses."""
        return self._pauses

    @property
    def remaining(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.seconds - self.elapsed)

    @property
    def expired(self) -> bool:
        """Is the time up?"""
        return self.remaining == 0.0


def timeout_error(
    deadline: Deadline, state: str, otherwise: str = "make the workflow smaller", /, **details: Any
) -> JobError:
    """The error for a job whose time is up; `state` says what it was doing, `otherwise` what to do
    besides allowing more time."""
    return JobTimeout(
        "job.timeout",
        f"The job was stopped after {deadline.elapsed:.0f} s: {state}.",
        f"Allow more than {deadline.seconds:g} s with max_wait in the request or MAX_WAIT in the "
        f"endpoint's environment, or {otherwise}.",
        max_wait=deadline.seconds,
        **details,
    )


def combined(problems: Sequence[JobError]) -> JobError:
    """One error for several problems: code of the first, sentence, fix and details of all."""
    first = problems[0]
    if len(problems) == 1:
        return first
    listed = [f"({i}) {problem}" for i, problem in enumerate(problems, 1)]
    return type(first)(
        first.code,
        f"The workflow has {len(problems)} problems: {joined(listed, _LISTED, ' ')}",
        "Correct all of them and send it again.",
        problems=[{"error_code": p.code, "error": str(p), **p.details} for p in problems],
    )


def cut(text: str, most: int) -> str:
    """The text, cut to at most `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def bounded(details: Mapping[str, Any]) -> dict[str, Any]:
    """`details`, shortened: a class name or a list of choices may have megabytes, and Runpod drops
    a reply that is too large."""
    room = _MOST_DETAILS

    def within(value: Any) -> Any:
        nonlocal room
        if isinstance(value, str):
            value = cut(value, max(min(_MOST_TEXT, room), 1))
            room -= len(value)
        elif isinstance(value, Mapping):
            items = list(value.items())[:_MOST_ITEMS]
            return {cut(str(k), 200): within(v) for k, v in items if room > 0}
        elif isinstance(value, (list, tuple)):
            return [within(item) for item in list(value)[:_MOST_ITEMS] if room > 0]
        room -= 8
        return value

    return {name: within(value) for name, value in details.items()}


def check_limits(given: object, max_mb: float) -> None:
    """Check depth, size and that it is valid JSON, in one walk without recursion."""
    size = 0
    pending: list[tuple[object, int]] = [(given, 0)]
    while pending:
        value, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise JobError(
                "request.too_deep",
                f"The request is nested more than {MAX_DEPTH} levels deep.",
                "A workflow in API format needs at most five.",
            )
        size += len(value) if isinstance(value, str) else 8
        if isinstance(value, float) and not math.isfinite(value):
            raise JobError(
                "request.not_json",
                f"The request contains {value}.",
                "Send a finite number instead.",
            )
        if isinstance(value, Mapping):
            size += sum(len(str(key)) for key in value)
            pending.extend((v, depth + 1) for v in value.values())
        elif isinstance(value, (list, tuple)):
            pending.extend((v, depth + 1) for v in value)
    if size > max_mb * 1_000_000:
        raise JobError(
            "request.too_large",
            f"The request is {size / 1e6:.1f} MB; this worker accepts at most {max_mb:g} MB.",
            "Put large files on the volume in ComfyUI/input/, or a large workflow in workflows/, "
            "and send their names; or raise MAX_REQUEST_MB (Runpod itself accepts at most 10 MB "
            "for /run, 20 MB for /runsync).",
            bytes=size,
        )


def wrong_type(name: str, wanted: str, given: object) -> JobError:
    """The error for a field `name` that should be `wanted`."""
    return JobError(
        "request.wrong_type", f"{name} is {described(given)}.", f"Send {wanted}.", field=name
    )


def described(value: object) -> str:
    """A value in a few words: its type, and its contents if short."""
    if value is None:
        return "null"
    names = {str: "the string", bool: "the value", int: "the number", float: "the number"}
    if type(value) in names:
        return f"{names[type(value)]} {short(value)}"
    return "a list" if isinstance(value, (list, tuple)) else "an object"


def short(value: object) -> str:
    """A value as JSON, cut at 60 characters."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return "of thousands of digits"  # Python refuses to write it
    text = json.dumps(value) if isinstance(value, (str, bool)) else str(value)
    return text if len(text) <= 60 else text[:57] + '…"'


def nearest(wanted: str, known: Sequence[str], cutoff: float = 0.5) -> list[str]:
    """Up to three of `known` similar to `wanted`, nearest first, ignoring case. `cutoff` is the
    required similarity, from 0 (any) to 1 (equal)."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(wanted.lower(), list(by_lower), n=3, cutoff=cutoff)
    return [by_lower[name] for name in close]
