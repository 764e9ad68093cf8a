"""Jobs side by side on one real ComfyUI: one runs, the next is queued behind it; what happens to
the one is not the other's fault."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from demo.volume import DemoVolume
from handler.execution import MemoryRelief
from handler.execution.comfy_client import ComfyClient
from tests.conftest import BootedWorker, environment, furnished, ready_worker
from tests.end_to_end.test_faults import assert_works, comfyui_process, is_busy, through
from tests.end_to_end.test_worker import assert_refused, plain
from tests.support.waiting import until

Reply = dict[str, Any]


@pytest.fixture(scope="module")
def hurt(demo: DemoVolume, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedWorker]:
    """A worker that these tests hurt, one after the other; each leaves it working again."""
    volume = furnished(demo, tmp_path_factory.mktemp("side") / "volume")
    with ready_worker(environment(demo, volume, tmp_path_factory.mktemp("work"))) as booted:
        yield booted


def both(
    worker: BootedWorker, first: Reply, second: Reply, later: float = 0.7, cancel: str = ""
) -> tuple[Reply | None, Reply | None]:
    """The replies of two jobs, the second `later` seconds after the first; `cancel` names one to
    be cancelled as long again after that, whose reply is None."""

    async def scenario() -> tuple[Reply | None, Reply | None]:
        jobs = {}
        for name, given in (("first", first), ("second", second)):
            jobs[name] = asyncio.create_task(worker.worker.handle({"id": name, "input": given}))
            await asyncio.sleep(later)
        if cancel:
            jobs[cancel].cancel()
        replies = await asyncio.gather(*jobs.values(), return_exceptions=True)
        assert not any(isinstance(r, Exception) for r in replies), replies
        one, two = (None if isinstance(r, BaseException) else r for r in replies)
        return one, two

    return asyncio.run(asyncio.wait_for(scenario(), 90))


def sleeping(seconds: float, **more: Any) -> Reply:
    return {"workflow": through("TestSleep", seconds=seconds), "max_wait": 60, **more}


def assert_done(reply: Reply | None) -> None:
    assert reply is not None and reply["status"] == "completed", reply
    assert len(reply["results"]) == 1 and "also_kept" not in reply


def test_both_come_back_complete_the_second_without_its_waiting_time(hurt: BootedWorker) -> None:
    first, second = both(hurt, sleeping(6.0), sleeping(0.2, max_wait=4.0))
    assert_done(first)
    assert_done(second)
    assert first and second
    assert first["results"][0]["path"] != second["results"][0]["path"]
    assert "waited" not in first["timings"] and second["timings"]["waited"] > 0
    assert second["timings"]["execution"] < 4.0, "what ComfyUI took for it, not the wait"
    work = hurt.serving.work
    assert work is not None
    assert len(list(work.output.iterdir())) == 1, "the last job's, for ComfyUI's cache"


def test_of_many_short_jobs_at_once_each_gets_its_own(hurt: BootedWorker) -> None:
    """One ends just as the next one writes."""

    async def scenario() -> list[Reply]:
        given = [{"workflow": plain(color=1000 + n), "max_wait": 60} for n in range(60)]
        jobs = [{"id": f"many-{n}", "input": one} for n, one in enumerate(given)]
        return await asyncio.gather(*map(hurt.worker.handle, jobs))

    replies = asyncio.run(scenario())
    for reply in replies:
        assert_done(reply)
    assert len({reply["results"][0]["image"] for reply in replies}) == len(replies)


def test_one_workflow_twice_at_once_comes_back_twice(hurt: BootedWorker) -> None:
    given = {"workflow": plain(color=4711), "max_wait": 60}
    first, second = both(hurt, given, given, later=0.0)
    assert_done(first)
    assert_done(second)
    assert first and second
    assert first["results"][0]["image"] == second["results"][0]["image"]
    assert first["results"][0]["path"] != second["results"][0]["path"]


def test_a_timeout_is_the_own_one_and_leaves_the_other_alone(hurt: BootedWorker) -> None:
    first, second = both(hurt, sleeping(3.0, max_wait=1.0), sleeping(0.3, max_wait=30.0))
    assert first and first["error_code"] == "job.timeout"
    assert_done(second)
    first, second = both(hurt, sleeping(2.0), sleeping(9.0, max_wait=1.0))
    assert_done(first)
    assert second and second["error_code"] == "job.timeout"


def test_a_rejected_workflow_is_reported_while_another_runs(hurt: BootedWorker) -> None:

    async def scenario() -> Reply:
        running = asyncio.create_task(hurt.worker.handle({"id": "a", "input": sleeping(60.0)}))
        await until(lambda: is_busy(hurt))
        broken = {"workflow": {"1": {"class_type": "Nope", "inputs": {}}}}
        refused = await hurt.worker.handle({"id": "b", "input": broken})
        assert not running.done(), "not when its turn came"
        running.cancel()
        await asyncio.wait({running})
        return refused

    assert_refused(asyncio.run(scenario()), "workflow.unknown_node", "Nope")
    assert_works(hurt)


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (through("TestDie", way="SIGKILL"), "comfyui.died"),
        (through("TestRaise", what="SystemExit"), "comfyui.died"),
        (through("TestRaise", what="RuntimeError", said="CUDA error: an illegal memory access"),
         "job.cuda_failed"),
    ],
)  # fmt: skip
def test_a_job_that_breaks_comfyui_costs_the_one_behind_it_nothing(
    hurt: BootedWorker, first: Reply, code: str
) -> None:
    first["4"] = {"class_type": "TestSleep", "inputs": {"image": ["1", 0], "seconds": 2.0}}
    first["3"]["inputs"]["image"] = ["4", 0]
    broken, other = both(hurt, {"workflow": first, "max_wait": 60}, sleeping(0.5))
    assert broken is not None
    assert_refused(broken, code)
    assert_done(other)


def test_a_job_that_breaks_comfyui_behind_another_is_the_one_to_blame(hurt: BootedWorker) -> None:
    """At once, so that the end of the first is not known yet: it is retried."""
    other, broken = both(hurt, sleeping(2.0), {"workflow": through("TestDie", way="SIGKILL")})
    assert other and other["status"] == "completed", other
    assert broken is not None
    assert_refused(broken, "comfyui.died")
    assert_works(hurt)


def test_the_one_that_waits_can_be_cancelled_and_the_other_goes_on(hurt: BootedWorker) -> None:
    before = comfyui_process(hurt).pid
    done, cancelled = both(hurt, sleeping(3.0), sleeping(60.0), cancel="second")
    assert_done(done)
    assert cancelled is None
    assert_works(hurt)
    assert comfyui_process(hurt).pid == before


@pytest.mark.parametrize("obedient", [True, False])
def test_the_one_that_runs_can_be_cancelled_and_the_other_goes_on(
    hurt: BootedWorker, obedient: bool
) -> None:
    """A node that ignores the interrupt is killed with ComfyUI, and the prompt behind it is
    retried."""
    deaf = through("TestSleep", seconds=60.0, obedient=obedient)
    cancelled, done = both(hurt, {"workflow": deaf}, sleeping(0.3), cancel="first")
    assert cancelled is None
    assert_done(done)


def test_short_memory_is_relieved_though_jobs_keep_coming(
    hurt: BootedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job that comes next waits until ComfyUI has no other."""
    levels, busy = [50.0], []

    async def freed(client: ComfyClient) -> None:
        levels[0] = 60.0
        busy.append(is_busy(hurt))
        await really_free(client)

    (jobs,) = hurt.worker._instances
    really_free = ComfyClient.free
    monkeypatch.setattr(ComfyClient, "free", freed)
    relief = MemoryRelief(hurt.runtime.settings, lambda: levels[0])
    monkeypatch.setattr(jobs._recovery, "_relief", relief)

    async def scenario() -> list[Reply]:
        coming = []
        for seconds in (1.0, 3.0, 0.2):
            levels[0] = 97.0 if seconds == 0.2 else 50.0
            coming.append(
                asyncio.create_task(
                    hurt.worker.handle({"id": str(seconds), "input": sleeping(seconds)})
                )
            )
            await asyncio.sleep(0.9)
        return await asyncio.gather(*coming)

    for reply in asyncio.run(scenario()):
        assert_done(reply)
    assert busy == [False]
