"""Progress reaches the caller in order, not too often, and never after the reply."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from handler.sdk import progress as module
from handler.sdk.progress import Progress, in_words
from tests.support.control_plane import ControlPlane
from tests.support.rig import START_SECONDS, Rig
from tests.support.sources import ROOT
from tests.support.waiting import run_at_once
from tests.support.worker_process import WorkerProcess

WORKER = Path(__file__).parents[2] / "support" / "progress_worker.py"


class Caller:
    """Takes updates, each as slowly as reported."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.begun: list[dict[str, Any]] = []
        self.heard: list[dict[str, Any]] = []
        self.heard_one = asyncio.Event()

    async def __call__(self, update: dict[str, Any]) -> None:
        self.begun.append(update)
        await asyncio.sleep(self.seconds)
        self.heard.append(update)
        self.heard_one.set()

    @property
    def stages(self) -> list[str]:
        return [update["stage"] for update in self.heard]


def test_a_new_stage_is_reported_at_once_and_in_order() -> None:
    caller = Caller()

    async def job() -> None:
        progress = Progress({"id": "j"}, caller)
        for stage in ("fetching", "loading", "sampling"):
            progress.update(stage)
            await asyncio.sleep(0.05)
        await progress.drain()

    run_at_once(job(), module)
    assert caller.stages == ["fetching", "loading", "sampling"]


def test_a_preview_goes_along_until_the_next_stage() -> None:
    caller = Caller()

    async def job() -> None:
        progress = Progress({"id": "j"}, caller)
        progress.preview("too early")
        progress.update("running", 10)
        await asyncio.sleep(0.05)
        progress.preview("picture")
        await asyncio.sleep(module.SECONDS_APART + 0.2)
        progress.update("running", 20)
        await asyncio.sleep(module.SECONDS_APART + 0.2)
        progress.update("delivering")
        await asyncio.sleep(0.05)
        await progress.drain()

    run_at_once(job(), module)
    reported = [(u["stage"], u.get("percent"), u.get("preview")) for u in caller.heard]
    assert reported == [
        ("running", 10.0, None),
        ("running", 10.0, "picture"),
        ("running", 20.0, "picture"),
        ("delivering", None, None),
    ]


def test_one_stage_is_reported_once_a_second_at_most_and_its_newest_state_stands() -> None:
    caller = Caller()

    async def job() -> None:
        progress = Progress({"id": "j"}, caller)
        for percent in range(100):
            progress.update("sampling", percent)
            await asyncio.sleep(0.001)
        assert [update["percent"] for update in caller.heard] == [0.0]
        await asyncio.sleep(module.SECONDS_APART + 0.3)
        assert [update["percent"] for update in caller.heard] == [0.0, 99.0]
        await progress.drain()

    run_at_once(job(), module)


def test_a_new_stage_overtakes_an_update_that_waits_for_its_second() -> None:
    caller = Caller()

    async def job() -> None:
        progress = Progress({"id": "j"}, caller)
        for stage, percent in (("fetching", 1), ("fetching", 2), ("loading", 3)):
            progress.update(stage, percent)
            await asyncio.sleep(0.1)
        assert [update["percent"] for update in caller.heard] == [1.0, 3.0]
        await progress.drain()

    run_at_once(job(), module)


def test_a_job_that_ends_in_its_quiet_time_sends_and_waits_for_nothing() -> None:
    caller = Caller(seconds=0.2)

    async def job(seconds: float) -> None:
        progress = Progress({"id": "j"}, caller, quiet=0.3)
        progress.update("sampling", 1)
        progress.update("sampling", 2)
        await asyncio.sleep(seconds)
        await progress.drain()

    run_at_once(job(0.05), module)
    assert caller.begun == []
    run_at_once(job(0.4), module)
    assert caller.heard == [{"stage": "sampling", "percent": 2.0, "message": "sampling"}]


def test_what_is_reported_first_after_the_drain_is_not_sent() -> None:
    caller = Caller()

    async def job() -> None:
        progress = Progress({"id": "j"}, caller)
        await progress.drain()
        progress.update("late")
        await asyncio.sleep(0.1)

    run_at_once(job(), module)
    assert caller.begun == []


def test_drain_waits_for_the_update_on_its_way_and_sends_no_other() -> None:
    caller = Caller(seconds=0.3)

    async def job() -> None:
        progress = Progress({"id": "j"}, caller)
        progress.update("one")
        await asyncio.sleep(0.1)
        progress.update("two")
        await progress.drain()
        assert caller.heard == caller.begun == [{"stage": "one", "message": "one"}]
        progress.update("three")
        await asyncio.sleep(0.5)

    run_at_once(job(), module)
    assert caller.stages == ["one"]


