"""Runs each task as soon as its inputs are there; each is a row of the timeline.

A task that fails is reported and stops only those that depend on it. One that exceeds its budget is
abandoned: a hanging network mount may block its thread forever.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

from bootstrap.core.findings import Finding, error, errors_in, unexpected
from bootstrap.core.text import size_text

_log = logging.getLogger(__name__)

CODES = {
    "boot.stage_crashed": "A boot stage failed because of a bug in this program",
    "boot.stage_late": "A boot stage exceeded its time limit",
}


# Shorter stages are not worth a line.
SHOWN_SECONDS = 0.1
T = TypeVar("T")


class StageFailed(Exception):
    """Ends a stage without a value, with the findings that say why."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__(", ".join(finding.code for finding in findings))
        self.findings = findings


def value_or_fail(made: T | Finding) -> T:
    """`made`, unless it is a finding, which ends the stage. Raises StageFailed."""
    if isinstance(made, Finding):
        raise StageFailed(made)
    return made


@dataclass
class Stage:
    """One part of a boot; `start` and `seconds` count from the timeline's beginning. `bytes` is the
    amount moved, `note` a remark, `findings` what it found."""

    name: str
    start: float
    seconds: float = 0.0
    outcome: str = "ok"
    bytes: int = 0
    note: str = ""
    findings: list[Finding] = field(default_factory=list, repr=False)

    def add(self, findings: Iterable[Finding]) -> None:
        """An error makes the stage a failure, whatever it returns."""
        self.findings += findings

    @property
    def is_worth_showing(self) -> bool:
        """Did it take time, or fail? A skipped one did neither."""
        if self.outcome == TaskState.SKIPPED.value:
            return False
        return self.seconds >= SHOWN_SECONDS or self.outcome != "ok"

    @property
    def remark(self) -> str:
        """` (note, bytes, outcome)`, those that there are."""
        said = [self.note, size_text(self.bytes) if self.bytes else ""]
        said += [self.outcome] if self.outcome != "ok" else []
        text = ", ".join(part for part in said if part)
        return f" ({text})" if text else ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data without the findings; `bytes` and `note` only where there are any."""
        shown = {k: v for k, v in vars(self).items() if k != "findings"}
        return {k: v for k, v in shown.items() if v or k not in ("bytes", "note")}


class Timeline:
    """Collects stages from any thread; its clock starts when it is created. With `held`, they are
    logged from `release` or the first failure on."""

    def __init__(self, held: bool = False) -> None:
        self._zero = time.monotonic()
        self._stages: list[Stage] = []
        self._held: list[Stage] | None = [] if held else None
        self._lock = threading.Lock()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._zero

    @contextmanager
    def stage(self, name: str, since: float | None = None) -> Iterator[Stage]:
        """Time a block; its outcome is `ok`, what the block sets, or the name of the exception that
        ended it. `since` (`time.monotonic()`) if it began earlier."""
        begun = self.elapsed if since is None else max(since - self._zero, 0.0)
        stage = Stage(name, round(begun, 3))
        try:
            yield stage
        except BaseException as problem:
            stage.outcome = type(problem).__name__
            raise
        finally:
            stage.seconds = max(0.0, round(self.elapsed - stage.start, 3))
            self._add(stage)

    def skip(self, name: str) -> None:
        """A stage that did not run because its inputs failed."""
        self._add(Stage(name, round(self.elapsed, 3), outcome=TaskState.SKIPPED.value))

    def give_up(self, name: str, seconds: float) -> None:
        """A stage that is abandoned after `seconds`."""
        self._add(Stage(name, round(self.elapsed - seconds, 3), seconds, TaskState.LATE.value))

    def _add(self, stage: Stage) -> None:
        """An abandoned stage stays so, even if it ends later."""
        with self._lock:
            if not any(
                s.name == stage.name and s.outcome == TaskState.LATE.value for s in self._stages
            ):
                self._stages.append(stage)
                self._log(stage)

    def release(self) -> None:
        """Log the stages that were held back, and further ones at once."""
        with self._lock:
            held, self._held = self._held or [], None
            for stage in held:
                _log_stage(stage)

    def _log(self, stage: Stage) -> None:
        held = [] if self._held is None else self._held
        held.append(stage)
        if self._held is None or stage.outcome not in ("ok", TaskState.SKIPPED.value):
            self._held = None
            for each in held:
                _log_stage(each)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages so far, by start."""
        with self._lock:
            return tuple(sorted(self._stages, key=lambda s: s.start))


def _log_stage(stage: Stage) -> None:
    """A line for each that took time or failed."""
    if not stage.is_worth_showing:
        return
    level = logging.INFO if stage.outcome == "ok" else logging.WARNING
    _log.log(level, "%s: %.1f s%s", stage.name, stage.seconds, stage.remark)


