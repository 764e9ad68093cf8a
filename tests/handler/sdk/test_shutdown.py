"""A worker that shuts down: each job it took is answered in time, and can be sent again."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from handler.common import errors
from handler.common.errors import Deadline, JobError
from handler.sdk import shutdown as shutdown_module
from handler.sdk.shutdown import JobHandle, Shutdown
from tests.end_to_end.test_faults import through
from tests.end_to_end.test_worker import plain
from tests.support.control_plane import ControlPlane
from tests.support.plane_records import now
from tests.support.waiting import run_at_once, wait_until
from tests.support.worker_process import WorkerProcess

GRACE = 1.0


class Job:
    """Runs until it is stopped, and takes a moment to clean up."""

    def __init__(self, waits: bool = False) -> None:
        self.waits = waits
        self.tidied = False

    async def work(self, handle: JobHandle) -> str:
        handle.is_queued = lambda: self.waits
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            self.tidied = True
            raise
        return "done"


async def code_of(bounded: asyncio.Task[str]) -> tuple[str, bool]:
    with pytest.raises(JobError) as caught:
        await bounded
    assert "Send it again" in caught.value.fix
    return caught.value.code, caught.value.details["begun"]


def test_jobs_that_wait_are_given_back_at_once_and_running_ones_after_the_grace() -> None:
    async def scene() -> None:
        shutdown, loop = Shutdown(GRACE), asyncio.get_running_loop()
        jobs = [Job(), Job(waits=True)]
        running, waiting = [asyncio.create_task(shutdown.bounded(job.work)) for job in jobs]
        quick = asyncio.create_task(shutdown.bounded(lambda _: asyncio.sleep(GRACE / 2, "done")))
        await asyncio.sleep(0.01)
        shutdown.begin()
        began = loop.time()
        assert await code_of(waiting) == ("worker.shutting_down", False)
        assert not running.done() and not quick.done()
        assert await quick == "done", "what ends within the grace is not touched"
        assert await code_of(running) == ("worker.shutting_down", True)
        assert loop.time() - began >= GRACE
        assert all(job.tidied for job in jobs)
        late = asyncio.create_task(shutdown.bounded(Job().work))
        assert await code_of(late) == ("worker.shutting_down", False)

    run_at_once(scene(), shutdown_module)


def test_a_job_that_its_caller_cancels_is_cancelled_and_not_answered() -> None:
    async def scene() -> None:
        shutdown, job = Shutdown(60.0), Job()
        running = asyncio.create_task(shutdown.bounded(job.work))
        await asyncio.sleep(0.01)
        shutdown.begin()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert job.tidied

    run_at_once(scene(), shutdown_module)


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_a_job_that_hangs_past_its_deadline_is_answered_and_until_then_the_worker_is_unwell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever it hangs in, even its own cleanup."""
    clock, over = Clock(), asyncio.Event()
    monkeypatch.setattr(errors, "time", SimpleNamespace(monotonic=clock))

    async def hangs(handle: JobHandle) -> str:
        handle.deadline, handle.stage = Deadline(10.0), "it hung"
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                continue
        return "too late"

    async def scene() -> JobError:
        shutdown = Shutdown(60.0)
        running = asyncio.create_task(shutdown.bounded(hangs))
        await asyncio.sleep(0.1)
        assert shutdown.fault() is None and not running.done()
        clock.seconds = 10.0 + 45.0 + 15.0 + 1.0
        fault = shutdown.fault()
        assert fault is not None and fault.code == "worker.job_overdue"
        with pytest.raises(JobError) as caught:
            await asyncio.wait_for(running, 30)
        assert shutdown.fault() is None
        over.set()
        return caught.value

    error = run_at_once(scene(), shutdown_module)
    assert error.code == "job.timeout" and "it hung" in error.message


def test_a_job_that_does_not_clean_up_is_answered_when_that_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not at the next look: the loop that posts the answer ends a second later."""
    clock, begun, over, wait = Clock(), asyncio.Event(), asyncio.Event(), asyncio.wait

    async def passes(tasks: set[asyncio.Task[None]], timeout: float) -> Any:
        clock.seconds += timeout
        return await wait(tasks, timeout=0)

    async def hangs() -> None:
        begun.set()
        while not over.is_set():
            with suppress(asyncio.CancelledError):
                await over.wait()

    async def scene() -> None:
        handle = JobHandle()
        running = asyncio.create_task(handle.run(hangs()))
        await begun.wait()
        began = clock.seconds
        handle.end(JobError("worker.shutting_down", "It ends."), 2.5)
        with pytest.raises(JobError, match="It ends"):
            await running
        assert clock.seconds - began == 2.5
        over.set()

    monkeypatch.setattr(shutdown_module, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(asyncio, "wait", passes)
    asyncio.run(scene())


def with_a_picture_first(obedient: bool) -> dict[str, Any]:
    """Saves a picture, then sleeps for minutes."""
    nodes = through("TestSleep", seconds=300, obedient=obedient)
    inputs = {"images": ["1", 0], "filename_prefix": "before-the-end"}
    nodes["4"] = {"class_type": "SaveImage", "inputs": inputs}
    return nodes


@pytest.mark.parametrize("obedient", [True, False])
def test_sigterm_stops_a_job_that_takes_longer_than_the_grace_and_posts_why(
    obedient: bool, worker_env: dict[str, str], volume: Path
) -> None:
    """The real SDK and a real ComfyUI; what the job had saved by then is on the volume."""
    with ControlPlane(hold_seconds=1) as plane:
        env = worker_env | plane.worker_env(skip_fitness=True) | {"SHUTDOWN_GRACE": "1"}
        with WorkerProcess.module("handler", env=env) as worker:
            plane.wait_for("ready", timeout=90)
            job = plane.submit({"workflow": with_a_picture_first(obedient)})
            kept = volume / "ComfyUI" / "output"
            worker.wait_for_line("got prompt", 30)
            waiting, late = (plane.submit({"workflow": plain(color=n)}) for n in range(2))
            wait_until(lambda: worker.log.count("got prompt") == 2)
            told = now()
            worker.terminate()
            given_back = plane.result(waiting, 20)["output"]
            assert given_back["error_code"] == "worker.shutting_down"
            assert given_back["details"] == {"begun": False}
            body = plane.result(job, 20)
            first, second = plane.select("done")
            assert (first.job_id, second.job_id) == (waiting, job), "has its grace"
            assert second.at - told >= 1
            assert body["output"]["error_code"] == "worker.shutting_down"
            assert body["output"]["details"] == {"begun": True, "grace": 1.0}
            assert "Send it again" in body["error"]
            assert worker.wait(30) == 0
            assert [path.name[:14] for path in kept.glob("*.png")] == ["before-the-end"]
            how = "Processing interrupted" if obedient else "did not stop the prompt"
            assert how in worker.log
            psutil.wait_procs([psutil.Process(p.pid) for p in worker.living()], timeout=5)
            assert worker.living() == []
            assert len(plane.select("done", job)) == 1 and plane.pending == [late]
