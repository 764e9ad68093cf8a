"""What a control plane remembers (Event) and how a test makes it misbehave (Faults)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal[
    "submit",  # the test gave us a job
    "ready",  # a worker asked for its first job: it has booted
    "take",  # a job was handed out
    "progress",  # a job-done post that says IN_PROGRESS: the SDK's progress_update
    "stream",  # a job-stream post: what a generator handler yields
    "done",  # a job-done post with a result
    "cancel",  # the test cancelled a job
    "stop",  # the stop channel delivered that to the worker
    "ping",  # a heartbeat
    "unhealthy",  # the ping of a failed fitness check
    "unknown",  # a request to a path that Runpod does not have
]
Faulty = Literal["take", "stop", "progress", "stream", "done", "ping"]

# Instead of a status: close the connection without an answer.
DROP = 0


@dataclass(frozen=True)
class Event:
    """One thing that happened, in the order in which it reached the plane.

    `at` is time.monotonic(). `body` is the job handed out, the decoded JSON posted, or the
    query of a ping; None when the body was not JSON (then `text` has it). `status` is what the
    plane answered, DROP for a closed connection, None where nothing was answered.
    """

    kind: Kind
    at: float
    worker: str | None = None
    job_id: str | None = None
    body: Any = None
    status: int | None = None
    text: str = field(default="", repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def line(self, zero: float) -> str:
        """One short line for people; seconds since `zero`."""
        body = repr(self.body) if self.body is not None else self.text
        short = body if len(body) <= 160 else f"{body[:160]}… ({len(body)} characters)"
        return f"{self.at - zero:8.3f} s  {self.kind:9} {self.job_id or '-'} {self.status} {short}"


class PlaneTimeout(AssertionError):
    """Something a test waited for did not happen; the message says what happened instead."""


@dataclass
class Faults:
    """How the plane misbehaves. Change it at any time; the next request sees the change.

    `hold_jobs`: hand out nothing, keep the takes waiting.
    `delay`: seconds between the arrival of a request of this kind and the answer to it, as if
    the line were slow: `plane.faults.delay["done"] = 0.5`.
    `held`: requests of these kinds are not answered as long as their kind is in there.
    """

    hold_jobs: bool = False
    delay: dict[Faulty, float] = field(default_factory=dict)
    held: set[Faulty] = field(default_factory=set)
    _answers: dict[Faulty, deque[int]] = field(default_factory=dict)

    def answer(self, kind: Faulty, *statuses: int) -> None:
        """Answer the next requests of this kind with these statuses (DROP: hang up), then normally.

        `plane.faults.answer("done", 500, 500, 200)`
        """
        self._answers.setdefault(kind, deque()).extend(statuses)

    def next_status(self, kind: Faulty) -> int | None:
        """The status the next request of this kind must get; None when no fault is due."""
        try:
            return self._answers[kind].popleft()
        except (KeyError, IndexError):
            return None

    def unused(self, kind: Faulty) -> int:
        """How many faults of this kind have not been met yet."""
        return len(self._answers.get(kind, ()))


def now() -> float:
    return time.monotonic()
