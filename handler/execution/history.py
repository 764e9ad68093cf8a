"""Sans I/O: the outcome of a prompt by ComfyUI's history, and other ways to fail.

The history decides; the socket's messages only say when to read it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bootstrap.comfyui import Exit, exits, explain_exit, prompt_hooks
from handler.common.errors import (
    ComfyBroken,
    ComfyUnreachable,
    JobError,
    NodeFailed,
    OutOfMemory,
    VolumeSilentError,
)
from handler.execution.node_progress import NodeProgress

_TRACEBACK_LINES = 12
_QUEUED_FAILED = "a prompt that a node of this workflow queued has failed: "
_MILLISECOND = 0.001
# After these errors every later call of the process fails: by CUDA's documentation, and as its
# libraries report them. Others concern one call only.
_POISON = re.compile(
    r"illegal memory access|device-side assert|unspecified launch failure|misaligned address"
    r"|illegal instruction|invalid program counter|hardware stack error|launch timed out"
    r"|operation not supported on global/shared address space|uncorrectable (?:ECC|NVLink) error"
    r"|CUDA (?:error|failure \d{1,4}): unknown error"
    r"|CUBLAS_STATUS_(?:EXECUTION|INTERNAL)|CUDNN_STATUS_(?:EXECUTION|INTERNAL)",
    re.IGNORECASE,
)
# How hubs' clients report requests refused for lack of a token.
_REFUSED = re.compile(
    r"\b40[13] (?:Client Error|Unauthorized|Forbidden)|\b(?:HTTP|status|code)[^\n]{0,20}\b40[13]\b"
    r"|gated repo|GatedRepo|RepositoryNotFoundError|Invalid username or password"
    r"|token (?:is )?required|LocalTokenNotFound|api[ _]key (?:is )?(?:missing|required|not set)",
    re.IGNORECASE,
)
# Parts of a variable's name that do not identify its service.
_PLAIN_WORDS = frozenset(
    "API AUTH ACCESS SECRET TOKEN KEY KEYS HUB PASSWORD USER MY RUNPOD COMFY COMFYUI ORG BUCKET "
    "URL ENDPOINT NAME ID".split()
)
_ALSO = {"HF": ("huggingface", "hf.co", "gated"), "HUGGING": ("huggingface", "hf.co", "gated")}
_MEMORY = re.compile(r"CUDA (?:error: )?out of memory", re.IGNORECASE)


@dataclass(frozen=True)
class HistoryEntry:
    """A prompt that ended; `failure` is None when it succeeded. Times are in seconds since 1970,
    None if ComfyUI does not record them (before 2024). `warnings` name nodes that were blocked with
    a message; `queued` are ids of prompts that its nodes queued."""

    outputs: Mapping[str, Any]
    failure: JobError | None
    ended_at: float | None = None
    started_at: float | None = None
    warnings: tuple[str, ...] = ()
    queued: tuple[str, ...] = ()

    def followed_by(self, other: HistoryEntry, prompt_id: str) -> HistoryEntry:
        """This prompt and one that its nodes queued, combined."""
        more = {f"{prompt_id}/{node}": output for node, output in other.outputs.items()}
        failed = () if other.failure is None else (_QUEUED_FAILED + other.failure.message,)
        return replace(
            self,
            outputs={**self.outputs, **more},
            ended_at=other.ended_at,
            warnings=(*self.warnings, *other.warnings, *failed),
        )

    def seconds(self, at_most: float) -> float:
        """Its duration; at most `at_most`, measured from outside, in case ComfyUI does not record
        it or the clock was changed."""
        if self.ended_at is None or self.started_at is None:
            return at_most
        took = self.ended_at - self.started_at
        return took if 0 < took < at_most else at_most


def read_entry(entry: Mapping[str, Any] | None) -> HistoryEntry | None:
    """Parse a history entry; None while there is none. Versions before 2024 write no status: an
    entry alone means success.
    """
    if entry is None:
        return None
    status = entry.get("status") or {}
    pairs = [m for m in status.get("messages") or [] if len(m) == 2]
    messages = dict(pairs)
    ended_at = _when(messages, "execution_success", "execution_error", "execution_interrupted")
    return HistoryEntry(
        entry.get("outputs") or {},
        _failure(status, messages),
        None if ended_at is None else ended_at + _MILLISECOND,  # they are truncated to whole ones
        _when(messages, "execution_start"),
        tuple(_blocked(message) for kind, message in pairs if kind == prompt_hooks.BLOCKED),
        tuple(messages.get(prompt_hooks.QUEUED, {}).get("prompt_ids", ())),
    )


def _blocked(message: Mapping[str, Any]) -> str:
    return (
        f"node {message.get('node_id')} ({message.get('node_type')}) did not run. "
        f"{str(message.get('exception_message'))[:500]}"
    )


def _when(messages: Mapping[str, Any], *kinds: str) -> float | None:
    for kind in kinds:
        message = messages.get(kind)
        stamp = message.get("timestamp") if isinstance(message, Mapping) else None
        if isinstance(stamp, (int, float)):
            return stamp / 1000
    return None


def _failure(status: Mapping[str, Any], messages: Mapping[str, Any]) -> JobError | None:
    if "execution_error" in messages:
        return _node_failed(messages["execution_error"])
    if "execution_interrupted" in messages:
        return _stopped(messages["execution_interrupted"])
    if status.get("status_str") == "error":
        return NodeFailed(
            "job.node_failed",
            "ComfyUI reports an error without a message.",
            "Its log says more: `comfyui-worker submit --diagnostics` shows the end of it.",
        )
    return None


def _stopped(message: Mapping[str, Any]) -> JobError:
    node_id, node_type = message.get("node_id"), message.get("node_type")
    return JobError(
        "job.interrupted",
        f"The workflow was stopped while node {node_id} ({node_type}) ran, by that node itself or "
        "by another one: it was not this worker.",
        "Some nodes stop a workflow on purpose, where a condition is not met; see what that node's "
        "inputs ask for.",
        node_id=str(node_id),
        node_type=node_type,
    )


def _node_failed(error: Mapping[str, Any]) -> JobError:
    kind = str(error.get("exception_type", "Exception"))
    said = str(error.get("exception_message", "")).strip()
    where = f"node {error.get('node_id')} ({error.get('node_type')})"
    details = {
        "node_id": str(error.get("node_id")),
        "node_type": error.get("node_type"),
        "exception_type": kind,
        "traceback": "".join(map(str, error.get("traceback") or [])).splitlines()[
            -_TRACEBACK_LINES:
        ],
    }
    if "OutOfMemory" in kind or _MEMORY.search(said):
        return OutOfMemory(
            "job.out_of_memory",
            _ended(f"The GPU ran out of memory in {where}: {said[:500]}"),
            "Use a smaller size or batch, a smaller or fp8 model, or a GPU with more memory.",
            **details,
        )
    if exits.NO_GPU_CODE.search(said):
        return JobError(
            "job.no_gpu_code",
            _ended(f"A package that {where} uses has no code for this GPU: {said[:500]}"),
            exits.NO_GPU_CODE_FIX.format(python="ComfyUI's Python"),
            **details,
        )
    if _POISON.search(f"{kind}: {said}"):
        return ComfyBroken(
            "job.cuda_failed",
            _ended(f"The GPU failed in {where}: {said[:500]}"),
            "ComfyUI is restarted for the next job, since CUDA no longer works in that process. If "
            "it happens with one workflow only, one of its nodes reads or writes out of bounds; if "
            "with many, the GPU is faulty: let Runpod use another worker.",
            **details,
        )
    return NodeFailed(
        "job.node_failed",
        _ended(f"{where[0].upper() + where[1:]} failed with {kind}: {said[:1000]}"),
        "The traceback in the details says where; check that node's inputs and models.",
        **details,
    )


def _ended(sentence: str) -> str:
    """With a full stop, which Python's messages seldom have: more is said behind it."""
    sentence = sentence.rstrip(": ")
    return sentence if sentence.endswith((".", "!", "?", "…")) else f"{sentence}."