def test_a_caller_that_never_takes_it_does_not_hold_up_the_reply() -> None:
    caller = Caller(seconds=60)

    async def job() -> None:
        progress = Progress({"id": "j"}, caller)
        progress.update("one")
        await asyncio.sleep(0.05)
        await progress.drain()

    run_at_once(asyncio.wait_for(job(), 20), module)
    assert (len(caller.begun), len(caller.heard)) == (1, 0)


def test_it_is_reported_from_any_thread_also_after_the_loop_is_gone() -> None:
    caller = Caller()
    kept: list[Progress] = []

    async def job() -> None:
        progress = Progress({"id": "j"}, caller)
        kept.append(progress)
        thread = threading.Thread(target=progress.update, args=("fetching", 250.0))
        thread.start()
        await asyncio.wait_for(caller.heard_one.wait(), 10)

    asyncio.run(job())
    kept[0].update("late")
    assert caller.heard == [{"stage": "fetching", "percent": 100.0, "message": "fetching"}]


def test_a_post_that_fails_fails_no_job(capsys: pytest.CaptureFixture[str]) -> None:
    async def refuse(update: dict[str, Any]) -> None:
        raise OSError("no route")

    async def job() -> str:
        progress = Progress({"id": "j"}, refuse)
        progress.update("one")
        await asyncio.sleep(0.05)
        progress.update("two", float("nan"))
        await asyncio.sleep(0.05)
        await progress.drain()
        return "done"

    assert run_at_once(job(), module) == "done"
    assert capsys.readouterr().err.count("no route") == 2


def test_without_a_control_plane_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNPOD_WEBHOOK_POST_OUTPUT", raising=False)

    async def job() -> int:
        progress = Progress({"id": "j"})
        progress.update("one")
        await asyncio.sleep(0.05)
        await progress.drain()
        return len(asyncio.all_tasks())

    assert run_at_once(job(), module) == 1, "not even a task"


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """The real SDK in production mode with a worker that only tells."""
    with ControlPlane(hold_seconds=1) as plane:
        env = plane.worker_env(skip_fitness=True) | {"PYTHONPATH": str(ROOT)}
        with WorkerProcess([sys.executable, WORKER], env={**os.environ, **env}) as worker:
            plane.wait_for("ready", timeout=START_SECONDS)
            yield Rig(plane, worker)


def events_of(rig: Rig, job: str) -> list[tuple[str, Any]]:
    return [(e.kind, e.body) for e in rig.plane.events if e.job_id == job and e.kind != "submit"]


def test_the_sdk_delivers_it_in_order_before_the_reply_on_a_slow_line(rig: Rig) -> None:
    rig.plane.faults.delay["progress"] = 0.4
    try:
        job = rig.plane.submit({"steps": [["a", 0], ["b", 50], ["c", None]]})
        assert rig.plane.result(job)["output"] == {"ok": True}
    finally:
        rig.plane.faults.delay.clear()
    rig.wait_until_settled(job)
    kinds, bodies = zip(*events_of(rig, job), strict=True)
    named = {"model": "m.safetensors", "message": "m.safetensors"}
    assert kinds == ("take", "progress", "progress", "progress", "done")
    assert [body["output"] for body in bodies[1:4]] == [
        {"stage": "a", "percent": 0.0, **named},
        {"stage": "b", "percent": 50.0, **named},
        {"stage": "c", **named},
    ]
    assert all(body["status"] == "IN_PROGRESS" for body in bodies[1:4])


def test_an_update_the_plane_refuses_does_not_harm_the_job(rig: Rig) -> None:
    rig.plane.faults.answer("progress", 400)
    job = rig.plane.submit({"steps": [["a", 0], ["b", 1]]})
    assert rig.plane.result(job)["output"] == {"ok": True}
    assert [kind for kind, _ in events_of(rig, job)][-1] == "done"


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ({"stage": "running", "class_type": "KSampler", "step": 9, "steps": 20},
         "KSampler, step 9 of 20"),
        ({"stage": "running", "node": "3", "class_type": "SaveImage"}, "SaveImage"),
        ({"stage": "queued", "position": 2}, "position 2 in the queue"),
        ({"stage": "fetching models", "model": "a.safetensors", "detail": "1 of 2 GB"},
         "a.safetensors, 1 of 2 GB"),
        ({"stage": "delivering"}, "delivering"),
    ],
)  # fmt: skip
def test_an_update_is_one_line_as_well(update: dict[str, Any], words: str) -> None:
    assert in_words(update) == words
