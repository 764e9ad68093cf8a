"""Runs tasks as soon as what each needs is there, each a row of the timeline.

A task that fails says so and stops only what needs it. One that exceeds its budget is given up:
a network mount that hangs holds its thread for ever, and nobody waits for that.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

from bootstrap.core.findings import Finding, error, errors_in

_log = logging.getLogger(__name__)

CODES = {
    "boot.stage_crashed": "A stage of the boot ended with a fault of this program",
    "boot.stage_late": "A stage of the boot took longer than it may",
}


@dataclass
class Stage:
    """One part of a boot; `start` and `seconds` count from the timeline's beginning. `bytes` is
    what it moved, `note` what else there is to say."""

    name: str
    start: float
    seconds: float = 0.0
    outcome: str = "ok"
    bytes: int = 0
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data; `bytes` and `note` only where there are any."""
        return {k: v for k, v in vars(self).items() if v or k not in ("bytes", "note")}


class Timeline:
    """Collects stages from any thread; the clock starts when it is made."""

    def __init__(self) -> None:
        self._zero = time.monotonic()
        self._stages: list[Stage] = []
        self._lock = threading.Lock()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._zero

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time a block; its outcome is `ok`, what the block sets, or the name of the exception
        that ended it."""
        stage = Stage(name, round(self.elapsed, 3))
        try:
            yield stage
        except BaseException as problem:
            stage.outcome = type(problem).__name__
            raise
        finally:
            stage.seconds = max(0.0, round(self.elapsed - stage.start, 3))
            self._add(stage)

    def skip(self, name: str) -> None:
        """A stage that what it needs kept from running."""
        self._add(Stage(name, round(self.elapsed, 3), outcome="skipped"))

    def give_up(self, name: str, seconds: float) -> None:
        """A stage that has been at it for `seconds` and is waited for no longer."""
        self._add(Stage(name, round(self.elapsed - seconds, 3), seconds, "late"))

    def _add(self, stage: Stage) -> None:
        with self._lock:
            self._stages.append(stage)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages so far, by start."""
        with self._lock:
            return tuple(sorted(self._stages, key=lambda s: s.start))


class State(Enum):
    """What came of a task; `WAITING` until it is settled."""

    WAITING = "waiting"
    GOOD = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"
    LATE = "late"


@dataclass(frozen=True)
class Task:
    """`run` is given its row of the timeline to say more on, and returns findings (an error among
    them is a failure). It begins when all `needs` went
    well and all of `after` are settled. `budget` in seconds; `late` is what to do when it is
    exceeded, as a fix."""

    name: str
    run: Callable[[Stage], Sequence[Finding] | None]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    budget: float | None = None
    late: str = ""


class Schedule:
    """Tasks, in an order in which each stands behind what it needs."""

    def __init__(self, timeline: Timeline, tasks: Sequence[Task]) -> None:
        self._timeline = timeline
        self._tasks = {task.name: task for task in tasks}
        self._states = dict.fromkeys(self._tasks, State.WAITING)
        self._findings: dict[str, Sequence[Finding]] = {}
        self._changed = threading.Condition()

    def start(self) -> None:
        """Begin; returns at once."""
        for task in self._tasks.values():
            threading.Thread(
                target=self._attend, args=(task,), name=f"boot: {task.name}", daemon=True
            ).start()

    def wait(self, name: str, seconds: float | None = None) -> State:
        """What came of a task, waiting for it up to `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._settled(name), seconds)
            return self._states[name]

    def findings(self) -> list[Finding]:
        """What the settled tasks found, in the order of the tasks."""
        with self._changed:
            return [f for name in self._tasks for f in self._findings.get(name, ())]

    def _attend(self, task: Task) -> None:
        with self._changed:
            self._changed.wait_for(lambda: all(map(self._settled, (*task.needs, *task.after))))
            good = all(self._states[need] is State.GOOD for need in task.needs)
        if not good:
            self._timeline.skip(task.name)
            self._settle(task.name, State.SKIPPED)
            return
        worker = threading.Thread(target=self._run, args=(task,), name=task.name, daemon=True)
        worker.start()
        worker.join(task.budget)
        if worker.is_alive():
            self._timeline.give_up(task.name, task.budget or 0.0)
            self._settle(task.name, State.LATE, [_late(task)])

    def _run(self, task: Task) -> None:
        with self._timeline.stage(task.name) as row:
            try:
                findings = list(task.run(row) or ())
            except Exception as fault:  # noqa: BLE001  # the boot goes on and says so
                _log.exception("The boot's stage “%s” failed", task.name)
                findings = [_crashed(task, fault)]
            state = State.FAILED if errors_in(findings) else State.GOOD
            if state is State.FAILED:
                row.outcome = state.value
        self._settle(task.name, state, findings)

    def _settle(self, name: str, state: State, findings: Sequence[Finding] = ()) -> None:
        """The first word on a task counts: one that was given up stays so."""
        with self._changed:
            if not self._settled(name):
                self._states[name] = state
                self._findings[name] = findings
                self._changed.notify_all()

    def _settled(self, name: str) -> bool:
        return self._states[name] is not State.WAITING


def _late(task: Task) -> Finding:
    return error(
        "boot.stage_late",
        f"The boot's stage “{task.name}” was not through after {task.budget:g} s.",
        task.late or "Look at what it says in the log, and start the worker again.",
        stage=task.name,
    )


def _crashed(task: Task, fault: Exception) -> Finding:
    return error(
        "boot.stage_crashed",
        f"The boot's stage “{task.name}” failed: {type(fault).__name__}: {fault}",
        "Please report this with the worker's log.",
        stage=task.name,
    )