def with_withheld(error: JobError, withheld: Iterable[str], passed: Iterable[str]) -> JobError:
    """The error of a node that was refused for lack of a token, with the variable that is withheld
    from ComfyUI (one of `withheld`) and how to pass it in addition to `passed`."""
    said = f"{error.message} {error.details.get('exception_type')}"
    if not isinstance(error, NodeFailed) or not _REFUSED.search(said):
        return error
    said += " ".join(map(str, error.details["traceback"]))
    names = [name for name in withheld if _is_for(name, said.lower())]
    if not names:
        return error
    listed = ",".join([*passed, *names])
    return NodeFailed(
        error.code,
        f"{error.message} This worker keeps {' and '.join(names)} from ComfyUI and its nodes.",
        f"If the node is to have it, set COMFYUI_ENV_PASS={listed} on the endpoint. {error.fix}",
        **error.details,
        withheld=names,
    )


def _is_for(name: str, said: str) -> bool:
    """Does the lower-case text name the variable's service?"""
    words = [word for word in name.upper().split("_") if word not in _PLAIN_WORDS]
    hints = [hint for word in words for hint in _ALSO.get(word, (word.lower(),))]
    return any(len(hint) > 2 and re.search(rf"(?<![a-z]){re.escape(hint)}", said) for hint in hints)


def died_error(exit: Exit, progress: NodeProgress) -> JobError:
    """The error for a job during which ComfyUI ended."""
    cause = explain_exit(exit)
    where = progress.current_node()
    at = f"while node {where['node_id']} ({where['node_type']}) ran" if where else ""
    return JobError(
        "comfyui.died",
        f"ComfyUI ended {at or 'while the job ran'}. {cause.message}",
        f"{cause.fix} ComfyUI is being restarted for the next job.",
        cause=cause.code,
        **where,
        **cause.details,
    )


def unreachable_error(problem: object, progress: NodeProgress, log: list[str]) -> JobError:
    """The error for a ComfyUI that did not answer (`problem`) but did not end either."""
    return ComfyUnreachable(
        "comfyui.unreachable",
        f"ComfyUI is running but does not answer ({problem}).",
        "It is restarted before the next job; send this one again.",
        **progress.current_node(),
        log=log,
    )


def volume_silent_error(progress: NodeProgress) -> JobError:
    """The error for a ComfyUI that waits for the volume."""
    where = progress.current_node()
    at = f" in node {where['node_id']} ({where['node_type']})" if where else ""
    return VolumeSilentError(
        f"ComfyUI waited{at} for the volume, which does not answer; the job was stopped.",
        **where,
    )


def lost_error() -> JobError:
    """The error for a prompt that ComfyUI does not know."""
    return JobError(
        "job.lost",
        "ComfyUI has the job neither in its queue nor in its history.",
        "Send it again; if it stays, a custom node clears the queue or the history.",
    )


def unreadable_error(said: object, progress: NodeProgress, log: list[str]) -> JobError:
    """The error for a ComfyUI that refused (`said`) to show the outcome."""
    where = progress.current_node()
    node = f" Node {where['node_id']} ({where['node_type']}) ran last." if where else ""
    return ComfyBroken(
        "comfyui.history_unreadable",
        f"ComfyUI cannot show the outcome of the job ({said}).{node}",
        "A custom node most likely returned something that is not JSON; fix or remove it.",
        **where,
        log=log,
    )
