"""Pure: how a prompt can fail other than by its nodes -> the error its job is answered with."""

from __future__ import annotations

from bootstrap.comfyui import Exit, explain_exit
from handler.deadline import Deadline
from handler.errors import JobError
from handler.headway import Headway
from handler.volume_watchdog import VOLUME_FIX


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


def timeout(deadline: Deadline, state: str) -> JobError:
    """The job's time is over; `state` says what it was at."""
    return JobError(
        "job.timeout",
        f"The job was stopped after {deadline.elapsed:.0f} s: {state}.",
        f"Allow more than {deadline.seconds:g} s with max_wait in the request or MAX_WAIT in the "
        "endpoint's environment, or make the workflow smaller.",
        max_wait=deadline.seconds,
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