class TaskState(Enum):
    """The outcome of a task; `WAITING` until it is settled."""

    WAITING = "waiting"
    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"
    LATE = "late"


class Task(Generic[T]):
    """`run` gets its row of the timeline, to add remarks, and returns the task's value. It starts
    when all `needs` succeeded and all of `after` are settled. `budget` is in seconds;
    `timeout_hint` is the fix if it is exceeded."""

    def __init__(
        self,
        name: str,
        run: Callable[[Stage], T],
        needs: Sequence[Task[Any]] = (),
        after: Sequence[Task[Any]] = (),
        budget: float | None = None,
        timeout_hint: str = "",
    ) -> None:
        self.name = name
        self.run = run
        self.needs = tuple(needs)
        self.after = tuple(after)
        self.budget = budget
        self.timeout_hint = timeout_hint
        self.state = TaskState.WAITING
        self.findings: Sequence[Finding] = ()
        self._values: list[T] = []

    @property
    def value(self) -> T:
        """The value, for dependent tasks. Raises LookupError if it did not return."""
        if not self._values:
            raise LookupError(f"the stage “{self.name}” has no value: it is {self.state.value}")
        return self._values[0]

    @property
    def result(self) -> T | None:
        """The value, even if it found an error; None if it did not return."""
        return self._values[0] if self._values else None

    def settle(
        self, state: TaskState, findings: Sequence[Finding] = (), values: Sequence[T] = ()
    ) -> bool:
        """Only the first call counts: an abandoned task stays so. False if it was settled."""
        if self.state is not TaskState.WAITING:
            return False
        self.findings, self._values = findings, list(values)
        self.state = state
        return True


class Schedule:
    """Tasks, each after those that it needs."""

    def __init__(self, timeline: Timeline, tasks: Sequence[Task[Any]]) -> None:
        self._timeline = timeline
        self._tasks = tasks
        self._changed = threading.Condition()

    def start(self) -> None:
        """Begin; returns at once."""
        for task in self._tasks:
            threading.Thread(
                target=self._attend, args=(task,), name=f"boot: {task.name}", daemon=True
            ).start()

    def wait(self, task: Task[Any], seconds: float | None = None) -> TaskState:
        """The outcome of a task, waiting for it up to `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: task.state is not TaskState.WAITING, seconds)
            return task.state

    def findings(self) -> list[Finding]:
        """The settled tasks' findings, in the order of the tasks."""
        with self._changed:
            return [finding for task in self._tasks for finding in task.findings]

    def _attend(self, task: Task[Any]) -> None:
        before = (*task.needs, *task.after)

        def is_decided() -> bool:
            """One failed need is enough: others may never be settled."""
            if any(need.state not in (TaskState.WAITING, TaskState.OK) for need in task.needs):
                return True
            return all(t.state is not TaskState.WAITING for t in before)

        with self._changed:
            self._changed.wait_for(is_decided)
            good = all(need.state is TaskState.OK for need in task.needs)
        if not good:
            self._timeline.skip(task.name)
            self._settle(task, TaskState.SKIPPED)
            return
        worker = threading.Thread(target=self._run, args=(task,), name=task.name, daemon=True)
        worker.start()
        worker.join(task.budget)
        if worker.is_alive():
            self._timeline.give_up(task.name, task.budget or 0.0)
            self._settle(task, TaskState.LATE, [_late(task)])

    def _run(self, task: Task[Any]) -> None:
        values: list[Any] = []
        with self._timeline.stage(task.name) as row:
            try:
                values.append(task.run(row))
            except StageFailed as failure:
                row.add(failure.findings)
            except BaseException as fault:  # noqa: BLE001  # the boot goes on and says so
                _log.exception("the stage “%s” failed", task.name)
                what = f"The boot's stage “{task.name}”"
                row.add([unexpected("boot.stage_crashed", what, fault, stage=task.name)])
            state = TaskState.FAILED if errors_in(row.findings) else TaskState.OK
            if state is TaskState.FAILED:
                row.outcome = state.value
        self._settle(task, state, tuple(row.findings), values)

    def _settle(
        self,
        task: Task[Any],
        state: TaskState,
        findings: Sequence[Finding] = (),
        values: Sequence[Any] = (),
    ) -> None:
        with self._changed:
            if task.settle(state, findings, values):
                self._changed.notify_all()


def _late(task: Task[Any]) -> Finding:
    return error(
        "boot.stage_late",
        f"The boot's stage “{task.name}” did not finish within {task.budget:g} s.",
        task.timeout_hint or "Read the log, and start the worker again.",
        stage=task.name,
    )
