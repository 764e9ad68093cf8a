"""Tasks begin when what they need is there; faults stop only what depends on them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from bootstrap.boot.schedule import Schedule, Stage, State, Task, Timeline
from bootstrap.core.findings import Finding, error, warning

BAD = error("volume.not_found", "bad", "fix")
Run = Callable[[Stage], Sequence[Finding] | None]


def good(_: Stage) -> None:
    return None


def returning(*findings: Finding) -> Run:
    return lambda _: findings


def run(*tasks: Task) -> tuple[Schedule, Timeline]:
    timeline = Timeline()
    schedule = Schedule(timeline, tasks)
    schedule.start()
    for task in tasks:
        assert schedule.wait(task.name, 10) is not State.WAITING, task.name
    return schedule, timeline


def test_independent_tasks_run_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=10)

    def meet(_: Stage) -> None:
        meeting.wait()

    schedule, _ = run(Task("a", meet), Task("b", meet))
    assert schedule.wait("a") is schedule.wait("b") is State.GOOD


def test_a_task_waits_for_all_it_needs() -> None:
    order: list[str] = []

    def note(row: Stage) -> None:
        order.append(row.name)

    run(Task("a", note), Task("b", note, needs=("a",)), Task("c", note, needs=("a", "b")))
    assert order == ["a", "b", "c"]


def test_a_failure_stops_only_what_needs_it() -> None:
    schedule, timeline = run(
        Task("bad", returning(BAD)),
        Task("needs it", good, needs=("bad",)),
        Task("needs that", good, needs=("needs it",)),
        Task("only after it", good, after=("bad",)),
        Task("beside", good),
    )
    names = ("bad", "needs it", "needs that", "only after it", "beside")
    states = {name: schedule.wait(name) for name in names}
    assert list(states.values()) == [
        State.FAILED, State.SKIPPED, State.SKIPPED, State.GOOD, State.GOOD,
    ]  # fmt: skip
    outcomes = {stage.name: stage.outcome for stage in timeline.stages}
    assert outcomes == {name: state.value for name, state in states.items()}
    assert schedule.findings() == [BAD]


def test_warnings_stop_nothing_and_findings_keep_the_order_of_tasks() -> None:
    first, second = warning("a.b", "1", "f"), warning("a.b", "2", "f")

    def slowly(_: Stage) -> Sequence[Finding]:
        threading.Event().wait(0.1)
        return [first]

    schedule, _ = run(
        Task("slow", slowly),
        Task("fast", returning(second)),
        Task("next", good, needs=("slow", "fast")),
    )
    assert schedule.findings() == [first, second]
    assert schedule.wait("next") is State.GOOD


def test_a_crash_is_a_finding() -> None:
    def crash(_: Stage) -> None:
        raise RuntimeError("no such thing")

    schedule, _ = run(Task("a", crash), Task("b", good, needs=("a",)))
    (finding,) = schedule.findings()
    assert finding.code == "boot.stage_crashed" and "no such thing" in finding.message
    assert schedule.wait("b") is State.SKIPPED


def test_a_task_that_hangs_is_given_up_and_its_late_word_does_not_count() -> None:
    released = threading.Event()

    def hang(_: Stage) -> Sequence[Finding]:
        released.wait(30)
        return [warning("late.word", "w", "f")]

    schedule, timeline = run(
        Task("hangs", hang, budget=0.1, late="mend it"), Task("b", good, needs=("hangs",))
    )
    released.set()
    (finding,) = schedule.findings()
    assert (finding.code, finding.fix) == ("boot.stage_late", "mend it")
    assert next(s.outcome for s in timeline.stages if s.name == "hangs") == "late"
    assert schedule.wait("b") is State.SKIPPED
