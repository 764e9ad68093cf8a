"""Tasks start when their inputs are there; faults stop only what depends on them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bootstrap.boot import task_runner
from bootstrap.boot.task_runner import Schedule, Stage, StageFailed, Task, TaskState, Timeline
from bootstrap.core.findings import Finding, error, warning

BAD = error("volume.not_found", "bad", "fix")


def good(_: Stage) -> str:
    return "value"


def finding(*findings: Finding) -> Callable[[Stage], str]:
    def run(row: Stage) -> str:
        row.add(findings)
        return "value"

    return run


def run(*tasks: Task[Any]) -> tuple[Schedule, Timeline]:
    timeline = Timeline()
    schedule = Schedule(timeline, tasks)
    schedule.start()
    for task in tasks:
        assert schedule.wait(task, 10) is not TaskState.WAITING, task.name
    return schedule, timeline


def test_independent_tasks_run_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=10)

    def meet(_: Stage) -> None:
        meeting.wait()

    a, b = Task("a", meet), Task("b", meet)
    run(a, b)
    assert a.state is b.state is TaskState.OK


def test_a_task_waits_for_all_it_needs_and_takes_what_they_returned() -> None:
    a = Task("a", lambda _: 1)
    b = Task("b", lambda _: a.value + 1, [a])
    c = Task("c", lambda _: a.value + b.value, [a, b])
    run(a, b, c)
    assert (a.value, b.value, c.value) == (1, 2, 3)


def test_a_failure_stops_only_what_needs_it() -> None:
    bad = Task("bad", finding(BAD))
    needs_it = Task("needs it", good, [bad])
    needs_that = Task("needs that", good, [needs_it])
    after_it, beside = Task("only after it", good, after=[bad]), Task("beside", good)
    schedule, timeline = run(bad, needs_it, needs_that, after_it, beside)
    states = {t.name: t.state for t in (bad, needs_it, needs_that, after_it, beside)}
    assert list(states.values()) == [
        TaskState.FAILED, TaskState.SKIPPED, TaskState.SKIPPED, TaskState.OK, TaskState.OK,
    ]  # fmt: skip
    outcomes = {stage.name: stage.outcome for stage in timeline.stages}
    assert outcomes == {name: state.value for name, state in states.items()}
    assert schedule.findings() == [BAD]
    assert bad.result == "value" and needs_it.result is None


def test_a_stage_without_a_value_says_why() -> None:
    def fail(_: Stage) -> int:
        raise StageFailed(BAD)

    task = Task("a", fail)
    schedule, _ = run(task)
    assert task.state is TaskState.FAILED and schedule.findings() == [BAD] and task.result is None
    with pytest.raises(LookupError, match="“a” has no value: it is failed"):
        _ = task.value


def test_warnings_stop_nothing_and_findings_keep_the_order_of_tasks() -> None:
    first, second = warning("a.b", "1", "f"), warning("a.b", "2", "f")

    def slowly(row: Stage) -> None:
        threading.Event().wait(0.1)
        row.add([first])

    slow, fast = Task("slow", slowly), Task("fast", finding(second))
    after = Task("next", good, [slow, fast])
    schedule, _ = run(slow, fast, after)
    assert schedule.findings() == [first, second]
    assert after.state is TaskState.OK


def test_a_crash_is_a_finding() -> None:
    def crash(_: Stage) -> None:
        raise RuntimeError("no such thing")

    a = Task("a", crash)
    b = Task("b", good, [a])
    schedule, _ = run(a, b)
    (found,) = schedule.findings()
    assert found.code == "boot.stage_crashed" and "no such thing" in found.message
    assert b.state is TaskState.SKIPPED


def test_a_task_that_hangs_is_given_up_and_what_it_says_later_does_not_count() -> None:
    released, ended = threading.Event(), threading.Event()

    def hang(row: Stage) -> str:
        released.wait(30)
        row.add([warning("late.word", "w", "f")])
        ended.set()
        return "late"

    a = Task("hangs", hang, budget=0.1, timeout_hint="fix it")
    b = Task("b", good, [a])
    schedule, timeline = run(a, b)
    released.set()
    assert ended.wait(10)
    (found,) = schedule.findings()
    assert (found.code, found.fix) == ("boot.stage_late", "fix it")
    assert next(s.outcome for s in timeline.stages if s.name == "hangs") == "late"
    assert b.state is TaskState.SKIPPED and a.result is None


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of a timeline, which the test sets."""
    now = [100.0]
    monkeypatch.setattr(task_runner, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_stage_may_have_begun_before_it_is_waited_for(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    timeline = Timeline()
    now[0] = 103.0
    with timeline.stage("ComfyUI", since=101.0) as row:
        row.note = "here"
    with timeline.stage("short"):
        pass
    with timeline.stage("wrong") as row:
        row.outcome = "failed"
    comfyui = timeline.stages[0]
    assert (comfyui.name, comfyui.start, comfyui.seconds) == ("ComfyUI", 1.0, 2.0)
    assert capsys.readouterr().err.splitlines() == [
        "[worker] ComfyUI: 2.0 s (here)",
        "[worker] WARN: wrong: 0.0 s (failed)",
    ]


def test_lines_wait_for_the_first_one_but_a_failure_does_not(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    def pass_stage(timeline: Timeline, outcome: str = "ok") -> None:
        with timeline.stage(outcome) as row:
            now[0] += 0.11  # shorter ones are not shown
            row.outcome = outcome

    def logged() -> list[str]:
        lines = capsys.readouterr().err.splitlines()
        return [line.split("] ")[1].split(":")[-2].strip() for line in lines]

    timeline = Timeline(held=True)
    pass_stage(timeline)
    assert logged() == []
    timeline.release()
    pass_stage(timeline)
    assert logged() == ["ok", "ok"] and len(timeline.stages) == 2
    timeline = Timeline(held=True)
    pass_stage(timeline)
    pass_stage(timeline, "failed")
    pass_stage(timeline)
    timeline.release()
    assert logged() == ["ok", "failed", "ok"]


def test_one_need_that_went_wrong_is_enough() -> None:
    """Another may be held for ever by a mount."""
    never = threading.Event()
    hangs = Task("hangs", lambda _: never.wait(30))
    bad = Task("bad", finding(BAD))
    b = Task("b", good, [hangs, bad])
    schedule = Schedule(Timeline(), [hangs, bad, b])
    schedule.start()
    assert schedule.wait(b, 5) is TaskState.SKIPPED
    never.set()


def test_a_stage_that_ends_its_thread_is_a_crash() -> None:
    def leave(_: Stage) -> None:
        raise SystemExit(3)

    a = Task("a", leave)
    schedule, _ = run(a)
    assert [f.code for f in schedule.findings()] == ["boot.stage_crashed"]
