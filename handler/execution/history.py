"""Sans I/O: what ComfyUI's history says of a prompt, and how it can fail other than by its nodes.

History is the truth. The socket can fall silent, lose its place to a late-closing twin, or drop,
and nothing is replayed; its messages only say when a look at the history is worth while.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bootstrap.comfyui import Exit, explain_exit
from handler.common.calls import VOLUME_FIX
from handler.common.errors import JobError
from handler.execution.node_progress import Headway

_TRACEBACK_LINES = 12
_MILLISECOND = 0.001
# After these every later call of this process fails, whatever it asks.
_POISON = re.compile(
    r"illegal memory access|device-side assert|unspecified launch failure|misaligned address"
    r"|CUDA error|CUBLAS_STATUS_(?:EXECUTION|INTERNAL)|CUDNN_STATUS_(?:EXECUTION|INTERNAL)"
    r"|uncorrectable ECC error",
    re.IGNORECASE,
)
_MEMORY = re.compile(r"CUDA (?:error: )?out of memory", re.IGNORECASE)


@dataclass(frozen=True)
class Ended:
    """A prompt that ended; `failure` is None when all went well. When it began and ended, in
    seconds since 1970, where ComfyUI says so (since 2024)."""

    outputs: Mapping[str, Any]
    failure: JobError | None
    at: float | None = None
    began: float | None = None

    def seconds(self, at_most: float) -> float:
        """What it took; `at_most`, which was measured from outside, where ComfyUI does not say or
        the clock was set meanwhile."""
        if self.at is None or self.began is None:
            return at_most
        took = self.at - self.began
        return took if 0 < took < at_most else at_most


def is_news(message: Mapping[str, Any], prompt_id: str) -> bool:
    """Does a socket message say that the history has this prompt now? That of its success comes a
    moment before."""
    data = message.get("data")
    if not isinstance(data, Mapping) or data.get("prompt_id") != prompt_id:
        return False
    return message.get("type") == "executing" and data.get("node") is None


def reported(message: Mapping[str, Any], prompt_id: str) -> dict[str, Any] | None:
    """What a node of this prompt reports that is through, as the history's outputs have it; None
    for other messages."""
    data = message.get("data")
    if message.get("type") != "executed" or not isinstance(data, Mapping):
        return None
    if data.get("prompt_id") != prompt_id or not data.get("output"):
        return None
    return {str(data.get("node")): data["output"]}


def ended(entry: Mapping[str, Any] | None) -> Ended | None:
    """What a history entry says; None while there is none.

    Versions before 2024 write no status: there an entry alone means success.
    """
    if entry is None:
        return None
    status = entry.get("status") or {}
    messages = {m[0]: m[1] for m in status.get("messages") or [] if len(m) == 2}
    at = _when(messages, "execution_success", "execution_error", "execution_interrupted")
    return Ended(
        entry.get("outputs") or {},
        _failure(status, messages),
        None if at is None else at + _MILLISECOND,  # told in whole ones, cut off
        _when(messages, "execution_start"),
    )


def _when(messages: Mapping[str, Any], *kinds: str) -> float | None:
    for kind in kinds:
        told = messages.get(kind)
        stamp = told.get("timestamp") if isinstance(told, Mapping) else None
        if isinstance(stamp, (int, float)):
            return stamp / 1000
    return None


def _failure(status: Mapping[str, Any], messages: Mapping[str, Any]) -> JobError | None:
    if "execution_error" in messages:
        return _node_failed(messages["execution_error"])
    if "execution_interrupted" in messages:
        return JobError(
            "job.interrupted",
            "The job was interrupted in ComfyUI by somebody else.",
            "Send it again.",
        )
    if status.get("status_str") == "error":
        return JobError("job.node_failed", "ComfyUI reports an error without naming it.", "")
    return None


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
        return JobError(
            "job.out_of_memory",
            f"The GPU ran out of memory in {where}: {said[:500]}",
            "Use a smaller size or batch, a smaller or fp8 model, or a GPU with more memory.",
            **details,
        )
    if _POISON.search(f"{kind}: {said}"):
        return JobError(
            "job.cuda_failed",
            f"The GPU failed in {where}: {said[:500]}",
            "ComfyUI is restarted for the next job, since CUDA answers nothing more after such an "
            "error. If it stays with one workflow, one of its nodes reads or writes out of bounds "
            "there; if it comes with many, the GPU is faulty: let Runpod take another worker.",
            **details,
        )
    return JobError(
        "job.node_failed",
        f"{where[0].upper() + where[1:]} failed with {kind}: {said[:1000]}",
        "The traceback in the details says where; check that node's inputs and models.",
        **details,
    )


def died(exit: Exit, headway: Headway) -> JobError:
    """ComfyUI ended under the job."""
    cause = explain_exit(exit)
    where = headway.where()
    at = f"while node {where['node_id']} ({where['node_type']}) ran" if where else ""
    return JobError(
        "comfyui.died",
        f"ComfyUI ended {at or 'while the job ran'}. {cause.message}",
        f"{cause.fix} ComfyUI is being restarted for the next job.",
        cause=cause.code,
        **where,
        **cause.details,
    )


def unreachable(problem: object, headway: Headway, log: list[str]) -> JobError:
    """ComfyUI did not answer, as `problem` says, and did not end either."""
    return JobError(
        "comfyui.unreachable",
        f"ComfyUI lives but does not answer ({problem}).",
        "It is restarted before the next job; send this one again.",
        **headway.where(),
        log=log,
    )


def volume_silent(headway: Headway) -> JobError:
    """ComfyUI waits for the volume."""
    where = headway.where()
    at = f" in node {where['node_id']} ({where['node_type']})" if where else ""
    return JobError(
        "volume.silent",
        f"ComfyUI waited{at} for the volume, which does not answer; the job was stopped.",
        VOLUME_FIX,
        **where,
    )


def lost() -> JobError:
    """ComfyUI knows nothing of the job."""
    return JobError(
        "job.lost",
        "ComfyUI has the job neither in its queue nor in its history.",
        "Send it again; if it stays, a custom node clears the queue or the history.",
    )


def unreadable(said: object, headway: Headway, log: list[str]) -> JobError:
    """ComfyUI refused, as `said`, to show what came of the job."""
    where = headway.where()
    node = f" Node {where['node_id']} ({where['node_type']}) ran last." if where else ""
    return JobError(
        "comfyui.history_unreadable",
        f"ComfyUI cannot tell what came of the job ({said}).{node}",
        "A custom node most likely returned something that is not JSON; mend or remove it.",
        **where,
        log=log,
    )
